"""What is measured: each scenario answers with rows of the table."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import guest
import neighbours
import ocipack
import runtime
from loopback_registry import Registry
from measure import Runner, Sample, first_output, in_turns, wall
from peers import Docker, Podman

ROOT = Path(__file__).resolve().parent.parent
NACRE = str(ROOT / ".venv/bin/nacre")
NACRE_OCI = str(ROOT / ".venv/bin/nacre-oci")
PYTHON = str(ROOT / ".venv/bin/python")
IMAGE = "busybox"
SCENARIOS = ("process_run", "process_exec", "sdk", "oci_run", "oci_podman", "throughput", "start_up", "vm_first_output", "memory", "pull")


@dataclass(frozen=True)
class Row:
    """One line of the table. `goal` says in words what `limit` bounds: the value itself, or its ratio to `peer`."""

    what: str
    unit: str
    nacre: Sample
    peer_name: str = ""
    peer: Sample | None = None
    goal: str = ""
    limit: float = 0.0

    @property
    def ratio(self) -> float:
        return self.nacre.median / self.peer.median if self.peer else 0.0

    def cells(self) -> list[str]:
        judged = self.ratio if self.peer else self.nacre.median
        verdict = ("yes" if judged < self.limit else "**no**") if self.limit else ""
        peer = f"{self.peer_name}: {self.peer}" if self.peer else ""
        return [self.what, self.unit, str(self.nacre), peer, f"{self.ratio:.2f}" if self.peer else "", self.goal, verdict]


class Bench:
    """One run: the scratch directory, the registry, the peers, the rounds."""

    def __init__(self, stack: ExitStack, quick: bool) -> None:
        self.quick = quick
        self.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nacre-bench-", dir="/var/tmp")))
        # Short: the path of a unix socket ends at 107 characters.
        self.run_directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="nb-", dir="/run"))
        self.registry = stack.enter_context(Registry())
        os.environ.update(
            NACRE_ROOT=str(self.scratch / "nacre"),
            NACRE_RUN=self.run_directory,
            CONTAINERS_REGISTRIES_CONF=str(self.registry.configuration),
        )
        self.images = {name: self.image(name) for name in ("busybox", "guestprog")}
        for name, layout in self.images.items():
            self.registry.push(layout, f"library/{name}:latest")
            check([NACRE, "pull", "-q", name])
        stack.callback(self.remove_containers)
        self.peers: list[Podman | Docker] = []
        self.absent: list[str] = []
        for kind in (Podman, Docker):
            peer = kind(self.scratch)
            stack.callback(peer.close)
            if peer.missing:
                self.absent.append(f"{peer.name}: {peer.missing}")
                continue
            check([*peer.pull, f"{self.registry.address}/library/{IMAGE}"])
            self.peers.append(peer)

    def image(self, name: str) -> Path:
        line = output(PYTHON, str(ROOT / "scripts/test-images"), name)
        return Path(line.split(" ", 1)[1].strip())

    def rounds(self, usual: int) -> int:
        return max(2, usual // 5) if self.quick else usual

    def remove_containers(self) -> None:
        ids = output(NACRE, "ps", "-aq").split()
        if ids:
            subprocess.run([NACRE, "rm", "-f", *ids], stdin=subprocess.DEVNULL, capture_output=True)

    # -- scenarios -------------------------------------------------------------------------------------------------------

    def process_run(self) -> list[Row]:
        """`run --rm IMAGE true` with the default network, image present."""
        contenders: dict[str, Runner] = {"nacre": wall([NACRE, "run", "--rm", IMAGE, "true"])}
        for peer in self.peers:
            contenders[peer.name] = wall([*peer.run, "--rm", f"{self.registry.address}/library/{IMAGE}", "true"])
        taken = in_turns(contenders, self.rounds(20))
        limits = {"podman": 0.25, "dockerd": 0.15}
        what = "`run --rm busybox true`, process level, default network"
        rows = [Row(what, "ms", taken["nacre"], goal="60 ms", limit=60)]
        return rows + [
            Row(what, "ms", taken["nacre"], name, taken[name], f"{limit:.2f}x", limit) for name, limit in limits.items() if name in taken
        ]

    def process_exec(self) -> list[Row]:
        """`exec` of `true` in a running container."""
        check([NACRE, "run", "-d", "--name", "bench-exec", IMAGE, "sleep", "100000"])
        contenders: dict[str, Runner] = {"nacre": wall([NACRE, "exec", "bench-exec", "true"])}
        for peer in self.peers:
            reference = f"{self.registry.address}/library/{IMAGE}"
            check([*peer.run, "-d", "--name", "bench-exec", reference, "sleep", "100000"])
            contenders[peer.name] = wall([*peer.command, "exec", "bench-exec", "true"])
        taken = in_turns(contenders, self.rounds(20))
        check([NACRE, "rm", "-f", "bench-exec"])
        for peer in self.peers:
            check([*peer.command, "rm", "-f", "bench-exec"])
        what = "`exec CONTAINER true`, process level"
        others = [name for name in taken if name != "nacre"]
        return [Row(what, "ms", taken["nacre"], name, taken[name]) for name in others] or [Row(what, "ms", taken["nacre"])]

    def sdk(self) -> list[Row]:
        """create, start, wait and remove of `true` in one process that keeps its engine."""
        values = output(PYTHON, str(ROOT / "bench/sdk.py"), IMAGE, str(self.rounds(50))).split()
        return [
            Row("SDK in-process: create + start + wait + remove of `true`", "ms", Sample(tuple(map(float, values))), goal="15 ms", limit=15)
        ]

    @cached_property
    def runtimes(self) -> tuple[dict[str, str], Path]:
        """The OCI runtimes that work on this host, and a bundle that they run."""
        programs = runtime.runtimes(NACRE_OCI)
        directory = runtime.bundle(self.images["busybox"], self.scratch / "bundle", programs["runc"])
        return runtime.usable(programs, directory, self.absent), directory

    def oci_run(self) -> list[Row]:
        """`nacre-oci run` of `true` from a ready bundle, against the runtimes of the distribution."""
        taken = runtime.run_of_each(*self.runtimes, self.rounds(40))
        return self._runtime_rows("`nacre-oci run` of `true`, bundle ready", taken)

    def oci_podman(self) -> list[Row]:
        """The whole `podman run --rm` of `true` without network, by runtime."""
        flags = ["--rm", "--network", "none", *neighbours.present_limits()]
        words = ["run", *flags, f"{self.registry.address}/library/{IMAGE}", "true"]
        contenders = {
            name: wall([*neighbours.Podman(self.scratch, runtime=path).command, *words]) for name, path in self.runtimes[0].items()
        }
        taken = in_turns(contenders, self.rounds(20))
        return self._runtime_rows("`podman run --rm busybox true` without network, through the runtime", taken)

    def _runtime_rows(self, what: str, taken: dict[str, Sample]) -> list[Row]:
        limits = {"runc": ("1.0x", 1.0)}
        others = [name for name in taken if name != "nacre-oci"]
        return [Row(what, "ms", taken["nacre-oci"], name, taken[name], *limits.get(name, ("", 0.0))) for name in others]

    def throughput(self) -> list[Row]:
        """200 containers with the default network, started by 4 workers; they all run at the end."""
        names = [f"many{number}" for number in range(20 if self.quick else 200)]
        rates = {"nacre": runtime.throughput([NACRE, "run", "-d"], IMAGE, names)}
        runtime.remove([NACRE], names)
        for peer in self.peers:
            rates[peer.name] = runtime.throughput([*peer.run, "-d"], f"{self.registry.address}/library/{IMAGE}", names)
            runtime.remove(peer.command, names)
        what = f"containers started by {runtime.WORKERS} workers, {len(names)} of them (more is better)"
        samples = {name: Sample((rate,)) for name, rate in rates.items()}
        return [Row(what, "1/s", samples["nacre"], name, samples[name]) for name in samples if name != "nacre"]

    def start_up(self) -> list[Row]:
        """Imports and commands that do nothing with containers."""
        commands = {
            "bare": [PYTHON, "-c", "pass"],
            "import": [PYTHON, "-c", "import nacre"],
            "version": [NACRE, "--version"],
            "ps": [NACRE, "ps"],
        }
        taken = in_turns({name: wall(command) for name, command in commands.items()}, self.rounds(30))
        return [
            Row("`python -c 'import nacre'`", "ms", taken["import"], "`python -c pass`", taken["bare"]),
            Row("`nacre --version` (CLI no-op)", "ms", taken["version"], goal="40 ms", limit=40),
            Row("`nacre ps` without containers", "ms", taken["ps"]),
        ]

    def vm_first_output(self) -> list[Row]:
        """First output of a command at level vm against a bare machine with the same kernel that prints one line."""
        program = self.scratch / "init"
        check(["make", "-s", "-C", str(ROOT / "tests/guestprog"), f"OUT={self.scratch}"])
        (self.scratch / "guestprog").rename(program)
        # As PID 1 of the bare machine it is called init, which is one of its verbs.
        initrd = guest.initramfs(program, self.scratch / "initrd")
        accelerator = self.accelerator()
        rows = []
        for name, kernel, limit in (("distribution's kernel", guest.cloud_kernel(), 1.25), ("minimal kernel", guest.minimal_kernel(), 0)):
            if kernel is None:
                self.absent.append(f"{name}: not on this host")
                continue
            run = [NACRE, "run", "--rm", "--isolation", "vm", "--kernel", str(kernel), "guestprog", "echo", "ready"]
            taken = in_turns(
                {
                    "nacre": first_output(run, guest.LINE, finish=True),
                    "bare": first_output(guest.machine(kernel, initrd, accelerator), guest.LINE, finish=False),
                },
                self.rounds(10),
            )
            what = f"vm level, {name}, {accelerator}: first output of `run --rm`"
            rows.append(Row(what, "ms", taken["nacre"], "bare QEMU boot", taken["bare"], "1.25x" if limit else "", limit))
            if not limit:
                rows.append(Row(what, "ms", taken["nacre"], goal="700 ms", limit=700))
        return rows

    def accelerator(self) -> str:
        """The one that Nacre itself chose on this host."""
        check([NACRE, "run", "-d", "--name", "bench-vm", "--isolation", "vm", "guestprog", "sleep"])
        described = output(NACRE, "inspect", "bench-vm")
        check([NACRE, "rm", "-f", "bench-vm"])
        found = re.search(r'"accelerator": "(\w+)"', described, re.IGNORECASE)
        return found[1].lower() if found else "tcg"

    def memory(self) -> list[Row]:
        """What the host pays for an idle container beyond the container's own processes: its stem."""
        rows = []
        for level in ("process", "vm"):
            names = [f"bench-idle-{level}-{number}" for number in range(3 if level == "vm" else 20)]
            for name in names:
                check([NACRE, "run", "-d", "--isolation", level, "--name", name, "guestprog", "sleep"])
            stems, monitors = [], []
            for directory in Path(self.run_directory, "sandboxes").iterdir():
                stem = int((directory / "stem.pid").read_text())
                stems.append(rollup(stem))
                monitors += [rollup(child) for child in children(stem)]
            check([NACRE, "rm", "-f", *names])
            title = f"idle container, {level} level ({len(names)} of them)"
            stem_rss = Sample(tuple(stem["Rss"] / 1024 for stem in stems))
            stem_pss = Sample(tuple(stem["Pss"] / 1024 for stem in stems))
            rows.append(Row(f"{title}: resident memory of stem", "MB", stem_rss, goal="1 MB", limit=1))
            rows.append(Row(f"{title}: proportional share of stem", "MB", stem_pss, goal="1 MB", limit=1))
            if level == "vm":
                rows.append(Row(f"{title}: resident memory of QEMU", "MB", Sample(tuple(one["Rss"] / 1024 for one in monitors))))
        return rows

    def pull(self) -> list[Row]:
        """Pull an image whose one layer unpacks to 200 MB, from the same loopback registry."""
        layout = big_layout(self.scratch)
        reference = self.registry.push(layout, "library/big:latest")
        contenders = {"nacre": pulled([NACRE, "rmi", "-f", reference], [NACRE, "pull", "-q", reference])}
        for peer in self.peers:
            contenders[peer.name] = pulled([*peer.command, "rmi", "-f", reference], [*peer.pull, reference])
        taken = in_turns(contenders, self.rounds(7))
        what = "pull and unpack of one 200 MB layer"
        limits = {"podman": ("1.0x", 1.0)}
        others = [name for name in taken if name != "nacre"]
        return [Row(what, "ms", taken["nacre"], name, taken[name], *limits.get(name, ("", 0.0))) for name in others] or [
            Row(what, "ms", taken["nacre"])
        ]


def pulled(remove: list[str], pull: list[str]) -> Runner:
    """The image is removed and dirty pages are written back before the clock starts."""
    timed = wall(pull)

    def run() -> float:
        subprocess.run(remove, stdin=subprocess.DEVNULL, capture_output=True)
        os.sync()
        return timed()

    return run


def big_layout(scratch: Path) -> Path:
    """200 MB of this host's /usr as one gzip layer: real files of real sizes."""
    tar_path, layout, size = scratch / "big.tar", scratch / "big", 0
    with tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar:
        for directory, folders, names in os.walk("/usr/lib"):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                # Few huge files would measure the disk, not the unpacking.
                if status.st_size < 8 << 20 and size + status.st_size <= 200 << 20:
                    tar.add(path, arcname=path[1:], recursive=False)
                    size += status.st_size
    ocipack.write_layout(layout, [tar_path], {"Cmd": ["true"]})
    tar_path.unlink()
    return layout


def rollup(pid: int) -> dict[str, int]:
    """Sums over a process's mappings in KiB (proc_pid_smaps_rollup(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.partition(":")[0]: int(line.split()[1]) for line in lines}


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def check(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)}: exit {done.returncode}\n{done.stdout[-500:]}{done.stderr[-2000:]}")


def output(*command: str) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout
