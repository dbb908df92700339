"""The first process of an OCI container after it was made: known by pid and start time. Light, because most verbs need nothing else."""

from __future__ import annotations

import os

from nacre.errors import InvalidArgument, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.isolation.groups import Group


class Task:
    """A process that is known by pid and start time, so that nobody else who gets the number is mistaken for it."""

    __slots__ = ("pid", "started")

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started

    @classmethod
    def of(cls, pid: int) -> Task:
        """A process that exists now."""
        return cls(pid, _stat(pid)[1])

    def alive(self) -> bool:
        """Does it exist, and is not just waiting to be reaped?"""
        state, started = _stat(self.pid)
        return self.pid > 0 and started == self.started and state not in ("Z", "X", "")

    def open(self) -> int:
        """A pidfd of it. Raises NotFound when it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError) as error:
            raise NotFound("container not running") from error
        if not self.alive():
            os.close(fd)
            raise NotFound("container not running")
        return fd

    def signal(self, number: int) -> None:
        """Send a signal. Raises NotFound when it has ended, InvalidArgument."""
        from signal import pidfd_send_signal

        fd = self.open()
        try:
            pidfd_send_signal(fd, number)
        except ProcessLookupError:
            raise NotFound("container not running") from None
        except OSError as error:
            raise InvalidArgument(f"cannot send signal {number}: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(fd)

    def end(self) -> None:
        """Kill it; one that has ended already is fine."""
        try:
            self.signal(9)
        except NotFound:
            return

    def wait_end(self, timeout: float) -> bool:
        """Wait for its end; False after `timeout` seconds."""
        import select

        try:
            fd = self.open()
        except NotFound:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(int(timeout * 1000)))
        finally:
            os.close(fd)


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time in ticks since the boot (proc_pid_stat(5)); ("", 0) when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


def signal_number(word: str) -> int:
    """The number of a signal by its name or number. Raises InvalidArgument."""
    from nacre.linux import process

    return process.signal_number(word)


def signal_all(group: Group, number: int) -> None:
    """A signal to every process of a group."""
    for pid in group.pids():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def shares_pids(pid: int) -> bool:
    """Is a process in our own PID namespace?"""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False
