"""Writing EROFS images: the format, and a writer that streams.

Format: the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Used of it: blocks of 4096 bytes, extended
inodes (64 bytes, with times), data in consecutive blocks (FLAT_PLAIN) with the end of a file behind its inode where that fits
(FLAT_INLINE), inline extended attributes; every kernel that has EROFS reads that (Linux 5.4 and newer). Files with holes are a
list of chunks (CHUNK_BASED), in which holes take no space and stay holes for whoever copies them (Linux 5.15 and newer).

The result depends on the input only, so that the same layer is the same image everywhere.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from typing import NamedTuple

from nacre.errors import BadContent

BLOCK = 4096
LARGEST = (1 << 32) * BLOCK  # block addresses have 32 bits

_MAGIC = 0xE0F5E1E2
_COMPAT_MTIME = 0x2
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI44x")
_SUPERBLOCK_OFFSET = 1024
_INODE = struct.Struct("<HHHHQIIIIqII16x")
_DIRENT = struct.Struct("<QHBx")
_XATTR_HEADER = 12
_SLOT = 32
_ROOT = (_SUPERBLOCK_OFFSET + 128) // _SLOT  # inode number of the root, behind the superblock: the field has 16 bits
_NLINK_OFFSET = 44
_EXTENDED = 1
_PLAIN, _INLINE, _CHUNKS = _EXTENDED | 0 << 1, _EXTENDED | 2 << 1, _EXTENDED | 4 << 1
_INCOMPAT_CHUNKS = 0x4
_CHUNK = 1 << 16  # at least, and larger where a file would have too many
_MOST_CHUNKS = 1 << 16
_NOWHERE = 0xFFFFFFFF
_OPEN_BLOCKS = 8

# File types of directory entries.
REGULAR, DIRECTORY, CHAR, BLOCK_DEVICE, FIFO, SOCKET, SYMLINK = range(1, 8)
_TYPES = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFLNK: SYMLINK,
}
_PREFIXES = (("user.", 1), ("trusted.", 4), ("security.", 6))
_WHOLE_NAMES = {"system.posix_acl_access": 2, "system.posix_acl_default": 3}


class Attributes(NamedTuple):
    """What every inode has. mode: with the type; mtime: ns since the epoch; xattrs: those that EROFS cannot name are left out."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: dict[str, bytes] | None = None


class Directory:
    """A directory under construction. entries: by name, a directory or the code that the writer gave for another file."""

    __slots__ = ("attributes", "entries", "nid", "parent")

    def __init__(self, parent: Directory | None, attributes: Attributes) -> None:
        self.parent = parent or self
        self.attributes = attributes
        self.entries: dict[bytes, Directory | int] = {}
        self.nid = 0  # place in the image, once it has one


class _Block:
    """A metadata block that still has room."""

    __slots__ = ("data", "start", "used")

    def __init__(self, start: int) -> None:
        self.start = start
        self.used = 0
        self.data = bytearray(BLOCK)


class Writer:
    """Writes one image to an empty file (descriptor): files first, in any order, then `finish` with the tree of their names.

    Files are referred to by codes; several names of one file have the same code. Raises OSError.
    """

    def __init__(self, fd: int, uuid: bytes = bytes(16)) -> None:
        self._fd = fd
        self._uuid = uuid
        self._end = BLOCK  # of the image so far; the first block is written last
        self._open: list[_Block] = []
        self._inodes = 0
        self._chunked = False

    def add(self, attributes: Attributes, data: bytes = b"", *, device: int = 0) -> int:
        """A file whose content (of a symbolic link: its target) is in memory, or a node with its device number; returns its code."""
        whole, tail = self._split(len(data), _xattr_size(attributes.xattrs))
        where = encode_device(device)
        if data:
            where = self._append(memoryview(data)[:whole]) if whole else _NOWHERE
        return self._inode(attributes, len(data), where, data[whole:], layout=_INLINE if tail else _PLAIN)

    def add_pieces(self, attributes: Attributes, size: int, pieces: Iterable[tuple[int, bytes | memoryview]]) -> int:
        """A large file as (offset, data) in ascending order; what is left out is zeros. Returns its code."""
        chunk = _CHUNK
        while size > chunk * _MOST_CHUNKS:
            chunk *= 2
        addresses: list[int] = []
        for offset, data in pieces:
            view = memoryview(data)
            while view:
                number, within = divmod(offset, chunk)
                while len(addresses) < number:
                    addresses.append(_NOWHERE)
                if len(addresses) == number:
                    addresses.append(self._reserve(min(chunk, size - number * chunk)) // BLOCK)
                part = view[: chunk - within]
                _pwrite(self._fd, part, addresses[number] * BLOCK + within)
                view = view[len(part) :]
                offset += len(part)
        missing = -(-size // chunk) - len(addresses)
        if not missing and _NOWHERE not in addresses:
            return self._inode(attributes, size, addresses[0] if addresses else _NOWHERE)
        self._chunked = True
        index = struct.pack(f"<{len(addresses) + missing}I", *addresses, *[_NOWHERE] * missing)
        return self._inode(attributes, size, (chunk // BLOCK).bit_length() - 1, index, layout=_CHUNKS)

    def finish(self, root: Directory, shared: Iterable[int] = ()) -> None:
        """Write the directories and complete the image. shared: codes of the files that may have several names."""
        plans = self._plan(root)
        for block in self._open:
            _pwrite(self._fd, block.data, block.start)
        self._open.clear()
        names = dict.fromkeys(shared, 0)
        for plan in plans:
            self._directory(plan)
            if names:
                for entry in plan.directory.entries.values():
                    if isinstance(entry, int) and entry in names:
                        names[entry] += 1
        for code, count in names.items():
            _pwrite(self._fd, count.to_bytes(4, "little"), (code >> 3) * _SLOT + _NLINK_OFFSET)
        blocks = self._end // BLOCK
        features = _INCOMPAT_CHUNKS if self._chunked else 0
        bits = BLOCK.bit_length() - 1
        header = _SUPERBLOCK.pack(
            _MAGIC, 0, _COMPAT_MTIME, bits, 0, _ROOT, self._inodes, 0, 0, blocks, 0, 0, self._uuid, bytes(16), features
        )
        _pwrite(self._fd, header, _SUPERBLOCK_OFFSET)
        os.ftruncate(self._fd, self._end)

    # -- space

    def _split(self, size: int, xattrs: int) -> tuple[int, int]:
        """(bytes in blocks of their own, bytes behind the inode) of a file."""
        tail = size % BLOCK
        return (size - tail, tail) if tail and _INODE.size + xattrs + tail <= BLOCK else (size, 0)

    def _reserve(self, size: int) -> int:
        start = self._end
        self._end += -(-size // BLOCK) * BLOCK
        if self._end > LARGEST:
            raise BadContent("the layer is too large for an EROFS image")
        return start

    def _append(self, data: memoryview) -> int:
        """Put data into blocks of their own; returns the address of the first."""
        start = self._reserve(len(data))
        _pwrite(self._fd, data, start)
        return start // BLOCK

    def _store(self, record: bytes) -> int:
        """Put an inode and what belongs to it into a metadata block (which it does not cross, if it can); returns its number."""
        size = len(record)
        if size > BLOCK:
            start = self._reserve(size)
            _pwrite(self._fd, record, start)
            return start // _SLOT
        for block in self._open:
            if block.used + size <= BLOCK:
                break
        else:
            block = self._new_block()
        offset = block.used
        block.data[offset : offset + size] = record
        block.used = -(-(offset + size) // _SLOT) * _SLOT
        return (block.start + offset) // _SLOT

    def _new_block(self) -> _Block:
        if len(self._open) == _OPEN_BLOCKS:
            fullest = max(self._open, key=_used)
            _pwrite(self._fd, fullest.data, fullest.start)
            self._open.remove(fullest)
        block = _Block(self._reserve(BLOCK))
        self._open.append(block)
        return block

    # -- inodes

    def _inode(self, attributes: Attributes, size: int, where: int, after: bytes = b"", *, layout: int = _PLAIN) -> int:
        """Store an inode, followed by the end of its data or the list of its chunks; returns the file's code."""
        record = self._record(attributes, size, where, layout, 1) + after
        return self._store(record) << 3 | _TYPES[stat.S_IFMT(attributes.mode)]

    def _record(self, attributes: Attributes, size: int, where: int, layout: int, links: int) -> bytes:
        mode, uid, gid, mtime, xattrs = attributes
        body = _xattr_body(xattrs) if xattrs else b""
        self._inodes += 1
        seconds, nanoseconds = divmod(mtime, 10**9)
        count = (len(body) - _XATTR_HEADER) // 4 + 1 if body else 0
        if count > 0xFFFF:
            raise BadContent("a file has too many extended attributes for an EROFS image")
        number = self._inodes & 0xFFFFFFFF
        return _INODE.pack(layout, count, mode, 0, size, where, number, uid, gid, seconds, nanoseconds, links) + body

    # -- directories

    def _plan(self, root: Directory) -> list[_Plan]:
        """Give every directory its place, which depends on its size; only then can the entries that name it be written."""
        plans: list[_Plan] = []
        pending = [root]
        while pending:
            directory = pending.pop()
            pending += [entry for entry in directory.entries.values() if isinstance(entry, Directory)]
            names = sorted((b".", b"..", *directory.entries))
            counts, size = _fill_blocks(names)
            xattrs = _xattr_size(directory.attributes.xattrs)
            whole, tail = self._split(size, xattrs)
            if directory is root:
                directory.nid = _ROOT
                whole, tail = _split_root(size, xattrs)
            else:
                directory.nid = self._store(bytes(_INODE.size + xattrs + tail))
            where = self._reserve(whole) // BLOCK if whole else _NOWHERE
            plans.append(_Plan(directory, names, counts, size, where, tail))
        return plans

    def _directory(self, plan: _Plan) -> None:
        directory, names, counts, size, where, tail = plan
        content = bytearray()
        start = 0
        for count in counts:
            content += bytes(-len(content) % BLOCK)
            content += _entries(directory, names[start : start + count])
            start += count
        links = 2 + sum(isinstance(entry, Directory) for entry in directory.entries.values())
        record = self._record(directory.attributes, size, where, _INLINE if tail else _PLAIN, links)
        _pwrite(self._fd, record + content[size - tail :] if tail else record, directory.nid * _SLOT)
        if size > tail:
            _pwrite(self._fd, content[: size - tail], where * BLOCK)


class _Plan(NamedTuple):
    """A directory with its place: names sorted, how many of them are in each block, size, address of its blocks, bytes behind the inode."""

    directory: Directory
    names: list[bytes]
    counts: list[int]
    size: int
    where: int
    tail: int


def _split_root(size: int, xattrs: int) -> tuple[int, int]:
    """The root's inode shares the first block with the superblock."""
    room = BLOCK - _ROOT * _SLOT - _INODE.size - xattrs
    if room < 0:
        raise BadContent("the extended attributes of the root directory are too large")
    tail = size % BLOCK
    return (size - tail, tail) if tail <= room else (size, 0)


def _fill_blocks(names: list[bytes]) -> tuple[list[int], int]:
    """How many of the names go into each block of a directory, and the directory's size."""
    counts: list[int] = []
    used = BLOCK
    for name in names:
        size = _DIRENT.size + len(name)
        if used + size > BLOCK:
            counts.append(0)
            used = 0
        counts[-1] += 1
        used += size
    return counts, (len(counts) - 1) * BLOCK + used


def _entries(directory: Directory, names: list[bytes]) -> bytes:
    """One block of a directory: the entries, then their names."""
    offset = _DIRENT.size * len(names)
    parts = []
    for name in names:
        if name == b".":
            nid, kind = directory.nid, DIRECTORY
        elif name == b"..":
            nid, kind = directory.parent.nid, DIRECTORY
        else:
            entry = directory.entries[name]
            nid, kind = (entry >> 3, entry & 7) if isinstance(entry, int) else (entry.nid, DIRECTORY)
        parts.append(_DIRENT.pack(nid, offset, kind))
        offset += len(name)
    return b"".join((*parts, *names))


def _xattr_entries(xattrs: dict[str, bytes]) -> list[tuple[int, bytes, bytes]]:
    """(prefix, rest of the name, value) of those that the format can express."""
    found = []
    for name, value in sorted(xattrs.items()):
        if name in _WHOLE_NAMES:
            found.append((_WHOLE_NAMES[name], b"", value))
            continue
        for prefix, number in _PREFIXES:
            if name.startswith(prefix):
                found.append((number, name[len(prefix) :].encode(errors="surrogateescape"), value))
    return found


def _xattr_size(xattrs: dict[str, bytes] | None) -> int:
    return len(_xattr_body(xattrs)) if xattrs else 0


def _xattr_body(xattrs: dict[str, bytes]) -> bytes:
    """Inline extended attributes: a header, then entries aligned to 4 bytes; nothing when there are none."""
    parts = [bytes(_XATTR_HEADER)]
    for number, name, value in _xattr_entries(xattrs):
        entry = struct.pack("<BBH", len(name), number, len(value)) + name + value
        parts.append(entry + bytes(-len(entry) % 4))
    return b"".join(parts) if len(parts) > 1 else b""


def _pwrite(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)


def _used(block: _Block) -> int:
    return block.used


def encode_device(device: int) -> int:
    """A device number as the kernel's new_encode_dev has it."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
