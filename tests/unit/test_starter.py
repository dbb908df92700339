"""The bundle of modules: starters import from it, and from the sources whenever anything about it is not exactly right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MODULE = """
import string

def program():
    print("old", type(__spec__.loader).__name__, type(string.__spec__.loader).__name__)
"""
FAILING = "def fail():\n    # why\n    raise OSError('as planned')\n"


class Place:
    """A package `nacre` of three modules with an environment that has a starter for it."""

    def __init__(self, directory: Path) -> None:
        self.sources = directory / "src"
        self.package = self.sources / "nacre"
        self.package.mkdir(parents=True)
        (self.package / "cli").mkdir()
        shutil.copy(REPOSITORY / "src/nacre/starter.py", self.package)
        (self.package / "__init__.py").touch()
        (self.package / "cli/__init__.py").write_text(MODULE)
        (self.package / "failing.py").write_text(FAILING)
        self.environment = directory / "env"
        (self.environment / "bin").mkdir(parents=True)
        (self.environment / "bin/python").symlink_to(sys.executable)
        self.write()
        self.bundle = self.package / f"__pycache__/modules.{sys.implementation.cache_tag}"

    def write(self) -> None:
        subprocess.run([REPOSITORY / "scripts/write-launcher", self.environment, self.sources], check=True)

    def run(self) -> str:
        done = subprocess.run([self.environment / "bin/nacre"], capture_output=True, text=True, check=False, env={})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_modules_come_from_the_bundle(place: Place) -> None:
    assert place.run() == "old Loader Loader"


def test_a_changed_module_comes_from_its_source(place: Place) -> None:
    source = place.package / "cli/__init__.py"
    source.write_text(MODULE.replace("old", "new"))
    os.utime(source, ns=(0, 10**18))
    assert place.run() == "new SourceFileLoader Loader"


def test_a_change_of_the_same_time_is_seen_by_its_size(place: Place) -> None:
    source = place.package / "cli/__init__.py"
    before = source.stat().st_mtime_ns
    source.write_text(MODULE.replace("old", "newer"))
    os.utime(source, ns=(before, before))
    assert place.run() == "newer SourceFileLoader Loader"


def test_a_package_that_became_a_module_is_found(place: Place) -> None:
    source = place.package / "cli/__init__.py"
    source.rename(place.package / "cli.py")
    shutil.rmtree(place.package / "cli")
    assert place.run() == "old SourceFileLoader Loader"


def test_a_module_that_cannot_be_imported_is_left_out(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (place.package / "broken.py").write_text("this is no Python\n")
    place.write()
    assert place.run() == "old Loader Loader"


def replaced(data: bytes, at: int) -> bytes:
    return data[:at] + b"\xff" * (len(data) - at)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:16384],
        lambda data: data[:16500],
        lambda data: replaced(data, 0),
        lambda data: replaced(data, 16384),
        lambda data: replaced(data, 16392),
        lambda data: data.replace(sys.version.encode(), sys.version.encode()[::-1]),
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "cut", "no-head", "half-a-head", "garbage", "garbage-length", "garbage-head", "other-interpreter", "zeros"],
)
def test_a_bundle_of_no_use_is_passed_over(place: Place, damage: Callable[[bytes], bytes]) -> None:
    place.bundle.write_bytes(damage(place.bundle.read_bytes()))
    assert place.run() == "old SourceFileLoader SourceFileLoader"


def test_damaged_code_is_replaced_by_the_source(place: Place) -> None:
    data = place.bundle.read_bytes()
    first = 16392 + int.from_bytes(data[16384:16392], "little")
    place.bundle.write_bytes(replaced(data, first))
    assert place.run() == "old Loader Loader"
    place.bundle.write_bytes(data[:first])
    assert place.run() == "old Loader Loader"


def test_a_starter_works_without_a_bundle(place: Place) -> None:
    place.bundle.unlink()
    assert place.run() == "old SourceFileLoader SourceFileLoader"
    place.bundle.mkdir()
    assert place.run() == "old SourceFileLoader SourceFileLoader"


def test_a_bundle_belongs_to_its_search_path(place: Place) -> None:
    starter = place.environment / "bin/nacre"
    starter.write_text(starter.read_text().replace("sys.path += [", "sys.path += ['/nowhere', "))
    assert place.run() == "old SourceFileLoader SourceFileLoader"


def test_tracebacks_show_the_source(place: Place) -> None:
    (place.package / "cli/__init__.py").write_text("from nacre import failing\nprogram = failing.fail\n")
    done = subprocess.run([place.environment / "bin/nacre"], capture_output=True, text=True, check=False)
    assert f'File "{place.package}/failing.py", line 3, in fail\n    raise OSError' in done.stderr


def test_modules_know_where_they_are(place: Place) -> None:
    facts = "print(failing.__file__, failing.__cached__, nacre.__path__, nacre.__package__, failing.__spec__.parent, sep='|')"
    (place.package / "cli/__init__.py").write_text(f"def program():\n    import nacre\n    from nacre import failing\n    {facts}\n")
    cached = place.package / f"__pycache__/failing.{sys.implementation.cache_tag}.pyc"
    assert place.run() == f"{place.package}/failing.py|{cached}|['{place.package}']|nacre|nacre"


def test_other_processes_do_without(place: Place) -> None:
    code = "import nacre.cli; nacre.cli.program()"
    done = subprocess.run([sys.executable, "-c", code], cwd=place.sources, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["old", "SourceFileLoader", "SourceFileLoader"]
