"""Project quotas: a limit on what is in one directory tree, on XFS and ext4 (linux/dqblk_xfs.h, linux/fs.h, quotactl_fd(2))."""

from __future__ import annotations

import fcntl
import os
import struct

_SYS_QUOTACTL_FD = 443  # the same on every architecture
_GETATTR, _SETATTR = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_ATTR = struct.Struct("=IIIII8x")  # struct fsxattr: xflags, extsize, nextents, projid, cowextsize
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_SET_LIMIT = ((ord("X") << 8) + 4) << 8 | 2  # QCMD(Q_XSETQLIM, PRJQUOTA)
_SECTOR = 512
_PROJECT, _SOFT, _HARD = 2, 1 << 2, 1 << 3  # FS_PROJ_QUOTA, FS_DQ_BSOFT, FS_DQ_BHARD
_QUOTA = struct.Struct("=bbHIQQ88x")  # struct fs_disk_quota: version, flags, fieldmask, id, hard and soft limit of blocks, the rest


def limit_project(path: str, project: int, size: int) -> None:
    """Make an empty directory the top of a project, and limit what is in it to `size` bytes.

    project: a number that nothing else on the file system uses. Raises OSError where the file system has no project quotas.
    """
    import ctypes

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        blocks = max(1, size // _SECTOR)
        quota = _QUOTA.pack(1, _PROJECT, _SOFT | _HARD, project, blocks, blocks)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(ctypes.c_long(_SYS_QUOTACTL_FD), ctypes.c_uint(fd), ctypes.c_uint(_SET_LIMIT), ctypes.c_uint(project), quota) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        flags, extent, extents, _, copied = _ATTR.unpack(fcntl.ioctl(fd, _GETATTR, bytes(_ATTR.size)))
        fcntl.ioctl(fd, _SETATTR, _ATTR.pack(flags | _INHERIT, extent, extents, project, copied))
    finally:
        os.close(fd)
