"""--device, --device-cgroup-rule and --gpus: what they stand for, and CDI specifications that are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import Conflict, HostError, InvalidArgument, NacreError, NotFound, Unsupported
from nacre.isolation import cdi, devices
from nacre.isolation.plan import Device
from nacre.linux.devices import DEFAULT_DEVICES, DeviceRule
from nacre.model.container import BoundMount, ContainerSpec, Level


def spec(**fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", **fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/null", ("/dev/null", "/dev/null", "rwm")),
        ("/dev/null:rw", ("/dev/null", "/dev/null", "rw")),
        ("/dev/null:/dev/x", ("/dev/null", "/dev/x", "rwm")),
        ("/dev/null:/opt/../x:mr", ("/dev/null", "/x", "mr")),
        ("/dev/null::r", ("/dev/null", "/dev/null", "r")),
    ],
)
def test_words(text: str, expected: tuple[str, str, str]) -> None:
    assert devices.parse(text) == expected


@pytest.mark.parametrize("text", ["", "null", "/dev/null:x", "/dev/null:/x:", "/dev/null:/x:rr", "/dev/null:/x:q", "/a:/b:r:w", ":/x"])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(InvalidArgument):
        devices.check(spec(devices=(text,)))


@pytest.mark.parametrize("rule", ["", "c", "c 1:2", "d 1:2 r", "c 1 r", "c x:2 r", "c 1:2 rx", "c 1:2:3 r", "c -1:2 r"])
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(InvalidArgument):
        devices.check(spec(device_rules=(rule,)))


def test_nodes_keep_numbers_mode_and_owners() -> None:
    [found] = devices.requested(spec(devices=("/dev/null:/opt/null:r",)))
    info = os.stat("/dev/null")
    assert (found.name, found.major, found.minor, found.kind, found.source) == ("/opt/null", 1, 3, "c", "/dev/null")
    assert (found.mode, found.uid, found.gid) == (info.st_mode & 0o777, info.st_uid, info.st_gid)
    asked = spec(devices=("/dev/null:/opt/null:r",), device_rules=("b *:* m", "c 42:* rw"))
    assert devices.rules(asked) == (
        *DEFAULT_DEVICES,
        DeviceRule(kind="c", major=1, minor=3, access="r"),
        DeviceRule(kind="b", access="m"),
        DeviceRule(kind="c", major=42, access="rw"),
    )
    assert devices.rules(spec(privileged=True)) is None


def test_a_directory_stands_for_the_devices_below_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(devices, "_below", lambda directory: [f"{directory}/by-id/null"])
    monkeypatch.setattr(devices, "node", lambda source, target: Device(name=target.removeprefix("/dev/"), major=1, minor=3))
    assert [found.name for found in devices.requested(spec(devices=(f"{tmp_path}:/dev/mine",)))] == ["mine/by-id/null"]


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    for text, kind, message in (
        ("/dev/nowhere", Conflict, "No such file"),
        (str(tmp_path), Conflict, "no devices below it"),
        ("/etc/passwd", InvalidArgument, "is not a device node"),
    ):
        with pytest.raises(kind, match=message):
            devices.requested(spec(devices=(text,)))


def test_privileged_containers_have_the_hosts_devices() -> None:
    names = {device.name for device in devices.requested(spec(privileged=True, devices=("/dev/null:/dev/mine",)))}
    assert "mine" in names
    assert not names & {"null", "tty", "console", "ptmx"}
    assert devices.requested(spec(privileged=True, isolation=Level.VM)) == []


# -- CDI -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """/etc/cdi and /var/run/cdi."""
    made = tmp_path / "etc", tmp_path / "run"
    for path in made:
        path.mkdir()
    monkeypatch.setattr(cdi, "DIRECTORIES", tuple(map(str, made)))
    return made


def write(directory: Path, kind: str = "vendor.com/class", common: Any = None, **own: Any) -> None:
    found = [{"name": name, "containerEdits": edits} for name, edits in own.items()]
    data = {"cdiVersion": "0.6.0", "kind": kind, "devices": found, "containerEdits": common or {}}
    (directory / f"{kind.replace('/', '-')}.json").write_text(json.dumps(data))


def test_edits_of_several_devices(directories: tuple[Path, Path]) -> None:
    write(
        directories[0],
        common={"env": ["ALL=1"], "mounts": [{"hostPath": "/etc", "containerPath": "/opt/etc", "options": ["ro", "nosuid", "rbind"]}]},
        one={
            "env": ["ONE=1"],
            "deviceNodes": [{"path": "/dev/one", "hostPath": "/dev/null", "fileMode": 0o600, "uid": 5, "permissions": "rw"}],
        },
        two={
            "deviceNodes": [{"path": "/dev/two", "type": "b", "major": 7, "minor": 9}],
            "additionalGids": [44],
            "mounts": [{"containerPath": "/opt/tmp", "type": "tmpfs", "options": ["size=1m"]}],
        },
    )
    made = cdi.edits(spec(devices=("vendor.com/class=one", "vendor.com/class=two", "vendor.com/class=one", "/dev/null")))
    assert made.env == ("ALL=1", "ONE=1")
    assert made.groups == ("44",)
    assert made.mounts == (
        BoundMount(target="/opt/etc", source="/etc", read_only=True, options=("nosuid",)),
        BoundMount(target="/opt/tmp", kind="tmpfs", options=("size=1m",)),
    )
    one, two = made.devices
    assert (one.name, one.major, one.minor, one.mode, one.uid, one.source) == ("one", 1, 3, 0o600, 5, "/dev/null")
    assert (two.name, two.kind, two.major, two.minor) == ("two", "b", 7, 9)
    assert [str(rule) for rule in made.rules] == ["c 1:3 rw", "b 7:9 rwm"]
    assert devices.rules(spec(devices=("vendor.com/class=two",)))[-1] == made.rules[1]  # type: ignore[index]


def test_the_later_directory_wins_and_two_of_one_name_are_none(directories: tuple[Path, Path]) -> None:
    write(directories[0], dev={"env": ["FROM=etc"]})
    write(directories[1], dev={"env": ["FROM=run"]})
    assert cdi.edits(spec(devices=("vendor.com/class=dev",))).env == ("FROM=run",)
    (directories[1] / "other.json").write_text((directories[1] / "vendor.com-class.json").read_text())
    assert cdi.edits(spec(devices=("vendor.com/class=dev",))).env == ("FROM=etc",)


def test_gpus(directories: tuple[Path, Path]) -> None:
    def env(*requests: str) -> list[str]:
        return sorted(cdi.edits(spec(gpus=requests)).env)

    with pytest.raises(NotFound, match="could not select device driver"):
        env("all")
    write(directories[0], "amd.com/gpu", **{"0": {"env": ["AMD=0"]}})
    assert env("all") == ["AMD=0"]
    write(directories[0], "nvidia.com/gpu", **{"0": {"env": ["GPU=0"]}, "1": {"env": ["GPU=1"]}, "all": {"env": ["GPU=all"]}})
    assert env("all") == ["GPU=all"]
    assert env("2") == ["GPU=0", "GPU=1"]
    assert env("device=1") == ["GPU=1"]
    assert env("device=1,amd.com/gpu=0") == ["AMD=0", "GPU=1"]
    with pytest.raises(InvalidArgument, match="--gpus 3: there are 2"):
        env("3")
    with pytest.raises(NotFound, match=r"unresolvable CDI devices nvidia\.com/gpu=7"):
        env("device=7")


@pytest.mark.parametrize("name", ["vendor.com/class=", "vendor/=x", "ven dor/class=x", "vendor/class=x y", "-v/class=x", "v/c=x."])
def test_names_that_no_device_can_have(name: str) -> None:
    with pytest.raises(InvalidArgument):
        devices.check(spec(devices=(name,)))


@pytest.mark.parametrize(
    ("edits", "kind", "text"),
    [
        ({"hooks": [{"hookName": "createContainer", "path": "/x"}]}, Unsupported, "wants hooks"),
        ({"intelRdt": {"closID": "x"}}, Unsupported, "wants intelRdt"),
        ({"surprise": 1}, Unsupported, "wants surprise"),
        ({"deviceNodes": [{}]}, InvalidArgument, "path is missing"),
        ({"deviceNodes": [{"path": "null"}]}, InvalidArgument, "is not absolute"),
        ({"deviceNodes": [{"path": "/dev/nowhere"}]}, InvalidArgument, "No such file"),
        ({"deviceNodes": [{"path": "/dev/x", "type": "z", "major": 1}]}, InvalidArgument, "z"),
        ({"deviceNodes": "x"}, InvalidArgument, "."),
        ({"mounts": [{"hostPath": "/etc"}]}, InvalidArgument, "containerPath is missing"),
        ({"mounts": [{"hostPath": "/nowhere", "containerPath": "/x"}]}, InvalidArgument, "does not exist"),
        ({"mounts": [{"hostPath": "/etc", "containerPath": "/x", "options": ["rshared"]}]}, InvalidArgument, "option rshared"),
        ({"mounts": [{"hostPath": "/etc", "containerPath": "/x", "type": "nfs"}]}, InvalidArgument, "type nfs"),
        ({"additionalGids": ["audio"]}, InvalidArgument, "audio"),
    ],
)
def test_bad_edits(directories: tuple[Path, Path], edits: Any, kind: type[NacreError], text: str) -> None:
    write(directories[0], dev=edits)
    with pytest.raises(kind, match=text):
        cdi.edits(spec(devices=("vendor.com/class=dev",)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "Expecting"),
        ("[]", "it is no object"),
        ("{}", "kind is missing"),
        ('{"kind": "a/b", "devices": [{}]}', "name is missing"),
        ('{"kind": "a/b", "devices": 5}', "."),
        ('{"kind": "a", "devices": [{"name": "x"}]}', "bad class"),
        ('{"kind": "a/b", "devices": [{"name": "x", "containerEdits": []}]}', "."),
        ("[" * 100000, "."),
        (" " * (4 << 20) + "{}", "larger than 4 MiB"),
    ],
)
def test_bad_specifications(directories: tuple[Path, Path], content: str, text: str) -> None:
    (directories[0] / "bad.json").write_text(content)
    if content.endswith("[]}]}"):  # an empty list says as little as no edits
        assert cdi.edits(spec(devices=("a/b=x",))) == cdi.Edits()
        return
    with pytest.raises(InvalidArgument, match=text) as caught:
        cdi.edits(spec(devices=("vendor.com/class=dev",)))
    assert "bad.json" in caught.value.message


def test_yaml(directories: tuple[Path, Path]) -> None:
    (directories[0] / "gpu.yaml").write_text("kind: v.com/gpu\ndevices:\n- name: '0'\n  containerEdits:\n    env: [A=b]\n")
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(HostError, match="needs the Python module yaml"):
            cdi.edits(spec(gpus=("all",)))
    else:
        assert cdi.edits(spec(gpus=("all",))).env == ("A=b",)
