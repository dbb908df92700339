"""Trees of control group files in a temporary directory, as the kernel would show them: every layout a host may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nacre.linux import cgroups
from nacre.linux.cgroups import Layout

V1_FILES = {
    "memory": """memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.oom_control memory.usage_in_bytes
        memory.stat memory.swappiness""",
    "cpu": "cpu.cfs_quota_us cpu.cfs_period_us cpu.cfs_burst_us cpu.shares cpu.idle cpu.rt_period_us cpu.rt_runtime_us",
    "cpuacct": "cpuacct.usage",
    "cpuset": "cpuset.cpus cpuset.mems",
    "pids": "pids.max pids.current",
    "freezer": "freezer.state",
    "devices": "devices.allow devices.deny",
    "blkio": """blkio.throttle.io_service_bytes_recursive blkio.bfq.io_service_bytes_recursive blkio.bfq.weight blkio.bfq.weight_device
        blkio.throttle.read_bps_device blkio.throttle.write_bps_device blkio.throttle.read_iops_device
        blkio.throttle.write_iops_device""",
    "hugetlb": "hugetlb.2MB.limit_in_bytes hugetlb.2MB.rsvd.limit_in_bytes",
    "net_cls": "net_cls.classid",
    "net_prio": "net_prio.ifpriomap",
    "rdma": "rdma.max",
}
V2_FILES = """memory.max memory.swap.max memory.low memory.high memory.current memory.stat memory.events cpu.max cpu.max.burst cpu.weight
    cpu.idle cpu.stat cpuset.cpus cpuset.mems pids.max pids.current io.stat io.max io.weight rdma.max hugetlb.2MB.max
    cgroup.freeze cgroup.events cgroup.kill cgroup.subtree_control"""

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

    def make(path: str, *, fresh: bool = True) -> None:
        os.makedirs(path)
        mount = path.split("/sys/fs/cgroup/")[1].split("/")[0].split(",")
        names = " ".join(V1_FILES[part] for part in mount) if mount[0] in V1_FILES else "" if mount[0] == "systemd" else V2_FILES
        for name in ("cgroup.procs", *names.split()):
            (Path(path) / name).write_text("")
            if name.startswith("cpuset.") and mount == ["cpuset"]:
                (Path(path).parent / name).write_text("0-7\n")

    def put(path: str, text: str) -> None:
        # Control files take each write as a whole; the one of controllers adds to what it has.
        before = Path(path).read_text() + " " if path.endswith("subtree_control") else ""
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, (before + text).strip().encode())
        os.close(fd)

    monkeypatch.setattr(cgroups, "_make_directory", make)
    monkeypatch.setattr(cgroups, "put", put)
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
