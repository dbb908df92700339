"""The engine's shared state: directories, database and the rooms it joins, each made when first needed."""

from __future__ import annotations

import time
from functools import cached_property, partial

from nacre.errors import NotFound
from nacre.model.container import Container
from nacre.model.moment import parse
from nacre.store import Database, Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nacre.images.store import ImageStore
    from nacre.model.container import LayerMount
    from nacre.model.image import Image
    from nacre.model.volume import Volume
    from nacre.network.manager import NetworkManager
    from nacre.storage.layers import LayerStore
    from nacre.storage.rootfs import RootfsStore
    from nacre.storage.volumes import VolumeStore


class Core:
    """What the verbs share. Not for callers of the engine."""

    def __init__(self, root: str | None, run: str | None, storage_driver: str | None) -> None:
        self.layout = Layout(root, run)
        self.storage_driver = storage_driver

    @cached_property
    def database(self) -> Database:
        """The database, opened on first use."""
        return Database(self.layout.database)

    @cached_property
    def images(self) -> ImageStore:
        """Image records and content."""
        from nacre.images.store import ImageStore

        return ImageStore(self.layout.root)

    @cached_property
    def layers(self) -> LayerStore:
        """Unpacked layers."""
        from nacre.storage.layers import LayerStore

        return LayerStore(self.layout.root, run=self.layout.run, driver=self.storage_driver)

    @cached_property
    def rootfs(self) -> RootfsStore:
        """Writable root file systems."""
        from nacre.storage.rootfs import RootfsStore

        return RootfsStore(self.layout.root, self.layers)

    def storage(self, kept: str) -> tuple[LayerStore, RootfsStore]:
        """Layers and root file systems by the driver that a container has been made with ("" = by the one in use).

        A container keeps its driver, whatever is the best by now: only erofs and overlay, which write alike, may take turns.
        Raises HostError when it cannot work any more.
        """
        stacked = ("erofs", "overlay")
        if not kept or kept == (driver := self.layers.driver) or (kept in stacked and driver in stacked):
            return self.layers, self.rootfs
        from nacre.storage.layers import LayerStore
        from nacre.storage.rootfs import RootfsStore

        layers = LayerStore(self.layout.root, run=self.layout.run, driver=kept)
        return layers, RootfsStore(self.layout.root, layers)

    @cached_property
    def volumes(self) -> VolumeStore:
        """Named volumes."""
        from nacre.storage.volumes import VolumeStore

        return VolumeStore(self.layout.root, self.layout.run)

    @cached_property
    def network(self) -> NetworkManager:
        """Networks and endpoints."""
        from nacre.network.manager import NetworkManager, owns_network

        if owns_network():
            return NetworkManager(self.layout.root, self.layout.run)
        from nacre.isolation.rootless import keep
        from nacre.network.rootless import RootlessNetwork

        return RootlessNetwork(self.layout.root, self.layout.run, partial(keep, self.layout.run))

    def event(self, kind: str, action: str, identifier: str, **attributes: str) -> None:
        """Append to the journal. kind: container, image, volume, network."""
        entry: dict[str, Any] = {"time": time.time(), "type": kind, "action": action, "id": identifier, "attributes": attributes}
        self.database.record_event(entry)

    def container_event(self, record: Container, action: str, **attributes: str) -> None:
        """Append an event of a container, with the attributes that Docker gives it: name, image and labels are in every one."""
        common = {**record.image_config.labels, **record.spec.labels, "name": record.name, "image": record.image_name}
        entry = {"time": time.time(), "type": "container", "action": action, "id": record.id, "attributes": {**common, **attributes}}
        self.database.record_event(entry)

    def use_events(self, record: Container, network: str, volume: str) -> None:
        """Append the events of what a container takes into use with its start, and gives back at its end.

        network: connect or disconnect; volume: mount or unmount.
        """
        if record.endpoint:
            name = record.endpoint.network
            kind = {"host": "host", "none": "null"}.get(name, "bridge")
            self.event("network", network, name, container=record.id, name=name, type=kind)
        for mount in record.mounts:
            if mount.kind == "volume":
                more = {"destination": mount.target, "read/write": str(not mount.read_only).lower()} if volume == "mount" else {}
                self.event("volume", volume, mount.options[0].removeprefix("name="), container=record.id, driver="local", **more)

    def layer_mounts(self, image: Image) -> tuple[LayerMount, ...]:
        """The layers of an image, unpacked from their blobs where another storage driver has left them in a form of no use.

        Raises NotFound, BadContent.
        """
        try:
            return tuple(self.layers.get(layer.diff_id) for layer in image.layers)
        except NotFound:
            self.unpack(image, self.layers)
            return tuple(self.layers.get(layer.diff_id) for layer in image.layers)

    def unpack(self, image: Image, layers: LayerStore) -> None:
        """Unpack the layers of an image that a store lacks from the blobs that pulling and loading have kept. Raises BadContent."""
        from nacre.images.layers import unpack_kept

        with self.images.hold():
            unpack_kept(self.images.content, image.layers, layers)

    def volume_users(self, name: str, *, other_than: str = "") -> list[str]:
        """Names of the containers that use a volume, but for the one with that id."""
        records = [found[0] for identifier in self.database.all() if (found := self.database.get(identifier))]
        return [
            record.name for record in records if record.id != other_than and any(f"name={name}" in mount.options for mount in record.mounts)
        ]

    def make_volume(
        self, name: str, *, anonymous: bool = False, labels: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None
    ) -> Volume:
        """Make a volume, which is an event; an existing one is fine.

        Raises InvalidArgument for a name that Docker would refuse or for bad options, Conflict when it exists with others.
        """
        try:
            known = bool(self.volumes.get(name))
        except NotFound:
            known = False
        volume = self.volumes.create(name, anonymous=anonymous, labels=labels, options=options)
        if not known:
            self.event("volume", "create", name, driver="local")
        return volume

    def close(self) -> None:
        """Close the database if it was opened. Idempotent."""
        if "database" in self.__dict__:
            self.database.close()
            del self.__dict__["database"]


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with nanoseconds, as Docker prints it."""
    nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:09d}Z"


def seconds(text: str) -> float:
    """The inverse of `timestamp`; 0.0 for "" (never)."""
    return parse(text) if text else 0.0
