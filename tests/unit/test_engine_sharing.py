"""What a container takes from others: names become ids, mounts are taken over, and what cannot be shared is refused when it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre.engine import Engine, merge, mounts, sharing
from nacre.errors import Conflict, InvalidArgument, NacreError, NotFound, Unsupported
from nacre.model.container import ContainerSpec, Level, MountSpec
from nacre.model.image import ImageConfig
from nacre.testing.engine import IMAGE, fake_engine


@pytest.fixture
def engine(tmp_path: Any) -> Iterator[Engine]:
    with fake_engine(str(tmp_path)) as made:
        yield made[0]


def box(name: str = "", **fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", name=name, **fields)


def test_names_become_ids(engine: Engine) -> None:
    web = engine.containers.create(box("web", ipc="shareable", hostname="web.example", userns="private"))
    made = engine.containers.create(
        box("two", pid="container:web", ipc=f"container:{web.id[:8]}", uts="container:web", network="container:web", userns="container:web")
    )
    spec = made.record.spec
    assert {spec.pid, spec.ipc, spec.uts, spec.network, spec.userns} == {f"container:{web.id}"}
    assert spec.hostname == "web.example"
    with pytest.raises(Conflict, match=r"cannot join the \w+ namespace of container web: it is not running") as caught:
        made.start()
    assert caught.value.hint == "start it: nacre start web"
    engine.containers.get("web").remove()
    with pytest.raises(NotFound):
        made.start()


def test_a_chain_ends_at_who_owns_what(engine: Engine) -> None:
    first = engine.containers.create(box("first", userns="keep-id", hostname="one"))
    engine.containers.create(box("second", network="container:first", userns="container:first"))
    third = engine.containers.create(box("third", network="container:second", userns="container:second"))
    core = engine._core
    assert third.record.spec.hostname == "one"
    assert sharing.network_owner(core, third.record.spec).id == first.id
    assert sharing.etc_directory(core, third.record.spec) == f"{core.layout.container(first.id)}/etc"
    assert sharing.users(core, third.record.spec, 7) == ("keep-id", core.database.get(first.id)[1])  # type: ignore[index]
    assert sharing.paths(core, third.record.spec) == {"net": "/proc/PID/ns/net", "user": "/proc/PID/ns/user"}


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"pid": "container:nobody"}, NotFound, "No such container: nobody"),
        ({"ipc": "container:plain"}, InvalidArgument, "non-shareable IPC namespace"),
        ({"userns": "container:plain"}, InvalidArgument, "has no user namespace of its own"),
        ({"pid": "container:machine"}, Unsupported, "container machine runs at level vm"),
        ({"volumes_from": ("nobody",)}, NotFound, "No such container: nobody"),
        ({"volumes_from": ("plain:rx",)}, InvalidArgument, "invalid mode: rx"),
        ({"volumes_from": (":ro",)}, InvalidArgument, "the name of a container is missing"),
        ({"rootfs": "/nowhere"}, InvalidArgument, "no such directory"),
        ({"rootfs": "/"}, InvalidArgument, "the host's own root directory"),
        ({"rootfs": "/usr", "rootfs_overlay": True, "isolation": Level.VM}, Unsupported, "DIR:O is not possible"),
        ({"rootfs": "/usr", "userns": "private", "isolation": Level.VM}, Unsupported, "--userns private is not possible"),
        ({"devices": ("x",)}, InvalidArgument, "invalid device specification"),
        ({"device_rules": ("x",)}, InvalidArgument, "invalid device cgroup format"),
        ({"security_opt": ("seccomp=/nowhere",)}, InvalidArgument, "opening seccomp profile"),
        ({"mounts": (MountSpec(kind="tmpfs", target="/t", options=("bogus",)),)}, InvalidArgument, "invalid tmpfs option"),
        ({"mounts": (MountSpec(kind="image", target="/t", source="nothing"),)}, NotFound, "image mount: No such image"),
        ({"mounts": (MountSpec(kind="volume", target="/t", options=("label=a=b",)),)}, InvalidArgument, "cannot have labels"),
    ],
)
def test_what_is_refused_leaves_nothing(engine: Engine, fields: dict[str, Any], kind: type[NacreError], text: str) -> None:
    engine.containers.create(box("plain"))
    engine.containers.create(box("machine", isolation=Level.VM))
    with pytest.raises(kind, match=text):
        engine.containers.create(box("new", **fields))
    assert {container.name for container in engine.containers.list(all=True)} == {"plain", "machine"}


def test_volumes_of_others(engine: Engine, tmp_path: Path) -> None:
    bind = MountSpec(kind="bind", source=str(tmp_path), target="/bind", read_only=True, options=("rprivate",))
    scratch = MountSpec(kind="tmpfs", target="/tmp")
    engine.containers.create(box("one", mounts=(bind, scratch)))
    engine.containers.create(box("two", mounts=(bind.replace(target="/other", read_only=False),)))

    def taken(*texts: str, **fields: Any) -> dict[str, bool]:
        found = mounts.borrowed(engine._core, box(volumes_from=texts, **fields))
        return {mount.target: mount.read_only for mount in found}

    assert taken("one") == {"/bind": True}
    assert taken("one:rw", "two:ro") == {"/bind": False, "/other": True}
    assert taken("one:z,ro") == {"/bind": True}
    assert taken("one", mounts=(scratch.replace(target="/bind/"),)) == {}
    assert merge.image_volumes(box(), ImageConfig(volumes=("/bind", "/own")), ("/bind",)) == (MountSpec(kind="volume", target="/own"),)
    made = engine.containers.create(box("three", volumes_from=("one", "two")))
    assert [mount.target for mount in made.record.mounts] == ["/bind", "/other"]
    assert made.inspect()["HostConfig"]["VolumesFrom"] == ["one", "two"]


def test_images_that_are_mounted_are_in_use(engine: Engine) -> None:
    part = MountSpec(kind="image", source="box", target="/image", options=("subpath=bin",))
    made = engine.containers.create(box("one", mounts=(part,)))
    [mount] = made.record.mounts
    assert (mount.kind, mount.source, mount.read_only, mount.options) == ("image", IMAGE.id, True, ("name=box", "subpath=bin"))
    other = engine.images._users(IMAGE.replace(id="sha256:" + "9" * 64))
    assert (engine.images._users(IMAGE), other) == ([made.id[:12]], [])


def test_the_profile_may_go_and_what_is_kept_is_shown(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text('{\n "defaultAction": "SCMP_ACT_ALLOW" }')
    made = engine.containers.create(
        box(
            "one",
            security_opt=(f"seccomp={path}", "unmask=/proc/bus", "mask=/x"),
            gpus=("2", "device=0"),
            annotations={"a": "b"},
            init=True,
        )
    )
    path.unlink()
    config = json.loads(json.dumps(made.inspect()))["HostConfig"]
    assert config["SecurityOpt"][0] == 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}'
    assert "/x" in config["MaskedPaths"]
    assert "/proc/bus" not in config["ReadonlyPaths"]
    assert [request["DeviceIDs"] for request in config["DeviceRequests"]] == [None, ["0"]]
    assert [request["Count"] for request in config["DeviceRequests"]] == [2, 0]
    assert (config["Annotations"], config["Init"], config["IpcMode"], config["PidMode"]) == ({"a": "b"}, True, "private", "")


def test_a_plain_directory_has_no_image(engine: Engine, tmp_path: Path) -> None:
    spec = ContainerSpec(image="tree:O", command=("sleep",), rootfs=str(tmp_path), rootfs_overlay=True)
    made = engine.containers.create(spec)
    assert (made.record.image_id, made.record.image_name) == ("", "tree:O")
    rootfs = mounts.plain_rootfs(engine._core, made.id, spec)
    assert [layer.path for layer in rootfs.layers] == [os.path.realpath(tmp_path)]
    assert sorted(os.listdir(rootfs.upper)) == ["upper", "work"]
    assert mounts.plain_rootfs(engine._core, made.id, spec.replace(rootfs_overlay=False)).tree == os.path.realpath(tmp_path)
