"""A small client of the stem protocol for the tests of stem itself: no engine, no images, nothing between test and frames."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nacre.model.plan import MS_BIND, MS_RDONLY, MS_REC, NEWIPC, NEWNS, NEWPID, NEWUTS, Code, Op, Spawn, op
from nacre.wire import stem as wire

STEM = os.environ.get("NACRE_STEM") or str(Path(__file__).resolve().parents[2] / "src/nacre/bin/stem")
PATIENCE = 20.0
PRIVATE = 0x40000 | MS_REC  # MS_PRIVATE


class Ended(NamedTuple):
    """What a finished process left: exit code, signal, OOM, end time and everything it wrote."""

    code: int
    signal: int
    oom: bool
    time_ns: int
    out: bytes
    err: bytes


class Client:
    """One connection. Requests answer with their payload or raise wire.Refused; other frames wait in `frames`."""

    def __init__(self, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(PATIENCE)
        here = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        try:
            self.socket.connect(f"/proc/self/fd/{here}/stem.sock")
        finally:
            os.close(here)
        self.decoder = wire.Decoder()
        self.frames: deque[wire.Frame] = deque()
        self.tag = 0

    def close(self) -> None:
        self.socket.close()

    def post(self, kind: int, flags: int = 0, proc: int = 0, payload: bytes = b"", *, tag: int | None = None) -> int:
        """Sends a frame; returns its tag."""
        if tag is None:
            self.tag += 1
            tag = self.tag
        self.socket.sendall(wire.HEAD.pack(len(payload), kind, flags, proc, tag) + payload)
        return tag

    def receive(self) -> wire.Frame:
        """The next frame off the wire. Raises EOFError when stem hung up."""
        while not self.frames:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self.frames.extend(self.decoder.feed(data))
        return self.frames.popleft()

    def answer(self, tag: int) -> wire.Frame:
        """The frame with this tag; others stay queued in their order."""
        passed = []
        try:
            while True:
                frame = self.receive()
                if frame.tag == tag:
                    if frame.type == wire.Type.ERROR:
                        raise wire.decode_error(frame.payload)
                    return frame
                passed.append(frame)
        finally:
            self.frames.extendleft(reversed(passed))

    def request(self, kind: int, flags: int = 0, proc: int = 0, payload: bytes = b"") -> wire.Frame:
        return self.answer(self.post(kind, flags, proc, payload))

    def spawn(self, *ops: Op, **fields: Any) -> int:
        """SPAWN; the process number."""
        payload, flags = wire.encode_spawn(Spawn(ops=ops, **fields))
        return wire.decode_spawned(self.request(wire.Type.SPAWN, flags, 0, payload).payload)[0]

    def write(self, proc: int, data: bytes, *, eof: bool = False) -> None:
        for start in range(0, max(len(data), 1), 60000):
            last = start + 60000 >= len(data)
            self.post(wire.Type.WRITE, wire.EOF if eof and last else 0, proc, data[start : start + 60000], tag=0)

    def signal(self, proc: int, number: int) -> None:
        self.request(wire.Type.SIGNAL, 0, proc, wire.u32(number))

    def wait(self, proc: int) -> wire.Frame:
        return self.request(wire.Type.WAIT, 0, proc)

    def stat(self) -> dict[int, tuple[int, int, int]]:
        return {proc: (pid, state, code) for proc, pid, state, code in wire.decode_stat(self.request(wire.Type.STAT).payload)}

    def finish(self, proc: int) -> Ended:
        """Collects output until EXITED."""
        out, err = bytearray(), bytearray()
        while True:
            frame = self.receive()
            assert frame.proc == proc, frame
            if frame.type == wire.Type.EXITED:
                code, number, time_ns = wire.decode_exited(frame.payload)
                return Ended(code, number, bool(frame.flags & wire.OOM), time_ns, bytes(out), bytes(err))
            assert frame.type == wire.Type.OUTPUT, frame
            (err if frame.flags & wire.STDERR else out).extend(frame.payload)

    def output_until(self, proc: int, marker: bytes) -> bytes:
        """Output of an attached process up to and including marker."""
        seen = b""
        while marker not in seen:
            frame = self.receive()
            assert (frame.type, frame.proc) == (wire.Type.OUTPUT, proc), (frame, seen)
            seen += frame.payload
        return seen

    def run(self, *ops: Op, stdin: bytes | None = None, **fields: Any) -> Ended:
        """SPAWN with ATTACH, feed standard input, wait for the end."""
        proc = self.spawn(*ops, attach=True, stdin=stdin is not None, **fields)
        if stdin is None:
            return self.finish(proc)
        # From a thread: a process that is not read stops reading.
        feeder = threading.Thread(target=self.write, args=(proc, stdin), kwargs={"eof": True})
        feeder.start()
        try:
            return self.finish(proc)
        finally:
            feeder.join()

    def builtin(self, *argv: str, stdin: bytes | None = None) -> Ended:
        return self.run(builtin(*argv), stdin=stdin)


def execute(*argv: str, env: tuple[str, ...] = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)) -> Op:
    return op(Code.EXEC, len(argv), *argv, *env)


def shell(script: str) -> Op:
    return execute("sh", "-c", script)


def builtin(*argv: str) -> Op:
    return op(Code.BUILTIN, len(argv), *argv)


class Sandbox:
    """A stem daemon in a directory of its own."""

    def __init__(
        self, directory: Path, role: str = "host", command: tuple[str, ...] = (), keep: tuple[int, ...] = (), last: int = -1
    ) -> None:
        self.directory = directory
        options = ("--last", str(last)) if last >= 0 else ()
        argv = [STEM, role, str(directory), *options, *(("--", *command) if command else ())]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, pass_fds={*keep, last} - {-1})
        assert done.returncode == 0, done.stderr
        self.pid = int((directory / "stem.pid").read_text())
        self.pidfd = os.pidfd_open(self.pid)
        self.clients: list[Client] = []

    def client(self) -> Client:
        client = Client(self.directory)
        self.clients.append(client)
        return client

    def gone(self) -> bool:
        """Whether the daemon has ended (its parent is init, so it may be a zombie for a moment)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def assert_small(self, limit: int) -> None:
        """The daemon's resident memory is below limit bytes. A sanitized build is as large as it likes."""
        resident = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        assert resident < limit or "sanitized" in STEM

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def kill(self, number: int = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if not self.gone():
            self.kill(signal.SIGTERM)
            wait_until(self.gone, "the stem ends on SIGTERM")
        os.close(self.pidfd)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.01)
    return answer


@contextmanager
def temporary() -> Iterator[Path]:
    """A short directory name: the tests of long ones make their own."""
    path = Path(tempfile.mkdtemp(prefix="stem-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_root(path: Path) -> Path:
    """A root directory for containers: the host's programs, own /etc; /proc, /dev and the like are empty directories."""
    for name in ("proc", "dev", "etc", "usr", "tmp", "sys"):
        (path / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (path / name).symlink_to(f"usr/{name}")
        elif os.path.isdir(f"/{name}"):
            (path / name).mkdir()
    (path / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nbroken line\nalice:x:1000:1001::/home/alice:/bin/sh\nbob:x:1002:1002:::\n"
    )
    (path / "etc/group").write_text("root:x:0:\nstaff:x:50:alice,bob\nalice:x:1001:\nvideo:x:44:alice\nother:x:60:carol\n")
    return path


def enter_root(root: Path, *more: Op, proc: bool = True) -> list[Op]:
    """The plan from a fresh mount namespace to the inside of `root`; `more` runs before pivot_root."""
    binds = [name for name in ("bin", "sbin", "lib", "lib64") if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")]
    ops = [
        op(Code.MOUNT, "none", "/", "", PRIVATE, ""),
        op(Code.BIND, str(root), str(root), MS_BIND),
        op(Code.ROOT, str(root)),
        *(op(Code.BIND, f"/{name}", f"%/{name}", MS_BIND | MS_REC | MS_RDONLY) for name in ("usr", *binds)),
    ]
    if proc:
        ops.append(op(Code.MOUNT, "proc", "%/proc", "proc", 0, ""))
    ops += [op(Code.MKDIR, "%/dev/pts", 0o755), op(Code.MOUNT, "devpts", "%/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620")]
    ops.append(op(Code.MKNOD, "%/dev/null", 0o020666, os.makedev(1, 3)))
    return [*ops, *more, op(Code.PIVOT)]


CONTAINER = NEWNS | NEWPID | NEWIPC | NEWUTS
