"""The writable root file system of each container, above the shared layers.

::

    <root>/containers/<id>/upper/{upper,work}   level process: what overlayfs writes to
    <root>/containers/<id>/upper.ext4           level vm: a sparse disk with the same two directories inside
    <root>/containers/<id>/tree/                driver copy: everything
    <root>/templates/ext4-*                     empty disks, copied (or reflinked) in milliseconds

Everything is named by the container's id, and a part appears complete, by a rename, or not at all.
"""

from __future__ import annotations

import contextlib
import os

from nacre.errors import InvalidArgument
from nacre.linux.files import disk_usage, explained, locked, remove_tree, sparse_copy
from nacre.model.container import Rootfs
from nacre.storage.layers import LayerStore

DISK_SIZE = 16 << 30
_SMALLEST = 16 << 20
_PARTS = ("upper", "upper.ext4", "tree")
_WORKING = ".making-"


class RootfsStore:
    """Writable root file systems below `root`, on top of the layers of a `LayerStore`. Safe for several threads and processes."""

    def __init__(self, root: str, layers: LayerStore) -> None:
        self._root = os.path.abspath(root)
        self._layers = layers

    def prepare(self, container_id: str, diff_ids: tuple[str, ...], *, disk: bool = False, disk_size: int = DISK_SIZE) -> Rootfs:
        """Make what is missing of a container's root file system; what is there keeps its content.

        diff_ids: layers, base first. disk: for a virtual machine, with a disk of `disk_size` bytes (it occupies what is
        written to it) above images, whatever the driver; otherwise directories.
        Raises NotFound for a missing layer, InvalidArgument, NoSpace, HostError.
        """
        directory = self._directory(container_id)
        with explained(f"prepare the file system of container {container_id[:12]}"):
            os.makedirs(directory, 0o711, exist_ok=True)
            if disk:
                images = tuple(self._layers.image(diff_id) for diff_id in diff_ids)
                path = self._make_disk(directory, diff_ids, disk_size)
                return Rootfs(driver="erofs", layers=images, disk=path)
            layers = tuple(self._layers.get(diff_id) for diff_id in diff_ids)
            driver = self._layers.driver
            if driver == "copy":
                return Rootfs(driver=driver, layers=layers, tree=self._make_tree(directory, diff_ids))
            return Rootfs(driver=driver, layers=layers, upper=self._make_upper(directory, diff_ids))

    def remove(self, container_id: str) -> None:
        """Delete a container's files. Idempotent; a removal that was interrupted is completed by the next. Raises HostError."""
        directory = self._directory(container_id)
        with explained(f"remove the file system of container {container_id[:12]}"):
            for part in _PARTS:
                remove_tree(f"{directory}/{part}")
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(directory):
                    if name.startswith(_WORKING):
                        remove_tree(f"{directory}/{name}")
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def usage(self, container_id: str) -> int:
        """Bytes of disk that the container itself occupies, without its layers."""
        directory = self._directory(container_id)
        with explained(f"measure container {container_id[:12]}"):
            return sum(disk_usage(f"{directory}/{part}") for part in _PARTS)

    def _directory(self, container_id: str) -> str:
        if not container_id or not container_id.replace("-", "").replace("_", "").isalnum():
            raise InvalidArgument(f"{container_id!r} is no id of a container")
        return f"{self._root}/containers/{container_id}"

    # -- level process

    def _make_upper(self, directory: str, diff_ids: tuple[str, ...]) -> str:
        path = f"{directory}/upper"
        if not os.path.isdir(path):
            working = f"{directory}/{_WORKING}{os.urandom(8).hex()}"
            os.mkdir(working, 0o700)
            self._make_pair(working, self._layers.root_attributes(diff_ids))
            self._place(working, path)
        return path

    def _make_pair(self, path: str, attributes: tuple[int, int, int]) -> None:
        """The two directories of overlayfs. The root of the merged tree is the upper directory, so it gets the image's attributes."""
        mode, uid, gid = attributes
        os.mkdir(f"{path}/work", 0o700)
        os.mkdir(f"{path}/upper", 0o700)
        if (uid, gid) != (os.geteuid(), os.getegid()):
            os.chown(f"{path}/upper", uid, gid)
        os.chmod(f"{path}/upper", mode)

    def _make_tree(self, directory: str, diff_ids: tuple[str, ...]) -> str:
        path = f"{directory}/tree"
        if not os.path.isdir(path):
            from nacre.storage.merge import merge_layers

            working = f"{directory}/{_WORKING}{os.urandom(8).hex()}"
            os.mkdir(working, 0o700)
            try:
                merge_layers([self._layers.get(diff_id).path for diff_id in diff_ids], working)
                mode, uid, gid = self._layers.root_attributes(diff_ids)
                os.chown(working, uid, gid)
                os.chmod(working, mode)
                self._place(working, path)
            except BaseException:
                remove_tree(working)
                raise
        return path

    def _place(self, working: str, path: str) -> None:
        """Give a finished part its name, unless somebody else was faster."""
        try:
            os.rename(working, path)
        except OSError:
            remove_tree(working)
            if not os.path.isdir(path):
                raise

    # -- level vm

    def _make_disk(self, directory: str, diff_ids: tuple[str, ...], size: int) -> str:
        path = f"{directory}/upper.ext4"
        if not os.path.exists(path):
            template = self._template(size, self._layers.root_attributes(diff_ids))
            working = f"{directory}/{_WORKING}{os.urandom(8).hex()}"
            sparse_copy(template, working)
            os.rename(working, path)
        return path

    def _template(self, size: int, attributes: tuple[int, int, int]) -> str:
        """An empty disk of that size, made the first time. Its name depends on everything that it was made from."""
        import binascii

        from nacre.linux.run import find_program, missing_program

        size = -(-size // 4096) * 4096
        if size < _SMALLEST:
            raise InvalidArgument(f"a disk of {size} bytes is too small", hint=f"at least {_SMALLEST >> 20} MiB are needed")
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
            self._make_pair(f"{working}.d", attributes)
            with open(working, "wb") as file:
                file.truncate(size)
            check(["mkfs.ext4", "-q", "-F", *_options(size), "-d", f"{working}.d", working])
            os.rename(working, path)
        finally:
            for part in (working, f"{working}.d"):
                remove_tree(part)


def _options(size: int) -> list[str]:
    """Options of mkfs.ext4 that keep a fresh disk small (272 KiB for 16 GiB) and a killed guest's disk sound.

    A journal, but not written beforehand; no blocks kept for root or for a descriptor table that grows; and nothing that a kernel
    older than 5.15 would not mount.
    """
    journal = ["-J", "size=32"] if size >= 1 << 30 else []
    return ["-m", "0", "-O", "^resize_inode", *journal, "-E", "root_owner=0:0,lazy_journal_init=1"]
