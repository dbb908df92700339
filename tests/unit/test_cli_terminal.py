"""The pump between a process and the user: nothing is lost, nobody waits for ever, the terminal is given back as it was."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
import threading
from collections.abc import Iterator

import pytest

from nacre.cli import terminal
from nacre.cli.terminal import Detached, KeyWatch, Pump, Signals, parse_keys
from nacre.errors import InvalidArgument

LIMIT = 64 * 1024


class FakeStream:
    """An attached process whose other side is `peer`: sends b"1..." or b"2..." (output), b"x7" (exit); receives b"w...", b"eof" ..."""

    def __init__(self) -> None:
        self.socket, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.exit_code: int | None = None
        self.unsent: list[bytes] = []
        self.received: list[bytes] = []
        self.held = False
        self.largest = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def want_write(self) -> bool:
        return bool(self.unsent)

    def flush(self) -> None:
        while self.unsent:
            try:
                self.socket.send(self.unsent[0])
            except BlockingIOError:
                return
            del self.unsent[0]

    def read(self) -> list[tuple[int, bytes]] | None:
        if self.exit_code is not None:
            return None
        pieces: list[tuple[int, bytes]] = []
        while len(pieces) < 4:
            try:
                data = self.socket.recv(LIMIT * 2)
            except BlockingIOError:
                return pieces
            if data.startswith(b"x"):
                self.exit_code = int(data[1:])
                return pieces or None
            pieces.append((int(data[:1]), data[1:]))
        return pieces

    def write(self, data: bytes) -> None:
        self.largest = max(self.largest, sum(map(len, self.unsent)))
        self.unsent.append(b"w" + data)
        self.flush()

    def close_stdin(self) -> None:
        self.unsent.append(b"eof")
        self.flush()

    def resize(self, rows: int, columns: int) -> None:
        self.unsent.append(b"size %d %d" % (rows, columns))
        self.flush()

    def signal(self, number: int) -> None:
        self.unsent.append(b"signal %d" % number)
        self.flush()

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def stream() -> Iterator[FakeStream]:
    made = FakeStream()
    yield made
    made.socket.close()
    made.peer.close()


class Pipes:
    """Three pipes in the place of the standard streams."""

    def __init__(self) -> None:
        self.stdin, self.typed = os.pipe()
        self.shown, self.stdout = os.pipe()
        self.complained, self.stderr = os.pipe()

    def pump(self, stream: FakeStream, **options: object) -> Pump:
        options = {"tty": False, "interactive": True, "proxy": False, **options}
        return Pump(stream, stdin=self.stdin, stdout=self.stdout, stderr=self.stderr, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        for descriptor in (self.stdin, self.typed, self.shown, self.stdout, self.complained, self.stderr):
            try:
                os.close(descriptor)
            except OSError:
                continue


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


def gather(descriptor: int, into: list[bytes]) -> threading.Thread:
    def run() -> None:
        while data := os.read(descriptor, 1 << 16):
            into.append(data)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_outputs_are_kept_apart_and_the_code_comes_back(stream: FakeStream, pipes: Pipes) -> None:
    for frame in (b"1out", b"2err", b"1 more", b"x7"):
        stream.peer.send(frame)
    assert pipes.pump(stream).run() == 7
    assert os.read(pipes.shown, 100) == b"out more"
    assert os.read(pipes.complained, 100) == b"err"


def test_streams_that_were_not_asked_for_are_dropped(stream: FakeStream, pipes: Pipes) -> None:
    for frame in (b"1out", b"2err", b"x0"):
        stream.peer.send(frame)
    pipes.pump(stream, streams=(2,)).run()
    os.close(pipes.stdout)
    assert os.read(pipes.shown, 100) == b""
    assert os.read(pipes.complained, 100) == b"err"


def test_a_slow_reader_gets_everything_and_slows_the_process_down(stream: FakeStream, pipes: Pipes) -> None:
    sent, got = os.urandom(LIMIT - 1) * 40, list[bytes]()

    def process() -> None:
        for at in range(0, len(sent), LIMIT - 1):
            stream.peer.send(b"1" + sent[at : at + LIMIT - 1])
        stream.peer.send(b"x0")

    feeder = threading.Thread(target=process)
    feeder.start()
    pump = pipes.pump(stream, interactive=False)
    highest = 0
    turn = pump._turn

    def measured(*arguments: object) -> None:
        nonlocal highest
        highest = max(highest, pump._backlog())
        turn(*arguments)  # type: ignore[arg-type]

    pump._turn = measured  # type: ignore[method-assign, assignment]
    reader = gather(pipes.shown, got)
    assert pump.run() == 0
    os.close(pipes.stdout)
    reader.join()
    feeder.join()
    assert b"".join(got) == sent
    assert highest < terminal.HIGH_WATER + 8 * LIMIT


def test_input_is_passed_on_until_its_end(stream: FakeStream, pipes: Pipes) -> None:
    os.write(pipes.typed, b"hello")
    os.close(pipes.typed)
    frames = []

    def process() -> None:
        while (frame := stream.peer.recv(LIMIT)) != b"eof":
            frames.append(frame)
        stream.peer.send(b"x0")

    peer = threading.Thread(target=process)
    peer.start()
    assert pipes.pump(stream).run() == 0
    peer.join()
    assert b"".join(frame[1:] for frame in frames) == b"hello"


def test_input_waits_for_a_process_that_does_not_read(stream: FakeStream, pipes: Pipes) -> None:
    payload = os.urandom(1 << 20)

    def user() -> None:
        os.set_blocking(pipes.typed, True)
        view = memoryview(payload)
        while view:
            view = view[os.write(pipes.typed, view[:LIMIT]) :]
        os.close(pipes.typed)

    got = []

    def process() -> None:
        while (frame := stream.peer.recv(1 << 17)) != b"eof":
            got.append(frame[1:])
        stream.peer.send(b"x3")

    threads = [threading.Thread(target=user), threading.Thread(target=process)]
    for thread in threads:
        thread.start()
    assert pipes.pump(stream).run() == 3
    for thread in threads:
        thread.join()
    assert b"".join(got) == payload
    # Never more than one piece was queued while another one was waiting.
    assert stream.largest == 0


def test_without_interest_in_input_none_is_read(stream: FakeStream, pipes: Pipes) -> None:
    os.write(pipes.typed, b"for someone else")
    stream.peer.send(b"x0")
    pipes.pump(stream, interactive=False).run()
    assert os.read(pipes.stdin, 100) == b"for someone else"


def test_a_closed_output_is_like_a_closed_pipe_to_the_process(stream: FakeStream, pipes: Pipes) -> None:
    os.close(pipes.shown)
    stream.peer.send(b"1nobody reads this")
    with pytest.raises(BrokenPipeError):
        pipes.pump(stream, proxy=True).run()
    assert stream.peer.recv(100) == b"signal %d" % signal.SIGPIPE


def test_a_descriptor_that_was_never_open_is_no_failure(stream: FakeStream, pipes: Pipes) -> None:
    os.close(pipes.stdout)
    os.close(pipes.stdin)
    for frame in (b"1out", b"2err", b"x5"):
        stream.peer.send(frame)
    assert pipes.pump(stream).run() == 5
    assert os.read(pipes.complained, 100) == b"err"


def test_signals_go_to_the_process(stream: FakeStream, pipes: Pipes) -> None:
    before = signal.getsignal(signal.SIGUSR1)

    def process() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stream.peer.recv(100) == b"signal %d" % signal.SIGUSR1
        stream.peer.send(b"x138")

    peer = threading.Thread(target=process)
    pump = pipes.pump(stream, proxy=True, interactive=False)
    first = pump._loop

    def loop(signals: Signals) -> None:
        peer.start()
        first(signals)

    pump._loop = loop  # type: ignore[method-assign]
    assert pump.run() == 138
    peer.join()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(("SIGHUP",)):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Terminal:
    """A pseudo-terminal: the user types into `master`, the pump has `slave`."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)

    def pump(self, stream: FakeStream, **options: object) -> Pump:
        options = {"tty": True, "interactive": True, "proxy": False, **options}
        return Pump(stream, stdin=self.slave, stdout=self.slave, stderr=self.slave, **options)  # type: ignore[arg-type]

    def types(self, pump: Pump, keys: bytes) -> Pump:
        """The user types once the terminal is in raw mode; before, the line discipline would take some of the keys for itself."""
        loop = pump._loop

        def typed(signals: Signals) -> None:
            os.write(self.master, keys)
            loop(signals)

        pump._loop = typed  # type: ignore[method-assign]
        return pump


@pytest.fixture
def tty() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_raw_mode_is_given_back(stream: FakeStream, tty: Terminal) -> None:
    stream.peer.send(b"x0")
    pump = tty.pump(stream)
    seen = []
    loop = pump._loop

    def watched(signals: Signals) -> None:
        seen.append(termios.tcgetattr(tty.slave))
        loop(signals)

    pump._loop = watched  # type: ignore[method-assign]
    pump.run()
    assert not seen[0][3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert termios.tcgetattr(tty.slave) == tty.before


def test_raw_mode_is_given_back_after_a_failure(stream: FakeStream, tty: Terminal) -> None:
    pump = tty.pump(stream)

    def fail(_: Signals) -> None:
        raise OSError("boom")

    pump._loop = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="boom"):
        pump.run()
    assert termios.tcgetattr(tty.slave) == tty.before


def test_the_detach_keys_detach(stream: FakeStream, tty: Terminal) -> None:
    with pytest.raises(Detached):
        tty.types(tty.pump(stream), b"ls\x10x\x10\x11ignored").run()
    assert stream.peer.recv(100) == b"wls\x10x"
    assert termios.tcgetattr(tty.slave) == tty.before


def test_a_hangup_ends_us_and_not_the_container(stream: FakeStream, tty: Terminal) -> None:
    pump = tty.pump(stream)
    loop = pump._loop

    def interrupted(signals: Signals) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        loop(signals)

    pump._loop = interrupted  # type: ignore[method-assign]
    said = list[str]()
    assert terminal.follow(pump, said.append) == 128 + signal.SIGTERM
    assert termios.tcgetattr(tty.slave) == tty.before


def test_the_size_is_passed_on(stream: FakeStream, tty: Terminal) -> None:
    termios.tcsetwinsize(tty.slave, (33, 101))
    pump = tty.pump(stream)
    loop = pump._loop

    def resized(signals: Signals) -> None:
        os.kill(os.getpid(), signal.SIGWINCH)
        stream.peer.send(b"1x")
        threading.Thread(target=lambda: (stream.peer.recv(100), stream.peer.send(b"x0"))).start()
        loop(signals)

    sent = list[bytes]()
    stream.resize = lambda rows, columns: (sent.append(b"%d %d" % (rows, columns)), FakeStream.resize(stream, rows, columns))  # type: ignore
    pump._loop = resized  # type: ignore[method-assign]
    pump.run()
    assert sent == [b"33 101"]


def test_follow_says_that_it_left(stream: FakeStream, tty: Terminal) -> None:
    said = list[str]()
    assert terminal.follow(tty.types(tty.pump(stream), b"\x10\x11"), said.append) == 0
    assert said == ["read escape sequence"]
    assert stream.socket.fileno() == -1


@pytest.mark.parametrize(
    ("text", "keys"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("a", b"a"), ("ctrl-@,ctrl-[,ctrl-_", b"\0\x1b\x1f"), ("ctrl-A,b", b"\x01b")]
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-pq", "shift-a", "ab", "a,,b", "é", "ctrl-é"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_keys(text)


@pytest.mark.parametrize(
    ("typed", "passed", "done"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10", b"b"], b"a\x10b", False),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x10\x10", b"\x10x"], b"\x10\x10\x10x", False),
    ],
)
def test_watching_for_keys(typed: list[bytes], passed: bytes, done: bool) -> None:
    watch = KeyWatch(b"\x10\x11")
    results = [watch.feed(piece) for piece in typed]
    assert b"".join(data for data, _ in results) == passed
    assert results[-1][1] is done


def test_no_keys_to_watch_for() -> None:
    assert KeyWatch(b"").feed(b"\x10\x11") == (b"\x10\x11", False)
