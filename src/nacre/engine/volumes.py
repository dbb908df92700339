"""Volumes: named directories that outlive containers."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Mapping

from nacre.engine.core import Core
from nacre.errors import Conflict, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Volumes:
    """The volumes of one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def create(self, name: str, *, labels: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Make a volume (an existing one is fine, and stays as it is).

        options: type, device and o as mount(8) has them, of what is mounted there while a container uses it.
        Raises InvalidArgument for a name Docker would refuse or for bad options, Conflict when it exists with other options.
        """
        self._core.make_volume(name, labels=labels, options=options)
        return self.inspect(name)

    def list(self) -> builtins.list[dict[str, Any]]:
        """All volumes, by name."""
        return [self.inspect(volume.name) for volume in self._core.volumes.list()]

    def inspect(self, name: str) -> dict[str, Any]:
        """One volume, shaped like Docker's. Raises NotFound."""
        volume = self._core.volumes.get(name)
        return {
            "Name": volume.name,
            "Driver": "local",
            "Mountpoint": volume.path,
            "Scope": "local",
            "CreatedAt": volume.created,
            "Labels": volume.labels or None,
            "Options": volume.options or None,
            "Anonymous": volume.anonymous,
            "UsedBy": self._core.volume_users(name),
        }

    def remove(self, name: str) -> None:
        """Delete it and what is in it. Raises Conflict while a container uses it, NotFound."""
        self._core.volumes.remove(name, in_use=self._core.volume_users)
        self._core.event("volume", "destroy", name, driver="local")

    def prune(self, *, all: bool = False, only: Callable[[Mapping[str, str]], bool] | None = None) -> builtins.list[str]:
        """Delete anonymous volumes (with `all` every one) that no container uses; the names deleted. only: judges by the labels."""
        removed = []
        for volume in self._core.volumes.list():
            if (all or volume.anonymous) and (only is None or only(volume.labels)) and not self._core.volume_users(volume.name):
                with contextlib.suppress(Conflict, NotFound):  # somebody was faster
                    self.remove(volume.name)
                    removed.append(volume.name)
        return removed
