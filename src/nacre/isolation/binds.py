"""Mounts that somebody asks for: what the level and the host can do with them, and parts of volumes opened so that nothing leads out."""

from __future__ import annotations

import os
import stat

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation.plan import check_tmpfs
from nacre.linux.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from nacre.model.container import BoundMount, ContainerSpec, Level, MountSpec

_SHARED = ("shared", "rshared")
_RECEIVING = ("slave", "rslave")


def is_directory_below(directory: str, path: str) -> bool:
    """Whether there is a directory at `path` in a directory. Symbolic links are followed, but never out of it. Raises OSError."""
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = openat2(top, path, os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(top)
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def check(item: MountSpec, spec: ContainerSpec) -> None:
    """Refuse what the mount, the level or the host cannot do. Raises InvalidArgument, Unsupported."""
    if item.kind == "tmpfs":
        return check_tmpfs(BoundMount(target=item.target, kind="tmpfs", options=item.options))
    if not {"z", "Z"}.isdisjoint(item.options) and os.path.exists("/sys/fs/selinux/enforce"):
        raise Unsupported(
            f"mount {item.target}: SELinux is on, and this version does not label files for containers",
            hint=f"label it yourself (chcon -R -t container_file_t {item.source}) and leave out z and Z",
        )
    if spec.isolation is Level.VM:
        _check_machine(item)
    elif item.kind == "bind":
        _check_propagation(item, spec)
    if item.read_only and "recursive=readonly" in item.options and not {*_SHARED, *_RECEIVING}.isdisjoint(item.options):
        raise InvalidArgument(
            f"mount {item.target}: bind-recursive=readonly requires bind-propagation=rprivate", hint="leave bind-propagation out"
        )
    return None


def _check_machine(item: MountSpec) -> None:
    """A guest sees what the host had mounted below a directory when it started, through the monitor, which serves files and no mounts."""
    wanted = [option for option in item.options if option in (*_SHARED, *_RECEIVING)]
    if wanted:
        raise Unsupported(
            f"mount {item.target}: mounts do not propagate ({wanted[0]}) between a host and its virtual machine",
            hint="use --isolation process for it",
        )
    if "recursive=disabled" in item.options or "recursive=writable" in item.options:
        raise Unsupported(
            f"mount {item.target}: what a virtual machine sees of a directory is one file system, with everything below it",
            hint="leave bind-recursive out, or use --isolation process",
        )


def _check_propagation(item: MountSpec, spec: ContainerSpec) -> None:
    """Nothing propagates from a mount that is not shared itself. In Docker's words."""
    wanted = [option for option in item.options if option in (*_SHARED, *_RECEIVING)]
    if not wanted:
        return
    from nacre.linux.namespaces import propagation

    source = os.path.realpath(item.source)
    point, kind = propagation(source)
    if kind == "shared" or (kind == "slave" and wanted[0] in _RECEIVING):
        if wanted[0] in _SHARED and spec.userns not in ("", "host"):
            raise InvalidArgument(
                f"mount {item.target}: nothing propagates from a user namespace to the host",
                hint="use rslave, or --userns host",
            )
        return
    needed = "shared" if wanted[0] in _SHARED else "shared or slave"
    way_out = f"mount --make-shared {point}, or bind-propagation=rprivate"
    raise InvalidArgument(f"path {source} is mounted on {point} but it is not a {needed} mount", hint=way_out)
