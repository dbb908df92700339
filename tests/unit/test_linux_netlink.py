from __future__ import annotations

import errno
import os
import struct

import pytest

from nacre.errors import Denied, HostError, NoSpace
from nacre.linux import netlink, netns, nft, run


class Wire:
    """A socket that answers with prepared datagrams."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams = list(datagrams)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        return self.datagrams.pop(0)


def message(kind: int, sequence: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def failed(number: int, sequence: int, text: str = "") -> bytes:
    said = netlink.attribute(1, text.encode() + b"\0") if text else b""
    return message(2, sequence, struct.pack("i", -number) + bytes(16) + said, 0x200 if text else 0)


def exchange(wire: Wire, sequence: int = 7, flags: int = netlink.ACK) -> list[bytes]:
    return netlink.exchange(wire, sequence, 18, flags, b"body")  # type: ignore[arg-type]


def test_request_and_answers() -> None:
    wire = Wire(message(16, 7, b"one") + message(16, 7, b"three"), message(16, 3, b"of another request") + failed(0, 7))
    assert exchange(wire) == [b"one", b"three"]
    assert wire.sent == [struct.pack("IHHII", 20, 18, 1 | 4, 7, 0) + b"body"]


def test_dump_ends_with_done() -> None:
    assert exchange(Wire(message(16, 7, b"a"), message(16, 7, b"b"), message(3, 7, bytes(4))), flags=netlink.DUMP) == [b"a", b"b"]


def test_errors_carry_the_kernels_words() -> None:
    with pytest.raises(OSError, match="No such device") as caught:
        exchange(Wire(failed(errno.ENODEV, 7)))
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError, match=r"Invalid argument \(Attribute is wrong\)"):
        exchange(Wire(failed(errno.EINVAL, 7, "Attribute is wrong.")))


@pytest.mark.parametrize("data", [struct.pack("IHHII", 8, 16, 0, 7, 0), struct.pack("IHHII", 99, 16, 0, 7, 0)])
def test_malformed_messages(data: bytes) -> None:
    with pytest.raises(OSError, match="malformed"):
        exchange(Wire(data))


def test_attributes() -> None:
    data = b"head" + netlink.attribute(3, b"abcde") + netlink.nest(4, netlink.attribute(1, b""))
    assert list(netlink.attributes(data, 4)) == [(3, b"abcde"), (4, netlink.attribute(1, b""))]
    for broken in (b"\x03\0\1\0", b"\xff\0\1\0", b"\4\0"):
        assert list(netlink.attributes(broken, 0)) == []


def test_explain() -> None:
    assert isinstance(netlink.explain("x", OSError(errno.EPERM, "no")), Denied)
    assert isinstance(netlink.explain("x", OSError(errno.EXFULL, "full")), NoSpace)
    error = netlink.explain("cannot do it", OSError(errno.EOPNOTSUPP, "Operation not supported"), "modprobe it")
    assert (type(error), error.message, error.hint) == (HostError, "cannot do it: Operation not supported", "modprobe it")


def test_thread_returns_and_raises() -> None:
    import threading

    assert netns.in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        netns.in_thread(lambda: 1 // 0)


def test_missing_namespace() -> None:
    with pytest.raises(HostError, match="cannot enter the network namespace /nowhere: No such file"):
        netns.inside("/nowhere", lambda: None)


def test_without_nftables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_program", lambda name: "/sbin/iptables" if name == "iptables" else "")
    assert not nft.available()
    with pytest.raises(HostError, match="nftables is not installed") as caught:
        nft.execute("list tables")
    assert caught.value.hint.startswith("apt-get install nftables (iptables alone")


def test_an_nft_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "available", lambda: True)
    monkeypatch.setattr(run, "run", lambda *_, **__: run.Result(-11, b"", b""))
    with pytest.raises(HostError, match="nft was killed by signal 11") as caught:
        nft.execute("list tables")
    assert "newer nft" in caught.value.hint


def test_nft_by_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_program", lambda name: f"/usr/sbin/{name}")
    calls = []

    def fake(argv: list[str], *, stdin: bytes) -> run.Result:
        calls.append((argv, stdin))
        return run.Result(1, b"", b"/dev/stdin:1:1-9: Error: Could not process rule: No such file or directory\n")

    monkeypatch.setattr(run, "run", fake)
    with pytest.raises(HostError, match="No such file") as caught:
        nft.apply("delete it")
    assert calls == [(["nft", "--numeric-protocol", "--file", "-"], b"delete it")]
    assert "modprobe" in caught.value.hint
    assert "delete it" in caught.value.details


def test_read_sysctl_of_nothing() -> None:
    assert netns.read_sysctl("net/ipv4/no_such_thing") == ""
    assert netns.read_sysctl("kernel/ostype") == os.uname().sysname
