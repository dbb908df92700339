"""Health checks: what is checked, what the results mean, and the helper that checks, over an engine in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre.engine import Engine, health, helpers
from nacre.errors import Conflict, InvalidArgument
from nacre.isolation.channel import Channel
from nacre.model.container import Container, ContainerSpec
from nacre.model.image import ImageConfig
from nacre.model.life import HealthConfig
from nacre.testing.engine import fake_engine

SECOND = 1_000_000_000
FAST = SECOND // 1000


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the helpers that would have been started."""
    calls: list[str] = []
    monkeypatch.setattr(helpers, "launch", lambda layout, kind, identifier: calls.append(kind))
    return calls


@pytest.fixture
def engine(tmp_path: Path, launched: list[str]) -> Iterator[Engine]:
    with fake_engine(str(tmp_path)) as (made, _, _):
        yield made


def box(*test: str, command: str = "sleep", **fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", command=(command,), health=HealthConfig(test=test, **fields))


def record(asked: HealthConfig | None, image: dict[str, Any] | None) -> Container:
    spec = ContainerSpec(image="box", health=asked)
    return Container(id="1" * 64, name="c", image_id="", image_name="box", spec=spec, image_config=ImageConfig(healthcheck=image))


# ---- what is checked


def test_what_was_asked_for_wins_over_the_image() -> None:
    image = {"Test": ["CMD-SHELL", "true"], "Interval": 5 * SECOND, "Retries": 7}
    assert health.effective(record(None, None)) is None
    assert health.effective(record(None, image)) == HealthConfig(test=("CMD-SHELL", "true"), interval=5 * SECOND, retries=7)
    merged = health.effective(record(HealthConfig(retries=1, timeout=SECOND), image))
    assert merged == HealthConfig(test=("CMD-SHELL", "true"), interval=5 * SECOND, timeout=SECOND, retries=1)
    assert health.effective(record(HealthConfig(test=("NONE",)), image)) is None
    assert health.effective(record(HealthConfig(interval=SECOND), None)) is None


@pytest.mark.parametrize("image", [{}, {"Test": "true"}, {"Test": []}, {"Test": ["CMD"]}, {"Test": ["NONE"]}, {"Test": ["BASIC", "x"]}])
def test_an_image_that_says_nothing_sensible(image: dict[str, Any]) -> None:
    assert health.effective(record(None, image)) is None
    odd = {"Test": ["CMD", "a"], "Interval": "soon", "Retries": -1, "Timeout": None}
    assert health.from_image(odd) == HealthConfig(test=("CMD", "a"))


def test_the_arguments() -> None:
    one = record(None, None)
    assert health.arguments(HealthConfig(test=("CMD", "a", "b c")), one) == ("a", "b c")
    assert health.arguments(HealthConfig(test=("CMD-SHELL", "a | b")), one) == ("/bin/sh", "-c", "a | b")
    shell = one.replace(image_config=ImageConfig(shell=("/bin/bash", "-ec")))
    assert health.arguments(HealthConfig(test=("CMD-SHELL", "a | b")), shell) == ("/bin/bash", "-ec", "a | b")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HealthConfig(interval=999_999), "Interval in Healthcheck cannot be less than 1ms"),
        (HealthConfig(start_period=-1), "StartPeriod in Healthcheck cannot be less than 1ms"),
        (HealthConfig(retries=-1), "Retries in Healthcheck cannot be negative"),
        (HealthConfig(test=("PERHAPS", "x")), "Unknown healthcheck type"),
    ],
)
def test_what_cannot_be(engine: Engine, config: HealthConfig, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        engine.containers.create(ContainerSpec(image="box", health=config))


# ---- what the results mean


def outcome(codes: str, **fields: Any) -> list[tuple[str, int]]:
    """(status, streak) after each result: ``+`` success, ``-`` failure; a second passes between two."""
    config, state, seen = HealthConfig(**fields), health.fresh(), []
    for number, code in enumerate(codes):
        state = health.judge(state, {"ExitCode": int(code == "-")}, config, float(number))
        seen.append((state["Status"], state["FailingStreak"]))
    return seen


def test_three_failures_in_a_row() -> None:
    assert outcome("--+---+") == [
        *(("starting", 1), ("starting", 2), ("healthy", 0)),
        *(("healthy", 1), ("healthy", 2), ("unhealthy", 3), ("healthy", 0)),
    ]
    assert outcome("-", retries=1) == [("unhealthy", 1)]


def test_failures_in_the_start_period_do_not_count_until_the_first_success() -> None:
    assert outcome("----", retries=1, start_period=3 * SECOND) == [("starting", 0)] * 3 + [("unhealthy", 1)]
    assert outcome("-+-", retries=1, start_period=60 * SECOND)[-1] == ("unhealthy", 1)


def test_the_last_five_results_are_kept() -> None:
    state = health.fresh()
    for number in range(8):
        state = health.judge(state, {"ExitCode": number}, HealthConfig(), 0.0)
    assert [entry["ExitCode"] for entry in state["Log"]] == [3, 4, 5, 6, 7]


def test_intervals() -> None:
    config = HealthConfig(start_period=10 * SECOND)
    assert health.pause(config, "starting", 9.0) == 5
    assert health.pause(config, "starting", 10.0) == 30
    assert health.pause(config, "healthy", 1.0) == 30
    assert health.pause(config.replace(interval=SECOND, start_interval=2 * SECOND), "starting", 0.0) == 2


# ---- a life


def test_results_are_told_and_changes_are_events(engine: Engine, launched: list[str]) -> None:
    made = engine.containers.run(box("CMD", "echo", "fine"))
    assert launched == ["health"]
    assert made.health() == {"Status": "starting", "FailingStreak": 0, "Log": []}
    for _ in range(2):
        assert made.check_health()["ExitCode"] == 0
    shown = made.inspect()
    assert shown["State"]["Health"]["Status"] == "healthy"
    assert [(entry["ExitCode"], entry["Output"]) for entry in shown["State"]["Health"]["Log"]] == [(0, "fine\n")] * 2
    assert shown["Config"]["Healthcheck"] == {"Test": ["CMD", "echo", "fine"]}
    actions = [event["action"] for event in engine.events(since=0) if event["type"] == "container"]
    assert actions == ["create", "start", "health_status: healthy"]
    made.stop()
    assert (made.refresh().health() or {})["Status"] == "unhealthy", "as Docker tells of what does not run"
    made.start()
    assert (made.health() or {})["Log"] == []


@pytest.mark.parametrize(("program", "code", "output"), [("false", 1, ""), ("missing", -1, "executable file not found in $PATH")])
def test_a_failing_check(engine: Engine, program: str, code: int, output: str) -> None:
    made = engine.containers.run(box("CMD", program, retries=1))
    result = made.check_health()
    assert result["ExitCode"] == code
    assert output in result["Output"]
    assert (made.health() or {})["Status"] == "unhealthy"


def test_a_check_that_takes_too_long_is_killed(engine: Engine) -> None:
    made = engine.containers.run(box("CMD", "sleep", timeout=SECOND // 100))
    result = made.check_health()
    assert result["ExitCode"] == -1
    assert result["Output"] == "Health check exceeded timeout (0.01s): "


def test_there_must_be_something_to_check(engine: Engine) -> None:
    made = engine.containers.run(ContainerSpec(image="box", command=("sleep",)))
    assert made.health() is None
    assert "Health" not in made.inspect()["State"]
    with pytest.raises(InvalidArgument, match="has no health check"):
        made.check_health()
    stopped = engine.containers.create(box("CMD", "true"))
    with pytest.raises(Conflict, match="not running"):
        stopped.check_health()
    assert stopped.health() is None


def test_the_helper_checks_as_long_as_it_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine.containers.run(box("CMD", "true", interval=FAST))
    results: list[dict[str, Any]] = []

    def three_times(core: Any, handle: Any) -> None:
        results.append(run_once(core, handle))
        if len(results) == 3:
            made.stop()

    run_once = health.run_once
    monkeypatch.setattr(health, "run_once", three_times)
    core = engine.lifecycle.core
    assert health.due(engine, made.id)
    helpers.serve(core.layout, "health", made.id, "", lambda: health.due(engine, made.id), lambda: health.attend(engine, core, made.id))
    assert [result["ExitCode"] for result in results] == [0, 0, 0]
    assert not os.path.exists(helpers.mark(core.layout, "health", made.id))


def test_a_damaged_state_is_no_obstacle(engine: Engine) -> None:
    made = engine.containers.run(box("CMD", "true"))
    path = f"{engine.lifecycle.core.layout.container(made.id)}/health"
    Path(path).write_text('{"Status": "hea')
    assert (made.health() or {})["Status"] == "starting"
    made.check_health()
    assert json.loads(Path(path).read_text())["Status"] == "healthy"


def test_a_sandbox_that_does_not_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(channel: Channel, spawn: object, *, timeout: float | None = None) -> tuple[int, int]:
        assert timeout == 2.0
        raise TimeoutError

    made = engine.containers.run(box("CMD", "true", timeout=2 * SECOND, retries=1))
    monkeypatch.setattr(Channel, "spawn", never)
    result = made.check_health()
    assert (result["ExitCode"], result["Output"]) == (-1, "Health check exceeded timeout (2s): ")
    assert (made.health() or {})["Status"] == "unhealthy"
