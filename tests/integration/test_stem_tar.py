"""stem's file transfer: tar-get and tar-put against Python's tarfile, and against archives made to do harm."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stemclient import PRIVATE, Client, Sandbox, builtin, enter_root, make_root, temporary

from nacre.model.plan import NEWNS, NEWPID, Code, op

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep, revision 2


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary() as path:
        yield path


@pytest.fixture
def client(directory: Path) -> Iterator[Client]:
    (directory / "s").mkdir()
    box = Sandbox(directory / "s")
    yield box.client()
    box.close()


@pytest.fixture
def tree(directory: Path) -> Path:
    tree = directory / "tree"
    deep = tree / "sub" / ("x" * 200) / ("y" * 120)
    deep.mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(200_001))
    os.link(tree / "file", tree / "sub/hard")
    (tree / "empty").touch()
    (deep / ("z" * 250)).write_text("deep")
    (tree / "link").symlink_to("t" * 150)
    (tree / "dangling").symlink_to("/nowhere")
    os.mkfifo(tree / "fifo", 0o622)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "whiteout", stat.S_IFCHR, 0)
    os.mknod(tree / "block", stat.S_IFBLK | 0o600, os.makedev(259, 300000))
    os.setxattr(tree / "file", "user.note", b"a=b\n\0c")
    os.setxattr(tree / "file", "security.capability", CAPABILITY)
    os.setxattr(tree / "sub", "user.dir", b"on a directory")
    os.chmod(tree / "empty", 0o6755)
    os.chown(tree / "link", 3_000_000, 5, follow_symlinks=False)
    os.chown(tree / "fifo", 7, 4_000_000_000)
    os.chmod(tree / "sub", 0o1711)
    (tree / "späße\n").write_text("odd name")
    for path, when in ((tree / "file", 1_000_000_000), (tree / "sub", 1_100_000_000), (tree, 1_200_000_000)):
        os.utime(path, (when, when))
    return tree


def facts(root: Path) -> dict[str, Any]:
    """Everything that an archive keeps, by relative path."""
    seen: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for top, directories, files in os.walk(root):
        for name in sorted(directories + files + ["."]):
            path = os.path.normpath(os.path.join(top, name))
            st = os.lstat(path)
            relative = os.path.relpath(path, root)
            content: Any = None
            if stat.S_ISREG(st.st_mode):
                content = (Path(path).read_bytes(), {key: os.getxattr(path, key) for key in os.listxattr(path)})
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            elif stat.S_ISDIR(st.st_mode):
                content = {key: os.getxattr(path, key) for key in os.listxattr(path)}
            first = inodes.setdefault(st.st_ino, relative) if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode) else ""
            seen[relative] = (oct(st.st_mode), st.st_uid, st.st_gid, int(st.st_mtime), st.st_rdev, first, content)
    return seen


def archive(*entries: tuple[str, dict[str, Any]], form: int = tarfile.PAX_FORMAT, data: bytes = b"payload") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, fields in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            for key, value in fields.items():
                setattr(info, key, value)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_round_trip_keeps_everything(client: Client, tree: Path, directory: Path) -> None:
    end = client.builtin("tar-get", str(tree))
    assert (end.code, end.err) == (0, b"")
    (directory / "out").mkdir()
    done = client.builtin("tar-put", str(directory / "out"), stdin=end.out)
    assert (done.code, done.err) == (0, b"")
    before, after = facts(tree), facts(directory / "out/tree")
    assert after.keys() == before.keys()
    for name in before:
        assert after[name] == before[name], name


def test_tarfile_reads_it(client: Client, tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(client.builtin("tar-get", str(tree)).out)) as tar:
        members = {member.name: member for member in tar}
        first, second = sorted(("tree/file", "tree/sub/hard"), key=lambda name: members[name].islnk())
        assert (members[second].islnk(), members[second].linkname) == (True, first)
        content = tar.extractfile(members[first])
        assert content is not None
        assert content.read() == (tree / "file").read_bytes()
    assert members["tree/link"].linkname == "t" * 150
    assert members["tree/link"].uid == 3_000_000
    assert members["tree/fifo"].gid == 4_000_000_000
    assert (members["tree/block"].devmajor, members["tree/block"].devminor) == (259, 300000)
    assert members[first].pax_headers["SCHILY.xattr.user.note"] == "a=b\n\0c"
    assert members["tree/späße\n"].isreg()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_reads_what_tarfile_writes(client: Client, directory: Path, form: int) -> None:
    name = "d" * 80 + "/" + "f" * 90 if form == tarfile.USTAR_FORMAT else "d" * 200 + "/" + "f" * 200
    fields = {"uid": 5, "gid": 6, "mode": 0o4711, "mtime": 1234567890}
    data = archive((name, fields), ("sym", {"type": tarfile.SYMTYPE, "linkname": "x" * 90}), form=form)
    end = client.builtin("tar-put", str(directory), stdin=data)
    assert (end.code, end.err) == (0, b"")
    st = os.stat(directory / name)
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777, int(st.st_mtime)) == (5, 6, 0o4711, 1234567890)
    assert (directory / name).read_bytes() == b"payload"
    assert os.readlink(directory / "sym") == "x" * 90


@pytest.mark.parametrize(
    ("suffix", "first"),
    [
        ("/sub", "sub"),
        ("/sub/", "sub"),
        ("/sub/.", "."),
        ("/link-to-sub", "link-to-sub"),
        ("/link-to-sub/", "link-to-sub"),
        ("/empty", "empty"),
    ],
)
def test_base_names(client: Client, tree: Path, suffix: str, first: str) -> None:
    (tree / "link-to-sub").symlink_to("sub")
    with tarfile.open(fileobj=io.BytesIO(client.builtin("tar-get", f"{tree}{suffix}").out)) as tar:
        names = tar.getnames()
    assert names[0] == first
    assert (len(names) > 1) is suffix.startswith("/sub") or suffix.endswith("/")


def test_kernel_file_systems_are_left_out(client: Client, directory: Path) -> None:
    root = make_root(directory / "r")
    plan = [op_ for op_ in enter_root(root) if op_.args[:1] != ("/usr",)]
    out = client.run(*plan, builtin("tar-get", "/"), clone=NEWNS | NEWPID)
    with tarfile.open(fileobj=io.BytesIO(out.out)) as tar:
        names = tar.getnames()
    assert {"./etc/passwd", "./proc", "./dev/pts"} <= set(names), out.err
    assert not [name for name in names if name.startswith(("./proc/", "./dev/pts/"))]


def test_missing_source(client: Client) -> None:
    end = client.builtin("tar-get", "/no/such")
    assert (end.code, end.out, end.err) == (1, b"", b"tar-get: /no/such: No such file or directory\n")


def test_reader_that_goes_away(client: Client, tree: Path) -> None:
    proc = client.spawn(builtin("tar-get", "/usr/share"), attach=True)
    client.receive()
    client.signal(proc, 15)
    assert client.finish(proc).signal == 15


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", {})],
        [("a/../../evil", {})],
        [("a/..", {"type": tarfile.DIRTYPE})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": "OUT"}), ("l/evil", {})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("l/evil", {})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": "OUT"}), ("l/evil", {"type": tarfile.DIRTYPE})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": "OUT/new"}), ("l/evil", {})],
        [("h", {"type": tarfile.LNKTYPE, "linkname": "../outside/secret"})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": "OUT"}), ("h", {"type": tarfile.LNKTYPE, "linkname": "l/secret"})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": "OUT"}), ("l/n", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    ],
)
def test_nothing_is_written_outside(client: Client, directory: Path, entries: list[tuple[str, dict[str, Any]]]) -> None:
    outside, inside = directory / "outside", directory / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "secret").write_text("secret")
    for _, fields in entries:
        if "linkname" in fields:
            fields["linkname"] = fields["linkname"].replace("OUT", str(outside))
    end = client.builtin("tar-put", str(inside), stdin=archive(*entries))
    assert end.code == 1
    assert end.err.startswith(b"tar-put: ")
    assert end.err.count(b"\n") == 1
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").stat().st_nlink == 1
    assert sorted(os.listdir(directory)) == ["inside", "outside", "s"]


def test_absolute_names_and_links_are_harmless(client: Client, directory: Path) -> None:
    inside = directory / "inside"
    inside.mkdir()
    (directory / "victim").write_text("kept")
    (inside / "trap").symlink_to(directory / "victim")
    (inside / "hard").write_text("old")
    os.link(inside / "hard", directory / "other-name")
    end = client.builtin(
        "tar-put",
        str(inside),
        stdin=archive((f"{directory}/abs", {}), ("trap", {}), ("hard", {}), ("./dot/./x", {}), (".", {"type": tarfile.DIRTYPE, "mode": 0})),
    )
    assert (end.code, end.err) == (0, b"")
    assert (inside / str(directory).lstrip("/") / "abs").read_bytes() == b"payload"
    assert (directory / "victim").read_text() == "kept"  # a link in the way is replaced, not written through
    assert (directory / "other-name").read_text() == "old"
    assert (inside / "dot/x").exists()
    assert inside.stat().st_mode & 0o700 == 0o700


def test_links_of_the_image_count_at_its_root(client: Client, directory: Path) -> None:
    root = make_root(directory / "r")
    (root / "run").mkdir()
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    end = client.run(*enter_root(root), builtin("tar-put", "/"), stdin=archive(("var/run/x", {})), clone=NEWNS | NEWPID)
    assert (end.code, end.err) == (0, b"")
    assert (root / "run/x").exists()


def test_replacing(client: Client, directory: Path) -> None:
    (directory / "file").write_text("x")
    (directory / "dir/full").mkdir(parents=True)
    assert client.builtin("tar-put", str(directory), stdin=archive(("file", {"type": tarfile.DIRTYPE, "mode": 0o750}))).code == 0
    assert (directory / "file").is_dir()
    end = client.builtin("tar-put", str(directory), stdin=archive(("dir", {})))
    assert (end.code, end.err) == (1, b"tar-put: dir: Is a directory\n")
    assert client.builtin("tar-put", str(directory), stdin=archive(("dir", {"type": tarfile.DIRTYPE, "mode": 0o711}))).code == 0
    assert (directory / "dir").stat().st_mode & 0o777 == 0o711


def test_damaged_archives(client: Client, directory: Path) -> None:
    good = archive(("a", {}), ("b", {}), data=bytes(5000))
    cases = {
        b"not a tar archive" * 100: "not a tar",
        good[:3000]: "cut off",
        good[:700]: "cut off",
        good[:100]: "cut off",
        b"\xff" * 2048: "not a tar",
    }
    broken = bytearray(archive(("p" * 300, {})))
    broken[512:515] = b"999"  # the length of a pax record
    cases[bytes(broken)] = "extended header"
    for data, word in cases.items():
        end = client.builtin("tar-put", str(directory), stdin=data)
        assert (end.code, word in end.err.decode()) == (1, True), (word, end)
    assert client.builtin("tar-put", str(directory), stdin=b"").code == 0
    assert client.builtin("tar-put", str(directory), stdin=good[:6144] + bytes(100_000)).code == 0


def test_huge_claims_are_refused(client: Client, directory: Path) -> None:
    header = bytearray(archive(("x" * 300, {}))[:512])
    header[124:136] = b"77777777777\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    end = client.builtin("tar-put", str(directory), stdin=bytes(header))
    assert (end.code, b"extended header of 8589934591 bytes" in end.err) == (1, True)


def test_unsupported_types_are_named(client: Client, directory: Path) -> None:
    end = client.builtin("tar-put", str(directory), stdin=archive(("sparse", {"type": tarfile.GNUTYPE_SPARSE})))
    assert (end.code, end.err) == (1, b"tar-put: sparse is of type 'S': Operation not supported\n")


def test_full_disk(client: Client, directory: Path) -> None:
    end = client.run(
        op(Code.MOUNT, "none", "/", "", PRIVATE, ""),
        op(Code.MOUNT, "tmpfs", str(directory), "tmpfs", 0, "size=64k"),
        builtin("tar-put", str(directory)),
        stdin=archive(("big", {}), data=bytes(1_000_000)),
        clone=NEWNS,
    )
    assert (end.code, end.err) == (1, b"tar-put: big: No space left on device\n")


def test_stat(client: Client, tree: Path) -> None:
    def row(path: str) -> list[str]:
        end = client.builtin("stat", path)
        assert end.code == 0, end
        return end.out.decode().removesuffix("\n").split("\0")

    st = os.stat(tree / "file")
    assert row(f"{tree}/file") == [str(st.st_mode), "200001", str(10**18), "file", ""]
    assert row(f"{tree}/link")[3:] == ["link", "t" * 150]
    (tree / "to-sub").symlink_to("sub")
    assert row(f"{tree}/to-sub")[4] == "sub"
    assert stat.S_ISDIR(int(row(f"{tree}/to-sub/")[0]))
    assert row("/")[3] == "/"
    assert client.builtin("stat", "/no/such").err == b"stat: /no/such: No such file or directory\n"


def test_tree_that_changes_while_it_is_read(client: Client, tree: Path) -> None:
    proc = client.spawn(builtin("tar-get", str(tree)), attach=True, stdin=False)
    shutil.rmtree(tree)
    assert client.finish(proc).code in (0, 1)
