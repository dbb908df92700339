"""Networks: what containers can be attached to."""

from __future__ import annotations

import builtins

from nacre.engine.core import Core
from nacre.model.network import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Networks:
    """The networks of one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self) -> builtins.list[Network]:
        """bridge, host and none."""
        return list(self._core.network.networks())

    def inspect(self, name: str) -> dict[str, Any]:
        """One network with the containers on it. Raises NotFound."""
        network = self._core.network.inspect(name)
        database = self._core.database
        records = [found[0] for identifier in database.all(active=True) if (found := database.get(identifier))]
        return {
            **network.to_data(),
            "containers": {
                record.id: {"Name": record.name, "IPv4Address": record.endpoint.address, "MacAddress": record.endpoint.mac}
                for record in records
                if record.endpoint and record.endpoint.network == network.name
            },
        }
