"""``python -m nacre.engine.reap ROOT RUN ID [LOCK]``: settles a container whose sandbox has ended, and starts it again when that is owed.

A stem starts it when it ends and no engine is there to settle its container; an engine that settles one itself starts it when there is
a restart to be done (`nacre.engine.helpers`). While it waits it holds nothing that another verb needs.
"""

from __future__ import annotations

import sys
import time

from nacre.engine import Engine, helpers, restart
from nacre.errors import NacreError

PATIENCE = 60.0


def main(root: str, run: str, identifier: str, lock: str = "") -> int:
    """Wait until the stem has let go of the sandbox, settle the container, remove it when it asked for that, restart it when owed."""
    if lock:
        helpers.begin(lock)
    with Engine(root, run) as engine:
        lifecycle = engine.lifecycle
        lifecycle.reaping = True
        deadline = time.monotonic() + PATIENCE
        while lifecycle.alive(identifier) and not lock and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            record = lifecycle.finish(identifier)
            if record and record.spec.auto_remove:
                engine.containers.get(identifier).remove()
        except NacreError:
            if not lock:
                return 1  # another engine is working on it, or it is gone already
        helpers.serve(lifecycle.core.layout, "reap", identifier, lock, lambda: due(engine, identifier), lambda: again(engine, identifier))
    return 0


def due(engine: Engine, identifier: str) -> bool:
    """Whether a restart is owed."""
    found = engine.lifecycle.load(identifier)
    return bool(found and found[0].restart_at)


def again(engine: Engine, identifier: str) -> None:
    """Wait for the time of the restart, then start it. One that fails is not tried again, as with Docker; the record says why."""
    found = engine.lifecycle.load(identifier)
    if found and found[0].restart_at:
        time.sleep(restart.delay(found[0]))
        try:
            engine.containers.get(identifier).start_again()
        except NacreError:
            time.sleep(1.0)  # somebody is working on it, or the disk is full: it stays owed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
