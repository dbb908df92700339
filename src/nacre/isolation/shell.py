"""Programs of the host in namespaces: new ones (`nacre unshare`), or those of a container (`nacre enter`), as unshare(1) and nsenter(1) do.

They run in place of this process, or as its child where a PID namespace needs one, with its terminal. Only for processes with one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence

from nacre.errors import CommandNotExecutable, CommandNotFound, HostError, InvalidArgument
from nacre.linux.kernel import mount, unshare
from nacre.linux.namespaces import KINDS, setns
from nacre.model.plan import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, NEWNS, NEWPID, NEWUSER
from nacre.model.value import Value

PROPAGATION = {"private": MS_REC | MS_PRIVATE, "slave": MS_REC | MS_SLAVE, "shared": MS_REC | MS_SHARED, "unchanged": 0}
_PR_SET_PDEATHSIG = 1


class Wishes(Value):
    """What `unshare` is to do. namespaces: clone flags. mapping: "" (ids as they are), root or current.

    root, directory: "" = unchanged; uid, gid: -1 = unchanged. fork: as a child, which is killed with its parent when kill_child is set.
    """

    namespaces: int = 0
    mapping: str = ""
    propagation: str = "private"
    mount_proc: bool = False
    root: str = ""
    directory: str = ""
    uid: int = -1
    gid: int = -1
    fork: bool = False
    kill_child: bool = False


def run_unshared(argv: Sequence[str], wishes: Wishes) -> int:
    """Run a program in new namespaces; its exit code. Returns only when the program is a child.

    Raises HostError when a namespace cannot be made, CommandNotFound, CommandNotExecutable.
    """
    flags = wishes.namespaces | (NEWUSER if wishes.mapping else 0) | (NEWNS if wishes.mount_proc else 0)
    uid, gid = os.geteuid(), os.getegid()
    with _told("make the namespaces"):
        if flags:
            unshare(flags)
        if wishes.mapping:
            _map(0 if wishes.mapping == "root" else uid, uid, 0 if wishes.mapping == "root" else gid, gid)
        if flags & NEWNS and PROPAGATION[wishes.propagation]:
            mount("none", "/", "", PROPAGATION[wishes.propagation])

    def prepare() -> None:
        if wishes.root:
            os.chroot(wishes.root)
            os.chdir("/")
        if wishes.mount_proc:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        if wishes.directory:
            os.chdir(wishes.directory)
        if wishes.gid >= 0:
            os.setgroups([])
            os.setresgid(wishes.gid, wishes.gid, wishes.gid)
        if wishes.uid >= 0:
            os.setresuid(wishes.uid, wishes.uid, wishes.uid)

    if wishes.fork or flags & NEWPID:
        return _run_child(argv, prepare, kill=wishes.kill_child)
    with _told("prepare the program"):
        prepare()
    return _execute(argv)


def run_entered(argv: Sequence[str], descriptors: dict[str, int], directory: str = "") -> int:
    """Run a program in the namespaces that these descriptors, by kind, stand for; its exit code. Returns only when it is a child.

    Without the mount namespace it sees this host's files, with a /proc of the PID namespace. Raises HostError, CommandNotFound,
    CommandNotExecutable.
    """
    # The user namespace comes last: for the others this process needs its own power.
    others = [kind for kind, fd in descriptors.items() if not os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{kind}"))]
    order = sorted(others, key=lambda kind: (kind == "user", list(KINDS).index(kind)))
    with _told("enter the namespaces"):
        for kind in order:
            setns(descriptors[kind], KINDS[kind])
            if kind == "user":
                os.setgroups([])
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)

    def prepare() -> None:
        if "pid" in descriptors and "mnt" not in descriptors:
            unshare(NEWNS)
            mount("none", "/", "", MS_REC | MS_PRIVATE)
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        if directory:
            os.chdir(directory)

    if "pid" in descriptors:
        return _run_child(argv, prepare, kill=True)
    with _told("prepare the program"):
        prepare()
    return _execute(argv)


def _map(inside_uid: int, uid: int, inside_gid: int, gid: int) -> None:
    """Map one id each, which needs no privilege when groups cannot be changed (user_namespaces(7))."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{inside_uid} {uid} 1\n"), ("gid_map", f"{inside_gid} {gid} 1\n")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what a failing system call was for."""
    try:
        yield
    except OSError as error:
        hint = "run as root (sudo), or with --map-root-user" if os.geteuid() else "nacre doctor"
        raise HostError(f"cannot {what}: {error.strerror}" + (f": {error.filename}" if error.filename else ""), hint=hint) from error


def _run_child(argv: Sequence[str], prepare: Callable[[], None], *, kill: bool) -> int:
    """Run it as a child in the same process group, so that the terminal's signals reach it; its exit code, 128 + signal when killed."""
    said, mouth = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(said)
        _child(argv, prepare, mouth, parent if kill else 0)
    os.close(mouth)
    # Those are for the child: it decides what becomes of them.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: os.kill(pid, received))
    with open(said, "rb") as file:
        text = file.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if text:
        kind, _, message = text.partition(" ")
        raise {"126": CommandNotExecutable, "127": CommandNotFound}.get(kind, HostError)(message)
    return code if code >= 0 else 128 - code


def _child(argv: Sequence[str], prepare: Callable[[], None], mouth: int, parent: int) -> None:
    """Does not return."""
    try:
        if parent:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with _told("prepare the program"):
            prepare()
        _execute(argv)
    except (HostError, CommandNotFound, CommandNotExecutable) as error:
        os.write(mouth, f"{error.exit_code} {error.message}".encode())
    finally:
        os._exit(127)


def _execute(argv: Sequence[str]) -> int:
    if not argv or not argv[0]:
        raise InvalidArgument("no command specified")
    try:
        os.execvp(argv[0], list(argv))
    except (FileNotFoundError, NotADirectoryError):
        raise CommandNotFound(f'exec: "{argv[0]}": executable file not found in $PATH') from None
    except OSError as error:
        raise CommandNotExecutable(f'exec: "{argv[0]}": {error.strerror}') from error
