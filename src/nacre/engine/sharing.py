"""Namespaces of other containers: found when a container is made, opened when it starts.

A container is named by whoever asks, and from then on meant by its id. Its namespaces are those of its main process, which is known by a
number only: the number is pinned by a pidfd, and its stem, asked afterwards, confirms that it still has not reaped that process.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from nacre.engine.core import Core
from nacre.engine.lifecycle import MAIN, hostname
from nacre.errors import Conflict, InvalidArgument, NotFound, Unsupported
from nacre.isolation.namespaces import CONTAINER, open_namespace_of, partners
from nacre.model.container import Container, ContainerSpec, Level
from nacre.model.network import Endpoint
from nacre.store import is_locked

_LONGEST = 64  # of a chain of containers, each in the namespace of the next
_FIELDS = {"pid": "pid", "ipc": "ipc", "uts": "uts", "user": "userns", "net": "network"}


def resolve(core: Core, spec: ContainerSpec) -> ContainerSpec:
    """The spec with ids in place of the names of other containers, and with the host name of the one whose network it shares.

    Raises NotFound, Unsupported for a container in a virtual machine, InvalidArgument for an IPC namespace that is not shareable.
    """
    changes: dict[str, str] = {}
    for kind, name in partners(spec).items():
        other = find(core, name)
        flag = f"--{_FIELDS[kind]} {CONTAINER}{name}"
        if other.spec.isolation is not Level.PROCESS:
            raise Unsupported(
                f"{flag}: container {other.name} runs at level {other.spec.isolation}, where its namespaces are out of reach",
                hint="run both with --isolation process",
            )
        if kind == "ipc" and other.spec.ipc != "shareable":
            raise InvalidArgument(f"{flag}: non-shareable IPC namespace", hint=f"run container {other.name} with --ipc shareable")
        if kind == "user" and not other.spec.userns:
            raise InvalidArgument(f"{flag}: container {other.name} has no user namespace of its own", hint="--userns host is the same")
        changes[_FIELDS[kind]] = f"{CONTAINER}{other.id}"
        if kind == "net":
            changes["hostname"] = hostname(other.spec, other.id)
    return spec.replace(**changes) if changes else spec


def find(core: Core, name: str) -> Container:
    """The record of another container. Raises NotFound, InvalidArgument for an ambiguous prefix."""
    found = core.database.find(name)
    if len(found) > 1:
        raise InvalidArgument(f"multiple containers match the prefix {name!r}", hint="give more digits of the id")
    record = core.database.get(found[0]) if found else None
    if not record:
        raise NotFound(f"No such container: {name}", hint="list them with: nacre ps -a")
    return record[0]


def others(core: Core, spec: ContainerSpec) -> dict[str, Container]:
    """The containers whose namespaces are shared, by kind. Raises NotFound."""
    return {kind: find(core, name) for kind, name in partners(spec).items()}


def network_owner(core: Core, spec: ContainerSpec) -> Container:
    """The container whose network this is in the end: the one that is shared may share another's. Raises NotFound."""
    record = find(core, partners(spec)["net"])
    for _ in range(_LONGEST):
        name = partners(record.spec).get("net")
        if not name:
            break
        record = find(core, name)
    return record


def endpoint(core: Core, spec: ContainerSpec) -> Endpoint:
    """What a container that shares another one's network knows of it: the namespace. Its addresses and ports are the other's."""
    found = network_owner(core, spec).endpoint
    return Endpoint(network=spec.network, netns=found.netns if found else "")


def etc_directory(core: Core, spec: ContainerSpec) -> str:
    """Where hosts, resolv.conf and hostname of the container are whose network is shared."""
    return f"{core.layout.container(network_owner(core, spec).id)}/etc"


def users(core: Core, spec: ContainerSpec, block: int) -> tuple[str, int]:
    """Mode and number of the block of ids of a container's user namespace, which may be another one's."""
    for _ in range(_LONGEST):
        found = core.database.get(name) if (name := partners(spec).get("user")) else None
        if not found:
            break
        spec, block = found[0].spec, found[1]
    return spec.userns, block


def join(core: Core, spec: ContainerSpec, stack: ExitStack) -> dict[str, str]:
    """Open the namespaces of other containers; paths by kind, which work as long as this process holds the descriptors in `stack`.

    Raises NotFound, Conflict when one of the containers does not run.
    """
    paths = {}
    for kind, record in others(core, spec).items():
        # Not in the descriptor table of whoever opens the path, but in ours.
        paths[kind] = f"/proc/{os.getpid()}/fd/{open_namespace(core, record, kind, stack)}"
    return paths


def paths(core: Core, spec: ContainerSpec) -> dict[str, str]:
    """Where the namespaces of other containers are, by kind, for whoever only wants to know: PID stands for one that does not run."""
    return {kind: f"/proc/{record.pid or 'PID'}/ns/{kind}" for kind, record in others(core, spec).items()}


def open_namespace(core: Core, record: Container, kind: str, stack: ExitStack) -> int:
    """A descriptor of one namespace (pid, ipc, uts, user, net, mnt, cgroup) of a running container. Raises Conflict."""
    gone = Conflict(
        f"cannot join the {kind} namespace of container {record.name}: it is not running", hint=f"start it: nacre start {record.name}"
    )
    directory = core.layout.sandbox(record.id)
    fd = open_namespace_of(record.pid, MAIN, kind, directory) if record.pid and is_locked(f"{directory}/lock") else -1
    if fd < 0:
        raise gone
    stack.callback(os.close, fd)
    return fd
