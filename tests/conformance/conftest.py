"""Conformance of `nacre-oci`: what somebody else wrote down, run against ours and against runc on the same host.

NACRE_TEST_RUNTIME names another runtime in the place of ours. What the validation suite found is printed as a table at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import neighbours
import ocipack
from ocibundle import Bundle, Runtime

ROOT = Path(__file__).resolve().parent.parent.parent

# What the validation suite found, a row per program: its name, cases that passed and failed, cases that fail with runc, the reason.
Report = list[tuple[str, int, int, int, str]]
REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def runtime() -> str:
    """Path of the OCI runtime under test."""
    return os.environ.get("NACRE_TEST_RUNTIME") or str(Path(sys.executable).parent / "nacre-oci")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Where a test puts its row of the table that is printed at the end."""
    return pytestconfig.stash.setdefault(REPORT, [])


@pytest.fixture(scope="session")
def runc() -> str:
    """The distribution's runc, unpacked aside."""
    try:
        return str(neighbours.unpacked() / "usr/sbin/runc")
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system of the busybox test image as a tar."""
    command = [sys.executable, str(ROOT / "scripts" / "test-images"), "busybox"]
    layout = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1)[1].strip()
    path = tmp_path_factory.mktemp("busybox") / "layer.tar"
    ocipack.extract_layer(Path(layout), 0, path)
    return path


@pytest.fixture
def bundle(busybox: Path, tmp_path: Path) -> Bundle:
    """A bundle of its own for each test."""
    made = Bundle(tmp_path / "bundle")
    made.rootfs.mkdir(parents=True)
    with tarfile.open(busybox) as tar:
        tar.extractall(made.rootfs)  # our own
    return made


@pytest.fixture(params=["ours", "runc"])
def oci(request: pytest.FixtureRequest, runtime: str, tmp_path: Path) -> Iterator[Runtime]:
    """Each runtime in turn: what runc fails too is more likely our misreading of the specification."""
    program = request.getfixturevalue("runc") if request.param == "runc" else runtime
    made = Runtime(request.param, program, tmp_path / "state")
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The list of programs with failing cases, each with its explanation, and the sum."""
    seen = terminalreporter.config.stash.get(REPORT, [])
    if not seen:
        return
    terminalreporter.section("runtime-tools: failing cases (ours / runc) and why")
    for name, _, ours, theirs, reason in seen:
        if ours or theirs:
            terminalreporter.write_line(f"{name:34} {ours:3} / {theirs:3}  {reason}")
    passed, failed, others = (sum(column) for column in list(zip(*seen, strict=True))[1:4])
    terminalreporter.write_line(f"{len(seen)} programs: {passed} cases passed, {failed} failed; runc failed {others}")
