"""A tap for a virtual machine in a network namespace, spliced with the interface that is there; and namespaces that others have set up."""

from __future__ import annotations

from nacre.errors import HostError, Unsupported
from nacre.linux import netns
from nacre.linux.netlink import Netlink
from nacre.model.network import Endpoint

TAP, SPLICE = "tap0", "splice0"
ADOPTED = "adopted"
_LOOPBACK, _DEFAULT = "lo", "0.0.0.0/0"


def tap(endpoint: Endpoint, owner: int = 0) -> str:
    """Make a tap interface in the endpoint's namespace and splice it with the endpoint's interface.

    owner: uid that may attach to the tap. Returns the tap's name, "" when the endpoint has loopback only (the machine gets no
    network device). The machine is to use the endpoint's MAC and MTU. Idempotent. Raises Unsupported for the network host.
    """
    if not endpoint.netns:
        raise Unsupported("a virtual machine cannot share the network of the host", hint="use --network bridge with -p, or --network none")
    if not endpoint.interface:
        return ""
    netns.create_tap(endpoint.netns, TAP, owner)
    with Netlink(endpoint.netns) as inner:
        ends = inner.index(endpoint.interface), inner.index(TAP)
        inner.set_link(ends[1], mtu=endpoint.mtu)
        try:
            inner.redirect(*ends)
            inner.redirect(*reversed(ends))
        except HostError:
            _join(inner, endpoint, ends)
        for index in ends:
            inner.set_link(index, up=True)
    return TAP


def adopt(path: str) -> Endpoint:
    """The endpoint that somebody else (an engine, a CNI plugin) has set up in the namespace at `path`, for a machine to take over.

    What arrives for the interface goes to the machine before the namespace's own stack sees it, so the machine can have its address.
    One interface and its first IPv4 address are taken; without an interface that has one there is loopback only. Raises HostError.
    """
    with Netlink(path) as inner:
        links = {link.index: link for link in inner.links() if link.name not in (_LOOPBACK, TAP, SPLICE)}
        found = next((address for address in inner.addresses() if address.index in links), None)
        if not found:
            return Endpoint(network=ADOPTED, netns=path, mtu=0)
        link = links[found.index]
        gateway = next((route.gateway for route in inner.routes() if route.index == link.index and route.destination == _DEFAULT), "")
    return Endpoint(network=ADOPTED, netns=path, interface=link.name, mac=link.mac, mtu=link.mtu, address=found.address, gateway=gateway)


def make_namespace(path: str) -> None:
    """Make a network namespace with nothing but loopback and keep it at `path`. Raises HostError."""
    netns.create(path)


def enter_namespace(path: str) -> None:
    """Move this process (its calling thread) into the namespace at `path`. Raises HostError."""
    netns.enter(path)


def remove_namespace(path: str) -> None:
    """Take away what `make_namespace` made. Idempotent. Raises HostError."""
    netns.remove(path)


def _join(inner: Netlink, endpoint: Endpoint, ends: tuple[int, int]) -> None:
    """The splice for kernels without redirection: a bridge inside the namespace.

    The machine has the interface's MAC, and a bridge keeps frames for a port's own MAC to itself, so the interface gets another one.
    """
    first, _, rest = endpoint.mac.partition(":")
    other = f"{int(first, 16) ^ 0x04:02x}:{rest}"
    inner.create_bridge(SPLICE, other, endpoint.mtu)
    bridge = inner.index(SPLICE)
    inner.set_link(ends[0], mac=other, master=bridge)
    # The host's hairpin port returns the machine's broadcasts; from them the bridge would learn the machine on the wrong side.
    inner.set_port(ends[0], learning=False)
    inner.set_link(ends[1], master=bridge)
    inner.set_link(bridge, up=True)
