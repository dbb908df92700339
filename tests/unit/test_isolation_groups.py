"""Where the groups of OCI containers lie: paths of the specification on every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from cgroup_trees import MOUNT_UNIFIED, MOUNTS_V1, detect, read, v2
from cgroup_trees import host as host

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation import groups, process
from nacre.isolation.groups import Group, directories, own_groups
from nacre.model.container import ContainerSpec, Level, Rootfs, Sandbox
from nacre.model.network import Endpoint

OWN_V1 = "5:memory:/outer/me\n4:cpu,cpuacct:/me\n3:pids:/../elsewhere\n2:name=systemd:/user.slice\n0::/user.slice/session\n"
NESTED = "40 31 0:29 /outer /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def places(host: Path, path: str, mounts: str, controllers: str = "", own: str = OWN_V1) -> dict[str, str]:
    where = detect(host, mounts, controllers=controllers)
    groups_of_us = own_groups(where, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "own_groups", lambda _where: groups_of_us)
        return {key: place.removeprefix(f"{host}/sys/fs/cgroup") for key, place in directories(path, where).items()}


def test_an_absolute_path_is_below_every_mount(host: Path) -> None:
    found = places(host, "/a/b", MOUNTS_V1)
    assert found["memory"] == "/memory/a/b"
    assert found["cpu"] == found["cpuacct"] == "/cpu,cpuacct/a/b"
    assert found["name=systemd"] == "/systemd/a/b"
    assert "unified" not in found


def test_a_relative_path_is_below_our_own_group(host: Path) -> None:
    found = places(host, "a/b", MOUNTS_V1)
    assert found["memory"] == "/memory/outer/me/a/b"
    assert found["cpu"] == "/cpu,cpuacct/me/a/b"
    assert found["pids"] == "/pids/a/b"  # ours is outside of this cgroup namespace
    assert found["name=systemd"] == "/systemd/user.slice/a/b"


def test_a_mount_may_show_a_part_of_its_hierarchy(host: Path) -> None:
    assert places(host, "a", NESTED)["memory"] == "/memory/me/a"


def test_v2(host: Path) -> None:
    assert places(host, "/a/./b/", cgroup2(), "memory") == {"unified": "/a/b"}


def test_a_relative_path_of_v2_is_beside_our_own_group(host: Path) -> None:
    assert places(host, "a", cgroup2(), "memory") == {"unified": "/user.slice/a"}


def cgroup2() -> str:
    return "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_a_hybrid_has_the_v2_group_for_what_v1_lacks(host: Path) -> None:
    assert places(host, "/a", MOUNTS_V1 + MOUNT_UNIFIED, "hugetlb")["unified"] == "/unified/a"


@pytest.mark.parametrize("path", ["/", ".", "/..", "/a/../b", "a/..", "/" + "x" * 256, "/a" * 200, "/a\nb", "/a\0b"])
def test_paths_that_cannot_be(host: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid cgroupsPath"):
        Group(path, "c1", where=v2(host))


def test_systemds_form_without_systemd(host: Path) -> None:
    where = v2(host)
    with pytest.raises(InvalidArgument, match="is of systemd's form") as caught:
        groups.group("system.slice:nacre:c1", "c1", where=where)
    assert "--systemd-cgroup" in caught.value.hint
    with pytest.raises(InvalidArgument, match='"slice:prefix:name"'):
        groups.group("/a/b", "c1", where=where, systemd=True)


def test_the_runtimes_own_choice(host: Path) -> None:
    assert Group("", "c1", where=v2(host)).directories == {"unified": f"{host}/sys/fs/cgroup/nacre/c1"}


def test_groups_that_exist_are_used_as_they_are(host: Path) -> None:
    where = v2(host)
    group = Group("/nacre/c1", "c1", where=where, restrict=False)
    group.create({"pids": {"limit": 5}})
    again = Group("/nacre/c1", "c1", where=where, restrict=False)
    again.create({"memory": {"limit": 1 << 26}})
    assert read(host, "nacre/c1/pids.max") == "5"
    assert again.limits()["unified"]["memory.max"] == str(1 << 26)


def test_beside_v1_the_v2_group_is_made_only_where_it_is_needed(host: Path) -> None:
    where = detect(host, MOUNTS_V1 + MOUNT_UNIFIED, controllers="hugetlb")
    plain, huge = (Group(f"/nacre/{name}", name, where=where) for name in ("c1", "c2"))
    plain.create({"memory": {"limit": 1 << 26}})
    assert "unified" not in plain.existing().directories
    huge.create({"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]})
    assert huge.join[-1] == f"{host}/sys/fs/cgroup/unified/nacre/c2/cgroup.procs"


def test_the_devices_of_a_user_namespace_are_left_alone(host: Path) -> None:
    group = Group("/nacre/c1", "c1", where=detect(host, MOUNTS_V1), restrict=False)
    group.create({"devices": [{"allow": False}]})
    assert read(host, "devices/nacre/c1/devices.deny") == ""


# Below a parent


def sandbox(directory: Path, parent: str) -> Sandbox:
    return Sandbox(
        id="c1", level=Level.PROCESS, directory=str(directory), state=str(directory), hostname="h", rootfs=Rootfs(driver=""),
        endpoint=Endpoint(network="none"), spec=ContainerSpec(image="box", cgroup_parent=parent),
    )  # fmt: skip


def test_whoever_cleans_up_finds_it(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = detect(host, MOUNTS_V1)
    monkeypatch.setattr(process, "manageable", lambda directory="": where)
    monkeypatch.setattr(process, "is_host_root", lambda: True)
    box = sandbox(tmp_path, "/jobs")
    made = process.make_group(box, {"pids": {"limit": 5}}, None)
    assert made.v1["pids"] == f"{host}/sys/fs/cgroup/pids/jobs/c1"
    assert process.find_group("c1", str(tmp_path)).v1 == made.v1
    for place in set(made.directories.values()):
        for path in Path(place).iterdir():
            path.unlink()
    process.clean_group("c1", str(tmp_path))
    assert not Path(made.v1["pids"]).exists()
    process.clean_group("c1", str(tmp_path))


def test_a_parent_that_climbs(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = detect(host, MOUNTS_V1)
    monkeypatch.setattr(process, "manageable", lambda directory="": where)
    monkeypatch.setattr(process, "is_host_root", lambda: True)
    with pytest.raises(InvalidArgument, match="invalid cgroupsPath"):
        process.make_group(sandbox(tmp_path, "/../.."), {}, None)


def test_a_host_without_groups(host: Path, tmp_path: Path) -> None:
    where = detect(host, "22 1 0:5 / /proc rw - proc proc rw\n")
    with pytest.raises(Unsupported, match="no control groups are mounted"):
        Group("/a", "c1", where=where).create({})
