"""Volumes: named directories that outlive containers."""

from __future__ import annotations

import builtins

from nacre.engine.core import Core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Volumes:
    """The volumes of one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def create(self, name: str) -> dict[str, Any]:
        """Make a volume (an existing one is fine). Raises InvalidArgument for a name Docker would refuse."""
        self._core.make_volume(name)
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
            "Labels": None,
            "Anonymous": volume.anonymous,
            "UsedBy": self._users(name),
        }

    def remove(self, name: str) -> None:
        """Delete it and what is in it. Raises Conflict while a container uses it, NotFound."""
        self._core.volumes.remove(name, in_use=self._users)
        self._core.event("volume", "destroy", name, driver="local")

    def prune(self, *, all: bool = False) -> builtins.list[str]:
        """Delete anonymous volumes (with `all` every one) that no container uses; the names deleted."""
        removed = []
        for volume in self._core.volumes.list():
            if (all or volume.anonymous) and not self._users(volume.name):
                self.remove(volume.name)
                removed.append(volume.name)
        return removed

    def _users(self, name: str) -> builtins.list[str]:
        database = self._core.database
        records = [found[0] for identifier in database.all() if (found := database.get(identifier))]
        return [record.name for record in records if any(f"name={name}" in mount.options for mount in record.mounts)]
