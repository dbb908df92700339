"""Numbers of a control group: one small sample for `nacre stats`, everything in the shape of `runc events --stats`, and its limits.

Sources: the kernel's admin-guide/cgroup-v1/*.rst and admin-guide/cgroup-v2.rst; runc's man page runc-events(8) and its types/events.go
for the names. Sizes in bytes, times in nanoseconds, whatever the file has. What a host does not count is left out, or 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from nacre.linux.cgroups import Cgroup, read
from nacre.model.container import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UNLIMITED = 1 << 60  # v1 shows "no limit" as the largest multiple of the page size
_MOST = (1 << 64) - 1  # "no limit" in runc's answers


def sample(group: Cgroup) -> Stats:
    """One sample (network counters excepted); a missing controller leaves zeros."""
    usage, limit = _memory(group)
    bytes_read, written = _blkio(group)
    return Stats(
        time=time.time(),
        cpu=_cpu(group),
        cpus=os.cpu_count() or 1,
        system_cpu=_system_cpu(),
        memory=usage,
        memory_limit=limit,
        pids=_number(read(f"{group.v1.get('pids') or group.unified}/pids.current")) or len(group.pids()),
        read=bytes_read,
        write=written,
    )


def _cpu(group: Cgroup) -> int:
    if "cpuacct" in group.v1:
        return _number(read(f"{group.v1['cpuacct']}/cpuacct.usage"))
    return 1000 * _fields(read(f"{group.unified}/cpu.stat")).get("usage_usec", 0)


def _memory(group: Cgroup) -> tuple[int, int]:
    """Usage without the page cache that the kernel would give back first (as the docker command computes it), and the limit."""
    if "memory" in group.v1:
        base = group.v1["memory"]
        used, idle = read(f"{base}/memory.usage_in_bytes"), _fields(read(f"{base}/memory.stat")).get("total_inactive_file", 0)
        limit = _number(read(f"{base}/memory.limit_in_bytes"))
    else:
        base = group.unified
        used, idle = read(f"{base}/memory.current"), _fields(read(f"{base}/memory.stat")).get("inactive_file", 0)
        limit = _number(read(f"{base}/memory.max"))
    usage = _number(used)
    return usage - idle if idle < usage else usage, 0 if limit >= _UNLIMITED else limit


def _blkio(group: Cgroup) -> tuple[int, int]:
    if "blkio" not in group.v1:
        words = (read(f"{group.unified}/io.stat") or "").split()
        return _sum(words, "rbytes="), _sum(words, "wbytes=")
    for scheduler in ("bfq", "throttle"):
        entries = _blkio_v1(f"{group.v1['blkio']}/blkio.{scheduler}.io_service_bytes_recursive")
        moved, written = (sum(entry["value"] for entry in entries if entry["op"] == word) for word in ("Read", "Write"))
        if moved or written:
            return moved, written
    return 0, 0


# Everything


def raw(group: Cgroup) -> dict[str, Any]:
    """The `data` object of `runc events --stats`, without network interfaces and Intel RDT, which are no business of a control group."""
    return {
        "cpu": _cpu_stats(group),
        "cpuset": _cpuset_stats(group),
        "memory": _memory_v1(group.v1["memory"]) if "memory" in group.v1 else _memory_v2(group),
        "pids": _pids_stats(group),
        "blkio": _blkio_stats(group),
        "hugetlb": _hugetlb_stats(group),
        "rdma": _rdma_stats(group),
    }


def _cpu_stats(group: Cgroup) -> dict[str, Any]:
    if "cpuacct" not in group.v1:
        found = _fields(read(f"{group.unified}/cpu.stat"))
        usage: dict[str, Any] = {name: 1000 * found.get(f"{key}_usec", 0) for name, key in _CPU_V2}
        throttled = 1000 * found.get("throttled_usec", 0)
        burst = 1000 * found.get("burst_usec", 0)
    else:
        base, found = group.v1["cpuacct"], _fields(read(f"{group.v1.get('cpu', '')}/cpu.stat"))
        per_cpu = [int(word) for word in (read(f"{base}/cpuacct.usage_percpu") or "").split()]
        times = _times_v1(base)
        usage = {"total": _number(read(f"{base}/cpuacct.usage")), "percpu": per_cpu, "kernel": times[1], "user": times[0]}
        throttled, burst = found.get("throttled_time", 0), found.get("burst_time", 0)
    throttling = {"periods": found.get("nr_periods", 0), "throttledPeriods": found.get("nr_throttled", 0), "throttledTime": throttled}
    return {
        "usage": usage,
        "throttling": throttling,
        **({"burst": {"burstsPeriods": found["nr_bursts"], "burstTime": burst}} if found.get("nr_bursts") else {}),
        **_pressure(group, "cpu"),
    }


_CPU_V2 = (("total", "usage"), ("kernel", "system"), ("user", "user"))


def _times_v1(base: str) -> tuple[int, int]:
    """User and kernel time in ns: exact where the kernel tells, else from its ticks."""
    text = read(f"{base}/cpuacct.usage_all")
    if text:
        rows = [line.split() for line in text.splitlines()[1:]]
        return sum(int(row[1]) for row in rows if len(row) == 3), sum(int(row[2]) for row in rows if len(row) == 3)
    ticks = _fields(read(f"{base}/cpuacct.stat"))
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return ticks.get("user", 0) * tick, ticks.get("system", 0) * tick


def _cpuset_stats(group: Cgroup) -> dict[str, Any]:
    if "cpuset" not in group.v1:
        names = {"cpus": "cpuset.cpus.effective", "mems": "cpuset.mems.effective"}
        return {key: found for key, name in names.items() if (found := _list(read(f"{group.unified}/{name}")))}
    base = group.v1["cpuset"]
    flags = {
        "cpu_exclusive": "cpu_exclusive", "mem_hardwall": "mem_hardwall", "mem_exclusive": "mem_exclusive",
        "memory_migrate": "memory_migrate", "memory_spread_page": "memory_spread_page", "memory_spread_slab": "memory_spread_slab",
        "memory_pressure": "memory_pressure", "sched_load_balance": "sched_load_balance",
        "sched_relax_domain_level": "sched_relax_domain_level",
    }  # fmt: skip
    lists = {key: _list(read(f"{base}/cpuset.{key}")) for key in ("cpus", "mems")}
    return lists | {key: int((read(f"{base}/cpuset.{name}") or "0").strip() or 0) for key, name in flags.items()}


def _memory_v1(base: str) -> dict[str, Any]:
    def entry(infix: str) -> dict[str, int]:
        names = {"limit": "limit_in_bytes", "usage": "usage_in_bytes", "max": "max_usage_in_bytes", "failcnt": "failcnt"}
        return {key: _number(read(f"{base}/memory.{infix}{name}")) for key, name in names.items()}

    statistics = _fields(read(f"{base}/memory.stat"))
    return {
        "cache": statistics.get("cache", 0),
        "usage": entry(""),
        "swap": entry("memsw."),
        "kernel": entry("kmem."),
        "kernelTCP": entry("kmem.tcp."),
        "raw": statistics,
    }


def _memory_v2(group: Cgroup) -> dict[str, Any]:
    base, statistics = group.unified, _fields(read(f"{group.unified}/memory.stat"))
    events = _fields(read(f"{base}/memory.events"))
    usage = {
        "limit": _or_most(read(f"{base}/memory.max")), "usage": _number(read(f"{base}/memory.current")),
        "max": _number(read(f"{base}/memory.peak")), "failcnt": events.get("max", 0),
    }  # fmt: skip
    # As v1 and runc count it: memory and swap together.
    swap_limit, swap = _or_most(read(f"{base}/memory.swap.max")), _number(read(f"{base}/memory.swap.current"))
    both = {
        "limit": _MOST if _MOST in (swap_limit, usage["limit"]) else swap_limit + usage["limit"], "usage": swap + usage["usage"],
        "max": _number(read(f"{base}/memory.swap.peak")), "failcnt": _fields(read(f"{base}/memory.swap.events")).get("fail", 0),
    }  # fmt: skip
    none = {"limit": 0, "usage": 0, "max": 0, "failcnt": 0}
    made = {"cache": statistics.get("file", 0), "usage": usage, "swap": both, "kernel": none, "kernelTCP": none, "raw": statistics}
    return (
        made
        | {"swapOnlyUsage": {"limit": swap_limit, "usage": swap, "max": both["max"], "failcnt": both["failcnt"]}}
        | _pressure(group, "memory")
    )


def _pids_stats(group: Cgroup) -> dict[str, int]:
    base = group.v1.get("pids") or group.unified
    limit = (read(f"{base}/pids.max") or "").strip()
    return {"current": _number(read(f"{base}/pids.current")) or len(group.pids()), "limit": int(limit) if limit.isdigit() else 0}


_BLKIO_V1 = {
    "ioServiceBytesRecursive": "io_service_bytes", "ioServicedRecursive": "io_serviced", "ioQueueRecursive": "io_queued",
    "ioServiceTimeRecursive": "io_service_time", "ioWaitTimeRecursive": "io_wait_time", "ioMergedRecursive": "io_merged",
    "ioTimeRecursive": "time", "sectorsRecursive": "sectors",
}  # fmt: skip


def _blkio_stats(group: Cgroup) -> dict[str, Any]:
    if "blkio" in group.v1:
        base = f"{group.v1['blkio']}/blkio"
        made = {}
        for name, file in _BLKIO_V1.items():
            for kind in ("bfq.", "", "throttle."):
                if entries := _blkio_v1(f"{base}.{kind}{file}_recursive"):
                    made[name] = entries
                    break
        return made
    bytes_moved: list[dict[str, Any]] = []
    operations: list[dict[str, Any]] = []
    for line in (read(f"{group.unified}/io.stat") or "").splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        values = {key: int(value) for key, _, value in (word.partition("=") for word in words) if value.isdigit()}
        for key, operation, found in (
            ("rbytes", "Read", bytes_moved), ("wbytes", "Write", bytes_moved), ("rios", "Read", operations), ("wios", "Write", operations),
        ):  # fmt: skip
            if key in values and major.isdigit() and minor.isdigit():
                found.append({"major": int(major), "minor": int(minor), "op": operation, "value": values[key]})
    answer: dict[str, Any] = {"ioServiceBytesRecursive": bytes_moved, "ioServicedRecursive": operations}
    return {key: entries for key, entries in answer.items() if entries} | _pressure(group, "io")


def _blkio_v1(path: str) -> list[dict[str, Any]]:
    """Rows ``8:0 Read 10``, or ``8:0 10``; the total at the end is left out."""
    found = []
    for line in (read(path) or "").splitlines():
        words = line.split()
        major, mark, minor = words[0].partition(":") if words else ("", "", "")
        if mark and len(words) in (2, 3) and words[-1].isdigit():
            found.append({"major": int(major), "minor": int(minor), "op": words[1] if len(words) == 3 else "", "value": int(words[-1])})
    return found


def _hugetlb_stats(group: Cgroup) -> dict[str, Any]:
    old = "hugetlb" in group.v1
    base = group.v1.get("hugetlb") or group.unified
    names = ("usage_in_bytes", "max_usage_in_bytes", "failcnt") if old else ("current", "max_usage", "events")
    made = {}
    for entry in _names(base):
        size, mark, rest = entry.removeprefix("hugetlb.").partition(".")
        if entry.startswith("hugetlb.") and mark and rest == names[0]:
            failed = read(f"{base}/hugetlb.{size}.{names[2]}")
            made[size] = {
                "usage": _number(read(f"{base}/{entry}")),
                "max": _number(read(f"{base}/hugetlb.{size}.{names[1]}")),
                "failcnt": _number(failed) if old else _fields(failed).get("max", 0),
            }
    return made


def _rdma_stats(group: Cgroup) -> dict[str, Any]:
    made = {}
    for name, file in (("rdmaLimit", "rdma.max"), ("rdmaCurrent", "rdma.current")):
        rows = []
        for line in (read(f"{group.v1.get('rdma') or group.unified}/{file}") or "").splitlines():
            device, *words = line.split()
            pairs = dict(word.partition("=")[::2] for word in words)
            values = {key: _or_most(pairs.get(word)) for key, word in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))}
            rows.append({"device": device, **values})
        if rows:
            made[name] = rows
    return made


def _pressure(group: Cgroup, name: str) -> dict[str, Any]:
    """Pressure stall information of v2, under the key `psi`."""
    made: dict[str, dict[str, float]] = {}
    for line in (read(f"{group.unified}/{name}.pressure") or "").splitlines() if group.unified and not group.v1 else ():
        kind, *words = line.split()
        made[kind] = {key: float(value) for key, _, value in (word.partition("=") for word in words)}
    return {"psi": made} if made else {}


# What is set


def limits(group: Cgroup) -> dict[str, Any]:
    """The limits in force, as an OCI `linux.resources` object in the terms of the host's version: v2's are under `unified`."""
    if not group.v1:
        return {"unified": {name: text.strip() for name in _SETTABLE_V2 if (text := read(f"{group.unified}/{name}")) is not None}}
    made: dict[str, Any] = {}
    for section, controller, fields in _SETTABLE_V1:
        for field, name in fields:
            text = (read(f"{group.v1.get(controller, '')}/{name}") or "").strip()
            if text:
                made.setdefault(section, {})[field] = _setting(field, text)
    return made


_SETTABLE_V2 = (
    "memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max", "cpu.max", "cpu.max.burst", "cpu.weight", "cpu.idle",
    "cpuset.cpus", "cpuset.mems", "pids.max", "io.max", "io.weight", "io.bfq.weight", "rdma.max",
)  # fmt: skip
_SETTABLE_V1 = (
    (
        "memory",
        "memory",
        (
            ("limit", "memory.limit_in_bytes"), ("reservation", "memory.soft_limit_in_bytes"), ("swap", "memory.memsw.limit_in_bytes"),
            ("swappiness", "memory.swappiness"),
        ),
    ),
    (
        "cpu",
        "cpu",
        (
            ("shares", "cpu.shares"), ("quota", "cpu.cfs_quota_us"), ("period", "cpu.cfs_period_us"), ("burst", "cpu.cfs_burst_us"),
            ("realtimeRuntime", "cpu.rt_runtime_us"), ("realtimePeriod", "cpu.rt_period_us"), ("idle", "cpu.idle"),
        ),
    ),
    ("cpu", "cpuset", (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems"))),
    ("pids", "pids", (("limit", "pids.max"),)),
    ("network", "net_cls", (("classID", "net_cls.classid"),)),
)  # fmt: skip


def _setting(field: str, text: str) -> int | str:
    if field in ("cpus", "mems"):
        return text
    number = -1 if text == "max" else int(text)
    return -1 if number >= _UNLIMITED else number


# Tools


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory)) if directory else []
    except OSError:
        return []


def _number(text: str | None) -> int:
    word = (text or "").strip()
    return int(word) if word.isdigit() else 0


def _or_most(text: str | None) -> int:
    word = (text or "").strip()
    return int(word) if word.isdigit() else _MOST


def _fields(text: str | None) -> dict[str, int]:
    """Lines ``name N``."""
    rows = [line.split() for line in (text or "").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _list(text: str | None) -> list[int]:
    """The numbers of ``0-2,7``."""
    found: list[int] = []
    for part in (text or "").strip().split(","):
        low, mark, high = part.partition("-")
        if low.isdigit():
            found += range(int(low), int(high if mark else low) + 1)
    return found


def _sum(words: Iterable[str], prefix: str) -> int:
    return sum(_number(word[len(prefix) :]) for word in words if word.startswith(prefix))


def _system_cpu() -> int:
    """CPU time of the whole host in ns: user, nice, system, idle, iowait, irq, softirq and steal of /proc/stat, as Docker sums it."""
    fields = (read("/proc/stat") or "cpu").split("\n", 1)[0].split()[1:9]
    return sum(map(int, fields)) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
