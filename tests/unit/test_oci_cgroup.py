"""What is recorded of a control group, and to whom it is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation import oci_cgroup
from nacre.isolation.groups import Group
from nacre.linux.cgroups import Layout
from nacre.model.bundle import Rdt


def on_v2(tmp_path: Path) -> Group:
    group = Group("/a/b", "box", where=Layout(unified=str(tmp_path), v2=("memory",)))
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("cgroup.procs", "memory.max", "cgroup.threads"):
        (tmp_path / "a/b" / name).touch()
    return group


def test_a_group_is_found_again_where_it_was_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = on_v2(tmp_path)
    noted = oci_cgroup.note(group, "../relative", systemd=False)  # what it is relative to may be another group later
    assert oci_cgroup.recorded("box", noted).directories == {"unified": f"{tmp_path}/a/b"}


def test_without_a_path_the_group_has_the_name_of_the_container() -> None:
    assert all(path.endswith("/nacre-oci/box") for path in oci_cgroup.planned("", "box", systemd=False).directories.values())
    with pytest.raises(InvalidArgument):
        oci_cgroup.planned("/../x", "box", systemd=False)
    with pytest.raises(InvalidArgument):
        oci_cgroup.planned("system.slice:nacre:box", "box", systemd=False)


def test_the_files_that_the_kernel_lists_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.update({os.path.basename(path): (uid, gid)}))
    listed = tmp_path / "delegate"
    listed.write_text("cgroup.procs\ncgroup.threads\nmemory.oom.group\n")
    oci_cgroup.give(on_v2(tmp_path), 100000, str(listed))
    assert given == {"b": (100000, -1), "cgroup.procs": (100000, -1), "cgroup.threads": (100000, -1)}
    given.clear()
    oci_cgroup.give(Group("/a/b", "box", where=Layout(v1={"memory": str(tmp_path)})), 100000, str(listed))
    assert given == {}


def test_resource_control_needs_a_host_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_cgroup, "_RESCTRL", str(tmp_path / "none"))
    with pytest.raises(Unsupported, match=r"linux\.intelRdt"):
        oci_cgroup.join_class(Rdt(schemata=("L3:0=ff",)), "box")
    monkeypatch.setattr(oci_cgroup, "_RESCTRL", str(tmp_path))
    (tmp_path / "schemata").touch()
    assert oci_cgroup.join_class(Rdt(schemata=("L3:0=ff", "MB:0=50")), "box") == f"{tmp_path}/box/tasks"
    assert (tmp_path / "box/schemata").read_text() == "L3:0=ff\nMB:0=50\n"
    with pytest.raises(InvalidArgument, match="there is no class gold"):
        oci_cgroup.join_class(Rdt(clos_id="gold"), "box")
