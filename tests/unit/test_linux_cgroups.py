"""Every layout of control groups as a tree in a temporary directory: what is detected, made, written and read there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cgroup_trees import MOUNT_UNIFIED, MOUNTS_V1, detect, read, v2
from cgroup_trees import host as host

from nacre.errors import HostError, InvalidArgument, NoSpace, Unsupported
from nacre.linux import cgroups

# Detection


def test_v1(host: Path) -> None:
    where = detect(host, MOUNTS_V1)
    assert where.kind == "v1"
    assert {key: os.path.basename(path) for key, path in where.v1.items()} == {
        "cpu": "cpu,cpuacct", "cpuacct": "cpu,cpuacct", "memory": "memory", "pids": "pids", "freezer": "freezer", "devices": "devices",
        "blkio": "blkio",
    }  # fmt: skip
    assert where.track == ()
    assert where.has("memory")
    assert not where.has("cpuset")


def test_hybrid_follows_systemd_only_where_it_runs(host: Path) -> None:
    where = detect(host, MOUNTS_V1 + MOUNT_UNIFIED, systemd=True)
    assert where.kind == "hybrid"
    assert [os.path.basename(path) for path in where.track] == ["systemd", "unified"]
    group = cgroups.create("c1", where=where)
    joined = [path.split("/sys/fs/cgroup/")[1] for path in group.procs_paths()]
    assert joined[-2:] == ["systemd/nacre/c1/tasks", "unified/nacre/c1/cgroup.procs"]
    assert sorted(path.split("/")[0] for path in joined[:-2]) == ["blkio", "cpu,cpuacct", "devices", "freezer", "memory", "pids"]


def test_hybrid_without_systemd_leaves_the_unified_hierarchy_alone(host: Path) -> None:
    where = detect(host, MOUNTS_V1 + MOUNT_UNIFIED, controllers="hugetlb")
    joined = [path.split("/sys/fs/cgroup/")[1] for path in cgroups.create("c1", where=where).procs_paths()]
    assert not any(path.startswith(("unified", "systemd")) for path in joined)


def test_v2_layout(host: Path) -> None:
    where = v2(host)
    assert where.kind == "v2"
    assert [where.has(name) for name in ("memory", "freezer", "devices", "cpuacct", "blkio", "perf_event")] == [True] * 5 + [False]


def test_mounts_elsewhere_come_second_and_names_are_unescaped(host: Path) -> None:
    other = "10 1 0:9 / /var/a\\040b/memory rw - cgroup cgroup rw,memory\n"
    assert detect(host, other + MOUNTS_V1).v1["memory"] == f"{host}/sys/fs/cgroup/memory"
    assert cgroups._unescape("/a\\040b\\134c") == "/a b\\c"


def test_nothing_mounted(host: Path) -> None:
    where = detect(host, "22 1 0:5 / /proc rw - proc proc rw\n")
    assert where.kind == "none"
    with pytest.raises(Unsupported, match="no control groups are mounted"):
        cgroups.create("c1", where=where)


def test_errors_name_the_way_out(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = detect(host, MOUNTS_V1)

    def refuse(code: int) -> None:
        def make(path: str, *, fresh: bool = True) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(cgroups, "_make_directory", make)

    refuse(30)
    with pytest.raises(HostError, match=r"cannot create cgroup .*Read-only file system") as caught:
        cgroups.create("c1", where=where)
    assert "writable" in caught.value.hint
    refuse(28)
    with pytest.raises(NoSpace):
        cgroups.create("c1", where=where)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".x"])
def test_names_stay_inside(host: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid cgroup name"):
        cgroups.create(name, where=v2(host))


# State and numbers


def test_find_sees_what_exists(host: Path) -> None:
    where = detect(host, MOUNTS_V1)
    assert cgroups.find("c1", where=where).procs_paths() == ()
    cgroups.create("c1", where=where)
    assert len(cgroups.find("c1", where=where).procs_paths()) == 6


def test_a_second_process_follows_the_main_one(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = cgroups.create("c1", where=v2(host), rules=None)
    scope = host / "sys/fs/cgroup/nacre/c1/init.scope"
    scope.mkdir()
    texts = {
        "/proc/5/cgroup": "0::/nacre/c1/init.scope\n",
        "/proc/6/cgroup": "0::/nacre/c10/x\n",
        "/proc/7/cgroup": "0::/nacre/c1/../../x\n",
    }
    monkeypatch.setattr(cgroups, "read", texts.get)
    assert group.procs_paths(5) == (f"{scope}/cgroup.procs",)
    for pid in (0, 6, 7, 8):
        assert group.procs_paths(pid) == (f"{scope.parent}/cgroup.procs",)


def test_stats_on_v1(host: Path) -> None:
    group = cgroups.create("c1", where=detect(host, MOUNTS_V1))
    base = host / "sys/fs/cgroup"
    (base / "memory/nacre/c1/memory.usage_in_bytes").write_text("1000\n")
    (base / "memory/nacre/c1/memory.stat").write_text("inactive_file 7\ntotal_inactive_file 300\n")
    (base / "memory/nacre/c1/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (base / "cpu,cpuacct/nacre/c1/cpuacct.usage").write_text("12345\n")
    (base / "pids/nacre/c1/pids.current").write_text("3\n")
    (base / "blkio/nacre/c1/blkio.throttle.io_service_bytes_recursive").write_text(
        "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:16 Read 1\n8:16 Write 2\nTotal 33\n"
    )
    stats = group.stats()
    assert (stats.cpu, stats.memory, stats.memory_limit, stats.pids, stats.read, stats.write) == (12345, 700, 0, 3, 11, 22)


def test_stats_on_v2(host: Path) -> None:
    group = cgroups.create("c1", where=v2(host), rules=None)
    base = host / "sys/fs/cgroup/nacre/c1"
    for name, text in {
        "memory.current": "1000\n",
        "memory.stat": "anon 5\ninactive_file 300\n",
        "memory.max": "6291456\n",
        "cpu.stat": "usage_usec 12\nuser_usec 3\n",
        "pids.current": "3\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n",
    }.items():
        (base / name).write_text(text)
    stats = group.stats()
    assert (stats.cpu, stats.memory, stats.memory_limit, stats.pids, stats.read, stats.write) == (12000, 700, 6291456, 3, 11, 22)
    (base / "memory.max").write_text("max\n")
    assert group.stats().memory_limit == 0


def test_stats_of_a_group_that_is_gone(host: Path) -> None:
    stats = cgroups.find("gone", where=v2(host)).stats()
    assert (stats.cpu, stats.memory, stats.pids) == (0, 0, 0)


def test_freezing_on_v2_waits_for_the_event(host: Path) -> None:
    group = cgroups.create("c1", where=v2(host), rules=None)
    base = host / "sys/fs/cgroup/nacre/c1"
    (base / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    group.freeze()
    assert (base / "cgroup.freeze").read_text() == "1"
    group.thaw()
    assert (base / "cgroup.freeze").read_text().startswith("0")
    (base / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(HostError, match="could not be paused"):
        group.freeze(timeout=0)
    assert (base / "cgroup.freeze").read_text().startswith("0")


def test_killing_on_v2_uses_the_kernels_own_way(host: Path) -> None:
    group = cgroups.create("c1", where=v2(host), rules=None)
    group.kill(timeout=0)
    assert read(host, "nacre/c1/cgroup.kill") == ""  # nothing to kill
    (host / "sys/fs/cgroup/nacre/c1/cgroup.procs").write_text("0\n")  # a process outside of our PID namespace
    with pytest.raises(HostError, match="do not end: 0"):
        group.kill(timeout=0)
    assert read(host, "nacre/c1/cgroup.kill") == "1"


def test_pids_come_from_the_whole_tree(host: Path) -> None:
    group = cgroups.create("c1", where=v2(host), rules=None)
    below = host / "sys/fs/cgroup/nacre/c1/a/b"
    below.mkdir(parents=True)
    (below / "cgroup.procs").write_text("30\n4\n")
    (below.parents[1] / "cgroup.procs").write_text("5\n")
    assert group.pids() == (4, 5, 30)


def test_removal_takes_the_tree_and_may_be_repeated(host: Path) -> None:
    where = v2(host)
    top = host / "sys/fs/cgroup/nacre/c1"
    (top / "a/b").mkdir(parents=True)
    (top / "c").mkdir()
    group = cgroups.find("c1", where=where)
    group.remove()
    group.remove()
    assert not top.exists()
