"""The validation suite of opencontainers/runtime-tools (scripts/runtime-tools builds it), against ours and against runc.

A case that fails needs an entry in runtime-tools.toml that says why, and whether runc fails it on this kind of host as well. An entry
whose program has no failing case left is stale and fails too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXPLAINED = tomllib.loads((Path(__file__).parent / "runtime-tools.toml").read_text())
CANNOT_RUN = "the program itself ended with an error"


@cache
def suite() -> Path | None:
    """Where the suite is, None when it cannot be had."""
    if not shutil.which("go"):
        return None
    done = subprocess.run([str(ROOT / "scripts/runtime-tools")], stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def programs() -> list[str]:
    found = suite() if os.geteuid() == 0 else None
    return sorted(path.name for path in (found / "validation").iterdir()) if found else []


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A working directory as the suite wants it, with temporary files of its own."""
    made = suite()
    if not made:
        pytest.skip("the suite cannot be built; run: scripts/runtime-tools")
    with tempfile.TemporaryDirectory(prefix="nacre-conformance-") as name:
        # Not by link: the suite copies what it finds, links and all, into its bundles.
        shutil.copytree(made, name, dirs_exist_ok=True)
        (Path(name) / "tmp").mkdir()
        yield Path(name)


class Outcome:
    """What a program said about a runtime: names of cases that passed and that failed, and the end of its errors."""

    def __init__(self, place: Path, program: str, runtime: str) -> None:
        command = ["unshare", "--mount", str(place / "validation" / program)]
        environment = {**os.environ, "RUNTIME": runtime, "TMPDIR": str(place / "tmp")}
        done = subprocess.run(command, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        lines = [line for line in done.stdout.splitlines() if re.match(r"(not )?ok \d+", line) and "# SKIP" not in line]
        names = [(line.startswith("ok"), re.sub(r"^(not )?ok \d+ - ", "", line)) for line in lines]
        self.passed = [name for good, name in names if good]
        self.failed = [name for good, name in names if not good]
        self.errors = done.stderr[-2000:]
        if done.returncode:
            self.failed.append(CANNOT_RUN)


@pytest.mark.parametrize("program", programs() or [pytest.param("", marks=pytest.mark.skip(reason="needs root and Go"))])
def test_validation(program: str, place: Path, runtime: str, runc: str, report: list[tuple[str, int, int, int, str]]) -> None:
    ours = Outcome(place, program, runtime)
    entry = EXPLAINED.get(program, {})
    theirs = Outcome(place, program, runc) if ours.failed or entry else None
    reason = entry.get("reason", "")
    report.append((program, len(ours.passed), len(ours.failed), len(theirs.failed) if theirs else 0, reason))
    if ours.failed:
        assert reason, f"unexplained: {ours.failed}\n{ours.errors}"
        assert len(ours.failed) <= entry["cases"], f"explained are {entry['cases']}: {ours.failed}\n{ours.errors}"
        assert theirs and len(theirs.failed) <= entry["runc"], f"runc: {theirs and theirs.failed}"
    else:
        assert not entry or entry.get("racy"), "passes now: take its entry out of runtime-tools.toml"
