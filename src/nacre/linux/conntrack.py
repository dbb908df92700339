"""Forgetting tracked flows (linux/netfilter/nfnetlink_conntrack.h).

A UDP sender that keeps its port is one flow for as long as it keeps sending, and address translation is decided by a flow's
first packet: when a port is published, or moves to another container, flows from before would never follow.
"""

from __future__ import annotations

import errno
import struct

from nacre.linux import netlink

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_ORIGINAL, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_PROTOCOL, _NUMBER, _DESTINATION_PORT, _FILTER_ORIGINAL = 2, 1, 3, 1
_BY_NUMBER, _BY_DESTINATION_PORT = 1 << 3, 1 << 5
_HEADER = struct.pack("BBH", 2, 0, 0)  # struct nfgenmsg: AF_INET


def forget(protocol: int, port: int) -> int:
    """Forget every IPv4 flow of an IP protocol (17 = UDP) that was opened towards a port; returns how many there were.

    Concerns the calling thread's network namespace. Raises HostError (Denied without CAP_NET_ADMIN); a kernel that does not
    track connections has none to forget.
    """
    sock = netlink.open_socket("", netlink.NETFILTER)
    try:
        flows = [flow for flow in _list(sock, protocol, port) if _is_towards(flow, protocol, port)]
        for number, flow in enumerate(flows, 2):
            body = b"".join(netlink.attribute(kind, flow[kind]) for kind in (_ID, _ZONE) if kind in flow)
            body += netlink.nest(_ORIGINAL, flow[_ORIGINAL])
            _delete(sock, number, _HEADER + body)
        return len(flows)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return 0
        raise netlink.explain("cannot look through the tracked connections", error) from error
    finally:
        sock.close()


def _list(sock: netlink.Socket, protocol: int, port: int) -> list[dict[int, bytes]]:
    """The flows, filtered by the kernel from version 5.8 on (older ones list them all)."""
    transport = netlink.attribute(_NUMBER, bytes([protocol])) + netlink.attribute(_DESTINATION_PORT, struct.pack(">H", port))
    wanted = netlink.nest(_ORIGINAL, netlink.nest(_TUPLE_PROTOCOL, transport))
    flags = netlink.attribute(_FILTER_ORIGINAL, struct.pack("I", _BY_NUMBER | _BY_DESTINATION_PORT))
    answers = netlink.exchange(sock, 1, _GET, netlink.DUMP, _HEADER + wanted + netlink.nest(_FILTER, flags))
    return [dict(netlink.attributes(answer, 4)) for answer in answers]


def _is_towards(flow: dict[int, bytes], protocol: int, port: int) -> bool:
    original = dict(netlink.attributes(flow.get(_ORIGINAL, b""), 0))
    transport = dict(netlink.attributes(original.get(_TUPLE_PROTOCOL, b""), 0))
    return transport.get(_NUMBER) == bytes([protocol]) and transport.get(_DESTINATION_PORT) == struct.pack(">H", port)


def _delete(sock: netlink.Socket, number: int, body: bytes) -> None:
    try:
        netlink.exchange(sock, number, _DELETE, netlink.ACK, body)
    except OSError as error:
        # It ended by itself meanwhile.
        if error.errno != errno.ENOENT:
            raise
