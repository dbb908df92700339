"""Fixtures of the integration tests: one engine in a network namespace of its own, both isolation levels, and a look for leftovers.

Everything here uses the real thing: root, the host's kernel, a real registry, QEMU. What a host lacks is a printed reason to skip.

======================  ==============================================================================================
`level`                 every level in turn; vm is skipped with the reason where it cannot run
`engine`                the session's Engine; after each test its containers are removed and leftovers are an error
`image`                 name of the image with the guest program (tests/guestprog), loaded the way a user would load it
`cli`                   runs the command line against the same engine
`remains`               what containers have left on the host
`registry`              a real registry on loopback that stands in for docker.io
`layouts`               directory of an OCI layout by name: guestprog, busybox, debian, nginx
`eventually`            waits for a condition; tests never sleep for a fixed time and never assert a duration
======================  ==============================================================================================
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import ocipack
from loopback_registry import Registry
from nacre import Engine
from nacre.linux import netns
from nacre.model.container import Level

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 30.0  # seconds
CLONE_NEWNET = 0x40000000
INTERFACE_PREFIX = "nv"  # of the host's end of a container's link
MAIN = "import sys; from nacre.cli import main; sys.exit(main())"


@cache
def vm_lacks() -> str:
    """Why level vm cannot be tested here, "" when it can."""
    if "vm" not in os.environ.get("NACRE_TEST_LEVELS", "process vm"):
        return "NACRE_TEST_LEVELS leaves vm out"
    if not shutil.which("qemu-system-x86_64"):
        return "no QEMU; run: apt-get install qemu-system-x86"
    cache_directory = Path(os.environ.get("NACRE_CACHE") or "/var/cache/nacre")
    if not (cache_directory / "kernels/current/vmlinux").exists() and not list(Path("/boot").glob("vmlinuz-*")):
        return "no guest kernel; run: make guest-kernel, or apt-get install linux-image-cloud-amd64"
    return ""


@pytest.fixture(params=[Level.PROCESS, Level.VM], ids=str)
def level(request: pytest.FixtureRequest) -> Level:
    """The isolation level a test runs at; every test that takes it runs at each."""
    chosen = Level(request.param)
    if chosen is Level.VM and (reason := vm_lacks()):
        pytest.skip(reason)
    return chosen


@pytest.fixture
def vm() -> Level:
    """Level vm, for what exists only there."""
    if reason := vm_lacks():
        pytest.skip(reason)
    return Level.VM


@pytest.fixture(scope="session")
def own_network() -> None:
    """Move the session into a network namespace of its own: no bridge, rule or port of the host is touched or in the way."""
    if os.environ.get("NACRE_TEST_NETWORK") == "host":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    netns.raise_interface("lo")


@pytest.fixture(scope="session")
def layouts() -> Callable[[str], Path]:
    """`layouts(name)`: the OCI layout of a test image, made on first use and kept in the cache."""

    @cache
    def make(name: str) -> Path:
        command = [sys.executable, str(ROOT / "scripts" / "test-images"), name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.split(" ", 1)[1].strip())

    return make


class Directories:
    """The two directories of the session's engine. `run` is short: paths of unix sockets end at 107 characters."""

    def __init__(self) -> None:
        self.root = tempfile.mkdtemp(prefix="nacre-test-", dir="/var/tmp")
        self.run = tempfile.mkdtemp(prefix="nt-", dir="/run")
        # Another driver may be asked for, so that the whole suite can run over it.
        self.driver = os.environ.get("NACRE_TEST_STORAGE_DRIVER") or None

    def remove(self) -> None:
        for path in (self.run, self.root):
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def directories(own_network: None) -> Iterator[Directories]:
    """Where the session's engine lives."""
    made = Directories()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def session_engine(directories: Directories) -> Iterator[Engine]:
    """The session's engine without the look for leftovers. Tests take `engine`."""
    with Engine(directories.root, directories.run, storage_driver=directories.driver) as engine:
        yield engine


@pytest.fixture(scope="session")
def image(session_engine: Engine, layouts: Callable[[str], Path], directories: Directories) -> str:
    """The image of the guest program, loaded from an OCI archive."""
    archive = Path(directories.root) / "guestprog.tar"
    ocipack.archive_layout(layouts("guestprog"), archive)
    [loaded] = session_engine.images.load(str(archive))
    archive.unlink()
    session_engine.images.tag(loaded.id, "guestprog")
    return "guestprog"


@pytest.fixture
def engine(session_engine: Engine, directories: Directories) -> Iterator[Engine]:
    """The session's engine; afterwards nothing of what the test made may be left on the host."""
    start, before = time.time(), set(leftovers(directories))
    yield session_engine
    for container in session_engine.containers.list(all=True):
        container.remove(force=True)
    ids = {event["id"] for event in session_engine.events(since=start) if event["type"] == "container"}
    deadline = time.monotonic() + PATIENCE
    while (left := set(leftovers(directories, ids)) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "left behind on the host:\n  " + "\n  ".join(sorted(left))


def nothing_left(directories: Directories) -> bool:
    """Whether nothing is left, given a moment: the kernel takes interfaces down after their namespace."""
    deadline = time.monotonic() + PATIENCE
    while left := leftovers(directories):
        if time.monotonic() > deadline:
            print("left behind:", *left, sep="\n  ")
            return False
        time.sleep(0.05)
    return True


def leftovers(directories: Directories, ids: set[str] | None = None) -> list[str]:
    """What containers left on this host: processes, mounts, namespaces, interfaces, loop devices, cgroups, directories."""
    run, root = directories.run, directories.root
    found = []
    for name in ("sandboxes", "netns", "network/endpoints", "network/leases"):
        found += [f"{run}/{name}/{entry}" for entry in _entries(f"{run}/{name}")]
    found += [f"{root}/containers/{entry}" for entry in _entries(f"{root}/containers")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount: {line}" for line in mounts if f"{run}/" in line or f"{root}/containers/" in line]
    # Of the namespace we are in: the path below self, not /proc/net of some other thread.
    interfaces = [line.partition(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
    found += [f"interface {name}" for name in interfaces if name.startswith(INTERFACE_PREFIX)]
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        backing = _text(loop)
        found += [f"{loop}: {backing}"] if f"{root}/containers/" in backing else []
    for process in Path("/proc").glob("[0-9]*"):
        line = _text(process / "cmdline").replace("\0", " ")
        if process.name != str(os.getpid()) and (f"{run}/sandboxes" in line or f"{root}/containers" in line):
            found.append(f"process {process.name}: {line}")
    for identifier in ids or ():
        found += [str(path) for path in _cgroups(identifier)]
    return found


@pytest.fixture
def remains(directories: Directories) -> Callable[[set[str]], set[str]]:
    """`remains(ids)`: what there is on the host of containers, and of these in particular."""
    return lambda ids: set(leftovers(directories, ids))


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cgroups(identifier: str) -> list[Path]:
    top = Path("/sys/fs/cgroup")
    patterns = (f"*{identifier}*", f"*/*{identifier}*", f"*/*/*{identifier}*")
    return [path for pattern in patterns for path in top.glob(pattern)]


class Cli:
    """The command line as a user starts it, against the session's engine. `environment` is that of every call."""

    def __init__(self, directories: Directories) -> None:
        self.environment = {**os.environ, "NACRE_ROOT": directories.root, "NACRE_RUN": directories.run, "LC_ALL": "C.UTF-8"}
        self.command = [sys.executable, "-P", "-c", MAIN]
        if directories.driver:
            self.command += ["--storage-driver", directories.driver]

    def __call__(
        self, *words: str, input: str = "", code: int | None = 0, environment: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; `code`: the exit code it must have (None = any)."""
        environ = {**self.environment, **os.environ, **(environment or {})}
        done = subprocess.run([*self.command, *words], input=input, capture_output=True, text=True, timeout=timeout, env=environ)
        if code is not None:
            assert done.returncode == code, f"nacre {' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start it and go on; the caller waits for it."""
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen([*self.command, *words], env={**self.environment, **os.environ}, **streams)


@pytest.fixture
def cli(engine: Engine, directories: Directories) -> Cli:
    """The command line against the same engine: `cli("run", "--rm", image, "true")`."""
    return Cli(directories)


@pytest.fixture(scope="session")
def registry(own_network: None, layouts: Callable[[str], Path]) -> Iterator[Registry]:
    """A real registry in the place of docker.io for the rest of the session, with library/guestprog in it."""
    if not shutil.which("docker-registry") or not shutil.which("skopeo"):
        pytest.skip("no registry; run: apt-get install docker-registry skopeo")
    with Registry() as made, pytest.MonkeyPatch.context() as patch:
        made.push(layouts("guestprog"), "library/guestprog:latest")
        patch.setenv("CONTAINERS_REGISTRIES_CONF", str(made.configuration))
        yield made


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """`eventually(condition)`: calls it until it answers something true, and returns that; fails after half a minute."""

    def wait(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
        deadline = time.monotonic() + patience
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"did not happen in {patience:g} s: {what or getattr(condition, '__name__', condition)}"
            time.sleep(0.02)
        return answer

    return wait
