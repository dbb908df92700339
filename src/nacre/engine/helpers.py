"""Detached helper processes: what has to happen for a container while no caller of the engine is there.

One module per kind, run as ``python -m nacre.engine.<kind> ROOT RUN ID``: `reap` settles a container that has ended and starts it again
when its policy says so, `health` carries out its health check, `forward` hands its log on. A helper has no terminal, no descriptors of
its caller's and no child relation to it, and it is disposable. Its mark ``RUN/helpers/ID.<kind>`` is locked from before its birth until
its end and deleted when its work is done, so that a mark that nobody holds says: it was killed, start another (`revive`, in every sweep).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from nacre.errors import Conflict, HostError
from nacre.isolation.process import environment
from nacre.store import Layout, Lock, is_locked

DIRECTORY = "helpers"
# A shell that puts it into the background and ends, so that nobody has to reap it.
_DETACH = ("/bin/sh", "-c", '"$@" &', "sh")


def mark(layout: Layout, kind: str, identifier: str) -> str:
    """Path of a helper's mark."""
    return f"{layout.run}/{DIRECTORY}/{identifier}.{kind}"


def launch(layout: Layout, kind: str, identifier: str) -> None:
    """Start a helper unless one is at work. Raises HostError when it cannot be started; a sweep tries again then."""
    try:
        lock = _lock(layout, kind, identifier)
    except Conflict:
        return  # it looks for more work before it leaves (`serve`)
    except OSError as error:
        raise _unstarted(kind, identifier, error) from error
    with lock:
        command = [sys.executable, "-P", "-m", f"nacre.engine.{kind}", layout.root, layout.run, identifier, str(lock.fd)]
        # Duplicating the lock onto itself clears close-on-exec in the child alone.
        null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
        actions = [null, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2), (os.POSIX_SPAWN_DUP2, lock.fd, lock.fd)]
        try:
            os.waitpid(os.posix_spawn(_DETACH[0], [*_DETACH, *command], environment(), file_actions=actions, setsid=True), 0)
        except OSError as error:
            raise _unstarted(kind, identifier, error) from error


def _unstarted(kind: str, identifier: str, error: OSError) -> HostError:
    return HostError(f"could not start the {kind} helper of container {identifier[:12]}: {error.strerror}")


def _lock(layout: Layout, kind: str, identifier: str) -> Lock:
    path = mark(layout, kind, identifier)
    try:
        return Lock(path, wait=0)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        return Lock(path, wait=0)


def begin(inherited: str) -> None:
    """The first thing that a helper started by `launch` does: close what came from its caller's callers, all but the locked mark."""
    lock = int(inherited)
    os.closerange(3, lock)
    os.closerange(lock + 1, 1 << 20)
    os.set_inheritable(lock, False)


def serve(layout: Layout, kind: str, identifier: str, inherited: str, due: Callable[[], bool], work: Callable[[], None]) -> None:
    """A helper's life: work as long as something is due. inherited: the descriptor of the locked mark, "" = take the lock here.

    Whoever asks for a helper while one is leaving is told that there is one, so it asks itself once more when its mark is gone.
    """
    try:
        lock = int(inherited) if inherited else _lock(layout, kind, identifier).fd
        while True:
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            while due():
                work()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mark(layout, kind, identifier))
            if not due():
                return
            os.close(lock)
            lock = _lock(layout, kind, identifier).fd
    except Conflict:
        return


def dismiss(layout: Layout, kind: str, identifier: str) -> None:
    """End a helper whose work is not wanted any more. The caller makes sure that it is in the middle of nothing. Never raises."""
    path = mark(layout, kind, identifier)
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            pid = int(file.read())
        # As long as the mark is locked, the number cannot have been given to a stranger.
        if is_locked(path) and pid != os.getpid():
            os.kill(pid, signal.SIGTERM)
            os.unlink(path)


def revive(layout: Layout) -> None:
    """Start anew what was killed. Costs one directory listing when there are no helpers. Never raises."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{layout.run}/{DIRECTORY}"):
            if not is_locked(f"{layout.run}/{DIRECTORY}/{name}"):
                identifier, _, kind = name.partition(".")
                with contextlib.suppress(HostError):
                    launch(layout, kind, identifier)
