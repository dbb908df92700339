"""A real registry (Debian's docker-registry) on a loopback port, for tests, demo and benchmarks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The registry must not outlive whoever started it, even when that is killed: the kernel sees to it.
_DIES_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]


class Registry:
    """One registry server with its own storage in a temporary directory. A context manager; `close` is idempotent.

    address: host:port; configuration: a registries.conf(5) that sends every docker.io reference here, for CONTAINERS_REGISTRIES_CONF.
    """

    def __init__(self, port: int = 0, htpasswd: str = "", middleware: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nacre-registry-"))
        try:
            self._start(port, htpasswd, middleware)
        except BaseException:
            self.close()
            raise

    def _start(self, port: int, htpasswd: str, middleware: str) -> None:
        config = self.directory / "config.yml"
        access = ""
        if htpasswd:
            (self.directory / "htpasswd").write_text(htpasswd)
            access = f"auth:\n  htpasswd:\n    realm: test\n    path: {self.directory}/htpasswd\n"
        config.write_text(
            f"version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {self.directory}/data\n"
            f"  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{access}{middleware}"
        )
        self._log = open(self.directory / "log", "w")  # noqa: SIM115
        self._process: subprocess.Popen[str] | None = None
        environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        command = [*_DIES_WITH_PARENT, "docker-registry", "serve", str(config)]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(command, text=True, env=environment, **streams)
        except FileNotFoundError as error:
            raise RuntimeError(f"{error.filename} is missing; run: scripts/install-dependencies test") from error
        self.address = f"127.0.0.1:{self._port()}"
        self.configuration = self.directory / "registries.conf"
        self.configuration.write_text(
            'unqualified-search-registries = ["docker.io"]\n\n'
            f'[[registry]]\nprefix = "docker.io"\nlocation = "{self.address}"\ninsecure = true\n'
        )

    def _port(self) -> int:
        assert self._process is not None and self._process.stderr is not None
        seen = []
        for line in self._process.stderr:
            seen.append(line)
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line):
                # The pipe must be emptied for as long as the server lives, or it would block on its log.
                threading.Thread(target=_drain, args=(self._process.stderr, self._log.write), daemon=True).start()
                return int(found[1])
        raise RuntimeError("docker-registry did not start:\n" + "".join(seen[-5:]))

    def push(self, layout: Path, name: str) -> str:
        """Push an OCI layout under a repository name such as ``library/ubuntu:latest``, with skopeo; answers with the whole reference."""
        reference = f"{self.address}/{name}"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        command += [f"oci:{layout}:latest", f"docker://{reference}"]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"skopeo could not push {name}: {run.stderr.strip()}")
        return reference

    def close(self) -> None:
        """Stop the server and remove its storage."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _drain(stream: object, write: Callable[[str], object]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        write(line)
