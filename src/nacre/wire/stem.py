"""The stem protocol as bytes (docs/stem-protocol.md). Sans-I/O: frames and records in, bytes out, and back.

Nothing here trusts its input: lengths are bounded, unknown types and codes are errors (ValueError), text is decoded leniently.
"""

from __future__ import annotations

import struct

from nacre.model.plan import Code, Op, Spawn, type_of_argument
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import IntEnum
else:
    from nacre.model.numbering import IntEnum

VERSION = 1
HEAD = struct.Struct("<IHHII")
PAYLOAD_MAX = 1 << 20
NO_INDEX = 0xFFFFFFFF
LOCAL_PROC = 0x80000000

# Flags of the frame types, as in the table of the protocol page.
CUSTODY = 1
ATTACH, TTY, STDIN, MAIN, LOCAL, CHANNEL, CONSOLE = 1, 2, 4, 8, 16, 32, 64
EOF, FORCE, STDERR, OOM = 1, 1, 1, 1
HOLD_STDIN, HOLD_OUTPUT = 1, 2

LOG_HEAD = struct.Struct("<QBI")
_EXITED = struct.Struct("<IIQ")
_STAT = struct.Struct("<IIII")
_PAIR = struct.Struct("<II")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_OP = struct.Struct("<HH")
_ROLES = {1: "host", 2: "guest", 3: "relay"}


class Type(IntEnum):
    """Frame types."""

    HELLO = 0x01
    SPAWN = 0x02
    ATTACH = 0x03
    WRITE = 0x04
    RESIZE = 0x05
    SIGNAL = 0x06
    WAIT = 0x07
    STAT = 0x08
    SHUTDOWN = 0x09
    READ = 0x0A
    HOLD = 0x10
    RELEASE = 0x11
    ACK = 0x12
    OK = 0x81
    ERROR = 0x82
    OUTPUT = 0x83
    EXITED = 0x84
    READY = 0x85


class Frame:
    """One frame. tag: chosen by the requester, 0 = unsolicited."""

    __slots__ = ("flags", "payload", "proc", "tag", "type")

    def __init__(self, type: Type, flags: int, proc: int, tag: int, payload: bytes) -> None:
        self.type = type
        self.flags = flags
        self.proc = proc
        self.tag = tag
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Frame({self.type!r}, {self.flags}, {self.proc}, {self.tag}, {self.payload!r})"


class Hello(Value):
    """A stem's greeting. role: host, guest or relay; release: of the kernel the containers run on."""

    version: int
    role: str
    release: str


class Refused(Exception):
    """An ERROR answer: operation index (NO_INDEX = none), errno and the stem's own words."""

    def __init__(self, index: int, errno: int, text: str) -> None:
        super().__init__(text)
        self.index = index
        self.errno = errno
        self.text = text


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. Raises ValueError when the payload is too long."""
    if len(frame.payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload of {len(frame.payload)} bytes exceeds the frame limit of {PAYLOAD_MAX}")
    return HEAD.pack(len(frame.payload), frame.type, frame.flags, frame.proc, frame.tag) + frame.payload


class Decoder:
    """Bytes to frames, however they are cut."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises ValueError for a frame that is too long or of an unknown type."""
        self._data += data
        frames, at = [], 0
        while len(self._data) - at >= HEAD.size:
            length, kind, flags, proc, tag = HEAD.unpack_from(self._data, at)
            if length > PAYLOAD_MAX:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._data) - at < HEAD.size + length:
                break
            start = at + HEAD.size
            frames.append(Frame(Type(kind), flags, proc, tag, bytes(self._data[start : start + length])))
            at = start + length
        del self._data[:at]
        return frames


# -- records -----------------------------------------------------------------------------------------------------------


def u32(value: int) -> bytes:
    """Four bytes."""
    return _U32.pack(value)


def size(rows: int, columns: int) -> bytes:
    """The payload of RESIZE."""
    return struct.pack("<HH", min(rows, 0xFFFF), min(columns, 0xFFFF))


def string(value: str | bytes) -> bytes:
    """A length and that many bytes. Raises ValueError for NUL in text, which no kernel interface takes."""
    if isinstance(value, bytes):
        return _U32.pack(len(value)) + value
    if "\0" in value:
        raise ValueError(f"NUL byte in {value!r}")
    data = value.encode("utf-8", "surrogateescape")
    return _U32.pack(len(data)) + data


def encode_spawn(spawn: Spawn) -> tuple[bytes, int]:
    """(payload, flags) of SPAWN. Raises ValueError for what cannot be said: NUL in text, integers over 64 bits, 65536 arguments."""
    keep = spawn.log_limit | spawn.log_files << 48 | spawn.log_compress << 56
    head = (
        string(spawn.log) + _U64.pack(keep) + string(spawn.exit) + string(spawn.oom)
        + struct.pack("<QHHI", spawn.clone, min(spawn.rows, 0xFFFF), min(spawn.columns, 0xFFFF), len(spawn.ops))
    )  # fmt: skip
    choices = (
        (spawn.attach, ATTACH), (spawn.tty, TTY), (spawn.stdin, STDIN), (spawn.main, MAIN), (spawn.local, LOCAL), (spawn.channel, CHANNEL),
        (spawn.console, CONSOLE),
    )  # fmt: skip
    return b"".join([head, *map(_encode_op, spawn.ops)]), sum(flag for wanted, flag in choices if wanted)


def _encode_op(item: Op) -> bytes:
    if len(item.args) > 0xFFFF:
        raise ValueError(f"{item.code.name}: {len(item.args)} arguments")
    return b"".join([_OP.pack(item.code, len(item.args)), *map(_encode_argument, item.args)])


def _encode_argument(arg: type_of_argument) -> bytes:
    if not isinstance(arg, int):
        return string(arg)
    if not -(1 << 63) <= arg < 1 << 64:
        raise ValueError(f"{arg} does not fit into 64 bits")
    return string(_U64.pack(arg & 0xFFFFFFFFFFFFFFFF))


class _Reader:
    """Bounded reading of a payload; every overrun is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("truncated record")
        self.at += count
        return self.data[self.at - count : self.at]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def text(self) -> str:
        return self.take(self.u32()).decode("utf-8", "surrogateescape")


def decode_spawn(payload: bytes, flags: int) -> tuple[Spawn, tuple[tuple[Code, tuple[bytes, ...]], ...]]:
    """The record without its operations, and the operations with their arguments still as bytes. Raises ValueError."""
    reader = _Reader(payload)
    log, keep, exit_path, oom = reader.text(), reader.u64(), reader.text(), reader.text()
    clone, rows, columns, count = struct.unpack("<QHHI", reader.take(16))
    operations = []
    for _ in range(count):
        code, arguments = _OP.unpack(reader.take(4))
        operations.append((Code(code), tuple(reader.take(reader.u32()) for _ in range(arguments))))
    if reader.at != len(payload):
        raise ValueError("bytes after the last operation")
    spawn = Spawn(
        ops=(), clone=clone, log=log, exit=exit_path, oom=oom, rows=rows, columns=columns,
        log_limit=keep & (1 << 48) - 1, log_files=keep >> 48 & 0xFF, log_compress=bool(keep >> 56 & 1),
        attach=bool(flags & ATTACH), tty=bool(flags & TTY), stdin=bool(flags & STDIN), main=bool(flags & MAIN),
        local=bool(flags & LOCAL), channel=bool(flags & CHANNEL), console=bool(flags & CONSOLE),
    )  # fmt: skip
    return spawn, tuple(operations)


# Types of the arguments of each operation, as stem checks them: s text, b bytes, i integer; * any number of texts.
ARGUMENTS: dict[Code, str] = {
    Code.MOUNT: "sssis", Code.IMAGE: "sssis", Code.BIND: "ssi", Code.MKDIR: "si", Code.TOUCH: "si", Code.SYMLINK: "ss",
    Code.MKNOD: "sii", Code.WRITE: "sbi", Code.UNSHARE: "i", Code.SETNS: "si", Code.JOIN: "ii", Code.CLONE: "i", Code.ROOT: "s",
    Code.PIVOT: "", Code.CHROOT: "s", Code.CHDIR: "s", Code.HOSTNAME: "s", Code.LINK: "si", Code.ADDRESS: "sbi", Code.ROUTE: "bs",
    Code.RLIMIT: "iii", Code.BOUND: "i", Code.USER: "sss", Code.CAPS: "iiii", Code.NNP: "", Code.SECCOMP: "bi", Code.MASK: "s",
    Code.READONLY: "si", Code.TTY: "ss", Code.USERNS: "ss", Code.IDMAP: "s", Code.ENTER: "", Code.DEATH: "i", Code.OPEN: "sii",
    Code.TAP: "si", Code.LISTEN: "si", Code.CHANNEL: "i", Code.UMASK: "i", Code.SETUID: "ii", Code.CHOWN: "sii", Code.TIME: "i",
    Code.EXEC: "i*", Code.BUILTIN: "i*", Code.SYNC: "i", Code.HOOK: "iii*", Code.START: "i", Code.NSFD: "ii", Code.TREE: "isi",
    Code.PICK: "is", Code.ATTR: "iiiii", Code.ATTACH: "is", Code.COPYUP: "is", Code.IDENTITY: "iibi", Code.CWD: "s", Code.LOOKUP: "ss",
    Code.READY: "", Code.MOVE: "", Code.DOMAIN: "s", Code.PERSONALITY: "i", Code.SCHED: "iiiiiii", Code.IOPRIO: "i", Code.KEYRING: "s",
    Code.DUMPABLE: "i", Code.AFFINITY: "b", Code.INIT: "i",
}  # fmt: skip


def decode_op(code: Code, arguments: tuple[bytes, ...]) -> Op:
    """An operation of `decode_spawn` with typed arguments; integers come back unsigned. Raises ValueError where stem would refuse it."""
    kinds = ARGUMENTS[code]
    if kinds.endswith("*"):
        kinds = kinds[:-1] + "s" * (len(arguments) - len(kinds) + 1)
    if len(kinds) != len(arguments):
        raise ValueError(f"{code.name} takes {len(kinds)} arguments, not {len(arguments)}")
    return Op(code=code, args=tuple(_decode_argument(kind, data) for kind, data in zip(kinds, arguments, strict=True)))


def _decode_argument(kind: str, data: bytes) -> type_of_argument:
    if kind == "b":
        return data
    if kind == "s":
        if b"\0" in data:
            raise ValueError("NUL byte in text")
        return data.decode("utf-8", "surrogateescape")
    if len(data) != _U64.size:
        raise ValueError(f"an integer of {len(data)} bytes")
    return int(_U64.unpack(data)[0])


def decode_hello(payload: bytes) -> Hello:
    """The answer to HELLO. Raises ValueError."""
    reader = _Reader(payload)
    version, role = reader.u32(), reader.u32()
    return Hello(version=version, role=_ROLES.get(role, str(role)), release=reader.text())


def decode_spawned(payload: bytes) -> tuple[int, int]:
    """The answer to SPAWN: process number, pid. Raises ValueError."""
    proc, pid = _PAIR.unpack(_Reader(payload).take(8))
    return int(proc), int(pid)


def decode_error(payload: bytes) -> Refused:
    """The exception in an ERROR frame. Raises ValueError."""
    reader = _Reader(payload)
    return Refused(reader.u32(), reader.u32(), reader.text())


def decode_exited(payload: bytes) -> tuple[int, int, int]:
    """The end of a process: code, signal, time in ns since the epoch. Raises ValueError."""
    code, signal, time_ns = _EXITED.unpack(_Reader(payload).take(_EXITED.size))
    return int(code), int(signal), int(time_ns)


def decode_stat(payload: bytes) -> list[tuple[int, int, int, int]]:
    """The answer to STAT: (process number, pid, state 1 running 2 ended, code). Raises ValueError."""
    reader = _Reader(payload)
    return [_STAT.unpack(reader.take(_STAT.size)) for _ in range(reader.u32())]


def decode_ready(payload: bytes) -> tuple[int, str, int]:
    """A guest's first frame: version, kernel release, uptime in ns. Raises ValueError."""
    reader = _Reader(payload)
    return reader.u32(), reader.text(), reader.u64()


def read_log(data: bytes) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """Complete log records (time in ns, stream 1 stdout 2 stderr, bytes) and the rest."""
    records, at = [], 0
    while len(data) - at >= LOG_HEAD.size:
        time_ns, stream, length = LOG_HEAD.unpack_from(data, at)
        start = at + LOG_HEAD.size
        if len(data) - start < length:
            break
        records.append((time_ns, stream, data[start : start + length]))
        at = start + length
    return records, data[at:]
