"""Records as Docker's JSON: a golden file for a container with everything, and the rules that depend on its state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacre.engine.inspect import NEVER, container_json, image_json, network_json
from nacre.model.container import (
    BoundMount,
    Container,
    ContainerSpec,
    LayerMount,
    Level,
    MountSpec,
    ProcessSpec,
    Resources,
    Rootfs,
    State,
    Ulimit,
)
from nacre.model.image import Image, ImageConfig, Layer, Platform
from nacre.model.network import Endpoint, PortMapping
from nacre.store import Layout

CONFIG = ImageConfig(
    env=("PATH=/bin",),
    entrypoint=("/entry",),
    cmd=("serve",),
    working_dir="/srv",
    user="app",
    labels={"a": "image", "b": "image"},
    exposed_ports=("80/tcp",),
    volumes=("/data",),
    stop_signal="SIGQUIT",
)
PORTS = (PortMapping(container_port=80, host_port=8080), PortMapping(container_port=53, host_ip="127.0.0.1", protocol="udp"))
RECORD = Container(
    id="c0" * 32,
    name="web",
    spec=ContainerSpec(
        image="nginx",
        name="web",
        command=("-c", "x"),
        labels={"b": "mine"},
        isolation=Level.VM,
        resources=Resources(memory=64 << 20, cpus=1.5, cpu_shares=512, pids=100),
        ports=PORTS,
        mounts=(MountSpec(kind="volume", target="/data", source="app"),),
        cap_add=("NET_ADMIN",),
        ulimits=(Ulimit(name="nofile", soft=10, hard=20),),
        sysctls={"net.ipv4.ip_forward": "1"},
        devices=("/dev/fuse", "/dev/sda:/dev/disk:r"),
        extra_hosts=("db:192.0.2.7",),
        security_opt=("no-new-privileges",),
        read_only=True,
        auto_remove=True,
    ),
    image_id="sha256:" + "1" * 64,
    image_name="nginx",
    image_config=CONFIG,
    process=ProcessSpec(args=("/entry", "-c", "x"), env=("PATH=/bin", "HOSTNAME=web"), working_dir="/srv", user="app"),
    mounts=(
        BoundMount(target="/data", kind="volume", source="/root/volumes/app/_data", options=("name=app",)),
        BoundMount(target="/etc/x", source="/srv/x", read_only=True, is_dir=False),
        BoundMount(target="/tmp", kind="tmpfs", options=("size=1m",)),
    ),
    created="2026-01-02T03:04:05.000000006Z",
    started="2026-01-02T03:04:06.000000007Z",
    exit_code=7,
    pid=4711,
    main=1,
    endpoint=Endpoint(
        network="bridge", netns="/run/netns/c0", interface="eth0", mac="02:6e:0a:58:00:02", address="10.88.0.2/16",
        gateway="10.88.0.1", ports=PORTS,
    ),
    rootfs=Rootfs(driver="erofs", layers=(LayerMount(diff_id="sha256:1", path="/l", format="erofs"),)),
)  # fmt: skip
ISOLATION: dict[str, object] = {"Kernel": "6.1.0", "Assurance": "its own kernel"}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"), str(tmp_path / "run"))


@pytest.fixture
def shown(layout: Layout) -> Callable[..., dict[str, Any]]:
    def show(record: Container = RECORD, state: State = State.RUNNING) -> dict[str, Any]:
        return container_json(record, state, layout, ISOLATION)

    return show


def test_a_running_container(shown: Callable[..., dict[str, Any]], layout: Layout, golden: Callable[[str, str], None]) -> None:
    text = json.dumps(shown(), indent=4).replace(layout.root, "/var/lib/nacre")
    golden("engine/container.json", f"{text}\n")


@pytest.mark.parametrize(
    ("state", "running", "paused", "dead"),
    [
        (State.CREATED, False, False, False),
        (State.RUNNING, True, False, False),
        (State.PAUSED, True, True, False),
        (State.EXITED, False, False, False),
        (State.DEAD, False, False, True),
    ],
)
def test_states(shown: Callable[..., dict[str, Any]], state: State, running: bool, paused: bool, dead: bool) -> None:
    seen = shown(state=state)["State"]
    assert (seen["Status"], seen["Running"], seen["Paused"], seen["Dead"]) == (str(state), running, paused, dead)
    assert (seen["Pid"], seen["ExitCode"]) == ((4711, 0) if running else (0, 7))


def test_times_that_never_were(shown: Callable[..., dict[str, Any]]) -> None:
    seen = shown(RECORD.replace(started="", finished=""), State.CREATED)["State"]
    assert seen["StartedAt"] == seen["FinishedAt"] == NEVER


def test_the_network_is_shown_while_it_runs(shown: Callable[..., dict[str, Any]]) -> None:
    assert shown()["NetworkSettings"]["IPAddress"] == "10.88.0.2"
    gone = shown(state=State.EXITED)["NetworkSettings"]
    assert (gone["IPAddress"], gone["IPPrefixLen"], gone["Ports"], gone["SandboxKey"]) == ("", 0, {}, "")
    assert set(gone["Networks"]) == {"bridge"}


def test_one_port_on_several_addresses() -> None:
    ports = tuple(PortMapping(container_port=80, host_port=number, host_ip=ip) for number, ip in ((8080, ""), (81, "127.0.0.1")))
    seen = network_json(Endpoint(network="bridge", ports=ports), "bridge")["Ports"]
    assert seen == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": "81"}]}


def test_labels_of_the_caller_win(shown: Callable[..., dict[str, Any]]) -> None:
    assert shown()["Config"]["Labels"] == {"a": "image", "b": "mine"}


@pytest.mark.parametrize(("given", "expected"), [(None, ["/entry"]), ((), None), (("/mine",), ["/mine"])])
def test_entrypoints(shown: Callable[..., dict[str, Any]], given: tuple[str, ...] | None, expected: list[str] | None) -> None:
    record = RECORD.replace(spec=RECORD.spec.replace(entrypoint=given))
    assert shown(record)["Config"]["Entrypoint"] == expected


def test_an_entrypoint_of_the_caller_discards_the_images_command(shown: Callable[..., dict[str, Any]]) -> None:
    bare = RECORD.spec.replace(command=())
    assert shown(RECORD.replace(spec=bare))["Config"]["Cmd"] == ["serve"]
    assert shown(RECORD.replace(spec=bare.replace(entrypoint=("/mine",))))["Config"]["Cmd"] == []


def test_a_record_of_a_container_that_never_ran(shown: Callable[..., dict[str, Any]]) -> None:
    bare = Container(id="d0" * 32, name="bare", spec=ContainerSpec(image="x"), image_id="sha256:2", image_name="x")
    seen = shown(bare, State.CREATED)
    assert (seen["Path"], seen["Args"], seen["Driver"], seen["Mounts"]) == ("", [], "", [])
    assert seen["HostConfig"]["PidsLimit"] is None
    json.dumps(seen)


def test_an_image(golden: Callable[[str, str], None]) -> None:
    image = Image(
        id="sha256:" + "1" * 64,
        digest="sha256:" + "2" * 64,
        tags=("docker.io/library/nginx:latest",),
        repo_digests=("docker.io/library/nginx@sha256:" + "2" * 64,),
        created="2026-01-02T03:04:05Z",
        size=4096,
        platform=Platform(architecture="arm64", variant="v8"),
        config=CONFIG,
        layers=(Layer(diff_id="sha256:" + "3" * 64, blob="sha256:" + "4" * 64, size=100),),
    )
    golden("engine/image.json", json.dumps(image_json(image), indent=4) + "\n")
