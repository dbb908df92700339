from __future__ import annotations

from collections.abc import Callable

import pytest

from nacre.model.network import Endpoint, PortMapping
from nacre.network import rules

ENDPOINT = Endpoint(
    network="bridge",
    address="10.88.0.2/16",
    ports=(
        PortMapping(container_port=80, host_port=8080),
        PortMapping(container_port=53, host_port=5353, protocol="udp"),
        PortMapping(container_port=443, host_port=8443, host_ip="127.0.0.1"),
    ),
)

# As nft 1.0.6 prints it, protocols as numbers (libnftables) and as names (nft without the flag).
LISTING = """\
table ip nacre {
	set bridges {
		type ifname
		elements = { "nacre0" }
	}

	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 17 . 5353 : 10.88.0.2 . 53,
				tcp . 8080 : 10.88.0.2 . 80 }
	}

	map ports_at {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 127.0.0.1 . 6 . 8443 : 10.88.0.2 . 443 }
	}

	chain guard {
		type filter hook prerouting priority raw; policy accept;
	}
}
"""


def test_ruleset(golden: Callable[[str, str], None]) -> None:
    golden("network/ruleset.nft", rules.ruleset("nacre"))


def test_transactions(golden: Callable[[str, str], None]) -> None:
    items = rules.elements(ENDPOINT)
    parts = (
        rules.clear_networks("nacre"),
        rules.add_network("nacre", "nacre0", "10.88.0.0/16"),
        rules.add("nacre", items),
        rules.delete("nacre", items),
        rules.listing("nacre"),
    )
    golden("network/transactions.nft", "\n".join(parts))


def test_the_table_of_another_engine_has_another_name() -> None:
    text = rules.ruleset("nacre-br7")
    assert "table ip nacre-br7 {" in text
    assert "TABLE" not in text
    assert "table ip nacre {" not in text


def test_parse_reads_what_nft_prints() -> None:
    assert set(rules.parse(LISTING)) == set(rules.elements(ENDPOINT))
    assert rules.parse("") == ()
    assert rules.parse("table ip nacre {\n\tmap ports {\n\t\ttype x : y\n\t}\n}\n") == ()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n", "ip filter FORWARD"),
        ("table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority filter; policy accept;\n", ""),
        ("table inet fw {\n\tchain in {\n\t\ttype filter hook input priority filter; policy drop;\n", ""),
        ("", ""),
    ],
)
def test_drops_forwarding(text: str, answer: str) -> None:
    assert rules.drops_forwarding(text) == answer
