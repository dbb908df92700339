"""Real packets between containers, their host and another machine, all in network namespaces of the test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from nacre.errors import Conflict
from nacre.linux import netns, nft
from nacre.model.network import Endpoint, PortMapping
from nacre.network import rules
from nacre.network.manager import NetworkManager
from nacre.testing.network import HOST_ADDRESS, REMOTE_ADDRESS, Lab, ask, configure, serve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Host:
    """A manager in a laboratory; what it attaches is configured, and released at the end."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")
        self.held: dict[str, list[int]] = {}

    def attach(self, *ports: PortMapping, network: str = "bridge") -> Endpoint:
        container_id = os.urandom(32).hex()
        endpoint, held = self.manager.attach(container_id, network, "box", ports)
        self.held[container_id] = held
        if endpoint.interface:
            configure(endpoint)
        return endpoint

    def release(self, endpoint: Endpoint) -> None:
        container_id = os.path.basename(endpoint.netns)
        for fd in self.held.pop(container_id):
            os.close(fd)
        self.manager.detach(container_id)

    def close(self) -> None:
        for container_id, held in self.held.items():
            for fd in held:
                os.close(fd)
            self.manager.detach(container_id)


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab, contextlib.closing(Host(lab)) as made:
        yield made


def plain(address: str) -> str:
    return address.partition("/")[0]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_published_port_from_everywhere(host: Host, protocol: str) -> None:
    web = host.attach(PortMapping(container_port=80, host_port=8080, protocol=protocol))
    other = host.attach()
    gateway = web.gateway
    with serve(web.netns, 80, "web", protocol):
        assert ask("", "127.0.0.1", 8080, protocol) == f"web {gateway}"
        assert ask("", HOST_ADDRESS, 8080, protocol) == f"web {HOST_ADDRESS}"
        assert ask(host.lab.remote, HOST_ADDRESS, 8080, protocol) == f"web {REMOTE_ADDRESS}"
        # A neighbour through the host's addresses, the container through them to itself, and neighbours directly.
        assert ask(other.netns, HOST_ADDRESS, 8080, protocol) == f"web {gateway}"
        assert ask(other.netns, gateway, 8080, protocol) == f"web {gateway}"
        assert ask(web.netns, HOST_ADDRESS, 8080, protocol) == f"web {gateway}"
        assert ask(other.netns, plain(web.address), 80, protocol) == f"web {plain(other.address)}"
        host.release(web)
        assert ask("", "127.0.0.1", 8080, protocol, patience=0.2) == ""


def test_one_host_address_only(host: Host) -> None:
    inside = host.attach(PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1"))
    outside = host.attach(PortMapping(container_port=80, host_port=8080, host_ip=HOST_ADDRESS))
    with serve(inside.netns, 80, "inside"), serve(outside.netns, 80, "outside"):
        assert ask("", "127.0.0.1", 8080).startswith("inside")
        assert ask("", HOST_ADDRESS, 8080).startswith("outside")
        assert ask(host.lab.remote, HOST_ADDRESS, 8080) == f"outside {REMOTE_ADDRESS}"


def test_many_ports_of_one_container(host: Host) -> None:
    ports = tuple(PortMapping(container_port=number, host_port=9000 + number) for number in range(1, 41))
    web = host.attach(*ports)
    assert web.ports == ports
    with serve(web.netns, 7, "seven"), serve(web.netns, 40, "forty"):
        assert ask("", "127.0.0.1", 9007).startswith("seven")
        assert ask("", "127.0.0.1", 9040).startswith("forty")


def test_container_reaches_the_world(host: Host) -> None:
    box = host.attach()
    for protocol in ("tcp", "udp"):
        with serve(host.lab.remote, 7000, "world", protocol):
            assert ask(box.netns, REMOTE_ADDRESS, 7000, protocol) == f"world {HOST_ADDRESS}"


def test_loopback_services_of_the_host_stay_private(host: Host) -> None:
    """A container that routes 127.0.0.0/8 to the bridge must not reach what listens there (CVE-2020-8558)."""
    box = host.attach(PortMapping(container_port=80, host_port=8080))
    with serve("", 6000, "private", address="127.0.0.1"), serve("", 6001, "public"):
        netns.inside(box.netns, lambda: netns.write_sysctl("net/ipv4/conf/eth0/route_localnet", "1"))

        def reroute() -> None:
            assert os.system("ip address delete 127.0.0.1/8 dev lo && ip route add 127.0.0.0/8 via 10.88.0.1 dev eth0") == 0

        netns.inside(box.netns, reroute)
        assert ask(box.netns, box.gateway, 6001) == f"public {plain(box.address)}"
        assert ask(box.netns, "127.0.0.1", 6000, patience=0.5) == ""


def test_unpublished_port_is_closed_to_other_machines(host: Host) -> None:
    web = host.attach(PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1"))

    def reroute() -> None:
        assert os.system(f"ip route add 10.88.0.0/16 via {HOST_ADDRESS}") == 0

    netns.inside(host.lab.remote, reroute)
    with serve(web.netns, 80, "web"):
        assert ask("", "127.0.0.1", 8080).startswith("web")
        assert ask(host.lab.remote, plain(web.address), 80, patience=0.5) == ""


def test_networks_none_and_host(host: Host) -> None:
    none = host.attach(network="none")
    assert (none.interface, none.address) == ("", "")
    with serve(none.netns, 80, "alone"):
        assert ask(none.netns, "127.0.0.1", 80) == "alone 127.0.0.1"
        assert ask("", "127.0.0.1", 80) == ""
    shared, held = host.manager.attach("f" * 64, "host")
    assert (shared.netns, held) == ("", [])


def test_ping_without_privilege_and_low_ports(host: Host) -> None:
    box = host.attach()
    assert netns.inside(box.netns, lambda: netns.read_sysctl("net/ipv4/ip_unprivileged_port_start")) == "0"
    assert netns.inside(box.netns, lambda: netns.read_sysctl("net/ipv4/ping_group_range")).split() == ["0", "2147483647"]


def test_stats_count_from_the_container(host: Host) -> None:
    box = host.attach()
    with serve(host.lab.remote, 7000, "world"):
        before = host.manager.stats(box)
        ask(box.netns, REMOTE_ADDRESS, 7000)
        after = host.manager.stats(box)
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert host.manager.stats(Endpoint(network="none")) == (0, 0)


def test_udp_flow_follows_a_published_port(host: Host) -> None:
    """A client that keeps its source port is answered by the container that has the port now, not by a remembered one."""
    for name in ("first", "second"):
        box = host.attach(PortMapping(container_port=53, host_port=5353, protocol="udp"))
        with serve(box.netns, 53, name, "udp"):
            assert ask(host.lab.remote, HOST_ADDRESS, 5353, "udp", source_port=40000, patience=1).startswith(name)
        host.release(box)
        assert ask(host.lab.remote, HOST_ADDRESS, 5353, "udp", source_port=40000, patience=0.1) == ""


def test_port_conflicts_are_decided_by_the_kernel(host: Host) -> None:
    web = host.attach(PortMapping(container_port=80, host_port=8080))
    with pytest.raises(Conflict, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        host.attach(PortMapping(container_port=81, host_port=8080))
    with pytest.raises(Conflict):
        host.attach(PortMapping(container_port=81, host_port=8080, host_ip="127.0.0.1"))
    host.attach(PortMapping(container_port=81, host_port=8080, protocol="udp"))
    with serve("", 8081, "program"), pytest.raises(Conflict, match="8081"):
        host.attach(PortMapping(container_port=80, host_port=8081))
    with serve(web.netns, 80, "web"):
        assert ask("", "127.0.0.1", 8080).startswith("web")
    host.release(web)
    again = host.attach(PortMapping(container_port=80, host_port=8080))
    with serve(again.netns, 80, "again"):
        assert ask("", "127.0.0.1", 8080).startswith("again")


def test_what_a_dead_container_left_is_replaced(host: Host) -> None:
    left = rules.Element(host="", protocol="tcp", port=8080, container="10.88.9.9", container_port=99)
    nft.apply(rules.ruleset("nacre") + rules.add("nacre", [left]))
    web = host.attach(PortMapping(container_port=80, host_port=8080))
    with serve(web.netns, 80, "web"):
        assert ask("", "127.0.0.1", 8080).startswith("web")
    host.release(web)
    assert rules.parse(nft.apply(rules.listing("nacre"))) == ()


def test_chosen_ports(host: Host) -> None:
    web = host.attach(PortMapping(container_port=80), PortMapping(container_port=81))
    first, second = (port.host_port for port in web.ports)
    assert first != second
    assert min(first, second) >= 32768
    with serve(web.netns, 81, "web"):
        assert ask("", HOST_ADDRESS, second).startswith("web")
