"""Plans: ordered lists of primitive operations, computed in Python, executed by `stem`.

The operations, their argument order and their codes are those of docs/stem-protocol.md; `nacre.wire.stem` turns a plan into
bytes, `describe` into the lines that `nacre explain` prints.
"""

from __future__ import annotations

from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import IntEnum
else:
    from nacre.model.numbering import IntEnum

type_of_argument = str | bytes | int


class Code(IntEnum):
    """Operation codes; the table in docs/stem-protocol.md is the specification."""

    MOUNT = 1
    IMAGE = 2
    BIND = 3
    MKDIR = 4
    TOUCH = 5
    SYMLINK = 6
    MKNOD = 7
    WRITE = 8
    UNSHARE = 9
    SETNS = 10
    JOIN = 11
    CLONE = 12
    ROOT = 13
    PIVOT = 14
    CHROOT = 15
    CHDIR = 16
    HOSTNAME = 17
    LINK = 18
    ADDRESS = 19
    ROUTE = 20
    RLIMIT = 21
    BOUND = 22
    USER = 23
    CAPS = 24
    NNP = 25
    SECCOMP = 26
    MASK = 27
    READONLY = 28
    TTY = 29
    USERNS = 30
    IDMAP = 31
    ENTER = 32
    DEATH = 33
    OPEN = 34
    TAP = 35
    LISTEN = 36
    CHANNEL = 37
    UMASK = 38
    SETUID = 39
    CHOWN = 40
    TIME = 41
    EXEC = 42
    BUILTIN = 43
    SYNC = 44
    HOOK = 45
    START = 46
    NSFD = 47
    TREE = 48
    PICK = 49
    ATTR = 50
    ATTACH = 51
    COPYUP = 52
    IDENTITY = 53
    CWD = 54
    LOOKUP = 55
    READY = 56
    MOVE = 57
    DOMAIN = 58
    PERSONALITY = 59
    SCHED = 60
    IOPRIO = 61
    KEYRING = 62
    DUMPABLE = 63
    AFFINITY = 64
    INIT = 65


# Clone and mount flags of the kernel's user interface (linux/sched.h, linux/mount.h): a plan is a value, so its words live here.
NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_SYNCHRONOUS, MS_MANDLOCK, MS_DIRSYNC, MS_NODIRATIME = 16, 64, 128, 2048
MS_REMOUNT, MS_NOATIME, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_RELATIME, MS_STRICTATIME = (
    32, 1024, 4096, 16384, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 24,
)  # fmt: skip
WRITE_CREATE, WRITE_OPTIONAL, WRITE_PROC = 1, 2, 4


class Op(Value):
    """One operation: its code and its arguments in the order of the protocol page."""

    code: Code
    args: tuple[type_of_argument, ...] = ()

    def describe(self) -> str:
        """One readable line, e.g. ``mount proc %/proc proc 0xe``; long byte strings are shortened to their size."""
        return " ".join((self.code.name.lower(), *(_show(arg) for arg in self.args)))


def op(code: Code, *args: type_of_argument) -> Op:
    """Shorthand: ``op(Code.MKDIR, "%/proc", 0o755)``."""
    return Op(code=code, args=args)


def _show(arg: type_of_argument) -> str:
    if isinstance(arg, int):
        return hex(arg) if arg > 9 else str(arg)
    if isinstance(arg, bytes):
        return f"<{len(arg)} bytes>" if len(arg) > 16 else "0x" + arg.hex()
    return arg if arg and arg.isprintable() and " " not in arg else repr(arg)


class Spawn(Value):
    """What the SPAWN request carries (docs/stem-protocol.md, "Spawn record")."""

    ops: tuple[Op, ...]
    clone: int = 0
    log: str = ""
    log_limit: int = 0
    log_files: int = 0
    log_compress: bool = False
    exit: str = ""
    oom: str = ""
    rows: int = 0
    columns: int = 0
    attach: bool = False
    tty: bool = False
    stdin: bool = False
    main: bool = False
    local: bool = False
    channel: bool = False
    console: bool = False
