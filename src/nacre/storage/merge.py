"""Copying trees with everything that belongs to them, and putting layers on top of each other without overlayfs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from nacre.linux.files import copy_data, openat2, remove_tree
from nacre.wire.whiteout import OPAQUE_VALUE, OPAQUE_XATTR, OPAQUE_XATTR_USER, is_overlay_xattr, is_whiteout

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def merge_layers(layers: Sequence[str], destination: str) -> None:
    """Copy layers (directories in overlayfs's form, base first) into an empty directory, whiteouts applied. Raises OSError."""
    for layer in layers:
        copy_tree(layer, destination, layer=True)


def copy_tree(source: str, destination: str, *, layer: bool = False) -> None:
    """Copy what is in a directory, and the attributes of the directory itself, into an existing directory.

    Ownership, modes, times, extended attributes, hard links, holes and device nodes survive; what has the same name is
    replaced, directories are merged. layer: the source is a layer: its whiteouts delete, its opaque directories replace.
    Symbolic links are copied, never followed. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        ends = []
        for path in (source, destination):
            ends.append(os.open(path, _DIRECTORY))
            stack.callback(os.close, ends[-1])
        copy_open_tree(ends[0], ends[1], layer=layer)


def copy_open_tree(source: int, destination: int, *, layer: bool = False) -> None:
    """`copy_tree` between descriptors of directories."""
    _Copy(source, destination, layer).run()


class _Copy:
    def __init__(self, source: int, destination: int, layer: bool) -> None:
        self._source = source
        self._destination = destination
        self._layer = layer
        # First copy of a file with several names, by (device, inode).
        self._links: dict[tuple[int, int], bytes] = {}

    def run(self) -> None:
        """Directories are visited by path from the two roots, so that depth costs no descriptors; their times are set at the end."""
        done: list[bytes] = []
        pending = [b""]
        while pending:
            path = pending.pop()
            pending += self._directory(path)
            done.append(path)
        for path in reversed(done):
            self._finish(path)

    def _open(self, root: int, path: bytes) -> int:
        return openat2(root, path or b".", _DIRECTORY)

    def _directory(self, path: bytes) -> list[bytes]:
        """Copy the entries of one directory; returns the paths of the directories in it."""
        source = self._open(self._source, path)
        try:
            target = self._open(self._destination, path)
            try:
                if self._layer and path and _is_opaque(source):
                    _clear(target)
                names = map(os.fsencode, sorted(os.listdir(source)))
                return [path + b"/" + name if path else name for name in names if self._entry(source, target, path, name)]
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _entry(self, source: int, target: int, path: bytes, name: bytes) -> bool:
        """Copy one entry; True when it is a directory, whose content is still to come."""
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(info.st_mode)
        if self._layer and is_whiteout(info.st_mode, info.st_rdev):
            remove_tree(name, directory=target)
            return False
        if kind == stat.S_IFDIR:
            self._make_directory(target, name)
            return True
        remove_tree(name, directory=target)
        if info.st_nlink > 1 and self._link(target, path, name, info):
            return False
        if kind == stat.S_IFREG:
            self._file(source, target, name, info)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            _copy_attributes(source, target, name, info)
        elif kind != stat.S_IFSOCK:
            os.mknod(name, kind | 0o600, info.st_rdev, dir_fd=target)
            _copy_attributes(source, target, name, info)
        return False

    def _make_directory(self, target: int, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=target)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=target)
                os.mkdir(name, 0o700, dir_fd=target)

    def _link(self, target: int, path: bytes, name: bytes, info: os.stat_result) -> bool:
        """Make a further name of a file that was copied; False when this is its first."""
        key = info.st_dev, info.st_ino
        first = self._links.get(key)
        if first is None:
            self._links[key] = path + b"/" + name if path else name
            return False
        head, _, base = first.rpartition(b"/")
        parent = self._open(self._destination, head)
        try:
            os.link(base, name, src_dir_fd=parent, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(parent)
        return True

    def _file(self, source: int, target: int, name: bytes, info: os.stat_result) -> None:
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                copy_data(reader, writer)
                _finish_open(reader, writer, info)
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    def _finish(self, path: bytes) -> None:
        source = self._open(self._source, path)
        try:
            target = self._open(self._destination, path)
            try:
                _remove_xattrs(source, target)
                _finish_open(source, target, os.fstat(source))
            finally:
                os.close(target)
        finally:
            os.close(source)


def _is_opaque(directory: int) -> bool:
    for name in (OPAQUE_XATTR, OPAQUE_XATTR_USER):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == OPAQUE_VALUE:
                return True
    return False


def _clear(directory: int) -> None:
    for name in os.listdir(directory):
        remove_tree(name, directory=directory)


def _finish_open(source: int, target: int, info: os.stat_result) -> None:
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    _copy_xattrs(source, target)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _copy_attributes(source: int, target: int, name: bytes, info: os.stat_result) -> None:
    """Attributes of what must not be opened."""
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
    _copy_xattrs(*(os.fsencode(f"/proc/self/fd/{fd}/") + name for fd in (source, target)))
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _remove_xattrs(source: int, target: int) -> None:
    """Take away what a merged directory had in a lower layer only."""
    with contextlib.suppress(OSError):
        for name in set(os.listxattr(target)) - set(os.listxattr(source)):
            os.removexattr(target, name)


def _copy_xattrs(source: int | bytes, target: int | bytes) -> None:
    """All but overlayfs's own; what the target's file system has no place for is left out, except capabilities."""
    follow = isinstance(source, int)
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        if is_overlay_xattr(name):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=follow), follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM) or name == "security.capability":
                raise
