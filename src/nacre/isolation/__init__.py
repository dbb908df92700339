"""The drivers that bring a sandbox to life, by level.

A driver answers the same few questions at every level; what only some can do is an interface of its own, asked for by
`isinstance`, never by level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from nacre.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:  # nothing of them is needed by the OCI runtime, which lives in this room as well
    from collections.abc import Sequence

    from nacre.isolation.channel import Channel
    from nacre.isolation.plan import Place
    from nacre.model.container import Resources, Sandbox, Stats


class Driver(ABC):
    """The contract of an isolation level. Every method is synchronous; `clean` alone is called for sandboxes that may not exist."""

    @abstractmethod
    def start(self, sandbox: Sandbox, *, keep: Sequence[int], exit_command: Sequence[str], custody: bool) -> Channel:
        """Bring up an empty sandbox in `sandbox.directory` and greet its stem.

        keep: descriptors the stem holds until it exits. exit_command: run by the stem at its end unless a connection with custody is open.
        After an exception the caller calls `clean`; nothing else is needed.
        """

    @abstractmethod
    def place(self, sandbox: Sandbox) -> Place:
        """What differs at this level in the plan of a container. Reads the host, changes nothing."""

    @abstractmethod
    def stats(self, sandbox: Sandbox) -> Stats:
        """One sample of a running sandbox."""

    @abstractmethod
    def describe(self, sandbox: Sandbox) -> dict[str, object]:
        """What `inspect` tells about the isolation: kernel, assurance and, at level vm, monitor and accelerator."""

    @abstractmethod
    def clean(self, identifier: str, directory: str = "") -> None:
        """Remove what the sandbox left outside its directories (cgroups). Idempotent. directory: of the sandbox, if it is still there."""


class Pausable(ABC):
    """Drivers that can stop the time of a sandbox."""

    @abstractmethod
    def pause(self, sandbox: Sandbox) -> None:
        """Stop it; returns when nothing in it runs any more. Idempotent."""

    @abstractmethod
    def resume(self, sandbox: Sandbox) -> None:
        """Let it go on. Idempotent."""

    @abstractmethod
    def paused(self, sandbox: Sandbox) -> bool:
        """Whether it is stopped now."""


class Adjustable(ABC):
    """Drivers that can change the limits of a running sandbox."""

    @abstractmethod
    def update(self, sandbox: Sandbox, changed: Resources) -> None:
        """Set those limits of `changed` that are not none (-1 lifts one). The others stay. Raises Unsupported, Conflict, HostError."""


class Tapped(ABC):
    """Drivers whose sandbox takes its frames from a tap device, spliced with the interface in the endpoint's namespace."""

    @abstractmethod
    def tap_owner(self, sandbox: Sandbox) -> int:
        """The host uid that will open the tap."""


class Explaining(ABC):
    """Drivers whose sandbox may end by itself, with everything in it, and leave traces of the cause."""

    @abstractmethod
    def post_mortem(self, directory: str) -> str:
        """The cause on the first line, then the last lines of the console. "" when the sandbox in `directory` ended as it was asked to."""


DRIVERS = {
    "process": "nacre.isolation.process:Process",
    "vm": "nacre.isolation.microvm:MicroVm",
}


def driver(level: str) -> Driver:
    """The driver of a level, imported on first use. Raises Unsupported for a level that this version does not have."""
    if level not in DRIVERS:
        raise Unsupported(f"isolation level {level!r} is not available", hint=f"choose one of: {', '.join(DRIVERS)}")
    module, _, name = DRIVERS[level].partition(":")
    made: Driver = getattr(__import__(module, fromlist=(name,)), name)()
    return made
