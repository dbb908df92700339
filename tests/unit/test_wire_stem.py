"""The stem codec: golden bytes, round trips, and input that is cut off, oversized or noise."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest

from nacre.model.plan import MS_BIND, MS_RDONLY, NEWNS, NEWPID, NEWUSER, WRITE_CREATE, Code, Op, Spawn, op
from nacre.wire import stem as wire

# One operation of each kind, and how stem names it in an error text. stem/test.c reads the golden file made of this.
OPS: tuple[tuple[Op, str], ...] = (
    (op(Code.MOUNT, "proc", "%/proc", "proc", 0xE, ""), "mount proc on %/proc"),
    (op(Code.IMAGE, "/dev/vda", "%/l", "erofs", MS_RDONLY, "x"), "mount image /dev/vda on %/l"),
    (op(Code.BIND, "/srv", "%/srv", MS_BIND), "bind /srv on %/srv"),
    (op(Code.MKDIR, "%/dev", 0o755), "make directory %/dev"),
    (op(Code.TOUCH, "%/etc/hosts", 0o644), "make file %/etc/hosts"),
    (op(Code.SYMLINK, "pts/ptmx", "%/dev/ptmx"), "make symbolic link %/dev/ptmx"),
    (op(Code.MKNOD, "%/dev/null", 0o020666, 0x103), "make device %/dev/null"),
    (op(Code.WRITE, "/x", b"\x00\x01", WRITE_CREATE), "write /x"),
    (op(Code.UNSHARE, NEWNS), "unshare 0x20000"),
    (op(Code.SETNS, "/run/ns", NEWUSER), "join namespace /run/ns"),
    (op(Code.JOIN, 1, NEWPID), "join process 1"),
    (op(Code.CLONE, 0), "clone"),
    (op(Code.ROOT, "/r"), "root directory /r"),
    (op(Code.PIVOT), "pivot_root"),
    (op(Code.CHROOT, "/r"), "chroot /r"),
    (op(Code.CHDIR, "/w"), "change directory to /w"),
    (op(Code.HOSTNAME, "box"), "set host name box"),
    (op(Code.LINK, "lo", 0), "set up interface lo"),
    (op(Code.ADDRESS, "eth0", socket.inet_aton("10.0.0.2"), 24), "set address of interface eth0"),
    (op(Code.ROUTE, socket.inet_aton("10.0.0.1"), "eth0"), "set default route through eth0"),
    (op(Code.RLIMIT, 7, 1024, -1), "set resource limit 7"),
    (op(Code.BOUND, 0xA80425FB), "limit capabilities"),
    (op(Code.USER, "alice:staff", "audio,44", "/home"), "become user alice:staff"),
    (op(Code.CAPS, 1, 2, 3, 4), "set capabilities"),
    (op(Code.NNP), "set no_new_privs"),
    (op(Code.SECCOMP, b"\x06\x00\x00\x00\x00\x00\xff\x7f", 0), "install seccomp filter"),
    (op(Code.MASK, "%/proc/kcore"), "mask %/proc/kcore"),
    (op(Code.READONLY, "%/proc/sys", 1), "make %/proc/sys read-only"),
    (op(Code.TTY, "%/dev/pts/ptmx", ""), "open terminal %/dev/pts/ptmx"),
    (op(Code.USERNS, "0 1 2\n", "0 1 2\n"), "make user namespace"),
    (op(Code.IDMAP, "/r"), "id-map /r"),
    (op(Code.ENTER), "enter user namespace"),
    (op(Code.DEATH, 9), "set parent-death signal"),
    (op(Code.OPEN, "/f", 2, 5), "open /f"),
    (op(Code.TAP, "tap0", 4), "attach to tap interface tap0"),
    (op(Code.LISTEN, "/s", 6), "listen on /s"),
    (op(Code.CHANNEL, 3), "place channel"),
    (op(Code.UMASK, 0o22), "set umask"),
    (op(Code.SETUID, 1000, 1000), "become uid 0x3e8"),
    (op(Code.CHOWN, "%/f", 1, -1), "change owner of %/f"),
    (op(Code.TIME, 1), "set clock"),
    (op(Code.EXEC, 2, "sh", "-i", "PATH=/bin", "A="), "exec sh"),
    (op(Code.BUILTIN, 2, "stat", "/"), "builtin stat"),
    (op(Code.SYNC, 1), "wait for the runtime at point 1"),
    (op(Code.HOOK, 2, 0, 1000, "/bin/hook", "hook", "A=b"), "run hook /bin/hook"),
    (op(Code.START, 0), "wait for start"),
    (op(Code.NSFD, 0, NEWPID), "join namespaces"),
    (op(Code.TREE, 0, "/srv", 1), "open mount source /srv"),
    (op(Code.PICK, 0, "%/srv"), "open mount %/srv"),
    (op(Code.ATTR, 0, 1, 0, 0, 1), "set mount attributes 1"),
    (op(Code.ATTACH, 0, "%/srv"), "mount on %/srv"),
    (op(Code.COPYUP, 0, "%/srv"), "copy contents into %/srv"),
    (op(Code.IDENTITY, 1, 2, b"\x05\x00\x00\x00", 0), "become uid 1 and gid 2"),
    (op(Code.CWD, "/w"), "change working directory to /w"),
    (op(Code.LOOKUP, "sh", "/bin"), 'exec: "sh"'),
    (op(Code.READY), "prepare for exec"),
    (op(Code.MOVE), "move the root directory to /"),
    (op(Code.DOMAIN, "d"), "set domain name d"),
    (op(Code.PERSONALITY, 8), "set personality 8"),
    (op(Code.SCHED, 3, 0, 5, 0, 0, 0, 0), "set scheduling policy 3"),
    (op(Code.IOPRIO, 4), "set I/O priority 4"),
    (op(Code.KEYRING, "k"), "join session keyring k"),
    (op(Code.DUMPABLE, 1), "set dumpable to 1"),
    (op(Code.AFFINITY, b"\x03\x00\x00\x00\x00\x00\x00\x00"), "set CPU affinity"),
    (op(Code.INIT, 0), "leave an init behind"),
)
EXEC = op(Code.EXEC, 1, "x")


def test_every_operation_is_covered() -> None:
    assert [operation.code for operation, _ in OPS] == list(Code)
    assert set(wire.ARGUMENTS) == set(Code)


def test_golden_operations(golden: Callable[[str, str], None]) -> None:
    last = (Code.EXEC, Code.BUILTIN)
    lines = []
    for operation, text in OPS:
        plan = (operation,) if operation.code in last else (operation, EXEC)
        lines.append(f"{operation.code.name} {wire.encode_spawn(Spawn(ops=plan))[0].hex()} {text}\n")
    golden("stem/operations.txt", "".join(lines))


def test_golden_frames(golden: Callable[[str, str], None]) -> None:
    record = Spawn(
        ops=(EXEC,),
        log="log",
        log_limit=1 << 33,
        log_files=7,
        log_compress=True,
        exit="exit",
        oom="/sys/x",
        clone=NEWNS | NEWPID,
        rows=24,
        columns=80,
        attach=True,
        tty=True,
        stdin=True,
        main=True,
        local=True,
        channel=True,
        console=True,
    )
    payload, flags = wire.encode_spawn(record)
    frames = (
        wire.Frame(wire.Type.HELLO, wire.CUSTODY, 0, 1, wire.u32(wire.VERSION)),
        wire.Frame(wire.Type.SPAWN, flags, 0, 2, payload),
        wire.Frame(wire.Type.ATTACH, wire.STDIN, 5, 3, b""),
        wire.Frame(wire.Type.WRITE, wire.EOF, 5, 0, b"bytes"),
        wire.Frame(wire.Type.RESIZE, 0, 5, 4, wire.size(50, 100)),
        wire.Frame(wire.Type.SIGNAL, wire.LOCAL, wire.LOCAL_PROC | 1, 5, wire.u32(15)),
        wire.Frame(wire.Type.READ, 0, 0, 0xFFFFFFFF, wire.string("/proc/uptime")),
        wire.Frame(wire.Type.HOLD, wire.HOLD_OUTPUT, 5, 0, b""),
    )
    golden("stem/frames.txt", "".join(f"{frame.type.name} {wire.encode(frame).hex()}\n" for frame in frames))


# -- frames ------------------------------------------------------------------------------------------------------------


def some_frames(seed: int) -> list[wire.Frame]:
    dice = random.Random(seed)
    kinds = list(wire.Type)
    return [
        wire.Frame(
            dice.choice(kinds),
            dice.getrandbits(16),
            dice.getrandbits(32),
            dice.getrandbits(32),
            dice.randbytes(dice.choice((0, 1, 17, 5000))),
        )
        for _ in range(30)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_frames_survive_any_cut(seed: int) -> None:
    frames = some_frames(seed)
    data = b"".join(map(wire.encode, frames))
    assert wire.Decoder().feed(data) == frames
    dice, decoder, seen, at = random.Random(seed), wire.Decoder(), [], 0
    while at < len(data):
        step = dice.choice((1, 3, 15, 16, 17, 900))
        seen += decoder.feed(data[at : at + step])
        at += step
    assert seen == frames


def test_incomplete_frame_waits() -> None:
    data = wire.encode(wire.Frame(wire.Type.OUTPUT, 0, 1, 0, b"abc"))
    for cut in range(len(data)):
        decoder = wire.Decoder()
        assert decoder.feed(data[:cut]) == []
        assert len(decoder.feed(data[cut:])) == 1


def test_limits() -> None:
    largest = wire.Frame(wire.Type.OUTPUT, 0, 1, 0, bytes(wire.PAYLOAD_MAX))
    assert wire.Decoder().feed(wire.encode(largest)) == [largest]
    with pytest.raises(ValueError, match="exceeds"):
        wire.encode(wire.Frame(wire.Type.OUTPUT, 0, 1, 0, bytes(wire.PAYLOAD_MAX + 1)))
    with pytest.raises(ValueError, match="1048577"):
        wire.Decoder().feed(wire.HEAD.pack(wire.PAYLOAD_MAX + 1, wire.Type.OUTPUT, 0, 1, 0))
    with pytest.raises(ValueError, match="Type"):
        wire.Decoder().feed(wire.HEAD.pack(0, 0x7F, 0, 0, 0))


def test_noise_raises_value_error_or_waits() -> None:
    dice = random.Random(7)
    for _ in range(500):
        try:
            wire.Decoder().feed(dice.randbytes(dice.randrange(200)))
        except ValueError:
            continue


# -- spawn records -----------------------------------------------------------------------------------------------------


def test_spawn_round_trip() -> None:
    record = Spawn(
        ops=tuple(operation for operation, _ in OPS),
        log="l\udcff",
        exit="e",
        oom="o",
        log_limit=5,
        log_files=255,
        clone=NEWNS,
        rows=1,
        columns=2,
        main=True,
        tty=True,
    )
    payload, flags = wire.encode_spawn(record)
    head, raw = wire.decode_spawn(payload, flags)
    assert head == record.replace(ops=())
    assert flags == wire.MAIN | wire.TTY
    unsigned = [
        Op(code=operation.code, args=tuple(arg % (1 << 64) if isinstance(arg, int) else arg for arg in operation.args))
        for operation, _ in OPS
    ]
    assert [wire.decode_op(code, arguments) for code, arguments in raw] == unsigned


def test_truncated_records() -> None:
    payload, flags = wire.encode_spawn(Spawn(ops=(OPS[0][0], OPS[7][0], EXEC), log="log"))
    for cut in range(len(payload)):
        with pytest.raises(ValueError, match="truncated"):
            wire.decode_spawn(payload[:cut], flags)
    with pytest.raises(ValueError, match="after the last"):
        wire.decode_spawn(payload + b"\0", flags)


def test_noise_in_records() -> None:
    payload, flags = wire.encode_spawn(Spawn(ops=tuple(operation for operation, _ in OPS)))
    dice = random.Random(3)
    for _ in range(2000):
        data = bytearray(payload)
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(len(data))] = dice.getrandbits(8)
        try:
            _, raw = wire.decode_spawn(bytes(data), flags)
            for code, arguments in raw:
                wire.decode_op(code, arguments)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "operation",
    [op(Code.MKDIR, "a\0b", 0), op(Code.MKDIR, "a", 1 << 64), op(Code.MKDIR, "a", -(1 << 63) - 1), op(Code.EXEC, 1, *["x"] * 65536)],
)
def test_what_cannot_be_said(operation: Op) -> None:
    with pytest.raises(ValueError, match=r"NUL|64 bits|arguments"):
        wire.encode_spawn(Spawn(ops=(operation,)))


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(Code.PIVOT, (b"x",)), (Code.MKDIR, (b"x",)), (Code.UMASK, (b"1234567",)), (Code.CHDIR, (b"a\0b",)), (Code.EXEC, ())],
)
def test_operations_that_stem_would_refuse(code: Code, arguments: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"arguments|integer|NUL"):
        wire.decode_op(code, arguments)


# -- answers and logs --------------------------------------------------------------------------------------------------

ANSWERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (wire.decode_hello, wire.u32(1) + wire.u32(3) + wire.string("6.1")),
    (wire.decode_spawned, wire.u32(4) + wire.u32(77)),
    (wire.decode_error, wire.u32(2) + wire.u32(13) + wire.string("exec x: Permission denied")),
    (wire.decode_exited, wire.u32(137) + wire.u32(9) + bytes(8)),
    (wire.decode_stat, wire.u32(2) + b"".join(map(wire.u32, (1, 10, 1, 0, 2, 11, 2, 5)))),
    (wire.decode_ready, wire.u32(1) + wire.string("6.1") + (99).to_bytes(8, "little")),
]


def test_answers() -> None:
    results = [decode(payload) for decode, payload in ANSWERS]
    assert results[0] == wire.Hello(version=1, role="relay", release="6.1")
    assert results[1] == (4, 77)
    assert isinstance(results[2], wire.Refused)
    assert (results[2].index, results[2].errno, results[2].text) == (2, 13, "exec x: Permission denied")
    assert results[3] == (137, 9, 0)
    assert results[4] == [(1, 10, 1, 0), (2, 11, 2, 5)]
    assert results[5] == (1, "6.1", 99)


def test_truncated_answers() -> None:
    for decode, payload in ANSWERS:
        for cut in range(len(payload)):
            with pytest.raises(ValueError, match="truncated"):
                decode(payload[:cut])


def test_claims_without_substance() -> None:
    for decode, payload in ((wire.decode_stat, wire.u32(0xFFFFFFFF)), (wire.decode_error, bytes(8) + wire.u32(0xFFFFFFFF))):
        with pytest.raises(ValueError, match="truncated"):
            decode(payload)


def test_log() -> None:
    pieces = [(10, 1, b"out\n"), (11, 2, b"err"), (12, 1, b"")]
    data = b"".join(wire.LOG_HEAD.pack(when, stream, len(text)) + text for when, stream, text in pieces)
    assert wire.read_log(data) == (pieces, b"")
    for cut in range(len(data)):
        records, rest = wire.read_log(data[:cut])
        assert pieces[: len(records)] == records
        assert data[:cut].endswith(rest)
        again, rest = wire.read_log(rest + data[cut:])
        assert (records + again, rest) == (pieces, b"")
