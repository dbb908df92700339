"""A live connection to a stem: requests, answers, and the streams of attached processes.

One `Channel` is one connection to `stem.sock`. A connection is cheap (50 us), so every attached stream has its own: whoever
reads slowly stalls only what it is attached to.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import time
from collections.abc import Callable

from nacre.errors import BadContent, CommandNotExecutable, CommandNotFound, ExecError, NotFound, SandboxError, SandboxGone
from nacre.linux.process import signal_number
from nacre.model.plan import Code, Op, Spawn
from nacre.model.value import Value
from nacre.wire import stem as wire

EPERM, ENOENT, EACCES, ENOEXEC, ESRCH, EINVAL, ESHUTDOWN = 1, 2, 13, 8, 3, 22, 108
CHUNK = 256 * 1024
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")


class Exit(Value):
    """How a process ended. code: 0-255 (128 + signal); oom: the kernel's OOM killer did it; time_ns since the epoch."""

    code: int
    signal: int = 0
    oom: bool = False
    time_ns: int = 0


class Channel:
    """A connection to the stem of the sandbox in `directory`.

    custody: this caller cleans up when the sandbox ends, so the stem need not start its exit command.
    Raises SandboxGone when no stem listens, or when it ends during a request; every request raises SandboxError when the stem refuses
    it, and BadContent when an answer is malformed.
    """

    def __init__(self, directory: str, *, custody: bool = False) -> None:
        self.directory = directory
        self._decoder = wire.Decoder()
        self._frames: list[wire.Frame] = []
        self._tag = 0
        self._out = b""
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._custody = custody
        try:
            _connect(self._socket, directory)
        except OSError as error:
            self._socket.close()
            raise SandboxGone(f"sandbox {os.path.basename(directory)[:12]} is not running: {error.strerror}", stage="connect") from error

    def fileno(self) -> int:
        """Of the socket, for select()."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up. Attached processes go on."""
        self._socket.close()

    # -- requests ------------------------------------------------------------------------------------------------------

    def hello(self, *, timeout: float | None = None) -> wire.Hello:
        """Greet. A relay answers once its guest is ready. Raises SandboxError(stage="boot") after `timeout` seconds."""
        flags = wire.CUSTODY if self._custody else 0
        try:
            answer = self._plain(wire.Type.HELLO, wire.u32(wire.VERSION), flags=flags, timeout=timeout, stage="boot")
        except TimeoutError:
            raise SandboxError(f"the sandbox did not answer within {timeout:g} s", stage="boot") from None
        return _decoded(wire.decode_hello, answer)

    def announce(self, *, later: bool = False) -> None:
        """Take custody without an answer, which a guest gives only when it has booted. later: in one message with the next request."""
        self._out += wire.encode(wire.Frame(wire.Type.HELLO, wire.CUSTODY, 0, 0, wire.u32(wire.VERSION)))
        if not later:
            self.flush()

    def spawn(self, spawn: Spawn, *, timeout: float | None = None) -> tuple[int, int]:
        """Run a plan; answers with (process number, pid as the stem sees it) once its program runs.

        Raises CommandNotFound, CommandNotExecutable for the EXEC operation, NotFound for an unknown user,
        SandboxError(stage="plan") for every other operation, TimeoutError after `timeout` seconds.
        """
        payload, flags = wire.encode_spawn(spawn)
        try:
            answer = self._request(wire.Type.SPAWN, payload, flags=flags, timeout=timeout)
        except wire.Refused as refused:
            raise _plan_error(refused, spawn) from refused
        return _decoded(wire.decode_spawned, answer)

    def attach(self, proc: int, *, stdin: bool = True) -> None:
        """Receive the process's output from now on, and with `stdin` be one of its writers."""
        self._plain(wire.Type.ATTACH, proc=proc, flags=wire.STDIN if stdin else 0)

    def resize(self, proc: int, rows: int, columns: int) -> None:
        """Set the terminal's size. A process that ended meanwhile is no error."""
        self._plain(wire.Type.RESIZE, wire.size(rows, columns), proc=proc, gone=True)

    def signal(self, proc: int, number: int, *, local: bool = False) -> None:
        """Send a signal to the process. A process that ended meanwhile is no error."""
        self._plain(wire.Type.SIGNAL, wire.u32(number), proc=proc, flags=wire.LOCAL if local else 0, gone=True)

    def wait(self, proc: int, *, timeout: float | None = None, local: bool = False) -> Exit | None:
        """How the process ended, waiting for it; None after `timeout` seconds (then this channel must not be used further)."""
        try:
            answer = self._plain(wire.Type.WAIT, proc=proc, flags=wire.LOCAL if local else 0, timeout=timeout)
        except TimeoutError:
            return None
        return decode_exit(answer)

    def end(self, proc: int, number: int, *, timeout: float | None) -> bool:
        """Send a signal and wait up to `timeout` seconds for the process's end; whether it came. The sandbox's end is its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            # A guest that hangs does not even answer the signal.
            self._plain(wire.Type.SIGNAL, wire.u32(number), proc=proc, gone=True, timeout=timeout)
            return self.wait(proc, timeout=None if deadline is None else max(0.0, deadline - time.monotonic())) is not None
        except TimeoutError:
            return False
        except SandboxGone:
            return True

    def linger(self, timeout: float) -> None:
        """Keep the connection, and with it custody, until the stem hangs up, or for `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(TimeoutError):
            while self._fill(max(0.0, deadline - time.monotonic())):
                self._frames.clear()

    def stat(self, *, timeout: float | None = None) -> list[tuple[int, int, int, int]]:
        """(process number, pid, state 1 running 2 ended, exit code) of every process of the sandbox; [] when it does not answer in time."""
        try:
            return _decoded(wire.decode_stat, self._plain(wire.Type.STAT, timeout=timeout))
        except TimeoutError:
            return []

    def read_file(self, path: str, *, timeout: float | None = None) -> bytes:
        """At most 64 KiB of a file as a guest's stem sees it. Raises TimeoutError after `timeout` seconds."""
        return self._plain(wire.Type.READ, wire.string(path), timeout=timeout).payload

    def shutdown(self, *, force: bool = False, timeout: float = 30.0) -> None:
        """End the sandbox: power the guest off (at once with `force`), stop the stem. Waits until the stem hung up."""
        deadline = time.monotonic() + timeout
        try:
            self._plain(wire.Type.SHUTDOWN, flags=wire.FORCE if force else 0, timeout=timeout)
            while self._fill(max(0.0, deadline - time.monotonic())):
                self._frames.clear()
        except (SandboxGone, TimeoutError):
            return

    # -- streams -------------------------------------------------------------------------------------------------------

    def send_input(self, proc: int, data: bytes, *, eof: bool = False) -> None:
        """Queue bytes for the process's standard input; `eof` closes it after them. See `flush`."""
        for start in range(0, max(len(data), 1), CHUNK):
            last = start + CHUNK >= len(data)
            frame = wire.Frame(wire.Type.WRITE, wire.EOF if eof and last else 0, proc, 0, data[start : start + CHUNK])
            self._out += wire.encode(frame)
        self.flush()

    @property
    def unsent(self) -> int:
        """Bytes queued by `send_input` that the socket did not take yet."""
        return len(self._out)

    def flush(self) -> None:
        """Send what the socket takes now. A hang-up is noticed by the next read."""
        while self._out:
            try:
                sent = self._socket.send(self._out, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._out = b""
                return
            self._out = self._out[sent:]

    def receive(self, timeout: float | None = 0.0) -> list[wire.Frame] | None:
        """Frames that have arrived, waiting up to `timeout` seconds for the first; None when the stem hung up."""
        if not self._frames:
            try:
                if not self._fill(timeout):
                    return None
            except TimeoutError:
                return []
        frames, self._frames = self._frames, []
        return frames

    # -- below ---------------------------------------------------------------------------------------------------------

    def _plain(
        self,
        kind: wire.Type,
        payload: bytes = b"",
        *,
        proc: int = 0,
        flags: int = 0,
        gone: bool = False,
        timeout: float | None = None,
        stage: str = "run",
    ) -> wire.Frame:
        """A request whose refusal is a SandboxError. gone: that the process ended is none. Raises TimeoutError after `timeout` seconds."""
        try:
            return self._request(kind, payload, proc=proc, flags=flags, timeout=timeout)
        except wire.Refused as refused:
            if gone and refused.errno in (ESRCH, ENOENT):
                return wire.Frame(wire.Type.OK, 0, proc, 0, b"")
            kind_of_error = SandboxGone if refused.errno == ESHUTDOWN else SandboxError
            raise kind_of_error(f"{kind.name.lower()}: {refused.text}", stage=stage) from refused

    def _request(self, kind: wire.Type, payload: bytes = b"", *, proc: int = 0, flags: int = 0, timeout: float | None = None) -> wire.Frame:
        self._tag += 1
        tag = self._tag
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._socket.sendall(self._out + wire.encode(wire.Frame(kind, flags, proc, tag, payload)))
        except OSError as error:
            raise self._gone(kind.name.lower()) from error
        self._out = b""
        kept: list[wire.Frame] = []
        while True:
            frames, self._frames = self._frames, []
            for position, frame in enumerate(frames):
                if frame.tag == tag:
                    self._frames = kept + frames[position + 1 :]
                    if frame.type == wire.Type.ERROR:
                        raise _decoded(wire.decode_error, frame)
                    return frame
                kept.append(frame)
            if not self._fill(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise self._gone(kind.name.lower())

    def _fill(self, timeout: float | None) -> bool:
        """Read once; False at the end of the connection. Raises TimeoutError."""
        if timeout is not None and not select.select([self._socket], [], [], timeout)[0]:
            raise TimeoutError
        try:
            data = self._socket.recv(CHUNK)
        except OSError:
            return False
        try:
            self._frames += self._decoder.feed(data)
        except ValueError as error:
            raise BadContent(f"stem sent a malformed frame: {error}") from error
        return bool(data)

    def _gone(self, what: str) -> SandboxGone:
        return SandboxGone(f"the sandbox ended during {what}", stage="run", hint="see nacre logs and nacre inspect")


def decode_exit(frame: wire.Frame) -> Exit:
    """The value of an EXITED frame. Raises BadContent when it is malformed."""
    code, signal, time_ns = _decoded(wire.decode_exited, frame)
    return Exit(code=code, signal=signal, oom=bool(frame.flags & wire.OOM), time_ns=time_ns)


def _decoded(decode: Callable[[bytes], T], frame: wire.Frame) -> T:
    try:
        return decode(frame.payload)
    except ValueError as error:
        raise BadContent(f"stem sent a malformed {frame.type.name} frame: {error}") from error


def read_exit_record(path: str) -> Exit | None:
    """The exit record a stem left (`code signal oom time_ns`), or None when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            code, signal, oom, time_ns = (int(word) for word in file.read(128).split())
    except (FileNotFoundError, ValueError):
        return None
    return Exit(code=code, signal=signal, oom=bool(oom), time_ns=time_ns)


def _connect(connection: _socket.socket, directory: str) -> None:
    # A unix address holds 108 bytes; a directory's path may be longer.
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{handle}/stem.sock")
    finally:
        os.close(handle)


def _plan_error(refused: wire.Refused, spawn: Spawn) -> Exception:
    if refused.errno == ESHUTDOWN:
        return SandboxGone(refused.text, stage="plan")
    failed = spawn.ops[refused.index] if refused.index < len(spawn.ops) else None
    if failed is None:
        return SandboxError(f"stem refused the plan: {refused.text}", stage="plan")
    details = f"operation {refused.index}: {failed.describe()} (errno {refused.errno})"
    if failed.code == Code.EXEC:
        count = failed.args[0]
        name = str(failed.args[1]) if isinstance(count, int) and count else ""
        if refused.errno == ENOENT:
            text = "executable file not found in $PATH" if "/" not in name else "no such file or directory"
            return CommandNotFound(f'exec: "{name}": {text}', details=details)
        if refused.errno in (EACCES, ENOEXEC):
            text = "permission denied" if refused.errno == EACCES else "exec format error"
            return CommandNotExecutable(f'exec: "{name}": {text}', details=details)
        text = refused.text.removeprefix(f"exec {name}: ")
        return ExecError(f'exec: "{name}": {text[:1].lower()}{text[1:]}', details=details)
    if failed.code == Code.USER and refused.errno == ENOENT:
        _, said, rest = refused.text.rpartition("no group ")
        what, where = (
            (f"group {rest.partition(' in /etc/')[0]}", "group") if said else (f"user {failed.args[0]!s}".partition(":")[0], "passwd")
        )
        return NotFound(f"unable to find {what}: no matching entries in {where} file", details=details)
    if failed.code == Code.CHDIR and refused.errno == ENOENT:
        return CommandNotFound(f'chdir to working directory "{failed.args[0]!s}" failed: no such file or directory', details=details)
    return SandboxError(
        f"could not set up the container: {refused.text}", stage="plan", details=details, hint=_way_out(failed, refused.errno)
    )


def _way_out(failed: Op, errno: int) -> str:
    """Where the kernel says no more than "not permitted" (mount_namespaces(7), "Restrictions on mount namespaces")."""
    if failed.code == Code.MOUNT and failed.args[2] in ("proc", "sysfs") and errno == EPERM:
        return (
            f"a part of this session's own {failed.args[2]} is hidden, as in containers: start the outer one with everything visible "
            "(docker: --security-opt systempaths=unconfined, podman: --security-opt unmask=ALL)"
        )
    if failed.code == Code.USER and errno == EINVAL:
        return "this user namespace has no such id; as root: give the user a larger range (usermod --add-subuids ... --add-subgids ...)"
    return ""


__all__ = ["Channel", "Exit", "decode_exit", "read_exit_record", "signal_number"]
