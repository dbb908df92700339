"""checkpoint, restore: refused with the reason."""

from __future__ import annotations

from nacre.errors import Unsupported
from nacre.ociruntime.main import one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

_COMMON = {
    "image-path": "s", "work-path": "s", "parent-path": "s", "tcp-established": "b", "ext-unix-sk": "b", "shell-job": "b",
    "lazy-pages": "b", "status-fd": "s", "file-locks": "b", "manage-cgroups-mode": "s", "empty-ns": "l", "auto-dedup": "b",
}  # fmt: skip
TABLE_CHECKPOINT = {**_COMMON, "leave-running": "b", "page-server": "s", "pre-dump": "b"}
TABLE_RESTORE = {
    **_COMMON, "bundle,b": "s", "detach,d": "b", "pid-file": "s", "console-socket": "s", "no-subreaper": "b", "no-pivot": "b",
    "lsm-profile": "s", "lsm-mount-context": "s",
}  # fmt: skip


def do_checkpoint(call: Call, flags: Flags, operands: list[str]) -> int:
    """Raises Unsupported."""
    raise _refused("checkpoint", one(operands, "checkpoint"))


def do_restore(call: Call, flags: Flags, operands: list[str]) -> int:
    """Raises Unsupported."""
    raise _refused("restore", one(operands, "restore"))


def _refused(verb: str, name: str) -> Unsupported:
    return Unsupported(
        f"{verb}: container {name}: this runtime does not checkpoint containers", hint="nacre-oci features tells what it does"
    )
