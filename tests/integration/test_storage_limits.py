"""Limits on what a container may write: quotas where the file system has them, refused where it has not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import diskimages
import pytest

from nacre.errors import HostError, InvalidArgument, NoSpace
from nacre.linux.run import check, run
from nacre.storage.layers import LayerStore
from nacre.storage.rootfs import RootfsStore
from nacre.testing.storage import layer, member, mounted

LIMIT = 8 << 20
PROJECT = 0x1000_0000


def stores(root: Path, driver: str) -> tuple[LayerStore, RootfsStore]:
    layers = LayerStore(str(root), driver, run=str(root / "run"))
    return layers, RootfsStore(str(root), layers)


def fill(path: str) -> int:
    """Write until nothing more is taken; the bytes that were."""
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < 8 * LIMIT:
                written += file.write(b"x" * (1 << 20))
                os.fsync(file.fileno())
    except OSError as error:
        assert error.errno in (errno.ENOSPC, errno.EDQUOT)
    return written


@pytest.mark.parametrize(
    ("driver", "kind", "options"),
    [("overlay", "xfs", "prjquota"), ("vfs", "xfs", "prjquota"), ("btrfs", "btrfs", "")],
)
def test_limit_is_kept(driver: str, kind: str, options: str, tmp_path: Path) -> None:
    diskimages.need(kind)
    if options:
        diskimages.need_project_quotas()
    disk = tmp_path / "disk"

    def action() -> None:
        diskimages.disk(kind, disk, options=options)
        if kind == "btrfs":
            check(["btrfs", "quota", "enable", str(disk)])
            check(["btrfs", "quota", "rescan", "-w", str(disk)])
        layers, rootfs = stores(disk / "root", driver)
        rootfs.check_size(LIMIT, disk=False)
        assert os.listdir(layers.path) == []
        image = layer(layers, lambda tar: member(tar, "file", b"image"))
        for number in (1, 2):
            made = rootfs.prepare(f"limited-{number}", (image,), size=LIMIT, project=PROJECT + number)
            with mounted(made, str(tmp_path / f"scratch-{number}")) as root:
                assert LIMIT // 2 < fill(f"{root}/filler") <= LIMIT
                os.unlink(f"{root}/filler")
                if driver != "btrfs":  # which frees space by and by
                    assert fill(f"{root}/filler") > LIMIT // 2
        with mounted(rootfs.prepare("unlimited", (image,)), str(tmp_path / "scratch-3")) as root:
            assert fill(f"{root}/filler") == 8 * LIMIT

    diskimages.alone(action)


@pytest.mark.parametrize(("driver", "kind"), [("overlay", "xfs"), ("vfs", "ext4"), ("btrfs", "btrfs")])
def test_limit_is_refused_with_the_way_out(driver: str, kind: str, tmp_path: Path) -> None:
    diskimages.need(kind)
    disk = tmp_path / "disk"

    def action() -> None:
        diskimages.disk(kind, disk)
        layers, rootfs = stores(disk / "root", driver)
        image = layer(layers, lambda tar: member(tar, "file", b"image"))
        actions: tuple[Callable[[], object], ...] = (
            lambda: rootfs.check_size(LIMIT, disk=False),
            lambda: rootfs.prepare("limited", (image,), size=LIMIT, project=PROJECT),
        )
        for refused in actions:
            with pytest.raises(HostError) as caught:
                refused()
            assert "cannot be limited here" in caught.value.message
            assert ("btrfs quota enable" if kind == "btrfs" else "prjquota") in caught.value.hint
        assert [name for name in os.listdir(layers.path) if name.startswith(".")] == []
        rootfs.remove("limited")
        assert os.listdir(disk / "root/containers") == []

    diskimages.alone(action)


def test_size_of_a_virtual_machines_disk(tmp_path: Path) -> None:
    layers, rootfs = stores(tmp_path, "overlay")
    image = layer(layers, lambda tar: member(tar, "file", b"image"))
    assert os.path.getsize(rootfs.prepare("machine", (image,), disk=True, size=64 << 20).disk) == 64 << 20
    with pytest.raises(InvalidArgument, match="too small"):
        rootfs.check_size(1 << 20, disk=True)


@pytest.mark.parametrize(("driver", "kind"), [("vfs", "ext4"), ("btrfs", "btrfs"), ("fuse-overlayfs", "ext4")])
def test_full_disk(driver: str, kind: str, tmp_path: Path) -> None:
    """Making a root file system on a disk that is full fails in words, leaves nothing, and works when there is space again."""
    diskimages.need(kind)
    disk = tmp_path / "disk"

    def action() -> None:
        diskimages.disk(kind, disk, size=160 << 20 if kind == "btrfs" else 48 << 20)
        layers, rootfs = stores(disk / "root", driver)
        image = layer(layers, lambda tar: [member(tar, f"file-{number}", os.urandom(1 << 20)) for number in range(16)])
        with open(disk / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(os.urandom(1 << 16))
                    if kind == "btrfs":
                        os.fsync(file.fileno())
            except OSError as error:
                assert error.errno == errno.ENOSPC
        if driver == "vfs":
            with pytest.raises(NoSpace):
                rootfs.prepare("full", (image,))
            assert os.listdir(disk / "root/containers/full") == []
        os.unlink(disk / "filler")
        check(["sync", "-f", str(disk)])
        made = rootfs.prepare("full", (image,))
        with mounted(made, str(tmp_path / "scratch")) as root:
            assert len(os.listdir(root)) == 16
        rootfs.remove("full")
        assert run(["ls", str(disk / "root/containers")]).stdout == b""

    diskimages.alone(action)
