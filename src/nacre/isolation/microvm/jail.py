"""The plan of the monitor's process: what a QEMU that has been taken over by its guest can still reach.

It is a process of its own user without capabilities, in mount, PID, IPC and UTS namespaces of its own and in the network
namespace of the sandbox's endpoint. Its root directory is an empty tmpfs with read-only binds of the system's libraries, the
kernel, and the image files of this sandbox's layers. Everything else it uses it was given as an open descriptor.

Bind mounts need more: the guest's root must own what it creates there. The monitor is then root of a user namespace whose 65536
ids the mounts are mapped to (id-mapped mounts, Linux 5.12), with the capabilities that file ownership takes in that namespace
and none outside. Where the source's file system cannot be id-mapped, it keeps those few capabilities on the host (`Confinement.ROOT`).

An ordinary user's engine is in a user namespace already: there the monitor is one of the user's subordinate ids, or, when it serves
bind mounts or needs the user's groups to open /dev/kvm, the user (`Confinement.OWNER`). Device nodes cannot be made there, so the
host's are bound.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence

from nacre.isolation.microvm import monitor, qemu
from nacre.model.container import BoundMount, Sandbox
from nacre.model.plan import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUTS,
    Code,
    Op,
    Spawn,
    op,
)
from nacre.model.value import Value

TAP = "tap0"  # made by nacre.network in the endpoint's namespace and spliced with its interface
CHANNEL_FD, CONTROL_FD, DISK_FD, TAP_FD = 20, 21, 22, 23
CONSOLE, CONSOLE_LIMIT = "console.log", 1 << 20

NOBODY = 65534
BLOCK = 65536
# Where the monitor's user namespace begins when the sandbox was given no block of its own.
SPARE_BLOCK = 0x7F000000

# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: what serving files on behalf of any user takes (capabilities(7)).
FILE_CAPABILITIES = 0b11111

_LIBRARIES = ("/usr", "/lib", "/lib64", "/nix/store")
_READ_ONLY = MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
_RLIMIT_CORE = 4
_SIGKILL = 9
_S_IFCHR = 0o020000
_NULL_DEVICE, _KVM_DEVICE = 1 << 8 | 3, 10 << 8 | 232


class Confinement(enum.StrEnum):
    """Who the monitor is on the host."""

    USER = "an unprivileged user of its own"
    NAMESPACE = "root of a user namespace of its own"
    ROOT = "root with the capabilities of file ownership only"
    OWNER = "the user who started it, without privileges on the host"


class Files(Value):
    """Paths on the host. layers: descriptor, head, images..., tail, in the order of `LAYER_NAMES`; binds: in the order of their numbers."""

    kernel: str
    initramfs: str
    layers: tuple[str, ...] = ()
    disk: str = ""
    binds: tuple[BoundMount, ...] = ()


def inside(machine: qemu.Machine, files: Files) -> qemu.Machine:
    """The machine with the paths and descriptors that `spawn` puts in place for it."""
    return machine.replace(
        kernel="/boot/kernel",
        initramfs="/boot/initramfs",
        channel=CHANNEL_FD,
        control=CONTROL_FD,
        layers="/layers/disk.vmdk" if files.layers else "",
        disk=DISK_FD if files.disk else -1,
        tap=TAP_FD if machine.mac else -1,
        share="/binds" if files.binds else "",
    )


def layer_names(count: int) -> tuple[str, ...]:
    """Paths in the jail of: head, `count` images, tail."""
    return ("/layers/head", *(f"/layers/{number}" for number in range(count)), "/layers/tail")


def mapping_trial(sandbox: Sandbox, binds: Sequence[BoundMount]) -> Spawn:
    """A spawn record that succeeds when all of these mounts can be id-mapped; nothing is left of it."""
    jail = f"{sandbox.directory}/jail"
    setup = [*_empty_root(jail), *_user_namespace(sandbox), *_shares(binds, mapped=True)]
    return Spawn(ops=(*setup, op(Code.BUILTIN, 2, "stat", "/")), clone=NEWNS, local=True)


def spawn(sandbox: Sandbox, machine: qemu.Machine, files: Files, join: Sequence[str], who: Confinement, *, user: int = 0) -> Spawn:
    """The monitor's spawn record. machine: as `inside` made it; join: files that take "0" to join the cgroups.

    user: an id for the monitor in a user namespace where device nodes cannot be made, 0 = this is the host's root.
    """
    ops = [op(Code.WRITE, path, b"0", 0) for path in join]
    if sandbox.endpoint.netns:
        ops.append(op(Code.SETNS, sandbox.endpoint.netns, NEWNET))
    if machine.tap >= 0:
        ops.append(op(Code.TAP, TAP, TAP_FD))
    ops += [op(Code.LISTEN, f"{sandbox.directory}/{monitor.SOCKET}", CONTROL_FD), op(Code.CHANNEL, CHANNEL_FD)]
    if files.disk:
        ops.append(op(Code.OPEN, files.disk, os.O_RDWR, DISK_FD))
    ops += _empty_root(f"{sandbox.directory}/jail")
    ops += _system(machine, nodes=not user)
    ops += _images(files)
    if who is Confinement.NAMESPACE:
        ops += _user_namespace(sandbox)
    ops += _shares(files.binds, mapped=who is Confinement.NAMESPACE)
    ops += [op(Code.PIVOT), op(Code.UMASK, 0), op(Code.RLIMIT, _RLIMIT_CORE, 0, 0)]
    ops += _identity(who, user or sandbox.owner or NOBODY, FILE_CAPABILITIES if files.binds else 0)
    ops += [op(Code.NNP), op(Code.DEATH, _SIGKILL)]
    argv = qemu.command_line(machine)
    return Spawn(
        ops=(*ops, op(Code.EXEC, len(argv), *argv)),
        clone=NEWNS | NEWPID | NEWIPC | NEWUTS,
        log=CONSOLE,
        log_limit=CONSOLE_LIMIT,
        local=True,
        channel=True,
        console=True,
    )


def _empty_root(jail: str) -> list[Op]:
    return [
        op(Code.MOUNT, "none", "/", "", MS_REC | MS_PRIVATE, ""),
        op(Code.MKDIR, jail, 0o700),
        op(Code.MOUNT, "nacre", jail, "tmpfs", MS_NOSUID, "mode=0755,size=1m"),
        op(Code.ROOT, jail),
    ]


def _user_namespace(sandbox: Sandbox) -> list[Op]:
    line = f"0 {sandbox.owner or SPARE_BLOCK} {BLOCK}\n"
    return [op(Code.USERNS, line, line)]


def _system(machine: qemu.Machine, *, nodes: bool) -> list[Op]:
    """The program and what it is linked with; the devices it opens itself."""
    ops: list[Op] = []
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(machine.program)))
    wanted = _LIBRARIES if prefix.startswith(_LIBRARIES) else (*_LIBRARIES, prefix)
    for path in wanted:
        if os.path.islink(path):
            ops.append(op(Code.SYMLINK, os.readlink(path), f"%{path}"))
        elif os.path.isdir(path):
            # In a user namespace what is mounted below cannot be left out.
            ops += [op(Code.MKDIR, f"%{path}", 0o755), op(Code.BIND, path, f"%{path}", _READ_ONLY | (0 if nodes else MS_REC))]
    if os.path.isfile("/etc/ld.so.cache"):
        ops += _file("/etc/ld.so.cache", "%/etc/ld.so.cache")
    ops += [op(Code.MKDIR, "%/dev", 0o755), *_node("/dev/null", _NULL_DEVICE, nodes)]
    if machine.accelerator == "kvm":
        ops += _node("/dev/kvm", _KVM_DEVICE, nodes)
    return ops


def _node(path: str, number: int, made: bool) -> list[Op]:
    if made:
        return [op(Code.MKNOD, f"%{path}", _S_IFCHR | 0o666, number)]
    return [op(Code.TOUCH, f"%{path}", 0o444), op(Code.BIND, path, f"%{path}", MS_BIND | MS_NOSUID | MS_NOEXEC)]


def _images(files: Files) -> list[Op]:
    ops = [op(Code.MKDIR, "%/boot", 0o755), *_file(files.kernel, "%/boot/kernel"), *_file(files.initramfs, "%/boot/initramfs")]
    if files.layers:
        ops.append(op(Code.MKDIR, "%/layers", 0o755))
        names = ("/layers/disk.vmdk", *layer_names(len(files.layers) - 3))
        for path, name in zip(files.layers, names, strict=True):
            ops += _file(path, f"%{name}")
    return ops


def _file(source: str, target: str) -> list[Op]:
    return [op(Code.TOUCH, target, 0o444), op(Code.BIND, source, target, _READ_ONLY)]


def _shares(binds: Sequence[BoundMount], *, mapped: bool) -> list[Op]:
    """One directory with every bind in it, by number: a machine has few slots, and 9p follows mounts."""
    if not binds:
        return []
    # QEMU's file server changes modes through /proc/self/fd.
    ops = [op(Code.MKDIR, "%/proc", 0o555), op(Code.MOUNT, "proc", "%/proc", "proc", _READ_ONLY & ~MS_BIND | MS_NOEXEC, "subset=pid")]
    ops.append(op(Code.MKDIR, "%/binds", 0o755))
    for number, mount in enumerate(binds):
        target = f"%/binds/{number}"
        flags = MS_BIND | MS_REC | MS_NOSUID | MS_NODEV | MS_NOEXEC | (MS_RDONLY if mount.read_only else 0)
        ops.append(op(Code.MKDIR, target, 0o755) if mount.is_dir else op(Code.TOUCH, target, 0o644))
        ops.append(op(Code.BIND, mount.source, target, flags))
        if mapped:
            ops.append(op(Code.IDMAP, target))
    return ops


def _identity(who: Confinement, user: int, capabilities: int) -> list[Op]:
    if who is Confinement.USER:
        return [op(Code.BOUND, 0), op(Code.SETUID, user, user), op(Code.CAPS, 0, 0, 0, 0)]
    enter = [op(Code.ENTER)] if who is Confinement.NAMESPACE else []
    return [*enter, op(Code.BOUND, capabilities), op(Code.CAPS, capabilities, capabilities, 0, 0)]
