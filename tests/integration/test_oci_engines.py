"""`nacre-oci` under the engines that people have: podman, dockerd and containerd run real containers through it.

NACRE_TEST_RUNTIME names another runtime (runc, crun): what fails with that as well is not ours.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import vm_lacks

import neighbours
from nacre.model.container import Level

Done = subprocess.CompletedProcess[str]
Layouts = Callable[[str], Path]
Eventually = Callable[..., Any]


@pytest.fixture(scope="module", params=[Level.PROCESS, Level.VM], ids=str)
def runtime(request: pytest.FixtureRequest) -> str:
    """Path of the OCI runtime under test, at each level: nacre-oci, and nacre-oci-vm, whose containers are virtual machines."""
    name = {Level.PROCESS: "nacre-oci", Level.VM: "nacre-oci-vm"}[request.param]
    if request.param is Level.VM and (reason := vm_lacks() or no_minimal_kernel()):
        pytest.skip(reason)
    return os.environ.get("NACRE_TEST_RUNTIME") or str(Path(sys.executable).parent / name)


def no_minimal_kernel() -> str:
    """The root file system of a bundle is served by 9p, which distribution kernels for clouds lack."""
    kernel = Path(os.environ.get("NACRE_CACHE") or "/var/cache/nacre") / "kernels/current/vmlinux"
    return "" if kernel.exists() else "no minimal kernel; run: make guest-kernel"


@pytest.fixture(scope="module")
def scratch(own_network: None) -> Iterator[Path]:
    """A directory for an engine's state; short, because paths of unix sockets end at 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="nn-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Client:
    """The command line of an engine. `flags` go behind `run` and `create`."""

    def __init__(self, command: list[str], flags: list[str], image: str, runtime: str) -> None:
        self.command, self.flags, self.image = command, flags, image
        self.virtual = runtime.endswith("-vm")

    def __call__(self, *words: str, code: int = 0, input: str = "") -> Done:
        """Run it to its end; `code`: the exit code it must have."""
        done = subprocess.run([*self.command, *words], input=input, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def run(self, *words: str, code: int = 0, input: str = "") -> Done:
        """`run` with the runtime; words: further flags, the image as "IMAGE", the command."""
        return self("run", *self.flags, *(self.image if word == "IMAGE" else word for word in words), code=code, input=input)

    def on_terminal(self, *words: str, typed: bytes) -> bytes:
        """Run it on a terminal, type, and answer with what it printed until it ended well."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen([*self.command, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        seen = b""
        try:
            while select.select([ours], [], [], 60)[0]:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # EIO: nobody has the other end any more
                    break
                if not data:
                    break
                if not seen:
                    os.write(ours, typed)
                seen += data
            assert process.wait(30) == 0, seen
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return seen


def common(client: Client, eventually: Eventually) -> None:
    """What Docker's and podman's users do with a container."""
    assert client.run("--rm", "IMAGE", "echo", "hello").stdout == "hello\n"
    assert client.run("--rm", "-i", "IMAGE", "cat", input="piped").stdout == "piped"
    client.run("--rm", "IMAGE", "sh", "-c", "exit 3", code=3)
    client.run("--rm", "IMAGE", "/nowhere", code=127)
    client.run("--rm", "IMAGE", "/etc", code=126)
    seen = client.on_terminal(
        "run", *client.flags, "--rm", "-it", client.image, "sh", "-c", "echo ready; read line; tty; echo got $line", typed=b"typed\n"
    )
    assert b"/dev/pts/0" in seen and b"got typed" in seen
    limited = client.run(
        "--rm", "--memory", "64m", "--user", "1234:1235", "--cap-drop", "ALL", "IMAGE", "sh", "-c", "id -u; id -g; cat /proc/self/status"
    )
    assert limited.stdout.startswith("1234\n1235\n")
    assert re.search(r"CapEff:\s+0{16}", limited.stdout) and re.search(r"Seccomp:\s+2", limited.stdout)
    client.run("--rm", "--read-only", "IMAGE", "touch", "/file", code=1)

    script = "trap 'echo bye; exit 7' TERM; echo one; echo two >&2; while :; do sleep 0.1; done"
    client.run("-d", "--name", "life", "--hostname", "box", "IMAGE", "sh", "-c", script)
    eventually(lambda: "one" in client("logs", "life").stdout, "the first line in the log")
    assert client("logs", "life").stderr == "two\n"
    assert client("exec", "life", "hostname").stdout == "box\n"
    assert client("exec", "-i", "life", "cat", input="in").stdout == "in"
    client("exec", "life", "sh", "-c", "exit 4", code=4)
    seen = client.on_terminal("exec", "-it", "life", "sh", "-c", "echo ready; read line; echo got $line", typed=b"x\n")
    assert b"got x" in seen
    if not client.virtual:  # engines look for processes on the host, where a machine has one that stands for it
        assert "sleep" in client("top", "life").stdout
    client("stop", "-t", "10", "life")
    assert _state(client, "life")["ExitCode"] == 7
    client("start", "life")
    eventually(lambda: client("logs", "life").stdout.count("one") == 2, "the second life in the log")
    client("restart", "-t", "5", "life")
    eventually(lambda: client("logs", "life").stdout.count("one") == 3, "the third life in the log")
    client("kill", "--signal", "KILL", "life")
    eventually(lambda: not _state(client, "life")["Running"], "the end of the killed container")
    assert _state(client, "life")["ExitCode"] == 137
    client("rm", "life")

    client.run("-d", "--name", "frozen", "IMAGE", "sleep", "1000")
    client("pause", "frozen")
    assert _state(client, "frozen")["Paused"] is True
    client("unpause", "frozen")
    client("exec", "frozen", "true")
    client("rm", "-f", "frozen")

    client.run(
        *("-d", "--name", "checked", "--health-cmd", "test -e /healthy", "--health-interval", "1s", "--health-retries", "1"),
        *("IMAGE", "sh", "-c", "touch /healthy; sleep 1000"),
    )
    _become_healthy(client, eventually)
    client("rm", "-f", "checked")


def _become_healthy(client: Client, eventually: Eventually) -> None:
    if "podman" in client.command[0]:  # its timers are systemd's; by hand is what is left without that
        client("healthcheck", "run", "checked")
        client("exec", "checked", "rm", "/healthy")
        client("healthcheck", "run", "checked", code=1)
    else:
        eventually(lambda: _state(client, "checked")["Health"]["Status"] == "healthy", "health")


def _state(client: Client, name: str) -> Any:
    return json.loads(client("inspect", "--type", "container", name).stdout)[0]["State"]


@pytest.fixture(scope="module")
def podman(runtime: str, scratch: Path, layouts: Layouts) -> Iterator[Client]:
    """A podman whose containers run through the runtime, with the busybox image."""
    try:
        engine = neighbours.Podman(scratch, runtime=runtime)
    except RuntimeError as error:
        pytest.skip(str(error))
    pulled = subprocess.run([*engine.pull, f"oci:{layouts('busybox')}"], capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    yield Client(engine.command, [*neighbours.present_limits(), "--network", "none"], pulled.stdout.strip(), runtime)
    engine.close()


def test_podman(podman: Client, eventually: Eventually) -> None:
    common(podman, eventually)


def test_podman_pod(podman: Client, eventually: Eventually) -> None:
    """Two containers of a podman pod share host name, network and IPC, and have files and processes of their own."""
    if podman.virtual:
        pytest.skip("containers of a podman pod join namespaces of the host, which machines cannot")
    if not any(Path(place, "catatonit").exists() for place in ("/usr/libexec/podman", "/usr/bin", "/usr/lib/podman")):
        pytest.skip("podman's pods need its pause program; run: apt-get install catatonit")
    podman("pod", "create", "--name", "pair", "--network", "none", "--hostname", "pair")
    client = Client(podman.command, [*neighbours.present_limits(), "--pod", "pair"], podman.image, "")
    client.run("-d", "--name", "server", "IMAGE", "sh", "-c", "echo here > /tmp/file; nc -l -p 7000 -e echo shared")
    answer = eventually(lambda: client.run("--rm", "IMAGE", "sh", "-c", "nc 127.0.0.1 7000 || true").stdout)
    assert answer == "shared\n"
    assert client.run("--rm", "IMAGE", "sh", "-c", "hostname; ls /tmp").stdout == "pair\n"
    client("pod", "stop", "-t", "1", "pair")
    client("pod", "rm", "-f", "pair")


def test_dockerd(runtime: str, scratch: Path, layouts: Layouts, eventually: Eventually) -> None:
    try:
        daemon = neighbours.Dockerd(scratch, runtimes={"nacre": runtime}, aside=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    try:
        archive = scratch / "busybox.tar"
        archive.unlink(missing_ok=True)  # of the other level
        subprocess.run(["skopeo", "copy", "-q", f"oci:{layouts('busybox')}", f"docker-archive:{archive}:busybox:latest"], check=True)
        client = Client(daemon.command, ["--runtime", "nacre"], "busybox", runtime)
        client("load", "-i", str(archive))
        common(client, eventually)
        # Its network is set up by a prestart hook in the namespace that the runtime made.
        client.run("-d", "--name", "server", "IMAGE", "sh", "-c", "while :; do nc -l -p 7000 -e echo over the bridge; done")
        address = client("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "server").stdout.strip()
        answer = eventually(lambda: client.run("--rm", "IMAGE", "sh", "-c", f"nc {address} 7000 || true").stdout)
        assert answer == "over the bridge\n"
        client("update", "--memory", "96m", "--memory-swap", "96m", "server")
        assert "MEM" in client("stats", "--no-stream", "server").stdout
        client("rm", "-f", "server")
    finally:
        daemon.close()


def test_containerd(runtime: str, scratch: Path, layouts: Layouts, eventually: Eventually) -> None:
    try:
        daemon = neighbours.Containerd(scratch, aside=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    try:
        archive = scratch / "busybox-oci.tar"
        archive.unlink(missing_ok=True)
        subprocess.run(["skopeo", "copy", "-q", f"oci:{layouts('busybox')}", f"oci-archive:{archive}:latest"], check=True)
        image = "docker.io/library/busybox:latest"
        client = Client(daemon.command, ["--runc-binary", runtime], image, runtime)
        client("image", "import", "--index-name", image, str(archive))
        assert client.run("--rm", "IMAGE", "one", "echo", "hello").stdout == "hello\n"
        client.run("--rm", "IMAGE", "two", "sh", "-c", "exit 3", code=3)
        client.run("-d", "IMAGE", "life", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
        assert "RUNNING" in client("task", "ls").stdout
        assert client("task", "exec", "--exec-id", "e1", "life", "echo", "inside").stdout == "inside\n"
        seen = client.on_terminal(
            "task", "exec", "--exec-id", "e2", "--tty", "life", "sh", "-c", "echo ready; read line; tty; echo got $line", typed=b"x\n"
        )
        assert b"got x" in seen and b"/dev/pts/" in seen
        client("task", "pause", "life")
        assert "PAUSED" in client("task", "ls").stdout
        client("task", "resume", "life")
        assert len(client("task", "ps", "life").stdout.splitlines()) > 1
        client("task", "kill", "--signal", "SIGTERM", "life")
        eventually(lambda: "STOPPED" in client("task", "ls").stdout, "the end of the task")
        assert "exit code 7" in client("task", "delete", "life").stderr
        client("container", "delete", "life")
    finally:
        daemon.close()
