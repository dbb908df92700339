"""Enumerating changes, on plain directories. Runs without root: whiteouts in the form that needs none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nacre.errors import InvalidArgument, Unsupported
from nacre.model.container import Rootfs
from nacre.storage.changes import FUSE, UPPER, WHOLE, changes, compare, own_size
from nacre.storage.snapshots import chain_ids
from nacre.storage.volume_mounts import check_options, parse_flags


def tree(top: Path, *paths: str) -> str:
    """A directory with files (their name is their content) and, with a slash at the end, directories; all of one time."""
    top.mkdir()
    for path in paths:
        file = top / path
        if path.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path)
            os.utime(file, ns=(0, 0))
    return str(top)


def shown(layers: list[str], top: str, form: str) -> list[str]:
    return [f"{change.kind} {os.fsdecode(change.path)}" for change in compare(layers, top, form)]


def test_whole_trees(tmp_path: Path) -> None:
    base = tree(tmp_path / "base", "etc/hosts", "etc/sub/file", "gone/a", "gone/b", "same", "mode", "becomes-file/x", "becomes-dir")
    over = tree(tmp_path / "over", "etc/added-by-image", "same")
    top = tree(
        tmp_path / "top", "etc/hosts", "etc/sub/file", "etc/added-by-image", "etc/mine", "same", "mode", "becomes-file", "becomes-dir/y"
    )
    (tmp_path / "top/etc/sub/file").write_text("changed")
    (tmp_path / "top/mode").chmod(0o700)
    assert shown([base, over], top, WHOLE) == [
        "C becomes-dir", "A becomes-dir/y", "C becomes-file", "C etc", "A etc/mine", "C etc/sub", "C etc/sub/file", "D gone", "C mode",
    ]  # fmt: skip
    assert shown([base, over], tree(tmp_path / "empty"), WHOLE)[0] == "D becomes-dir"
    assert shown([], over, WHOLE) == ["A etc", "A etc/added-by-image", "A same"]


def test_upper_directories(tmp_path: Path) -> None:
    base = tree(tmp_path / "base", "etc/hosts", "etc/sub/file", "gone", "again/old")
    top = tree(
        tmp_path / "top", "etc/.wh.hosts", "etc/new", ".wh.gone", ".wh.never-was", "again/.wh..wh..opq", "again/new", "a/.wh..wh..opq"
    )
    assert shown([base], top, FUSE) == ["A a", "C again", "A again/new", "D again/old", "C etc", "D etc/hosts", "A etc/new", "D gone"]
    # Under the kernel's overlayfs these are files like others.
    assert "A etc/.wh.hosts" in shown([base], top, UPPER)
    assert "D gone" not in shown([base], top, UPPER)


def test_names_sort_by_their_parts(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", "a/b", "a-b", "a.b")
    assert shown([], top, WHOLE) == ["A a", "A a/b", "A a-b", "A a.b"]


def test_disks_are_for_their_guests(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="guest"):
        changes(Rootfs(driver="erofs", disk="/disk"), str(tmp_path))


def test_plain_directories_have_no_image(tmp_path: Path) -> None:
    rootfs = Rootfs(driver="directory", tree=tree(tmp_path / "top", "file"))
    assert own_size(rootfs) == own_size(Rootfs(driver="")) == 0
    with pytest.raises(Unsupported, match="no image"):
        changes(rootfs, "")


def test_chain_ids() -> None:
    """OCI image specification, config.md: the first is the layer's own, then digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln))."""
    first, second = (f"sha256:{digit * 64}" for digit in "ab")
    both = hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert chain_ids((first, second)) == ["a" * 64, both]
    assert chain_ids((first, second, first))[2] == hashlib.sha256(f"sha256:{both} {first}".encode()).hexdigest()
    assert len(chain_ids(())) == 1


def test_options_of_volumes() -> None:
    assert parse_flags("") == (0, "")
    assert parse_flags("ro,nosuid,size=1m,mode=700,rw") == (2, "size=1m,mode=700")
    assert parse_flags("bind,ro")[0] == 4096 | 1
    check_options({})
    check_options({"type": "nfs", "device": ":/export", "o": "addr=192.0.2.1"})
    for options, message in (
        ({"size": "1g"}, "size"),
        ({"type": "tmpfs"}, "device"),
        ({"device": "tmpfs"}, "type"),
        ({"type": "none", "device": "here", "o": "bind"}, "absolute"),
        ({"typ": "x"}, "'typ'"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            check_options(options)
