"""Reading and unpacking layer archives: formats, attributes, hostile input. Runs without root."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import BadContent
from nacre.storage.extract import Unpacked, extract
from nacre.storage.image import write_archive
from nacre.storage.tar import HOLE, Limits, Reader
from nacre.testing.erofs import unpack_image

Build = Callable[[tarfile.TarFile], object]
TIME = 1_234_567_890


def archive(build: Build, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        build(tar)
    return out.getvalue()


def member(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), TIME
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))
    return info


def directory(tar: tarfile.TarFile, name: str, **fields: Any) -> tarfile.TarInfo:
    return member(tar, name, type=tarfile.DIRTYPE, mode=fields.pop("mode", 0o755), **fields)


def symlink(tar: tarfile.TarFile, name: str, target: str) -> tarfile.TarInfo:
    return member(tar, name, type=tarfile.SYMTYPE, linkname=target)


def raw_header(name: bytes, kind: bytes = b"0", size: bytes = b"00000000000", **fields: bytes) -> bytes:
    """One header as bytes, for what tarfile would not write."""
    block = bytearray(512)
    places = {
        "mode": 100,
        "uid": 108,
        "gid": 116,
        "mtime": 136,
        "link": 157,
        "magic": 257,
        "major": 329,
        "minor": 337,
        "at386": 386,
        "at482": 482,
    }
    block[: len(name)] = name
    values = {"mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0", "mtime": b"00000000000\0", "magic": b"ustar\x0000", **fields}
    for key, value in values.items():
        block[places[key] : places[key] + len(value)] = value
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)


class Trickle(io.RawIOBase):
    """A stream that cannot seek and delivers odd pieces."""

    def __init__(self, data: bytes, step: int = 777) -> None:
        self._data, self._step = io.BytesIO(data), step

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, self._step))


class Tree:
    """Unpacks archives below a directory, directly or by way of an image."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.image = path.parent / "image"
        self.result: Unpacked | None = None

    def unpack(self, data: bytes, limits: Limits | None = None) -> Path:
        self.path.mkdir(exist_ok=True)
        if self.kind == "image":
            with open(self.image, "wb") as file:
                self.result = write_archive(Trickle(data), file.fileno(), limits=limits)
            unpack_image(str(self.image), str(self.path), owner=False)
            return self.path
        fd = os.open(self.path, os.O_RDONLY)
        try:
            self.result = extract(Trickle(data), fd, limits=limits, owner=False)
        finally:
            os.close(fd)
        return self.path

    def build(self, build: Build, format: int = tarfile.PAX_FORMAT) -> Path:
        return self.unpack(archive(build, format))


@pytest.fixture(params=["directory", "image"])
def tree(tmp_path: Path, request: pytest.FixtureRequest, no_descriptor_left: Callable[[], AbstractContextManager[None]]) -> Iterator[Tree]:
    (tmp_path / "outside").mkdir()
    with no_descriptor_left():
        yield Tree(tmp_path / "tree", request.param)
    assert list((tmp_path / "outside").iterdir()) == []
    assert {entry.name for entry in tmp_path.iterdir()} <= {"outside", "tree", "image"}


# -- formats


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_ordinary_entries(tree: Tree, format: int) -> None:
    def build(tar: tarfile.TarFile) -> None:
        directory(tar, "./etc", mode=0o700)
        member(tar, "./etc/passwd", b"root\n", mode=0o640)
        member(tar, "./etc/tool", b"#!", mode=0o4755)
        symlink(tar, "./etc/alias", "passwd")
        member(tar, "./etc/again", type=tarfile.LNKTYPE, linkname="./etc/passwd")
        member(tar, "./etc/pipe", type=tarfile.FIFOTYPE, mode=0o620)

    root = tree.build(build, format)
    assert (root / "etc/passwd").read_bytes() == b"root\n"
    assert (root / "etc/passwd").stat().st_mode == stat.S_IFREG | 0o640
    assert (root / "etc/passwd").stat().st_mtime == TIME
    assert (root / "etc/tool").stat().st_mode == stat.S_IFREG | 0o4755
    assert os.readlink(root / "etc/alias") == "passwd"
    assert (root / "etc/alias").lstat().st_mtime == TIME
    assert (root / "etc/again").samefile(root / "etc/passwd")
    assert (root / "etc/pipe").stat().st_mode == stat.S_IFIFO | 0o620
    assert (root / "etc").stat().st_mode == stat.S_IFDIR | 0o700
    assert (root / "etc").stat().st_mtime == TIME
    assert tree.result == (7, 6, None)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tree: Tree, format: int) -> None:
    name = "/".join(["d" * 200] * 15) + "/" + "f" * 255
    root = tree.build(lambda tar: (member(tar, name, b"x"), symlink(tar, "link", "t" * 3000)), format)
    assert len(name) > 3000
    fd = os.open(root, os.O_PATH)
    os.stat(name, dir_fd=fd)
    os.close(fd)
    assert len(os.readlink(root / "link")) == 3000


def test_ustar_prefix(tree: Tree) -> None:
    name = "p" * 120 + "/" + "n" * 90
    assert (tree.build(lambda tar: member(tar, name, b"x"), tarfile.USTAR_FORMAT) / name).read_bytes() == b"x"


def test_gnu_header_has_no_prefix(tree: Tree) -> None:
    block = bytearray(raw_header(b"name", magic=b"ustar  \0"))
    block[345:350] = b"12345"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert (tree.unpack(bytes(block) + END) / "name").exists()


def test_names_that_are_not_utf8(tree: Tree) -> None:
    root = tree.unpack(raw_header(b"caf\xe9") + END)
    assert os.listdir(os.fsencode(root)) == [b"caf\xe9"]


def test_pax_overrides(tree: Tree) -> None:
    def build(tar: tarfile.TarFile) -> None:
        member(tar, "short", b"x", pax_headers={"path": "real-name", "mtime": "1000000000.123456789"})
        member(tar, "second", b"y")

    root = tree.build(build)
    assert (root / "real-name").stat().st_mtime_ns == 1_000_000_000_123_456_789
    assert (root / "second").stat().st_mtime == TIME


def test_pax_size_and_owner() -> None:
    data = archive(lambda tar: member(tar, "x", b"abc", uid=3_000_000_000, gid=70000), tarfile.PAX_FORMAT)
    entry = next(iter(Reader(io.BytesIO(data))))
    assert (entry.uid, entry.gid, entry.size) == (3_000_000_000, 70000, 3)
    record = b"12 size=3\n"
    record = b"%d size=3\n" % len(b"10 size=3\n")
    data = raw_header(b"pax", b"x", b"%011o" % len(record)) + padded(record) + raw_header(b"x", b"0", b"00000000000") + padded(b"abc") + END
    reader = Reader(io.BytesIO(data))
    for entry in reader:
        assert (entry.path, entry.size, reader.take()) == (b"x", 3, b"abc")


def test_base_256_numbers() -> None:
    size = b"\x80" + (5).to_bytes(11, "big")
    data = raw_header(b"x", size=size, uid=b"\x80" + (2_500_000).to_bytes(7, "big"), mtime=b"\xff" + (-5 % 256**11).to_bytes(11, "big"))
    reader = Reader(io.BytesIO(data + padded(b"hello") + END))
    for entry in reader:
        assert (entry.size, entry.uid, entry.mtime, reader.take()) == (5, 2_500_000, -5 * 10**9, b"hello")


def test_global_header_speaks_of_owner_and_time_only(tree: Tree) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"mtime": "77", "path": "evil", "comment": "0"}) as tar:
        member(tar, "a", b"1")
        member(tar, "b", b"2")
    root = tree.unpack(out.getvalue())
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert (root / "b").stat().st_mtime == 77


def test_old_directory_marked_by_a_slash(tree: Tree) -> None:
    assert (tree.unpack(raw_header(b"old/", b"\0", magic=b"\0" * 8) + END) / "old").is_dir()


def test_archive_without_end_mark_and_empty_streams(tree: Tree) -> None:
    assert (tree.unpack(raw_header(b"a")) / "a").exists()
    tree.unpack(END)
    tree.unpack(b"")


def test_stream_is_read_to_its_end() -> None:
    stream = io.BytesIO(archive(lambda tar: member(tar, "a")) + b"trailing" * 1000)
    for _ in Reader(stream):
        pass
    assert stream.read() == b""


def test_signed_checksum(tree: Tree) -> None:
    block = bytearray(raw_header(b"\xc3\xa9"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)
    assert (tree.unpack(bytes(block) + END) / "é").exists()


# -- sparse files


def _check_sparse(path: Path) -> None:
    data = path.read_bytes()
    assert len(data) == 3 << 20
    assert data[1 << 20 : (1 << 20) + 5] == b"first"
    assert data[(2 << 20) : (2 << 20) + 6] == b"second"
    assert data.count(0) == len(data) - 11
    assert path.stat().st_blocks * 512 < 1 << 20


def _pax(*records: tuple[bytes, bytes]) -> bytes:
    data = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        length += len(str(length + len(str(length))))
        data += b"%d %s=%s\n" % (length, key, value)
    return raw_header(b"pax", b"x", b"%011o" % len(data)) + padded(data)


EXTENTS = [(1 << 20, 5), (2 << 20, 6), (3 << 20, 0)]


def test_gnu_sparse_old_format(tree: Tree) -> None:
    fields = b"".join(b"%011o\0%011o\0" % extent for extent in EXTENTS)
    header = raw_header(b"f", b"S", b"%011o" % 11, magic=b"ustar  \0", at386=fields, at482=b"\0%011o\0" % (3 << 20))
    _check_sparse(tree.unpack(header + padded(b"firstsecond") + END) / "f")


def test_gnu_sparse_old_format_with_extension(tree: Tree) -> None:
    many = [(number * 8192, 1) for number in range(40)]
    first = b"".join(b"%011o\0%011o\0" % extent for extent in many[:4])
    header = raw_header(b"f", b"S", b"%011o" % 40, magic=b"ustar  \0", at386=first, at482=b"\1%011o\0" % (1 << 20))
    blocks = [many[4:25], many[25:]]
    extension = b""
    for number, block in enumerate(blocks):
        extension += (
            b"".join(b"%011o\0%011o\0" % extent for extent in block).ljust(504, b"\0") + (b"\1" if number == 0 else b"\0") + bytes(7)
        )
    data = (tree.unpack(header + extension + padded(b"x" * 40) + END) / "f").read_bytes()
    assert len(data) == 1 << 20
    assert [data[offset] for offset, _ in many] == [ord("x")] * 40
    assert data.count(b"x") == 40


def test_pax_sparse_0_0(tree: Tree) -> None:
    pairs = [item for offset, size in EXTENTS for item in ((b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % size))]
    data = _pax((b"GNU.sparse.size", b"%d" % (3 << 20)), (b"GNU.sparse.numblocks", b"3"), *pairs) + raw_header(b"f", b"0", b"%011o" % 11)
    _check_sparse(tree.unpack(data + padded(b"firstsecond") + END) / "f")


def test_pax_sparse_0_1(tree: Tree) -> None:
    text = b",".join(b"%d,%d" % extent for extent in EXTENTS)
    data = _pax((b"GNU.sparse.size", b"%d" % (3 << 20)), (b"GNU.sparse.name", b"f"), (b"GNU.sparse.map", text))
    _check_sparse(tree.unpack(data + raw_header(b"GNUSparseFile.1/f", b"0", b"%011o" % 11) + padded(b"firstsecond") + END) / "f")


def test_pax_sparse_1_0(tree: Tree) -> None:
    text = padded(b"3\n" + b"".join(b"%d\n%d\n" % extent for extent in EXTENTS))
    data = _pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"f"), (b"GNU.sparse.realsize", b"%d" % (3 << 20))
    )
    _check_sparse(tree.unpack(data + raw_header(b"x", b"0", b"%011o" % (len(text) + 11)) + text + padded(b"firstsecond") + END) / "f")


@pytest.mark.parametrize(
    ("text", "size", "stored"),
    [
        (b"0,5,3,5", b"100", b"x" * 10),  # overlapping
        (b"0,5", b"3", b"x" * 5),  # beyond the end
        (b"0,5", b"100", b"x" * 9),  # not what is stored
        (b"0,5,7", b"100", b"x" * 5),  # odd
        (b"0,-5", b"100", b""),
        (b"0,5", b"", b"x" * 5),
    ],
)
def test_bad_sparse_maps(tree: Tree, text: bytes, size: bytes, stored: bytes) -> None:
    data = _pax((b"GNU.sparse.size", size), (b"GNU.sparse.map", text)) + raw_header(b"f", b"0", b"%011o" % len(stored)) + padded(stored)
    with pytest.raises(BadContent):
        tree.unpack(data + END)


def test_zeros_become_holes(tree: Tree) -> None:
    size = (16 << 20) + 100
    data = bytearray(size)
    data[5 << 20 : (5 << 20) + 3] = b"abc"
    root = tree.build(lambda tar: (member(tar, "mixed", bytes(data)), member(tar, "zeros", bytes(size))))
    assert (root / "mixed").read_bytes() == data
    assert (root / "zeros").read_bytes() == bytes(size)
    assert (root / "mixed").stat().st_blocks * 512 <= 2 * HOLE
    assert (root / "zeros").stat().st_blocks * 512 <= HOLE


@pytest.mark.parametrize("size", [1, 511, 512, 513, HOLE - 1, HOLE, HOLE + 1, (1 << 20) - 1, (1 << 20) + 1, 3_000_001])
def test_sizes_around_the_borders(tree: Tree, size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    root = tree.build(lambda tar: (member(tar, "a", content), member(tar, "b", b"next")))
    assert (root / "a").read_bytes() == content
    assert (root / "b").read_bytes() == b"next"


# -- later entries win


def test_duplicates_and_changes_of_type(tree: Tree) -> None:
    def build(tar: tarfile.TarFile) -> None:
        member(tar, "file", b"old and long")
        member(tar, "file", b"new")
        directory(tar, "dir-to-file")
        member(tar, "dir-to-file/child", b"x")
        member(tar, "dir-to-file", b"file")
        member(tar, "file-to-dir", b"x")
        directory(tar, "file-to-dir", mode=0o711)
        member(tar, "file-to-dir/child", b"x")
        symlink(tar, "link-to-dir", "file-to-dir")
        directory(tar, "link-to-dir")
        member(tar, "link-to-dir/own", b"x")
        directory(tar, "dir-to-link")
        member(tar, "dir-to-link/gone", b"x")
        symlink(tar, "dir-to-link", "file-to-dir")
        member(tar, "dir-to-link/through", b"x")
        directory(tar, "twice", mode=0o700)
        member(tar, "twice/kept", b"x")
        directory(tar, "twice", mode=0o755)

    root = tree.build(build)
    assert (root / "file").read_bytes() == b"new"
    assert (root / "dir-to-file").read_bytes() == b"file"
    assert (root / "file-to-dir").stat().st_mode & 0o777 == 0o711
    assert sorted(os.listdir(root / "file-to-dir")) == ["child", "through"]
    assert os.listdir(root / "link-to-dir") == ["own"]
    assert not (root / "link-to-dir").is_symlink()
    assert (root / "twice/kept").exists()
    assert (root / "twice").stat().st_mode & 0o777 == 0o755


def test_replacing_one_name_of_a_file_keeps_the_others(tree: Tree) -> None:
    def build(tar: tarfile.TarFile) -> None:
        member(tar, "a", b"one")
        member(tar, "b", type=tarfile.LNKTYPE, linkname="a")
        member(tar, "b", type=tarfile.LNKTYPE, linkname="a")
        member(tar, "a", type=tarfile.LNKTYPE, linkname="a")
        member(tar, "a", b"two")

    root = tree.build(build)
    assert (root / "a").read_bytes() == b"two"
    assert (root / "b").read_bytes() == b"one"


def test_missing_parents_are_made(tree: Tree) -> None:
    root = tree.build(lambda tar: member(tar, "a/b/c", b"x"))
    assert (root / "a/b").stat().st_mode & 0o7777 == 0o755
    assert (root / "a/b").stat().st_mtime == 0


def test_parent_that_is_a_file_is_replaced(tree: Tree) -> None:
    assert (tree.build(lambda tar: (member(tar, "a", b"x"), member(tar, "a/b", b"y"))) / "a/b").read_bytes() == b"y"


def test_root_entry(tree: Tree) -> None:
    root = tree.build(lambda tar: directory(tar, "./", mode=0o1777, uid=5, gid=6))
    assert root.stat().st_mode & 0o7777 == 0o1777
    assert root.stat().st_mtime == TIME
    assert tree.result is not None
    assert tree.result.root == (0o1777, 5, 6)


def test_directory_without_permissions_can_be_filled(tree: Tree) -> None:
    root = tree.build(lambda tar: (directory(tar, "shut", mode=0), member(tar, "shut/in", b"x")))
    assert (root / "shut").stat().st_mode & 0o7777 == 0


def test_set_group_id_directory_does_not_leak_its_group(tree: Tree) -> None:
    tree.path.mkdir()
    tree.path.chmod(0o2755)
    root = tree.build(lambda tar: (directory(tar, "s", mode=0o2775), member(tar, "s/in/file", b"x")))
    assert (root / "s").stat().st_mode & 0o7777 == 0o2775
    assert (root / "s/in").stat().st_mode & 0o7777 == 0o755


# -- hostile archives


def test_symbolic_links_do_not_lead_outside(tree: Tree) -> None:
    outside = str(tree.path.parent / "outside")

    def build(tar: tarfile.TarFile) -> None:
        symlink(tar, "absolute", outside)
        member(tar, "absolute/file", b"x")
        symlink(tar, "up", "../outside")
        member(tar, "up/file", b"x")
        symlink(tar, "chain", "up/../../outside")
        member(tar, "chain/deep/file", b"x")
        symlink(tar, "target", outside + "/file")
        member(tar, "target", b"x")

    root = tree.build(build)
    assert (root / outside.lstrip("/") / "file").exists()
    assert (root / "outside/file").exists()
    assert not (root / "target").is_symlink()


def test_dangling_links_lead_where_they_would_in_the_image(tree: Tree) -> None:
    root = tree.build(lambda tar: (symlink(tar, "var-run", "/run/./x/.."), member(tar, "var-run/pid", b"x")))
    assert (root / "run/pid").exists()


def test_absolute_names_are_below_the_root(tree: Tree) -> None:
    assert (tree.build(lambda tar: member(tar, "//outside/file", b"x")) / "outside/file").exists()


def test_dots_inside_are_resolved_by_name(tree: Tree) -> None:
    assert (tree.build(lambda tar: member(tar, "a/../b/./c", b"x")) / "b/c").exists()


@pytest.mark.parametrize("name", ["../outside/file", "a/../../outside/file", "./../x", ".."])
def test_names_that_lead_out_are_refused(tree: Tree, name: str) -> None:
    with pytest.raises(BadContent, match="leads out of the root"):
        tree.build(lambda tar: member(tar, name, b"x"))


@pytest.mark.parametrize("target", ["../outside/secret", "/../../x", "missing", "dir/missing"])
def test_hard_links_to_elsewhere_are_refused(tree: Tree, target: str) -> None:
    with pytest.raises(BadContent):
        tree.build(lambda tar: (directory(tar, "dir"), member(tar, "link", type=tarfile.LNKTYPE, linkname=target)))


def test_hard_link_through_a_symbolic_link_stays_inside(tree: Tree) -> None:
    (tree.path.parent / "outside").joinpath("secret").write_text("s")

    def build(tar: tarfile.TarFile) -> None:
        symlink(tar, "up", "../outside")
        member(tar, "link", type=tarfile.LNKTYPE, linkname="up/secret")

    with pytest.raises(BadContent, match="not in this layer"):
        tree.build(build)
    (tree.path.parent / "outside" / "secret").unlink()


def test_hard_link_to_a_symbolic_link_is_the_link(tree: Tree) -> None:
    root = tree.build(lambda tar: (symlink(tar, "s", "/etc/passwd"), member(tar, "h", type=tarfile.LNKTYPE, linkname="s")))
    assert os.readlink(root / "h") == "/etc/passwd"


def test_circle_of_links(tree: Tree) -> None:
    with pytest.raises(BadContent, match="circle"):
        tree.build(lambda tar: (symlink(tar, "a", "b"), symlink(tar, "b", "a"), member(tar, "a/x", b"")))


def test_whiteouts_in_disguise_are_left_out(tree: Tree) -> None:
    def build(tar: tarfile.TarFile) -> None:
        member(tar, "fake", type=tarfile.CHRTYPE, devmajor=0, devminor=0)
        member(
            tar, "dir/file", b"x", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y"}
        )
        directory(tar, "d", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y"})

    root = tree.build(build)
    assert not os.path.lexists(root / "fake")
    assert os.listxattr(root / "dir/file") == []
    assert os.listxattr(root / "d") == []


def test_non_tar_input() -> None:
    with pytest.raises(BadContent, match="not a tar archive"):
        list(Reader(io.BytesIO(b"\x1f\x8b" + os.urandom(2000))))


def test_every_truncation_is_noticed(tree: Tree) -> None:
    data = archive(lambda tar: member(tar, "name" * 60, b"content" * 100, pax_headers={"comment": "x"}))
    ends = set()
    for end in range(1, len(data) - 1, 100):
        try:
            tree.unpack(data[:end])
        except BadContent as error:
            ends.add(error.message)
        else:
            # Nothing but the end mark is missing.
            assert not data[end:].strip(b"\0")
    assert any("middle" in message for message in ends)


def test_flipped_bits_never_raise_anything_else(tree: Tree) -> None:
    data = archive(lambda tar: (member(tar, "n" * 120, b"c" * 100, pax_headers={"SCHILY.xattr.user.a": "b"}), symlink(tar, "l", "t")))
    for position in range(0, len(data) - 1024, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        block = position // 512 * 512
        # With a right checksum more of the parser is reached.
        damaged[block + 148 : block + 156] = b" " * 8
        damaged[block + 148 : block + 156] = b"%06o\0 " % (sum(damaged[block : block + 512]) & 0o777777)
        try:
            for _ in Reader(io.BytesIO(bytes(damaged))):
                pass
        except BadContent:
            pass


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw_header(b"x", b"Z"), "unknown type"),
        (raw_header(b"x", size=b"\x80" + (1 << 60).to_bytes(11, "big")), "more than"),
        (raw_header(b"x", size=b"zzzzzzzzzzzz"), "no number"),
        (raw_header(b"x", size=b"\xff" * 12), "negative"),
        (raw_header(b"x", b"L", b"77777777777"), "extended header"),
        (raw_header(b"x", b"3", major=b"0777777\0", minor=b"0000001\0"), "out of range"),
        (raw_header(b"x", uid=b"\x80\0\0\0\xff\xff\xff\xff"), "out of range"),
        (raw_header(b"x", b"2"), "target"),
        (raw_header(b"./"), "unknown"),
        (raw_header(b"/", b"3"), "name of the root"),
        (raw_header(b"", b"0"), "empty"),
        (raw_header(b"x", b"x", b"%011o" % 5) + padded(b"99 a=b\n"[:5]), "malformed"),
        (raw_header(b"x", b"x", b"%011o" % 5) + padded(b"aaaaa"), "malformed"),
        (raw_header(b"x", b"x", b"%011o" % 5) + padded(b"5 ab\n"), "malformed"),
        (raw_header(b"x", b"x", b"%011o" % 5) + padded(b"0 a=\n"), "malformed"),
        (_pax((b"path", b"a\0b")) + raw_header(b"x"), "null byte"),
        (_pax((b"path", b"n" * 256)) + raw_header(b"x"), "255"),
        (_pax((b"path", b"n/" * 3000)) + raw_header(b"x"), "accepted"),
        (_pax((b"uid", b"-1")) + raw_header(b"x"), "no number"),
        (_pax((b"mtime", b"soon")) + raw_header(b"x"), "time"),
        (_pax((b"SCHILY.xattr.", b"x")) + raw_header(b"x"), "attribute"),
        (_pax((b"SCHILY.xattr.user.x", b"x" * 70000)) + raw_header(b"x"), "attribute"),
        (_pax((b"LIBARCHIVE.xattr.user.x", b"x")) + raw_header(b"x"), "attribute"),
        (_pax((b"comment", b"x")) * 20 + raw_header(b"x"), "follow one another"),
        (raw_header(b"dir/.wh...", b"0"), "names no file"),
    ],
)
def test_malformed_archives(tree: Tree, data: bytes, reason: str) -> None:
    if reason == "unknown":  # a root entry that is marked as a file by type but as a directory by its name
        tree.unpack(data + END)
        return
    with pytest.raises(BadContent, match=reason):
        tree.unpack(data + END)


def test_absurd_times_are_kept_in_range() -> None:
    for text in (b"99999999999999999999", b"-99999999999999999999.5"):
        entry = next(iter(Reader(io.BytesIO(_pax((b"mtime", text)) + raw_header(b"x") + END))))
        assert abs(entry.mtime) < 1 << 64


def test_limit_on_entries(tree: Tree) -> None:
    with pytest.raises(BadContent, match="more than 10 entries"):
        tree.unpack(archive(lambda tar: [member(tar, str(number)) for number in range(11)]), Limits(entries=10))


def test_limit_on_entries_counts_what_names_imply(tree: Tree) -> None:
    with pytest.raises(BadContent, match="more than 100 entries"):
        tree.unpack(archive(lambda tar: member(tar, "a/" * 200 + "b")), Limits(entries=100))


def test_limit_on_names(tree: Tree) -> None:
    with pytest.raises(BadContent, match="names have more than 1000 bytes"):
        tree.unpack(archive(lambda tar: [symlink(tar, str(number), "t" * 90) for number in range(12)]), Limits(names=1000))


def test_limit_on_bytes(tree: Tree) -> None:
    data = archive(lambda tar: member(tar, "a", bytes(1 << 20)))
    with pytest.raises(BadContent, match="more than 100000 bytes") as caught:
        tree.unpack(data, Limits(bytes=100_000))
    assert "NACRE_LAYER_BYTES" in caught.value.hint


def test_limit_counts_holes_too(tree: Tree) -> None:
    data = (
        _pax((b"GNU.sparse.size", b"%d" % (1 << 50)), (b"GNU.sparse.map", b"0,5")) + raw_header(b"f", b"0", b"%011o" % 5) + padded(b"12345")
    )
    with pytest.raises(BadContent, match="unpacks to more"):
        tree.unpack(data + END)


def test_error_of_the_stream_comes_through(tree: Tree) -> None:
    class Broken(Trickle):
        def read(self, size: int = -1, /) -> bytes:
            data = super().read(size)
            if not data:
                raise BadContent("digest mismatch")
            return data

    tree.path.mkdir()
    fd = os.open(tree.path, os.O_RDONLY)
    try:
        with pytest.raises(BadContent, match="digest mismatch"):
            extract(Broken(archive(lambda tar: member(tar, "a", b"x"))), fd, owner=False)
    finally:
        os.close(fd)


# -- whiteouts


def _opaque(path: Path) -> bool:
    return any(name.endswith(".overlay.opaque") for name in os.listxattr(path))


def test_whiteouts(tree: Tree) -> None:
    def build(tar: tarfile.TarFile) -> None:
        directory(tar, "etc")
        member(tar, "etc/.wh.gone")
        directory(tar, "opaque")
        member(tar, "opaque/.wh..wh..opq")
        member(tar, "opaque/new", b"x")
        member(tar, ".wh..wh.aufs")
        member(tar, "implied/.wh.gone")
        member(tar, ".wh.file-again")
        member(tar, "file-again", b"x")
        member(tar, ".wh.dir-again")
        directory(tar, "dir-again")
        directory(tar, "dir-before")
        member(tar, ".wh.dir-before")
        member(tar, "file-before", b"x")
        member(tar, ".wh.file-before")
        member(tar, ".wh.parent-again")
        member(tar, "parent-again/child", b"x")

    root = tree.build(build)
    for name in ("etc/gone", "implied/gone"):
        found = (root / name).lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0
    assert _opaque(root / "opaque")
    assert not _opaque(root / "etc")
    assert sorted(os.listdir(root / "opaque")) == ["new"]
    assert (root / "file-again").read_bytes() == b"x"
    assert (root / "file-before").read_bytes() == b"x"
    assert _opaque(root / "dir-again")
    assert _opaque(root / "dir-before")
    assert _opaque(root / "parent-again")
    assert not [name for name in os.listdir(root) if name.startswith(".wh")]


def test_opaque_root(tree: Tree) -> None:
    assert _opaque(tree.build(lambda tar: member(tar, ".wh..wh..opq")))


def test_files_with_several_names_as_aufs_kept_them(tree: Tree) -> None:
    def build(tar: tarfile.TarFile) -> None:
        directory(tar, ".wh..wh.plnk")
        member(tar, ".wh..wh.plnk/123.45", b"shared")
        member(tar, "a", type=tarfile.LNKTYPE, linkname=".wh..wh.plnk/123.45")
        member(tar, "b", type=tarfile.LNKTYPE, linkname=".wh..wh.plnk/123.45")

    root = tree.build(build)
    assert (root / "a").read_bytes() == b"shared"
    assert sorted(os.listdir(root)) == ["a", "b"]
