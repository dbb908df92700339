"""Headers of tar archives that carry images (docker save, OCI image layouts): bytes to values. No I/O.

POSIX.1-2017 pax interchange format (ustar and pax headers) and the GNU extensions that archivers in use write: base-256 numbers,
long names. Only what such an archive needs: names, sizes, links. Everything is bounded; failures are BadContent.
"""

from __future__ import annotations

from typing import NamedTuple

from nacre.errors import BadContent

BLOCK = 512
MAX_EXTENDED = 1 << 20

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "link",
    b"2": "symlink",
    b"5": "directory",
    b"x": "pax",
    b"g": "pax-global",
    b"L": "long-name",
    b"K": "long-target",
}
_MAX_SIZE = 1 << 50
_MAX_PATH = 4096


class Header(NamedTuple):
    """One header block. kind: file, directory, symlink, link, pax, pax-global, long-name, long-target, or other (a device, a pipe ...).

    size: bytes of data that follow, padded to BLOCK. target: of a link.
    """

    name: str
    kind: str
    size: int
    target: str = ""


def parse_header(block: bytes) -> Header | None:
    """Read a header; None for a block of zeros, which ends the archive. Raises BadContent."""
    if not block.strip(b"\0"):
        return None
    if _number(block[148:156]) != sum(block[:148]) + sum(b" " * 8) + sum(block[156:]):
        raise BadContent("not a tar archive: the checksum of a header is wrong")
    kind = _KINDS.get(block[156:157], "other")
    size = _number(block[124:136]) if kind not in ("link", "symlink", "directory") else 0
    if not 0 <= size <= _MAX_SIZE:
        raise BadContent(f"the archive has a member of {size} bytes")
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return Header(name=name, kind=kind, size=size, target=_text(block[157:257]))


def parse_pax(data: bytes) -> dict[str, str]:
    """The records of a pax header, each ``<length> <key>=<value>`` and a line feed. Raises BadContent."""
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise BadContent("the archive has a malformed pax header")
        records[_text(key)] = _text(value)
        position = end
    return records


def apply_pax(header: Header, records: dict[str, str]) -> Header:
    """The header with what its pax records replace. Raises BadContent for sparse files, which image archives never have."""
    if any(key.startswith("GNU.sparse") for key in records):
        raise BadContent(f"{header.name!r} in the archive is a sparse file", hint="make the archive without --sparse")
    size = records.get("size", str(header.size))
    if not (size.isascii() and size.isdigit() and int(size[:20]) <= _MAX_SIZE):
        raise BadContent(f"the archive has a member of {size[:40]!r} bytes")
    return header._replace(name=records.get("path", header.name), target=records.get("linkpath", header.target), size=int(size))


def normal_path(path: str, *, base: str = "") -> str:
    """A member's path without "." and doubled slashes; relative ones start from `base`. ".." may not leave the archive.

    Raises BadContent for absolute and for escaping paths.
    """
    if path.startswith("/"):
        raise BadContent(f"{path[:200]!r} in the archive is an absolute path")
    if len(path) > _MAX_PATH:
        raise BadContent(f"the archive has a path of {len(path)} characters")
    parts: list[str] = [part for part in base.split("/") if part]
    for part in path.split("/"):
        if part == ".." and not parts:
            raise BadContent(f"{path[:200]!r} leads out of the archive")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _number(field: bytes) -> int:
    """An octal number, or GNU's base-256 one; -1 when it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big") if not field[0] & 0x40 else -1
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return -1


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")
