"""The peers, each with storage of its own in the scratch directory of the run. What is missing is left out, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

DOCKER_PACKAGES = ("docker.io", "docker-cli", "containerd", "runc")


class Podman:
    """Debian's podman with crun. It raises limits unless told not to, which not every host allows."""

    name = "podman"

    def __init__(self, scratch: Path) -> None:
        self.missing = "" if shutil.which("podman") and shutil.which("crun") else "podman or crun is not installed"
        options = ["--runtime", "crun", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        places = ["--root", f"{scratch}/podman/root", "--runroot", f"{scratch}/podman/run", "--tmpdir", f"{scratch}/podman/tmp"]
        self.command = [shutil.which("podman") or "podman", *places, *options]
        self.run = [*self.command, "run", *_present_limits()]
        policy = scratch / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.pull = [*self.command, "pull", "--quiet", "--tls-verify=false", "--signature-policy", str(policy)]

    def version(self) -> str:
        crun = _output("crun", "--version").splitlines()[0].split()[-1]
        return f"{_output('podman', '--version').split()[-1]} with crun {crun}"

    def close(self) -> None:
        subprocess.run([*self.command, "system", "reset", "--force"], stdin=subprocess.DEVNULL, capture_output=True)


class Docker:
    """Debian's dockerd, unpacked from its packages into the scratch directory and started from there: nothing is installed."""

    name = "dockerd"

    def __init__(self, scratch: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._tree = scratch / "docker"
        self._archives = Path(os.environ.get("NACRE_CACHE") or "/var/cache/nacre") / "bench"
        socket = scratch / "docker.sock"
        self.missing = self._unpack() or self._start(scratch, socket)
        self.command = [str(self._tree / "usr/bin/docker"), "--host", f"unix://{socket}"]
        self.run = [*self.command, "run"]
        self.pull = [*self.command, "pull", "--quiet"]

    def _unpack(self) -> str:
        self._tree.mkdir()
        for package in DOCKER_PACKAGES:
            for archive in self._archives.glob(f"{package}_*.deb"):
                subprocess.run(["dpkg-deb", "-x", str(archive), str(self._tree)], check=True)
        wanted = ("usr/bin/docker", "usr/sbin/dockerd", "usr/bin/containerd")
        return next((f"{name} was not in the package archive" for name in wanted if not (self._tree / name).exists()), "")

    def _start(self, scratch: Path, socket: Path) -> str:
        environ = {**os.environ, "PATH": f"{self._tree}/usr/bin:{self._tree}/usr/sbin:{os.environ['PATH']}"}
        state = scratch / "dockerd"
        command = ["setpriv", "--pdeathsig", "TERM", "--", "dockerd", "--host", f"unix://{socket}", "--pidfile", f"{state}.pid"]
        command += ["--data-root", f"{state}/data", "--exec-root", f"{state}/exec", *_present_limits("--default-ulimit")]
        with open(scratch / "dockerd.log", "wb") as log:
            self._process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(300):
            if socket.exists() and self._process.poll() is None:
                return ""
            time.sleep(0.1)
        lines = (scratch / "dockerd.log").read_text(errors="replace").splitlines()
        return f"dockerd did not start: {lines[-1] if lines else ''}"

    def version(self) -> str:
        return _output(*self.command, "version", "--format", "{{.Server.Version}}").strip()

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def download() -> None:
    """Get the packages of dockerd into the cache; needs the network. The client is a package of its own from Debian 13 on."""
    target = Path(os.environ.get("NACRE_CACHE") or "/var/cache/nacre") / "bench"
    target.mkdir(parents=True, exist_ok=True)
    for package in DOCKER_PACKAGES:
        if not any(target.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "-qq", "download", package], cwd=target, capture_output=True, stdin=subprocess.DEVNULL)


def _present_limits(flag: str = "--ulimit") -> list[str]:
    """Limits that any host can set, in the place of defaults that only a host with CAP_SYS_RESOURCE can."""
    return [flag, "nofile=1024:4096", flag, "nproc=1024:1024"]


def _output(*command: str) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout
