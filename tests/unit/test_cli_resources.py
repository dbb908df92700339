"""The flags of limits: what they make, what is refused, and how `update` reads them."""

from __future__ import annotations

import pytest

from nacre.cli.commands.run import COMMANDS as RUN
from nacre.cli.commands.update import COMMANDS as UPDATE
from nacre.cli.flags import UsageError
from nacre.cli.resources import changes
from nacre.cli.spec import container_spec
from nacre.errors import NacreError, Unsupported
from nacre.model.container import ContainerSpec, DeviceLimit, Resources


def spec(*argv: str) -> ContainerSpec:
    args = RUN["run"].parse("run", [*argv, "box"])
    assert args is not None
    return container_spec(args, args.rest[0], args.rest[1:])


def resources(*argv: str) -> Resources:
    return spec(*argv).resources


def test_every_flag() -> None:
    made = resources(
        *("--memory", "64m", "--memory-swap", "128m", "--memory-reservation", "32m", "--memory-swappiness", "0", "--oom-kill-disable"),
        *("--cpu-shares", "512", "--cpu-period", "50000", "--cpu-quota", "25000", "--cpu-rt-period", "10000", "--cpu-rt-runtime", "1000"),
        *("--cpuset-cpus", "0-1", "--cpuset-mems", "0", "--pids-limit", "9", "--blkio-weight", "300"),
        *("--blkio-weight-device", "/dev/vda:400", "--device-read-bps", "/dev/vda:1mb", "--device-write-bps", "/dev/vda:2k"),
        *("--device-read-iops", "/dev/vda:100", "--device-write-iops", "/dev/vdb:7", "--device-write-iops", "/dev/vda:8"),
        *("--cgroup-conf", "memory.high=1000", "--cgroup-conf", "io.max=8:0 rbps=5"),
    )
    assert made == Resources(
        memory=64 << 20, memory_swap=128 << 20, memory_reservation=32 << 20, memory_swappiness=0, oom_kill_disable=True, cpu_shares=512,
        cpu_period=50000, cpu_quota=25000, cpu_rt_period=10000, cpu_rt_runtime=1000, cpuset_cpus="0-1", cpuset_mems="0", pids=9,
        blkio_weight=300, blkio_weight_device=(DeviceLimit(path="/dev/vda", value=400),),
        device_read_bps=(DeviceLimit(path="/dev/vda", value=1 << 20),), device_write_bps=(DeviceLimit(path="/dev/vda", value=2048),),
        device_read_iops=(DeviceLimit(path="/dev/vda", value=100),),
        device_write_iops=(DeviceLimit(path="/dev/vdb", value=7), DeviceLimit(path="/dev/vda", value=8)),
        unified={"memory.high": "1000", "io.max": "8:0 rbps=5"},
    )  # fmt: skip


def test_unlimited() -> None:
    assert resources("--memory", "1g", "--memory-swap", "-1", "--pids-limit", "-1") == Resources(memory=1 << 30, memory_swap=-1)


def test_the_parent_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec("--cgroup-parent", "/a").cgroup_parent == "/a"
    monkeypatch.setenv("NACRE_CGROUP_PARENT", "machine.slice")
    assert spec().cgroup_parent == "machine.slice"
    assert spec("--cgroup-parent", "/a").cgroup_parent == "/a"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--memory", "x", "invalid size: 'x'"),
        ("--memory-swap", "-2", "invalid size: '-2'"),
        ("--memory-swappiness", "ten", "expected a whole number"),
        ("--device-read-bps", "/dev/vda", "bad format: /dev/vda"),
        ("--device-read-bps", "vda:1mb", "bad format for device path: vda:1mb"),
        ("--device-read-bps", "/dev/vda:fast", "the correct format is <device-path>:<number>[<unit>]"),
        ("--device-write-iops", "/dev/vda:1k", "the correct format is <device-path>:<number>"),
        ("--blkio-weight-device", "/dev/vda:-5", "invalid rate"),
        ("--cgroup-conf", "memory.high", "expected file=value"),
        ("--cgroup-conf", "=5", "expected file=value"),
    ],
)
def test_values_that_are_none(flag: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resources(flag, value)
    assert message in caught.value.message
    assert flag.lstrip("-") in caught.value.message


def test_kernel_memory_is_refused() -> None:
    with pytest.raises(Unsupported, match="--kernel-memory"):
        resources("--kernel-memory", "50m")


def test_update_takes_what_was_given_and_nothing_else() -> None:
    args = UPDATE["update"].parse("update", ["--pids-limit", "-1", "--cpus", "0.5", "web"])
    assert args is not None
    assert changes(args) == {"pids": -1, "cpus": 0.5}


def test_update_needs_something_to_do() -> None:
    class Nothing:
        engine = None

    args = UPDATE["update"].parse("update", ["web"])
    assert args is not None
    with pytest.raises(NacreError, match="you must provide one or more flags"):
        UPDATE["update"].run(Nothing(), args)  # type: ignore[arg-type]
