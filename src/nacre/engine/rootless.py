"""Into the namespaces of an ordinary user, with what its running containers need there."""

from __future__ import annotations

import contextlib

from nacre.errors import NacreError
from nacre.isolation import rootless


def enter(root: str | None = None, run: str | None = None) -> tuple[str | None, str | None]:
    """See `nacre.isolation.rootless.enter`. When what keeps the namespaces had died, running containers get their way outside back."""
    return rootless.enter(root, run, rejoined=_reconnect)


def _reconnect(root: str, run: str) -> None:
    from nacre.engine.core import Core

    # Whoever needs the network will be told why it does not work.
    with contextlib.suppress(NacreError, OSError):
        Core(root, run, None).network.restore()
