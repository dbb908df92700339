"""What an engine uses and holds, by the names that Docker gives to it (Docker Engine API, SystemInfo); what only Nacre has comes last."""

from __future__ import annotations

import os

from nacre.engine.core import Core
from nacre.errors import NacreError
from nacre.isolation.process import cgroup_kind, is_host_root, supported_limits
from nacre.model.container import Level, State
from nacre.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def info(core: Core, states: Iterable[State], images: int) -> dict[str, Any]:
    """Everything. states: of all containers; images: their number. Raises InvalidArgument, HostError when storage cannot be used."""
    counted = list(states)
    # One that waits for its restart counts as running, as with Docker.
    running, paused = counted.count(State.RUNNING) + counted.count(State.RESTARTING), counted.count(State.PAUSED)
    levels, warnings = _levels(core)
    system = os.uname()
    choice = core.layers.choice
    return {
        "Name": system.nodename,
        "Containers": len(counted),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(counted) - running - paused,
        "Images": images,
        "ServerVersion": VERSION,
        "Driver": choice.driver,
        "DriverStatus": [list(row) for row in core.layers.status()],
        **_cgroups(),
        "Isolation": str(Level.PROCESS),
        "IsolationLevels": levels,
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "none"]},
        "Runtimes": {"stem": {"path": _stem()}},
        "DefaultRuntime": "stem",
        "SecurityOptions": _security(),
        "KernelVersion": system.release,
        "OperatingSystem": _operating_system(),
        "OSType": "linux",
        "Architecture": system.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "DockerRootDir": core.layout.root,
        "RunRoot": core.layout.run,
        "StorageDriver": choice.driver,
        "StorageDriverReason": choice.reason,
        "Rootless": not is_host_root(),
        "NetworkUplink": core.network.uplink(),
        "Warnings": warnings,
    }


def _cgroups() -> dict[str, Any]:
    """Who makes control groups, their version and layout, and the limits that can be kept: Docker's fields, then all of them by flag."""
    kind, limits = cgroup_kind(), supported_limits()
    driver = "systemd" if os.environ.get("NACRE_CGROUP_PARENT", "").endswith(".slice") else "cgroupfs"
    return {
        "CgroupDriver": driver,
        "CgroupVersion": "2" if kind == "v2" else "1",
        "CgroupLayout": kind,
        "MemoryLimit": limits["memory"],
        "SwapLimit": limits["memory-swap"],
        "CpuCfsPeriod": limits["cpus"],
        "CpuCfsQuota": limits["cpus"],
        "CPUShares": limits["cpu-shares"],
        "CPUSet": limits["cpuset-cpus"],
        "PidsLimit": limits["pids-limit"],
        "OomKillDisable": limits["oom-kill-disable"],
        "Limits": [flag for flag, there in limits.items() if there],
    }


def _levels(core: Core) -> tuple[list[str], list[str]]:
    """Isolation levels that can be had here, and why not for the others."""
    from nacre.isolation.microvm import accel, kernels

    try:
        accel.find_qemu(accel.Facts(core.layout.run))
        kernels.find()
    except NacreError as error:
        return [str(Level.PROCESS)], [f"no isolation level vm: {error.message}" + (f" ({error.hint})" if error.hint else "")]
    return [str(Level.PROCESS), str(Level.VM)], []


def _stem() -> str:
    from nacre.isolation.process import stem_path

    try:
        return stem_path()
    except NacreError:
        return ""


def _security() -> list[str]:
    options = ["name=seccomp,profile=builtin"]
    if os.path.exists("/proc/self/ns/cgroup"):
        options.append("name=cgroupns")
    if not is_host_root():
        options.append("name=rootless")
    return options


def _operating_system() -> str:
    """The distribution as /etc/os-release names it (os-release(5))."""
    import shlex

    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.startswith("PRETTY_NAME="):
                        return " ".join(shlex.split(line.partition("=")[2]))
        except (OSError, ValueError):
            continue
    return "Linux"
