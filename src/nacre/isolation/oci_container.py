"""An OCI container at the process level: from a valid bundle to a process, and the process afterwards.

What is recorded about a container is a JSON object (`Record`); this module makes and uses it, `nacre.engine.bundles` keeps it.
"""

from __future__ import annotations

import _socket
import os
import struct

from nacre.errors import Conflict, HostError, InvalidArgument, Unsupported
from nacre.isolation import oci, oci_cgroup, oci_run
from nacre.isolation.oci_run import Outcome
from nacre.isolation.oci_task import Task
from nacre.linux import capabilities
from nacre.model import jsontext
from nacre.model.bundle import RLIMITS, Bundle, Process
from nacre.model.plan import NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nacre.isolation.groups import Group as Group

_NS_FILES = {
    NEWUSER: "user", NEWPID: "pid", NEWNET: "net", NEWIPC: "ipc", NEWUTS: "uts", NEWCGROUP: "cgroup", NEWTIME: "time", NEWNS: "mnt",
}  # fmt: skip
_JOIN_LAST = NEWNS | NEWUSER


class Wishes(Value):
    """How a container is to be started.

    fifo: descriptor of the FIFO that `start` writes to, -1 = start at once; keyring: its name; passed: descriptors from 3 on that the
    container gets; cache: directory for compiled filters; join: files beside those of the control group that take "0".
    """

    fifo: int = -1
    no_pivot: bool = False
    keyring: str = ""
    passed: int = 0
    cache: str = ""
    join: tuple[str, ...] = ()


def rootfs(bundle: Bundle, directory: str) -> str:
    """The absolute path of the rootfs. Its last component may not be a symbolic link: what it points to could be changed later.

    Raises InvalidArgument.
    """
    written = os.path.join(directory, bundle.rootfs)
    parent, name = os.path.split(os.path.normpath(written))
    path = os.path.join(os.path.realpath(parent), name) if name else "/"
    if os.path.islink(path):
        raise InvalidArgument(f"root.path: {written} is a symbolic link", hint="name the directory it points to")
    if not os.path.exists(path):
        raise InvalidArgument(f"root.path: {written}: no such file or directory")
    if not os.path.isdir(path):
        raise InvalidArgument(f"root.path: {written} is not a directory")
    if path == "/":
        raise InvalidArgument("root.path: is the root directory of the host")
    return path


def create(
    bundle: Bundle,
    directory: str,
    group: Group | None,
    wishes: Wishes,
    *,
    on_pid: Callable[[int], None],
    states: Callable[[int], bytes],
) -> Outcome:
    """Make a container's namespaces and first process. The process waits for `start` when there is a FIFO.

    group: made before, None = none can be used. on_pid: the pid, as early as it is known. states: the answers for the hooks, called
    with the pid after mounts and devices are there (and runs createRuntime hooks). Raises as `oci_run.carry_out`.
    """
    process = bundle.process
    kept = [wishes.fifo if wishes.fifo >= 0 else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    own = kept[:1] if wishes.fifo < 0 else []
    try:
        for item in bundle.namespaces:
            if item.path:
                kept.append(_open_namespace(item.path, item.flag))
                own.append(kept[-1])
        filters, flags = (compiled(bundle.seccomp, wishes.cache), oci.filter_flags(bundle.seccomp)) if bundle.seccomp else (b"", 0)
        if bundle.seccomp and uses_listener(bundle.seccomp):
            flags |= oci.NEW_LISTENER
        around = oci.Surroundings(
            directory=directory,
            rootfs=rootfs(bundle, directory),
            join=(*(group.join if group else ()), *wishes.join),
            cgroup=group.directories if group else {},
            wait=wishes.fifo >= 0,
            rootless=os.geteuid() != 0,
            no_pivot=wishes.no_pivot,
            keyring=wishes.keyring,
            filter=filters,
            filter_flags=flags,
        )
        plan = oci.create_plan(bundle, around)

        def synced(point: int, pid: int) -> bytes:
            if point == oci.SYNC_MAPPED:
                _map_ids(pid, bundle)
                return b"\0"
            return states(pid)

        if process and process.terminal and not bundle.namespace(NEWNS):
            raise Unsupported("process.terminal: needs a mount namespace")
        return oci_run.carry_out(plan, kept=kept, passed=wishes.passed, on_pid=on_pid, on_sync=synced)
    finally:
        for fd in own:
            os.close(fd)


def enter(task: Task, bundle: Bundle, process: Process, group: Group | None, wishes: Wishes) -> Outcome:
    """Start one more process in a running container. Raises as `oci_run.carry_out`, NotFound when the container has ended."""
    pidfd = task.open()
    try:
        own = _differing(task.pid)
        filters, flags = (compiled(bundle.seccomp, wishes.cache), oci.filter_flags(bundle.seccomp)) if bundle.seccomp else (b"", 0)
        if bundle.seccomp and uses_listener(bundle.seccomp):
            flags |= oci.NEW_LISTENER
        around = oci.Surroundings(
            directory="/",
            rootfs=f"/proc/{task.pid}/root",
            join=group.join_of(task.pid) if group else (),
            rootless=os.geteuid() != 0,
            keyring=wishes.keyring,
            filter=filters,
            filter_flags=flags,
        )
        outer = ~_JOIN_LAST if os.geteuid() == 0 else 0
        return oci_run.carry_out(oci.exec_plan(process, around, own, outer), kept=[pidfd], passed=wishes.passed)
    finally:
        os.close(pidfd)


def _differing(pid: int) -> int:
    """CLONE_NEW* of the namespaces of a process that are not ours."""
    flags = 0
    for flag, name in _NS_FILES.items():
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
        except OSError:
            continue
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            flags |= flag
    return flags


def _open_namespace(path: str, flag: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"linux.namespaces: {_NS_FILES[flag]} namespace {path}: {(os.strerror(error.errno or 0)).lower()}") from error


def compiled(profile: dict[str, Any], cache: str) -> bytes:
    """The filter of a `linux.seccomp` object. Raises InvalidArgument, HostError."""
    from nacre.linux import seccomp

    return seccomp.program(jsontext.dumps(profile), 0, cache=cache, listener=uses_listener(profile))


def uses_listener(profile: dict[str, Any]) -> bool:
    """Does a rule of the profile ask a program of the host?"""
    rules = profile.get("syscalls") or ()
    return profile.get("defaultAction") == "SCMP_ACT_NOTIFY" or any(rule.get("action") == "SCMP_ACT_NOTIFY" for rule in rules)


def _map_ids(pid: int, bundle: Bundle) -> None:
    """Map a user namespace of an ordinary user: alone when it is one id, else by the set-uid programs of shadow."""
    for kind, maps, own in (("uid", bundle.uid_maps, os.geteuid()), ("gid", bundle.gid_maps, os.getegid())):
        if len(maps) == 1 and maps[0].size == 1 and maps[0].host == own:
            _write_map(pid, kind, f"{maps[0].container} {own} 1\n")
        else:
            _run_map(f"new{kind}map", [str(pid), *(str(part) for item in maps for part in (item.container, item.host, item.size))])


def _write_map(pid: int, kind: str, text: str) -> None:
    try:
        if kind == "gid":
            with open(f"/proc/{pid}/setgroups", "w", encoding="ascii") as file:
                file.write("deny")
        with open(f"/proc/{pid}/{kind}_map", "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise HostError(f"linux.{kind}Mappings: cannot map {text.strip()}: {os.strerror(error.errno or 0)}") from error


def _run_map(program: str, arguments: list[str]) -> None:
    for place in os.environ.get("PATH", "/usr/bin:/bin").split(":"):
        path = f"{place}/{program}"
        if os.access(path, os.X_OK):
            child = os.posix_spawn(path, [program, *arguments], dict(os.environ))
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                raise HostError(f"{program} {' '.join(arguments)} failed", hint="see /etc/subuid and /etc/subgid for what you may map")
            return
    raise HostError(f"{program} is not installed, which maps the ids of a user namespace", hint="apt-get install uidmap")


def send_terminal(path: str, master: int) -> None:
    """Hand the master of a terminal to whoever listens on the console socket (SCM_RIGHTS), and close it. Raises InvalidArgument."""
    try:
        send_descriptor(path, b"/dev/pts/ptmx", master)
    except OSError as error:
        raise InvalidArgument(f"--console-socket: {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(master)


def send_pidfd(path: str, pid: int) -> None:
    """Hand a pidfd of a process to whoever listens on the socket (SCM_RIGHTS). Raises InvalidArgument."""
    try:
        fd = os.pidfd_open(pid)
        try:
            send_descriptor(path, b"pidfd", fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise InvalidArgument(f"--pidfd-socket: {path}: {os.strerror(error.errno or 0)}") from error


def send_descriptor(path: str, message: bytes, fd: int) -> None:
    """A message with a descriptor over a connection to a unix stream socket. Raises OSError."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(path)
        connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", fd))])
    finally:
        connection.close()


def make_group(bundle: Bundle, name: str, *, systemd: bool) -> Group | None:
    """The container's control group, made and limited; None when an ordinary user may not make one and did not ask for limits."""
    group = oci_cgroup.planned(bundle.cgroups_path, name, systemd=systemd)
    try:
        group.create(bundle.resources)
    except (HostError, Conflict):
        limited = {key: value for key, value in bundle.resources.items() if key != "devices" and value}
        if (os.geteuid() != 0 or group.where.kind == "none") and not limited:
            return None
        raise
    owner = next((item.host for item in bundle.uid_maps if item.container == 0), None)
    writable = any(mount.kind in ("cgroup", "cgroup2") and "ro" not in mount.options for mount in bundle.mounts)
    if owner is not None and writable and bundle.namespace(NEWCGROUP) and os.geteuid() == 0:
        oci_cgroup.give(group, owner)
    return group


def remarks(process: Process) -> list[str]:
    """What of a process will be less than was asked for, a sentence each: capabilities and limits that cannot be given here."""
    names: list[str] = []
    oci.capability_masks(process, names)
    found = [f"capability {name} is unknown or cannot be granted here, and is left out" for name in names]
    if process.rlimits and not oci.granted() & capabilities.bit("SYS_RESOURCE"):
        from resource import getrlimit

        for number, _soft, hard in process.rlimits:
            present = getrlimit(number)[1] % (1 << 64)  # -1 is infinity
            if hard > present:
                found.append(f"{RLIMITS[number]}: {hard} is above the present hard limit of {present}, which cannot be raised here")
    return found


def offer_listener(profile: dict[str, Any], outcome: Outcome, state: dict[str, Any], pid: int) -> None:
    """Hand the listener of a filter to the program that is to answer (config-linux.md, "The Container Process State")."""
    message = {
        "ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid, "metadata": profile.get("listenerMetadata", ""),
        "state": state,
    }  # fmt: skip
    try:
        send_descriptor(str(profile["listenerPath"]), jsontext.dumps(message).encode(), outcome.listener)
    except OSError as error:
        raise HostError(f"linux.seccomp.listenerPath: {profile['listenerPath']}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(outcome.listener)
