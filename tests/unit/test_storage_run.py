"""`nacre.linux.run`: programs are run to their end, fed, heard and reaped."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from nacre.errors import HostError
from nacre.linux.run import check, find_program, run


def test_output_and_exit_code() -> None:
    result = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert result == (3, b"out\n", b"err\n")


def test_large_input_and_output_do_not_deadlock() -> None:
    data = os.urandom(1 << 20)
    assert run(["cat"], stdin=data).stdout == data


def test_input_nobody_reads_is_no_error() -> None:
    assert run(["true"], stdin=b"x" * (1 << 20)).code == 0


def test_input_is_empty_by_default() -> None:
    assert run(["cat"]).stdout == b""


def test_descriptor_as_input() -> None:
    with open(__file__, "rb") as file:
        assert run(["cat"], stdin=file.fileno()).stdout.startswith(b'"""`nacre')
        assert not file.closed
        os.fstat(file.fileno())


def test_environment_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACRE_LEAK", "1")
    assert b"NACRE_LEAK" not in run(["env"]).stdout
    assert run([find_program("env")], env={"A": "b"}).stdout == b"A=b\n"


def test_missing_program_names_the_package() -> None:
    with pytest.raises(HostError) as caught:
        run(["mkfs.nothing-like-this"])
    assert "apt-get install" in caught.value.hint
    with pytest.raises(HostError) as caught:
        run(["/nowhere/mkfs.erofs"])
    assert caught.value.hint == "apt-get install erofs-utils"


def test_check_reports_words_and_command_line() -> None:
    with pytest.raises(HostError) as caught:
        check(["sh", "-c", "echo first >&2; echo last words >&2; exit 2"])
    assert "last words" in caught.value.message
    assert "exit code 2" in caught.value.message
    assert "$ sh -c" in caught.value.details


def test_killed_by_signal() -> None:
    assert run(["sh", "-c", "kill -9 $$"]).code == -9


def test_sigpipe_has_its_default() -> None:
    assert run(["sh", "-c", "grep -i sigign /proc/self/status"]).stdout.split()[-1][-4:] == b"0000"


def test_no_descriptor_is_left(no_descriptor_left: Callable[[], AbstractContextManager[None]]) -> None:
    with no_descriptor_left():
        run(["cat"], stdin=b"x")
        with pytest.raises(HostError):
            check(["false"])


def test_no_child_is_left() -> None:
    run(["true"])
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
