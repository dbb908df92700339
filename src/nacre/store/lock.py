"""File locks (flock(2)): owned by an open file description, inherited by children, released by the kernel when the last one dies."""

from __future__ import annotations

import fcntl
import os
import time
from types import TracebackType

from nacre.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Lock:
    """An exclusive (or shared) lock on a file. Use as a context manager, or keep `fd`.

    create: make the file when it is absent; otherwise FileNotFoundError is raised. directory: it is a directory, which exists.
    wait: seconds to wait for another holder; 0 = not at all, None = for ever.
    Raises Conflict("... is busy") when the lock is not free in time; `busy` is the message.
    """

    def __init__(
        self, path: str, *, shared: bool = False, create: bool = True, directory: bool = False, wait: float | None = None, busy: str = ""
    ) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_RDWR | (os.O_CREAT if create else 0)
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            if wait is None:
                fcntl.flock(self.fd, mode)
            else:
                self._poll(mode, time.monotonic() + wait, busy)
        except BaseException:
            os.close(self.fd)
            raise

    def _poll(self, mode: int, deadline: float, busy: str) -> None:
        pause = 0.001
        while True:
            try:
                fcntl.flock(self.fd, mode | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Conflict(busy or f"{self.path} is in use by another process") from None
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def release(self) -> None:
        """Give the lock up. Idempotent. Copies of `fd` in other processes keep it held."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def is_locked(path: str) -> bool:
    """Whether somebody holds the lock exclusively: the kernel's answer to "is it running?". A missing file is not locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
