"""Control groups that systemd makes: transient scopes over D-Bus.

The service manager of the host (PID 1) for root, that of the user otherwise. A scope is delegated: below it, and in its files,
we do as we please; what systemd knows of the limits it is told as properties, so that it does not undo them. Sources:
org.freedesktop.systemd1(5), systemd.resource-control(5), https://systemd.io/CONTROL_GROUP_INTERFACE and CGROUP_DELEGATION;
runc's docs/systemd.md for the table of properties.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence

from nacre.errors import Conflict, HostError, InvalidArgument, RemoteError, Unsupported
from nacre.isolation.groups import Group, own_groups
from nacre.linux import cgroups
from nacre.linux.cgroups import Cgroup, Layout, read
from nacre.linux.cgroups_limits import swap_only, weight_of_shares
from nacre.linux.devices import DeviceRule
from nacre.wire import dbus
from nacre.wire.dbus import Message, Variant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Property = tuple[str, Variant]

SERVICE = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
ROOT = "/org/freedesktop/systemd1"
_BUS = "org.freedesktop.DBus"
_PRIVATE, _SYSTEM = "/run/systemd/private", "/run/dbus/system_bus_socket"
_NO_SUCH_UNIT, _UNIT_EXISTS = "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.UnitExists"
_INFINITY = (1 << 64) - 1
_PATIENCE = 30.0  # seconds for one job
_STEP = 0.02


class BusError(RemoteError):
    """The service answered a call with an error. name: of the error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"systemd: {text or name}")
        self.name = name


class Bus:
    """A connection to a service manager, its own socket or a message bus; one call at a time.

    path: of the socket. Raises Unsupported when nobody listens there, RemoteError when it is no D-Bus.
    """

    def __init__(self, path: str, *, broker: bool) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._decoder = dbus.Decoder()
        self._serial = 0
        self._inbox: list[Message] = []
        self._signals: list[Message] = []
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(path)
            self._greet()
            if broker:
                self.call(_BUS, "/org/freedesktop/DBus", _BUS, "Hello")
                match = f"type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'"
                self.call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", match)
                self.call(SERVICE, ROOT, MANAGER, "Subscribe")
        except OSError as error:
            self.close()
            raise Unsupported(
                f"systemd cannot be reached at {path.replace(chr(0), '@')}: {error.strerror or error}",
                hint="use the cgroupfs manager on a host without systemd",
            ) from error
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        self._socket.sendall(dbus.greeting(_uid()))
        line = b""
        while not line.endswith(b"\r\n"):
            piece = self._socket.recv(1)
            if not piece or len(line) > 512:
                raise RemoteError("systemd: the connection was closed during authentication", hint="only root and the user itself may")
            line += piece
        if not dbus.accepted(line):
            raise RemoteError(f"systemd: authentication was refused: {line.decode(errors='replace').strip()}")

    def call(self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        """One method call; the values of the answer. Raises BusError, RemoteError."""
        self._serial += 1
        serial = self._serial
        to = Message(kind=dbus.CALL, serial=serial, destination=destination, path=path, interface=interface, member=member)
        message = to.replace(signature=signature, body=body)
        try:
            self._socket.sendall(dbus.encode(message))
            while (found := self._next()).kind not in (dbus.RETURN, dbus.ERROR) or found.reply_to != serial:
                self._keep(found)
        except TimeoutError as error:
            raise RemoteError(f"systemd did not answer {member} within {_PATIENCE:g} s") from error
        except OSError as error:
            raise RemoteError(f"systemd: the connection broke: {error.strerror}") from error
        if found.kind == dbus.ERROR:
            raise BusError(found.error, str(found.body[0]) if found.body else "")
        return found.body

    def manager(self, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        """A call of the manager. Raises as `call` does."""
        return self.call(SERVICE, ROOT, MANAGER, member, signature, *body)

    def job(self, member: str, signature: str, *body: Any) -> str:
        """A call that starts a job; waits until that is done: "done", "failed", "canceled", "dependency" ... Raises as `call` does."""
        [path] = self.manager(member, signature, *body)
        deadline = time.monotonic() + _PATIENCE
        while True:
            for message in self._signals:
                if message.member == "JobRemoved" and len(message.body) == 4 and message.body[1] == path:
                    self._signals.remove(message)
                    return str(message.body[3])
            if time.monotonic() > deadline:
                raise RemoteError(f"systemd did not finish {member} within {_PATIENCE:g} s", hint="see: systemctl list-jobs")
            try:
                self._keep(self._next())
            except OSError as error:
                raise RemoteError(f"systemd: the connection broke: {error}") from error

    def _next(self) -> Message:
        while not self._inbox:
            data = self._socket.recv(65536)
            if not data:
                raise RemoteError("systemd closed the connection")
            self._inbox += self._decoder.feed(data)
        return self._inbox.pop(0)

    def _keep(self, message: Message) -> None:
        if message.kind == dbus.SIGNAL and message.interface == MANAGER:
            self._signals = [*self._signals[-255:], message]

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


def _uid() -> int:
    """Our user as the peer sees it, outside of our user namespace."""
    mine = os.geteuid()
    for line in (read("/proc/self/uid_map") or "").splitlines():
        inside, outside, size = map(int, line.split())
        if inside <= mine < inside + size:
            return outside + mine - inside
    return mine


@contextlib.contextmanager
def connect(*, user: bool) -> Iterator[Bus]:
    """A connection to the service manager: PID 1, or with `user` the one of this user. Raises Unsupported, RemoteError."""
    path, broker = _address(user=user)
    bus = Bus(path, broker=broker)
    try:
        yield bus
    except RemoteError as error:
        raise HostError(error.message, hint=error.hint or "see: systemctl status; journalctl -b -u init.scope") from error
    finally:
        bus.close()


def _address(*, user: bool) -> tuple[str, bool]:
    """Path of the socket, and whether a message bus is between us and systemd. The manager's own socket needs none."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{_uid()}"
    private = f"{runtime}/systemd/private" if user else _PRIVATE
    if os.access(private, os.W_OK):
        return private, False
    session = dbus.socket_path(os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")) or f"{runtime}/bus"
    path = session if user else dbus.socket_path(os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")) or _SYSTEM
    if not path.startswith("\0") and not os.path.exists(path):
        if user:
            raise Unsupported(
                "the systemd cgroup manager is not available: systemd of this user is not running",
                hint="open a session of the user (loginctl enable-linger), or use the cgroupfs manager",
            )
        raise Unsupported(
            "the systemd cgroup manager is not available: systemd is not running",
            hint="do without --systemd-cgroup; --cgroup-parent takes a path as well",
        )
    return path, True


def delegate(pid: int) -> None:
    """Have this user's manager put a process into a delegated scope of its own: what it starts can then be limited.

    Raises Unsupported without such a manager, HostError when it refuses.
    """
    unit = f"{cgroups.PARENT}-{os.urandom(8).hex()}.scope"
    wanted: list[Property] = [
        ("Description", Variant(signature="s", value="containers of nacre")),
        ("Delegate", Variant(signature="b", value=True)),
        ("CollectMode", Variant(signature="s", value="inactive-or-failed")),
        ("PIDs", Variant(signature="au", value=[pid])),
    ]
    with connect(user=True) as bus:
        result = bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", wanted, [])
    if result != "done":
        raise HostError(f"systemd could not start {unit}: {result}", hint=f"see: journalctl --user -u {unit}")


# Names and places


def unit_name(prefix: str, name: str) -> str:
    """``prefix-name.scope``; a name that is a slice stays one."""
    return name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


def expand_slice(name: str) -> str:
    """The path of a slice: ``a-b.slice`` lies in ``/a.slice/a-b.slice``. Raises InvalidArgument."""
    if not name.endswith(".slice") or "/" in name or name == ".slice":
        raise InvalidArgument(f"invalid slice name: {name!r}", hint="as in system.slice")
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if "" in parts:
        raise InvalidArgument(f"invalid slice name: {name!r}", hint="no dash at the ends, no two in a row")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def parse_path(path: str, *, user: bool) -> tuple[str, str]:
    """Slice and unit of ``slice:prefix:name``. Raises InvalidArgument."""
    parts = path.split(":")
    if len(parts) != 3 or not parts[2] or "/" in path or "\0" in path or "\n" in path:
        raise InvalidArgument(
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got {path!r} instead',
            hint="as in system.slice:nacre:web",
        )
    name = parts[0] or ("user.slice" if user else "system.slice")
    expand_slice(name)
    return name, unit_name(parts[1], parts[2])


def _manager_root(where: Layout) -> str:
    """The group of this user's manager: the part of our own path up to ``user@UID.service``."""
    point = where.unified if not where.v1 else where.named
    own = own_groups(where).get(point, "").split("/")
    for place, part in enumerate(own):
        if part.startswith("user@") and part.endswith(".service"):
            return "/".join(own[: place + 1])
    uid = _uid()
    return f"/user.slice/user-{uid}.slice/user@{uid}.service"


# Limits as properties


def properties(limits: Mapping[str, Any], *, v2: bool) -> list[Property]:
    """What systemd can be told of an OCI `linux.resources` object; the files say the rest. Raises InvalidArgument."""
    memory, cpu = limits.get("memory") or {}, limits.get("cpu") or {}
    pids, block = limits.get("pids") or {}, limits.get("blockIO") or {}
    numbers: dict[str, int] = {}
    if limit := memory.get("limit"):
        numbers["MemoryMax" if v2 else "MemoryLimit"] = _or_infinity(limit)
    if v2:
        if low := memory.get("reservation"):
            numbers["MemoryLow"] = _or_infinity(low)
        if swap := memory.get("swap"):
            numbers["MemorySwapMax"] = _or_infinity(swap_only(swap, limit or -1) if limit or swap == -1 else swap)
    if shares := cpu.get("shares"):
        numbers["CPUWeight" if v2 else "CPUShares"] = weight_of_shares(shares) if v2 else shares
    quota, period = cpu.get("quota"), cpu.get("period")
    if period:
        numbers["CPUQuotaPeriodUSec"] = period
    if quota:
        # systemd keeps hundredths of a processor: round up, so that it never gives less.
        numbers["CPUQuotaPerSecUSec"] = _INFINITY if quota < 0 else -(-quota * 1_000_000 // (period or 100_000) // 10_000) * 10_000
    if count := pids.get("limit"):
        numbers["TasksMax"] = _or_infinity(count)
    if weight := block.get("weight"):
        numbers["IOWeight" if v2 else "BlockIOWeight"] = (1 + (weight - 10) * 9999 // 990) if v2 else weight
    found = [(name, Variant(signature="t", value=value)) for name, value in numbers.items()]
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if v2 and cpu.get(key):
            found.append((name, Variant(signature="ay", value=_mask(str(cpu[key])))))
    return found


def _or_infinity(value: int) -> int:
    return _INFINITY if value < 0 else value


def _mask(text: str) -> bytes:
    """A list such as 0-2,7 as bits, the lowest first."""
    bits = 0
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()):
            raise InvalidArgument(f"linux.resources.cpu: {text!r} is no list such as 0-2,7")
        for number in range(int(low), int(high or low) + 1):
            bits |= 1 << min(number, 8191)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


# The group


class SystemdGroup(Group):
    """A group that is a scope of systemd. path: ``slice:prefix:name``; user: of the user's manager."""

    def __init__(self, path: str, identifier: str, *, where: Layout | None = None, restrict: bool = True, user: bool = False) -> None:
        self.user = user
        self.slice, self.unit = parse_path(path, user=user)
        super().__init__(path, identifier, where=where, restrict=restrict)

    def _directories(self, path: str) -> dict[str, str]:
        below = f"{_manager_root(self.where) if self.user else ''}{expand_slice(self.slice)}/{self.unit}"
        return {key: f"{point}{below}" for key, point in self._points().items()}

    def _points(self) -> dict[str, str]:
        where = self.where
        named = {"name=systemd": where.named} if where.named else {}
        unified = {"unified": where.unified} if where.unified and (not where.v1 or where.unified in where.track) else {}
        return {**where.v1, **named, **unified}

    def make(self, limits: Mapping[str, Any], rules: Sequence[DeviceRule] | None) -> None:
        """Have systemd start the scope, then set what it does not know. A process of ours stays in it until the container has come."""
        if left := self.existing().pids():
            raise Conflict(f"the scope {self.unit} still has processes", hint=f"kill {' '.join(map(str, left))}")
        # systemd tells by this hierarchy whether a scope is still in use.
        tracked = self.directories.get("unified") or self.directories.get("name=systemd", "")
        with connect(user=self.user) as bus, contextlib.ExitStack() as undo:
            keeper = _keep_place(tracked)
            undo.callback(_end, keeper)
            self._start(bus, keeper, limits)
            undo.callback(self._abandon, bus)
            group = Cgroup(self.identifier, self.where, self.directories)
            cgroups.build(group, limits, rules=rules if self._restrict else None, fresh=False, taken=True)
            undo.pop_all()

    def _start(self, bus: Bus, keeper: int, limits: Mapping[str, Any]) -> None:
        plain: list[Property] = [
            ("Description", Variant(signature="s", value=f"container {self.identifier}")),
            ("Slice", Variant(signature="s", value=self.slice)),
            ("Delegate", Variant(signature="b", value=True)),
            ("DefaultDependencies", Variant(signature="b", value=False)),
            ("CollectMode", Variant(signature="s", value="inactive-or-failed")),
            ("PIDs", Variant(signature="au", value=[keeper])),
        ]
        accounting = ("MemoryAccounting", "CPUAccounting", "IOAccounting" if not self.where.v1 else "BlockIOAccounting", "TasksAccounting")
        plain += [(name, Variant(signature="b", value=True)) for name in accounting]
        wanted = [*plain, *properties(limits, v2=not self.where.v1)]
        for attempt in (1, 2):
            try:
                result = bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit, "replace", wanted, [])
            except BusError as error:
                if error.name != _UNIT_EXISTS or attempt == 2:
                    raise self._refused(error) from error
                with contextlib.suppress(BusError):  # what an earlier one of this name has left
                    bus.manager("ResetFailedUnit", "s", self.unit)
                continue
            if result != "done":
                raise HostError(f"systemd could not start {self.unit}: {result}", hint=f"see: journalctl -u {self.unit}")
            return

    def _refused(self, error: BusError) -> HostError | Conflict:
        if error.name == _UNIT_EXISTS:
            return Conflict(f"the scope {self.unit} exists already", hint=f"systemctl stop {self.unit}")
        if error.name.endswith(("AccessDenied", "InteractiveAuthorizationRequired")):
            return HostError(
                f"systemd refuses to start {self.unit}: {error.message}", hint="run as root, or as a user with a manager of its own"
            )
        return HostError(f"systemd could not start {self.unit}: {error.message}")

    def update(self, resources: Mapping[str, Any]) -> None:
        """Tell systemd, then set the files. Raises as `create` does."""
        with connect(user=self.user) as bus:
            wanted = properties(resources, v2=not self.where.v1)
            try:
                if wanted:
                    bus.manager("SetUnitProperties", "sba(sv)", self.unit, True, wanted)
            except BusError as error:
                if error.name == _NO_SUCH_UNIT:
                    raise cgroups.gone(self.identifier, self.unit) from error
                raise
        super().update(resources)

    def remove(self, timeout: float = 2.0) -> None:
        """Stop the scope and remove what systemd leaves of it. Without systemd, remove it by hand."""
        with contextlib.suppress(Unsupported), connect(user=self.user) as bus:
            self._stop(bus)
        super().remove(timeout)

    def _abandon(self, bus: Bus) -> None:
        with contextlib.suppress(RemoteError):  # what went wrong before is what is told
            self._stop(bus)

    def _stop(self, bus: Bus) -> None:
        try:
            bus.job("StopUnit", "ss", self.unit, "replace")
        except BusError as error:
            if error.name != _NO_SUCH_UNIT:
                raise
        with contextlib.suppress(BusError):
            bus.manager("ResetFailedUnit", "s", self.unit)


def _keep_place(tracked: str) -> int:
    """A process to begin a scope with. It leaves when another one is in the group, and with the process that asked for it.

    It is no child of ours, so that nobody has to wait for it, and holds none of our descriptors.
    """
    ours, theirs = socket.socketpair()
    caller = os.pidfd_open(os.getpid())
    middle = os.fork()
    if not middle:
        try:
            if child := os.fork():
                theirs.send(child.to_bytes(4, "little"))
            else:
                os.dup2(caller, 0)
                os.closerange(1, 1 << 20)
                _wait_for_company(tracked)
        finally:
            os._exit(0)
    theirs.close()
    os.close(caller)
    os.waitpid(middle, 0)
    with ours:
        return int.from_bytes(ours.recv(4), "little")


def _wait_for_company(tracked: str) -> None:
    mine = str(os.getpid())
    while not select.select([0], [], [], _STEP)[0]:
        pids = (read(f"{tracked}/cgroup.procs") or "").split()
        if mine in pids and len(pids) > 1:
            return


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
