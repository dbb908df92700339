"""EROFS images: what the writer puts where. That archives become the right trees is in test_storage_tar."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import BadContent
from nacre.storage.erofs import Attributes, Directory, Writer
from nacre.storage.extract import extract
from nacre.storage.image import write_archive, write_directory
from nacre.storage.tar import Limits
from nacre.testing.erofs import Image, Inode, unpack_image
from nacre.testing.storage import archive, directory, member

REGULAR = stat.S_IFREG | 0o644
ROOT = Attributes(stat.S_IFDIR | 0o755)


class Made:
    """An image made by hand, and its tree as the reader sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115
        self.writer = Writer(self._file.fileno())
        self.root = Directory(None, ROOT)

    def read(self, shared: tuple[int, ...] = ()) -> Image:
        self.writer.finish(self.root, shared)
        self._file.close()
        return Image(self.path.read_bytes())

    def files(self, image: Image) -> dict[bytes, Inode]:
        entries = image.entries(image.inode(image.root))
        return {name: image.inode(nid) for name, (nid, _) in entries.items() if name not in (b".", b"..")}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "image")


@pytest.mark.parametrize("xattrs", [0, 100, 4000, 9000])
def test_every_size_of_content_and_attributes(made: Made, xattrs: int) -> None:
    attributes = Attributes(REGULAR, xattrs={"user.x": b"v" * xattrs} if xattrs else None)
    sizes = [0, 1, 31, 32, 33, 2000, 3999, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 60000]
    for size in sizes:
        made.root.entries[b"%d" % size] = made.writer.add(attributes, os.urandom(1) * size)
    found = made.files(made.read())
    for size in sizes:
        content = found[b"%d" % size].content
        assert content == content[:1] * size
        assert found[b"%d" % size].xattrs == (attributes.xattrs or {})


def test_attributes(made: Made) -> None:
    xattrs = {
        "user.a": b"1", "trusted.b": b"\0\xff", "security.capability": b"c", "system.posix_acl_access": b"acl", "system.other": b"not kept",
    }  # fmt: skip
    made.root.entries[b"f"] = made.writer.add(Attributes(REGULAR, 4_000_000_000, 70_000, -1, xattrs), b"x")
    found = made.files(made.read())[b"f"]
    del xattrs["system.other"]
    assert found == Inode(REGULAR, 4_000_000_000, 70_000, -1, 1, os.makedev(0xFFF, 0xFFFFF), b"x", xattrs)


@pytest.mark.parametrize("numbers", [(0, 0), (1, 3), (8, 255), (8, 256), (4095, (1 << 20) - 1)])
def test_device_numbers(made: Made, numbers: tuple[int, int]) -> None:
    made.root.entries[b"d"] = made.writer.add(Attributes(stat.S_IFBLK), device=os.makedev(*numbers))
    assert made.files(made.read())[b"d"].device == os.makedev(*numbers)


@pytest.mark.parametrize("length", [1, 4000, 4031, 4032, 4033, 4095])
def test_symbolic_links(made: Made, length: int) -> None:
    made.root.entries[b"l"] = made.writer.add(Attributes(stat.S_IFLNK | 0o777), b"t" * length)
    assert made.files(made.read())[b"l"].content == b"t" * length


@pytest.mark.parametrize("count", [0, 1, 10, 15, 200, 5000])
@pytest.mark.parametrize("length", [8, 200, 255])
def test_directories_of_every_size(made: Made, count: int, length: int) -> None:
    code = made.writer.add(Attributes(REGULAR))
    below = Directory(made.root, ROOT)
    made.root.entries[b"below"] = below
    for parent in (made.root, below):
        for number in range(count):
            parent.entries[b"%d" % number + b"n" * (length - 5)] = code
    image = made.read((code,))
    root = image.inode(image.root)
    assert root.links == 3
    assert len(image.entries(root)) == count + 3
    nid, _ = image.entries(root)[b"below"]
    inner = image.entries(image.inode(nid))
    assert len(inner) == count + 2
    assert inner[b".."][0] == image.root
    if count:
        assert image.inode(code >> 3).links == 2 * count


def test_names_before_the_dots_are_in_order(made: Made) -> None:
    for name in (b"-", b"..x", b".a", b"...", b"!", b"\xff", b"/"[:0] + b"0"):
        made.root.entries[name] = made.writer.add(Attributes(REGULAR))
    image = made.read()
    assert list(image.entries(image.inode(image.root))) == sorted([b".", b"..", b"-", b"..x", b".a", b"...", b"!", b"\xff", b"0"])


def test_root_with_attributes(made: Made) -> None:
    made.root.attributes = ROOT._replace(xattrs={"user.x": b"v" * 2500})
    for number in range(100):
        made.root.entries[b"%d" % number] = made.writer.add(Attributes(REGULAR))
    image = made.read()
    assert len(image.inode(image.root).xattrs["user.x"]) == 2500
    assert len(image.entries(image.inode(image.root))) == 102


def test_root_with_too_many_attributes(made: Made) -> None:
    made.root.attributes = ROOT._replace(xattrs={"user.x": b"v" * 3000})
    with pytest.raises(BadContent, match="root directory"):
        made.read()


def test_too_many_attributes(made: Made) -> None:
    with pytest.raises(BadContent, match="extended attributes"):
        made.writer.add(Attributes(REGULAR, xattrs={f"user.{number}": b"v" * 65535 for number in range(5)}))


def test_too_large_for_the_format(made: Made) -> None:
    with pytest.raises(BadContent, match="too large"):
        made.writer.add_pieces(Attributes(REGULAR), 1 << 63, [(0, b"x")])


@pytest.mark.parametrize("xattrs", [None, {"user.x": b"v" * 9}, {"user.x": b"v" * 4000}])
@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (0, []),
        (100, []),
        (1 << 20, []),
        ((1 << 20) + 1, [(1 << 20, b"x")]),
        (300_000, [(0, b"a" * 300_000)]),
        (300_000, [(0, b"a" * 65536), (65536, b"b" * 65537)]),
        (300_000, [(65535, b"ab"), (200_000, b"c" * 100_000)]),
        (100 << 20, [(50 << 20, b"middle")]),
    ],
)
def test_holes(made: Made, size: int, pieces: list[tuple[int, bytes]], xattrs: dict[str, bytes] | None) -> None:
    expected = bytearray(size)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    made.root.entries[b"f"] = made.writer.add_pieces(Attributes(REGULAR, xattrs=xattrs), size, pieces)
    made.root.entries[b"g"] = made.writer.add(Attributes(REGULAR), b"next")
    found = made.files(made.read())
    assert found[b"f"].content == expected
    assert found[b"g"].content == b"next"
    assert found[b"f"].xattrs == (xattrs or {})
    assert made.path.stat().st_size < 1 << 20


def test_hole_of_a_tebibyte(made: Made) -> None:
    made.root.entries[b"f"] = made.writer.add_pieces(Attributes(REGULAR), 1 << 40, [(1 << 39, b"x")])
    made.writer.finish(made.root)
    assert made.path.stat().st_blocks * 512 < 1 << 20


def test_zeros_occupy_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "image"

    class Zeros(io.RawIOBase):
        """An archive with one file of 1 GiB of zeros, made on the fly."""

        def __init__(self) -> None:
            info = tarfile.TarInfo("zeros")
            info.size = 1 << 30
            self._head, self._left = info.tobuf(), (1 << 30) + 1024

        def read(self, size: int = -1, /) -> bytes:
            if self._head:
                head, self._head = self._head, b""
                return head
            count = min(size, self._left, 1 << 20)
            self._left -= count
            return bytes(count)

    with open(path, "wb") as file:
        result = write_archive(Zeros(), file.fileno())
    assert result.size == 1 << 30
    assert path.stat().st_size < 1 << 20
    assert path.stat().st_blocks * 512 < 1 << 20


def _everything(tar: tarfile.TarFile) -> None:
    directory(tar, "./", 0o750)
    directory(tar, "d", 0o700, xattrs={"user.d": b"1"})
    member(tar, "d/.wh..wh..opq")
    member(tar, "d/.wh.gone")
    member(tar, "file", b"x" * 5000, xattrs={"user.f": b"2"})
    member(tar, "again", type=tarfile.LNKTYPE, linkname="file")
    member(tar, "link", type=tarfile.SYMTYPE, linkname="file")
    member(tar, "pipe", type=tarfile.FIFOTYPE)
    member(tar, "large", bytes(1 << 20) + b"x" * 100_000)
    for number in range(300):
        member(tar, f"d/{number}", b"y" * number)


def test_same_input_same_image(tmp_path: Path) -> None:
    data = archive(_everything)
    for name in ("one", "two"):
        with open(tmp_path / name, "wb") as file:
            write_archive(io.BytesIO(data), file.fileno(), uuid=b"u" * 16)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert b"u" * 16 in (tmp_path / "one").read_bytes()[1024:1152]


def _look(path: Path) -> dict[str, Any]:
    found = {}
    for entry in sorted(path.rglob("*")):
        info = entry.lstat()
        content = entry.read_bytes() if stat.S_ISREG(info.st_mode) else info.st_rdev
        names = os.listxattr(entry, follow_symlinks=False)
        xattrs = {name.replace("trusted.", "user."): os.getxattr(entry, name, follow_symlinks=False) for name in names}
        links = info.st_nlink if not stat.S_ISDIR(info.st_mode) else 0
        found[str(entry.relative_to(path))] = (info.st_mode, info.st_mtime_ns, links, content, xattrs)
    return found


def test_image_of_a_directory(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with open(tmp_path / "image", "wb") as file:
        write_archive(io.BytesIO(archive(_everything)), file.fileno())
    unpack_image(str(tmp_path / "image"), str(tmp_path / "one"), owner=False)
    with open(tmp_path / "again", "wb") as file:
        write_directory(str(tmp_path / "one"), file.fileno())
    unpack_image(str(tmp_path / "again"), str(tmp_path / "two"), owner=False)
    first, second = _look(tmp_path / "one"), _look(tmp_path / "two")
    assert len(first) == 307
    assert first == second


def test_opaque_directories_of_a_user_are_those_of_root(tmp_path: Path) -> None:
    """A layer unpacked in a user namespace, as an image for a guest."""
    (tmp_path / "layer/opaque").mkdir(parents=True)
    try:
        os.setxattr(tmp_path / "layer/opaque", "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip("the file system has no extended attributes of users")
    with open(tmp_path / "image", "wb") as file:
        write_directory(str(tmp_path / "layer"), file.fileno())
    image = Image((tmp_path / "image").read_bytes())
    nid, _ = image.entries(image.inode(image.root))[b"opaque"]
    assert image.inode(nid).xattrs == {"trusted.overlay.opaque": b"y"}


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """The archive with bytes changed and blocks moved about, most of the checksums made right again."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        block, other = (chance.randrange(len(changed) // 512) * 512 for _ in range(2))
        if chance.random() < 0.7:
            changed[chance.randrange(len(changed))] = chance.choice((0, 255, chance.randrange(256), *b"/.7Lx1S5"))
        else:
            changed[block : block + 512] = changed[other : other + 512]
    for start in range(0, len(changed) - 511, 512):
        if changed[start + 257 : start + 262] == b"ustar" and chance.random() < 0.98:
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % (sum(changed[start : start + 512]) & 0o777777)
    return bytes(changed)


def test_both_ways_agree_on_damaged_archives(tmp_path: Path) -> None:
    """The directory and the image are made by different code; whatever the archive, they are the same or both refused."""

    def build(tar: tarfile.TarFile) -> None:
        directory(tar, "a")
        member(tar, "a/f", b"x" * 600, xattrs={"user.a": b"b"})
        member(tar, "a/../n" * 30, b"y")
        member(tar, "l", type=tarfile.SYMTYPE, linkname="a/b")
        member(tar, "l/x", b"1")
        member(tar, "h", type=tarfile.LNKTYPE, linkname="a/f")
        member(tar, "a/.wh.f")
        member(tar, "a/.wh..wh..opq")
        member(tar, "p", type=tarfile.FIFOTYPE)

    data, chance, agreed = archive(build), random.Random(4711), [0, 0]
    for number in range(120):
        damaged = _damaged(data, chance)
        found: list[dict[str, Any] | None] = []
        for way in (_by_image, _by_directory):
            place = tmp_path / f"{number}-{way.__name__}"
            place.mkdir()
            try:
                way(damaged, place)
                found.append(_look(place))
            except BadContent:
                found.append(None)
        assert found[0] == found[1]
        agreed[found[0] is None] += 1
    assert min(agreed) > 20


def _by_image(data: bytes, place: Path) -> None:
    image = place.with_suffix(".image")
    with open(image, "wb") as file:
        write_archive(io.BytesIO(data), file.fileno(), limits=Limits(bytes=1 << 24))
    unpack_image(str(image), str(place), owner=False)


def _by_directory(data: bytes, place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        extract(io.BytesIO(data), fd, limits=Limits(bytes=1 << 24), owner=False)
    finally:
        os.close(fd)
