"""An isolation level in memory: a stem made of threads, for tests of everything above it without root or a kernel's help.

It speaks the real protocol on the real socket, keeps the real lock and writes real logs and exit records. Instead of
programs it knows a few verbs by the name in the EXEC operation: true, false, exit N, echo WORDS, cat (until end of input), sleep (until a
signal), missing (ENOENT), forbidden (EACCES).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence

from nacre.isolation import Driver
from nacre.isolation.channel import Channel
from nacre.isolation.plan import Place
from nacre.model.container import Sandbox, Stats
from nacre.model.plan import Code, Spawn
from nacre.wire import stem as wire

ENOENT, EACCES, ESRCH = 2, 13, 3


class Fake(Driver):
    """The driver. Sandboxes live as threads of this process and end with it.

    exit_commands: run them as a real stem does. An engine's command is another engine, which has no part in a test in memory.
    """

    def __init__(self, *, exit_commands: bool = False) -> None:
        self._exit_commands = exit_commands

    def start(self, sandbox: Sandbox, *, keep: Sequence[int], exit_command: Sequence[str], custody: bool) -> Channel:
        """Start the threads."""
        stem = FakeStem(sandbox.directory, [os.dup(fd) for fd in keep], exit_command if self._exit_commands else ())
        threading.Thread(target=stem.serve, daemon=True).start()
        channel = Channel(sandbox.directory, custody=custody)
        channel.hello(timeout=10)
        return channel

    def place(self, sandbox: Sandbox) -> Place:
        """Nothing differs, for nothing is done."""
        return Place(stage=f"{sandbox.directory}/stage", scratch=f"{sandbox.state}/etc", rootfs=())

    def stats(self, sandbox: Sandbox) -> Stats:
        """Time and one process."""
        return Stats(time=time.time(), pids=1)

    def describe(self, sandbox: Sandbox) -> dict[str, object]:
        """It says what it is."""
        return {"Kernel": "none", "Assurance": "none: this is a test double"}

    def clean(self, identifier: str, directory: str = "") -> None:
        """There is nothing outside the directories."""


class _Process:
    """One pretended process: its verb, its spawn record, its end, the connections that listen to it."""

    def __init__(self, number: int, spawn: Spawn, words: list[str]) -> None:
        self.number = number
        self.spawn = spawn
        self.words = words
        self.end: tuple[int, int, int] | None = None  # code, signal, time in ns
        self.listeners: list[tuple[socket.socket, int]] = []


class FakeStem:
    """The threads behind one sandbox: one that accepts, one for every connection."""

    def __init__(self, directory: str, keep: list[int], exit_command: Sequence[str] = ()) -> None:
        self._directory = directory
        self._keep = keep
        self._exit_command = exit_command
        self._custodians: set[socket.socket] = set()
        self._lock = threading.RLock()
        self._processes: dict[int, _Process] = {}
        self._connections: list[socket.socket] = []
        self._closed = False
        self._server = socket.socket(socket.AF_UNIX)
        handle = os.open(directory, os.O_PATH)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{directory}/stem.sock")
        self._server.bind(f"/proc/self/fd/{handle}/stem.sock")
        os.chmod(f"/proc/self/fd/{handle}/stem.sock", 0o600)
        os.close(handle)
        self._server.listen()

    def serve(self) -> None:
        """Accept until the sandbox ends."""
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                # Closed here, not where the end comes from: its number may be that of the next sandbox's socket at once.
                self._server.close()
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    continue
                self._connections.append(connection)
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        decoder = wire.Decoder()
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for frame in decoder.feed(data):
                    with self._lock:
                        if not self._closed:  # the next run of the container has begun, perhaps
                            self._answer(connection, frame)
        with self._lock:
            self._custodians.discard(connection)

    def _answer(self, to: socket.socket, frame: wire.Frame) -> None:
        process = self._processes.get(frame.proc)
        if frame.type is wire.Type.HELLO:
            if frame.flags & wire.CUSTODY:
                self._custodians.add(to)
            self._ok(to, frame, wire.u32(wire.VERSION) + wire.u32(1) + wire.string(os.uname().release))
        elif frame.type is wire.Type.SPAWN:
            self._spawn(to, frame)
        elif frame.type is wire.Type.SHUTDOWN:
            self._ok(to, frame)
            self._close()
        elif frame.type is wire.Type.STAT:
            rows = [
                wire.u32(p.number) + wire.u32(1000 + p.number) + wire.u32(2 if p.end else 1) + wire.u32(p.end[0] if p.end else 0)
                for p in self._processes.values()
            ]
            self._ok(to, frame, wire.u32(len(rows)) + b"".join(rows))
        elif process is None:
            self._send(
                to,
                wire.Frame(
                    wire.Type.ERROR, 0, frame.proc, frame.tag, wire.u32(wire.NO_INDEX) + wire.u32(ESRCH) + wire.string("no such process")
                ),
            )
        elif frame.type in (wire.Type.ATTACH, wire.Type.WAIT):
            if frame.type is wire.Type.ATTACH:
                self._ok(to, frame)
            process.listeners.append((to, frame.tag))
            if process.end:
                self._finish(process, *process.end[:2])
        elif frame.type is wire.Type.WRITE:
            if process.words[0] == "cat":
                self._output(process, frame.payload)
                if frame.flags & wire.EOF:
                    self._finish(process, 0, 0)
        elif frame.type is wire.Type.SIGNAL:
            self._ok(to, frame)
            number = int.from_bytes(frame.payload, "little")
            self._finish(process, 128 + number, number)
        else:
            self._ok(to, frame)

    def _spawn(self, to: socket.socket, frame: wire.Frame) -> None:
        spawn, operations = wire.decode_spawn(frame.payload, frame.flags)
        index, arguments = next((n, args) for n, (code, args) in enumerate(operations) if code is Code.EXEC)
        words = [word.decode() for word in arguments[1 : 1 + int.from_bytes(arguments[0], "little")]]
        errno = {"missing": ENOENT, "forbidden": EACCES}.get(words[0])
        if errno:
            text = wire.u32(index) + wire.u32(errno) + wire.string(os.strerror(errno))
            self._send(to, wire.Frame(wire.Type.ERROR, 0, 0, frame.tag, text))
            return
        process = _Process(len(self._processes) + 1, spawn, words)
        self._processes[process.number] = process
        if spawn.attach:
            process.listeners.append((to, frame.tag))
        self._ok(to, frame, wire.u32(process.number) + wire.u32(1000 + process.number))
        if words[0] == "echo":
            self._output(process, " ".join(words[1:]).encode() + b"\n")
        if words[0] in ("true", "false", "exit", "echo"):
            self._finish(process, {"false": 1, "exit": int(words[1]) if len(words) > 1 and words[0] == "exit" else 0}.get(words[0], 0), 0)

    def _output(self, process: _Process, data: bytes) -> None:
        if process.spawn.log and data:
            with open(os.path.join(self._directory, process.spawn.log), "ab") as log:
                log.write(wire.LOG_HEAD.pack(time.time_ns(), 1, len(data)) + data)
        for listener, _ in process.listeners:
            self._send(listener, wire.Frame(wire.Type.OUTPUT, 0, process.number, 0, data))

    def _finish(self, process: _Process, code: int, signal: int) -> None:
        is_new = process.end is None
        code, signal, moment = process.end = process.end or (code, signal, time.time_ns())
        if process.spawn.exit and is_new:
            with open(process.spawn.exit + ".new", "w", encoding="ascii") as record:
                record.write(f"{code} {signal} 0 {moment}\n")
            os.rename(process.spawn.exit + ".new", process.spawn.exit)
        payload = wire.u32(code) + wire.u32(signal) + moment.to_bytes(8, "little")
        for listener, tag in process.listeners:
            self._send(listener, wire.Frame(wire.Type.EXITED, 0, process.number, tag, payload))
        process.listeners.clear()
        if process.spawn.main:
            self._close()

    def _close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # ends the thread that accepts
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        command, self._exit_command = self._exit_command, ()
        if command and not self._custodians:
            os.waitpid(os.posix_spawn(command[0], list(command), dict(os.environ)), 0)
        keep, self._keep = self._keep, []
        for fd in keep:
            os.close(fd)

    def _ok(self, to: socket.socket, frame: wire.Frame, payload: bytes = b"") -> None:
        self._send(to, wire.Frame(wire.Type.OK, 0, frame.proc, frame.tag, payload))

    def _send(self, to: socket.socket, frame: wire.Frame) -> None:
        with contextlib.suppress(OSError):
            to.sendall(wire.encode(frame))
