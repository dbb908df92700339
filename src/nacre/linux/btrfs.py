"""Subvolumes, snapshots and quota limits of Btrfs, by the ioctls of linux/btrfs.h. No policy, no external tools."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from nacre.linux.files import filesystem_magic

_MAGIC = 0x9123683E
_SNAP_DESTROY = 0x5000940F
_SUBVOL_CREATE = 0x5000940E
_SNAP_CREATE_V2 = 0x50009417
_QGROUP_LIMIT = 0x8030942B
_LIMIT_EXCLUSIVE = 2
# As bytearrays: fcntl.ioctl takes no more than 1024 bytes of what it may not change.
_VOL_ARGS = struct.Struct("<q4088s")
_VOL_ARGS_V2 = struct.Struct("<qQQ32x4040s")
_LIMIT_ARGS = struct.Struct("<QQQQQQ")


def is_btrfs(path: str) -> bool:
    """Whether `path` lies on Btrfs. Raises OSError."""
    return filesystem_magic(path) == _MAGIC


def create_subvolume(path: str) -> None:
    """Make an empty subvolume. Raises OSError (ENOTTY where the file system is another one)."""
    with _parent(path) as (fd, name):
        fcntl.ioctl(fd, _SUBVOL_CREATE, bytearray(_VOL_ARGS.pack(0, name)))


def snapshot(source: str, path: str) -> None:
    """Make a writable snapshot of the subvolume `source` at `path`, at once and complete. Raises OSError."""
    origin = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _parent(path) as (fd, name):
            fcntl.ioctl(fd, _SNAP_CREATE_V2, bytearray(_VOL_ARGS_V2.pack(origin, 0, 0, name)))
    finally:
        os.close(origin)


def destroy(path: str) -> bool:
    """Delete the subvolume at `path` with all that is in it; its space comes back by and by.

    False when that cannot be done at once: it is no subvolume, has others in it, or this user may only remove file by file.
    """
    try:
        with _parent(path) as (fd, name):
            fcntl.ioctl(fd, _SNAP_DESTROY, bytearray(_VOL_ARGS.pack(0, name)))
    except OSError as error:
        expected = (errno.ENOTTY, errno.EINVAL, errno.ENOTEMPTY, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP)
        if error.errno in expected:
            return False
        raise
    return True


def limit(path: str, size: int) -> None:
    """Hold the subvolume at `path` to `size` bytes that are its own alone. Raises OSError (ENOTCONN: quotas are off)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _QGROUP_LIMIT, _LIMIT_ARGS.pack(0, _LIMIT_EXCLUSIVE, 0, size, 0, 0))
    finally:
        os.close(fd)


@contextlib.contextmanager
def _parent(path: str) -> Iterator[tuple[int, bytes]]:
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd, os.fsencode(name)
    finally:
        os.close(fd)
