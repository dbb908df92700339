"""Where an ordinary user's engine lives, and who may be in the way."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from nacre.errors import Denied, HostError
from nacre.isolation import rootless
from nacre.linux import run, userns


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and nothing in the environment."""
    for name in ("NACRE_ROOT", "NACRE_RUN", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(rootless, "_LONGEST", 200)
    return tmp_path


def private(path: Path, mode: int = 0o700) -> Path:
    path.mkdir(parents=True)
    path.chmod(mode)
    return path


def test_directories_follow_the_xdg_specification(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(here / "runtime")))
    assert rootless.directories() == (f"{here}/.local/share/nacre", f"{here}/runtime/nacre")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert rootless.directories()[0] == "/data/nacre"
    monkeypatch.setenv("NACRE_ROOT", "/elsewhere")
    monkeypatch.setenv("NACRE_RUN", "/running")
    assert rootless.directories() == ("/elsewhere", "/running")
    assert rootless.directories("/asked", "/for") == ("/asked", "/for")
    monkeypatch.delenv("NACRE_RUN")
    assert rootless.directories("/asked") == ("/asked", "/asked/run")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_runtime_directory_open_to_others_is_not_used(here: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(here / "runtime", mode)))
    assert rootless.directories()[1] != f"{here}/runtime/nacre"


def test_a_runtime_directory_too_long_for_sockets_is_not_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootless, "_LONGEST", 22)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(here / "runtime")))
    assert rootless.directories()[1] in (f"/run/user/{os.getuid()}/nacre", f"/tmp/nacre-{os.getuid()}")


def test_what_lives_elsewhere_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another session had another run-time directory, and there are containers in it."""
    data, first = private(here / ".local/share/nacre"), private(here / "first")
    rootless._note(str(data), str(first))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(here / "second")))
    assert rootless.directories()[1] == f"{here}/second/nacre"
    sandbox = private(first / "sandboxes/1")
    with open(sandbox / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert rootless.directories()[1] == str(first)
    assert rootless.directories()[1] == f"{here}/second/nacre"


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_somebody_elses_run_directory_is_refused(here: Path, kind: str) -> None:
    path = here / "run"
    if kind == "open":
        private(path, 0o777)
    elif kind == "link":
        path.symlink_to(private(here / "target"))
    else:
        path.touch()
    with pytest.raises(Denied, match="is not a directory of this user alone"):
        rootless._make_private(str(path))


def test_a_run_directory_is_made_for_the_user_alone(here: Path) -> None:
    rootless._make_private(f"{here}/a/run")
    assert (here / "a/run").stat().st_mode & 0o777 == 0o700


def test_maps_need_ranges_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_program", lambda name: "")
    with pytest.raises(HostError) as missing:
        rootless.maps()
    assert missing.value.hint == "apt-get install uidmap"
    monkeypatch.setattr(run, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(userns, "subordinate", lambda kind, names: ())
    with pytest.raises(HostError, match="has no subordinate uids") as lacking:
        rootless.maps()
    assert lacking.value.hint.startswith("as root: usermod --add-subuids ")
    monkeypatch.setattr(userns, "subordinate", lambda kind, names: ((100000, 65536),))
    assert rootless.maps() == (((0, os.getuid(), 1), (1, 100000, 65536)), ((0, os.getgid(), 1), (1, 100000, 65536)))


def test_a_dead_sandbox_is_not_joined(tmp_path: Path) -> None:
    """Nobody holds its lock, whatever its files say."""
    (tmp_path / "lock").touch()
    (tmp_path / "stem.pid").write_text(f"{os.getpid()}\n")
    assert rootless._join(str(tmp_path)) is False


def test_a_process_that_took_over_the_number_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / "stem.pid").write_text(f"{os.getpid()}\n")
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert rootless._join(str(tmp_path)) is False
