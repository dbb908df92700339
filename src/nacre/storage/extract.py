"""Unpacking a layer archive into a directory, in the form that overlayfs stacks.

No entry can reach anything outside: parents are opened by openat2(RESOLVE_IN_ROOT), so that symbolic links mean what they
mean inside the image, and the last name is only ever created, never followed. Whiteouts become overlayfs's
(`nacre.wire.whiteout`), and nothing in the archive can pass itself off as one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from nacre.errors import BadContent, Denied, HostError, NacreError
from nacre.linux.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2, remove_tree, write_all
from nacre.storage.tar import HOLE, Entry, Limits, Reader, Stream
from nacre.wire.whiteout import DEVICE, OPAQUE_VALUE, OPAQUE_XATTR, OPAQUE_XATTR_USER, Kind, classify, is_overlay_xattr, is_whiteout

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_OPEN_DIRECTORIES = 32
_MOST_LINKS = 40
_MOST_PARTS = 4096
_LINK_DIRECTORY = b".wh..wh.plnk"  # where AUFS kept files with several names; links to them precede or follow
_DAMAGED = "the image is damaged or was not made for containers; pull it again or use another tag"
_CAPABILITY = "security.capability"


class Unpacked(NamedTuple):
    """What was unpacked. size: bytes of all files, holes included; root: (mode, uid, gid) of the root directory if the archive says."""

    size: int
    entries: int
    root: tuple[int, int, int] | None


class _Directory(NamedTuple):
    """Attributes that a directory gets at the very end, when nothing changes in it any more."""

    path: bytes
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: dict[str, bytes] | None = None


def extract(stream: Stream, directory: int, *, limits: Limits | None = None, owner: bool = True, user_namespace: bool = False) -> Unpacked:
    """Unpack the archive into an empty directory (descriptor) that nobody else can reach, reading the stream to its end.

    owner=False leaves ownership, device nodes and privileged attributes out where they are not permitted. user_namespace: we are
    root of one only: device nodes are left out (no process in there could make use of them), owners must have an id in it.
    Raises BadContent for a malformed or hostile archive, OSError for a full or failing disk, Denied without privileges, and
    lets through what the stream raises; the directory's content is then worthless.
    """
    with contextlib.ExitStack() as stack:
        extraction = _Extraction(directory, owner, user_namespace, Reader(stream, limits))
        stack.callback(extraction.close)
        return extraction.run()


class _Extraction:
    def __init__(self, root: int, owner: bool, user_namespace: bool, reader: Reader) -> None:
        self._root = root
        self._reader = reader
        self._owner = owner
        self._user_namespace = user_namespace
        # What we create belongs to root by itself when we are root.
        self._ours = os.geteuid() == 0 and os.getegid() == 0
        self._directories: dict[bytes, int] = {}
        self._retired: list[int] = []
        self._finish: dict[int, _Directory] = {}
        self._explicit_root: tuple[int, int, int] | None = None
        self._makers = {
            "directory": self._make_directory,
            "link": self._make_link,
            "symlink": self._make_symlink,
            "char": self._make_node,
            "block": self._make_node,
            "fifo": self._make_node,
        }

    def close(self) -> None:
        """Close the descriptors of directories."""
        for fd in (*self._directories.values(), *self._retired):
            os.close(fd)
        self._directories.clear()
        self._retired.clear()

    def run(self) -> Unpacked:
        """The whole extraction."""
        reader = self._reader
        self._prepare_root()
        for entry in reader:
            try:
                self._make(entry)
            except OSError as error:
                if error.errno == errno.EINVAL and self._user_namespace:
                    raise _unmapped(entry) from error
                raise _explain(error, entry.path) from error
        self.close()
        remove_tree(_LINK_DIRECTORY, directory=self._root)
        for directory in sorted(self._finish.items(), key=_deepest_first, reverse=True):
            self._complete(*directory)
        return Unpacked(reader.size, reader.entries, self._explicit_root)

    def _prepare_root(self) -> None:
        """Nothing of the surroundings is inherited: no set-group-id directory, no default ACL."""
        with contextlib.suppress(OSError):
            os.removexattr(self._root, "system.posix_acl_default")
        if self._ours:
            os.fchown(self._root, 0, 0)
        os.fchmod(self._root, 0o700)
        self._finish[os.fstat(self._root).st_ino] = _Directory(b"")

    # -- entries

    def _make(self, entry: Entry) -> None:
        path = entry.path
        if not path:
            self._make_directory(entry, self._root, b"")
            return
        head, _, name = path.rpartition(b"/")
        found = self._directories.get(head) if head else self._root
        parent = self._enter(head) if found is None else found
        if name.startswith(b".wh."):
            kind, name = classify(name)
            if kind is Kind.OPAQUE:
                self._set_opaque(parent, b".")
            elif kind is Kind.WHITEOUT:
                self._make_whiteout(parent, name)
        elif entry.kind == "file":
            self._make_file(entry, parent, name)
        else:
            self._makers[entry.kind](entry, parent, name)

    def _make_file(self, entry: Entry, parent: int, name: bytes) -> None:
        reader = self._reader
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            self._remove(parent, name)
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            size = entry.size
            if size:
                if size < HOLE and not reader.sparse:
                    write_all(fd, reader.take())
                else:
                    _write_pieces(fd, reader, size)
            self._set_attributes(fd, entry)
        finally:
            os.close(fd)

    def _make_directory(self, entry: Entry, parent: int, name: bytes) -> None:
        mode, uid, gid = entry.mode, entry.uid, entry.gid
        if name:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
        else:
            self._explicit_root = (mode, uid, gid)
        found = os.stat(name or b".", dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            found = self._replace_by_directory(parent, name, found)
        self._reader.count(0, len(entry.path))
        self._finish[found.st_ino] = _Directory(entry.path, mode, uid, gid, entry.mtime, entry.xattrs)

    def _replace_by_directory(self, parent: int, name: bytes, found: os.stat_result) -> os.stat_result:
        """A new directory where something else is; in place of a whiteout it hides what the whiteout hid."""
        self._remove(parent, name)
        os.mkdir(name, 0o700, dir_fd=parent)
        if is_whiteout(found.st_mode, found.st_rdev):
            self._set_opaque(parent, name)
        return os.stat(name, dir_fd=parent, follow_symlinks=False)

    def _make_symlink(self, entry: Entry, parent: int, name: bytes) -> None:
        try:
            os.symlink(entry.link, name, dir_fd=parent)
        except FileExistsError:
            self._remove(parent, name)
            os.symlink(entry.link, name, dir_fd=parent)
        self._set_attributes_of(entry, parent, name)

    def _make_node(self, entry: Entry, parent: int, name: bytes) -> None:
        kind = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}[entry.kind]
        device = os.makedev(*entry.device)
        if is_whiteout(kind, device):
            return  # a whiteout in disguise; archives say it by name
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        except FileExistsError:
            self._remove(parent, name)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        except PermissionError:
            if self._owner and not self._user_namespace:
                raise
            return
        os.chmod(name, entry.mode, dir_fd=parent)
        self._set_attributes_of(entry, parent, name)
        if entry.uid or entry.gid:
            os.chmod(name, entry.mode, dir_fd=parent)  # a change of owner takes set-id bits away

    def _make_link(self, entry: Entry, parent: int, name: bytes) -> None:
        head, _, target = entry.link.rpartition(b"/")
        try:
            source = openat2(self._root, head or b".", os.O_PATH | os.O_DIRECTORY, resolve=_INSIDE)
            try:
                self._link(source, target, parent, name)
            finally:
                os.close(source)
        except (FileNotFoundError, NotADirectoryError):
            raise bad("a hard link names a file that is not in this layer", entry.path) from None

    def _link(self, source: int, target: bytes, parent: int, name: bytes) -> None:
        try:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            old, new = (os.stat(path, dir_fd=fd, follow_symlinks=False) for path, fd in ((target, source), (name, parent)))
            if not os.path.samestat(old, new):
                self._remove(parent, name)
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def _make_whiteout(self, parent: int, name: bytes) -> None:
        """A whiteout is about lower layers only: what this layer itself has under the name stays, and hides what is below."""
        try:
            os.mknod(name, stat.S_IFCHR, DEVICE, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._set_opaque(parent, name)

    def _set_opaque(self, parent: int, name: bytes) -> None:
        path = os.fsencode(f"/proc/self/fd/{parent}/") + name
        try:
            os.setxattr(path, OPAQUE_XATTR, OPAQUE_VALUE)
        except PermissionError:
            os.setxattr(path, OPAQUE_XATTR_USER, OPAQUE_VALUE)

    # -- parents

    def _enter(self, path: bytes) -> int:
        """A descriptor of the directory at `path`, made when it is missing. Valid until the next call."""
        for fd in self._retired:
            os.close(fd)
        self._retired.clear()
        try:
            fd = self._open(path)
        except (FileNotFoundError, NotADirectoryError):
            fd = self._open(self._make_parents(path))
        if len(self._directories) >= _OPEN_DIRECTORIES:
            os.close(self._directories.pop(next(iter(self._directories))))
        self._directories[path] = fd
        return fd

    def _open(self, path: bytes) -> int:
        return openat2(self._root, path or b".", os.O_PATH | os.O_DIRECTORY, resolve=_INSIDE)

    def _make_parents(self, path: bytes) -> bytes:
        """Make what is missing of a path, following symbolic links within the root; returns the path without links."""
        done: list[bytes] = []
        pending = path.split(b"/")[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del done[-1:]
                continue
            target = self._make_step(done, name)
            if target is None:
                done.append(name)
                continue
            links += 1
            if links > _MOST_LINKS or len(pending) > _MOST_PARTS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith(b"/"):
                done = []
            pending += target.split(b"/")[::-1]
        return b"/".join(done)

    def _make_step(self, done: list[bytes], name: bytes) -> bytes | None:
        """Make sure that `name` is a directory in the directory `done`; if it is a symbolic link, return its target instead."""
        parent = self._open(b"/".join(done))
        try:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    return os.readlink(name, dir_fd=parent)
                if stat.S_ISDIR(found.st_mode):
                    return None
                found = self._replace_by_directory(parent, name, found)
            path = b"/".join((*done, name))
            self._reader.count(1, len(path))
            self._finish[found.st_ino] = _Directory(path)
            return None
        finally:
            os.close(parent)

    def _remove(self, parent: int, name: bytes) -> None:
        """Make room for a later entry of the same name."""
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            # Paths through it may mean something else now. `parent` itself is still in use.
            self._retired += self._directories.values()
            self._directories.clear()
        remove_tree(name, directory=parent)

    # -- attributes

    def _set_attributes(self, fd: int, entry: Entry) -> None:
        if self._owner and not (self._ours and entry.uid == entry.gid == 0):
            _give(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            self._set_xattrs(fd, entry.xattrs)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _set_attributes_of(self, entry: Entry, parent: int, name: bytes) -> None:
        """Attributes of what must not be opened: symbolic links and nodes."""
        if self._owner and not (self._ours and entry.uid == entry.gid == 0):
            _give(name, entry.uid, entry.gid, parent)
        if entry.xattrs:
            self._set_xattrs(os.fsencode(f"/proc/self/fd/{parent}/") + name, entry.xattrs)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _complete(self, inode: int, directory: _Directory) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            fd = openat2(self._root, directory.path or b".", flags, resolve=_INSIDE)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # replaced by a later entry
            raise
        try:
            if os.fstat(fd).st_ino != inode:
                return
            if self._owner:
                _give(fd, directory.uid, directory.gid)
            os.fchmod(fd, directory.mode)
            if directory.xattrs:
                self._set_xattrs(fd, directory.xattrs)
            os.utime(fd, ns=(directory.mtime, directory.mtime))
        finally:
            os.close(fd)

    def _set_xattrs(self, target: int | bytes, xattrs: dict[str, bytes]) -> None:
        for name, value in wanted_xattrs(xattrs).items():
            try:
                os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                # The kernel refuses user attributes on links and nodes, and some file systems on everything. Docker, too, goes on.
                if error.errno in (errno.EOPNOTSUPP, errno.EPERM) and (name != _CAPABILITY or not self._owner):
                    continue
                if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE) and len(value) > 1024:
                    raise HostError(
                        f"the file system cannot store the extended attribute {name} ({len(value)} bytes)",
                        hint="put the storage directory on XFS or Btrfs, or on ext4 with the feature ea_inode",
                    ) from error
                raise


def _write_pieces(fd: int, reader: Reader, size: int) -> None:
    """Write a large or sparse file, leaving holes."""
    position = 0
    for offset, data in reader.pieces():
        if offset != position:
            os.lseek(fd, offset, os.SEEK_SET)
        write_all(fd, data)
        position = offset + len(data)
    if position != size:
        os.ftruncate(fd, size)


def _deepest_first(item: tuple[int, _Directory]) -> bytes:
    return item[1].path


def wanted_xattrs(xattrs: dict[str, bytes]) -> dict[str, bytes]:
    """What an archive may bring: nothing that overlayfs acts on, and no labels of the security modules of another machine."""
    return {
        name: value
        for name, value in xattrs.items()
        if not is_overlay_xattr(name) and (name == _CAPABILITY or not name.startswith("security."))
    }


def bad(reason: str, path: bytes) -> BadContent:
    """The error for an archive that cannot be unpacked because of the entry at `path`."""
    return BadContent(f"bad layer archive: {reason}, at {path[:200].decode(errors='replace')!r}", hint=_DAMAGED)


def _unmapped(entry: Entry) -> HostError:
    return HostError(
        f"cannot give {entry.path[:200].decode(errors='replace')!r} to {entry.uid}:{entry.gid}: no such id in this user namespace",
        hint="give this user a larger range of ids in /etc/subuid and /etc/subgid (65536 are usual)",
    )


def _explain(error: OSError, path: bytes) -> NacreError | OSError:
    """What the archive is to blame for; everything else is left to the caller."""
    reasons = {
        errno.ELOOP: "symbolic links lead in a circle",
        errno.ENAMETOOLONG: "a path is too long",
        errno.EINVAL: "the file system refuses a name or an attribute",
        errno.EFBIG: "a file is too large for the file system",
        errno.EMLINK: "a file has too many hard links",
    }
    if error.errno in reasons:
        return bad(reasons[error.errno], path)
    if error.errno == errno.EPERM:
        return Denied(f"cannot unpack {path[:200].decode(errors='replace')!r}: {os.strerror(errno.EPERM)}", hint="run as root")
    return error


def _give(what: int | bytes, uid: int, gid: int, parent: int | None = None) -> None:
    """Change the owner of an open file, or of a name in the directory `parent`. Raises HostError for an owner whom nobody here can be."""
    try:
        if isinstance(what, int):
            os.fchown(what, uid, gid)
        else:
            os.chown(what, uid, gid, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise HostError(
            f"the image has files of owner {uid}:{gid}, and this user namespace has no such id",
            hint="as root: give the user more ids (usermod --add-subuids ... --add-subgids ...); then, as the user: nacre system migrate",
        ) from error
