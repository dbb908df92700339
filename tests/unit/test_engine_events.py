"""The journal: what it tells of everything that happens, in Docker's words, and how it is followed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre.cli.commands.events import docker_shaped
from nacre.engine import Engine
from nacre.linux.inotify import Watch
from nacre.model.container import BoundMount, ContainerSpec
from nacre.testing.engine import fake_engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with fake_engine(str(tmp_path)) as (made, _, _):
        yield made


def told(engine: Engine) -> list[tuple[str, str]]:
    return [(event["type"], event["action"]) for event in engine.events(since=0)]


def test_the_life_of_a_container(engine: Engine) -> None:
    made = engine.containers.run(ContainerSpec(image="box", name="one", labels={"team": "a"}))
    assert made.exec(["exit", "3"]).wait() == 3
    made.attach().close()
    made.rename("two")
    made.restart()
    made.kill()
    made.remove()
    containers = [action for kind, action in told(engine) if kind == "container"]
    run, end = ["start"], ["kill", "die"]
    assert containers == [
        *("create", *run, "exec_create: exit 3", "exec_start: exit 3", "exec_die", "attach", "rename"),
        *(*end, "stop", *run, "restart", *end, "destroy"),
    ]
    assert [action for kind, action in told(engine) if kind == "network"] == ["connect", "disconnect"] * 2


def test_the_attributes_of_events(engine: Engine) -> None:
    made = engine.containers.run(ContainerSpec(image="box", name="one", labels={"team": "a"}))
    made.exec(["exit", "3"]).wait()
    made.rename("two")
    made.stop()
    made.stop()
    found: dict[str, list[dict[str, Any]]] = {}
    for event in engine.events(since=0):
        found.setdefault(event["action"].partition(":")[0], []).append(event)
    common = {"image": "box", "name": "one", "team": "a"}
    assert found["create"][0]["attributes"] == common
    numbers = {event["attributes"].pop("execID") for name in ("exec_create", "exec_start", "exec_die") for event in found[name]}
    assert len(numbers) == 1
    assert found["exec_die"][0]["attributes"] == {**common, "exitCode": "3"}
    assert found["rename"][0]["attributes"] == {**common, "name": "two", "oldName": "/one"}
    assert found["kill"][0]["attributes"]["signal"] == "15"
    assert found["die"][0]["attributes"] == {**common, "name": "two", "exitCode": "143", "execDuration": "0"}
    assert found["connect"][0]["id"] == "bridge"
    assert found["connect"][0]["attributes"] == {"container": made.id, "name": "bridge", "type": "bridge"}
    assert len(found["stop"]) == 1, "there was nothing to stop the second time"


def test_volumes_in_use(engine: Engine) -> None:
    made = engine.containers.create(ContainerSpec(image="box"))
    mount = BoundMount(target="/data", kind="volume", source="/v", read_only=True, options=("name=v",))
    engine._core.database.put(made.record.replace(mounts=(mount,)), active=False)
    made.start()
    made.stop()
    volumes = [event for event in engine.events(since=0) if event["type"] == "volume"]
    assert [(event["action"], event["id"]) for event in volumes] == [("mount", "v"), ("unmount", "v")]
    assert volumes[0]["attributes"] == {"container": made.id, "destination": "/data", "driver": "local", "read/write": "false"}


def test_volumes_are_created_once(engine: Engine) -> None:
    for _ in range(2):
        engine.volumes.create("data")
    engine.volumes.remove("data")
    assert told(engine) == [("volume", "create"), ("volume", "destroy")]


def test_docker_s_names() -> None:
    event = {"time": 12.5, "type": "container", "action": "start", "id": "c", "attributes": {"name": "n", "image": "i"}}
    actor = {"ID": "c", "Attributes": {"image": "i", "name": "n"}}
    newer = {"Type": "container", "Action": "start", "Actor": actor, "scope": "local", "time": 12, "timeNano": 12_500_000_000}
    assert docker_shaped(event) == {"status": "start", "id": "c", "from": "i", **newer}
    assert "status" not in docker_shaped({**event, "type": "network"})


def test_the_journal_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacre.store.database.EVENTS_KEPT", 100)
    with engine._core.database.together():
        for number in range(1000):
            engine._core.event("image", "pull", str(number))
    kept = [event["id"] for event in engine.events(since=0)]
    assert kept == [str(number) for number in range(900, 1000)]


def test_a_follower_is_woken_by_what_another_engine_writes(engine: Engine, tmp_path: Path) -> None:
    seen: list[str] = []

    def follow() -> None:
        with Engine(str(tmp_path), f"{tmp_path}/run") as other:
            for event in other.events(since=0, follow=True):
                seen.append(event["id"])
                if event["id"] == "last":
                    return

    engine._core.event("image", "pull", "first")
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    deadline = time.monotonic() + 30
    while seen != ["first"] and time.monotonic() < deadline:
        time.sleep(0.001)
    engine._core.event("image", "pull", "last")
    follower.join(30)
    assert seen == ["first", "last"]


def test_following_ends_at_a_time(engine: Engine) -> None:
    engine._core.event("image", "pull", "one")
    assert [event["id"] for event in engine.events(since=0, until=time.time() + 0.01, follow=True)] == ["one"]


def test_a_watch_waits_for_changes(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Watch(str(tmp_path)) as watch:
        assert not watch.wait(0)
        (tmp_path / "file").write_text("x")
        assert watch.wait(10)
        assert not watch.wait(0)
    assert set(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(FileNotFoundError):
        Watch(str(tmp_path / "nowhere"))


def test_a_follower_does_not_depend_on_when_a_change_becomes_visible(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is woken while the event is being written, finds nothing, and is not woken again: its writer was killed."""
    events, looks = engine._core.database.events, []

    def late(after: int = 0, *, since: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
        looks.append(after)
        if len(looks) == 1:
            engine._core.event("image", "pull", "late")
        return events(after, since=since) if len(looks) > 2 else []

    monkeypatch.setattr(engine._core.database, "events", late)
    assert next(engine.events(since=0, follow=True))["id"] == "late"
    assert len(looks) == 3
