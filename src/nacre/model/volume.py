"""Volumes as values."""

from __future__ import annotations

from nacre.model.value import Value


class Volume(Value):
    """A named directory that outlives containers. path: of its content on the host; created: RFC 3339; anonymous: named by nobody.

    options: type, device and o of what is mounted there while a container uses it, {} = nothing.
    """

    name: str
    path: str
    created: str = ""
    labels: dict[str, str] = {}
    anonymous: bool = False
    options: dict[str, str] = {}
