"""The recipe of level `vm`: one micro virtual machine per sandbox.

The relay (a stem on the host) runs the monitor as its confined child and shares the one channel into the guest, whose PID 1 is
the same stem. Left in the sandbox's directory: vm.json (what was chosen), console.log, qmp.sock, the layers' partition tables.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Sequence

from nacre.errors import Conflict, NacreError, SandboxError, SandboxGone, Unsupported
from nacre.isolation import Adjustable, Driver, Explaining, Pausable, Tapped, limits
from nacre.isolation.channel import Channel
from nacre.isolation.microvm import accel, disks, initramfs, jail, kernels, qemu
from nacre.isolation.microvm.monitor import Monitor
from nacre.isolation.plan import PARTS, Place, guest_cgroup_ops, image_ops, part_ops, subpath
from nacre.isolation.process import IDENTITY, clean_group, find_group, is_host_root, launch, make_group, stem_path
from nacre.linux import userns
from nacre.linux.devices import DEFAULT_DEVICES, DeviceRule
from nacre.linux.files import explained
from nacre.linux.netns import DEFAULT_SYSCTLS
from nacre.model.container import BoundMount, Resources, Sandbox, Stats
from nacre.model.plan import MS_BIND, MS_RDONLY, MS_REC, WRITE_OPTIONAL, Code, Op, Spawn, op
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MIB = 1 << 20
DEFAULT_MEMORY = 512
# MiB that a guest takes besides the container's own memory, by the kind of its kernel (measured: docs/benchmarks.md).
OVERHEAD = {"pvh": 64, "bzImage": 128}

BOOT_SECONDS = 120.0
GUEST_SECONDS = 5.0
RECORD = "vm.json"
LOST = "lost"  # written by the relay: docs/stem-protocol.md, "Frames"

# In the guest. The stage is a directory of the initramfs.
STAGE, SCRATCH = "/stage", "/run/nacre/etc"
GROUP = "/sys/fs/cgroup/container"
USER_BLOCK = 0x1000_0000  # first id of a container's own user namespace; a guest has one container's files

# What the monitor opens before it is confined (tun), and what hardware virtualisation needs.
_DEVICES = (*DEFAULT_DEVICES, DeviceRule(kind="c", major=10, minor=200), DeviceRule(kind="c", major=10, minor=232))
_NINE = "trans=virtio,version=9p2000.L,msize=262144,access=client,cache=mmap"
_TAIL_LINES = 20
# What a relay tells of a monitor that ended by itself, depending on what it notices first; the last: it had ended before it was asked.
_WITHOUT_A_WORD = ("exited with code 0", "the channel was closed", "its monitor has ended", "ended during hello")
_KERNEL_DEVICES = (1, 5, 10)  # majors: memory (null ...), terminals, miscellaneous (fuse, net/tun ...)


class Record(Value):
    """What was chosen for a running machine. confinement: of the monitor; memory in MiB."""

    kernel: str
    accelerator: str
    reason: str
    monitor: str
    confinement: str
    memory: int
    cpus: int


class MicroVm(Driver, Adjustable, Explaining, Pausable, Tapped):
    """The driver of level vm. State of a sandbox: its relay (lock in the directory), the monitor and its cgroups `nacre/<id>`."""

    def start(self, sandbox: Sandbox, *, keep: Sequence[int], exit_command: Sequence[str], custody: bool) -> Channel:
        """Boot an empty guest and greet its stem.

        Raises Unsupported (network host, devices of the host, no 9p for bind mounts, layers that are no EROFS images), HostError
        (no kernel, no QEMU), and SandboxError(stage="boot") with the last lines of the guest's console when it does not come up.
        """
        _check_network(sandbox)
        _check_devices(sandbox)
        _check_users(sandbox)
        # Of a volume only a part of which is mounted, the machine gets the whole.
        binds = tuple(mount.replace(is_dir=True) if subpath(mount) else mount for mount in _binds(sandbox))
        facts = accel.Facts(os.path.dirname(os.path.dirname(sandbox.directory)))
        kernel = kernels.find(sandbox.spec.kernel)
        if binds:
            kernels.require_9p(kernel)
        program, version = accel.find_qemu(facts)
        files = _files(sandbox, kernel, binds)
        accelerator = accel.choose(kernel, files.initramfs, facts)
        machine = jail.inside(_machine(sandbox, kernel, program, accelerator.name, facts), files)
        group = make_group(sandbox, _monitor_limits(sandbox.spec.resources), _DEVICES)
        user = 0 if is_host_root() else userns.mapped_ids() - 1
        for again in (True, False):
            launch("relay", sandbox.directory, keep=keep, exit_command=exit_command)
            channel = Channel(sandbox.directory, custody=custody)
            # Should the first relay end with its monitor, it is not to start anybody who takes the container for one that has ended.
            guard = Channel(sandbox.directory)
            guard.announce()
            try:
                who = _owned(binds, accelerator.name) if user else _confinement(channel, sandbox, binds)
                _spawn(channel, jail.spawn(sandbox, machine, files, group.procs_paths(), who, user=user))
                if _greet(channel, sandbox, machine, again=again):
                    break
            except BaseException:
                _end(channel)
                raise
            finally:
                guard.close()
        record = Record(
            kernel=kernel.version,
            accelerator=accelerator.name,
            reason=accelerator.reason,
            monitor=f"QEMU {version}",
            confinement=str(who),
            memory=machine.memory,
            cpus=machine.cpus,
        )
        try:
            _write(f"{sandbox.directory}/{RECORD}", json.dumps(record.to_data()).encode())
        except BaseException:
            _end(channel)
            raise
        return channel

    def tap_owner(self, sandbox: Sandbox) -> int:
        """Root: the tap is opened before the monitor is confined."""
        return 0

    def place(self, sandbox: Sandbox) -> Place:
        """How the container plan looks in the guest."""
        resources = sandbox.spec.resources
        binds = _binds(sandbox)
        block = USER_BLOCK if sandbox.spec.userns == "private" else 0
        setup = (op(Code.TIME, time.time_ns()), *_sysctl_ops(sandbox), *guest_cgroup_ops(GROUP, limits.guest_files(resources)))
        return Place(
            stage=STAGE,
            scratch=SCRATCH,
            rootfs=(*_share_ops(binds), *_shared_root(len(binds) - 1))
            if _is_shared(sandbox)
            else (*disks.rootfs_ops(sandbox.rootfs, block=block), *_share_ops(binds)),
            join=(f"{GROUP}/cgroup.procs",),
            cgroup_setup=setup,
            cgroup=(("cgroup2", "cgroup2", "", ""),),
            binds={mount.target: _bind_ops(number, mount) for number, mount in enumerate(binds)} | _image_binds(sandbox, bool(block)),
            oom=f"{GROUP}/memory.events",
            user_block=block,
            users=IDENTITY if sandbox.spec.userns == "keep-id" else "",
            stem="/init",
            devtmpfs=True,
        )

    def stats(self, sandbox: Sandbox) -> Stats:
        """CPU time and I/O of the monitor; memory as the host gives it to the machine; processes as the guest counts them."""
        sample = find_group(sandbox.id, sandbox.directory).stats()
        record = _read_record(sandbox.directory)
        limit = record.memory * MIB if record else 0
        return sample.replace(time=time.time(), memory_limit=limit, pids=self._guest_pids(sandbox))

    def _guest_pids(self, sandbox: Sandbox) -> int:
        """0 when the guest does not say: it is paused, busy or has no container yet."""
        if self.paused(sandbox):
            return 0
        channel = Channel(sandbox.directory)
        try:
            return int(channel.read_file(f"{GROUP}/pids.current", timeout=GUEST_SECONDS))
        except (SandboxError, ValueError, TimeoutError):
            return 0
        finally:
            channel.close()

    def update(self, sandbox: Sandbox, changed: Resources) -> None:
        """The host's part in the monitor's control group, the guest's in the container's; the machine itself keeps its size."""
        record = _read_record(sandbox.directory)
        if record:
            _check_size(record, changed)
        files = limits.guest_files(changed)
        if files and self.paused(sandbox):
            raise Conflict("the container is paused, and its guest cannot change limits now", hint="unpause it first")
        find_group(sandbox.id, sandbox.directory).limit(_monitor_limits(changed))
        if files:
            writes = guest_cgroup_ops(GROUP, files)[1:]
            with contextlib.closing(Channel(sandbox.directory)) as channel:
                channel.spawn(Spawn(ops=(*writes, op(Code.BUILTIN, 2, "stat", "/"))), timeout=GUEST_SECONDS)

    def pause(self, sandbox: Sandbox) -> None:
        """Stop the virtual processors."""
        with Monitor(sandbox.directory) as monitor:
            monitor.execute("stop")

    def resume(self, sandbox: Sandbox) -> None:
        """Let them go on, and tell the guest what time it is: its clock stood still. One that does not listen keeps its own."""
        with Monitor(sandbox.directory) as monitor:
            monitor.execute("cont")
        with contextlib.suppress(NacreError, TimeoutError), contextlib.closing(Channel(sandbox.directory)) as channel:
            clock = Spawn(ops=(op(Code.TIME, time.time_ns()), op(Code.BUILTIN, 2, "stat", "/")))
            channel.spawn(clock, timeout=GUEST_SECONDS)

    def paused(self, sandbox: Sandbox) -> bool:
        """Whether they are stopped."""
        with Monitor(sandbox.directory) as monitor:
            status = monitor.execute("query-status")
        return isinstance(status, dict) and status.get("status") == "paused"

    def describe(self, sandbox: Sandbox) -> dict[str, object]:
        """What `inspect` tells: kernel, monitor, accelerator, and what stands between the guest and the host."""
        record = _read_record(sandbox.directory)
        if not record:
            return {}
        return {
            "Kernel": record.kernel,
            "Monitor": record.monitor,
            "Accelerator": record.accelerator,
            "AcceleratorReason": record.reason,
            "Memory": record.memory * MIB,
            "Cpus": record.cpus,
            "Assurance": _assurance(record),
        }

    def post_mortem(self, directory: str) -> str:
        """Why the machine in `directory` ended by itself, as its relay and its console tell it; "" when it did not."""
        try:
            with open(f"{directory}/{LOST}", encoding="utf-8", errors="replace") as file:
                seen = file.readline().strip()
        except OSError:
            return ""
        lines = _console(directory)
        return "\n".join((_cause("\n".join(lines)) or seen, *lines))

    def clean(self, identifier: str, directory: str = "") -> None:
        """Kill what is left of the monitor and remove its cgroups. Idempotent."""
        clean_group(identifier, directory)


def _assurance(record: Record) -> str:
    behind = f"the monitor runs confined, as {record.confinement}"
    if record.accelerator == "kvm":
        return f"own kernel on hardware virtualisation (KVM); {behind}"
    return f"own kernel on a machine emulated in software (TCG, which QEMU does not support as a security boundary); {behind}"


# -- before the boot -----------------------------------------------------------------------------------------------------


def _check_network(sandbox: Sandbox) -> None:
    if not sandbox.endpoint.netns:
        raise Unsupported("a virtual machine cannot share the network of the host", hint="use --network bridge with -p, or --network none")


def _check_devices(sandbox: Sandbox) -> None:
    """A guest has the devices that every kernel has, by the same numbers; those with hardware behind them stay with the host."""
    spec = sandbox.spec
    if not (spec.devices or spec.gpus):
        return
    from nacre.isolation.devices import requested, wants_cdi

    if wants_cdi(spec) or any(device.kind == "b" or device.major not in _KERNEL_DEVICES for device in requested(spec)):
        raise Unsupported(
            "a virtual machine cannot be given a device of the host: "
            + ", ".join((*spec.devices, *(f"--gpus {text}" for text in spec.gpus))),
            hint="use --isolation process for it; a directory of a disk can be mounted with -v",
        )


def _check_users(sandbox: Sandbox) -> None:
    """A guest sees volumes through 9p, which cannot be id-mapped."""
    if sandbox.spec.userns not in ("", "host") and any(mount.kind == "volume" for mount in sandbox.mounts):
        raise Unsupported(
            f"--userns {sandbox.spec.userns}: a volume cannot be mapped into a user namespace of a virtual machine",
            hint="leave --userns out: the machine has a kernel of its own; or use --isolation process",
        )


def _binds(sandbox: Sandbox) -> tuple[BoundMount, ...]:
    """What comes from the host, in the order of the share's numbers; a tmpfs is the guest's own. A shared root file system is the last.

    Images are on the disk of the layers.
    """
    mounts = tuple(mount for mount in sandbox.mounts if mount.kind not in ("tmpfs", "image"))
    return (*mounts, BoundMount(target="/", source=sandbox.rootfs.tree)) if _is_shared(sandbox) else mounts


def _is_shared(sandbox: Sandbox) -> bool:
    """Whether the root file system is a directory of the host, written in place."""
    return bool(sandbox.rootfs.tree) and not sandbox.rootfs.disk


def _files(sandbox: Sandbox, kernel: kernels.GuestKernel, binds: tuple[BoundMount, ...]) -> jail.Files:
    """Everything the monitor opens, made ready on the host."""
    return jail.Files(
        kernel=kernels.readable(kernel),
        initramfs=initramfs.build(stem_path(), (*kernel.modules, *(kernel.nine if binds else ()))),
        layers=() if _is_shared(sandbox) else _layer_files(sandbox),
        disk=sandbox.rootfs.disk,
        binds=binds,
    )


def _layer_files(sandbox: Sandbox) -> tuple[str, ...]:
    """The disk of the layers: descriptor, partition table, images, second table."""
    mounted = (layer.path for mount in sandbox.mounts if mount.kind == "image" for layer in mount.layers)
    images = (*disks.layer_paths(sandbox.rootfs), *mounted)
    disk = disks.layer_disk(disks.layer_sizes(images))
    tables = [f"{sandbox.directory}/layers.{name}" for name in ("vmdk", "head", "tail")]
    for path, data in zip(tables, (disks.descriptor(disk, jail.layer_names(len(images))), disk.head, disk.tail), strict=True):
        _write(path, data)
    return tables[0], tables[1], *images, tables[2]


def _write(path: str, data: bytes) -> None:
    # Not atomic: the directory belongs to this start alone, under its lock.
    with explained(f"write {path}"), open(path, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), 0o644)


def guest_memory(resources: Resources, kernel: kernels.GuestKernel) -> int:
    """MiB of the machine: the container's limit and what its kernel needs besides, or 512."""
    if not resources.memory:
        return DEFAULT_MEMORY
    limit = -(-resources.memory // MIB)
    # A guest kernel keeps 64 bytes per page.
    return OVERHEAD[kernel.kind] + limit + limit // 64


def _check_size(record: Record, changed: Resources) -> None:
    """A running machine has the memory and the processors that it booted with."""
    if changed.memory > record.memory * MIB:
        raise Unsupported(
            f"the running machine has {record.memory} MiB of memory: its limit cannot rise above that",
            hint="stop the container, update it, and start it again",
        )
    if math.ceil(limits.processors(changed)) > record.cpus:
        raise Unsupported(
            f"the running machine has {record.cpus} processors: it cannot use more",
            hint="stop the container, update it, and start it again",
        )


def _machine(sandbox: Sandbox, kernel: kernels.GuestKernel, program: str, accelerator: str, facts: accel.Facts) -> qemu.Machine:
    resources, endpoint = sandbox.spec.resources, sandbox.endpoint
    cpus = min(max(1, math.ceil(limits.processors(resources))), qemu.CPUS_MAX)
    return qemu.Machine(
        program=program,
        accelerator=accelerator,
        kernel=kernel.path,
        transport=kernel.transport,
        initramfs="",
        append=qemu.append(accelerator, kernel.transport, accel.tsc_khz(facts) if accelerator == "tcg" else 0, cpus),
        memory=guest_memory(resources, kernel),
        cpus=cpus,
        mac=endpoint.mac if endpoint.interface else "",
        mtu=endpoint.mtu,
    )


def _monitor_limits(resources: Resources) -> dict[str, Any]:
    """What the host's cgroup holds the monitor to. Memory and processes are the guest's to limit: it has no more than it was given."""
    return {} if resources == Resources() else limits.host_object(resources)


# -- the boot ------------------------------------------------------------------------------------------------------------


def _confinement(channel: Channel, sandbox: Sandbox, binds: tuple[BoundMount, ...]) -> jail.Confinement:
    """The tightest that serves these binds."""
    if not binds:
        return jail.Confinement.USER
    try:
        _spawn(channel, jail.mapping_trial(sandbox, binds))
    except SandboxGone:
        raise
    except SandboxError as error:
        # File servers, and tmpfs before Linux 6.3, cannot be id-mapped.
        if ": idmap " not in error.details:
            raise
        return jail.Confinement.ROOT
    return jail.Confinement.NAMESPACE


def _owned(binds: tuple[BoundMount, ...], accelerator: str) -> jail.Confinement:
    """The tightest in the namespaces of an ordinary user: its own identity only for what only it may open."""
    closed = accelerator == "kvm" and os.stat("/dev/kvm").st_mode & 0o006 != 0o006
    return jail.Confinement.OWNER if binds or closed else jail.Confinement.USER


def _spawn(channel: Channel, record: Spawn) -> None:
    """Run a plan on the host; its failure is not the container's."""
    try:
        channel.spawn(record)
    except SandboxGone:
        raise
    except NacreError as error:
        reason = error.message.removeprefix("could not set up the container: ")
        raise SandboxError(f"could not start the virtual machine's monitor: {reason}", stage="launch", details=error.details) from error


def _end(channel: Channel) -> None:
    """End a relay and its monitor, as far as they live."""
    with contextlib.suppress(NacreError):
        channel.shutdown(force=True, timeout=5.0)
    channel.close()


def _greet(channel: Channel, sandbox: Sandbox, machine: qemu.Machine, *, again: bool) -> bool:
    """Wait for the guest's stem. again: a machine that reset itself may be started anew: False says so, and its relay is gone then."""
    try:
        channel.hello(timeout=BOOT_SECONDS)
    except SandboxError as error:
        seen = error.message.removeprefix("hello: ")
        if again and _reset_itself(sandbox.directory, seen, machine):
            channel.linger(GUEST_SECONDS)
            channel.close()
            return False
        raise boot_error(sandbox.directory, seen, machine) from error
    return True


def _reset_itself(directory: str, seen: str, machine: qemu.Machine) -> bool:
    """Whether a translated machine ended without a word, as one with several processors now and then does early on a busy host.

    QEMU 7.2 runs each of these in a thread of its own. A guest that has a reason to end (a panic, no channel) tells it on its console.
    """
    console = "\n".join(_console(directory))
    silent = not _cause(console) and "stem: " not in console
    return machine.accelerator == "tcg" and silent and any(words in seen for words in _WITHOUT_A_WORD)


def boot_error(directory: str, seen: str, machine: qemu.Machine) -> SandboxError:
    """The error of a guest that did not come up: the cause as its console tells it, else what was seen from outside."""
    lines = _console(directory)
    text = "\n".join(lines)
    hint = "NACRE_ACCEL=tcg does without KVM" if machine.accelerator == "kvm" else "the guest's console is in the details: --debug"
    cause = _cause(text)
    if "panicked" in cause:
        if "out of memory" in text.lower() or "oom" in text:
            hint = f"the machine has {machine.memory} MiB; give it more with --memory"
    elif cause:
        if "allocate memory" in cause:
            hint = f"the host has no {machine.memory} MiB left for the machine; use a smaller --memory"
    elif lines:
        cause = f"{seen}; its last words: {lines[-1]}"
    else:
        cause = f"{seen}; its console is empty"
        if machine.accelerator != "kvm":
            hint = f"the machine has {machine.memory} MiB: too little, or the kernel does not fit this machine type"
    return SandboxError(f"the virtual machine did not start: {cause}", stage="boot", hint=hint, details=text)


def _cause(text: str) -> str:
    """What a console says about the end, "" when it says nothing."""
    if found := re.search(r"Kernel panic - not syncing: (.*)", text):
        return f"the guest kernel panicked: {found[1].strip()}"
    if found := re.search(r"qemu-system-\w+: (?!terminating on signal)(.*)", text):
        return f"the monitor failed: {found[1].strip()}"
    return ""


def _console(directory: str) -> list[str]:
    """The last lines of the console, or those from its kernel's panic on; printable characters only."""
    try:
        with open(f"{directory}/{jail.CONSOLE}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    printable = ("".join(letter for letter in line if letter.isprintable()).strip() for line in text.splitlines())
    lines = [line for line in printable if line]
    panic = next((number for number, line in enumerate(lines) if "Kernel panic - " in line), len(lines))
    return lines[min(panic, max(0, len(lines) - _TAIL_LINES)) :][:_TAIL_LINES]


def _read_record(directory: str) -> Record | None:
    try:
        with open(f"{directory}/{RECORD}", encoding="utf-8") as file:
            return Record.from_data(json.load(file))
    except (OSError, ValueError):
        return None


# -- in the guest --------------------------------------------------------------------------------------------------------


def _sysctl_ops(sandbox: Sandbox) -> tuple[Op, ...]:
    """What a network namespace on the host is made with (`nacre.linux.netns`), for the guest's own network."""
    values = dict(DEFAULT_SYSCTLS)
    if sandbox.endpoint.interface:
        values[f"net/ipv6/conf/{sandbox.endpoint.interface}/disable_ipv6"] = "1"
    return tuple(op(Code.WRITE, f"/proc/sys/{name}", value.encode(), WRITE_OPTIONAL) for name, value in values.items())


def _share_ops(binds: Sequence[BoundMount]) -> tuple[Op, ...]:
    """Mount the share with all binds at `binds` below the working directory."""
    if not binds:
        return ()
    return op(Code.MKDIR, "binds", 0o755), op(Code.MOUNT, qemu.BINDS_TAG, "binds", "9p", 0, _NINE)


def _shared_root(number: int) -> tuple[Op, ...]:
    """The root file system out of the share, with this number."""
    return op(Code.MKDIR, "root", 0o755), op(Code.BIND, f"binds/{number}", "root", MS_BIND | MS_REC)


def _image_binds(sandbox: Sandbox, idmapped: bool) -> dict[str, tuple[Op, ...]]:
    """The images that are mounted: their layers are partitions behind those of the root file system, in the order of the mounts."""
    made: dict[str, tuple[Op, ...]] = {}
    partition = len(sandbox.rootfs.layers)
    for number, mount in enumerate(mount for mount in sandbox.mounts if mount.kind == "image" and mount.layers):
        devices = tuple(layer.replace(path=f"/dev/vda{partition + place}") for place, layer in enumerate(mount.layers, 1))
        partition += len(devices)
        ops = image_ops(mount.replace(layers=devices), number, f"{STAGE}/root", idmapped=idmapped)
        made[mount.target] = (op(Code.MKDIR, f"%{mount.target}", 0o755), *ops)
    return made


def _bind_ops(number: int, mount: BoundMount) -> tuple[Op, ...]:
    """Bind one of them into the container."""
    target = f"%{mount.target}"
    if subpath(mount):
        return tuple(part_ops(mount, PARTS + number, f"{STAGE}/binds/{number}", f"{STAGE}/root"))
    made = op(Code.MKDIR, target, 0o755) if mount.is_dir else op(Code.TOUCH, target, 0o644)
    return made, op(Code.BIND, f"{STAGE}/binds/{number}", target, MS_BIND | MS_REC | (MS_RDONLY if mount.read_only else 0))
