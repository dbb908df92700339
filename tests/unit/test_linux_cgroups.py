"""Every layout of control groups as a tree in a temporary directory: what is detected, made, written and read there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nacre.errors import HostError, InvalidArgument, NoSpace, Unsupported
from nacre.linux import cgroups, devices
from nacre.linux.cgroups import Layout
from nacre.model.container import Resources

MIB = 1 << 20

V1_FILES = {
    "memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.oom_control memory.usage_in_bytes memory.stat",
    "cpu": "cpu.cfs_quota_us cpu.cfs_period_us cpu.shares",
    "cpuacct": "cpuacct.usage",
    "pids": "pids.max pids.current",
    "freezer": "freezer.state",
    "devices": "devices.allow devices.deny",
    "blkio": "blkio.throttle.io_service_bytes_recursive blkio.bfq.io_service_bytes_recursive",
}
V2_FILES = """memory.max memory.swap.max memory.current memory.stat memory.events cpu.max cpu.weight cpu.stat pids.max pids.current
    io.stat cgroup.freeze cgroup.events cgroup.kill cgroup.subtree_control"""

MOUNTS_V1 = """\
22 1 0:5 / /proc rw - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,seclabel,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw shared:1 master:2 - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
35 31 0:32 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
38 31 0:35 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
MOUNT_UNIFIED = "39 31 0:36 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
MOUNTS_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root. Making a group in it fills in the files that the kernel would show."""

    def make(path: str) -> None:
        os.makedirs(path)
        mount = path.split("/sys/fs/cgroup/")[1].split("/")[0].split(",")
        names = " ".join(V1_FILES.get(part, "") for part in mount) if mount[0] not in ("nacre", "unified") else V2_FILES
        for name in ("cgroup.procs", *names.split()):
            (Path(path) / name).write_text("")

    monkeypatch.setattr(cgroups, "_make_directory", make)
    return tmp_path


def detect(host: Path, mounts: str, *, controllers: str = "", systemd: bool = False) -> Layout:
    (host / "proc/self").mkdir(parents=True)
    (host / "proc/self/mountinfo").write_text(mounts)
    for line in mounts.splitlines():
        point = host / line.split()[4][1:]
        point.mkdir(parents=True, exist_ok=True)
        if " cgroup2 " in line:
            (point / "cgroup.controllers").write_text(controllers + "\n")
            (point / "cgroup.subtree_control").write_text("")
            (point / "nacre").mkdir()
            (point / "nacre/cgroup.subtree_control").write_text("")
    if systemd:
        (host / "run/systemd/system").mkdir(parents=True)
    return cgroups.layout(str(host))


def v2(host: Path, controllers: str = "cpuset cpu io memory hugetlb pids rdma") -> Layout:
    return detect(host, MOUNTS_V2, controllers=controllers, systemd=True)


def read(host: Path, path: str) -> str:
    return (host / "sys/fs/cgroup" / path).read_text()


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


# Limits


def test_limits_on_v1(host: Path) -> None:
    where = detect(host, MOUNTS_V1)
    group = cgroups.create("c1", Resources(memory=64 * MIB, cpus=1.0, cpu_shares=512, pids=7), where=where)
    assert read(host, "memory/nacre/c1/memory.limit_in_bytes") == str(64 * MIB)
    assert read(host, "memory/nacre/c1/memory.memsw.limit_in_bytes") == str(128 * MIB)
    assert read(host, "cpu,cpuacct/nacre/c1/cpu.cfs_quota_us") == "100000"
    assert read(host, "cpu,cpuacct/nacre/c1/cpu.cfs_period_us") == "100000"
    assert read(host, "cpu,cpuacct/nacre/c1/cpu.shares") == "512"
    assert read(host, "pids/nacre/c1/pids.max") == "7"
    assert read(host, "devices/nacre/c1/devices.deny") == "a"
    assert group.oom_file() == f"{host}/sys/fs/cgroup/memory/nacre/c1/memory.oom_control"
    assert group.warnings == []


def test_limits_on_v2(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[str] = []
    monkeypatch.setattr(devices, "attach", lambda directory, rules: attached.append(directory))
    group = cgroups.create("c1", Resources(memory=64 * MIB, cpus=0.5, cpu_shares=1024, pids=7), where=v2(host))
    assert read(host, "nacre/c1/memory.max") == str(64 * MIB)
    assert read(host, "nacre/c1/memory.swap.max") == str(64 * MIB)
    assert read(host, "nacre/c1/cpu.max") == "50000 100000"
    assert read(host, "nacre/c1/cpu.weight") == "39"
    assert read(host, "nacre/c1/pids.max") == "7"
    assert attached == [f"{host}/sys/fs/cgroup/nacre/c1"]
    assert group.procs_paths() == (f"{host}/sys/fs/cgroup/nacre/c1/cgroup.procs",)
    assert group.oom_file().endswith("/nacre/c1/memory.events")


def test_v2_hands_controllers_down(host: Path) -> None:
    cgroups.create("c1", where=v2(host, "cpu memory pids"), rules=None)
    assert read(host, "cgroup.subtree_control") == "+cpu +memory +pids"
    assert read(host, "nacre/cgroup.subtree_control") == "+cpu +memory +pids"


def test_v2_does_not_enable_twice(host: Path) -> None:
    where = v2(host, "cpu memory")
    (host / "sys/fs/cgroup/cgroup.subtree_control").write_text("cpu memory")
    (host / "sys/fs/cgroup/nacre/cgroup.subtree_control").write_text("memory")
    cgroups.create("c1", where=where, rules=None)
    assert read(host, "cgroup.subtree_control") == "cpu memory"
    assert read(host, "nacre/cgroup.subtree_control").startswith("+cpu")


@pytest.mark.parametrize(("shares", "weight"), [(1, 1), (2, 1), (1024, 39), (262144, 10000), (999999, 10000)])
def test_shares_become_weights(host: Path, shares: int, weight: int) -> None:
    cgroups.create("c1", Resources(cpu_shares=shares), where=v2(host), rules=None)
    assert read(host, "nacre/c1/cpu.weight") == str(weight)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(memory=4 * MIB), "Minimum memory limit allowed is 6MB"),
        (Resources(memory=-1), "Minimum memory limit"),
        (Resources(memory=1 << 63), "too large"),
        (Resources(cpus=0.001), r"range of CPUs is from 0\.01 to \d+\.00, as there are only \d+ CPUs available"),
        (Resources(cpus=4096.0), "range of CPUs"),
        (Resources(cpus=-1.0), "range of CPUs"),
        (Resources(cpu_shares=-3), "invalid cpu shares"),
    ],
)
def test_senseless_limits(resources: Resources, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        cgroups.check(resources)


def test_sensible_limits() -> None:
    cgroups.check(Resources(memory=6 * MIB, cpus=0.01, cpu_shares=2, pids=-1))


def test_limits_the_kernel_lacks_become_warnings(host: Path) -> None:
    group = cgroups.create("c1", Resources(memory=64 * MIB, cpu_shares=5, pids=7), where=v2(host, "cpuset"), rules=None)
    assert group.warnings == [
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
        "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
        "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
    ]
    assert group.oom_file() == ""


def test_a_processor_limit_that_cannot_be_kept_is_an_error_and_leaves_nothing(host: Path) -> None:
    with pytest.raises(Unsupported, match="NanoCPUs can not be set"):
        cgroups.create("c1", Resources(cpus=0.5), where=v2(host, "memory"), rules=None)


def test_no_swap_accounting(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(V1_FILES, "memory", "memory.limit_in_bytes")
    group = cgroups.create("c1", Resources(memory=64 * MIB), where=detect(host, MOUNTS_V1))
    assert group.warnings == [
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."
    ]


def test_errors_name_the_way_out(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = detect(host, MOUNTS_V1)

    def refuse(code: int) -> None:
        def make(path: str) -> None:
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
    cgroups.create("c1", Resources(), where=where)
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
    monkeypatch.setattr(cgroups, "_read", texts.get)
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


# Devices


def evaluate(program: bytes, access: str, kind: str, major: int, minor: int) -> int:
    """Run the eBPF program: the few instructions that it is made of."""
    import struct

    context = [{"m": 1, "r": 2, "w": 4}[letter] for letter in access]
    memory = {0: sum(context) << 16 | {"b": 1, "c": 2}[kind], 4: major, 8: minor}
    registers, at = [0] * 11, 0
    code = list(struct.iter_unpack("<BBhi", program))
    while True:
        opcode, pair, offset, value = code[at]
        dst, src = pair & 15, pair >> 4
        at += 1
        if opcode == 0x95:
            return registers[0]
        if opcode in (0x55, 0x45):
            taken = registers[dst] != value if opcode == 0x55 else bool(registers[dst] & value)
            at += offset if taken else 0
            continue
        registers[dst] = {
            0x61: memory.get(offset, 0),
            0xBF: registers[src],
            0x57: registers[dst] & value,
            0x77: registers[dst] >> max(value, 0),
            0xB7: value,
        }[opcode]


@pytest.mark.parametrize(
    ("access", "kind", "major", "minor", "allowed"),
    [
        ("rw", "c", 1, 3, 1),
        ("rwm", "c", 1, 9, 1),
        ("r", "c", 1, 1, 0),  # /dev/mem
        ("m", "c", 1, 1, 1),
        ("m", "b", 8, 0, 1),
        ("r", "b", 8, 0, 0),
        ("rm", "b", 8, 0, 0),
        ("rw", "c", 136, 7, 1),
        ("r", "b", 136, 7, 0),
        ("r", "b", 1, 3, 0),
    ],
)
def test_default_device_program(access: str, kind: str, major: int, minor: int, allowed: int) -> None:
    assert evaluate(devices.program(devices.DEFAULT_DEVICES), access, kind, major, minor) == allowed


def test_device_rules_as_text() -> None:
    assert [str(rule) for rule in devices.DEFAULT_DEVICES[:3]] == ["c *:* m", "b *:* m", "c 1:3 rwm"]
    assert str(devices.rule_for("/dev/null", "r")) == "c 1:3 r"


@pytest.mark.parametrize(
    ("path", "access", "message"), [("/nowhere", "r", "cannot use device"), ("/etc", "r", "not a device"), ("/dev/null", "x", "invalid")]
)
def test_bad_devices(path: str, access: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        devices.rule_for(path, access)
