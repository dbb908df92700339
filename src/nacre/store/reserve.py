"""Disk space kept back, so that records can still be read and changed, and thereby space be freed, when the disk is full.

SQLite needs room even for reading: the files of its write-ahead log come and go with its users.
"""

from __future__ import annotations

import contextlib
import os

SIZE = 512 << 10


class Reserve:
    """A file of SIZE bytes at `path` that is given up when its file system runs out of space and taken back when there is plenty again."""

    def __init__(self, path: str) -> None:
        self._path = path

    def release_if_needed(self) -> None:
        """To be called before something is written. Two microseconds when there is space."""
        if self._free() < SIZE:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def take(self) -> None:
        """Keep space back, if that leaves some for others. Never raises."""
        with contextlib.suppress(OSError):
            if os.path.exists(self._path) or self._free() < 4 * SIZE:
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
            finally:
                os.close(fd)

    def _free(self) -> int:
        try:
            disk = os.statvfs(os.path.dirname(self._path))
        except OSError:
            return SIZE
        return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize
