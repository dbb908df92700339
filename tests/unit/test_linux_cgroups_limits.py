"""Limits as files: the OCI resources object on v1, v2 and hybrids, its conversions, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cgroup_trees
import pytest
from cgroup_trees import MOUNT_UNIFIED, MOUNTS_V1, detect, read, v2
from cgroup_trees import host as host

from nacre.errors import Conflict, HostError, InvalidArgument, Unsupported
from nacre.linux import cgroups, cgroups_limits, devices

MIB = 1 << 20
MORE_V1 = "".join(
    f"{50 + number} 31 0:{50 + number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(("cpuset", "hugetlb", "net_cls", "net_prio", "rdma"))
)


def on_v1(host: Path, limits: dict[str, Any]) -> cgroups.Cgroup:
    return cgroups.create("c1", limits, where=detect(host, MOUNTS_V1 + MORE_V1))


def on_v2(host: Path, limits: dict[str, Any], controllers: str = "cpuset cpu io memory hugetlb pids rdma") -> cgroups.Cgroup:
    return cgroups.create("c1", limits, where=v2(host, controllers), rules=None)


# (limits, {file on v1: text}, {file on v2: text}); None = refused there.
CASES: list[tuple[dict[str, Any], dict[str, str] | None, dict[str, str] | None]] = [
    (
        {"memory": {"limit": 64 * MIB, "swap": 96 * MIB, "reservation": 32 * MIB}},
        {
            "memory.limit_in_bytes": str(64 * MIB), "memory.memsw.limit_in_bytes": str(96 * MIB),
            "memory.soft_limit_in_bytes": str(32 * MIB),
        },
        {"memory.max": str(64 * MIB), "memory.swap.max": str(32 * MIB), "memory.low": str(32 * MIB)},
    ),
    ({"memory": {"limit": 64 * MIB, "swap": -1}}, {"memory.memsw.limit_in_bytes": "-1"}, {"memory.swap.max": "max"}),
    ({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}, {"memory.memsw.limit_in_bytes": str(64 * MIB)}, {"memory.swap.max": "0"}),
    ({"memory": {"limit": -1}}, {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1"}, {"memory.max": "max"}),
    ({"memory": {"swappiness": 0}}, {"memory.swappiness": "0"}, None),
    ({"memory": {"disableOOMKiller": True}}, {"memory.oom_control": "1"}, None),
    ({"memory": {"disableOOMKiller": False}}, {"memory.oom_control": ""}, {}),
    ({"cpu": {"shares": 512}}, {"cpu.shares": "512"}, {"cpu.weight": "59"}),
    ({"cpu": {"shares": 1}}, {"cpu.shares": "2"}, {"cpu.weight": "1"}),
    (
        {"cpu": {"quota": 50000, "period": 200000, "burst": 1000}},
        {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "200000", "cpu.cfs_burst_us": "1000"},
        {"cpu.max": "50000 200000", "cpu.max.burst": "1000"},
    ),
    ({"cpu": {"quota": 50000}}, {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": ""}, {"cpu.max": "50000 100000"}),
    ({"cpu": {"quota": -1}}, {}, {"cpu.max": "max 100000"}),
    ({"cpu": {"idle": 1}}, {"cpu.idle": "1"}, {"cpu.idle": "1"}),
    ({"cpu": {"realtimeRuntime": 5000, "realtimePeriod": 10000}}, {"cpu.rt_runtime_us": "5000", "cpu.rt_period_us": "10000"}, None),
    ({"cpu": {"cpus": "0-1,3", "mems": "0"}}, {"cpuset.cpus": "0-1,3", "cpuset.mems": "0"}, {"cpuset.cpus": "0-1,3", "cpuset.mems": "0"}),
    ({"pids": {"limit": 7}}, {"pids.max": "7"}, {"pids.max": "7"}),
    ({"pids": {"limit": -1}}, {"pids.max": "max"}, {"pids.max": "max"}),
    ({"pids": {"limit": 0}}, {"pids.max": ""}, {"pids.max": ""}),
    ({"blockIO": {"weight": 500}}, {"blkio.bfq.weight": "500"}, {"io.weight": "4950"}),
    (
        {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}},
        {"blkio.bfq.weight_device": "8:0 10"},
        {"io.weight": "8:0 1"},
    ),
    (
        {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 1000}]}},
        {"blkio.throttle.read_bps_device": "8:16 1000"},
        {"io.max": "8:16 rbps=1000"},
    ),
    (
        {"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}},
        {"blkio.throttle.write_iops_device": "8:16 0"},
        {"io.max": "8:16 wiops=max"},
    ),
    ({"blockIO": {"leafWeight": 20}}, None, None),
    (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]},
        {"hugetlb.2MB.limit_in_bytes": str(4 * MIB), "hugetlb.2MB.rsvd.limit_in_bytes": str(4 * MIB)},
        {"hugetlb.2MB.max": str(4 * MIB)},
    ),
    ({"hugepageLimits": [{"pageSize": "64KB", "limit": 1}]}, None, None),
    ({"network": {"classID": 1048577}}, {"net_cls.classid": "1048577"}, None),
    ({"network": {"priorities": [{"name": "eth0", "priority": 5}]}}, {"net_prio.ifpriomap": "eth0 5"}, None),
    (
        {"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}}},
        {"rdma.max": "mlx5_1 hca_handle=3 hca_object=10"},
        {"rdma.max": "mlx5_1 hca_handle=3 hca_object=10"},
    ),
    ({"unified": {"memory.high": "1000000"}}, None, {"memory.high": "1000000"}),
    ({"unified": {"misc.max": "res 1"}}, None, None),
    ({"memory": {"limit": None}, "cpu": {}, "pids": None, "unified": {}}, {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "files"), [(case[0], case[1]) for case in CASES if case[1] is not None], ids=str)
def test_on_v1(host: Path, limits: dict[str, Any], files: dict[str, str]) -> None:
    group = on_v1(host, limits)
    for name, text in files.items():
        controller = {"cpu": "cpu,cpuacct"}.get(name.partition(".")[0], name.partition(".")[0])
        assert read(host, f"{controller}/nacre/c1/{name}") == text, name
    assert set(group.v1) >= {"memory", "cpuacct", "pids", "freezer", "devices", "blkio"}


@pytest.mark.parametrize(("limits", "files"), [(case[0], case[2]) for case in CASES if case[2] is not None], ids=str)
def test_on_v2(host: Path, limits: dict[str, Any], files: dict[str, str]) -> None:
    on_v2(host, limits)
    for name, text in files.items():
        assert read(host, f"nacre/c1/{name}") == text, name


@pytest.mark.parametrize("limits", [case[0] for case in CASES if case[1] is None], ids=str)
def test_refused_on_v1(host: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as caught:
        on_v1(host, limits)
    assert caught.value.hint


@pytest.mark.parametrize("limits", [case[0] for case in CASES if case[2] is None], ids=str)
def test_refused_on_v2(host: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as caught:
        on_v2(host, limits)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory": {"limit": "64m"}}, r"memory\.limit: expected a whole number"),
        ({"memory": {"limit": True}}, "expected a whole number"),
        ({"memory": {"limit": -2}}, "out of range"),
        ({"memory": {"limit": 1 << 70}}, "out of range"),
        ({"memory": {"limit": 64 * MIB, "swap": 32 * MIB}}, "smaller than that of memory"),
        ({"memory": {"swappiness": 101}}, "0-100"),
        ({"memory": []}, "expected an object"),
        ({"cpu": {"idle": 2}}, "neither 0 nor 1"),
        ({"cpu": {"cpus": "0;1"}}, "is no list"),
        ({"cpu": {"shares": 1.5}}, "expected a whole number"),
        ({"blockIO": {"weight": 5}}, "10-1000"),
        ({"blockIO": {"weightDevice": {"major": 1}}}, "expected a list"),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "rate": 1}]}}, "needs major and minor"),
        ({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}, "no page size"),
        ({"rdma": {"mlx": 5}}, "expected an object"),
        ({"mystery": {}}, "no such kind of resource"),
    ],
)
def test_nonsense(host: Path, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        on_v1(host, limits)


@pytest.mark.parametrize("limits", [{"unified": {"../../x.y": "1"}}, {"unified": {"nodot": "1"}}, {"unified": {"memory.high": 5}}])
def test_unified_names_are_files_of_the_group(host: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="no file of a control group"):
        on_v2(host, limits)


def test_swap_without_memory_is_refused_on_v2_unless_memory_is_limited_already(host: Path) -> None:
    group = on_v2(host, {"memory": {"limit": 64 * MIB}})
    group.limit({"memory": {"swap": 100 * MIB}})
    assert read(host, "nacre/c1/memory.swap.max") == str(36 * MIB)
    (host / "sys/fs/cgroup/nacre/c1/memory.max").write_text("max\n")
    with pytest.raises(InvalidArgument, match="needs a limit of memory"):
        group.limit({"memory": {"swap": 100 * MIB}})


@pytest.mark.parametrize(
    ("shares", "weight"), [(1, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262143, 10000), (262144, 10000), (999999, 10000)]
)
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert cgroups_limits.weight_of_shares(shares) == weight


def test_block_weights_are_converted_linearly(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [cgroups_limits.io_weight(weight) for weight in (10, 500, 1000)] == [1, 4950, 10000]
    monkeypatch.setattr(cgroup_trees, "V2_FILES", cgroup_trees.V2_FILES + " io.bfq.weight")
    on_v2(host, {"blockIO": {"weight": 500}})
    assert read(host, "nacre/c1/io.bfq.weight") == "500"
    assert read(host, "nacre/c1/io.weight") == ""


def test_a_period_alone_keeps_the_quota_of_v2(host: Path) -> None:
    group = on_v2(host, {})
    (host / "sys/fs/cgroup/nacre/c1/cpu.max").write_text("30000 100000\n")
    group.limit({"cpu": {"period": 50000}})
    assert read(host, "nacre/c1/cpu.max") == "30000 50000"
    group.limit({"cpu": {"quota": 10000}})
    assert read(host, "nacre/c1/cpu.max") == "10000 50000"


def test_the_limit_with_swap_goes_first_when_both_rise(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = on_v1(host, {"memory": {"limit": 10 * MIB, "swap": 20 * MIB}})
    order: list[str] = []
    monkeypatch.setattr(cgroups, "put", lambda path, text: order.append(path.rpartition("/")[2]))
    group.limit({"memory": {"limit": 64 * MIB, "swap": 128 * MIB}})
    group.limit({"memory": {"limit": 4 * MIB, "swap": 8 * MIB}})
    names = ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    assert order == [*names, *reversed(names)]


def test_less_than_is_used_is_refused_when_asked(host: Path) -> None:
    group = on_v2(host, {})
    (host / "sys/fs/cgroup/nacre/c1/memory.current").write_text(f"{20 * MIB}\n")
    with pytest.raises(Conflict, match="uses 20971520 bytes"):
        group.limit({"memory": {"limit": 10 * MIB, "checkBeforeUpdate": True}})
    group.limit({"memory": {"limit": 10 * MIB}})
    assert read(host, "nacre/c1/memory.max") == str(10 * MIB)


@pytest.mark.parametrize(
    ("controllers", "limits", "message"),
    [
        ("memory", {"cpu": {"quota": 5000}}, "the cpu controller is not available"),
        ("cpu", {"memory": {"limit": 64 * MIB}}, "the memory controller is not available"),
        ("memory", {"pids": {"limit": 5}}, "the pids controller is not available"),
        ("memory", {"blockIO": {"weight": 50}}, "the io controller is not available"),
        ("memory", {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "the hugetlb controller is not available"),
    ],
)
def test_a_missing_controller_of_v2_is_named(host: Path, controllers: str, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message) as caught:
        on_v2(host, limits, controllers)
    assert "cgroup.controllers" in caught.value.hint


def test_a_controller_that_is_not_handed_down_is_named(host: Path) -> None:
    group = on_v2(host, {})
    (host / "sys/fs/cgroup/nacre/c1/cgroup.controllers").write_text("memory\n")
    with pytest.raises(Unsupported, match="the cpu controller is not handed down") as caught:
        group.limit({"cpu": {"shares": 5}})
    assert "Delegate=" in caught.value.hint


def test_a_missing_controller_of_v1_is_named(host: Path) -> None:
    with pytest.raises(Unsupported, match="the cpuset controller is not mounted") as caught:
        cgroups.create("c1", {"cpu": {"cpus": "0"}}, where=detect(host, MOUNTS_V1))
    assert "mount -t cgroup -o cpuset" in caught.value.hint


def test_lifting_what_cannot_exist_is_fine(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cgroup_trees.V1_FILES, "memory", "memory.limit_in_bytes")
    group = on_v1(host, {"memory": {"limit": 64 * MIB, "swap": -1, "kernel": -1}})
    with pytest.raises(Unsupported, match=r"cannot set memory\.memsw\.limit_in_bytes") as caught:
        group.limit({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}})
    assert "swapaccount=1" in caught.value.hint


def test_an_update_adds_the_controllers_it_needs(host: Path) -> None:
    where = detect(host, MOUNTS_V1 + MORE_V1)
    group = cgroups.create("c1", where=where)
    assert "cpuset" not in group.v1
    (host / "sys/fs/cgroup/pids/nacre/c1/cgroup.procs").write_text("41\n")
    group.limit({"cpu": {"cpus": "0"}})
    assert read(host, "cpuset/nacre/c1/cpuset.cpus") == "0"
    assert read(host, "cpuset/nacre/c1/cgroup.procs") == "41"
    assert "cpuset" in cgroups.find("c1", where=where).v1


def test_a_hybrid_uses_the_v2_controllers_that_v1_does_not_have(host: Path) -> None:
    where = detect(host, MOUNTS_V1 + MOUNT_UNIFIED, controllers="hugetlb")
    group = cgroups.create("c1", {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MIB}]}, where=where)
    assert read(host, "unified/nacre/c1/hugetlb.2MB.max") == str(2 * MIB)
    assert group.procs_paths()[-1].endswith("/unified/nacre/c1/cgroup.procs")


def test_v2_hands_down_what_is_asked_for(host: Path) -> None:
    on_v2(host, {"cpu": {"cpus": "0"}}, "cpuset cpu memory pids")
    assert set(read(host, "nacre/cgroup.subtree_control").split()) == {"+cpu", "+memory", "+pids", "+cpuset"}


def test_a_vanished_group_is_named(host: Path) -> None:
    group = on_v2(host, {})
    directory = host / "sys/fs/cgroup/nacre/c1"
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    with pytest.raises(HostError, match="the cgroup of c1 is gone") as caught:
        group.limit({"memory": {"limit": 64 * MIB}})
    assert "restart" in caught.value.hint
    with pytest.raises(HostError, match="the cgroup of c1 is gone"):
        group.freeze()
    assert group.pids() == ()
    group.remove()


def test_devices_are_restricted_on_v2_by_a_program(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[str] = []
    monkeypatch.setattr(devices, "restrict_v2", lambda directory, rules: attached.append(directory))
    group = cgroups.create("c1", {}, where=v2(host))
    assert attached == [f"{host}/sys/fs/cgroup/nacre/c1"]
    assert group.procs_paths() == (f"{host}/sys/fs/cgroup/nacre/c1/cgroup.procs",)
    assert group.oom_file().endswith("/nacre/c1/memory.events")
