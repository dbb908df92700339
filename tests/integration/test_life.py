"""The life of containers without a daemon: restarts, health checks, log drivers, the journal, and what they have changed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Directories

from nacre import ContainerSpec, Engine, Level, MountSpec, State
from nacre.model.life import HealthConfig, LogConfig, RestartPolicy

SOON = 100_000_000  # ns


@pytest.fixture
def spec(image: str, level: Level) -> Callable[..., ContainerSpec]:
    """A spec of the guest program at the test's level, without a network unless asked for."""

    def make(*command: str, **fields: Any) -> ContainerSpec:
        return ContainerSpec(image=image, command=command, isolation=level, **{"network": "none", **fields})

    return make


def helper(directories: Directories, kind: str, identifier: str) -> int:
    """The pid of a helper at work, 0 when there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"{directories.run}/helpers/{identifier}.{kind}").read_text())
    return 0


def actions(engine: Engine, identifier: str) -> list[str]:
    return [event["action"] for event in engine.events(since=0) if event["id"] == identifier]


# ---- restarts


def test_a_failing_container_is_started_again_until_its_count_is_reached(
    engine: Engine, spec: Any, directories: Directories, eventually: Any
) -> None:
    made = engine.containers.run(spec("exit", "3", restart=RestartPolicy(name="on-failure", maximum=2)))
    eventually(lambda: made.refresh().state is State.EXITED and made.record.restarts == 2)
    assert made.record.exit_code == 3
    assert actions(engine, made.id) == ["create", *["start", "die"] * 3]
    eventually(lambda: not helper(directories, "reap", made.id))


def test_an_attached_client_ends_and_the_container_goes_on(cli: Cli, engine: Engine, image: str, level: Level, eventually: Any) -> None:
    words = ("run", "--name", "again", "--isolation", str(level), "--network", "none", "--restart", "always", image, "exit", "3")
    assert cli(*words, code=3).stderr == ""
    made = engine.containers.get("again")
    eventually(lambda: made.refresh().record.restarts >= 2)
    cli("stop", "-t", "1", "again")
    assert made.refresh().state is State.EXITED
    assert cli("ps", "-a", "--format", "{{.Status}}").stdout.startswith("Exited (")
    before = made.record.restarts
    cli("update", "--restart", "no", "again")
    cli("start", "again")
    assert made.wait() == 3
    assert (made.refresh().state, before > 1, made.record.restarts) == (State.EXITED, True, 0)


def test_a_helper_that_is_killed_between_two_runs_is_replaced(
    engine: Engine, image: str, directories: Directories, eventually: Any
) -> None:
    policy = RestartPolicy(name="always")
    made = engine.containers.run(ContainerSpec(image=image, command=("exit", "3"), network="none", restart=policy))
    # By then it waits for a second or two, so that it is killed while it waits.
    eventually(lambda: made.refresh().record.restarts >= 5 and made.state is State.RESTARTING)
    pid = eventually(lambda: helper(directories, "reap", made.id))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: engine.containers.list() and helper(directories, "reap", made.id) not in (0, pid))
    eventually(lambda: made.refresh().record.restarts >= 6)
    made.remove(force=True)
    eventually(lambda: not helper(directories, "reap", made.id))


def test_stopping_between_two_runs_ends_the_waiting(engine: Engine, image: str, directories: Directories, eventually: Any) -> None:
    policy = RestartPolicy(name="always")
    made = engine.containers.run(ContainerSpec(image=image, command=("exit", "3"), network="none", restart=policy))
    eventually(lambda: made.refresh().record.restarts >= 4 and made.state is State.RESTARTING)
    pid = eventually(lambda: helper(directories, "reap", made.id))
    made.stop()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert (made.refresh().state, made.record.restart_at) == (State.EXITED, 0.0)


def test_a_killed_stem_is_an_end_like_any_other(engine: Engine, image: str, directories: Directories, eventually: Any) -> None:
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), network="none", restart=RestartPolicy(name="always")))
    os.kill(int(Path(f"{directories.run}/sandboxes/{made.id}/stem.pid").read_text()), signal.SIGKILL)
    eventually(lambda: engine.containers.list() and made.refresh().record.restarts == 1 and made.state is State.RUNNING)
    made.remove(force=True)


# ---- health checks


def test_health(engine: Engine, spec: Any, directories: Directories, eventually: Any) -> None:
    check = HealthConfig(test=("CMD", "cat", "/well"), interval=SOON, retries=2)
    made = engine.containers.run(spec("trap-term", health=check))
    assert eventually(made.health)["Status"] in ("starting", "unhealthy")
    eventually(lambda: (made.health() or {})["Status"] == "unhealthy")
    assert made.exec(["write", "/well", "yes"]).wait() == 0
    eventually(lambda: (made.health() or {})["Status"] == "healthy")
    shown = made.inspect()["State"]["Health"]
    assert (shown["FailingStreak"], shown["Log"][-1]["ExitCode"], shown["Log"][-1]["Output"].strip()) == (0, 0, "yes")
    pid = eventually(lambda: helper(directories, "health", made.id))
    made.pause()
    made.unpause()
    assert (made.health() or {})["Status"] == "healthy", "its time stood still, so that no check has failed"
    made.stop(1)
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    told = [action for action in actions(engine, made.id) if action.startswith("health")]
    assert told == ["health_status: unhealthy", "health_status: healthy"]


def test_a_health_helper_that_is_killed_is_replaced(engine: Engine, image: str, directories: Directories, eventually: Any) -> None:
    check = HealthConfig(test=("CMD", "true"), interval=SOON)
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), network="none", health=check))
    pid = eventually(lambda: helper(directories, "health", made.id))
    descriptors = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert "/dev/null" in descriptors
    assert not [name for name in descriptors if name.startswith(("pipe:", "/dev/pts"))], "nothing of its caller's is kept open"
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: engine.containers.list() and helper(directories, "health", made.id) not in (0, pid))
    eventually(lambda: (made.health() or {})["Status"] == "healthy")


def test_a_check_that_hangs_is_killed(engine: Engine, image: str) -> None:
    check = HealthConfig(test=("CMD", "sleep"), interval=3600 * 10**9, timeout=SOON, retries=1)
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), network="none", health=check))
    assert made.check_health()["ExitCode"] == -1
    assert [row["command"] for row in made.top()] == ["sleep"]
    assert (made.health() or {})["Status"] == "unhealthy"


# ---- logs


def test_docker_s_lines(engine: Engine, spec: Any, eventually: Any) -> None:
    config = LogConfig(driver="json-file", options={"labels": "team"})
    made = engine.containers.run(spec("both", "to out", "to err", log=config, labels={"team": "a"}))
    assert made.wait() == 0
    path = Path(made.inspect()["LogPath"])
    eventually(lambda: path.exists() and len(path.read_text().splitlines()) == 2)
    entries = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda entry: entry["stream"])
    assert [(entry["stream"], entry["log"], entry["attrs"]) for entry in entries] == [
        ("stderr", "to err\n", {"team": "a"}),
        ("stdout", "to out\n", {"team": "a"}),
    ]
    assert sorted(record.data for record in made.logs()) == [b"to err\n", b"to out\n"]


def test_rotation_and_compression(engine: Engine, image: str, directories: Directories, eventually: Any) -> None:
    log = LogConfig(driver="local", options={"max-size": "20k", "max-file": "3", "compress": "true"})
    made = engine.containers.run(ContainerSpec(image=image, command=("cat",), open_stdin=True, network="none", log=log))
    directory = Path(directories.root) / "containers" / made.id
    stream = made.attach()
    lines = [b"%06d %s\n" % (number, b"x" * 92) for number in range(1000)]
    for at in range(0, 1000, 10):
        stream.write(b"".join(lines[at : at + 10]))
        received = b""
        while received.count(b"\n") < 10:
            received += b"".join(data for _, data in stream.read(None) or [])
        # gzip is given its time: while it works nothing is rotated, and the log grows.
        eventually(lambda: not list(directory.glob("log.?")) or (directory / "log").stat().st_size < 20_000)
    stream.close_stdin()
    stream.wait()
    eventually(lambda: not list(directory.glob("log.?")))
    assert sorted(path.name for path in directory.glob("log*")) == ["log", "log.1.gz", "log.2.gz"]
    assert len(gzip.decompress((directory / "log.1.gz").read_bytes())) < 40_000
    kept = b"".join(record.data for record in made.logs()).splitlines(keepends=True)
    assert kept == lines[-len(kept) :]
    assert len(kept) > 300


def test_syslog_while_its_server_restarts(cli: Cli, image: str, tmp_path: Path) -> None:
    def listen() -> socket.socket:
        (tmp_path / "log").unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.bind(str(tmp_path / "log"))
        made.settimeout(60)
        return made

    options = ("--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{tmp_path}/log", "--log-opt", "tag={{.Name}}")
    with listen() as first:
        process = cli.start("run", "-i", "--rm", "--name", "loud", "--network", "none", *options, image, "cat")
        assert process.stdin is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        assert first.recv(1000).endswith(b": one")
    process.stdin.write("two\n")
    process.stdin.flush()
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["one\n", "two\n"], "nobody waits for the server"
    with listen() as second:
        assert second.recv(1000).endswith(b": two")
        process.stdin.write("three")
        process.communicate(timeout=60)
        # The container has removed itself; its last line was handed on before.
        assert b" loud[" in (last := second.recv(1000))
        assert last.endswith(b": three")


def test_nothing_is_kept(cli: Cli, image: str) -> None:
    cli("run", "--name", "mute", "--network", "none", "--log-driver", "none", image, "both", "out", "err")
    assert "does not support reading" in cli("logs", "mute", code=125).stderr


# ---- the journal


def test_everything_is_told_while_it_happens(cli: Cli, engine: Engine, image: str, eventually: Any) -> None:
    filters = [word for kind in ("container", "volume", "network") for word in ("--filter", f"type={kind}")]
    follower = cli.start("events", "--format", "{{.Type}} {{.Action}}", "--since", str(time.time()), *filters)
    assert follower.stdout is not None
    spec = ContainerSpec(image=image, command=("sleep",), name="told", mounts=(MountSpec(kind="volume", source="told", target="/data"),))
    made = engine.containers.run(spec)
    made.exec(["exit", "2"]).wait()
    made.stop(1)
    made.remove()
    engine.volumes.remove("told")
    seen: list[str] = []
    while not seen or seen[-1] != "volume destroy":
        seen.append(follower.stdout.readline().strip())
        assert follower.poll() is None
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=60)
    assert seen == [
        "volume create", "container create", "network connect", "volume mount", "container start",
        "container exec_create: exit 2", "container exec_start: exit 2", "container exec_die",
        "container kill", "container die", "network disconnect", "volume unmount", "container stop", "container destroy", "volume destroy",
    ]  # fmt: skip


# ---- what has changed


def test_differences(cli: Cli, engine: Engine, spec: Any, eventually: Any) -> None:
    made = engine.containers.run(spec("trap-term", name="changed"))
    for words in (["write", "/etc/new", "x"], ["mv", "/etc/passwd", "/etc/old"], ["write", "/top", "y"]):
        assert made.exec(words).wait() == 0, words
    expected = [("C", "/etc"), ("A", "/etc/new"), ("A", "/etc/old"), ("D", "/etc/passwd"), ("A", "/top")]
    assert made.changes() == expected
    made.stop(5)
    assert cli("diff", "changed").stdout == "".join(f"{kind} {path}\n" for kind, path in expected)
