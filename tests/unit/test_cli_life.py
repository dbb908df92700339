"""Flags, columns and commands around a container's life: restarts, health checks, logs, events, differences."""

from __future__ import annotations

import pytest

from nacre.cli.commands.ps import status_text
from nacre.cli.commands.run import COMMANDS
from nacre.cli.flags import UsageError
from nacre.cli.spec import container_spec
from nacre.engine import Engine, helpers, restart
from nacre.model.container import ContainerSpec
from nacre.model.life import RestartPolicy
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
