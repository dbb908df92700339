"""Groups made by a real systemd: booted in namespaces of its own over this host's files, on a cgroup v2 of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nacre.linux import cgroups

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMD = "/usr/lib/systemd/systemd"
# $1: an empty directory; $2: the repository; $3: where Python's packages are.
BOOT = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"; cd "$1"; mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root; cd root
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup
for name in run tmp dev; do mount -t tmpfs tmpfs $name; done
for name in null zero full random urandom tty kmsg; do touch dev/$name; mount --bind /dev/$name dev/$name; done
for path in "$2" "$3"; do mkdir -p ".$path"; mount --rbind "$path" ".$path"; done
printf '[Unit]\\nDefaultDependencies=no\\n' > etc/systemd/system/nacre-test.target
mkdir -p old; pivot_root . old; umount -l /old
exec env -i container=docker PATH=/usr/sbin:/usr/bin:/sbin:/bin {SYSTEMD} --unit=nacre-test.target --log-target=null --show-status=no
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[int]:
    """The process id of a systemd that is up."""
    where = cgroups.layout()
    if not os.path.exists(SYSTEMD) or not where.unified:
        pytest.skip("no systemd here" if where.unified else "no cgroup2 mount")
    handed_down = Path(where.unified, "cgroup.subtree_control")
    before = handed_down.read_text().split()
    with contextlib.suppress(OSError):
        handed_down.write_text("+hugetlb")
    top = Path(where.unified, f"nacre-test-{os.getpid()}")
    top.mkdir()
    own = next(line.split("::")[1] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    # Into the group before the namespace, whose top it becomes; out of it again, since the top must have no process.
    entered = f'echo $$ > {top}/cgroup.procs; exec unshare --mount --pid --fork --cgroup --ipc --uts --net --kill-child sh -c "$0" sh "$@"'
    process = subprocess.Popen(
        ["sh", "-c", entered, BOOT, str(tmp_path), str(REPOSITORY), sys.prefix], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        first = wait_for_child(process)
        Path(f"{where.unified}{own}", "cgroup.procs").write_text(str(process.pid))
        wait_until_running(process, first)
        yield first
    finally:
        process.kill()
        process.wait()
        end = time.monotonic() + 20
        while top.exists() and time.monotonic() < end:
            for path, _, _ in os.walk(top, topdown=False):  # what vanishes meanwhile is passed over
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        if "hugetlb" not in before:
            with contextlib.suppress(OSError):
                handed_down.write_text("-hugetlb")


def wait_for_child(process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        if children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            return int(children[0])
        time.sleep(0.01)
    pytest.skip("namespaces cannot be made here")


def wait_until_running(process: subprocess.Popen[bytes], first: int) -> None:
    end = time.monotonic() + 30
    state = ""
    while time.monotonic() < end and process.poll() is None:
        command = ["nsenter", "-t", str(first), "-a", "systemctl", "is-system-running"]
        state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if state in ("running", "degraded"):
            return
        time.sleep(0.05)
    assert process.stdout is not None
    process.kill()
    pytest.skip(f"systemd does not come up here: {state} {process.stdout.read().decode(errors='replace')[-500:]}")


def test_scopes_of_a_real_systemd(system: int) -> None:
    if "hugetlb" not in Path(cgroups.layout().unified, "cgroup.subtree_control").read_text().split():
        pytest.skip("no controller of cgroup v2 is free: the limits that are set here are those of huge pages")
    script = Path(__file__).parent / "systemd_groups.py"
    done = subprocess.run(
        ["nsenter", "-t", str(system), "-a", sys.executable, str(script), str(Path(cgroups.__file__).parents[2])],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    available = "hugetlb" in cgroups.layout().v2
    if not available:
        pytest.skip("the cgroup2 mount has no hugetlb controller to limit")
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "nacre-one.scope in /deep.slice/deep-er.slice/nacre-one.scope",
        "limit 4194304",
        "deep-er.slice yes",
        "Conflict",
        "frozen",
        "removed",
    ]
    assert lines[6] in ("ended by signal 15", "ended by signal 9")
    if "memory" not in cgroups.layout().v2:
        assert lines[7] == "Unsupported: cannot set memory limits: the memory controller is not available"
    assert lines[-1] == "nothing is left"
