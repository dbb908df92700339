"""Disk space in use, as `ps --size`, `inspect --size` and `system df` show it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nacre.errors import NacreError

if TYPE_CHECKING:
    from nacre.engine import Container


def allocated(path: str) -> int:
    """Bytes that a file or a tree takes on the disk: holes do not count, hard links count once. 0 when it is not there."""
    seen: set[tuple[int, int]] = set()
    total, waiting = 0, [path]
    while waiting:
        entry = waiting.pop()
        try:
            status = os.lstat(entry)
            if stat.S_ISDIR(status.st_mode):
                waiting += (f"{entry}/{child}" for child in os.listdir(entry))
        except OSError:
            # It went away meanwhile, or never was.
            continue
        key = (status.st_dev, status.st_ino)
        if key not in seen:
            seen.add(key)
            total += status.st_blocks * 512
    return total


def container_size(container: Container) -> tuple[int, int]:
    """(bytes that it wrote, bytes with its image); zeros for one that was removed meanwhile."""
    try:
        return container.sizes()
    except NacreError:
        return 0, 0
