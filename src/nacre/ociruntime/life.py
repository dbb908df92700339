"""start, kill, pause, resume, delete."""

from __future__ import annotations

from nacre.errors import InvalidArgument
from nacre.ociruntime.main import one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

TABLE_START: dict[str, str] = {}
TABLE_KILL = {"all,a": "b"}
TABLE_PAUSE: dict[str, str] = {}
TABLE_RESUME: dict[str, str] = {}
TABLE_DELETE = {"force,f": "b"}


def do_start(call: Call, flags: Flags, operands: list[str]) -> int:
    """Have a created container run its program."""
    call.runtime().start(one(operands, "start"))
    return 0


def do_kill(call: Call, flags: Flags, operands: list[str]) -> int:
    """Send a signal, TERM by default."""
    everybody = flags.on("all")
    # Engines also write the flag after the id.
    if len(operands) > 1 and operands[-1] in ("--all", "-a"):
        operands, everybody = operands[:-1], True
    if not 1 <= len(operands) <= 2:
        raise InvalidArgument('nacre-oci: "kill" requires a container id and at most one signal')
    call.runtime().kill(operands[0], operands[1] if len(operands) > 1 else "TERM", all=everybody)
    return 0


def do_pause(call: Call, flags: Flags, operands: list[str]) -> int:
    """Freeze a container."""
    call.runtime().pause(one(operands, "pause"))
    return 0


def do_resume(call: Call, flags: Flags, operands: list[str]) -> int:
    """Thaw a container."""
    call.runtime().resume(one(operands, "resume"))
    return 0


def do_delete(call: Call, flags: Flags, operands: list[str]) -> int:
    """Remove what a container has left."""
    call.runtime().delete(one(operands, "delete"), force=flags.on("force"))
    return 0
