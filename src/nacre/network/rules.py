"""The host's packet filter as text: one table per engine and the elements of its sets and maps. Pure functions.

The rules never change; networks and published ports are elements, so adding or removing one is one operation, whatever the
number of containers, and an element of one container cannot disturb another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nacre.model.network import Endpoint
from nacre.model.value import Value

PROTOCOLS = {"tcp": 6, "udp": 17}

_RULESET = """\
add table ip TABLE
flush table ip TABLE
table ip TABLE {
	# The bridges, and the subnets behind them.
	set bridges {
		type ifname
	}
	set subnets {
		type ipv4_addr
		flags interval
	}

	# Published ports: on every address of this host, and on one address only.
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
	}
	map ports_at {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
	}

	# 127.0.0.1:PORT is forwarded to containers, so loopback addresses are routable on the bridges; from there, none may come in
	# (the class of CVE-2020-8558). Before connection tracking: answers to forwarded connections bear the bridge's address here.
	chain guard {
		type filter hook prerouting priority -300; policy accept;
		iifname @bridges ip daddr 127.0.0.0/8 drop
	}

	chain publish {
		meta l4proto { 6, 17 } dnat ip to ip daddr . meta l4proto . th dport map @ports_at
		meta l4proto { 6, 17 } fib daddr type local dnat ip to meta l4proto . th dport map @ports
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		jump publish
	}
	chain output {
		type nat hook output priority -100; policy accept;
		jump publish
	}

	# In turn: this host through 127.0.0.1; a container through this host's address (to itself or a neighbour, whose direct
	# answer it would not recognise); containers to the world.
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		oifname @bridges ip saddr 127.0.0.0/8 masquerade
		oifname @bridges ip saddr @subnets ct status dnat masquerade
		oifname != @bridges ip saddr @subnets masquerade
	}

	# Into a bridge: answers, published ports, and neighbours; nobody else on this host's links reaches an unpublished port.
	# Accepting here does not overrule another table that drops.
	chain forward {
		type filter hook forward priority 0; policy accept;
		oifname @bridges ct state established,related accept
		oifname @bridges ct status dnat accept
		iifname @bridges accept
		oifname @bridges drop
	}
}
"""


class Element(Value):
    """One published port. host: "" = every address."""

    host: str
    protocol: str
    port: int
    container: str
    container_port: int


def ruleset(table: str) -> str:
    """The whole table as one transaction: replaces the rules of an existing table and keeps its elements."""
    return _RULESET.replace("TABLE", table)


def add_network(table: str, bridge: str, subnet: str) -> str:
    """The transaction that puts a bridge and its subnet (CIDR) under the rules. Repeating it changes nothing."""
    return f'add element ip {table} bridges {{ "{bridge}" }}\nadd element ip {table} subnets {{ {subnet} }}\n'


def clear_networks(table: str) -> str:
    """The transaction that takes every bridge and subnet out (a bridge made anew may have another subnet)."""
    return f"flush set ip {table} bridges\nflush set ip {table} subnets\n"


def elements(endpoint: Endpoint) -> tuple[Element, ...]:
    """The elements that publish the ports of an endpoint."""
    address = endpoint.address.partition("/")[0]
    return tuple(_element(port.host_ip, port.protocol, port.host_port, address, port.container_port) for port in endpoint.ports)


def add(table: str, items: Iterable[Element]) -> str:
    """The transaction that publishes ports. nftables refuses it when a port is published to somewhere else already."""
    return "".join(f"add element ip {table} {_map(item)} {{ {_key(item)} : {item.container} . {item.container_port} }}\n" for item in items)


def delete(table: str, items: Iterable[Element]) -> str:
    """The transaction that withdraws published ports. nftables refuses it when one of them is absent."""
    return "".join(f"delete element ip {table} {_map(item)} {{ {_key(item)} }}\n" for item in items)


def listing(table: str) -> str:
    """The command whose output `parse` reads."""
    return f"list table ip {table}\n"


def parse(text: str) -> tuple[Element, ...]:
    """The published ports in what `listing` prints, host ports and protocols as numbers or names."""
    found: list[Element] = []
    for name in ("ports", "ports_at"):
        _, _, rest = text.partition(f"\tmap {name} {{")
        _, marker, rest = rest.partition("\n\t}")[0].partition("elements = {")
        entries = rest.partition("}")[0].split(",") if marker else []
        found += [_parse_entry(entry) for entry in entries]
    return tuple(found)


def drops_forwarding(text: str) -> str:
    """The first chain in a printed ruleset that drops forwarded packets by policy, as "family table chain"; "" when none does."""
    table = chain = ""
    for line in text.splitlines():
        words = line.split()
        if line.startswith("table "):
            table = f"{words[1]} {words[2]}"
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif "hook forward" in line and "policy drop" in line:
            return f"{table} {chain}"
    return ""


def _element(host: str, protocol: str, port: int, container: str, container_port: int) -> Element:
    return Element(host=host, protocol=protocol, port=port, container=container, container_port=container_port)


def _map(item: Element) -> str:
    return "ports_at" if item.host else "ports"


def _key(item: Element) -> str:
    parts: Sequence[str] = (*((item.host,) if item.host else ()), str(PROTOCOLS[item.protocol]), str(item.port))
    return " . ".join(parts)


def _parse_entry(entry: str) -> Element:
    key, _, value = entry.partition(" : ")
    *host, protocol, port = (part.strip() for part in key.split(" . "))
    address, container_port = (part.strip() for part in value.split(" . "))
    names = {str(number): name for name, number in PROTOCOLS.items()}
    return _element("".join(host), names.get(protocol, protocol), int(port), address, int(container_port))
