"""The flags of run, create and explain, and the `ContainerSpec` that they make.

Grammar of every value: Docker's `docker run` reference. What Docker knows and this version cannot do is refused by name, so that
nobody believes that it took effect.
"""

from __future__ import annotations

import os
import posixpath

from nacre.cli.flags import Arguments, Flag, UsageError
from nacre.errors import InvalidArgument
from nacre.model.container import ContainerSpec, Level, MountSpec, Resources, Ulimit
from nacre.model.network import PortMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LEVELS = ("default", "process", "vm")
PULL_POLICIES = ("always", "missing", "never")

ENV_FLAGS = (
    Flag("env", "Set an environment variable; without =VALUE, take it from this environment", "list", short="e"),
    Flag("env-file", "Read environment variables from a file", "list", value="file", complete="files"),
)

# Limits: those of `update` as well. What they mean is in `nacre.cli.resources`, which loads when one of them is used.
RESOURCE_FLAGS: tuple[Flag, ...] = (
    Flag("blkio-weight", "Weight of disk access against other containers (10-1000)", "int"),
    Flag("blkio-weight-device", "The same for one disk (path:weight)", "list", value="path:weight"),
    Flag("cgroup-conf", "Write to a file of cgroup v2, as memory.high=1g", "list", value="file=value"),
    Flag("cpu-period", "Length of a scheduling period in microseconds", "int"),
    Flag("cpu-quota", "Processor time in one period in microseconds (-1 = unlimited)", "int"),
    Flag("cpu-rt-period", "Length of a period of real-time scheduling in microseconds", "int"),
    Flag("cpu-rt-runtime", "Real-time processor time in one such period in microseconds", "int"),
    Flag("cpu-shares", "Weight of processor time against other containers (2-262144)", "int", short="c"),
    Flag("cpus", "Number of processors, also fractions", "decimal"),
    Flag("cpuset-cpus", "Processors it may run on, as 0-2,7", "string", value="list"),
    Flag("cpuset-mems", "Memory nodes it may use, as 0,1", "string", value="list"),
    Flag("device-read-bps", "Limit reading from a disk (path:bytes in a second, as /dev/sda:1mb)", "list", value="path:rate"),
    Flag("device-read-iops", "Limit reading from a disk (path:operations in a second)", "list", value="path:rate"),
    Flag("device-write-bps", "Limit writing to a disk (path:bytes in a second)", "list", value="path:rate"),
    Flag("device-write-iops", "Limit writing to a disk (path:operations in a second)", "list", value="path:rate"),
    Flag("kernel-memory", "Refused: --memory counts the kernel's memory as well", "bytes"),
    Flag("memory", "Memory limit, as 512m or 2g", "bytes", short="m"),
    Flag("memory-reservation", "Memory that is left to it when the host runs short", "bytes"),
    Flag("memory-swap", "Limit of memory and swap together (-1 = unlimited swap; default: twice the memory)", "swap", value="bytes"),
    Flag("memory-swappiness", "How readily its memory is swapped (0-100)", "int", default=-1),
    Flag("oom-kill-disable", "Let its processes wait instead of killing one when memory runs out (cgroup v1)"),
    Flag("pids-limit", "Limit the number of processes (-1 = unlimited)", "int"),
)

# What they mean is in `nacre.cli.lifeflags`, which loads when one of them is used.
LIFE_FLAGS: tuple[Flag, ...] = (
    Flag("health-cmd", "Command that tells whether the container is well", "string"),
    Flag("health-interval", "Time between two checks (30s)", "string", value="duration"),
    Flag("health-retries", "Failures in a row that make it unhealthy (3)", "int"),
    Flag("health-start-interval", "Time between two checks in the start period (5s)", "string", value="duration"),
    Flag("health-start-period", "Time in which failures do not count (0s)", "string", value="duration"),
    Flag("health-timeout", "Time after which a check has failed (30s)", "string", value="duration"),
    Flag("log-driver", "Where its output goes: local, json-file, syslog, journald or none (local)", "string"),
    Flag("log-opt", "Option of the log driver, as max-size=10m", "list", value="name=value"),
    Flag("no-healthcheck", "Ignore the health check of the image"),
    Flag("restart", "When to start it again: no, on-failure[:N], always or unless-stopped", "string", default="no"),
)

SPEC_FLAGS: tuple[Flag, ...] = (
    *ENV_FLAGS,
    *RESOURCE_FLAGS,
    Flag("add-host", "Add a line to /etc/hosts (name:address; host-gateway is this host)", "list", value="name:ip"),
    Flag("attach", "Attach to stdin, stdout or stderr", "list", short="a"),
    Flag("cap-add", "Give a Linux capability, or ALL", "list"),
    Flag("cap-drop", "Take a Linux capability away, or ALL", "list"),
    Flag("cgroup-parent", "Put its control group below this one: a path, or a slice of systemd", "string", value="path"),
    Flag("cidfile", "Write the container's id to a file", "string", value="file", complete="files"),
    Flag("device", "Give a device or a directory of them (source[:target[:rwm]]), or a CDI name", "list", complete="files"),
    Flag("dns", "Use this name server", "list", value="ip"),
    Flag("dns-option", "Set an option of resolv.conf", "list", aliases=("dns-opt",)),
    Flag("dns-search", "Search names in this domain", "list"),
    Flag("entrypoint", 'Run this instead of the entry point of the image ("" = none)', "string"),
    Flag("group-add", "Join one more group", "list"),
    Flag("hostname", "Name of the host that the container sees", "string", short="h"),
    Flag("interactive", "Keep standard input open", short="i"),
    Flag(
        "isolation", "Isolation level: process, or vm for an own kernel (default: NACRE_ISOLATION, else process)", "string", choices=_LEVELS
    ),
    Flag("kernel", "Guest kernel for level vm: a name or a path", "string", complete="files"),
    Flag("label", "Attach a label", "list", short="l", value="key=value"),
    Flag("label-file", "Read labels from a file", "list", value="file", complete="files"),
    Flag("mount", "Mount something (type=bind|volume|tmpfs|image,source=...,target=...[,readonly])", "list"),
    Flag("name", "Name of the container", "string"),
    Flag("network", "Network: bridge, host, none, a name or container:NAME", "string", aliases=("net",), complete="networks"),
    Flag("oom-score-adj", "Who is killed first when memory runs out (-1000 to 1000)", "int"),
    Flag("platform", "Platform of the image (os/architecture[/variant])", "string"),
    Flag("privileged", "Give all capabilities and devices"),
    Flag("publish", "Publish a port ([address:][host port:]port[/udp], also ranges)", "list", short="p"),
    Flag("publish-all", "Publish every exposed port on a free port of this host", short="P"),
    Flag("pull", "Pull the image before creating the container", "string", choices=PULL_POLICIES, default="missing"),
    Flag("quiet", "Do not show the progress of pulling", short="q"),
    Flag("read-only", "Make the root file system read-only"),
    Flag("rm", "Remove the container and its anonymous volumes when it ends"),
    Flag("security-opt", "Security option (seccomp=FILE, no-new-privileges, apparmor=, systempaths=, mask=, unmask= ...)", "list"),
    Flag("shm-size", "Size of /dev/shm", "bytes"),
    Flag("storage-opt", "Storage option: size=10g limits what the container may write to its root file system", "list", value="key=value"),
    Flag("stop-signal", "Signal that asks the container to stop", "string"),
    Flag("stop-timeout", "Seconds between that signal and KILL", "int"),
    Flag("sysctl", "Set a kernel parameter of the container", "list", value="name=value"),
    Flag("tmpfs", "Mount a tmpfs (path[:options])", "list"),
    Flag("tty", "Give the container a terminal", short="t"),
    Flag("ulimit", "Set a resource limit (name=soft[:hard])", "list"),
    Flag("user", "User, and group, by name or number (user[:group])", "string", short="u"),
    Flag("volume", "Mount a volume or a directory of this host ([source:]target[:ro,rslave ...])", "list", short="v", complete="files"),
    Flag("workdir", "Working directory inside the container", "string", short="w"),
    *LIFE_FLAGS,
)

# Namespaces, devices, volumes of others. What they mean is in `nacre.cli.rights`, which loads when one of them is used.
RIGHTS_FLAGS: tuple[Flag, ...] = (
    Flag("annotation", "Attach an annotation", "list", value="key=value"),
    Flag("cgroupns", "Cgroup namespace: private (default) or host", "string", choices=("", "private", "host")),
    Flag("device-cgroup-rule", "Permit devices by number, as 'c 42:* rmw'", "list", value="rule"),
    Flag("domainname", "NIS domain name that the container sees", "string"),
    Flag("gpus", "Give GPUs by their CDI specification: all, a number, or device=NAME", "list", value="request"),
    Flag("init", "Run an init as the first process: it reaps, and hands signals on"),
    Flag("ipc", "IPC namespace: private (default), shareable, none, host or container:NAME", "string", value="mode"),
    Flag("pid", "PID namespace: private (default), host or container:NAME", "string", value="mode"),
    Flag("rootfs", "The first argument is a directory to be the root file system, not an image (DIR, or DIR:O to leave it unchanged)"),
    Flag("runtime", "Refused: Nacre has no OCI runtime below it (see --isolation)", "string"),
    Flag("userns", "User namespace: host (default), private, keep-id or container:NAME", "string", value="mode"),
    Flag("uts", "UTS namespace: private (default), host or container:NAME", "string", value="mode"),
    Flag("volume-driver", "Driver of named volumes: only local", "string"),
    Flag("volumes-from", "Mount the volumes of another container (name[:ro])", "list", value="container", complete="containers"),
)
SPEC_FLAGS = (*SPEC_FLAGS, *RIGHTS_FLAGS)

# Docker's other flags, so that they are told from misspelt ones.
_OTHERS = """
cpu-count cpu-percent expose io-maxbandwidth io-maxiops ip ip6 link link-local-ip mac-address network-alias use-api-socket
"""
UNSUPPORTED = frozenset(_OTHERS.split()).difference(flag.name for flag in SPEC_FLAGS)


def container_spec(args: Arguments, image: str, command: list[str], *, detached: bool = False) -> ContainerSpec:
    """The spec of one command line. Raises UsageError, InvalidArgument."""
    default = ContainerSpec(**_rights(args, image))
    return default.replace(
        name=args.name,
        command=tuple(command),
        entrypoint=_entrypoint(args),
        env=environment(args.env, args.env_file),
        working_dir=args.workdir,
        user=args.user,
        groups=tuple(args.group_add),
        hostname=args.hostname,
        labels=_labels(args.label, args.label_file),
        tty=args.tty,
        # A detached container keeps standard input open only when asked; an attached one when we feed it.
        open_stdin=args.interactive or ("stdin" in _attach(args.attach) and not detached),
        auto_remove=args.rm,
        isolation=isolation_level(args.isolation),
        kernel=args.kernel,
        resources=_resources(args),
        cgroup_parent=args.cgroup_parent or os.environ.get("NACRE_CGROUP_PARENT", ""),
        network=_network(args.network) or default.network,
        ports=_ports(args.publish),
        publish_all=args.publish_all,
        mounts=_mounts(args),
        read_only=args.read_only,
        shm_size=args.shm_size or default.shm_size,
        cap_add=tuple(args.cap_add),
        cap_drop=tuple(args.cap_drop),
        privileged=args.privileged,
        security_opt=tuple(args.security_opt),
        ulimits=tuple(parse_ulimit(text) for text in args.ulimit),
        sysctls=dict(_pair(text, "sysctl") for text in args.sysctl),
        devices=tuple(args.device),
        dns=tuple(args.dns),
        dns_search=tuple(args.dns_search),
        dns_options=tuple(args.dns_option),
        extra_hosts=tuple(_extra_host(text) for text in args.add_host),
        stop_signal=args.stop_signal,
        stop_timeout=args.stop_timeout if args.given("stop-timeout") else default.stop_timeout,
        storage_size=_storage_size(args.storage_opt),
        oom_score_adj=_bounded(args.oom_score_adj, -1000, 1000, "oom-score-adj"),
        **_life(args),
    )  # fmt: skip


def _life(args: Arguments) -> dict[str, Any]:
    if not any(args.given(flag.name) for flag in LIFE_FLAGS):
        return {}
    from nacre.cli.lifeflags import life

    return life(args)


def _resources(args: Arguments) -> Resources:
    if not any(args.given(flag.name) for flag in RESOURCE_FLAGS):
        return Resources()
    from nacre.cli.resources import limits

    return limits(args)


def _storage_size(texts: list[str]) -> int:
    """The size of --storage-opt size=...; 0 when there is none."""
    from nacre.cli.units import parse_size

    size = 0
    for text in texts:
        name, value = _pair(text, "storage-opt")
        if name != "size":
            raise UsageError(f"storage option {name!r} is not supported", hint="Only size is.")
        size = parse_size(value)
        if size <= 0:
            raise UsageError(f"invalid size {value!r} for --storage-opt")
    return size


def _rights(args: Arguments, image: str) -> dict[str, Any]:
    if not any(args.given(flag.name) for flag in RIGHTS_FLAGS):
        return {"image": image}
    from nacre.cli.rights import fields

    return {"image": image, **fields(args, image)}


def attached_streams(args: Arguments) -> frozenset[str]:
    """Which of stdin, stdout, stderr the command is attached to (Docker: all outputs, and the input with -i, unless -a says)."""
    chosen = _attach(args.attach)
    if chosen:
        return chosen
    return frozenset(("stdin", "stdout", "stderr") if args.interactive else ("stdout", "stderr"))


def _attach(texts: list[str]) -> frozenset[str]:
    for text in texts:
        if text.lower() not in ("stdin", "stdout", "stderr"):
            raise UsageError(f"invalid value {text!r} for --attach: valid streams are STDIN, STDOUT and STDERR")
    return frozenset(text.lower() for text in texts)


def isolation_level(text: str) -> Level:
    """The level of --isolation, else of NACRE_ISOLATION, else process. Raises InvalidArgument."""
    word = text or os.environ.get("NACRE_ISOLATION", "")
    if word in ("", "default"):
        return Level.PROCESS
    try:
        return Level(word)
    except ValueError:
        raise InvalidArgument(f"NACRE_ISOLATION: unknown isolation level {word!r}", hint="process or vm") from None


def _entrypoint(args: Arguments) -> tuple[str, ...] | None:
    if not args.given("entrypoint"):
        return None
    return (args.entrypoint,) if args.entrypoint else ()


def environment(entries: list[str], files: list[str]) -> tuple[str, ...]:
    """The variables of --env-file and --env, in this order. ``NAME`` alone: this process's value; not set here = not set there."""
    found: list[str] = []
    for path in files:
        found += _env_file(path)
    for entry in entries:
        name, equals, _ = entry.partition("=")
        if not name:
            raise UsageError(f"invalid environment variable: {entry}")
        found.append(entry if equals or name not in os.environ else f"{name}={os.environ[name]}")
    return tuple(found)


def _env_file(path: str) -> list[str]:
    entries = []
    for number, line in enumerate(_lines(path), 1):
        text = line.lstrip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not name or any(char.isspace() for char in name):
            raise InvalidArgument(f"{path}, line {number}: invalid variable name {name!r}")
        if equals:
            entries.append(f"{name}={value}")
        elif name in os.environ:
            entries.append(f"{name}={os.environ[name]}")
    return entries


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError as error:
        raise InvalidArgument(f"open {path}: {error.strerror}") from error


def _labels(texts: list[str], files: list[str]) -> dict[str, str]:
    entries = [line.strip() for path in files for line in _lines(path) if line.strip() and not line.lstrip().startswith("#")]
    labels = {}
    for text in (*entries, *texts):
        key, _, value = text.partition("=")
        if not key:
            raise UsageError(f"invalid label: {text!r}")
        labels[key] = value
    return labels


def _network(text: str) -> str:
    if "=" in text:
        raise UsageError(f"--network {text}: options of a network are not supported", hint="Give only the network's name.")
    return "bridge" if text == "default" else text


def _ports(texts: list[str]) -> tuple[PortMapping, ...]:
    if not texts:
        return ()
    from nacre.cli.ports import parse_publish

    return tuple(port for text in texts for port in parse_publish(text))


def _mounts(args: Arguments) -> tuple[MountSpec, ...]:
    if not (args.volume or args.mount or args.tmpfs):
        return ()
    from nacre.cli.mounts import parse_mount, parse_tmpfs, parse_volume

    found = [
        *(parse_volume(text) for text in args.volume),
        *(parse_mount(text) for text in args.mount),
        *(parse_tmpfs(text) for text in args.tmpfs),
    ]
    targets: set[str] = set()
    for mount in found:
        target = posixpath.normpath(mount.target)
        if target in targets:
            raise UsageError(f"Duplicate mount point: {target}")
        targets.add(target)
    return tuple(found)


def parse_ulimit(text: str) -> Ulimit:
    """``nofile=1024:2048``, ``core=-1``, ``nproc=unlimited``; one number is both limits. Raises UsageError."""
    name, equals, limits = text.partition("=")
    soft_text, colon, hard_text = limits.partition(":")
    try:
        soft, hard = _limit(soft_text), _limit(hard_text if colon else soft_text)
    except ValueError:
        soft, hard, equals = 0, 0, ""
    if not equals or not name:
        raise UsageError(f'invalid argument "{text}" for "--ulimit" flag: expected name=soft[:hard]')
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return Ulimit(name=name, soft=soft, hard=hard)


def _limit(text: str) -> int:
    number = -1 if text == "unlimited" else int(text)
    if number < -1:
        raise ValueError
    return number


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f'invalid argument "{text}" for "--{flag}" flag: expected name=value')
    return key, value


def _extra_host(text: str) -> str:
    # Docker takes name=address as well, which IPv6 addresses are easier to write in.
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    if not separator or not name or not address:
        raise UsageError(f'invalid argument "{text}" for "--add-host" flag: bad format for add-host: "{text}"')
    return f"{name}:{address.removeprefix('[').removesuffix(']')}"


def _bounded(number: int, low: int, high: int, flag: str) -> int:
    if not low <= number <= high:
        raise UsageError(f"--{flag} must be between {low} and {high}")
    return number
