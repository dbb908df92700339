"""Flags, columns and commands around a container's life: restarts, health checks, logs, events, differences."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nacre.cli import main
from nacre.cli.commands.ps import status_text
from nacre.cli.commands.run import COMMANDS
from nacre.cli.flags import UsageError
from nacre.cli.spec import container_spec
from nacre.engine import Engine, helpers, restart
from nacre.errors import InvalidArgument
from nacre.model.container import ContainerSpec
from nacre.model.life import HealthConfig, LogConfig, RestartPolicy
from nacre.testing.engine import fake_engine


def spec(*argv: str) -> ContainerSpec:
    args = COMMANDS["run"].parse("run", argv)
    assert args is not None
    return container_spec(args, args.rest[0], args.rest[1:], detached=args.detach)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("no", RestartPolicy()),
        ("always", RestartPolicy(name="always")),
        ("unless-stopped", RestartPolicy(name="unless-stopped")),
        ("on-failure", RestartPolicy(name="on-failure")),
        ("on-failure:5", RestartPolicy(name="on-failure", maximum=5)),
    ],
)
def test_restart(text: str, policy: RestartPolicy) -> None:
    assert spec("--restart", text, "box").restart == policy


def test_restart_with_a_count_that_is_none() -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        spec("--restart", "on-failure:many", "box")


def test_the_status_of_a_restarting_container(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "launch", lambda *_: None)
    monkeypatch.setattr(restart, "FIRST", 60_000)
    with fake_engine(str(tmp_path)) as (engine, _, _):
        assert isinstance(engine, Engine)
        made = engine.containers.run(ContainerSpec(image="box", command=("exit", "7"), restart=RestartPolicy(name="always")))
        made.wait()
        assert status_text(made).startswith("Restarting (7) ")
        made.remove(force=True)


def test_health_flags() -> None:
    assert spec("box").health is None
    assert spec("--no-healthcheck", "box").health == HealthConfig(test=("NONE",))
    words = "--health-cmd true --health-interval 1m30s --health-timeout 250ms --health-retries 4 --health-start-period 2s"
    made = spec(*words.split(), "--health-start-interval", "500ms", "box").health
    assert made == HealthConfig(
        test=("CMD-SHELL", "true"), interval=90 * 10**9, timeout=25 * 10**7, retries=4, start_period=2 * 10**9, start_interval=5 * 10**8
    )
    assert spec("--health-retries", "4", "box").health == HealthConfig(retries=4)
    with pytest.raises(UsageError, match="conflicts with --health"):
        spec("--no-healthcheck", "--health-cmd", "true", "box")
    with pytest.raises(InvalidArgument):
        spec("--health-interval", "soon", "box")


def test_health_in_ps_and_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(helpers, "launch", lambda *_: None)
    with fake_engine(str(tmp_path)) as (engine, _, _):
        monkeypatch.setattr("nacre.engine.Engine", lambda *_, **__: engine)
        well = engine.containers.run(ContainerSpec(image="box", name="well", health=HealthConfig(test=("CMD", "true"))))
        engine.containers.run(ContainerSpec(image="box", name="ill", health=HealthConfig(test=("CMD", "exit", "3"), retries=1)))
        engine.containers.run(ContainerSpec(image="box", name="plain"))
        assert status_text(well) == "Up Less than a second (health: starting)"
        assert main(["healthcheck", "run", "well"]) == 0
        assert main(["healthcheck", "run", "ill"]) == 1
        assert capsys.readouterr().out == "unhealthy\n"
        assert status_text(well) == "Up Less than a second (healthy)"
        for value, names in {"healthy": "well\n", "unhealthy": "ill\n", "none": "plain\n", "starting": ""}.items():
            assert main(["ps", "--filter", f"health={value}", "--format", "{{.Names}}"]) == 0
            assert capsys.readouterr().out == names
        assert main(["ps", "--filter", "health=fine"]) == 125


def test_log_flags() -> None:
    made = spec("--log-driver", "syslog", "--log-opt", "tag=x=y", "--log-opt", "labels=a", "box").log
    assert made == LogConfig(driver="syslog", options={"tag": "x=y", "labels": "a"})
    with pytest.raises(UsageError, match="expected name=value"):
        spec("--log-opt", "max-size", "box")


@pytest.fixture
def nacre_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """`nacre_("ps")`: runs a command line; its output."""

    def run(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        return capsys.readouterr().out

    with fake_engine(str(tmp_path)) as (engine, _, _):
        monkeypatch.setattr("nacre.engine.Engine", lambda *_, **__: engine)
        yield run


def test_prune_with_filters(nacre_: Callable[..., str]) -> None:
    for name, words in {"old": ("-l", "a=1"), "new": ("-l", "a=2"), "plain": ()}.items():
        nacre_("create", "--name", name, *words, "box")

    def left(*filters: str) -> str:
        nacre_("container", "prune", "-f", *(word for text in filters for word in ("--filter", text)))
        return nacre_("ps", "-a", "--format", "{{.Names}}")

    assert left("until=1h") == "plain\nnew\nold\n"
    assert left("label=a=1") == "plain\nnew\n"
    assert left("label!=a") == "new\n"
    assert left("until=0s") == ""
    nacre_("container", "prune", "-f", "--filter", "name=x", code=125)


def test_stop_with_another_signal(nacre_: Callable[..., str]) -> None:
    nacre_("run", "-d", "--name", "one", "box", "sleep")
    assert nacre_("stop", "-s", "QUIT", "one") == "one\n"
    assert nacre_("inspect", "-f", "{{.State.ExitCode}}", "one") == "131\n"
    nacre_("stop", "--signal", "NONSENSE", "one", code=1)


def test_conditions_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(str(tmp_path)) as (engine, _, _):
        made = engine.containers.create(ContainerSpec(image="box", command=("exit", "4")))
        codes: list[int] = []
        original = time.sleep

        def while_waiting(condition: str, act: Callable[[], object]) -> None:
            handle, looked = engine.containers.get(made.id), threading.Event()

            def sleep(pause: float) -> None:
                looked.set()
                original(pause)

            monkeypatch.setattr(time, "sleep", sleep)
            waiting = threading.Thread(target=lambda: codes.append(handle.wait(condition)))
            waiting.start()
            assert looked.wait(30)
            monkeypatch.undo()
            act()
            waiting.join(30)

        while_waiting("next-exit", made.start)
        while_waiting("removed", made.remove)
        assert codes == [4, 4]
        with pytest.raises(InvalidArgument, match="invalid condition"):
            engine.containers.create(ContainerSpec(image="box")).wait("sleepy")
