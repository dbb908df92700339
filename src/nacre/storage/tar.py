"""Reading layer archives as a stream: ustar, pax and GNU tar, without seeking and within bounds.

Formats: POSIX.1-2017 pax (ustar and extended headers); GNU tar manual, "Basic Tar Format" (long names, old sparse format,
base-256 numbers) and "Storing Sparse Files" (pax sparse formats 0.0, 0.1, 1.0); the SCHILY.xattr. and LIBARCHIVE.xattr.
records that carry extended attributes. What is read comes from strangers: everything is checked and bounded by `Limits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, Protocol

from nacre.errors import BadContent
from nacre.model.value import Value
from nacre.wire import tar as codec
from nacre.wire.tar import BLOCK, KINDS

HOLE = 1 << 16  # runs of zeros of this size, aligned in the file, become holes
_ZEROS = bytes(HOLE)
_CHUNK = 1 << 20
_SPECIAL_IN_A_ROW = 16

_XATTR = b"SCHILY.xattr."
_XATTR_LIBARCHIVE = b"LIBARCHIVE.xattr."
# What a global header may say for all entries that follow; a path or a size for all of them makes no sense.
_GLOBAL = (b"uid", b"gid", b"mtime")


class Stream(Protocol):
    """What the reader needs of its input."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b"" at the end only."""
        ...


class Limits(Value):
    """Bounds of one archive.

    entries: number of members, and of directories that only their names imply; names: bytes of all file names and link targets;
    bytes: of the stream, and of all files together with their holes; path: length of a path or of a link's target; header: size
    of one extended header (names and extended attributes); extents: of one sparse file.
    """

    entries: int = 1_000_000
    names: int = 256 << 20
    bytes: int = 128 << 30
    path: int = 4095
    header: int = 1 << 20
    extents: int = 1 << 16


class Entry:
    """One member of an archive.

    path: relative, without "." and "..", b"" for the root. kind: file, link (hard), symlink, char, block, directory or fifo.
    mode: permission bits with set-id and sticky bits; mtime in ns since the epoch; size in bytes, holes included; link: target
    of a symlink as it is, of a hard link as a path like `path`; device: (major, minor); xattrs: by name.
    """

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime", "path", "size", "uid", "xattrs")

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[str, bytes] | None


class Reader:
    """Iterates over the entries of an archive. Between two entries `take` or `pieces` deliver the data of a file.

    Raises BadContent for what is malformed or out of bounds, and lets through what the stream raises.
    """

    def __init__(self, stream: Stream, limits: Limits | None = None) -> None:
        self._read = stream.read
        self._limits = limits or Limits()
        self._buffer = b""
        self._position = 0
        self._received = 0
        self._left = 0  # bytes of the present entry's data not yet taken
        self._padding = 0
        self._extents: list[tuple[int, int]] | None = None
        self._globals: dict[bytes, bytes] = {}
        self.path = b""  # of the present entry, for error messages
        self._names = 0
        self.entries = 0
        self.size = 0  # of all files so far, holes included

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry
        self._drain()

    def take(self) -> bytes:
        """The data of the present entry as it is in the archive; for small files that are not sparse."""
        data = self._bytes(self._left)
        self._left = 0
        return data

    def count(self, entries: int, names: int) -> None:
        """Count entries (or directories that a name implies), and bytes of names to be remembered, against the limits."""
        self.entries += entries
        self._names += names
        if self.entries > self._limits.entries:
            self._too_much(f"{self._limits.entries} entries", "NACRE_LAYER_ENTRIES=<number>")
        if self._names > self._limits.names:
            self._bad(f"its names have more than {self._limits.names} bytes")

    @property
    def sparse(self) -> bool:
        """Whether the present file is stored as a list of extents."""
        return self._extents is not None

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """The data of the present file as (offset, bytes) in ascending order; what is left out is zeros."""
        extents = [(0, self._left)] if self._extents is None else self._extents
        for offset, length in extents:
            while length:
                self._fill(min(length, 2 * HOLE))
                step = min(length, len(self._buffer) - self._position)
                if step < length:
                    step -= (offset + step) % HOLE  # the next block is looked at as a whole
                yield from _without_holes(self._buffer, self._position, step, offset)
                self._position += step
                self._left -= step
                offset += step
                length -= step

    # -- the stream

    def _fill(self, wanted: int) -> None:
        """Have at least `wanted` bytes in the buffer."""
        if not self._more(wanted):
            self._bad("it ends in the middle of an entry")

    def _more(self, wanted: int) -> bool:
        """Try to have that many bytes in the buffer; False when the stream ended before."""
        available = len(self._buffer) - self._position
        if available >= wanted:
            return True
        parts = [self._buffer[self._position :]]
        while available < wanted and (chunk := self._receive()):
            parts.append(chunk)
            available += len(chunk)
        self._buffer = b"".join(parts)
        self._position = 0
        return available >= wanted

    def _receive(self) -> bytes:
        chunk = self._read(_CHUNK)
        self._received += len(chunk)
        if self._received > self._limits.bytes:
            self._too_much()
        return chunk

    def _bytes(self, count: int) -> bytes:
        self._fill(count)
        start = self._position
        self._position = start + count
        return self._buffer[start : start + count]

    def _skip(self, count: int) -> None:
        while count:
            self._fill(min(count, _CHUNK))
            step = min(count, len(self._buffer) - self._position)
            self._position += step
            count -= step

    def _drain(self) -> None:
        """Read what follows the end mark: only at its very end does a stream know whether its digest was right."""
        self._buffer, self._position = b"", 0
        while self._receive():
            pass

    # -- entries

    def _next(self) -> Entry | None:
        if self._left or self._padding:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
        self._extents = None
        pax: dict[bytes, bytes] = {}
        sparse: list[bytes] = []
        name = link = b""
        headers = 0
        while (block := self._block()) is not None:
            fields = self._fields(block)
            kind = fields[7]
            if kind in KINDS or kind == b"D":
                return self._entry(block, fields, {**self._globals, **pax} if self._globals else pax, sparse, name, link)
            data = self._special(fields)
            if kind in (b"x", b"X"):
                pax, sparse = self._records(data)
            elif kind == b"g":
                self._globals.update({key: value for key, value in self._records(data)[0].items() if key in _GLOBAL})
            elif kind == b"L":
                name = data.split(b"\0", 1)[0]
            elif kind == b"K":
                link = data.split(b"\0", 1)[0]
            elif kind != b"V":
                self._bad(f"it has an entry of the unknown type {kind!r}")
            headers += 1
            if headers > _SPECIAL_IN_A_ROW:
                self._bad("too many extended headers follow one another")
        return None

    def _block(self) -> bytes | None:
        """The next header; None at the end of the archive."""
        if not self._more(BLOCK):
            if self._position < len(self._buffer):
                self._bad("it ends in the middle of a header")
            return None
        block = self._bytes(BLOCK)
        return None if block == codec.END else block

    def _fields(self, block: bytes) -> tuple[bytes, ...]:
        try:
            return codec.fields(block)
        except ValueError:
            self._bad("a header has a wrong checksum" if self.entries else "this is not a tar archive")

    def _special(self, fields: tuple[bytes, ...]) -> bytes:
        """The content of an extended header."""
        size = self._number(fields[4], "size")
        if size > self._limits.header:
            self._bad(f"an extended header has {size} bytes; at most {self._limits.header} are accepted")
        data = self._bytes(size)
        self._skip(-size % BLOCK)
        return data

    def _records(self, data: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Records of a pax header by keyword; and the values of the two that may be repeated, in order (sparse format 0.0)."""
        records: dict[bytes, bytes] = {}
        repeated: list[bytes] = []
        try:
            found = codec.records(data, padded=True)
        except ValueError:
            self._bad("a record of an extended header is malformed")
        for keyword, value in found:
            if keyword in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                repeated.append(value)
            else:
                records[keyword] = value
        return records, repeated

    def _entry(
        self, block: bytes, fields: tuple[bytes, ...], pax: dict[bytes, bytes], sparse: list[bytes], name: bytes, link: bytes
    ) -> Entry:
        entry = Entry()
        raw = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name or codec.header_name(fields)
        self.path = raw
        entry.path = self._path(raw)
        entry.kind = KINDS.get(fields[7], "directory")
        if entry.kind == "file" and raw.endswith(b"/"):
            entry.kind = "directory"  # as archives older than ustar mark them
        entry.mode = self._number(fields[1], "mode") & 0o7777
        entry.uid = self._identifier(pax.get(b"uid"), fields[2])
        entry.gid = self._identifier(pax.get(b"gid"), fields[3])
        entry.mtime = self._time(pax.get(b"mtime"), fields[5])
        entry.xattrs = self._xattrs(pax) if pax else None
        entry.link = b""
        entry.device = (0, 0)
        entry.size = 0
        if entry.kind == "file" or fields[7] == b"D":
            self._measure(entry, block, fields, pax, sparse)
        elif entry.kind in ("link", "symlink"):
            entry.link = self._target(entry.kind, pax.get(b"linkpath") or link or fields[8].split(b"\0", 1)[0])
        elif entry.kind in ("char", "block"):
            entry.device = self._device(fields)
        self.count(1, len(entry.path) - entry.path.rfind(b"/") + len(entry.link))
        if not entry.path and entry.kind != "directory":
            self._bad("an entry that is no directory has the name of the root")
        return entry

    def _measure(self, entry: Entry, block: bytes, fields: tuple[bytes, ...], pax: dict[bytes, bytes], sparse: list[bytes]) -> None:
        """Size of a file, bytes that follow, and for sparse files where they belong."""
        stored = self._decimal(pax[b"size"], "size") if pax.get(b"size") else self._number(fields[4], "size")
        self._left, self._padding = stored, -stored % BLOCK
        if entry.kind != "file":
            return
        entry.size = stored
        if fields[7] == b"S":
            entry.size = self._sparse_gnu(block)
        elif sparse or b"GNU.sparse.map" in pax or pax.get(b"GNU.sparse.major") == b"1":
            entry.size = self._sparse_pax(pax, sparse)
        self.size += entry.size
        if self.size > self._limits.bytes:
            self._too_much()

    # -- sparse files

    def _sparse_gnu(self, block: bytes) -> int:
        """The old GNU format: the map is in the header and in the blocks that follow it."""
        numbers: list[int] = []
        size = self._number(block[483:495], "real size")
        fields, more = block[386:482], block[482]
        while True:
            for start in range(0, len(fields), 12):
                if fields[start] and len(numbers) <= 2 * self._limits.extents:
                    numbers.append(self._number(fields[start : start + 12], "extent"))
            if not more:
                break
            if len(numbers) >= 2 * self._limits.extents:
                self._bad("a sparse file has too many extents")
            block = self._bytes(BLOCK)
            fields, more = block[:504], block[504]
        self._map(numbers, size)
        return size

    def _sparse_pax(self, pax: dict[bytes, bytes], repeated: list[bytes]) -> int:
        """The three formats of GNU tar in pax archives."""
        size = self._decimal(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size") or b"", "real size")
        if pax.get(b"GNU.sparse.major") == b"1":
            numbers = self._sparse_lines()
        else:
            values = repeated or [value for value in pax[b"GNU.sparse.map"].split(b",") if value]
            numbers = [self._decimal(value, "extent") for value in values]
        self._map(numbers, size)
        return size

    def _sparse_lines(self) -> list[int]:
        """Format 1.0: decimal lines before the data, padded to a block: the number of extents, then offset and length of each."""
        blocks = [self._map_block()]
        count = self._decimal(blocks[0].split(b"\n", 1)[0], "number of extents")
        if count > self._limits.extents:
            self._bad("a sparse file has too many extents")
        wanted = 2 * count + 1
        lines = blocks[0].count(b"\n")
        while lines < wanted:
            blocks.append(self._map_block())
            lines += blocks[-1].count(b"\n")
        return [self._decimal(value, "extent") for value in b"".join(blocks).split(b"\n")[1:wanted]]

    def _map_block(self) -> bytes:
        if self._left < BLOCK:
            self._bad("the map of a sparse file is cut short")
        self._left -= BLOCK
        return self._bytes(BLOCK)

    def _map(self, numbers: list[int], size: int) -> None:
        """Accept a map: ascending extents inside the file that add up to the stored bytes."""
        if len(numbers) % 2 or len(numbers) > 2 * self._limits.extents:
            self._bad("the map of a sparse file is malformed")
        extents = list(zip(numbers[::2], numbers[1::2], strict=True))
        end = 0
        for offset, length in extents:
            if offset < end or offset + length > size:
                self._bad("the map of a sparse file is out of order")
            end = offset + length
        if sum(numbers[1::2]) != self._left:
            self._bad("the map of a sparse file does not match its data")
        self._extents = extents

    # -- fields

    def _path(self, raw: bytes) -> bytes:
        """A path below the root: ".", doubled and leading slashes dropped, ".." resolved by name as long as it stays inside."""
        if raw.startswith(b"./"):
            raw = raw[2:] or b"."
        if 0 < len(raw) < 256 and raw[0] not in b"./" and b"/." not in raw and b"//" not in raw and b"\0" not in raw:
            return raw.removesuffix(b"/")  # most are this simple
        if len(raw) > self._limits.path:
            self._bad(f"a path has {len(raw)} bytes; at most {self._limits.path} are accepted")
        if b"\0" in raw or not raw:
            self._bad("a path is empty or contains a null byte")
        parts: list[bytes] = []
        for part in raw.split(b"/"):
            if part == b"..":
                if not parts:
                    self._bad("a path leads out of the root directory")
                parts.pop()
            elif part and part != b".":
                if len(part) > 255:
                    self._bad("a file name has more than 255 bytes")
                parts.append(part)
        return b"/".join(parts)

    def _target(self, kind: str, raw: bytes) -> bytes:
        if kind == "link":
            return self._path(raw)
        if not raw or b"\0" in raw or len(raw) > self._limits.path:
            self._bad("the target of a symbolic link is empty, too long or contains a null byte")
        return raw

    def _number(self, field: bytes, what: str) -> int:
        try:
            number = codec.number(field)
        except ValueError:
            self._bad(f"the {what} {field!r} is no number")
        if number < 0:
            self._bad(f"the {what} is negative")
        return number

    def _decimal(self, text: bytes, what: str) -> int:
        if not text.isdigit() or len(text) > 20:
            self._bad(f"the {what} {text[:32]!r} is no number")
        return int(text)

    def _identifier(self, text: bytes | None, field: bytes) -> int:
        number = self._decimal(text, "owner") if text else self._number(field, "owner")
        if number >= 0xFFFFFFFF:
            self._bad(f"the owner {number} is out of range")
        return number

    def _time(self, text: bytes | None, field: bytes) -> int:
        """Nanoseconds since the epoch, kept within what file systems can store (years 1901 to 2446)."""
        try:
            time = _nanoseconds(text) if text else codec.number(field) * 10**9
        except ValueError:
            self._bad(f"the time {(text or field)[:32]!r} is no number")
        return max(-(1 << 31) * 10**9, min(time, ((1 << 34) - (1 << 31)) * 10**9 - 1))

    def _device(self, fields: tuple[bytes, ...]) -> tuple[int, int]:
        major, minor = self._number(fields[13], "device"), self._number(fields[14], "device")
        if major >= 1 << 12 or minor >= 1 << 20:
            self._bad(f"the device {major}:{minor} is out of range")
        return major, minor

    def _xattrs(self, pax: dict[bytes, bytes]) -> dict[str, bytes] | None:
        xattrs: dict[str, bytes] = {}
        for keyword, value in pax.items():
            if keyword.startswith(_XATTR_LIBARCHIVE):
                xattrs.setdefault(*self._libarchive(keyword[len(_XATTR_LIBARCHIVE) :], value))
            elif keyword.startswith(_XATTR):
                xattrs[keyword[len(_XATTR) :].decode(errors="surrogateescape")] = value
        for name, value in xattrs.items():
            if not 0 < len(name.encode(errors="surrogateescape")) <= 255 or "\0" in name or len(value) >= 1 << 16:
                self._bad("an extended attribute is malformed or too large")
        return xattrs or None

    def _libarchive(self, name: bytes, value: bytes) -> tuple[str, bytes]:
        """A record of libarchive: name percent-encoded, value base64 without padding."""
        import binascii
        from urllib.parse import unquote

        try:
            return unquote(name.decode("ascii"), errors="surrogateescape"), binascii.a2b_base64(value + b"=" * (-len(value) % 4))
        except ValueError:
            self._bad("an extended attribute is malformed")

    # -- refusals

    def _bad(self, reason: str) -> NoReturn:
        where = f", at {self.path[:200].decode(errors='replace')!r}" if self.path else ""
        raise BadContent(
            f"bad layer archive: {reason}{where}",
            hint="the image is damaged or was not made for containers; pull it again or use another tag",
        )

    def _too_much(self, what: str = "", way: str = "NACRE_LAYER_BYTES=<number>") -> NoReturn:
        raise BadContent(
            f"the layer unpacks to more than {what or f'{self._limits.bytes} bytes'}",
            hint=f"if the image is meant to be this large, raise the limit: {way}",
        )


def _without_holes(buffer: bytes, start: int, count: int, offset: int) -> Iterator[tuple[int, memoryview]]:
    """Cut runs of zero blocks out of count bytes of the buffer, which belong at `offset` of a file."""
    view = memoryview(buffer)
    shift = offset - start
    run = position = start
    end = start + count
    while position < end:
        size = min(HOLE - (position + shift) % HOLE, end - position)
        if size == HOLE and buffer.startswith(_ZEROS, position):
            if run < position:
                yield run + shift, view[run:position]
            run = position + size
        position += size
    if run < end:
        yield run + shift, view[run:end]


def _nanoseconds(text: bytes) -> int:
    """A decimal number of seconds with an optional fraction, exactly."""
    whole, _, fraction = text.partition(b".")
    if len(text) > 64 or (fraction and not fraction.isdigit()):
        raise ValueError(text)
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    seconds = int(whole or b"0")
    return seconds * 10**9 - nanoseconds if whole.startswith(b"-") else seconds * 10**9 + nanoseconds
