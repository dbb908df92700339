"""Programs of this host in namespaces: what `nacre unshare` and `nacre enter` do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from nacre.engine.core import Core
from nacre.engine.sharing import open_namespace
from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation.shell import PROPAGATION, Wishes, run_entered, run_unshared
from nacre.model.container import Container, Level
from nacre.model.plan import NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = {
    "cgroup": NEWCGROUP, "ipc": NEWIPC, "mnt": NEWNS, "net": NEWNET, "pid": NEWPID, "time": NEWTIME, "user": NEWUSER, "uts": NEWUTS,
}  # fmt: skip
# What `enter` enters when nobody says: all but the files and the users, so that the host's programs can be used in a container.
DEFAULT = ("net", "ipc", "uts", "pid", "cgroup")


def parse_namespaces(text: str) -> tuple[str, ...]:
    """The namespaces of ``net,pid`` or ``all``. Raises InvalidArgument."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if "all" in words:
        return tuple(kind for kind in NAMESPACES if kind != "time")
    for word in words:
        if word not in NAMESPACES:
            raise InvalidArgument(f"unknown namespace: {word}", hint=f"one of {', '.join(NAMESPACES)}, or all")
    return words or DEFAULT


def unshare(argv: Sequence[str], kinds: Sequence[str], **wishes: Any) -> int:
    """Run a program in new namespaces; its exit code. wishes: fields of `Wishes`. Does not return when the program replaces this process.

    Raises InvalidArgument, HostError, CommandNotFound, CommandNotExecutable.
    """
    made = Wishes(namespaces=sum(NAMESPACES[kind] for kind in set(kinds)), **wishes)
    if made.propagation not in PROPAGATION:
        raise InvalidArgument(f"unknown propagation: {made.propagation}", hint=f"one of {', '.join(PROPAGATION)}")
    return run_unshared(argv or (os.environ.get("SHELL") or "/bin/sh",), made)


def enter(core: Core, record: Container, argv: Sequence[str], kinds: Sequence[str] = DEFAULT, *, directory: str = "") -> int:
    """Run a program of this host in namespaces of a running container; its exit code. Does not return when it replaces this process.

    Raises Conflict when it does not run, Unsupported at level vm, and as `unshare`.
    """
    if record.spec.isolation is not Level.PROCESS:
        raise Unsupported(
            f"container {record.name} runs at level {record.spec.isolation}: its namespaces are in the guest",
            hint=f"nacre exec {record.name} ...",
        )
    with ExitStack() as stack:
        descriptors = {kind: open_namespace(core, record, kind, stack) for kind in kinds}
        return run_entered(argv or (os.environ.get("SHELL") or "/bin/sh",), descriptors, directory)
