"""The database: containers, volumes and the event journal in one SQLite file.

Many processes use it at once: write-ahead log, one short immediate transaction per change. `synchronous=NORMAL`: a power cut
may lose the last moments but never the file's consistency; a killed process loses nothing.
"""

from __future__ import annotations

import _sqlite3 as sqlite3  # the package around it imports datetime, which every short command would pay for
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nacre.errors import Conflict, Denied, HostError, NoSpace
from nacre.model import jsontext
from nacre.model.container import Container
from nacre.store.reserve import Reserve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.linux.inotify import Watch

# One entry per schema version; PRAGMA user_version counts those that have been applied.
MIGRATIONS = (
    """
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, block INTEGER NOT NULL UNIQUE,
        created REAL NOT NULL, active INTEGER NOT NULL, pending INTEGER NOT NULL, data TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, data TEXT NOT NULL);
    """,
)
EVENTS_KEPT = 10_000
# Pages in the write-ahead log before they are moved to the database, which waits for the disk. Who leaves without closing saves that
# time; but then the next one reads the log first (3 us for a page), so it must stay short.
LOG_PAGES = 200


class Database:
    """The rows of one engine. Safe to share between processes; use one object per thread.

    Raises NoSpace when the disk is full, Denied when it is somebody else's, HostError when the file cannot be used.
    """

    def __init__(self, path: str) -> None:
        if os.geteuid() != 0 and not os.access(os.path.dirname(path), os.R_OK | os.W_OK | os.X_OK):
            raise Denied(
                f"cannot use {os.path.dirname(path)}: permission denied",
                hint="run as root (sudo), or point NACRE_ROOT and NACRE_RUN at directories of yours",
            )
        fresh = not os.path.exists(path)
        self.path = path
        self._told = False  # an event is recorded in the present transaction
        # Id -> a record as this object has written or read it last: its text, and the value that need not be made from it again.
        self._known: dict[str, tuple[str, Container]] = {}
        self._reserve = Reserve(f"{os.path.dirname(path)}/reserve")
        self._reserve.release_if_needed()
        try:
            self._sql = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._sql.execute("PRAGMA synchronous=NORMAL")
            self._sql.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            if fresh:
                self._sql.execute("PRAGMA journal_mode=WAL")
                os.chmod(path, 0o600)
            if self._version() < len(MIGRATIONS):
                self._migrate()
        except sqlite3.Error as error:
            raise _explain(error, path) from error
        self._reserve.take()

    def close(self) -> None:
        """Close the file, with everything in its one place. Idempotent. A process that ends without this loses nothing either."""
        self._sql.close()

    def make_room(self) -> None:
        """Give up the space that is kept back if the disk is full: for what is going to free some."""
        self._reserve.release_if_needed()

    def _version(self) -> int:
        return int(self._sql.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self) -> None:
        self._sql.execute("BEGIN EXCLUSIVE")
        try:
            for number in range(self._version(), len(MIGRATIONS)):
                for statement in MIGRATIONS[number].split(";"):
                    if statement.strip():
                        self._sql.execute(statement)
                self._sql.execute(f"PRAGMA user_version = {number + 1}")
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Everything that is written inside is one change: all of it or, when the context fails, none of it."""
        with self._write():
            yield

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._sql.in_transaction:  # of `together`, which ends it
                yield self._sql
                return
            self._reserve.release_if_needed()
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
            except BaseException:
                if self._sql.in_transaction:  # a full disk has undone it already
                    self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")
        except sqlite3.Error as error:
            raise _explain(error, self.path) from error
        if self._told:
            self._told = False
            with suppress(OSError):
                os.utime(self.path)  # wakes followers

    # -- containers ----------------------------------------------------------------------------------------------------

    def add(self, record: Container, *, pending: bool) -> int:
        """Insert a new container; answers with its block: a small number that no other container has.

        pending: it belongs to a `run` that has not started it yet, and is garbage once that caller is gone.
        Raises Conflict when the name is taken.
        """
        with self._write() as sql:
            holder = sql.execute("SELECT id FROM containers WHERE name = ?", (record.name,)).fetchone()
            if holder:
                raise Conflict(
                    f'the container name "/{record.name}" is already in use by container {holder[0][:12]}',
                    hint=f"remove it (nacre rm {record.name}), rename it, or choose another --name",
                )
            block = sql.execute(
                "SELECT COALESCE(MIN(b + 1), 0) FROM (SELECT -1 AS b UNION SELECT block FROM containers)"
                " WHERE b + 1 NOT IN (SELECT block FROM containers)"
            ).fetchone()[0]
            row = (record.id, record.name, block, time.time(), int(pending), self._text(record))
            sql.execute("INSERT INTO containers VALUES (?, ?, ?, ?, 0, ?, ?)", row)
        return int(block)

    def put(self, record: Container, *, active: bool, pending: bool = False) -> None:
        """Replace a container's record. active: it has been started and its end has not been recorded. Raises Conflict on a taken name.

        A container that is owed a restart is pending, whatever else is done to it.
        """
        try:
            with self._write() as sql:
                values = (record.name, int(active), int(pending or record.restart_at > 0), self._text(record), record.id)
                sql.execute("UPDATE containers SET name = ?, active = ?, pending = ?, data = ? WHERE id = ?", values)
        except HostError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise Conflict(f'the container name "/{record.name}" is already in use') from error
            raise

    def drop(self, identifier: str) -> None:
        """Delete a container's row. Idempotent."""
        with self._write() as sql:
            sql.execute("DELETE FROM containers WHERE id = ?", (identifier,))
        self._known.pop(identifier, None)

    def get(self, identifier: str) -> tuple[Container, int, bool] | None:
        """(record, block, active) of a full id, or None."""
        row = self._sql.execute("SELECT data, block, active FROM containers WHERE id = ?", (identifier,)).fetchone()
        if not row:
            return None
        known = self._known.get(identifier)
        if known is None or known[0] != row[0]:
            known = self._known[identifier] = row[0], Container.from_data(jsontext.loads(row[0]))
        return known[1], row[1], bool(row[2])

    def _text(self, record: Container) -> str:
        """The record as it is kept."""
        text = jsontext.dumps(record.to_data())
        self._known[record.id] = text, record
        return text

    def find(self, name_or_prefix: str) -> list[str]:
        """Ids that a user's word may mean: an exact id or name first and alone, otherwise every id with that prefix."""
        exact = self._sql.execute(
            "SELECT id FROM containers WHERE id = ? OR name = ?", (name_or_prefix, name_or_prefix.removeprefix("/"))
        ).fetchall()
        if exact:
            return [exact[0][0]]
        low, high = name_or_prefix, name_or_prefix + "g"
        return [row[0] for row in self._sql.execute("SELECT id FROM containers WHERE id >= ? AND id < ? LIMIT 2", (low, high))]

    def all(self, *, active: bool | None = None, pending: bool | None = None, live: bool = False) -> list[str]:
        """Ids, newest first. live: of those that are active or pending."""
        if live:
            return [row[0] for row in self._sql.execute("SELECT id FROM containers WHERE active OR pending ORDER BY created DESC")]
        tests = [f"{column} = {int(value)}" for column, value in (("active", active), ("pending", pending)) if value is not None]
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        return [row[0] for row in self._sql.execute(f"SELECT id FROM containers{where} ORDER BY created DESC")]

    # -- events --------------------------------------------------------------------------------------------------------

    def record_event(self, event: dict[str, Any]) -> None:
        """Append to the journal; the oldest entries beyond EVENTS_KEPT are dropped now and then."""
        self._told = True
        with self._write() as sql:
            cursor = sql.execute("INSERT INTO events (time, data) VALUES (?, ?)", (event["time"], jsontext.dumps(event)))
            if cursor.lastrowid and cursor.lastrowid % 500 == 0:
                sql.execute("DELETE FROM events WHERE seq <= ?", (cursor.lastrowid - EVENTS_KEPT,))

    def watch(self) -> Watch:
        """Something to wait on for events, whoever records them. Close it. Raises HostError.

        A writer that is killed right after it has recorded one does not say so: its change of the file is seen before the event can
        be. Whoever is woken and finds nothing looks once more a moment later.
        """
        from nacre.linux.inotify import ATTRIB, MODIFY, Watch

        try:
            return Watch(os.path.dirname(self.path), ATTRIB | MODIFY)
        except OSError as error:
            raise HostError(
                f"cannot watch {self.path}: {error.strerror}", hint="raise the limit: sysctl fs.inotify.max_user_instances"
            ) from error

    def events(self, after: int = 0, *, since: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
        """(sequence number, event) of everything later than `after` and not older than `since` (seconds since the epoch)."""
        rows = self._sql.execute("SELECT seq, data FROM events WHERE seq > ? AND time >= ? ORDER BY seq", (after, since))
        return [(seq, jsontext.loads(data)) for seq, data in rows]


def _explain(error: sqlite3.Error, path: str) -> HostError:
    text = str(error)
    disk = os.statvfs(os.path.dirname(path))
    if "full" in text or ("I/O" in text and not disk.f_bavail):
        return NoSpace(f"no space left for {path}", hint="free some space; nothing was changed", details=text)
    if isinstance(error, sqlite3.DatabaseError) and "malformed" in text:
        return HostError(f"{path} is damaged: {text}", hint="restore it from a backup, or move it away to start with no containers")
    return HostError(f"cannot use {path}: {text}")
