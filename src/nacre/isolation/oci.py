"""From the configuration of an OCI bundle to the plan of its first process, and of one more process in a running container.

Kept descriptors of a plan (docs/stem-protocol.md, "Run"): 0 the FIFO that `start` writes to, then the namespaces to join, then the
mount sources. Order matters and is explained where it does. Source: OCI runtime specification 1.2, runtime.md and config-linux.md.
"""

from __future__ import annotations

import functools
import os
import struct

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation.oci_mounts import Mounts, maps_text
from nacre.linux import capabilities
from nacre.model.bundle import CAPABILITY_SETS, Bundle, Hook, Process
from nacre.model.plan import (
    MS_BIND,
    MS_REC,
    NEWCGROUP,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWTIME,
    NEWUSER,
    NEWUTS,
    WRITE_PROC,
    Code,
    Op,
    Spawn,
    op,
)
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

FIFO = 0  # the kept descriptor that START waits for
SYNC_CREATED, SYNC_MAPPED = 0, 1  # points at which the runtime is waited for
CREATING, CREATED = 0, 1  # the answers to SYNC_CREATED: the container's state for hooks
NEW_LISTENER = 8
_PROPAGATION = {"": 1 << 19, "shared": 1 << 20, "slave": 1 << 19, "private": 1 << 18, "unbindable": 1 << 17}
_FILTER_FLAGS = {"LOG": 2, "SPEC_ALLOW": 4, "WAIT_KILLABLE_RECV": 32}  # TSYNC means threads that there are none of
_CPUS = 8192  # the most that Linux is built for
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Surroundings(Value):
    """What a plan needs to know beside the bundle.

    directory: of the bundle; rootfs: absolute path. join: files that take "0" to join the control groups; cgroup: controller ->
    directory of the container. wait: START waits for `start` (create) or not (run). rootless: the runtime is not root.
    no_pivot, keyring (name, "" = none): as runc's options. filter: compiled seccomp filter, b"" = none.
    """

    directory: str
    rootfs: str
    join: tuple[str, ...] = ()
    cgroup: dict[str, str] = {}
    wait: bool = True
    rootless: bool = False
    no_pivot: bool = False
    keyring: str = ""
    filter: bytes = b""
    filter_flags: int = 0


def joined(bundle: Bundle) -> tuple[str, ...]:
    """Paths of the namespaces to join, in the order of their kept descriptors (the first is 1)."""
    return tuple(item.path for item in bundle.namespaces if item.path)


def create_plan(bundle: Bundle, around: Surroundings) -> Spawn:
    """The plan of a container's first process. Raises InvalidArgument, Unsupported."""
    new = sum(item.flag for item in bundle.namespaces if not item.path)
    mount_space = bundle.namespace(NEWNS)
    if bundle.mounts and not mount_space:
        raise InvalidArgument("mounts: need a mount namespace in linux.namespaces")
    user = bundle.namespace(NEWUSER)
    mounts = Mounts(bundle, around.directory, 1 + len(joined(bundle)), mapped=user is not None, cgroup=around.cgroup)
    mounts.collect()
    process = bundle.process
    ops = _namespaces(bundle, around, new, mounts.sources)
    if new & NEWNET:
        ops.append(op(Code.LINK, "lo", 0))
    if mount_space:
        ops += _root(bundle, around, mapped=user is not None)
        ops += mounts.ops
    else:
        ops += [op(Code.CHROOT, around.rootfs)]
    if bundle.hooks != type(bundle.hooks)():
        ops.append(op(Code.SYNC, SYNC_CREATED))
    ops += hook_ops(bundle.hooks.create_container, CREATING)
    ops += _names(bundle)
    if process:
        ops += _before_root(process, around, console="%/dev/console" if mount_space else "")
    if mount_space:
        ops += (op(Code.READONLY, f"%{path}", 1) for path in bundle.read_only_paths)
        ops += (op(Code.MASK, f"%{path}") for path in bundle.masked)
        ops += _enter_root(bundle, around)
    ops += _last(bundle, process, around)
    return Spawn(ops=tuple(ops), rows=process.rows if process else 0, columns=process.columns if process else 0)


def _namespaces(bundle: Bundle, around: Surroundings, new: int, sources: list[Op]) -> list[Op]:
    """From the runtime's namespaces to the container's; what is a host path is opened on the way."""
    # The control groups first: a cgroup namespace shows the group that its maker was in.
    ops = [op(Code.WRITE, path, b"0", 0) for path in around.join]
    numbers = {item.flag: place for place, item in enumerate((item for item in bundle.namespaces if item.path), 1)}
    user = bundle.namespace(NEWUSER)
    if user and around.rootless:
        ops += _user_namespace(bundle, around, numbers)  # nothing else is permitted before
    # As root of the host, who may join all of them. Not the mounts, which would hide what is still to be opened.
    ops += (op(Code.NSFD, number, flag) for flag, number in numbers.items() if flag not in (NEWUSER, NEWNS))
    if not user:
        if new & NEWTIME:
            ops += [op(Code.UNSHARE, NEWTIME), *_time_offsets(bundle)]
        if NEWNS in numbers:
            ops.append(op(Code.NSFD, numbers[NEWNS], NEWNS))
        return [*ops, *_clone(new & ~(NEWTIME | NEWUSER), numbers, timed=bool(new & NEWTIME))]
    # A mount namespace of the host's root (or already of the user namespace, when the runtime is an ordinary user): detached
    # clones of its mounts can be taken along.
    ops += [op(Code.UNSHARE, NEWNS), op(Code.MOUNT, "none", "/", "", MS_REC | 1 << 19, ""), op(Code.ROOT, around.rootfs), *sources]
    if around.rootless:
        new &= ~NEWNS
    else:
        ops += _user_namespace(bundle, around, numbers)
    if new & NEWTIME:
        ops += [op(Code.DUMPABLE, 1), op(Code.UNSHARE, NEWTIME), *_time_offsets(bundle), op(Code.DUMPABLE, 0)]
    if NEWNS in numbers:
        ops.append(op(Code.NSFD, numbers[NEWNS], NEWNS))
    return [*ops, *_clone(new & ~(NEWTIME | NEWUSER), numbers, timed=bool(new & NEWTIME))]


def _user_namespace(bundle: Bundle, around: Surroundings, numbers: dict[int, int]) -> list[Op]:
    if NEWUSER in numbers:
        return [op(Code.NSFD, numbers[NEWUSER], NEWUSER)]
    if not around.rootless:
        return [op(Code.USERNS, maps_text(bundle.uid_maps), maps_text(bundle.gid_maps)), op(Code.ENTER)]
    # The runtime has it mapped (newuidmap), for which it must be seen.
    mapped = [op(Code.UNSHARE, NEWUSER), op(Code.DUMPABLE, 1), op(Code.SYNC, SYNC_MAPPED), op(Code.DUMPABLE, 0)]
    return [*mapped, op(Code.IDENTITY, 0, 0, b"", 1)]


def _clone(flags: int, numbers: dict[int, int], *, timed: bool) -> list[Op]:
    """A new process only where one is needed: PID and time namespaces hold for children, and mounts follow the process."""
    if flags & NEWPID or NEWPID in numbers or timed:
        return [op(Code.CLONE, flags)]
    return [op(Code.UNSHARE, flags)] if flags else []


def _time_offsets(bundle: Bundle) -> list[Op]:
    text = "".join(f"{clock} {offset}\n" for clock, offset in bundle.time_offsets.items())
    return [op(Code.WRITE, "/proc/self/timens_offsets", text.encode(), WRITE_PROC)] if text else []


def _root(bundle: Bundle, around: Surroundings, *, mapped: bool) -> list[Op]:
    """The rootfs as a mount of its own, and what travels between it and the host."""
    word = bundle.propagation
    recursive = word[:1] == "r" or not word
    kind = _PROPAGATION[word[1:] if word[:1] == "r" else word]
    # Unbindable and private are for the container's own tree: until it is pivoted into, the host's mounts must be seen to go away.
    outer = kind if kind in (1 << 20, 1 << 19, 1 << 18) else 1 << 18
    ops = [op(Code.MOUNT, "none", "/", "", outer | (MS_REC if recursive or kind == 1 << 17 else 0), "")]
    if mapped:
        return ops  # PIVOT makes a clone of what a user namespace has locked; ROOT has travelled along
    ops += [op(Code.BIND, around.rootfs, around.rootfs, MS_BIND | MS_REC), op(Code.ROOT, around.rootfs)]
    if kind == 1 << 20:  # nothing of the container's own mounts may reach the host through a shared parent
        ops += [op(Code.PICK, 1 + len(joined(bundle)), "%/"), op(Code.ATTR, 1 + len(joined(bundle)), 0, 0, 1 << 18, 0)]
    return ops


def _names(bundle: Bundle) -> Iterator[Op]:
    if bundle.hostname:
        yield op(Code.HOSTNAME, bundle.hostname)
    if bundle.domainname:
        yield op(Code.DOMAIN, bundle.domainname)
    # Through the host's /proc: what the files mean depends on who opens them, and no image has its hands on this mount.
    for key, value in bundle.sysctl.items():
        yield op(Code.WRITE, f"/proc/sys/{sysctl_path(bundle, key)}", value.encode(), WRITE_PROC)


_IPC_SYSCTLS = (
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
    "kernel.shm_rmid_forced", "kernel.auto_msgmni", "kernel.msg_next_id", "kernel.sem_next_id", "kernel.shm_next_id",
)  # fmt: skip


def sysctl_path(bundle: Bundle, key: str) -> str:
    """The file of a sysctl below /proc/sys. Raises InvalidArgument for one that the container does not have to itself."""
    path = key if "/" in key else key.replace(".", "/")
    dotted = path.replace("/", ".", 1) if "/" in key else key
    if ".." in path.split("/") or path.startswith("/"):
        raise InvalidArgument(f'linux.sysctl: "{key}" is not the name of a kernel parameter')
    if dotted.startswith("net."):
        space, name = NEWNET, "network"
    elif dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
        space, name = NEWIPC, "ipc"
    elif dotted in ("kernel.domainname", "kernel.hostname"):
        space, name = NEWUTS, "uts"
    else:
        raise InvalidArgument(f'linux.sysctl: "{key}" is not in a separate kernel namespace', hint="it would change the host")
    if not bundle.namespace(space):
        raise InvalidArgument(f'linux.sysctl: "{key}" needs a {name} namespace in linux.namespaces')
    return path


def _before_root(process: Process, around: Surroundings, console: str) -> list[Op]:
    """What is done through the host's /proc and before the host's paths are gone."""
    ops = [*_scores(process), *_labels(process)]
    if process.terminal:
        ops.append(op(Code.TTY, "%/dev/pts/ptmx" if console else "/dev/pts/ptmx", console))
    if around.keyring:
        ops.append(op(Code.KEYRING, around.keyring))
    return ops


def _scores(process: Process) -> list[Op]:
    if process.oom_score_adj is None:
        return []
    return [op(Code.WRITE, "/proc/self/oom_score_adj", str(process.oom_score_adj).encode(), WRITE_PROC)]


def _labels(process: Process) -> list[Op]:
    ops = []
    if process.apparmor and process.apparmor != "unconfined":
        if not _has("/sys/module/apparmor/parameters/enabled", "Y"):
            raise Unsupported(f"process.apparmorProfile: {process.apparmor}: AppArmor is not enabled on this host")
        stacked = os.path.exists("/proc/self/attr/apparmor/exec")
        path = "/proc/self/attr/apparmor/exec" if stacked else "/proc/self/attr/exec"
        ops.append(op(Code.WRITE, path, f"exec {process.apparmor}".encode(), WRITE_PROC))
    if process.selinux:
        if not os.path.exists("/sys/fs/selinux/enforce"):
            raise Unsupported(f"process.selinuxLabel: {process.selinux}: SELinux is not enabled on this host")
        ops.append(op(Code.WRITE, "/proc/self/attr/exec", process.selinux.encode(), WRITE_PROC))
    return ops


def _has(path: str, text: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().startswith(text)
    except OSError:
        return False


def _enter_root(bundle: Bundle, around: Surroundings) -> Iterator[Op]:
    yield op(Code.MOVE if around.no_pivot else Code.PIVOT)
    number = 1 + len(joined(bundle))
    kind = _PROPAGATION[bundle.propagation.removeprefix("r")]
    if kind in (1 << 20, 1 << 17):
        yield from (op(Code.PICK, number, "/"), op(Code.ATTR, number, 0, 0, kind, int(bundle.propagation[0] == "r")))
    if bundle.read_only:
        yield from (op(Code.PICK, number, "/"), op(Code.ATTR, number, 1, 0, 0, 0))


def _last(bundle: Bundle, process: Process | None, around: Surroundings) -> list[Op]:
    wait = [op(Code.START, FIFO)] if around.wait else []
    if process is None:  # there is nothing to start, and `start` says so
        return [*wait, op(Code.EXEC, 1, "/")]
    if bundle.personality is not None:
        wait.insert(0, op(Code.PERSONALITY, bundle.personality))
    return process_ops(process, around, [*wait, *hook_ops(bundle.hooks.start_container, CREATED)])


def process_ops(process: Process, around: Surroundings, wait: Iterable[Op] = ()) -> list[Op]:
    """From an entered root directory to exec: limits, identity, privileges, the wait for `start`, filter, program."""
    ops = [op(Code.RLIMIT, *limit) for limit in process.rlimits]
    if process.scheduler:
        chosen = process.scheduler
        values = (chosen.policy, chosen.flags, chosen.nice, chosen.priority, chosen.runtime, chosen.deadline, chosen.period)
        ops.append(op(Code.SCHED, *values))
    if process.io_priority is not None:
        ops.append(op(Code.IOPRIO, process.io_priority))
    ops.append(op(Code.CWD, process.cwd))
    masks = capability_masks(process)
    ops.append(op(Code.BOUND, masks[0]))
    filtered = [op(Code.SECCOMP, around.filter, around.filter_flags)] if around.filter else []
    if process.no_new_privileges:
        ops.append(op(Code.NNP))
    else:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which the next operations give away.
        ops += filtered
    groups = struct.pack(f"={len(process.groups)}I", *process.groups)
    ops.append(op(Code.IDENTITY, process.uid, process.gid, groups, int(around.rootless and not process.groups)))
    ops.append(op(Code.CAPS, masks[1], masks[3], masks[2], masks[4]))
    ops.append(op(Code.UMASK, 0o022 if process.umask < 0 else process.umask))
    path = next((entry[5:] for entry in process.env if entry.startswith("PATH=")), DEFAULT_PATH)
    ops.append(op(Code.LOOKUP, process.args[0], path))
    ops += wait
    ops.append(op(Code.READY))
    if process.no_new_privileges:
        ops += filtered  # as late as can be: only execve comes after it
    ops.append(op(Code.EXEC, len(process.args), *process.args, *process.env))
    return ops


def capability_masks(process: Process, unknown: list[str] | None = None) -> tuple[int, ...]:
    """The five masks in the order of CAPABILITY_SETS, without what the host cannot give.

    unknown: gets the names that mean nothing, or that this host cannot grant, which the specification wants logged.
    """
    held = granted()
    masks = []
    for name in CAPABILITY_SETS:
        total = 0
        for word in process.capabilities.get(name, ()):
            try:
                bit = capabilities.bit(word)
            except InvalidArgument:
                bit = 0
            if not bit & held and unknown is not None and word not in unknown:
                unknown.append(word)
            total |= bit & held
        masks.append(total)
    bounding, effective, inheritable, permitted, ambient = masks
    return bounding, effective & permitted, inheritable, permitted, ambient & inheritable & permitted


@functools.cache
def granted() -> int:
    """What containers can be given: in a user namespace of their own, everything."""
    return capabilities.ALL if _is_rootless() else capabilities.held()


def _is_rootless() -> bool:
    return os.geteuid() != 0


def hook_ops(hooks: Iterable[Hook], state: int) -> Iterator[Op]:
    """Hooks that run inside the container's namespaces. state: which of the answers to SYNC_CREATED they read."""
    for hook in hooks:
        argv = (hook.path, *hook.args)
        yield op(Code.HOOK, len(argv), state, hook.timeout * 1000, *argv, *hook.env)


def exec_plan(process: Process, around: Surroundings, own: int, flags: int) -> Spawn:
    """The plan of one more process. Kept descriptor 0 is a pidfd of the container's first one.

    own: CLONE_NEW* of the namespaces in which that one is not the runtime's; flags: those of them in which it may be joined as root
    of the host, before its user namespace.
    """
    initial, final = process.affinity
    ops = [op(Code.AFFINITY, cpu_mask(initial))] if initial else []
    ops += (op(Code.WRITE, path, b"0", 0) for path in around.join)
    if final:
        ops.append(op(Code.AFFINITY, cpu_mask(final)))
    outer = own & flags & ~(NEWNS | NEWUSER)
    if outer:
        ops.append(op(Code.NSFD, 0, outer))
    if own & NEWUSER:
        ops.append(op(Code.NSFD, 0, NEWUSER))
    inner = own & ~(outer | NEWUSER | NEWNS)
    if inner:
        ops.append(op(Code.NSFD, 0, inner))
    if own & (NEWPID | NEWTIME):
        ops.append(op(Code.CLONE, 0))
    # Through the host's /proc, which no image has its hands on.
    ops += [*_scores(process), *_labels(process)]
    if own & NEWNS:
        ops.append(op(Code.NSFD, 0, NEWNS))
    else:
        ops.append(op(Code.CHROOT, around.rootfs))
    if process.terminal:
        ops.append(op(Code.TTY, "/dev/pts/ptmx", ""))
    if around.keyring:
        ops.append(op(Code.KEYRING, around.keyring))
    ops += process_ops(process, around)
    return Spawn(ops=tuple(ops), rows=process.rows, columns=process.columns)


def cpu_mask(text: str) -> bytes:
    """The mask of sched_setaffinity(2) for a list such as ``0-2,7``. Raises InvalidArgument."""
    total = 0
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            first, last = int(low), int(high if dash else low)
            if not 0 <= first <= last < _CPUS:
                raise ValueError
            total |= (1 << last + 1) - (1 << first)
    except ValueError:
        raise InvalidArgument(f'process.execCPUAffinity: "{text}" is not a list of CPUs', hint="for example 0-2,7") from None
    return total.to_bytes(_CPUS // 8, "little")


def filter_flags(profile: dict[str, Any]) -> int:
    """Flags of seccomp(2) for a profile; without a list of flags, what runc sets: no mitigation of speculative stores."""
    words = profile.get("flags")
    if words is None:
        return _FILTER_FLAGS["SPEC_ALLOW"]
    return sum(_FILTER_FLAGS.get(word.removeprefix("SECCOMP_FILTER_FLAG_"), 0) for word in dict.fromkeys(words))


__all__ = ["NEWCGROUP", "Surroundings", "create_plan", "exec_plan", "filter_flags", "joined"]
