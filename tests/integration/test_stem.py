"""stem in the role host: processes, streams, terminals, logs, ends."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stemclient import (
    CONTAINER,
    PRIVATE,
    STEM,
    Client,
    Sandbox,
    builtin,
    enter_root,
    execute,
    make_root,
    shell,
    temporary,
    wait_until,
)

from nacre.model.plan import NEWNS, NEWPID, Code, Op, Spawn, op
from nacre.wire import stem as wire


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary() as path:
        yield path


@pytest.fixture
def sandbox(directory: Path) -> Iterator[Sandbox]:
    box = Sandbox(directory)
    yield box
    box.close()


@pytest.fixture
def client(sandbox: Sandbox) -> Client:
    return sandbox.client()


@pytest.fixture
def root() -> Iterator[Path]:
    with temporary() as path:
        yield make_root(path / "r")


# -- the daemon --------------------------------------------------------------------------------------------------------


def test_hello(client: Client) -> None:
    answer = wire.decode_hello(client.request(wire.Type.HELLO, 0, 0, wire.u32(1)).payload)
    assert answer == wire.Hello(version=1, role="host", release=os.uname().release)
    with pytest.raises(wire.Refused) as refused:
        client.request(wire.Type.HELLO, 0, 0, wire.u32(2))
    assert refused.value.errno == errno.EPROTO


def test_daemon_is_small_detached_and_private(sandbox: Sandbox, directory: Path) -> None:
    client = sandbox.client()
    client.run(shell("head -c 3000000 /dev/zero"))
    proc = client.spawn(execute("sleep", "100"))
    sandbox.assert_small(1 << 20)
    assert os.stat(directory / "stem.sock").st_mode & 0o777 == 0o600
    assert os.getsid(sandbox.pid) == sandbox.pid
    assert {os.readlink(f"/proc/{sandbox.pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    client.signal(proc, signal.SIGKILL)


def test_start_failures_are_one_line(directory: Path) -> None:
    for argument, text in ((str(directory / "missing"), "No such file"), ("/proc/self", "stem.sock")):
        done = subprocess.run([STEM, "host", argument], capture_output=True, text=True)
        assert done.returncode == 1
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
    assert subprocess.run([STEM, "nothing"], capture_output=True).returncode == 2


def test_directory_may_have_a_long_name(directory: Path) -> None:
    deep = directory / ("d" * 120)
    deep.mkdir()
    box = Sandbox(deep)
    assert box.client().run(shell("pwd")).out.decode().strip() == str(deep)
    box.close()


def test_inherited_descriptors_are_kept_but_not_passed_on(directory: Path) -> None:
    held, other = os.pipe()
    box = Sandbox(directory, keep=(held,))
    os.close(held)
    client = box.client()
    assert client.run(execute("ls", "/proc/self/fd")).out.split() == [b"0", b"1", b"2", b"3"]
    os.write(other, b"x")  # somebody still has the reading end
    proc = client.spawn(execute("sleep", "100"))
    box.close()
    with pytest.raises(BrokenPipeError):
        os.write(other, b"x")
    os.close(other)
    assert proc


def test_shutdown_kills_and_hangs_up(sandbox: Sandbox, directory: Path) -> None:
    client = sandbox.client()
    proc = client.spawn(execute("sleep", "100"), exit="exit")
    pid = client.stat()[proc][0]
    client.request(wire.Type.SHUTDOWN)
    with pytest.raises(EOFError):
        client.receive()
    assert not os.path.exists(f"/proc/{pid}")
    assert (directory / "exit").read_text().split()[:3] == ["137", "9", "0"]
    assert not (directory / "stem.sock").exists()


@pytest.mark.parametrize("custody", [False, True])
def test_exit_command(directory: Path, custody: bool) -> None:
    box = Sandbox(directory, command=("/bin/sh", "-c", f'echo "$0 $(ls /proc/self/fd | wc -l)" >{directory}/said', "argument"))
    client = box.client()
    client.request(wire.Type.HELLO, wire.CUSTODY if custody else 0, 0, wire.u32(1))
    client.spawn(execute("true"), main=True)
    with pytest.raises(EOFError):
        client.receive()
    wait_until(box.gone, "the daemon ends with its main process")
    if custody:
        assert not (directory / "said").exists()
    else:
        assert wait_until(lambda: (directory / "said").exists() and (directory / "said").read_text(), "COMMAND runs") == "argument 4\n"
    box.close()


def test_who_comes_at_once_spares_the_exit_command(directory: Path) -> None:
    """Whoever started a short container and then waits for it, in one message with the promise to clean up."""
    box = Sandbox(directory, command=("/bin/sh", "-c", f"touch {directory}/said"))
    client = box.client()
    main = client.spawn(shell("exit 3"), main=True)
    wait_until(lambda: client.stat()[main][1] == 2, "the process has ended")
    hello = wire.encode(wire.Frame(wire.Type.HELLO, wire.CUSTODY, 0, 0, wire.u32(1)))
    owner = box.client()
    owner.socket.sendall(hello + wire.encode(wire.Frame(wire.Type.WAIT, 0, main, 7, b"")))
    assert wire.decode_exited(owner.answer(7).payload)[0] == 3
    wait_until(box.gone, "the daemon ends")
    assert not (directory / "said").exists()
    box.close()


def test_the_root_file_system_goes_last(directory: Path, root: Path) -> None:
    """The end waits for no disk: stem keeps the root file system, lets go of everything else first, of the last descriptor after it."""
    last = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(last, fcntl.LOCK_EX)
    box = Sandbox(directory, last=last)
    os.close(last)
    client = box.client()
    main = client.spawn(*enter_root(root), shell("read x"), main=True, stdin=True, attach=True, clone=CONTAINER)
    pid = client.stat()[main][0]

    def kept() -> list[str]:
        there = os.stat(f"/proc/{pid}/root/.")
        files = [f"/proc/{box.pid}/fd/{name}" for name in os.listdir(f"/proc/{box.pid}/fd")]
        return [file for file in files if os.path.samestat(os.stat(file), there) and not file.endswith(f"/{last}")]

    assert len(kept()) == 1
    client.spawn(op(Code.JOIN, main, NEWNS | NEWPID), op(Code.CLONE, 0), execute("true"))
    assert len(kept()) == 1, "of the main process alone"
    watch = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(watch, fcntl.LOCK_EX | fcntl.LOCK_NB)
    client.write(main, b"\n")
    assert client.finish(main).code == 0
    fcntl.flock(watch, fcntl.LOCK_EX)
    os.close(watch)
    wait_until(box.gone, "the daemon ends")
    box.close()


@pytest.mark.parametrize("words", [("--last",), ("--last", "9", "more"), ("--first", "9"), ("--last", "9", "--")])
def test_wrong_words_are_refused(directory: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run([STEM, "host", str(directory), *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr[:11]) == (2, "usage: stem")


def test_exit_command_runs_when_the_owner_died(directory: Path) -> None:
    box = Sandbox(directory, command=("/bin/sh", "-c", f"touch {directory}/said"))
    owner, client = box.client(), box.client()
    owner.request(wire.Type.HELLO, wire.CUSTODY, 0, wire.u32(1))
    client.spawn(shell("read x"), main=True, stdin=True)
    owner.close()
    client.write(1, b"\n")
    wait_until((directory / "said").exists, "COMMAND runs")
    box.close()


def test_main_process_ends_the_daemon_and_what_else_runs(sandbox: Sandbox) -> None:
    client = sandbox.client()
    other = client.spawn(execute("sleep", "100"))
    pid = client.stat()[other][0]
    main = client.spawn(shell("echo last words; exit 5"), main=True, attach=True)
    end = client.finish(main)
    assert (end.code, end.out) == (5, b"last words\n")
    wait_until(sandbox.gone, "the daemon ends")
    assert not os.path.exists(f"/proc/{pid}")


def test_daemon_waits_until_the_output_is_delivered(sandbox: Sandbox) -> None:
    client = sandbox.client()
    main = client.spawn(shell("head -c 300000 /dev/zero"), main=True, attach=True)
    wait_until(lambda: not _children(sandbox.pid), "the process ends")
    assert not sandbox.gone()
    assert len(client.finish(main).out) == 300000
    wait_until(sandbox.gone, "the daemon ends")


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_killed_stem_takes_its_container_along(sandbox: Sandbox) -> None:
    client = sandbox.client()
    proc = client.spawn(op(Code.DEATH, 9), op(Code.SETUID, 1234, 1234), shell("sleep 100 & wait"), clone=NEWPID)
    pid = client.stat()[proc][0]
    sandbox.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "DEATH survives a change of uid")


# -- broken clients ----------------------------------------------------------------------------------------------------


def test_malformed_requests_are_refused(client: Client) -> None:
    bad = [
        (wire.Type.HELLO, b""),
        (wire.Type.SPAWN, b""),
        (wire.Type.SPAWN, wire.encode_spawn(_record(execute("true")))[0][:-1]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(execute("true")))[0] + b"x"),
        (wire.Type.SPAWN, wire.encode_spawn(_record())[0]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(op(Code.NNP)))[0]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(execute("true"), execute("true")))[0]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(op(Code.EXEC, 5, "true")))[0]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(op(Code.MKDIR, "x"), execute("true")))[0]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(op(Code.MKDIR, b"nul\0byte", 0o755), execute("true")))[0]),
        (wire.Type.SPAWN, wire.encode_spawn(_record(op(Code.MKDIR, "x", "mode"), execute("true")))[0]),
        (0x77, b""),
    ]
    for kind, payload in bad:
        with pytest.raises(wire.Refused) as refused:
            client.request(kind, 0, 0, payload)
        assert refused.value.errno in (errno.EINVAL, errno.EPROTO), kind
    assert client.stat() == {}


def _record(*ops: Op) -> Spawn:
    return Spawn(ops=ops)


def test_requests_for_unknown_processes(client: Client) -> None:
    for kind, payload in (
        (wire.Type.ATTACH, b""),
        (wire.Type.WAIT, b""),
        (wire.Type.SIGNAL, wire.u32(9)),
        (wire.Type.RESIZE, wire.size(1, 1)),
    ):
        with pytest.raises(wire.Refused) as refused:
            client.request(kind, 0, 99, payload)
        assert refused.value.errno == errno.ESRCH
    client.post(wire.Type.WRITE, 0, 99, b"x", tag=0)
    with pytest.raises(wire.Refused) as refused:
        client.request(wire.Type.READ, 0, 0, wire.string("/etc/passwd"))
    assert refused.value.errno == errno.EPERM


def test_oversized_frame_ends_the_connection_only(sandbox: Sandbox) -> None:
    client, other = sandbox.client(), sandbox.client()
    client.socket.sendall(wire.HEAD.pack((1 << 20) + 1, wire.Type.WRITE, 0, 1, 0))
    with pytest.raises((EOFError, ConnectionError)):
        client.receive()
    assert other.stat() == {}


def test_garbage_and_sudden_death_of_clients(sandbox: Sandbox) -> None:
    client = sandbox.client()
    assert client.stat() == {}
    before = sandbox.descriptors()
    for seed in range(20):
        victim = sandbox.client()
        victim.socket.sendall(bytes((seed * i * 7) % 251 for i in range(200)))
        victim.close()
    for _ in range(20):
        victim = sandbox.client()
        victim.post(wire.Type.SPAWN, wire.ATTACH, 0, wire.encode_spawn(_record(shell("echo hi")))[0])
        victim.close()
    wait_until(lambda: len(client.stat()) == 20 and all(state == 2 for _, state, _ in client.stat().values()), "all ended")
    wait_until(lambda: sandbox.descriptors() == before, "no descriptor is leaked")


def test_out_of_descriptors(sandbox: Sandbox) -> None:
    client = sandbox.client()
    used = client.run(execute("true")).code + sandbox.descriptors()
    resource.prlimit(sandbox.pid, resource.RLIMIT_NOFILE, (used + 4, used + 4))
    crowd = [sandbox.client() for _ in range(10)]
    with pytest.raises(wire.Refused) as refused:
        client.spawn(execute("true"))
    assert refused.value.errno == errno.EMFILE
    assert len(client.stat()) == 1
    for each in crowd[:8]:
        each.close()
    assert wait_until(crowd[-1].stat, "the last of the queue is served")


def test_channel_frames_are_not_for_clients(sandbox: Sandbox) -> None:
    client = sandbox.client()
    client.post(wire.Type.HOLD, wire.HOLD_OUTPUT, 1)
    with pytest.raises((EOFError, ConnectionError)):
        client.receive()


# -- streams -----------------------------------------------------------------------------------------------------------


def test_output_error_and_code(client: Client) -> None:
    before = time.time_ns()
    end = client.run(shell("echo out; echo err >&2; exit 42"))
    assert (end.code, end.signal, end.oom, end.out, end.err) == (42, 0, False, b"out\n", b"err\n")
    assert before <= end.time_ns <= time.time_ns()


def test_ended_by_signal(client: Client) -> None:
    proc = client.spawn(execute("sleep", "100"), attach=True)
    client.signal(proc, signal.SIGTERM)
    end = client.finish(proc)
    assert (end.code, end.signal) == (143, 15)
    with pytest.raises(wire.Refused) as refused:
        client.signal(proc, 0)
    assert refused.value.errno == errno.ESRCH


def test_stdin_with_eof(client: Client) -> None:
    data = os.urandom(1_500_000)
    assert client.run(execute("cat"), stdin=data).out == data
    assert client.run(execute("cat"), stdin=b"").out == b""


def test_stdin_without_the_flag_is_dev_null(client: Client) -> None:
    assert client.run(execute("readlink", "/proc/self/fd/0")).out == b"/dev/null\n"
    proc = client.spawn(execute("cat"), attach=True)
    client.write(proc, b"ignored", eof=True)
    assert client.finish(proc).out == b""


def test_stdin_stays_open_without_clients(sandbox: Sandbox) -> None:
    first = sandbox.client()
    proc = first.spawn(execute("cat"), stdin=True, log="log")
    first.write(proc, b"one ")
    first.stat()  # the write has been taken
    first.close()
    second = sandbox.client()
    second.request(wire.Type.ATTACH, wire.STDIN, proc)
    second.write(proc, b"two", eof=True)
    second.finish(proc)
    records, rest = wire.read_log((sandbox.directory / "log").read_bytes())
    assert (b"".join(data for _, _, data in records), rest) == (b"one two", b"")


def test_process_that_closes_stdin_does_not_block_its_writer(client: Client) -> None:
    proc = client.spawn(shell("exec 0</dev/null; echo closed; sleep 100"), stdin=True, attach=True)
    client.output_until(proc, b"closed")
    client.write(proc, bytes(2_000_000))
    client.signal(proc, signal.SIGKILL)
    assert client.finish(proc).code == 137


def test_writer_is_blocked_by_a_process_that_does_not_read_and_others_are_not(sandbox: Sandbox) -> None:
    writer, other = sandbox.client(), sandbox.client()
    proc = writer.spawn(execute("sleep", "100"), stdin=True, attach=True)
    writer.socket.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 50_000_000:
            writer.socket.sendall(wire.HEAD.pack(50000, wire.Type.WRITE, 0, proc, 0))
            sent += 16
            writer.socket.sendall(bytes(50000))
            sent += 50000
    assert sent < 3_000_000
    sandbox.assert_small(4_000_000)
    assert other.run(execute("echo", "fine")).out == b"fine\n"
    other.signal(proc, signal.SIGKILL)
    other.wait(proc)


def test_several_clients_see_the_same_output(sandbox: Sandbox) -> None:
    clients = [sandbox.client() for _ in range(4)]
    proc = clients[0].spawn(shell("read go; seq 1 20000"), stdin=True, attach=True)
    for client in clients[1:]:
        client.request(wire.Type.ATTACH, 0, proc)
    clients[0].write(proc, b"go\n")
    expected = "".join(f"{n}\n" for n in range(1, 20001)).encode()
    for client in clients:
        assert client.finish(proc).out == expected


def test_slow_client_stalls_the_process_and_loses_nothing(sandbox: Sandbox) -> None:
    slow, fast = sandbox.client(), sandbox.client()
    proc = slow.spawn(shell("read go; head -c 30000000 /dev/zero"), stdin=True, attach=True)
    slow.write(proc, b"\n")
    assert fast.run(execute("echo", "unhindered")).out == b"unhindered\n"
    assert fast.stat()[proc][1] == 1
    sandbox.assert_small(3_000_000)
    assert len(slow.finish(proc).out) == 30_000_000


def test_dead_client_does_not_stall_the_process(sandbox: Sandbox) -> None:
    victim, other = sandbox.client(), sandbox.client()
    proc = victim.spawn(shell("read go; head -c 30000000 /dev/zero"), stdin=True, attach=True)
    waiting = other.post(wire.Type.WAIT, 0, proc)
    victim.write(proc, b"\n")
    other.stat()
    victim.close()
    assert wire.decode_exited(other.answer(waiting).payload)[0] == 0


def test_wait_and_attach_after_the_end(client: Client) -> None:
    proc = client.spawn(shell("exit 9"))
    first = wire.decode_exited(client.wait(proc).payload)
    assert first[0] == 9
    assert wire.decode_exited(client.wait(proc).payload) == first
    tag = client.post(wire.Type.ATTACH, 0, proc)
    assert [client.receive().type for _ in range(2)] == [wire.Type.OK, wire.Type.EXITED]
    assert tag
    assert client.stat()[proc][1:] == (2, 9)


def test_output_of_orphans_does_not_hold_the_end_back(client: Client) -> None:
    end = client.run(shell("echo first; (sleep 100; echo late) & exit 3"))
    assert (end.code, end.out) == (3, b"first\n")


def test_a_chatty_orphan_does_not_hold_the_end_back(client: Client) -> None:
    proc = client.spawn(shell("yes & exit 3"), attach=True)
    assert client.finish(proc).code == 3


def test_many_processes_at_once(client: Client) -> None:
    procs = [client.spawn(shell(f"echo {n}; exit {n}"), log=f"log{n}", exit=f"exit{n}") for n in range(60)]
    codes = [wire.decode_exited(client.wait(proc).payload)[0] for proc in procs]
    assert codes == list(range(60))


def test_ended_processes_are_forgotten_in_the_end(sandbox: Sandbox) -> None:
    client = sandbox.client()
    for _ in range(300):
        client.wait(client.spawn(execute("true")))
    assert len(client.stat()) == 256
    with pytest.raises(wire.Refused):
        client.wait(1)
    sandbox.assert_small(1 << 20)


# -- terminals ---------------------------------------------------------------------------------------------------------


def test_terminal(client: Client) -> None:
    proc = client.spawn(
        op(Code.TTY, "/dev/pts/ptmx", ""), shell("tty; stty size; read x; stty size; exit 4"), tty=True, attach=True, rows=33, columns=77
    )
    assert b"33 77\r\n" in client.output_until(proc, b"77\r\n")
    client.request(wire.Type.RESIZE, 0, proc, wire.size(5, 6))
    client.write(proc, b"\n")
    end = client.finish(proc)
    assert (end.code, end.err) == (4, b"")
    assert end.out.endswith(b"5 6\r\n")


def test_terminal_is_the_controlling_one(client: Client) -> None:
    proc = client.spawn(op(Code.TTY, "/dev/pts/ptmx", ""), execute("sleep", "100"), tty=True, attach=True)
    client.write(proc, b"\x03")
    assert client.finish(proc).signal == signal.SIGINT


def test_terminal_output_is_complete(client: Client) -> None:
    for _ in range(20):
        end = client.run(op(Code.TTY, "/dev/pts/ptmx", ""), execute("seq", "1", "2000"), tty=True)
        assert end.out.replace(b"\r", b"").split() == [b"%d" % n for n in range(1, 2001)]


def test_terminal_kept_open_by_somebody_else(client: Client) -> None:
    end = client.run(op(Code.TTY, "/dev/pts/ptmx", ""), shell("trap '' HUP; echo first; sleep 100 & exit 6"), tty=True)
    assert (end.code, end.out) == (6, b"first\r\n")


def test_resize_needs_a_terminal(client: Client) -> None:
    proc = client.spawn(execute("sleep", "100"))
    with pytest.raises(wire.Refused) as refused:
        client.request(wire.Type.RESIZE, 0, proc, wire.size(1, 1))
    assert refused.value.errno == errno.ENOTTY


def test_stem_has_no_controlling_terminal(sandbox: Sandbox) -> None:
    client = sandbox.client()
    client.run(op(Code.TTY, "/dev/pts/ptmx", ""), execute("true"), tty=True)
    assert Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"


# -- logs and exit records ---------------------------------------------------------------------------------------------


def test_log_and_exit_record(client: Client, directory: Path) -> None:
    end = client.run(shell("echo out; sleep 0.05; echo err >&2; exit 3"), log="log", exit="exit")
    records, rest = wire.read_log((directory / "log").read_bytes())
    assert [(stream, data) for _, stream, data in records] == [(1, b"out\n"), (2, b"err\n")]
    assert rest == b""
    assert records[0][0] < records[1][0] <= end.time_ns
    assert (directory / "exit").read_text() == f"3 0 0 {end.time_ns}\n"
    assert not (directory / "exit.tmp").exists()


def test_log_rotation_keeps_whole_records(client: Client, directory: Path) -> None:
    proc = client.spawn(execute("cat"), log="log", log_limit=1000, stdin=True, attach=True)
    for number in range(200):  # in step, so that every line is a record of its own
        client.write(proc, b"line %d\n" % number)
        client.output_until(proc, b"\n")
    client.write(proc, b"", eof=True)
    client.finish(proc)
    for name in ("log", "log.1"):
        data = (directory / name).read_bytes()
        rest = wire.read_log(data)[1]
        assert 900 < len(data) <= 1000 or name == "log"
        assert rest == b""
    lines = [data for name in ("log.1", "log") for _, _, data in wire.read_log((directory / name).read_bytes())[0]]
    assert b"".join(lines).endswith(b"line 199\n")


def test_torn_log_is_mended(sandbox: Sandbox, directory: Path) -> None:
    client = sandbox.client()
    client.run(execute("echo", "first"), log="log")
    whole = (directory / "log").read_bytes()
    for torn in (whole[:5], whole[:-1]):
        (directory / "log").write_bytes(whole + torn)
        client.run(execute("echo", "second"), log="log")
        records, rest = wire.read_log((directory / "log").read_bytes())
        assert ([data for _, _, data in records], rest) == ([b"first\n", b"second\n"], b"")


def test_console_log_is_plain(client: Client, directory: Path) -> None:
    client.run(shell("echo plain"), log="log", console=True)
    assert (directory / "log").read_bytes() == b"plain\n"


def test_log_that_cannot_be_opened(client: Client) -> None:
    with pytest.raises(wire.Refused) as refused:
        client.spawn(execute("true"), log="no/such/dir")
    assert (refused.value.index, refused.value.errno) == (wire.NO_INDEX, errno.ENOENT)


def test_full_disk_loses_log_records_only(client: Client, directory: Path) -> None:
    small = directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        end = client.run(shell("head -c 1000000 /dev/zero; echo done >&2"), log="small/log", exit="small/exit")
        assert (len(end.out), end.err, end.code) == (1_000_000, b"done\n", 0)
        assert wire.read_log((small / "log").read_bytes())[1] == b""
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_oom_is_reported(client: Client, directory: Path) -> None:
    counter = directory / "events"
    counter.write_text("low 0\noom 4\noom_kill 2\n")
    assert not client.run(execute("true"), oom="events").oom
    end = client.run(shell("printf 'oom_kill 3\\n' >events"), oom="events", exit="exit")
    assert end.oom
    assert (directory / "exit").read_text().split()[2] == "1"


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "number", "text"),
    [
        ("/bin/nope", errno.ENOENT, "exec /bin/nope: No such file or directory"),
        ("nope", errno.ENOENT, "exec nope: not found in PATH"),
        ("/etc/passwd", errno.EACCES, "exec /etc/passwd: Permission denied"),
        ("/etc", errno.EACCES, "exec /etc: Permission denied"),
        ("", errno.ENOENT, "exec : No such file or directory"),
    ],
)
def test_exec_errors(client: Client, program: str, number: int, text: str) -> None:
    with pytest.raises(wire.Refused) as refused:
        client.spawn(op(Code.UMASK, 0o22), execute(program))
    assert (refused.value.index, refused.value.errno, refused.value.text) == (1, number, text)


def test_exec_errors_of_found_files(client: Client, directory: Path) -> None:
    (directory / "script").write_text("#!/no/such/interpreter\n")
    (directory / "data").write_bytes(b"\0\0\0\0")
    (directory / "plain").write_text("true\n")
    for name in ("script", "data"):
        (directory / name).chmod(0o755)
    path = (f"PATH=/nonexistent:{directory}",)
    expected = {"script": (errno.ENOENT, "interpreter"), "data": (errno.ENOEXEC, "format"), "plain": (errno.EACCES, "denied")}
    for name, (number, word) in expected.items():
        with pytest.raises(wire.Refused) as refused:
            client.spawn(execute(name, env=path))
        assert (refused.value.errno, word in refused.value.text) == (number, True), refused.value


def test_operation_errors_name_operation_and_object(client: Client) -> None:
    with pytest.raises(wire.Refused) as refused:
        client.spawn(op(Code.UMASK, 0), op(Code.MOUNT, "proc", "/no/such", "proc", 0, ""), execute("true"), clone=NEWNS)
    assert (refused.value.index, refused.value.errno) == (1, errno.ENOENT)
    assert refused.value.text == "mount proc on /no/such: No such file or directory"
    assert client.stat() == {}


def test_failed_spawn_leaves_nothing(sandbox: Sandbox) -> None:
    client = sandbox.client()
    assert client.stat() == {}
    before = sandbox.descriptors()
    for _ in range(30):
        with pytest.raises(wire.Refused):
            client.spawn(op(Code.TTY, "/dev/pts/ptmx", ""), op(Code.CLONE, 0), execute("/bin/nope"), tty=True, stdin=True)
    wait_until(lambda: not _children(sandbox.pid), "the failed ones are reaped")
    assert sandbox.descriptors() == before


def test_plan_does_not_block_the_loop(sandbox: Sandbox, directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    slow, other = sandbox.client(), sandbox.client()
    payload, flags = wire.encode_spawn(_record(op(Code.OPEN, "fifo", os.O_RDONLY, 5), shell("cat <&5")))
    tag = slow.post(wire.Type.SPAWN, flags | wire.ATTACH, 0, payload)
    assert other.run(execute("echo", "quick")).out == b"quick\n"
    with open(directory / "fifo", "w") as fifo:
        fifo.write("through\n")
    proc = wire.decode_spawned(slow.answer(tag).payload)[0]
    assert slow.finish(proc).out == b"through\n"


def test_killed_while_its_plan_runs(sandbox: Sandbox, directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    client = sandbox.client()
    payload, flags = wire.encode_spawn(_record(op(Code.OPEN, "fifo", os.O_RDONLY, 5), execute("true")))
    tag = client.post(wire.Type.SPAWN, flags, 0, payload)
    pid = wait_until(lambda: _children(sandbox.pid), "the child exists")[0]
    os.kill(int(pid), signal.SIGKILL)
    with pytest.raises(wire.Refused) as refused:
        client.answer(tag)
    assert refused.value.errno == errno.ESRCH
    assert client.stat() == {}


# -- containers --------------------------------------------------------------------------------------------------------


def test_container(client: Client, root: Path) -> None:
    plan = [*enter_root(root, op(Code.HOSTNAME, "box")), shell("echo $$; hostname; ls /; cat /proc/mounts | grep -c pts; tty")]
    end = client.run(*plan, clone=CONTAINER)
    lines = end.out.decode().split("\n")
    assert lines[:2] == ["1", "box"], end
    assert "etc" in lines
    assert "var" not in lines
    assert os.uname().nodename != "box"


def test_container_with_terminal_and_console(client: Client, root: Path) -> None:
    plan = enter_root(root, op(Code.TTY, "%/dev/pts/ptmx", "%/dev/console"))
    end = client.run(*plan, shell("tty; ls -l /dev/console >/dev/null; echo on the console >/dev/console"), clone=CONTAINER, tty=True)
    assert end.out == b"/dev/pts/0\r\non the console\r\n"


def test_exec_in_a_running_container(client: Client, root: Path) -> None:
    main = client.spawn(*enter_root(root, op(Code.HOSTNAME, "box")), shell("read x; exit 8"), clone=CONTAINER, stdin=True)
    join = [op(Code.JOIN, main, CONTAINER), op(Code.CLONE, 0)]
    end = client.run(*join, shell("hostname; ls -d /etc; cat /proc/1/cmdline | tr '\\0' ' '"))
    assert end.out == b"box\n/etc\nsh -c read x; exit 8 "
    tty = client.run(*join, op(Code.TTY, "/dev/pts/ptmx", ""), shell("tty"), tty=True)
    assert tty.out.startswith(b"/dev/pts/")
    listing = client.run(*join, builtin("ps")).out
    assert [line.split()[0] for line in listing.splitlines()] == [b"1"]
    assert b"sh\0-c\0read x; exit 8" in listing
    running = client.spawn(*join, execute("sleep", "100"), attach=True)
    client.write(main, b"\n")
    assert client.finish(running).signal == signal.SIGKILL  # PID 1 of its namespace has ended
    assert wire.decode_exited(client.wait(main).payload)[0] == 8
    with pytest.raises(wire.Refused) as refused:
        client.spawn(*join, execute("true"))
    assert (refused.value.index, refused.value.errno) == (0, errno.ESRCH)


def test_clone_reports_the_pid_that_stays(sandbox: Sandbox) -> None:
    client = sandbox.client()
    proc = client.spawn(op(Code.CLONE, 0), op(Code.CLONE, NEWPID), op(Code.DEATH, 9), execute("sleep", "100"))
    pid = client.stat()[proc][0]
    assert [str(pid)] == _children(sandbox.pid)
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    client.signal(proc, signal.SIGKILL)
    assert wire.decode_exited(client.wait(proc).payload)[1] == 9


def test_pause_reaps_and_ends_on_sigterm(client: Client) -> None:
    main = client.spawn(
        op(Code.MOUNT, "none", "/", "", PRIVATE, ""), op(Code.MOUNT, "proc", "/proc", "proc", 0, ""), builtin("pause"), clone=NEWPID | NEWNS
    )
    join = [op(Code.JOIN, main, NEWPID | NEWNS), op(Code.CLONE, 0)]
    client.run(*join, shell("(sleep 0.05 &) ; true"))
    wait_until(lambda: client.run(*join, builtin("ps")).out.count(b"\n") == 1, "the orphan is reaped")
    client.signal(main, signal.SIGTERM)
    assert wire.decode_exited(client.wait(main).payload)[0] == 0


def test_unknown_builtin(client: Client) -> None:
    end = client.builtin("nothing")
    assert (end.code, end.err) == (127, b"nothing: no such builtin, or a wrong number of arguments\n")


def test_descriptor_operations(client: Client, directory: Path) -> None:
    (directory / "file").write_text("contents\n")
    end = client.run(
        op(Code.OPEN, "file", os.O_RDONLY, 7),
        op(Code.LISTEN, f"{directory}/s", 9),
        shell("cat <&7; ls /proc/self/fd | tr '\\n' ' '; [ -S s ] && stat -c %a s"),
    )
    assert end.out == b"contents\n0 1 2 3 7 9 600\n"
    for number in (2, 100, -1):
        with pytest.raises(wire.Refused) as refused:
            client.spawn(op(Code.OPEN, "file", os.O_RDONLY, number), execute("true"))
        assert refused.value.errno == errno.EBADF
    with pytest.raises(wire.Refused) as refused:
        client.spawn(op(Code.CHANNEL, 3), execute("true"))
    assert refused.value.errno == errno.EBADF


def test_listening_socket_works(client: Client, directory: Path) -> None:
    program = "import socket; s = socket.socket(fileno=5); c, _ = s.accept(); c.sendall(b'hello')"
    proc = client.spawn(op(Code.LISTEN, "s", 5), execute(sys.executable, "-c", program))
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{directory}/s")
        assert s.recv(10) == b"hello"
    client.wait(proc)
