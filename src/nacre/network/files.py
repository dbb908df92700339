"""Contents of /etc/hosts, /etc/resolv.conf and /etc/hostname of a container. Pure functions; the plan writes what they return.

Behaviour as Docker's: the reference is `docker run --help` (--add-host, --dns, --dns-option, --dns-search) and hosts(5), resolv.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable

from nacre.errors import InvalidArgument
from nacre.model.value import Value
from nacre.network.addresses import version

STUB = "/run/systemd/resolve/resolv.conf"  # where systemd-resolved lists the servers behind its own 127.0.0.53
PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4")  # what Docker falls back to

_HOSTS = """\
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
"""


class Resolver(Value):
    """What /etc/resolv.conf says: name servers, search domains, options."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def hosts(
    hostname: str, address: str = "", *, extra: Iterable[str] = (), gateway: str = "", base: str = "", aliases: Iterable[str] = ()
) -> bytes:
    """The text of /etc/hosts.

    hostname: may be "name.domain", then the short name is listed too. address: of the container, "a.b.c.d" or with a length;
    "" = none. extra: `NAME:ADDRESS` or `NAME=ADDRESS` as --add-host takes them; the address `host-gateway` stands for `gateway`.
    base: the lines to begin with (the host's own file for the network `host`), "" = Docker's. aliases: more names of the container.
    Raises InvalidArgument for an unusable line of `extra`.
    """
    lines = [f"{where}\t{name}\n" for name, where in (parse_extra_host(item, gateway) for item in extra)]
    if address:
        names = (hostname, *((hostname.partition(".")[0],) if "." in hostname else ()), *aliases)
        lines.append(f"{address.partition('/')[0]}\t{' '.join(dict.fromkeys(names))}\n")
    start = base if not base or base.endswith("\n") else base + "\n"
    return ((start or _HOSTS) + "".join(lines)).encode()


def parse_extra_host(item: str, gateway: str = "") -> tuple[str, str]:
    """(name, address) of one --add-host value. Raises InvalidArgument, in Docker's words."""
    # The first of the two separators ends the name; an IPv6 address has further colons and may stand in brackets.
    cut = min((position for position in (item.find(":"), item.find("=")) if position > 0), default=0)
    name, where = item[:cut], item[cut + 1 :]
    if not name or not where or name.split() != [name]:
        raise InvalidArgument(f"bad format for add-host: {item!r}", hint="--add-host NAME:ADDRESS, for example db:192.0.2.7")
    if where == "host-gateway":
        if not gateway:
            raise InvalidArgument(
                f"--add-host {item}: this network has no gateway that leads to the host", hint="use --network bridge, or name an address"
            )
        return name, gateway
    where = where[1:-1] if where.startswith("[") and where.endswith("]") else where
    if not version(where):
        raise InvalidArgument(f"invalid IP address in add-host: {where!r}", hint="--add-host NAME:ADDRESS or NAME:host-gateway")
    return name, where


def parse_resolver(text: str) -> Resolver:
    """Read a resolv.conf. Unknown keywords and malformed addresses are passed over, as the C library does."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and version(words[1].partition("%")[0]):
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = tuple(words[1:])
        elif words[0] == "options":
            options += words[1:]
    return Resolver(servers=tuple(servers), search=search, options=tuple(options))


def needs_stub(text: str) -> bool:
    """Whether a host's resolv.conf names nothing but systemd-resolved, so that the file `STUB` should be read instead."""
    return parse_resolver(text).servers == ("127.0.0.53",)


def resolver(
    text: str, *, dns: tuple[str, ...] = (), search: tuple[str, ...] = (), options: tuple[str, ...] = (), own_loopback: bool = False
) -> Resolver:
    """What a container's resolv.conf should say.

    text: the host's resolv.conf. dns, search, options: what the caller asked for instead, each replacing the host's; search
    (".",) means none. own_loopback: the container shares the host's loopback (network host), so every server of the host works.
    Otherwise servers on the host's loopback, and IPv6 ones (containers have no IPv6 route), are left out; when none
    remains: `PUBLIC_SERVERS`. Raises InvalidArgument for a server that is no address.
    """
    for server in dns:
        if not version(server):
            raise InvalidArgument(f"--dns: {server!r} is not an IP address", hint="for example --dns 192.0.2.53")
    host = parse_resolver(text)
    servers = dns or host.servers
    if not dns and not own_loopback:
        servers = tuple(server for server in servers if _is_reachable(server)) or PUBLIC_SERVERS
    wanted = search or host.search
    return Resolver(servers=servers, search=() if wanted == (".",) else wanted, options=options or host.options)


def resolv_conf(servers: tuple[str, ...], search: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> bytes:
    """The text of /etc/resolv.conf (resolv.conf(5))."""
    lines = [f"nameserver {server}\n" for server in servers]
    lines += [f"search {' '.join(search)}\n"] if search else []
    lines += [f"options {' '.join(options)}\n"] if options else []
    return "".join(lines).encode()


def hostname(name: str) -> bytes:
    """The text of /etc/hostname."""
    return f"{name}\n".encode()


def _is_reachable(server: str) -> bool:
    return version(server) == 4 and not server.startswith(("127.", "0."))
