"""Volumes with options (mounts), labels, filters of prune, and anonymous volumes of callers that died."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre import ContainerSpec, Engine
from nacre.model.container import Level, MountSpec


@pytest.fixture
def volume(cli: Any) -> Iterator[Callable[..., str]]:
    """`volume("name", "--opt", ...)` makes one and returns where it is; all are removed afterwards."""
    made: list[str] = []

    def make(name: str, *options: str) -> str:
        cli("volume", "create", *options, name)
        made.append(name)
        return str(json.loads(cli("volume", "inspect", name).stdout)[0]["Mountpoint"])

    yield make
    for container in cli("ps", "-aq").stdout.split():
        cli("rm", "-f", container)
    for name in made:
        cli("volume", "rm", "-f", name)


def test_in_memory_shared_while_used(cli: Any, image: str, level: Level, volume: Callable[..., str]) -> None:
    """A tmpfs that several containers share, at either level, and that ends with the last of them."""
    path = volume("memory", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m,mode=1777,noexec")
    options = ("-d", "--network", "none", "-v", "memory:/data", "--isolation", level)
    cli("run", "--name", "one", *options, image, "sleep")
    cli("run", "--name", "two", *options, image, "sleep")
    cli("exec", "one", "write", "/data/file", "shared")
    assert cli("exec", "two", "cat", "/data/file").stdout.strip() == "shared"
    assert os.path.ismount(path)
    assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 1 << 20
    assert os.statvfs(path).f_flag & os.ST_NOEXEC
    cli("rm", "-f", "one")
    assert cli("exec", "two", "cat", "/data/file").stdout.strip() == "shared"
    assert cli("volume", "rm", "memory", code=1).stderr
    cli("rm", "-f", "two")
    assert not os.path.ismount(path)
    assert os.listdir(path) == []


def test_a_directory_of_the_host(cli: Any, image: str, volume: Callable[..., str], tmp_path: Path) -> None:
    """A bound directory, read-only on request; the image's content goes into an empty one; a missing one is told."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("of the host")
    path = volume("bound", "--opt", "type=none", "--opt", f"device={tmp_path}/given", "--opt", "o=bind,ro")
    assert cli("run", "--rm", "--network", "none", "-v", "bound:/data", image, "cat", "/data/file").stdout.strip() == "of the host"
    cli("run", "--rm", "--network", "none", "-v", "bound:/data", image, "write", "/data/file", "x", code=1)
    assert (tmp_path / "given/file").read_text() == "of the host"
    (tmp_path / "empty").mkdir()
    volume("filled", "--opt", "type=none", "--opt", f"device={tmp_path}/empty", "--opt", "o=bind")
    cli("run", "--rm", "--network", "none", "-v", "filled:/bin", image, "true")
    assert os.listdir(tmp_path / "empty")
    volume("nowhere", "--opt", "type=none", "--opt", f"device={tmp_path}/missing", "--opt", "o=bind")
    said = cli("run", "--rm", "--network", "none", "-v", "nowhere:/data", image, "true", code=125).stderr
    assert "cannot mount volume nowhere: No such file or directory" in said
    assert not os.path.ismount(path)
    assert cli("ps", "-aq").stdout == ""


def test_bad_options(cli: Any) -> None:
    for words, expected in (
        (("--opt", "size=10g"), "the size of a volume cannot be limited"),
        (("--opt", "colour=red"), "invalid volume option: 'colour'"),
        (("--opt", "type=tmpfs"), "missing required volume option: 'device'"),
        (("--opt", "type=none", "--opt", "device=relative", "--opt", "o=bind"), "must be an absolute path"),
        (("--opt", "type"), "It looks like key=value"),
        (("--label", "=x"), "It looks like key=value"),
    ):
        assert expected in cli("volume", "create", *words, "bad", code=None).stderr
    assert "bad" not in cli("volume", "ls", "-q").stdout


def test_labels_and_prune(cli: Any, volume: Callable[..., str]) -> None:
    for name, labels in (("kept", ("keep",)), ("old", ("age=old",)), ("older", ("age=old", "keep=yes")), ("plain", ())):
        volume(name, *(word for label in labels for word in ("--label", label)))
    assert cli("volume", "ls", "-q", "--filter", "label=age=old").stdout.split() == ["old", "older"]
    assert cli("volume", "ls", "--filter", "name=older", "--format", "{{.Labels}}").stdout == "age=old,keep=yes\n"
    assert json.loads(cli("volume", "inspect", "old").stdout)[0]["Labels"] == {"age": "old"}
    said = cli("volume", "prune", "--filter", "label=age=old", "--filter", "label!=keep", input="n\n").stdout
    assert "label=age=old, label!=keep" in said
    removed = cli("volume", "prune", "-f", "--filter", "all=1", "--filter", "label=age=old", "--filter", "label!=keep").stdout
    assert "old\n" in removed
    assert "older" not in removed
    assert cli("volume", "prune", "-f", "--filter", "label=age").stdout.startswith("Total"), "named ones stay without --all"
    assert {"kept", "older", "plain"} <= set(cli("volume", "ls", "-q").stdout.split())


def volumes(engine: Engine) -> set[str]:
    return {volume["Name"] for volume in engine.volumes.list()}


def test_create_that_was_killed_leaves_no_volume(engine: Engine, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when its anonymous volume is made and nothing else: the next verb removes both."""
    before = volumes(engine)
    spec = ContainerSpec(image=image, command=("true",), mounts=(MountSpec(kind="volume", target="/data"),), network="none")
    pid = os.fork()
    if pid == 0:
        create = type(engine._core.volumes).create

        def die(self: Any, *words: Any, **options: Any) -> Any:
            create(self, *words, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(type(engine._core.volumes), "create", die)
        try:
            with Engine(engine._core.layout.root, engine._core.layout.run) as mine:
                mine.containers.create(spec)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(volumes(engine) - before) == 1
    assert engine.containers.list(all=True) == []
    assert volumes(engine) == before


def test_a_joined_anonymous_volume_stays(engine: Engine, image: str) -> None:
    """A container that removes itself takes its own anonymous volumes along, not those of others that it was given by name."""
    before = volumes(engine)
    mount = MountSpec(kind="volume", target="/data")
    first = engine.containers.create(ContainerSpec(image=image, command=("true",), mounts=(mount,), network="none"))
    [name] = volumes(engine) - before
    joined = mount.replace(source=name)
    second = engine.containers.create(ContainerSpec(image=image, command=("true",), mounts=(joined,), network="none", auto_remove=True))
    second.remove()
    assert name in volumes(engine)
    third = engine.containers.create(ContainerSpec(image=image, command=("true",), mounts=(joined,), network="none"))
    first.remove(volumes=True)
    assert name in volumes(engine), "it is in use by another container"
    third.remove(volumes=True)
    engine.volumes.remove(name)
    assert volumes(engine) == before


def test_create_that_was_killed_while_it_filled_a_mounted_volume(engine: Engine, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount has nobody any more: the next user's end, or the removal of the volume, takes it away."""
    volume = engine.volumes.create("memory", options={"type": "tmpfs", "device": "tmpfs"})
    path = volume["Mountpoint"]
    spec = ContainerSpec(image=image, command=("true",), mounts=(MountSpec(kind="volume", source="memory", target="/bin"),), network="none")
    for removed in (False, True):
        pid = os.fork()
        if pid == 0:
            with monkeypatch.context() as patch:
                patch.setattr(type(engine._core.volumes), "copy_up_from_layers", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                try:
                    with Engine(engine._core.layout.root, engine._core.layout.run) as mine:
                        mine.containers.create(spec)
                finally:
                    os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert os.path.ismount(path)
        assert engine.containers.list(all=True) == []
        if removed:
            engine.volumes.remove("memory")
        else:
            engine.containers.create(spec).remove()
        assert not os.path.ismount(path)
