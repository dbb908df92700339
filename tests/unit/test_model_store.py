"""Values, the database and its locks."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import Any

import pytest

from nacre.engine.names import new_id, suggest
from nacre.errors import Conflict, HostError, InvalidArgument, NacreError
from nacre.model.container import Container, ContainerSpec, Level, MountSpec, Resources
from nacre.model.network import PortMapping
from nacre.model.plan import Code, op
from nacre.model.value import Value
from nacre.store import Database, Layout, is_locked
from nacre.store.lock import Lock

SPEC = ContainerSpec(
    image="box",
    command=("a", "b"),
    isolation=Level.VM,
    entrypoint=("x",),
    resources=Resources(memory=1, cpus=1.5),
    ports=(PortMapping(container_port=80, host_port=8080),),
    mounts=(MountSpec(kind="tmpfs", target="/t"),),
    labels={"a": "b"},
)


def record(name: str = "one") -> Container:
    return Container(id=new_id(), name=name, spec=SPEC, image_id="sha256:0", image_name="box")


def test_a_value_is_frozen_and_compared_by_content() -> None:
    assert SPEC.replace() == SPEC
    assert SPEC.replace(image="other") != SPEC
    assert len({SPEC, SPEC.replace()}) == 1
    with pytest.raises(AttributeError):
        SPEC.image = "x"  # type: ignore[misc]
    with pytest.raises(TypeError, match="unknown field"):
        ContainerSpec(image="x", colour="blue")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing"):
        ContainerSpec()  # type: ignore[call-arg]


def test_a_value_survives_json() -> None:
    made = record()
    assert Container.from_data(json.loads(json.dumps(made.to_data()))) == made


def test_json_from_another_version_or_an_enemy() -> None:
    data = record().to_data()
    assert Container.from_data({**data, "from the future": 1}).name == "one"
    wrongs: tuple[dict[str, Any], ...] = ({"id": 5}, {"spec": {"image": "x", "isolation": "moon"}}, {"spec": []}, {"spec": {"ports": [{}]}})
    for wrong in wrongs:
        with pytest.raises(InvalidArgument):
            Container.from_data({**data, **wrong})


def test_defaults_of_a_base_are_inherited() -> None:
    class Base(Value):
        a: int = 1

    class More(Base):
        b: str

    assert More(b="x").a == 1
    assert More(b="x") != Base()


def test_operations_describe_themselves() -> None:
    assert op(Code.MOUNT, "proc", "%/proc", "proc", 14, "").describe() == "mount proc %/proc proc 0xe ''"
    assert op(Code.SECCOMP, b"x" * 800, 0).describe() == "seccomp <800 bytes> 0"


def test_every_error_has_its_answers() -> None:
    def tree(kind: type[NacreError]) -> list[type[NacreError]]:
        return [kind, *(one for child in kind.__subclasses__() for one in tree(child))]

    import nacre.errors

    for kind in tree(NacreError):
        assert 400 <= kind.http_status < 600
        assert kind.grpc_code.isupper()
        assert kind.exit_code in (125, 126, 127)
        if kind.__module__ == "nacre.errors":
            assert kind.__name__ in (nacre.errors.__doc__ or "")


def test_names_and_blocks_are_unique(tmp_path: Any) -> None:
    database = Database(str(tmp_path / "db"))
    first, second = record("one"), record("two")
    assert database.add(first, pending=False) == 0
    assert database.add(second, pending=True) == 1
    with pytest.raises(Conflict, match="already in use"):
        database.add(record("one"), pending=False)
    with pytest.raises(Conflict):
        database.put(second.replace(name="one"), active=False)
    database.drop(first.id)
    assert database.add(record("three"), pending=False) == 0, "the lowest free block is used again"
    assert database.all(pending=True) == [second.id]


def test_changes_made_together_are_one(tmp_path: Any) -> None:
    database = Database(str(tmp_path / "db"))
    first, second = record("one"), record("two")
    with database.together():
        database.add(first, pending=False)
        database.record_event({"time": 1.0})
    with pytest.raises(Conflict), database.together():
        database.add(second, pending=False)
        database.record_event({"time": 2.0})
        database.put(second.replace(name="one"), active=False)
    assert database.all() == [first.id]
    assert [event["time"] for _, event in database.events()] == [1.0]
    database.add(second, pending=False)


def test_finding_by_name_id_and_prefix(tmp_path: Any) -> None:
    database = Database(str(tmp_path / "db"))
    a, b = record("one").replace(id="ab" * 32), record("two").replace(id="ac" * 32)
    for item in (a, b):
        database.add(item, pending=False)
    assert database.find("one") == [a.id]
    assert database.find("/one") == [a.id]
    assert database.find("ab") == [a.id]
    assert sorted(database.find("a")) == [a.id, b.id]
    assert database.find("zz") == []


def test_two_processes_share_the_database(tmp_path: Any) -> None:
    mine, theirs = Database(str(tmp_path / "db")), Database(str(tmp_path / "db"))
    made = record()
    mine.add(made, pending=False)
    found = theirs.get(made.id)
    assert found is not None
    assert found[0] == made
    theirs.put(made.replace(name="renamed"), active=True)
    again = mine.get(made.id)
    assert again is not None
    assert again[0].name == "renamed"
    assert again[2] is True


def test_a_damaged_database_says_so(tmp_path: Any) -> None:
    (tmp_path / "db").write_bytes(b"this is not a database, but it is long enough to be read as one" * 40)
    with pytest.raises(HostError, match="db"):
        Database(str(tmp_path / "db"))


def test_events_are_kept_in_order_and_bounded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacre.store.database.EVENTS_KEPT", 10)
    database = Database(str(tmp_path / "db"))
    for number in range(500):
        database.record_event({"time": float(number), "n": number})
    assert [event["n"] for _, event in database.events()] == list(range(490, 500))
    assert [event["n"] for _, event in database.events(since=498.0)] == [498, 499]


def test_the_kernel_knows_who_holds_a_lock(tmp_path: Any) -> None:
    path = str(tmp_path / "lock")
    assert not is_locked(path)
    lock = Lock(path)
    copy = os.dup(lock.fd)
    lock.release()
    assert is_locked(path), "a copy of the descriptor keeps it held"
    os.close(copy)
    assert not is_locked(path)


def test_directories_that_cannot_be_made(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NacreError, match="file"):
        Layout(str(tmp_path / "file" / "root"))


def test_suggested_names_are_typeable_and_differ() -> None:
    names = {suggest(new_id(), 0) for _ in range(50)}
    assert len(names) > 20
    assert all(name.replace("_", "").isalpha() for name in names)


def test_sqlite_is_in_wal_mode(tmp_path: Any) -> None:
    Database(str(tmp_path / "db"))
    assert sqlite3.connect(tmp_path / "db").execute("PRAGMA journal_mode").fetchone()[0] == "wal"
