"""Headers of tar archives: bytes to values. No I/O. Whoever reads archives stands on this: layers, and the archives that carry images.

POSIX.1-2017 pax interchange format (ustar and extended headers), and what GNU tar adds: base-256 numbers, long names, sparse
files ("Basic Tar Format" in its manual). What is read comes from strangers: everything malformed is a ValueError, whose text the
caller puts into words that fit.
"""

from __future__ import annotations

import struct

BLOCK = 512
END = bytes(BLOCK)
# name, mode, uid, gid, size, mtime, checksum, type, target, magic, version, user, group, major, minor, prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")

KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",  # GNU's old sparse format
    b"1": "link",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
NAME, MODE, UID, GID, SIZE, TIME, TYPE, TARGET, MAJOR, MINOR = 0, 1, 2, 3, 4, 5, 7, 8, 13, 14
_CHECKSUM, _MAGIC, _PREFIX = 6, 9, 15


def fields(block: bytes) -> tuple[bytes, ...]:
    """The fields of a header by the indices above, after its checksum was verified. Raises ValueError when that is wrong."""
    found: tuple[bytes, ...] = _HEADER.unpack(block)
    checksum = found[_CHECKSUM]
    digits = checksum.strip(b"\0 ")
    expected = int(digits, 8) if digits.isdigit() else -1
    if sum(block) - sum(checksum) + 256 != expected and _signed_sum(block) != expected:
        raise ValueError("wrong checksum")
    return found


def _signed_sum(block: bytes) -> int:
    """The checksum as some old programs made it, from signed bytes."""
    values: tuple[int, ...] = struct.unpack("148b8x356b", block)
    return sum(values) + 256


def header_name(found: tuple[bytes, ...]) -> bytes:
    """The path in the header itself; only POSIX archives have a prefix, GNU keeps other things there."""
    name, prefix = found[NAME].split(b"\0", 1)[0], found[_PREFIX].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and found[_MAGIC] == b"ustar\0" else name


def number(field: bytes) -> int:
    """A number of a header: octal digits, or base-256 in two's complement when the first bit is set. Raises ValueError."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value & ((1 << (bits - 1)) - 1)
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def records(data: bytes, *, padded: bool = False) -> list[tuple[bytes, bytes]]:
    """The records of an extended header, each ``<length> <keyword>=<value>`` and a line feed, in order. Raises ValueError.

    padded: zeros may follow them.
    """
    found = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= max(space, position) or end > len(data) or data[end - 1] != 0x0A or not equals:
            if padded and not data[position:].strip(b"\0"):
                break
            raise ValueError("malformed record")
        found.append((keyword, value))
        position = end
    return found
