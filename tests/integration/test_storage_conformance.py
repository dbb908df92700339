"""Every storage driver passes the same suite, on the file systems that it is for, as root of the host and of a user namespace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import diskimages
import pytest

from nacre.linux.kernel import mount
from nacre.model.plan import MS_BIND
from nacre.storage.layers import LayerStore
from nacre.storage.probe import abilities
from nacre.storage.rootfs import RootfsStore
from nacre.testing.storage import CHECKS, Make

PLACE = "/mnt"
Check = Callable[[Make, str], None]

# Driver and backing file system; "" = whatever the temporary directory is on.
HOST = [
    ("erofs", ""),
    ("overlay", ""),
    ("fuse-overlayfs", ""),
    ("vfs", ""),
    ("btrfs", "btrfs"),
    ("erofs", "xfs"),
    ("overlay", "btrfs"),
    ("vfs", "xfs"),
]
USER = [("overlay", ""), ("fuse-overlayfs", ""), ("vfs", ""), ("btrfs", "btrfs")]


def names(pair: tuple[str, str]) -> str:
    return "-on-".join(filter(None, pair))


checks = pytest.mark.parametrize("check", CHECKS, ids=lambda function: function.__name__.removeprefix("check_"))


def conform(check: Check, driver: str, kind: str, path: Path, *, user_namespace: bool) -> None:
    """One check in a fork."""
    if kind:
        diskimages.need(kind)
    top = path / "disk"
    top.mkdir()

    def before() -> None:
        if kind:
            diskimages.disk(kind, top)
        # Where everybody may walk to: the directories of temporary files are for their owner alone.
        mount(str(top), PLACE, "", MS_BIND)
        if user_namespace:
            os.chown(PLACE, diskimages.FIRST_ID, diskimages.FIRST_ID)

    def action() -> str:
        root, run = f"{PLACE}/root", f"{PLACE}/run"
        answer = abilities(root, run).of(driver)
        if answer != "ok":
            return answer

        def make() -> tuple[LayerStore, RootfsStore]:
            layers = LayerStore(root, driver, run=run)
            return layers, RootfsStore(root, layers)

        scratch = f"{PLACE}/scratch"
        os.mkdir(scratch)
        check(make, scratch)
        return ""

    diskimages.alone(action, before=before, user_namespace=user_namespace)


@checks
@pytest.mark.parametrize("pair", HOST, ids=names)
def test_driver(pair: tuple[str, str], check: Check, tmp_path: Path) -> None:
    conform(check, *pair, tmp_path, user_namespace=False)


@checks
@pytest.mark.parametrize("pair", USER, ids=names)
def test_driver_in_a_user_namespace(pair: tuple[str, str], check: Check, tmp_path: Path) -> None:
    if check.__name__ == "check_disk":
        pytest.skip("to look into a disk it has to be mounted, which a user namespace may not")
    conform(check, *pair, tmp_path, user_namespace=True)
