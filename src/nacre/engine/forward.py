"""``python -m nacre.engine.forward ROOT RUN ID LOCK``: hands a container's log on as its driver says (`nacre.engine.helpers`).

It reads the records that stem writes, so that nothing it waits for can hold up the container, and remembers how far it has come in
``containers/ID/forwarded``: a helper that was killed, or whose receiver was not there, loses nothing that is still kept. It sleeps until
something is written or the stem hangs up, and ends when everything has been handed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Iterator

from nacre.engine import Engine, helpers, logdrivers, sinks
from nacre.engine.core import Core
from nacre.errors import NacreError
from nacre.isolation.channel import Channel
from nacre.isolation.logs import LogRecord, Reader, files, watch_log
from nacre.model.container import Container
from nacre.store import is_locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 16 * 1024  # bytes of a line that go on in one piece, as with Docker
BATCH = 500  # lines after which the progress is written down
RETRY, SLOWEST = 0.1, 5.0  # seconds between two attempts to reach a receiver
LAST_TRIES = 10.0  # seconds for which it is tried after the container has ended
LINGER = 5.0  # seconds that the removal of a container waits for its last lines


class Cutter:
    """Makes lines of records. rest: the beginnings of lines that are not complete, by stream: (time of the first byte, bytes)."""

    def __init__(self, rest: dict[int, tuple[int, bytes]] | None = None) -> None:
        self.rest = rest or {}

    def feed(self, record: LogRecord) -> Iterator[sinks.Line]:
        """The lines that are complete with this record, and the parts of a long one."""
        since, begun = self.rest.pop(record.stream, (record.time_ns, b""))
        *complete, last = (begun + record.data).split(b"\n")
        for data in complete:
            yield from self._pieces(since, record.stream, data)
            since = record.time_ns
        while len(last) > LONGEST:
            yield sinks.Line(since, record.stream, last[:LONGEST], partial=True)
            last = last[LONGEST:]
        if last:
            self.rest[record.stream] = since, last

    def end(self) -> Iterator[sinks.Line]:
        """What is left when nothing more will come."""
        for stream, (since, data) in sorted(self.rest.items()):
            yield sinks.Line(since, stream, data)
        self.rest = {}

    def _pieces(self, since: int, stream: int, data: bytes) -> Iterator[sinks.Line]:
        while len(data) > LONGEST:
            yield sinks.Line(since, stream, data[:LONGEST], partial=True)
            data = data[LONGEST:]
        yield sinks.Line(since, stream, data)


class Progress:
    """How far a container's log has been handed on: position in its records, unfinished lines, what its sink remembers."""

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/forwarded"
        self.inode = self.offset = 0
        self.rest: dict[int, tuple[int, bytes]] = {}
        self.sink: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, KeyError), open(self._path, encoding="utf-8") as file:
            data = json.load(file)
            self.inode, self.offset, self.sink = data["inode"], data["offset"], data["sink"]
            self.rest = {int(stream): (since, text.encode("latin-1")) for stream, (since, text) in data["rest"].items()}

    def save(self) -> None:
        """Write it down: the old state or the new one. Raises OSError."""
        rest = {stream: (since, data.decode("latin-1")) for stream, (since, data) in self.rest.items()}
        with open(f"{self._path}.new", "w", encoding="utf-8") as file:
            json.dump({"inode": self.inode, "offset": self.offset, "rest": rest, "sink": self.sink}, file)
        os.rename(f"{self._path}.new", self._path)


class Forwarder:
    """Hands on one container's log."""

    def __init__(self, core: Core, record: Container) -> None:
        self._record = record
        self._directory = core.layout.container(record.id)
        self._json = logdrivers.path(core.layout, record)
        self._progress = Progress(self._directory)
        self._sink: sinks.Sink | None = None
        options = record.spec.log.options
        self._buffer = logdrivers.size(options, "max-buffer-size", logdrivers.MIB) if options.get("mode") == "non-blocking" else 0

    def run_dry(self, *, last: bool) -> None:
        """Hand on everything that is there. last: unfinished lines too. Raises OSError when the receiver is not there."""
        progress = self._progress
        cutter = Cutter(dict(progress.rest))
        with Reader(f"{self._directory}/log", progress.inode, progress.offset) as reader:
            self._skip(reader)
            done = reader.inode, reader.offset, dict(cutter.rest)
            count = 0
            try:
                for record in reader.read():
                    for line in cutter.feed(record):
                        self._send(line)
                        count += 1
                    done = reader.inode, reader.offset, dict(cutter.rest)
                    if count >= BATCH:
                        count = 0
                        self._note(*done)
                if last:
                    for line in cutter.end():
                        self._send(line)
                    done = reader.inode, reader.offset, {}
            except OSError:
                with contextlib.suppress(OSError):
                    self._note(*done)
                self.close()
                raise
            if done != (progress.inode, progress.offset, progress.rest):
                self._note(*done)

    def _skip(self, reader: Reader) -> None:
        """With a bounded buffer, what a receiver that was away for long has missed is left out but for its end."""
        kept = files(reader.path)
        if not self._buffer or not kept or self._sink is not None:
            return
        with contextlib.suppress(OSError):
            status = os.stat(kept[-1])
            if status.st_ino == reader.inode and status.st_size - reader.offset <= self._buffer:
                return
            if sum(os.path.getsize(name) for name in kept) > self._buffer:
                reader.inode, reader.offset = status.st_ino, _boundary(kept[-1], status.st_size - self._buffer)

    def _send(self, line: sinks.Line) -> None:
        if self._sink is None:
            self._sink = sinks.make(self._record, self._json, self._progress.sink)
        self._sink.send(line)

    def _note(self, inode: int, offset: int, rest: dict[int, tuple[int, bytes]]) -> None:
        if self._sink is not None:
            self._progress.sink = self._sink.flush()
        self._progress.inode, self._progress.offset, self._progress.rest = inode, offset, rest
        self._progress.save()

    def close(self) -> None:
        """Let go of the receiver."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def _boundary(path: str, least: int) -> int:
    """The first place at or after `least` where a record begins."""
    with Reader(path) as reader:
        for _ in reader.read():
            if reader.offset >= least:
                break
        return reader.offset


def wait_for(core: Core, identifier: str) -> None:
    """Before a container is removed: give its helper a moment to hand on the last lines."""
    deadline = time.monotonic() + LINGER
    while is_locked(helpers.mark(core.layout, "forward", identifier)) and time.monotonic() < deadline:
        time.sleep(0.01)


# -- the helper ----------------------------------------------------------------------------------------------------------


def main(root: str, run: str, identifier: str, lock: str) -> int:
    """Hand on until the container has ended and everything is done."""
    helpers.begin(lock)
    with Engine(root, run) as engine:
        duty = Duty(engine, identifier)
        helpers.serve(engine.lifecycle.core.layout, "forward", identifier, lock, duty.due, duty.attend)
    return 0


class Duty:
    """What there is to do for one container, as long as it makes sense to try."""

    def __init__(self, engine: Engine, identifier: str) -> None:
        self._engine = engine
        self._core = engine.lifecycle.core
        self._identifier = identifier
        self._path = f"{self._core.layout.container(identifier)}/log"
        self._given_up = False

    def due(self) -> bool:
        """Whether the container runs, or has left something to be handed on."""
        lifecycle = self._engine.lifecycle
        found = lifecycle.load(self._identifier)
        if not found:
            return False
        running = found[0].main and lifecycle.alive(self._identifier) and not lifecycle.exit_of(self._identifier)
        return bool(running or (self._behind() and not self._given_up))

    def _behind(self) -> bool:
        progress = Progress(os.path.dirname(self._path))
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self._path)
            return bool(progress.rest) or (status.st_ino, status.st_size) != (progress.inode, progress.offset)
        return False

    def attend(self) -> None:
        """Hand on the log of one run of the container."""
        found = self._engine.lifecycle.load(self._identifier)
        with contextlib.ExitStack() as stack:
            watch = watch_log(self._path)
            if not found or watch is None:
                self._given_up = True
                return
            stack.enter_context(watch)
            forwarder = Forwarder(self._core, found[0])
            stack.callback(forwarder.close)
            with contextlib.suppress(NacreError):
                channel = stack.enter_context(contextlib.closing(Channel(self._core.layout.sandbox(self._identifier))))
                _as_long_as_it_runs(forwarder, lambda patience: _woken(watch.fileno(), channel.fileno(), patience, watch.clear))
            self._given_up = not _to_the_end(forwarder)


def _woken(news: int, stem: int, patience: float | None, clear: Any) -> bool:
    """Wait for something to be written; False when the stem has hung up."""
    ready = select.select([news, stem], [], [], patience)[0]
    clear()
    return stem not in ready


def _as_long_as_it_runs(forwarder: Forwarder, woken: Any) -> None:
    pause = RETRY
    while True:
        try:
            forwarder.run_dry(last=False)
            going = woken(None)
            pause = RETRY
        except OSError:  # the receiver is not there, or the disk is full
            going = woken(pause)
            pause = min(pause * 2, SLOWEST)
        if not going:
            return


def _to_the_end(forwarder: Forwarder) -> bool:
    """Hand on the last lines; whether the receiver took them."""
    deadline = time.monotonic() + LAST_TRIES
    while True:
        try:
            forwarder.run_dry(last=True)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(RETRY)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
