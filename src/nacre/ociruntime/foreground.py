"""Being the parent of a process in the foreground: wait for it, pass signals on, and carry its terminal."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

# Those that mean this process, or that the kernel sends to it alone.
_OWN = frozenset((signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH))


def wait(pid: int, master: int = -1) -> int:
    """Wait for a child and return its exit code (128 + signal). master: of its terminal, carried to and from ours and closed."""

    def passed_on(number: int, _frame: FrameType | None) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    before = {}
    for number in signal.valid_signals() - _OWN:
        try:
            before[number] = signal.signal(number, passed_on)
        except (OSError, ValueError):
            continue
    try:
        if master >= 0:
            from nacre.ociruntime import terminal

            terminal.carry(master)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
