"""Carrying out the plan of a bundle: `stem run` and what it reports (docs/stem-protocol.md, "Run").

The program is started from a sealed copy in memory: a container that gets hold of it (/proc/PID/exe, an interpreter line
``#!/proc/self/exe``) cannot write to the file of the host (CVE-2019-5736).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

from nacre.errors import CommandNotExecutable, CommandNotFound, HostError, InvalidArgument, SandboxError
from nacre.wire import stem as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nacre.model.plan import Spawn

_STEM = f"{os.path.dirname(os.path.dirname(__file__))}/bin/stem"
_ERROR, _TTY, _CLONING, _CLONED, _EXEC, _SYNC, _START, _LISTENER = range(1, 9)
_ALIVE = (_SYNC, _START, _EXEC, _TTY, _LISTENER)
_FAILURE = struct.Struct("<IIi400s")
_CREDENTIALS = struct.Struct("=iII")
_FIRST = 200  # number of the first descriptor that is handed over; the container's own are below 100
_MFD_EXEC = 0x10  # Linux 6.3; not in Python before 3.13
_ANSWER_MAX = 128 * 1024
_SYS_PIDFD_GETFD = 438


class Outcome:
    """What has become of a plan. pid: of the container's process; master: of its terminal, -1 = none; waiting: START was reached."""

    __slots__ = ("listener", "master", "pid", "waiting")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.master = -1
        self.listener = -1
        self.waiting = False


def carry_out(
    spawn: Spawn,
    *,
    kept: Sequence[int] = (),
    passed: int = 0,
    on_pid: Callable[[int], None] | None = None,
    on_sync: Callable[[int, int], bytes] | None = None,
) -> Outcome:
    """Start a process by its plan; returns when it executes its program or waits for `start`.

    kept: descriptors of the plan. passed: so many of ours, from 3 on, go to the container. on_pid: called with the pid of the
    container's process as soon as it is known, again when it is another one.
    on_sync: (point, pid) -> the answer; what it raises ends the process.
    Raises CommandNotFound, CommandNotExecutable, InvalidArgument, SandboxError, HostError; then nothing of the process is left.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
    record = -1
    try:
        record = _record(spawn)
        outcome = Outcome(_start(theirs.fileno(), record, kept, passed))
        theirs.close()
        _follow(ours, outcome, record, on_pid, on_sync)
        return outcome
    finally:
        ours.close()
        theirs.close()
        if record >= 0:
            os.close(record)


def _record(spawn: Spawn) -> int:
    try:
        data = b"\0" + wire.encode_spawn(spawn)[0]
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _start(status: int, record: int, kept: Sequence[int], passed: int) -> int:
    """`stem run` as a child of ours; returns its pid."""
    program = _sealed_program()
    try:
        numbers = [_FIRST + place for place in range(2 + len(kept))]
        sources = [status, record, *kept]
        lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(sources)) for fd in sources]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(lifted, numbers, strict=True)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in range(3, 3 + passed)]  # onto itself: clears close-on-exec
        argv = ["nacre-oci", "run", str(numbers[0]), str(numbers[1]), str(passed), *map(str, numbers[2:])]
        try:
            return os.posix_spawn(f"/proc/self/fd/{program}", argv, {}, file_actions=actions)
        except OSError as error:
            raise HostError(f"cannot start {_STEM}: {os.strerror(error.errno or 0)}") from error
        finally:
            for fd in lifted:
                os.close(fd)
    finally:
        os.close(program)


def _sealed_program() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            copy = os.memfd_create("nacre-oci", flags | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            copy = os.memfd_create("nacre-oci", flags)
        try:
            source = os.open(os.environ.get("NACRE_STEM") or _STEM, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(copy)
            raise
        try:
            while os.sendfile(copy, source, None, 1 << 24):
                pass
        finally:
            os.close(source)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    except OSError as error:
        raise HostError(f"cannot make a sealed copy of {_STEM}: {os.strerror(error.errno or 0)}") from error
    return copy


def _follow(
    ours: _socket.socket,
    outcome: Outcome,
    record: int,
    on_pid: Callable[[int], None] | None,
    on_sync: Callable[[int, int], bytes] | None,
) -> None:
    """Read reports until the program runs, waits or has failed."""
    cloned = [outcome.pid]
    told, executing = 0, False
    try:
        while True:
            data, pid, fd = _message(ours)
            kind = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
            if kind == _CLONED:
                cloned.append(pid)
                outcome.pid = pid
            elif kind in _ALIVE and told != outcome.pid:  # another one after a user namespace was mapped
                told = outcome.pid
                if on_pid:
                    on_pid(outcome.pid)
            if kind == _TTY:
                outcome.master = fd
            elif kind == _SYNC and on_sync:
                _answer(ours, on_sync(_FAILURE.unpack(data)[1], outcome.pid))
            elif kind == _LISTENER:
                outcome.listener = _fetch(outcome.pid, _FAILURE.unpack(data)[1])
                os.pwrite(record, b"\1", 0)
            elif kind == _START:
                outcome.waiting = True
                break
            elif kind == _EXEC:
                executing = True
            elif kind == _ERROR:
                raise _failure(data)
            elif not data:
                if not executing:
                    raise SandboxError("the container's first process was killed while it was being set up", stage="plan")
                break
    except BaseException:
        ours.close()  # whatever is still being carried out ends by that
        for pid in dict.fromkeys(cloned):
            _reap(pid, kill=True)
        for fd in (outcome.master, outcome.listener):
            if fd >= 0:
                os.close(fd)
        raise
    for pid in cloned:
        if pid != outcome.pid:
            _reap(pid, kill=False)


def _message(ours: _socket.socket) -> tuple[bytes, int, int]:
    """One report: bytes, pid of the sender, descriptor that came along or -1. Empty bytes at the end."""
    fd, pid = -1, 0
    try:
        data, control, _flags, _address = ours.recvmsg(_FAILURE.size, 128, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", 0, -1
    for level, kind, content in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack_from(content)[0]
        elif level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fd = struct.unpack_from("=i", content)[0]
    return data, pid, fd


def _answer(ours: _socket.socket, answer: bytes) -> None:
    if len(answer) > _ANSWER_MAX:
        raise InvalidArgument(f"annotations: the state of the container has {len(answer)} bytes, which are too many for its hooks")
    ours.send(answer or b"\0")


def _fetch(pid: int, number: int) -> int:
    """The listener of the filter that the process is about to set, as a descriptor of ours (pidfd_getfd(2))."""
    import ctypes
    import time

    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for _ in range(10_000):
            fd = int(libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0)))
            if fd >= 0:
                return fd
            if ctypes.get_errno() != errno.EBADF:
                break
            time.sleep(0.001)
    finally:
        os.close(pidfd)
    raise HostError(f"cannot fetch the seccomp listener: {os.strerror(ctypes.get_errno())}", hint="pidfd_getfd(2) needs Linux 5.6")


def _failure(data: bytes) -> Exception:
    _kind, index, code, raw = _FAILURE.unpack(data.ljust(_FAILURE.size, b"\0"))
    text = raw.partition(b"\0")[0].decode("utf-8", "replace")
    head, mark, reason = text.rpartition(": ")
    text = head + mark + reason[:1].lower() + reason[1:]
    if text.startswith("exec"):
        return (CommandNotFound if code == errno.ENOENT else CommandNotExecutable)(f"unable to start container process: {text}")
    return SandboxError(text, stage="plan", details=f"operation {index}, errno {code} ({errno.errorcode.get(code, '?')})")


def _reap(pid: int, *, kill: bool) -> None:
    try:
        if kill:
            os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass
