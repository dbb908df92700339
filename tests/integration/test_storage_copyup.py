"""Volumes get the image's content at their first use, whatever the layers look like."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from nacre.errors import NoSpace
from nacre.linux.run import check, run
from nacre.model.container import LayerMount
from nacre.storage import volumes as volumes_module
from nacre.storage.layers import LayerStore
from nacre.storage.volumes import VolumeStore
from nacre.testing.storage import CAPABILITY, TIME, describe_tree, directory, layer, member


def base(tar: tarfile.TarFile) -> None:
    directory(tar, "data", 0o1770, uid=33, gid=44)
    member(tar, "data/kept", b"low", uid=5, xattrs={"user.a": b"1"})
    member(tar, "data/tool", b"x", mode=0o4755, xattrs={"security.capability": CAPABILITY})
    member(tar, "data/deleted", b"low")
    member(tar, "data/replaced", b"low")
    member(tar, "data/hard", type=tarfile.LNKTYPE, linkname="data/kept")
    member(tar, "data/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    directory(tar, "data/sub", 0o700, uid=7)
    member(tar, "data/sub/hole", bytes(1 << 20) + b"end")
    directory(tar, "empty", 0o711, uid=3)
    member(tar, "file", b"x")
    member(tar, "way", type=tarfile.SYMTYPE, linkname="/data/sub")
    member(tar, "out", type=tarfile.SYMTYPE, linkname="../../../../../../etc")


def top(tar: tarfile.TarFile) -> None:
    member(tar, "data/.wh.deleted")
    member(tar, "data/replaced", b"top")


@pytest.fixture(params=["erofs", "overlay", "vfs"])
def layers(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[LayerMount, ...]:
    store = LayerStore(str(tmp_path), request.param)
    if store.driver != request.param:
        pytest.skip(store.choice.reason)
    return tuple(store.get(layer(store, build)) for build in (base, top))


def test_content_and_attributes(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    volumes = VolumeStore(str(tmp_path))
    volume = volumes.create("data")
    assert volumes.copy_up_from_layers(layers, "/data", volume.path)
    seen = describe_tree(volume.path)
    assert sorted(path for path in seen if path) == ["hard", "kept", "link", "replaced", "sub", "sub/hole", "tool"]
    assert seen["kept"][1] == 5
    assert seen["kept"][3] == TIME * 10**9
    assert seen["kept"][6] == ("hard", "kept")
    assert dict(seen["kept"][5]) == {"user.a": b"1"}
    assert seen["tool"][0] == "-rwsr-xr-x"
    assert dict(seen["tool"][5]) == {"security.capability": CAPABILITY}
    assert Path(volume.path, "replaced").read_bytes() == b"top"
    assert seen["link"][4] == "/etc/passwd"
    assert seen["sub"][:2] == ("drwx------", 7)
    assert os.stat(f"{volume.path}/sub/hole").st_blocks * 512 < 1 << 18
    assert os.listdir(tmp_path / "volumes/data") == ["volume.json", "_data"] or len(os.listdir(tmp_path / "volumes/data")) == 2
    # The topmost layer does not say what /data is like: then it has the ordinary attributes, as in the container.
    assert seen[""][:3] in (("drwxr-xr-x", 0, 0), ("drwxrwx--T", 33, 44))


def test_attributes_of_the_directory_itself(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    volumes = VolumeStore(str(tmp_path))
    volume = volumes.create("data")
    assert volumes.copy_up_from_layers(layers[:1], "data", volume.path)
    assert describe_tree(volume.path)[""][:3] == ("drwxrwx--T", 33, 44)
    empty = volumes.create("empty")
    assert volumes.copy_up_from_layers(layers[:1], "/empty/", empty.path)
    assert describe_tree(empty.path)[""][:3] == ("drwx--x--x", 3, 0)


def test_links_are_followed_inside_the_image(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    volumes = VolumeStore(str(tmp_path))
    volume = volumes.create("way")
    assert volumes.copy_up_from_layers(layers, "/way", volume.path)
    assert os.listdir(volume.path) == ["hole"]


@pytest.mark.parametrize("path", ["/missing", "/file", "/file/x", "/out"])
def test_no_such_directory(tmp_path: Path, layers: tuple[LayerMount, ...], path: str) -> None:
    volumes = VolumeStore(str(tmp_path))
    volume = volumes.create("none")
    assert not volumes.copy_up_from_layers(layers, path, volume.path)
    assert os.listdir(volume.path) == []
    assert len(os.listdir(tmp_path / "volumes/none")) == 2


def test_volume_with_content_is_left_alone(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    volumes = VolumeStore(str(tmp_path))
    volume = volumes.create("mine")
    Path(volume.path, "own").touch()
    assert not volumes.copy_up_from_layers(layers, "/data", volume.path)
    assert os.listdir(volume.path) == ["own"]


def test_nothing_stays_mounted(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    volumes = VolumeStore(str(tmp_path))
    volumes.copy_up_from_layers(layers, "/data", volumes.create("data").path)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_interrupted_copy_is_completed_or_started_again(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    volumes = VolumeStore(str(tmp_path))
    volume = volumes.create("data")
    place = tmp_path / "volumes/data"
    # Killed while copying.
    (place / ".filling").mkdir()
    (place / ".filling/half").touch()
    assert volumes.copy_up_from_layers(layers, "/data", volume.path)
    assert not Path(volume.path, "half").exists()
    # Killed while moving.
    (place / ".filled").mkdir(0o750)
    shutil.move(f"{volume.path}/kept", place / ".filled")
    assert volumes.create("data") == volume
    assert Path(volume.path, "kept").exists()
    assert not (place / ".filled").exists()


def test_full_disk(tmp_path: Path, layers: tuple[LayerMount, ...]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    check(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=20", "tmpfs", str(disk)])
    try:
        volumes = VolumeStore(str(disk))
        volume = volumes.create("data")
        with pytest.raises(NoSpace):
            volumes.copy_up_from_layers(layers, "/data", volume.path)
        assert os.listdir(volume.path) == []
        assert len(os.listdir(disk / "volumes/data")) == 2
    finally:
        run(["umount", "-l", str(disk)])


def test_helper_does_not_depend_on_the_caller(tmp_path: Path, layers: tuple[LayerMount, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the working directory nor PYTHON* variables matter."""
    monkeypatch.chdir("/")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    assert volumes_module.__name__ in sys.modules
    volumes = VolumeStore(str(tmp_path))
    assert volumes.copy_up_from_layers(layers, "/data", volumes.create("data").path)
