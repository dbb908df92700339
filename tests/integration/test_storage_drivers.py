"""Storage drivers under whole containers: one store opened with several, each level, limits, a program that died."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diskimages
import pytest

import ocipack
from nacre.linux.run import check
from nacre.model.container import Level

Nacre = Callable[..., str]


@pytest.fixture
def nacre_(cli: Any, directories: Any, tmp_path: Path) -> Nacre:
    """`nacre_(DRIVER, "run", ...)` over a store of this test's own; its standard output, or with `code` its standard error."""

    def run(driver: str, *words: str, code: int = 0, run_directory: str = f"{directories.run}/drivers") -> str:
        environment = {"NACRE_ROOT": str(tmp_path / "disk/root"), "NACRE_RUN": run_directory, "NACRE_STORAGE_DRIVER": driver}
        done = cli(*words, environment=environment, code=code)
        return str(done.stderr if code else done.stdout)

    return run


@pytest.fixture
def loaded(layouts: Callable[[str], Path], nacre_: Nacre, tmp_path: Path) -> str:
    """Id of the test image, unpacked by the driver erofs."""
    ocipack.archive_layout(layouts("guestprog"), tmp_path / "image.tar")
    nacre_("erofs", "load", "-q", "-i", str(tmp_path / "image.tar"))
    return nacre_("erofs", "images", "-q").split()[0]


def shelves(tmp_path: Path) -> set[str]:
    """The forms in which layers are there."""
    return {name for path in (tmp_path / "disk/root/layers").iterdir() for name in os.listdir(path)}


def test_one_store_and_several_drivers(nacre_: Nacre, loaded: str, tmp_path: Path) -> None:
    """Layers are unpacked again from their blobs, without a registry; a container keeps the driver that it was first started with."""
    assert shelves(tmp_path) == {"layer.erofs", "layer.json"}
    for driver in ("erofs", "overlay", "fuse-overlayfs", "vfs"):
        nacre_(driver, "run", "--name", driver, "--network", "none", loaded, "write", "/mine", driver)
    assert shelves(tmp_path) == {"layer.erofs", "layer.json", "fs"}
    for other in ("vfs", "erofs"):
        for driver in ("erofs", "overlay", "fuse-overlayfs", "vfs"):
            nacre_(other, "cp", f"{driver}:/mine", str(tmp_path / "copy"))
            assert (tmp_path / "copy").read_text().strip() == driver
            kept = json.loads(nacre_(other, "inspect", driver))[0]["Driver"]
            assert kept == driver
    # What erofs and overlay write is the same: each may go on with the other's.
    nacre_("overlay", "start", "erofs")
    assert json.loads(nacre_("overlay", "inspect", "erofs"))[0]["Driver"] == "overlay"
    sizes = {name: json.loads(nacre_("erofs", "inspect", "-s", name))[0] for name in ("overlay", "fuse-overlayfs", "vfs")}
    for answer in sizes.values():
        assert 0 < answer["SizeRw"] < 1 << 16 < answer["SizeRootFs"]
    nacre_("erofs", "rm", "erofs", "overlay", "fuse-overlayfs", "vfs")
    assert os.listdir(tmp_path / "disk/root/containers") == []
    nacre_("erofs", "rmi", loaded)
    assert os.listdir(tmp_path / "disk/root/layers") == []


def test_btrfs(nacre_: Nacre, level: Level, layouts: Callable[[str], Path], directories: Any, tmp_path: Path) -> None:
    """Containers on a real Btrfs: snapshots with what they wrote in them; subvolumes that they made go with them."""
    diskimages.need("btrfs")
    ocipack.archive_layout(layouts("guestprog"), tmp_path / "image.tar")
    root = tmp_path / "disk/root"
    options = ("--isolation", level, "--network", "none")

    def action() -> None:
        diskimages.disk("btrfs", tmp_path / "disk", size=512 << 20)

        def run(*words: str, **rest: Any) -> str:
            return nacre_("btrfs", *words, run_directory=f"{directories.run}/btrfs", **rest)

        run("load", "-q", "-i", str(tmp_path / "image.tar"))
        image = run("images", "-q").split()[0]
        assert "Backing Filesystem" in run("info", "--format", "{{json .DriverStatus}}")
        assert run("run", "--rm", *options, image, "echo", "fine") == "fine\n"
        run("run", "-d", "--name", "box", *options, image, "sleep")
        run("exec", "box", "write", "/kept", "still here")
        if level is Level.PROCESS:
            [tree] = root.glob("containers/*/tree/root")
            assert tree.stat().st_ino == 256
            check(["btrfs", "-q", "subvolume", "create", str(tree / "nested")])
            (tree / "nested/file").write_text("x")
            assert "4kB" in run("ps", "-s") or "8.19kB" in run("ps", "-s")
            check(["btrfs", "quota", "enable", str(root)])
            run("create", "--storage-opt", "size=50m", *options, image, "echo")
            assert run("run", "--rm", "--userns", "private", *options, image, "cat", "/proc/self/uid_map").split()[0] == "0"
        run("restart", "-t", "0", "box")
        assert run("exec", "box", "cat", "/kept").strip() == "still here"
        run("rm", "-f", *run("ps", "-aq").split())
        assert os.listdir(root / "containers") == []
        run("rmi", image)
        assert os.listdir(root / "layers") == []
        assert level is Level.VM or os.listdir(root / "stacks") == []

    diskimages.alone(action)


@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_own_user_namespace(driver: str, nacre_: Nacre, loaded: str, tmp_path: Path) -> None:
    """Files of the image belong to the container's root, mount points that the image lacks are made, and what is written stays."""
    (tmp_path / "bound").mkdir()
    mounts = ("-v", f"{tmp_path}/bound:/deep/bound", "-v", "named:/some/volume", "--tmpfs", "/memory", "-v", "/etc/passwd:/etc/passwd:ro")
    options = ("--userns", "private", "--network", "none", *mounts)
    nacre_(driver, "run", "-d", "--name", "box", *options, loaded, "sleep")
    assert nacre_(driver, "exec", "box", "cat", "/proc/self/uid_map").split()[1] != "0"
    nacre_(driver, "exec", "box", "write", "/some/volume/file", "x")
    nacre_(driver, "exec", "box", "write", "/kept", "mine")
    nacre_(driver, "restart", "-t", "0", "box")
    assert nacre_(driver, "exec", "box", "cat", "/kept").strip() == "mine"
    tops = list((tmp_path / "disk/root/containers").glob("*/tree/root" if driver == "vfs" else "*/upper/upper"))
    written = (tops[0] / "kept").stat().st_uid
    assert tops[0].parent.stat().st_mode & 0o077 == 0
    assert (written == 0) == (driver == "vfs"), "a tree keeps the image's numbers, an upper directory has the namespace's"
    assert (tmp_path / "disk/root/volumes/named/_data/file").stat().st_uid == 0
    nacre_(driver, "rm", "-f", "box")


def test_size_limit_refused_and_at_level_vm(nacre_: Nacre, loaded: str, vm: Level) -> None:
    said = nacre_("erofs", "run", "--storage-opt", "size=100m", "--network", "none", loaded, "true", code=125)
    assert "cannot be limited here" in said
    assert "--isolation vm" in said
    assert nacre_("erofs", "ps", "-aq") == ""
    assert "too small" in nacre_("erofs", "run", "--storage-opt", "size=1m", "--isolation", "vm", loaded, "true", code=125)
    assert "'inodes' is not supported" in nacre_("erofs", "run", "--storage-opt", "inodes=5", loaded, "true", code=125)
    nacre_("erofs", "run", "-d", "--name", "box", "--isolation", "vm", "--storage-opt", "size=100m", "--network", "none", loaded, "sleep")
    [disk] = Path(json.loads(nacre_("erofs", "info", "--format", "{{json .DockerRootDir}}"))).glob("containers/*/upper.ext4")
    assert disk.stat().st_size == 100 << 20
    assert json.loads(nacre_("erofs", "inspect", "box"))[0]["HostConfig"]["StorageOpt"] == {"size": str(100 << 20)}
    nacre_("erofs", "rm", "-f", "box")


def test_fuse_program_that_was_killed(nacre_: Nacre, loaded: str, directories: Any, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """The container loses its files, and has them again after a restart; nothing is left when it is removed."""
    nacre_("fuse-overlayfs", "run", "-d", "--name", "box", "--network", "none", loaded, "sleep")
    nacre_("fuse-overlayfs", "exec", "box", "write", "/mine", "kept")
    root = str(tmp_path / "disk/root")

    def served() -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if words.startswith("fuse-overlayfs") and root in words:
                found.append(int(path.parent.name))
        return found

    [pid] = served()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not served())
    nacre_("fuse-overlayfs", "exec", "box", "cat", "/mine", code=125)
    nacre_("fuse-overlayfs", "restart", "-t", "0", "box")
    assert nacre_("fuse-overlayfs", "exec", "box", "cat", "/mine").strip() == "kept"
    said = nacre_("fuse-overlayfs", "run", "--userns", "private", "--network", "none", loaded, "true", code=125)
    assert "cannot be id-mapped" in said
    nacre_("fuse-overlayfs", "rm", "-f", *nacre_("fuse-overlayfs", "ps", "-aq").split())
    assert not served()
    assert os.listdir(f"{directories.run}/drivers/fuse") == []
