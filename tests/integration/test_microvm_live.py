"""The driver of level vm against a real QEMU: many layers, bind mounts, the monitor's jail, failures, every kernel that is here.

No engine: sandboxes are made by hand, with layers and disks that no image would have.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nacre.errors import SandboxError, SandboxGone, Unsupported
from nacre.isolation.channel import Channel
from nacre.isolation.microvm import MicroVm, accel, initramfs, jail, kernels, machine, qemu
from nacre.isolation.plan import Etc, Security, container_plan
from nacre.isolation.process import stem_path
from nacre.linux import cgroups, netns
from nacre.model.container import BoundMount, ContainerSpec, LayerMount, Level, ProcessSpec, Resources, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import Code, Spawn, op
from nacre.wire import stem as wire

ROOT = Path(__file__).resolve().parent.parent.parent
OWNER = 0x6FFF0000
CAPABILITIES = 0xA80425FB  # Docker's default set
MEMORY = 64 << 20


class Result(NamedTuple):
    code: int
    said: str
    oom: bool = False


class Lab:
    """Makes sandboxes in directories of its own, runs commands in them, and removes everything."""

    def __init__(self, work: Path, run: Path) -> None:
        self.work, self.run = work, run
        self.driver = MicroVm()
        self.sandboxes: list[Sandbox] = []
        self.program = work / "guestprog"
        subprocess.run(["make", "-s", "-C", str(ROOT / "tests/guestprog"), f"OUT={work}"], check=True)

    def layer(self, name: str, files: dict[str, bytes]) -> LayerMount:
        """An EROFS image with these files."""
        tree = self.work / f"{name}.tree"
        for path, content in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(0o755)
        image = self.work / f"{name}.erofs"
        subprocess.run(["mkfs.erofs", str(image), str(tree)], check=True, capture_output=True)
        return LayerMount(diff_id=name, path=str(image), format="erofs")

    def base(self) -> LayerMount:
        """The layer with the guest program."""
        return self.layer("base", {"bin/guestprog": self.program.read_bytes()})

    def disk(self) -> str:
        """An empty upper disk."""
        path, tree = self.work / f"upper-{len(self.sandboxes)}.ext4", self.work / "upper"
        for name in ("upper", "work"):
            (tree / name).mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(tree), str(path)], check=True)
        return str(path)

    def sandbox(self, *layers: LayerMount, kernel: str = "", resources: Resources | None = None, **values: Any) -> Sandbox:
        """A sandbox over these layers (the guest program's when none is given)."""
        identifier = f"{os.getpid():x}{len(self.sandboxes):02x}".rjust(64, "f")
        directory = self.run / "sandboxes" / identifier
        directory.mkdir(parents=True)
        namespace = str(self.run / "netns" / identifier)
        netns.create(namespace)
        made = Sandbox(
            id=identifier,
            level=Level.VM,
            directory=str(directory),
            state=str(directory),
            hostname="box",
            rootfs=Rootfs(driver="erofs", layers=layers or (self.base(),), disk=self.disk()),
            endpoint=Endpoint(network="none", netns=namespace),
            spec=ContainerSpec(image="x", isolation=Level.VM, kernel=kernel, resources=resources or Resources(memory=MEMORY)),
            owner=OWNER,
        )
        self.sandboxes.append(made)
        return made.replace(**values)

    def boot(self, sandbox: Sandbox) -> Channel:
        """Start the sandbox; it has a container's root file system and nothing in it."""
        return self.driver.start(sandbox, keep=(), exit_command=(), custody=True)

    def monitor(self, sandbox: Sandbox) -> int:
        """Process id of the monitor."""
        [pid] = cgroups.find(sandbox.id).pids()
        return pid

    def run_in(self, sandbox: Sandbox, channel: Channel, *command: str) -> Result:
        """Run a command as the sandbox's first container: exit code and everything it said."""
        process = ProcessSpec(args=("/bin/guestprog", *command))
        security = Security(capabilities=CAPABILITIES)
        plan = container_plan(sandbox, process, self.driver.place(sandbox), security, (), Etc())
        channel.spawn(plan.replace(attach=True))
        said = b""
        while (frames := channel.receive(60.0)) is not None:
            assert frames, "no output for a minute"
            said += b"".join(frame.payload for frame in frames if frame.type == wire.Type.OUTPUT)
            for frame in frames:
                if frame.type == wire.Type.EXITED:
                    return Result(wire.decode_exited(frame.payload)[0], said.decode(), bool(frame.flags & wire.OOM))
        raise AssertionError(f"the sandbox ended; it said {said!r}")

    def once(self, sandbox: Sandbox, *command: str) -> Result:
        """Boot, run, shut down."""
        channel = self.boot(sandbox)
        try:
            return self.run_in(sandbox, channel, *command)
        finally:
            channel.shutdown()
            channel.close()

    def close(self) -> None:
        for sandbox in self.sandboxes:
            try:
                channel = Channel(sandbox.directory)
                channel.shutdown(force=True)
                channel.close()
            except SandboxGone:
                pass
            self.driver.clean(sandbox.id)
            netns.remove(sandbox.endpoint.netns)


@pytest.fixture
def lab(vm: Level, tmp_path: Path, directories: Any) -> Iterator[Lab]:
    run = Path(directories.run) / f"lab-{os.urandom(3).hex()}"
    run.mkdir()
    made = Lab(tmp_path, run)
    yield made
    made.close()
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(run) in line]
    shutil.rmtree(run)
    assert not left


def need_9p() -> None:
    """Bind mounts need a kernel with 9p; the distribution's cloud kernel has none."""
    if not kernels.find().has_9p:
        pytest.skip("no guest kernel with 9p; run: make guest-kernel")


@pytest.mark.parametrize("count", [1, 4, 5, 130])
def test_layers_in_their_order(lab: Lab, count: int) -> None:
    extra = [lab.layer(f"layer{number}", {"who": str(number).encode(), f"only/{number}": b"x"}) for number in range(1, count)]
    code, shown, _ = lab.once(lab.sandbox(lab.base(), *extra), "ls", "/only" if count > 1 else "/bin")
    assert code == 0
    assert len(shown.split()) == max(count - 1, 1)
    code, shown, _ = lab.once(lab.sandbox(lab.base(), *extra), "cat", "/who") if count > 1 else Result(0, "0")
    assert shown == str(count - 1)


def test_a_layer_is_never_taken_for_another_format(lab: Lab) -> None:
    """A layer whose bytes are a qcow2 image naming a file of the host as its backing file is just a broken EROFS."""
    secret = lab.work / "secret"
    secret.write_bytes(b"secret" * 1000)
    hostile = lab.work / "hostile.erofs"
    if not shutil.which("qemu-img"):
        pytest.skip("no qemu-img; run: apt-get install qemu-utils")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(hostile)], check=True)
    before = hostile.read_bytes()
    sandbox = lab.sandbox(lab.base(), LayerMount(diff_id="h", path=str(hostile), format="erofs"))
    channel = lab.boot(sandbox)
    partitions = channel.read_file("/proc/partitions").decode()
    assert str(-(-len(before) // 4096) * 4) in partitions.split()
    with pytest.raises(SandboxError, match="/dev/vda2"):
        lab.run_in(sandbox, channel, "true")
    channel.close()
    assert hostile.read_bytes() == before


def test_every_kernel_that_is_here(lab: Lab) -> None:
    booted = []
    for name in kernels.names():
        wanted = kernels.find(name)
        code, shown, _ = lab.once(lab.sandbox(kernel=name, resources=Resources()), "uname", "-r")
        assert (code, shown.strip()) == (0, wanted.version)
        booted.append(name)
    assert booted


def test_devices_on_pci(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution's kernel whose virtio drivers know PCI only."""
    modular = next((found for name in kernels.names() if (found := kernels.find(name)).modules), None)
    if not modular:
        pytest.skip("no modular guest kernel; run: apt-get install linux-image-cloud-amd64")
    tree = kernels.ModuleTree(str(Path(modular.modules[0]).parents[3]))
    if "virtio_pci" not in tree:
        tree = kernels.ModuleTree(f"/lib/modules/{modular.version}")
    by_pci = modular.replace(transport="pci", modules=tree.order(("virtio_pci", *kernels.NEEDED, *kernels.WELCOME)))
    monkeypatch.setattr(kernels, "find", lambda _: by_pci)
    assert lab.once(lab.sandbox(), "uname", "-r") == Result(0, f"{modular.version}\n")


def test_ownership_on_bind_mounts(lab: Lab) -> None:
    need_9p()
    source, frozen, one = lab.work / "source", lab.work / "frozen", lab.work / "one"
    source.mkdir()
    frozen.mkdir()
    one.write_text("one file\n")
    (source / "theirs").write_text("x")
    os.chown(source / "theirs", 1000, 1001)
    mounts = (
        BoundMount(target="/data", source=str(source)),
        BoundMount(target="/frozen", source=str(frozen), read_only=True),
        BoundMount(target="/etc/one", source=str(one), is_dir=False),
    )
    sandbox = lab.sandbox(mounts=mounts)
    channel = lab.boot(sandbox)
    assert "uid=1000 gid=1001" in lab.run_in(sandbox, channel, "stat", "/data/theirs")[1]
    channel.shutdown()
    channel.close()

    for command in (("write", "/data/ours", "hello"), ("write", "/etc/one", "changed"), ("chown", "1000", "7", "/data/theirs")):
        assert lab.once(lab.sandbox(mounts=mounts), *command)[0] == 0
    assert ((source / "ours").stat().st_uid, (source / "ours").stat().st_gid) == (0, 0)
    assert (source / "ours").read_text().strip() == "hello"
    assert one.read_text().strip() == "changed"
    assert ((source / "theirs").stat().st_uid, (source / "theirs").stat().st_gid) == (1000, 7)
    assert lab.once(lab.sandbox(mounts=mounts), "write", "/frozen/x", "no")[0] != 0
    assert not list(frozen.iterdir())


def test_a_source_that_cannot_be_id_mapped(lab: Lab) -> None:
    """Sysfs has no id-mapped mounts: the monitor then keeps the capabilities of file ownership, and says so."""
    need_9p()
    sandbox = lab.sandbox(mounts=(BoundMount(target="/data", source="/sys/kernel"),))
    channel = lab.boot(sandbox)
    assert "with the capabilities of file ownership only" in str(lab.driver.describe(sandbox)["Assurance"])
    status = _status(lab.monitor(sandbox))
    assert (status["Uid"].split()[0], status["CapEff"], status["CapBnd"]) == ("0", "000000000000001f", "000000000000001f")
    assert "uevent_seqnum" in lab.run_in(sandbox, channel, "ls", "/data")[1]
    channel.close()


def test_bind_mounts_name_the_kernel_they_need(lab: Lab) -> None:
    lacking = [name for name in kernels.names() if not kernels.find(name).has_9p]
    if not lacking:
        pytest.skip("every guest kernel here has 9p")
    with pytest.raises(Unsupported, match="no 9p file system"):
        lab.boot(lab.sandbox(kernel=lacking[0], mounts=(BoundMount(target="/x", source="/tmp"),)))


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("bound", [False, True], ids=["user", "namespace"])
def test_the_monitor_is_confined(lab: Lab, bound: bool) -> None:
    if bound:
        need_9p()
    source = lab.work / "source"
    source.mkdir()
    sandbox = lab.sandbox(mounts=(BoundMount(target="/data", source=str(source)),) if bound else ())
    channel = lab.boot(sandbox)
    pid = lab.monitor(sandbox)
    status = _status(pid)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(OWNER)}
    assert status["Groups"] == ""
    # With bind mounts these are capabilities in a user namespace of its own: none on the host.
    assert status["CapEff"] == status["CapBnd"] == ("000000000000001f" if bound else "0" * 16)
    assert status["CapInh"] == status["CapAmb"] == "0" * 16
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("mnt", "pid", "ipc", "uts", "net", *(["user"] if bound else [])):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(sandbox.endpoint.netns).st_ino
    seen = set(os.listdir(f"/proc/{pid}/root"))
    assert seen <= {"usr", "lib", "lib64", "nix", "etc", "dev", "boot", "layers", *(("binds", "proc") if bound else ())}
    assert set(os.listdir(f"/proc/{pid}/root/dev")) <= {"null", "kvm"}
    writable = [line for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line.split()[5].startswith("rw")]
    assert {line.split()[4] for line in writable} == {"/", *(["/binds/0"] if bound else [])}
    assert "0" in Path(f"/proc/{pid}/limits").read_text().partition("Max core file size")[2].split()[:2]
    channel.close()


def test_pause(lab: Lab) -> None:
    sandbox = lab.sandbox()
    channel = lab.boot(sandbox)
    assert not lab.driver.paused(sandbox)
    for _ in range(2):
        lab.driver.pause(sandbox)
    assert lab.driver.paused(sandbox)
    before = lab.driver.stats(sandbox).cpu
    assert lab.driver.stats(sandbox).cpu - before < 50_000_000
    time.sleep(2)
    lab.driver.resume(sandbox)
    assert lab.run_in(sandbox, channel, "echo", "alive") == Result(0, "alive\n")
    started = time.time()
    clock = float(lab.run_in(sandbox, channel, "time").said.split()[0])
    assert started - 1 < clock < time.time() + 1
    channel.close()


def test_stats_and_description(lab: Lab) -> None:
    sandbox = lab.sandbox()
    channel = lab.boot(sandbox)
    stats = lab.driver.stats(sandbox)
    assert stats.cpu > 0
    assert stats.memory > 8 << 20
    assert stats.memory_limit > MEMORY
    shown = lab.driver.describe(sandbox)
    assert shown["Kernel"] == kernels.find().version
    assert shown["Accelerator"] in ("kvm", "tcg")
    assert str(shown["Monitor"]).startswith("QEMU ")
    channel.close()


def test_a_monitor_that_dies(lab: Lab) -> None:
    sandbox = lab.sandbox()
    channel = lab.boot(sandbox)
    os.kill(lab.monitor(sandbox), signal.SIGKILL)
    with pytest.raises((SandboxGone, SandboxError), match=r"killed by signal 9|ended|gone"):
        lab.run_in(sandbox, channel, "true")
    channel.close()
    with pytest.raises(SandboxGone):
        lab.driver.pause(sandbox)
    lab.driver.clean(sandbox.id)
    lab.driver.clean(sandbox.id)
    assert cgroups.find(sandbox.id).pids() == ()


def test_a_guest_that_panics_tells_why(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = lab.work / "no-program"
    broken.write_text("this is no program")
    monkeypatch.setattr(machine, "stem_path", lambda: str(broken))
    sandbox = lab.sandbox()
    with pytest.raises(SandboxError, match="the guest kernel panicked") as caught:
        lab.boot(sandbox)
    assert caught.value.stage == "boot"
    assert "Kernel panic" in caught.value.details


def test_out_of_memory_is_told_from_other_ends(lab: Lab) -> None:
    limited = Resources(memory=16 << 20)
    assert lab.once(lab.sandbox(resources=limited), "exit", "137") == Result(137, "")
    killed = lab.once(lab.sandbox(resources=limited), "alloc", "64")
    assert (killed.code, killed.oom) == (137, True)


def test_too_little_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "guest_memory", lambda *_: 24)
    with pytest.raises(SandboxError, match="24 MiB"):
        lab.boot(lab.sandbox())


def test_more_memory_than_there_is(lab: Lab) -> None:
    with pytest.raises(SandboxError, match="Cannot allocate memory"):
        lab.boot(lab.sandbox(resources=Resources(memory=1 << 46)))


def test_a_disk_that_is_not_there(lab: Lab) -> None:
    sandbox = lab.sandbox()
    with pytest.raises(SandboxError, match="could not start the virtual machine's monitor: open") as caught:
        lab.boot(sandbox.replace(rootfs=sandbox.rootfs.replace(disk=str(lab.work / "gone"))))
    assert caught.value.stage == "launch"


def test_several_processors(lab: Lab) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    resources = Resources(memory=MEMORY, cpus=1.5)
    channel = lab.boot(lab.sandbox(resources=resources))
    assert channel.read_file("/proc/cpuinfo").decode().count("processor\t") == 2
    channel.close()


def test_a_machine_that_resets_itself_before_it_greets_is_started_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As QEMU 7.2's translator now and then does with several processors: here a program that just ends takes its place once."""
    real, fates = jail.spawn, iter([False, True, False, False])

    def spawn(*values: Any, **options: Any) -> Spawn:
        record = real(*values, **options)
        return record if next(fates) else record.replace(ops=(*record.ops[:-1], op(Code.EXEC, 1, "/usr/bin/true")))

    monkeypatch.setattr(jail, "spawn", spawn)
    monkeypatch.setenv("NACRE_ACCEL", "tcg")
    channel = lab.boot(lab.sandbox())
    assert channel.read_file("/proc/uptime", timeout=10)
    channel.close()
    # Only once: a machine that always does is an error with what was seen.
    with pytest.raises(SandboxError, match="did not start"):
        lab.boot(lab.sandbox())
    assert next(fates, None) is None


def test_the_probe_boots_a_real_guest(lab: Lab) -> None:
    """The code that judges KVM, told to use the translator: a guest that greets is a good verdict."""
    program, _ = accel.find_qemu(accel.Facts(str(lab.work)))
    kernel = kernels.find()
    archive = initramfs.build(stem_path(), kernel.modules)
    assert accel.probe_kvm(program, kernel, archive, accelerator="tcg") == ""
    broken = lab.work / "init"
    broken.write_text("no program")
    reason = accel.probe_kvm(program, kernel, initramfs.build(str(broken)), accelerator="tcg")
    assert "ended early" in reason


def test_kvm_is_used_only_where_a_guest_ran_on_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NACRE_ACCEL", raising=False)
    kernel = kernels.find()
    choice = accel.choose(kernel, initramfs.build(stem_path(), kernel.modules), accel.Facts(str(lab.work)))
    assert choice.name == "kvm" or choice.reason.startswith("kvm unusable: ")


def test_the_clock_of_a_guest(lab: Lab) -> None:
    """Guests are told the time, and the frequency of their time stamp counter where it is translated."""
    facts = accel.Facts(str(lab.work))
    khz = accel.tsc_khz(facts)
    assert khz == 0 or 100_000 < khz < 10_000_000
    sandbox = lab.sandbox()
    channel = lab.boot(sandbox)
    assert channel.read_file("/sys/devices/system/clocksource/clocksource0/current_clocksource").decode().strip() in (
        "tsc",
        "tsc-early",
        "kvm-clock",
    )
    channel.close()


def test_version_of_the_real_monitor() -> None:
    program = shutil.which(qemu.PROGRAM)
    if not program:
        pytest.skip("no QEMU; run: apt-get install qemu-system-x86")
    assert qemu.version(program)[0].isdigit()
