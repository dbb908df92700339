"""Host ports, reserved by bound sockets: who may have a port is decided by the kernel, also against programs that are not containers.

A reserved socket never sees traffic, because the packet filter redirects it first. It is held by the sandbox's stem, so the port
is free the moment the sandbox ends, however it ends.
"""

from __future__ import annotations

import _socket
import errno
import os

from nacre.errors import Conflict, Denied, HostError, InvalidArgument, Unsupported
from nacre.linux import netns
from nacre.model.network import PortMapping
from nacre.network.addresses import version

_KINDS = {"tcp": _socket.SOCK_STREAM, "udp": _socket.SOCK_DGRAM}


def check(port: PortMapping) -> PortMapping:
    """A mapping in its normal form (host_ip "" for 0.0.0.0). Raises InvalidArgument or Unsupported for one that cannot be published."""
    protocol = port.protocol.lower()
    if protocol == "sctp":
        raise Unsupported(f"cannot publish {port}: SCTP is not forwarded", hint="publish TCP or UDP ports, or use --network host")
    if protocol not in _KINDS:
        raise InvalidArgument(f"cannot publish {port}: invalid protocol {port.protocol!r}", hint="use /tcp or /udp")
    if not 1 <= port.container_port <= 65535 or not 0 <= port.host_port <= 65535 or port.host_port_last > 65535:
        raise InvalidArgument(f"cannot publish {port}: invalid port", hint="ports are 1 to 65535; host port 0 chooses a free one")
    family = version(port.host_ip) if port.host_ip else 4
    if family == 6:
        raise Unsupported(f"cannot publish {port}: containers have no IPv6", hint="publish on an IPv4 address of this host")
    if family != 4:
        raise InvalidArgument(f"cannot publish {port}: {port.host_ip!r} is not an IP address")
    return port.replace(protocol=protocol, host_ip="" if port.host_ip == "0.0.0.0" else port.host_ip)


def reserve(ports: tuple[PortMapping, ...]) -> tuple[tuple[PortMapping, ...], list[int]]:
    """Bind every host port (0: one that the kernel chooses) and return the final mappings and the open descriptors.

    All or nothing. Raises Conflict when a port is taken (Docker's words), InvalidArgument for a host address that is not of this
    host, and as `check`.
    """
    chosen: list[PortMapping] = []
    held: list[int] = []
    try:
        for port in ports:
            mapping = check(port)
            fd, number = _bind_any(mapping)
            held.append(fd)
            chosen.append(mapping.replace(host_port=number, host_port_last=0))
    except BaseException:
        for fd in held:
            os.close(fd)
        raise
    return tuple(chosen), held


def _bind_any(port: PortMapping) -> tuple[int, int]:
    """Bind the mapping's port, or the first free one of its range. Raises Conflict when all are taken."""
    for number in range(port.host_port, port.host_port_last):
        try:
            return _bind(port.replace(host_port=number))
        except Conflict:
            continue
    return _bind(port.replace(host_port=max(port.host_port, port.host_port_last)))


def _bind(port: PortMapping) -> tuple[int, int]:
    sock = _socket.socket(_socket.AF_INET, _KINDS[port.protocol] | _socket.SOCK_CLOEXEC)
    try:
        try:
            sock.bind((port.host_ip or "0.0.0.0", port.host_port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port.protocol != "tcp":
                raise
            sock.close()
            sock = _bind_after_use(port)
    except OSError as error:
        sock.close()
        raise _explain(port, error) from error
    number = sock.getsockname()[1]
    return sock.detach(), number


def _bind_after_use(port: PortMapping) -> _socket.socket:
    """Bind a port on which closed connections still linger (TIME_WAIT), as a server would.

    SO_REUSEADDR alone would let two idle sockets share the port; listening makes the kernel refuse the second one.
    """
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind((port.host_ip or "0.0.0.0", port.host_port))
        sock.listen(0)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(port: PortMapping, error: OSError) -> HostError | Conflict | InvalidArgument | Denied:
    what = f"Bind for {port.host_ip or '0.0.0.0'}:{port.host_port} failed"
    if error.errno == errno.EADDRINUSE:
        option = "-tlnp" if port.protocol == "tcp" else "-ulnp"
        return Conflict(
            f"{what}: port is already allocated", hint=f"choose another host port; who has it: ss {option} 'sport = :{port.host_port}'"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidArgument(f"{what}: cannot assign requested address", hint="use an address of this host (ip -4 address), or none")
    if error.errno == errno.EACCES:
        return Denied(
            f"{what}: permission denied",
            hint=f"choose a host port from {_first_free()} on, or as root: sysctl -w net.ipv4.ip_unprivileged_port_start={port.host_port}",
        )
    return HostError(f"{what}: {error.strerror}")


def _first_free() -> str:
    """The first port that an ordinary user may bind (ip-sysctl.rst)."""
    return netns.read_sysctl("net/ipv4/ip_unprivileged_port_start") or "1024"
