"""Doctor on the real host: it agrees with what can be seen here, works for everybody and leaves nothing behind."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nacre.engine import doctor
from nacre.linux import cgroups

SOURCE = str(Path(__file__).parents[2] / "src")


def loops() -> set[str]:
    return {name for name in os.listdir("/sys/block") if os.path.exists(f"/sys/block/{name}/loop")}


def leftovers() -> set[str]:
    return {name for name in os.listdir("/var/tmp") if name.startswith("nacre-doctor-")}


def test_it_agrees_with_this_host() -> None:
    before = (Path("/proc/self/mounts").read_text(), loops(), leftovers())
    found = {check.name: check for check in doctor.checks()}
    assert (Path("/proc/self/mounts").read_text(), loops(), leftovers()) == before
    assert os.uname().release in found["kernel"].found
    assert ("hybrid" in found["cgroups"].found) == (cgroups.layout().kind == "hybrid")
    assert (found["mkfs.ext4"].status == "ok") == (shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is not None)
    assert all(check.status in ("ok", "warn", "fail", "info") and check.found for check in found.values())
    assert all(check.fix for check in found.values() if check.status == "fail")
    assert not any("could not be checked" in check.found for check in found.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_it_works_for_nobody() -> None:
    """As the user `nobody`, who can neither mount nor read much, possibly not even start this interpreter again."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with open(writer, "wb") as file:
                pickle.dump({check.name: (check.status, check.found) for check in doctor.checks()}, file)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        found = pickle.load(file)
    os.waitpid(pid, 0)
    assert found["privileges"] == ("info", "user id 65534, not root")
    assert found["rootless"][0] == "fail"
    assert "nothing" not in found["kernel"][1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_the_probes_work_for_nobody() -> None:
    python = "/usr/bin/python3"
    if (
        not os.path.exists(python)
        or subprocess.run([python, "-c", "import enum; enum.StrEnum"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the distribution's Python, 3.11 or newer")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        package, work = f"{directory}/source", f"{directory}/work"
        shutil.copytree(f"{SOURCE}/nacre", f"{package}/nacre", ignore=shutil.ignore_patterns("__pycache__"))
        os.mkdir(work)
        os.chmod(directory, 0o755)
        os.chown(work, 65534, 65534)
        code = f"import sys; sys.path.insert(0, {package!r}); from nacre.linux import kernel; kernel.main()"
        done = subprocess.run(
            [python, "-c", code, work, "/usr/bin/mkfs.erofs"],
            capture_output=True,
            text=True,
            check=False,
            user=65534,
            group=65534,
            extra_groups=[],
        )
    assert done.returncode == 0, done.stderr
    assert '"uid": 65534' in done.stdout


def test_the_probing_process_prints_one_object(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "nacre.linux.kernel", str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith('{"release": ')
    assert done.stderr == ""
