"""The writable root file system of each container, above the shared layers.

::

    <root>/containers/<id>/upper/{upper,work}   level process: what overlayfs writes to
    <root>/containers/<id>/tree/root/           drivers btrfs and vfs: everything
    <root>/containers/<id>/upper.ext4           level vm: a sparse disk with upper and work inside
    <root>/templates/ext4-*                     empty disks, copied (or reflinked) in milliseconds

Everything is named by the container's id, and a part appears complete, by a rename, or not at all.
"""

from __future__ import annotations

import contextlib
import os

from nacre.errors import InvalidArgument
from nacre.linux.files import disk_usage, explained, locked, remove_tree, sparse_copy
from nacre.model.container import Rootfs
from nacre.storage.driver import ROOT, TREE, UPPER, WORKING, Limit, driver, make_pair, new_working
from nacre.storage.layers import LayerStore

DISK_SIZE = 16 << 30
_SMALLEST = 16 << 20
_SUBVOLUME = 256  # inode number of the root of every subvolume of Btrfs
_DISK = "upper.ext4"
_PARTS = (UPPER, _DISK, TREE)


class RootfsStore:
    """Writable root file systems below `root`, on top of the layers of a `LayerStore`. Safe for several threads and processes."""

    def __init__(self, root: str, layers: LayerStore) -> None:
        self._root = os.path.abspath(root)
        self._layers = layers

    def prepare(self, container_id: str, diff_ids: tuple[str, ...], *, disk: bool = False, size: int = 0, project: int = 0) -> Rootfs:
        """Make what is missing of a container's root file system; what is there keeps its content.

        diff_ids: layers, base first. disk: for a virtual machine, with a sparse disk above images, whatever the driver; otherwise
        as the driver of the layer store does it. size: bytes that the container may write, of a disk: its size; 0 = no limit
        (16 GiB). project: a number that no other container has, for quotas. Both are heeded when its part is made.
        Raises NotFound for a missing layer, InvalidArgument, NoSpace, HostError.
        """
        directory = self._directory(container_id)
        with explained(f"prepare the file system of container {container_id[:12]}"):
            os.makedirs(directory, 0o711, exist_ok=True)
            if disk:
                images = tuple(self._layers.image(diff_id) for diff_id in diff_ids)
                return Rootfs(driver="erofs", layers=images, disk=self._make_disk(directory, diff_ids, size or DISK_SIZE))
            limit = Limit(size=size, project=project) if size else None
            return driver(self._layers.driver, self._layers).prepare(directory, diff_ids, limit)

    def check_size(self, size: int, *, disk: bool) -> None:
        """Refuse a size that `prepare` could not keep to. Raises InvalidArgument, HostError with the way out."""
        if disk:
            _check_disk_size(size)
            return
        with explained("limit the size of a container"), self._layers.scratch() as directory:
            driver(self._layers.driver, self._layers).check_limit(directory)

    def release(self, container_id: str) -> None:
        """End what a driver keeps running for a container that does not run any more. Idempotent. Raises HostError."""
        if os.path.isdir(f"{self._layers.run}/fuse/{container_id}"):
            from nacre.storage import fuse

            fuse.release(self._layers.run, container_id)

    def remove(self, container_id: str) -> None:
        """Delete a container's files. Idempotent; a removal that was interrupted is completed by the next. Raises HostError."""
        directory = self._directory(container_id)
        self.release(container_id)
        with explained(f"remove the file system of container {container_id[:12]}"):
            for part in (f"{directory}/{name}" for name in self._parts(directory)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    if os.lstat(f"{part}/{ROOT}").st_ino == _SUBVOLUME:
                        from nacre.linux import btrfs

                        btrfs.destroy(f"{part}/{ROOT}")  # at once; else file by file
                remove_tree(part)
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _parts(self, directory: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(directory) if name in _PARTS or name.startswith(WORKING)]
        return []

    def size(self, rootfs: Rootfs) -> int:
        """Bytes of disk that what a container has added or changed takes. Raises HostError."""
        from nacre.storage.changes import own_size

        return own_size(rootfs)

    def transient(self, rootfs: Rootfs) -> Rootfs:
        """The same for a container that is removed when it ends: what it writes need not reach the disk. Needs Linux 5.10, else no change.

        An overlay otherwise writes back all of the file system below it when it is unmounted, whoever has written there: that takes
        milliseconds on an idle disk, seconds on a busy one (the kernel's filesystems/overlayfs.rst, "Volatile mount").
        """
        if not rootfs.upper or rootfs.tree or not self._layers.choice.volatile:
            return rootfs
        return rootfs.replace(options=",".join(filter(None, (rootfs.options, "volatile"))))

    def usage(self, container_id: str) -> int:
        """Bytes of disk that everything made for the container takes; files that share blocks with others count in full."""
        directory = self._directory(container_id)
        with explained(f"measure container {container_id[:12]}"):
            return sum(disk_usage(f"{directory}/{part}") for part in _PARTS)

    def _directory(self, container_id: str) -> str:
        if not container_id or not container_id.replace("-", "").replace("_", "").isalnum():
            raise InvalidArgument(f"{container_id!r} is no id of a container")
        return f"{self._root}/containers/{container_id}"

    # -- level vm

    def _make_disk(self, directory: str, diff_ids: tuple[str, ...], size: int) -> str:
        path = f"{directory}/{_DISK}"
        if not os.path.exists(path):
            template = self._template(size, self._layers.root_attributes(diff_ids))
            working = new_working(directory)
            sparse_copy(template, working)
            os.rename(working, path)
        return path

    def _template(self, size: int, attributes: tuple[int, int, int]) -> str:
        """An empty disk of that size, made the first time. Its name depends on everything that it was made from."""
        import binascii

        from nacre.linux.run import find_program, missing_program

        size = -(-size // 4096) * 4096
        _check_disk_size(size)
        program = find_program("mkfs.ext4")
        if not program:
            raise missing_program("mkfs.ext4")
        tool = os.stat(program)
        key = binascii.crc32(repr((_options(size), attributes, tool.st_size, tool.st_mtime)).encode())
        directory = f"{self._root}/templates"
        path = f"{directory}/ext4-{size}-{key:08x}"
        if not os.path.exists(path):
            os.makedirs(directory, 0o700, exist_ok=True)
            with locked(f"{path}.lock"):
                if not os.path.exists(path):
                    self._make_template(path, size, attributes)
        return path

    def _make_template(self, path: str, size: int, attributes: tuple[int, int, int]) -> None:
        from nacre.linux.run import check

        working = f"{path}.making"
        for part in (working, f"{working}.d"):
            remove_tree(part)
        try:
            os.mkdir(f"{working}.d", 0o700)
            make_pair(f"{working}.d", attributes)
            with open(working, "wb") as file:
                file.truncate(size)
            check(["mkfs.ext4", "-q", "-F", *_options(size), "-d", f"{working}.d", working])
            os.rename(working, path)
        finally:
            for part in (working, f"{working}.d"):
                remove_tree(part)


def _check_disk_size(size: int) -> None:
    if size < _SMALLEST:
        raise InvalidArgument(f"a disk of {size} bytes is too small", hint=f"at least {_SMALLEST >> 20} MiB are needed")


def _options(size: int) -> list[str]:
    """Options of mkfs.ext4 that keep a fresh disk small (272 KiB for 16 GiB) and a killed guest's disk sound.

    A journal, but not written beforehand; no blocks kept for root or for a descriptor table that grows; and nothing that a kernel
    older than 5.15 would not mount.
    """
    journal = ["-J", "size=32"] if size >= 1 << 30 else []
    return ["-m", "0", "-O", "^resize_inode", *journal, "-E", "root_owner=0:0,lazy_journal_init=1"]
