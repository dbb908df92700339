from __future__ import annotations

from collections.abc import Callable

import pytest

from nacre.errors import InvalidArgument
from nacre.network import files


def test_hosts(golden: Callable[[str, str], None]) -> None:
    extra = ("db:192.0.2.7", "v6=2001:db8::1", "bracket:[2001:db8::2]", "out=host-gateway", "host.internal:host-gateway")
    text = files.hosts("box.example.org", "10.88.0.2/16", extra=extra, gateway="10.88.0.1", aliases=("web",))
    golden("network/hosts", text.decode())


def test_hosts_of_the_networks_none_and_host() -> None:
    assert files.hosts("box").decode().endswith("ip6-allrouters\n")
    assert files.hosts("box", base="127.0.0.1 own", extra=("a:192.0.2.1",)) == b"127.0.0.1 own\n192.0.2.1\ta\n"


@pytest.mark.parametrize(
    "item", ["", "name", "name:", ":192.0.2.1", "two words:192.0.2.1", "name:192.0.2", "name:host-gateway", "name:[::1"]
)
def test_bad_extra_hosts(item: str) -> None:
    with pytest.raises(InvalidArgument, match=r"add-host"):
        files.parse_extra_host(item)


HOST = """\
# made by something
domain old.example.org
search example.org corp.example.org
nameserver 192.0.2.53 # first
nameserver 127.0.0.53
nameserver ::1
nameserver fe80::1%eth0
nameserver 2001:db8::53
nameserver nonsense
options ndots:2 ; why
options rotate
nameserver
"""


def test_resolv_conf(golden: Callable[[str, str], None]) -> None:
    cases = {
        "bridge": files.resolver(HOST),
        "host": files.resolver(HOST, own_loopback=True),
        "nothing left": files.resolver("nameserver 127.0.0.1\nsearch lan\n"),
        "asked for": files.resolver(HOST, dns=("127.0.0.11", "2001:db8::1"), search=("a.example",), options=("ndots:0",)),
        "no search": files.resolver(HOST, search=(".",)),
        "empty": files.resolver(""),
    }
    texts = {name: files.resolv_conf(it.servers, it.search, it.options).decode() for name, it in cases.items()}
    golden("network/resolv.conf", "".join(f"# {name}\n{text}\n" for name, text in texts.items()))


def test_dns_must_be_an_address() -> None:
    with pytest.raises(InvalidArgument, match=r"'dns\.example'"):
        files.resolver("", dns=("dns.example",))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", True),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.1\n", False),
        ("nameserver 127.0.0.1\n", False),
    ],
)
def test_needs_stub(text: str, answer: bool) -> None:
    assert files.needs_stub(text) is answer


def test_hostname() -> None:
    assert files.hostname("box") == b"box\n"
