"""Conformance of isolation levels: what every driver has to do, whatever a sandbox is made of.

`check_isolation(driver, make_sandbox)` runs every check, each in a fresh sandbox; `CHECKS` are the same functions one by one, for
test parameters. A sandbox's root file system has these programs on its PATH (`nacre.isolation.fake` pretends to have them): true,
false, exit N, echo WORDS, cat, sleep (until a signal), and the file forbidden, which is not executable.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from nacre.errors import CommandNotExecutable, CommandNotFound, SandboxError, SandboxGone
from nacre.isolation import Driver, Pausable
from nacre.isolation.channel import Channel, Exit, decode_exit, read_exit_record
from nacre.isolation.logs import read_logs
from nacre.isolation.plan import Etc, Security, container_plan, exec_plan
from nacre.isolation.stream import Stream
from nacre.linux import capabilities
from nacre.model.container import ProcessSpec, Sandbox
from nacre.model.plan import Spawn
from nacre.store import Lock, is_locked
from nacre.wire import stem as wire

Make = Callable[[], Sandbox]
Check = Callable[[Driver, Make], None]

MAIN = 1
PATIENCE = 60.0  # seconds until what does not happen counts as failed
SOON = 0.05
SECURITY = Security(capabilities=capabilities.DEFAULT)


# -- tools ---------------------------------------------------------------------------------------------------------------


class Box:
    """A sandbox that was started: driver, value and the connection that greeted its stem."""

    def __init__(self, driver: Driver, sandbox: Sandbox, channel: Channel) -> None:
        self.driver, self.sandbox, self.channel = driver, sandbox, channel

    @property
    def alive(self) -> bool:
        """Whether its stem lives: asked of the kernel."""
        return is_locked(f"{self.sandbox.directory}/lock")

    def connect(self) -> Channel:
        """One more connection."""
        return Channel(self.sandbox.directory)

    def processes(self) -> dict[int, tuple[int, int, int]]:
        """(pid, state 1 running 2 ended, code) of the container's processes by number; a monitor is none of them."""
        rows = self.channel.stat(timeout=PATIENCE)
        return {number: (pid, state, code) for number, pid, state, code in rows if not number & wire.LOCAL_PROC}

    def plan(self, *command: str, stdin: bool = False) -> Spawn:
        """The record of the main process, with log and exit record in the state directory."""
        plan = container_plan(self.sandbox, _process(command, stdin), self.driver.place(self.sandbox), SECURITY, (), Etc())
        return plan.replace(main=True, log=f"{self.sandbox.state}/log", exit=f"{self.sandbox.state}/exit")

    def main(self, *command: str) -> tuple[int, int]:
        """Spawn the main process without being attached: its number and pid."""
        return self.channel.spawn(self.plan(*command))

    def attached(self, *command: str, stdin: bool = False) -> Stream:
        """Spawn the main process, attached from the first byte."""
        return Stream(self.channel, self.channel.spawn(self.plan(*command, stdin=stdin).replace(attach=True))[0])

    def exec(self, *command: str, stdin: bool = False) -> Stream:
        """One more process beside the main one, attached."""
        channel = self.connect()
        plan = exec_plan(MAIN, _process(command, stdin), self.driver.place(self.sandbox), SECURITY)
        return Stream(channel, channel.spawn(plan.replace(attach=True))[0])


def _process(command: Sequence[str], stdin: bool = False) -> ProcessSpec:
    return ProcessSpec(args=tuple(command), env=("PATH=/bin",), open_stdin=stdin)


@contextlib.contextmanager
def started(
    driver: Driver, sandbox: Sandbox, *, keep: Sequence[int] = (), exit_command: Sequence[str] = (), custody: bool = True
) -> Iterator[Box]:
    """The sandbox, empty and running; at the end it is shut down and cleaned up, whatever happened."""
    lock = Lock(f"{sandbox.directory}/lock", wait=0)
    try:
        with contextlib.closing(driver.start(sandbox, keep=(lock.fd, *keep), exit_command=exit_command, custody=custody)) as channel:
            lock.release()  # ours; the stem's copy keeps it held
            yield Box(driver, sandbox, channel)
    finally:
        lock.release()
        with contextlib.suppress(SandboxError), contextlib.closing(Channel(sandbox.directory, custody=True)) as channel:
            channel.announce()
            channel.shutdown(force=True)
        driver.clean(sandbox.id)


def _end(channel: Channel, proc: int) -> Exit:
    """How a process ended, as told to a connection that is attached to it."""
    while frames := channel.receive(PATIENCE):
        for frame in frames:
            if frame.proc == proc and frame.type is wire.Type.EXITED:
                return decode_exit(frame)
    raise AssertionError(f"nothing more came, and no end of process {proc}")


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until it is true. Raises AssertionError when it does not become so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.005)


def _expect(kind: type[BaseException], action: Callable[[], object]) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


# -- checks --------------------------------------------------------------------------------------------------------------


def check_start(driver: Driver, make: Make) -> None:
    """An empty sandbox answers, holds its lock, lets nobody else in, and says what it is."""
    sandbox = make()
    with started(driver, sandbox) as box:
        hello = box.channel.hello(timeout=PATIENCE)
        assert hello.version == 1
        assert hello.release, "the kernel's release"
        assert box.alive
        assert os.stat(f"{sandbox.directory}/stem.sock").st_mode & 0o077 == 0, "the socket is its owner's alone"
        assert box.processes() == {}, "nothing runs in it yet"
        described = driver.describe(sandbox)
        assert described["Kernel"]
        assert described["Assurance"]
    eventually(lambda: not is_locked(f"{sandbox.directory}/lock"), "the lock is released")


def check_main_process(driver: Driver, make: Make) -> None:
    """Output, code, log and exit record of a main process; the sandbox ends with it."""
    sandbox = make()
    with started(driver, sandbox) as box:
        assert box.attached("echo", "hello", "there").communicate() == (0, b"hello there\n", b"")
        eventually(lambda: not box.alive, "the sandbox ends with its main process")
    record = read_exit_record(f"{sandbox.state}/exit")
    assert record is not None
    assert (record.code, record.signal, record.oom) == (0, 0, False)
    assert abs(record.time_ns / 1e9 - time.time()) < PATIENCE, "in the host's time"
    log = list(read_logs(f"{sandbox.state}/log"))
    assert b"".join(item.data for item in log) == b"hello there\n"
    assert {item.stream for item in log} == {1}


def check_exit_codes(driver: Driver, make: Make) -> None:
    """Codes come through, of main processes and of others."""
    for words, code in ((("true",), 0), (("false",), 1), (("exit", "42"), 42)):
        with started(driver, make()) as box:
            assert box.attached(*words).communicate() == (code, b"", b"")
    with started(driver, make()) as box:
        box.main("sleep")
        for words, code in ((("true",), 0), (("false",), 1), (("exit", "42"), 42)):
            assert box.exec(*words).communicate() == (code, b"", b"")


def check_commands_that_cannot_run(driver: Driver, make: Make) -> None:
    """A refused plan is an error with the cause, and leaves a sandbox in which the next one works."""
    sandbox = make()
    with started(driver, sandbox) as box:
        box.main("sleep")
        _expect(CommandNotFound, lambda: box.exec("missing"))
        _expect(CommandNotExecutable, lambda: box.exec("forbidden"))
        assert box.exec("echo", "still here").communicate()[1] == b"still here\n"
        assert box.alive
    with started(driver, make()) as box:
        _expect(CommandNotFound, lambda: box.main("missing"))
    assert read_exit_record(f"{box.sandbox.state}/exit") is None, "what never ran has no end"


def check_input(driver: Driver, make: Make) -> None:
    """Input arrives whole and in order, and ends."""
    data = bytes(range(256)) * 2048
    with started(driver, make()) as box:
        assert box.attached("cat", stdin=True).communicate(data) == (0, data, b"")
    with started(driver, make()) as box:
        box.main("sleep")
        assert box.exec("cat", stdin=True).communicate(b"beside") == (0, b"beside", b"")


def check_exec(driver: Driver, make: Make) -> None:
    """Further processes run beside the main one and end without it; numbers are not used again."""
    with started(driver, make()) as box:
        number, pid = box.main("sleep")
        assert number == MAIN
        assert pid > 0
        assert box.exec("echo", "one").communicate() == (0, b"one\n", b"")
        assert box.exec("echo", "two").communicate() == (0, b"two\n", b"")
        rows = box.processes()
        assert rows[MAIN][:2] == (pid, 1), "it runs"
        assert sorted(rows) == [1, 2, 3]
        assert {rows[2][1], rows[3][1]} == {2}, "they have ended"
        assert box.alive


def check_signals(driver: Driver, make: Make) -> None:
    """A signal ends what it is sent to, with its number in the code; what has ended is no error."""
    sandbox = make()
    with started(driver, sandbox) as box:
        box.main("sleep")
        stream = box.exec("sleep")
        stream.signal(signal.SIGTERM)
        assert stream.wait() == 128 + signal.SIGTERM
        stream.close()
        box.channel.signal(2, signal.SIGTERM)
        watcher = box.connect()
        watcher.attach(MAIN, stdin=False)
        box.channel.signal(MAIN, signal.SIGKILL)
        seen = _end(watcher, MAIN)
        assert (seen.code, seen.signal) == (137, signal.SIGKILL)
        watcher.close()
        eventually(lambda: not box.alive, "the sandbox ends with its main process")
    assert read_exit_record(f"{sandbox.state}/exit") == seen


def check_waiting(driver: Driver, make: Make) -> None:
    """Whoever waits hears the end, however many they are; those who come late hear it too; patience has an end."""
    with started(driver, make()) as box:
        box.main("sleep")
        impatient = box.connect()
        assert impatient.wait(MAIN, timeout=SOON) is None
        impatient.close()
        early = [box.exec("sleep"), *(Stream(box.connect(), 2) for _ in range(2))]
        for stream in early[1:]:
            stream._channel.attach(2, stdin=False)
        early[0].signal(signal.SIGKILL)
        assert [stream.wait() for stream in early] == [137] * 3
        for stream in early:
            stream.close()
        late = box.connect()
        assert late.wait(2, timeout=PATIENCE) == late.wait(2, timeout=PATIENCE)
        late.close()
        _expect(SandboxError, lambda: box.channel.wait(99, timeout=PATIENCE))


def check_attach(driver: Driver, make: Make) -> None:
    """Somebody who attaches sees what follows; everybody who is attached sees the same."""
    with started(driver, make()) as box:
        box.channel.spawn(box.plan("cat", stdin=True))
        streams = [Stream(box.connect(), MAIN) for _ in range(2)]
        for stream in streams:
            stream._channel.attach(MAIN)
        streams[0].write(b"to everybody")
        streams[0].close_stdin()
        for stream in streams:
            assert stream.communicate() == (0, b"to everybody", b"")


def check_shutdown(driver: Driver, make: Make) -> None:
    """A sandbox can be ended from outside, at once; then nothing answers, and the same place can be used again."""
    sandbox = make()
    with started(driver, sandbox) as box:
        box.main("sleep")
        other = box.connect()
        box.channel.shutdown(force=True, timeout=PATIENCE)
        assert other.receive(PATIENCE) is None, "every connection ends"
        other.close()
        eventually(lambda: not box.alive, "the lock is released")
        _expect(SandboxGone, box.connect)
    driver.clean(sandbox.id)
    driver.clean(sandbox.id)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{sandbox.state}/exit")
    with started(driver, sandbox) as box:
        assert box.attached("true").communicate()[0] == 0


def check_clean(driver: Driver, make: Make) -> None:
    """Cleaning up is idempotent, and fine for what never was."""
    sandbox = make()
    driver.clean(sandbox.id)
    driver.clean("f" * 64)
    with started(driver, sandbox) as box:
        box.main("true")
        eventually(lambda: not box.alive, "the sandbox ends")
        for _ in range(2):
            driver.clean(sandbox.id)


def check_kept_descriptors(driver: Driver, make: Make) -> None:
    """What it is given to keep stays open as long as the sandbox lives, and no longer; programs in it do not have it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        with started(driver, make(), keep=(writing,)) as box:
            os.close(writing)
            writing = -1
            box.main("sleep")
            assert box.exec("true").communicate()[0] == 0
            assert not select.select([reading], [], [], SOON)[0], "somebody has the other end"
            box.channel.shutdown(force=True, timeout=PATIENCE)
            assert select.select([reading], [], [], PATIENCE)[0], "nobody has it any more"
            assert os.read(reading, 1) == b""
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)


def check_exit_command(driver: Driver, make: Make) -> None:
    """When it ends and nobody has custody, the sandbox starts the command it was given; otherwise it does not."""
    for custody in (False, True):
        sandbox = make()
        trace = f"{sandbox.state}/trace"
        command = ("/bin/sh", "-c", f'echo ended > "{trace}.new"; mv "{trace}.new" "{trace}"')
        with started(driver, sandbox, exit_command=command, custody=custody) as box:
            box.main("sleep")
            assert not os.path.exists(trace)
            box.channel.signal(MAIN, signal.SIGKILL)
            eventually(lambda box=box: not box.alive, "the sandbox ends")  # type: ignore[misc]
            if custody:
                time.sleep(SOON)
            else:
                eventually(lambda trace=trace: os.path.exists(trace), "the exit command runs")  # type: ignore[misc]
        assert os.path.exists(trace) is not custody


def check_stats(driver: Driver, make: Make) -> None:
    """A sample of a running sandbox has a time and counts what runs; figures only grow."""
    sandbox = make()
    with started(driver, sandbox) as box:
        box.main("sleep")
        first = driver.stats(sandbox)
        assert abs(first.time - time.time()) < PATIENCE
        assert first.pids >= 1
        assert box.exec("true").communicate()[0] == 0
        second = driver.stats(sandbox)
        assert second.time >= first.time
        assert second.cpu >= first.cpu


def check_pause(driver: Driver, make: Make) -> None:
    """A driver that can stop the time of a sandbox: nothing answers meanwhile, nothing is lost. Others need not."""
    if not isinstance(driver, Pausable):
        return
    sandbox = make()
    with started(driver, sandbox) as box:
        stream = box.attached("cat", stdin=True)
        assert not driver.paused(sandbox)
        for _ in range(2):
            driver.pause(sandbox)
            assert driver.paused(sandbox)
        stream.write(b"while it slept")
        assert stream.read(SOON) == []
        for _ in range(2):
            driver.resume(sandbox)
            assert not driver.paused(sandbox)
        assert stream.communicate(b"") == (0, b"while it slept", b"")


def check_killed_stem(driver: Driver, make: Make) -> None:
    """A stem that is killed takes everything with it; the kernel tells, and cleaning up leaves nothing. Threads have no such death."""
    sandbox = make()
    with started(driver, sandbox) as box:
        if not os.path.exists(f"{sandbox.directory}/stem.pid"):
            return
        box.main("sleep")
        with open(f"{sandbox.directory}/stem.pid", encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGKILL)
        eventually(lambda: not box.alive, "the lock is released")
        _expect(SandboxGone, lambda: box.channel.wait(MAIN, timeout=PATIENCE))
        _expect(SandboxGone, box.connect)
    assert read_exit_record(f"{sandbox.state}/exit") is None


def check_place(driver: Driver, make: Make) -> None:
    """A place is only a description: asking for it starts nothing and changes nothing."""
    sandbox = make()
    before = sorted(os.listdir(sandbox.directory)), sorted(os.listdir(sandbox.state))
    with started(driver, sandbox) as box:
        first, second = driver.place(sandbox), driver.place(sandbox)
        assert (first.stage, first.rootfs, first.join) == (second.stage, second.rootfs, second.join)
        assert box.processes() == {}
    assert set(before[1]) <= set(os.listdir(sandbox.state))


CHECKS: tuple[Check, ...] = (
    check_start,
    check_main_process,
    check_exit_codes,
    check_commands_that_cannot_run,
    check_input,
    check_exec,
    check_signals,
    check_waiting,
    check_attach,
    check_shutdown,
    check_clean,
    check_kept_descriptors,
    check_exit_command,
    check_stats,
    check_pause,
    check_killed_stem,
    check_place,
)


def check_isolation(driver: Driver, make_sandbox: Make) -> None:
    """Run every check. make_sandbox: a sandbox that was never started, with its directories made, each time it is called."""
    for check in CHECKS:
        check(driver, make_sandbox)


__all__ = ["CHECKS", "Box", "Check", "Make", "check_isolation", "started"]
