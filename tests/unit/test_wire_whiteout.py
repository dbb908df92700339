"""Whiteout names in both directions."""

from __future__ import annotations

import stat

import pytest

from nacre.errors import BadContent, InvalidArgument
from nacre.wire.whiteout import Kind, classify, entry_names, is_overlay_xattr, is_whiteout, plain_name, whiteout_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"bin", (Kind.PLAIN, b"bin")),
        (b".who", (Kind.PLAIN, b".who")),
        (b"a.wh.b", (Kind.PLAIN, b"a.wh.b")),
        (b".wh.bin", (Kind.WHITEOUT, b"bin")),
        (b".wh...x", (Kind.WHITEOUT, b"..x")),
        (b".wh.\xff", (Kind.WHITEOUT, b"\xff")),
        (b".wh..wh..opq", (Kind.OPAQUE, b"")),
        (b".wh..wh.plnk", (Kind.RESERVED, b"")),
        (b".wh..wh.aufs", (Kind.RESERVED, b"")),
    ],
)
def test_classify(name: bytes, expected: tuple[Kind, bytes]) -> None:
    assert classify(name) == expected


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh..."])
def test_whiteout_of_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(BadContent):
        classify(name)


@pytest.mark.parametrize("name", [b"x", b"\xfe\xff", b"..."])
def test_round_trip(name: bytes) -> None:
    assert classify(whiteout_name(name)) == (Kind.WHITEOUT, name)


def test_names_that_layers_cannot_express() -> None:
    with pytest.raises(InvalidArgument):
        plain_name(b".wh.x")
    with pytest.raises(InvalidArgument):
        whiteout_name(b".wh.x")


def test_entry_names() -> None:
    assert entry_names(b"a/b") == [b"a/b"]
    assert entry_names(b"a/b", whiteout=True) == [b"a/.wh.b"]
    assert entry_names(b"b", whiteout=True) == [b".wh.b"]
    assert entry_names(b"a/b", opaque=True) == [b"a/b", b"a/b/.wh..wh..opq"]
    assert entry_names(b"", opaque=True) == [b".wh..wh..opq"]


def test_what_overlayfs_sees() -> None:
    assert is_whiteout(stat.S_IFCHR | 0o600, 0)
    assert not is_whiteout(stat.S_IFCHR, 1)
    assert not is_whiteout(stat.S_IFREG, 0)
    assert is_overlay_xattr("trusted.overlay.redirect")
    assert is_overlay_xattr("user.overlay.opaque")
    assert not is_overlay_xattr("user.overlays")
