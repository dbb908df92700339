"""The peers, each with storage of its own in the scratch directory of the run. What is missing is left out, with the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from neighbours import Dockerd, present_limits
from neighbours import Podman as Engine


class Podman:
    """Debian's podman with crun."""

    name = "podman"

    def __init__(self, scratch: Path) -> None:
        self.missing = "" if shutil.which("podman") and shutil.which("crun") else "podman or crun is not installed"
        if not self.missing:
            self._engine = Engine(scratch)
            self.command, self.pull = self._engine.command, self._engine.pull
            self.run = [*self.command, "run", *present_limits()]

    def version(self) -> str:
        crun = _output("crun", "--version").splitlines()[0].split()[-1]
        return f"{_output('podman', '--version').split()[-1]} with crun {crun}"

    def close(self) -> None:
        if not self.missing:
            self._engine.close()


class Docker:
    """Debian's dockerd with runc."""

    name = "dockerd"

    def __init__(self, scratch: Path) -> None:
        self.missing = ""
        try:
            self._daemon = Dockerd(scratch)
        except RuntimeError as error:
            self.missing = str(error)
            return
        self.command = self._daemon.command
        self.run = [*self.command, "run"]
        self.pull = [*self.command, "pull", "--quiet"]

    def version(self) -> str:
        return _output(*self.command, "version", "--format", "{{.Server.Version}}").strip()

    def close(self) -> None:
        if not self.missing:
            self._daemon.close()


def _output(*command: str) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout
