"""The terminal of a process in the foreground: bytes between its master and our own standard streams."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_CHUNK = 65536


def carry(master: int) -> None:
    """Copy in both directions until the other side of the terminal is closed; closes `master`. Our terminal is raw meanwhile."""
    saved = termios.tcgetattr(0) if os.isatty(0) else None

    def resized(_number: int = 0, _frame: FrameType | None = None) -> None:
        if os.isatty(0):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        if saved:
            _raw(saved)
            if struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))[0]:
                resized()
        _copy(master)
    finally:
        signal.signal(signal.SIGWINCH, before)
        if saved:
            termios.tcsetattr(0, termios.TCSANOW, saved)
        os.close(master)


def _raw(saved: list[int | list[bytes | int]]) -> None:
    import tty

    tty.setraw(0, termios.TCSANOW)
    now = termios.tcgetattr(0)
    now[1] = saved[1]  # output stays as it is: what we print ourselves still needs its carriage returns
    termios.tcsetattr(0, termios.TCSANOW, now)


def _copy(master: int) -> None:
    poll = select.poll()
    poll.register(master, select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        for fd, _event in poll.poll():
            try:
                data = os.read(fd, _CHUNK)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                if fd == master:  # EIO: nobody has the other side any more
                    return
                data = b""
            if fd == master and not data:
                return
            if not data:
                poll.unregister(0)
                os.write(master, b"\x04")
            else:
                _write_all(1 if fd == master else master, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
