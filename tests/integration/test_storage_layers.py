"""Layers on a real disk: the same tree as GNU tar makes, bombs, full disks, killed and racing unpackers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nacre.errors import BadContent, NoSpace
from nacre.linux.run import check, run
from nacre.storage.layers import LayerStore
from nacre.storage.rootfs import RootfsStore
from nacre.storage.tar import Limits
from nacre.testing.storage import CAPABILITY, archive, describe_tree, directory, layer, member, mounted

DRIVERS = ("erofs", "overlay")


def stores(path: Path, driver: str) -> tuple[LayerStore, RootfsStore]:
    layers = LayerStore(str(path), driver)
    if driver == "erofs" and layers.driver != driver:
        pytest.skip(layers.choice.reason)
    return layers, RootfsStore(str(path), layers)


def make_tree(top: Path) -> None:
    """A tree with one of everything."""
    (top / "d/e").mkdir(parents=True)
    (top / "d/file").write_bytes(os.urandom(100_000))
    (top / "d/script").write_text("#!/bin/sh\n")
    (top / "d/script").chmod(0o6755)
    os.chown(top / "d/script", 1000, 50, follow_symlinks=False)
    (top / "d/script").chmod(0o6755)
    os.link(top / "d/file", top / "d/e/hard")
    (top / "link").symlink_to("d/file")
    os.lchown(top / "link", 5, 6)
    (top / ("n" * 255)).write_text("long name")
    long = top / "/".join(["p" * 100] * 20)
    long.mkdir(parents=True)
    (long / "deep").write_text("deep")
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mknod(top / "loop", 0o060660, os.makedev(7, 300))
    os.mkfifo(top / "pipe")
    with open(top / "sparse", "wb") as file:
        file.seek(10 << 20)
        file.write(b"x")
        file.truncate(64 << 20)
    (top / "ping").write_bytes(b"\x7fELF")
    os.setxattr(top / "ping", "security.capability", CAPABILITY)
    os.setxattr(top / "d", "user.on-directory", b"yes")
    os.setxattr(top / "d/file", "user.on-file", bytes(range(256)))
    os.setxattr(top / "d/file", "trusted.note", b"kept")
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o3777)
    for number in range(2000):
        (top / "d/e" / f"{number:04}").write_bytes(b"." * number)
    os.utime(top / "d", ns=(1, 1_000_000_000_123_456_789))
    os.utime(top / "link", ns=(1, 999_999_999_000_000_001), follow_symlinks=False)


@pytest.mark.parametrize("format", ["posix", "gnu"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_same_tree_as_gnu_tar(driver: str, format: str, tmp_path: Path) -> None:
    layers, rootfs = stores(tmp_path / "root", driver)
    source, expected = tmp_path / "source", tmp_path / "expected"
    source.mkdir()
    expected.mkdir()
    make_tree(source)
    attributes = ["--xattrs", "--xattrs-include=*"] if format == "posix" else []
    check(["tar", "-C", str(source), f"--format={format}", *attributes, "--sparse", "--numeric-owner", "-cf", str(tmp_path / "tar"), "."])
    check(["tar", "-C", str(expected), *attributes, "--numeric-owner", "-xpf", str(tmp_path / "tar")])
    diff_id = f"sha256:{hashlib.sha256((tmp_path / 'tar').read_bytes()).hexdigest()}"
    with open(tmp_path / "tar", "rb", buffering=0) as file:
        layers.unpack(diff_id, file)
    scratch = tmp_path / "scratch"
    with mounted(rootfs.prepare("c", (diff_id,)), str(scratch)) as root:
        found, wanted = describe_tree(root), describe_tree(str(expected))
        assert found.pop("")[:3] == wanted.pop("")[:3]  # the upper has a time of its own
        assert found.keys() == wanted.keys()
        assert [path for path in found if found[path] != wanted[path]] == []
        assert os.lstat(f"{root}/d/file").st_nlink == 2
        assert len(found) > 2000


@pytest.mark.parametrize("driver", DRIVERS)
def test_same_tree_for_a_real_distribution(driver: str, tmp_path: Path) -> None:
    """Parts of this host's own system, as a layer."""
    layers, rootfs = stores(tmp_path / "root", driver)
    parts = ["usr/share/perl5", "usr/lib/python3", "usr/sbin", "usr/share/zoneinfo"]
    present = [part for part in parts if os.path.isdir(f"/{part}")]
    check(["tar", "-C", "/", "--format=posix", "--xattrs", "--numeric-owner", "--one-file-system", "-cf", str(tmp_path / "tar"), *present])
    expected = tmp_path / "expected"
    expected.mkdir()
    check(["tar", "-C", str(expected), "--xattrs", "--numeric-owner", "-xpf", str(tmp_path / "tar")])
    diff_id = f"sha256:{hashlib.sha256((tmp_path / 'tar').read_bytes()).hexdigest()}"
    with open(tmp_path / "tar", "rb", buffering=0) as file:
        layers.unpack(diff_id, file)
    with mounted(rootfs.prepare("c", (diff_id,)), str(tmp_path / "scratch")) as root:
        found, wanted = describe_tree(root), describe_tree(str(expected))
        assert found.keys() == wanted.keys()
        implied = {"", "usr", "usr/share", "usr/lib"}
        assert [path for path in found if path not in implied and found[path] != wanted[path]] == []


class Repeated:
    """An archive with one large file whose content is made on the fly."""

    def __init__(self, size: int, pattern: bytes) -> None:
        info = tarfile.TarInfo("large")
        info.size = size
        self._head = info.tobuf()
        self._left, self._pattern = size, pattern * (1 << 20)

    def read(self, size: int, /) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        count = min(size, self._left)
        self._left -= count
        return self._pattern[:count]


DIFF_ID = f"sha256:{'5' * 64}"


@pytest.mark.parametrize("driver", DRIVERS)
def test_gibibyte_of_zeros_occupies_nothing(driver: str, tmp_path: Path) -> None:
    layers, rootfs = stores(tmp_path / "root", driver)
    assert layers.unpack(DIFF_ID, Repeated(1 << 30, b"\0")) == 1 << 30
    assert int(check(["du", "-sk", layers.path]).split()[0]) < 1024
    with mounted(rootfs.prepare("c", (DIFF_ID,)), str(tmp_path / "scratch")) as root:
        assert os.stat(f"{root}/large").st_size == 1 << 30
        with open(f"{root}/large", "rb") as file:
            file.seek((1 << 30) - 100)
            assert file.read() == bytes(100)
        # A container that changes one byte does not get a gibibyte to keep either.
        with open(f"{root}/large", "r+b") as file:
            file.write(b"x")
    assert rootfs.usage("c") < 1 << 20


@pytest.mark.parametrize("driver", DRIVERS)
def test_bomb_beyond_the_limit(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, _ = stores(tmp_path / "root", driver)
    monkeypatch.setenv("NACRE_LAYER_BYTES", str(10 << 20))
    with pytest.raises(BadContent, match="more than 10485760 bytes"):
        layers.unpack(DIFF_ID, Repeated(1 << 40, b"\0"))
    assert os.listdir(layers.path) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_device_bomb(driver: str, tmp_path: Path) -> None:
    """Devices arrive as nodes that nobody opened, and in bounded number."""
    root = tmp_path / "root"
    layers = LayerStore(str(root), driver, limits=Limits(entries=1000))

    def build(tar: tarfile.TarFile, count: int) -> None:
        for number in range(count):
            member(tar, f"d{number}", type=tarfile.BLKTYPE, devmajor=number % 4000, devminor=number, mode=0o666)

    diff_id = layer(layers, lambda tar: build(tar, 1000))
    with mounted(RootfsStore(str(root), layers).prepare("c", (diff_id,)), str(tmp_path / "scratch")) as seen:
        assert os.lstat(f"{seen}/d999").st_rdev == os.makedev(999, 999)
    with pytest.raises(BadContent, match="more than 1000 entries"):
        layer(layers, lambda tar: build(tar, 1001))


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    with open(path.with_suffix(".img"), "wb") as file:
        file.truncate(size)
    check(["mkfs.ext4", "-q", "-F", "-m", "0", str(path.with_suffix(".img"))])
    path.mkdir()
    check(["mount", "-o", "loop", str(path.with_suffix(".img")), str(path)])
    try:
        yield path
    finally:
        if run(["umount", str(path)]).code:
            check(["umount", "-l", str(path)])


@pytest.mark.parametrize("driver", DRIVERS)
def test_full_disk(driver: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        layers, rootfs = stores(disk / "root", driver)
        diff_id = layer(layers, lambda tar: member(tar, "small", b"x"))
        before = os.statvfs(disk).f_bavail
        with pytest.raises(NoSpace) as caught:
            layers.unpack(DIFF_ID, Repeated(100 << 20, b"x"))
        assert "unpack layer 555555555555" in caught.value.message
        assert not layers.has(DIFF_ID)
        assert layers.list() == [diff_id]
        assert [name for name in os.listdir(layers.path) if name.startswith(".")] == []
        check(["sync", "-f", str(disk)])
        assert os.statvfs(disk).f_bavail >= before - 64
        with open(disk / "filler", "wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)
                file.flush()
        with pytest.raises(NoSpace):
            rootfs.prepare("c", (diff_id,), disk=True, size=1 << 30)
        (disk / "filler").unlink()
        rootfs.prepare("c", (diff_id,), disk=True, size=1 << 30)


def test_many_inodes_on_a_disk_that_has_few(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        layers, _ = stores(disk / "root", "overlay")
        with pytest.raises(NoSpace):
            layer(layers, lambda tar: [directory(tar, f"{number}") for number in range(20_000)])
        assert os.listdir(layers.path) == []


UNPACKER = """
import sys
sys.path.insert(0, sys.argv[1])
from nacre.storage.layers import LayerStore
class Slow:
    def __init__(self):
        self.file = sys.stdin.buffer.raw
    def read(self, size, /):
        print("reading", flush=True)
        return self.file.read(size)
LayerStore(sys.argv[2], sys.argv[3]).unpack(sys.argv[4], Slow())
"""


def unpacker(root: Path, driver: str) -> subprocess.Popen[bytes]:
    source = os.path.dirname(os.path.dirname(sys.modules["nacre"].__file__ or ""))
    argv = [sys.executable, "-c", UNPACKER, source, str(root), driver, DIFF_ID]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("driver", DRIVERS)
def test_killed_unpacker_leaves_nothing(driver: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    layers, _ = stores(root, driver)
    data = archive(lambda tar: [member(tar, f"f{number}", b"x" * 100_000) for number in range(20)])
    with unpacker(root, driver) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(data[:1_500_000])
        process.stdin.flush()
        for _ in range(4):
            process.stdout.readline()
        layers.sweep()
        alive = [name for name in os.listdir(layers.path) if name.startswith(".tmp-")]
        assert len(alive) == 1, "the sweeper took away what a living process works on"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not layers.has(DIFF_ID)
    assert [name for name in os.listdir(layers.path) if name.startswith(".tmp-")] == alive
    layers.sweep()
    assert os.listdir(layers.path) == []
    assert layers.unpack(DIFF_ID, io.BytesIO(data)) == 2_000_000


@pytest.mark.parametrize("driver", DRIVERS)
def test_second_unpacker_waits_for_the_first(driver: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    layers, _ = stores(root, driver)
    data = archive(lambda tar: member(tar, "f", b"x" * 1000))
    with unpacker(root, driver) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        sizes: list[int] = []
        thread = threading.Thread(target=lambda: sizes.append(layers.unpack(DIFF_ID, io.BytesIO(b"not read"))))
        thread.start()
        process.stdin.write(data)
        process.stdin.close()
        thread.join()
        assert process.wait() == 0
        assert sizes == [1000]


@pytest.mark.parametrize("driver", DRIVERS)
def test_second_unpacker_takes_over_when_the_first_fails(driver: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    layers, _ = stores(root, driver)
    data = archive(lambda tar: member(tar, "f", b"x" * 1000))
    with unpacker(root, driver) as process:
        assert process.stdout
        process.stdout.readline()
        sizes: list[int] = []
        thread = threading.Thread(target=lambda: sizes.append(layers.unpack(DIFF_ID, io.BytesIO(data))))
        thread.start()
        process.send_signal(signal.SIGKILL)
        thread.join()
        assert sizes == [1000]


def test_many_threads_unpack_many_layers(tmp_path: Path) -> None:
    layers, _ = stores(tmp_path / "root", "erofs")
    archives = [archive(lambda tar, n=number: member(tar, f"f{n}", b"x" * n)) for number in range(10)]  # type: ignore[misc]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number, data in enumerate(archives):
                assert layers.unpack(f"sha256:{number:064x}", io.BytesIO(data)) == number
                layers.sweep()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(layers.list()) == 10


def test_driver_may_change(tmp_path: Path) -> None:
    """Layers that another driver cannot use are unpacked once more beside what is there."""
    data = archive(lambda tar: member(tar, "f", b"x"))
    erofs, _ = stores(tmp_path, "erofs")
    erofs.unpack(DIFF_ID, io.BytesIO(data))
    plain, rootfs = stores(tmp_path, "overlay")
    assert not plain.has(DIFF_ID)
    plain.unpack(DIFF_ID, io.BytesIO(data))
    assert plain.get(DIFF_ID).format == "directory"
    assert erofs.get(DIFF_ID).format == "erofs"
    os.unlink(erofs.get(DIFF_ID).path)
    assert erofs.get(DIFF_ID).format == "directory"
    assert rootfs.prepare("vm", (DIFF_ID,), disk=True, size=64 << 20).layers[0].format == "erofs"
    assert erofs.get(DIFF_ID).format == "erofs"
    assert plain.get(DIFF_ID).format == "directory"


def test_compressed_images(tmp_path: Path) -> None:
    if run(["sh", "-c", "command -v mkfs.erofs"]).code:
        pytest.skip("no mkfs.erofs; run: apt-get install erofs-utils")
    layers = LayerStore(str(tmp_path), "erofs", compression="lz4hc")
    diff_id = layer(layers, lambda tar: member(tar, "f", b"compress me " * 100_000))
    assert os.path.getsize(layers.get(diff_id).path) < 400_000
    with mounted(RootfsStore(str(tmp_path), layers).prepare("c", (diff_id,)), str(tmp_path / "scratch")) as root:
        assert Path(f"{root}/f").read_bytes() == b"compress me " * 100_000


def test_layers_are_private(tmp_path: Path) -> None:
    layers, rootfs = stores(tmp_path, "overlay")
    diff_id = layer(layers, lambda tar: member(tar, "su", b"x", mode=0o4755))
    rootfs.prepare("c", (diff_id,))
    assert os.stat(layers.path).st_mode & 0o077 == 0
    assert os.stat(tmp_path / "containers/c/upper").st_mode & 0o077 == 0


def test_kernel_agrees_about_images(tmp_path: Path) -> None:
    """The checker of erofs-utils finds nothing, on images with every layout."""
    if run(["sh", "-c", "command -v fsck.erofs"]).code:
        pytest.skip("no fsck.erofs; run: apt-get install erofs-utils")
    layers, _ = stores(tmp_path, "erofs")

    def build(tar: tarfile.TarFile) -> None:
        for size in (0, 1, 100, 4032, 4033, 4096, 5000, 100_000):
            member(tar, f"f{size}", b"x" * size, xattrs={"user.size": b"%d" % size})
        for number in range(3000):
            member(tar, f"many/{number}", b"y")
        member(tar, "link", type=tarfile.SYMTYPE, linkname="t" * 4095)
        member(tar, "holes", bytes(1 << 20) + b"x" * 100_000 + bytes(1 << 20))

    result = run(["fsck.erofs", "--extract", layers.get(layer(layers, build)).path])
    assert result.code == 0, result.stderr
