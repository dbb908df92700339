"""Waiting for changes of files without looking again and again (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import select

MODIFY, ATTRIB, CLOSE_WRITE, MOVED_TO, CREATE = 0x2, 0x4, 0x8, 0x80, 0x100
_NONBLOCK, _CLOEXEC = 0o4000, 0o2000000


class Watch:
    """Changes in a directory: files written to, created, renamed into it. Close it, or use it as a context manager. Raises OSError."""

    def __init__(self, directory: str, mask: int = MODIFY | MOVED_TO | CREATE | CLOSE_WRITE) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            code = ctypes.get_errno()
            self.close()
            raise OSError(code, os.strerror(code), directory)

    def fileno(self) -> int:
        """The descriptor to select on."""
        return self._fd

    def wait(self, timeout: float | None = None) -> bool:
        """Until something has changed since the last call, or `timeout` seconds have passed; whether it has."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return False
        self.clear()
        return True

    def clear(self) -> None:
        """Forget what has changed up to now."""
        try:
            while os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give it up. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
