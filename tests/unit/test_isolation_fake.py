"""The isolation level made of threads passes the suite of the real ones, so that what is tested over it is true of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.isolation.fake import Fake
from nacre.model.container import ContainerSpec, Level, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.testing.isolation import CHECKS, Check


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Sandbox]:
    count = iter(range(100))

    def sandbox() -> Sandbox:
        identifier = f"{next(count):064x}"
        directory, state = tmp_path / "run" / identifier, tmp_path / "state" / identifier
        for path in (directory, state):
            path.mkdir(parents=True)
        return Sandbox(
            id=identifier, level=Level.PROCESS, directory=str(directory), state=str(state), hostname="box",
            rootfs=Rootfs(driver="fake"), endpoint=Endpoint(network="none"), spec=ContainerSpec(image="box"),
        )  # fmt: skip

    return sandbox


@pytest.mark.parametrize("check", CHECKS, ids=lambda function: function.__name__.removeprefix("check_"))
def test_fake(check: Check, make: Callable[[], Sandbox]) -> None:
    check(Fake(exit_commands=True), make)
