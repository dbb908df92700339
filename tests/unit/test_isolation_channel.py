"""The engine's end of a connection to a stem, against a peer that answers by a script, badly, late or not at all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nacre.errors import (
    BadContent,
    CommandNotExecutable,
    CommandNotFound,
    ExecError,
    NacreError,
    NotFound,
    SandboxError,
    SandboxGone,
)
from nacre.isolation.channel import Channel, Exit, read_exit_record
from nacre.isolation.stream import EXIT_LOST, Stream
from nacre.model.plan import Code, Spawn, op
from nacre.wire import stem as wire
from nacre.wire.stem import Frame, Type

SOON = 0.02  # seconds; long enough for a select() to return, too short to be noticed
PATIENCE = 10.0
Script = Callable[["Peer"], object]


class Peer:
    """A stem that does what a script says, on a thread of its own. What the script raises is raised again by `close`."""

    def __init__(self, directory: Path, script: Script) -> None:
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(directory / "stem.sock"))
        self.server.listen()
        self.connection: socket.socket | None = None
        self.seen: list[Frame] = []
        self.error: BaseException | None = None
        self._decoder = wire.Decoder()
        self._script = script
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.connection, _ = self.server.accept()
            self.connection.settimeout(PATIENCE)
            self._script(self)
        except BaseException as error:
            self.error = error
        finally:
            if self.connection:
                self.connection.close()

    def request(self) -> Frame:
        """The next frame from the engine. Raises EOFError when it hung up."""
        assert self.connection
        while not self.seen:
            data = self.connection.recv(1 << 16)
            if not data:
                raise EOFError
            self.seen += self._decoder.feed(data)
        return self.seen.pop(0)

    def send(self, data: bytes) -> None:
        assert self.connection
        self.connection.sendall(data)

    def answer(self, to: Frame, payload: bytes = b"", *, kind: Type = Type.OK, flags: int = 0) -> None:
        self.send(wire.encode(Frame(kind, flags, to.proc, to.tag, payload)))

    def refuse(self, to: Frame, index: int, errno: int, text: str) -> None:
        self.answer(to, wire.u32(index) + wire.u32(errno) + wire.string(text), kind=Type.ERROR)

    def stay(self) -> None:
        """Answer nothing more until the engine hangs up."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.request()

    def close(self) -> None:
        self._thread.join(PATIENCE)
        self.server.close()
        assert not self._thread.is_alive(), "the script did not end"
        if self.error:
            raise self.error


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[Script], Channel]]:
    """`connect(script)`: a channel to a peer that runs the script."""
    peers: list[Peer] = []
    channels: list[Channel] = []

    def make(script: Script) -> Channel:
        peers.append(Peer(tmp_path, script))
        channels.append(Channel(str(tmp_path), custody=True))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()
    for peer in peers:
        peer.close()


def refused(index: int, errno: int, text: str = "no") -> Script:
    return lambda peer: peer.refuse(peer.request(), index, errno, text)


def answered(payload: bytes = b"", kind: Type = Type.OK) -> Script:
    return lambda peer: peer.answer(peer.request(), payload, kind=kind)


PLAN = Spawn(
    ops=(
        op(Code.MKDIR, "%/proc", 0o755),
        op(Code.CHDIR, "/nowhere"),
        op(Code.USER, "bob", "", ""),
        op(Code.EXEC, 2, "prog", "-x", "PATH=/bin"),
    )
)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_hello(connect: Callable[[Script], Channel]) -> None:
    def script(peer: Peer) -> None:
        frame = peer.request()
        assert (frame.type, frame.flags, frame.payload) == (Type.HELLO, wire.CUSTODY, wire.u32(wire.VERSION))
        peer.answer(frame, wire.u32(1) + wire.u32(3) + wire.string("6.1.0"))

    assert connect(script).hello() == wire.Hello(version=1, role="relay", release="6.1.0")


def test_custody_is_announced_at_once(connect: Callable[[Script], Channel]) -> None:
    heard = threading.Event()

    def script(peer: Peer) -> None:
        frame = peer.request()
        assert (frame.type, frame.flags, frame.tag) == (Type.HELLO, wire.CUSTODY, 0)
        heard.set()

    connect(script).announce()
    assert heard.wait(PATIENCE)


def test_custody_is_announced_with_the_next_request(connect: Callable[[Script], Channel]) -> None:
    """In one message: a stem on its way out hears both, or neither."""

    def script(peer: Peer) -> None:
        assert peer.request().type is Type.HELLO
        assert [frame.type for frame in peer.seen] == [Type.WAIT]
        peer.answer(peer.request(), (3).to_bytes(4, "little") + bytes(12), kind=Type.EXITED)

    channel = connect(script)
    channel.announce(later=True)
    exit = channel.wait(1)
    assert exit is not None
    assert exit.code == 3


def test_spawn_answers_with_numbers_and_keeps_what_came_before(connect: Callable[[Script], Channel]) -> None:
    def script(peer: Peer) -> None:
        frame = peer.request()
        assert frame.type is Type.SPAWN
        peer.send(wire.encode(Frame(Type.OUTPUT, 0, 1, 0, b"early")))
        peer.answer(frame, wire.u32(7) + wire.u32(4711))

    channel = connect(script)
    assert channel.spawn(PLAN) == (7, 4711)
    assert [frame.payload for frame in channel.receive(PATIENCE) or ()] == [b"early"]


@pytest.mark.parametrize(
    ("index", "errno", "kind", "text"),
    [
        (3, 2, CommandNotFound, r'exec: "prog": executable file not found in \$PATH'),
        (3, 13, CommandNotExecutable, 'exec: "prog": permission denied'),
        (3, 8, CommandNotExecutable, "exec format error"),
        (3, 7, ExecError, 'exec: "prog": too long'),
        (2, 2, NotFound, "unable to find user bob"),
        (1, 2, CommandNotFound, 'chdir to working directory "/nowhere" failed'),
        (1, 13, SandboxError, "could not set up the container: too long"),
        (0, 30, SandboxError, "could not set up the container"),
        (wire.NO_INDEX, 22, SandboxError, "stem refused the plan"),
        (99, 22, SandboxError, "stem refused the plan"),
        (wire.NO_INDEX, 108, SandboxGone, "too long"),
    ],
)
def test_refused_plans_are_explained(
    connect: Callable[[Script], Channel], index: int, errno: int, kind: type[NacreError], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        connect(refused(index, errno, "too long")).spawn(PLAN)
    assert type(caught.value) is kind
    if index < len(PLAN.ops) and kind is not SandboxGone:
        assert f"operation {index}: {PLAN.ops[index].describe()}" in caught.value.details


CALLS: dict[str, Callable[[Channel], object]] = {
    "hello": lambda channel: channel.hello(),
    "attach": lambda channel: channel.attach(1),
    "wait": lambda channel: channel.wait(1),
    "stat": lambda channel: channel.stat(),
    "read_file": lambda channel: channel.read_file("/etc/x"),
    "resize": lambda channel: channel.resize(1, 24, 80),
    "signal": lambda channel: channel.signal(1, 15),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_refusal_is_an_error_of_the_sandbox(connect: Callable[[Script], Channel], name: str) -> None:
    with pytest.raises(SandboxError, match="not today"):
        CALLS[name](connect(refused(wire.NO_INDEX, 5, "not today")))


@pytest.mark.parametrize("name", CALLS)
def test_a_lost_guest_is_a_lost_sandbox(connect: Callable[[Script], Channel], name: str) -> None:
    with pytest.raises(SandboxGone):
        CALLS[name](connect(refused(wire.NO_INDEX, 108, "the monitor ended")))


@pytest.mark.parametrize("name", CALLS)
def test_a_hang_up_during_a_request(connect: Callable[[Script], Channel], name: str) -> None:
    with pytest.raises(SandboxGone):
        CALLS[name](connect(lambda peer: peer.request()))


@pytest.mark.parametrize("name", ["resize", "signal"])
def test_an_ended_process_is_no_error(connect: Callable[[Script], Channel], name: str) -> None:
    CALLS[name](connect(refused(wire.NO_INDEX, 3, "no such process")))


def test_waiting_for_an_unknown_process_is_an_error(connect: Callable[[Script], Channel]) -> None:
    with pytest.raises(SandboxError, match="no such process"):
        connect(refused(wire.NO_INDEX, 3, "no such process")).wait(9)


def test_wait_and_stat(connect: Callable[[Script], Channel]) -> None:
    def script(peer: Peer) -> None:
        frame = peer.request()
        assert (frame.type, frame.proc) == (Type.WAIT, 3)
        peer.answer(frame, wire.u32(137) + wire.u32(9) + (5).to_bytes(8, "little"), kind=Type.EXITED, flags=wire.OOM)
        peer.answer(peer.request(), wire.u32(1) + b"".join(wire.u32(number) for number in (3, 40, 2, 137)))

    channel = connect(script)
    assert channel.wait(3) == Exit(code=137, signal=9, oom=True, time_ns=5)
    assert channel.stat() == [(3, 40, 2, 137)]


# -- bytes that are no answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        wire.HEAD.pack(wire.PAYLOAD_MAX + 1, Type.OK, 0, 0, 1),
        wire.HEAD.pack(0, 0x7777, 0, 0, 1),
        b"\xff" * wire.HEAD.size,
    ],
    ids=["too long", "unknown type", "noise"],
)
def test_malformed_frames(connect: Callable[[Script], Channel], data: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(data)
        peer.stay()

    with pytest.raises(BadContent, match="malformed frame"):
        connect(script).hello()


@pytest.mark.parametrize(
    ("script", "call"),
    [
        (answered(b"\1"), CALLS["hello"]),
        (answered(wire.u32(1) + wire.u32(1) + wire.u32(99) + b"6.1"), CALLS["hello"]),
        (answered(b"\1\0\0"), lambda channel: channel.spawn(PLAN)),
        (answered(b"", Type.EXITED), CALLS["wait"]),
        (answered(wire.u32(0xFFFFFFFF)), CALLS["stat"]),
        (answered(b"\0", Type.ERROR), CALLS["attach"]),
        (answered(b"\0", Type.ERROR), lambda channel: channel.spawn(PLAN)),
    ],
)
def test_malformed_payloads(connect: Callable[[Script], Channel], script: Script, call: Callable[[Channel], object]) -> None:
    with pytest.raises(BadContent, match="malformed"):
        call(connect(script))


def test_an_answer_in_small_pieces(connect: Callable[[Script], Channel]) -> None:
    def script(peer: Peer) -> None:
        frame = peer.request()
        for byte in wire.encode(Frame(Type.OK, 0, 0, frame.tag, wire.u32(2) + wire.u32(99))):
            peer.send(bytes([byte]))

    assert connect(script).spawn(PLAN) == (2, 99)


def test_answers_to_somebody_else_are_not_taken(connect: Callable[[Script], Channel]) -> None:
    def script(peer: Peer) -> None:
        frame = peer.request()
        peer.answer(Frame(frame.type, frame.flags, frame.proc, frame.tag + 7, frame.payload), b"")
        peer.answer(frame, wire.u32(1) + wire.u32(1) + wire.string("x"))

    assert connect(script).hello().role == "host"


# -- time ----------------------------------------------------------------------------------------------------------------


def silent(peer: Peer) -> None:
    peer.stay()


def test_nobody_answers(connect: Callable[[Script], Channel]) -> None:
    channel = connect(silent)
    assert channel.receive(0.0) == []
    with pytest.raises(SandboxError, match="did not answer within") as caught:
        channel.hello(timeout=SOON)
    assert caught.value.stage == "boot"


def test_waiting_has_an_end(connect: Callable[[Script], Channel]) -> None:
    channel = connect(silent)
    assert channel.wait(1, timeout=SOON) is None
    assert channel.stat(timeout=SOON) == []
    channel.shutdown(timeout=SOON)


def test_a_guest_that_hangs_does_not_stop_stop(connect: Callable[[Script], Channel]) -> None:
    assert connect(silent).end(1, 15, timeout=SOON) is False


def test_end_is_true_when_the_process_or_everything_ends(connect: Callable[[Script], Channel], tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        frame = peer.request()
        assert frame.type is Type.WAIT
        peer.answer(frame, wire.u32(0) + wire.u32(0) + bytes(8), kind=Type.EXITED)
        peer.answer(peer.request())
        peer.request()

    channel = connect(script)
    assert channel.end(1, 15, timeout=PATIENCE)
    assert channel.end(1, 15, timeout=PATIENCE), "the stem hung up"


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(SandboxGone, match="is not running"):
        Channel(str(tmp_path / "missing"))
    with pytest.raises(SandboxGone, match="is not running"):
        Channel(str(tmp_path))


def test_a_directory_with_a_long_name(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 150)
    deep.mkdir()
    (deep / "stem.sock").symlink_to(tmp_path / "stem.sock")
    peer = Peer(tmp_path, answered(wire.u32(1) + wire.u32(1) + wire.string("x")))
    channel = Channel(str(deep))
    assert channel.hello().role == "host"
    channel.close()
    peer.close()


# -- streams -------------------------------------------------------------------------------------------------------------


def output(peer: Peer, proc: int, data: bytes, flags: int = 0) -> None:
    peer.send(wire.encode(Frame(Type.OUTPUT, flags, proc, 0, data)))


def exited(peer: Peer, proc: int, code: int) -> None:
    peer.send(wire.encode(Frame(Type.EXITED, 0, proc, 0, wire.u32(code) + wire.u32(0) + bytes(8))))


def test_a_stream_takes_its_own_output_and_end(connect: Callable[[Script], Channel]) -> None:
    def script(peer: Peer) -> None:
        output(peer, 1, b"out")
        output(peer, 2, b"of another")
        exited(peer, 2, 9)
        output(peer, 1, b"err", wire.STDERR)
        exited(peer, 1, 3)
        with contextlib.suppress(OSError):  # the engine may have hung up by now
            output(peer, 1, b"after the end")

    reasons = iter(["why"])
    stream = Stream(connect(script), 1, ended=lambda: next(reasons))
    assert stream.communicate() == (3, b"out", b"err")
    assert stream.error == "why"
    assert stream.read(None) is None


def test_a_stream_whose_stem_is_killed(connect: Callable[[Script], Channel]) -> None:
    stream = Stream(connect(lambda peer: output(peer, 1, b"last words")), 1, ended=lambda: "the guest is gone")
    assert stream.communicate() == (EXIT_LOST, b"last words", b"")
    assert stream.error == "the guest is gone"
    stream.write(b"into nowhere")
    stream.close_stdin()
    stream.resize(24, 80)
    stream.signal(15)
    assert stream.wait() == EXIT_LOST


def test_input_goes_out_in_order_and_ends_once(connect: Callable[[Script], Channel]) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB: several frames, more than a socket takes at once
    got = bytearray()

    def script(peer: Peer) -> None:
        while True:
            frame = peer.request()
            assert (frame.type, frame.proc, frame.tag) == (Type.WRITE, 1, 0)
            got.extend(frame.payload)
            if frame.flags & wire.EOF:
                exited(peer, 1, 0)
                return

    assert Stream(connect(script), 1).communicate(data)[0] == 0
    assert bytes(got) == data


def test_input_for_a_stem_that_does_not_read_stays_queued(connect: Callable[[Script], Channel]) -> None:
    done = threading.Event()
    stream = Stream(connect(lambda peer: done.wait(PATIENCE)), 1)
    stream.write(bytes(4 << 20))
    assert stream.want_write
    done.set()
    assert stream.wait() == EXIT_LOST
    stream.flush()
    assert not stream.want_write, "what nobody will read is dropped"


# -- exit records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 0 0 12\n", Exit(code=0, time_ns=12)),
        ("137 9 1 99\n", Exit(code=137, signal=9, oom=True, time_ns=99)),
        ("", None),
        ("137 9", None),
        ("a b c d", None),
    ],
)
def test_exit_records(tmp_path: Path, text: str, expected: Exit | None) -> None:
    path = tmp_path / "exit"
    assert read_exit_record(str(path)) is None
    path.write_text(text)
    assert read_exit_record(str(path)) == expected
