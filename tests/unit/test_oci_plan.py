"""Plans of bundles: golden files, mount options, sysctls, capabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation import oci, oci_container, oci_mounts
from nacre.linux import capabilities, cgroups
from nacre.model.bundle import Bundle, Mount, Process
from nacre.model.plan import NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS, Code, Op, Spawn
from nacre.ociruntime import config
from nacre.ociruntime.template import configuration

AROUND = oci.Surroundings(directory="/bundle", rootfs="/bundle/rootfs", join=("/cg/tasks",), cgroup={"pids": "/cg"}, keyring="_ses.x")


@pytest.fixture(autouse=True)
def one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans say what this host has: let it be the same everywhere."""
    monkeypatch.setattr(cgroups, "layout", lambda root="": cgroups.Layout(unified="/sys/fs/cgroup", v2=("pids", "memory")))
    monkeypatch.setattr(oci, "granted", lambda: capabilities.ALL)


def spec(**linux: Any) -> dict[str, Any]:
    data = configuration(rootless=False)
    data["process"]["terminal"] = False
    data["linux"] |= linux
    return data


def text(spawn: Spawn) -> str:
    return "".join(f"{item.describe()}\n" for item in spawn.ops)


def codes(spawn: Spawn) -> list[Code]:
    return [item.code for item in spawn.ops]


def test_plan_of_what_spec_writes(golden: Callable[[str, str], None]) -> None:
    golden("plan/oci-create.plan", text(oci.create_plan(config.parse(spec()), AROUND)))


def test_plan_with_a_user_namespace(golden: Callable[[str, str], None]) -> None:
    data = spec(
        uidMappings=[{"containerID": 0, "hostID": 100000, "size": 65536}], gidMappings=[{"containerID": 0, "hostID": 200000, "size": 9}]
    )
    data["linux"]["namespaces"] += [{"type": "user"}, {"type": "time"}]
    data["linux"]["timeOffsets"] = {"monotonic": {"secs": 5}}
    data["mounts"].append({"destination": "/b", "type": "bind", "source": "/tmp", "options": ["rbind", "ro", "rnosuid", "idmap"]})
    data["process"]["terminal"] = True
    data["hooks"] = {"createContainer": [{"path": "/bin/h"}], "startContainer": [{"path": "/h", "args": ["h", "1"], "timeout": 2}]}
    golden("plan/oci-user-namespace.plan", text(oci.create_plan(config.parse(data), AROUND.replace(keyring=""))))


def test_plan_of_an_ordinary_user(golden: Callable[[str, str], None]) -> None:
    data = configuration(rootless=True)
    data["linux"]["uidMappings"] = data["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 1000, "size": 1}]
    data["mounts"] = [item for item in data["mounts"] if item["destination"] in ("/proc", "/dev")]
    golden("plan/oci-rootless.plan", text(oci.create_plan(config.parse(data), AROUND.replace(rootless=True, wait=False, join=()))))


def test_plan_of_exec(golden: Callable[[str, str], None]) -> None:
    process = Process(args=("id",), env=("PATH=/bin",), uid=5, gid=6, groups=(7,), oom_score_adj=3, affinity=("0", "1-2"))
    own = NEWUSER | NEWPID | NEWNS | NEWNET
    golden("plan/oci-exec.plan", text(oci.exec_plan(process, AROUND.replace(filter=b"\6" * 8, filter_flags=4), own, ~(NEWNS | NEWUSER))))


def test_namespaces_that_are_joined_are_not_made() -> None:
    data = spec()
    data["linux"]["namespaces"] = [{"type": "mount"}, {"type": "pid", "path": "/run/p"}, {"type": "network", "path": "/run/n"}]
    del data["hostname"]
    bundle = config.parse(data)
    plan = oci.create_plan(bundle, AROUND)
    assert oci.joined(bundle) == ("/run/p", "/run/n")
    assert [item.args for item in plan.ops if item.code is Code.NSFD] == [(1, NEWPID), (2, NEWNET)]
    assert [item.args for item in plan.ops if item.code is Code.CLONE] == [(NEWNS,)]
    assert Code.LINK not in codes(plan)  # the interfaces of a joined namespace are somebody else's


def test_no_process_is_made_where_none_is_needed() -> None:
    data = spec()
    data["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]
    plan = oci.create_plan(config.parse(data), AROUND)
    assert Code.CLONE not in codes(plan)
    assert [item.args for item in plan.ops if item.code is Code.UNSHARE] == [(NEWNS | NEWUTS | NEWIPC,)]


def test_the_filter_comes_last_unless_it_needs_privileges() -> None:
    around = AROUND.replace(filter=b"\6" * 8)
    order = [item.code for item in oci.process_ops(Process(args=("x",), no_new_privileges=True), around)]
    assert order.index(Code.SECCOMP) > order.index(Code.READY) > order.index(Code.LOOKUP) > order.index(Code.CAPS)
    order = [item.code for item in oci.process_ops(Process(args=("x",)), around)]
    assert order.index(Code.SECCOMP) < order.index(Code.IDENTITY) and Code.NNP not in order


def test_without_a_process_there_is_nothing_to_look_up() -> None:
    data = spec()
    del data["process"]
    plan = oci.create_plan(config.parse(data), AROUND)
    assert codes(plan)[-2:] == [Code.START, Code.EXEC]


def mounted(*words: str, kind: str = "tmpfs", source: str = "tmpfs") -> oci_mounts.Options:
    return oci_mounts.options(Mount(destination="/m", kind=kind, source=source, options=words))


def test_options_are_sorted_by_what_they_are_for() -> None:
    found = mounted("nosuid", "nodev", "dev", "ro", "size=1m", "mode=755", "rslave", "private")
    assert found.flags == 2 | 1 and found.data == "size=1m,mode=755"
    assert found.propagation == ((1 << 19, True), (1 << 18, False))
    assert mounted("rbind", kind="none").bind and mounted("rbind").recurse and mounted(kind="bind").bind
    assert mounted("ridmap").idmap == 2 and mounted("idmap").idmap == 1 and mounted("tmpcopyup").copy_up


@pytest.mark.parametrize(
    ("words", "attributes", "recursive"),
    [
        (("ro",), (1, 0), (0, 0)),
        (("ro", "rw"), (0, 1), (0, 0)),
        (("rw", "ro"), (1, 0), (0, 0)),
        (("rro", "rnosuid"), (0, 0), (3, 0)),
        (("noatime",), (0x10, 0x70), (0, 0)),
        (("noatime", "strictatime"), (0x20, 0x70), (0, 0)),
        (("rnoatime", "rrelatime"), (0, 0), (0, 0x70)),
        (("nosymfollow", "rexec"), (0x200000, 0), (0, 8)),
    ],
)
def test_the_last_option_wins(words: tuple[str, ...], attributes: tuple[int, int], recursive: tuple[int, int]) -> None:
    found = mounted("bind", *words, kind="bind")
    assert (found.attributes, found.recursive) == (attributes, recursive)


def one_mount(**mount: Any) -> list[Op]:
    data = spec()
    data["mounts"] = [{"destination": "/m", **mount}]
    plan = oci.create_plan(config.parse(data), AROUND)
    return [item for item in plan.ops if any(isinstance(arg, str) and arg.startswith("%/m") for arg in item.args)]


def test_a_tmpfs_with_contents_is_written_before_it_is_read_only() -> None:
    ops = one_mount(type="tmpfs", source="tmpfs", options=["tmpcopyup", "ro", "nosuid"])
    assert [item.code for item in ops] == [Code.MKDIR, Code.TREE, Code.MOUNT, Code.COPYUP, Code.PICK]
    assert ops[2].args[3] == 2


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"type": "bind", "source": "/no/such"}, r"mounts\[0\].source: /no/such: no such file or directory"),
        ({"type": "bind", "source": "/tmp", "options": ["size=1"]}, r"mounts\[0\].options: a bind mount has no option size=1"),
        ({"type": "bind", "source": "/tmp", "options": ["idmap"]}, r"mounts\[0\].options: an id-mapped mount needs uidMappings"),
        ({"source": "x"}, r"mounts\[0\].type: is required"),
    ],
)
def test_mounts_that_cannot_be(mount: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        one_mount(**mount)


def test_a_label_needs_a_host_that_has_labels() -> None:
    with pytest.raises(Unsupported, match=r"linux\.mountLabel"):
        oci.create_plan(config.parse(spec(mountLabel="system_u:object_r:x:s0")), AROUND)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/forwarding", "net/ipv4/conf/eth0.5/forwarding"),
        ("kernel.shmmax", "kernel/shmmax"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("kernel.domainname", "kernel/domainname"),
    ],
)
def test_sysctls_of_the_container(key: str, path: str) -> None:
    assert oci.sysctl_path(config.parse(spec()), key) == path


@pytest.mark.parametrize(
    "key", ["vm.swappiness", "kernel.core_pattern", "net/../kernel/core_pattern", "/etc/passwd", "kernel/core_pattern"]
)
def test_sysctls_of_the_host_are_refused(key: str) -> None:
    with pytest.raises(InvalidArgument, match=r"linux\.sysctl"):
        oci.sysctl_path(config.parse(spec()), key)


def test_a_sysctl_needs_its_namespace() -> None:
    data = spec()
    data["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
    with pytest.raises(InvalidArgument, match="needs a network namespace"):
        oci.sysctl_path(config.parse(data), "net.ipv4.ip_forward")


def test_capabilities_that_cannot_be_had_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "granted", lambda: capabilities.mask(["CHOWN", "KILL"]))
    everything = ("CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_NONE")
    process = Process(
        args=("x",),
        capabilities={"bounding": everything, "effective": ("CAP_CHOWN",), "permitted": ("CAP_CHOWN", "CAP_KILL"), "ambient": everything},
    )
    unknown: list[str] = []
    assert oci.capability_masks(process, unknown) == (0b100001, 1, 0, 0b100001, 0)  # nothing is ambient that is not inheritable
    assert unknown == ["CAP_SYS_ADMIN", "CAP_NONE"]


@pytest.mark.parametrize(("words", "mask"), [("0", b"\x01"), ("1-3,5", b"\x2e"), ("7,0", b"\x81")])
def test_lists_of_cpus(words: str, mask: bytes) -> None:
    assert oci.cpu_mask(words).rstrip(b"\0") == mask


@pytest.mark.parametrize("words", ["", "3-1", "a", "1-", "999999", "-1", "1,,2"])
def test_lists_of_cpus_that_are_none(words: str) -> None:
    with pytest.raises(InvalidArgument, match="execCPUAffinity"):
        oci.cpu_mask(words)


def test_flags_of_filters() -> None:
    assert oci.filter_flags({}) == 4 and oci.filter_flags({"flags": []}) == 0
    assert oci.filter_flags({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}) == 2


def test_rootfs_is_no_link_and_no_file(tmp_path: Any) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "file").touch()
    assert oci_container.rootfs(Bundle(version="1.2.0", rootfs="up/real/"), str(tmp_path)) == f"{tmp_path}/real"
    for name, message in (
        ("link", "symbolic link"),
        ("file", "not a directory"),
        ("none", "no such file"),
        ("/", "root directory of the host"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            oci_container.rootfs(Bundle(version="1.2.0", rootfs=name), str(tmp_path))
