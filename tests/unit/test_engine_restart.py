"""Restart policies: the decision, the waiting, and the verbs around it, over an engine in memory."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre.engine import Engine, helpers, reap, restart
from nacre.errors import Conflict, InvalidArgument
from nacre.isolation.process import environment
from nacre.model.container import Container, ContainerSpec, State
from nacre.model.life import RestartPolicy
from nacre.store import Layout, Lock, is_locked
from nacre.testing.engine import fake_engine

ALWAYS = RestartPolicy(name="always")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(kind, id) of every helper that would have been started."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(helpers, "launch", lambda layout, kind, identifier: calls.append((kind, identifier)))
    monkeypatch.setattr(restart, "FIRST", 1)
    return calls


@pytest.fixture
def engine(tmp_path: Path, launched: list[tuple[str, str]]) -> Iterator[Engine]:
    with fake_engine(str(tmp_path)) as (made, _, _):
        yield made


def box(*command: str, policy: str = "always", maximum: int = 0, **fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", command=command, restart=RestartPolicy(name=policy, maximum=maximum), **fields)


def ended(policy: str, *, code: int = 1, maximum: int = 0, **fields: Any) -> Container:
    return Container(
        id="1" * 64,
        name="c",
        image_id="",
        image_name="box",
        spec=box(policy=policy, maximum=maximum),
        exit_code=code,
        started="x",
        **fields,
    )


# ---- the decision


@pytest.mark.parametrize(
    ("policy", "code", "owed"),
    [
        ("no", 1, False),
        ("always", 0, True),
        ("always", 1, True),
        ("unless-stopped", 0, True),
        ("on-failure", 0, False),
        ("on-failure", 137, True),
    ],
)
def test_what_the_policies_say(policy: str, code: int, owed: bool) -> None:
    assert (restart.decide(ended(policy, code=code), 0.0).restart_at > 0) is owed
    assert restart.decide(ended(policy, code=code, stopped=True), 0.0).restart_at == 0
    assert restart.decide(ended(policy, code=code, removing=True), 0.0).restart_at == 0


def test_a_maximum_is_kept() -> None:
    record = ended("on-failure", maximum=2)
    for count in (1, 2):
        record = restart.decide(record, 0.0)
        assert (record.restarts, record.restart_at > 0) == (count, True)
    record = restart.decide(record, 0.0)
    assert (record.restarts, record.restart_at) == (2, 0.0)


def test_the_wait_doubles_up_to_a_minute_and_begins_anew_after_ten_seconds() -> None:
    record, waits = ended("always"), []
    for _ in range(12):
        record = restart.decide(record, 9.9)
        waits.append(record.backoff)
    assert waits[:4] == [100, 200, 400, 800]
    assert waits[-2:] == [60_000, 60_000]
    assert restart.decide(record, 10.0).backoff == 100


def test_the_clock_may_jump() -> None:
    record = restart.decide(ended("always"), 0.0)
    assert 0 < restart.delay(record) <= 0.1
    assert restart.delay(record.replace(restart_at=record.restart_at + 1e6)) == 0.1
    assert restart.delay(record.replace(restart_at=1.0)) == 0.0


@pytest.mark.parametrize(
    ("policy", "removes", "message"),
    [
        (RestartPolicy(name="sometimes"), False, "unknown policy 'sometimes'"),
        (RestartPolicy(name="always", maximum=3), False, "only be used with 'on-failure'"),
        (RestartPolicy(name="on-failure", maximum=-1), False, "cannot be negative"),
        (RestartPolicy(name="always"), True, "both --restart and --rm"),
    ],
)
def test_policies_that_cannot_be(engine: Engine, policy: RestartPolicy, removes: bool, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        engine.containers.create(ContainerSpec(image="box", restart=policy, auto_remove=removes))
    assert engine.containers.list(all=True) == []


# ---- a life


def test_an_attached_caller_leaves_the_restart_to_a_helper(engine: Engine, launched: list[tuple[str, str]]) -> None:
    made = engine.containers.create(box("exit", "3"))
    stream = made.start(attach=True)
    assert stream is not None
    assert stream.wait() == 3
    assert launched == [("reap", made.id)]
    made.refresh()
    assert made.state is State.RESTARTING
    assert [item.id for item in engine.containers.list()] == [made.id]
    shown = made.inspect()
    state = shown["State"]
    assert (state["Status"], state["Running"], state["Restarting"], state["ExitCode"], state["Pid"]) == ("restarting", True, True, 3, 0)
    assert shown["RestartCount"] == 1
    assert shown["HostConfig"]["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
    for call in (lambda: made.exec(["true"]), made.attach, made.pause):
        with pytest.raises(Conflict, match="is restarting, wait until"):
            call()
    with pytest.raises(Conflict, match="is restarting: stop the container"):
        made.remove()
    assert engine.containers.prune() == []


def test_the_helper_starts_it_again_and_gives_up_when_its_count_is_reached(engine: Engine) -> None:
    made = engine.containers.run(box("exit", "3", policy="on-failure", maximum=2))
    engine.lifecycle.reaping = True
    made.wait()
    rounds = 0
    while reap.due(engine, made.id):
        reap.again(engine, made.id)
        while (record := engine.lifecycle.finish(made.id)) and record.pid:
            pass
        rounds += 1
    made.refresh()
    assert (rounds, made.state, made.record.restarts, made.record.exit_code) == (2, State.EXITED, 2, 3)
    actions = [event["action"] for event in engine.events(since=0) if event["type"] == "container"]
    assert actions == ["create", *["start", "die"] * 3]


def test_a_restart_that_fails_says_why_and_is_not_tried_again(tmp_path: Path, launched: list[tuple[str, str]]) -> None:
    with fake_engine(str(tmp_path)) as (engine, _, network):
        made = engine.containers.run(box("exit", "3"))
        made.wait()
        network.fail = Conflict("port is already allocated")
        reap.again(engine, made.id)
        made.refresh()
        assert (made.state, made.record.error) == (State.EXITED, "port is already allocated")
        assert not reap.due(engine, made.id)


@pytest.mark.parametrize("verb", ["stop", "kill", "remove", "start", "update"])
def test_verbs_between_two_runs(engine: Engine, verb: str, launched: list[tuple[str, str]]) -> None:
    made = engine.containers.run(box("exit", "3"))
    made.wait()
    assert made.state is State.RESTARTING
    if verb == "update":
        made.set_restart(RestartPolicy())
    else:
        getattr(made, verb)(**({"force": True} if verb == "remove" else {}))
    if verb == "remove":
        assert engine.containers.list(all=True) == []
    elif verb == "start":
        made.wait()
        assert (made.record.restarts, made.record.backoff) == (1, 1), "counted from the start by hand"
    else:
        made.refresh()
        assert (made.state, made.record.restart_at) == (State.EXITED, 0.0)
        reap.again(engine, made.id)
        assert made.refresh().state is State.EXITED
    assert not reap.due(engine, made.id) or verb == "start"


def test_what_somebody_ends_stays_ended(engine: Engine, launched: list[tuple[str, str]]) -> None:
    made = engine.containers.run(box("sleep"))
    made.stop()
    assert (made.refresh().state, made.record.stopped) == (State.EXITED, True)
    made.start()
    assert not made.refresh().record.stopped
    made.kill()
    assert made.refresh().state is State.EXITED
    assert launched == []
    # Docker's rule: with a stop signal of its own, only that and KILL mean the end.
    other = engine.containers.run(box("sleep", stop_signal="QUIT"))
    other.kill("HUP")
    other.wait()
    assert launched == [("reap", other.id)]


def test_a_restart_that_nobody_carries_out_is_noticed(engine: Engine, launched: list[tuple[str, str]]) -> None:
    made = engine.containers.run(box("exit", "3"))
    made.wait()
    made.rename("other")
    launched.clear()
    engine.containers.list()
    assert launched == [("reap", made.id)], "what is owed is durable, whatever else happens to the container"


def test_a_killed_starter_does_not_take_the_restart_along(engine: Engine, launched: list[tuple[str, str]]) -> None:
    made = engine.containers.run(box("exit", "3"))
    made.wait()
    record = made.refresh().record
    # What `start` writes before anything runs.
    engine._core.database.put(record.replace(pid=0, main=0), active=True, pending=True)
    launched.clear()
    engine.containers.list()
    assert engine.containers.get(made.id).state is State.RESTARTING
    assert ("reap", made.id) in launched


def test_a_kill_does_not_wait_for_a_stop(engine: Engine) -> None:
    made = engine.containers.run(box("sleep"))
    handle = engine.containers.get(made.id)
    engine._core.database.put(made.record.replace(stopped=True), active=True)  # what `stop` writes first
    with engine.lifecycle.verb(made.id):
        assert not handle._renounced(9)
    made.refresh()
    handle.kill()
    assert made.refresh().state is State.EXITED


def test_wait_answers_at_the_next_end(engine: Engine) -> None:
    made = engine.containers.run(box("exit", "3"))
    assert made.wait() == 3


def test_the_policy_can_be_changed(engine: Engine) -> None:
    made = engine.containers.run(box("sleep", policy="no"))
    made.set_restart(ALWAYS)
    assert engine.containers.get(made.id).record.spec.restart == ALWAYS
    with pytest.raises(InvalidArgument, match="unknown policy"):
        made.set_restart(RestartPolicy(name="never"))
    removing = engine.containers.run(ContainerSpec(image="box", auto_remove=True))
    with pytest.raises(InvalidArgument, match="--rm"):
        removing.set_restart(ALWAYS)


# ---- helper processes


def test_a_helper_works_until_nothing_is_due(tmp_path: Path) -> None:
    layout, todo = Layout(str(tmp_path)), [1, 2]
    path = helpers.mark(layout, "reap", "c")

    def work() -> None:
        assert is_locked(path)
        todo.pop()

    helpers.serve(layout, "reap", "c", "", lambda: bool(todo), work)
    assert todo == []
    assert not os.path.exists(path)


def test_what_is_asked_of_a_leaving_helper_is_done(tmp_path: Path) -> None:
    layout, done = Layout(str(tmp_path)), []
    answers = [True, False, True, True, False, False]
    helpers.serve(layout, "reap", "c", "", lambda: answers.pop(0), lambda: done.append(1))
    assert (len(done), answers) == (2, [])


def test_two_helpers_do_not_work_at_once(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    os.makedirs(f"{layout.run}/helpers")
    with Lock(helpers.mark(layout, "reap", "c")):
        helpers.serve(layout, "reap", "c", "", lambda: True, lambda: pytest.fail("it is somebody else's"))


def test_a_helper_is_dismissed_and_a_killed_one_revived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(str(tmp_path))
    code = (
        "import sys, time\nfrom nacre.engine import helpers\nfrom nacre.store import Layout\n"
        "helpers.serve(Layout(sys.argv[1]), 'reap', 'c', '', lambda: True, lambda: (print('at work', flush=True), time.sleep(60)))"
    )
    path = helpers.mark(layout, "reap", "c")
    started: list[str] = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"at work\n"
            if number == signal.SIGTERM:
                helpers.dismiss(layout, "reap", "c")
            else:
                process.kill()
            assert process.wait(10) == -number
        with monkeypatch.context() as patch:
            patch.setattr(helpers, "launch", lambda _, kind, identifier: started.append(f"{identifier}.{kind}"))
            helpers.revive(layout)
    assert started == ["c.reap"]
    assert not os.path.exists(path)


LOOK = """
import os, sys
from nacre.engine import helpers
helpers.begin(sys.argv[7])
held = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        held[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass  # of the listing itself
with open(sys.argv[4] + "/new", "w") as file:
    print(held, os.getsid(0), sep="\\n", file=file)
os.rename(sys.argv[4] + "/new", sys.argv[4] + "/seen")
"""


def test_a_detached_helper_keeps_nothing_of_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, python = Layout(str(tmp_path)), sys.executable
    (tmp_path / "look.py").write_text(LOOK)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {python} {tmp_path}/look.py "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    secret = os.open(str(tmp_path / "secret"), os.O_CREAT | os.O_WRONLY)
    os.set_inheritable(secret, True)
    try:
        helpers.launch(layout, "reap", "c")
        deadline = time.monotonic() + 30
        while not (tmp_path / "seen").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        os.close(secret)
    held, session = (tmp_path / "seen").read_text().splitlines()
    targets = ast.literal_eval(held)
    assert [targets.pop(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
    assert list(targets.values()) == [helpers.mark(layout, "reap", "c")]
    assert int(session) != os.getsid(0)


def test_a_helper_is_the_same_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NACRE_BRIDGE", "NACRE_ACCEL", "LD_PRELOAD", "SECRET"):
        monkeypatch.setenv(name, "x")
    kept = environment()
    assert {"NACRE_BRIDGE", "NACRE_ACCEL", "PATH"} <= set(kept)
    assert not {"LD_PRELOAD", "SECRET"} & set(kept)


def test_after_a_boot_of_the_host(engine: Engine, launched: list[tuple[str, str]]) -> None:
    """The run directory is empty, and the row says that it runs."""
    kept = {}
    for policy, stopped in (("always", False), ("unless-stopped", False), ("no", False)):
        made = engine.containers.create(box(policy=policy))
        record = made.record.replace(started="2026-01-02T03:04:05.000000000Z", main=1, pid=5, stopped=stopped)
        engine._core.database.put(record, active=True)
        kept[policy] = made
    engine.containers.list()
    assert {policy: made.refresh().state for policy, made in kept.items()} == {
        "always": State.RESTARTING,
        "unless-stopped": State.RESTARTING,
        "no": State.EXITED,
    }
    assert {identifier for _, identifier in launched} == {kept["always"].id, kept["unless-stopped"].id}
