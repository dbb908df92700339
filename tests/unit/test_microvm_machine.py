"""What the recipe decides without booting anything: sizes, plans, the causes of failures, and the monitor's client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nacre.errors import SandboxError, SandboxGone, Unsupported
from nacre.isolation import Pausable, Tapped, driver
from nacre.isolation.microvm import MicroVm, machine, qemu
from nacre.isolation.microvm.kernels import GuestKernel
from nacre.isolation.microvm.monitor import Monitor
from nacre.model.container import BoundMount, ContainerSpec, LayerMount, Level, Resources, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import Code, Op

PVH = GuestKernel(path="/k", version="6.1", kind="pvh")
MIB = 1 << 20


def sandbox(directory: Path | str = "/run/1", **values: object) -> Sandbox:
    made = Sandbox(
        id="1" * 64,
        level=Level.VM,
        directory=str(directory),
        state="/state",
        hostname="box",
        rootfs=Rootfs(driver="erofs", layers=(LayerMount(diff_id="1", path="/l", format="erofs"),), disk="/upper.ext4"),
        endpoint=Endpoint(network="none", netns="/run/netns/1"),
        spec=ContainerSpec(image="busybox", isolation=Level.VM),
    )
    return made.replace(**values)


def test_the_driver_of_level_vm() -> None:
    made = driver("vm")
    assert isinstance(made, MicroVm)
    assert isinstance(made, Pausable)
    assert isinstance(made, Tapped)


def test_memory() -> None:
    assert machine.guest_memory(Resources(), PVH) == 512
    assert machine.guest_memory(Resources(memory=64 * MIB), PVH) == 64 + 64 + 1
    assert machine.guest_memory(Resources(memory=64 * MIB + 1), PVH.replace(kind="bzImage")) == 128 + 65 + 1
    assert machine.guest_memory(Resources(memory=6 * MIB), PVH) >= 64


def test_network_of_the_host_is_refused() -> None:
    with pytest.raises(Unsupported, match="network of the host"):
        MicroVm().start(sandbox(endpoint=Endpoint(network="host")), keep=(), exit_command=(), custody=True)


def lines(ops: tuple[Op, ...]) -> str:
    return "".join(f"{item.describe()}\n" for item in ops if item.code is not Code.TIME)


def test_place(golden: Callable[[str, str], None]) -> None:
    mounts = (
        BoundMount(target="/data", source="/srv/data"),
        BoundMount(target="/tmp", kind="tmpfs"),
        BoundMount(target="/etc/one", source="/srv/one", is_dir=False, read_only=True),
    )
    limits = ContainerSpec(image="busybox", isolation=Level.VM, resources=Resources(memory=64 * MIB, pids=100))
    place = MicroVm().place(sandbox(mounts=mounts, spec=limits))
    assert place.join == ("/sys/fs/cgroup/container/cgroup.procs",)
    assert place.cgroup_setup[0].code is Code.TIME
    binds = "".join(f"{target}:\n{lines(ops)}" for target, ops in place.binds.items())
    golden("microvm/place.plan", f"{lines(place.rootfs)}\n{lines(place.cgroup_setup)}\n{binds}")


def test_without_binds_there_is_no_share() -> None:
    place = MicroVm().place(sandbox())
    assert place.binds == {}
    assert "9p" not in lines(place.rootfs)


@pytest.mark.parametrize(
    ("console", "memory", "accelerator", "cause", "hint"),
    [
        ("", 32, "tcg", "console is empty", "32 MiB"),
        ("", 512, "kvm", "console is empty", "NACRE_ACCEL=tcg"),
        ("[ 1.0] Run /init\n[ 1.1] hello\n", 512, "tcg", "last words: [ 1.1] hello", "--debug"),
        (
            "[ 1.0] x\n[ 1.1] Kernel panic - not syncing: No working init found.\n[ 1.2] y\n",
            512,
            "tcg",
            "panicked: No working init",
            "--debug",
        ),
        ("Out of memory: Killed\nKernel panic - not syncing: System is deadlocked on memory\n", 72, "tcg", "deadlocked", "72 MiB"),
        (
            "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory\n",
            4096,
            "tcg",
            "monitor failed: cannot set up",
            "4096 MiB left",
        ),
        (
            "qemu-system-x86_64: Could not access KVM kernel module: Permission denied\n",
            64,
            "kvm",
            "Could not access KVM",
            "NACRE_ACCEL=tcg",
        ),
        ("qemu-system-x86_64: terminating on signal 15 from pid 1\n", 64, "tcg", "last words: qemu", "--debug"),
        ("\x1b[31mred\x07\xff\n", 64, "tcg", "last words: [31mred", "--debug"),
    ],
)
def test_boot_errors(tmp_path: Path, console: str, memory: int, accelerator: str, cause: str, hint: str) -> None:
    (tmp_path / "console.log").write_bytes(console.encode("latin-1"))
    made = qemu.Machine(program="q", accelerator=accelerator, kernel="k", transport="cmdline", initramfs="i", append="", memory=memory)
    error = machine.boot_error(str(tmp_path), "the guest is gone", made)
    assert error.stage == "boot"
    assert cause in error.message
    assert hint in error.hint


def test_boot_error_without_a_console(tmp_path: Path) -> None:
    made = qemu.Machine(program="q", accelerator="tcg", kernel="k", transport="acpi", initramfs="i", append="", memory=64)
    assert "the guest is gone" in machine.boot_error(str(tmp_path), "the guest is gone", made).message


def test_describe(tmp_path: Path) -> None:
    assert MicroVm().describe(sandbox(tmp_path)) == {}
    record = machine.Record(
        kernel="6.1", accelerator="tcg", reason="kvm unusable: x", monitor="QEMU 7.2", confinement="nobody", memory=512, cpus=1
    )
    (tmp_path / "vm.json").write_text(json.dumps(record.to_data()))
    shown = MicroVm().describe(sandbox(tmp_path))
    assert (shown["Kernel"], shown["Monitor"], shown["Accelerator"], shown["AcceleratorReason"]) == (
        "6.1",
        "QEMU 7.2",
        "tcg",
        "kvm unusable: x",
    )
    assert "emulated in software" in str(shown["Assurance"])
    (tmp_path / "vm.json").write_text(json.dumps(record.replace(accelerator="kvm", reason="").to_data()))
    assert "hardware virtualisation" in str(MicroVm().describe(sandbox(tmp_path))["Assurance"])
    (tmp_path / "vm.json").write_text("{")
    assert MicroVm().describe(sandbox(tmp_path)) == {}


# -- the client of the control socket ------------------------------------------------------------------------------------

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Callable[[Callable[[dict[str, object]], bytes]], Path]]:
    """`monitor(answer)`: the directory of a monitor that answers each command with what `answer` returns, b"" = hangs up."""
    servers: list[socket.socket] = []

    def make(answer: Callable[[dict[str, object]], bytes]) -> Path:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "qmp.sock"))
        server.listen()
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(GREETING)
                    for line in connection.makefile("rb"):
                        said = answer(json.loads(line))
                        if not said:
                            break
                        connection.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        return tmp_path

    yield make
    for server in servers:
        server.close()


Make = Callable[[Callable[[dict[str, object]], bytes]], Path]


def reply(command: dict[str, object], value: object) -> bytes:
    return json.dumps({"return": value, "id": command["id"]}).encode() + b"\r\n"


def test_pause_and_resume(monitor: Make) -> None:
    state = {"status": "running"}
    events = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n'

    def answer(command: dict[str, object]) -> bytes:
        states = {"stop": "paused", "cont": "running"}
        state["status"] = states.get(str(command["execute"]), state["status"])
        return events + reply(command, dict(state) if command["execute"] == "query-status" else {})

    box = sandbox(monitor(answer))
    assert not MicroVm().paused(box)
    MicroVm().pause(box)
    MicroVm().pause(box)
    assert MicroVm().paused(box)
    MicroVm().resume(box)
    assert not MicroVm().paused(box)


def test_a_refusal(monitor: Make) -> None:
    def answer(command: dict[str, object]) -> bytes:
        if command["execute"] == "qmp_capabilities":
            return reply(command, {})
        return json.dumps({"error": {"class": "GenericError", "desc": "not now"}, "id": command["id"]}).encode() + b"\n"

    with Monitor(str(monitor(answer))) as client, pytest.raises(SandboxError, match="refused stop: not now"):
        client.execute("stop")


def test_a_late_answer_is_not_taken_for_the_next(monitor: Make) -> None:
    def answer(command: dict[str, object]) -> bytes:
        return reply({"id": 77}, "late") + reply(command, command["execute"])

    with Monitor(str(monitor(answer))) as client:
        assert client.execute("query-name") == "query-name"


@pytest.mark.parametrize("said", [b"", b"rubbish\n", b'{"id": "x", "return": 1}\n'])
def test_a_monitor_gone_mad_or_away(monitor: Make, said: bytes) -> None:
    directory = monitor(lambda _: said)
    with pytest.raises(SandboxError, match=r"ended|nonsense") as caught:
        Monitor(str(directory))
    assert isinstance(caught.value, SandboxGone) is not bool(said)


def test_no_monitor(tmp_path: Path) -> None:
    with pytest.raises(SandboxGone, match="not running"):
        Monitor(str(tmp_path))
    with pytest.raises(SandboxGone, match="not running"):
        Monitor(str(tmp_path / "gone"))
