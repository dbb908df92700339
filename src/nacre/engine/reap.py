"""``python -m nacre.engine.reap ROOT RUN ID``: what a stem starts when it ends and no engine is there to settle its container."""

from __future__ import annotations

import sys
import time

from nacre.engine import Engine
from nacre.errors import NacreError

PATIENCE = 60.0


def main(root: str, run: str, identifier: str) -> int:
    """Wait until the stem has let go of the sandbox, settle the container, remove it when it asked for that."""
    with Engine(root, run) as engine:
        deadline = time.monotonic() + PATIENCE
        while engine.lifecycle.alive(identifier) and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            record = engine.lifecycle.finish(identifier)
            if record and record.spec.auto_remove:
                engine.containers.get(identifier).remove()
        except NacreError:
            return 1  # another engine is working on it, or it is gone already
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
