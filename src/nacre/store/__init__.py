"""Truth on disk: the database, the directories, the locks and the event journal. Names load when first used."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.store.database import Database as Database
    from nacre.store.layout import Layout as Layout
    from nacre.store.lock import Lock as Lock
    from nacre.store.lock import is_locked as is_locked

_HOMES = {"Database": "database", "Layout": "layout", "Lock": "lock", "is_locked": "lock"}
__all__ = ["Database", "Layout", "Lock", "is_locked"]


def __getattr__(name: str) -> Any:
    # The OCI runtime keeps its records without the database.
    if name in _HOMES:
        return getattr(__import__(f"nacre.store.{_HOMES[name]}", fromlist=(name,)), name)
    raise AttributeError(f"module 'nacre.store' has no attribute {name!r}")
