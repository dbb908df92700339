"""Space kept back for the records of a full disk."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nacre.store.reserve import SIZE, Reserve


def set_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the disk have that many free bytes."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bfree=count, f_bavail=count, f_frsize=1))


def test_it_is_given_up_when_space_runs_out_and_taken_back_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "reserve"
    reserve = Reserve(str(file))
    set_free(monkeypatch, 100 * SIZE)
    reserve.take()
    assert os.stat(file).st_blocks * 512 >= SIZE
    reserve.release_if_needed()
    assert file.exists()
    set_free(monkeypatch, SIZE // 2)
    reserve.release_if_needed()
    assert not file.exists()
    reserve.take()
    assert not file.exists(), "what little there is belongs to others"
    reserve.release_if_needed()
    set_free(monkeypatch, 100 * SIZE)
    reserve.take()
    assert file.exists()


def test_no_disk_no_error(tmp_path: Path) -> None:
    reserve = Reserve(str(tmp_path / "gone" / "reserve"))
    reserve.release_if_needed()
    reserve.take()
    assert not (tmp_path / "gone").exists()
