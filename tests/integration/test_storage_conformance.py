"""Every storage driver passes the same suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.storage.layers import LayerStore
from nacre.storage.probe import DRIVERS, abilities
from nacre.storage.rootfs import RootfsStore
from nacre.testing.storage import CHECKS, Make


@pytest.mark.parametrize("check", CHECKS, ids=lambda function: function.__name__.removeprefix("check_"))
@pytest.mark.parametrize("driver", DRIVERS)
def test_driver(driver: str, check: Callable[[Make, str], None], tmp_path: Path) -> None:
    found = abilities(str(tmp_path / "root"), str(tmp_path / "run"))
    if driver != "copy" and found.overlay != "ok":
        pytest.skip(f"overlayfs cannot be used: {found.overlay}")
    if (driver == "erofs" or check.__name__ == "check_disk") and found.erofs != "ok":
        pytest.skip(f"EROFS cannot be used: {found.erofs}")

    def make() -> tuple[LayerStore, RootfsStore]:
        layers = LayerStore(str(tmp_path / "root"), driver, run=str(tmp_path / "run"))
        return layers, RootfsStore(str(tmp_path / "root"), layers)

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    check(make, str(scratch))
