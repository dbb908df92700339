"""The guest's initramfs: the archive read back, compressed modules, the cache."""

from __future__ import annotations

import gzip
import lzma
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from nacre.errors import HostError
from nacre.isolation.microvm import initramfs


class Entry(NamedTuple):
    mode: int
    size: int
    device: tuple[int, int]
    content: bytes


def unpack(data: bytes) -> dict[str, Entry]:
    """A reader of the newc format, written from its description."""
    found: dict[str, Entry] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        name_end = at + 110 + fields[11]
        name = data[at + 110 : name_end - 1].decode()
        assert data[name_end - 1] == 0
        start = name_end + -name_end % 4
        if name == "TRAILER!!!":
            assert start == len(data)
            return found
        found[name] = Entry(fields[1], fields[6], (fields[9], fields[10]), data[start : start + fields[6]])
        at = start + fields[6] + -(start + fields[6]) % 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NACRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "boot"


def test_archive() -> None:
    found = unpack(initramfs.archive(b"program", [("b.ko", b"12345"), ("a.ko", b"")]))
    assert found["init"] == Entry(0o100755, 7, (0, 0), b"program")
    assert found["dev/console"][:3] == (0o020600, 0, (5, 1))
    assert found["modules/order"].content == b"b.ko\na.ko\n"
    assert found["modules/b.ko"].content == b"12345"
    assert {name for name, entry in found.items() if entry.mode == 0o040755} == set(initramfs.DIRECTORIES)
    names = list(found)
    assert names.index("modules") < names.index("modules/order")
    assert initramfs.archive(b"program") == initramfs.archive(b"program")


def test_built_once(cache: Path, tmp_path: Path) -> None:
    stem = tmp_path / "stem"
    stem.write_bytes(b"one")
    first = initramfs.build(str(stem))
    Path(first).write_bytes(b"kept")
    assert initramfs.build(str(stem)) == first
    assert Path(first).read_bytes() == b"kept"
    assert Path(first).stat().st_mode & 0o777 == 0o644
    stem.write_bytes(b"two")
    assert initramfs.build(str(stem)) != first
    assert len(list(cache.iterdir())) == 2


def test_what_nobody_used_for_a_month_is_removed(cache: Path, tmp_path: Path) -> None:
    stem = tmp_path / "stem"
    stem.write_bytes(b"old")
    old = Path(initramfs.build(str(stem)))
    (cache / "kernel-of-somebody").write_bytes(b"")
    os.utime(cache / "kernel-of-somebody", (1, 1))
    os.utime(old, (1, 1))
    assert initramfs.build(str(stem)) == str(old)
    stem.write_bytes(b"new")
    initramfs.build(str(stem))
    assert old.exists()
    os.utime(old, (1, 1))
    stem.write_bytes(b"newer")
    initramfs.build(str(stem))
    assert not old.exists()
    assert len(list(cache.iterdir())) == 3


def test_modules_decide_the_key(cache: Path, tmp_path: Path) -> None:
    stem, one, two = (tmp_path / name for name in ("stem", "one.ko", "two.ko"))
    for path in (stem, one, two):
        path.write_bytes(path.name.encode())
    orders = ((), (str(one),), (str(one), str(two)), (str(two), str(one)))
    assert len({initramfs.build(str(stem), order) for order in orders}) == len(orders)


def test_compressed_modules_are_stored_plain(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "stem").write_bytes(b"stem")
    packed = {"a.ko.gz": gzip.compress(b"A"), "b.ko.xz": lzma.compress(b"B"), "c.ko": b"C"}
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    path = initramfs.build(str(tmp_path / "stem"), [str(tmp_path / name) for name in packed])
    found = unpack(Path(path).read_bytes())
    assert {name: entry.content for name, entry in found.items() if name.endswith(".ko")} == {
        "modules/a.ko": b"A",
        "modules/b.ko": b"B",
        "modules/c.ko": b"C",
    }
    assert found["modules/order"].content == b"a.ko\nb.ko\nc.ko\n"


def test_zstd_modules(cache: Path, tmp_path: Path) -> None:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        zstd = pytest.importorskip("backports.zstd")
    (tmp_path / "stem").write_bytes(b"stem")
    (tmp_path / "z.ko.zst").write_bytes(zstd.compress(b"Z"))
    found = unpack(Path(initramfs.build(str(tmp_path / "stem"), [str(tmp_path / "z.ko.zst")])).read_bytes())
    assert found["modules/z.ko"].content == b"Z"


@pytest.mark.parametrize("name", ["m.ko.gz", "m.ko.xz", "m.ko.zst"])
def test_damaged_module(cache: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "stem").write_bytes(b"stem")
    (tmp_path / name).write_bytes(b"not compressed at all")
    with pytest.raises(HostError, match=name):
        initramfs.build(str(tmp_path / "stem"), [str(tmp_path / name)])
    assert not cache.exists()


def test_missing_files(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="stem"):
        initramfs.build(str(tmp_path / "stem"))


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stem").write_bytes(b"stem")
    monkeypatch.setenv("NACRE_CACHE", str(tmp_path / "stem" / "below-a-file"))
    with pytest.raises(HostError, match="initramfs"):
        initramfs.build(str(tmp_path / "stem"))
