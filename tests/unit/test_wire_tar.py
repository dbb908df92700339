"""The tar codec, against Python's own."""

from __future__ import annotations

import tarfile

import pytest

from nacre.wire import tar


def header(**fields: object) -> bytes:
    info = tarfile.TarInfo("name")
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)[-tar.BLOCK :]


def test_fields() -> None:
    found = tar.fields(header(size=5, mode=0o644, uid=1000, type=tarfile.SYMTYPE, linkname="target"))
    assert tar.header_name(found) == b"name"
    assert (tar.number(found[tar.MODE]), tar.number(found[tar.UID]), tar.KINDS[found[tar.TYPE]]) == (0o644, 1000, "symlink")
    assert found[tar.TARGET].rstrip(b"\0") == b"target"


def test_checksums() -> None:
    block = bytearray(header())
    block[20] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        tar.fields(bytes(block))
    # As some old programs made it: from signed bytes.
    block = bytearray(header())
    block[0] = 0xE4
    total = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256
    block[148:156] = b"%06o\0 " % total
    assert tar.header_name(tar.fields(bytes(block)))[0] == 0xE4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0" * 8, 0),
        (b"\x80" + bytes(3) + b"\x01\x00\x00\x00", 1 << 24),
        (b"\xff" * 8, -1),
        (b"\xff" * 7 + b"\xfe", -2),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert tar.number(field) == value


@pytest.mark.parametrize("field", [b"08", b"x", b"-1\0", b"1 2"])
def test_no_numbers(field: bytes) -> None:
    try:
        assert tar.number(field) < 0
    except ValueError:
        return


def test_records() -> None:
    assert tar.records(b"10 path=x\n9 size=7\n") == [(b"path", b"x"), (b"size", b"7")]
    assert tar.records(b"") == []
    assert tar.records(b"10 path=x\n" + bytes(20), padded=True) == [(b"path", b"x")]
    assert tar.records(b"13 a=b=c\nd=\n\n") == [(b"a", b"b=c\nd=\n")]
    for data in (b"10 path=x", b"8 path=x\n", b"10 pathxx\n", b"0 a=\n", b"99999999999999999999999 a=b\n", bytes(20)):
        with pytest.raises(ValueError, match="malformed"):
            tar.records(data)
