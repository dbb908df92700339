"""Engines of the distribution that stand beside ours in tests and benchmarks: dockerd and containerd, unpacked from their packages into the
cache and started from there (nothing of them is installed), and the installed podman. Each keeps all its state in one directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

# The client is a package of its own from Debian 13 on.
PACKAGES = ("docker.io", "docker-cli", "containerd", "runc")
START = 30.0  # seconds
# A neighbour must not outlive whoever started it, even when that is killed: the kernel sees to it.
_DIES_WITH_PARENT = ["setpriv", "--pdeathsig", "TERM", "--"]


def cache() -> Path:
    """Where packages and what is unpacked from them are kept."""
    return Path(os.environ.get("NACRE_CACHE") or "/var/cache/nacre") / "neighbours"


def download() -> None:
    """Get the packages into the cache; needs the network the first time."""
    target = cache()
    target.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not any(target.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "-qq", "download", package], cwd=target, capture_output=True, stdin=subprocess.DEVNULL)


def unpacked() -> Path:
    """The tree with usr/bin/docker, usr/sbin/dockerd, usr/bin/containerd, usr/bin/ctr, usr/sbin/runc.

    Raises RuntimeError with what is missing and how to get it.
    """
    download()
    archives = sorted(cache().glob("*.deb"))
    key = hashlib.sha256("\n".join(path.name for path in archives).encode()).hexdigest()[:16]
    tree = cache() / f"tree-{key}"
    if not tree.exists():
        made = Path(tempfile.mkdtemp(prefix=".tree-", dir=cache()))
        for archive in archives:
            subprocess.run(["dpkg-deb", "-x", str(archive), str(made)], check=True)
        try:
            made.rename(tree)
        except OSError:  # somebody else was faster
            shutil.rmtree(made)
    for name in ("usr/bin/docker", "usr/sbin/dockerd", "usr/bin/containerd"):
        if not (tree / name).exists():
            raise RuntimeError(f"{name} was not in the packages {', '.join(PACKAGES)}; see: apt-get download docker.io")
    return tree


def present_limits(flag: str = "--ulimit") -> list[str]:
    """Limits that any host can set, in the place of defaults that only a host with CAP_SYS_RESOURCE can."""
    return [flag, "nofile=1024:4096", flag, "nproc=1024:1024"]


class Daemon:
    """A server process of ours. A context manager; `close` is idempotent."""

    def __init__(self, command: list[str], socket: Path, log: Path, *, aside: bool = False) -> None:
        """aside: in network and mount namespaces of its own. Raises RuntimeError with the last line of its log when it does not start."""
        tree = unpacked()
        self.environment = {**os.environ, "PATH": f"{tree}/usr/bin:{tree}/usr/sbin:{os.environ['PATH']}"}
        start = ["unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"] if aside else []
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*_DIES_WITH_PARENT, *start, *command], env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        deadline = time.monotonic() + START
        while not socket.exists() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if not socket.exists() or self._process.poll() is not None:
            self.close()
            lines = log.read_text(errors="replace").splitlines()
            raise RuntimeError(f"{command[0]} did not start: {lines[-1] if lines else 'it said nothing'}")

    def close(self) -> None:
        """Stop it: kindly first."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Dockerd(Daemon):
    """A dockerd with its own containerd. command: the words of a client that talks to it."""

    def __init__(self, directory: Path, *, runtimes: Mapping[str, str] | None = None, aside: bool = False) -> None:
        """runtimes: name -> program of further OCI runtimes (docker run --runtime NAME)."""
        socket, state = directory / "docker.sock", directory / "dockerd"
        command = ["dockerd", "--host", f"unix://{socket}", "--pidfile", f"{state}.pid"]
        command += ["--data-root", f"{state}/data", "--exec-root", f"{state}/exec", *present_limits("--default-ulimit")]
        for name, program in (runtimes or {}).items():
            command += ["--add-runtime", f"{name}={program}"]
        super().__init__(command, socket, directory / "dockerd.log", aside=aside)
        self.command = [str(unpacked() / "usr/bin/docker"), "--host", f"unix://{socket}"]


class Containerd(Daemon):
    """A containerd. command: the words of `ctr` that talks to it."""

    def __init__(self, directory: Path, *, aside: bool = False) -> None:
        socket = directory / "containerd.sock"
        configuration = directory / "containerd.toml"
        configuration.write_text(
            f'version = 2\nroot = "{directory}/containerd/root"\nstate = "{directory}/containerd/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
        )
        super().__init__(["containerd", "--config", str(configuration)], socket, directory / "containerd.log", aside=aside)
        self.command = [str(unpacked() / "usr/bin/ctr"), "--address", str(socket)]


class Podman:
    """The installed podman. It raises limits unless told not to, which not every host allows."""

    def __init__(self, directory: Path, *, runtime: str = "crun") -> None:
        """Raises RuntimeError when podman is not installed."""
        program = shutil.which("podman")
        if not program:
            raise RuntimeError("podman is not installed; run: apt-get install podman crun")
        places = ["--root", f"{directory}/podman/root", "--runroot", f"{directory}/podman/run", "--tmpdir", f"{directory}/podman/tmp"]
        self.command = [program, *places, "--runtime", runtime, "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        policy = directory / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.pull = [*self.command, "pull", "--quiet", "--tls-verify=false", "--signature-policy", str(policy)]

    def close(self) -> None:
        """Remove all it has made."""
        subprocess.run([*self.command, "system", "reset", "--force"], stdin=subprocess.DEVNULL, capture_output=True)
