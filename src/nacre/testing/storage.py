"""Conformance of storage: what every driver has to do, whatever it keeps on disk. Needs root: the results are mounted and looked at.

`check_storage(make)` runs every check with fresh stores; `CHECKS` are the same functions one by one, for test parameters.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from nacre.errors import BadContent, InvalidArgument, NotFound
from nacre.linux.kernel import mount
from nacre.linux.run import check, run
from nacre.linux.userns import is_initial
from nacre.model.container import LayerMount, Rootfs
from nacre.model.plan import MS_BIND, MS_RDONLY
from nacre.storage.changes import changes
from nacre.storage.fuse import unmount
from nacre.storage.layers import LayerStore
from nacre.storage.rootfs import RootfsStore

Make = Callable[[], tuple[LayerStore, RootfsStore]]
Build = Callable[[tarfile.TarFile], object]
TIME = 1_500_000_000
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")[:20]  # cap_net_raw+ep, revision 2


# -- archives


def archive(build: Build) -> bytes:
    """A pax archive made by a function."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        build(tar)
    return out.getvalue()


def member(tar: tarfile.TarFile, name: str, data: bytes = b"", *, xattrs: dict[str, bytes] | None = None, **fields: Any) -> tarfile.TarInfo:
    """Add one entry; a regular file unless `type` says otherwise."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), TIME
    for key, value in fields.items():
        setattr(info, key, value)
    info.pax_headers = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in (xattrs or {}).items()}
    tar.addfile(info, io.BytesIO(data))
    return info


def directory(tar: tarfile.TarFile, name: str, mode: int = 0o755, **fields: Any) -> tarfile.TarInfo:
    """Add a directory."""
    return member(tar, name, type=tarfile.DIRTYPE, mode=mode, **fields)


def layer(store: LayerStore, build: Build) -> str:
    """Unpack a layer made by a function; returns its digest."""
    data = archive(build)
    diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    store.unpack(diff_id, io.BytesIO(data))
    return diff_id


# -- what a container would see


@contextlib.contextmanager
def mounted(rootfs: Rootfs, scratch: str) -> Iterator[str]:
    """The root file system put together in an empty directory, as the isolation levels do it; unmounted afterwards."""
    with contextlib.ExitStack() as stack:
        if rootfs.tree:
            try:
                yield rootfs.tree
            finally:
                if rootfs.upper:
                    unmount(rootfs.tree)  # fuse-overlayfs serves it
            return
        upper = rootfs.upper
        if rootfs.disk:
            upper = _point(scratch, "disk")
            check(["mount", "-o", "loop", rootfs.disk, upper])
            stack.callback(_unmount, upper)
        lower = [_mount_layer(stack, part, _point(scratch, f"l{number}")) for number, part in enumerate(rootfs.layers)]
        point = _point(scratch, "root")
        options = f"lowerdir={':'.join(reversed(lower))},upperdir={upper}/upper,workdir={upper}/work"
        options += f",{rootfs.options}" if rootfs.options else ""
        mount("overlay", point, "overlay", 0, options)
        stack.callback(_unmount, point)
        yield point


def _mount_layer(stack: contextlib.ExitStack, part: LayerMount, point: str) -> str:
    if part.format == "erofs":
        try:
            mount(part.path, point, "erofs", MS_RDONLY)
        except OSError:
            check(["mount", "-t", "erofs", "-o", "loop,ro", part.path, point])
    else:
        mount(part.path, point, "", MS_BIND)
    stack.callback(_unmount, point)
    return point


def _point(scratch: str, name: str) -> str:
    path = f"{scratch}/{name}"
    os.makedirs(path, exist_ok=True)
    return path


def _unmount(point: str) -> None:
    if run(["umount", point]).code:
        check(["umount", "-l", point])


def describe_tree(root: str) -> dict[str, tuple[Any, ...]]:
    """Everything about every file of a tree, by path: type and mode, owner, time, device, size and digest, target, attributes, names."""
    found: dict[str, tuple[Any, ...]] = {}
    names: dict[int, list[str]] = {}
    pending = [""]
    while pending:
        path = pending.pop()
        full = os.path.join(root, path) if path else root
        info = os.lstat(full)
        found[path] = _describe(full, info)
        if stat.S_ISDIR(info.st_mode):
            pending += [os.path.join(path, name) if path else name for name in os.listdir(full)]
        else:
            names.setdefault(info.st_ino, []).append(path)
    for group in names.values():
        for path in group:
            found[path] += (tuple(sorted(group)),)
    return found


def _describe(path: str, info: os.stat_result) -> tuple[Any, ...]:
    content: Any = None
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            content = (info.st_size, hashlib.file_digest(file, "sha256").hexdigest())
    elif stat.S_ISLNK(info.st_mode):
        content = os.readlink(path)
    elif not stat.S_ISFIFO(info.st_mode) and not stat.S_ISDIR(info.st_mode):
        content = info.st_rdev
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
    xattrs = {name: value for name, value in xattrs.items() if not name.startswith(("trusted.overlay.", "security.selinux"))}
    return stat.filemode(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, content, tuple(sorted(xattrs.items()))


# -- the checks


def check_attributes(make: Make, scratch: str) -> None:
    """Owners, modes, times, links, devices, extended attributes and odd names arrive in the container."""
    layers, stores = make()
    long_path = "/".join(["long-directory-name-" + "x" * 180] * 6)

    def build(tar: tarfile.TarFile) -> None:
        directory(tar, "./", 0o755)
        directory(tar, "bin", 0o755, uid=1, gid=2)
        member(tar, "bin/su", b"#!", mode=0o4755)
        member(tar, "bin/wall", b"#!", mode=0o2755, gid=5)
        member(tar, "bin/ping", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY, "user.note": b"a\xffb"})
        member(tar, "bin/big-owner", b"", uid=3_000_000_000, gid=2_000_000)
        directory(tar, "tmp", 0o1777)
        member(tar, "a-name", b"same")
        member(tar, "b-name", type=tarfile.LNKTYPE, linkname="a-name")
        member(tar, "link", type=tarfile.SYMTYPE, linkname="/bin/su", uid=7, gid=8)
        member(tar, "null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, uid=9)
        member(tar, "disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0x12345, mode=0o660)
        member(tar, "pipe", type=tarfile.FIFOTYPE, mode=0o640, gid=3)
        member(tar, long_path + "/" + "f" * 255, b"deep")
        member(tar, "caf\udce9", b"latin 1")
        member(tar, "sparse", bytes(1 << 20) + b"end")
        member(tar, "old", b"", mtime=-86400)
        member(tar, "exact", b"", mtime=1_600_000_000.125)

    rootfs = stores.prepare("attributes", (layer(layers, build),))
    with mounted(rootfs, scratch) as root:
        seen = describe_tree(root)
        assert seen["bin"][:3] == ("drwxr-xr-x", 1, 2)
        assert seen["bin"][3] == TIME * 10**9
        assert seen["bin/su"][0] == "-rwsr-xr-x"
        assert seen["bin/wall"][:3] == ("-rwxr-sr-x", 0, 5)
        assert dict(seen["bin/ping"][5]) == {"security.capability": CAPABILITY, "user.note": b"a\xffb"}
        assert seen["bin/big-owner"][1:3] == (3_000_000_000, 2_000_000)
        assert seen["tmp"][0] == "drwxrwxrwt"
        assert seen["a-name"][6] == ("a-name", "b-name")
        assert os.lstat(f"{root}/a-name").st_nlink == 2
        assert seen["link"][1:5] == (7, 8, TIME * 10**9, "/bin/su")
        if not is_initial():
            assert not {"null", "disk"} & seen.keys()  # nobody may make them there, nor use them
        else:
            assert seen["null"][:3] + seen["null"][4:5] == ("crw-rw-rw-", 9, 0, os.makedev(1, 3))
            assert seen["disk"][4] == os.makedev(8, 0x12345)
        assert seen["pipe"][:3] == ("prw-r-----", 0, 3)
        assert seen[f"{long_path}/{'f' * 255}"][4][0] == 4
        assert seen["caf\udce9"][4][0] == 7
        assert seen["sparse"][4] == ((1 << 20) + 3, hashlib.sha256(bytes(1 << 20) + b"end").hexdigest())
        assert seen["exact"][3] == 1_600_000_000_125_000_000
        assert os.lstat(f"{root}/old").st_mtime == -86400


def check_stacking(make: Make, scratch: str) -> None:
    """Upper layers hide, replace and delete what lower ones have, as OCI says."""
    layers, stores = make()

    def base(tar: tarfile.TarFile) -> None:
        for name in ("kept", "deleted", "replaced", "opaque", "again", "to-file", "opaque-late"):
            directory(tar, name)
            member(tar, f"{name}/low", b"low")
        member(tar, "file", b"low")
        member(tar, "gone", b"low")
        member(tar, "to-directory", b"low")

    def middle(tar: tarfile.TarFile) -> None:
        member(tar, ".wh.gone")
        member(tar, ".wh.deleted")
        member(tar, "file", b"middle")
        member(tar, "kept/middle", b"middle")
        directory(tar, "opaque")
        member(tar, "opaque/.wh..wh..opq")
        member(tar, "opaque/new", b"middle")
        member(tar, ".wh.again")
        directory(tar, "again")
        member(tar, "again/new", b"middle")
        member(tar, "to-file", b"middle")
        directory(tar, "to-directory")
        member(tar, "opaque-late/new", b"middle")
        member(tar, "opaque-late/.wh..wh..opq")

    def top(tar: tarfile.TarFile) -> None:
        member(tar, "kept/.wh.low")
        member(tar, "deleted/back", b"top")

    diff_ids = tuple(layer(layers, build) for build in (base, middle, top))
    rootfs = stores.prepare("stacking", diff_ids)
    with mounted(rootfs, scratch) as root:
        seen = sorted(path for path in describe_tree(root) if path)
        assert seen == sorted(
            [
                "again", "again/new", "deleted", "deleted/back", "file", "kept", "kept/middle", "opaque", "opaque/new",
                "opaque-late", "opaque-late/new", "replaced", "replaced/low", "to-directory", "to-file",
            ]
        )  # fmt: skip
        with open(f"{root}/file", "rb") as file:
            assert file.read() == b"middle"


def check_forgery(make: Make, scratch: str) -> None:
    """An archive cannot smuggle in what overlayfs acts on, nor leave its directory."""
    layers, stores = make()

    def base(tar: tarfile.TarFile) -> None:
        directory(tar, "etc")
        member(tar, "etc/passwd", b"root")
        member(tar, "secret", b"s")

    def evil(tar: tarfile.TarFile) -> None:
        member(tar, "secret", type=tarfile.CHRTYPE, devmajor=0, devminor=0)
        directory(tar, "etc", xattrs={"trusted.overlay.opaque": b"y", "user.overlay.opaque": b"y"})
        directory(tar, "other", xattrs={"trusted.overlay.redirect": b"/etc"})
        member(tar, "out", type=tarfile.SYMTYPE, linkname="/")
        member(tar, "out/by-link", b"x")

    rootfs = stores.prepare("forgery", (layer(layers, base), layer(layers, evil)))
    with mounted(rootfs, scratch) as root:
        assert sorted(os.listdir(root)) == ["by-link", "etc", "other", "out", "secret"]
        assert os.listdir(f"{root}/etc") == ["passwd"]
        assert os.listdir(f"{root}/other") == []
        assert stat.S_ISREG(os.lstat(f"{root}/secret").st_mode)


def check_writing(make: Make, scratch: str) -> None:
    """Containers write for themselves: nothing of it reaches the layers or other containers, and it is there the next time."""
    layers, stores = make()
    diff_id = layer(layers, lambda tar: [directory(tar, "./", 0o711, uid=4, gid=5), member(tar, "file", b"image")])
    with mounted(stores.prepare("one", (diff_id,)), scratch) as root:
        info = os.stat(root)
        assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o711, 4, 5)
        with open(f"{root}/file", "wb") as file:
            file.write(b"changed")
        os.mkdir(f"{root}/new")
    with mounted(stores.prepare("two", (diff_id,)), f"{scratch}/2") as root:
        assert os.listdir(root) == ["file"]
        with open(f"{root}/file", "rb") as file:
            assert file.read() == b"image"
    with mounted(stores.prepare("one", (diff_id,)), f"{scratch}/3") as root:
        assert sorted(os.listdir(root)) == ["file", "new"]
    assert stores.usage("one") > stores.usage("nobody") == 0


def check_changes(make: Make, scratch: str) -> None:
    """What was added, changed and deleted is told, and nothing else; also how much space it takes."""
    layers, stores = make()

    def base(tar: tarfile.TarFile) -> None:
        for name in ("kept", "etc", "gone", "again", "again/sub", "to-file", "moved"):
            directory(tar, name)
            member(tar, f"{name}/low", b"low")
        member(tar, "tool", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY})
        member(tar, "large", b"x" * (1 << 20))
        member(tar, "name-1", b"two names")
        member(tar, "name-2", type=tarfile.LNKTYPE, linkname="name-1")
        member(tar, "hidden-below", b"low")

    def top(tar: tarfile.TarFile) -> None:
        member(tar, "etc/top", b"top")
        member(tar, ".wh.hidden-below")

    def fresh(name: str) -> Rootfs:
        return stores.prepare(name, diff_ids)

    diff_ids = (layer(layers, base), layer(layers, top))
    rootfs = fresh("quiet")
    with mounted(rootfs, f"{scratch}/1") as root:
        for path in describe_tree(root):
            os.lstat(f"{root}/{path}")
    assert changes(rootfs, _point(scratch, "images-1")) == []
    rootfs = fresh("busy")
    with mounted(rootfs, f"{scratch}/2") as root:
        with open(f"{root}/etc/top", "ab") as file:
            file.write(b"more")
        with open(f"{root}/etc/new", "wb") as file:
            file.write(b"n" * 200_000)
        os.mkdir(f"{root}/dir")
        os.symlink("nowhere", f"{root}/dir/link")
        os.unlink(f"{root}/kept/low")
        shutil.rmtree(f"{root}/gone")
        shutil.rmtree(f"{root}/again")
        os.mkdir(f"{root}/again")
        with open(f"{root}/again/new", "wb"):
            pass
        shutil.rmtree(f"{root}/to-file")
        with open(f"{root}/to-file", "wb"):
            pass
        with open(f"{root}/hidden-below", "wb"):
            pass
        os.chmod(f"{root}/moved/low", 0o600)
    seen = [f"{change.kind} {os.fsdecode(change.path)}" for change in changes(rootfs, _point(scratch, "images-2"))]
    assert seen == [
        "C again", "D again/low", "A again/new", "D again/sub", "A dir", "A dir/link", "C etc", "A etc/new", "C etc/top", "D gone",
        "A hidden-below", "C kept", "D kept/low", "C moved", "C moved/low", "C to-file",
    ], seen  # fmt: skip
    size = stores.size(rootfs)
    assert 200_000 <= size < 1 << 19


def check_private(make: Make, scratch: str) -> None:
    """No ordinary user of the host comes near what a container may have made: a set-user-id program, say."""
    layers, stores = make()
    diff_id = layer(layers, lambda tar: member(tar, "su", b"#!", mode=0o4755))
    rootfs = stores.prepare("private", (diff_id,))
    with mounted(rootfs, scratch):
        paths = [part for part in (rootfs.tree, rootfs.upper, *(part.path for part in rootfs.layers)) if part]
        for path in paths:
            top = layers.run if path.startswith(f"{layers.run}/") else layers.root
            inner = path.removeprefix(top)
            above = [f"{top}{inner[:end]}" for end in range(len(inner) + 1) if inner[end : end + 1] in ("/", "") and inner[:end]]
            assert any(os.stat(part).st_mode & 0o077 == 0 for part in above), f"{path} is open to everybody"
    stores.release("private")


def check_disk(make: Make, scratch: str) -> None:
    """For a virtual machine: images, and a sparse disk that is kept between starts."""
    layers, stores = make()
    diff_id = layer(layers, lambda tar: [directory(tar, "./", 0o711, uid=4, gid=5), member(tar, "file", b"image")])
    rootfs = stores.prepare("machine", (diff_id,), disk=True, size=1 << 30)
    assert [part.format for part in rootfs.layers] == ["erofs"]
    assert os.path.getsize(rootfs.disk) == 1 << 30
    assert stores.usage("machine") < 16 << 20
    with mounted(rootfs, scratch) as root:
        info = os.stat(root)
        assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o711, 4, 5)
        assert os.listdir(root) == ["file"]
        os.mkdir(f"{root}/new")
    again = stores.prepare("machine", (diff_id,), disk=True, size=1 << 30)
    assert again == rootfs
    with mounted(again, f"{scratch}/2") as root:
        assert sorted(os.listdir(root)) == ["file", "new"]


def check_layers(make: Make, scratch: str) -> None:
    """Layers appear complete or not at all, once, and go without a trace."""
    layers, stores = make()
    data = archive(lambda tar: member(tar, "file", b"x" * 100))
    diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert not layers.has(diff_id)
    _expect(NotFound, lambda: layers.get(diff_id))
    _expect(NotFound, lambda: stores.prepare("nothing", (diff_id,)))
    _expect(BadContent, lambda: layers.unpack(diff_id, Failing(data, BadContent("digest mismatch"))))
    _expect(BadContent, lambda: layers.unpack(diff_id, io.BytesIO(data[:600])))
    _expect(InvalidArgument, lambda: layers.unpack("sha256:../../etc", io.BytesIO(data)))
    assert not layers.has(diff_id)
    assert os.listdir(layers.path) == []
    assert layers.unpack(diff_id, io.BytesIO(data)) == 100
    assert layers.unpack(diff_id, Failing(b"", AssertionError("was read again"))) == layers.size(diff_id) == 100
    assert layers.get(diff_id).diff_id == diff_id
    assert layers.list() == [diff_id]
    other = layer(layers, lambda tar: member(tar, "other"))
    assert layers.prune({other}) == 1
    assert not layers.has(diff_id)
    layers.remove(other)
    layers.remove(other)
    assert os.listdir(layers.path) == []


def check_empty(make: Make, scratch: str) -> None:
    """Empty layers, and as many layers as an image may have."""
    layers, stores = make()
    builds: list[Build] = [lambda _: None]
    builds += [lambda tar, number=number: member(tar, f"file-{number}", b"x") for number in range(40)]  # type: ignore[misc]
    rootfs = stores.prepare("many", tuple(layer(layers, build) for build in builds))
    with mounted(rootfs, scratch) as root:
        assert len(os.listdir(root)) == 40


def check_removal(make: Make, scratch: str) -> None:
    """Removing is complete, can be repeated, and copes with what a container may leave."""
    layers, stores = make()
    diff_id = layer(layers, lambda tar: member(tar, "file", b"image"))
    with mounted(stores.prepare("mess", (diff_id,)), scratch) as root:
        fd = os.open(root, os.O_PATH)
        for _ in range(300):
            try:
                os.mkdir("a-name-that-adds-up", dir_fd=fd)
            except OSError as error:
                # A driver that works by path has an end.
                assert error.errno == errno.ENAMETOOLONG
                break
            inner = os.open("a-name-that-adds-up", os.O_PATH, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
        os.unlink(f"{root}/file")
        os.symlink("/", f"{root}/link")
        os.mkdir(f"{root}/shut", 0)
        with open(f"{root}/fixed", "wb"):
            pass
        run(["chattr", "+i", f"{root}/fixed"])
    stores.remove("mess")
    stores.remove("mess")
    assert stores.usage("mess") == 0
    assert layers.has(diff_id)
    with mounted(stores.prepare("mess", (diff_id,)), f"{scratch}/2") as root:
        assert os.listdir(root) == ["file"]


class Failing:
    """A stream that delivers its data and then raises instead of ending."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        self._data = io.BytesIO(data)
        self._error = error

    def read(self, size: int, /) -> bytes:
        """Data, then the error."""
        data = self._data.read(size)
        if not data:
            raise self._error
        return data


def _expect(kind: type[BaseException], action: Callable[[], object]) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


CHECKS: tuple[Callable[[Make, str], None], ...] = (
    check_attributes,
    check_stacking,
    check_forgery,
    check_writing,
    check_changes,
    check_private,
    check_disk,
    check_layers,
    check_empty,
    check_removal,
)


def check_storage(make: Make, scratch: str) -> None:
    """Run every check. make: fresh, empty stores each time; scratch: an empty directory for mount points."""
    for number, function in enumerate(CHECKS):
        function(make, _point(scratch, str(number)))
