"""`nacre.linux.files`: confined opening, sparse copies, atomic writes, locks, removal of trees."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from nacre.errors import Denied, HostError, NoSpace
from nacre.linux.files import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_SYMLINKS,
    atomic_write,
    disk_usage,
    explain,
    locked,
    openat2,
    remove_tree,
    sparse_copy,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("inside")
    (tree / "up").symlink_to("../secret")
    (tree / "absolute").symlink_to("/sub/file")
    return tree


def _open(root: Path, path: str, resolve: int) -> str:
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with open(openat2(directory, path, os.O_RDONLY, resolve=resolve)) as file:
            return file.read()
    finally:
        os.close(directory)


def test_openat2_in_root_follows_links_inside(root: Path) -> None:
    assert _open(root, "absolute", RESOLVE_IN_ROOT) == "inside"
    assert _open(root, "../../sub/file", RESOLVE_IN_ROOT) == "inside"
    with pytest.raises(FileNotFoundError):
        _open(root, "up", RESOLVE_IN_ROOT)


@pytest.mark.parametrize("path", ["up", "absolute", "../secret", "/etc/passwd"])
def test_openat2_beneath_refuses_to_leave(root: Path, path: str) -> None:
    with pytest.raises(OSError) as caught:
        _open(root, path, RESOLVE_BENEATH)
    assert caught.value.errno == errno.EXDEV


def test_openat2_without_links(root: Path) -> None:
    with pytest.raises(OSError) as caught:
        _open(root, "absolute", RESOLVE_NO_SYMLINKS)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(ValueError, match="null byte"):
        _open(root, "a\0b", RESOLVE_IN_ROOT)


def test_openat2_descriptor_is_not_inherited(root: Path) -> None:
    directory = os.open(root, os.O_PATH)
    fd = openat2(directory, "sub", os.O_RDONLY)
    assert not os.get_inheritable(fd)
    os.close(fd)
    os.close(directory)


def test_sparse_copy_keeps_holes_and_content(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.seek(8 << 20)
        file.write(b"middle" * 1000)
        file.truncate(64 << 20)
    sparse_copy(str(source), str(tmp_path / "copy"))
    copy = tmp_path / "copy"
    assert copy.stat().st_size == 64 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    with open(copy, "rb") as file:
        file.seek(8 << 20)
        assert file.read(12) == b"middlemiddle"


def test_sparse_copy_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        sparse_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "b"


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(str(path), b"one", mode=0o640)
    atomic_write(str(path), b"two", fsync=False)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    (target / "x").touch()
    with pytest.raises(OSError):
        atomic_write(str(target), b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["directory"]


def test_lock_excludes_and_cleans_up(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with locked(path) as first, locked(path, wait=False) as second:
        assert first
        assert not second
    assert not os.path.exists(path)


def test_lock_hands_over_to_every_waiter(tmp_path: Path) -> None:
    path, inside, most = str(tmp_path / "lock"), [0], [0]

    def work() -> None:
        for _ in range(50):
            with locked(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_remove_tree_stays_inside(root: Path) -> None:
    (root / "directory-link").symlink_to(root.parent)
    remove_tree(str(root))
    assert not root.exists()
    assert (root.parent / "secret").read_text() == "outside"
    remove_tree(str(root))


def test_remove_tree_removes_a_file_or_a_link_itself(root: Path) -> None:
    remove_tree(str(root / "up"))
    assert (root.parent / "secret").exists()
    directory = os.open(root, os.O_PATH)
    remove_tree("absolute", directory=directory)
    os.close(directory)
    assert not os.path.lexists(root / "absolute")
    assert (root / "sub/file").exists()


def test_remove_tree_deeper_than_any_path(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_PATH)
    for _ in range(1500):
        os.mkdir("a-directory", dir_fd=fd)
        inner = os.open("a-directory", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    remove_tree(str(top))
    assert not top.exists()


def test_remove_tree_without_permissions(tmp_path: Path) -> None:
    closed = tmp_path / "top" / "closed"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0)
    remove_tree(str(tmp_path / "top"))
    assert not (tmp_path / "top").exists()


def test_disk_usage_counts_blocks_and_links_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    empty = disk_usage(str(tree))
    (tree / "data").write_bytes(os.urandom(1 << 20))
    os.link(tree / "data", tree / "again")
    with open(tree / "hole", "wb") as file:
        file.truncate(1 << 30)
    assert 1 << 20 <= disk_usage(str(tree)) - empty < 2 << 20
    assert disk_usage(str(tmp_path / "missing")) == 0


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, Denied), (errno.EROFS, HostError), (errno.EIO, HostError)],
)
def test_explained_errors(number: int, kind: type[HostError]) -> None:
    error = explain(OSError(number, "x", "/some/file"), "unpack layer abc")
    assert type(error) is kind
    assert "cannot unpack layer abc" in error.message
    assert error.details == "/some/file"
