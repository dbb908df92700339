"""What a container has changed: the one way to enumerate it, whatever the driver.

A root file system is either *written above* its layers (an upper directory of overlayfs, whose whiteouts and opaque directories
say what is gone) or *whole* (a complete tree, to be compared with them). The layers are looked at as they are, one directory at
a time, with the rules of overlayfs, so that nothing has to be mounted but EROFS images.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from nacre.errors import Unsupported
from nacre.linux.files import explain
from nacre.model.container import Rootfs
from nacre.wire.whiteout import OPAQUE_NAME, OPAQUE_VALUE, OPAQUE_XATTR, OPAQUE_XATTR_USER, PREFIX, is_whiteout

ADDED, CHANGED, DELETED = "A", "C", "D"
WHOLE, UPPER, FUSE = "whole", "upper", "fuse"
_CAPABILITY = "security.capability"


_Pending = tuple[bytes, list[bytes], bool]


class Change(NamedTuple):
    """One change. kind: A (added), C (changed, or a directory with changes in it) or D (deleted); path: relative to the root."""

    kind: str
    path: bytes


def changes(rootfs: Rootfs, scratch: str) -> list[Change]:
    """Every change that was made to a prepared root file system, by path; a deleted directory without what was in it.

    scratch: an empty directory, for mount points in another mount namespace. Raises Unsupported for the disk of a virtual machine
    (only its guest may mount that) and for a plain directory (there is nothing to compare it with), NoSpace, HostError.
    """
    if rootfs.disk:
        raise Unsupported("the disk of a virtual machine can only be read by its guest", hint="start the container and look inside")
    if _is_whole(rootfs) and not rootfs.layers:
        raise Unsupported("a plain directory has no image that it could be compared with", hint="compare it with a copy of your own")
    top = rootfs.tree if _is_whole(rootfs) else f"{rootfs.upper}/upper"
    layers = [(layer.path, layer.format) for layer in rootfs.layers]
    if all(kind == "directory" for _, kind in layers):
        try:
            return compare([path for path, _ in layers], top, _form(rootfs))
        except OSError as error:
            raise explain(error, "look for changes") from error
    return _compare_in_child(layers, top, _form(rootfs), scratch)


def own_size(rootfs: Rootfs) -> int:
    """Bytes of disk that what a container has added or changed takes. Raises HostError."""
    from nacre.linux.files import disk_usage

    if not _is_whole(rootfs):
        path = rootfs.disk or (f"{rootfs.upper}/upper" if rootfs.upper else "")
        return disk_usage(path) if path else 0
    if not rootfs.layers:
        return 0  # somebody else's directory
    total, seen = 0, set[int]()
    for change in changes(rootfs, ""):
        if change.kind != DELETED:
            with contextlib.suppress(OSError):
                info = os.lstat(os.path.join(os.fsencode(rootfs.tree), change.path))
                if info.st_ino not in seen:
                    total += info.st_blocks * 512
                    seen.add(info.st_ino)
    return total


def _is_whole(rootfs: Rootfs) -> bool:
    return bool(rootfs.tree) and not rootfs.upper


def _form(rootfs: Rootfs) -> str:
    if _is_whole(rootfs):
        return WHOLE
    return FUSE if rootfs.tree else UPPER


def compare(layers: Sequence[str], top: str, form: str) -> list[Change]:
    """The changes in `top` over layers (directories in overlayfs's form, base first).

    form: WHOLE for a complete tree, UPPER for what overlayfs has written to, FUSE for what fuse-overlayfs has. Raises OSError.
    """
    found: list[Change] = []
    lower = [os.fsencode(layer) for layer in reversed(layers)]
    pending = [(b"", lower, form == WHOLE)]
    while pending:
        found += _directory(os.fsencode(top), form, *pending.pop(), pending)
    # A directory counts as changed when something in it has.
    named = {change.path for change in found}
    for change in tuple(found):
        path = change.path
        while (path := path.rpartition(b"/")[0]) and path not in named:
            named.add(path)
            found.append(Change(CHANGED, path))
    return sorted(found, key=_by_path)


def _by_path(change: Change) -> list[bytes]:
    return change.path.split(b"/")


def _directory(top: bytes, form: str, path: bytes, below: list[bytes], complete: bool, pending: list[_Pending]) -> list[Change]:
    """The changes among the entries of one directory. below: layers, topmost first, of which something would show through in it.

    complete: nothing does, all that the container sees is in this directory. What is to be looked into is added to `pending`.
    """
    found, seen = [], set()
    visible = _visible(path, below)
    for name, info in _entries(top, path):
        full = path + b"/" + name if path else name
        if form != WHOLE and (hidden := _whiteout(name, info, form)) is not None:
            if hidden in visible:
                found.append(Change(DELETED, path + b"/" + hidden if path else hidden))
                seen.add(hidden)
            continue
        seen.add(name)
        old = visible.get(name)
        if old is None:
            found.append(Change(ADDED, full))
        elif form != WHOLE or _differs(old, info, top, full, below):
            found.append(Change(CHANGED, full))
        if stat.S_ISDIR(info.st_mode):
            show = _showing(full, below) if old is not None and stat.S_ISDIR(old.st_mode) else []
            alone = not show or _is_opaque(top, full) or (form == FUSE and os.path.lexists(_join(top, full) + b"/" + OPAQUE_NAME))
            pending.append((full, show, complete or alone))
    if complete:
        found += (Change(DELETED, path + b"/" + name if path else name) for name in visible if name not in seen)
    return found


def _visible(path: bytes, below: list[bytes]) -> dict[bytes, os.stat_result]:
    """What the layers show in a directory."""
    entries: dict[bytes, os.stat_result] = {}
    hidden: set[bytes] = set()
    for layer in below:
        for name, info in _entries(layer, path):
            if name not in entries and name not in hidden:
                if is_whiteout(info.st_mode, info.st_rdev):
                    hidden.add(name)
                else:
                    entries[name] = info
    return entries


def _showing(path: bytes, below: list[bytes]) -> list[bytes]:
    """The layers of which something shows through in a directory that all together show."""
    show = []
    for layer in below:
        try:
            info = os.lstat(_join(layer, path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(info.st_mode):
            break
        show.append(layer)
        if _is_opaque(layer, path):
            break
    return show


def _entries(root: bytes, path: bytes) -> list[tuple[bytes, os.stat_result]]:
    try:
        with os.scandir(_join(root, path)) as scan:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in scan]
    except (FileNotFoundError, NotADirectoryError):
        return []  # of a layer that has no such directory; or it went away: containers are looked at while they run


def _join(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if path else root


def _whiteout(name: bytes, info: os.stat_result, form: str) -> bytes | None:
    """The name that an entry of an upper directory deletes, b"" for one that is no file either; None for a file."""
    if form == FUSE and name.startswith(PREFIX):
        return b"" if name.startswith((PREFIX + b".wh.", PREFIX + b".opq")) else name[len(PREFIX) :]
    return name if is_whiteout(info.st_mode, info.st_rdev) else None


def _is_opaque(root: bytes, path: bytes) -> bool:
    for name in (OPAQUE_XATTR, OPAQUE_XATTR_USER):
        with contextlib.suppress(OSError):
            if os.getxattr(_join(root, path), name, follow_symlinks=False) == OPAQUE_VALUE:
                return True
    return False


def _differs(old: os.stat_result, new: os.stat_result, top: bytes, path: bytes, below: list[bytes]) -> bool:
    """Whether a file of a complete tree is another than its image's. Size and time of a directory say nothing."""
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return True
    if stat.S_ISDIR(new.st_mode):
        return False
    if (old.st_size, old.st_mtime_ns) != (new.st_size, new.st_mtime_ns):
        return True
    return stat.S_ISREG(new.st_mode) and new.st_mode & 0o111 != 0 and _capability(top, path) != _first_capability(below, path)


def _first_capability(below: list[bytes], path: bytes) -> bytes:
    layer = next((layer for layer in below if os.path.lexists(_join(layer, path))), b"")
    return _capability(layer, path)


def _capability(root: bytes, path: bytes) -> bytes:
    try:
        return os.getxattr(_join(root, path), _CAPABILITY, follow_symlinks=False)
    except OSError:
        return b""


def _compare_in_child(layers: list[tuple[str, str]], top: str, form: str, scratch: str) -> list[Change]:
    """Have a process with a mount namespace of its own mount the images and compare."""
    from nacre.storage.helper import ask

    answer = ask({"verb": "changes", "layers": layers, "top": top, "form": form, "mounts": scratch}, "look for changes")
    return [Change(kind, os.fsencode(path)) for kind, path in answer["changes"]]
