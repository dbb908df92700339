"""QEMU's command line for a micro virtual machine, from facts alone.

The machine type is ``microvm``: no firmware to speak of, devices on virtio-mmio. A kernel that finds those on its command line
(ours) boots without ACPI; a distribution's kernel gets ACPI tables, which still boots faster than a q35 machine. Every device has
a fixed slot, so that names in the guest do not depend on the monitor's version.

Sources: QEMU 7.2, docs/system/i386/microvm.rst, qemu(1); kernel parameters: Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

import re

from nacre.errors import HostError
from nacre.linux import run
from nacre.model.value import Value

PROGRAM = "qemu-system-x86_64"
CPUS_MAX = 64
BINDS_TAG = "binds"

# Order in which the guest is to find its devices: the first disk is /dev/vda. The machine has eight slots.
_ORDER = ("layers", "disk", "channel", "entropy", "net", "binds")
_LAST_SLOT = 7
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# A translated guest without "fast string" instructions clears and copies pages three to six times faster: QEMU translates these
# byte by byte. Page tables of five levels make every miss of its TLB dearer.
_CPU = {"kvm": "host", "tcg": "max,la57=off,erms=off,fsrm=off"}
# In MiB. QEMU would take up to 1 GiB for translated code, which a guest can make it fill.
_TRANSLATION_CACHE = 256


class Machine(Value):
    """A virtual machine as the monitor is told of it. Paths are as the (confined) monitor sees them, descriptors are its own.

    transport: see `GuestKernel`; memory in MiB; channel: connected socket of the guest's stem; control: listening socket for QMP.
    layers: VMDK descriptor; disk: descriptor of the writable disk; tap: descriptor of a tap interface; share: directory for 9p.
    A part that is missing is "" or -1.
    """

    program: str
    accelerator: str
    kernel: str
    transport: str
    initramfs: str
    append: str
    memory: int
    cpus: int = 1
    channel: int = -1
    control: int = -1
    layers: str = ""
    disk: int = -1
    tap: int = -1
    mac: str = ""
    mtu: int = 1500
    share: str = ""


def version(program: str) -> str:
    """The monitor's version, as in "7.2.22". Raises HostError when it does not tell."""
    said = run.check([program, "--version"]).decode(errors="replace")
    found = re.search(r"version (\d+(?:\.\d+)+)", said)
    if not found:
        raise HostError(f"{program} does not tell its version: {said.strip()[:80]!r}", hint="apt-get install qemu-system-x86")
    return found[1]


def append(accelerator: str, transport: str, tsc_khz: int, cpus: int) -> str:
    """The guest kernel's command line. tsc_khz: the host's, 0 = unknown.

    reboot=t: a guest ends by a triple fault, which the monitor takes for its exit; there is no ACPI to switch anything off.
    """
    words = ["console=ttyS0", "quiet", "reboot=t", "panic=-1"]
    # A monolithic kernel would show every container a dummy interface and a tunnel.
    words += ["dummy.numdummies=0", "fb_tunnels=none"]
    # Who joins a cgroup or gives up a namespace waits for RCU: three ticks, or almost nothing when it is asked to hurry.
    words.append("rcupdate.rcu_expedited=1")
    if accelerator == "tcg":
        # Each of these leaves out something that is slow when it is emulated: calibrations, patching of instructions, and what
        # hardens real processors against speculation (of it nothing survives translation).
        words += ["no_timer_check", "noreplace-smp", "mitigations=off"]
        if cpus == 1 and transport == "cmdline":
            # The older timer serves one processor as well. Described by ACPI, this machine does not have it.
            words.append("noapictimer")
        if tsc_khz:
            words += [f"tsc_early_khz={tsc_khz}", "tsc=reliable"]
    return " ".join(words)


def command_line(machine: Machine) -> tuple[str, ...]:
    """The argument vector, program first."""
    return (
        machine.program,
        *("-name", "nacre", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", _machine_type(machine.transport), "-accel", _accelerator(machine.accelerator)),
        *("-cpu", _CPU[machine.accelerator], "-smp", str(machine.cpus), "-m", f"{machine.memory}M"),
        *("-kernel", machine.kernel, "-initrd", machine.initramfs, "-append", machine.append),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *_channels(machine),
        *_disks(machine),
        *_network(machine),
        *_binds(machine),
        *("-sandbox", _SANDBOX),
    )


def _machine_type(transport: str) -> str:
    return {"cmdline": "microvm,acpi=off", "acpi": "microvm,acpi=on,pcie=off", "pci": "microvm,acpi=on,pcie=on"}[transport]


def _accelerator(name: str) -> str:
    return name if name == "kvm" else f"tcg,tb-size={_TRANSLATION_CACHE}"


def _device(machine: Machine, kind: str, part: str, options: str = "") -> tuple[str, str]:
    """One device in the slot of its part."""
    number = _ORDER.index(part)
    if machine.transport == "pci":
        return "-device", f"{kind}-pci,addr={number + 1}{options}"
    # Linux finds the slots from the last to the first.
    slot = _LAST_SLOT - number
    return "-device", f"{kind}-device,bus=virtio-mmio-bus.{slot}{options}"


def _channels(machine: Machine) -> list[str]:
    # A translated guest's RDRAND is the host's random numbers already; every device costs 10 ms of its boot.
    words = [*_device(machine, "virtio-rng", "entropy")] if machine.accelerator == "kvm" else []
    if machine.channel >= 0:
        words += ["-chardev", f"socket,id=channel,fd={machine.channel}", *_device(machine, "virtio-serial", "channel", ",max_ports=2")]
        words += ["-device", "virtserialport,chardev=channel,name=nacre.0"]
    if machine.control >= 0:
        words += ["-chardev", f"socket,id=control,fd={machine.control},server=on,wait=off", "-mon", "chardev=control,mode=control"]
    return words


def _disks(machine: Machine) -> list[str]:
    words: list[str] = []
    if machine.layers:
        words += ["-blockdev", f"driver=vmdk,node-name=layers,read-only=on,file.driver=file,file.filename={machine.layers}"]
        words += _device(machine, "virtio-blk", "layers", ",drive=layers")
    if machine.disk >= 0:
        # The node is the plain file: what the guest writes into it is never taken for a format.
        words += ["-add-fd", f"fd={machine.disk},set=1"]
        words += ["-blockdev", "driver=file,node-name=disk,filename=/dev/fdset/1,discard=unmap"]
        # When the host's disk is full the guest is told; the default would stop the machine without a word.
        words += _device(machine, "virtio-blk", "disk", ",drive=disk,werror=report,rerror=report")
    return words


def _network(machine: Machine) -> list[str]:
    if machine.tap < 0:
        return []
    options = f",netdev=net,mac={machine.mac},host_mtu={machine.mtu}" + (",romfile=" if machine.transport == "pci" else "")
    return ["-netdev", f"tap,id=net,fd={machine.tap}", *_device(machine, "virtio-net", "net", options)]


def _binds(machine: Machine) -> list[str]:
    if not machine.share:
        return []
    # remap: the share has mounts of several file systems in it, whose inode numbers may collide.
    local = f"local,id=binds,path={machine.share},security_model=passthrough,multidevs=remap"
    return ["-fsdev", local, *_device(machine, "virtio-9p", "binds", f",fsdev=binds,mount_tag={BINDS_TAG}")]
