"""The tap of a virtual machine: frames cross between its descriptor and the network, both ways, whatever does the splice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from nacre.errors import HostError, Unsupported
from nacre.linux import netns
from nacre.linux.netlink import Netlink
from nacre.model.network import Endpoint, PortMapping
from nacre.network.manager import NetworkManager
from nacre.testing.network import HOST_ADDRESS, REMOTE_ADDRESS, Lab, ask

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

OWNER = 65534
HEADER = 10  # struct virtio_net_hdr, which IFF_VNET_HDR puts before each frame
ARP, IPV4, ICMP, TCP, UDP = 0x0806, 0x0800, 1, 6, 17


class Machine:
    """A "virtual machine" by hand: owns a tap's descriptor, answers ARP, sends what it is told."""

    def __init__(self, endpoint: Endpoint, tap: str) -> None:
        self.mac = bytes.fromhex(endpoint.mac.replace(":", ""))
        self.address = pack(endpoint.address.partition("/")[0])
        self.fd: int = netns.inside(endpoint.netns, lambda: attach(tap))

    def send(self, to: bytes, kind: int, body: bytes) -> None:
        os.write(self.fd, bytes(HEADER) + to + self.mac + struct.pack(">H", kind) + body)

    def receive(self, kind: int, seconds: float = 5) -> bytes:
        """The body of the next frame of a kind; ARP requests for our address are answered meanwhile. b"" when none comes."""
        deadline = time.monotonic() + seconds
        while select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
            frame = os.read(self.fd, 65536)[HEADER:]
            body = frame[14:]
            if frame[12:14] == struct.pack(">H", ARP) and body[6:8] == b"\0\1" and body[24:28] == self.address:
                self.send(body[8:14], ARP, body[:6] + b"\0\2" + self.mac + self.address + body[8:18])
            if frame[12:14] == struct.pack(">H", kind):
                return body
        return b""

    def resolve(self, address: str) -> bytes:
        """MAC of a neighbour."""
        request = struct.pack(">HHBBH", 1, IPV4, 6, 4, 1) + self.mac + self.address + bytes(6) + pack(address)
        for _ in range(20):  # as a kernel does; a bridge's port begins to forward some time after it is attached to
            self.send(b"\xff" * 6, ARP, request)
            while body := self.receive(ARP, 0.3):
                if body[6:8] == b"\0\2" and body[14:18] == pack(address):
                    return body[8:14]
        return b""

    def ping(self, gateway: bytes, address: str) -> bool:
        echo = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + b"frames cross"
        echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
        self.send(gateway, IPV4, ip(self.address, pack(address), ICMP, echo))
        body = self.receive(IPV4)
        return body[9:10] == bytes([ICMP]) and body[20] == 0 and body.endswith(b"frames cross")


def pack(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ip(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, source, target)
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + body


def attach(tap: str) -> int:
    """Open a tap as stem's operation TAP does, as the user that may."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", tap.encode(), 0x0002 | 0x1000 | 0x4000))
    return fd


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(params=["u32", "bridge"])
def machine(lab: Lab, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with a published UDP port, spliced by redirection, and by a bridge as on kernels without it."""
    manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")
    container_id = os.urandom(32).hex()
    endpoint, held = manager.attach(container_id, ports=(PortMapping(container_port=53, host_port=5353, protocol="udp"),))
    if request.param == "bridge":

        def refuse(self: Netlink, source: int, target: int) -> str:
            raise HostError("no classifier")

        monkeypatch.setattr(Netlink, "redirect", refuse)
    assert manager.tap(endpoint, OWNER) == "tap0"
    machine = Machine(endpoint, "tap0")
    yield machine
    os.close(machine.fd)
    for fd in held:
        os.close(fd)
    manager.detach(container_id)


def test_frames_cross_both_ways(machine: Machine, lab: Lab) -> None:
    gateway = machine.resolve("10.88.0.1")
    assert gateway == bytes.fromhex("026e0a580001")
    assert machine.ping(gateway, "10.88.0.1")
    # Out through the host's address translation, and back.
    assert machine.ping(gateway, REMOTE_ADDRESS)


def test_published_port_reaches_the_machine(machine: Machine, lab: Lab) -> None:
    machine.resolve("10.88.0.1")
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(ask(lab.remote, HOST_ADDRESS, 5353, "udp")))
    client.start()
    body = machine.receive(IPV4)
    while body and body[9] != UDP:
        body = machine.receive(IPV4)
    source, target = struct.unpack(">HH", body[20:24])
    assert (target, body[12:16], body[28:]) == (53, pack(REMOTE_ADDRESS), b"?")
    reply = struct.pack(">HHHH", target, source, 8 + 7, 0) + b"machine"
    machine.send(machine.resolve("10.88.0.1"), IPV4, ip(machine.address, body[12:16], UDP, reply))
    client.join()
    assert answers == ["machine"]


def test_redirection_works_on_this_kernel(lab: Lab) -> None:
    path = f"{lab.directory}/pair"
    netns.create(path)
    try:
        with Netlink() as netlink:
            netlink.create_veth("left", "right", namespace=path, mac="02:00:00:00:00:07", mtu=1500)
            assert netlink.redirect(netlink.index("left"), netlink.index("uplink")) in ("u32", "matchall")
    finally:
        netns.remove(path)


def test_tap_belongs_to_its_owner_and_is_made_once(lab: Lab) -> None:
    manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")
    container_id = os.urandom(32).hex()
    endpoint, held = manager.attach(container_id)
    with contextlib.ExitStack() as undo:
        undo.callback(manager.detach, container_id)
        for fd in held:
            undo.callback(os.close, fd)
        assert manager.tap(endpoint, OWNER) == manager.tap(endpoint, OWNER) == "tap0"
        owner = netns.inside(endpoint.netns, lambda: os.popen("ip -details -json link show tap0").read())
        assert '"user":"nobody"' in owner or f'"user":{OWNER}' in owner or f'"user":"{OWNER}"' in owner
        with Netlink(endpoint.netns) as inner:
            tap = inner.link("tap0")
        assert tap is not None
        assert (tap.up, tap.mtu) == (True, endpoint.mtu)


def test_levels_without_a_tap(lab: Lab) -> None:
    manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")
    none, held = manager.attach("a" * 64, "none")
    assert manager.tap(none) == ""
    os.close(held[0])
    manager.detach("a" * 64)
    with pytest.raises(Unsupported, match="network of the host"):
        manager.tap(manager.attach("b" * 64, "host")[0])
