"""Tar streams through attached processes: reading to the end or not, feeding, what the program at the other end objects to."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nacre.engine.archive import TarReader, put_tar, stat_line
from nacre.errors import InvalidArgument, NotFound, SandboxError

Script = list[list[tuple[int, bytes]]]


class Attached:
    """A process that has written what a script says, some pieces per read, and then ended; its input is kept.

    reads: it goes on until its input ends. slow: input does not go out before it is flushed.
    """

    def __init__(self, script: Script, code: int = 0, *, reads: bool = False, slow: bool = False) -> None:
        self.script, self.code, self.reads, self.slow = list(script), code, reads, slow
        self.exit_code: int | None = None
        self.input = bytearray()
        self.ended_input = False
        self.closed = 0
        self._near, self._far = socket.socketpair()
        self._far.send(b"x")  # so that select() finds something to read
        self._queued = b""

    def fileno(self) -> int:
        return self._near.fileno()

    @property
    def want_write(self) -> bool:
        return bool(self._queued)

    def flush(self) -> None:
        self.input += self._queued
        self._queued = b""

    def read(self, timeout: float | None = 0.0) -> list[tuple[int, bytes]] | None:
        if self.script:
            return self.script.pop(0)
        if self.reads and not self.ended_input:
            return []
        self.exit_code = self.code
        return None

    def write(self, data: bytes) -> None:
        assert not self.ended_input
        assert not self._queued, "no more input before the last has gone out"
        self._queued = data if self.slow else b""
        self.input += b"" if self.slow else data

    def close_stdin(self) -> None:
        self.ended_input = True

    def communicate(self) -> tuple[int, bytes, bytes]:
        pieces = [piece for part in self.script for piece in part]
        out, errors = (b"".join(data for stream, data in pieces if stream == number) for number in (1, 2))
        return self.code, out, errors

    def close(self) -> None:
        self.closed += 1
        self._near.close()
        self._far.close()


@pytest.fixture
def attached() -> Iterator[Callable[..., Any]]:
    made: list[Attached] = []

    def make(*arguments: Any, **options: Any) -> Attached:
        made.append(Attached(*arguments, **options))
        return made[-1]

    yield make
    assert all(stream.closed for stream in made), "every stream is closed in the end"


# -- out -----------------------------------------------------------------------------------------------------------------


def test_reading_in_any_size(attached: Callable[..., Any]) -> None:
    ends: list[int] = []
    stream = attached([[(1, b"abc")], [], [(1, b"def"), (2, b"a remark")], [(1, b"g")]])
    with TarReader(stream, lambda: ends.append(1)) as reader:
        assert reader.read(2) == b"ab"
        assert reader.read(5) == b"c", "what is there, not more"
        assert reader.read() == b"defg"
        assert reader.read(1) == b""
    assert ends == [1], "brought up once, ended once"


def test_an_empty_transfer(attached: Callable[..., Any]) -> None:
    reader = TarReader(attached([]), lambda: None)
    assert reader.read(10) == b""
    assert reader.read() == b""


def test_a_transfer_that_fails(attached: Callable[..., Any]) -> None:
    ends: list[int] = []
    reader = TarReader(attached([[(1, b"half")], [(2, b"tar-get: /x: I/O error\n")]], 1), lambda: ends.append(1))
    assert reader.read(100) == b"half"
    with pytest.raises(SandboxError, match="could not read the files: tar-get: /x: I/O error"):
        reader.read(100)
    assert ends == [1]


def test_leaving_early_ends_what_was_brought_up(attached: Callable[..., Any]) -> None:
    ends: list[int] = []
    reader = TarReader(attached([[(1, b"more than wanted")]]), lambda: ends.append(1))
    assert reader.read(4) == b"more"
    reader.close()
    reader.close()
    assert ends == [1]
    assert reader.read(4) == b" tha", "what has arrived is still there"


# -- in ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
def test_feeding(attached: Callable[..., Any], slow: bool) -> None:
    data = os.urandom(700_000)
    stream = attached([], reads=True, slow=slow)
    put_tar(stream, io.BytesIO(data))
    assert bytes(stream.input) == data
    assert stream.ended_input


def test_what_the_program_objects_to(attached: Callable[..., Any]) -> None:
    stream = attached([[(2, b"tar-put: ../x: leads ")], [(2, b"outside\n")]], 1)
    with pytest.raises(InvalidArgument, match=r"could not extract the archive: tar-put: ../x: leads outside$"):
        put_tar(stream, io.BytesIO(b"archive"))


def test_endless_complaints_are_cut(attached: Callable[..., Any]) -> None:
    stream = attached([[(2, b"x" * 100_000)]], 1)
    with pytest.raises(InvalidArgument) as caught:
        put_tar(stream, io.BytesIO(b""))
    assert len(caught.value.message) < 5000


# -- stat ----------------------------------------------------------------------------------------------------------------


def stat(output: bytes, code: int = 0, errors: bytes = b"") -> dict[str, Any]:
    stream = Attached([[(1, output), (2, errors)]], code)
    try:
        return stat_line(stream, "/a", "box")  # type: ignore[arg-type]
    finally:
        stream.close()


def test_stat() -> None:
    line = b"33188\x0012\x001500000000250000000\0name with\nnewline\0\n"
    assert stat(line) == {"name": "name with\nnewline", "mode": 0o100644, "size": 12, "mtime": 1_500_000_000.25, "linkTarget": ""}
    assert stat(b"41471\x003\x000\0link\0to\n")["linkTarget"] == "to"


def test_stat_of_nothing() -> None:
    with pytest.raises(NotFound, match="Could not find the file /a in container box") as caught:
        stat(b"", 1, b"stat: /a: No such file or directory\n")
    assert "No such file" in caught.value.details
