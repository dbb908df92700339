"""A directory of things that appear complete or not at all, each made or removed by one process at a time.

::

    <path>/<name>                        a thing, complete
    <path>/.lock-<name>                  held while it is made or removed
    <path>/.tmp-*                        under construction or on the way out; locked by the process at work

Temporary directories whose process is gone are swept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from nacre.linux.files import explained, locked, remove_tree

_TEMPORARY = ".tmp-"
_LOCK = ".lock-"


class Shelf:
    """The things below `path`, which is made when something is first put there. Safe for several threads and processes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def names(self) -> list[str]:
        """What there is, complete, in no order."""
        return [name for name in self._entries() if not name.startswith(".")]

    @contextlib.contextmanager
    def changing(self, name: str, action: str) -> Iterator[None]:
        """Hold the right to make or remove a thing; failures of the disk are put into words ("cannot <action>: ...")."""
        with explained(action):
            os.makedirs(self.path, 0o700, exist_ok=True)
            with locked(f"{self.path}/{_LOCK}{name}"):
                yield

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """A directory of our own, locked as long as we live, gone afterwards unless it was renamed."""
        path, fd = self._make_temporary()
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                remove_tree(path)
            os.close(fd)

    def discard(self, path: str) -> None:
        """Take a thing out of sight at once, then delete it; fine when it is not there."""
        with self.temporary() as temporary:
            try:
                os.rename(path, f"{temporary}/old")
            except FileNotFoundError:
                return

    def sweep(self) -> None:
        """Remove what processes left that were killed at work. Never touches what a living one works on."""
        for name in self._entries():
            if name.startswith(_TEMPORARY):
                with contextlib.suppress(OSError):
                    self._sweep_one(f"{self.path}/{name}")
            elif name.startswith(_LOCK):
                with contextlib.suppress(OSError), locked(f"{self.path}/{name}", wait=False):
                    pass

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    def _make_temporary(self) -> tuple[str, int]:
        while True:
            path = f"{self.path}/{_TEMPORARY}{os.urandom(8).hex()}"
            os.mkdir(path, 0o700)
            # A sweeper may come between: then the directory is gone, and we take another.
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    if os.path.samestat(os.fstat(fd), os.stat(path)):
                        return path, fd
                except FileNotFoundError:
                    pass
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)

    def _sweep_one(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
        finally:
            os.close(fd)
