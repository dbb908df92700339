"""config.json and process.json: what is taken, and for everything wrong a message that names the field."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest

from nacre.errors import InvalidArgument
from nacre.model import jsontext
from nacre.model.bundle import Hook, Hooks, IdMap, Mount, Node, Scheduler
from nacre.ociruntime import config
from nacre.ociruntime.template import configuration


def changed(path: str, value: Any) -> dict[str, Any]:
    """The configuration that `spec` writes, with one field set ("a.b[2].c"); DELETE removes it."""
    data: Any = copy.deepcopy(configuration(rootless=False))
    top = data
    *way, last = path.replace("[", ".[").split(".")
    for part in way:
        data = data[int(part[1:-1])] if part[0] == "[" else data.setdefault(part, {})
    key: Any = int(last[1:-1]) if last[0] == "[" else last
    if value is DELETE:
        del data[key]
    else:
        data[key] = value
    assert isinstance(top, dict)
    return top


DELETE = object()


@pytest.mark.parametrize("rootless", [False, True])
def test_what_spec_writes_is_valid(rootless: bool) -> None:
    bundle = config.bundle(json.dumps(configuration(rootless=rootless)).encode())
    assert bundle.rootfs == "rootfs" and bundle.process and bundle.process.args == ("sh",)
    assert bool(bundle.uid_maps) is rootless


def test_fields_become_values() -> None:
    data = changed("process.user", {"uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o77})
    data["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 1 << 64 - 1}]
    data["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    data["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 3}
    data["process"]["consoleSize"] = {"height": 10, "width": 20}
    data["mounts"] = [
        {
            "destination": "/m", "source": "/s", "type": "bind", "options": ["rbind", "ro"],
            "uidMappings": [{"containerID": 0, "hostID": 9, "size": 1}], "gidMappings": [{"containerID": 0, "hostID": 9, "size": 1}],
        }
    ]  # fmt: skip
    data["linux"]["devices"] = [{"path": "/dev/x", "type": "b", "major": 1, "minor": 2, "fileMode": 0o100640, "uid": 3}]
    data["linux"]["namespaces"].append({"type": "time"})
    data["linux"]["timeOffsets"] = {"boottime": {"secs": -7, "nanosecs": 8}}
    data["hooks"] = {"poststop": [{"path": "/h", "args": ["h", "x"], "env": ["A=b"], "timeout": 4}]}
    bundle = config.parse(data)
    process = bundle.process
    assert process and (process.uid, process.gid, process.groups, process.umask) == (5, 6, (7, 8), 0o77)
    assert process.rlimits == ((7, 10, 1 << 63),) and (process.rows, process.columns) == (10, 20)
    assert process.scheduler == Scheduler(policy=3, flags=1, nice=-5) and process.io_priority == 2 << 13 | 3
    one = (IdMap(container=0, host=9, size=1),)
    assert bundle.mounts == (Mount(destination="/m", source="/s", kind="bind", options=("rbind", "ro"), uid_maps=one, gid_maps=one),)
    assert bundle.devices == (Node(path="/dev/x", kind="b", major=1, minor=2, mode=0o640, uid=3),)
    assert bundle.time_offsets == {"boottime": "-7 8"}
    assert bundle.hooks.poststop == (Hook(path="/h", args=("h", "x"), env=("A=b",), timeout=4),)


def test_unknown_fields_and_nulls_are_ignored() -> None:
    data = changed("linux.somethingNew", {"a": [1]})
    data["vm"] = {"hypervisor": {"path": "/x"}}
    data["hooks"] = None
    data["linux"]["resources"]["pids"] = None
    assert config.parse(data).hooks == Hooks()


WRONG = [
    ("ociVersion", DELETE, "ociVersion: is required"),
    ("ociVersion", "2.0.0", "ociVersion: 2.0.0 is not supported"),
    ("ociVersion", "one", 'ociVersion: "one" is not a version'),
    ("ociVersion", 1, "ociVersion: expected a string, got a number"),
    ("root", DELETE, "root: is required"),
    ("root.path", "", "root.path: is required"),
    ("root", [], "root: expected an object, got a list"),
    ("root.readonly", "yes", "root.readonly: expected true or false, got a string"),
    ("hostname", "a\0b", "hostname: contains a NUL character"),
    ("process.args", [], "process.args: is required"),
    ("process.args", "sh", "process.args: expected a list, got a string"),
    ("process.args[0]", 5, "process.args[0]: expected a string, got a number"),
    ("process.cwd", "relative", 'process.cwd: "relative" is not an absolute path'),
    ("process.user.uid", -1, "process.user.uid: -1 is not between 0 and 4294967295"),
    ("process.user.uid", 1.5, "process.user.uid: expected an integer, got a number"),
    ("process.user.uid", True, "process.user.uid: expected an integer, got a boolean"),
    ("process.user.additionalGids", [1, "x"], "process.user.additionalGids[1]: expected an integer, got a string"),
    ("process.rlimits[0].type", "RLIMIT_FOO", 'process.rlimits[0].type: unknown resource limit "RLIMIT_FOO"'),
    ("process.rlimits[0].soft", 2048, "process.rlimits[0].soft: 2048 is above the hard limit of 1024"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj: 1001 is not between -1000 and 1000"),
    ("process.scheduler", {"policy": "SCHED_X"}, 'process.scheduler.policy: unknown scheduling policy "SCHED_X"'),
    ("process.scheduler", {"policy": "SCHED_OTHER", "priority": 5}, "process.scheduler.priority: only SCHED_FIFO and SCHED_RR"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 9}, "process.ioPriority.priority: 9 is not between 0 and 7"),
    ("process.execCPUAffinity", {"initial": "a"}, "process.execCPUAffinity.initial: not a list of CPUs"),
    ("mounts[1]", {"type": "tmpfs"}, "mounts[1].destination: is required"),
    ("mounts[1].options", [1], "mounts[1].options[0]: expected a string, got a number"),
    ("mounts[0].uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}], "mounts[0].uidMappings: uidMappings and gidMappings"),
    ("linux.namespaces[2].type", "foo", 'linux.namespaces[2].type: unknown namespace "foo"'),
    ("linux.namespaces[2].type", "pid", "linux.namespaces[2].type: pid is given twice"),
    ("linux.namespaces[2].path", "proc/1/ns/ipc", 'linux.namespaces[2].path: "proc/1/ns/ipc" is not an absolute path'),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}], "linux.uidMappings: mappings are given, but no user namespace"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 0}], "linux.uidMappings[0].size: 0 is not between 1"),
    ("linux.namespaces[2]", {"type": "user"}, "linux.uidMappings: a new user namespace needs"),
    ("linux.namespaces[3]", {"type": "time"}, "hostname: cannot be set without a uts namespace"),
    ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets: cannot be set without a time namespace"),
    ("linux.timeOffsets", {"realtime": {"secs": 1}}, 'linux.timeOffsets: unknown clock "realtime"'),
    ("linux.devices", [{"path": "/dev/x", "type": "c"}], "linux.devices[0].major: major and minor are required"),
    ("linux.devices", [{"path": "/dev/x", "type": "q"}], 'linux.devices[0].type: unknown device type "q"'),
    ("linux.maskedPaths", ["proc"], 'linux.maskedPaths[0]: "proc" is not an absolute path'),
    ("linux.rootfsPropagation", "sideways", 'linux.rootfsPropagation: unknown propagation "sideways"'),
    ("linux.personality", {"domain": "BSD"}, 'linux.personality.domain: unknown personality "BSD"'),
    ("linux.intelRdt", {"closID": "../x"}, 'linux.intelRdt.closID: "../x" is not a name'),
    ("linux.resources.memory", {"limit": "1g"}, "linux.resources.memory.limit: expected an integer, got a string"),
    ("linux.resources.devices", [{"access": "r"}], "linux.resources.devices[0].allow: is required"),
    ("linux.resources.devices", [{"allow": True, "access": "rx"}], 'linux.resources.devices[0].access: "rx" has letters'),
    ("linux.resources.unified", {"../x": "1"}, 'linux.resources.unified: "../x" is not the name of a cgroup file'),
    ("linux.resources.hugepageLimits", [{"pageSize": "2"}], 'linux.resources.hugepageLimits[0].pageSize: "2" is not a page size'),
    ("linux.resources.blockIO", {"throttleReadBpsDevice": [{"major": 1}]}, "linux.resources.blockIO.throttleReadBpsDevice[0].minor: is"),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_X"}, 'linux.seccomp.defaultAction: unknown action "SCMP_ACT_X"'),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.listenerPath: is required for SCMP_ACT_NOTIFY"),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, 'linux.seccomp.flags[0]: unknown word "X"'),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]}, "linux.seccomp.syscalls[0].names"),
    ("hooks", {"poststop": [{"path": "h"}]}, 'hooks.poststop[0].path: "h" is not an absolute path'),
    ("hooks", {"prestart": [{"path": "/h", "timeout": 0}]}, "hooks.prestart[0].timeout: 0 is not between 1"),
    ("annotations", {"a": 1}, "annotations.a: expected a string, got a number"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        config.parse(changed(path, value))
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a":1} x', b'{"a": NaN}', b"\xff", b"[" * 100_000, b'"abc', b"nul", b"{}"])
def test_what_is_no_document_is_an_error(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        config.bundle(data)


def test_too_many_mounts_are_refused_at_once() -> None:
    data = configuration(rootless=False)
    data["mounts"] = [{"destination": "/x", "type": "tmpfs"}] * 100_001
    started = time.process_time()
    with pytest.raises(InvalidArgument, match="mounts: 100001 are too many"):
        config.parse(data)
    assert time.process_time() - started < 1  # nobody has looked at them one by one
    with pytest.raises(InvalidArgument, match="bytes are too many"):
        config.bundle(b" " * (config.SIZE_MAX + 1))


def test_a_process_alone() -> None:
    process = config.process(config.Fields({"args": ["x"], "cwd": "/", "env": ["A=1"], "terminal": True}, ""))
    assert process.args == ("x",) and process.terminal and process.capabilities["bounding"] == ()
    with pytest.raises(InvalidArgument, match="cwd: is required"):
        config.process(config.Fields({"args": ["x"]}, ""))


@pytest.mark.parametrize("value", [None, True, -1, 1.5, '\u20ac\n"', [1, [], {}], {"a": {"b": [None]}}, 1 << 70])
def test_json_is_that_of_the_standard_library(value: Any) -> None:
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))
    for text in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False), f" \r\n\t{json.dumps(value)}\n"):
        assert jsontext.loads(text.encode()) == value


def test_json_refuses_what_has_no_form() -> None:
    with pytest.raises(TypeError):
        jsontext.dumps({"a": object()})


@pytest.mark.parametrize("text", ["", "{", '{"a":', "[1,", '"a', "nul", '{"a" 1}', "01", "[1] 2"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(text)
