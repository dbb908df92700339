"""A bundle to change and a runtime to give it to: what the tests of the OCI runtime specification are written with."""

from __future__ import annotations

import copy
import json
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds

CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
CONFIGURATION: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NAME=value"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    },
}


class Bundle:
    """A directory with a root file system and `config`, which `write` writes as config.json."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rootfs = directory / "rootfs"
        self.config = copy.deepcopy(CONFIGURATION)

    def write(self, text: str | None = None) -> None:
        """text: what to write in the place of the configuration."""
        (self.directory / "config.json").write_text(json.dumps(self.config) if text is None else text)

    def shell(self, script: str) -> None:
        """Let the container run a script."""
        self.config["process"]["args"] = ["sh", "-c", script]


class Done:
    """How a call of the runtime ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}{self.err}"


class Runtime:
    """A runtime program with a state directory of its own. Containers have made-up names and are deleted by `close`."""

    def __init__(self, name: str, program: str, state: Path) -> None:
        self.name, self.program, self.state_directory = name, program, state
        self.containers: list[str] = []

    def __call__(self, *words: str, code: int | None = 0, input: str | None = None, **options: Any) -> Done:
        """Run it to its end; `code`: the exit code it must have, None = any."""
        # What it starts may keep standard output and error open, so those are files and not pipes that one would wait for.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            command = [self.program, "--root", str(self.state_directory), *words]
            source: Any = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
            ended = subprocess.run(command, stdout=out, stderr=err, text=True, timeout=60, **source, **options)
            out.seek(0)
            err.seek(0)
            done = Done(ended.returncode, out.read(), err.read())
        assert code is None or done.code == code, f"{' '.join(words)}: {done}"
        return done

    def new(self) -> str:
        """A name for a container."""
        self.containers.append(f"conformance-{uuid.uuid4().hex[:12]}")
        return self.containers[-1]

    def run(self, bundle: Bundle, *flags: str, code: int | None = 0, input: str | None = None, **options: Any) -> Done:
        """`run` to the container's end."""
        bundle.write()
        return self("run", "--bundle", str(bundle.directory), *flags, self.new(), code=code, input=input, **options)

    def create(self, bundle: Bundle, *flags: str, code: int = 0) -> str:
        """`create`; the container's name."""
        bundle.write()
        name = self.new()
        self("create", "--bundle", str(bundle.directory), *flags, name, code=code)
        return name

    def state(self, name: str) -> Any:
        """The state as `state` prints it."""
        return json.loads(self("state", name).out)

    def until(self, name: str, status: str) -> None:
        """Wait for a status."""
        deadline = time.monotonic() + PATIENCE
        while (seen := self.state(name)["status"]) != status:
            assert time.monotonic() < deadline, f"{name} stays {seen}"
            time.sleep(0.02)

    def close(self) -> None:
        """Delete every container that is left."""
        for name in self.containers:
            self("delete", "--force", name, code=None)
        self.containers.clear()

    @property
    def version(self) -> tuple[int, ...]:
        """Of the runtime."""
        word = self("--version").out.split()[2]
        return tuple(int(part) for part in word.partition("+")[0].partition("-")[0].split("."))


def started(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
