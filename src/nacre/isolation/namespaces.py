"""Which namespaces a container has to itself and which it shares: --pid, --ipc, --uts, --cgroupns, --userns and --network container:X.

The words are Docker's (docker run reference), and podman's for user namespaces. A mode is "" or "private" (an own namespace), "host",
or "container:ID"; of IPC also "shareable" (own, and others may join) and "none" (own, without /dev/shm).
"""

from __future__ import annotations

import contextlib
import os

from nacre.errors import InvalidArgument, SandboxError, Unsupported
from nacre.isolation.channel import Channel
from nacre.linux.process import ended, open_pid
from nacre.model.container import ContainerSpec, Level
from nacre.model.plan import NEWIPC, NEWPID, NEWUTS

CONTAINER = "container:"
_SHARED = ("host", CONTAINER)
_RUNNING = 1  # docs/stem-protocol.md, STAT
_PATIENCE = 5.0

# Flag and field of each kind, and the words it takes beside "", private and host.
_MODES = {
    "pid": ("pid", (CONTAINER,)),
    "ipc": ("ipc", (CONTAINER, "shareable", "none")),
    "uts": ("uts", (CONTAINER,)),
    "cgroupns": ("cgroup", ()),
    "userns": ("user", (CONTAINER, "keep-id")),
}


def partner(mode: str) -> str:
    """Name or id of the container whose namespace is shared; "" for every other mode."""
    return mode.removeprefix(CONTAINER) if mode.startswith(CONTAINER) else ""


def partners(spec: ContainerSpec) -> dict[str, str]:
    """The containers whose namespaces are shared, by the kind of the namespace (pid, ipc, uts, cgroup, user, net)."""
    modes = {kind: getattr(spec, field) for field, (kind, _) in _MODES.items()} | {"net": spec.network}
    return {kind: name for kind, mode in modes.items() if (name := partner(mode))}


def is_shared(mode: str) -> bool:
    """Whether a mode names somebody else's namespace."""
    return mode.startswith(_SHARED)


def own(spec: ContainerSpec) -> int:
    """The clone flags of those namespaces among PID, IPC and UTS that are made for this container."""
    pairs = ((spec.pid, NEWPID), (spec.ipc, NEWIPC), (spec.uts, NEWUTS))
    return sum(flag for mode, flag in pairs if not is_shared(mode))


def check(spec: ContainerSpec) -> None:
    """Refuse modes that do not exist, contradict other options, or that the level does not have. Raises InvalidArgument, Unsupported."""
    for field, (_, words) in _MODES.items():
        mode = getattr(spec, field)
        plain = ("", "private", "host", *(word for word in words if word != CONTAINER))
        known = mode in plain or (CONTAINER in words and partner(mode))
        if not known:
            listed = ("host", "private", *(f"{word}NAME" if word == CONTAINER else word for word in words))
            raise InvalidArgument(f"--{field}: invalid mode {mode!r}", hint=f"one of {', '.join(listed)}")
    if spec.network == CONTAINER:
        raise InvalidArgument("--network container: the name of a container is missing", hint="--network container:NAME")
    _check_conflicts(spec)
    if spec.isolation is Level.VM:
        _check_machine(spec)


def _check_conflicts(spec: ContainerSpec) -> None:
    """What Docker refuses, in its words."""
    if spec.uts == "host" or partner(spec.uts):
        for name, value in (("hostname", spec.hostname), ("domainname", spec.domainname)):
            if value:
                raise InvalidArgument(f"conflicting options: {name} and the UTS mode", hint=f"leave out --{name} or --uts")
    if partner(spec.network):
        given = {
            "hostname": bool(spec.hostname), "dns": bool(spec.dns or spec.dns_search or spec.dns_options),
            "custom host-to-IP mapping": bool(spec.extra_hosts),
        }  # fmt: skip
        for what, conflicts in given.items():
            if conflicts:
                raise InvalidArgument(f"conflicting options: {what} and the network mode", hint="it is the other container's to say")
        if spec.ports or spec.publish_all:
            raise InvalidArgument(
                "conflicting options: port publishing and the container type network mode", hint="publish the ports of the other container"
            )


def _check_machine(spec: ContainerSpec) -> None:
    """A machine has a kernel of its own, so that there is nothing to share with the host or with other machines."""
    for field, mode in (*((field, getattr(spec, field)) for field in _MODES), ("network", spec.network)):
        if partner(mode):
            raise Unsupported(
                f"--{field} {mode}: containers in different virtual machines have no namespaces in common",
                hint="run both with --isolation process",
            )
        if mode == "host" and field not in ("userns", "network"):
            raise Unsupported(
                f"--{field} host: a virtual machine has no namespaces in common with the host", hint="use --isolation process for it"
            )
    if spec.ipc == "shareable":
        raise Unsupported("--ipc shareable: nobody can join a namespace in a virtual machine", hint="use --isolation process for it")


def open_namespace_of(pid: int, number: int, kind: str, directory: str) -> int:
    """A descriptor of a namespace (pid, ipc, uts, user, net, mnt, cgroup) of process `number` of the sandbox in `directory`; -1 = it ended.

    pid: what it was when it started. The number is pinned by a pidfd, and the stem, asked afterwards, says that it has not reaped it.
    """
    pidfd = open_pid(pid)
    if pidfd is None:
        return -1
    fd = -1
    try:
        with contextlib.closing(Channel(directory)) as channel:
            rows = channel.stat(timeout=_PATIENCE)
        if any((found, where, state) == (number, pid, _RUNNING) for found, where, state, _ in rows):
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            if ended(pidfd):
                os.close(fd)
                fd = -1
    except (SandboxError, OSError):
        return -1
    finally:
        os.close(pidfd)
    return fd
