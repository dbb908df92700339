"""Uplinks of an ordinary user's networks, and the forwarder of published ports, on sockets of this host's loopback."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from nacre.errors import HostError, InvalidArgument
from nacre.linux import run
from nacre.model.plan import Spawn
from nacre.network import forward, rootless
from nacre.network.rootless import RootlessNetwork

PATIENCE = 10.0


def test_the_best_uplink_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rootless.VARIABLE, raising=False)
    there = {"pasta", "slirp4netns"}
    monkeypatch.setattr(run, "find_program", lambda name: name if name in there else "")
    said = {"text": "pasta 2024_09_06.6b38f07\nCopyright Red Hat"}
    monkeypatch.setattr(run, "run", lambda argv: run.Result(0, said["text"].encode(), b""))
    assert rootless.uplinks() == ("pasta", "slirp4netns")
    said["text"] = "pasta unknown version\nCopyright Red Hat"
    assert rootless.uplinks() == ("slirp4netns", "pasta")
    monkeypatch.setenv(rootless.VARIABLE, "slirp4netns")
    assert rootless.uplinks() == ("slirp4netns",)
    there.clear()
    assert rootless.uplinks() == ()
    monkeypatch.setenv(rootless.VARIABLE, "vpnkit")
    with pytest.raises(InvalidArgument, match="NACRE_UPLINK=vpnkit"):
        rootless.uplinks()


@pytest.mark.parametrize(
    ("text", "early"),
    [
        ("pasta 2024_09_06.6b38f07-1", False),
        ("pasta 0.0~git20250503.587980c-2", False),
        ("pasta 2023_12_30.f091893", True),
        ("pasta 0.0~git20230309.7c7625d-1", True),
        ("pasta unknown version", True),
        ("", True),
    ],
)
def test_early_versions_of_pasta(text: str, early: bool) -> None:
    assert rootless._is_early(text) is early


@pytest.mark.parametrize(("name", "flag"), [("pasta", "--no-map-gw"), ("slirp4netns", "--disable-host-loopback")])
def test_no_uplink_leads_to_the_hosts_loopback(name: str, flag: str) -> None:
    command = rootless.commands("/run/netns-home")[name]
    assert command[0] == name
    assert flag in command
    assert "/run/netns-home" in command


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("nameserver 127.0.0.1\n", True),
        ("nameserver 127.0.0.53\nnameserver ::1\n", True),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.53\n", False),
        ("search example.org\n", False),
    ],
)
def test_when_only_the_host_itself_can_ask_its_name_servers(text: str, local: bool) -> None:
    assert rootless._is_local(text) is local


def network(tmp_path: str, keep: Callable[[Spawn, Callable[[], bool]], str]) -> RootlessNetwork:
    return RootlessNetwork(f"{tmp_path}/root", f"{tmp_path}/run", keep)


def test_the_next_uplink_is_tried_and_each_failure_is_told(tmp_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootless, "uplinks", lambda: ("pasta", "slirp4netns"))
    tried = []

    def keep(plan: Spawn, ready: Callable[[], bool]) -> str:
        tried.append(str(plan.ops[-1].args[1]))
        with open(plan.log, "w") as log:
            log.write("Failed to send 46 bytes to syslog\nNo external routable interface\n" if tried[-1] == "pasta" else "")
        return "" if len(tried) == 4 else "ended with exit code 1"

    made = network(tmp_path, keep)
    with pytest.raises(HostError) as failed:
        made._start_uplink()
    assert "pasta: No external routable interface; slirp4netns: ended with exit code 1" in failed.value.message
    made._start_uplink()
    assert tried == ["pasta", "slirp4netns"] * 2
    assert made.uplink() == "slirp4netns"


def test_without_an_uplink_the_package_is_named(tmp_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootless, "uplinks", tuple)
    with pytest.raises(HostError) as missing:
        network(tmp_path, lambda plan, ready: "")._start_uplink()
    assert "apt-get install passt slirp4netns" in missing.value.hint


def test_a_container_without_published_ports_has_no_forwarder_to_end(tmp_path: str) -> None:
    network(tmp_path, lambda plan, ready: "")._end_forwarder("box")


# ---- the forwarder


class Forwarder:
    """A loop in a thread, from sockets of ours to servers of ours."""

    def __init__(self) -> None:
        self.loop = forward.Loop()
        self._end, self._wake = os.pipe()
        self.loop.watch(self._end, forward._IN, self._stop)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.open: list[socket.socket] = []

    def _stop(self, _events: int) -> None:
        raise SystemExit

    def _run(self) -> None:
        try:
            self.loop.run()
        except SystemExit:
            return

    def start(self) -> None:
        self._thread.start()

    def listener(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.bind(("127.0.0.1", 0))
        made.settimeout(PATIENCE)
        if kind == socket.SOCK_STREAM:
            made.listen()
        self.open.append(made)
        return made

    def close(self) -> None:
        os.write(self._wake, b"x")
        self._thread.join(PATIENCE)
        for fd in (self._end, self._wake):
            os.close(fd)
        for made in self.open:
            made.close()


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    made = Forwarder()
    yield made
    made.close()


def test_connections_are_passed_on_both_ways_to_their_ends(forwarder: Forwarder) -> None:
    outer, server = forwarder.listener(), forwarder.listener()
    outer.setblocking(False)
    target = server.getsockname()
    forwarder.loop.watch(outer.fileno(), forward._IN, lambda _events: forward._accept(forwarder.loop, outer, target))
    forwarder.start()
    data = os.urandom(3 << 20)
    with socket.create_connection(outer.getsockname(), PATIENCE) as client:
        inner, _ = server.accept()
        with inner:
            inner.settimeout(PATIENCE)
            # Nobody reads yet: more than all buffers hold must wait, not be lost.
            sender = threading.Thread(target=send, args=(client, data))
            sender.start()
            assert receive(inner) == data
            sender.join(PATIENCE)
            # One direction has ended; the other has not.
            inner.sendall(b"answer")
            inner.shutdown(socket.SHUT_WR)
            assert receive(client) == b"answer"


def test_a_connection_that_nobody_takes_is_closed(forwarder: Forwarder) -> None:
    outer = forwarder.listener()
    outer.setblocking(False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()
        forwarder.loop.watch(outer.fileno(), forward._IN, lambda _events: forward._accept(forwarder.loop, outer, nobody))
        forwarder.start()
        with socket.create_connection(outer.getsockname(), PATIENCE) as client, pytest.raises((ConnectionError, EOFError)):
            if not client.recv(1):
                raise EOFError


def send(target: socket.socket, data: bytes) -> None:
    target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def receive(source: socket.socket) -> bytes:
    parts = []
    while part := source.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_each_sender_of_datagrams_gets_its_own_answers(forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_MOST_SENDERS", 2)  # the one that was heard least recently makes room
    outer, server = forwarder.listener(socket.SOCK_DGRAM), forwarder.listener(socket.SOCK_DGRAM)
    address, target = outer.getsockname(), server.getsockname()
    outer.setblocking(False)
    forward.Datagrams(forwarder.loop, outer, target)
    forwarder.start()
    clients = [forwarder.listener(socket.SOCK_DGRAM) for _ in range(3)]
    for number, client in enumerate(clients):
        client.sendto(b"%d" % number, address)
        data, sender = server.recvfrom(100)
        server.sendto(b"to " + data, sender)
        assert client.recvfrom(100) == (b"to %d" % number, address)
