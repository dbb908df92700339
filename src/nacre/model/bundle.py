"""The configuration of an OCI bundle as values: what config.json says, after it was found to be valid. No I/O.

Source: OCI runtime specification 1.2, config.md and config-linux.md; field names follow it. Two parts stay JSON objects, because
those who carry them out (cgroups, seccomp compiler) take them in that form: `resources` and `seccomp`.
"""

from __future__ import annotations

from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "1.2.1"
ISOLATION = "io.nacre.isolation"  # annotation: the level that a bundle asks for
CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")

# Resource limits in the order of the kernel's numbers (asm-generic/resource.h).
RLIMITS = (
    "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
)  # fmt: skip


class IdMap(Value):
    """A range of ids: container, host and their number."""

    container: int
    host: int
    size: int


class Mount(Value):
    """One entry of `mounts`. options: as written; uid_maps, gid_maps: of an id-mapped mount."""

    destination: str
    kind: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()


class Namespace(Value):
    """A namespace that is not the runtime's own. flag: CLONE_NEW*; path: join this one, "" = make a new one."""

    flag: int
    path: str = ""


class Node(Value):
    """A device node. kind: c, u, b or p; mode: permission bits."""

    path: str
    kind: str
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


class Hook(Value):
    """A program to run. args: argv (argv[0] is its name), may be empty; timeout: seconds, 0 = none."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int = 0


class Hooks(Value):
    """The six lists of hooks, in the order of the container's life."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Scheduler(Value):
    """Arguments of sched_setattr(2), as numbers."""

    policy: int
    flags: int = 0
    nice: int = 0
    priority: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class Process(Value):
    """What runs. capabilities: names by set (`CAPABILITY_SETS`); rlimits: (number, soft, hard); umask -1 = 022."""

    args: tuple[str, ...]
    cwd: str = "/"
    env: tuple[str, ...] = ()
    terminal: bool = False
    rows: int = 0
    columns: int = 0
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    umask: int = -1
    capabilities: dict[str, tuple[str, ...]] = {}
    rlimits: tuple[tuple[int, int, int], ...] = ()
    no_new_privileges: bool = False
    apparmor: str = ""
    selinux: str = ""
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    io_priority: int | None = None
    affinity: tuple[str, str] = ("", "")


class Rdt(Value):
    """Intel RDT: class of service and the lines of its schemata."""

    clos_id: str = ""
    schemata: tuple[str, ...] = ()


class Bundle(Value):
    """A whole configuration. rootfs: as written, relative to the bundle; path fields are absolute unless the specification allows less."""

    version: str
    rootfs: str = ""
    read_only: bool = False
    hostname: str = ""
    domainname: str = ""
    process: Process | None = None
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: dict[str, str] = {}
    namespaces: tuple[Namespace, ...] = ()
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()
    time_offsets: dict[str, str] = {}
    devices: tuple[Node, ...] = ()
    cgroups_path: str = ""
    resources: dict[str, Any] = {}
    rdt: Rdt | None = None
    sysctl: dict[str, str] = {}
    seccomp: dict[str, Any] | None = None
    propagation: str = ""
    masked: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()
    mount_label: str = ""
    personality: int | None = None

    def namespace(self, flag: int) -> Namespace | None:
        """The entry of one kind, None = the runtime's own is kept."""
        return next((item for item in self.namespaces if item.flag == flag), None)
