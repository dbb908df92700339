"""Being the parent of a process in the foreground: wait for it, pass signals on, and carry its terminal."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Those that mean this process, that the kernel sends to it alone, or that the C library keeps to itself: KILL PIPE CHLD STOP URG WINCH,
# 32 and 33. By number, because loading their names takes a millisecond.
_OWN = frozenset((9, 13, 17, 19, 23, 28, 32, 33))
_LAST = 64


def wait(pid: int, master: int = -1) -> int:
    """Wait for a child and return its exit code (128 + signal). master: of its terminal, carried to and from ours and closed.

    Signals that come afterwards find nobody: this process is about to end as well.
    """
    set_handler: Callable[[int, Callable[[int, FrameType | None], None]], object]
    set_handler = __import__("_signal").signal  # that of `signal` looks every number up among its names

    def passed_on(number: int, _frame: FrameType | None) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    for number in range(1, _LAST + 1):
        if number not in _OWN:
            set_handler(number, passed_on)
    if master >= 0:
        from nacre.ociruntime import terminal

        terminal.carry(master)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code
