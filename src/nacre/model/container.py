"""Containers as values: what was asked for, what is recorded, what was observed."""

from __future__ import annotations

import enum

from nacre.model.image import ImageConfig
from nacre.model.life import HealthConfig, LogConfig, RestartPolicy
from nacre.model.network import Endpoint, PortMapping
from nacre.model.value import Value


class Level(enum.StrEnum):
    """Isolation levels (docs/architecture.md, "Words")."""

    PROCESS = "process"
    VM = "vm"


class State(enum.StrEnum):
    """What a container is doing. Derived from the kernel (is the sandbox's lock held?) and the exit record, never stored alone."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    DEAD = "dead"


# What may follow what; `engine` refuses every other step with Conflict.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.RUNNING, State.EXITED, State.DEAD}),
    State.RUNNING: frozenset({State.PAUSED, State.RESTARTING, State.EXITED, State.DEAD}),
    State.PAUSED: frozenset({State.RUNNING, State.RESTARTING, State.EXITED, State.DEAD}),
    State.RESTARTING: frozenset({State.RUNNING, State.EXITED, State.DEAD}),
    State.EXITED: frozenset({State.RUNNING, State.DEAD}),
    State.DEAD: frozenset(),
}


class DeviceLimit(Value):
    """A number for one block device of the host, by its path: bytes or operations in a second, or a weight."""

    path: str
    value: int


class Resources(Value):
    """Limits; 0, "" and () mean none. memory in bytes, cpus in processors, cpu_shares as cgroup v1 (2-262144), pids as a count.

    memory_swap: memory and swap together, -1 = unlimited, 0 = as much swap as memory; memory_swappiness: 0-100, -1 = the host's;
    cpu_period, cpu_quota, cpu_rt_*: microseconds; cpuset_*: lists as 0-2,7; blkio_weight: 10-1000.
    unified: files of cgroup v2 with what to write there, for what has no field of its own.
    """

    memory: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    pids: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    memory_swappiness: int = -1
    oom_kill_disable: bool = False
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_rt_period: int = 0
    cpu_rt_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    blkio_weight: int = 0
    blkio_weight_device: tuple[DeviceLimit, ...] = ()
    device_read_bps: tuple[DeviceLimit, ...] = ()
    device_write_bps: tuple[DeviceLimit, ...] = ()
    device_read_iops: tuple[DeviceLimit, ...] = ()
    device_write_iops: tuple[DeviceLimit, ...] = ()
    unified: dict[str, str] = {}


class MountSpec(Value):
    """One requested mount.

    kind: bind (source is an absolute host path), volume (source is a volume's name, "" = anonymous), tmpfs, or image (source names it).
    options: create (make a missing source), nocopy, subpath=PATH, a propagation (rprivate, rslave, rshared ...), recursive=disabled,
    recursive=writable, recursive=readonly (of a bind), and for a tmpfs those of mount(8).
    """

    kind: str
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()


class Ulimit(Value):
    """A resource limit by its Docker name (nofile, nproc ...); -1 = unlimited."""

    name: str
    soft: int
    hard: int


class ContainerSpec(Value):
    """What the caller asked for: the arguments of `run`, before the image's defaults are merged in.

    command: arguments after the image; entrypoint None = the image's, () = none.
    network: bridge, host, none or the name of a network. userns: "" (host) or "private".
    isolation: level; kernel: path or name of a guest kernel, "" = the default (level vm only).
    pid, ipc, uts, cgroupns: "" (an own namespace), host, or container:ID whose namespace is shared; ipc also private, shareable and none.
    rootfs: directory that is the root file system instead of an image's, "" = none; rootfs_overlay: leave it unchanged, write above it.
    cgroup_parent: the group below which its own is made, a path or a slice of systemd, "" = the default.
    storage_size: bytes that it may write to its root file system, 0 = no limit (at level vm: the size of its disk, 0 = 16 GiB).
    gpus: CDI names (vendor/class=device); devices: HOST[:CONTAINER[:rwm]] or CDI names.
    """

    image: str
    name: str = ""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    labels: dict[str, str] = {}
    tty: bool = False
    open_stdin: bool = False
    auto_remove: bool = False
    isolation: Level = Level.PROCESS
    kernel: str = ""
    resources: Resources = Resources()
    network: str = "bridge"
    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    mounts: tuple[MountSpec, ...] = ()
    read_only: bool = False
    shm_size: int = 64 * 1024 * 1024
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    security_opt: tuple[str, ...] = ()
    userns: str = ""
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: dict[str, str] = {}
    devices: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    stop_signal: str = ""
    stop_timeout: int = 10
    restart: RestartPolicy = RestartPolicy()
    health: HealthConfig | None = None
    log: LogConfig = LogConfig()
    oom_score_adj: int = 0
    storage_size: int = 0
    cgroup_parent: str = ""
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    cgroupns: str = ""
    domainname: str = ""
    init: bool = False
    device_rules: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    volumes_from: tuple[str, ...] = ()
    rootfs: str = ""
    rootfs_overlay: bool = False


class ProcessSpec(Value):
    """One process to run in a container: the merged, final form for `run` and for `exec`.

    args: complete argument vector; env: complete, KEY=value; user: "" = root.
    """

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    groups: tuple[str, ...] = ()
    tty: bool = False
    open_stdin: bool = False
    privileged: bool = False
    rows: int = 0
    columns: int = 0


class LayerMount(Value):
    """An unpacked layer on this host. format: erofs (path is an image file) or directory (path is a tree)."""

    diff_id: str
    path: str
    format: str


class Rootfs(Value):
    """A root file system made ready by `storage`, as parts that a level puts together.

    layers: base first, for drivers that stack; upper: directory with ``upper/`` and ``work/`` (level process);
    disk: path of a raw ext4 image with the same two directories inside (level vm);
    tree: a complete directory to be used instead of layers and upper, which are for comparing then, "" = none;
    options: further mount options of overlayfs.
    """

    driver: str
    layers: tuple[LayerMount, ...] = ()
    upper: str = ""
    disk: str = ""
    tree: str = ""
    options: str = ""


class BoundMount(Value):
    """A mount resolved to this host. source: absolute host path ("" for tmpfs); is_dir of the source.

    options: see `MountSpec`, after name=VOLUME; layers: of an image (kind image; source is its id), base first.
    """

    target: str
    kind: str = "bind"
    source: str = ""
    read_only: bool = False
    is_dir: bool = True
    options: tuple[str, ...] = ()
    layers: tuple[LayerMount, ...] = ()


class Container(Value):
    """The durable record of a container (JSON in the store).

    id: 64 hex digits. created, started, finished: RFC 3339 with nanoseconds, "" = never. pid: of the main process as the host
    (level process) or the guest (level vm) sees it, 0 when not running. exit_code: of the last run. error: why it did not start.
    restarts: by its policy since somebody started it. restart_at: when the next one is due (seconds since the epoch), 0 = none is;
    backoff: how long the last one waited (ms). stopped: somebody ended it on purpose.
    """

    id: str
    name: str
    spec: ContainerSpec
    image_id: str
    image_name: str
    image_config: ImageConfig = ImageConfig()
    process: ProcessSpec = ProcessSpec(args=())
    mounts: tuple[BoundMount, ...] = ()
    created: str = ""
    started: str = ""
    finished: str = ""
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    restarts: int = 0
    restart_at: float = 0.0
    backoff: int = 0
    stopped: bool = False
    pid: int = 0
    main: int = 0
    endpoint: Endpoint | None = None
    rootfs: Rootfs | None = None
    removing: bool = False
    removing_volumes: bool = False


class Sandbox(Value):
    """What an isolation driver needs to bring one sandbox to life. Directories are absolute host paths.

    directory: run-time directory (lock, socket, console log); state: the container's durable directory (log, exit record).
    joins: path of the namespace by its kind (pid, ipc, uts, cgroup, user) where one of another container is shared.
    """

    id: str
    level: Level
    directory: str
    state: str
    hostname: str
    rootfs: Rootfs
    endpoint: Endpoint
    spec: ContainerSpec
    mounts: tuple[BoundMount, ...] = ()
    owner: int = 0
    joins: dict[str, str] = {}


class Stats(Value):
    """One sample, the same schema at every level. Times in ns of CPU, sizes in bytes; limit 0 = none."""

    time: float
    cpu: int = 0
    cpus: int = 1
    system_cpu: int = 0
    memory: int = 0
    memory_limit: int = 0
    pids: int = 0
    rx: int = 0
    tx: int = 0
    read: int = 0
    write: int = 0
