"""The namespaces of an ordinary user, in which the engine is root with fewer abilities.

There is one user namespace and one mount namespace per run directory. Every command of the user joins them, so that each sees
the mounts that the others have made. They are kept alive by an empty sandbox, *home*: a stem without a process, which also runs
what the user's containers share (the uplink of their network). When it was killed, the next command finds the namespaces
through the stem of any container that still runs, and starts another home in them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from nacre.errors import Denied, ExecError, HostError, SandboxError
from nacre.isolation.channel import Channel
from nacre.linux import userns
from nacre.model.plan import Spawn
from nacre.store.lock import Lock, is_locked

HOME = "home"
_LAST_RUN = "run-directory"
_PATIENCE = 30.0
# Longest path of a run directory with which the sockets of sandboxes still fit (unix(7): 107 characters).
_LONGEST = 22
_ENDED = 2  # docs/stem-protocol.md, STAT
_SIGKILL = 9


def enter(
    root: str | None = None, run: str | None = None, *, rejoined: Callable[[str, str], object] | None = None
) -> tuple[str | None, str | None]:
    """Become root of the user's namespaces, made on the first call; answers with the engine's two directories.

    rejoined: called with them when a new home had to be started in namespaces in which containers run.
    root, run: what the caller asked for. Nothing happens, and they are returned as they are, when this process is root already.
    The working directory stays. Only for processes with one thread. Raises HostError, Denied with what the administrator has to change.
    """
    if os.geteuid() == 0:
        return root, run
    root, run = directories(root, run)
    here = _working_directory()
    home = f"{run}/{HOME}"
    _make_private(run)
    if not _join(home):
        with Lock(f"{run}/enter.lock", wait=_PATIENCE, busy="another command of yours is making the user namespace"):
            if not _join(home):
                alive = any(_join(sandbox) for sandbox in _sandboxes(run))
                if not alive:
                    userns.make(*maps())
                _start_home(home)
                _note(root, run)
                if alive and rejoined:
                    rejoined(root, run)
    with contextlib.suppress(OSError):
        os.chdir(here)
    return root, run


def leave(run: str) -> None:
    """End what keeps the namespaces of the run directory: when no container is in them either, the next `enter` makes new ones."""
    with Lock(f"{run}/enter.lock", wait=_PATIENCE, busy="another command of yours is making the user namespace"):
        with contextlib.suppress(SandboxError), contextlib.closing(Channel(f"{run}/{HOME}")) as channel:
            channel.shutdown(force=True, timeout=_PATIENCE)
        # Nobody may join what is about to go.
        Lock(f"{run}/{HOME}/lock", wait=_PATIENCE).release()


def directories(root: str | None = None, run: str | None = None) -> tuple[str, str]:
    """The durable and the run-time directory of an ordinary user's engine: asked for, from NACRE_ROOT and NACRE_RUN, or after the
    XDG base directory specification.
    """
    chosen = root or os.environ.get("NACRE_ROOT")
    data = chosen or f"{os.environ.get('XDG_DATA_HOME') or f'{_home_directory()}/.local/share'}/nacre"
    running = run or os.environ.get("NACRE_RUN") or (f"{data}/run" if root else _living(data) or _default_run())
    return os.path.abspath(data), os.path.abspath(running)


def maps() -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]]:
    """The two id maps of this user. Raises HostError when the administrator has not given any subordinate ids, or no newuidmap."""
    from nacre.linux.run import find_program, missing_program

    uid, gid, name = os.getuid(), os.getgid(), _user_name()
    for program in ("newuidmap", "newgidmap"):
        if not find_program(program):
            raise missing_program(program)
    ranges = {kind: userns.subordinate(kind, (name, str(uid))) for kind in ("uid", "gid")}
    for kind, found in ranges.items():
        if not found:
            raise HostError(
                f"user {name} has no subordinate {kind}s: /etc/sub{kind} has no range for it",
                hint=f"as root: usermod --add-subuids {_free_range()} --add-subgids {_free_range()} {name}",
            )
    return userns.extents(uid, ranges["uid"]), userns.extents(gid, ranges["gid"])


def obstacles() -> list[tuple[str, str]]:
    """What keeps an ordinary user from running containers on this host, as (problem, way out), for `nacre doctor`; [] = nothing known."""
    found = []
    for name, bad, wanted in userns.SWITCHES:
        if userns.sysctl(name) == bad:
            found.append((f"{name} = {bad}", f"sysctl -w {name}={wanted}"))
    if os.geteuid():
        try:
            maps()
        except HostError as error:
            found.append((error.message, error.hint))
    return found


def delegation() -> tuple[tuple[str, ...], str]:
    """The controllers with which this user's containers can be limited; when there are none, also what the administrator can do."""
    from nacre.linux.cgroups import layout
    from nacre.linux.delegation import delegated, of_manager, way_out

    found = delegated(layout())
    names = (*found.v1, *found.v2) or of_manager(layout(), os.getuid())
    return tuple(sorted(names)), "" if names else way_out(layout())


def keep(run: str, plan: Spawn, ready: Callable[[], bool]) -> str:
    """Run a plan in the home sandbox, for as long as that lives; "" once it is `ready`, else why it ended. Raises SandboxError."""
    with contextlib.closing(Channel(f"{run}/{HOME}")) as channel:
        try:
            process, _ = channel.spawn(plan)
        except ExecError as error:
            return error.message
        deadline, pause = time.monotonic() + _PATIENCE, 0.002
        while not ready():
            rows = {number: (state, code) for number, _, state, code in channel.stat(timeout=_PATIENCE)}
            state, code = rows.get(process, (_ENDED, 0))
            if state == _ENDED:
                return f"ended with exit code {code}"
            if time.monotonic() > deadline:
                channel.signal(process, _SIGKILL)
                return f"was not ready within {_PATIENCE:g} s"
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
    return ""


def _join(directory: str) -> bool:
    """Enter the namespaces of the stem of a sandbox; False when none lives there."""
    lock = f"{directory}/lock"
    try:
        if not is_locked(lock):
            return False
        with open(f"{directory}/stem.pid", encoding="ascii") as file:
            pid = int(file.read())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return False
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as file:
            name = file.read().strip()
        # The number was its own if the lock is still held, now that it cannot be given to another process any more.
        if name != "stem" or not is_locked(lock):
            return False
        userns.join(pidfd)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def _sandboxes(run: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from (f"{run}/sandboxes/{name}" for name in sorted(os.listdir(f"{run}/sandboxes")))


def _start_home(directory: str) -> None:
    from nacre.isolation.process import launch

    os.makedirs(directory, 0o700, exist_ok=True)
    lock = Lock(f"{directory}/lock", wait=_PATIENCE)
    try:
        launch("host", directory, keep=(lock.fd,))
    finally:
        lock.release()


def _living(data: str) -> str:
    """The run-time directory that this engine used last, if anything lives there: another session may have another default."""
    with contextlib.suppress(OSError):
        path = os.readlink(f"{data}/{_LAST_RUN}")
        if _is_private(path) and any(is_locked(f"{directory}/lock") for directory in (f"{path}/{HOME}", *_sandboxes(path))):
            return path
    return ""


def _note(data: str, run: str) -> None:
    """Write down which run-time directory is in use."""
    path = f"{data}/{_LAST_RUN}"
    with contextlib.suppress(OSError):  # a disk that refuses this will be complained about by who needs it
        os.makedirs(data, 0o711, exist_ok=True)
        if os.path.islink(path) and os.readlink(path) == run:
            return
        temporary = f"{path}.{os.getpid()}"
        os.symlink(run, temporary)
        os.rename(temporary, path)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return "/"


def _default_run() -> str:
    uid = os.getuid()
    for directory in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if directory.startswith("/") and len(directory) + len("/nacre") <= _LONGEST and _is_private(directory):
            return f"{directory}/nacre"
    return f"/tmp/nacre-{uid}"


def _is_private(path: str) -> bool:
    """Is this a directory that belongs to this user and that nobody else may write to?"""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_mode & 0o170022) == 0o040000 and status.st_uid == os.getuid()


def _make_private(path: str) -> None:
    """Make the run directory; what is there already must be this user's own: /tmp is everybody's. Raises Denied, HostError."""
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    except OSError as error:
        kind, reason = (Denied, "permission denied") if isinstance(error, PermissionError) else (HostError, error.strerror)
        raise kind(f"cannot create {error.filename}: {reason}", hint="point NACRE_ROOT and NACRE_RUN at directories of yours") from error
    if not _is_private(path):
        raise Denied(
            f"{path} is not a directory of this user alone",
            hint="set XDG_RUNTIME_DIR or NACRE_RUN to a directory of yours with mode 0700",
        )


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _home_directory() -> str:
    """HOME, unless it is somebody else's (`su` without a dash keeps it)."""
    home = os.environ.get("HOME", "")
    with contextlib.suppress(OSError):
        if home.startswith("/") and os.stat(home).st_uid == os.getuid():
            return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return home or f"/tmp/nacre-{os.getuid()}"


def _free_range() -> str:
    """65536 ids behind everybody's, as FIRST-LAST."""
    last = 99999
    for kind in ("uid", "gid"):
        with contextlib.suppress(OSError), open(f"/etc/sub{kind}", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.strip().split(":")
                if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal():
                    last = max(last, int(words[1]) + int(words[2]) - 1)
    return f"{last + 1}-{last + 65536}"
