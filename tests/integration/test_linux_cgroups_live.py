"""Control groups of this host with real processes: limits bite, freezing stops, killing kills, removing leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nacre.errors import Conflict, HostError, InvalidArgument
from nacre.linux import bpf, cgroups, cgroups_stats, devices

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    group = cgroups.find(name)
    group.kill()
    group.remove()
    assert not cgroups.find(name).pids()


def run(group: cgroups.Cgroup, body: Callable[[], int]) -> int:
    """Run `body` in a child inside the group; returns its wait status as an exit code (negative: signal)."""
    return os.waitstatus_to_exitcode(os.waitpid(start(group, body), 0)[1])


def start(group: cgroups.Cgroup, body: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        for path in group.procs_paths():
            with open(path, "w") as file:
                file.write("0")
        os._exit(body())
    finally:
        os._exit(99)


def sleeper() -> int:
    time.sleep(60)
    return 0


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "condition did not become true"
        time.sleep(0.005)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def oom_kills(path: str) -> int:
    return next(int(line.split()[1]) for line in read(path).splitlines() if line.startswith("oom_kill "))


def test_memory_limit_kills_and_is_counted(name: str) -> None:
    if not cgroups.layout().has("memory"):
        pytest.skip("no memory controller")
    group = cgroups.create(name, {"memory": {"limit": 16 * MIB}})
    assert oom_kills(group.oom_file()) == 0
    assert run(group, lambda: len(bytearray(8 * MIB)) and 0) == 0
    assert oom_kills(group.oom_file()) == 0
    assert run(group, lambda: len(bytearray(b"x" * (256 * MIB))) and 0) == -signal.SIGKILL
    assert oom_kills(group.oom_file()) == 1
    assert group.stats().memory_limit == 16 * MIB


def test_a_new_group_of_the_same_name_starts_with_clean_counters(name: str) -> None:
    group = cgroups.create(name, {"memory": {"limit": 16 * MIB}})
    assert run(group, lambda: len(bytearray(b"x" * (256 * MIB))) and 0) == -signal.SIGKILL
    assert oom_kills(cgroups.create(name).oom_file()) == 0
    assert cgroups.find(name).stats().memory_limit == 0


def test_pids_limit_stops_a_fork_bomb(name: str) -> None:
    group = cgroups.create(name, {"pids": {"limit": 5}})

    def bomb() -> int:
        for count in range(20):
            try:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            except OSError as error:
                return count if error.errno == errno.EAGAIN else 98
        return 97

    assert run(group, bomb) == 4
    assert len(group.pids()) == 4
    group.kill()
    assert group.pids() == ()


def test_cpu_quota_and_shares_are_set(name: str) -> None:
    group = cgroups.create(name, {"cpu": {"quota": 25000, "period": 100000, "shares": 512}})
    where = cgroups.layout()
    base = f"{where.v1['cpu']}/nacre/{name}" if "cpu" in where.v1 else f"{where.unified}/nacre/{name}"
    if "cpu" in where.v1:
        assert read(f"{base}/cpu.cfs_quota_us") == "25000\n"
        assert read(f"{base}/cpu.shares") == "512\n"
    else:
        assert read(f"{base}/cpu.max") == "25000 100000\n"
        assert read(f"{base}/cpu.weight") == "59\n"

    def throttled() -> bool:
        return int(next(line for line in read(f"{base}/cpu.stat").splitlines() if line.startswith("nr_throttled")).split()[1]) > 0

    def burn() -> int:
        end = time.monotonic() + 20  # a busy host may give it less than its share for a while
        while time.monotonic() < end and not throttled():
            for _ in range(100_000):
                pass
        return 0

    assert run(group, burn) == 0
    assert throttled()


def test_freeze_stops_and_thaw_continues(name: str) -> None:
    group = cgroups.create(name)
    reader, writer = os.pipe()

    def ticker() -> int:
        while True:
            os.write(writer, b".")
            time.sleep(0.001)

    pid = start(group, ticker)
    os.read(reader, 1)
    group.freeze()
    assert group.frozen()
    os.set_blocking(reader, False)
    while True:  # what was written before
        try:
            os.read(reader, 65536)
        except BlockingIOError:
            break
    time.sleep(0.02)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    group.freeze()  # twice is fine
    group.thaw()
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"."
    assert not group.frozen()
    group.kill()
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_kill_ends_a_frozen_group(name: str) -> None:
    group = cgroups.create(name)
    pid = start(group, sleeper)
    wait_for(lambda: group.pids() == (pid,))
    group.freeze()
    group.kill(timeout=5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_devices_outside_of_the_list_cannot_be_opened(name: str) -> None:
    group = cgroups.create(name)

    def body() -> int:
        with open("/dev/null", "wb") as file:
            file.write(b"x")
        with open("/dev/urandom", "rb") as file:
            file.read(1)
        node = f"/dev/nacre-{os.getpid()}"
        os.mknod(node, 0o600 | 0o060000, os.makedev(7, 250))  # making a node is permitted
        try:
            os.open(node, os.O_RDONLY)
        except PermissionError:
            return 0
        except OSError as error:
            return error.errno or 1
        finally:
            os.unlink(node)
        return 1

    assert run(group, body) == 0


def test_every_device_is_open_without_rules_and_named_ones_with(name: str) -> None:
    def opens() -> int:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
        return 0

    assert run(cgroups.create(name, rules=None), opens) == 0
    assert run(cgroups.create(name), opens) == 99
    extra = devices.rule_for("/dev/kmsg", "r")
    assert run(cgroups.create(name, rules=(*devices.DEFAULT_DEVICES, extra)), opens) == 0


def test_device_program_of_v2(name: str) -> None:
    unified = cgroups.layout().unified
    if not unified:
        pytest.skip("no cgroup2 mount")
    directory = f"{unified}/{name}"
    os.mkdir(directory)
    try:
        devices.restrict_v2(directory, (*devices.DEFAULT_DEVICES, devices.rule_for("/dev/kmsg", "r")))

        def tries(path: str, flags: int) -> int:
            pid = os.fork()
            if not pid:
                code = 99
                try:
                    with open(f"{directory}/cgroup.procs", "w") as file:
                        file.write("0")
                    os.open(path, flags | os.O_NONBLOCK)
                    code = 0
                except OSError as error:
                    code = error.errno or 98
                finally:
                    os._exit(code)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        assert tries("/dev/null", os.O_RDWR) == 0
        assert tries("/dev/ptmx", os.O_RDWR) == 0
        assert tries("/dev/kmsg", os.O_RDONLY) == 0
        assert tries("/dev/kmsg", os.O_RDWR) == errno.EPERM
        os.mknod(f"/dev/{name}", 0o600 | 0o060000, os.makedev(7, 250))
        assert tries(f"/dev/{name}", os.O_RDONLY) == errno.EPERM
        assert tries("/dev/random", os.O_RDONLY) == 0
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/dev/{name}")
        wait_for(lambda: cgroups._remove_tree(directory))


def test_v2_controllers_are_handed_down_and_other_processes_make_room(name: str) -> None:
    where = cgroups.layout()
    free = [controller for controller in where.v2 if controller not in where.v1]
    if not where.v1 or not free:
        pytest.skip("needs a hybrid host with a free v2 controller")
    root = f"{where.unified}/{name}"
    os.mkdir(root)
    before = read(f"{where.unified}/cgroup.subtree_control").split()
    with open(f"{where.unified}/cgroup.subtree_control", "w") as file:
        file.write(f"+{free[0]}")
    inner = where.replace(unified=root, v1={})
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    try:
        with open(f"{root}/cgroup.procs", "w") as file:
            file.write(str(pid))
        os.mkdir(f"{root}/nacre")
        os.mkdir(f"{root}/nacre/one")
        cgroups.enable(inner, f"{root}/nacre", free[:1])
        assert read(f"{root}/init/cgroup.procs") == f"{pid}\n"
        assert os.path.exists(f"{root}/nacre/one/{free[0]}.2MB.max") or free[0] != "hugetlb"
        assert free[0] in read(f"{root}/nacre/one/cgroup.controllers")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_for(lambda: cgroups._remove_tree(root))
        with open(f"{where.unified}/cgroup.subtree_control", "w") as file:
            file.write("" if free[0] in before else f"-{free[0]}")


def test_stats_count_what_a_process_used(name: str) -> None:
    group = cgroups.create(name, {"memory": {"limit": 128 * MIB}})
    reader, writer = os.pipe()

    def body() -> int:
        data = bytearray(b"x" * (32 * MIB))
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        os.write(writer, b"!")
        time.sleep(60)
        return len(data)

    start(group, body)
    os.read(reader, 1)
    stats = group.stats()
    assert 50_000_000 <= stats.cpu < 10_000_000_000
    assert 32 * MIB <= stats.memory < 128 * MIB
    assert (stats.memory_limit, stats.pids) == (128 * MIB, 1)
    assert stats.system_cpu > stats.cpu
    group.kill()
    os.wait()
    os.close(reader)
    os.close(writer)


def test_a_group_in_use_is_neither_replaced_nor_removed(name: str) -> None:
    group = cgroups.create(name)
    pid = start(group, sleeper)
    wait_for(lambda: group.pids() == (pid,))
    wait_for(lambda: all(str(pid) in read(path) for path in group.procs_paths()))
    with pytest.raises(Conflict, match="still has processes"):
        cgroups.create(name)
    with pytest.raises(HostError, match="busy") as caught:
        group.remove(timeout=0.01)
    assert str(pid) in caught.value.hint
    assert cgroups.find(name).pids() == (pid,)
    group.kill()
    os.waitpid(pid, 0)


def test_groups_below_the_group_belong_to_it(name: str) -> None:
    group = cgroups.create(name)
    below = [f"{os.path.dirname(path)}/below" for path in group.procs_paths()]
    for directory in below:
        os.mkdir(directory)
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    for directory in below:
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write(str(pid))
    wait_for(lambda: group.pids() == (pid,))
    group.kill()
    os.waitpid(pid, 0)
    group.remove()
    group.remove()
    assert not os.path.exists(os.path.dirname(group.procs_paths()[0]))


def test_a_failing_creation_leaves_nothing(name: str) -> None:
    with pytest.raises(InvalidArgument, match="out of range"):
        cgroups.create(name, {"memory": {"limit": 1 << 70}})
    with pytest.raises(HostError, match="cannot write"):
        cgroups.create(name, {"pids": {"limit": 1 << 62}})
    assert cgroups.find(name).procs_paths() == ()


V1_LIMITS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("memory", {"limit": 64 * MIB, "swap": 96 * MIB, "reservation": 32 * MIB, "swappiness": 10}, {}),
    ("memory", {"limit": 64 * MIB, "swap": -1}, {}),
    ("cpu", {"shares": 300, "quota": 25000, "period": 50000, "burst": 1000}, {}),
    ("cpu", {"quota": 5000, "period": 1000}, {}),
    ("cpu", {"idle": 1}, {}),
    ("cpu", {"cpus": "0", "mems": "0"}, {}),
    ("pids", {"limit": 9}, {}),
    ("pids", {"limit": -1}, {}),
    ("memory", {"limit": 10_000_000}, {"limit": 9_998_336}),  # whole pages
]


@pytest.mark.parametrize(("section", "given", "rounded"), V1_LIMITS, ids=str)
def test_what_is_set_is_in_force_on_v1(name: str, section: str, given: dict[str, Any], rounded: dict[str, Any]) -> None:
    if not {"memory", "cpu", "cpuset", "pids"} <= set(cgroups.layout().v1):
        pytest.skip("needs cgroup v1")
    group = cgroups.create(name, {section: given})
    found = cgroups_stats.limits(cgroups.find(name))[section]
    assert {key: found[key] for key in given} == {**given, **rounded}
    group.limit({section: given})  # once more is fine


def test_limits_rise_and_fall(name: str) -> None:
    if "memory" not in cgroups.layout().v1:
        pytest.skip("needs cgroup v1")
    group = cgroups.create(name, {"memory": {"limit": 64 * MIB, "swap": 128 * MIB}})
    for limit in (256, 16, 32, 8):
        group.limit({"memory": {"limit": limit * MIB, "swap": 2 * limit * MIB}})
        assert cgroups_stats.limits(group)["memory"]["swap"] == 2 * limit * MIB
    with pytest.raises(InvalidArgument, match="larger than the one of memory and swap"):
        group.limit({"memory": {"limit": 64 * MIB}})
    group.limit({"cpu": {"quota": 100_000, "period": 100_000, "burst": 50_000}})
    group.limit({"cpu": {"quota": 5_000, "period": 10_000, "burst": 1_000}})
    group.limit({"cpu": {"quota": 200_000, "period": 100_000, "burst": 90_000}})
    assert cgroups_stats.limits(cgroups.find(name))["cpu"]["burst"] == 90_000


@pytest.mark.parametrize(
    ("limits", "message", "hint"),
    [
        ({"memory": {"swap": 64 * MIB}}, "needs a limit of memory", "--memory"),
        ({"cpu": {"period": 5}}, "Invalid argument", "1000 to 1000000"),
        ({"cpu": {"cpus": "0-4000"}}, "there are 0", "lscpu"),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 254, "minor": 254, "rate": 5}]}}, "cannot write", "lsblk"),
    ],
)
def test_what_the_kernel_refuses_is_explained(name: str, limits: dict[str, Any], message: str, hint: str) -> None:
    if not {"memory", "cpu", "cpuset", "blkio"} <= set(cgroups.layout().v1):
        pytest.skip("needs cgroup v1")
    with pytest.raises((HostError, InvalidArgument), match=message) as caught:
        cgroups.create(name, limits)
    assert hint in caught.value.hint
    assert not cgroups.find(name).directories


def test_a_device_program_is_replaced(name: str) -> None:
    unified = cgroups.layout().unified
    if not unified:
        pytest.skip("no cgroup2 mount")
    directory = f"{unified}/{name}"
    os.mkdir(directory)
    group = os.open(directory, os.O_RDONLY)
    try:
        seen = []
        for rules in (devices.DEFAULT_DEVICES, devices.DEFAULT_DEVICES[:3], (devices.DeviceRule(kind="a", allow=False),)):
            devices.restrict_v2(directory, rules)
            seen.append(tuple(bpf.device_programs(group)))
        assert [len(programs) for programs in seen] == [1, 1, 1]
        assert len(set(seen)) == 3
        devices.restrict_v2(directory, (devices.DeviceRule(kind="a"),))
        assert bpf.device_programs(group) == []
    finally:
        os.close(group)
        os.rmdir(directory)
