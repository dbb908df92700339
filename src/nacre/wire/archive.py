"""Members of tar archives that carry images (docker save, OCI image layouts): headers to values. No I/O.

Only what such an archive needs of `nacre.wire.tar`: names, sizes, links. Everything is bounded; failures are BadContent.
"""

from __future__ import annotations

from typing import NamedTuple

from nacre.errors import BadContent
from nacre.wire import tar
from nacre.wire.tar import BLOCK

__all__ = ["BLOCK", "MAX_EXTENDED", "Header", "apply_pax", "normal_path", "parse_header", "parse_pax"]

MAX_EXTENDED = 1 << 20

_KINDS = {
    **{letter: kind for letter, kind in tar.KINDS.items() if kind in ("file", "link", "symlink", "directory") and letter != b"S"},
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
    try:
        fields = tar.fields(block)
    except ValueError:
        raise BadContent("not a tar archive: the checksum of a header is wrong") from None
    kind = _KINDS.get(fields[tar.TYPE], "other")
    try:
        size = tar.number(fields[tar.SIZE]) if kind not in ("link", "symlink", "directory") else 0
    except ValueError:
        size = -1
    if not 0 <= size <= _MAX_SIZE:
        raise BadContent(f"the archive has a member of {size} bytes")
    return Header(name=_text(tar.header_name(fields)), kind=kind, size=size, target=_text(fields[tar.TARGET]))


def parse_pax(data: bytes) -> dict[str, str]:
    """The records of a pax header, each ``<length> <key>=<value>`` and a line feed. Raises BadContent."""
    try:
        return {_text(keyword): _text(value) for keyword, value in tar.records(data)}
    except ValueError:
        raise BadContent("the archive has a malformed pax header") from None


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


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")
