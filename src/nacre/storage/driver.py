"""The interface of storage drivers, and the one that most hosts use: layers stacked by overlayfs.

A driver makes the root file system of one container at level process in that container's own directory. Everything it makes
there has one of the names in `PARTS` and appears complete, so that `nacre.storage.rootfs` can remove it without knowing the driver.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from nacre.errors import HostError, InvalidArgument
from nacre.linux.files import remove_tree
from nacre.model.container import Rootfs
from nacre.model.value import Value
from nacre.storage.layers import LayerStore

# Directories that only root may enter: what a container makes in them, set-user-id programs too, is for nobody else on the host.
UPPER, TREE = "upper", "tree"
ROOT = "root"  # the root directory in a TREE
WORKING = ".making-"


class Limit(Value):
    """What a container may write: size in bytes, and a number that no other container on this file system has (for project quotas)."""

    size: int
    project: int


class Driver(ABC):
    """One way of making a root file system out of the layers of a store."""

    def __init__(self, layers: LayerStore) -> None:
        self.layers = layers

    @abstractmethod
    def prepare(self, directory: str, diff_ids: tuple[str, ...], limit: Limit | None) -> Rootfs:
        """Make what is missing in `directory`, which exists; what is there keeps its content.

        diff_ids: layers, base first. Raises NotFound for a missing layer, OSError, HostError when a limit cannot be kept.
        """

    def check_limit(self, directory: str) -> None:
        """Raise HostError when what containers write cannot be limited. directory: an empty one on the file system in question."""
        require_projects(directory)


class Overlay(Driver):
    """Drivers erofs and overlay: a directory that overlayfs writes to, over layers that the isolation level stacks."""

    def prepare(self, directory: str, diff_ids: tuple[str, ...], limit: Limit | None) -> Rootfs:
        """See `Driver`."""
        choice = self.layers.choice
        layers = tuple(self.layers.get(diff_id) for diff_id in diff_ids)
        upper = make_upper(directory, self.layers.root_attributes(diff_ids), limit)
        # What `RootfsStore.transient` made of an earlier start that failed: with this mark, overlayfs refuses to be mounted again.
        if os.path.isdir(mark := f"{upper}/work/work/incompat"):
            remove_tree(mark)
        return Rootfs(driver=choice.driver, layers=layers, upper=upper, options="userxattr" if choice.user_namespace else "")


def driver(name: str, layers: LayerStore) -> Driver:
    """The driver of that name. Raises InvalidArgument."""
    if name in ("erofs", "overlay"):
        return Overlay(layers)
    if name == "fuse-overlayfs":
        from nacre.storage.fuse import FuseOverlay

        return FuseOverlay(layers)
    if name == "btrfs":
        from nacre.storage.snapshots import Snapshots

        return Snapshots(layers)
    if name == "vfs":
        from nacre.storage.copies import Copies

        return Copies(layers)
    raise InvalidArgument(f"there is no storage driver {name!r}")


def make_upper(directory: str, attributes: tuple[int, int, int], limit: Limit | None) -> str:
    """The two directories that an overlay writes to; the path of what has them, ``<directory>/upper``."""
    path = f"{directory}/{UPPER}"
    if not os.path.isdir(path):
        working = new_working(directory)
        os.mkdir(working, 0o700)
        if limit:
            limit_tree(working, limit)
        make_pair(working, attributes)
        place(working, path)
    return path


def make_pair(path: str, attributes: tuple[int, int, int]) -> None:
    """The directories of overlayfs. The root of the merged tree is the upper directory, so it gets the image's (mode, uid, gid)."""
    mode, uid, gid = attributes
    os.mkdir(f"{path}/work", 0o700)
    os.mkdir(f"{path}/upper", 0o700)
    if (uid, gid) != (os.geteuid(), os.getegid()):
        os.chown(f"{path}/upper", uid, gid)
    os.chmod(f"{path}/upper", mode)


def new_working(directory: str) -> str:
    """A name for something under construction."""
    return f"{directory}/{WORKING}{os.urandom(8).hex()}"


def place(working: str, path: str) -> None:
    """Give a finished part its name, unless somebody else was faster."""
    try:
        os.rename(working, path)
    except OSError:
        remove_tree(working)
        if not os.path.isdir(path):
            raise


def limit_tree(path: str, limit: Limit) -> None:
    """Hold what will be in an empty directory to a size, by a project quota. Raises HostError where there are none."""
    from nacre.linux import quota

    require_projects(path)
    quota.limit_project(path, limit.project, limit.size)


def require_projects(path: str) -> None:
    """Raise HostError unless what is in a directory of this file system can be limited."""
    from nacre.linux import quota

    if not quota.has_projects(path):
        raise HostError(
            "the size of a container cannot be limited here: the file system has no project quotas",
            hint="put the root directory on XFS mounted with the option prjquota, use the storage driver btrfs, or --isolation vm",
            details=path,
        )
