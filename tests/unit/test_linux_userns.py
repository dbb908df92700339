"""Whose ids, which maps, and what is delegated to an ordinary user: read from texts and trees, without a kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nacre.linux import delegation, userns
from nacre.linux.cgroups import Layout


def test_subordinate_ranges_are_those_of_the_name_and_the_number() -> None:
    text = "anna:100000:65536\nbert:165536:65536\n1000:300000:1000\nanna:400000:10\nbroken\nanna:x:5\nanna:7:0\n"
    assert userns.parse_subordinate(text, ("anna", "1000")) == ((100000, 65536), (300000, 1000), (400000, 10))
    assert userns.parse_subordinate(text, ("carl", "1002")) == ()


def test_the_user_is_zero_and_the_ranges_follow_without_a_gap() -> None:
    assert userns.extents(1000, ((100000, 65536), (400000, 10))) == ((0, 1000, 1), (1, 100000, 65536), (65537, 400000, 10))


@pytest.mark.parametrize(
    ("text", "initial"),
    [
        ("         0          0 4294967295\n", True),
        ("         0       1000          1\n         1     100000      65536\n", False),
        ("         0          0      65536\n", False),
    ],
)
def test_the_first_user_namespace_maps_everything_to_itself(text: str, initial: bool) -> None:
    assert userns.is_initial(text) is initial


@pytest.mark.parametrize(("name", "bad", "wanted"), userns.SWITCHES)
def test_a_refusal_names_the_switch(monkeypatch: pytest.MonkeyPatch, name: str, bad: str, wanted: str) -> None:
    monkeypatch.setattr(userns, "sysctl", lambda asked: bad if asked == name else "")
    error = userns.refusal(OSError(1, "Operation not permitted"))
    assert f"{name} = {bad}" in error.message
    assert f"sysctl -w {name}={wanted}" in error.hint


def test_a_process_with_threads_is_told_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns, "sysctl", lambda asked: "")
    assert "one thread" in userns.refusal(OSError(22, "Invalid argument")).hint


def tree(root: Path, *groups: str) -> None:
    for name in groups:
        directory = root / name
        directory.mkdir(parents=True)
        for file in ("tasks", "cgroup.procs", "cgroup.subtree_control"):
            (directory / file).touch()
        (directory / "cgroup.controllers").write_text("memory pids\n")


def test_v2_the_own_group_is_what_is_delegated(tmp_path: Path) -> None:
    tree(tmp_path, "user.slice/run-1.scope")
    where = Layout(unified=str(tmp_path), v2=("cpu", "io", "memory", "pids"))
    found = delegation.delegated(where, "0::/user.slice/run-1.scope\n")
    assert (found.unified, found.v2) == (str(tmp_path / "user.slice/run-1.scope"), ("memory", "pids"))
    # Once groups were made beside them, the session's processes are in a leaf.
    assert delegation.delegated(where, "0::/user.slice/run-1.scope/init\n") == found


def test_v2_a_group_of_somebody_else_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "session")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert delegation.delegated(Layout(unified=str(tmp_path), v2=("memory",)), "0::/session\n").kind == "none"
    assert delegation.delegated(Layout(unified=str(tmp_path), v2=("memory",)), "0::/../elsewhere\n").kind == "none"


def test_v2_what_the_users_systemd_can_hand_on(tmp_path: Path) -> None:
    where = Layout(unified=str(tmp_path), v2=("cpu", "memory", "pids"))
    assert delegation.of_manager(where, 1000) == ()
    tree(tmp_path, "user.slice/user-1000.slice/user@1000.service")
    assert delegation.of_manager(where, 1000) == ("memory", "pids")
    assert delegation.of_manager(where, 1001) == ()


def test_v1_each_controller_for_itself(tmp_path: Path) -> None:
    tree(tmp_path, "memory/mine")
    where = Layout(v1={"memory": str(tmp_path / "memory"), "pids": str(tmp_path / "pids")})
    found = delegation.delegated(where, "4:memory:/mine\n3:pids:/mine\n1:name=systemd:/\n")
    assert found.v1 == {"memory": str(tmp_path / "memory/mine")}


def test_what_was_delegated_is_found_again(tmp_path: Path) -> None:
    assert delegation.recorded(str(tmp_path)) is None
    where = Layout(unified="/sys/fs/cgroup/a", v2=("memory",))
    delegation.record(str(tmp_path), where)
    assert delegation.recorded(str(tmp_path)) == where
    (tmp_path / "delegation.json").write_text("{")
    assert delegation.recorded(str(tmp_path)) is None
