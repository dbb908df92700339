"""Project quotas: a limit on what is in one directory tree, on XFS (linux/dqblk_xfs.h, linux/fs.h, quotactl_fd(2)).

ext4 has them too, but does not hold a privileged process to them, and what a container writes through overlayfs is written by
one: that which mounted it.
"""

from __future__ import annotations

import fcntl
import os
import struct

from nacre.linux.files import filesystem_magic

_XFS = 0x58465342  # linux/magic.h, XFS_SUPER_MAGIC
_SYS_QUOTACTL_FD = 443  # the same on every architecture
_GETATTR, _SETATTR = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_ATTR = struct.Struct("=IIIII8x")  # struct fsxattr: xflags, extsize, nextents, projid, cowextsize
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_SET_LIMIT = ((ord("X") << 8) + 4) << 8 | 2  # QCMD(Q_XSETQLIM, PRJQUOTA)
_GET_STATUS = ((ord("X") << 8) + 5) << 8 | 2  # QCMD(Q_XGETQSTAT, PRJQUOTA)
_STATUS, _STATUS_SIZE = struct.Struct("=bxH"), 256  # the beginning of struct fs_quota_stat: version, flags
_ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD
_SECTOR = 512
_PROJECT, _SOFT, _HARD = 2, 1 << 2, 1 << 3  # FS_PROJ_QUOTA, FS_DQ_BSOFT, FS_DQ_BHARD
_QUOTA = struct.Struct("=bbHIQQ88x")  # struct fs_disk_quota: version, flags, fieldmask, id, hard and soft limit of blocks, the rest


def has_projects(path: str) -> bool:
    """Whether the file system of a directory is an XFS that enforces project quotas, and we may set them. Raises OSError."""
    import ctypes

    if filesystem_magic(path) != _XFS:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = ctypes.create_string_buffer(_STATUS_SIZE)
        return _quotactl(fd, _GET_STATUS, 0, status) == 0 and bool(_STATUS.unpack_from(status)[1] & _ENFORCED)
    finally:
        os.close(fd)


def _quotactl(fd: int, command: int, identifier: int, data: object) -> int:
    """quotactl_fd(2); returns 0 or the error number."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number, target = ctypes.c_long(_SYS_QUOTACTL_FD), ctypes.c_uint(fd)
    failed = libc.syscall(number, target, ctypes.c_uint(command), ctypes.c_uint(identifier), data)
    return ctypes.get_errno() if failed else 0


def limit_project(path: str, project: int, size: int) -> None:
    """Make an empty directory the top of a project, and limit what is in it to `size` bytes.

    project: a number that nothing else on the file system uses. Raises OSError where the file system has no project quotas.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        blocks = max(1, size // _SECTOR)
        quota = _QUOTA.pack(1, _PROJECT, _SOFT | _HARD, project, blocks, blocks)
        if code := _quotactl(fd, _SET_LIMIT, project, quota):
            raise OSError(code, os.strerror(code), path)
        flags, extent, extents, _, copied = _ATTR.unpack(fcntl.ioctl(fd, _GETATTR, bytes(_ATTR.size)))
        fcntl.ioctl(fd, _SETATTR, _ATTR.pack(flags | _INHERIT, extent, extents, project, copied))
    finally:
        os.close(fd)
