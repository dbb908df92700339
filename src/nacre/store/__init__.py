"""Truth on disk: the database, the directories, the locks and the event journal."""

from __future__ import annotations

from nacre.store.database import Database
from nacre.store.layout import Layout
from nacre.store.lock import Lock, is_locked

__all__ = ["Database", "Layout", "Lock", "is_locked"]
