"""Attaching and detaching under bad conditions: killed, raced, repeated, with the host's rules or bridge taken away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from nacre.errors import Conflict, HostError, InvalidArgument, NoSpace, NotFound, Unsupported
from nacre.linux import netns, nft
from nacre.linux.netlink import Netlink
from nacre.model.network import Endpoint, PortMapping
from nacre.network import rules
from nacre.network.manager import NetworkManager
from nacre.testing.network import HOST_ADDRESS, Lab, ask, configure, eventually, serve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

CHILD = """
import json, os, signal, sys
from nacre.linux import netns
from nacre.linux.netlink import Netlink
from nacre.model.network import PortMapping
from nacre.network import bridge, leases, manager, ports
root, run, step, count = sys.argv[1:5]
if step:
    home, name = step.split(".")
    owner = {"Bridge": bridge.Bridge, "Leases": leases.Leases, "Netlink": Netlink, "netns": netns, "manager": manager, "ports": ports}[home]
    original = getattr(owner, name)
    def wrapped(*args, **kwargs):
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, wrapped)
made = manager.NetworkManager(root, run)
sys.stdin.readline()
for _ in range(int(count)):
    endpoint, held = made.attach(os.urandom(32).hex(), "bridge", "box", (PortMapping(container_port=80, protocol="udp"),))
    print(json.dumps(endpoint.to_data()), flush=True)
sys.stdin.read()
"""

STEPS = [
    "ports.reserve", "Leases.take", "manager._save", "netns.create", "Netlink.create_veth", "Netlink.set_port",
    "Bridge.publish",
]  # fmt: skip
BRIDGE_STEPS = ["Bridge._write_record", "Netlink.create_bridge", "Netlink.add_address", "Bridge._write_sysctls", "Bridge._write_rules"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def manager(lab: Lab) -> NetworkManager:
    return NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")


def start(lab: Lab, step: str = "", count: int = 1) -> subprocess.Popen[str]:
    """A process that attaches `count` times when told to, and holds what it got until its input ends; SIGKILLed after `step`."""
    command = [sys.executable, "-c", CHILD, f"{lab.directory}/root", f"{lab.directory}/run", step, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()


def remains(lab: Lab) -> list[str]:
    """What is left of containers: records, leases, namespaces, interfaces, published ports."""
    run = f"{lab.directory}/run"
    found = [f"{name}/{entry}" for name in ("network/endpoints", "network/leases", "netns") for entry in entries(f"{run}/{name}")]
    with open("/proc/self/mountinfo") as file:
        found += [line for line in file if f"{run}/netns" in line]
    with Netlink() as netlink:
        found += [link.name for link in netlink.links() if link.name.startswith("nv")]
    answer = nft.execute(rules.listing("nacre"))
    found += [str(element) for element in rules.parse(answer.output)]
    return found


def entries(path: str) -> list[str]:
    return os.listdir(path) if os.path.isdir(path) else []


def close(held: list[int]) -> None:
    for fd in held:
        os.close(fd)


@pytest.mark.parametrize("network", ["bridge", "none"])
def test_detach_leaves_nothing(lab: Lab, manager: NetworkManager, network: str) -> None:
    ports = (PortMapping(container_port=80, host_port=8080), PortMapping(container_port=80, host_port=8081, host_ip=HOST_ADDRESS))
    _, held = manager.attach("a" * 64, network, "box", ports)
    assert remains(lab)
    manager.detach("a" * 64)
    close(held)
    assert eventually(lambda: remains(lab) == []), remains(lab)
    manager.detach("a" * 64)
    manager.detach("b" * 64)


@pytest.mark.parametrize("step", STEPS)
def test_killed_while_attaching(lab: Lab, manager: NetworkManager, step: str) -> None:
    child = start(lab, step)
    go(child)
    assert child.wait() == -signal.SIGKILL
    assert len(manager.sweep()) == 1
    assert eventually(lambda: remains(lab) == []), remains(lab)
    endpoint, held = manager.attach("a" * 64)
    configure(endpoint)
    with serve(endpoint.netns, 80, "web"):
        assert ask("", endpoint.address.partition("/")[0], 80).startswith("web")
    manager.detach("a" * 64)
    close(held)


@pytest.mark.parametrize("step", BRIDGE_STEPS)
def test_killed_while_making_the_bridge(lab: Lab, manager: NetworkManager, step: str) -> None:
    child = start(lab, step)
    go(child)
    assert child.wait() == -signal.SIGKILL
    endpoint, held = manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    configure(endpoint)
    with serve(endpoint.netns, 80, "web"):
        assert ask(lab.remote, HOST_ADDRESS, 8080).startswith("web")
    manager.detach("a" * 64)
    close(held)


@pytest.mark.parametrize("step", ["Leases.release", "netns.remove", "Bridge.withdraw"])
def test_killed_while_detaching(lab: Lab, manager: NetworkManager, step: str) -> None:
    _, held = manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    close(held)
    pid = os.fork()
    if not pid:
        die_after(step)
        manager.detach("a" * 64)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    manager.sweep()
    assert eventually(lambda: remains(lab) == []), remains(lab)


def die_after(step: str) -> None:
    from nacre.network import bridge, leases

    home, name = step.split(".")
    owner = {"Bridge": bridge.Bridge, "Leases": leases.Leases, "netns": netns}[home]
    original = getattr(owner, name)

    def wrapped(*args: object) -> None:
        original(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, wrapped)


def test_many_processes_at_once(lab: Lab, manager: NetworkManager) -> None:
    """From nothing: one bridge comes out of it, and every endpoint has its own address, interface and port."""
    children = [start(lab, count=5) for _ in range(6)]
    for child in children:
        go(child)
    endpoints = [Endpoint.from_data(json.loads(child.stdout.readline())) for child in children for _ in range(5) if child.stdout]
    for field in ("address", "mac", "host_interface", "netns", "ports"):
        assert len({getattr(endpoint, field) for endpoint in endpoints}) == 30
    with Netlink() as netlink:
        bridge = netlink.index("nacre0")
        assert sum(link.master == bridge for link in netlink.links()) == 30
    # Held by living processes: not to be swept.
    assert manager.sweep() == []
    for child in children:
        child.communicate()
    assert len(manager.sweep(alive={os.path.basename(endpoints[0].netns)})) == 29
    manager.sweep()
    assert eventually(lambda: remains(lab) == []), remains(lab)


def test_an_endpoint_is_attached_once(lab: Lab, manager: NetworkManager) -> None:
    _, held = manager.attach("a" * 64)
    with pytest.raises(Conflict, match="connected to a network already"):
        manager.attach("a" * 64)
    close(held)
    # Its holder is gone: what it left makes place.
    second, held = manager.attach("a" * 64)
    assert len(entries(f"{lab.directory}/run/network/leases")) == 1
    with Netlink() as netlink:
        assert netlink.link(second.host_interface)
    manager.detach("a" * 64)
    close(held)


def test_addresses(lab: Lab, manager: NetworkManager) -> None:
    first, held = manager.attach("a" * 64, address="10.88.7.7", mac="02:00:5e:10:00:01")
    assert (first.address, first.mac, first.gateway) == ("10.88.7.7/16", "02:00:5e:10:00:01", "10.88.0.1")
    with pytest.raises(Conflict, match=r"10\.88\.7\.7"):
        manager.attach("b" * 64, address="10.88.7.7")
    for wrong in ("10.89.0.1", "10.88.0.1", "10.88.255.255", "nonsense"):
        with pytest.raises(InvalidArgument):
            manager.attach("b" * 64, address=wrong)
    close(held)
    manager.detach("a" * 64)
    _, held = manager.attach("b" * 64, address="10.88.7.7")
    close(held)
    manager.detach("b" * 64)


def test_a_failed_attach_leaves_nothing(
    lab: Lab, manager: NetworkManager, monkeypatch: pytest.MonkeyPatch, no_descriptor_left: Callable[[], AbstractContextManager[None]]
) -> None:
    with serve("", 8081, "program"):
        for ports in ((8080, 8081), (8082, 8082)):
            with pytest.raises(Conflict):
                manager.attach("a" * 64, ports=tuple(PortMapping(container_port=80, host_port=port) for port in ports))
            assert remains(lab) == []

    def refuse(*_: object, **__: object) -> None:
        raise HostError("the kernel refuses")

    monkeypatch.setattr(Netlink, "set_link", refuse)
    with no_descriptor_left(), pytest.raises(HostError, match="refuses"):
        manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    monkeypatch.undo()
    assert manager.sweep() in ([], ["a" * 64])
    assert eventually(lambda: remains(lab) == []), remains(lab)


@pytest.mark.parametrize("limit", ["nr_inodes=9", "nr_inodes=11", "nr_inodes=13"])
def test_full_disk(lab: Lab, limit: str) -> None:
    """Whichever file does not fit, the error says so, and nothing stays."""
    os.mkdir(f"{lab.directory}/run")
    assert os.system(f"mount -t tmpfs -o {limit} tmpfs {lab.directory}/run") == 0
    try:
        manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")
        held = []
        with pytest.raises(NoSpace, match="No space left on device"):
            for digit in "abc":
                held += manager.attach(digit * 64)[1]
        close(held)
        for digit in "abc":
            manager.detach(digit * 64)
        assert eventually(lambda: remains(lab) == []), remains(lab)
    finally:
        assert os.system(f"umount --lazy {lab.directory}/run") == 0


def test_after_a_reboot(lab: Lab, manager: NetworkManager) -> None:
    """A run directory that outlived its boot: records without holders are neither published nor in the way."""
    _, held = manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    close(held)
    assert os.system("nft flush ruleset && ip link delete nacre0") == 0
    netns.remove(f"{lab.directory}/run/netns/{'a' * 64}")
    endpoint, held = manager.attach("b" * 64)
    assert rules.parse(nft.apply(rules.listing("nacre"))) == ()
    configure(endpoint)
    assert manager.sweep() == ["a" * 64]
    with serve(endpoint.netns, 80, "web"):
        assert ask("", endpoint.address.partition("/")[0], 80).startswith("web")
    close(held)
    manager.detach("b" * 64)


def test_bad_requests(manager: NetworkManager) -> None:
    with pytest.raises(NotFound, match="network nowhere not found"):
        manager.attach("a" * 64, "nowhere")
    for mac in ("02:00", "zz:00:00:00:00:00", "01:00:00:00:00:00", "02:00:00:00:00:0000"):
        with pytest.raises(InvalidArgument, match="MAC"):
            manager.attach("a" * 64, mac=mac)
    for wrong in ("../x", "", ".hidden", "a/b", "..", "-"):
        with pytest.raises(InvalidArgument, match="container id"):
            manager.detach(wrong)
    manager.detach("abc-files.1")
    with pytest.raises(Unsupported, match="SCTP"):
        manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=80, protocol="sctp"),))
    with pytest.raises(InvalidArgument, match="cannot assign requested address"):
        manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=80, host_ip="192.0.2.99"),))


@pytest.mark.parametrize(
    "damage", ["nft flush ruleset", "ip link delete nacre0", "sysctl -qw net.ipv4.ip_forward=0", "nft delete table ip nacre"]
)
@pytest.mark.parametrize("repair", ["restore", "attach"])
def test_what_others_took_away_comes_back(lab: Lab, manager: NetworkManager, damage: str, repair: str) -> None:
    endpoint, held = manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    configure(endpoint)
    with serve(endpoint.netns, 80, "web"):
        assert ask(lab.remote, HOST_ADDRESS, 8080).startswith("web")
        assert os.system(damage) == 0
        assert ask(lab.remote, HOST_ADDRESS, 8080, patience=0.2) == ""
        if repair == "restore":
            manager.restore()
        else:
            close(manager.attach("b" * 64)[1])
            manager.detach("b" * 64)
        assert ask(lab.remote, HOST_ADDRESS, 8080).startswith("web")
        assert ask("", "127.0.0.1", 8080).startswith("web")
    close(held)
    manager.detach("a" * 64)


def test_a_foreign_bridge_is_left_alone(lab: Lab, manager: NetworkManager) -> None:
    assert os.system("ip link add nacre0 type bridge && ip link set nacre0 alias somebody-else") == 0
    with pytest.raises(Conflict, match="nacre0 exists"):
        manager.attach("a" * 64)
    other = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run", bridge="nacre1")
    endpoint, held = other.attach("a" * 64)
    assert endpoint.address.startswith("10.88.")
    close(held)
    other.detach("a" * 64)


def test_two_engines_on_one_host(lab: Lab, manager: NetworkManager) -> None:
    """Each has its own directories, bridge, subnet and table; the ports are shared, by the kernel's word."""
    other = NetworkManager(f"{lab.directory}/root2", f"{lab.directory}/run2", bridge="nacre1")
    first, held_first = manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    second, held_second = other.attach("b" * 64, ports=(PortMapping(container_port=80, host_port=8081),))
    assert first.address.split(".")[:2] != second.address.split(".")[:2]
    with pytest.raises(Conflict):
        other.attach("c" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    for endpoint in (first, second):
        configure(endpoint)
    with serve(first.netns, 80, "first"), serve(second.netns, 80, "second"):
        assert ask(second.netns, HOST_ADDRESS, 8080).startswith("first")
        assert ask(lab.remote, HOST_ADDRESS, 8081).startswith("second")
    for made, container_id, held in ((manager, "a" * 64, held_first), (other, "b" * 64, held_second)):
        close(held)
        made.detach(container_id)
    netns.remove(second.netns)


def test_subnet_avoids_what_the_host_routes(lab: Lab) -> None:
    assert os.system("ip route add 10.88.4.0/24 dev uplink && ip address add 10.89.1.1/24 dev uplink") == 0
    manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run")
    endpoint, held = manager.attach("a" * 64)
    assert endpoint.address == "10.90.0.2/16"
    close(held)
    manager.detach("a" * 64)
    record = manager.inspect("bridge")
    assert (record.subnet, record.gateway, len(record.id)) == ("10.90.0.0/16", "10.90.0.1", 64)
    assert manager.inspect(record.id[:12]) == manager.inspect("default") == record
    with pytest.raises(Conflict, match=r"198\.51\.100\.0/24"):
        NetworkManager(f"{lab.directory}/x", f"{lab.directory}/y", bridge="n1", subnet="198.51.100.0/25").attach("a" * 64)


def test_mtu_follows_the_uplink(lab: Lab, manager: NetworkManager) -> None:
    assert os.system("ip link set uplink mtu 1400") == 0
    endpoint, held = manager.attach("a" * 64)
    configure(endpoint)
    with Netlink(endpoint.netns) as inner:
        link = inner.link("eth0")
    assert link is not None
    assert (endpoint.mtu, link.mtu, link.mac) == (1400, 1400, endpoint.mac)
    close(held)
    manager.detach("a" * 64)


def test_full_subnet(lab: Lab) -> None:
    manager = NetworkManager(f"{lab.directory}/root", f"{lab.directory}/run", subnet="10.99.0.0/29")
    held = [manager.attach(f"{number}" * 64)[1] for number in range(5)]
    with pytest.raises(HostError, match=r"no free address in 10\.99\.0\.0/29"):
        manager.attach("a" * 64)
    manager.detach("2" * 64)
    endpoint, extra = manager.attach("a" * 64)
    assert endpoint.address == "10.99.0.4/29"
    for descriptors in (*held, extra):
        close(descriptors)
    manager.sweep()


def test_a_firewall_that_drops_is_named(manager: NetworkManager) -> None:
    assert manager.diagnose() == []
    nft.apply("table ip filter {\n chain FORWARD {\n type filter hook forward priority 0; policy drop;\n }\n}\n")
    ((problem, way),) = manager.diagnose()
    assert "ip filter FORWARD" in problem
    assert os.system(way) == 0, way


def test_a_port_with_lingering_connections(lab: Lab, manager: NetworkManager) -> None:
    """A server that just ended leaves connections in TIME_WAIT; its port can be published all the same, and only once."""
    with serve("", 8080, "program"):
        assert ask(lab.remote, HOST_ADDRESS, 8080).startswith("program")
    endpoint, held = manager.attach("a" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    with pytest.raises(Conflict):
        manager.attach("b" * 64, ports=(PortMapping(container_port=80, host_port=8080),))
    configure(endpoint)
    with serve(endpoint.netns, 80, "web"):
        assert ask(lab.remote, HOST_ADDRESS, 8080).startswith("web")
    close(held)
    manager.detach("a" * 64)
