"""Running the host's tools (mkfs.erofs, nft, modprobe ...) to their end.

`os.posix_spawn` starts a child without copying this process (0.7 ms from a large process, where fork takes 5), and does
without the standard library's `subprocess`, which costs the short-lived command line 10 ms of import.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nacre.errors import HostError, NoSpace

_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 1 << 16

# Debian package of a program, where the two differ in name.
_PACKAGES = {
    "blkid": "util-linux",
    "conntrack": "conntrack",
    "debugfs": "e2fsprogs",
    "dump.erofs": "erofs-utils",
    "e2fsck": "e2fsprogs",
    "fsck.erofs": "erofs-utils",
    "ip": "iproute2",
    "losetup": "mount",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "newgidmap": "uidmap",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "resize2fs": "e2fsprogs",
    "sh": "dash",
    "sysctl": "procps",
    "tc": "iproute2",
    "umount": "mount",
    "unshare": "util-linux",
}


class Result(NamedTuple):
    """How a program ended. code: exit code, or minus the signal's number; stdout and stderr: all that it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def find_program(name: str) -> str:
    """Absolute path of a program, from PATH and then the system's own directories; "" when there is none."""
    if "/" in name:
        return name if os.access(name, os.X_OK) else ""
    for directory in search_path().split(":"):
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return ""


def search_path() -> str:
    """The PATH programs are searched in and get: the caller's, then the system's (an ordinary user's PATH has no sbin)."""
    return ":".join(dict.fromkeys(part for part in f"{os.environ.get('PATH', '')}:{_DIRECTORIES}".split(":") if part.startswith("/")))


def run(argv: Sequence[str], *, stdin: bytes | int | None = None, env: Mapping[str, str] | None = None) -> Result:
    """Run a program to its end and return what it said. Does not judge the exit code: see `check`.

    stdin: bytes to feed, a descriptor to hand over, or None for an empty input. env: the complete environment; None means
    PATH and LC_ALL=C only, so that answers do not depend on who calls. The child is reaped whatever happens here; an
    exception (also KeyboardInterrupt) kills it first. Raises HostError when the program is missing or cannot be started.
    """
    program = find_program(argv[0])
    if not program:
        raise missing_program(argv[0])
    environment = {"PATH": search_path(), "LC_ALL": "C"} if env is None else dict(env)
    with contextlib.ExitStack() as stack:
        given = stdin if isinstance(stdin, int) else None
        inner, outer = _make_pipes(stack, isinstance(stdin, bytes))
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number, file in enumerate(inner)]
        if given is not None:
            actions[0] = (os.POSIX_SPAWN_DUP2, given, 0)
        try:
            pid = os.posix_spawn(program, list(argv), environment, file_actions=actions, setsigmask=(), setsigdef=_default_signals())
        except OSError as error:
            raise HostError(f"cannot start {argv[0]}: {os.strerror(error.errno or 0)}", details=describe(argv)) from error
        for file in inner:
            file.close()
        return _attend(pid, outer, stdin if isinstance(stdin, bytes) else b"")


def check(argv: Sequence[str], *, stdin: bytes | int | None = None, env: Mapping[str, str] | None = None, hint: str = "") -> bytes:
    """`run`, returning the standard output; raises HostError (NoSpace) with the command line and its words when it fails."""
    result = run(argv, stdin=stdin, env=env)
    if result.code == 0:
        return result.stdout
    said = result.stderr.decode(errors="replace").strip() or result.stdout.decode(errors="replace").strip()
    last = said.splitlines()[-1] if said else "it said nothing"
    details = f"{describe(argv)}\n{said}"
    if "No space left on device" in said:
        raise NoSpace(f"{os.path.basename(argv[0])} failed: the disk is full", hint="free some space and try again", details=details)
    raise HostError(f"{os.path.basename(argv[0])} {_ending(result.code)}: {last}", hint=hint, details=details)


def missing_program(name: str) -> HostError:
    """The error for a program that is not installed; its hint is the command that installs it on Debian and Ubuntu."""
    base = os.path.basename(name)
    return HostError(f"the program {base} is not installed", hint=f"apt-get install {_PACKAGES.get(base, base)}")


def describe(argv: Sequence[str]) -> str:
    """The command line as a shell would take it."""
    import shlex

    return "$ " + shlex.join(argv)


def _ending(code: int) -> str:
    return f"failed with exit code {code}" if code > 0 else f"was killed by signal {-code}"


def _default_signals() -> list[signal.Signals]:
    """Python ignores these; a child would inherit that."""
    return [signal.SIGPIPE, signal.SIGXFSZ]


def _make_pipes(stack: contextlib.ExitStack, feed: bool) -> tuple[list[io.FileIO], list[io.FileIO]]:
    """The child's three files, and ours: [stdin (when it is fed), stdout, stderr]. The stack closes them all."""

    def own(fd: int, mode: str) -> io.FileIO:
        # Lifted above 2, so that placing one of the three cannot overwrite another (a caller may run without stdio).
        if fd <= 2:
            low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)
        return stack.enter_context(io.FileIO(fd, mode))

    def pipe() -> tuple[io.FileIO, io.FileIO]:
        read, write = os.pipe2(os.O_CLOEXEC)
        return own(read, "r"), own(write, "w")

    (out, child_out), (err, child_err) = pipe(), pipe()
    if not feed:
        return [own(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), "r"), child_out, child_err], [out, err]
    child_in, ours = pipe()
    os.set_blocking(ours.fileno(), False)
    return [child_in, child_out, child_err], [out, err, ours]


def _attend(pid: int, pipes: list[io.FileIO], data: bytes) -> Result:
    try:
        out, err = _converse(pipes, data)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return Result(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out, err)


def _converse(pipes: list[io.FileIO], data: bytes) -> tuple[bytes, bytes]:
    """Feed the input and collect both outputs until the child has closed them."""
    poll = select.poll()
    parts: dict[int, list[bytes]] = {file.fileno(): [] for file in pipes[:2]}
    for fd in parts:
        poll.register(fd, select.POLLIN)
    view = memoryview(data)
    for file in pipes[2:]:
        poll.register(file.fileno(), select.POLLOUT)
    waiting = 2
    while waiting:
        for fd, _event in poll.poll():
            if fd not in parts:
                view = _feed(fd, view)
                if not view:
                    poll.unregister(fd)
                    pipes[2].close()
                continue
            chunk = os.read(fd, _CHUNK)
            parts[fd].append(chunk)
            if not chunk:
                poll.unregister(fd)
                waiting -= 1
    out, err = (b"".join(chunks) for chunks in parts.values())
    return out, err


def _feed(fd: int, view: memoryview) -> memoryview:
    """Write what fits; nothing is left when the child does not want more."""
    try:
        return view[os.write(fd, view[:_CHUNK]) :]
    except BlockingIOError:
        return view
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        return view[:0]
