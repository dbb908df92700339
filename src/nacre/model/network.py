"""Networks, endpoints and published ports as values."""

from __future__ import annotations

from nacre.model.value import Value


class PortMapping(Value):
    """One published port: host address and port to container port.

    host_ip "" means every address (0.0.0.0 and the loopback of the host); host_port 0 in a request means "choose one", and
    host_port_last the end of a range of which the first free port is taken (0 = no range).
    """

    container_port: int
    host_port: int = 0
    host_port_last: int = 0
    host_ip: str = ""
    protocol: str = "tcp"

    def __str__(self) -> str:
        return f"{self.host_ip or '0.0.0.0'}:{self.host_port}->{self.container_port}/{self.protocol}"


class Network(Value):
    """A network. driver: bridge, host or none; subnet and gateway in CIDR and dotted notation for bridges."""

    name: str
    id: str
    driver: str = "bridge"
    bridge: str = ""
    subnet: str = ""
    gateway: str = ""
    mtu: int = 1500
    internal: bool = False
    created: str = ""


class Endpoint(Value):
    """How one sandbox is attached to a network; the same at every isolation level.

    netns:     path of the network namespace that holds the interface, "" = the host's own (network host).
    interface: name inside the namespace ("" = loopback only); mac in colon notation; address "a.b.c.d/len";
               gateway "" when there is none; mtu in bytes.
    The interface has no address yet: the plan gives it one (at level process in the namespace, at level vm in the guest).
    ports:     as really published, host ports chosen.
    dns, search, options: contents of /etc/resolv.conf; hosts: extra (address, name) lines of /etc/hosts.
    """

    network: str
    netns: str = ""
    interface: str = ""
    host_interface: str = ""
    mac: str = ""
    address: str = ""
    gateway: str = ""
    mtu: int = 1500
    ports: tuple[PortMapping, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
