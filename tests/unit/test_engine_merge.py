"""What the caller asked for and what the image says, merged by Docker's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nacre.engine import merge
from nacre.errors import InvalidArgument
from nacre.model.container import ContainerSpec, MountSpec, ProcessSpec
from nacre.model.image import ImageConfig
from nacre.model.network import PortMapping

IMAGE = ImageConfig(
    env=("PATH=/opt/bin", "COLOR=blue"),
    entrypoint=("/entry", "-v"),
    cmd=("serve",),
    working_dir="/srv",
    user="app",
    exposed_ports=("80/tcp", "53/udp", "9000"),
    volumes=("/data", "/var/lib/app/"),
)


def spec(**fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", **fields)


def process(config: ImageConfig = IMAGE, **fields: Any) -> ProcessSpec:
    return merge.process_spec(spec(**fields), config, "host")


# -- the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "args"),
    [
        ({}, ("/entry", "-v", "serve")),
        ({"command": ("other", "x")}, ("/entry", "-v", "other", "x")),
        ({"entrypoint": ("/mine",)}, ("/mine",)),
        ({"entrypoint": ("/mine",), "command": ("x",)}, ("/mine", "x")),
        ({"entrypoint": (), "command": ("x",)}, ("x",)),
    ],
)
def test_command_and_entrypoint(fields: dict[str, Any], args: tuple[str, ...]) -> None:
    assert process(**fields).args == args


@pytest.mark.parametrize("fields", [{"entrypoint": ()}, {"entrypoint": ("",)}])
def test_no_command(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="no command specified"):
        process(**fields)
    with pytest.raises(InvalidArgument, match="no command specified"):
        process(ImageConfig())


def test_the_images_choices_hold_unless_overruled() -> None:
    made = process()
    assert (made.working_dir, made.user) == ("/srv", "app")
    made = process(working_dir="/tmp", user="0:0", groups=("wheel",), tty=True, open_stdin=True)
    assert (made.working_dir, made.user, made.groups, made.tty, made.open_stdin) == ("/tmp", "0:0", ("wheel",), True, True)
    assert process(ImageConfig(cmd=("x",))).working_dir == "/"


def test_environment() -> None:
    made = process(env=("COLOR=red", "EMPTY=", "A=b=c"), tty=True)
    assert made.env == ("PATH=/opt/bin", "HOSTNAME=host", "TERM=xterm", "COLOR=red", "EMPTY=", "A=b=c")
    assert process(ImageConfig(cmd=("x",))).env == (f"PATH={merge.DEFAULT_PATH}", "HOSTNAME=host")
    assert "COLOR=blue" not in process(env=("COLOR",)).env, "a name without a value takes the variable away"


@pytest.mark.parametrize("entry", ["=x", "", "A=b\0c"])
def test_environment_that_cannot_be(entry: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid environment variable"):
        process(env=(entry,))


@pytest.mark.parametrize(("path", "expected"), [("/", "/"), ("//", "/"), ("/a/../b/", "/b"), ("/..", "/"), ("/a//b/.", "/a/b")])
def test_working_directory(path: str, expected: str) -> None:
    assert merge.working_dir(path) == expected


def test_a_relative_working_directory_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs to be an absolute path"):
        merge.working_dir("tmp")


# -- validation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hostname": "a" * 64}, "invalid hostname"),
        ({"hostname": "a/b"}, "invalid hostname"),
        ({"mounts": (MountSpec(kind="tmpfs", target="/a"), MountSpec(kind="volume", target="/a/."))}, "duplicate mount point: /a"),
        ({"mounts": (MountSpec(kind="tmpfs", target="/a/.."),)}, "invalid mount target"),
        ({"mounts": (MountSpec(kind="tmpfs", target="a"),)}, "invalid mount target 'a'"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        merge.validate(spec(**fields))


def test_ports_without_a_network_are_a_warning() -> None:
    port = (PortMapping(container_port=80),)
    assert merge.validate(spec(ports=port)) == []
    for network in ("host", "none"):
        assert "discarded when using the " + network in merge.validate(spec(network=network, ports=port))[0]
        assert merge.published(spec(network=network, ports=port), IMAGE) == ()


# -- ports and mounts ----------------------------------------------------------------------------------------------------


def test_published_ports() -> None:
    mine = (PortMapping(container_port=80, host_port=8080),)
    assert merge.published(spec(ports=mine), IMAGE) == mine
    every = merge.published(spec(ports=mine, publish_all=True), IMAGE)
    assert every == (*mine, PortMapping(container_port=53, protocol="udp"), PortMapping(container_port=9000))


def test_exposed_ports_that_are_none_are_passed_over() -> None:
    config = ImageConfig(exposed_ports=("web/tcp", "8000-8010"))
    assert merge.published(spec(publish_all=True), config) == ()


def test_volumes_of_the_image() -> None:
    mine = (MountSpec(kind="bind", target="/data/", source="/srv"),)
    assert merge.image_volumes(spec(mounts=mine), IMAGE) == (*mine, MountSpec(kind="volume", target="/var/lib/app/"))


def test_binds_are_resolved_on_this_host(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    bound = merge.bind(MountSpec(kind="bind", target="/a/../b", source=str(tmp_path / "link"), read_only=True), create=False)
    assert (bound.source, bound.target, bound.is_dir, bound.read_only) == (str(tmp_path / "file"), "/b", False, True)
    assert merge.bind(MountSpec(kind="bind", target="/d", source=str(tmp_path)), create=False).is_dir


def test_a_missing_source_is_made_only_when_asked_for(tmp_path: Path) -> None:
    missing = tmp_path / "a" / "b"
    wanted = MountSpec(kind="bind", target="/x", source=str(missing))
    with pytest.raises(InvalidArgument, match="bind source path does not exist"):
        merge.bind(wanted, create=False)
    assert not missing.exists()
    assert merge.bind(wanted, create=True).is_dir
    assert missing.is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgument, match="cannot create bind source"):
        merge.bind(wanted.replace(source=str(tmp_path / "file" / "below")), create=True)


def test_a_relative_source_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="must be an absolute path"):
        merge.bind(MountSpec(kind="bind", target="/x", source="relative"), create=True)
