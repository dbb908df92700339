"""IPv4 arithmetic. Pure functions; a fraction of the import time of the standard library's `ipaddress`, which `run` would pay."""

from __future__ import annotations

import _socket

from nacre.errors import InvalidArgument
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


def version(text: str) -> int:
    """4 or 6 for an IP address in its usual notation, 0 for anything else."""
    for number, family in ((4, _socket.AF_INET), (6, _socket.AF_INET6)):
        try:
            _socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return number
    return 0


def to_int(address: str) -> int:
    """An IPv4 address as a number. Raises OSError when it is none."""
    return int.from_bytes(_socket.inet_pton(_socket.AF_INET, address), "big")


def to_text(number: int) -> str:
    """The number of an IPv4 address in dotted notation."""
    return _socket.inet_ntop(_socket.AF_INET, number.to_bytes(4, "big"))


class Subnet(Value):
    """An IPv4 subnet: its first address as a number, and the length of its prefix."""

    base: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "a.b.c.d/len"; host bits are dropped. Raises InvalidArgument."""
        address, _, length = text.partition("/")
        try:
            bits = int(length) if length.isascii() and length.isdigit() else -1
            base = to_int(address)
        except (OSError, ValueError):
            bits, base = -1, 0
        if not 0 <= bits <= 32:
            raise InvalidArgument(f"{text!r} is not an IPv4 subnet", hint="write it as 10.88.0.0/16")
        return cls(base=base >> (32 - bits) << (32 - bits), length=bits)

    def __str__(self) -> str:
        return f"{to_text(self.base)}/{self.length}"

    @property
    def last(self) -> int:
        """The last address, which is the broadcast address."""
        return self.base | (0xFFFFFFFF >> self.length)

    @property
    def gateway(self) -> int:
        """The first usable address: the bridge's."""
        return self.base + 1

    def holds(self, address: int) -> bool:
        """Whether the address lies in the subnet."""
        return self.base <= address <= self.last

    def overlaps(self, other: Subnet) -> bool:
        """Whether the two have an address in common."""
        return self.base <= other.last and other.base <= self.last
