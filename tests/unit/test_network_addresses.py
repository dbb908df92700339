from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nacre.errors import Conflict, HostError, InvalidArgument, NoSpace, Unsupported
from nacre.model.network import Network, PortMapping
from nacre.network import ports
from nacre.network.addresses import Subnet, to_int, to_text, version
from nacre.network.bridge import CANDIDATES, Bridge, choose_subnet, write_atomically
from nacre.network.leases import Leases


@pytest.mark.parametrize("text", ["10.88.0.0/16", "192.0.2.128/25", "0.0.0.0/0", "203.0.113.7/32", "10.1.2.3/8"])
def test_subnet_agrees_with_the_standard_library(text: str) -> None:
    subnet, oracle = Subnet.parse(text), ipaddress.ip_network(text, strict=False)
    assert str(subnet) == str(oracle)
    assert to_text(subnet.last) == str(oracle.broadcast_address)
    for other in ("10.88.255.255/32", "10.0.0.0/8", "192.0.2.0/24", "203.0.113.6/31"):
        assert subnet.overlaps(Subnet.parse(other)) == oracle.overlaps(ipaddress.ip_network(other))
    for address in ("10.88.0.1", "192.0.2.127", "203.0.113.7"):
        assert subnet.holds(to_int(address)) == (ipaddress.ip_address(address) in oracle)


@pytest.mark.parametrize("text", ["", "10.88.0.0", "10.88.0.0/33", "10.88.0.0/-1", "10.88.0/16", "x/8", "10.0.0.0/1٣", "::/8"])
def test_bad_subnets(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not an IPv4 subnet"):
        Subnet.parse(text)


def test_version() -> None:
    assert [version(text) for text in ("192.0.2.1", "::1", "fe80::1", "192.0.2", "", "a\0b")] == [4, 6, 6, 0, 0, 0]


def parsed(*texts: str) -> list[Subnet]:
    return [Subnet.parse(text) for text in texts]


def test_choose_subnet() -> None:
    assert choose_subnet([]) == CANDIDATES[0]
    assert str(choose_subnet(parsed("10.88.200.0/24"))) == "10.89.0.0/16"
    assert str(choose_subnet(parsed("10.88.200.0/24"), remembered="10.91.0.0/16")) == "10.91.0.0/16"
    assert str(choose_subnet(parsed("10.91.0.1/32"), remembered="10.91.0.0/16")) == "10.88.0.0/16"
    assert str(choose_subnet(parsed("10.0.0.0/8"))) == "172.24.0.0/16"
    # The two halves of a VPN's default route, and a default route.
    assert choose_subnet(parsed("0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0")) == CANDIDATES[0]
    assert str(choose_subnet([], wanted="10.200.0.9/24", remembered="10.91.0.0/16")) == "10.200.0.0/24"


def test_choose_subnet_refuses() -> None:
    with pytest.raises(NoSpace, match="no private subnet"):
        choose_subnet(parsed("10.0.0.0/8", "172.16.0.0/12"))
    with pytest.raises(Conflict, match=r"10\.200\.0\.0/16"):
        choose_subnet(parsed("10.200.0.0/16"), wanted="10.200.3.0/24")
    for wanted in ("10.0.0.0/30", "10.0.0.0/4"):
        with pytest.raises(InvalidArgument, match="prefix length"):
            choose_subnet([], wanted=wanted)


def test_leases(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    leases, subnet = Leases(str(tmp_path / "leases")), Subnet.parse("10.9.0.0/29")
    assert [leases.take(name, subnet) for name in "abc"] == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
    leases.release("a")
    leases.release("c", "10.9.0.4")
    leases.release("x", "10.9.0.3")
    # A freed address is not given out again at once.
    assert [leases.take(name, subnet) for name in "def"] == ["10.9.0.5", "10.9.0.6", "10.9.0.2"]
    assert dict(leases.items()) == {"10.9.0.3": "b", "10.9.0.5": "d", "10.9.0.6": "e", "10.9.0.2": "f"}
    assert leases.take("g", subnet, "10.9.0.4") == "10.9.0.4"
    with pytest.raises(NoSpace):
        leases.take("h", subnet)
    leases.drop("10.9.0.6")
    (tmp_path / "leases.last").write_text("garbage")
    assert leases.take("h", subnet) == "10.9.0.6"


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", 'x"', "é"])
def test_bad_bridge_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="name for a bridge"):
        Bridge(name, str(tmp_path / "record"), str(tmp_path / "stamp"))


def test_damaged_record(tmp_path: Path) -> None:
    bridge = Bridge("nacre0", str(tmp_path / "record"), str(tmp_path / "stamp"))
    assert bridge.record() is None
    for text in ("", "{", "[]", '{"name": 1, "id": "x"}'):
        (tmp_path / "record").write_text(text)
        with pytest.raises(HostError, match="damaged"):
            bridge.record()
    write_atomically(str(tmp_path / "record"), '{"name": "bridge", "id": "x", "later": 1}', durable=True)
    assert bridge.record() == Network(name="bridge", id="x")
    assert sorted(os.listdir(tmp_path)) == ["record"]


def test_check_ports() -> None:
    assert ports.check(PortMapping(container_port=80, host_port=0, host_ip="0.0.0.0", protocol="TCP")) == PortMapping(container_port=80)
    for wrong in (
        PortMapping(container_port=0),
        PortMapping(container_port=65536),
        PortMapping(container_port=80, host_port=-1),
        PortMapping(container_port=80, host_ip="localhost"),
        PortMapping(container_port=80, protocol="icmp"),
    ):
        with pytest.raises(InvalidArgument, match="cannot publish"):
            ports.check(wrong)
    for unsupported in (PortMapping(container_port=80, protocol="sctp"), PortMapping(container_port=80, host_ip="::1")):
        with pytest.raises(Unsupported, match="cannot publish"):
            ports.check(unsupported)


def test_reserve_is_all_or_nothing(no_descriptor_left: Callable[[], AbstractContextManager[None]]) -> None:
    free = PortMapping(container_port=1, host_ip="127.0.0.1")
    (chosen,), held = ports.reserve((free,))
    taken = f"Bind for 127.0.0.1:{chosen.host_port} failed: port is already allocated"
    with no_descriptor_left(), pytest.raises(Conflict, match=taken) as caught:
        ports.reserve((free, free, chosen))
    assert "ss -tlnp" in caught.value.hint
    for fd in held:
        assert not os.get_inheritable(fd)
        os.close(fd)
