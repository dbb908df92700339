"""Groups that systemd makes, against a pretended service manager on a real socket that speaks real D-Bus."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cgroup_trees import detect, read, v2
from cgroup_trees import host as host

from nacre.errors import Conflict, HostError, InvalidArgument, RemoteError, Unsupported
from nacre.isolation import groups, systemd
from nacre.isolation.systemd import SystemdGroup, expand_slice, parse_path, properties, unit_name
from nacre.wire import dbus
from nacre.wire.dbus import Message, Variant

MIB = 1 << 20


class Manager:
    """A thread that answers like PID 1. units: name -> properties; `answers`: member -> what to do instead of the usual."""

    def __init__(self, directory: str, root: Path) -> None:
        self.path = f"{directory}/private"
        self.root = root
        self.units: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.answers: dict[str, Callable[[Message], list[Message]]] = {}
        self.greeting = b"OK 0123456789abcdef\r\n"
        self.jobs = 0
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection, contextlib.suppress(OSError):
                    self._attend(connection)

    def _attend(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"BEGIN\r\n"):
            if not (piece := connection.recv(512)):
                return
            data += piece
        assert data == dbus.greeting(os.geteuid())
        connection.sendall(self.greeting)
        decoder = dbus.Decoder()
        while data := connection.recv(65536):
            for message in decoder.feed(data):
                self.calls.append(message.member)
                answer = self.answers.pop(message.member, self._answer)
                for reply in answer(message):
                    connection.sendall(dbus.encode(reply))

    def _answer(self, message: Message) -> list[Message]:
        if message.member in ("StartTransientUnit", "StopUnit"):
            return self._job(message)
        if message.member == "SetUnitProperties":
            unit, _runtime, values = message.body
            if unit not in self.units:
                return [failed(message, systemd._NO_SUCH_UNIT, f"Unit {unit} not loaded.")]
            self.units[unit].update({name: variant.value for name, variant in values})
        return [Message(kind=dbus.RETURN, serial=1, reply_to=message.serial)]

    def _job(self, message: Message) -> list[Message]:
        unit = message.body[0]
        if message.member == "StopUnit":
            if self.units.pop(unit, None) is None:
                return [failed(message, systemd._NO_SUCH_UNIT, f"Unit {unit} not loaded.")]
        elif unit in self.units:
            return [failed(message, systemd._UNIT_EXISTS, f"Unit {unit} already exists.")]
        else:
            values = {name: variant.value for name, variant in message.body[2]}
            self.units[unit] = values
        self.jobs += 1
        job = f"/org/freedesktop/systemd1/job/{self.jobs}"
        return [removed("/org/freedesktop/systemd1/job/999", "other.scope"), removed(job, unit), returned(message, "o", job)]


def returned(message: Message, signature: str, *body: Any) -> Message:
    return Message(kind=dbus.RETURN, serial=2, reply_to=message.serial, signature=signature, body=body)


def removed(job: str, unit: str, result: str = "done") -> Message:
    return Message(
        kind=dbus.SIGNAL, serial=3, path=systemd.ROOT, interface=systemd.MANAGER, member="JobRemoved", signature="uoss",
        body=(1, job, unit, result),
    )  # fmt: skip


def failed(message: Message, name: str, text: str) -> Message:
    return Message(kind=dbus.ERROR, serial=4, reply_to=message.serial, error=name, signature="s", body=(text,))


@pytest.fixture
def manager(host: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    directory = tempfile.mkdtemp(prefix="nacre-", dir="/tmp")
    made = Manager(directory, host)
    monkeypatch.setattr(systemd, "_PRIVATE", made.path)
    monkeypatch.setattr(systemd, "_keep_place", lambda _tracked: 2_000_000_000)
    yield made
    made.stop()
    shutil.rmtree(directory)


def scope(host: Path, path: str = "system.slice:nacre:c1") -> SystemdGroup:
    where = v2(host)
    (host / "sys/fs/cgroup/system.slice").mkdir()
    (host / "sys/fs/cgroup/system.slice/cgroup.subtree_control").write_text("")
    group = groups.group(path, "c1", systemd=True, where=where)
    assert isinstance(group, SystemdGroup)
    return group


def test_a_scope_lives_and_ends(host: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    group = scope(host)
    group.make({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}, "cpu": {"quota": 25000, "shares": 512}, "pids": {"limit": 9}}, None)
    unit = manager.units["nacre-c1.scope"]
    assert (unit["Slice"], unit["Delegate"], unit["DefaultDependencies"], unit["PIDs"]) == ("system.slice", True, False, [2_000_000_000])
    assert (unit["MemoryMax"], unit["MemorySwapMax"], unit["CPUQuotaPerSecUSec"], unit["CPUWeight"], unit["TasksMax"]) == (
        64 * MIB, 32 * MIB, 250_000, 59, 9,
    )  # fmt: skip
    place = "system.slice/nacre-c1.scope"
    assert read(host, f"{place}/memory.max") == str(64 * MIB)
    assert read(host, f"{place}/cpu.max") == "25000 100000"
    assert group.join == (f"{host}/sys/fs/cgroup/{place}/cgroup.procs",)
    group.update({"memory": {"limit": 128 * MIB}})
    assert manager.units["nacre-c1.scope"]["MemoryMax"] == 128 * MIB
    assert read(host, f"{place}/memory.max") == str(128 * MIB)
    for path in (host / "sys/fs/cgroup" / place).iterdir():
        path.unlink()
    group.remove()
    assert manager.units == {}
    assert not (host / "sys/fs/cgroup" / place).exists()
    group.remove()


def test_what_an_earlier_scope_left_is_reset_once(host: Path, manager: Manager) -> None:
    manager.answers["StartTransientUnit"] = lambda message: [failed(message, systemd._UNIT_EXISTS, "Unit nacre-c1.scope exists")]
    scope(host).make({}, None)
    assert manager.calls == ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]


def test_a_scope_that_exists_is_a_conflict(host: Path, manager: Manager) -> None:
    manager.units["nacre-c1.scope"] = {}
    with pytest.raises(Conflict, match="exists already") as caught:
        scope(host).make({}, None)
    assert "systemctl stop nacre-c1.scope" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "refuses to start nacre-c1.scope"),
        ("org.freedesktop.DBus.Error.InvalidArgs", "could not start nacre-c1.scope: systemd: Unknown property"),
    ],
)
def test_a_refusal_is_told(host: Path, manager: Manager, error: str, message: str) -> None:
    manager.answers["StartTransientUnit"] = lambda call: [failed(call, error, "Unknown property")]
    with pytest.raises(HostError, match=message):
        scope(host).make({}, None)


def test_a_job_that_fails_is_told(host: Path, manager: Manager) -> None:
    manager.answers["StartTransientUnit"] = lambda call: [returned(call, "o", "/job/5"), removed("/job/5", "nacre-c1.scope", "failed")]
    with pytest.raises(HostError, match=r"could not start nacre-c1\.scope: failed") as caught:
        scope(host).make({}, None)
    assert "journalctl -u nacre-c1.scope" in caught.value.hint


def test_limits_that_cannot_be_set_stop_the_scope_again(host: Path, manager: Manager) -> None:
    with pytest.raises(Unsupported, match=r"cannot set misc\.max"):
        scope(host).make({"unified": {"misc.max": "x 1"}}, None)
    assert manager.units == {}
    assert "StopUnit" in manager.calls


def test_an_update_of_a_scope_that_is_gone(host: Path, manager: Manager) -> None:
    with pytest.raises(HostError, match="is gone"):
        scope(host).update({"memory": {"limit": 64 * MIB}})


def test_a_manager_that_dies_in_the_middle(host: Path, manager: Manager) -> None:
    def die(_message: Message) -> list[Message]:
        raise OSError

    manager.answers["StartTransientUnit"] = die
    with pytest.raises(HostError, match="closed the connection"):
        scope(host).make({}, None)


def test_a_refused_login(host: Path, manager: Manager) -> None:
    manager.greeting = b"REJECTED EXTERNAL\r\n"
    with pytest.raises(RemoteError, match="authentication was refused: REJECTED"):
        scope(host).make({}, None)


def test_no_systemd(host: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd, "_PRIVATE", str(tmp_path / "nothing"))
    monkeypatch.setattr(systemd, "_SYSTEM", str(tmp_path / "nothing"))
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    with pytest.raises(Unsupported, match="systemd is not running") as caught:
        scope(host).make({}, None)
    assert "--cgroup-parent takes a path" in caught.value.hint


def test_through_a_message_bus(host: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_PRIVATE", "/nowhere/private")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={manager.path}")
    scope(host).make({}, None)
    assert manager.calls == ["Hello", "AddMatch", "Subscribe", "StartTransientUnit"]


def test_the_users_manager(host: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={manager.path}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    monkeypatch.setattr(systemd, "_uid", os.geteuid)
    where = v2(host)
    monkeypatch.setattr(systemd, "own_groups", lambda _where: {where.unified: "/user.slice/user-7.slice/user@7.service/app.slice/x.scope"})
    group = groups.group("", "c1", systemd=True, where=where, restrict=False)
    place = Path(where.unified)
    for name in ("user.slice", "user-7.slice", "user@7.service", "user.slice"):
        place /= name
        place.mkdir(exist_ok=True)
        (place / "cgroup.subtree_control").write_text("")
    group.make({}, None)
    assert group.directories["unified"].endswith("/user.slice/user-7.slice/user@7.service/user.slice/nacre-c1.scope")
    assert manager.units["nacre-c1.scope"]["Slice"] == "user.slice"


def test_a_hybrid_has_the_scope_in_every_hierarchy(host: Path) -> None:
    mounts = "".join(
        f"{number} 1 0:{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{option}\n"
        for number, (name, option) in enumerate((("memory", "memory"), ("pids", "pids"), ("systemd", "name=systemd")), 30)
    )
    group = groups.group("a-b.slice:p:c1", "c1", systemd=True, where=detect(host, mounts, systemd=True))
    assert set(group.directories) == {"memory", "pids", "name=systemd"}
    assert group.directories["memory"] == f"{host}/sys/fs/cgroup/memory/a.slice/a-b.slice/p-c1.scope"


def test_names() -> None:
    assert unit_name("nacre", "web") == "nacre-web.scope"
    assert unit_name("", "web") == "web.scope"
    assert unit_name("libpod", "pod_1.slice") == "pod_1.slice"
    assert expand_slice("system.slice") == "/system.slice"
    assert expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    assert expand_slice("-.slice") == ""
    assert parse_path("::x", user=False) == ("system.slice", "x.scope")
    assert parse_path(":p:x", user=True) == ("user.slice", "p-x.scope")


@pytest.mark.parametrize("path", ["/a/b", "a:b", "a.slice:b:", "a:b:c", "a--b.slice:b:c", "-a.slice:b:c", "a/b.slice:c:d", ".slice:b:c"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_path(path, user=False)


def test_properties() -> None:
    def values(limits: dict[str, Any], *, v2: bool = True) -> dict[str, Any]:
        return {name: variant.value for name, variant in properties(limits, v2=v2)}

    assert values({"cpu": {"quota": 33333, "period": 100000}}) == {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 340_000}
    assert values({"cpu": {"quota": -1}}) == {"CPUQuotaPerSecUSec": (1 << 64) - 1}
    assert values({"cpu": {"cpus": "0-1,9", "mems": "0"}}) == {"AllowedCPUs": b"\x03\x02", "AllowedMemoryNodes": b"\x01"}
    assert values({"memory": {"limit": -1, "reservation": 5}, "blockIO": {"weight": 1000}}) == {
        "MemoryMax": (1 << 64) - 1, "MemoryLow": 5, "IOWeight": 10000,
    }  # fmt: skip
    assert values({"memory": {"limit": 5}, "cpu": {"shares": 7, "cpus": "0"}, "blockIO": {"weight": 70}}, v2=False) == {
        "MemoryLimit": 5, "CPUShares": 7, "BlockIOWeight": 70,
    }  # fmt: skip
    assert values({}) == {}
    assert all(isinstance(variant, Variant) for _, variant in properties({"pids": {"limit": 1}}, v2=True))


def test_the_keeper_leaves_when_somebody_comes(tmp_path: Path) -> None:
    pid = systemd._keep_place(str(tmp_path))
    handle = os.pidfd_open(pid)
    try:
        assert Path(f"/proc/{pid}/stat").exists()
        assert os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
        (tmp_path / "cgroup.procs").write_text(f"{pid}\n{os.getpid()}\n")
        import select

        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)
