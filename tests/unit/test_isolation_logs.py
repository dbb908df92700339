"""Reading logs: rotation, torn records, windows of time, the last lines, following."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.isolation import logs
from nacre.isolation.logs import LogRecord, Reader, read_logs
from nacre.wire.stem import LOG_HEAD

SECOND = 1_000_000_000


def record(second: float, data: bytes, stream: int = 1) -> bytes:
    return LOG_HEAD.pack(int(second * SECOND), stream, len(data)) + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def text(path: Path, **options: object) -> bytes:
    return b"".join(item.data for item in read_logs(str(path), **options))  # type: ignore[arg-type]


# -- what is there -------------------------------------------------------------------------------------------------------


def test_nothing_yet(path: Path) -> None:
    assert list(read_logs(str(path))) == []
    path.write_bytes(b"")
    assert list(read_logs(str(path))) == []


def test_records_keep_time_and_stream(path: Path) -> None:
    path.write_bytes(record(1.5, b"out\n") + record(2, b"err\n", 2) + record(3, b""))
    assert list(read_logs(str(path))) == [
        LogRecord(time_ns=1_500_000_000, stream=1, data=b"out\n"),
        LogRecord(time_ns=2 * SECOND, stream=2, data=b"err\n"),
        LogRecord(time_ns=3 * SECOND, stream=1, data=b""),
    ]


def test_the_rotated_file_comes_first(path: Path) -> None:
    path.with_name("log.1").write_bytes(record(1, b"old\n"))
    path.write_bytes(record(2, b"new\n"))
    assert text(path) == b"old\nnew\n"
    path.unlink()
    assert text(path) == b"old\n", "just rotated, nothing written since"


@pytest.mark.parametrize("cut", range(1, LOG_HEAD.size + 4))
def test_a_torn_record_at_the_end_is_ignored(path: Path, cut: int) -> None:
    path.write_bytes(record(1, b"whole\n") + record(2, b"torn")[:-cut])
    assert text(path) == b"whole\n"


def test_a_torn_record_in_the_rotated_file_does_not_hide_the_next(path: Path) -> None:
    path.with_name("log.1").write_bytes(record(1, b"old\n") + record(1, b"torn")[:-2])
    path.write_bytes(record(2, b"new\n"))
    assert text(path) == b"old\nnew\n"


def test_records_larger_than_a_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK", 7)
    path.write_bytes(record(1, b"0123456789" * 5) + record(2, b"end"))
    assert [len(item.data) for item in read_logs(str(path))] == [50, 3]


# -- windows -------------------------------------------------------------------------------------------------------------


def test_since_and_until_include_their_ends(path: Path) -> None:
    path.write_bytes(b"".join(record(second, b"%d" % second) for second in range(1, 6)))
    assert text(path, since=2.0) == b"2345"
    assert text(path, until=4.0) == b"1234"
    assert text(path, since=2.0, until=4.0) == b"234"
    assert text(path, since=5.5) == b""
    assert text(path, until=0.5) == b""


def test_since_reaches_into_the_rotated_file(path: Path) -> None:
    path.with_name("log.1").write_bytes(record(1, b"1") + record(2, b"2"))
    path.write_bytes(record(3, b"3"))
    assert text(path, since=2.0) == b"23"


# -- the last lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "count", "expected"),
    [
        ([b"a\n", b"b\n", b"c\n"], 2, b"b\nc\n"),
        ([b"a\nb\nc\n"], 2, b"b\nc\n"),
        ([b"a\nb\nc"], 1, b"c"),
        ([b"a\nb\nc"], 2, b"b\nc"),
        ([b"a\n", b"b", b"b\n", b"c\n"], 2, b"bb\nc\n"),
        ([b"a\n", b"b", b"b\n", b"c\n"], 1, b"c\n"),
        ([b"a", b"b", b"c"], 1, b"abc"),
        ([b"a\n\n\n"], 2, b"\n\n"),
        ([b"a\nb", b"b\n"], 1, b"bb\n"),
        ([b"a\nb", b"b\n"], 99, b"a\nbb\n"),
        ([b"x\ny\n", b"z"], 2, b"y\nz"),
        ([b"a\n"], 0, b""),
        ([], 3, b""),
        ([b"a\nb\n"], -1, b"a\nb\n"),
    ],
)
def test_tail(path: Path, pieces: list[bytes], count: int, expected: bytes) -> None:
    path.write_bytes(b"".join(record(1, piece) for piece in pieces))
    assert text(path, tail=count) == expected


def test_tail_looks_across_the_rotation_and_inside_the_window(path: Path) -> None:
    path.with_name("log.1").write_bytes(record(1, b"1\n") + record(2, b"2\n"))
    path.write_bytes(record(3, b"3\n") + record(4, b"4\n"))
    assert text(path, tail=3) == b"2\n3\n4\n"
    assert text(path, tail=2, until=3.0) == b"2\n3\n"


# -- following -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], bool]]:
    """`script(step, ...)`: an `alive` that does one step each time it is asked, and says no after the last. Nothing sleeps."""
    monkeypatch.setattr(logs, "PAUSE", 0.0)

    def make(*steps: Callable[[], object]) -> Callable[[], bool]:
        left = list(steps)

        def alive() -> bool:
            if not left:
                return False
            left.pop(0)()
            return True

        return alive

    return make


def append(path: Path, data: bytes) -> Callable[[], object]:
    def step() -> None:
        with path.open("ab") as file:
            file.write(data)

    return step


def test_what_is_written_while_reading(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    path.write_bytes(record(1, b"before "))
    alive = script(append(path, record(2, b"one ")), lambda: None, append(path, record(3, b"two")))
    assert text(path, alive=alive) == b"before one two"


def test_a_record_that_arrives_in_two_parts(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    whole = record(2, b"split in the middle")
    path.write_bytes(record(1, b"a ") + whole[:9])
    assert text(path, alive=script(append(path, whole[9:20]), append(path, whole[20:]))) == b"a split in the middle"


def test_a_log_that_does_not_exist_yet(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    assert text(path, alive=script(lambda: None, append(path, record(1, b"at last")))) == b"at last"


def test_the_last_words_of_a_writer_that_ended_before_it_was_asked(path: Path) -> None:
    path.write_bytes(record(1, b"a"))
    assert text(path, alive=lambda: False) == b"a"


def test_rotation_while_following(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    path.write_bytes(record(1, b"one "))

    def rotate() -> None:
        append(path, record(2, b"two "))()
        path.rename(path.with_name("log.1"))
        path.write_bytes(record(3, b"three "))

    assert text(path, alive=script(lambda: None, rotate, append(path, record(4, b"four")))) == b"one two three four"


def test_tail_then_follow_repeats_nothing(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    path.write_bytes(record(1, b"1\n") + record(2, b"2\n"))
    assert text(path, tail=1, alive=script(append(path, record(3, b"3\n")))) == b"2\n3\n"
    assert text(path, tail=0, alive=script(append(path, record(4, b"4\n")))) == b"4\n"


def test_until_ends_what_is_stored_but_not_the_position(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    path.write_bytes(record(1, b"1") + record(9, b"9"))
    assert text(path, until=5.0, alive=script(append(path, record(10, b"10")))) == b"1"


# -- many files ----------------------------------------------------------------------------------------------------------


def test_rotated_files_are_read_from_the_oldest_compressed_or_not(path: Path) -> None:
    for number in range(1, 12):
        data = record(12 - number, b"%d\n" % (12 - number))
        if number > 2:
            path.with_name(f"log.{number}.gz").write_bytes(gzip.compress(data))
        else:
            path.with_name(f"log.{number}").write_bytes(data)
    path.with_name("log.2.gz").write_bytes(b"of one that is being compressed")
    path.with_name("logs.1").write_bytes(record(99, b"another's\n"))
    path.write_bytes(record(12, b"12\n"))
    assert text(path) == b"".join(b"%d\n" % number for number in range(1, 13))
    assert text(path, since=3, until=5) == b"3\n4\n5\n"
    assert text(path, tail=4) == b"9\n10\n11\n12\n"


def test_a_damaged_compressed_file_does_not_hide_the_next(path: Path) -> None:
    whole = gzip.compress(record(1, os.urandom(9000)))
    path.with_name("log.2.gz").write_bytes(whole[: len(whole) // 2])
    path.with_name("log.1.gz").write_bytes(b"no archive")
    path.write_bytes(record(3, b"3\n"))
    assert text(path) == b"3\n"


def test_a_follower_sees_several_rotations_and_a_compression(path: Path, script: Callable[..., Callable[[], bool]]) -> None:
    path.write_bytes(record(1, b"1\n"))

    def rotate() -> None:
        append(path, record(2, b"2\n"))()
        path.rename(path.with_name("log.2"))
        path.with_name("log.1").write_bytes(record(3, b"3\n"))
        path.write_bytes(record(4, b"4\n"))

    def compress() -> None:
        data = path.read_bytes() + record(5, b"5\n")
        path.unlink()
        path.with_name("log.1.gz").write_bytes(gzip.compress(data))
        path.write_bytes(record(6, b"6\n"))
        os.utime(path, ns=(0, time.time_ns() + 10**9))

    alive = script(lambda: None, rotate, lambda: None, compress, lambda: None)
    followed = list(read_logs(str(path), alive=alive))
    assert [item.data for item in followed][:4] == [b"1\n", b"2\n", b"3\n", b"4\n"]
    assert followed[-1].data == b"6\n"


def test_a_reader_goes_on_where_another_has_stopped(path: Path) -> None:
    path.write_bytes(record(1, b"1\n") + record(2, b"2\n"))
    with Reader(str(path)) as first:
        assert next(first.read()).data == b"1\n"
        inode, offset = first.inode, first.offset
    path.rename(path.with_name("log.1"))
    path.write_bytes(record(3, b"3\n"))
    with Reader(str(path), inode, offset) as second:
        assert [item.data for item in second.read()] == [b"2\n", b"3\n"]
        assert list(second.read()) == []
    with Reader(str(path), inode=1, offset=5) as stranger:
        assert [item.data for item in stranger.read()] == [b"1\n", b"2\n", b"3\n"]


def test_following_ends_at_a_time(path: Path) -> None:
    path.write_bytes(record(1, b"1\n"))
    assert text(path, alive=lambda: True, until=time.time() - 1) == b"1\n"
