"""What a container may use: Docker's rules for it, and what each level does with it.

A `Resources` value becomes an OCI `linux.resources` object (`nacre.linux.cgroups_limits`). At level process that is the container's
group; at level vm the host holds the monitor to what is about the host's processors and disks, and the guest's kernel holds the
container to what is about memory and processes. Messages are those of the Docker daemon where it has one.
"""

from __future__ import annotations

import os

from nacre.errors import InvalidArgument, Unsupported
from nacre.linux.cgroups import Layout
from nacre.model.container import DeviceLimit, Level, Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MINIMUM_MEMORY = 6 * 1024 * 1024
PERIOD = 100_000  # microseconds, the kernel's default CFS period
_HUGE = 1 << 63
_THROTTLES = (
    ("device_read_bps", "throttleReadBpsDevice"),
    ("device_write_bps", "throttleWriteBpsDevice"),
    ("device_read_iops", "throttleReadIOPSDevice"),
    ("device_write_iops", "throttleWriteIOPSDevice"),
)


def check(resources: Resources, level: Level = Level.PROCESS) -> None:
    """Refuse limits that make no sense, or that cannot be had on this host or at this level. Raises InvalidArgument, Unsupported."""
    _check_memory(resources)
    _check_processors(resources)
    if resources.blkio_weight and not 10 <= resources.blkio_weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    for entry in resources.blkio_weight_device:
        if not 10 <= entry.value <= 1000:
            raise InvalidArgument(f"Range of blkio weight is from 10 to 1000: {entry.path}:{entry.value}")
    for name in resources.unified:
        if "." not in name or "/" in name:
            raise InvalidArgument(f"invalid cgroup configuration {name!r}", hint="a file of cgroup v2 as in memory.high=1073741824")
    if resources.pids < -1:
        raise InvalidArgument(f"invalid limit of processes {resources.pids}", hint="-1 is unlimited")
    if level is Level.VM:
        _check_guest(resources)
    _check_host(resources, level)


def _check_host(resources: Resources, level: Level) -> None:
    """Find out now what the start of the container would find out: a controller that is not there."""
    from nacre.isolation.process import delegated_only, manageable, seek_delegation
    from nacre.linux.cgroups_limits import lacking

    if resources != Resources():
        seek_delegation()
    where = manageable()
    with delegated_only():
        lacking(host_object(resources) if level is Level.VM else resources_object(resources, where), where)


def _check_memory(asked: Resources) -> None:
    if asked.memory and asked.memory < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB", hint="--memory 6m or more")
    for name in ("memory", "memory_swap", "memory_reservation"):
        if getattr(asked, name) >= _HUGE:
            raise InvalidArgument(f"{name.replace('_', ' ')} limit {getattr(asked, name)} is too large")
    if asked.memory_swap < -1:
        raise InvalidArgument(f"invalid memory swap limit {asked.memory_swap}", hint="-1 is unlimited swap")
    if asked.memory_swap > 0 and not asked.memory:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage", hint="add --memory")
    if 0 < asked.memory_swap < asked.memory:
        raise InvalidArgument(
            "Minimum memoryswap limit should be larger than memory limit, see usage",
            hint="--memory-swap is memory and swap together; the same as --memory gives no swap",
        )
    if not -1 <= asked.memory_swappiness <= 100:
        raise InvalidArgument(f"Invalid value: {asked.memory_swappiness}, valid memory swappiness range is 0-100")
    if asked.memory_reservation and asked.memory_reservation < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if 0 < asked.memory < asked.memory_reservation:
        raise InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")


def _check_processors(asked: Resources) -> None:
    count = len(os.sched_getaffinity(0))
    if asked.cpus and not 0.01 <= asked.cpus <= count:
        raise InvalidArgument(f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available")
    if asked.cpus and asked.cpu_period:
        raise InvalidArgument(
            "Conflicting options: Nano CPUs and CPU Period cannot both be set", hint="--cpus is --cpu-quota / --cpu-period"
        )
    if asked.cpus and asked.cpu_quota:
        raise InvalidArgument(
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set", hint="--cpus is --cpu-quota / --cpu-period"
        )
    if asked.cpu_shares < 0:
        raise InvalidArgument(f"invalid cpu shares ({asked.cpu_shares}): value must be a positive integer")
    if asked.cpu_period and not 1000 <= asked.cpu_period <= 1_000_000:
        raise InvalidArgument("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if asked.cpu_quota and asked.cpu_quota != -1 and asked.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if asked.cpu_rt_period < 0 or asked.cpu_rt_runtime < -1:
        raise InvalidArgument("real-time periods and run times are microseconds, and not negative")
    if asked.cpu_rt_runtime and asked.cpu_rt_period and asked.cpu_rt_runtime > asked.cpu_rt_period:
        raise InvalidArgument("cpu real-time runtime cannot be higher than cpu real-time period")
    _check_set(asked.cpuset_cpus, "cpuset cpus", "CPUs", "/sys/devices/system/cpu/online")
    _check_set(asked.cpuset_mems, "cpuset mems", "memory nodes", "/sys/devices/system/node/online")


def _check_set(text: str, flag: str, what: str, path: str) -> None:
    if not text:
        return
    try:
        wanted = numbers(text)
    except ValueError:
        raise InvalidArgument(f"Invalid value {text} for {flag}", hint="a list such as 0-2,7") from None
    try:
        with open(path, encoding="ascii") as file:
            there = file.read().strip()
    except OSError:
        there = "0"
    if not wanted <= numbers(there):
        raise InvalidArgument(f"Requested {what} are not available - requested {text}, available: {there}")


def numbers(text: str) -> set[int]:
    """The numbers of ``0-2,7``. Raises ValueError for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        low, mark, high = part.strip().partition("-")
        if not low.isdecimal() or (mark and not high.isdecimal()):
            raise ValueError(part)
        first, last = int(low), int(high or low)
        if first > last or last > 1 << 16:
            raise ValueError(part)
        found.update(range(first, last + 1))
    return found


def _check_guest(asked: Resources) -> None:
    """A guest has its own kernel, with cgroup v2 and without swap."""
    refused = (
        (asked.memory_swap not in (0, -1, asked.memory), "--memory-swap", "a guest has no swap: its memory is all it has"),
        (asked.memory_swappiness != -1, "--memory-swappiness", "a guest has no swap"),
        (asked.oom_kill_disable, "--oom-kill-disable", "cgroup v2, which guests have, cannot do this"),
        (
            asked.cpu_rt_period or asked.cpu_rt_runtime,
            "--cpu-rt-period and --cpu-rt-runtime",
            "the monitor's threads are not real-time threads",
        ),
    )
    for wish, flag, why in refused:
        if wish:
            raise Unsupported(f"{flag} is not supported at level vm: {why}", hint="leave it out, or use --isolation process")


def warnings(resources: Resources) -> list[str]:
    """What is permitted but unwise, in Docker's words."""
    if resources.oom_kill_disable and not resources.memory:
        return [
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
        ]
    return []


def resources_object(asked: Resources, where: Layout) -> dict[str, Any]:
    """The OCI `linux.resources` object of these limits; {} for none. Raises InvalidArgument for a path that is no block device.

    Unless it is asked for, swap is limited where that can be done, to as much as memory.
    """
    made = {**_memory_object(asked, swap=2 * asked.memory if _accounts_swap(where) else 0), **host_object(asked)}
    if asked.pids:
        made["pids"] = {"limit": asked.pids}
    if asked.unified:
        made["unified"] = dict(asked.unified)
    return made


def host_object(asked: Resources) -> dict[str, Any]:
    """The part of it that is about the host's processors and disks whatever runs there: the monitor of a virtual machine."""
    made: dict[str, Any] = {}
    cpu: dict[str, Any] = {}
    if asked.cpus:
        cpu |= {"quota": max(1000, round(asked.cpus * PERIOD)), "period": PERIOD}
    for field, name in (
        ("cpu_shares", "shares"), ("cpu_quota", "quota"), ("cpu_period", "period"), ("cpu_rt_runtime", "realtimeRuntime"),
        ("cpu_rt_period", "realtimePeriod"), ("cpuset_cpus", "cpus"), ("cpuset_mems", "mems"),
    ):  # fmt: skip
        if value := getattr(asked, field):
            cpu[name] = value
    if cpu:
        made["cpu"] = cpu
    block: dict[str, Any] = {"weight": asked.blkio_weight} if asked.blkio_weight else {}
    if asked.blkio_weight_device:
        block["weightDevice"] = [{**_block_device(entry), "weight": entry.value} for entry in asked.blkio_weight_device]
    for field, name in _THROTTLES:
        if entries := getattr(asked, field):
            block[name] = [{**_block_device(entry), "rate": entry.value} for entry in entries]
    if block:
        made["blockIO"] = block
    return made


def _accounts_swap(where: Layout) -> bool:
    if "memory" in where.v1:
        return os.path.exists(f"{where.v1['memory']}/memory.memsw.limit_in_bytes")
    return os.path.exists("/proc/swaps")


def _memory_object(asked: Resources, *, swap: int) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if asked.memory:
        memory["limit"] = asked.memory
    if asked.memory_swap or swap:
        memory["swap"] = asked.memory_swap or swap
    if asked.memory_reservation:
        memory["reservation"] = asked.memory_reservation
    if asked.memory_swappiness != -1:
        memory["swappiness"] = asked.memory_swappiness
    if asked.oom_kill_disable:
        memory["disableOOMKiller"] = True
    return {"memory": memory} if memory else {}


def supported(where: Layout) -> dict[str, bool]:
    """Which limits this host can keep, by their flags."""
    v1 = where.v1

    def has(controller: str, file: str, *, v2: bool = True) -> bool:
        """The controller with this file; on v2 the root has none of them, so that the controller must do."""
        if controller in v1:
            return os.path.exists(f"{v1[controller]}/{file}")
        return v2 and where.has(controller)

    quota = where.has("cpu") if "cpu" not in v1 else _below_root(v1["cpu"], "cpu.cfs_quota_us")
    return {
        "memory": where.has("memory"),
        "memory-swap": where.has("memory") and _accounts_swap(where),
        "memory-reservation": has("memory", "memory.soft_limit_in_bytes"),
        "memory-swappiness": has("memory", "memory.swappiness", v2=False),
        "oom-kill-disable": has("memory", "memory.oom_control", v2=False),
        "cpu-shares": where.has("cpu"),
        "cpus": quota,
        "cpu-rt-runtime": "cpu" in v1 and _below_root(v1["cpu"], "cpu.rt_runtime_us"),
        "cpuset-cpus": where.has("cpuset"),
        "pids-limit": where.has("pids"),
        "device-read-bps": has("blkio", "blkio.throttle.read_bps_device"),
        "blkio-weight": "io" in where.v2 if "blkio" not in v1 else _below_root(v1["blkio"], "blkio.bfq.weight", "blkio.weight"),
        "cgroup-conf": where.kind == "v2",
    }


def _below_root(mount: str, *names: str) -> bool:
    """Does a group have one of these files? Some are not in the root itself: any group below it tells."""
    try:
        below = next((entry.path for entry in os.scandir(mount) if entry.is_dir(follow_symlinks=False)), mount)
    except OSError:
        return False
    return any(os.path.exists(f"{place}/{name}") for place in (mount, below) for name in names)


def processors(asked: Resources) -> float:
    """How many processors these limits are worth; 0 = no limit."""
    return asked.cpus or max(0, asked.cpu_quota) / (asked.cpu_period or PERIOD)


def guest_files(asked: Resources) -> list[tuple[str, str]]:
    """(file, value) of the container's cgroup v2 inside a guest."""
    files = [("memory.max", str(asked.memory)), ("memory.swap.max", "0")] if asked.memory else []
    if asked.memory_reservation:
        files.append(("memory.low", str(asked.memory_reservation)))
    if asked.pids:
        files.append(("pids.max", str(asked.pids) if asked.pids > 0 else "max"))
    return files + list(asked.unified.items())


def _block_device(entry: DeviceLimit) -> dict[str, int]:
    import stat

    try:
        found = os.stat(entry.path)
    except OSError as error:
        raise InvalidArgument(f"cannot limit device {entry.path}: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise InvalidArgument(f"{entry.path} is not a block device", hint="list them with: lsblk -p")
    return {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
