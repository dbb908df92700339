"""The command line of the OCI runtime: flags as runc takes them, the log that engines read, numbers and durations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nacre.errors import InvalidArgument
from nacre.ociruntime import limits, main, options, watch
from nacre.ociruntime.log import Log

TABLE = {"bundle,b": "s", "detach,d": "b", "env,e": "l", "count": "i"}


@pytest.mark.parametrize(
    "words", [["--bundle", "/x", "-d", "id", "-b"], ["-bundle=/x", "--detach=true", "id", "-b"], ["-b", "/x", "--detach", "--", "id", "-b"]]
)
def test_flags_end_at_the_first_operand(words: list[str]) -> None:
    flags, rest = options.parse(words, TABLE, "run")
    assert rest == ["id", "-b"] and flags.text("bundle") == "/x" and flags.on("detach") and not flags.given("env")


def test_flags_repeat_and_count() -> None:
    flags, rest = options.parse(["-e", "A=1", "--env=B=2=3", "--count", "-5", "-"], TABLE, "exec")
    assert flags.texts("env") == ["A=1", "B=2=3"] and flags.number("count") == -5 and rest == ["-"]


@pytest.mark.parametrize("words", [["--nope"], ["--bundle"], ["--count", "x"], ["--detach=maybe"]])
def test_wrong_flags(words: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        options.parse(words, TABLE, "run")


def test_every_verb_has_its_table() -> None:
    for verb, (module, _summary) in main.VERBS.items():
        loaded = __import__(f"nacre.ociruntime.{module}", fromlist=("",))
        assert isinstance(getattr(loaded, f"TABLE_{verb.upper()}"), dict) and callable(getattr(loaded, f"do_{verb}"))


def test_the_log_is_what_engines_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.json"
    assert main.main(["--root", str(tmp_path / "r"), "--log", str(path), "--log-format", "json", "start", "nobody"]) == 1
    line = json.loads(path.read_text().splitlines()[-1])
    assert line["level"] == "error" and line["msg"] == "container does not exist" and line["time"].endswith("Z")
    assert capsys.readouterr().err == "container does not exist\n"


def test_the_log_as_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path), debug=True)
    log.debug("a")
    log.warning('say "b"')
    Log(str(path)).debug("not written")
    first, second = path.read_text().splitlines()
    assert first.endswith('level=debug msg="a"') and second.endswith(r'level=warning msg="say \"b\""')


def test_a_mistake_of_ours_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(main, "dispatch", broken)
    path = tmp_path / "log"
    assert main.main(["--log", str(path), "list"]) == 1
    assert "internal error: ZeroDivisionError: oops" in path.read_text()


@pytest.mark.parametrize("words", [["--version"], ["-v"]])
def test_version_is_what_engines_parse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("nacre-oci version ") and second == "spec: 1.2.1"


@pytest.mark.parametrize(
    "words", [["frobnicate"], ["--log-format", "xml", "list"], ["state"], ["state", "a", "b"], ["kill"], ["exec", "x"], ["ps"]]
)
def test_wrong_commands(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--root", str(tmp_path), *words]) == 1
    assert capsys.readouterr().err.strip()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 2000])
def test_wrong_ids(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--root", str(tmp_path), "delete", "--force", name]) == 1
    assert "id" in capsys.readouterr().err


def test_what_was_never_made_can_be_removed_by_force(tmp_path: Path) -> None:
    assert main.main(["--root", str(tmp_path), "delete", "--force", "nobody"]) == 0
    assert main.main(["--root", str(tmp_path), "delete", "nobody"]) == 1


def test_a_damaged_record_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {
        "id": "whole", "pid": 0, "bundle": "/b", "rootfs": "/r", "created": "now", "owner": 0, "annotations": {}, "status": "creating",
        "version": "1.2.0", "cgroup": {"memory": "/from/another/version"},
    }  # fmt: skip
    for name, text in (("broken", "{"), ("short", '{"id": "short"}'), ("whole", json.dumps(whole))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(text)
    assert main.main(["--root", str(tmp_path), "list", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out == "whole\n" and "broken is left out" in said.err and "short is left out" in said.err
    assert main.main(["--root", str(tmp_path), "delete", "--force", "whole"]) == 0 and not (tmp_path / "whole").exists()


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5.0), ("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0)])
def test_durations(text: str, seconds: float) -> None:
    assert watch._seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1x", "0s"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        watch._seconds(text)


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("memory", "64m", 64 << 20),
        ("memory", "1.5g", 3 << 29),
        ("memory-swap", "-1", -1),
        ("memory", "100b", 100),
        ("cpuset-cpus", "0-1", "0-1"),
        ("cpu-quota", "-1", -1),
    ],
)
def test_limits_by_flags(flag: str, text: str, value: int | str) -> None:
    assert limits._value(flag, text) == value


@pytest.mark.parametrize(("flag", "text"), [("memory", "x"), ("memory", "1q"), ("cpu-share", "many"), ("memory", "")])
def test_limits_that_are_none(flag: str, text: str) -> None:
    with pytest.raises(InvalidArgument):
        limits._value(flag, text)
