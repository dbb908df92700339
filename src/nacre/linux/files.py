"""Files and directories without surprises: contained path resolution, sparse copies, atomic writes, locks, removal of whole trees.

Nothing here is loaded by ctypes until `openat2` is called: the path of an ordinary `run` does without it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator

from nacre.errors import Denied, HostError, NacreError, NoSpace, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# openat2(2), linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_OPEN_HOW = struct.Struct("QQQ")  # struct open_how
_SYS_OPENAT2 = 437  # the same on every architecture
_FICLONE = 0x40049409  # linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_PROTECTED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL
_SUBVOLUME = 256  # inode number of the root of every subvolume of Btrfs (BTRFS_FIRST_FREE_OBJECTID, linux/btrfs_tree.h)
_COPY = 1 << 26
_DEEPEST = 64


def _load_openat2() -> Callable[[int, bytes, bytes], int]:
    import ctypes

    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    get_errno = ctypes.get_errno

    def call(directory: int, path: bytes, how: bytes) -> int:
        fd: int = syscall(_SYS_OPENAT2, directory, path, how, len(how))
        return fd if fd >= 0 else -get_errno()

    return call


_openat2: Callable[[int, bytes, bytes], int] | None = None


def openat2(directory: int, path: bytes | str, flags: int, mode: int = 0, *, resolve: int = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS) -> int:
    """Open `path` relative to the directory descriptor, confined as `resolve` says (openat2(2)); returns a close-on-exec descriptor.

    Raises OSError as the kernel does (EXDEV or ELOOP when the path would leave), ValueError for a NUL in the path,
    Unsupported on kernels before 5.6.
    """
    global _openat2
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    if _openat2 is None:
        _openat2 = _load_openat2()
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd = _openat2(directory, raw, how)
        if fd >= 0:
            return fd
        if fd == -errno.ENOSYS:
            raise Unsupported("the kernel has no openat2 system call", hint="Linux 5.6 or newer is needed")
        # EAGAIN: a rename elsewhere raced with the resolution of "..".
        if fd not in (-errno.EINTR, -errno.EAGAIN):
            raise OSError(-fd, os.strerror(-fd), os.fsdecode(raw))


def explain(error: OSError, action: str) -> NacreError:
    """An expected failure of the file system as one of ours: NoSpace, Denied or HostError. `action` as in "cannot <action>"."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"cannot {action}: the disk is full", hint="free some space (nacre rmi, nacre rm) and try again", details=where)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"cannot {action}: {reason}", hint="run as root", details=where)
    if error.errno == errno.EROFS:
        return HostError(
            f"cannot {action}: the file system is read-only", hint="remount it writable, or choose another directory", details=where
        )
    return HostError(f"cannot {action}: {reason}", details=where)


@contextlib.contextmanager
def explained(action: str) -> Iterator[None]:
    """Turns an OSError inside into what `explain` makes of it."""
    try:
        yield
    except OSError as error:
        raise explain(error, action) from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; a full disk shows first as a short write."""
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[os.write(fd, view) :]


def atomic_write(path: str, data: bytes, *, fsync: bool = True, mode: int = 0o644) -> None:
    """Replace the content of a file: readers see all of the old or all of the new. With fsync also after a power failure.

    Raises OSError; leaves no temporary file behind unless the process is killed.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid():x}-{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if fsync:
        sync_directory(directory or ".")


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: str) -> None:
    """Make everything that was written to the file system of `path` durable (syncfs(2))."""
    import ctypes

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def is_mount_point(path: str) -> bool:
    """Whether something is mounted at the directory `path`, also a part of the file system that it lies on. Raises OSError."""
    directory, name = os.path.split(path)
    parent = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_NO_XDEV))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return True
    finally:
        os.close(parent)
    return False


def filesystem_magic(path: str) -> int:
    """What statfs(2) calls the type of the file system that `path` lies on (linux/magic.h). Raises OSError."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    # f_type is the first field, a long.
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def sparse_copy(source: str, destination: str, *, mode: int = 0o600) -> None:
    """Copy a regular file to a new one, sharing blocks where the file system can and keeping holes otherwise.

    Raises OSError (FileExistsError when the destination exists); a destination that could not be completed is removed.
    """
    with open(source, "rb", buffering=0) as reader:
        fd = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            copy_data(reader.fileno(), fd)
        except BaseException:
            os.unlink(destination)
            raise
        finally:
            os.close(fd)


def copy_data(source: int, destination: int) -> None:
    """Copy the content of an open regular file into an empty one: reflink, else data extents only. Raises OSError."""
    try:
        fcntl.ioctl(destination, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM):
            raise
    size = os.fstat(source).st_size
    for start, end in data_extents(source, size):
        _copy_range(source, destination, start, end)
    os.ftruncate(destination, size)


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, end) of a file that are not holes, in order."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def _copy_range(source: int, destination: int, start: int, end: int) -> None:
    position = start
    while position < end:
        try:
            count = os.copy_file_range(source, destination, min(end - position, _COPY), position, position)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
            data = os.pread(source, min(end - position, 1 << 20), position)
            os.lseek(destination, position, os.SEEK_SET)
            write_all(destination, data)
            count = len(data)
        if not count:
            return  # the source shrank
        position += count


@contextlib.contextmanager
def locked(path: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive flock(2) on a lock file, which is made for the purpose and removed afterwards.

    Yields whether the lock is held: always, or with wait=False only when nobody else has it. A process that dies lets go of it.
    """
    fd = _lock(path, wait)
    try:
        yield fd >= 0
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(fd)


def _lock(path: str, wait: bool) -> int:
    """A descriptor that holds the lock, -1 when it is taken and we do not wait."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The holder before us removes the file: what we locked must still be what the name means.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BlockingIOError:
            os.close(fd)
            return -1
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def remove_tree(path: str | bytes, *, directory: int | None = None) -> None:
    """Remove a file or a directory with everything in it; nothing there is fine.

    Follows no symbolic link, opens no device, enters no other file system (but subvolumes of the same), needs a bounded number of
    descriptors however deep the tree is, and takes off immutable and append-only flags. Raises OSError for what cannot be removed.
    """
    try:
        os.unlink(path, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        if not _is_directory(path, directory):
            _unprotect(path, directory)
            os.unlink(path, dir_fd=directory)
            return
    top = _open_directory(path, directory)
    try:
        device = os.fstat(top).st_dev
        # A directory that is too deep is moved up to the top, where the next round finds it.
        while _empty(top, top, device, 0):
            pass
    finally:
        os.close(top)
    _insist(os.rmdir, path, directory)


def _open_directory(name: str | bytes, parent: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _is_directory(name: str | bytes, parent: int | None) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _empty(fd: int, top: int, device: int, depth: int) -> bool:
    """Remove what is in a directory; True when something was put off to the top."""
    put_off = False
    # Btrfs shows what has come into a directory since it was opened only after a rewind.
    os.lseek(fd, 0, os.SEEK_SET)
    with os.scandir(fd) as scan:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
    for name, is_directory in entries:
        if is_directory:
            put_off |= _remove_directory(name, fd, top, device, depth)
        else:
            _insist(os.unlink, name, fd)
    return put_off


def _remove_directory(name: str, parent: int, top: int, device: int, depth: int) -> bool:
    try:
        os.rmdir(name, dir_fd=parent)
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EPERM, errno.EACCES):
            raise
    if depth == _DEEPEST:
        os.rename(name, f".removed-{os.urandom(8).hex()}", src_dir_fd=parent, dst_dir_fd=top)
        return True
    fd = _open_directory(name, parent)
    put_off = False
    try:
        if os.fstat(fd).st_dev == device:
            put_off = _empty(fd, top, device, depth + 1)
        elif _is_subvolume(fd, name, parent):
            while _empty(fd, fd, os.fstat(fd).st_dev, 0):
                pass
        else:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
    finally:
        os.close(fd)
    _insist(os.rmdir, name, parent)
    return put_off


def _is_subvolume(fd: int, name: str | bytes, parent: int) -> bool:
    """Whether a directory on another device is not mounted there, but a subvolume of the same Btrfs, which anybody may make."""
    if os.fstat(fd).st_ino != _SUBVOLUME:
        return False
    try:
        os.close(openat2(parent, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=RESOLVE_NO_XDEV))
    except OSError:
        return False
    return True


def _insist(remove: Any, name: str | bytes, parent: int | None) -> None:
    """Unlink or rmdir, with the protection of the directory and of the file taken off when it is refused."""
    try:
        remove(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except PermissionError:
        if parent is not None:
            _clear_flags(parent)
            os.fchmod(parent, 0o700)
        _unprotect(name, parent)
        remove(name, dir_fd=parent)


def _unprotect(name: str | bytes, parent: int | None) -> None:
    mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            _clear_flags(fd)
        finally:
            os.close(fd)


def _clear_flags(fd: int) -> None:
    with contextlib.suppress(OSError):
        flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)), "little")
        if flags & _FS_PROTECTED:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags & ~_FS_PROTECTED).to_bytes(8, "little"))


def disk_usage(path: str) -> int:
    """Bytes that a file or tree occupies on its disk (allocated blocks; a file with several names counts once). 0 when missing."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return 0
    total, seen, pending = info.st_blocks * 512, set[int](), [path] if stat.S_ISDIR(info.st_mode) else []
    while pending:
        # A directory may go away meanwhile: usage is asked of running containers.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(pending.pop()) as scan:
            for entry in scan:
                inner = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(inner.st_mode):
                    pending.append(entry.path)
                elif inner.st_nlink > 1:
                    if inner.st_ino in seen:
                        continue
                    seen.add(inner.st_ino)
                total += inner.st_blocks * 512
    return total
