"""The container plan: from a sandbox and a process to the operations that bring the process up.

The same list serves every level; a `Place` says the few things that differ (where layers come from, how a cgroup is joined,
whether there is a network namespace to enter). Order matters and is explained where it does. Defaults (devices, mounts,
masked paths) follow the OCI runtime specification, config-linux.md, and what Docker users find in a container.
"""

from __future__ import annotations

import _socket
from collections.abc import Iterable, Iterator

from nacre.errors import InvalidArgument
from nacre.model.container import BoundMount, ContainerSpec, LayerMount, ProcessSpec, Sandbox
from nacre.model.plan import (
    MS_BIND,
    MS_DIRSYNC,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    NEWCGROUP,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    WRITE_CREATE,
    WRITE_OPTIONAL,
    WRITE_PROC,
    Code,
    Op,
    Spawn,
    op,
)
from nacre.model.value import Value

NAMESPACES = NEWPID | NEWIPC | NEWUTS
SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
SIGKILL = 9
MOUNT_ATTR_RDONLY = 1  # linux/mount.h
SUBPATH = "subpath="
# Numbers among the descriptors that a plan keeps: the init's program, then mounts that propagate, and from PARTS on parts of others.
INIT, PARTS = 0, 1000
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
    """A device node to make: name below /dev, or absolute; kind c or b, numbers, permission bits, owners.

    source: path of the host's node, "" = of that name.
    """

    name: str
    major: int
    minor: int
    kind: str = "c"
    mode: int = 0o666
    source: str = ""
    uid: int = 0
    gid: int = 0


class Etc(Value):
    """The generated files of /etc: contents of hosts, resolv.conf and hostname. None: leave the image's file alone.

    source: directory with these files, which are another container's; their contents here only say which there are. "" = write them.
    """

    hosts: bytes | None = None
    resolv: bytes | None = None
    hostname: bytes | None = None
    source: str = ""


class Security(Value):
    """What the process may do.

    capabilities: mask; seccomp: array of struct sock_filter, b"" = none; seccomp_flags: as seccomp(2); apparmor: profile, "" = none.
    hidden, read_only: paths that are masked or made read-only in the container (the defaults are those of Docker).
    """

    capabilities: int
    seccomp: bytes = b""
    seccomp_flags: int = 0
    no_new_privileges: bool = False
    hidden: tuple[str, ...] = MASKED
    read_only: tuple[str, ...] = READ_ONLY
    apparmor: str = ""
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
    users:    the user namespace when it is not that block: its id map (lines as in /proc/PID/uid_map), or the path of one to join.
    shm:      directory of the host that is bound at /dev/shm, "" = a tmpfs of its own; stem: path of the program that is its init.
    devtmpfs: privileged containers see the kernel's own /dev (only where that kernel is theirs alone).
    nodes:    device nodes can be made; where not (user namespaces), the host's are bound.
    bound:    type of a file system -> the host's directory that is bound in its place ("" = it is left out): those of namespaces that are
              shared with the host cannot be mounted in a user namespace.
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
    users: str = ""
    shm: str = ""
    stem: str = ""
    devtmpfs: bool = False
    nodes: bool = True
    bound: dict[str, str] = {}


def container_plan(sandbox: Sandbox, process: ProcessSpec, place: Place, security: Security, devices: Iterable[Device], etc: Etc) -> Spawn:
    """The plan of a container's main process, namespaces and all.

    Raises InvalidArgument for a mount target that is not an absolute path.
    """
    spec = sandbox.spec
    own, users = own_namespaces(spec), user_namespace(place)
    ops, binds = _shared_binds(sandbox.mounts)
    binds |= place.binds
    ops += [op(Code.MOUNT, "none", "/", "", MS_REC | MS_SLAVE, ""), *_join_ops(sandbox)]
    if spec.init:
        # From a mount that nobody can write to: the container's root may follow /proc/1/exe.
        ops += [op(Code.TREE, INIT, place.stem, 0), op(Code.ATTR, INIT, MOUNT_ATTR_RDONLY, 0, 0, 0)]
    if place.netns:
        ops.append(op(Code.SETNS, place.netns, NEWNET))
    if place.configure:
        ops += network_ops(sandbox)
    # Those of the network, and of what is shared, belong to a user namespace outside: this process's. /proc/sys shows the caller's own.
    ops += _sysctl_ops((key, value) for key, value in spec.sysctls.items() if not _is_own_sysctl(key, own))
    # Written while the host's files are in sight; bound into the container further down.
    ops += _etc_files(place, etc)
    if users:
        ops.append(op(Code.USERNS, users, users))
    ops += [op(Code.MOUNT, "tmpfs", place.stage, "tmpfs", SAFE & ~MS_NOEXEC & ~MS_NODEV, "mode=0711,size=1m"), op(Code.CHDIR, place.stage)]
    ops += place.rootfs
    ops.append(op(Code.ROOT, f"{place.stage}/root"))
    ops += _dev(devices, devtmpfs=place.devtmpfs and spec.privileged, owner=place.user_block, nodes=place.nodes)
    ops += _shm(spec, place)
    # Into the cgroups only now: their device rules would forbid the loop devices that some hosts need for layers.
    ops += place.cgroup_setup
    ops += (op(Code.WRITE, path, b"0", 0) for path in place.join)
    # sysfs shows the network namespace it is mounted from, which is this process's by now.
    ops += [op(Code.MKDIR, "%/sys", 0o755), *_show("sysfs", "%/sys", place.bound, SAFE | (0 if spec.privileged else MS_RDONLY))]
    if spec.cgroupns != "host":
        ops.append(op(Code.UNSHARE, NEWCGROUP))
    ops += _cgroup_mounts(place.cgroup, place.bound, read_only=not spec.privileged)
    # Everything whose source is a path of the host is mounted by the host's root, who may walk there.
    whole_etc = [mount for mount in sandbox.mounts if mount.target.rstrip("/") == "/etc" and not mount.read_only]
    ops += mount_ops(whole_etc, binds, root=f"{place.stage}/root")
    ops += (op(Code.TOUCH, f"%/etc/{name}", 0o644) for name, _ in _etc_entries(etc))
    # Only then: once it is mapped, the host's root has no id to make files with.
    ops += _mapping_ops(whole_etc, place.user_block)
    # Over a volume at /etc, as Docker does; below a mount of one of these very files.
    ops += _etc_binds(place, etc, MS_BIND | (MS_RDONLY if spec.read_only else 0))
    others = (mount for mount in sandbox.mounts if mount not in whole_etc)
    ops += mount_ops(others, binds, place.user_block, root=f"{place.stage}/root")
    # A file system of a namespace is mounted by who has power over it: this process for those that are shared,
    early, late = _namespace_mounts(own, place.bound)
    ops += early
    if users:
        # and in the container's user namespace for those that it owns.
        ops += [op(Code.ENTER), op(Code.CLONE, own | NEWNS)]
    ops += late
    ops += _names(sandbox, own)
    ops += _sysctl_ops(((key, value) for key, value in spec.sysctls.items() if _is_own_sysctl(key, own)), "%")
    if process.working_dir != "/":
        ops.append(op(Code.MKDIR, f"%{process.working_dir}", 0o755))
    if process.tty:
        ops.append(op(Code.TTY, "%/dev/pts/ptmx", "%/dev/console"))
    ops += (op(Code.READONLY, f"%{path}", 1) for path in security.read_only)
    ops += (op(Code.MASK, f"%{path}") for path in security.hidden)
    if spec.read_only:
        ops.append(op(Code.MOUNT, "none", "%/", "", MS_REMOUNT | MS_BIND | MS_RDONLY, ""))
    ops += [op(Code.PIVOT), op(Code.UMASK, 0o022)]
    if spec.oom_score_adj:
        ops.append(op(Code.WRITE, "/proc/self/oom_score_adj", str(spec.oom_score_adj).encode(), WRITE_PROC))
    ops += process_ops(process, security, init=spec.init)
    return Spawn(
        ops=tuple(ops),
        clone=NEWNS | (0 if users else own),
        oom=place.oom,
        tty=process.tty,
        stdin=process.open_stdin,
        rows=process.rows,
        columns=process.columns,
    )


def own_namespaces(spec: ContainerSpec) -> int:
    """The clone flags of those namespaces among PID, IPC and UTS that are made for this container."""
    if not (spec.pid or spec.ipc or spec.uts):
        return NAMESPACES
    from nacre.isolation.namespaces import own

    return own(spec)


def user_namespace(place: Place) -> str:
    """The id map of the container's user namespace, or the path of the one it joins; "" = it has none."""
    return place.users or (f"0 {place.user_block} 65536\n" if place.user_block else "")


def _join_ops(sandbox: Sandbox) -> list[Op]:
    """Into the namespaces of other containers. Whoever enters a PID namespace is not in it, but its next child is."""
    kinds = (("ipc", NEWIPC), ("uts", NEWUTS), ("pid", NEWPID))
    ops = [op(Code.SETNS, sandbox.joins[kind], flag) for kind, flag in kinds if kind in sandbox.joins]
    return [*ops, op(Code.CLONE, 0)] if "pid" in sandbox.joins else ops


def _namespace_mounts(own: int, bound: dict[str, str]) -> tuple[list[Op], list[Op]]:
    """The mounts that show namespaces which are not the container's own, and the others."""
    parts: tuple[list[Op], list[Op]] = ([], [])
    parts[bool(own & NEWPID)].extend((op(Code.MKDIR, "%/proc", 0o755), *_show("proc", "%/proc", bound, SAFE)))
    parts[1].append(op(Code.MOUNT, "devpts", "%/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"))
    parts[bool(own & NEWIPC)].extend(_show("mqueue", "%/dev/mqueue", bound, SAFE))
    return parts


def _names(sandbox: Sandbox, own: int) -> list[Op]:
    """The container's own names; those of a shared UTS namespace are somebody else's."""
    if not own & NEWUTS:
        return []
    domain = sandbox.spec.domainname
    return [op(Code.HOSTNAME, sandbox.hostname), *([op(Code.DOMAIN, domain)] if domain else [])]


def exec_plan(main: int, process: ProcessSpec, place: Place, security: Security) -> Spawn:
    """The plan of one more process in a running container whose main process is number `main` of the sandbox."""
    namespaces = NEWNS | NAMESPACES | NEWCGROUP | (NEWUSER if user_namespace(place) else 0) | (NEWNET if place.netns else 0)
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
    namespaces = NEWNS | NEWPID | (NEWUSER if user_namespace(place) else 0)
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


def _is_own_sysctl(key: str, own: int) -> bool:
    """Whether a kernel parameter is of an IPC or UTS namespace made for the container (ipc_namespaces(7), uts_namespaces(7))."""
    if key == "kernel.sem" or key.startswith(("kernel.shm", "kernel.msg", "fs.mqueue.")):
        return bool(own & NEWIPC)
    return key in ("kernel.hostname", "kernel.domainname") and bool(own & NEWUTS)


def _sysctl_ops(values: Iterable[tuple[str, str]], root: str = "") -> Iterator[Op]:
    """What is mounted over /proc does not get to see them."""
    return (op(Code.WRITE, f"{root}/proc/sys/{key.replace('.', '/')}", value.encode(), WRITE_PROC) for key, value in values)


def _packed(address: str) -> bytes:
    return _socket.inet_pton(_socket.AF_INET, address)


def process_ops(process: ProcessSpec, security: Security, *, init: bool = False) -> list[Op]:
    """From an entered root directory to exec: working directory, limits, identity, privileges, filter, program."""
    ops = [op(Code.CHDIR, process.working_dir)]
    if security.apparmor:
        ops.append(op(Code.WRITE, "/proc/self/attr/apparmor/exec", f"exec {security.apparmor}".encode(), WRITE_PROC))
    ops += (op(Code.RLIMIT, *limit) for limit in security.rlimits)
    ops.append(op(Code.BOUND, security.capabilities))
    if security.no_new_privileges:
        ops.append(op(Code.NNP))
    elif security.seccomp:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which the next operations give away.
        ops.append(op(Code.SECCOMP, security.seccomp, security.seccomp_flags))
    ops.append(op(Code.USER, process.user or "0", ",".join(process.groups), ""))
    ops.append(op(Code.CAPS, security.capabilities, security.capabilities, 0, 0))
    if security.no_new_privileges and security.seccomp:
        ops.append(op(Code.SECCOMP, security.seccomp, security.seccomp_flags))
    ops += [op(Code.DEATH, SIGKILL), *([op(Code.INIT, INIT)] if init else [])]
    ops += [op(Code.EXEC, len(process.args), *process.args, *process.env)]
    return ops


def mount_ops(mounts: Iterable[BoundMount], special: dict[str, tuple[Op, ...]], owner: int = 0, *, root: str = "root") -> list[Op]:
    """The caller's mounts, parents before children.

    owner: first host uid of the container's user namespace, 0 = it has none; root: where the container's root directory is.

    What is ours to give belongs to the container's root there: volumes by mapping, so that they keep their owners for every other
    container, and tmpfs. A directory of the host stays the host's.
    """
    ops: list[Op] = []
    for number, mount in enumerate(sorted(mounts, key=lambda item: item.target.count("/"))):
        if not mount.target.startswith("/") or mount.target == "/":
            raise InvalidArgument(f"invalid mount target {mount.target!r}: must be an absolute path below /")
        target = f"%{mount.target}"
        if mount.target in special:
            ops += special[mount.target]
        elif mount.kind == "tmpfs":
            flags, data = _tmpfs_options(mount, owner)
            ops += [op(Code.MKDIR, target, 0o755), op(Code.MOUNT, "tmpfs", target, "tmpfs", flags, data)]
        elif mount.kind == "image":
            ops += [op(Code.MKDIR, target, 0o755), *image_ops(mount, number, root, idmapped=bool(owner))]
        elif subpath(mount):
            ops += part_ops(mount, PARTS + number, mount.source, root)
            ops += _mapping_ops((mount,), owner)
        else:
            ops.append(op(Code.MKDIR, target, 0o755) if mount.is_dir else op(Code.TOUCH, target, 0o644))
            ops += bind_ops(mount, mount.source)
            ops += _mapping_ops((mount,), owner)
    return ops


_BIND_FLAGS = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
_PROPAGATION = {"private": MS_PRIVATE, "rprivate": MS_PRIVATE, "slave": MS_SLAVE, "rslave": MS_SLAVE}


def bind_ops(mount: BoundMount, source: str) -> list[Op]:
    """Bind `source` at the mount's target. Private by default, as Docker's: what the host mounts there later stays out of the container.

    Everything below is bound as well and, when the mount is read-only, is read-only too, unless an option says otherwise.
    """
    flags = MS_BIND | next((_PROPAGATION[option] for option in mount.options if option in _PROPAGATION), MS_PRIVATE)
    flags |= sum(_BIND_FLAGS[option] for option in mount.options if option in _BIND_FLAGS)
    if "recursive=disabled" not in mount.options:
        flags |= MS_REC
    if mount.read_only and "recursive=writable" in mount.options:
        return [op(Code.BIND, source, f"%{mount.target}", flags), op(Code.READONLY, f"%{mount.target}", 0)]
    return [op(Code.BIND, source, f"%{mount.target}", flags | (MS_RDONLY if mount.read_only else 0))]


def _shared_binds(mounts: Iterable[BoundMount]) -> tuple[list[Op], dict[str, tuple[Op, ...]]]:
    """For mounts with propagation in both directions: what is done before everything else, and the operations for each target.

    They are cloned while this namespace is still a peer of the host's; from then on what is mounted below them is seen on both sides.
    """
    first: list[Op] = [op(Code.UMASK, 0)]
    later: dict[str, tuple[Op, ...]] = {}
    shared = (mount for mount in mounts if not {"shared", "rshared"}.isdisjoint(mount.options))
    for number, mount in enumerate(shared, INIT + 1):
        recursive = int("recursive=disabled" not in mount.options)
        first.append(op(Code.TREE, number, mount.source, recursive))
        if mount.read_only:
            first.append(op(Code.ATTR, number, MOUNT_ATTR_RDONLY, 0, 0, int(recursive and "recursive=writable" not in mount.options)))
        target = f"%{mount.target}"
        made = op(Code.MKDIR, target, 0o755) if mount.is_dir else op(Code.TOUCH, target, 0o644)
        later[mount.target] = (made, op(Code.ATTACH, number, target))
    return first, later


def subpath(mount: BoundMount) -> str:
    """The part of a volume or image that is mounted; "" = all of it."""
    return next((option.removeprefix(SUBPATH) for option in mount.options if option.startswith(SUBPATH)), "")


def part_ops(mount: BoundMount, number: int, top: str, root: str) -> list[Op]:
    """Mount only a part of the directory `top`, in which no symbolic link leads out of it. number: of the descriptor that keeps it."""
    target = f"%{mount.target}"
    return [
        op(Code.ROOT, top),
        op(Code.TREE, number, f"%/{subpath(mount)}", 1),
        op(Code.ATTR, number, MOUNT_ATTR_RDONLY if mount.read_only else 0, 0, MS_PRIVATE, 1),
        op(Code.ROOT, root),
        op(Code.MKDIR, target, 0o755) if mount.is_dir else op(Code.TOUCH, target, 0o644),
        op(Code.ATTACH, number, target),
    ]


def image_ops(mount: BoundMount, number: int, root: str, *, idmapped: bool) -> list[Op]:
    """An image as a read-only directory: its layers in the stage, one above the other at the target. number: of the mount."""
    # Short relative names: the options of a mount must fit in one page, however many layers there are.
    target, names = f"%{mount.target}", [f"m{number}l{layer}" for layer in range(len(mount.layers))]
    ops = [item for layer, name in zip(mount.layers, names, strict=True) for item in layer_ops(layer, name, idmapped=idmapped)]
    stacked = f"lowerdir={':'.join(reversed(names))}"
    if subpath(mount):
        whole = f"m{number}"
        below = op(Code.BIND, names[0], whole, MS_BIND)
        ops += [op(Code.MKDIR, whole, 0o755), op(Code.MOUNT, "overlay", whole, "overlay", MS_RDONLY, stacked) if names[1:] else below]
        return [*ops, *part_ops(mount, PARTS + number, whole, root)]
    if len(names) == 1:
        return [*ops, op(Code.BIND, names[0], target, MS_BIND | MS_RDONLY)]
    return [*ops, op(Code.MOUNT, "overlay", target, "overlay", MS_RDONLY, stacked)]


def layer_ops(layer: LayerMount, name: str, *, idmapped: bool) -> list[Op]:
    """Make directory `name` below the working directory and mount a layer there, read-only."""
    ops = [op(Code.MKDIR, name, 0o755)]
    if layer.format == "erofs":
        ops.append(op(Code.IMAGE, layer.path, name, "erofs", MS_RDONLY, ""))
    else:
        ops.append(op(Code.BIND, layer.path, name, MS_BIND | MS_RDONLY))
    return [*ops, op(Code.IDMAP, name)] if idmapped else ops


def _mapping_ops(mounts: Iterable[BoundMount], owner: int) -> list[Op]:
    return [op(Code.IDMAP, f"%{mount.target}") for mount in mounts if owner and mount.kind == "volume"]


# Options of a tmpfs that are flags of mount(2): set, and cleared. What else Docker takes goes to the file system as it stands (tmpfs(5)).
_TMPFS_FLAGS = {
    "ro": MS_RDONLY, "noexec": MS_NOEXEC, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "sync": MS_SYNCHRONOUS, "dirsync": MS_DIRSYNC,
    "mand": MS_MANDLOCK, "noatime": MS_NOATIME, "nodiratime": MS_NODIRATIME, "relatime": MS_RELATIME, "strictatime": MS_STRICTATIME,
}  # fmt: skip
_TMPFS_CLEARED = {
    "rw": MS_RDONLY, "exec": MS_NOEXEC, "suid": MS_NOSUID, "dev": MS_NODEV, "async": MS_SYNCHRONOUS, "nomand": MS_MANDLOCK,
    "atime": MS_NOATIME, "diratime": MS_NODIRATIME, "norelatime": MS_RELATIME, "nostrictatime": MS_STRICTATIME,
}  # fmt: skip
_TMPFS_DATA = ("size", "mode", "nr_inodes", "nr_blocks", "mpol", "huge")


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
        elif name in _TMPFS_DATA and value:
            data.append(option)
        elif option not in _PROPAGATION:
            raise InvalidArgument(f"invalid tmpfs option {option!r} for {mount.target}")
    data += (f"{name}={number}" for name, number in ids.items())
    return flags | (MS_RDONLY if mount.read_only else 0), ",".join(data)


def check_tmpfs(mount: BoundMount) -> None:
    """Refuse options that a tmpfs does not have, before anything is made. Raises InvalidArgument."""
    _tmpfs_options(mount, 0)


def _dev(devices: Iterable[Device], *, devtmpfs: bool, owner: int, nodes: bool = True) -> list[Op]:
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
            ops.append(op(Code.MKDIR, f"%{_below_dev(device.name).rpartition('/')[0]}", 0o755))
        ops += _node(device, nodes)
    ops += (op(Code.MKDIR, f"%/dev/{name}", 0o755) for name in ("pts", "shm", "mqueue"))
    return ops


def _shm(spec: ContainerSpec, place: Place) -> list[Op]:
    """/dev/shm belongs to the IPC namespace in all but name: it is shared with it."""
    if spec.ipc == "none":
        return []
    if place.shm:
        return [op(Code.BIND, place.shm, "%/dev/shm", MS_BIND | MS_REC)]
    return [op(Code.MOUNT, "shm", "%/dev/shm", "tmpfs", SAFE, shm_options(spec.shm_size, place.user_block))]


def shm_options(size: int, owner: int) -> str:
    """The options of the tmpfs at /dev/shm: bytes, and the host's id of the container's root."""
    return f"mode=1777,size={size}" + (f",uid={owner},gid={owner}" if owner else "")


def _below_dev(name: str) -> str:
    return name if name.startswith("/") else f"/dev/{name}"


def _node(device: Device, made: bool) -> list[Op]:
    """A device node, or the host's node of that name bound in its place."""
    target = f"%{_below_dev(device.name)}"
    if not made:
        return [op(Code.TOUCH, target, 0o666), op(Code.BIND, device.source or _below_dev(device.name), target, MS_BIND)]
    ops = [op(Code.MKNOD, target, (S_IFBLK if device.kind == "b" else S_IFCHR) | device.mode, makedev(device.major, device.minor))]
    return [*ops, op(Code.CHOWN, target, device.uid, device.gid)] if device.uid or device.gid else ops


def _show(kind: str, target: str, bound: dict[str, str], flags: int) -> list[Op]:
    """A file system that shows a namespace, or what is bound in its place, on a directory that exists."""
    if kind not in bound:
        return [op(Code.MOUNT, kind, target, kind, flags, "")]
    return [op(Code.BIND, bound[kind], target, MS_BIND | MS_REC | flags)] if bound[kind] else []


def _cgroup_mounts(mounts: tuple[tuple[str, str, str, str], ...], bound: dict[str, str], *, read_only: bool) -> list[Op]:
    flags = SAFE | (MS_RDONLY if read_only else 0)
    if "cgroup" in bound:
        return _show("cgroup", "%/sys/fs/cgroup", bound, flags)
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
    if etc.source:
        return []
    ops = [op(Code.MKDIR, place.scratch, 0o755)] if entries else []
    ops += (op(Code.WRITE, f"{place.scratch}/{name}", content, WRITE_CREATE) for name, content in entries)
    owner = place.user_block
    return ops + [op(Code.CHOWN, f"{place.scratch}/{name}", owner, owner) for name, _ in entries if owner]


def _etc_binds(place: Place, etc: Etc, flags: int) -> list[Op]:
    return [op(Code.BIND, f"{etc.source or place.scratch}/{name}", f"%/etc/{name}", flags) for name, _ in _etc_entries(etc)]


def guest_cgroup_ops(path: str, files: Iterable[tuple[str, str]]) -> tuple[Op, ...]:
    """Make a cgroup v2 below the guest's root and set the container's own limits in it: (file, value)."""
    # A guest's kernel without swap has nothing to limit.
    optional = {"memory.swap.max": WRITE_OPTIONAL}
    writes = (op(Code.WRITE, f"{path}/{name}", value.encode(), optional.get(name, 0)) for name, value in files)
    return (op(Code.MKDIR, path, 0o755), *writes)


def makedev(major: int, minor: int) -> int:
    """Encode a device number the way Linux does (makedev 3)."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32
