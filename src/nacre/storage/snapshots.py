"""Driver btrfs: a container is a snapshot of its image's stack of layers, made in one step whatever the size.

::

    <root>/stacks/<64 hex digits>/       named by the chain id of its layers (OCI image specification, config.md, "Layer ChainID")
        tree/                            a subvolume: the layers merged; files share their blocks with the layers'
        stack.json                       the layers, base first
    <root>/containers/<id>/tree/root/    a snapshot of it

A stack is made when the first container of an image is, from a snapshot of the longest stack that it begins with. It goes with
the first of its layers that goes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection

from nacre.errors import HostError
from nacre.linux import btrfs
from nacre.model.container import Rootfs
from nacre.storage.driver import ROOT, TREE, Driver, Limit, new_working, place
from nacre.storage.layers import LayerStore
from nacre.storage.merge import merge_layers
from nacre.storage.shelf import Shelf

_RECORD = "stack.json"


class Snapshots(Driver):
    """Driver btrfs."""

    def __init__(self, layers: LayerStore) -> None:
        super().__init__(layers)
        self._shelf = Shelf(f"{layers.root}/stacks")

    def prepare(self, directory: str, diff_ids: tuple[str, ...], limit: Limit | None) -> Rootfs:
        """See `Driver`."""
        layers = tuple(self.layers.get(diff_id) for diff_id in diff_ids)
        path = f"{directory}/{TREE}"
        if not os.path.isdir(path):
            working = new_working(directory)
            os.mkdir(working, 0o700)
            btrfs.snapshot(f"{self._stack(diff_ids)}/{TREE}", f"{working}/{ROOT}")
            if limit:
                _limit(f"{working}/{ROOT}", limit)
            place(working, path)
        return Rootfs(driver="btrfs", layers=layers, tree=f"{path}/{ROOT}")

    def check_limit(self, directory: str) -> None:
        """See `Driver`."""
        path = f"{directory}/{TREE}"
        btrfs.create_subvolume(path)
        _limit(path, Limit(size=1 << 20, project=0))

    def _stack(self, diff_ids: tuple[str, ...]) -> str:
        """The directory of the stack of these layers, made when it is missing."""
        chain = chain_ids(diff_ids)
        name = chain[-1]
        path = f"{self._shelf.path}/{name}"
        if not os.path.isdir(path):
            with self._shelf.changing(name, f"stack the layers of {name[:12]}"):
                if not os.path.isdir(path):
                    self._make(path, chain, diff_ids)
        return path

    def _make(self, path: str, chain: list[str], diff_ids: tuple[str, ...]) -> None:
        with self._shelf.temporary() as temporary:
            tree = f"{temporary}/{TREE}"
            done = self._begin(tree, chain)
            try:
                merge_layers([self.layers.get(diff_id).path for diff_id in diff_ids[done:]], tree)
                mode, uid, gid = self.layers.root_attributes(diff_ids)
                os.chown(tree, uid, gid)
                os.chmod(tree, mode)
                with open(f"{temporary}/{_RECORD}", "w", encoding="ascii") as file:
                    json.dump(diff_ids, file)
                os.rename(temporary, path)
            except BaseException:
                btrfs.destroy(tree)
                raise

    def _begin(self, tree: str, chain: list[str]) -> int:
        """Make a subvolume with as many of the layers as another stack has; returns how many."""
        for count in range(len(chain) - 1, 0, -1):
            try:
                btrfs.snapshot(f"{self._shelf.path}/{chain[count - 1]}/{TREE}", tree)
                return count
            except FileNotFoundError:
                continue
        btrfs.create_subvolume(tree)
        return 0


def chain_ids(diff_ids: Collection[str]) -> list[str]:
    """Hexadecimal chain ids of the first, the first two, ... of the layers (base first); of no layers: that of nothing."""
    import hashlib

    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            chain.append(hashlib.sha256(f"sha256:{chain[-1]} {diff_id}".encode()).hexdigest())
        else:
            chain.append(diff_id.partition(":")[2])
    return chain or [hashlib.sha256().hexdigest()]


def prune_stacks(root: str, wanted: Collection[str]) -> None:
    """Remove the stacks with a layer that is not wanted. Containers made from them are whole without. Raises HostError."""
    shelf = Shelf(f"{root}/stacks")
    for name in shelf.names():
        with open(f"{shelf.path}/{name}/{_RECORD}", encoding="ascii") as file:
            diff_ids = json.load(file)
        if not set(diff_ids) <= set(wanted):
            with shelf.changing(name, f"remove the stack of layers {name[:12]}"), shelf.temporary() as temporary:
                os.rename(f"{shelf.path}/{name}", f"{temporary}/old")
                btrfs.destroy(f"{temporary}/old/{TREE}")
    shelf.sweep()


def _limit(path: str, limit: Limit) -> None:
    try:
        btrfs.limit(path, limit.size)
    except OSError as error:
        btrfs.destroy(path)
        if error.errno not in (errno.ENOTCONN, errno.EPERM):
            raise
        off = error.errno == errno.ENOTCONN
        raise HostError(
            f"the size of a container cannot be limited here: {'quotas are off on this Btrfs' if off else 'that is not permitted'}",
            hint=f"btrfs quota enable {os.path.dirname(path)}" if off else "run as root",
        ) from error
