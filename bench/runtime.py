"""The OCI runtime against runc and crun, alone and under podman, and how many containers a host starts in a second."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import neighbours
import ocipack
from measure import Runner, Sample, in_turns, wall

WORKERS = 4


def runtimes(nacre_oci: str) -> dict[str, str]:
    """Name and program of each runtime of this host."""
    found = {"nacre-oci": nacre_oci, "runc": str(neighbours.unpacked() / "usr/sbin/runc"), "crun": shutil.which("crun") or ""}
    return {name: program for name, program in found.items() if program and Path(program).exists()}


def bundle(layout: Path, directory: Path, specification: str) -> Path:
    """A bundle that runs `true` from an OCI layout of one layer. specification: a runtime that writes the usual config.json."""
    (directory / "rootfs").mkdir(parents=True)
    ocipack.extract_layer(layout, 0, directory / "layer.tar")
    with tarfile.open(directory / "layer.tar") as tar:
        tar.extractall(directory / "rootfs")  # our own
    subprocess.run([specification, "spec"], cwd=directory, check=True)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"args": ["true"], "terminal": False}
    # Limits that any host can set: not all may raise them.
    config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}]
    path.write_text(json.dumps(config))
    return directory


def usable(programs: dict[str, str], directory: Path, absent: list[str]) -> dict[str, str]:
    """Those that run the bundle on this host; of the others the reason goes to `absent`."""
    found = {}
    for name, program in programs.items():
        command = [program, "--root", str(directory / f"state-{name}"), "run", "--bundle", str(directory), "bench-probe"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            absent.append(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit {done.returncode}'}")
        else:
            found[name] = program
    return found


def run_of_each(programs: dict[str, str], directory: Path, rounds: int) -> dict[str, Sample]:
    """Wall time in ms of `run` of a ready bundle."""
    number = itertools.count()
    contenders: dict[str, Runner] = {}
    for name, program in programs.items():
        state = directory / f"state-{name}"

        def run(program: str = program, state: Path = state) -> float:
            return wall([program, "--root", str(state), "run", "--bundle", str(directory), f"bench{next(number)}"])()

        contenders[name] = run
    return in_turns(contenders, rounds)


def throughput(start: list[str], image: str, names: list[str]) -> float:
    """Containers started per second when workers start all of these names with `start --name NAME IMAGE sleep`."""

    def one(name: str) -> None:
        done = subprocess.run([*start, "--name", name, image, "sleep", "100000"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {' '.join(start)}: exit {done.returncode}\n{done.stderr[-2000:]}")

    begin = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, names))
    return len(names) / (time.perf_counter() - begin)


def remove(command: list[str], names: list[str]) -> None:
    """Remove containers, in lots that any command line takes."""
    for first in range(0, len(names), 50):
        subprocess.run([*command, "rm", "-f", *names[first : first + 50]], stdin=subprocess.DEVNULL, capture_output=True)
