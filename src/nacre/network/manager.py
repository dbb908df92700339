"""`NetworkManager`: gives a sandbox its network and takes it away again. The same at every isolation level.

State, all of it below two directories::

    <root>/network/bridge.json          the default network (durable)
    <run>/network/lock                  shared by attach and detach, exclusive for making the bridge and for sweeping
    <run>/network/ports.lock            one writer of published ports at a time
    <run>/network/rules                 version of the packet filter in place
    <run>/network/leases/ADDRESS        symbolic link to the id of the container that has it
    <run>/network/endpoints/ID          the endpoint, written before anything of it is made; locked (flock) through the
                                        descriptors that `attach` returned, that is by the sandbox's stem
    <run>/netns/ID                      the network namespace

A killed call leaves at most an endpoint that nobody has locked; `sweep` (and the next `attach` of that container) removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator

from nacre.errors import Denied, HostError, InvalidArgument, NoSpace, NotFound
from nacre.linux import netns
from nacre.linux.netlink import Netlink
from nacre.model import jsontext
from nacre.model.network import Endpoint, Network, PortMapping
from nacre.model.value import Value
from nacre.network import ports as host_ports
from nacre.network import rules, splice
from nacre.network.addresses import Subnet, to_int
from nacre.network.bridge import Bridge
from nacre.network.files import STUB, Resolver, needs_stub, resolver
from nacre.network.leases import Leases
from nacre.store.lock import Lock, is_locked

BRIDGE, HOST, NONE = "bridge", "host", "none"
INTERFACE = "eth0"
_PATIENCE = 60  # seconds to wait for another process; its longest step, making the bridge, takes milliseconds

# Networks that exist everywhere; their ids are fixed, as nothing about them is chosen.
_HOST = Network(name=HOST, id="1" * 64, driver="host", mtu=0)
_NONE = Network(name=NONE, id="0" * 64, driver="null", mtu=0)


class NetworkManager:
    """Networks and endpoints of one engine. Any number of processes may use the same directories at once.

    root, run: the engine's durable and run-time directories. bridge: name of the default network's interface (NACRE_BRIDGE,
    nacre0); subnet: its subnet when it is made ("" = NACRE_SUBNET, else a free one). Creates its directories; raises HostError
    when that fails.
    """

    def __init__(self, root: str, run: str, *, bridge: str = "", subnet: str = "") -> None:
        self._run = run
        self._state = f"{run}/network"
        with _disk(self._state):
            for path in (f"{root}/network", f"{self._state}/leases", f"{self._state}/endpoints"):
                os.makedirs(path, mode=0o711, exist_ok=True)
        name = bridge or os.environ.get("NACRE_BRIDGE", "") or "nacre0"
        wanted = subnet or os.environ.get("NACRE_SUBNET", "")
        self._bridge = Bridge(name, f"{root}/network/bridge.json", f"{self._state}/rules", wanted)
        self._leases = Leases(f"{self._state}/leases")

    def attach(
        self,
        container_id: str,
        network: str = BRIDGE,
        hostname: str = "",
        ports: tuple[PortMapping, ...] = (),
        *,
        mac: str = "",
        address: str = "",
        dns: tuple[str, ...] = (),
        search: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ) -> tuple[Endpoint, list[int]]:
        """Connect a sandbox to a network.

        container_id: names everything that is made. hostname: shown as the alias of the host's interface. ports: host_port 0 chooses
        one; ignored on the networks host and none, as Docker does. mac, address: "" = chosen. dns, search, options: instead of the host's
        (see `files.resolver`).

        Returns the endpoint and open descriptors (close-on-exec): the reserved host ports and the endpoint's lock. Whoever keeps
        them open (the sandbox's stem) keeps ports and endpoint; the caller closes its own copies.
        Raises NotFound (network), Conflict (port, address or container taken), InvalidArgument, Unsupported, NoSpace, HostError; nothing
        is left behind then.
        """
        name = self.inspect(network).name
        _check(container_id, mac)
        names = _read_resolver(dns, search, options, own_loopback=name == HOST)
        endpoint = Endpoint(network=name, mtu=0, dns=names.servers, search=names.search, options=names.options)
        if name == HOST:
            return endpoint, []
        endpoint = endpoint.replace(netns=f"{self._run}/netns/{container_id}")
        with _disk(self._state), Netlink() as netlink, self._enter(netlink, name) as place:
            held = [self._claim(netlink, container_id)]
            try:
                if place is None:
                    _save(held[0], endpoint)
                    netns.create(endpoint.netns)
                else:
                    wanted = endpoint.replace(mac=mac, address=address, ports=ports)
                    endpoint = self._connect(netlink, container_id, wanted, place, hostname, held)
            except BaseException:
                with contextlib.ExitStack() as undo:
                    undo.callback(_close_all, held)
                    self._dismantle(netlink, container_id)
                raise
        return endpoint, held

    def detach(self, container_id: str) -> None:
        """Take a sandbox off its network: published ports, interface, namespace and address. Idempotent.

        Every step is tried; what could not be removed is tried again by the next `detach` or `sweep`. Raises HostError.
        """
        _check(container_id)
        if not os.path.exists(self._file(container_id)):
            return
        with _disk(self._state), Netlink() as netlink, self._lock(shared=True):
            self._dismantle(netlink, container_id)

    def tap(self, endpoint: Endpoint, owner: int = 0) -> str:
        """Make a tap interface for a virtual machine in the endpoint's namespace and splice it with the endpoint's interface.

        owner: uid that may attach to the tap. Returns the tap's name, "" when the endpoint has loopback only (the machine gets no
        network device). The machine is to use the endpoint's MAC and MTU. Idempotent. Raises Unsupported for the network host.
        """
        return splice.tap(endpoint, owner)

    def networks(self) -> tuple[Network, ...]:
        """Every network. The id and subnet of `bridge` are "" before its first use."""
        bridge = self._bridge.record() or Network(name=BRIDGE, id="", bridge=self._bridge.name)
        return bridge, _HOST, _NONE

    def inspect(self, name: str) -> Network:
        """The network with a name ("default" is another one for bridge) or id (at least 12 digits of it). Raises NotFound."""
        for network in self.networks():
            if name in (network.name, network.id) or (network.name == BRIDGE and name == "default"):
                return network
            if len(name) >= 12 and network.id.startswith(name):
                return network
        raise NotFound(f"network {name} not found", hint="there are: bridge, host, none")

    def sweep(self, alive: Collection[str] | Callable[[], Collection[str]] = ()) -> list[str]:
        """Remove what belongs to no living sandbox: endpoints that nobody holds (see `attach`) and that are not in `alive`.

        alive: ids of containers to spare whatever the locks say, or a function that returns them (called when no attach is under
        way). Returns the ids whose remains were removed. Raises HostError.
        """
        removed = []
        with _disk(self._state), Netlink() as netlink, self._lock():
            spared = alive() if callable(alive) else alive
            for container_id in sorted(self._known() - set(spared)):
                if not is_locked(self._file(container_id)):
                    self._dismantle(netlink, container_id)
                    removed.append(container_id)
            self._remove_strays()
        return removed

    def restore(self, endpoints: Iterable[Endpoint] = ()) -> None:
        """Put back what a firewall restart or an `ip link delete` took away: bridge, rules, connections and published ports of
        every endpoint that is held and of those given. Idempotent. Raises HostError, Conflict.
        """
        with _disk(self._state), Netlink() as netlink, self._lock():
            wanted = {endpoint.netns: endpoint for endpoint in (*self._living(), *endpoints) if endpoint.host_interface}
            if wanted or self._bridge.record():
                self._bridge.make(netlink, tuple(wanted.values()))

    def stats(self, endpoint: Endpoint) -> tuple[int, int]:
        """Bytes (received, sent) by the sandbox since it was attached; (0, 0) without an interface of its own."""
        if not endpoint.host_interface:
            return 0, 0
        with Netlink() as netlink:
            link = netlink.link(endpoint.host_interface)
        # The host's end counts the other way round.
        return (link.tx, link.rx) if link else (0, 0)

    def uplink(self) -> str:
        """What carries traffic to the outside, for `nacre info`."""
        return "the host's routing"

    def diagnose(self) -> list[tuple[str, str]]:
        """What on this host stands in the way of container networks: (problem, way out) for each. For `nacre doctor`."""
        from nacre.linux import nft

        found = []
        if not nft.available():
            return [("nftables is not installed: no networks, no published ports", "apt-get install nftables")]
        try:
            answer = nft.execute("list ruleset ip\nlist ruleset inet\n")
        except HostError as error:
            return [(error.message, error.hint)]
        chain = rules.drops_forwarding(answer.output) if answer.ok else ""
        if chain:
            rule = f"nft insert rule {chain}"
            way = f"{rule} iifname {self._bridge.name} accept; {rule} oifname {self._bridge.name} accept"
            found.append((f"another firewall drops forwarded packets (chain {chain}): containers reach nothing outside", way))
        if netns.read_sysctl("net/ipv4/ip_forward") == "" or not os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK):
            found.append(("net.ipv4.ip_forward cannot be set here", "sysctl -w net.ipv4.ip_forward=1 on the host"))
        return found

    @contextlib.contextmanager
    def _enter(self, netlink: Netlink, name: str) -> Iterator[_Place | None]:
        """Hold the shared lock with the network in place; None for networks without a bridge."""
        if name != BRIDGE:
            with self._lock(shared=True):
                yield None
            return
        for _ in range(5):
            with self._lock(shared=True):
                found = self._bridge.ready(netlink)
                if found:
                    yield _Place(network=found[0], bridge=found[1].index)
                    return
            with self._lock():
                if self._bridge.ready(netlink) is None:
                    self._bridge.make(netlink, self._living())
        raise HostError("the network bridge is removed by somebody as fast as it is made", hint="see: ip monitor link; nft monitor")

    def _connect(self, netlink: Netlink, container_id: str, wanted: Endpoint, place: _Place, hostname: str, held: list[int]) -> Endpoint:
        """Reserve, record, make. Descriptors are added to `held` as soon as they are open."""
        published, sockets = self._reserve(wanted.ports)
        held += sockets
        subnet = Subnet.parse(place.network.subnet)
        address = self._leases.take(container_id, subnet, wanted.address)
        endpoint = wanted.replace(
            interface=INTERFACE,
            host_interface=f"nv{container_id[:7]}{os.urandom(3).hex()}",
            # Made from the address, so that neighbours' ARP caches stay right when an address is given out again.
            mac=wanted.mac or "02:6e:" + to_int(address).to_bytes(4, "big").hex(":"),
            address=f"{address}/{subnet.length}",
            gateway=place.network.gateway,
            mtu=place.network.mtu,
            ports=published,
        )
        _save(held[0], endpoint)
        netns.create(endpoint.netns)
        netlink.create_veth(
            endpoint.host_interface, INTERFACE, namespace=endpoint.netns, mac=endpoint.mac, mtu=endpoint.mtu, master=place.bridge
        )
        netlink.forgo_ipv6(endpoint.host_interface)
        netlink.set_link(endpoint.host_interface, up=True, alias=hostname)
        if published:
            # A container that calls its own published port: where bridge-nf-call-iptables is on, the answer is bridged, not routed.
            netlink.set_port(endpoint.host_interface, hairpin=True)
            with self._ports_lock():
                self._bridge.publish(endpoint)
        return endpoint

    def _reserve(self, ports: tuple[PortMapping, ...]) -> tuple[tuple[PortMapping, ...], list[int]]:
        """The final mappings and the descriptors that keep their host ports."""
        return host_ports.reserve(ports)

    def _dismantle(self, netlink: Netlink, container_id: str) -> None:
        """Remove everything that bears the id. The record goes last, so that a failed or killed call can be repeated.

        The interface is set down, which cuts it off at once; the kernel deletes it together with the namespace, in the background
        (waiting for that would take 10 to 30 ms). That is also why its name is used only once.
        """
        endpoint = self._load(container_id)
        with contextlib.ExitStack() as steps:
            # In reverse order; each is tried even if others fail.
            steps.callback(self._leases.release, container_id, endpoint.address.partition("/")[0] if endpoint else "")
            steps.callback(netns.remove, f"{self._run}/netns/{container_id}")
            if endpoint and endpoint.host_interface:
                steps.callback(_cut_off, netlink, endpoint.host_interface)
            if endpoint and endpoint.ports:
                steps.callback(self._withdraw, endpoint)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file(container_id))

    def _withdraw(self, endpoint: Endpoint) -> None:
        with self._ports_lock():
            self._bridge.withdraw(endpoint)

    def _remove_strays(self) -> None:
        """Leases and namespaces without an endpoint. Under the exclusive lock, so nobody is about to record one."""
        owners = {container_id: self._load(container_id) for container_id in self._known()}
        for address, holder in self._leases.items():
            endpoint = owners.get(holder)
            if endpoint is None or endpoint.address.partition("/")[0] != address:
                self._leases.drop(address)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(f"{self._run}/netns"):
                if name not in owners:
                    netns.remove(f"{self._run}/netns/{name}")

    def _claim(self, netlink: Netlink, container_id: str) -> int:
        """Lock the endpoint's (empty) file, after clearing what an earlier, dead holder left. Returns the descriptor."""
        path = self._file(container_id)
        busy = f"container {container_id[:12]} is connected to a network already"
        while True:
            is_new = not os.path.exists(path)
            lock = Lock(path, wait=1, busy=busy)
            try:
                if not is_new:
                    self._dismantle(netlink, container_id)
                # Whoever removed the endpoint removed the name of the file; a lock on it protects nothing.
                if _is_same_file(lock.fd, path):
                    return lock.fd
            except BaseException:
                lock.release()
                raise
            lock.release()

    def _lock(self, *, shared: bool = False) -> Lock:
        return Lock(
            f"{self._state}/lock", shared=shared, wait=_PATIENCE, busy=f"networks are being changed for {_PATIENCE} s by another process"
        )

    def _ports_lock(self) -> Lock:
        return Lock(
            f"{self._state}/ports.lock", wait=_PATIENCE, busy=f"published ports are being changed for {_PATIENCE} s by another process"
        )

    def _file(self, container_id: str) -> str:
        return f"{self._state}/endpoints/{container_id}"

    def _known(self) -> set[str]:
        return set(os.listdir(f"{self._state}/endpoints"))

    def _load(self, container_id: str) -> Endpoint | None:
        """The recorded endpoint; None when there is none (yet): then nothing of it was made but perhaps a lease."""
        try:
            with open(self._file(container_id), "rb") as file:
                return Endpoint.from_data(jsontext.loads(file.read()))
        except (OSError, ValueError, InvalidArgument):
            return None

    def _living(self) -> tuple[Endpoint, ...]:
        """The endpoints with an interface whose lock is held: not what a reboot or a kill left in the directory."""
        found = (self._load(container_id) for container_id in sorted(self._known()) if is_locked(self._file(container_id)))
        return tuple(endpoint for endpoint in found if endpoint is not None and endpoint.host_interface)


def owns_network() -> bool:
    """Whether this process may change the network it is in: on the host, or in a network that belongs to its user namespace."""
    from nacre.linux import userns

    return userns.is_initial() or userns.owns_network()


class _Place(Value):
    """Where to connect to: the network and the index of its bridge's interface."""

    network: Network
    bridge: int


@contextlib.contextmanager
def _disk(path: str) -> Iterator[None]:
    """Say what a failing system call on the state of networks means."""
    try:
        yield
    except OSError as error:
        reason = f"cannot keep the state of networks in {path}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(reason, hint=f"free space or inodes there: df {path}; df -i {path}") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Denied(reason, hint="run as root (sudo)") from error
        raise HostError(reason) from error


def _save(fd: int, endpoint: Endpoint) -> None:
    """Write the record into the locked file: once, in one write, so a killed call leaves it whole or empty."""
    os.write(fd, jsontext.dumps(endpoint.to_data()).encode())


def _cut_off(netlink: Netlink, interface: str) -> None:
    if netlink.link(interface) is not None:
        netlink.set_link(interface, up=False)


def _check(container_id: str, mac: str = "") -> None:
    plain = container_id.translate({ord(character): None for character in "-_."})
    if not plain.isalnum() or not plain.isascii() or container_id[0] == ".":
        raise InvalidArgument(f"{container_id!r} is not a container id")
    octets = mac.split(":") if mac else ["02"] * 6
    try:
        valid = len(octets) == 6 and all(len(octet) == 2 and int(octet, 16) >= 0 for octet in octets) and int(octets[0], 16) & 1 == 0
    except ValueError:
        valid = False
    if not valid:
        raise InvalidArgument(f"invalid MAC address {mac!r}", hint="six octets, the first one even, such as 02:00:5e:10:00:01")


def _read_resolver(dns: tuple[str, ...], search: tuple[str, ...], options: tuple[str, ...], *, own_loopback: bool) -> Resolver:
    """The resolver for a container of this host."""
    text = read_resolv_conf(own_loopback=own_loopback)
    return resolver(text, dns=dns, search=search, options=options, own_loopback=own_loopback)


def read_resolv_conf(*, own_loopback: bool = False) -> str:
    """The host's resolv.conf, or the one behind systemd-resolved. own_loopback: for who shares the host's loopback."""
    text = _read_text("/etc/resolv.conf")
    return (_read_text(STUB) or text) if needs_stub(text) and not own_loopback else text


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
    descriptors.clear()
