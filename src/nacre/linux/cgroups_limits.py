"""Limits of a control group: the OCI `linux.resources` object, written as the files of cgroup v1 or v2.

The object is that of the OCI runtime specification, config-linux.md, "Control groups", without its `devices`
(`nacre.linux.devices`). What is absent, null or 0 is left alone, -1 lifts a limit. A limit that cannot be set is an error which
names the controller and how to get it; lifting one that cannot exist is not. Conversions from v1's numbers to v2's are those that
runc and crun use, so that a configuration means the same under each.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Mapping

from nacre.errors import Conflict, HostError, InvalidArgument, Unsupported
from nacre.linux import cgroups
from nacre.linux.cgroups import Cgroup, Layout, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PERIOD = 100_000  # microseconds, the kernel's default CFS period
SHARES_LEAST, SHARES_MOST = 2, 262144
WEIGHT_LEAST, WEIGHT_MOST = 10, 1000
_HUGE = 1 << 63
_UNLIMITED = 1 << 60  # v1 shows "no limit" as the largest multiple of the page size

# Section and fields -> controller, by its v1 name.
_FIELDS = (
    ("memory", "memory", ("limit", "reservation", "swap", "kernel", "kernelTCP", "swappiness", "disableOOMKiller")),
    ("cpu", "cpu", ("shares", "quota", "burst", "period", "realtimeRuntime", "realtimePeriod", "idle")),
    ("cpuset", "cpu", ("cpus", "mems")),
    ("pids", "pids", ("limit",)),
    (
        "blkio",
        "blockIO",
        (
            "weight", "leafWeight", "weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice",
            "throttleWriteIOPSDevice",
        ),
    ),
    ("net_cls", "network", ("classID",)),
    ("net_prio", "network", ("priorities",)),
)  # fmt: skip
_TITLES = {"cpu": "processor time", "cpuset": "processors", "blkio": "disks", "io": "disks", "pids": "processes", "hugetlb": "huge pages"}
# What a kernel needs for a file that is not there.
_NEEDS = {
    "memory.memsw.limit_in_bytes": "boot with swapaccount=1, or leave the swap limit out",
    "memory.swap.max": "boot with swapaccount=1, or leave the swap limit out",
    "cpu.cfs_quota_us": "use a kernel with CONFIG_CFS_BANDWIDTH",
    "cpu.cfs_burst_us": "use Linux 5.14 or later with CONFIG_CFS_BANDWIDTH",
    "cpu.max": "use a kernel with CONFIG_CFS_BANDWIDTH",
    "cpu.max.burst": "use Linux 5.14 or later with CONFIG_CFS_BANDWIDTH",
    "cpu.idle": "use Linux 5.15 or later",
    "cpu.rt_runtime_us": "use a kernel with CONFIG_RT_GROUP_SCHED",
    "cpu.rt_period_us": "use a kernel with CONFIG_RT_GROUP_SCHED",
    "blkio.weight": "weights need the BFQ scheduler: modprobe bfq, then choose it in /sys/block/<disk>/queue/scheduler",
    "blkio.weight_device": "weights need the BFQ scheduler: modprobe bfq, then choose it in /sys/block/<disk>/queue/scheduler",
    "blkio.leaf_weight": "leaf weights went with the CFQ scheduler in Linux 5.0; leave them out",
    "blkio.leaf_weight_device": "leaf weights went with the CFQ scheduler in Linux 5.0; leave them out",
    "io.weight": "weights need CONFIG_BLK_CGROUP_IOCOST, or the BFQ scheduler: modprobe bfq",
    "io.max": "use a kernel with CONFIG_BLK_DEV_THROTTLING",
}
# What to look at when the kernel refuses a value.
_LOOK = {
    "cpu.cfs_period_us": "a period is 1000 to 1000000 microseconds",
    "cpu.cfs_quota_us": "a quota is 1000 microseconds or more, and no more than that of the group above",
    "cpu.max": "a quota is 1000 microseconds or more, a period 1000 to 1000000",
    "cpu.idle": "shares and idle exclude each other",
    "blkio.bfq.weight_device": "the weight of a disk needs its scheduler to be BFQ: echo bfq > /sys/block/<disk>/queue/scheduler",
    "io.bfq.weight": "the weight of a disk needs its scheduler to be BFQ: echo bfq > /sys/block/<disk>/queue/scheduler",
    "blkio.throttle.read_bps_device": "list the disks, whole ones, with: lsblk --nodeps --output MAJ:MIN,PATH",
    "blkio.throttle.write_bps_device": "list the disks, whole ones, with: lsblk --nodeps --output MAJ:MIN,PATH",
    "blkio.throttle.read_iops_device": "list the disks, whole ones, with: lsblk --nodeps --output MAJ:MIN,PATH",
    "blkio.throttle.write_iops_device": "list the disks, whole ones, with: lsblk --nodeps --output MAJ:MIN,PATH",
}


def controllers(limits: Mapping[str, Any]) -> tuple[str, ...]:
    """The controllers (v1 names, v2's where `unified` names files) that these limits need. Raises InvalidArgument for wrong types."""
    found = [name for name, section, fields in _FIELDS if any(_wished(_section(limits, section).get(field)) for field in fields)]
    found += [name for name, key in (("hugetlb", "hugepageLimits"), ("rdma", "rdma")) if _wished(limits.get(key))]
    found += [name.partition(".")[0] for name in _section(limits, "unified")]
    return tuple(dict.fromkeys(name for name in found if name != "cgroup"))


def lacking(limits: Mapping[str, Any], where: Layout) -> None:
    """Raises Unsupported when a controller that these limits need cannot be had in this layout."""
    for file in _section(limits, "unified"):
        controller = file.partition(".")[0]
        if not where.unified or (where.v1 and controller not in where.v2):
            raise _no_unified(file, where)
    for name in controllers(limits):
        if not where.has(name):
            raise _lacking(Cgroup("", where, {}), name, f"limits of {_TITLES.get(name, name)}")


def apply(group: Cgroup, limits: Mapping[str, Any]) -> None:
    """Set limits of a new or a living group. Controllers that it does not have yet are added.

    Raises InvalidArgument (malformed or contradictory values), Unsupported (a controller or a file that the host lacks), Conflict
    (less memory than is used, when `checkBeforeUpdate` asks for that), HostError (the kernel refused).
    """
    for name in limits:
        if name not in _SECTIONS and name not in ("devices", "hugepageLimits"):
            raise InvalidArgument(f"linux.resources.{name}: there is no such kind of resource")
    group = _extended(group, controllers(limits))
    for name, setter in _SECTIONS.items():
        if section := _section(limits, name):
            setter(group, section)
    _hugetlb(group, limits.get("hugepageLimits") or ())


def _extended(group: Cgroup, wanted: tuple[str, ...]) -> Cgroup:
    present = (read(f"{group.unified}/cgroup.controllers") or "").split() if group.unified else []
    missing = [name for name in wanted if name not in group.v1 and {"blkio": "io"}.get(name, name) not in present]
    return cgroups.extend(group, missing) if missing else group


# Conversions


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1-10000) of v1's CPU shares (2-262144): a curve through both ends on which the default 1024 is the default 100."""
    if shares <= SHARES_LEAST:
        return 1
    if shares >= SHARES_MOST:
        return 10000
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612.0 - 7.0 / 34.0))


def io_weight(weight: int) -> int:
    """io.weight (1-10000) of v1's block I/O weight (10-1000), linearly."""
    return 1 + (weight - WEIGHT_LEAST) * 9999 // (WEIGHT_MOST - WEIGHT_LEAST)


def swap_only(swap: int, memory: int) -> int:
    """v2's limit of swap alone from v1's of memory and swap together; -1 = unlimited. Raises InvalidArgument."""
    if swap == -1:
        return -1
    if memory <= 0:
        raise InvalidArgument("a limit of memory and swap needs a limit of memory", hint="set memory.limit (--memory) as well")
    if swap < memory:
        raise InvalidArgument(
            f"the limit of memory and swap ({swap}) is smaller than that of memory ({memory})",
            hint="memory.swap (--memory-swap) is the sum of both",
        )
    return swap - memory


# Memory


def _memory(group: Cgroup, given: Mapping[str, Any]) -> None:
    limit, swap, low = (_integer(given, f"memory.{name}", least=-1) for name in ("limit", "swap", "reservation"))
    swappiness = _integer(given, "memory.swappiness")
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise InvalidArgument(f"linux.resources.memory.swappiness: {swappiness} is not in the range 0-100")
    if limit == -1 and not swap:
        swap = -1  # as it was in v1: who lifts the one limit means both
    directory, old = _directory(group, "memory", "memory limits", given)
    if not directory:
        return
    if given.get("checkBeforeUpdate") and limit and limit > 0:
        _check_usage(group, f"{directory}/{'memory.usage_in_bytes' if old else 'memory.current'}", limit)
    if old:
        _memory_v1(group, directory, limit, swap)
        _number(group, f"{directory}/memory.soft_limit_in_bytes", low)
        _kernel_memory(group, directory, _integer(given, "memory.kernel", least=-1))
        _number(group, f"{directory}/memory.kmem.tcp.limit_in_bytes", _integer(given, "memory.kernelTCP", least=-1))
        if swappiness is not None:
            _put(group, f"{directory}/memory.swappiness", str(swappiness))
        if given.get("disableOOMKiller"):
            _put(group, f"{directory}/memory.oom_control", "1")
        if given.get("useHierarchy") and (read(f"{directory}/memory.use_hierarchy") or "").strip() == "0":
            _put(group, f"{directory}/memory.use_hierarchy", "1")
        return
    for name in ("kernel", "kernelTCP"):
        _only_v1(_integer(given, f"memory.{name}", least=-1), f"memory.{name}", "v2 counts the kernel's memory with the rest")
    _only_v1(1 if swappiness is not None else None, "memory.swappiness", "v2 has vm.swappiness of the whole host")
    _only_v1(given.get("disableOOMKiller"), "memory.disableOOMKiller", "use a limit high enough, or --oom-score-adj")
    _memory_v2(group, directory, limit, swap)
    if low:
        _put(group, f"{directory}/memory.low", _or_max(low))


def _kernel_memory(group: Cgroup, directory: str, limit: int | None) -> None:
    """Since Linux 5.16 the kernel takes a limit and forgets it."""
    path = f"{directory}/memory.kmem.limit_in_bytes"
    _number(group, path, limit)
    if limit and 0 < limit < _UNLIMITED <= int((read(path) or "0").strip() or 0):
        raise Unsupported(
            "cannot set memory.kernel: Linux no longer limits the kernel's memory by itself", hint="memory.limit counts it as well"
        )


def _check_usage(group: Cgroup, path: str, limit: int) -> None:
    usage = int((read(path) or "0").strip() or 0)
    if usage > limit:
        raise Conflict(
            f"{group.name} uses {usage} bytes of memory, more than the limit of {limit}",
            hint="leave out checkBeforeUpdate to have the kernel reclaim, and kill if that is not enough",
        )


def _memory_v1(group: Cgroup, directory: str, limit: int | None, swap: int | None) -> None:
    """The limit with swap may never be below the one without: when both rise, it goes first."""
    paths = (f"{directory}/memory.limit_in_bytes", f"{directory}/memory.memsw.limit_in_bytes")
    if swap and not os.path.exists(paths[1]):
        if swap > 0:
            raise _no_file(paths[1])
        swap = None
    if swap and swap > 0 and limit and swap < limit:
        swap_only(swap, limit)
    steps = [(paths[0], limit), (paths[1], swap)]
    if limit and swap and (swap == -1 or swap > int((read(paths[0]) or "0").strip() or 0)):
        steps.reverse()
    for path, value in steps:
        if not value:
            continue
        try:
            cgroups.put(path, str(value))
        except OSError as error:
            if error.errno == errno.EBUSY:
                used = (read(f"{directory}/memory.usage_in_bytes") or "?").strip()
                raise Conflict(
                    f"{group.name} cannot be limited to {value} bytes of memory: it uses {used}",
                    hint="give it more, or stop something in it",
                ) from error
            if error.errno == errno.EINVAL and path == paths[1] and int((read(paths[0]) or "0").strip() or 0) >= _UNLIMITED:
                swap_only(value, -1)
            if error.errno == errno.EINVAL and path == paths[1]:
                raise InvalidArgument(
                    f"the limit of memory and swap ({value}) is smaller than that of memory", hint="--memory-swap is the sum of both"
                ) from error
            if error.errno == errno.EINVAL and swap is None:
                raise InvalidArgument(
                    f"the limit of memory ({value}) is larger than the one of memory and swap that {group.name} already has",
                    hint="change both: --memory and --memory-swap",
                ) from error
            raise cgroups.failure(f"cannot write '{value}' to {path}", error) from error


def _memory_v2(group: Cgroup, directory: str, limit: int | None, swap: int | None) -> None:
    if swap:
        known = limit or _current_max(f"{directory}/memory.max")
        alone = swap_only(swap, known)
        path = f"{directory}/memory.swap.max"
        # Without swap there is nothing to lift and nothing to forbid.
        if os.path.exists(path) or alone > 0:
            _put(group, path, _or_max(alone))
    if limit:
        _put(group, f"{directory}/memory.max", _or_max(limit))


def _current_max(path: str) -> int:
    word = (read(path) or "").strip()
    return int(word) if word.isdigit() else -1


# Processors


def _cpu(group: Cgroup, given: Mapping[str, Any]) -> None:
    wanted = {name: given.get(name) for name in _FIELDS[1][2]}
    directory, old = _directory(group, "cpu", "CPU limits", wanted)
    if directory:
        shares, idle = _integer(given, "cpu.shares", least=0), _integer(given, "cpu.idle")
        if idle is not None and idle not in (0, 1):
            raise InvalidArgument(f"linux.resources.cpu.idle: {idle} is neither 0 nor 1")
        if idle == 0 and os.path.exists(f"{directory}/cpu.idle"):
            _put(group, f"{directory}/cpu.idle", "0")  # shares are refused while it is set
        if shares:
            text = str(min(max(shares, SHARES_LEAST), SHARES_MOST)) if old else str(weight_of_shares(shares))
            _put(group, f"{directory}/{'cpu.shares' if old else 'cpu.weight'}", text)
        (_bandwidth_v1 if old else _bandwidth_v2)(group, directory, given)
        if idle == 1:
            _put(group, f"{directory}/cpu.idle", "1")
        _realtime(group, directory, given, old=old)
    if _wished(given.get("cpus")) or _wished(given.get("mems")):
        _cpuset(group, given)


def _bandwidth_v1(group: Cgroup, directory: str, given: Mapping[str, Any]) -> None:
    quota, period, burst = _integer(given, "cpu.quota"), _integer(given, "cpu.period", least=0), _integer(given, "cpu.burst", least=0)
    paths = {name: f"{directory}/cpu.cfs_{name}_us" for name in ("quota", "period", "burst")}
    later = None
    if period:
        try:
            _put(group, paths["period"], str(period))
        except HostError as error:
            # Too short for the quota that there is: the new quota goes first.
            if not quota or isinstance(error, Unsupported):
                raise
            later = period
    _in_either_order(group, (paths["quota"], str(-1 if quota < 0 else quota) if quota else ""), (paths["burst"], _text(burst)))
    if later:
        _put(group, paths["period"], str(later))


def _bandwidth_v2(group: Cgroup, directory: str, given: Mapping[str, Any]) -> None:
    quota, period, burst = _integer(given, "cpu.quota"), _integer(given, "cpu.period", least=0), _integer(given, "cpu.burst", least=0)
    path, text = f"{directory}/cpu.max", ""
    if quota or period:
        now = (read(path) or "").split()
        kept = now[0] if quota is None and now else "max"
        text = f"{quota if quota and quota > 0 else kept} {period or (now[1] if len(now) == 2 else PERIOD)}"
    _in_either_order(group, (path, text), (f"{directory}/cpu.max.burst", _text(burst)))


def _in_either_order(group: Cgroup, quota: tuple[str, str], burst: tuple[str, str]) -> None:
    """The burst may not exceed the quota: which of the two can be written first depends on what was there before."""
    steps = [step for step in (burst, quota) if step[1]]
    try:
        _put(group, *steps[0]) if steps else None
    except HostError as error:
        if len(steps) < 2 or isinstance(error, Unsupported):
            raise
        _put(group, *steps[1])
        _put(group, *steps[0])
        return
    for step in steps[1:]:
        _put(group, *step)


def _realtime(group: Cgroup, directory: str, given: Mapping[str, Any], *, old: bool) -> None:
    runtime, period = _integer(given, "cpu.realtimeRuntime", least=-1), _integer(given, "cpu.realtimePeriod", least=0)
    if not old:
        _only_v1(runtime, "cpu.realtimeRuntime", "v2 does not divide real-time processor time")
        _only_v1(period, "cpu.realtimePeriod", "v2 does not divide real-time processor time")
        return
    if period:
        _put(group, f"{directory}/cpu.rt_period_us", str(period))
    if runtime:
        try:
            _put(group, f"{directory}/cpu.rt_runtime_us", str(runtime))
        except Unsupported:
            raise
        except HostError as error:
            parent = os.path.dirname(directory)
            budget = (read(f"{parent}/cpu.rt_runtime_us") or "0").strip()
            raise HostError(
                f"{error.message}: the group above has {budget} us of real-time processor time to give",
                hint=f"give it more: echo 950000 > {parent}/cpu.rt_runtime_us",
            ) from error


def _cpuset(group: Cgroup, given: Mapping[str, Any]) -> None:
    directory, _ = _directory(group, "cpuset", "sets of processors", {"cpus": given.get("cpus"), "mems": given.get("mems")})
    for name in ("cpus", "mems"):
        text = given.get(name)
        if not text:
            continue
        if not isinstance(text, str) or not all(char in "0123456789,-" for char in text.strip()):
            raise InvalidArgument(f"linux.resources.cpu.{name}: {text!r} is no list such as 0-2,7")
        try:
            _put(group, f"{directory}/cpuset.{name}", text.strip())
        except Unsupported:
            raise
        except HostError as error:
            root = f"{directory}/cpuset.{name}"
            offered = (read(f"{os.path.dirname(directory)}/cpuset.effective_{name}") or read(f"{root}.effective") or "").strip()
            raise HostError(f"{error.message}; there are {offered or 'others'}", hint="see them with: lscpu --extended") from error


# Processes, block devices, networks, huge pages, RDMA


def _pids(group: Cgroup, given: Mapping[str, Any]) -> None:
    limit = _integer(given, "pids.limit", least=-1)
    directory, _ = _directory(group, "pids", "a limit of processes", given)
    if directory and limit:
        _put(group, f"{directory}/pids.max", _or_max(limit))


_THROTTLES = {
    "throttleReadBpsDevice": ("blkio.throttle.read_bps_device", "rbps"),
    "throttleWriteBpsDevice": ("blkio.throttle.write_bps_device", "wbps"),
    "throttleReadIOPSDevice": ("blkio.throttle.read_iops_device", "riops"),
    "throttleWriteIOPSDevice": ("blkio.throttle.write_iops_device", "wiops"),
}


def _block_io(group: Cgroup, given: Mapping[str, Any]) -> None:
    directory, old = _directory(group, "blkio", "limits of block devices", given)
    if not directory:
        return
    weight, leaf = (_weight(given, f"blockIO.{name}") for name in ("weight", "leafWeight"))
    bfq = "blkio.bfq.weight" if old else "io.bfq.weight"
    has_bfq = os.path.exists(f"{directory}/{bfq}") and not os.path.exists(f"{directory}/blkio.weight")
    plain, device = ("blkio.weight", "blkio.weight_device") if old else ("io.weight", "io.weight")
    if weight:
        _put(group, f"{directory}/{bfq if has_bfq else plain}", str(weight if old or has_bfq else io_weight(weight)))
    if leaf and not old:
        _only_v1(leaf, "blockIO.leafWeight", "v2 has no weights of leaves")
    if leaf:
        _put(group, f"{directory}/blkio.leaf_weight", str(leaf))
    for entry in _entries(given, "blockIO.weightDevice"):
        number = _device(entry)
        value, leaf = (_weight(entry, f"blockIO.weightDevice.{name}") for name in ("weight", "leafWeight"))
        if value:
            name = (f"{bfq}_device" if old else bfq) if has_bfq else device
            _put(group, f"{directory}/{name}", f"{number} {value if old or has_bfq else io_weight(value)}")
        if leaf and not old:
            _only_v1(leaf, "blockIO.weightDevice.leafWeight", "v2 has no weights of leaves")
        if leaf:
            _put(group, f"{directory}/blkio.leaf_weight_device", f"{number} {leaf}")
    for field, (name, key) in _THROTTLES.items():
        for entry in _entries(given, f"blockIO.{field}"):
            rate = _integer(entry, f"blockIO.{field}.rate", least=0) or 0
            text = f"{_device(entry)} {rate}" if old else f"{_device(entry)} {key}={rate or 'max'}"
            _put(group, f"{directory}/{name if old else 'io.max'}", text)


def _device(entry: Mapping[str, Any]) -> str:
    major, minor = (_integer(entry, f"blockIO.{name}", least=0) for name in ("major", "minor"))
    if major is None or minor is None:
        raise InvalidArgument("linux.resources.blockIO: a device needs major and minor")
    return f"{major}:{minor}"


def _weight(given: Mapping[str, Any], name: str) -> int:
    weight = _integer(given, name, least=0) or 0
    if weight and not WEIGHT_LEAST <= weight <= WEIGHT_MOST:
        raise InvalidArgument(f"linux.resources.{name}: {weight} is not in the range {WEIGHT_LEAST}-{WEIGHT_MOST}")
    return weight


def _network(group: Cgroup, given: Mapping[str, Any]) -> None:
    identifier = _integer(given, "network.classID", least=0)
    directory, _ = _directory(group, "net_cls", "a class of packets", {"classID": identifier})
    if directory and identifier:
        _put(group, f"{directory}/net_cls.classid", str(identifier))
    entries = _entries(given, "network.priorities")
    directory, _ = _directory(group, "net_prio", "priorities of interfaces", {"priorities": entries})
    for entry in entries if directory else ():
        _put(group, f"{directory}/net_prio.ifpriomap", f"{entry.get('name', '')} {_integer(entry, 'network.priority', least=0) or 0}")


def _hugetlb(group: Cgroup, entries: object) -> None:
    for entry in _list(entries, "hugepageLimits"):
        size, limit = entry.get("pageSize"), _integer(entry, "hugepageLimits.limit", least=0)
        if not isinstance(size, str) or not size[:1].isdigit() or not size.isalnum() or limit is None:
            raise InvalidArgument(f"linux.resources.hugepageLimits: {size!r} is no page size such as 2MB with a limit")
        directory, old = _directory(group, "hugetlb", "limits of huge pages", {"limit": 1})
        for infix in (".", ".rsvd."):
            path = f"{directory}/hugetlb.{size}{infix}{'limit_in_bytes' if old else 'max'}"
            if infix == "." or os.path.exists(path):
                _put(group, path, str(limit))


def _rdma(group: Cgroup, given: Mapping[str, Any]) -> None:
    directory, _ = _directory(group, "rdma", "limits of RDMA devices", given)
    for device, entry in given.items() if directory else ():
        if not isinstance(entry, Mapping):
            raise InvalidArgument(f"linux.resources.rdma.{device}: expected an object")
        handles, objects = (_integer(entry, f"rdma.{name}", least=0) for name in ("hcaHandles", "hcaObjects"))
        words = [f"{key}={value}" for key, value in (("hca_handle", handles), ("hca_object", objects)) if value is not None]
        if words:
            _put(group, f"{directory}/rdma.max", " ".join((device, *words)))


def _unified(group: Cgroup, given: Mapping[str, Any]) -> None:
    """v2's files by their names, as they are."""
    if not group.unified or (group.v1 and not group.layout.v2):
        raise _no_unified(next(iter(given)), group.layout)
    for name, text in given.items():
        controller = name.partition(".")[0]
        if "/" in name or "." not in name or not isinstance(text, str):
            raise InvalidArgument(f"linux.resources.unified: {name!r} is no file of a control group with a text for it")
        if controller != "cgroup" and not group.controls(controller):
            raise _lacking(group, controller, name)
        for line in text.splitlines() or [text]:
            _put(group, f"{group.unified}/{name}", line)


_SECTIONS: dict[str, Callable[[Cgroup, Mapping[str, Any]], None]] = {
    "memory": _memory, "cpu": _cpu, "pids": _pids, "blockIO": _block_io, "network": _network, "rdma": _rdma, "unified": _unified,
}  # fmt: skip


# Tools


def _wished(value: object) -> bool:
    """Does this ask for something that a host might not have?"""
    return value not in (None, 0, -1, "", False) and value != [] and value != {}


def _section(limits: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = limits.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"linux.resources.{name}: expected an object, got {type(value).__name__}")
    return value


def _entries(given: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return _list(given.get(name.rpartition(".")[2]) or (), name)


def _list(value: object, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
        raise InvalidArgument(f"linux.resources.{name}: expected a list of objects")
    return list(value)


def _integer(given: Mapping[str, Any], name: str, *, least: int | None = None) -> int | None:
    """A number of an object; None = absent. `name` is its path, for messages."""
    value = given.get(name.rpartition(".")[2])
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"linux.resources.{name}: expected a whole number, got {value!r}")
    if (least is not None and value < least) or not -_HUGE <= value < 2 * _HUGE:
        raise InvalidArgument(f"linux.resources.{name}: {value} is out of range")
    return value


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(group: Cgroup, path: str, value: int | None) -> None:
    """Write a limit of v1; one that is lifted where it cannot exist is no error."""
    if not value:
        return
    if value > 0:
        _put(group, path, str(value))
    else:
        with contextlib.suppress(HostError):
            _put(group, path, "-1")


def _directory(group: Cgroup, controller: str, what: str, given: Mapping[str, Any]) -> tuple[str, bool]:
    """Where a controller (v1's name) is governed for this group, and whether that is v1.

    ("", False) without it when nothing is asked of it. Raises Unsupported.
    """
    if controller in group.v1:
        return group.v1[controller], True
    name = {"blkio": "io"}.get(controller, controller)
    if group.controls(name) and name in (read(f"{group.unified}/cgroup.controllers") or name).split():
        return group.unified, False
    if any(_wished(value) for value in given.values()):
        raise _lacking(group, controller, what)
    return "", False


def _lacking(group: Cgroup, controller: str, what: str) -> Unsupported:
    where = group.layout
    name = {"blkio": "io"}.get(controller, controller)
    if where.v1:
        return Unsupported(
            f"cannot set {what}: the {controller} controller is not mounted",
            hint=f"mkdir -p /sys/fs/cgroup/{controller}; mount -t cgroup -o {controller} none /sys/fs/cgroup/{controller}",
        )
    if controller in ("net_cls", "net_prio"):
        return Unsupported(
            f"cannot set {what}: cgroup v2 has no {controller} controller", hint="use tc or nft with the container's interface"
        )
    if name in where.v2:
        parent = os.path.dirname(group.unified)
        return Unsupported(
            f"cannot set {what}: the {name} controller is not handed down to {group.unified}",
            hint=f"as root: echo +{name} > {parent}/cgroup.subtree_control; for a user's own containers: "
            "systemctl edit user@.service, with [Service] Delegate=cpu cpuset io memory pids",
        )
    return Unsupported(
        f"cannot set {what}: the {name} controller is not available",
        hint=f"it is not in {where.unified}/cgroup.controllers: the kernel lacks it, it is mounted as v1, or it was not delegated",
    )


def _no_unified(name: str, where: Layout) -> Unsupported:
    return Unsupported(
        f"cannot set {name}: it is a file of cgroup v2, and this host has {where.kind}",
        hint="boot with systemd.unified_cgroup_hierarchy=1, or use the flags that work on both",
    )


def _only_v1(value: object, name: str, why: str) -> None:
    if _wished(value):
        raise Unsupported(f"cannot set {name} on cgroup v2: {why}", hint="leave it out")


def _no_file(path: str) -> Unsupported:
    name = os.path.basename(path)
    return Unsupported(f"cannot set {name}: this kernel does not have it", hint=_NEEDS.get(name, "leave it out"))


def _put(group: Cgroup, path: str, text: str) -> None:
    """Write a control file. Raises Unsupported when there is no such file, HostError."""
    if not os.path.exists(path) and os.path.isdir(os.path.dirname(path)):
        raise _no_file(path)
    try:
        group.write(path, text)
    except HostError as error:
        error.hint = error.hint or _LOOK.get(os.path.basename(path), "")
        raise
