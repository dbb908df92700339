"""From a layer archive (or a directory) to an EROFS image, without unpacking anything on this host.

The tree of names is kept in memory, everything else goes straight into the image. So no path of the archive is ever looked up
in a file system, no privilege is needed, and the data is written once. The rules are those of `nacre.storage.extract`:
symbolic links lead where they would inside the image, later entries win, whiteouts become overlayfs's and cannot be forged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from nacre.linux.files import data_extents, openat2
from nacre.storage.erofs import Attributes, Directory, Writer
from nacre.storage.extract import Unpacked, bad, wanted_xattrs
from nacre.storage.tar import HOLE, Entry, Limits, Reader, Stream
from nacre.wire.whiteout import DEVICE, OPAQUE_VALUE, OPAQUE_XATTR, OPAQUE_XATTR_USER, Kind, classify

_MOST_LINKS = 40
_MOST_PARTS = 4096
_CHUNK = 1 << 20
_REMEMBERED = 10_000
_LINK_DIRECTORY = b".wh..wh.plnk"
_IMPLIED = Attributes(stat.S_IFDIR | 0o755)
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


def write_archive(stream: Stream, fd: int, *, uuid: bytes = bytes(16), limits: Limits | None = None) -> Unpacked:
    """Turn an archive into an image in an empty file (descriptor), reading the stream to its end.

    Raises BadContent for a malformed or hostile archive, OSError for a full or failing disk, and what the stream raises; the
    file's content is then worthless.
    """
    return _Builder(Writer(fd, uuid), Reader(stream, limits)).run()


def write_directory(path: str, fd: int, *, uuid: bytes = bytes(16)) -> None:
    """Turn a directory, as `nacre.storage.extract` fills them, into an image in an empty file (descriptor). Raises OSError."""
    root = os.open(path, _OPEN | os.O_DIRECTORY)
    try:
        _Walk(Writer(fd, uuid), root).run()
    finally:
        os.close(root)


class _Builder:
    """The tree of names of one archive, and what each entry does to it."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader
        self._root = Directory(None, _IMPLIED)
        self._parents: dict[bytes, Directory] = {b"": self._root}
        self._targets: dict[int, bytes] = {}  # of symbolic links
        self._shared: set[int] = set()
        self._whiteout = 0
        self._explicit_root: tuple[int, int, int] | None = None

    def run(self) -> Unpacked:
        """The whole image."""
        for entry in self._reader:
            self._make(entry)
        self._root.entries.pop(_LINK_DIRECTORY, None)
        self._writer.finish(self._root, self._shared)
        return Unpacked(self._reader.size, self._reader.entries, self._explicit_root)

    def _make(self, entry: Entry) -> None:
        path = entry.path
        if not path:
            self._explicit_root = (entry.mode, entry.uid, entry.gid)
            self._set(self._root, _attributes(entry))
            return
        head, _, name = path.rpartition(b"/")
        parent = self._parents.get(head) or self._walk(head, path)
        if name.startswith(b".wh."):
            kind, name = classify(name)
            if kind is Kind.OPAQUE:
                _set_opaque(parent)
            elif kind is Kind.WHITEOUT:
                self._add_whiteout(parent, name)
        elif entry.kind == "directory":
            self._set(self._directory(parent, name), _attributes(entry))
        elif entry.kind == "link":
            self._put(parent, name, self._linked(entry))
        elif entry.kind != "char" or entry.device != (0, 0):
            self._put(parent, name, self._write(entry))

    def _write(self, entry: Entry) -> int:
        attributes, reader = _attributes(entry), self._reader
        if entry.kind == "file":
            if entry.size < HOLE and not reader.sparse:
                return self._writer.add(attributes, reader.take())
            return self._writer.add_pieces(attributes, entry.size, reader.pieces())
        if entry.kind == "symlink":
            code = self._writer.add(attributes, entry.link)
            self._targets[code] = entry.link
            return code
        return self._writer.add(attributes, device=os.makedev(*entry.device))

    def _put(self, parent: Directory, name: bytes, code: int) -> None:
        old = parent.entries.get(name)
        if isinstance(old, Directory) or old in self._targets:
            self._forget_paths()
        parent.entries[name] = code

    def _set(self, directory: Directory, attributes: Attributes) -> None:
        """New attributes for a directory that stays opaque if it was."""
        opaque = _is_opaque(directory)
        directory.attributes = attributes
        if opaque:
            _set_opaque(directory)

    def _directory(self, parent: Directory, name: bytes) -> Directory:
        """The directory of that name; made, in place of whatever has the name, if it is none."""
        old = parent.entries.get(name)
        if isinstance(old, Directory):
            return old
        directory = Directory(parent, _IMPLIED)
        self._put(parent, name, 0)
        parent.entries[name] = directory
        if old is not None and old == self._whiteout:
            _set_opaque(directory)
        return directory

    def _linked(self, entry: Entry) -> int:
        """The code of the file that a hard link names."""
        head, _, name = entry.link.rpartition(b"/")
        parent = self._find(head, entry.path)
        code = parent.entries.get(name) if parent else None
        if not isinstance(code, int):
            raise bad("a hard link names a file that is not in this layer", entry.path)
        self._shared.add(code)
        return code

    def _add_whiteout(self, parent: Directory, name: bytes) -> None:
        """A whiteout is about lower layers only: what this layer itself has under the name stays, and hides what is below."""
        old = parent.entries.get(name)
        if isinstance(old, Directory):
            _set_opaque(old)
        elif old is None:
            if not self._whiteout:
                self._whiteout = self._writer.add(Attributes(stat.S_IFCHR), device=DEVICE)
                self._shared.add(self._whiteout)
            parent.entries[name] = self._whiteout

    # -- paths

    def _forget_paths(self) -> None:
        """After a directory or a symbolic link went, paths through it may mean something else."""
        self._parents = {b"": self._root}

    def _walk(self, path: bytes, culprit: bytes) -> Directory:
        """The directory at a path; what is missing is made."""
        found = self._resolve(path, culprit, make=True)
        assert found is not None
        if len(self._parents) >= _REMEMBERED:
            self._forget_paths()
        self._parents[path] = found
        return found

    def _find(self, path: bytes, culprit: bytes) -> Directory | None:
        """The directory at a path, None when there is none."""
        return self._parents.get(path) or self._resolve(path, culprit, make=False)

    def _resolve(self, path: bytes, culprit: bytes, *, make: bool) -> Directory | None:
        """Follow a path from the root as the kernel would in a container, symbolic links included."""
        here = self._root
        pending = path.split(b"/")[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                here = here.parent
                continue
            entry = here.entries.get(name)
            target = self._targets.get(entry) if isinstance(entry, int) else None
            if target is not None:
                links += 1
                if links > _MOST_LINKS or len(pending) > _MOST_PARTS:
                    raise bad("symbolic links lead in a circle", culprit)
                if target.startswith(b"/"):
                    here = self._root
                pending += target.split(b"/")[::-1]
            elif isinstance(entry, Directory):
                here = entry
            elif make:
                self._reader.count(1, len(name))
                here = self._directory(here, name)
            else:
                return None
        return here


class _Walk:
    """An image of a directory on disk. Directories are visited by path, so that depth costs no descriptors."""

    def __init__(self, writer: Writer, root: int) -> None:
        self._writer = writer
        self._root = root
        self._codes: dict[tuple[int, int], int] = {}  # of files with several names

    def run(self) -> None:
        """The whole image."""
        root = Directory(None, _IMPLIED)
        pending = [(b"", root)]
        while pending:
            path, directory = pending.pop()
            fd = openat2(self._root, path or b".", _OPEN | os.O_DIRECTORY)
            try:
                directory.attributes = _attributes_of(fd, os.fstat(fd))
                for name in map(os.fsencode, sorted(os.listdir(fd))):
                    entry = self._entry(fd, name, directory)
                    directory.entries[name] = entry
                    if isinstance(entry, Directory):
                        pending.append((path + b"/" + name if path else name, entry))
            finally:
                os.close(fd)
        self._writer.finish(root, self._codes.values())

    def _entry(self, parent: int, name: bytes, directory: Directory) -> Directory | int:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            return Directory(directory, _IMPLIED)
        key = info.st_dev, info.st_ino
        if info.st_nlink > 1 and key in self._codes:
            return self._codes[key]
        code = self._write(parent, name, info)
        if info.st_nlink > 1:
            self._codes[key] = code
        return code

    def _write(self, parent: int, name: bytes, info: os.stat_result) -> int:
        if stat.S_ISREG(info.st_mode):
            fd = os.open(name, _OPEN, dir_fd=parent)
            try:
                return self._file(fd, info)
            finally:
                os.close(fd)
        attributes = _attributes_of(os.fsencode(f"/proc/self/fd/{parent}/") + name, info)
        if stat.S_ISLNK(info.st_mode):
            return self._writer.add(attributes, os.readlink(name, dir_fd=parent))
        return self._writer.add(attributes, device=info.st_rdev)

    def _file(self, fd: int, info: os.stat_result) -> int:
        attributes = _attributes_of(fd, info)
        if info.st_size >= HOLE:
            return self._writer.add_pieces(attributes, info.st_size, _pieces(fd, info.st_size))
        with open(fd, "rb", closefd=False) as file:
            return self._writer.add(attributes, file.read(info.st_size))


def _pieces(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    for start, end in data_extents(fd, size):
        for offset in range(start, min(end, size), _CHUNK):
            yield offset, os.pread(fd, min(_CHUNK, end - offset), offset)


def _attributes(entry: Entry) -> Attributes:
    xattrs = wanted_xattrs(entry.xattrs) if entry.xattrs else None
    mode = 0o777 if entry.kind == "symlink" else entry.mode  # as every other file system has them
    return Attributes(_TYPES[entry.kind] | mode, entry.uid, entry.gid, entry.mtime, xattrs)


def _attributes_of(target: int | bytes, info: os.stat_result) -> Attributes:
    follow = isinstance(target, int)
    names = os.listxattr(target, follow_symlinks=follow)
    xattrs = {name: os.getxattr(target, name, follow_symlinks=follow) for name in names}
    if OPAQUE_XATTR_USER in xattrs:
        # As layers have it that were unpacked without privileges; an image is for guests, whose root has them.
        xattrs[OPAQUE_XATTR] = xattrs.pop(OPAQUE_XATTR_USER)
    return Attributes(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, xattrs or None)


def _is_opaque(directory: Directory) -> bool:
    return OPAQUE_XATTR in (directory.attributes.xattrs or {})


def _set_opaque(directory: Directory) -> None:
    attributes = directory.attributes
    directory.attributes = attributes._replace(xattrs={**(attributes.xattrs or {}), OPAQUE_XATTR: OPAQUE_VALUE})
