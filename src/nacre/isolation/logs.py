"""Reading what a stem logged (docs/stem-protocol.md, "Log format")."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator

from nacre.model.value import Value
from nacre.wire import stem as wire

CHUNK = 256 * 1024
PAUSE = 0.05


class LogRecord(Value):
    """One write of the container: time in ns since the epoch, stream 1 stdout 2 stderr, the bytes as written (not split in lines)."""

    time_ns: int
    stream: int
    data: bytes


def read_logs(
    path: str,
    *,
    alive: Callable[[], bool] | None = None,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
) -> Iterator[LogRecord]:
    """Records of the rotated log and then the current one; with `alive`, go on until it says no and everything was read.

    A torn record at the end (the writer was killed in mid-write) is ignored.
    """
    position = Position()
    records = _window(_stored(path, position), since, until)
    yield from records if tail is None or tail < 0 else _last_lines(records, tail)
    if alive is not None:
        for _ in records:
            pass  # a caller's `until` may have ended the reading early; the position must be that of the end
        yield from _window(_followed(path, alive, position), since, until)


class Position:
    """How far the current log file has been read: its inode and the size of its complete records."""

    inode = 0
    offset = 0


def _window(records: Iterator[LogRecord], since: float | None, until: float | None) -> Iterator[LogRecord]:
    for record in records:
        seconds = record.time_ns / 1e9
        if until is not None and seconds > until:
            return
        if since is None or seconds >= since:
            yield record


def _decode(data: bytes) -> tuple[list[LogRecord], bytes]:
    records, rest = wire.read_log(data)
    return [LogRecord(time_ns=time_ns, stream=stream, data=piece) for time_ns, stream, piece in records], rest


def _stored(path: str, position: Position) -> Iterator[LogRecord]:
    for name in (f"{path}.1", path):
        try:
            with open(name, "rb") as file:
                position.inode, position.offset = os.fstat(file.fileno()).st_ino, 0
                rest = b""
                while data := file.read(CHUNK):
                    before = len(rest) + len(data)
                    records, rest = _decode(rest + data)
                    position.offset += before - len(rest)
                    yield from records
        except FileNotFoundError:
            position.inode, position.offset = 0, 0


def _followed(path: str, alive: Callable[[], bool], position: Position) -> Iterator[LogRecord]:
    """Records appended after a position. The file may be renamed (rotation) and appear anew, or not exist yet."""
    while True:
        going = alive()
        try:
            with open(path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(position.offset if inode == position.inode else 0)
                position.inode, position.offset = inode, file.tell()
                rest = b""
                while True:
                    while data := file.read(CHUNK):
                        before = len(rest) + len(data)
                        records, rest = _decode(rest + data)
                        position.offset += before - len(rest)
                        yield from records
                    if not going or _moved(path, file.fileno()):
                        break
                    time.sleep(PAUSE)
                    going = alive()
        except FileNotFoundError:
            time.sleep(PAUSE)
        if not going:
            return


def _moved(path: str, fd: int) -> bool:
    try:
        return os.stat(path).st_ino != os.fstat(fd).st_ino
    except FileNotFoundError:
        return True


def _last_lines(records: Iterator[LogRecord], count: int) -> Iterator[LogRecord]:
    """The last `count` lines; the first record is cut where its line begins."""
    if count == 0:
        return
    kept: deque[LogRecord] = deque()
    lines = 0
    for record in records:
        kept.append(record)
        lines += record.data.count(b"\n")
        while kept and lines - kept[0].data.count(b"\n") > count:
            lines -= kept.popleft().data.count(b"\n")
    if not kept:
        return
    open_line = not kept[-1].data.endswith(b"\n")
    surplus = lines + open_line - count
    while surplus > 0 and kept:
        first = kept[0]
        breaks = first.data.count(b"\n")
        if breaks < surplus or (breaks == surplus and first.data.endswith(b"\n")):
            surplus -= breaks
            kept.popleft()
            continue
        position = 0
        for _ in range(surplus):
            position = first.data.index(b"\n", position) + 1
        kept[0] = first.replace(data=first.data[position:])
        break
    yield from kept
