"""config.json and process.json: from bytes to values of `nacre.model.bundle`, everything checked before anything is made.

Unknown fields are ignored, as the OCI runtime specification demands (config.md, "Extensibility"); anything else that is not as it
should be raises InvalidArgument whose message names the field: ``linux.namespaces[2].type: unknown namespace "foo"``.
"""

from __future__ import annotations

from nacre.errors import InvalidArgument
from nacre.model import jsontext
from nacre.model.bundle import (
    CAPABILITY_SETS,
    RLIMITS,
    Bundle,
    Hook,
    Hooks,
    IdMap,
    Mount,
    Namespace,
    Node,
    Process,
    Rdt,
    Scheduler,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

SIZE_MAX = 64 << 20  # bytes of a config.json: a hundred thousand mounts take 12 MB
_MOUNTS_MAX = 100_000  # the kernel's own limit for a mount namespace (fs.mount-max)
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1

NAMESPACES = {
    "pid": 0x20000000, "network": 0x40000000, "mount": 0x20000, "ipc": 0x08000000, "uts": 0x04000000, "user": 0x10000000,
    "cgroup": 0x02000000, "time": 0x80,
}  # fmt: skip
_NEWUSER, _NEWUTS, _NEWTIME, _NEWNS = 0x10000000, 0x04000000, 0x80, 0x20000
_POLICIES = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6}
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 1, "SCHED_FLAG_RECLAIM": 2, "SCHED_FLAG_DL_OVERRUN": 4, "SCHED_FLAG_KEEP_POLICY": 8,
    "SCHED_FLAG_KEEP_PARAMS": 16, "SCHED_FLAG_UTIL_CLAMP_MIN": 32, "SCHED_FLAG_UTIL_CLAMP_MAX": 64,
}  # fmt: skip
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_PROPAGATION = ("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable")


class Fields:
    """A JSON object and where it is, for messages. Every getter returns the default for a missing (or null) field."""

    __slots__ = ("data", "where")

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise _wrong(where or "the document", "an object", data)
        self.data: dict[str, Any] = data
        self.where = where

    def at(self, key: str) -> str:
        """The path of a field."""
        return f"{self.where}.{key}" if self.where else key

    def has(self, key: str) -> bool:
        """Is the field there?"""
        return self.data.get(key) is not None

    def text(self, key: str, default: str = "") -> str:
        """A string without NUL."""
        value = self.data.get(key)
        if value is None:
            return default
        if type(value) is not str:
            raise _wrong(self.at(key), "a string", value)
        return _clean(value, self.at(key))

    def needed(self, key: str) -> str:
        """A string that must be there and not be empty."""
        value = self.text(key)
        if not value:
            raise InvalidArgument(f"{self.at(key)}: is required")
        return value

    def flag(self, key: str) -> bool:
        """A boolean, false by default."""
        value = self.data.get(key)
        if value is not None and type(value) is not bool:
            raise _wrong(self.at(key), "true or false", value)
        return bool(value)

    def number(self, key: str, default: int = 0, *, low: int = 0, high: int = _U32) -> int:
        """An integer between two bounds."""
        value = self.data.get(key)
        return default if value is None else _integer(value, self.at(key), low, high)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        where = self.at(key)
        return tuple([_string(item, where, place) for place, item in enumerate(self.items(key))])

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self.data.get(key)
        if value is None:
            return []
        if type(value) is not list:
            raise _wrong(self.at(key), "a list", value)
        return value

    def child(self, key: str) -> Fields:
        """An object, empty when it is missing."""
        value = self.data.get(key)
        return Fields({} if value is None else value, self.at(key))

    def each(self, key: str, make: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of objects, each made into a value."""
        where = self.at(key)
        return tuple([make(Fields(item, f"{where}[{place}]")) for place, item in enumerate(self.items(key))])

    def strings(self, key: str) -> dict[str, str]:
        """An object whose values are strings."""
        child = self.child(key)
        return {_clean(name, child.where): child.text(name) for name in child.data}

    def choice(self, key: str, table: dict[str, int], what: str) -> int:
        """A required string out of a table."""
        return _chosen(self.needed(key), table, self.at(key), what)


def _wrong(where: str, what: str, value: object) -> InvalidArgument:
    names = {"dict": "an object", "list": "a list", "str": "a string", "bool": "a boolean", "NoneType": "null"}
    kind = type(value).__name__
    return InvalidArgument(f"{where}: expected {what}, got {names.get(kind, 'a number')}")


def _clean(value: str, where: str) -> str:
    if "\0" in value:
        raise InvalidArgument(f"{where}: contains a NUL character")
    return value


def _string(value: object, where: str, place: int) -> str:
    if type(value) is not str:
        raise _wrong(f"{where}[{place}]", "a string", value)
    return _clean(value, f"{where}[{place}]")


def _integer(value: object, where: str, low: int, high: int) -> int:
    if type(value) is not int:
        raise _wrong(where, "an integer", value)
    if not low <= value <= high:
        raise InvalidArgument(f"{where}: {value} is not between {low} and {high}")
    return value


def _chosen(word: str, table: dict[str, int], where: str, what: str) -> int:
    number = table.get(word)
    if number is None:
        raise InvalidArgument(f'{where}: unknown {what} "{word}"', hint=f"one of {', '.join(table)}")
    return number


def load(data: bytes, name: str) -> Any:
    """The JSON document in `data`. name: of the file, for messages. Raises InvalidArgument."""
    if len(data) > SIZE_MAX:
        raise InvalidArgument(f"{name}: {len(data)} bytes are too many", hint=f"at most {SIZE_MAX >> 20} MiB")
    try:
        return jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: not JSON: {error}") from error


def bundle(data: bytes) -> Bundle:
    """The configuration in the bytes of a config.json. Raises InvalidArgument."""
    return parse(load(data, "config.json"))


def parse(data: Any) -> Bundle:
    """The configuration in a decoded config.json. Raises InvalidArgument."""
    top = Fields(data, "")
    version = _version(top)
    root, linux = top.child("root"), top.child("linux")
    if not top.has("root"):
        raise InvalidArgument("root: is required")
    if len(top.items("mounts")) > _MOUNTS_MAX:
        raise InvalidArgument(f"mounts: {len(top.items('mounts'))} are too many", hint=f"a mount namespace holds {_MOUNTS_MAX}")
    propagation = linux.text("rootfsPropagation")
    if propagation and propagation not in _PROPAGATION:
        raise InvalidArgument(f'linux.rootfsPropagation: unknown propagation "{propagation}"', hint=f"one of {', '.join(_PROPAGATION)}")
    made = Bundle(
        version=version,
        rootfs=root.needed("path"),
        read_only=root.flag("readonly"),
        hostname=top.text("hostname"),
        domainname=top.text("domainname"),
        process=process(top.child("process")) if top.has("process") else None,
        mounts=top.each("mounts", _mount),
        hooks=_hooks(top.child("hooks")),
        annotations=top.strings("annotations"),
        namespaces=_namespaces(linux),
        uid_maps=linux.each("uidMappings", _id_map),
        gid_maps=linux.each("gidMappings", _id_map),
        time_offsets=_offsets(linux),
        devices=linux.each("devices", _node),
        cgroups_path=linux.text("cgroupsPath"),
        resources=_resources(linux),
        rdt=_rdt(linux),
        sysctl=linux.strings("sysctl"),
        seccomp=_seccomp(linux),
        propagation=propagation,
        masked=_absolute(linux, "maskedPaths"),
        read_only_paths=_absolute(linux, "readonlyPaths"),
        mount_label=linux.text("mountLabel"),
        personality=_personality(linux),
    )
    _consistent(made)
    return made


def _version(top: Fields) -> str:
    version = top.needed("ociVersion")
    numbers = version.partition("-")[0].partition("+")[0].split(".")
    if len(numbers) != 3 or not all(part.isascii() and part.isdigit() for part in numbers):
        raise InvalidArgument(f'ociVersion: "{version}" is not a version', hint="MAJOR.MINOR.PATCH, for example 1.2.0")
    if int(numbers[0]) > 1:
        raise InvalidArgument(f"ociVersion: {version} is not supported", hint="1.0.0 to 1.x")
    return version


def _consistent(bundle: Bundle) -> None:
    """What fields say about each other."""
    user = bundle.namespace(_NEWUSER)
    if user and not user.path and not (bundle.uid_maps and bundle.gid_maps):
        raise InvalidArgument("linux.uidMappings: a new user namespace needs uidMappings and gidMappings")
    if not user and (bundle.uid_maps or bundle.gid_maps):
        raise InvalidArgument("linux.uidMappings: mappings are given, but no user namespace in linux.namespaces")
    if (bundle.hostname or bundle.domainname) and not bundle.namespace(_NEWUTS):
        raise InvalidArgument(f"{'hostname' if bundle.hostname else 'domainname'}: cannot be set without a uts namespace")
    if bundle.time_offsets and not bundle.namespace(_NEWTIME):
        raise InvalidArgument("linux.timeOffsets: cannot be set without a time namespace")
    mount = bundle.namespace(_NEWNS)
    if (bundle.masked or bundle.read_only_paths) and not mount:
        raise InvalidArgument("linux.maskedPaths, linux.readonlyPaths: cannot be set without a mount namespace")


def _mount(item: Fields) -> Mount:
    destination = item.needed("destination")
    mount = Mount(
        destination=destination,
        kind=item.text("type"),
        source=item.text("source"),
        options=item.texts("options"),
        uid_maps=item.each("uidMappings", _id_map),
        gid_maps=item.each("gidMappings", _id_map),
    )
    if bool(mount.uid_maps) != bool(mount.gid_maps):
        raise InvalidArgument(f"{item.where}.uidMappings: uidMappings and gidMappings must be given together")
    return mount


def _id_map(item: Fields) -> IdMap:
    return IdMap(container=item.number("containerID"), host=item.number("hostID"), size=item.number("size", low=1))


def _namespaces(linux: Fields) -> tuple[Namespace, ...]:
    seen: dict[int, str] = {}

    def make(item: Fields) -> Namespace:
        flag = item.choice("type", NAMESPACES, "namespace")
        if flag in seen:
            raise InvalidArgument(f"{item.at('type')}: {item.text('type')} is given twice")
        path = item.text("path")
        if path and not path.startswith("/"):
            raise InvalidArgument(f'{item.at("path")}: "{path}" is not an absolute path')
        seen[flag] = path
        return Namespace(flag=flag, path=path)

    return linux.each("namespaces", make)


def _offsets(linux: Fields) -> dict[str, str]:
    found = {}
    for clock in linux.child("timeOffsets").data:
        if clock not in ("monotonic", "boottime"):
            raise InvalidArgument(f'linux.timeOffsets: unknown clock "{clock}"', hint="monotonic or boottime")
        item = linux.child("timeOffsets").child(clock)
        seconds = item.number("secs", low=-(1 << 63), high=(1 << 63) - 1)
        found[clock] = f"{seconds} {item.number('nanosecs', high=999_999_999)}"
    return found


def _node(item: Fields) -> Node:
    path, kind = item.needed("path"), item.needed("type")
    if not path.startswith("/"):
        raise InvalidArgument(f'{item.at("path")}: "{path}" is not an absolute path')
    if kind not in ("c", "u", "b", "p"):
        raise InvalidArgument(f'{item.at("type")}: unknown device type "{kind}"', hint="one of c, b, u, p")
    if kind != "p" and not (item.has("major") and item.has("minor")):
        raise InvalidArgument(f"{item.at('major')}: major and minor are required for a device of type {kind}")
    return Node(
        path=path, kind=kind, major=item.number("major"), minor=item.number("minor"), mode=item.number("fileMode", 0o666) & 0o7777,
        uid=item.number("uid"), gid=item.number("gid"),
    )  # fmt: skip


def _absolute(linux: Fields, key: str) -> tuple[str, ...]:
    paths = linux.texts(key)
    for place, path in enumerate(paths):
        if not path.startswith("/"):
            raise InvalidArgument(f'linux.{key}[{place}]: "{path}" is not an absolute path')
    return paths


def _personality(linux: Fields) -> int | None:
    if not linux.has("personality"):
        return None
    item = linux.child("personality")
    if item.items("flags"):
        raise InvalidArgument("linux.personality.flags: none are defined")
    return item.choice("domain", {"LINUX": 0, "LINUX32": 8}, "personality")


def _rdt(linux: Fields) -> Rdt | None:
    if not linux.has("intelRdt"):
        return None
    item = linux.child("intelRdt")
    lines = [line for key in ("l3CacheSchema", "memBwSchema") for line in item.text(key).splitlines() if line]
    clos = item.text("closID")
    if "/" in clos or clos in (".", ".."):
        raise InvalidArgument(f'linux.intelRdt.closID: "{clos}" is not a name')
    return Rdt(clos_id=clos, schemata=(*item.texts("schemata"), *lines))


# -- process -----------------------------------------------------------------------------------------------------------


def process(item: Fields) -> Process:
    """The `process` object of a config.json, or a whole process.json. Raises InvalidArgument."""
    args, cwd = item.texts("args"), item.needed("cwd")
    if not args:
        raise InvalidArgument(f"{item.at('args')}: is required and needs at least one string")
    if not cwd.startswith("/"):
        raise InvalidArgument(f'{item.at("cwd")}: "{cwd}" is not an absolute path')
    user, size = item.child("user"), item.child("consoleSize")
    listed, where = user.items("additionalGids"), user.at("additionalGids")
    groups = tuple([_integer(gid, f"{where}[{place}]", 0, _U32) for place, gid in enumerate(listed)])
    return Process(
        args=args,
        cwd=cwd,
        env=item.texts("env"),
        terminal=item.flag("terminal"),
        rows=size.number("height", high=0xFFFF),
        columns=size.number("width", high=0xFFFF),
        uid=user.number("uid"),
        gid=user.number("gid"),
        groups=groups,
        umask=user.number("umask", -1, high=0o777),
        capabilities=_capabilities(item),
        rlimits=_rlimits(item),
        no_new_privileges=item.flag("noNewPrivileges"),
        apparmor=item.text("apparmorProfile"),
        selinux=item.text("selinuxLabel"),
        oom_score_adj=item.number("oomScoreAdj", low=-1000, high=1000) if item.has("oomScoreAdj") else None,
        scheduler=_scheduler(item),
        io_priority=_io_priority(item),
        affinity=_affinity(item),
    )


def _capabilities(item: Fields) -> dict[str, tuple[str, ...]]:
    sets = item.child("capabilities")
    return {name: sets.texts(name) for name in CAPABILITY_SETS}


def _rlimits(item: Fields) -> tuple[tuple[int, int, int], ...]:
    table = {name: number for number, name in enumerate(RLIMITS)}
    seen: set[int] = set()

    def make(limit: Fields) -> tuple[int, int, int]:
        number = limit.choice("type", table, "resource limit")
        soft, hard = limit.number("soft", high=_U64), limit.number("hard", high=_U64)
        if number in seen:
            raise InvalidArgument(f"{limit.at('type')}: {limit.text('type')} is given twice")
        if soft > hard:
            raise InvalidArgument(f"{limit.at('soft')}: {soft} is above the hard limit of {hard}")
        seen.add(number)
        return number, soft, hard

    return item.each("rlimits", make)


def _scheduler(item: Fields) -> Scheduler | None:
    if not item.has("scheduler"):
        return None
    fields = item.child("scheduler")
    flags = 0
    for place, word in enumerate(fields.texts("flags")):
        flags |= _chosen(word, _SCHED_FLAGS, f"{fields.where}.flags[{place}]", "scheduler flag")
    scheduler = Scheduler(
        policy=fields.choice("policy", _POLICIES, "scheduling policy"),
        flags=flags,
        nice=fields.number("nice", low=-20, high=19),
        priority=fields.number("priority", high=99),
        runtime=fields.number("runtime", high=_U64),
        deadline=fields.number("deadline", high=_U64),
        period=fields.number("period", high=_U64),
    )
    if scheduler.priority and scheduler.policy not in (1, 2):
        raise InvalidArgument(f"{fields.at('priority')}: only SCHED_FIFO and SCHED_RR have a priority")
    if scheduler.nice and scheduler.policy not in (0, 3):
        raise InvalidArgument(f"{fields.at('nice')}: only SCHED_OTHER and SCHED_BATCH have a nice value")
    if scheduler.policy != 6 and (scheduler.runtime or scheduler.deadline or scheduler.period):
        raise InvalidArgument(f"{fields.at('runtime')}: only SCHED_DEADLINE has runtime, deadline and period")
    return scheduler


def _io_priority(item: Fields) -> int | None:
    if not item.has("ioPriority"):
        return None
    fields = item.child("ioPriority")
    return fields.choice("class", _IO_CLASSES, "I/O priority class") << 13 | fields.number("priority", high=7)


def _affinity(item: Fields) -> tuple[str, str]:
    fields = item.child("execCPUAffinity")
    for key in ("initial", "final"):
        if set(fields.text(key)) - set("0123456789,-"):
            raise InvalidArgument(f"{fields.at(key)}: not a list of CPUs", hint="for example 0-2,7")
    return fields.text("initial"), fields.text("final")


# -- hooks, resources, seccomp -----------------------------------------------------------------------------------------


def _hooks(item: Fields) -> Hooks:
    return Hooks(
        prestart=item.each("prestart", _hook),
        create_runtime=item.each("createRuntime", _hook),
        create_container=item.each("createContainer", _hook),
        start_container=item.each("startContainer", _hook),
        poststart=item.each("poststart", _hook),
        poststop=item.each("poststop", _hook),
    )


def _hook(item: Fields) -> Hook:
    path = item.needed("path")
    if not path.startswith("/"):
        raise InvalidArgument(f'{item.at("path")}: "{path}" is not an absolute path')
    timeout = item.number("timeout", low=1, high=1 << 20) if item.has("timeout") else 0
    return Hook(path=path, args=item.texts("args"), env=item.texts("env"), timeout=timeout)


# Fields of linux.resources: name -> what it is. Numbers may be negative where -1 means "no limit".
_LIMITS: dict[str, dict[str, str]] = {
    "memory": {
        "limit": "i", "reservation": "i", "swap": "i", "kernel": "i", "kernelTCP": "i", "swappiness": "u", "disableOOMKiller": "b",
        "useHierarchy": "b", "checkBeforeUpdate": "b",
    },
    "cpu": {
        "shares": "u", "quota": "i", "burst": "u", "period": "u", "realtimeRuntime": "i", "realtimePeriod": "u", "cpus": "s", "mems": "s",
        "idle": "i",
    },
    "pids": {"limit": "i"},
    "blockIO": {"weight": "u", "leafWeight": "u"},
    "network": {"classID": "u"},
}  # fmt: skip
_THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")


def _resources(linux: Fields) -> dict[str, Any]:
    item = linux.child("resources")
    check_resources(item)
    return item.data


def check_resources(item: Fields) -> None:
    """Raises InvalidArgument when a `resources` object is not as config-linux.md says."""
    for name, fields in _LIMITS.items():
        part = item.child(name)
        for key, kind in fields.items():
            _check_field(part, key, kind)
    item.each("devices", _check_rule)
    for key in ("weightDevice", *_THROTTLES):
        item.child("blockIO").each(key, _check_block_device)
    item.each("hugepageLimits", _check_huge_page)
    item.child("network").each("priorities", lambda entry: (entry.needed("name"), entry.number("priority")))
    for name in item.child("rdma").data:
        entry = item.child("rdma").child(name)
        entry.number("hcaHandles")
        entry.number("hcaObjects")
    for key, value in item.strings("unified").items():
        if "/" in key or key.startswith(".") or not key:
            raise InvalidArgument(f'{item.at("unified")}: "{key}" is not the name of a cgroup file')
        _clean(value, item.at("unified"))


def _check_field(part: Fields, key: str, kind: str) -> None:
    if kind == "b":
        part.flag(key)
    elif kind == "s":
        part.text(key)
    else:
        part.number(key, low=-(1 << 63) if kind == "i" else 0, high=_U64)


def _check_rule(item: Fields) -> None:
    item.flag("allow")
    if not item.has("allow"):
        raise InvalidArgument(f"{item.at('allow')}: is required")
    kind, access = item.text("type", "a"), item.text("access", "rwm")
    if kind not in ("a", "b", "c"):
        raise InvalidArgument(f'{item.at("type")}: unknown device type "{kind}"', hint="one of a, b, c")
    if set(access) - set("rwm"):
        raise InvalidArgument(f'{item.at("access")}: "{access}" has letters other than r, w and m')
    item.number("major", low=-1)
    item.number("minor", low=-1)


def _check_block_device(item: Fields) -> None:
    for key in ("major", "minor"):
        if not item.has(key):
            raise InvalidArgument(f"{item.at(key)}: is required")
        item.number(key)
    for key in ("rate", "weight", "leafWeight"):
        item.number(key, high=_U64)


def _check_huge_page(item: Fields) -> None:
    size = item.needed("pageSize")
    if not size[:-2].isdigit() or size[-2:] not in ("KB", "MB", "GB"):
        raise InvalidArgument(f'{item.at("pageSize")}: "{size}" is not a page size', hint="for example 2MB")
    item.number("limit", high=_U64)


ACTIONS = (
    "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO", "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY",
)  # fmt: skip
OPERATORS = tuple(f"SCMP_CMP_{word}" for word in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
FILTER_FLAGS = tuple(f"SECCOMP_FILTER_FLAG_{word}" for word in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))


def _seccomp(linux: Fields) -> dict[str, Any] | None:
    if not linux.has("seccomp"):
        return None
    item = linux.child("seccomp")
    _among(item, "defaultAction", ACTIONS, "action")
    item.number("defaultErrnoRet", high=0xFFFF)
    for key, known in (("flags", FILTER_FLAGS), ("architectures", None)):
        for place, word in enumerate(item.texts(key)):
            if (known is not None and word not in known) or (known is None and not word.startswith("SCMP_ARCH_")):
                raise InvalidArgument(f'linux.seccomp.{key}[{place}]: unknown word "{word}"')
    uses_listener = item.text("defaultAction") == "SCMP_ACT_NOTIFY"
    for place, entry in enumerate(item.items("syscalls")):
        uses_listener |= _check_syscall(Fields(entry, f"linux.seccomp.syscalls[{place}]"))
    listener = item.text("listenerPath")
    if uses_listener and not listener:
        raise InvalidArgument("linux.seccomp.listenerPath: is required for SCMP_ACT_NOTIFY")
    if item.text("listenerMetadata") and not listener:
        raise InvalidArgument("linux.seccomp.listenerMetadata: needs a listenerPath")
    return item.data


def _among(item: Fields, key: str, words: tuple[str, ...], what: str) -> str:
    word = item.needed(key)
    if word not in words:
        raise InvalidArgument(f'{item.at(key)}: unknown {what} "{word}"', hint=f"one of {', '.join(words)}")
    return word


def _check_syscall(item: Fields) -> bool:
    """True when it needs a listener."""
    if not item.texts("names"):
        raise InvalidArgument(f"{item.at('names')}: is required and needs at least one string")
    item.number("errnoRet", high=0xFFFF)
    for argument in item.each("args", lambda fields: fields):
        argument.number("index", high=5)
        argument.number("value", high=_U64)
        argument.number("valueTwo", high=_U64)
        _among(argument, "op", OPERATORS, "operator")
    return _among(item, "action", ACTIONS, "action") == "SCMP_ACT_NOTIFY"
