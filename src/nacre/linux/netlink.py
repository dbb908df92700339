"""Interfaces, addresses, routes and traffic redirection through rtnetlink(7), without a library or a program.

A `Netlink` is one socket in one network namespace. Messages are built and read here with `struct`; a request is answered
before the call returns. Kernel headers: linux/rtnetlink.h, linux/if_link.h, linux/pkt_cls.h, linux/pkt_sched.h.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from types import TracebackType

from nacre.errors import Denied, HostError, NoSpace, NotFound
from nacre.linux import netns
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_AF_NETLINK, _AF_INET, _AF_INET6 = 16, 2, 10
_NETLINK_ROUTE, NETFILTER = 0, 12
_SOL_NETLINK, _NETLINK_EXT_ACK, _NETLINK_CAP_ACK = 270, 11, 10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, ACK, DUMP, _EXCL, _CREATE = 1, 4, 0x300, 0x200, 0x400
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE, _NEWQDISC, _NEWTFILTER = 20, 22, 24, 26, 36, 44
_NESTED = 0x8000

# linux/if_link.h
_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _IFALIAS, _STATS64, _AF_SPEC, _NET_NS_FD = 1, 3, 4, 5, 10, 18, 20, 23, 26, 28
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _VETH_INFO_PEER = 1, 2, 4, 5, 1
_BRPORT_HAIRPIN, _BRPORT_LEARNING = 4, 8
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, b"\x01"
_IFF_UP = 1

# linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h
_TC_H_INGRESS, _TC_INGRESS_HANDLE, _ETH_P_ALL, _PRIORITY = 0xFFFFFFF1, 0xFFFF0000, 3, 1
_TCA_KIND, _TCA_OPTIONS, _ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 1, 2, 2
_U32_SEL, _U32_ACT, _U32_TERMINAL, _MATCHALL_ACT = 5, 7, 1, 2
_EGRESS_REDIRECT, _ACT_STOLEN = 1, 4

_BUFFER = 1 << 17

Socket = _socket.socket


class Link(Value):
    """An interface. master: index of its bridge, 0 = none; rx and tx: bytes since it was made, as this end counts them."""

    index: int
    name: str
    up: bool = False
    mac: str = ""
    mtu: int = 0
    master: int = 0
    kind: str = ""
    alias: str = ""
    rx: int = 0
    tx: int = 0


class Route(Value):
    """An IPv4 route. destination in CIDR notation ("0.0.0.0/0" = default); gateway "" = directly attached."""

    destination: str
    gateway: str = ""
    index: int = 0


class Address(Value):
    """An IPv4 address of an interface, "a.b.c.d/len"."""

    index: int
    address: str


class Netlink:
    """A rtnetlink socket in the network namespace at `path` ("" = the calling thread's). Use as a context manager or `close`.

    Methods raise HostError (Denied without CAP_NET_ADMIN) with the kernel's own explanation where it gives one.
    """

    def __init__(self, path: str = "") -> None:
        self._socket = open_socket(path, _NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def links(self) -> list[Link]:
        """Every interface of the namespace."""
        answers = self._ask("cannot list the interfaces", _GETLINK, DUMP, _link_header())
        return [_read_link(body) for body in answers]

    def link(self, name: str) -> Link | None:
        """One interface by name; None when there is none."""
        try:
            answers = exchange(self._socket, self._next(), _GETLINK, ACK, _link_header() + _text(_IFNAME, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise explain(f"cannot look at the interface {name}", error) from error
        return _read_link(answers[0])

    def index(self, name: str) -> int:
        """Index of an interface. Raises NotFound."""
        found = self.link(name)
        if found is None:
            raise NotFound(f"there is no network interface {name}")
        return found.index

    def create_bridge(self, name: str, mac: str, mtu: int) -> bool:
        """Make a bridge (down). False when an interface of that name exists. The explicit MAC keeps it from changing with its ports."""
        body = _link_header() + _text(_IFNAME, name) + attribute(_ADDRESS, _mac(mac)) + _number(_MTU, mtu)
        body += nest(_LINKINFO, _text(_INFO_KIND, "bridge"))
        try:
            exchange(self._socket, self._next(), _NEWLINK, ACK | _CREATE | _EXCL, body)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            hint = "modprobe bridge" if error.errno == errno.EOPNOTSUPP else ""
            raise explain(f"cannot make the bridge {name}", error, hint) from error
        return True

    def create_veth(self, name: str, peer: str, *, namespace: str, mac: str, mtu: int, master: int = 0) -> None:
        """Make a pair of interfaces, both down: `name` here, as port of the bridge with index `master`; `peer` in another namespace.

        mac: of the peer. Raises HostError also when `name` is taken.
        """
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            inner = _link_header() + _text(_IFNAME, peer) + attribute(_ADDRESS, _mac(mac)) + _number(_MTU, mtu) + _number(_NET_NS_FD, fd)
            info = _text(_INFO_KIND, "veth") + nest(_INFO_DATA, nest(_VETH_INFO_PEER, inner))
            body = _link_header() + _text(_IFNAME, name) + _number(_MTU, mtu)
            body += (_number(_MASTER, master) if master else b"") + nest(_LINKINFO, info)
            self._ask(f"cannot make the interface pair {name}", _NEWLINK, _CREATE | _EXCL, body, "modprobe veth")
        finally:
            os.close(fd)

    def set_link(self, link: int | str, *, up: bool | None = None, mac: str = "", mtu: int = 0, master: int = -1, alias: str = "") -> None:
        """Change an interface, given by index or name. Defaults leave things as they are; master 0 takes it off its bridge."""
        body = _chosen(link, _IFF_UP if up else 0, 0 if up is None else _IFF_UP)
        body += attribute(_ADDRESS, _mac(mac)) if mac else b""
        body += _number(_MTU, mtu) if mtu else b""
        body += _number(_MASTER, master) if master >= 0 else b""
        body += _text(_IFALIAS, alias) if alias else b""
        self._ask(f"cannot change the interface {link}", _SETLINK, 0, body)

    def forgo_ipv6(self, link: int | str) -> None:
        """Let an interface (down, given by index or name) come up without an IPv6 link-local address.

        It spares the host duplicate detection and listener reports on ends where nobody speaks IPv6. No IPv6 at all is fine too.
        """
        mode = nest(_AF_SPEC, nest(_AF_INET6, attribute(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE)))
        with contextlib.suppress(OSError):
            exchange(self._socket, self._next(), _SETLINK, ACK, _chosen(link) + mode)

    def set_port(self, port: int | str, *, hairpin: bool = False, learning: bool = True) -> None:
        """Change a bridge port, given by index or name.

        hairpin: the bridge may send a frame back out of the port that it came in by. learning: it remembers which MACs are behind it.
        """
        data = attribute(_BRPORT_HAIRPIN, bytes([hairpin])) + attribute(_BRPORT_LEARNING, bytes([learning]))
        body = _chosen(port) + nest(_LINKINFO, _text(_INFO_SLAVE_KIND, "bridge") + nest(_INFO_SLAVE_DATA, data))
        self._ask(f"cannot change the bridge port {port}", _NEWLINK, 0, body)

    def delete_link(self, name: str) -> bool:
        """Delete an interface (both ends of a pair). Idempotent; False when there is none."""
        try:
            exchange(self._socket, self._next(), _DELLINK, ACK, _link_header() + _text(_IFNAME, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise explain(f"cannot delete the interface {name}", error) from error
        return True

    def add_address(self, index: int, address: str) -> None:
        """Give an interface an IPv4 address "a.b.c.d/len"; one that it already has is fine."""
        text, _, length = address.partition("/")
        packed = _socket.inet_pton(_AF_INET, text)
        broadcast = (int.from_bytes(packed, "big") | (0xFFFFFFFF >> int(length))).to_bytes(4, "big")
        body = struct.pack("BBBBI", _AF_INET, int(length), 0, 0, index)
        body += attribute(1, packed) + attribute(2, packed) + attribute(4, broadcast)
        self._add(f"cannot give the address {address} to the interface with index {index}", _NEWADDR, body)

    def addresses(self) -> list[Address]:
        """Every IPv4 address of the namespace."""
        found = []
        for body in self._ask("cannot list the addresses", _GETADDR, DUMP, struct.pack("BBBBI", _AF_INET, 0, 0, 0, 0)):
            _family, length, _flags, _scope, index = struct.unpack_from("BBBBI", body)
            values = dict(attributes(body, 8))
            packed = values.get(2) or values.get(1)
            if packed:
                found.append(Address(index=index, address=f"{_socket.inet_ntop(_AF_INET, packed)}/{length}"))
        return found

    def add_route(self, destination: str, gateway: str = "", index: int = 0) -> None:
        """Add an IPv4 route; the same one being there already is fine. destination: CIDR or "default"."""
        text, _, length = ("0.0.0.0/0" if destination == "default" else destination).partition("/")
        scope = 0 if gateway else 253
        body = struct.pack("BBBBBBBBI", _AF_INET, int(length), 0, 0, 254, 3, scope, 1, 0)
        body += attribute(1, _socket.inet_pton(_AF_INET, text)) if int(length) else b""
        body += attribute(5, _socket.inet_pton(_AF_INET, gateway)) if gateway else b""
        body += _number(4, index) if index else b""
        self._add(f"cannot add the route to {destination}", _NEWROUTE, body)

    def routes(self) -> list[Route]:
        """Every IPv4 route of the namespace to somewhere else (no local, broadcast or multicast ones), in all tables."""
        found = []
        for body in self._ask("cannot list the routes", _GETROUTE, DUMP, struct.pack("BBBBBBBBI", _AF_INET, *(0,) * 8)):
            length, kind = body[1], body[7]
            if kind != 1:
                continue
            values = dict(attributes(body, 12))
            target = _socket.inet_ntop(_AF_INET, values.get(1, bytes(4)))
            gateway = _socket.inet_ntop(_AF_INET, values[5]) if 5 in values else ""
            index = struct.unpack("I", values[4])[0] if 4 in values else 0
            found.append(Route(destination=f"{target}/{length}", gateway=gateway, index=index))
        return found

    def redirect(self, source: int, target: int) -> str:
        """Send every frame that arrives at interface `source` out of interface `target`; returns the classifier that does it.

        tc-u32(8) with an empty match, or tc-matchall(8) on kernels without u32. Raises HostError when both are missing.
        """
        what = f"cannot redirect the interface with index {source}"
        header = struct.pack("BxxxiIII", 0, source, _TC_INGRESS_HANDLE, _TC_H_INGRESS, 0)
        self._add(what, _NEWQDISC, header + _text(_TCA_KIND, "ingress"), "modprobe sch_ingress")
        for kind in ("u32", "matchall"):
            try:
                exchange(self._socket, self._next(), _NEWTFILTER, ACK | _CREATE | _EXCL, _filter(kind, source, target))
                return kind
            except OSError as error:
                failure = error
        raise explain(what, failure, "modprobe -a cls_u32 act_mirred")

    def _add(self, what: str, kind: int, body: bytes, hint: str = "") -> None:
        """Create something of which it is fine that it exists."""
        try:
            exchange(self._socket, self._next(), kind, ACK | _CREATE | _EXCL, body)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise explain(what, error, hint) from error

    def _ask(self, what: str, kind: int, flags: int, body: bytes, hint: str = "") -> list[bytes]:
        try:
            return exchange(self._socket, self._next(), kind, flags if flags & DUMP == DUMP else flags | ACK, body)
        except OSError as error:
            raise explain(what, error, hint if error.errno == errno.EOPNOTSUPP else "") from error

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


def has_table(name: str) -> bool:
    """Whether the thread's namespace has the nftables table `ip NAME`. Costs one small message, no library."""
    sock = open_socket("", NETFILTER)
    try:
        # linux/netfilter/nf_tables.h: NFT_MSG_GETTABLE = 1 of subsystem 10; struct nfgenmsg {family, version, resource}.
        exchange(sock, 1, (10 << 8) | 1, ACK, struct.pack("BBH", _AF_INET, 0, 0) + _text(1, name))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise explain(f"cannot look for the nftables table {name}", error) from error
    finally:
        sock.close()
    return True


def open_socket(path: str, protocol: int) -> Socket:
    """A netlink socket in the network namespace at `path` ("" = the thread's). Raises HostError."""
    try:
        sock = netns.inside(path, lambda: _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol))
    except OSError as error:
        raise explain("cannot open a netlink socket", error) from error
    sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    return sock


def exchange(sock: Socket, sequence: int, kind: int, flags: int, body: bytes) -> list[bytes]:
    """Send one request and return the bodies of its answers. Raises OSError with the kernel's message in `strerror`."""
    sock.send(struct.pack("IHHII", 16 + len(body), kind, flags | _REQUEST, sequence, 0) + body)
    answers: list[bytes] = []
    while True:
        for answer, answer_flags, number, data in _messages(sock.recv(_BUFFER)):
            if number != sequence:
                continue
            if answer == _NLMSG_ERROR:
                _raise_error(data, answer_flags)
                return answers
            if answer == _NLMSG_DONE:
                return answers
            answers.append(data)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _port = struct.unpack_from("IHHII", data, offset)
        if length < 16 or offset + length > len(data):
            raise OSError(errno.EBADMSG, "malformed netlink message")
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _raise_error(data: bytes, flags: int) -> None:
    number = -struct.unpack_from("i", data)[0]
    if number == 0:
        return
    # Extended acknowledgement (NLM_F_ACK_TLVS): attribute 1 is a sentence. With CAP_ACK only the request's header precedes it.
    said = dict(attributes(data, 20)).get(1, b"") if flags & 0x200 else b""
    text = said.rstrip(b"\0").decode(errors="replace").strip().rstrip(".")
    raise OSError(number, f"{os.strerror(number)} ({text})" if text else os.strerror(number))


def attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute from an offset on; ends at the first malformed one."""
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, value: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, value)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _link_header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("BxHiII", 0, 0, index, flags, change)


def _chosen(link: int | str, flags: int = 0, change: int = 0) -> bytes:
    if isinstance(link, int):
        return _link_header(link, flags, change)
    return _link_header(0, flags, change) + _text(_IFNAME, link)


def _read_link(body: bytes) -> Link:
    _family, _type, index, flags, _change = struct.unpack_from("BxHiII", body)
    values = dict(attributes(body, 16))
    info = dict(attributes(values.get(_LINKINFO, b""), 0))
    statistics = values.get(_STATS64, bytes(32))
    rx, tx = struct.unpack_from("QQ", statistics, 16)
    return Link(
        index=index,
        name=_string(values.get(_IFNAME, b"")),
        up=bool(flags & _IFF_UP),
        mac=values.get(_ADDRESS, b"").hex(":"),
        mtu=struct.unpack("I", values.get(_MTU, bytes(4)))[0],
        master=struct.unpack("I", values.get(_MASTER, bytes(4)))[0],
        kind=_string(info.get(_INFO_KIND, b"")),
        alias=_string(values.get(_IFALIAS, b"")),
        rx=rx,
        tx=tx,
    )


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _filter(kind: str, source: int, target: int) -> bytes:
    """A filter that matches everything and redirects it to the egress of `target`."""
    # struct tc_mirred: index, capabilities, action, reference counts (2), direction, interface.
    mirred = attribute(_MIRRED_PARMS, struct.pack("IIiiiiI", 0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, target))
    action = nest(1, _text(_ACT_KIND, "mirred") + nest(_ACT_OPTIONS, mirred))
    if kind == "u32":
        # struct tc_u32_sel with one key that compares nothing: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask; key.
        selector = struct.pack(">BBBxHHhhI", _U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack(">IIii", 0, 0, 0, 0)
        options = attribute(_U32_SEL, selector) + nest(_U32_ACT, action)
    else:
        options = nest(_MATCHALL_ACT, action)
    protocol = _socket.htons(_ETH_P_ALL)
    header = struct.pack("BxxxiIII", 0, source, 0, _TC_INGRESS_HANDLE, (_PRIORITY << 16) | protocol)
    return header + _text(_TCA_KIND, kind) + nest(_TCA_OPTIONS, options)


def explain(what: str, error: OSError, hint: str = "") -> HostError | Denied:
    """The error to raise when the kernel refused a request."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return Denied(f"{what}: {error.strerror}", hint="run as root (sudo): this needs CAP_NET_ADMIN")
    if error.errno == errno.EXFULL:
        return NoSpace(f"{what}: the bridge has no port left (the kernel's limit is 1023)", hint="remove containers that are not needed")
    return HostError(f"{what}: {error.strerror}", hint=hint)
