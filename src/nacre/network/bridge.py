"""The host's side of the default network: the bridge, its subnet, the sysctls and the packet filter that go with it.

Everything is made on first use and made again when it is gone (after a reboot, after a firewall restart).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

from nacre.errors import Conflict, Denied, HostError, InvalidArgument, NoSpace
from nacre.linux import netns
from nacre.linux.netlink import Link, Netlink, has_table
from nacre.model import jsontext
from nacre.model.network import Endpoint, Network
from nacre.network import rules
from nacre.network.addresses import Subnet, to_text, version
from nacre.network.files import parse_resolver

NAME = "bridge"
MAX_MTU = 1500
# Private space that few networks use, Docker's default (172.17) and podman's (10.88) not among the first choices of anybody else.
CANDIDATES = tuple(Subnet.parse(f"10.{second}.0.0/16") for second in (88, 89, 90, 91, 92, 93, 94, 95, 188, 189)) + tuple(
    Subnet.parse(f"172.{second}.0.0/16") for second in range(24, 32)
)


def choose_subnet(taken: Iterable[Subnet], wanted: str = "", remembered: str = "") -> Subnet:
    """The subnet of a new bridge: `wanted`, else `remembered`, else the first candidate that overlaps nothing in `taken`.

    Entries of `taken` shorter than /8 are default routes in pieces (as VPNs make them) and do not count.
    Raises Conflict when `wanted` overlaps, InvalidArgument when it is unusable, NoSpace when every candidate is taken.
    """
    used = [subnet for subnet in taken if subnet.length >= 8]
    subnet: Subnet
    if wanted:
        subnet = Subnet.parse(wanted)
        if not 8 <= subnet.length <= 29:
            raise InvalidArgument(f"NACRE_SUBNET={wanted}: the prefix length must be from 8 to 29")
        clash = next((other for other in used if other.overlaps(subnet)), None)
        if clash:
            raise Conflict(
                f"NACRE_SUBNET={wanted} overlaps {clash}, which this host routes already", hint="see: ip -4 route; ip -4 address"
            )
        return subnet
    for subnet in (*((Subnet.parse(remembered),) if remembered else ()), *CANDIDATES):
        if not any(other.overlaps(subnet) for other in used):
            return subnet
    raise NoSpace("no private subnet is free for containers", hint="choose one that this host does not need: NACRE_SUBNET=10.200.0.0/24")


class Bridge:
    """The bridge of one engine. Callers serialise `make`; `ready` may be called at any time.

    name: of the interface; file: path of the durable record; stamp: path of a run-time file; subnet: the caller's choice or "".
    """

    def __init__(self, name: str, file: str, stamp: str, subnet: str = "") -> None:
        # A name is used in rules, sysctl paths and interface names (IFNAMSIZ 16).
        if not 1 <= len(name) <= 15 or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise InvalidArgument(f"{name!r} is not a usable name for a bridge", hint="1 to 15 letters, digits, - and _, such as nacre0")
        self.name = name
        self.table = "nacre" if name == "nacre0" else f"nacre-{name}"
        self._file = file
        self._stamp = stamp
        self._subnet = subnet
        self.avoid: list[Subnet] = []  # what the new bridge's subnet must not overlap besides what this namespace routes

    def record(self) -> Network | None:
        """The network as recorded; None before its first use. Raises HostError when the record is damaged."""
        try:
            with open(self._file, "rb") as file:
                return Network.from_data(jsontext.loads(file.read()))
        except FileNotFoundError:
            return None
        except (ValueError, InvalidArgument) as error:
            raise HostError(f"the record of the network {NAME} is damaged: {self._file}", hint=f"rm {self._file}") from error

    def ready(self, netlink: Netlink) -> tuple[Network, Link] | None:
        """The network and its bridge when everything is in place; None when `make` is needed."""
        network = self.record()
        link = netlink.link(self.name) if network else None
        if network is None or link is None or not link.up or link.alias != network.id:
            return None
        if not has_table(self.table) or self._read_stamp() != _stamp(self.table) or netns.read_sysctl("net/ipv4/ip_forward") != "1":
            return None
        return network, link

    def make(self, netlink: Netlink, endpoints: tuple[Endpoint, ...]) -> None:
        """Make or complete the bridge, its address, sysctls and rules, and connect and publish the given endpoints again.

        Idempotent; a call that was killed is completed by the next one. Raises Conflict when the interface belongs to somebody
        else, and as `choose_subnet`; HostError when the host lacks something.
        """
        network = self.record()
        link = self._own_link(netlink, network)
        if network is None or (link is None and not endpoints):
            network = self._write_record(netlink, network)
        subnet = Subnet.parse(network.subnet)
        if link is None:
            # The octets of the gateway make the MAC unique among the bridges of this host.
            mac = "02:6e:" + subnet.gateway.to_bytes(4, "big").hex(":")
            netlink.create_bridge(self.name, mac, network.mtu)
            netlink.forgo_ipv6(self.name)
        index = netlink.index(self.name)
        netlink.add_address(index, f"{network.gateway}/{subnet.length}")
        netlink.set_link(index, up=True, alias=network.id)
        self._write_sysctls()
        self._write_rules(network, endpoints)
        for endpoint in endpoints:
            port = netlink.link(endpoint.host_interface)
            if port is not None and port.master != index:
                netlink.set_link(port.index, master=index, up=True)

    def publish(self, endpoint: Endpoint) -> None:
        """Open the published ports of an endpoint. Leftovers for the same host port are replaced: its holder is gone, or it could
        not have been reserved. Raises HostError.
        """
        from nacre.linux import conntrack

        items = rules.elements(endpoint)
        if items:
            self._put(items)
        for port in endpoint.ports:
            if port.protocol == "udp":
                conntrack.forget(rules.PROTOCOLS[port.protocol], port.host_port)

    def _put(self, items: tuple[rules.Element, ...]) -> None:
        from nacre.linux import nft

        if nft.execute(rules.add(self.table, items)).ok:
            return
        taken = {(item.host, item.protocol, item.port) for item in items}
        present = rules.parse(nft.apply(rules.listing(self.table)))
        stale = [item for item in present if (item.host, item.protocol, item.port) in taken]
        nft.apply(rules.delete(self.table, stale) + rules.add(self.table, items))

    def withdraw(self, endpoint: Endpoint) -> None:
        """Close the published ports of an endpoint. Idempotent; ports that lead to another container by now are left alone."""
        from nacre.linux import nft

        items = rules.elements(endpoint)
        if not items or not has_table(self.table):
            return
        present = set(rules.parse(nft.apply(rules.listing(self.table))))
        gone = [item for item in items if item in present]
        if gone:
            nft.apply(rules.delete(self.table, gone))

    def _own_link(self, netlink: Netlink, network: Network | None) -> Link | None:
        """The bridge when it is ours, made unfinished by a killed call, or abandoned; None when there is none (any more)."""
        link = netlink.link(self.name)
        if link is None or (network is not None and link.alias == network.id):
            return link
        idle = link.kind == "bridge" and not any(other.master == link.index for other in netlink.links())
        if idle and (not link.alias or _is_network_id(link.alias)):
            netlink.delete_link(self.name)
            return None
        raise Conflict(
            f"the network interface {self.name} exists and is not of this engine",
            hint=f"choose another name (NACRE_BRIDGE=nacre1), or remove it: ip link delete {self.name}",
        )

    def _write_record(self, netlink: Netlink, old: Network | None) -> Network:
        subnet = choose_subnet(taken(netlink) + self.avoid, self._subnet, old.subnet if old else "")
        network = Network(
            name=NAME,
            id=old.id if old else os.urandom(32).hex(),
            bridge=self.name,
            subnet=str(subnet),
            gateway=to_text(subnet.gateway),
            mtu=_uplink_mtu(netlink),
            created=old.created if old else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        if network != old:
            write_atomically(self._file, jsontext.dumps(network.to_data()), durable=True)
        return network

    def _write_sysctls(self) -> None:
        wanted = {"net/ipv4/ip_forward": "1", f"net/ipv4/conf/{self.name}/route_localnet": "1"}
        for name, value in wanted.items():
            if netns.read_sysctl(name) == value:
                continue
            try:
                netns.write_sysctl(name, value)
            except OSError as error:
                kind = Denied if error.errno in (1, 13) else HostError
                dotted = name.replace("/", ".")
                raise kind(f"cannot set {dotted}: {os.strerror(error.errno or 0)}", hint=f"sysctl -w {dotted}={value}") from error

    def _write_rules(self, network: Network, endpoints: tuple[Endpoint, ...]) -> None:
        from nacre.linux import nft

        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._stamp)
        script = rules.ruleset(self.table) + rules.clear_networks(self.table) + rules.add_network(self.table, self.name, network.subnet)
        nft.apply(script)
        for endpoint in endpoints:
            self.publish(endpoint)
        write_atomically(self._stamp, _stamp(self.table))

    def _read_stamp(self) -> str:
        try:
            with open(self._stamp) as file:
                return file.read()
        except OSError:
            return ""


def write_atomically(path: str, text: str, *, durable: bool = False) -> None:
    """Replace a file by rename. durable: also on a power failure. Raises OSError."""
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "x") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _stamp(table: str) -> str:
    """Names this version of the rules: an engine of another version puts its own in place. A remainder by a prime serves as checksum."""
    return f"{int.from_bytes(rules.ruleset(table).encode(), 'big') % ((1 << 61) - 1):x}"


def _is_network_id(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)


def taken(netlink: Netlink) -> list[Subnet]:
    """What this host reaches already: routes, addresses of interfaces that are down, name servers."""
    used = [route.destination for route in netlink.routes()] + [address.address for address in netlink.addresses()]
    with contextlib.suppress(OSError), open("/etc/resolv.conf") as file:
        used += [f"{server}/32" for server in parse_resolver(file.read()).servers if version(server) == 4]
    return [Subnet.parse(text) for text in used]


def _uplink_mtu(netlink: Netlink) -> int:
    """The MTU of the interface with the default route, at most 1500: larger packets would only be fragmented there."""
    uplinks = {route.index for route in netlink.routes() if route.destination == "0.0.0.0/0"}
    return min([MAX_MTU, *(link.mtu for link in netlink.links() if link.index in uplinks and link.mtu >= 576)])
