"""`Stream`: one attached process, seen from the caller."""

from __future__ import annotations

from collections.abc import Callable

from nacre.errors import SandboxGone
from nacre.isolation.channel import Channel, Exit, decode_exit
from nacre.wire import stem as wire

EXIT_LOST = 137


class Stream:
    """Input, output and end of one process. Not thread-safe; `select` on it for reading, and for writing while `want_write`.

    ended: called once when the process has ended, so that the engine can settle its container; `error` is then what it returns: ""
    or, when the sandbox ended with the process in it, why (first line) and the last lines of its console.
    """

    def __init__(self, channel: Channel, proc: int, *, ended: Callable[[], str] | None = None) -> None:
        self._channel = channel
        self._proc = proc
        self._ended = ended
        self.exit_code: int | None = None
        self.error = ""

    def fileno(self) -> int:
        """The descriptor to select on."""
        return self._channel.fileno()

    @property
    def want_write(self) -> bool:
        """Whether some input is still queued: select for writing, then `flush`; read no more input before that."""
        return self._channel.unsent > 0

    def flush(self) -> None:
        """Send what the process's side takes now."""
        self._channel.flush()

    def read(self, timeout: float | None = 0.0) -> list[tuple[int, bytes]] | None:
        """Output that has arrived, as (1 stdout | 2 stderr, bytes); [] when there is none yet, None after the end.

        Before a select, call it until it answers [] or None: the end may have arrived together with the last output.
        timeout: seconds to wait for the first piece, None = for ever.
        """
        if self.exit_code is not None:
            return None
        frames = self._channel.receive(timeout)
        if frames is None:
            self._finish(Exit(code=EXIT_LOST, signal=9))
            return None
        pieces: list[tuple[int, bytes]] = []
        for frame in frames:
            if frame.proc != self._proc:
                continue
            if frame.type == wire.Type.OUTPUT:
                pieces.append((2 if frame.flags & wire.STDERR else 1, frame.payload))
            elif frame.type == wire.Type.EXITED:
                self._finish(decode_exit(frame))
                break
        return pieces if pieces or self.exit_code is None else None

    def _finish(self, exit: Exit) -> None:
        self.exit_code = exit.code
        ended, self._ended = self._ended, None
        if ended:
            self.error = ended()

    def write(self, data: bytes) -> None:
        """Queue input. Once the process has ended it is discarded."""
        if self.exit_code is None:
            self._channel.send_input(self._proc, data)

    def close_stdin(self) -> None:
        """End of input."""
        if self.exit_code is None:
            self._channel.send_input(self._proc, b"", eof=True)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the process's terminal."""
        if self.exit_code is None:
            self._tolerant(lambda: self._channel.resize(self._proc, rows, columns))

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.exit_code is None:
            self._tolerant(lambda: self._channel.signal(self._proc, number))

    def wait(self) -> int:
        """Discard output until the process has ended; its exit code."""
        while self.read(None) is not None:
            pass
        return self.exit_code if self.exit_code is not None else EXIT_LOST

    def communicate(self, data: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Feed input, collect everything, wait: (exit code, stdout, stderr). With a terminal everything is stdout."""
        import select

        if data is not None:
            self.write(data)
            self.close_stdin()
        collected: dict[int, list[bytes]] = {1: [], 2: []}
        while True:
            pieces = self.read(0.0)
            if pieces is None:
                break
            if not pieces:
                select.select([self], [self] if self.want_write else [], [])
                self.flush()
            for stream, piece in pieces:
                collected[stream].append(piece)
        self.close()
        return self.exit_code if self.exit_code is not None else EXIT_LOST, b"".join(collected[1]), b"".join(collected[2])

    def close(self) -> None:
        """Detach. The process goes on."""
        self._channel.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _tolerant(call: Callable[[], None]) -> None:
        try:
            call()
        except SandboxGone:
            return  # its end is on the way and will be read
