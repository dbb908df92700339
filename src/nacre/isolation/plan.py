"""The container plan: from a sandbox and a process to the operations that bring the process up.

The same list serves every level; a `Place` says the few things that differ (where layers come from, how a cgroup is joined,
whether there is a network namespace to enter). Order matters and is explained where it does. Defaults (devices, mounts,
masked paths) follow the OCI runtime specification, config-linux.md, and what Docker users find in a container.
"""

from __future__ import annotations

import _socket
from collections.abc import Iterable, Iterator

from nacre.errors import InvalidArgument
from nacre.model.container import BoundMount, ProcessSpec, Sandbox
from nacre.model.plan import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    MS_STRICTATIME,
    NEWCGROUP,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    WRITE_CREATE,
    WRITE_OPTIONAL,
    Code,
    Op,
    Spawn,
    op,
)
from nacre.model.value import Value

NAMESPACES = NEWPID | NEWIPC | NEWUTS
SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
SIGKILL = 9
S_IFCHR, S_IFBLK = 0o020000, 0o060000

# name, major, minor: OCI runtime specification, config-linux.md, "Default Devices".
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Device(Value):
    """A device node to make: name below /dev, kind c or b, numbers, permission bits; source: path of the host's node, "" = of that name."""

    name: str
    major: int
    minor: int
    kind: str = "c"
    mode: int = 0o666
    source: str = ""


class Etc(Value):
    """The generated files of /etc: contents of hosts, resolv.conf and hostname. None: leave the image's file alone."""

    hosts: bytes | None = None
    resolv: bytes | None = None
    hostname: bytes | None = None


class Security(Value):
    """What the process may do. capabilities: mask; seccomp: array of struct sock_filter, b"" = none; masked: hide /proc and /sys parts."""

    capabilities: int
    seccomp: bytes = b""
    no_new_privileges: bool = False
    masked: bool = True
    rlimits: tuple[tuple[int, int, int], ...] = ()


class Place(Value):
    """How one level differs from another, as data.

    stage:    directory that the plan may cover with a tmpfs and work in; scratch: where the generated files of /etc are kept.
    rootfs:   operations that put the root file system at `<stage>/root` (stage is the working directory then).
    join:     files that take "0" to join the cgroups; cgroup_setup: operations that make those first (in a guest).
    cgroup:   (source, type, name, data) of the mounts below /sys/fs/cgroup: one with name "" = cgroup v2, or several of v1.
    netns:    network namespace to enter, "" = stay; configure: set the interface up (once per sandbox).
    binds:    for a target, the operations that mount it when it is not a plain host path (9p in a guest).
    oom:      file with an oom_kill counter; user_block: first host uid of the 65536 of a user namespace, 0 = none.
    devtmpfs: privileged containers see the kernel's own /dev (only where that kernel is theirs alone).
    nodes:    device nodes can be made; where not (user namespaces), the host's are bound.
    sysfs:    a sysfs can be mounted; where not (somebody else's network namespace), the host's is bound.
    """

    stage: str
    scratch: str
    rootfs: tuple[Op, ...]
    join: tuple[str, ...] = ()
    cgroup_setup: tuple[Op, ...] = ()
    cgroup: tuple[tuple[str, str, str, str], ...] = ()
    netns: str = ""
    configure: bool = True
    binds: dict[str, tuple[Op, ...]] = {}
    oom: str = ""
    user_block: int = 0
    devtmpfs: bool = False
    nodes: bool = True
    sysfs: bool = True


def container_plan(sandbox: Sandbox, process: ProcessSpec, place: Place, security: Security, devices: Iterable[Device], etc: Etc) -> Spawn:
    """The plan of a container's main process, namespaces and all.

    Raises InvalidArgument for a mount target that is not an absolute path.
    """
    spec = sandbox.spec
    ops: list[Op] = [op(Code.UMASK, 0), op(Code.MOUNT, "none", "/", "", MS_REC | MS_SLAVE, "")]
    if place.netns:
        ops.append(op(Code.SETNS, place.netns, NEWNET))
    if place.configure:
        ops += network_ops(sandbox)
    # Those of the network belong to the user namespace that made it: the host's. /proc/sys/net shows the caller's own.
    ops += _sysctl_ops((key, value) for key, value in spec.sysctls.items() if key.startswith("net."))
    # Written while the host's files are in sight; bound into the container further down.
    ops += _etc_files(place, etc)
    if place.user_block:
        block = f"0 {place.user_block} 65536\n"
        ops.append(op(Code.USERNS, block, block))
    ops += [op(Code.MOUNT, "tmpfs", place.stage, "tmpfs", SAFE & ~MS_NOEXEC & ~MS_NODEV, "mode=0711,size=1m"), op(Code.CHDIR, place.stage)]
    ops += place.rootfs
    ops.append(op(Code.ROOT, f"{place.stage}/root"))
    ops += _dev(spec.shm_size, devices, devtmpfs=place.devtmpfs and spec.privileged, owner=place.user_block, nodes=place.nodes)
    # Into the cgroups only now: their device rules would forbid the loop devices that some hosts need for layers.
    ops += place.cgroup_setup
    ops += (op(Code.WRITE, path, b"0", 0) for path in place.join)
    # sysfs shows the network namespace it is mounted from, which is this process's by now.
    ops += _sys(place.sysfs, SAFE | (0 if spec.privileged else MS_RDONLY))
    ops.append(op(Code.UNSHARE, NEWCGROUP))
    ops += _cgroup_mounts(place.cgroup, read_only=not spec.privileged)
    # Everything whose source is a path of the host is mounted by the host's root, who may walk there.
    whole_etc = [mount for mount in sandbox.mounts if mount.target.rstrip("/") == "/etc" and not mount.read_only]
    ops += mount_ops(whole_etc, place.binds)
    ops += (op(Code.TOUCH, f"%/etc/{name}", 0o644) for name, _ in _etc_entries(etc))
    # Only then: once it is mapped, the host's root has no id to make files with.
    ops += _mapping_ops(whole_etc, place.user_block)
    # Over a volume at /etc, as Docker does; below a mount of one of these very files.
    ops += _etc_binds(place, etc, MS_BIND | (MS_RDONLY if spec.read_only else 0))
    ops += mount_ops((mount for mount in sandbox.mounts if mount not in whole_etc), place.binds, place.user_block)
    if place.user_block:
        # The rest belongs to namespaces that the container's own user namespace owns.
        ops += [op(Code.ENTER), op(Code.CLONE, NAMESPACES | NEWNS)]
    ops += [
        op(Code.MKDIR, "%/proc", 0o755),
        op(Code.MOUNT, "proc", "%/proc", "proc", SAFE, ""),
        op(Code.MOUNT, "devpts", "%/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        op(Code.MOUNT, "mqueue", "%/dev/mqueue", "mqueue", SAFE, ""),
    ]
    ops.append(op(Code.HOSTNAME, sandbox.hostname))
    ops += _sysctl_ops(((key, value) for key, value in spec.sysctls.items() if not key.startswith("net.")), "%")
    if process.working_dir != "/":
        ops.append(op(Code.MKDIR, f"%{process.working_dir}", 0o755))
    if process.tty:
        ops.append(op(Code.TTY, "%/dev/pts/ptmx", "%/dev/console"))
    if security.masked:
        ops += (op(Code.READONLY, f"%{path}", 1) for path in READ_ONLY)
        ops += (op(Code.MASK, f"%{path}") for path in MASKED)
    if spec.read_only:
        ops.append(op(Code.MOUNT, "none", "%/", "", MS_REMOUNT | MS_BIND | MS_RDONLY, ""))
    ops += [op(Code.PIVOT), op(Code.UMASK, 0o022)]
    if spec.oom_score_adj:
        ops.append(op(Code.WRITE, "/proc/self/oom_score_adj", str(spec.oom_score_adj).encode(), 0))
    ops += process_ops(process, security)
    return Spawn(
        ops=tuple(ops),
        clone=NEWNS | (0 if place.user_block else NAMESPACES),
        oom=place.oom,
        tty=process.tty,
        stdin=process.open_stdin,
        rows=process.rows,
        columns=process.columns,
    )


def exec_plan(main: int, process: ProcessSpec, place: Place, security: Security) -> Spawn:
    """The plan of one more process in a running container whose main process is number `main` of the sandbox."""
    namespaces = NEWNS | NAMESPACES | NEWCGROUP | (NEWUSER if place.user_block else 0) | (NEWNET if place.netns else 0)
    ops = [op(Code.WRITE, path, b"0", 0) for path in place.join]
    ops += [op(Code.JOIN, main, namespaces), op(Code.CLONE, 0), op(Code.UMASK, 0o022)]
    if process.tty:
        ops.append(op(Code.TTY, "/dev/pts/ptmx", ""))
    ops += process_ops(process, security)
    return Spawn(
        ops=tuple(ops),
        oom=place.oom,
        tty=process.tty,
        stdin=process.open_stdin,
        rows=process.rows,
        columns=process.columns,
    )


def builtin_plan(main: int, place: Place, arguments: tuple[str, ...], *, stdin: bool = False) -> Spawn:
    """The plan that runs one of stem's own programs inside a running container, as its root: file transfer, process list."""
    namespaces = NEWNS | NEWPID | (NEWUSER if place.user_block else 0)
    ops = [op(Code.WRITE, path, b"0", 0) for path in place.join]
    ops += [op(Code.JOIN, main, namespaces), op(Code.CLONE, 0), op(Code.BUILTIN, len(arguments), *arguments)]
    return Spawn(ops=tuple(ops), stdin=stdin)


def network_ops(sandbox: Sandbox) -> list[Op]:
    """Loopback up; the interface up with its address and default route. The endpoint is configured by the plan at every level."""
    endpoint = sandbox.endpoint
    if endpoint.network == "host":
        return []
    ops = [op(Code.LINK, "lo", 0)]
    if endpoint.interface:
        address, _, prefix = endpoint.address.partition("/")
        ops += [
            op(Code.LINK, endpoint.interface, endpoint.mtu),
            op(Code.ADDRESS, endpoint.interface, _packed(address), int(prefix)),
        ]
        if endpoint.gateway:
            ops.append(op(Code.ROUTE, _packed(endpoint.gateway), endpoint.interface))
    return ops


def _sysctl_ops(values: Iterable[tuple[str, str]], root: str = "") -> Iterator[Op]:
    return (op(Code.WRITE, f"{root}/proc/sys/{key.replace('.', '/')}", value.encode(), 0) for key, value in values)


def _packed(address: str) -> bytes:
    return _socket.inet_pton(_socket.AF_INET, address)


def process_ops(process: ProcessSpec, security: Security) -> list[Op]:
    """From an entered root directory to exec: working directory, limits, identity, privileges, filter, program."""
    ops = [op(Code.CHDIR, process.working_dir)]
    ops += (op(Code.RLIMIT, *limit) for limit in security.rlimits)
    ops.append(op(Code.BOUND, security.capabilities))
    if security.no_new_privileges:
        ops.append(op(Code.NNP))
    elif security.seccomp:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which the next operations give away.
        ops.append(op(Code.SECCOMP, security.seccomp, 0))
    ops.append(op(Code.USER, process.user or "0", ",".join(process.groups), ""))
    ops.append(op(Code.CAPS, security.capabilities, security.capabilities, 0, 0))
    if security.no_new_privileges and security.seccomp:
        ops.append(op(Code.SECCOMP, security.seccomp, 0))
    ops += [op(Code.DEATH, SIGKILL), op(Code.EXEC, len(process.args), *process.args, *process.env)]
    return ops


def mount_ops(mounts: Iterable[BoundMount], special: dict[str, tuple[Op, ...]], owner: int = 0) -> list[Op]:
    """The caller's mounts, parents before children. owner: first host uid of the container's user namespace, 0 = it has none.

    What is ours to give belongs to the container's root there: volumes by mapping, so that they keep their owners for every other
    container, and tmpfs. A directory of the host stays the host's.
    """
    ops: list[Op] = []
    for mount in sorted(mounts, key=lambda item: item.target.count("/")):
        if not mount.target.startswith("/") or mount.target == "/":
            raise InvalidArgument(f"invalid mount target {mount.target!r}: must be an absolute path below /")
        target = f"%{mount.target}"
        if mount.target in special:
            ops += special[mount.target]
        elif mount.kind == "tmpfs":
            flags, data = _tmpfs_options(mount, owner)
            ops += [op(Code.MKDIR, target, 0o755), op(Code.MOUNT, "tmpfs", target, "tmpfs", flags, data)]
        else:
            ops.append(op(Code.MKDIR, target, 0o755) if mount.is_dir else op(Code.TOUCH, target, 0o644))
            # Private, as Docker's: what the host mounts there later stays out of the container.
            ops.append(op(Code.BIND, mount.source, target, MS_BIND | MS_REC | MS_PRIVATE | (MS_RDONLY if mount.read_only else 0)))
            ops += _mapping_ops((mount,), owner)
    return ops


def _mapping_ops(mounts: Iterable[BoundMount], owner: int) -> list[Op]:
    return [op(Code.IDMAP, f"%{mount.target}") for mount in mounts if owner and mount.kind == "volume"]


_TMPFS_FLAGS = {"ro": MS_RDONLY, "noexec": MS_NOEXEC, "nosuid": MS_NOSUID, "nodev": MS_NODEV}
_TMPFS_CLEARED = {"rw": MS_RDONLY, "exec": MS_NOEXEC, "suid": MS_NOSUID, "dev": MS_NODEV}


def _tmpfs_options(mount: BoundMount, owner: int) -> tuple[int, str]:
    flags, data = SAFE, []
    ids = {"uid": owner, "gid": owner} if owner else {}
    for option in mount.options:
        name, _, value = option.partition("=")
        if option in _TMPFS_FLAGS:
            flags |= _TMPFS_FLAGS[option]
        elif option in _TMPFS_CLEARED:
            flags &= ~_TMPFS_CLEARED[option]
        elif name in ("uid", "gid") and value.isdecimal():
            ids[name] = owner + int(value)
        elif name in ("size", "mode", "nr_inodes"):
            data.append(option)
        else:
            raise InvalidArgument(f"invalid tmpfs option {option!r} for {mount.target}")
    data += (f"{name}={number}" for name, number in ids.items())
    return flags | (MS_RDONLY if mount.read_only else 0), ",".join(data)


def _dev(shm_size: int, devices: Iterable[Device], *, devtmpfs: bool, owner: int, nodes: bool = True) -> list[Op]:
    belongs = f",uid={owner},gid={owner}" if owner else ""
    ops = [op(Code.MKDIR, "%/dev", 0o755)]
    if devtmpfs:
        ops.append(op(Code.MOUNT, "devtmpfs", "%/dev", "devtmpfs", MS_NOSUID, ""))
    else:
        ops.append(op(Code.MOUNT, "tmpfs", "%/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, f"mode=755,size=65536k{belongs}"))
        for name, major, minor in DEVICES:
            ops += _node(Device(name=name, major=major, minor=minor), nodes)
        ops += (op(Code.SYMLINK, content, f"%/dev/{name}") for content, name in LINKS)
    for device in devices:
        if "/" in device.name:
            ops.append(op(Code.MKDIR, f"%/dev/{device.name.rpartition('/')[0]}", 0o755))
        ops += _node(device, nodes)
    ops += (op(Code.MKDIR, f"%/dev/{name}", 0o755) for name in ("pts", "shm", "mqueue"))
    ops.append(op(Code.MOUNT, "shm", "%/dev/shm", "tmpfs", SAFE, f"mode=1777,size={shm_size}{belongs}"))
    return ops


def _node(device: Device, made: bool) -> list[Op]:
    """A device node, or the host's node of that name bound in its place."""
    target = f"%/dev/{device.name}"
    if not made:
        return [op(Code.TOUCH, target, 0o666), op(Code.BIND, device.source or f"/dev/{device.name}", target, MS_BIND)]
    return [op(Code.MKNOD, target, (S_IFBLK if device.kind == "b" else S_IFCHR) | device.mode, makedev(device.major, device.minor))]


def _sys(mounted: bool, flags: int) -> list[Op]:
    ops = [op(Code.MKDIR, "%/sys", 0o755)]
    if mounted:
        return [*ops, op(Code.MOUNT, "sysfs", "%/sys", "sysfs", flags, "")]
    return [*ops, op(Code.BIND, "/sys", "%/sys", MS_BIND | MS_REC | flags)]


def _cgroup_mounts(mounts: tuple[tuple[str, str, str, str], ...], *, read_only: bool) -> list[Op]:
    flags = SAFE | (MS_RDONLY if read_only else 0)
    if len(mounts) == 1 and not mounts[0][2]:
        source, kind, _, data = mounts[0]
        return [op(Code.MOUNT, source, "%/sys/fs/cgroup", kind, flags, data)]
    if not mounts:
        return []
    ops = [op(Code.MOUNT, "tmpfs", "%/sys/fs/cgroup", "tmpfs", SAFE, "mode=755,size=1m")]
    for source, kind, name, data in mounts:
        ops += [op(Code.MKDIR, f"%/sys/fs/cgroup/{name}", 0o755), op(Code.MOUNT, source, f"%/sys/fs/cgroup/{name}", kind, flags, data)]
    if read_only:
        ops.append(op(Code.MOUNT, "none", "%/sys/fs/cgroup", "", MS_REMOUNT | MS_BIND | SAFE | MS_RDONLY, ""))
    return ops


def _etc_entries(etc: Etc) -> list[tuple[str, bytes]]:
    pairs = (("hosts", etc.hosts), ("resolv.conf", etc.resolv), ("hostname", etc.hostname))
    return [(name, content) for name, content in pairs if content is not None]


def _etc_files(place: Place, etc: Etc) -> list[Op]:
    entries = _etc_entries(etc)
    ops = [op(Code.MKDIR, place.scratch, 0o755)] if entries else []
    ops += (op(Code.WRITE, f"{place.scratch}/{name}", content, WRITE_CREATE) for name, content in entries)
    owner = place.user_block
    return ops + [op(Code.CHOWN, f"{place.scratch}/{name}", owner, owner) for name, _ in entries if owner]


def _etc_binds(place: Place, etc: Etc, flags: int) -> list[Op]:
    return [op(Code.BIND, f"{place.scratch}/{name}", f"%/etc/{name}", flags) for name, _ in _etc_entries(etc)]


def guest_cgroup_ops(path: str, files: Iterable[tuple[str, str]]) -> tuple[Op, ...]:
    """Make a cgroup v2 below the guest's root and set the container's own limits in it: (file, value)."""
    # A guest's kernel without swap has nothing to limit.
    optional = {"memory.swap.max": WRITE_OPTIONAL}
    writes = (op(Code.WRITE, f"{path}/{name}", value.encode(), optional.get(name, 0)) for name, value in files)
    return (op(Code.MKDIR, path, 0o755), *writes)


def makedev(major: int, minor: int) -> int:
    """Encode a device number the way Linux does (makedev 3)."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32
