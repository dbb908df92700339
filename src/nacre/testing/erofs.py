"""A reader of EROFS images, independent of the writer, for tests that may not mount: unpacks an image into a directory.

Knows uncompressed images with extended inodes, flat, inline and chunked data, inline extended attributes. Checks what the
kernel checks: order of directory entries, inline data that stays within its block.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

_BLOCK = 4096
_PREFIXES = {1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}


class Inode(NamedTuple):
    """One inode with its content and extended attributes."""

    mode: int
    uid: int
    gid: int
    mtime: int
    links: int
    device: int
    content: bytes
    xattrs: dict[str, bytes]


class Image:
    """An image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        magic, _, compat, bits, _, root = struct.unpack_from("<IIIBBH", data, 1024)
        blocks, meta = struct.unpack_from("<II", data, 1024 + 36)
        (self._features,) = struct.unpack_from("<I", data, 1024 + 80)
        assert magic == 0xE0F5E1E2
        assert compat & 2
        assert bits == 12
        assert blocks * _BLOCK == len(data)
        self.root = root
        self._meta = meta * _BLOCK

    def inode(self, nid: int) -> Inode:
        """One inode by its number."""
        start = self._meta + nid * 32
        layout, count, mode = struct.unpack_from("<HHH", self._data, start)
        assert layout & 1, "compact inodes have no time"
        size, where, _, uid, gid, seconds, nanoseconds, links = struct.unpack_from("<QIIIIqII", self._data, start + 8)
        body = 12 + 4 * (count - 1) if count else 0
        after = start + 64 + body
        content = b""
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            content = self._content(layout >> 1, size, where, after)
        device = (where >> 8 & 0xFFF, where & 0xFF | where >> 12 & ~0xFF)
        xattrs = self._xattrs(start + 64, after) if count else {}
        return Inode(mode, uid, gid, seconds * 10**9 + nanoseconds, links, os.makedev(*device), content, xattrs)

    def _content(self, layout: int, size: int, where: int, after: int) -> bytes:
        if layout == 4:
            return self._chunks(size, where, after)
        tail = size % _BLOCK if layout == 2 else 0
        assert layout in (0, 2)
        assert not tail or after // _BLOCK == (after + tail - 1) // _BLOCK, "inline data crosses its block"
        whole = size - tail
        assert not whole or where * _BLOCK + whole <= len(self._data)
        return self._data[where * _BLOCK : where * _BLOCK + whole] + self._data[after : after + tail]

    def _chunks(self, size: int, form: int, after: int) -> bytes:
        assert self._features & 4
        assert form < 32, "only plain block maps are known"
        chunk = _BLOCK << form
        count = -(-size // chunk)
        parts = []
        for number, address in enumerate(struct.unpack_from(f"<{count}I", self._data, after)):
            length = min(chunk, size - number * chunk)
            parts.append(bytes(length) if address == 0xFFFFFFFF else self._data[address * _BLOCK : address * _BLOCK + length])
        return b"".join(parts)

    def _xattrs(self, start: int, end: int) -> dict[str, bytes]:
        found = {}
        position = start + 12
        while position < end:
            length, index, size = struct.unpack_from("<BBH", self._data, position)
            name = self._data[position + 4 : position + 4 + length]
            found[_PREFIXES[index] + name.decode()] = self._data[position + 4 + length : position + 4 + length + size]
            position = -(-(position + 4 + length + size) // 4) * 4
        assert position == end
        return found

    def entries(self, directory: Inode) -> dict[bytes, tuple[int, int]]:
        """(inode number, file type) by name, "." and ".." included."""
        found: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(directory.content), _BLOCK):
            block = directory.content[start : start + _BLOCK]
            count = struct.unpack_from("<QH", block)[1] // 12
            heads = [struct.unpack_from("<QHBB", block, 12 * number) for number in range(count)]
            ends = [head[1] for head in heads[1:]] + [len(block)]
            for (nid, offset, kind, _), end in zip(heads, ends, strict=True):
                name = block[offset:end].rstrip(b"\0")
                assert not found or next(reversed(found)) < name, "entries are out of order"
                found[name] = nid, kind
        return found


def unpack_image(path: str, destination: str, *, owner: bool) -> None:
    """Recreate what is in an image in an existing directory. owner=False leaves owners and privileged attributes out."""
    with open(path, "rb") as file:
        image = Image(file.read())
    names: dict[int, str] = {}
    finish: list[tuple[str, Inode]] = []
    pending = [(image.root, image.root, destination)]
    while pending:
        nid, parent, here = pending.pop()
        inode = image.inode(nid)
        finish.append((here, inode))
        entries = image.entries(inode)
        assert entries.pop(b".") == (nid, 2)
        assert entries.pop(b"..") == (parent, 2)
        for name, (child, kind) in entries.items():
            target = os.path.join(here, os.fsdecode(name))
            if kind == 2:
                os.mkdir(target, 0o700)
                pending.append((child, nid, target))
            elif child in names:
                os.link(names[child], target, follow_symlinks=False)
            else:
                names[child] = target
                _make(image.inode(child), target, kind, owner)
    for nid, target in names.items():
        assert os.lstat(target).st_nlink == image.inode(nid).links
    for here, inode in reversed(finish):
        _finish(inode, here, owner)


def _make(inode: Inode, target: str, kind: int, owner: bool) -> None:
    kinds = {stat.S_IFREG: 1, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7}
    assert kinds[stat.S_IFMT(inode.mode)] == kind
    if kind == 7:
        os.symlink(inode.content, target)
    elif kind == 1:
        with open(target, "wb") as file:
            for start in range(0, len(inode.content), _BLOCK):
                if inode.content[start : start + _BLOCK].count(0) < _BLOCK:
                    file.seek(start)
                    file.write(inode.content[start : start + _BLOCK])
            file.truncate(len(inode.content))
    else:
        os.mknod(target, stat.S_IFMT(inode.mode), inode.device)
    _finish(inode, target, owner)


def _finish(inode: Inode, target: str, owner: bool) -> None:
    for name, value in inode.xattrs.items():
        wanted = name if owner or name.startswith("user.") else name.replace("trusted.overlay.", "user.overlay.")
        if owner or wanted.startswith("user."):
            os.setxattr(target, wanted, value, follow_symlinks=False)
    if owner:
        os.lchown(target, inode.uid, inode.gid)
    if not stat.S_ISLNK(inode.mode):
        os.chmod(target, stat.S_IMODE(inode.mode))
    os.utime(target, ns=(inode.mtime, inode.mtime), follow_symlinks=False)
