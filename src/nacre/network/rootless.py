"""`RootlessNetwork`: the same networks for an engine that may not change the host's network.

Everything that `NetworkManager` makes (the bridge, the packet filter, the endpoints) it makes here inside one network namespace
of the user, `<run>/netns-home`. What leads out of it:

* the **uplink**: a process of user-mode networking, pasta or slirp4netns, which is kept by the user's home sandbox. It carries what
  containers send to the outside, as if this user's own programs had sent it;
* a **forwarder** per container with published ports (`nacre.network.forward`), which has bound the host's ports in the host's namespace
  and hands connections on inside. It ends when the descriptor is closed that the container's stem holds.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterable

from nacre.errors import Conflict, HostError, InvalidArgument
from nacre.linux import netns
from nacre.linux.netlink import Netlink
from nacre.model.network import Endpoint, PortMapping
from nacre.model.plan import Code, Spawn, op
from nacre.network import ports as host_ports
from nacre.network.bridge import taken
from nacre.network.files import parse_resolver
from nacre.network.manager import BRIDGE, NetworkManager, read_resolv_conf
from nacre.store.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

HOME, UPLINK = "netns-home", "uplink0"
# Addresses at which an uplink passes queries on to the host's resolver, by its program.
RESOLVERS = {"pasta": "169.254.1.1", "slirp4netns": "10.0.2.3"}
VARIABLE = "NACRE_UPLINK"
_PATIENCE = 30.0
_SIGKILL = 9
_BACKLOG = 4096

# Runs a plan in the home sandbox until `ready` says so; answers "" then, else what the program said at its end.
Keep = Callable[[Spawn, Callable[[], bool]], str]


def commands(path: str) -> dict[str, tuple[str, ...]]:
    """The command lines that make an uplink of the network namespace at `path`, the best first.

    With none of them can a container reach the host's loopback.
    """
    return {
        "pasta": (
            *("pasta", "--foreground", "--quiet", "--config-net", "--ipv4-only", "--ns-ifname", UPLINK, "--no-map-gw"),
            *("--dns-forward", RESOLVERS["pasta"]),
            *("-t", "none", "-u", "none", "-T", "none", "-U", "none", "--netns", path),
        ),
        "slirp4netns": (
            *("slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path", path, UPLINK),
        ),
    }  # fmt: skip


def uplinks() -> tuple[str, ...]:
    """The programs on this host that can be an uplink, the best first, or the one that NACRE_UPLINK names. Raises InvalidArgument."""
    from nacre.linux.run import find_program, run

    known = tuple(commands(""))
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in known:
        raise InvalidArgument(f"{VARIABLE}={wanted}: no such program is known", hint=f"one of {', '.join(known)}")
    found = tuple(name for name in ((wanted,) if wanted else known) if find_program(name))
    if len(found) > 1 and _is_early(run(["pasta", "--version"]).stdout.decode(errors="replace")):
        return found[::-1]
    return found


def _is_early(text: str) -> bool:
    """Whether pasta is from before 2024, or does not say: those lose the end of connections that both sides close at once."""
    import re

    found = re.search(r"(20[2-9]\d)_?(\d\d)_?\d\d", text)
    return not found or found[1] < "2024"


def obstacles() -> list[tuple[str, str]]:
    """What stands in the way of an ordinary user's networks on this host: (problem, way out) for each."""
    from nacre.linux import nft

    found = []
    if not nft.available():
        found.append(("nftables is not installed: no networks, no published ports", "apt-get install nftables"))
    if not uplinks():
        found.append(("neither pasta nor slirp4netns is installed: containers of an ordinary user have no network", _INSTALL))
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        found.append(("/dev/net/tun cannot be opened by this user: its containers have no network", "as root: chmod 666 /dev/net/tun"))
    return found


class RootlessNetwork(NetworkManager):
    """Networks and endpoints of an ordinary user's engine. keep: starts the uplink (see `Keep`)."""

    def __init__(self, root: str, run: str, keep: Keep) -> None:
        super().__init__(root, run)
        self._home = f"{run}/{HOME}"
        self._keep = keep

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
        """As `NetworkManager.attach`. Host ports are bound on the host: those below net.ipv4.ip_unprivileged_port_start are Denied."""

        def connect(published: tuple[PortMapping, ...] = ()) -> tuple[Endpoint, list[int]]:
            return NetworkManager.attach(
                self, container_id, network, hostname, published, mac=mac, address=address, dns=dns, search=search, options=options
            )

        if self.inspect(network).name != BRIDGE:
            return connect()
        self._connect_outside()
        # Servers on the host's loopback are out of a container's reach, but not out of that of the uplink.
        dns = dns or ((RESOLVERS[self.uplink()],) if self.uplink() in RESOLVERS and _is_local(read_resolv_conf()) else ())
        published, sockets = host_ports.reserve(ports)
        try:
            # Now: who connects before the forwarder runs shall wait for it.
            _listen(fd for port, fd in zip(published, sockets, strict=True) if port.protocol == "tcp")
            endpoint, held = netns.inside(self._home, lambda: connect(published))
            if published:
                held.append(self._forward(container_id, endpoint, sockets))
        finally:
            for fd in sockets:
                os.close(fd)
        return endpoint, held

    def detach(self, container_id: str) -> None:
        """As `NetworkManager.detach`; the host's ports are free when it returns."""
        self._end_forwarder(container_id)
        if os.path.exists(self._file(container_id)):
            self._inside(lambda: NetworkManager.detach(self, container_id))

    def sweep(self, alive: Collection[str] | Callable[[], Collection[str]] = ()) -> list[str]:
        """As `NetworkManager.sweep`."""
        return self._inside(lambda: NetworkManager.sweep(self, alive))

    def restore(self, endpoints: Iterable[Endpoint] = ()) -> None:
        """As `NetworkManager.restore`, and the uplink of those that need it."""
        if self._living():
            self._connect_outside()
        self._inside(lambda: NetworkManager.restore(self, endpoints))

    def stats(self, endpoint: Endpoint) -> tuple[int, int]:
        """As `NetworkManager.stats`."""
        return self._inside(lambda: NetworkManager.stats(self, endpoint)) if endpoint.host_interface else (0, 0)

    def diagnose(self) -> list[tuple[str, str]]:
        """As `obstacles`."""
        return obstacles()

    def uplink(self) -> str:
        """The program that carries traffic to the outside, for `nacre info`."""
        with contextlib.suppress(OSError), open(f"{self._state}/uplink", encoding="ascii") as file:
            return file.read().strip()
        return next(iter(uplinks()), "none")

    def _reserve(self, ports: tuple[PortMapping, ...]) -> tuple[tuple[PortMapping, ...], list[int]]:
        # They are bound on the host; inside, the packet filter alone leads to them.
        return ports, []

    def _inside(self, function: Callable[[], T]) -> T:
        """Run a function in the user's network namespace, made when it is not there."""
        if not self._is_there():
            with self._uplink_lock():
                if not self._is_there():
                    netns.create(self._home)
        return netns.inside(self._home, function)

    def _is_there(self) -> bool:
        """Is the namespace's name a mount? An empty file is left when the mount namespace that had it is gone."""
        try:
            return os.stat(self._home).st_dev != os.stat(self._run).st_dev
        except FileNotFoundError:
            return False

    def _uplink_lock(self) -> Lock:
        return Lock(f"{self._state}/uplink.lock", wait=_PATIENCE, busy="another command of yours is connecting the network")

    # -- to the outside

    def _connect_outside(self) -> None:
        """Start the uplink unless it is there. Raises HostError with what each program said."""
        if self._is_there() and self._has_uplink():
            return
        if self._bridge.record() is None:
            with Netlink() as netlink:
                self._bridge.avoid = taken(netlink)
        with self._uplink_lock():
            if not self._is_there():
                netns.create(self._home)
            elif self._has_uplink():
                return
            self._start_uplink()

    def _has_uplink(self) -> bool:
        """Is there an interface that leads out? It goes with the process that serves it. Its address comes after it is up."""

        def look() -> bool:
            with Netlink() as netlink:
                link = netlink.link(UPLINK)
                return link is not None and link.up and any(route.index == link.index and route.gateway for route in netlink.routes())

        return netns.inside(self._home, look)

    def _start_uplink(self) -> None:
        programs = uplinks()
        if not programs:
            raise HostError(
                "an ordinary user's containers reach the outside through pasta or slirp4netns, and neither is installed",
                hint=f"as root: {_INSTALL}; or use --network none or --network host",
            )
        said = []
        for name in programs:
            plan = _plan(commands(self._home)[name], f"{self._state}/uplink.log")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(plan.log)
            reason = self._keep(plan, self._has_uplink)
            if not reason:
                with open(f"{self._state}/uplink", "w", encoding="ascii") as file:
                    file.write(name)
                return
            said.append(f"{name}: {_last_words(plan.log) or reason}")
        raise HostError(
            f"the network of this user's containers could not be connected: {'; '.join(said)}",
            hint="use --network none or --network host, or another program: NACRE_UPLINK=slirp4netns",
        )

    # -- from the outside

    def _forward(self, container_id: str, endpoint: Endpoint, sockets: list[int]) -> int:
        """Start the forwarder of a container. Returns the descriptor with whose closing it ends."""
        from nacre.linux.process import spawn

        os.makedirs(f"{self._state}/forwarders", 0o711, exist_ok=True)
        lock = Lock(f"{self._state}/forwarders/{container_id}", wait=_PATIENCE)
        ending, hold = os.pipe2(os.O_CLOEXEC)
        try:
            address = endpoint.address.partition("/")[0]
            targets = [f"{port.protocol}:{fd}:{address}:{port.container_port}" for port, fd in zip(endpoint.ports, sockets, strict=True)]
            package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            code = f"import sys; sys.path.insert(0, {package!r}); from nacre.network.forward import main; main()"
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            try:
                pid = spawn(
                    [sys.executable, "-I", "-S", "-B", "-c", code, self._home, str(ending), str(lock.fd), *targets],
                    env={},
                    keep=(ending, lock.fd, *sockets),
                    stdio=(null, null, null),
                )
            finally:
                os.close(null)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                raise HostError(
                    "the forwarder of published ports could not be started", hint="see that Python works: python3 -I -S -c pass"
                )
        except BaseException:
            os.close(hold)
            raise
        finally:
            os.close(ending)
            lock.release()
        return hold

    def _end_forwarder(self, container_id: str) -> None:
        """Wait until the forwarder has let go of the ports: it ends by itself with the stem; one that does not is killed."""
        path = f"{self._state}/forwarders/{container_id}"
        if not os.path.exists(path):
            return
        for late in (False, True):
            try:
                Lock(path, create=False, wait=2.0, busy=f"the forwarder of container {container_id[:12]} does not end").release()
                break
            except Conflict:
                if late:
                    raise
                with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
                    os.kill(int(file.read()), _SIGKILL)
            except FileNotFoundError:
                return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


_INSTALL = "apt-get install passt slirp4netns"


def _is_local(text: str) -> bool:
    """Whether every name server of a resolv.conf is on the host's loopback."""
    servers = parse_resolver(text).servers
    return bool(servers) and all(server == "::1" or server.startswith("127.") for server in servers)


def _listen(sockets: Iterable[int]) -> None:
    for fd in sockets:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)
        try:
            # Its closed connections linger, and must not keep the port from the next container.
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.listen(_BACKLOG)
        finally:
            sock.detach()


def _plan(argv: tuple[str, ...], log: str) -> Spawn:
    """A program that ends with the home sandbox."""
    from nacre.linux.run import search_path

    return Spawn(ops=(op(Code.DEATH, _SIGKILL), op(Code.EXEC, len(argv), *argv, f"PATH={search_path()}")), log=log, console=True)


def _last_words(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
        return "; ".join(line for line in lines if "syslog" not in line)[-300:]
    return ""
