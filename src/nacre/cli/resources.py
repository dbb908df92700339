"""The flags of limits, as `run`, `create` and `update` take them (Docker's and podman's grammar), and the values they make."""

from __future__ import annotations

from nacre.cli import units
from nacre.cli.flags import Arguments, UsageError
from nacre.errors import InvalidArgument, Unsupported
from nacre.model.container import DeviceLimit, Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Flag -> field, where the value is taken as it is.
_PLAIN = {
    "blkio-weight": "blkio_weight", "cpu-period": "cpu_period", "cpu-quota": "cpu_quota", "cpu-rt-period": "cpu_rt_period",
    "cpu-rt-runtime": "cpu_rt_runtime", "cpu-shares": "cpu_shares", "cpus": "cpus", "cpuset-cpus": "cpuset_cpus",
    "cpuset-mems": "cpuset_mems", "memory": "memory", "memory-reservation": "memory_reservation", "memory-swap": "memory_swap",
    "memory-swappiness": "memory_swappiness", "oom-kill-disable": "oom_kill_disable", "pids-limit": "pids",
}  # fmt: skip
_LISTS = {
    "blkio-weight-device": "blkio_weight_device", "device-read-bps": "device_read_bps", "device-read-iops": "device_read_iops",
    "device-write-bps": "device_write_bps", "device-write-iops": "device_write_iops",
}  # fmt: skip


def limits(args: Arguments) -> Resources:
    """The limits of one command line. Raises UsageError, Unsupported."""
    found = changes(args)
    return Resources(**{**found, "pids": max(0, found.get("pids", 0))})


def changes(args: Arguments) -> dict[str, Any]:
    """Fields of `Resources` for the flags that were given. Raises UsageError, Unsupported."""
    if args.given("kernel-memory"):
        raise Unsupported(
            "--kernel-memory is not supported: Linux no longer limits the kernel's memory by itself", hint="--memory counts it as well"
        )
    found: dict[str, Any] = {field: getattr(args, flag.replace("-", "_")) for flag, field in _PLAIN.items() if args.given(flag)}
    for flag, field in _LISTS.items():
        if args.given(flag):
            found[field] = tuple(_device_limit(text, flag) for text in getattr(args, flag.replace("-", "_")))
    if args.given("cgroup-conf"):
        found["unified"] = dict(_pair(text) for text in args.cgroup_conf)
    return found


def _device_limit(text: str, flag: str) -> DeviceLimit:
    """``/dev/sda:1mb``, ``/dev/sda:100``: the path of a device and a number."""
    path, colon, number = text.rpartition(":")
    if not colon or not path or not number:
        raise UsageError(f'invalid argument "{text}" for "--{flag}" flag: bad format: {text}')
    if not path.startswith("/dev/"):
        raise UsageError(f'invalid argument "{text}" for "--{flag}" flag: bad format for device path: {text}')
    try:
        value = units.parse_size(number) if flag.endswith("bps") else int(number)
    except (InvalidArgument, ValueError):
        value = -1
    if value < 0:
        wanted = "<device-path>:<number>[<unit>]" if flag.endswith("bps") else "<device-path>:<number>"
        raise UsageError(f'invalid argument "{text}" for "--{flag}" flag: invalid rate, the correct format is {wanted}')
    return DeviceLimit(path=path, value=value)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f'invalid argument "{text}" for "--cgroup-conf" flag: expected file=value, as memory.high=1073741824')
    return name, value
