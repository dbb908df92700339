"""Volumes: names, records, removal. Runs without root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nacre.errors import Conflict, InvalidArgument, NotFound
from nacre.storage.volumes import VolumeStore


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    return VolumeStore(str(tmp_path))


def test_create_get_list(volumes: VolumeStore) -> None:
    assert volumes.list() == []
    made = volumes.create("data", labels={"a": "b"})
    assert (made.name, made.labels, made.anonymous) == ("data", {"a": "b"}, False)
    assert made.created.endswith("Z")
    assert os.path.isdir(made.path)
    assert os.stat(made.path).st_mode & 0o777 == 0o755
    Path(made.path, "file").touch()
    assert volumes.create("data", labels={"other": "x"}) == made
    assert os.listdir(made.path) == ["file"]
    anonymous = volumes.create("0" * 64, anonymous=True)
    assert anonymous.anonymous
    assert volumes.list() == [anonymous, made]


@pytest.mark.parametrize("name", ["ab", "a.", "0_", "A-b.c_d", "x" * 255])
def test_good_names(volumes: VolumeStore, name: str) -> None:
    assert volumes.create(name).name == name
    volumes.remove(name, in_use=lambda _: [])
    assert os.listdir(volumes.path) == []


@pytest.mark.parametrize("name", ["", "a", ".a", "-a", "_a", "a/b", "../x", "a b", "a\n", "é1", "x" * 256, "a\0"])
def test_bad_names(volumes: VolumeStore, name: str) -> None:
    for action in (volumes.create, volumes.get):
        with pytest.raises(InvalidArgument):
            action(name)


def test_missing(volumes: VolumeStore) -> None:
    with pytest.raises(NotFound, match="no such volume: nothing"):
        volumes.get("nothing")
    with pytest.raises(NotFound):
        volumes.remove("nothing", in_use=lambda _: [])


def test_remove(volumes: VolumeStore) -> None:
    path = volumes.create("data").path
    Path(path, "sub").mkdir()
    with pytest.raises(Conflict, match="in use by web, db") as caught:
        volumes.remove("data", in_use=lambda name: ["web", "db"] if name == "data" else [])
    assert caught.value.hint == "nacre rm -f web db"
    volumes.remove("data", in_use=lambda _: [])
    assert os.listdir(volumes.path) == []


def test_interrupted_removal_is_completed_by_the_next(volumes: VolumeStore) -> None:
    volumes.create("one")
    volumes.create("two")
    os.rename(f"{volumes.path}/one", f"{volumes.path}/.removed-1")
    assert [volume.name for volume in volumes.list()] == ["two"]
    volumes.remove("two", in_use=lambda _: [])
    assert os.listdir(volumes.path) == []


def test_damaged_record_is_no_obstacle(volumes: VolumeStore) -> None:
    volumes.create("data")
    Path(volumes.path, "data", "volume.json").write_text("{half")
    assert volumes.get("data").labels == {}


def test_filling_only_volumes_of_this_store(volumes: VolumeStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        volumes.copy_up_from_layers((), "/x", str(tmp_path / "elsewhere" / "_data"))
