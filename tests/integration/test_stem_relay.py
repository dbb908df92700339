"""stem as relay and as guest: the monitor is a stem in guest-test mode, or a script that lies."""

from __future__ import annotations

import errno
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from stemclient import STEM, Client, Sandbox, execute, shell, temporary, wait_until

from nacre.model.plan import NEWPID, Code, Op, Spawn, op
from nacre.wire import stem as wire

GUEST = (op(Code.CHANNEL, 3), execute(STEM, "guest-test", "3"))
LOCAL_BIT = 0x80000000


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary() as path:
        yield path


@pytest.fixture
def relay(directory: Path) -> Iterator[Sandbox]:
    box = Sandbox(directory, role="relay")
    yield box
    box.close()


@pytest.fixture
def client(relay: Sandbox) -> Client:
    """Connected to a relay whose guest is ready."""
    client = relay.client()
    boot(client)
    return client


def boot(client: Client, *plan: Op) -> int:
    monitor = client.spawn(*(plan or GUEST), local=True, channel=True, console=True, log="console", exit="monitor")
    if not plan:
        hello(client)
    return monitor


def hello(client: Client, *, custody: bool = False) -> wire.Hello:
    return wire.decode_hello(client.request(wire.Type.HELLO, wire.CUSTODY if custody else 0, 0, wire.u32(1)).payload)


def liar(*frames: bytes, rest: str = "time.sleep(1000)") -> tuple[Op, Op]:
    """A monitor that greets and then says what it likes."""
    program = f"import os, time\nfor f in {frames!r}: os.write(3, f)\n{rest}"
    return op(Code.CHANNEL, 3), execute(sys.executable, "-I", "-S", "-c", program)


def frame(kind: int, flags: int = 0, proc: int = 0, tag: int = 0, payload: bytes = b"") -> bytes:
    return wire.HEAD.pack(len(payload), kind, flags, proc, tag) + payload


READY = frame(wire.Type.READY, payload=wire.u32(1) + wire.string("lies") + bytes(8))


def refused(client: Client, *args: object, **kwargs: object) -> wire.Refused:
    with pytest.raises(wire.Refused) as caught:
        client.request(*args, **kwargs)  # type: ignore[arg-type]
    return caught.value


# -- the same as on a host ---------------------------------------------------------------------------------------------


def test_hello_waits_for_the_guest(relay: Sandbox) -> None:
    early, late = relay.client(), relay.client()
    tag = early.post(wire.Type.HELLO, 0, 0, wire.u32(1))
    boot(late)
    assert wire.decode_hello(early.answer(tag).payload) == wire.Hello(version=1, role="relay", release=os.uname().release)


def test_requests_before_ready_are_queued(relay: Sandbox) -> None:
    client = relay.client()
    payload, flags = wire.encode_spawn(_spawn(shell("echo queued; exit 2")))
    tag = client.post(wire.Type.SPAWN, flags | wire.ATTACH, 0, payload)
    boot(client)
    proc = wire.decode_spawned(client.answer(tag).payload)[0]
    assert proc == 1
    end = client.finish(proc)
    assert (end.code, end.out) == (2, b"queued\n")


def _spawn(*ops: Op) -> Spawn:
    return Spawn(ops=ops)


def test_streams_codes_and_errors(client: Client) -> None:
    end = client.run(shell("cat; echo err >&2; exit 3"), stdin=b"in and out")
    assert (end.code, end.out, end.err) == (3, b"in and out", b"err\n")
    data = os.urandom(3_000_000)
    assert client.run(execute("cat"), stdin=data).out == data
    with pytest.raises(wire.Refused) as caught:
        client.spawn(op(Code.UMASK, 0), execute("/bin/nope"))
    assert (caught.value.index, caught.value.errno, caught.value.text) == (1, errno.ENOENT, "exec /bin/nope: No such file or directory")
    with pytest.raises(wire.Refused) as caught:
        client.spawn(op(Code.NNP))
    assert caught.value.errno == errno.EINVAL


def test_terminal_signal_resize(client: Client) -> None:
    proc = client.spawn(op(Code.TTY, "/dev/pts/ptmx", ""), shell("echo ready; read x; stty size; sleep 100"), tty=True, attach=True)
    client.output_until(proc, b"ready")
    client.request(wire.Type.RESIZE, 0, proc, wire.size(9, 8))
    client.write(proc, b"\n")
    client.output_until(proc, b"9 8")
    client.signal(proc, signal.SIGTERM)
    assert client.finish(proc).signal == signal.SIGTERM
    assert refused(client, wire.Type.SIGNAL, 0, proc, wire.u32(9)).errno == errno.ESRCH
    assert refused(client, wire.Type.RESIZE, 0, 77, wire.size(1, 1)).errno == errno.ESRCH


def test_log_and_exit_record_are_kept_on_the_host(client: Client, directory: Path) -> None:
    proc = client.spawn(shell("echo logged; exit 4"), log="log", exit="exit")
    code, _, time_ns = wire.decode_exited(client.wait(proc).payload)
    assert code == 4
    assert [data for _, _, data in wire.read_log((directory / "log").read_bytes())[0]] == [b"logged\n"]
    assert (directory / "exit").read_text() == f"4 0 0 {time_ns}\n"


def test_several_clients(relay: Sandbox, client: Client) -> None:
    others = [relay.client() for _ in range(3)]
    proc = client.spawn(shell("read go; seq 1 50000"), stdin=True, attach=True)
    for other in others:
        other.request(wire.Type.ATTACH, 0, proc)
    client.write(proc, b"\n")
    expected = "".join(f"{n}\n" for n in range(1, 50001)).encode()
    assert [each.finish(proc).out == expected for each in (client, *others)] == [True] * 4


def test_a_stalled_reader_stalls_its_process_only(relay: Sandbox, client: Client) -> None:
    slow = relay.client()
    proc = slow.spawn(shell("head -c 40000000 /dev/zero"), attach=True)
    assert client.run(shell("head -c 5000000 /dev/zero")).out == bytes(5_000_000)
    assert client.stat()[proc][1] == 1
    relay.assert_small(6_000_000)
    assert len(slow.finish(proc).out) == 40_000_000


def test_a_stalled_writer_does_not_stall_others(relay: Sandbox, client: Client) -> None:
    writer = relay.client()
    proc = writer.spawn(execute("sleep", "1000"), stdin=True)
    writer.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            writer.write(proc, bytes(50000))
    assert client.run(execute("cat"), stdin=bytes(2_000_000)).out == bytes(2_000_000)
    client.signal(proc, signal.SIGKILL)
    assert wire.decode_exited(client.wait(proc).payload)[1] == signal.SIGKILL
    writer.socket.settimeout(20)
    assert wire.decode_exited(writer.wait(proc).payload)[1] == signal.SIGKILL


def test_held_input_arrives_complete(client: Client, directory: Path) -> None:
    os.mkfifo(directory / "go")
    data = os.urandom(4_000_000)
    proc = client.spawn(shell("read x <go; cat >copy"), stdin=True, attach=True)
    helper = client.spawn(shell("sleep 0.3; echo >go"))
    client.write(proc, data, eof=True)
    assert client.finish(proc).code == 0
    assert (directory / "copy").read_bytes() == data
    assert helper


def test_input_that_a_process_leaves_behind(relay: Sandbox, client: Client, directory: Path) -> None:
    os.mkfifo(directory / "go")
    os.mkfifo(directory / "end")
    # Somebody else keeps the pipe open, so that it is still full when the process has ended.
    writer = relay.client()
    proc = writer.spawn(shell("exec 3<&0; (read x <end) <&3 & read x <go; exit 4"), stdin=True, attach=True)
    writer.write(proc, bytes(600_000))
    assert client.run(execute("true")).code == 0  # the guest has it all by now
    assert client.run(shell("echo >go")).code == 0
    assert writer.finish(proc).code == 4
    assert client.run(shell("echo >end")).code == 0


def test_dead_client_does_not_stall_a_guest_process(relay: Sandbox, client: Client) -> None:
    victim = relay.client()
    proc = victim.spawn(shell("read go; head -c 30000000 /dev/zero"), stdin=True, attach=True)
    tag = client.post(wire.Type.WAIT, 0, proc)
    victim.write(proc, b"\n")
    client.stat()
    victim.close()
    assert wire.decode_exited(client.answer(tag).payload)[0] == 0


def test_read_and_stat(client: Client) -> None:
    assert client.request(wire.Type.READ, 0, 0, wire.string("/proc/sys/kernel/ostype")).payload == b"Linux\n"
    assert refused(client, wire.Type.READ, 0, 0, wire.string("/no/such")).text == "read /no/such: No such file or directory"
    assert refused(client, wire.Type.READ, 0, 0, b"xx").errno == errno.EINVAL
    proc = client.spawn(execute("sleep", "100"))
    rows = client.stat()
    assert set(rows) == {LOCAL_BIT | 1, proc}
    assert rows[proc][1] == 1


def test_local_processes(client: Client, directory: Path) -> None:
    proc = client.spawn(shell("echo helper; exit 6"), local=True, attach=True, exit="helper")
    assert proc == LOCAL_BIT | 2
    assert client.finish(proc).code == 6
    assert wire.decode_exited(client.request(wire.Type.WAIT, wire.LOCAL, proc).payload)[0] == 6
    with pytest.raises(wire.Refused) as caught:
        client.spawn(*GUEST, local=True, channel=True)
    assert caught.value.errno == errno.EBUSY


# -- ends --------------------------------------------------------------------------------------------------------------


def test_main_process_ends_guest_and_relay(relay: Sandbox, client: Client, directory: Path) -> None:
    main = client.spawn(shell("echo last; exit 9"), main=True, attach=True, exit="exit")
    end = client.finish(main)
    assert (end.code, end.out) == (9, b"last\n")
    with pytest.raises(EOFError):
        client.receive()
    wait_until(relay.gone, "the relay ends")
    assert (directory / "monitor").read_text().split()[:2] == ["0", "0"]  # asked to, not killed


@pytest.mark.parametrize("custody", [False, True])
def test_exit_command(directory: Path, custody: bool) -> None:
    box = Sandbox(directory, "relay", ("/bin/sh", "-c", f"touch {directory}/said"))
    client = box.client()
    boot(client)
    hello(client, custody=custody)
    client.spawn(execute("true"), main=True)
    wait_until(box.gone, "the relay ends")
    if not custody:
        wait_until((directory / "said").exists, "COMMAND runs")
    assert (directory / "said").exists() is not custody
    box.close()


def test_dying_monitor_ends_everything(relay: Sandbox, client: Client, directory: Path) -> None:
    main = client.spawn(execute("sleep", "100"), main=True, attach=True, exit="exit")
    other = relay.client()
    waiting = other.post(wire.Type.WAIT, 0, main)
    client.signal(LOCAL_BIT | 1, signal.SIGKILL)
    end = client.finish(main)
    assert (end.code, end.signal) == (137, 9)
    assert wire.decode_exited(other.answer(waiting).payload)[:2] == (137, 9)
    wait_until(relay.gone, "the relay ends")
    assert (directory / "exit").read_text().split()[:2] == ["137", "9"]


def test_monitor_that_fails_to_boot_says_why(relay: Sandbox, directory: Path) -> None:
    client = relay.client()
    tag = client.post(wire.Type.HELLO, 0, 0, wire.u32(1))
    payload, flags = wire.encode_spawn(_spawn(execute("true")))
    spawn = client.post(wire.Type.SPAWN, flags, 0, payload)
    boot(client, op(Code.CHANNEL, 3), shell("echo no kernel here >&2; sleep 0.05; exit 3"))
    for each in (tag, spawn):
        with pytest.raises(wire.Refused) as caught:
            client.answer(each)
        assert caught.value.errno == errno.ESHUTDOWN
        assert "the monitor exited with code 3" in caught.value.text
    assert (directory / "console").read_bytes() == b"no kernel here\n"
    wait_until(relay.gone, "the relay ends")


def test_monitor_that_cannot_start(relay: Sandbox) -> None:
    client = relay.client()
    with pytest.raises(wire.Refused) as caught:
        client.spawn(op(Code.CHANNEL, 3), execute("/no/such/vmm"), local=True, channel=True)
    assert caught.value.errno == errno.ENOENT
    boot(client)  # another try is possible
    assert client.run(execute("echo", "fine")).out == b"fine\n"


def test_shutdown(relay: Sandbox, client: Client, directory: Path) -> None:
    proc = client.spawn(execute("sleep", "100"), exit="exit")
    client.request(wire.Type.SHUTDOWN)
    wait_until(relay.gone, "the relay ends")
    assert (directory / "exit").read_text().startswith("137 9 ")
    assert (directory / "monitor").read_text().startswith("0 0 ")
    assert proc


def test_forced_shutdown_of_a_guest_that_hangs(relay: Sandbox, directory: Path) -> None:
    client = relay.client()
    boot(client, *liar(READY))
    assert hello(client).release == "lies"
    client.request(wire.Type.SHUTDOWN, wire.FORCE)
    wait_until(relay.gone, "the relay ends")
    assert (directory / "monitor").read_text().startswith("137 9 ")


def test_shutdown_without_a_guest(relay: Sandbox) -> None:
    client = relay.client()
    waiting = client.post(wire.Type.HELLO, 0, 0, wire.u32(1))
    client.request(wire.Type.SHUTDOWN)
    with pytest.raises(wire.Refused) as caught:
        client.answer(waiting)
    assert caught.value.errno == errno.ESHUTDOWN
    wait_until(relay.gone, "the relay ends")


def test_killed_relay_takes_the_monitor_along(relay: Sandbox) -> None:
    client = relay.client()
    monitor = boot(client, op(Code.DEATH, 9), op(Code.CHANNEL, 3), execute(STEM, "guest-test", "3"))
    pid = client.stat()[monitor][0]
    relay.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the monitor dies")


def test_guest_kills_what_runs_when_its_channel_ends(relay: Sandbox, client: Client) -> None:
    proc = client.spawn(shell("sleep 1000"), clone=NEWPID)
    pid = client.stat()[proc][0]
    relay.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the process dies")


# -- guests that lie ---------------------------------------------------------------------------------------------------

LIES = {
    "garbage": [b"\xff" * 64],
    "early": [frame(wire.Type.OK, tag=1)],
    "oversized": [READY, wire.HEAD.pack((1 << 20) + 1, wire.Type.OUTPUT, 0, 1, 0)],
    "twice ready": [READY, READY],
    "old": [frame(wire.Type.READY, payload=wire.u32(9) + wire.string("x") + bytes(8))],
    "short ready": [frame(wire.Type.READY, payload=wire.u32(1) + wire.u32(5000))],
    "long name": [frame(wire.Type.READY, payload=wire.u32(1) + wire.string("x" * 300) + bytes(8))],
    "unknown tag": [READY, frame(wire.Type.OK, tag=99)],
    "unknown process": [READY, frame(wire.Type.OUTPUT, proc=5, payload=b"x")],
    "process of the relay": [READY, frame(wire.Type.EXITED, proc=LOCAL_BIT | 1, payload=bytes(16))],
    "a request": [READY, frame(wire.Type.SPAWN, tag=1)],
    "unknown type": [READY, frame(0x7777)],
}


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_lying_guest_is_killed(relay: Sandbox, directory: Path, lies: list[bytes]) -> None:
    client = relay.client()
    boot(client, *liar(*lies))
    payload, flags = wire.encode_spawn(_spawn(execute("true")))
    try:
        failure = refused(client, wire.Type.SPAWN, flags, 0, payload)
        assert failure.errno == errno.ESHUTDOWN
        assert "broke the protocol" in failure.text
    except (EOFError, ConnectionError):
        pass  # it was over before we asked
    wait_until(relay.gone, "the relay ends")
    assert (directory / "monitor").read_text().startswith("137 9 ")


@pytest.mark.parametrize(
    "answer",
    [
        frame(wire.Type.OK, tag=1, payload=b"short"),
        frame(wire.Type.OK, tag=1, payload=bytes(8)),
        frame(wire.Type.OK, tag=1, payload=wire.u32(LOCAL_BIT | 1) + bytes(4)),
        frame(wire.Type.ERROR, tag=1, payload=b"short"),
        frame(wire.Type.ERROR, tag=1, payload=wire.u32(0) + wire.u32(1) + wire.u32(1 << 30)),
        frame(wire.Type.OK, tag=1, payload=wire.u32(7) + bytes(4)) + frame(wire.Type.EXITED, proc=7, payload=b"short"),
        frame(wire.Type.OK, tag=1, payload=wire.u32(7) + bytes(4)) + frame(wire.Type.EXITED, proc=7, payload=wire.u32(999) + bytes(12)),
        frame(wire.Type.OK, tag=1, payload=wire.u32(7) + bytes(4)) + frame(wire.Type.OUTPUT, proc=7, payload=bytes(70000)),
        frame(wire.Type.OK, tag=1, payload=wire.u32(7) + bytes(4)) + frame(wire.Type.OUTPUT, proc=8),
    ],
)
def test_lying_answers(relay: Sandbox, directory: Path, answer: bytes) -> None:
    client = relay.client()
    script = f"import zlib\nos.read(3, 4096)\nos.write(3, zlib.decompress({zlib.compress(answer)!r}))\ntime.sleep(1000)"
    boot(client, *liar(READY, rest=script))
    payload, flags = wire.encode_spawn(_spawn(execute("true")))
    try:
        proc = wire.decode_spawned(client.request(wire.Type.SPAWN, flags | wire.ATTACH, 0, payload).payload)[0]
        assert proc == 7
        assert client.finish(proc).code == 137
    except wire.Refused as failure:
        assert failure.errno == errno.ESHUTDOWN
    wait_until(relay.gone, "the relay ends")
    assert (directory / "monitor").read_text().startswith("137 9 ")


def test_guest_that_ignores_hold_is_killed(relay: Sandbox) -> None:
    flood = wire.HEAD.pack(60000, wire.Type.OUTPUT, 0, 7, 0)
    answer = frame(wire.Type.OK, tag=1, payload=wire.u32(7) + bytes(4))
    client, watcher = relay.client(), relay.client()
    boot(client, *liar(READY, rest=f"os.read(3, 4096)\nos.write(3, {answer!r})\nwhile True: os.write(3, {flood!r} + bytes(60000))"))
    payload, flags = wire.encode_spawn(_spawn(execute("true")))
    client.post(wire.Type.SPAWN, flags | wire.ATTACH, 0, payload)
    wait_until(lambda: LOCAL_BIT | 1 not in watcher.stat() or watcher.stat()[LOCAL_BIT | 1][1] == 2, "the monitor is killed")
    relay.assert_small(12_000_000)


COUNTING = """
import select, struct
data, total = b"", 0
def take():
    global data
    count = 0
    while not count or select.select([3], [], [], 0.2)[0]:
        data += os.read(3, 65536)
        while len(data) >= 16 and len(data) >= 16 + struct.unpack_from("<I", data)[0]:
            size = struct.unpack_from("<I", data)[0]
            data = data[16 + size:]
            count += size
    return count
"""


def test_input_under_way_is_bounded(relay: Sandbox) -> None:
    client = relay.client()
    answer = frame(wire.Type.OK, tag=1, payload=wire.u32(7) + bytes(4))
    script = COUNTING + (
        f"os.read(3, 4096)\nos.write(3, {answer!r})\nfirst = total = take()\nlast = total\n"
        f"while total < 3000000:\n os.write(3, {wire.HEAD.pack(4, wire.Type.ACK, 0, 0, 0)!r} + struct.pack('<I', last))\n"
        f" last = take()\n total += last\n"
        f"text = b'%d %d' % (first, total)\nos.write(3, struct.pack('<IHHII', len(text), {wire.Type.OUTPUT:d}, 0, 7, 0) + text)\n"
        f"os.write(3, {frame(wire.Type.EXITED, proc=7, payload=bytes(16))!r})\ntime.sleep(1000)"
    )
    boot(client, *liar(READY, rest=script))
    proc = client.spawn(execute("true"), stdin=True, attach=True)
    client.write(proc, bytes(3_000_000))
    first, total = (int(word) for word in client.finish(proc).out.split())
    assert total == 3_000_000
    assert 0 < first <= (1 << 20) + (64 << 10)
    client.request(wire.Type.SHUTDOWN, wire.FORCE)


def test_acknowledging_too_much_is_a_lie(relay: Sandbox, directory: Path) -> None:
    client = relay.client()
    boot(client, *liar(READY, frame(wire.Type.ACK, payload=wire.u32(1))))
    wait_until(relay.gone, "the relay ends")
    assert (directory / "monitor").read_text().startswith("137 9 ")


def test_guest_that_does_not_read(relay: Sandbox) -> None:
    client = relay.client()
    boot(client, *liar(READY))
    hello(client)
    path = wire.string("/" + "x" * 60000)
    for _ in range(100):
        client.post(wire.Type.READ, 0, 0, path)
    client.post(wire.Type.STAT, tag=5000)
    seen: list[wire.Frame] = []
    while not seen or seen[-1].tag != 5000:
        seen.append(client.receive())
    refusals = [wire.decode_error(each.payload).errno for each in seen if each.type == wire.Type.ERROR]
    assert set(refusals) == {errno.ENOBUFS}
    relay.assert_small(12_000_000)
    client.request(wire.Type.SHUTDOWN, wire.FORCE)
