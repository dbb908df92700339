"""Between an attached process (`nacre.engine.Stream`) and the user's terminal or pipes.

One loop over poll(2): input is read only while the stream takes it, output is taken only while the user's side takes it, so that
neither side can fill the memory of the other. The user's descriptors stay in blocking mode, because that flag belongs to everyone
who shares them; a write of at most one page after POLLOUT does not block on a pipe, and nothing longer is written at once.
"""

from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Callable

from nacre.cli.context import is_terminal, window
from nacre.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Stream(Protocol):
        """What is needed of an attached process: the engine's streams are like that."""

        exit_code: int | None

        def fileno(self) -> int:
            """Readable when there may be output."""

        @property
        def want_write(self) -> bool:
            """Whether input is queued."""

        def flush(self) -> None:
            """Sends what goes."""

        def read(self) -> list[tuple[int, bytes]] | None:
            """Output that has arrived; [] = none yet, None = there will be no more."""

        def write(self, data: bytes) -> None:
            """Queues input."""

        def close_stdin(self) -> None:
            """Ends the input."""

        def resize(self, rows: int, columns: int) -> None:
            """Sets the size of the process's terminal."""

        def signal(self, number: int) -> None:
            """Sends a signal to the process."""

        def close(self) -> None:
            """Detaches."""


PAGE = 4096
CHUNK = 64 * 1024
HIGH_WATER = 256 * 1024  # of output that the user's side has not taken yet
DETACH_KEYS = "ctrl-p,ctrl-q"

# What a shell's child would be sent. Job control (TSTP, TTIN, TTOU) stays with this process; CHLD, PIPE, URG are its own affairs.
PROXIED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTERM", "SIGCONT")


class Detached(Exception):
    """The user typed the detach keys."""


class Hangup(Exception):
    """A signal ends this process; the container goes on. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def parse_keys(text: str) -> bytes:
    """Detach keys as bytes: ``ctrl-p,ctrl-q``, ``a,ctrl-[``. Raises InvalidArgument."""
    keys = b""
    for key in text.split(","):
        if len(key) == 1 and key.isascii():
            keys += key.encode()
        elif key.startswith("ctrl-") and len(key) == 6 and ((key[5].isascii() and key[5].isalpha()) or key[5] in "@[\\]^_"):
            keys += bytes((ord(key[5].lower()) & 31,))
        else:
            raise InvalidArgument(
                f"invalid detach keys ({text}): unknown character '{key}'", hint="single letters and ctrl-<letter>, joined by commas"
            )
    return keys


class KeyWatch:
    """Finds the detach keys in what is typed. Keys that begin the sequence are held back until the next one decides."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes to pass on, whether the sequence is complete)."""
        if not self._keys:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte != self._keys[self._matched]:
                passed += self._keys[: self._matched]
                self._matched = 0
                if byte != self._keys[0]:
                    passed.append(byte)
                    continue
            self._matched += 1
            if self._matched == len(self._keys):
                return bytes(passed), True
        return bytes(passed), False


class RawMode:
    """The terminal's input unprocessed, for as long as the block lasts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[object] | None = None

    def __enter__(self) -> RawMode:
        if is_terminal(self._descriptor):
            import termios

            # termios.error is no OSError; a terminal that was hung up meanwhile is simply not made raw.
            try:
                self._before = termios.tcgetattr(self._descriptor)
                termios.tcsetattr(self._descriptor, termios.TCSANOW, _raw(self._before))
            except termios.error:
                self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            import termios

            try:
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]
            except termios.error:
                self._before = None


def _raw(attributes: list[object]) -> list[int | list[bytes | int]]:
    """As cfmakeraw(3), but output keeps its processing off only where the container's terminal does it (OPOST)."""
    import termios as t

    iflag, oflag, cflag, lflag, ispeed, ospeed, controls = attributes
    assert isinstance(iflag, int)
    assert isinstance(oflag, int)
    assert isinstance(cflag, int)
    assert isinstance(lflag, int)
    assert isinstance(controls, list)
    iflag &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
    oflag &= ~t.OPOST
    lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    cflag = cflag & ~(t.CSIZE | t.PARENB) | t.CS8
    controls = list(controls)
    controls[t.VMIN], controls[t.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, controls]  # type: ignore[list-item]


class Signals:
    """Signals as bytes on a pipe while the block lasts, so that the loop sees them between two polls and loses none."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._numbers = tuple(int(getattr(signal, name)) for name in names)
        self._before: dict[int, object] = {}
        self._old_wakeup = -1

    def __enter__(self) -> Signals:
        self.reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            before = signal.getsignal(number)
            # What the user told us to ignore (nohup) stays ignored.
            if before is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self.reader)
        os.close(self._writer)

    def arrived(self) -> bytes:
        """The numbers of the signals that came since the last call."""
        try:
            return os.read(self.reader, 256)
        except BlockingIOError:
            return b""


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor has it already."""


class Pump:
    """Moves bytes until the process ends.

    tty: the process has a terminal of its own. interactive: our input goes to it; with tty, ours is put into raw mode for that.
    keys: end the attachment when typed. proxy: signals go to the process instead of ending us. streams: which outputs are shown.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        tty: bool,
        interactive: bool,
        keys: bytes = b"\x10\x11",
        proxy: bool = True,
        streams: tuple[int, ...] = (1, 2),
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        self.stream = stream
        self.tty = tty
        self.proxy = proxy
        self.streams = streams
        self.stdin = stdin if interactive else -1
        self.terminals = (stdout, stdin)
        self.watch = KeyWatch(keys if tty and is_terminal(stdin) else b"")
        self.raw = RawMode(stdin if tty and interactive else -1)
        self.outputs = {1: _Output(stdout), 2: _Output(stderr)}

    def run(self) -> int:
        """The process's exit code. Raises Detached, Hangup, BrokenPipeError (nobody reads our output any more)."""
        names = PROXIED if self.proxy else ("SIGTERM", "SIGHUP") if self.tty else ()
        with Signals((*names, *(("SIGWINCH",) if self.tty else ()))) as signals, self.raw:
            try:
                self._loop(signals)
            except BrokenPipeError:
                # To the process it is as if its own output had been closed.
                if self.proxy:
                    self.stream.signal(signal.SIGPIPE)
                raise
        code = self.stream.exit_code
        return 137 if code is None else code

    def _loop(self, signals: Signals) -> None:
        ended = False
        while not ended or self._backlog():
            # What the stream already holds would not wake poll(2) again.
            while not ended and self._backlog() < HIGH_WATER:
                pieces = self.stream.read()
                if not pieces:
                    ended = pieces is None
                    break
                for number, data in pieces:
                    if number in self.streams:
                        self.outputs[number].add(data)
            if ended and not self._backlog():
                return
            self._turn(signals, ended)

    def _backlog(self) -> int:
        return self.outputs[1].waiting + self.outputs[2].waiting

    def _turn(self, signals: Signals, ended: bool) -> None:
        """Waits for one event and serves it."""
        poll = select.poll()
        poll.register(signals.reader, select.POLLIN)
        if not ended:
            events = (select.POLLIN if self._backlog() < HIGH_WATER else 0) | (select.POLLOUT if self.stream.want_write else 0)
            if events:
                poll.register(self.stream.fileno(), events)
            if self.stdin >= 0 and not self.stream.want_write:
                poll.register(self.stdin, select.POLLIN)
        for output in self.outputs.values():
            if output.waiting:
                poll.register(output.descriptor, select.POLLOUT)
        for descriptor, event in poll.poll():
            if descriptor == signals.reader:
                self._signals(signals.arrived())
            elif not ended and descriptor == self.stream.fileno():
                if event & select.POLLOUT:
                    self.stream.flush()
            elif descriptor == self.stdin and event & (select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._input()
            if event & (select.POLLOUT | select.POLLERR | select.POLLHUP | select.POLLNVAL):
                self._drain(descriptor)

    def _drain(self, descriptor: int) -> None:
        for output in self.outputs.values():
            if output.descriptor == descriptor and output.waiting:
                output.drain()

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                if self.tty:
                    self.stream.resize(*window(*self.terminals))
            elif self.proxy:
                self.stream.signal(number)
            else:
                raise Hangup(number)

    def _input(self) -> None:
        try:
            data = os.read(self.stdin, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            # A terminal that was hung up, or one that a background job may not read: the end of the input.
            data = b""
        if not data:
            self.stdin = -1
            self.stream.close_stdin()
            return
        data, detach = self.watch.feed(data)
        if data:
            self.stream.write(data)
        if detach:
            raise Detached


class _Output:
    """One of the user's output descriptors and what waits for it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.waiting = 0
        self._pieces: list[bytes] = []
        try:
            mode = os.fstat(descriptor).st_mode
            self._limit = CHUNK if stat.S_ISREG(mode) else PAGE
        except OSError:
            self._limit = 0

    def add(self, data: bytes) -> None:
        """Queues output; for a descriptor that was closed before we started there is nobody to keep it for."""
        if self._limit and data:
            self._pieces.append(data)
            self.waiting += len(data)

    def drain(self) -> None:
        """Writes what goes without blocking. Raises BrokenPipeError, OSError (disk full)."""
        data = self._pieces[0]
        if len(data) > self._limit:
            # One large piece is cut once, not copied at every step.
            self._pieces[0:1] = [data[at : at + self._limit] for at in range(0, len(data), self._limit)]
            data = self._pieces[0]
        try:
            written = os.write(self.descriptor, data)
        except BlockingIOError:
            return
        self.waiting -= written
        if written == len(data):
            del self._pieces[0]
        else:
            self._pieces[0] = data[written:]


def follow(pump: Pump, say: Callable[[str], None]) -> int:
    """Runs a pump for a command and detaches: the exit code for the shell, after the detach keys and a hang-up too."""
    try:
        return pump.run()
    except Detached:
        say("read escape sequence")
        return 0
    except Hangup as hangup:
        return 128 + hangup.number
    finally:
        pump.stream.close()
