"""Choice of the driver from what the host can do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nacre.errors import HostError, InvalidArgument
from nacre.model.container import Rootfs
from nacre.storage import probe
from nacre.storage.layers import LayerStore
from nacre.storage.probe import Abilities, Choice, abilities, choose
from nacre.storage.rootfs import RootfsStore

ALL = Abilities(erofs="ok", through="file", overlay="ok", btrfs="not on Btrfs", fuse="ok")
NO_EROFS = ALL.replace(erofs="No such device", through="")
NO_OVERLAY = ALL.replace(overlay="Operation not permitted")
NOTHING = NO_OVERLAY.replace(fuse="the program is not installed")
ON_BTRFS = NO_OVERLAY.replace(btrfs="ok")
USER = NO_EROFS.replace(user_namespace=True)


class Host:
    """Stands in for trying; counts how often it was asked."""

    def __init__(self, found: Abilities) -> None:
        self.found = found
        self.asked = 0

    def __call__(self, root: str) -> Abilities:
        self.asked += 1
        return self.found


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.delenv(probe.VARIABLE, raising=False)
    made = Host(ALL)
    monkeypatch.setattr(probe, "_try", made)
    return made


def _choose(path: Path, wanted: str | None = None) -> Choice:
    return choose(str(path / "root"), str(path / "run"), wanted)


@pytest.mark.parametrize(
    ("found", "driver", "reason"),
    [
        (ALL, "erofs", ""),
        (NO_EROFS, "overlay", "No such device"),
        (NO_OVERLAY, "fuse-overlayfs", "not permitted"),
        (ON_BTRFS, "btrfs", "not permitted"),
        (NOTHING, "vfs", "not installed"),
    ],
)
def test_best_driver(host: Host, tmp_path: Path, found: Abilities, driver: str, reason: str) -> None:
    host.found = found
    choice = _choose(tmp_path)
    assert choice.driver == driver
    assert reason in choice.reason


def test_answer_is_kept(host: Host, tmp_path: Path) -> None:
    _choose(tmp_path)
    assert _choose(tmp_path) == _choose(tmp_path)
    assert host.asked == 1


@pytest.mark.parametrize("change", ["boot", "garbage", "other"])
def test_answer_of_another_time_is_not_believed(host: Host, tmp_path: Path, change: str) -> None:
    _choose(tmp_path)
    path = tmp_path / "run/probe-storage.json"
    kept = json.loads(path.read_text())
    if change == "boot":
        kept["key"] = "another boot"
    path.write_text({"garbage": "{half", "other": "[]"}.get(change) or json.dumps(kept))
    _choose(tmp_path)
    assert host.asked == 2


def test_lack_is_asked_again_later(host: Host, tmp_path: Path) -> None:
    host.found = NO_EROFS
    _choose(tmp_path)
    _choose(tmp_path)
    assert host.asked == 1
    path = tmp_path / "run/probe-storage.json"
    kept = json.loads(path.read_text())
    kept["time"] -= 3600
    path.write_text(json.dumps(kept))
    host.found = ALL
    assert _choose(tmp_path).driver == "erofs"
    assert host.asked == 2


def test_user_namespace_is_told_and_not_asked_again(host: Host, tmp_path: Path) -> None:
    host.found = USER
    assert _choose(tmp_path).user_namespace
    path = tmp_path / "run/probe-storage.json"
    kept = json.loads(path.read_text())
    kept["time"] -= 3600
    path.write_text(json.dumps(kept))
    assert _choose(tmp_path).driver == "overlay"
    assert host.asked == 1


def test_only_a_kernel_that_can_is_told_to_leave_the_disk_alone(host: Host, tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path), run=str(tmp_path / "run"))
    stacked, whole = Rootfs(driver="erofs", upper="/upper", options="userxattr"), Rootfs(driver="btrfs", tree="/tree")
    assert RootfsStore(str(tmp_path), store).transient(stacked) == stacked
    host.found = host.found.replace(volatile=True)
    (tmp_path / "run/probe-storage.json").unlink()
    rootfs = RootfsStore(str(tmp_path), LayerStore(str(tmp_path), run=str(tmp_path / "run")))
    assert rootfs.transient(stacked).options == "userxattr,volatile"
    assert rootfs.transient(stacked.replace(options="")).options == "volatile"
    assert rootfs.transient(whole) == whole


def test_forced_driver(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _choose(tmp_path, "overlay").driver == "overlay"
    assert _choose(tmp_path, "overlay2").driver == "overlay"
    monkeypatch.setenv(probe.VARIABLE, "vfs")
    assert _choose(tmp_path) == Choice(driver="vfs", reason="asked for")
    assert _choose(tmp_path, "erofs").driver == "erofs"


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [
        (NO_EROFS, "erofs", "EROFS"),
        (NO_OVERLAY, "erofs", "overlayfs"),
        (NO_OVERLAY, "overlay", "overlayfs"),
        (ALL, "btrfs", "not on Btrfs"),
        (NOTHING, "fuse-overlayfs", "not installed"),
    ],
)
def test_forced_driver_that_cannot_work(host: Host, tmp_path: Path, found: Abilities, wanted: str, reason: str) -> None:
    host.found = found
    with pytest.raises(HostError, match=reason) as caught:
        _choose(tmp_path, wanted)
    assert "NACRE_STORAGE_DRIVER" in caught.value.hint


def test_unknown_driver(host: Host, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="zfs"):
        _choose(tmp_path, "zfs")
    assert host.asked == 0


def test_trying_answers_without_root_too(tmp_path: Path) -> None:
    """What the answer is depends on the host; that there is one, and nothing is left, does not."""
    found = abilities(str(tmp_path / "root"), str(tmp_path / "run"))
    assert found.overlay
    assert found.erofs
    assert (found.erofs == "ok") == bool(found.through)
    assert os.listdir(tmp_path / "root") == []
