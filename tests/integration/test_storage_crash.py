"""SIGKILL before every step that changes the disk: what is there afterwards is the old state or the new one, and can be cleaned up."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import crash_child
import diskimages
import pytest

from nacre.storage.layers import LayerStore
from nacre.storage.probe import abilities
from nacre.storage.rootfs import RootfsStore
from nacre.testing.storage import archive, directory, layer, member, mounted

DRIVERS = [("erofs", ""), ("overlay", ""), ("fuse-overlayfs", ""), ("vfs", ""), ("btrfs", "btrfs")]
MOST_STEPS = 300


def at_every_step(action: Callable[[], object], check: Callable[[], object]) -> None:
    """Do `action` in a fork that dies before its first step, then before its second ...; `check` what each death has left."""
    for step in range(1, MOST_STEPS):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                crash_child.arm(step)
                action()
                sys.setprofile(None)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), f"failed at step {step}: {code}"
        check()
        if code == 0:
            assert step > 3, "nothing was tried"
            return
    raise AssertionError(f"more than {MOST_STEPS} steps")


def base(tar: tarfile.TarFile) -> None:
    directory(tar, "etc")
    member(tar, "etc/file", b"image")
    member(tar, "gone", b"x")


def top(tar: tarfile.TarFile) -> None:
    member(tar, ".wh.gone")
    member(tar, "new", b"top")


@pytest.mark.parametrize(("driver", "kind"), DRIVERS, ids=[driver for driver, _ in DRIVERS])
def test_killed_at_every_step(driver: str, kind: str, tmp_path: Path) -> None:
    if kind:
        diskimages.need(kind)
    disk = tmp_path / "disk"
    disk.mkdir()

    def action() -> str:
        if kind:
            diskimages.disk(kind, disk)
        root, run = str(disk / "root"), str(disk / "run")
        if (answer := abilities(root, run).of(driver)) != "ok":
            return answer
        work(root, run)
        return ""

    def work(root: str, run: str) -> None:
        layers = LayerStore(root, driver, run=run)
        rootfs = RootfsStore(root, layers)
        data = archive(base)
        diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
        number = 0

        def look() -> None:
            nonlocal number
            number += 1
            with mounted(rootfs.prepare("c", diff_ids), f"{tmp_path}/scratch-{number}") as seen:
                assert sorted(os.listdir(seen)) == ["etc", "new"]
                assert Path(f"{seen}/etc/file").read_bytes() == b"image"

        def check_layer() -> None:
            layers.sweep()
            assert [name for name in os.listdir(layers.path) if name.startswith(".")] == []
            if layers.has(diff_id):
                assert layers.size(diff_id) == 6
                layers.remove(diff_id)

        def check_prepared() -> None:
            look()
            rootfs.remove("c")
            assert os.listdir(f"{root}/containers") == []
            layers.prune(diff_ids)
            for shelf in (layers.path, f"{root}/stacks"):
                assert [name for name in (os.listdir(shelf) if os.path.isdir(shelf) else []) if name.startswith(".")] == []
            # Stacks are made at the first start only: let each death meet one that is not there.
            layers.prune(())
            for build in (base, top):
                layer(layers, build)

        def check_removed() -> None:
            rootfs.remove("c")
            assert os.listdir(f"{root}/containers") == []
            assert not os.path.isdir(f"{run}/fuse") or os.listdir(f"{run}/fuse") == []
            look()

        os.makedirs(layers.path, 0o700)
        at_every_step(lambda: layers.unpack(diff_id, io.BytesIO(data)), check_layer)
        diff_ids = (layer(layers, base), layer(layers, top))
        at_every_step(lambda: rootfs.prepare("c", diff_ids), check_prepared)
        look()
        at_every_step(lambda: rootfs.remove("c"), check_removed)

    diskimages.alone(action)
