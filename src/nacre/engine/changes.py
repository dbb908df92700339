"""What a container has changed in its root file system, at every level: for `diff`, and for whoever makes an image of it."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator

from nacre.engine.core import Core
from nacre.errors import HostError, SandboxError
from nacre.isolation import driver
from nacre.isolation.channel import Channel
from nacre.isolation.stream import Stream
from nacre.model.container import Container, Rootfs, Sandbox
from nacre.model.plan import NEWNS, Code, Spawn, op
from nacre.storage.changes import Change, changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tarfile import TarInfo

    from nacre.engine.archive import TarReader

# What the engine itself puts there so that it can be mounted over; Docker does not count these either.
OURS = ("dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "run/.containerenv", ".dockerenv")
_PLACE = "/run/nacre/changes"  # in a guest
_OPAQUE = "trusted.overlay.opaque"


def changed(core: Core, record: Container, sandbox: Sandbox | None) -> list[Change]:
    """Every change, by path. sandbox: a live one of this container, where its file system can only be read from inside (`inside`).

    Raises SandboxError, NoSpace, HostError.
    """
    if not record.rootfs:
        return []
    with scratch(core, record.id) as directory:
        rootfs = record.rootfs
        if sandbox:
            os.makedirs(f"{directory}/top/upper")
            _sketch(listing(sandbox), f"{directory}/top/upper")
            rootfs = Rootfs(driver=rootfs.driver, layers=rootfs.layers, upper=f"{directory}/top")
        os.mkdir(f"{directory}/mounts")
        return without_ours(changes(rootfs, f"{directory}/mounts"), record)


def inside(record: Container) -> bool:
    """Whether its file system can only be read from inside: the disk of a virtual machine is for its guest's eyes."""
    return bool(record.rootfs and record.rootfs.disk)


@contextlib.contextmanager
def scratch(core: Core, identifier: str) -> Iterator[str]:
    """A directory for a moment. One that a killed engine leaves goes with its container."""
    path = f"{core.layout.container(identifier)}/.changes-{os.urandom(4).hex()}"
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        core.layout.discard(path)


def without_ours(found: list[Change], record: Container) -> list[Change]:
    """The changes without the engine's own, and without directories that count as changed for nothing else."""
    ours = {os.fsencode(path) for path in OURS}
    ours |= {os.fsencode(posixpath.normpath(mount.target).lstrip("/")) for mount in record.mounts}
    gone = {change.path for change in found if change.kind == "A" and (change.path in ours or change.path.startswith(b"dev/"))}
    kept = [change for change in found if change.path not in gone]
    touched = {change.path.rpartition(b"/")[0] for change in found if change.path in gone}
    needed = {change.path.rpartition(b"/")[0] for change in kept}
    return [change for change in kept if change.path not in touched or change.path in needed]


def listing(sandbox: Sandbox) -> TarReader:
    """The files of a guest's writable disk as a tar stream, without their contents."""
    from nacre.engine.archive import TarReader

    stream = upper(sandbox, "tar-list")
    return TarReader(stream, lambda: None)


def upper(sandbox: Sandbox, program: str) -> Stream:
    """Run one of stem's programs in the guest over what its container has written. The disk is mounted once more, for it alone."""
    mounting = next(item for item in driver(sandbox.level).place(sandbox).rootfs if item.code is Code.IMAGE and item.args[1] == "u")
    plan = Spawn(
        ops=(
            op(Code.MKDIR, _PLACE, 0o700), op(Code.UNSHARE, NEWNS), op(Code.CHDIR, _PLACE), op(Code.MKDIR, "u", 0o700), mounting,
            op(Code.BUILTIN, 2, program, "u/upper/."),
        ),
        attach=True,
    )  # fmt: skip
    channel = Channel(sandbox.directory)
    try:
        proc, _ = channel.spawn(plan)
    except BaseException:
        channel.close()
        raise
    return Stream(channel, proc)


def _sketch(source: TarReader, top: str) -> None:
    """Make files of the same names and kinds: directories, opaque or not, whiteouts, and empty files for everything else.

    The names come from a guest: nothing is made but below `top`, and no links.
    """
    import tarfile

    try:
        with source, tarfile.open(fileobj=source, mode="r|", errors="surrogateescape") as archive:  # type: ignore[call-overload]
            for member in archive:
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if ".." in parts:
                    raise SandboxError(f"the guest lists an impossible name: {member.name!r}", stage="run")
                if parts:
                    _make(member, f"{top}/{'/'.join(parts)}")
    except tarfile.TarError as error:
        raise SandboxError(f"could not read the list of the guest's files: {error}", stage="run") from error
    except OSError as error:
        raise HostError(f"could not sketch the guest's files: {error.strerror}") from error


def _make(member: TarInfo, path: str) -> None:
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        if member.pax_headers.get(f"SCHILY.xattr.{_OPAQUE}") == "y":
            os.setxattr(path, _OPAQUE, b"y")
    elif member.ischr() and not (member.devmajor or member.devminor):
        os.mknod(path, 0o020000, os.makedev(0, 0))
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
