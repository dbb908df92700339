"""Processes of this host: starting a daemon's first process, watching by pidfd, and the names of signals and limits.

Sources: signal(7), getrlimit(2), pidfd_open(2), proc(5).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping, Sequence

from nacre.errors import HostError, InvalidArgument

# Docker's names of the resource limits and the kernel's numbers (asm-generic/resource.h).
RLIMITS = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9, "locks": 10,
    "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
RLIM_INFINITY = (1 << 64) - 1

# The numbers that containers mean are the kernel's, whatever this Python was built for.
_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF "
    "WINCH IO PWR SYS"
)
_SIGNALS = {name: number for number, name in enumerate(_NAMES.split(), 1)} | {"IOT": 6, "CLD": 17, "POLL": 29, "UNUSED": 31}
_RTMIN, _RTMAX = 34, 64  # below 34 the C library uses them itself


def signal_number(name: str) -> int:
    """The number of a signal: ``KILL``, ``SIGKILL``, ``9``, ``RTMIN+3``, ``SIGRTMAX-1``; case does not matter.

    Raises InvalidArgument.
    """
    word = name.strip().upper().removeprefix("SIG")
    number = int(word) if word.isascii() and word.isdigit() else _SIGNALS.get(word) or _realtime(word)
    if not 1 <= number <= _RTMAX:
        raise InvalidArgument(f"Invalid signal: {name}", hint="a name such as TERM or RTMIN+3, or a number from 1 to 64")
    return number


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9, ``SIGRTMIN+3`` for 37, the number itself for what has no name."""
    for name, value in _SIGNALS.items():
        if value == number:
            return f"SIG{name}"
    return f"SIGRTMIN+{number - _RTMIN}" if _RTMIN <= number <= _RTMAX else str(number)


def _realtime(word: str) -> int:
    for base, sign, number in (("RTMIN", "+", _RTMIN), ("RTMAX", "-", _RTMAX)):
        if word == base:
            return number
        offset = word.removeprefix(base + sign)
        if offset != word and offset.isascii() and offset.isdigit() and int(offset) <= _RTMAX - _RTMIN:
            return number + int(sign + offset)
    return 0


def rlimit_number(name: str) -> int:
    """The number of a resource limit by its Docker name (nofile ...). Raises InvalidArgument."""
    number = RLIMITS.get(name.lower())
    if number is None:
        raise InvalidArgument(f"invalid ulimit type: {name}", hint=f"one of {', '.join(sorted(RLIMITS))}")
    return number


def boot_id() -> str:
    """The random id of this boot of the host (proc_sys_kernel(5)): what was recorded under another one is history."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise HostError("cannot read the boot id of this host: /proc is not mounted", hint="mount -t proc proc /proc") from error


def spawn(argv: Sequence[str], *, env: Mapping[str, str], keep: Sequence[int] = (), stdio: tuple[int, int, int] = (0, 1, 2)) -> int:
    """Start a program and return its process id; the caller waits for it.

    argv[0]: path of the program. env: its complete environment. keep: descriptors that the program gets under the same
    numbers (above 2). stdio: descriptors for its 0, 1 and 2. Every other descriptor stays here unless it is inheritable.
    Signals have their default actions and none is blocked. Raises HostError when the program cannot be started.
    """
    import signal

    with contextlib.ExitStack() as stack:
        lifted = []
        for fd in stdio:  # copied out of the way, so that placing one cannot overwrite another
            copy = _lift(fd, keep)
            stack.callback(os.close, copy)
            lifted.append(copy)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(lifted)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep]  # onto itself: only clears close-on-exec (posix_spawn(3))
        try:
            return os.posix_spawn(
                argv[0], list(argv), dict(env), file_actions=actions, setsigmask=(), setsigdef=(signal.SIGPIPE, signal.SIGXFSZ)
            )
        except OSError as error:
            raise HostError(f"cannot start {argv[0]}: {os.strerror(error.errno or 0)}") from error


def _lift(fd: int, keep: Sequence[int]) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, *keep) + 1 if keep else 3)


def open_pid(pid: int) -> int | None:
    """A descriptor that means this very process even after its number is taken by another; None when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def send(pidfd: int, number: int) -> bool:
    """Send a signal; False when the process has ended."""
    from signal import pidfd_send_signal

    try:
        pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def ended(pidfd: int, timeout: float = 0.0) -> bool:
    """Wait up to `timeout` seconds for the process to end. Works for processes that are no children of ours."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout * 1000))))
