"""Level `process`: namespaces and cgroups on the host's kernel, and how a stem is started at any level."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from nacre.errors import Denied, HostError, SandboxError, Unsupported
from nacre.isolation import Adjustable, Driver, Pausable
from nacre.isolation.channel import Channel
from nacre.isolation.plan import SAFE, Place, layer_ops, shm_options
from nacre.linux import cgroups, devices
from nacre.linux.files import explained
from nacre.model.container import BoundMount, ContainerSpec, Resources, Rootfs, Sandbox, Stats
from nacre.model.plan import MS_BIND, MS_REC, Code, Op, op
from nacre.store import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.isolation.groups import Group

WRITING = 120.0  # seconds that a disk may take for what a container has written
SHM = "shm"  # in the directory of a sandbox whose shared memory others may join
CONTAINER, IDENTITY = "container:", "0 0 4294967295\n"


def stem_path() -> str:
    """Path of the stem program that belongs to this installation. Raises HostError when it was never built."""
    path = os.environ.get("NACRE_STEM") or os.path.join(os.path.dirname(os.path.dirname(__file__)), "bin", "stem")
    if not os.access(path, os.X_OK):
        raise HostError(f"stem is not built: {path} is missing", hint="run: make build")
    return path


def launch(role: str, directory: str, *, keep: Sequence[int] = (), last: int = -1, exit_command: Sequence[str] = ()) -> None:
    """Start a stem (role host or relay) for the sandbox in `directory`; returns when it listens.

    keep: descriptors that it holds until it exits (the lock, reserved ports). last: one that it holds until the root file system of
    its container is off the disk, -1 = none. exit_command: run by it at its very end.
    Raises SandboxError(stage="launch") with what it printed.
    """
    options = ("--last", str(last)) if last >= 0 else ()
    argv = [stem_path(), role, directory, *options, *(("--", *exit_command) if exit_command else ())]
    said, mouth = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, mouth, 2),
            # Duplicating a descriptor onto itself clears close-on-exec in the child alone: no other child can inherit a lock.
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in (*keep, last) if fd >= 0),
        ]
        # Nothing is done meanwhile: until the kernel has closed what the child should not inherit, it has all locks of this process,
        # and whoever comes when this one is killed would take the container for one that somebody works on.
        pid = os.posix_spawn(argv[0], argv, environment(), file_actions=actions)
        os.close(mouth)
        mouth = -1
        with open(said, "rb", closefd=False) as stderr:
            text = stderr.read(4096).decode(errors="replace").strip()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError as error:
        raise SandboxError(f"could not start stem: {error.strerror}", stage="launch") from error
    finally:
        os.close(said)
        if mouth >= 0:
            os.close(mouth)
    if code:
        raise SandboxError(f"could not start stem: {text or f'exit code {code}'}", stage="launch")


def environment() -> dict[str, str]:
    """What a process that outlives its caller keeps of the caller's environment: an engine that it starts must be the same engine."""
    kept = ("PATH", "PYTHONPATH", "LANG", "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: value for name, value in os.environ.items() if name in kept or name.startswith("NACRE_")}


class Process(Driver, Adjustable, Pausable):
    """The driver of level process. State of a sandbox: its stem (lock in the directory) and its cgroups `nacre/<id>`."""

    def start(self, sandbox: Sandbox, *, keep: Sequence[int], exit_command: Sequence[str], custody: bool) -> Channel:
        """Bring up an empty sandbox: cgroups with the limits set, a stem that listens. Cleaned up by `clean` after any failure."""
        if not is_host_root():
            _check_user(sandbox.spec)
            if sandbox.spec.resources != Resources():
                seek_delegation()
        make_group(sandbox, limits_object(sandbox.spec.resources, manageable()), device_rules(sandbox.spec))
        if sandbox.spec.ipc == "shareable":
            share_memory(sandbox)
        with ExitStack() as stack:
            last = -1
            if upper := sandbox.rootfs.upper:
                busy = f"what container {sandbox.id[:12]} wrote before is still on its way to the disk"
                last = stack.enter_context(Lock(upper, directory=True, wait=WRITING, busy=busy)).fd
            launch("host", sandbox.directory, keep=keep, last=last, exit_command=exit_command)
        channel = Channel(sandbox.directory, custody=custody)
        if custody:
            channel.announce(later=True)
        return channel

    def place(self, sandbox: Sandbox) -> Place:
        """How the container plan looks at this level."""
        where, root = manageable(sandbox.directory), is_host_root()
        group = find_group(sandbox.id, sandbox.directory)
        if not group.procs_paths():  # it was never started, and somebody wants to know how it would be
            group = _planned(sandbox, where)
        mode = sandbox.spec.userns
        block = sandbox.owner if mode not in ("", "host", "keep-id") else 0
        return Place(
            stage=f"{sandbox.directory}/stage",
            scratch=f"{sandbox.state}/etc",
            rootfs=tuple(rootfs_ops(sandbox.rootfs, block=block, stage=f"{sandbox.directory}/stage", mounts=sandbox.mounts)),
            join=group.procs_paths(),
            cgroup=cgroup_mounts(cgroups.layout()),
            netns=sandbox.joins.get("net", sandbox.endpoint.netns),
            configure=not sandbox.spec.network.startswith(CONTAINER),
            oom=group.oom_file(),
            user_block=block,
            users=sandbox.joins.get("user") or (IDENTITY if mode not in ("", "host") and not block else ""),
            shm=_shared_memory(sandbox),
            stem=stem_path() if sandbox.spec.init else "",
            nodes=root,
            bound={} if root else _host_views(sandbox),
        )

    def stats(self, sandbox: Sandbox) -> Stats:
        """One sample from the cgroups."""
        return find_group(sandbox.id, sandbox.directory).stats().replace(time=time.time())

    def pause(self, sandbox: Sandbox) -> None:
        """Freeze every process of the sandbox."""
        find_group(sandbox.id, sandbox.directory).freeze()

    def resume(self, sandbox: Sandbox) -> None:
        """Thaw them."""
        find_group(sandbox.id, sandbox.directory).thaw()

    def paused(self, sandbox: Sandbox) -> bool:
        """Whether the sandbox is frozen."""
        return find_group(sandbox.id, sandbox.directory).frozen()

    def update(self, sandbox: Sandbox, changed: Resources) -> None:
        """Write them into its control group, which systemd is told of when it is systemd's."""
        where = manageable(sandbox.directory)
        limits = limits_object(changed, where)
        if elsewhere := _recorded(sandbox.id, sandbox.directory):
            elsewhere.update(limits)
            return
        group = cgroups.find(sandbox.id, where=where)
        if not group.directories:
            raise cgroups.gone(sandbox.id[:12], f"{cgroups.PARENT}/{sandbox.id}")
        group.limit(limits)

    def describe(self, sandbox: Sandbox) -> dict[str, object]:
        """What `inspect` tells about the isolation."""
        return {"Kernel": os.uname().release, "Assurance": "namespaces, cgroups and seccomp on the host's kernel"}

    def clean(self, identifier: str, directory: str = "") -> None:
        """Kill what is left and remove the cgroups. Idempotent."""
        clean_group(identifier, directory)
        if directory:
            release(directory)


def _shared_memory(sandbox: Sandbox) -> str:
    """The directory of the host that is /dev/shm of the container; "" = none, it makes its own."""
    mode = sandbox.spec.ipc
    if mode.startswith(CONTAINER):
        return f"{os.path.dirname(sandbox.directory)}/{mode.removeprefix(CONTAINER)}/{SHM}"
    return {"host": "/dev/shm", "shareable": f"{sandbox.directory}/{SHM}"}.get(mode, "")


def share_memory(sandbox: Sandbox) -> None:
    """Mount the tmpfs that a container shares with those that join its IPC namespace. It outlives the container's mount namespace."""
    from nacre.linux.kernel import mount

    path = f"{sandbox.directory}/{SHM}"
    os.makedirs(path, exist_ok=True)
    owner = sandbox.owner if sandbox.spec.userns not in ("", "host", "keep-id") else 0
    with explained(f"mount the shared memory of container {sandbox.id[:12]}"):
        mount("shm", path, "tmpfs", SAFE, shm_options(sandbox.spec.shm_size, owner))


def release(directory: str) -> None:
    """Unmount what was mounted on the host for the sandbox in `directory`. Idempotent. Raises HostError."""
    path = f"{directory}/{SHM}"
    if not os.path.ismount(path):
        return
    from nacre.linux.namespaces import unmount

    with explained(f"unmount {path}"):
        unmount(path)


@functools.cache
def is_host_root() -> bool:
    """Whether root here is the host's root: who may make device nodes and any control group. An engine does not change that."""
    from nacre.linux import userns

    return userns.is_initial()


def _host_views(sandbox: Sandbox) -> dict[str, str]:
    """What shows namespaces of the host that this container shares: where this is not the host's root, it cannot be mounted anew."""
    spec = sandbox.spec
    shared = {
        "sysfs": ("/sys", not sandbox.joins.get("net", sandbox.endpoint.netns)),
        "proc": ("/proc", spec.pid == "host"),
        "mqueue": ("/dev/mqueue" if os.path.ismount("/dev/mqueue") else "", spec.ipc == "host"),
        "cgroup": ("/sys/fs/cgroup", spec.cgroupns == "host"),
    }
    return {kind: path for kind, (path, is_shared) in shared.items() if is_shared}


def _check_user(spec: ContainerSpec) -> None:
    """Refuse what only the host's root can give. Raises Unsupported, Denied."""
    if spec.userns in ("private", "keep-id"):
        raise Unsupported(
            f"--userns {spec.userns}: a container of an ordinary user has no other ids than the user's",
            hint="leave it out: root in the container is the user on the host, its other users are subordinate ids",
        )
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        least = int(file.read())
    if spec.oom_score_adj and spec.oom_score_adj < least:
        raise Denied(f"--oom-score-adj {spec.oom_score_adj}: an ordinary user may not go below its own {least}", hint="leave it out")


def manageable(directory: str = "") -> cgroups.Layout:
    """The control groups that this engine may make groups in: all of the host's, or what was delegated to an ordinary user.

    directory: of a sandbox that may have been started in another session, to which something else was delegated.
    """
    if is_host_root():
        return cgroups.layout()
    from nacre.linux import delegation

    return delegation.recorded(directory) or delegation.delegated(cgroups.layout())


def seek_delegation() -> None:
    """Where nothing is delegated to an ordinary user, ask the user's systemd for a group: this process moves there."""
    if is_host_root() or manageable().kind != "none" or cgroups.layout().v1:
        return
    from nacre.isolation import systemd

    with contextlib.suppress(HostError):  # the limits will be refused, with what the administrator can do
        systemd.delegate(os.getpid())


def find_group(identifier: str, directory: str) -> cgroups.Cgroup:
    """The control group of the sandbox in `directory`, as far as there is one."""
    elsewhere = _recorded(identifier, directory)
    return elsewhere.existing() if elsewhere else cgroups.find(identifier, where=manageable(directory))


def clean_group(identifier: str, directory: str) -> None:
    """Kill what is left in the control group of a sandbox and remove it. Idempotent."""
    group = _recorded(identifier, directory) or cgroups.find(identifier, where=manageable(directory))
    group.kill()
    group.remove()


def _recorded(identifier: str, directory: str) -> Group | None:
    """The group of a sandbox that does not lie where they do by default."""
    if not directory or not os.path.exists(f"{directory}/cgroup"):
        return None
    from nacre.isolation import groups

    return groups.recorded(directory, identifier, where=manageable(directory), restrict=is_host_root())


def make_group(sandbox: Sandbox, limits: Mapping[str, Any], rules: Sequence[devices.DeviceRule] | None) -> cgroups.Cgroup:
    """The control group of a sandbox with its limits set. Where nothing was delegated there is none, and limits are refused (Unsupported).

    limits: OCI `linux.resources` object. rules: as for `cgroups.create`; in a user namespace there is nothing to forbid, since nobody
    can make a device node there.
    """
    where, root = manageable(), is_host_root()
    if not root:
        from nacre.linux import delegation

        delegation.record(sandbox.directory, where)
    with delegated_only():
        if where.kind == "none" and not root and (limits or sandbox.spec.cgroup_parent):
            raise Unsupported("cannot set limits")
        return _make(sandbox, limits, rules if root else None, where)


def _make(sandbox: Sandbox, limits: Mapping[str, Any], rules: Sequence[devices.DeviceRule] | None, where: cgroups.Layout) -> cgroups.Cgroup:
    if sandbox.spec.cgroup_parent:
        from nacre.isolation import groups

        group = groups.below(sandbox.spec.cgroup_parent, sandbox.id, where=where, restrict=is_host_root())
        groups.record(sandbox.directory, group.path)
        group.make(limits, rules)
        return group.existing()
    if where.kind == "none" and not is_host_root():
        return cgroups.find(sandbox.id, where=where)
    return cgroups.create(sandbox.id, limits, rules=rules, where=where)


def _planned(sandbox: Sandbox, where: cgroups.Layout) -> cgroups.Cgroup:
    if sandbox.spec.cgroup_parent:
        from nacre.isolation import groups

        return groups.below(sandbox.spec.cgroup_parent, sandbox.id, where=where, restrict=is_host_root()).planned()
    return cgroups.planned(sandbox.id, limits_object(sandbox.spec.resources, where), where=where)


def limits_object(limits: Resources, where: cgroups.Layout) -> Mapping[str, Any]:
    """The OCI `linux.resources` object of limits, {} when there are none: then nothing more is loaded. Raises InvalidArgument."""
    if limits == Resources():
        return {}
    from nacre.isolation.limits import resources_object

    with delegated_only():
        return resources_object(limits, where)


@contextlib.contextmanager
def delegated_only() -> Iterator[None]:
    """An ordinary user who asks for limits that it may not set learns what the administrator can do."""
    try:
        yield
    except Unsupported as error:
        if is_host_root():
            raise
        from nacre.linux.delegation import way_out

        text = f"{error.message.partition(':')[0]}: no control group with that is delegated to this user"
        raise Unsupported(text, hint=way_out(cgroups.layout())) from error


def device_rules(spec: ContainerSpec) -> tuple[devices.DeviceRule, ...] | None:
    """What a container may do with devices: the defaults and what it asked for; None = everything."""
    if spec.privileged:
        return None
    if not (spec.devices or spec.gpus or spec.device_rules):
        return devices.DEFAULT_DEVICES
    from nacre.isolation.devices import rules

    return rules(spec)


def cgroup_mounts(layout: cgroups.Layout) -> tuple[tuple[str, str, str, str], ...]:
    """(source, type, name, data) of what a container sees below /sys/fs/cgroup: the layout of its host."""
    if not layout.v1:
        return (("cgroup", "cgroup2", "", ""),) if layout.unified else ()
    joint: dict[str, list[str]] = {}
    for controller, point in sorted(layout.v1.items()):
        joint.setdefault(point, []).append(controller)
    mounts = [("cgroup", "cgroup", os.path.basename(point), ",".join(names)) for point, names in joint.items()]
    return (*mounts, ("cgroup", "cgroup2", "unified", "")) if layout.unified else tuple(mounts)


def cgroup_kind() -> str:
    """The cgroup layout of this host in one word: v2, v1, hybrid or none."""
    return cgroups.layout().kind


def supported_limits() -> dict[str, bool]:
    """Which limits can be kept here, by their flags."""
    from nacre.isolation.limits import supported

    return supported(manageable())


def rootfs_ops(rootfs: Rootfs, *, block: int = 0, stage: str = "", mounts: Sequence[BoundMount] = ()) -> list[Op]:
    """Operations that put a root file system at `root` below the working directory (the stage).

    block: first uid of a user namespace; with it, stage: the path of that directory, mounts: what will be mounted in there.
    """
    ops = [op(Code.MKDIR, "root", 0o755)]
    if block and rootfs.driver == "fuse-overlayfs":
        raise Unsupported(
            "the storage driver fuse-overlayfs cannot be id-mapped, which --userns private needs",
            hint="leave --userns out, or use another storage driver (nacre info tells which can work here)",
        )
    if rootfs.tree:
        ops.append(op(Code.BIND, rootfs.tree, "root", MS_BIND | MS_REC))
        # Once it is mapped, the host's root has no id to make mount points with.
        return [*ops, op(Code.ROOT, f"{stage}/root"), *_mount_points(mounts), op(Code.IDMAP, "root")] if block else ops
    for number, layer in enumerate(rootfs.layers):
        ops += layer_ops(layer, f"l{number}", idmapped=bool(block))
    # Short relative names: the options of a mount must fit in one page, however many layers there are.
    lower = ":".join(f"l{number}" for number in reversed(range(len(rootfs.layers))))
    ops += [op(Code.MKDIR, "u", 0o755), op(Code.BIND, rootfs.upper, "u", MS_BIND)]
    if block:
        # Layers are id-mapped; the upper is not: overlayfs writes there as its mounter, who has no id in the mapping.
        ops.append(op(Code.CHOWN, "u/upper", block, block))
    options = f"lowerdir={lower},upperdir=u/upper,workdir=u/work{',' if rootfs.options else ''}{rootfs.options}"
    return [*ops, op(Code.MOUNT, "overlay", "root", "overlay", 0, options)]


def _mount_points(mounts: Sequence[BoundMount]) -> Iterator[Op]:
    """What a container's mounts, its own and those that all have, need in the image; not what is needed in one of these."""
    for name in ("dev", "proc", "sys", "etc"):
        yield op(Code.MKDIR, f"%/{name}", 0o755)
    for name in ("hosts", "hostname", "resolv.conf"):
        yield op(Code.TOUCH, f"%/etc/{name}", 0o644)
    covered = ["/dev", "/proc", "/sys"]
    for mount in sorted(mounts, key=lambda item: item.target.count("/")):
        if not mount.target.startswith(tuple(f"{path}/" for path in covered)):
            yield op(Code.MKDIR, f"%{mount.target}", 0o755) if mount.is_dir else op(Code.TOUCH, f"%{mount.target}", 0o644)
            covered.append(mount.target.rstrip("/"))


def reap_command(root: str, run_directory: str, identifier: str) -> list[str]:
    """The exit command of a sandbox: an engine that settles what its owner is no longer there to settle."""
    return [sys.executable, "-P", "-m", "nacre.engine.reap", root, run_directory, identifier]
