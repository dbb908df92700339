"""The verbs over OCI bundles whose container lives in a virtual machine of its own.

Whoever called the runtime waits for the pid it reports, and that process must be a child that becomes theirs. Here it is the
*stand-in*: a process of ours in the container's network namespace that boots the machine, carries the container's standard streams,
passes signals on and ends with the container's exit code. The machine itself is the driver's, as for every container at level vm.

Below ``<root>/.vm``: ``sandboxes/ID`` (the driver's run-time directory), ``netns/ID`` (a namespace made here), ``blocks/N`` (locked
while a machine has that block of user ids).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import fcntl
import os
import signal
import struct
import termios
import time

from nacre.errors import (
    CommandNotExecutable,
    CommandNotFound,
    Conflict,
    HostError,
    InvalidArgument,
    NacreError,
    NotFound,
    SandboxError,
    Unsupported,
)
from nacre.isolation import oci_vm
from nacre.isolation.channel import Channel
from nacre.isolation.microvm.machine import MicroVm
from nacre.isolation.oci_container import Wishes
from nacre.isolation.oci_run import Outcome
from nacre.isolation.stream import EXIT_LOST, Stream
from nacre.model import jsontext
from nacre.model.bundle import Bundle, Process
from nacre.model.container import Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import NEWNET
from nacre.network import splice
from nacre.store.layout import discard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from nacre.store.bundles import Claim

SANDBOX = "sandbox.json"
MAIN = 1  # number of the container's first process in its sandbox

# Blocks of 65536 user ids for monitors, away from those that the engine gives to its own containers.
_BLOCKS, _BLOCK, _BLOCK_BASE = 4096, 65536, 0x50000000
_ENDING = 15.0  # seconds
_REPORT_MAX = 1 << 16
_INSIDE, _GO = b"inside", b"go"  # what a stand-in says when it is in the network namespace, and what it waits for then
_FAILURES: dict[str, type[NacreError]] = {
    kind.__name__: kind for kind in (CommandNotFound, CommandNotExecutable, Conflict, InvalidArgument, NotFound, Unsupported)
}
# Those that mean a process itself, or that only the kernel sends.
_OWN = frozenset((signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH, signal.SIGTTOU))


class Machine:
    """A container's machine where the runtime has a control group for others: what it can be asked and told."""

    def __init__(self, claim_path: str, name: str, stand_in: int) -> None:
        self._sandbox = Sandbox.from_data(jsontext.loads(_read(f"{claim_path}/{SANDBOX}")))
        self._name = name
        self._stand_in = stand_in
        self._driver = MicroVm()

    def frozen(self) -> bool:
        """Are its processors stopped?"""
        try:
            return self._driver.paused(self._sandbox)
        except NacreError:
            return False

    def freeze(self) -> None:
        """Stop them. Raises SandboxError when the machine is gone."""
        self._driver.pause(self._sandbox)

    def thaw(self) -> None:
        """Let them go on."""
        self._driver.resume(self._sandbox)

    def update(self, resources: dict[str, Any]) -> None:
        """Change limits, within the size that the machine has. Raises Unsupported."""
        self._driver.update(self._sandbox, oci_vm.resources(resources))

    def stats(self) -> dict[str, Any]:
        """In the words of runc's events."""
        return oci_vm.numbers(self._driver.stats(self._sandbox))

    def pids(self) -> tuple[int, ...]:
        """The stand-in: the processes of the guest have no numbers on the host."""
        return (self._stand_in,)

    def oom_file(self) -> str:
        """None: the guest counts for itself."""
        return ""

    def signal(self, number: int) -> bool:
        """Send a signal to the first process in the guest; False when none runs there (yet)."""
        try:
            with contextlib.closing(Channel(self._sandbox.directory)) as channel:
                if not _started(channel):
                    return False
                channel.signal(MAIN, number)
        except (SandboxError, FileNotFoundError, TimeoutError):
            return False
        return True

    def await_first(self, alive: Callable[[], bool]) -> None:
        """Until the first process runs in the guest, or there is nobody left who would start it."""
        while alive():
            with contextlib.suppress(SandboxError, FileNotFoundError), contextlib.closing(Channel(self._sandbox.directory)) as channel:
                if _started(channel):
                    return
            time.sleep(0.005)

    def kill(self, timeout: float) -> None:
        """End the machine."""
        directory = self._sandbox.directory
        with contextlib.suppress(NacreError, OSError), contextlib.closing(Channel(directory, custody=True)) as channel:
            channel.announce()
            channel.shutdown(force=True, timeout=timeout)
        with contextlib.suppress(OSError, ValueError):
            relay = int(_read(f"{directory}/stem.pid"))
            if f"{directory}\0".encode() in _read(f"/proc/{relay}/cmdline"):
                os.kill(relay, signal.SIGKILL)

    def remove(self) -> None:
        """Take away what is left of it. Idempotent."""
        self._driver.clean(self._name, self._sandbox.directory)
        discard(self._sandbox.directory)
        splice.remove_namespace(_own_namespace(self._sandbox.directory))


def machine(claim_path: str, record: dict[str, Any]) -> Machine | None:
    """The machine of a recorded container, None when it was never made."""
    try:
        return Machine(claim_path, str(record["id"]), int(record["pid"]))
    except (FileNotFoundError, ValueError):
        return None


def _started(channel: Channel) -> bool:
    """Whether the container's first process has been made."""
    return any(row[0] == MAIN for row in channel.stat(timeout=_ENDING))


def _own_namespace(directory: str) -> str:
    """Where the network namespace that is made for the sandbox in `directory` lies, if one is."""
    return f"{os.path.dirname(os.path.dirname(directory))}/netns/{os.path.basename(directory)}"


def create(
    claim: Claim, record: dict[str, Any], bundle: Bundle, wishes: Wishes, *, on_pid: Callable[[int], None], states: Callable[[int], bytes]
) -> Outcome:
    """Boot a machine for a bundle and make a stand-in, which waits for `start` when there is a FIFO.

    on_pid, states: as for `nacre.isolation.oci_container.create`; the hooks that `states` runs find the network namespace by the pid.
    Raises NacreError; what was made is in the record then, for the caller to remove.
    """
    oci_vm.check(bundle)
    if bundle.process:
        oci_vm.look_up(record["rootfs"], bundle, bundle.process)
    top = f"{os.path.dirname(claim.path)}/.vm"
    directory = f"{top}/sandboxes/{record['id']}"
    os.makedirs(f"{directory}/stage", 0o711, exist_ok=True)
    namespace = bundle.namespace(NEWNET)
    network = namespace.path if namespace else ""
    number, block = _take_block(top)
    where = oci_vm.Boundary(
        name=record["id"],
        directory=directory,
        state=claim.path,
        bundle=record["bundle"],
        rootfs=record["rootfs"],
        owner=_BLOCK_BASE + number * _BLOCK,
    )
    try:
        # Written at once, with what is known by now: whatever happens, it tells `delete` where to look.
        sandbox = oci_vm.sandbox(bundle, where, Endpoint(network=splice.ADOPTED, netns=network or _own_namespace(directory)))
        claim.put(SANDBOX, jsontext.dumps(sandbox.to_data()).encode())
        if not network:
            splice.make_namespace(sandbox.endpoint.netns)
        ours, pid = _fork(lambda theirs: _boot(theirs, claim, sandbox, bundle, wishes, block), wishes.fifo, block)
        # Unless it has failed already, and that is its report.
        if ours.recv(len(_INSIDE), _socket.MSG_PEEK) == _INSIDE:
            ours.recv(len(_INSIDE))
        on_pid(pid)
        states(pid)
        with contextlib.suppress(BrokenPipeError):
            ours.send(_GO)
        return _await(ours, pid)
    finally:
        os.close(block)


def _take_block(top: str) -> tuple[int, int]:
    """A block of user ids that no other machine has: its number, and the locked descriptor that keeps it."""
    os.makedirs(f"{top}/blocks", 0o711, exist_ok=True)
    for number in range(_BLOCKS):
        fd = os.open(f"{top}/blocks/{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number, fd
        except BlockingIOError:
            os.close(fd)
    raise HostError(f"there are {_BLOCKS} virtual machines already", hint="nacre-oci list")


def enter(claim: Claim, bundle: Bundle, process: Process, wishes: Wishes) -> Outcome:
    """Start one more process in the machine's container, with a stand-in of its own. Raises NacreError."""
    sandbox = Sandbox.from_data(jsontext.loads(claim.get(SANDBOX)))
    return _await(*_fork(lambda theirs: _further(theirs, sandbox, bundle, process, wishes)))


def _fork(live: Callable[[_socket.socket], int], *kept: int) -> tuple[_socket.socket, int]:
    """Make a stand-in: our end of a connection to it, and its pid."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        _stand_in(theirs, live, *kept)
    theirs.close()
    return ours, pid


def _await(ours: _socket.socket, pid: int) -> Outcome:
    """The stand-in's one report: an error, or "" with the terminal's master when there is one."""
    outcome = Outcome(pid)
    try:
        data, control, _flags, _address = ours.recvmsg(_REPORT_MAX, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in control:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                outcome.master = struct.unpack_from("=i", content)[0]
    finally:
        ours.close()
    report = jsontext.loads(data) if data else {"kind": "SandboxError", "message": "the stand-in was killed", "hint": "", "details": ""}
    if report["kind"]:
        os.waitpid(pid, 0)
        raise _FAILURES.get(report["kind"], HostError)(report["message"], hint=report["hint"], details=report["details"])
    return outcome


# -- the stand-in --------------------------------------------------------------------------------------------------------


def _stand_in(theirs: _socket.socket, live: Callable[[_socket.socket], int], *kept: int) -> NoReturn:
    """The life of a forked process: never returns to what its parent was doing. kept: descriptors that it needs beside its streams."""
    code = EXIT_LOST
    try:
        os.setsid()
        # Above all not the lock of the record, which would stay taken.
        wanted = {0, 1, 2, theirs.fileno(), *kept}
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd not in wanted:
                with contextlib.suppress(OSError):
                    os.close(fd)
        code = live(theirs)
    except NacreError as error:
        code = error.exit_code
        _report(theirs, type(error).__name__, error.message, error.hint, error.details)
    except BaseException as error:
        _report(theirs, "HostError", f"internal error: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _report(theirs: _socket.socket, kind: str = "", message: str = "", hint: str = "", details: str = "", master: int = -1) -> None:
    data = jsontext.dumps({"kind": kind, "message": message, "hint": hint, "details": details[-32768:]}).encode()
    control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", master))] if master >= 0 else []
    try:
        theirs.sendmsg([data], control)
        theirs.close()
    except OSError:  # it has been told that all is well: this is for who reads the container's output
        _write(2, f"nacre-oci: {message}\n".encode())


def _boot(theirs: _socket.socket, claim: Claim, sandbox: Sandbox, bundle: Bundle, wishes: Wishes, block: int) -> int:
    """Boot, report, wait for `start`, and be the container."""
    splice.enter_namespace(sandbox.endpoint.netns)
    theirs.send(_INSIDE)
    theirs.recv(len(_GO))
    # The hooks have set the network up by now.
    endpoint = splice.adopt(sandbox.endpoint.netns)
    process = bundle.process
    master = _terminal(process) if process and process.terminal else -1
    sandbox = sandbox.replace(endpoint=endpoint)
    claim.put(SANDBOX, jsontext.dumps(sandbox.to_data()).encode())
    driver = MicroVm()
    splice.tap(endpoint, driver.tap_owner(sandbox))
    lock = os.open(f"{sandbox.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    channel = driver.start(sandbox, keep=(lock, block), exit_command=(), custody=True)
    os.close(lock)
    os.close(block)
    _report(theirs, master=master)
    if master >= 0:
        os.close(master)
    if wishes.fifo >= 0:
        _await_start(wishes.fifo, channel)
    if process is None:
        raise HostError("the container has no process")
    spawn = oci_vm.main_spawn(sandbox, bundle, process, driver.place(sandbox), wishes.cache)
    return _run(channel, spawn.replace(attach=True, exit=f"{sandbox.directory}/exit"), tty=process.terminal, end=True)


def _await_start(fifo: int, channel: Channel) -> None:
    """Until `start` writes to the FIFO. A signal that ends this process takes the machine along."""

    def ended(number: int, _frame: object) -> None:
        with contextlib.suppress(NacreError, OSError):
            channel.shutdown(force=True, timeout=_ENDING)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, ended)
    os.read(fifo, 1)
    os.close(fifo)


def _further(theirs: _socket.socket, sandbox: Sandbox, bundle: Bundle, process: Process, wishes: Wishes) -> int:
    master = _terminal(process) if process.terminal else -1
    channel = Channel(sandbox.directory)
    channel.hello(timeout=_ENDING)
    # The first process must be the first: the numbers that others join it by are given out in turn.
    if not _started(channel):
        raise Conflict("cannot exec in a container in a virtual machine before it was started")
    spawn = oci_vm.further_spawn(bundle, process, MAIN, MicroVm().place(sandbox), wishes.cache)
    return _run(channel, spawn.replace(attach=True), tty=process.terminal, spawned=lambda: _report(theirs, master=master))


def _terminal(process: Process) -> int:
    """A terminal for the engine's end of the streams: its master; its slave becomes our controlling terminal and standard streams.

    The guest's terminal does what terminals do, so ours passes everything through.
    """
    import tty

    master, slave = os.openpty()
    tty.setraw(slave)
    if process.rows:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", process.rows, process.columns, 0, 0))
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)
    return master


def _run(channel: Channel, spawn: Any, *, tty: bool, end: bool = False, spawned: Callable[[], None] = lambda: None) -> int:
    """Start a process in the guest and carry its streams and signals until it has ended; its exit code. end: the machine ends with it."""
    size = _window() if tty else (0, 0)
    proc, _pid = channel.spawn(spawn.replace(rows=size[0] or spawn.rows, columns=size[1] or spawn.columns))
    spawned()
    stream = Stream(channel, proc)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in signal.valid_signals() - _OWN | ({signal.SIGWINCH} if tty else set()):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, lambda _number, _frame: None)
    code = _carry(stream, wake, tty)
    if end:
        with contextlib.suppress(NacreError, OSError, TimeoutError):
            channel.linger(_ENDING)
    return code


def _window() -> tuple[int, int]:
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
    return rows, columns


def _carry(stream: Stream, wake: int, tty: bool) -> int:
    """Between our standard streams and the process's."""
    import select

    poll = select.poll()
    poll.register(stream, select.POLLIN)
    poll.register(wake, select.POLLIN)
    poll.register(0, select.POLLIN)
    reading = True
    while True:
        while pieces := stream.read(0.0):
            for number, data in pieces:
                _write(number, data)
        if pieces is None:
            return stream.exit_code if stream.exit_code is not None else EXIT_LOST
        poll.modify(stream, select.POLLIN | (select.POLLOUT if stream.want_write else 0))
        for fd, event in poll.poll():
            if fd == wake:
                _pass_on(stream, os.read(wake, 256), tty)
            elif fd == 0 and reading and not stream.want_write:
                data = _take(0)
                if data:
                    stream.write(data)
                else:
                    stream.close_stdin()
                    poll.unregister(0)
                    reading = False
            elif event & select.POLLOUT:
                stream.flush()


def _take(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADF):  # the other side of the terminal is closed; there never was one
            return b""
        raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError):  # nobody listens any more, and the container goes on
        while view:
            view = view[os.write(fd, view) :]


def _pass_on(stream: Stream, numbers: bytes, tty: bool) -> None:
    for number in numbers:
        if number == signal.SIGWINCH:
            if tty:
                stream.resize(*_window())
        else:
            stream.signal(number)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
