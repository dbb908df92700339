"""Every isolation level passes the same suite, with real namespaces, a real monitor and no engine above them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Directories

from nacre.isolation import driver
from nacre.linux import netns
from nacre.model.container import ContainerSpec, Level, Resources, Sandbox
from nacre.model.network import Endpoint
from nacre.storage.layers import LayerStore
from nacre.storage.rootfs import RootfsStore
from nacre.testing.isolation import CHECKS, Check
from nacre.testing.storage import archive, directory, member

VERBS = ("true", "false", "exit", "echo", "cat", "sleep")
OWNER = 0x6FFE0000
MEMORY = 64 << 20


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The layer with the programs of the suite."""
    out = tmp_path_factory.mktemp("guestprog")
    subprocess.run(["make", "-s", "-C", str(ROOT / "tests/guestprog"), f"OUT={out}"], check=True)

    def build(tar: Any) -> None:
        directory(tar, "bin")
        member(tar, "bin/guestprog", (out / "guestprog").read_bytes(), mode=0o755)
        for verb in VERBS:
            member(tar, f"bin/{verb}", type=b"1", linkname="bin/guestprog", mode=0o755)
        member(tar, "bin/forbidden", b"not for you", mode=0o644)

    return archive(build)


class Workshop:
    """Makes sandboxes of one level in the session's directories, and removes what it made."""

    def __init__(self, directories: Directories, level: Level, layer: bytes) -> None:
        self.run, self.root, self.level = Path(directories.run), directories.root, level
        layers = LayerStore(self.root, directories.driver, run=directories.run)
        self.diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        layers.unpack(self.diff_id, io.BytesIO(layer))
        self.rootfs = RootfsStore(self.root, layers)
        self.sandboxes: list[Sandbox] = []

    def make(self) -> Sandbox:
        identifier = os.urandom(32).hex()
        namespace = f"{self.run}/netns/{identifier}"
        netns.create(namespace)
        place, state = self.run / "sandboxes" / identifier, Path(self.root, "containers", identifier)
        for path in (place / "stage", state):
            path.mkdir(parents=True)
        sandbox = Sandbox(
            id=identifier,
            level=self.level,
            directory=str(place),
            state=str(state),
            hostname="box",
            rootfs=self.rootfs.prepare(identifier, (self.diff_id,), disk=self.level is Level.VM),
            endpoint=Endpoint(network="none", netns=namespace),
            spec=ContainerSpec(image="box", isolation=self.level, network="none", resources=Resources(memory=MEMORY)),
            owner=OWNER,
        )
        self.sandboxes.append(sandbox)
        return sandbox

    def close(self) -> None:
        for sandbox in self.sandboxes:
            driver(self.level).clean(sandbox.id)
            netns.remove(sandbox.endpoint.netns)
            self.rootfs.remove(sandbox.id)
            for path in (sandbox.directory, sandbox.state):
                subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def make(
    directories: Directories, level: Level, programs: bytes, remains: Callable[[set[str]], set[str]], eventually: Callable[..., Any]
) -> Iterator[Callable[[], Sandbox]]:
    before = remains(set())
    with contextlib.closing(Workshop(directories, level, programs)) as workshop:
        yield workshop.make
    ids = {sandbox.id for sandbox in workshop.sandboxes}
    eventually(lambda: not remains(ids) - before, "nothing is left of the sandboxes")


@pytest.mark.parametrize("check", CHECKS, ids=lambda function: function.__name__.removeprefix("check_"))
def test_level(check: Check, level: Level, make: Callable[[], Sandbox]) -> None:
    check(driver(level), make)
