"""Driver fuse-overlayfs: layers are stacked by a program of that name, for those who may not mount overlayfs or have no disk for it.

The program serves one mount in the run directory, which the container's own is bound from::

    <root>/containers/<id>/upper/{upper,work}   what it writes to
    <run>/fuse/<id>/root                        where it is mounted while the container runs

It is started with the container and ends when that is unmounted. One that was killed leaves a dead mount, which the next start replaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from nacre.errors import HostError, Unsupported
from nacre.linux.files import explained
from nacre.linux.run import check
from nacre.model.container import Rootfs
from nacre.storage.driver import Driver, Limit, make_upper

PROGRAM = "fuse-overlayfs"
_DETACH, _NOFOLLOW = 2, 8  # umount2(2)


class FuseOverlay(Driver):
    """Driver fuse-overlayfs."""

    def prepare(self, directory: str, diff_ids: tuple[str, ...], limit: Limit | None) -> Rootfs:
        """See `Driver`. The program serves until `release`."""
        layers = tuple(self.layers.get(diff_id) for diff_id in diff_ids)
        upper = make_upper(directory, self.layers.root_attributes(diff_ids), limit)
        identifier = os.path.basename(directory)
        release(self.layers.run, identifier)
        place = _place(self.layers.run, identifier)
        # Nobody else on the host may come near what a container has made.
        os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
        point = f"{place}/root"
        os.makedirs(point, exist_ok=True)
        serve([layer.path for layer in layers], upper, point)
        return Rootfs(driver=PROGRAM, layers=layers, upper=upper, tree=point)


def serve(layers: list[str], upper: str, point: str) -> None:
    """Start the program over layers (directories, base first). Raises HostError, Unsupported for paths that it cannot be told."""
    if any(set(":,\\") & set(path) for path in (*layers, upper)):
        raise Unsupported(
            f"fuse-overlayfs cannot work below {os.path.dirname(upper)}: the path has a colon, a comma or a backslash in it",
            hint="choose another directory with --root or NACRE_ROOT",
        )
    options = f"lowerdir={':'.join(reversed(layers))},upperdir={upper}/upper,workdir={upper}/work,dev,suid"
    check([PROGRAM, "-o", options, point])


def release(run: str, identifier: str) -> None:
    """End the program that serves a container, if there is one. Idempotent. Raises HostError."""
    place = _place(run, identifier)
    if not os.path.isdir(place):
        return
    with explained(f"unmount the file system of container {identifier[:12]}"):
        unmount(f"{place}/root")
        for path in (f"{place}/root", place):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)


def unmount(point: str) -> None:
    """Take every mount at a place away, also a dead one and one that is in use; none is fine. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.umount2(os.fsencode(point), _DETACH | _NOFOLLOW) == 0:
        pass
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT):
        raise OSError(code, os.strerror(code), point)


def attempt(directory: str) -> None:
    """Try the program in an empty directory. Raises HostError, OSError."""
    for name in ("lower", "lower/deleted", "upper", "upper/upper", "upper/work", "point"):
        os.mkdir(f"{directory}/{name}")
    serve([f"{directory}/lower"], f"{directory}/upper", f"{directory}/point")
    try:
        os.rmdir(f"{directory}/point/deleted")
        if os.path.exists(f"{directory}/point/deleted"):
            raise HostError("a deleted directory is still there")
    finally:
        unmount(f"{directory}/point")


def _place(run: str, identifier: str) -> str:
    return f"{run}/fuse/{identifier}"
