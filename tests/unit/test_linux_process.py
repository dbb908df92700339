from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from nacre.errors import HostError, InvalidArgument
from nacre.linux import process


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("KILL", 9),
        ("SIGKILL", 9),
        ("sigterm", 15),
        ("9", 9),
        ("RTMIN+3", 37),
        ("SIGRTMIN", 34),
        ("SIGRTMAX-1", 63),
        ("rtmax", 64),
        ("CLD", 17),
        ("64", 64),
    ],
)
def test_signal_numbers(name: str, number: int) -> None:
    assert process.signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIG", "0", "65", "-9", "FOO", "RTMIN+31", "RTMIN+", "RTMAX+1", "RTMIN-1", "٣", "9x"])
def test_bad_signals(name: str) -> None:
    with pytest.raises(InvalidArgument, match="Invalid signal"):
        process.signal_number(name)


def test_signal_numbers_agree_with_python() -> None:
    for known in signal.Signals:
        assert process.signal_number(known.name) == known.value


def test_signal_names() -> None:
    assert [process.signal_name(number) for number in (9, 6, 37, 99)] == ["SIGKILL", "SIGABRT", "SIGRTMIN+3", "99"]


def test_limit_names_agree_with_python() -> None:
    import resource

    for name, number in process.RLIMITS.items():
        assert getattr(resource, f"RLIMIT_{name.upper()}", number) == number
    assert process.rlimit_number("NOFILE") == 7
    with pytest.raises(InvalidArgument, match="invalid ulimit type: nofiles"):
        process.rlimit_number("nofiles")


def test_boot_id_is_stable() -> None:
    assert process.boot_id() == process.boot_id()
    assert len(process.boot_id()) == 36


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_spawn_keeps_descriptors_under_their_numbers() -> None:
    reader, writer = os.pipe()
    script = f'echo -n "$NAME" > /proc/self/fd/{writer}; test ! -e /proc/self/fd/{reader}'
    assert finish(process.spawn(["/bin/sh", "-c", script], env={"NAME": "nacre"}, keep=[writer])) == 0
    os.close(writer)
    assert os.read(reader, 100) == b"nacre"
    os.close(reader)


def test_spawn_places_standard_streams_even_when_swapped() -> None:
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    assert finish(process.spawn(["/bin/sh", "-c", "echo out; echo err >&2"], env={}, stdio=(null, null, writer))) == 0
    os.close(writer)
    assert os.read(reader, 100) == b"err\n"
    os.close(reader)
    os.close(null)


def test_spawn_resets_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        # Ignored SIGPIPE or blocked SIGUSR1 would let the shell survive.
        assert finish(process.spawn(["/bin/sh", "-c", "kill -USR1 $$; exit 3"], env={})) == -signal.SIGUSR1
        assert finish(process.spawn(["/bin/sh", "-c", "kill -PIPE $$; exit 3"], env={})) == -signal.SIGPIPE
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def test_spawn_says_what_is_missing_and_leaks_nothing(no_descriptor_left: Callable[[], AbstractContextManager[None]]) -> None:
    with no_descriptor_left(), pytest.raises(HostError, match="cannot start /nowhere/stem: No such file"):
        process.spawn(["/nowhere/stem"], env={})


def test_pidfd_follows_a_process_to_its_end() -> None:
    pid = process.spawn(["/bin/sleep", "60"], env={})
    pidfd = process.open_pid(pid)
    assert pidfd is not None
    assert not process.ended(pidfd)
    assert process.send(pidfd, signal.SIGKILL)
    assert process.ended(pidfd, timeout=10)
    assert finish(pid) == -signal.SIGKILL
    assert not process.send(pidfd, signal.SIGKILL)
    assert process.open_pid(pid) is None
    os.close(pidfd)
