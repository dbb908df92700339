"""Driver vfs: every container has a complete copy of its image. It needs nothing of the kernel; blocks are shared where a file
system can share them between files (XFS, Btrfs).
"""

from __future__ import annotations

import os

from nacre.linux.files import remove_tree
from nacre.model.container import Rootfs
from nacre.storage.driver import ROOT, TREE, Driver, Limit, limit_tree, new_working, place
from nacre.storage.merge import merge_layers


class Copies(Driver):
    """Driver vfs."""

    def prepare(self, directory: str, diff_ids: tuple[str, ...], limit: Limit | None) -> Rootfs:
        """See `Driver`. A limit counts the image's own files too: they are the container's."""
        layers = tuple(self.layers.get(diff_id) for diff_id in diff_ids)
        path = f"{directory}/{TREE}"
        root = f"{path}/{ROOT}"
        if not os.path.isdir(path):
            working = new_working(directory)
            os.mkdir(working, 0o700)
            try:
                if limit:
                    limit_tree(working, limit)
                os.mkdir(f"{working}/{ROOT}")
                merge_layers([layer.path for layer in layers], f"{working}/{ROOT}")
                mode, uid, gid = self.layers.root_attributes(diff_ids)
                os.chown(f"{working}/{ROOT}", uid, gid)
                os.chmod(f"{working}/{ROOT}", mode)
                place(working, path)
            except BaseException:
                remove_tree(working)
                raise
        return Rootfs(driver="vfs", layers=layers, tree=root)
