"""The verbs over an engine in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nacre.engine import Engine
from nacre.errors import CommandNotExecutable, CommandNotFound, Conflict, HostError, InvalidArgument, NotFound
from nacre.model.container import ContainerSpec, Level, MountSpec, Resources, State
from nacre.store import Lock
from nacre.testing.engine import fake_engine


@pytest.fixture
def fake(tmp_path: Any) -> Iterator[Any]:
    with fake_engine(str(tmp_path)) as made:
        yield made


@pytest.fixture
def engine(fake: Any) -> Engine:
    return fake[0]  # type: ignore[no-any-return]


def box(*command: str, **fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", command=command, **fields)


def test_life_of_a_container(fake: Any) -> None:
    engine, rootfs, network = fake
    made = engine.containers.create(box("sleep", name="one"))
    assert made.state is State.CREATED
    made.start()
    assert made.state is State.RUNNING
    assert network.attached == {made.id}
    assert [item.name for item in engine.containers.list()] == ["one"]
    made.stop()
    assert made.state is State.EXITED
    assert made.refresh().record.exit_code == 128 + 15
    assert engine.containers.list() == []
    assert [item.name for item in engine.containers.list(all=True)] == ["one"]
    assert network.attached == set()
    made.start()
    made.kill("KILL")
    assert engine.containers.get("one").record.exit_code == 137
    made.remove()
    assert rootfs.prepared == set()
    with pytest.raises(NotFound):
        engine.containers.get("one")


def test_attached_run_sees_everything_from_the_first_byte(engine: Engine) -> None:
    made = engine.containers.create(box("echo", "hello", "there"))
    stream = made.start(attach=True)
    assert stream is not None
    assert stream.communicate() == (0, b"hello there\n", b"")
    assert made.refresh().record.exit_code == 0
    assert b"".join(record.data for record in made.logs()) == b"hello there\n"


def test_input_reaches_the_process(engine: Engine) -> None:
    stream = engine.containers.create(box("cat", open_stdin=True)).start(attach=True)
    assert stream is not None
    assert stream.communicate(b"up\nand down\n") == (0, b"up\nand down\n", b"")


def test_exit_codes_and_wait(engine: Engine) -> None:
    made = engine.containers.run(box("exit", "42"))
    assert made.wait() == 42
    assert made.wait() == 42
    assert made.state is State.EXITED


def test_exec_joins_and_returns_its_own_code(engine: Engine) -> None:
    made = engine.containers.run(box("sleep"))
    assert made.exec(["echo", "inside"]).communicate() == (0, b"inside\n", b"")
    assert made.exec(["exit", "3"]).wait() == 3
    assert made.state is State.RUNNING
    made.remove(force=True)
    with pytest.raises(Conflict, match="not running"):
        made.exec(["true"])


@pytest.mark.parametrize(("command", "kind", "code"), [("missing", CommandNotFound, 127), ("forbidden", CommandNotExecutable, 126)])
def test_a_command_that_cannot_start_leaves_nothing_running(fake: Any, command: str, kind: type, code: int) -> None:
    engine, _, network = fake
    made = engine.containers.create(box(command))
    with pytest.raises(kind):
        made.start()
    assert made.refresh().state is State.CREATED or made.state is State.EXITED
    assert made.record.exit_code == code
    assert command in made.record.error
    assert network.attached == set()
    assert not os.path.exists(engine._core.layout.sandbox(made.id))


def test_names(engine: Engine) -> None:
    first = engine.containers.create(box(name="twin"))
    with pytest.raises(Conflict, match="already in use by container"):
        engine.containers.create(box(name="twin"))
    second = engine.containers.create(box())
    assert second.name != first.name
    with pytest.raises(Conflict):
        second.rename("twin")
    second.rename("other")
    assert engine.containers.get("other").id == second.id
    assert engine.containers.get(second.id[:8]).id == second.id
    with pytest.raises(InvalidArgument):
        engine.containers.create(box(name="no spaces"))


def test_a_running_container_is_not_removed_without_force(engine: Engine) -> None:
    made = engine.containers.run(box("sleep"))
    with pytest.raises(Conflict, match="stop the container"):
        made.remove()
    made.remove(force=True)


def test_auto_remove(engine: Engine) -> None:
    made = engine.containers.run(box("sleep", auto_remove=True))
    made.stop()
    with pytest.raises(NotFound):
        engine.containers.get(made.id)
    gone = engine.containers.run(box("true", auto_remove=True))
    assert gone.wait() == 0
    with pytest.raises(NotFound):
        engine.containers.get(gone.id)


def test_a_failing_step_leaves_nothing(fake: Any) -> None:
    engine, _, network = fake
    made = engine.containers.create(box())
    network.fail = HostError("no bridge today")
    with pytest.raises(HostError):
        made.start()
    assert "no bridge today" in made.refresh().record.error
    assert not os.path.exists(engine._core.layout.sandbox(made.id))
    made.start()
    assert made.state is State.RUNNING


def test_a_run_whose_caller_died_is_swept(fake: Any) -> None:
    engine, rootfs, _ = fake
    orphan = engine.containers.create(box(auto_remove=True), pending=True)
    rootfs.prepared.add(orphan.id)
    engine.containers.create(box())
    assert engine.containers.get(orphan.id).state is State.CREATED, "its maker lives"
    assert orphan._claim
    orphan._claim.release()  # what the kernel does when the maker dies
    engine.containers.create(box())
    with pytest.raises(NotFound):
        engine.containers.get(orphan.id)
    assert rootfs.prepared == set()


def test_a_lost_sandbox_is_noticed(engine: Engine) -> None:
    made = engine.containers.run(box("sleep"))
    record = made.record
    # What a killed stem leaves: a record that says active, no exit record, a free lock.
    made.kill("KILL")
    os.unlink(f"{engine._core.layout.container(made.id)}/exit")
    engine._core.database.put(record, active=True)
    again = engine.containers.get(made.id)
    assert again.state is State.EXITED
    assert again.record.exit_code == 137
    assert "killed" in again.record.error


def test_two_callers_take_turns(engine: Engine) -> None:
    made = engine.containers.create(box())
    with engine.lifecycle.verb(made.id), pytest.raises(Conflict, match="busy"), engine.lifecycle.verb(made.id, wait=0):
        pass


def test_the_environment_is_merged_in_dockers_order(engine: Engine) -> None:
    made = engine.containers.create(box(env=("COLOR=red", "X=1"), hostname="h", tty=True))
    env = dict(entry.split("=", 1) for entry in made.record.process.env)
    assert env["COLOR"] == "red"
    assert env["HOSTNAME"] == "h"
    assert env["TERM"] == "xterm"
    assert env["PATH"].startswith("/usr/local/sbin")


@pytest.mark.parametrize(
    "fields",
    [
        {"resources": Resources(memory=4 << 20)},
        {"working_dir": "relative"},
        {"env": ("=x",)},
        {"mounts": (MountSpec(kind="tmpfs", target="/"),)},
        {"mounts": (MountSpec(kind="tmpfs", target="/a"), MountSpec(kind="tmpfs", target="/a/"))},
        {"cap_add": ("NONSENSE",)},
    ],
)
def test_nonsense_is_refused_before_anything_exists(engine: Engine, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        engine.containers.create(box(**fields))
    assert engine.containers.list(all=True) == []


def test_the_level_is_a_field(engine: Engine) -> None:
    for level in Level:
        made = engine.containers.create(box("echo", "x", isolation=level))
        stream = made.start(attach=True)
        assert stream is not None
        assert stream.communicate()[1] == b"x\n"
        assert made.inspect()["Isolation"]["Level"] == level


def test_events_are_recorded_in_order(engine: Engine) -> None:
    made = engine.containers.run(box("true", name="seen"))
    made.wait()
    actions = [event["action"] for event in engine.events(since=0.0) if event["id"] == made.id]
    assert actions == ["create", "start", "die"]


def test_tail_and_window_of_logs(engine: Engine) -> None:
    made = engine.containers.create(box("cat", open_stdin=True))
    stream = made.start(attach=True)
    assert stream is not None
    stream.communicate(b"1\n2\n3\n4\n")
    assert b"".join(record.data for record in made.logs(tail=2)) == b"3\n4\n"
    assert b"".join(record.data for record in made.logs(tail=0)) == b""
    assert b"".join(record.data for record in made.logs(tail=99)) == b"1\n2\n3\n4\n"
    assert list(made.logs(until=1.0)) == []


def test_a_lock_is_released_by_its_owner_alone(tmp_path: Any) -> None:
    path = str(tmp_path / "lock")
    with Lock(path), pytest.raises(Conflict), Lock(path, wait=0):
        pass
    with Lock(path, wait=0):
        pass


COMING_UP = """
import fcntl, os, sys
lock = open(sys.argv[1] + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
with open(sys.argv[1] + "/stem.pid", "w") as file:
    print(os.getpid(), file=file)
sys.stdin.readline()
"""


def test_a_stem_that_is_only_coming_up_is_ended(engine: Engine) -> None:
    """Its starter was killed: it has the lock, but has not told its pid yet, and will live for ever when nobody waits for that."""
    directory = engine.lifecycle.core.layout.sandbox("e" * 64)
    os.makedirs(directory)
    command = [sys.executable, "-c", COMING_UP, directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stem:
        assert stem.stdin and stem.stdout
        assert stem.stdout.readline() == "locked\n"
        later = threading.Timer(0.02, lambda: print(file=stem.stdin, flush=True))
        later.start()
        engine.lifecycle.kill_stem("e" * 64)
        later.join()
        stem.terminate()  # comes too late, or it would wait for ever
        assert stem.wait() == -9


def test_a_level_is_also_a_word(engine: Engine) -> None:
    assert engine.containers.create(box("true", isolation="process")).record.spec.isolation is Level.PROCESS
    with pytest.raises(InvalidArgument, match="unknown isolation level 'jail'"):
        engine.containers.create(box("true", isolation="jail"))
