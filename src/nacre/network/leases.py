"""Which container has which address: one symbolic link per lease, named by the address, pointing to the container's id.

Making the link is atomic and carries its whole content, so two processes cannot lease one address, and a process killed
anywhere leaves either the lease or nothing. Leases live in the run directory: they end with the boot, as the interfaces do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from nacre.errors import Conflict, InvalidArgument, NoSpace
from nacre.network.addresses import Subnet, to_int, to_text, version


class Leases:
    """The leases of one network. directory: exists already; a file beside it remembers the last address given."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._cursor = f"{directory}.last"

    def take(self, container_id: str, subnet: Subnet, wanted: str = "") -> str:
        """Lease an address, `wanted` or the next free one after the last given (so that a freed one is not reused at once).

        Raises Conflict when `wanted` is taken, InvalidArgument when it is not a host address of the subnet, NoSpace when none is free.
        """
        if wanted:
            return self._take_wanted(container_id, subnet, wanted)
        taken = set(os.listdir(self._directory))
        first, count = subnet.gateway + 1, subnet.last - subnet.gateway - 1
        start = self._last() + 1 - first
        for step in range(count):
            address = to_text(first + (max(start, 0) + step) % count)
            if address not in taken and self._link(container_id, address):
                self._remember(address)
                return address
        raise NoSpace(f"no free address in {subnet}", hint="remove containers, or choose a larger subnet (NACRE_SUBNET) for a new network")

    def release(self, container_id: str, address: str = "") -> None:
        """End the lease of a container, or all of its leases when no address is given. Idempotent."""
        for held in [address] if address else [found for found, _ in self.items()]:
            if self.holder(held) == container_id:
                self.drop(held)

    def holder(self, address: str) -> str:
        """Id of the container that has an address, "" when nobody has it."""
        try:
            return os.readlink(f"{self._directory}/{address}")
        except OSError:
            return ""

    def drop(self, address: str) -> None:
        """End one lease. Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{address}")

    def items(self) -> Iterator[tuple[str, str]]:
        """(address, container id) of each lease."""
        for address in os.listdir(self._directory):
            yield address, self.holder(address)

    def _take_wanted(self, container_id: str, subnet: Subnet, wanted: str) -> str:
        if version(wanted) != 4 or not subnet.gateway < to_int(wanted) < subnet.last:
            raise InvalidArgument(
                f"invalid address {wanted}: it is not a free host address of {subnet}",
                hint=f"choose one from {to_text(subnet.gateway + 1)} to {to_text(subnet.last - 1)}",
            )
        if not self._link(container_id, wanted):
            raise Conflict(f"Address already in use: {wanted}", hint="choose another address, or leave the choice to the network")
        return wanted

    def _link(self, container_id: str, address: str) -> bool:
        try:
            os.symlink(container_id, f"{self._directory}/{address}")
        except FileExistsError:
            return False
        return True

    def _last(self) -> int:
        try:
            with open(self._cursor) as file:
                return to_int(file.read().strip())
        except (OSError, ValueError):
            return 0

    def _remember(self, address: str) -> None:
        # Only a hint: losing it costs nothing. Of fixed length and written in place, which is cheaper than a new file.
        with contextlib.suppress(OSError):
            fd = os.open(self._cursor, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, f"{address:15}\n".encode())
            finally:
                os.close(fd)
