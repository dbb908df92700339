"""Docker's rules for limits, and the objects that the levels work from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cgroup_trees import MOUNTS_V1, detect, v2
from cgroup_trees import host as host

from nacre.engine import update
from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation import limits, process
from nacre.linux.cgroups import Layout
from nacre.model.container import ContainerSpec, DeviceLimit, Level, Resources

MIB = 1 << 20


@pytest.fixture
def layout(host: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    where = v2(host)
    monkeypatch.setattr(process, "manageable", lambda directory="": where)
    return where


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"memory": 4 * MIB}, "Minimum memory limit allowed is 6MB"),
        ({"memory": -1}, "Minimum memory limit"),
        ({"memory": 1 << 63}, "too large"),
        ({"memory": 64 * MIB, "memory_swap": 32 * MIB}, "Minimum memoryswap limit should be larger than memory limit, see usage"),
        ({"memory_swap": 64 * MIB}, "You should always set the Memory limit when using Memoryswap limit, see usage"),
        ({"memory": 64 * MIB, "memory_swap": -2}, "invalid memory swap limit"),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        ({"memory_reservation": MIB}, "Minimum memory reservation allowed is 6MB"),
        ({"memory": 10 * MIB, "memory_reservation": 20 * MIB}, "Minimum memory limit can not be less than memory reservation limit"),
        ({"cpus": 0.001}, r"range of CPUs is from 0\.01 to \d+\.00, as there are only \d+ CPUs available"),
        ({"cpus": 4096.0}, "range of CPUs"),
        ({"cpus": -1.0}, "range of CPUs"),
        ({"cpus": 1.0, "cpu_period": 50000}, "Nano CPUs and CPU Period cannot both be set"),
        ({"cpus": 1.0, "cpu_quota": 50000}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"cpu_shares": -3}, "invalid cpu shares"),
        ({"cpu_period": 999}, "CPU cfs period can not be less than 1ms"),
        ({"cpu_quota": 999}, "CPU cfs quota can not be less than 1ms"),
        ({"cpu_rt_runtime": 20, "cpu_rt_period": 10}, "runtime cannot be higher than cpu real-time period"),
        ({"cpuset_cpus": "0-x"}, "Invalid value 0-x for cpuset cpus"),
        ({"cpuset_cpus": "3-1"}, "Invalid value 3-1 for cpuset cpus"),
        ({"cpuset_cpus": "60000"}, "Requested CPUs are not available - requested 60000, available: "),
        ({"cpuset_mems": "900"}, "Requested memory nodes are not available"),
        ({"pids": -2}, "invalid limit of processes"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"blkio_weight_device": (DeviceLimit(path="/dev/x", value=2000),)}, "Range of blkio weight is from 10 to 1000: /dev/x"),
        ({"device_read_bps": (DeviceLimit(path="/dev/null", value=1),)}, "is not a block device"),
        ({"device_read_bps": (DeviceLimit(path="/nowhere", value=1),)}, "cannot limit device /nowhere"),
        ({"unified": {"a/b.c": "1"}}, "invalid cgroup configuration"),
    ],
)
def test_senseless_limits(layout: Layout, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        limits.check(Resources(**asked))


def test_sensible_limits(layout: Layout) -> None:
    limits.check(Resources(memory=6 * MIB, cpus=0.01, cpu_shares=2, pids=-1, memory_swap=-1, cpuset_cpus="0", cpu_rt_runtime=-1))


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"memory": 64 * MIB, "memory_swap": 128 * MIB}, "--memory-swap"),
        ({"memory_swappiness": 10}, "--memory-swappiness"),
        ({"oom_kill_disable": True}, "--oom-kill-disable"),
        ({"cpu_rt_runtime": 10}, "--cpu-rt-period"),
    ],
)
def test_what_a_guest_cannot_have(layout: Layout, asked: dict[str, Any], flag: str) -> None:
    with pytest.raises(Unsupported, match=flag) as caught:
        limits.check(Resources(**asked), Level.VM)
    assert "--isolation process" in caught.value.hint


def test_a_host_without_the_controller_refuses_before_anything_is_made(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = v2(host, "memory")
    monkeypatch.setattr(process, "manageable", lambda directory="": where)
    with pytest.raises(Unsupported, match="the cpu controller is not available"):
        limits.check(Resources(cpus=0.5))
    limits.check(Resources(memory=64 * MIB))


def test_files_of_v2_are_refused_on_v1(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = detect(host, MOUNTS_V1)
    monkeypatch.setattr(process, "manageable", lambda directory="": where)
    with pytest.raises(Unsupported, match=r"cannot set memory\.high: it is a file of cgroup v2, and this host has v1"):
        limits.check(Resources(unified={"memory.high": "1"}))


def test_the_object_of_a_container(layout: Layout) -> None:
    asked = Resources(memory=64 * MIB, cpus=0.25, cpu_shares=512, cpuset_cpus="0", pids=9, unified={"memory.high": "5"})
    assert limits.resources_object(asked, layout) == {
        "memory": {"limit": 64 * MIB, "swap": 128 * MIB},
        "cpu": {"quota": 25000, "period": 100000, "shares": 512, "cpus": "0"},
        "pids": {"limit": 9},
        "unified": {"memory.high": "5"},
    }
    assert limits.resources_object(Resources(), layout) == {}


def test_swap_is_limited_unasked_only_where_it_can_be(host: Path) -> None:
    where = detect(host, MOUNTS_V1)
    asked = Resources(memory=64 * MIB)
    assert limits.resources_object(asked, where)["memory"] == {"limit": 64 * MIB}
    (host / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").write_text("")
    assert limits.resources_object(asked, where)["memory"] == {"limit": 64 * MIB, "swap": 128 * MIB}
    assert limits.resources_object(asked.replace(memory_swap=-1), where)["memory"]["swap"] == -1


def test_the_parts_of_a_virtual_machine() -> None:
    asked = Resources(memory=64 * MIB, memory_reservation=32 * MIB, cpus=1.5, cpuset_cpus="0", pids=9, unified={"io.weight": "50"})
    assert limits.host_object(asked) == {"cpu": {"quota": 150000, "period": 100000, "cpus": "0"}}
    assert limits.guest_files(asked) == [
        ("memory.max", str(64 * MIB)), ("memory.swap.max", "0"), ("memory.low", str(32 * MIB)), ("pids.max", "9"), ("io.weight", "50"),
    ]  # fmt: skip
    assert limits.guest_files(Resources(pids=-1)) == [("pids.max", "max")]


# Changing them


def spec(**asked: Any) -> ContainerSpec:
    return ContainerSpec(image="box", resources=Resources(**asked))


def test_a_change_keeps_the_rest(layout: Layout) -> None:
    before = spec(memory=64 * MIB, pids=5, unified={"memory.high": "1", "memory.low": "2"})
    after = update.merged(before, {"memory": 128 * MIB, "unified": {"memory.high": "3"}})
    assert after == Resources(memory=128 * MIB, pids=5, unified={"memory.high": "3", "memory.low": "2"})
    assert update.recorded(after.replace(pids=-1, cpu_quota=-1)) == after.replace(pids=0)


@pytest.mark.parametrize(
    ("before", "changed", "message"),
    [
        ({"cpus": 1.0}, {"cpu_quota": 50000}, "NanoCPUs has already been set"),
        ({"cpu_quota": 50000}, {"cpus": 1.0}, "CPU Quota or Period has already been set"),
        ({"memory": 64 * MIB, "memory_swap": 80 * MIB}, {"memory": 100 * MIB}, "update the memoryswap at the same time"),
        ({}, {"memory": 1}, "Minimum memory limit"),
        ({}, {"colour": 1}, "unknown limit 'colour'"),
    ],
)
def test_changes_that_are_refused(layout: Layout, before: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        update.merged(spec(**before), changed)


def test_what_is_unwise_is_told() -> None:
    assert limits.warnings(Resources(memory=64 * MIB, oom_kill_disable=True)) == []
    assert "OOM killer is disabled" in limits.warnings(Resources(oom_kill_disable=True))[0]


def test_what_a_host_supports(host: Path) -> None:
    found = limits.supported(v2(host, "cpu memory"))
    assert {flag for flag, there in found.items() if there} == {
        "memory", "memory-swap", "memory-reservation", "cpu-shares", "cpus", "cgroup-conf",
    }  # fmt: skip


def test_what_an_old_host_supports(host: Path) -> None:
    where = detect(host, MOUNTS_V1)
    for path in ("memory/memory.memsw.limit_in_bytes", "memory/memory.swappiness", "cpu,cpuacct/any/cpu.cfs_quota_us"):
        (host / "sys/fs/cgroup" / path).parent.mkdir(exist_ok=True)
        (host / "sys/fs/cgroup" / path).write_text("")
    found = limits.supported(where)
    assert {flag for flag, there in found.items() if there} == {
        "memory", "memory-swap", "memory-swappiness", "cpu-shares", "cpus", "pids-limit",
    }  # fmt: skip
