"""An OCI bundle at level vm: its configuration as the values that every container in a guest is made from.

What only means something on the host's kernel is refused when it would have been a promise (shared namespaces, hooks inside, a
listener of the host), and left out when the machine gives more than it asked for (AppArmor, scheduling on the host).
"""

from __future__ import annotations

import os
import stat

from nacre.errors import CommandNotExecutable, CommandNotFound, InvalidArgument, NacreError, Unsupported
from nacre.isolation import oci, oci_container
from nacre.isolation.plan import Device, Etc, Place, Security, container_plan, exec_plan
from nacre.linux.files import RESOLVE_IN_ROOT, openat2
from nacre.model.bundle import ISOLATION, Bundle, Mount, Process
from nacre.model.container import BoundMount, ContainerSpec, Level, ProcessSpec, Resources, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS, Code, Op, Spawn, op
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KERNEL, MEMORY = "io.nacre.kernel", "io.nacre.memory"

_NAMES = {NEWPID: "pid", NEWIPC: "ipc", NEWUTS: "uts", NEWNS: "mount", NEWCGROUP: "cgroup", NEWTIME: "time"}
# Made by the plan of every container, so an entry of the bundle adds nothing.
_GIVEN_KINDS = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "devtmpfs"))
_GIVEN_PLACES = frozenset(("/proc", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console"))
_TMPFS_OPTIONS = ("size", "mode", "nr_inodes", "uid", "gid")
_TMPFS_WORDS = frozenset(("ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev"))
_KERNEL_DEVICES = (1, 5, 10)  # majors of devices that every kernel has: memory, terminals, miscellaneous
_SHM_SIZE = 64 << 20


class Boundary(Value):
    """Where a bundle's machine lives on the host.

    directory: run-time directory; state: of the record; bundle: of the bundle; rootfs: absolute; owner: first id of its block of users.
    """

    name: str
    directory: str
    state: str
    bundle: str
    rootfs: str
    owner: int = 0


def wanted(bundle: Bundle, default: bool) -> bool:
    """Whether a bundle asks for a machine of its own. default: what it gets when it says nothing. Raises InvalidArgument."""
    said = bundle.annotations.get(ISOLATION, "")
    if said not in ("", "process", "vm"):
        raise InvalidArgument(f"annotations.{ISOLATION}: unknown level {said!r}", hint="process or vm")
    return said == "vm" if said else default


def check(bundle: Bundle) -> None:
    """Raises Unsupported for what a machine of its own cannot have."""
    if not bundle.namespace(NEWNET):
        raise Unsupported("linux.namespaces: a virtual machine cannot share the network of the host", hint="give it a network namespace")
    for item in bundle.namespaces:
        if item.path and item.flag in _NAMES:
            raise Unsupported(
                f"linux.namespaces: a {_NAMES[item.flag]} namespace of the host cannot be joined from a virtual machine",
                hint=f"annotations: {ISOLATION}=process for containers that share namespaces",
            )
    if bundle.namespace(NEWUSER):
        raise Unsupported("linux.namespaces: a user namespace has no meaning for a virtual machine", hint="its root is nobody on the host")
    hooks = bundle.hooks
    if hooks.create_container or hooks.start_container:
        raise Unsupported("hooks: those that run inside the container are not supported in a virtual machine", hint="use createRuntime")
    if bundle.seccomp and oci_container.uses_listener(bundle.seccomp):
        raise Unsupported("linux.seccomp: SCMP_ACT_NOTIFY cannot be answered from outside a virtual machine")
    for node in bundle.devices:
        if node.kind == "b" or (node.kind in "cu" and node.major not in _KERNEL_DEVICES):
            raise Unsupported(f"linux.devices: {node.path} is a device of the host, which a virtual machine does not have")


def sandbox(bundle: Bundle, where: Boundary, endpoint: Endpoint) -> Sandbox:
    """The sandbox value of a bundle. Raises InvalidArgument, Unsupported for mounts that a guest cannot have."""
    spec = ContainerSpec(
        image="",
        isolation=Level.VM,
        kernel=bundle.annotations.get(KERNEL, ""),
        resources=_resources(bundle),
        read_only=bundle.read_only,
        shm_size=next((_size(mount) for mount in bundle.mounts if mount.destination == "/dev/shm"), 0) or _SHM_SIZE,
        sysctls=dict(bundle.sysctl),
        domainname=bundle.domainname,
        oom_score_adj=(bundle.process.oom_score_adj or 0) if bundle.process else 0,
    )
    return Sandbox(
        id=where.name,
        level=Level.VM,
        directory=where.directory,
        state=where.state,
        hostname=bundle.hostname or os.uname().nodename,
        rootfs=Rootfs(driver="bundle", tree=where.rootfs),
        endpoint=endpoint,
        spec=spec,
        mounts=tuple(_mounts(bundle, where.bundle)),
        owner=where.owner,
    )


def _resources(bundle: Bundle) -> Resources:
    asked = bundle.annotations.get(MEMORY, "")
    if asked and not asked.isdecimal():
        raise InvalidArgument(f"annotations.{MEMORY}: {asked!r} is not a number of bytes")
    found = resources(bundle.resources)
    return found.replace(memory=int(asked)) if asked else found


def resources(limits: dict[str, Any]) -> Resources:
    """What of an OCI `linux.resources` object a machine has."""
    memory, cpu, pids = (limits.get(name) or {} for name in ("memory", "cpu", "pids"))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 100_000
    return Resources(
        memory=max(0, memory.get("limit") or 0),
        cpus=quota / period if quota > 0 else 0.0,
        cpu_shares=cpu.get("shares") or 0,
        pids=max(0, pids.get("limit") or 0),
    )


def _mounts(bundle: Bundle, directory: str) -> list[BoundMount]:
    found = []
    for number, mount in enumerate(bundle.mounts):
        options = frozenset(mount.options)
        if mount.kind in _GIVEN_KINDS or mount.destination.rstrip("/") in _GIVEN_PLACES:
            continue
        if mount.kind == "tmpfs":
            kept = tuple(word for word in mount.options if word in _TMPFS_WORDS or word.partition("=")[0] in _TMPFS_OPTIONS)
            found.append(BoundMount(target=mount.destination, kind="tmpfs", read_only="ro" in options, options=kept))
        elif options & {"bind", "rbind"} or mount.kind == "bind":
            source = os.path.join(directory, mount.source)
            if not os.path.exists(source):
                raise InvalidArgument(f"mounts[{number}].source: {source}: no such file or directory")
            found.append(BoundMount(target=mount.destination, source=source, read_only="ro" in options, is_dir=os.path.isdir(source)))
        else:
            raise Unsupported(f"mounts[{number}].type: a virtual machine cannot mount {mount.kind or 'this'} for {mount.destination}")
    return found


def _size(mount: Mount) -> int:
    """Bytes of a tmpfs as its option says, 0 = it does not."""
    text = next((word[5:] for word in mount.options if word.startswith("size=")), "").lower()
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:], 1)
    digits = text.rstrip("kmg")
    return int(digits) * factor if digits.isdecimal() else 0


def main_spawn(sandbox: Sandbox, bundle: Bundle, process: Process, place: Place, cache: str) -> Spawn:
    """The plan of the container's first process in the guest."""
    devices = [
        Device(name=node.path.removeprefix("/dev/"), major=node.major, minor=node.minor, kind="c", mode=node.mode)
        for node in bundle.devices
        if node.kind in "cu" and node.path.startswith("/dev/")
    ]
    made = container_plan(sandbox, process_spec(process), place, _security(bundle, process, cache), devices, Etc())
    return made.replace(ops=_finished(made.ops, process), main=True)


def further_spawn(bundle: Bundle, process: Process, main: int, place: Place, cache: str) -> Spawn:
    """The plan of one more process in the container whose first one has the number `main`."""
    made = exec_plan(main, process_spec(process), place, _security(bundle, process, cache))
    return made.replace(ops=_finished(made.ops, process))


def process_spec(process: Process) -> ProcessSpec:
    """The process as any container's."""
    return ProcessSpec(
        args=process.args,
        env=process.env,
        working_dir=process.cwd,
        user=f"{process.uid}:{process.gid}",
        groups=tuple(str(group) for group in process.groups),
        tty=process.terminal,
        open_stdin=True,
        rows=process.rows,
        columns=process.columns,
    )


def _security(bundle: Bundle, process: Process, cache: str) -> Security:
    return Security(
        capabilities=oci.capability_masks(process)[1],
        seccomp=oci_container.compiled(bundle.seccomp, cache) if bundle.seccomp else b"",
        no_new_privileges=process.no_new_privileges,
        hidden=bundle.masked,
        read_only=bundle.read_only_paths,
        rlimits=process.rlimits,
    )


def _finished(ops: tuple[Op, ...], process: Process) -> tuple[Op, ...]:
    """The five capability sets and the umask, which an ordinary container has no choice of."""
    bounding, effective, inheritable, permitted, ambient = oci.capability_masks(process)
    sets = {Code.BOUND: (bounding,), Code.CAPS: (effective, permitted, inheritable, ambient)}
    changed = [op(item.code, *sets[item.code]) if item.code in sets else item for item in ops]
    if process.umask >= 0:
        changed.insert(-1, op(Code.UMASK, process.umask))
    return tuple(changed)


def look_up(rootfs: str, bundle: Bundle, process: Process) -> None:
    """Engines expect `create` to fail when there is no such program, long before the guest would say so.

    What a mount may bring along is not judged. Raises CommandNotFound, CommandNotExecutable.
    """
    name = process.args[0]
    path = next((word[5:] for word in process.env if word.startswith("PATH=")), oci.DEFAULT_PATH)
    places = [os.path.join(process.cwd, name)] if "/" in name else [f"{place}/{name}" for place in path.split(":") if place]
    covers = [mount.destination.rstrip("/") + "/" for mount in bundle.mounts]
    found = [_mode(rootfs, place) for place in places]
    if any(stat.S_ISREG(mode) and mode & 0o111 for mode in found) or any(place.startswith(tuple(covers)) for place in places):
        return
    if any(found):
        raise CommandNotExecutable(f'unable to start container process: exec: "{name}": permission denied')
    text = "no such file or directory" if "/" in name else "executable file not found in $PATH"
    raise CommandNotFound(f'unable to start container process: exec: "{name}": {text}')


def _mode(rootfs: str, path: str) -> int:
    """Mode of a file below a root directory, 0 when there is none."""
    try:
        top = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = openat2(top, path.lstrip("/"), os.O_PATH | os.O_CLOEXEC, resolve=RESOLVE_IN_ROOT)
            try:
                return os.fstat(fd).st_mode
            finally:
                os.close(fd)
        finally:
            os.close(top)
    except (OSError, NacreError):
        return 0


def numbers(sample: Any) -> dict[str, Any]:
    """A sample of a machine in the words of runc's events."""
    return {
        "cpu": {"usage": {"total": sample.cpu, "percpu": [], "kernel": 0, "user": 0}, "throttling": {}},
        "memory": {"usage": {"usage": sample.memory, "limit": sample.memory_limit, "max": sample.memory, "failcnt": 0}, "raw": {}},
        "pids": {"current": sample.pids},
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }
