"""Limits of real containers at both levels: in force, changed while they run, kept for the next start; and groups in trouble."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from nacre import ContainerSpec, Engine
from nacre.engine import Container
from nacre.errors import Conflict, HostError, Unsupported
from nacre.isolation import groups
from nacre.linux import cgroups
from nacre.model.container import DeviceLimit, Level, Resources, State

MIB = 1 << 20
SCRIPT = Path(__file__).parent / "guest_limits.py"


def start(engine: Engine, image: str, level: Level = Level.PROCESS, **spec: Any) -> Container:
    return engine.containers.run(ContainerSpec(image=image, command=("sleep",), network="none", isolation=level, **spec))


def of_group(container: Container, controller: str, v1: str, v2: str) -> str:
    """A file of the group of a container at level process, or of the monitor of a virtual machine."""
    where = cgroups.layout()
    path = f"{where.v1[controller]}/nacre/{container.id}/{v1}" if controller in where.v1 else f"{where.unified}/nacre/{container.id}/{v2}"
    return Path(path).read_text().strip()


def inside(container: Container, v1: str, v2: str) -> str:
    """A file of its own group, as it sees it."""
    guest = container.record.spec.isolation is Level.VM or not cgroups.layout().v1
    code, output, errors = container.exec(["cat", f"/sys/fs/cgroup/{v2 if guest else v1}"]).communicate()
    assert code == 0, errors
    return output.decode().strip()


def block_device() -> str:
    """A disk that limits can be set on."""
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith(("loop", "ram", "zram")) and Path(f"/dev/{name}").is_block_device():
            return f"/dev/{name}"
    pytest.skip("no disk")


def test_limits_are_in_force_and_can_be_changed(engine: Engine, image: str, level: Level) -> None:
    container = start(engine, image, level, resources=Resources(memory=64 * MIB, pids=30, cpus=0.5, cpu_shares=512))
    assert inside(container, "memory/memory.limit_in_bytes", "memory.max") == str(64 * MIB)
    assert inside(container, "pids/pids.max", "pids.max") == "30"
    assert of_group(container, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert of_group(container, "cpu", "cpu.shares", "cpu.weight") in ("512", "59")
    assert container.update(memory=48 * MIB, pids=-1, cpus=0.25, cpuset_cpus="0") == []
    assert inside(container, "memory/memory.limit_in_bytes", "memory.max") == str(48 * MIB)
    assert inside(container, "pids/pids.max", "pids.max") == "max"
    assert of_group(container, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "25000"
    assert of_group(container, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    shown = container.inspect()["HostConfig"]
    assert (shown["Memory"], shown["PidsLimit"], shown["NanoCpus"], shown["CpusetCpus"]) == (48 * MIB, None, 250_000_000, "0")
    assert any(event["action"] == "update" for event in engine.events(since=0) if event["id"] == container.id)
    if level is Level.VM:
        with pytest.raises(Unsupported, match="MiB of memory: its limit cannot rise above that") as caught:
            container.update(memory=2048 * MIB)
        assert "stop the container" in caught.value.hint
        return
    container.stop(0)
    container.update(memory=40 * MIB)
    container.start()
    assert inside(container, "memory/memory.limit_in_bytes", "memory.max") == str(40 * MIB)
    assert of_group(container, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"


def test_swap_and_disks(engine: Engine, image: str) -> None:
    disk = DeviceLimit(path=block_device(), value=1 << 20)
    asked = Resources(
        memory=64 * MIB, memory_swap=64 * MIB, memory_reservation=32 * MIB, device_read_bps=(disk,), device_write_iops=(disk,)
    )
    container = start(engine, image, resources=asked)
    if "memory" in cgroups.layout().v1:
        assert inside(container, "memory/memory.memsw.limit_in_bytes", "") == str(64 * MIB)
        assert inside(container, "memory/memory.soft_limit_in_bytes", "") == str(32 * MIB)
        container.update(memory=128 * MIB, memory_swap=-1)
        assert int(inside(container, "memory/memory.memsw.limit_in_bytes", "")) > 1 << 60
    info = os.stat(disk.path).st_rdev
    expected = f"{os.major(info)}:{os.minor(info)}"
    assert expected in of_group(container, "blkio", "blkio.throttle.read_bps_device", "io.max")
    assert container.inspect()["HostConfig"]["BlkioDeviceReadBps"] == [{"Path": disk.path, "Rate": 1 << 20}]


def test_less_memory_than_it_uses_is_refused_and_nothing_changes(engine: Engine, image: str, eventually: Any) -> None:
    container = engine.containers.run(
        ContainerSpec(image=image, command=("alloc", "64", "60000"), network="none", resources=Resources(memory=128 * MIB))
    )
    eventually(lambda: container.stats().memory > 60 * MIB)
    if not cgroups.layout().v1:
        pytest.skip("v2 kills instead")
    with pytest.raises(Conflict, match="cannot be limited to 20971520 bytes of memory"):
        container.update(memory=20 * MIB, memory_swap=20 * MIB)
    assert container.refresh().inspect()["HostConfig"]["Memory"] == 128 * MIB
    assert container.state is State.RUNNING


def test_a_parent_group(engine: Engine, image: str, eventually: Any) -> None:
    parent = f"/nacre-test-{os.getpid()}"
    try:
        container = start(engine, image, cgroup_parent=parent, resources=Resources(memory=64 * MIB))
        group = groups.Group(f"{parent}/{container.id}", container.id)
        assert container.record.pid in group.pids()
        assert group.limits()["memory"]["limit"] == 64 * MIB if cgroups.layout().v1 else True
        container.update(memory=32 * MIB)
        assert inside(container, "memory/memory.limit_in_bytes", "memory.max") == str(32 * MIB)
        container.pause()
        assert container.state is State.PAUSED
        container.unpause()
        assert container.stats().memory_limit == 32 * MIB
        assert container.inspect()["HostConfig"]["CgroupParent"] == parent
        container.remove(force=True)
        assert not group.exists
    finally:
        for path in Path("/sys/fs/cgroup").glob(f"*{parent}"):
            with contextlib.suppress(OSError):
                path.rmdir()


def test_the_command_line(cli: Cli, image: str) -> None:
    name = cli("run", "-d", "--network", "none", "-m", "64m", "--memory-swappiness", "10", image, "sleep").stdout.strip()
    assert cli("update", "--memory", "100m", "--cpus", "1", "--restart", "no", name).stdout == f"{name}\n"
    assert cli("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwappiness}}", name).stdout == f"{100 * MIB} 10\n"
    refused = cli("update", "--memory", "1m", name, code=1)
    assert "Minimum memory limit allowed is 6MB" in refused.stderr
    assert "you must provide one or more flags" in cli("update", name, code=125).stderr
    table = cli("stats", "--no-stream", name).stdout.splitlines()
    assert " ".join(table[0].split()) == "CONTAINER ID NAME CPU % MEM USAGE / LIMIT MEM % NET I/O BLOCK I/O PIDS"
    assert "100MiB" in table[1]
    assert table[1].split()[-1] == "1"
    warned = cli("run", "--rm", "--network", "none", "--oom-kill-disable", image, "true", code=None)
    assert "OOM killer is disabled" in warned.stderr or "memory.disableOOMKiller" in warned.stderr


def test_what_this_host_cannot_do_is_refused_before_anything_is_made(cli: Cli, image: str) -> None:
    before = cli("ps", "-aq").stdout
    refused = cli("run", "--network", "none", "--isolation", "vm", "-m", "64m", "--memory-swap", "128m", image, "true", code=125)
    assert "--memory-swap is not supported at level vm: a guest has no swap" in refused.stderr
    if cgroups.layout().v1:
        refused = cli("run", "--network", "none", "--cgroup-conf", "memory.high=1g", image, "true", code=125)
        assert "cannot set memory.high: it is a file of cgroup v2" in refused.stderr
    assert cli("ps", "-aq").stdout == before


# Groups in trouble


@pytest.fixture
def group() -> Iterator[groups.Group]:
    made = groups.Group(f"/nacre-test-{os.getpid()}-{time.monotonic_ns()}", "troubled")
    made.create({"pids": {"limit": 20}})
    yield made
    made.kill()
    made.remove()


def inhabitant(group: groups.Group) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "100"])
    for path in group.join:
        Path(path).write_text(f"{process.pid}\n")
    return process


def test_a_group_that_vanishes_under_its_processes(group: groups.Group) -> None:
    process = inhabitant(group)
    where = cgroups.layout()
    for controller, directory in group.existing().directories.items():
        top = where.v1.get(controller) or (where.named if controller == "name=systemd" else where.unified)
        with contextlib.suppress(FileNotFoundError):  # controllers that share a mount
            Path(top, "cgroup.procs").write_text(f"{process.pid}\n")
            os.rmdir(directory)
    with pytest.raises(HostError, match="the cgroup of troubled is gone") as caught:
        group.update({"pids": {"limit": 10}})
    assert "restart the container" in caught.value.hint
    assert group.pids() == ()
    assert group.sample().memory == 0
    group.kill()
    group.remove()
    process.kill()
    process.wait()


def test_a_frozen_group_can_be_killed_and_removed(group: groups.Group) -> None:
    process = inhabitant(group)
    group.freeze()
    group.kill(timeout=10)
    assert process.wait() == -signal.SIGKILL
    group.remove()
    assert not group.exists


def test_a_busy_group_is_removed_as_soon_as_it_can_be(group: groups.Group) -> None:
    process = inhabitant(group)
    with pytest.raises(HostError, match="is busy") as caught:
        group.remove(timeout=0.05)
    assert str(process.pid) in caught.value.hint
    with pytest.raises(Conflict, match="still has processes"):
        group.create({})
    assert group.pids() == (process.pid,)
    process.kill()
    process.wait()
    group.remove()
    assert not group.exists


def test_a_controller_that_is_not_there_leaves_nothing_behind() -> None:
    path = f"/nacre-test-{os.getpid()}-none"
    lacking = groups.Group(path, "none")
    with pytest.raises(Unsupported, match="rdma"):
        lacking.create({"rdma": {"mlx": {"hcaHandles": 1}}})
    assert not lacking.exists


def test_every_number_of_a_living_group(group: groups.Group) -> None:
    process = inhabitant(group)
    found = group.stats()
    assert found["pids"] == {"current": 1, "limit": 20}
    assert found["memory"]["usage"]["limit"] > 1 << 40
    assert found["cpu"]["usage"]["total"] >= 0
    assert set(found) == {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "rdma"}
    process.kill()
    process.wait()


# The real thing elsewhere


def test_limits_on_a_real_v2(cli: Cli, layouts: Callable[[str], Path], directories: Any, vm: Level, session_engine: Engine) -> None:
    """In a guest, whose kernel has cgroup v2 alone: the library itself, with this host's Python."""
    python, loader = Path("/usr/bin/python3").resolve(), next(Path("/usr/lib").glob("*/ld-linux-x86-64.so.2"), None)
    if not loader or not python.name.startswith("python3."):
        pytest.skip("no Python of the distribution")
    [image] = session_engine.images.list()[:1]
    source = Path(cgroups.__file__).parents[2]
    done = cli(
        *("run", "--rm", "--isolation", "vm", "--network", "none", "--privileged", "-e", "PYTHONDONTWRITEBYTECODE=1"),
        *("-e", "PYTHONHOME=/h", "-v", "/usr:/h:ro", "-v", f"{source}:/src:ro", "-v", f"{SCRIPT}:/script.py:ro", image.id),
        *(f"/h{str(loader).removeprefix('/usr')}", "--library-path", f"/h{str(loader.parent).removeprefix('/usr')}"),
        *(f"/h/bin/{python.name}", "-S", "/script.py", "/src"),
    )
    assert done.stdout.splitlines() == [
        "v2 cpu cpuset io memory pids",
        "memory.low=16777216 memory.max=67108864 memory.swap.max=0",
        "cpu.max=25000 50000 cpu.max.burst=1000 cpu.weight=59",
        "cpu.idle=1",
        "cpuset.cpus=0 cpuset.mems=0",
        "memory.high=49999872",
        "pids.max=20",
        "Unsupported: cannot set memory.swappiness on cgroup v2: v2 has vm.swappiness of the whole host",
        "kmsg refused, null allowed",
        "frozen",
        "memory.max=33554432 pids.max=max",
        "Conflict",
        "kmsg allowed after the update",
        "killed and gone",
    ]
