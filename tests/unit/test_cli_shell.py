"""`unshare` and `enter`: what their flags ask for."""

from __future__ import annotations

from typing import Any

import pytest

import nacre.engine
from nacre.cli.commands.shell import COMMANDS
from nacre.cli.context import Context
from nacre.cli.flags import UsageError
from nacre.engine import parse_namespaces
from nacre.errors import InvalidArgument


@pytest.fixture
def unshare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`unshare("-n", ...)`: program, namespaces and wishes of one command line."""
    seen: list[Any] = []

    def record(argv: list[str], kinds: list[str], **wishes: Any) -> int:
        seen[:] = [argv, sorted(kinds), {name: value for name, value in wishes.items() if value not in ("", False, -1)}]
        return 7

    def run(*words: str) -> list[Any]:
        args = COMMANDS["unshare"].parse("unshare", words)
        assert args is not None
        assert COMMANDS["unshare"].run(Context(), args) == 7
        return list(seen)

    monkeypatch.setattr(nacre.engine, "unshare", record, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return run


def test_flags_of_unshare(unshare: Any) -> None:
    private = {"propagation": "private"}
    assert unshare("-mn", "sh", "-c", "x") == [["sh", "-c", "x"], ["mnt", "net"], private]
    assert unshare("--mount", "--uts", "--ipc", "--net", "--pid", "--user", "--cgroup", "--time") == [
        [], ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"], private,
    ]  # fmt: skip
    child = ("-f", "--kill-child", "--mount-proc", "--propagation", "slave")
    assert unshare("-r", "-S", "5", "-G", "6", "-w", "/x", "-R", "/y", *child, "id") == [
        ["id"],
        [],
        {
            "mapping": "root", "uid": 5, "gid": 6, "directory": "/x", "root": "/y", "fork": True, "kill_child": True, "mount_proc": True,
            "propagation": "slave",
        },
    ]  # fmt: skip
    assert unshare("-c")[2]["mapping"] == "current"
    with pytest.raises(UsageError, match="exclude each other"):
        unshare("-r", "-c")


def test_namespaces_to_enter() -> None:
    assert parse_namespaces("") == ("net", "ipc", "uts", "pid", "cgroup")
    assert parse_namespaces("net, mnt,net") == ("net", "mnt")
    assert set(parse_namespaces("all")) == {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}
    with pytest.raises(InvalidArgument, match="unknown namespace: network"):
        parse_namespaces("network")


def test_flags_of_enter_stop_at_the_dashes() -> None:
    args = COMMANDS["enter"].parse("enter", ["web", "--namespaces", "net", "--", "ip", "-4", "addr"])
    assert args is not None
    assert (args.rest, args.namespaces) == (["web", "ip", "-4", "addr"], "net")
    with pytest.raises(UsageError):
        COMMANDS["enter"].parse("enter", [])
