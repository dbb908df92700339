"""Images: pulled, loaded, tagged, removed."""

from __future__ import annotations

import builtins
from collections.abc import Callable

from nacre.engine.core import Core
from nacre.model.container import Container as Record
from nacre.model.image import History, Image, Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO


class Images:
    """The images of one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def pull(self, reference: str, *, platform: str | None = None, progress: Callable[[Progress], None] | None = None) -> Image:
        """Fetch an image and unpack its layers. platform: os/architecture[/variant], None = this host's.

        Raises InvalidArgument, RemoteError, NotFound, NoSpace.
        """
        from nacre.images.platform import parse_platform
        from nacre.images.pull import pull

        wanted = parse_platform(platform) if platform else None
        self._core.layers.sweep()
        try:
            image = pull(self._core.images, reference, platform=wanted, sink=self._core.layers, progress=progress)
        except BaseException:
            self._core.images.collect(self._prune_layers)  # layers that came before what failed
            raise
        self._core.event("image", "pull", reference, name=reference)
        return image

    def load(self, source: str | BinaryIO, *, progress: Callable[[Progress], None] | None = None) -> builtins.list[Image]:
        """Import a docker-archive or OCI layout: a path, or an open binary file (which need not be seekable)."""
        from nacre.images.archive import load

        images = load(self._core.images, source, sink=self._core.layers, progress=progress)
        for image in images:
            self._core.event("image", "load", image.id, name=image.tags[0] if image.tags else image.id)
        return images

    def list(self) -> builtins.list[Image]:
        """All images, newest first."""
        return sorted(self._core.images.list(), key=lambda image: image.created, reverse=True)

    def get(self, reference: str) -> Image:
        """By reference, id, id prefix or digest. Raises NotFound."""
        return self._core.images.resolve(reference)

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name. Raises NotFound, InvalidArgument."""
        self._core.images.tag(source, target)
        self._core.event("image", "tag", self.get(target).id, name=target)

    def remove(self, reference: str, *, force: bool = False) -> builtins.list[tuple[str, str]]:
        """Take a name away, and with the last name the image: ("untagged" | "deleted", what). Raises NotFound, Conflict when in use."""
        self._core.database.make_room()
        removed = self._core.images.remove(reference, force=force, in_use=self._users, running=self._running_users)
        done = [("deleted", item.deleted) if item.deleted else ("untagged", item.untagged) for item in removed]
        self._core.images.collect(self._prune_layers)
        for action, what in done:
            self._core.event("image", "untag" if action == "untagged" else "delete", what, name=what)
        return done

    def _prune_layers(self, wanted: frozenset[str]) -> None:
        self._core.layers.prune(wanted | self._layers_in_use())

    def history(self, reference: str) -> builtins.list[History]:
        """How it was made, newest step first."""
        return list(self._core.images.history(reference))

    def inspect(self, reference: str) -> dict[str, Any]:
        """Everything known about it, shaped like Docker's."""
        from nacre.engine.inspect import image_json

        return image_json(self.get(reference))

    def _records(self) -> builtins.list[Any]:
        database = self._core.database
        return [found[0] for identifier in database.all() if (found := database.get(identifier))]

    def _users(self, image: Image) -> builtins.list[str]:
        return [record.id[:12] for record in self._records() if _uses(record, image)]

    def _running_users(self, image: Image) -> builtins.list[str]:
        database = self._core.database
        active = (found[0] for identifier in database.all(live=True) if (found := database.get(identifier)))
        return [record.id[:12] for record in active if _uses(record, image)]

    def _layers_in_use(self) -> set[str]:
        return {layer.diff_id for record in self._records() if record.rootfs for layer in record.rootfs.layers}


def _uses(record: Record, image: Image) -> bool:
    """As its root file system, or mounted into it."""
    return record.image_id == image.id or any(mount.kind == "image" and mount.source == image.id for mount in record.mounts)
