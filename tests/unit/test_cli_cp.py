"""Copying: Docker's rules for what goes where, and archives that want to go elsewhere."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacre.cli.commands import cp
from nacre.cli.commands.cp import Place, parse_place
from nacre.cli.context import Context
from nacre.cli.flags import UsageError
from nacre.cli.tarstream import Packed, Unpacked, copy
from nacre.errors import BadContent, InvalidArgument, NacreError, NotFound


class FakeContainer:
    """A container whose files are a directory of this host; archives are made and taken as stem does."""

    name = "box"

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def stat_path(self, path: str) -> dict[str, Any]:
        try:
            status = os.lstat(self._path(path))
        except OSError as error:
            raise NotFound(f"Could not find the file {path} in container box") from error
        link = os.readlink(self._path(path)) if stat.S_ISLNK(status.st_mode) else ""
        return {"name": os.path.basename(path), "mode": status.st_mode, "size": status.st_size, "mtime": 0.0, "linkTarget": link}

    def get_archive(self, path: str) -> Any:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(self._path(path), arcname=os.path.basename(path) or ".")
        buffer.seek(0)
        return buffer

    def put_archive(self, path: str, stream: Any) -> None:
        with tarfile.open(fileobj=io.BytesIO(stream.read(-1)), mode="r:") as tar:
            # Python 3.11 got filters in its fourth release only; without any, everything is trusted as well.
            options: Any = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
            tar.extractall(self._path(path), **options)


class FakeEngine:
    def __init__(self, container: FakeContainer) -> None:
        self.containers = self
        self._container = container

    def get(self, name: str) -> FakeContainer:
        assert name == "box"
        return self._container

    def close(self) -> None:
        """Nothing to close."""


Copy = Callable[..., int]


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    root = tmp_path / "inside"
    (root / "etc/conf.d").mkdir(parents=True)
    (root / "etc/conf.d/a").write_text("a")
    (root / "etc/hosts").write_text("hosts")
    (root / "link").symlink_to("/etc/conf.d")
    (root / "loop").symlink_to("loop")
    return root


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "outside"
    (root / "src/sub").mkdir(parents=True)
    (root / "src/sub/b").write_text("b")
    (root / "dir").mkdir()
    (root / "file").write_text("file")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def copied(inside: Path, outside: Path) -> Copy:
    """`copied("box:/etc/hosts", ".")`."""

    def run(*words: str) -> int:
        args = cp.COMMANDS["cp"].parse("cp", words)
        assert args is not None
        return cp.run(Context(engine=FakeEngine(FakeContainer(inside))), args)  # type: ignore[arg-type]

    return run


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_places() -> None:
    assert parse_place("box:/a") == Place("box", "/a")
    assert parse_place("box:a") == Place("box", "/a")
    assert parse_place("/a:b") == Place("", "/a:b")
    assert parse_place("./a:b") == Place("", "./a:b")
    assert parse_place("a") == Place("", "a")
    assert parse_place("-") == Place("", "-")
    with pytest.raises(UsageError):
        parse_place("box:")


def test_which_sides_there_must_be(copied: Copy) -> None:
    with pytest.raises(UsageError, match="between containers"):
        copied("box:/a", "box:/b")
    with pytest.raises(UsageError, match="at least one container"):
        copied("a", "b")


# ---- out of a container


def test_a_file_into_a_directory_or_under_a_new_name(copied: Copy, outside: Path) -> None:
    copied("box:/etc/hosts", ".")
    copied("box:/etc/hosts", "dir/")
    copied("box:/etc/hosts", "renamed")
    assert [(outside / name).read_text() for name in ("hosts", "dir/hosts", "renamed")] == ["hosts"] * 3


def test_a_file_over_a_file_and_through_a_link(copied: Copy, outside: Path) -> None:
    (outside / "alias").symlink_to("file")
    copied("box:/etc/hosts", "alias")
    assert (outside / "alias").is_symlink()
    assert (outside / "file").read_text() == "hosts"


def test_a_directory_keeps_its_name_in_one_that_exists(copied: Copy, outside: Path) -> None:
    copied("box:/etc", "dir")
    assert tree(outside / "dir") == ["etc", "etc/conf.d", "etc/conf.d/a", "etc/hosts"]


def test_a_directory_becomes_one_that_does_not_exist(copied: Copy, outside: Path) -> None:
    copied("box:/etc", "new")
    assert tree(outside / "new") == ["conf.d", "conf.d/a", "hosts"]
    copied("box:/etc/.", "newer")
    assert tree(outside / "newer") == ["conf.d", "conf.d/a", "hosts"]


def test_only_the_contents(copied: Copy, outside: Path) -> None:
    copied("box:/etc/.", "dir")
    assert tree(outside / "dir") == ["conf.d", "conf.d/a", "hosts"]


def test_everything(copied: Copy, outside: Path) -> None:
    copied("box:/", "dir")
    assert tree(outside / "dir") == ["etc", "etc/conf.d", "etc/conf.d/a", "etc/hosts", "link", "loop"]


def test_links_in_the_container(copied: Copy, outside: Path) -> None:
    copied("box:/link", "dir")
    assert os.readlink(outside / "dir/link") == "/etc/conf.d"
    copied("-L", "box:/link", "followed")
    assert tree(outside / "followed") == ["a"]
    copied("box:/link/.", "contents")
    assert tree(outside / "contents") == ["a"]
    with pytest.raises(InvalidArgument, match="too many levels"):
        copied("-L", "box:/loop", "x")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("box:/nope", ".", "Could not find the file /nope"),
        ("box:/etc/hosts", "nope/", "destination directory does not exist"),
        ("box:/etc/hosts", "nope/file", "does not exist"),
        ("box:/etc/hosts", "file/", "not a directory"),
        ("box:/etc", "file", "cannot copy a directory to the file"),
    ],
)
def test_what_cannot_be_copied_out(source: str, target: str, message: str, copied: Copy, outside: Path) -> None:
    before = tree(outside)
    with pytest.raises(NacreError, match=message):
        copied(source, target)
    assert tree(outside) == before


def test_as_a_tar_stream(copied: Copy, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    copied("box:/etc", "-")
    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as tar:
        assert tar.getnames() == ["etc", "etc/conf.d", "etc/conf.d/a", "etc/hosts"]


# ---- into a container


def test_into_a_directory_or_under_a_new_name(copied: Copy, inside: Path) -> None:
    copied("file", "box:/etc")
    copied("file", "box:/etc/conf.d/")
    copied("file", "box:/renamed")
    copied("file", "box:/etc/hosts")
    assert [(inside / name).read_text() for name in ("etc/file", "etc/conf.d/file", "renamed", "etc/hosts")] == ["file"] * 4


def test_directories_go_in_by_the_same_rules(copied: Copy, inside: Path) -> None:
    copied("src", "box:/etc/conf.d")
    assert tree(inside / "etc/conf.d") == ["a", "src", "src/sub", "src/sub/b"]
    copied("src", "box:/new")
    assert tree(inside / "new") == ["sub", "sub/b"]
    copied("src/.", "box:/etc")
    assert (inside / "etc/sub/b").read_text() == "b"


def test_links_at_the_target_are_followed(copied: Copy, inside: Path) -> None:
    # The container's link is absolute within the container.
    copied("file", "box:/link")
    assert (inside / "etc/conf.d/file").read_text() == "file"


def test_links_here(copied: Copy, inside: Path, outside: Path) -> None:
    (outside / "alias").symlink_to("file")
    copied("alias", "box:/etc")
    assert os.readlink(inside / "etc/alias") == "file"
    copied("-L", "alias", "box:/etc/followed")
    assert (inside / "etc/followed").read_text() == "file"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nope", "box:/etc", "nope: No such file"),
        ("file/", "box:/etc", "not a directory"),
        ("file", "box:/nope/", "destination directory does not exist"),
        ("file", "box:/nope/file", "Could not find the file /nope"),
        ("src", "box:/etc/hosts", "cannot copy a directory to the file"),
        ("file", "box:/etc/hosts/", "not a directory"),
    ],
)
def test_what_cannot_be_copied_in(source: str, target: str, message: str, copied: Copy, inside: Path) -> None:
    before = tree(inside)
    with pytest.raises(NacreError, match=message):
        copied(source, target)
    assert tree(inside) == before


def test_a_tar_stream_goes_in_as_it_is(copied: Copy, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(archive({"x": b"1"}))

    monkeypatch.setattr("sys.stdin", Stdin)
    copied("-", "box:/etc")
    assert (inside / "etc/x").read_bytes() == b"1"


# ---- archives


def archive(files: dict[str, bytes | str | tarfile.TarInfo]) -> bytes:
    """bytes = a file, str = a symbolic link, TarInfo = itself; a name that ends with / is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name.rstrip("/"))
            info.name = name.rstrip("/")
            info.mtime = 1000
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            elif name.endswith("/") and content == b"":
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def extract(data: bytes, directory: Path, name: str = "top", *, owners: bool = False) -> Unpacked:
    directory.mkdir(exist_ok=True)
    unpacked = Unpacked(str(directory), name, owners=owners)
    unpacked.extract(io.BytesIO(data))
    return unpacked


@pytest.mark.parametrize(
    "files",
    [
        {"top/": b"", "top/../../evil": b"x"},
        {"top/": b"", "/evil": b"x"},
        {"top/": b"", "other": b"x"},
        {"top/": b"", "top/link": "..", "top/link/evil": b"x"},
        {"top/": b"", "top/link": "/", "top/link/evil": b"x"},
        {"top/": b"", "top/hard": special(tarfile.LNKTYPE, "../evil")},
        {"top/": b"", "top/hard": special(tarfile.LNKTYPE, "/etc/passwd")},
    ],
)
def test_nothing_is_written_outside(files: Any, tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("untouched")
    with pytest.raises(BadContent):
        extract(archive(files), tmp_path / "target")
    assert (tmp_path / "evil").read_text() == "untouched"
    assert not Path("/evil").exists()
    assert not (tmp_path / "target/evil").exists()


def test_a_link_that_is_there_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "target/top").symlink_to("../victim")
    extract(archive({"top": b"new"}), tmp_path / "target")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert (tmp_path / "target/top").read_text() == "new"


def test_devices_are_left_out(tmp_path: Path) -> None:
    unpacked = extract(archive({"top/": b"", "top/disk": special(tarfile.BLKTYPE), "top/pipe": special(tarfile.FIFOTYPE)}), tmp_path / "t")
    assert unpacked.skipped == ["top/disk"]
    assert tree(tmp_path / "t") == ["top", "top/pipe"]


def test_modes_and_times_are_kept_and_set_id_bits_are_not(tmp_path: Path) -> None:
    directory = special(tarfile.DIRTYPE, mode=0o550)
    extract(archive({"top/": directory, "top/tool": special(tarfile.REGTYPE, mode=0o6755)}), tmp_path / "t")
    assert stat.S_IMODE(os.stat(tmp_path / "t/top/tool").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tmp_path / "t/top").st_mode) == 0o550
    assert os.stat(tmp_path / "t/top").st_mtime == 1000
    os.chmod(tmp_path / "t/top", 0o750)


def test_hard_links_stay_hard_links(tmp_path: Path) -> None:
    extract(archive({"top/": b"", "top/a": b"data", "top/b": special(tarfile.LNKTYPE, "top/a")}), tmp_path / "t", "renamed")
    assert os.stat(tmp_path / "t/renamed/a").st_ino == os.stat(tmp_path / "t/renamed/b").st_ino


def test_files_and_directories_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "t/top").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="cannot overwrite directory"):
        extract(archive({"top": b"x"}), tmp_path / "t")
    (tmp_path / "t/file").write_text("")
    with pytest.raises(InvalidArgument, match="cannot overwrite file with a directory"):
        extract(archive({"file/": b""}), tmp_path / "t", "file")


def test_damaged_archives(tmp_path: Path) -> None:
    whole = archive({"top": b"x" * 5000})
    for data in (b"", b"no tar at all" * 100, whole[:1000]):
        with pytest.raises(BadContent, match="damaged"):
            extract(data, tmp_path / "t")


def test_packing_round_trip(outside: Path, tmp_path: Path) -> None:
    (outside / "src/link").symlink_to("sub/b")
    os.link(outside / "src/sub/b", outside / "src/hard")
    (outside / "src/big").write_bytes(os.urandom(700_000))
    packed = Packed(str(outside / "src"), "src", owners=False)
    pieces = []
    while data := packed.read(1000):
        assert len(data) <= 1000
        pieces.append(data)
    assert packed.size == 700_000 + 1
    extract(b"".join(pieces), tmp_path / "t", "back")
    back = tmp_path / "t/back"
    assert tree(back) == tree(outside / "src")
    assert (back / "big").read_bytes() == (outside / "src/big").read_bytes()
    assert os.stat(back / "hard").st_ino == os.stat(back / "sub/b").st_ino
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert {(info.uid, info.gid, info.uname) for info in tar} == {(0, 0, "")}


def test_a_file_that_shrinks_while_it_is_read(outside: Path) -> None:
    packed = Packed(str(outside / "file"), "file", owners=False)
    packed.read(512)
    os.truncate(outside / "file", 0)
    with pytest.raises(InvalidArgument, match="shrank"):
        packed.read(-1)


def test_copying_a_stream() -> None:
    target = io.BytesIO()
    assert copy(io.BytesIO(b"x" * 1000), target) == 1000
    assert target.getvalue() == b"x" * 1000
