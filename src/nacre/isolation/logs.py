"""Reading what a stem logged (docs/stem-protocol.md, "Log format")."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator

from nacre.model.value import Value
from nacre.wire import stem as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from nacre.linux.inotify import Watch

CHUNK = 256 * 1024
PAUSE = 1.0  # seconds after which a follower looks again although nothing was written: its container may have been killed with its stem
BLIND = 0.05  # the same where the kernel has no more inotify instances to give


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
    """Records of the rotated logs and then the current one; with `alive`, go on until it says no and everything was read.

    A torn record at the end (the writer was killed in mid-write) is ignored.
    """
    with Reader(path) as reader:
        records = _window(reader.read(), since, until)
        yield from records if tail is None or tail < 0 else _last_lines(records, tail)
        if alive is None:
            return
        for _ in records:
            pass  # the tail may be none of them
        yield from _window(_followed(reader, alive, until), since, until)


class Reader:
    """Reads a log that is being written and rotated, record by record, from a position on. Close it.

    inode, offset: of the file that was read last and of its first unread record, as the position for another reader; inode 0, or one that
    is there no more = from the oldest file that is kept.
    """

    def __init__(self, path: str, inode: int = 0, offset: int = 0) -> None:
        self.path = path
        self.inode = inode
        self.offset = offset
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self) -> Iterator[LogRecord]:
        """Everything that is there now. May be called again later, for what has come meanwhile."""
        if self._file is None and not self._first():
            return
        while True:
            yield from self._drain()
            following = self._following()
            if not following:
                return
            yield from self._drain()  # what was written between the last reading and the renaming
            self._open(following)

    def _first(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            kept = files(self.path)
            known = next((name for name in kept if os.stat(name).st_ino == self.inode), "") if self.inode else ""
            if known or kept:
                return self._open(known or kept[0], self.offset if known else 0)
        return False

    def _open(self, name: str, offset: int = 0) -> bool:
        try:
            file: BinaryIO = _unpacked(name) if name.endswith(".gz") else open(name, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return False
        self.close()
        file.seek(offset)
        self.inode, self.offset, self._file, self._rest = os.fstat(file.fileno()).st_ino, offset, file, b""
        return True

    def _drain(self) -> Iterator[LogRecord]:
        assert self._file is not None
        with contextlib.suppress(EOFError, OSError):  # of a compressed file that is not complete
            while data := self._file.read(CHUNK):
                records, self._rest = wire.read_log(self._rest + data)
                for time_ns, stream, piece in records:
                    self.offset += wire.LOG_HEAD.size + len(piece)
                    yield LogRecord(time_ns=time_ns, stream=stream, data=piece)

    def _following(self) -> str:
        """The file after the one that is open, "" when that is the newest."""
        assert self._file is not None
        for _ in range(10):  # files may be renamed while we look
            with contextlib.suppress(FileNotFoundError):
                return self._next(files(self.path), os.fstat(self._file.fileno()).st_mtime_ns)
        return ""

    def _next(self, kept: list[str], last: int) -> str:
        inodes = [os.stat(name).st_ino for name in kept]
        if self.inode in inodes:
            return (*kept, "")[inodes.index(self.inode) + 1]
        # It was compressed, or is gone: the next one is the oldest that was written to after it.
        return next((name for name in kept if os.stat(name).st_mtime_ns > last), "")

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unpacked(name: str) -> BinaryIO:
    import gzip

    return gzip.open(name)  # type: ignore[return-value]


def files(path: str) -> list[str]:
    """The files of a log, oldest first: rotated ones (``log.2.gz``, ``log.1``), and then the current one."""
    directory, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.(\d+)(\.gz)?")
    rotated: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(directory), reverse=True):  # a file that is being compressed is there in both forms
            if found := pattern.fullmatch(entry):
                rotated[int(found[1])] = f"{directory}/{entry}"
    return [*(rotated[number] for number in sorted(rotated, reverse=True)), *([path] if os.path.exists(path) else [])]


def _window(records: Iterator[LogRecord], since: float | None, until: float | None) -> Iterator[LogRecord]:
    for record in records:
        seconds = record.time_ns / 1e9
        if until is not None and seconds > until:
            return
        if since is None or seconds >= since:
            yield record


def _followed(reader: Reader, alive: Callable[[], bool], until: float | None) -> Iterator[LogRecord]:
    """What comes after the position of a reader, until the container has ended or that time has come."""
    watch = watch_log(reader.path)
    try:
        while True:
            going = alive()
            yield from reader.read()
            left = PAUSE if until is None else min(PAUSE, until - time.time())
            if not going or left < 0:
                return
            if watch:
                watch.wait(left)
            else:
                time.sleep(min(left, BLIND))
                watch = watch_log(reader.path)
    finally:
        if watch:
            watch.close()


def watch_log(path: str) -> Watch | None:
    """Something to wait on for changes in a log's directory; None when that is not there yet, or the kernel has none left."""
    from nacre.linux.inotify import Watch

    with contextlib.suppress(OSError):
        return Watch(os.path.dirname(path))
    return None


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
