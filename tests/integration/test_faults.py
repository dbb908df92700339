"""What happens when things go wrong: killed engines, stems and monitors, callers that race, commands that cannot run, full disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nacre
import ocipack
from nacre import ContainerSpec, Engine, Level, MountSpec, State
from nacre.engine import Container
from nacre.linux import cgroups
from nacre.model.life import RestartPolicy
from nacre.model.network import PortMapping
from nacre.store import Lock

CRASH_CHILD = Path(__file__).with_name("crash_child.py")
MAX_STEPS = 1000


class Crasher:
    """A process that does verbs and is killed in the middle of them (see crash_child.py)."""

    def __init__(self, directories: Any) -> None:
        command = [sys.executable, str(CRASH_CHILD), directories.root, directories.run]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, step: int, verb: str, *arguments: str) -> bool:
        """Do the verb up to its `step`th step. False when it came to its end before."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([step, verb, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = int(self._process.stdout.readline())
        assert answer in (0, -9), f"{verb} failed at step {step}: {answer}"
        return answer != 0

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture
def crasher(engine: Engine, directories: Any) -> Iterator[Crasher]:
    with contextlib.closing(Crasher(directories)) as made:
        yield made


@pytest.fixture
def fresh(directories: Any) -> Callable[[], Engine]:
    """A new engine over the session's directories, as the next call of the command line has it."""
    return lambda: Engine(directories.root, directories.run, storage_driver=directories.driver)


def ids(directories: Any) -> set[str]:
    """Ids of everything that looks like a container or a sandbox now."""
    found = [Path(directories.root, "containers"), Path(directories.run, "sandboxes"), Path(directories.run, "network/endpoints")]
    return {entry.name for place in found if place.is_dir() for entry in place.iterdir()}


@pytest.fixture
def clean(remains: Callable[[set[str]], set[str]], eventually: Any) -> Callable[..., None]:
    """`clean(ids, stopped)`: nothing of these containers is on the host; of the stopped ones nothing but their own directory."""
    before = remains(set())

    def check(containers: Set[str], stopped: Set[str] = frozenset()) -> None:
        left: set[str] = set()
        kept = tuple(f"/containers/{identifier}" for identifier in stopped)

        def nothing() -> bool:
            left.clear()
            left.update(line for line in remains({*containers, *stopped}) - before if not line.endswith(kept))
            return not left

        # The kernel deletes interfaces in the background.
        try:
            eventually(nothing, patience=5)
        except AssertionError:
            raise AssertionError("left behind:\n  " + "\n  ".join(sorted(left))) from None

    return check


# -- killed engines --------------------------------------------------------------------------------------------------------


def steps(level: Level) -> Iterator[int]:
    """The steps to be killed before: all of them; at level vm, where each takes seconds, every seventh."""
    return iter(range(1, MAX_STEPS, 1 if level is Level.PROCESS else 7))


def test_an_engine_killed_at_any_step_of_run(
    engine: Engine, image: str, level: Level, crasher: Crasher, fresh: Callable[[], Engine], directories: Any, clean: Callable[..., None]
) -> None:
    died = survived = 0
    for step in steps(level):
        killed = crasher(step, "run", image, level, "18080")
        seen = ids(directories)
        with fresh() as second:
            if step % 2:
                second.containers.create(ContainerSpec(image=image)).remove()
            left = second.containers.list(all=True)
            for container in left:
                assert container.state is State.RUNNING, f"step {step}: {container.state}"
                assert container.exec(["true"]).wait() == 0
                assert container.ports()[0].host_port == 18080
                container.kill()
                survived += 1
            died += not left
            assert second.containers.list(all=True) == []
        clean(seen)
        if not killed:
            break
    assert not killed, "the verb did not come to its end"
    assert died
    assert survived > 1 or level is Level.VM, "killed after the container ran, it goes on"


def test_an_engine_killed_at_any_step_of_rm(
    engine: Engine, image: str, level: Level, crasher: Crasher, fresh: Callable[[], Engine], directories: Any, clean: Callable[..., None]
) -> None:
    """Before the removal has begun it runs on; from then on the next call completes what is missing."""
    died = survived = 0
    for step in steps(level):
        made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), name="going", isolation=level))
        killed = crasher(step, "rm", made.id)
        with fresh() as second:
            left = second.containers.list(all=True)
            for container in left:
                assert (container.id, container.state) == (made.id, State.RUNNING), f"step {step}"
                assert container.exec(["true"]).wait() == 0
                container.remove(force=True)
            survived += len(left)
            died += not left
        clean({made.id})
        if not killed:
            break
    assert not killed, "the verb did not come to its end"
    assert died > 1
    assert survived


def test_an_engine_killed_at_some_steps_of_start(
    engine: Engine, image: str, crasher: Crasher, fresh: Callable[[], Engine], directories: Any, clean: Callable[..., None]
) -> None:
    """It runs, or is as it was before; then it can be started."""
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",)))
    died = survived = 0
    for step in range(1, MAX_STEPS, 3):  # each of them is a step of run, too
        made.kill()
        killed = crasher(step, "start", made.id)
        with fresh() as second:
            container = second.containers.get(made.id)
            if container.state is State.RUNNING:
                survived += 1
            else:
                assert (container.state, container.record.exit_code) == (State.EXITED, 137), f"step {step}"
                assert container.record.error in ("", "its start was interrupted")
                if step % 2:  # cleaned up by whoever comes by, or by the next start itself
                    second.containers.list()
                    clean(set(), {made.id})
                container.start()
                died += 1
            assert container.exec(["true"]).wait() == 0
        if not killed:
            break
    assert not killed, "the verb did not come to its end"
    assert died
    assert survived


def test_a_helper_killed_at_some_steps_of_a_restart(
    engine: Engine, image: str, crasher: Crasher, fresh: Callable[[], Engine], directories: Any, clean: Callable[..., None], eventually: Any
) -> None:
    """The restart stays owed until the container runs, whoever dies over it."""
    policy = RestartPolicy(name="always")
    made = engine.containers.create(ContainerSpec(image=image, command=("exit", "3"), restart=policy))
    (helpers := Path(directories.run) / "helpers").mkdir(exist_ok=True)
    with Lock(str(helpers / f"{made.id}.reap")):  # no real helper comes in between
        made.start()
        started = made.record.started
        ran = 0
        for step in range(1, MAX_STEPS, 7):
            eventually(lambda: made.refresh().state is State.RESTARTING and not made.record.pid)
            ran += made.record.started != started
            started = made.record.started
            killed = crasher(step, "again", made.id)
            with fresh() as second:
                second.containers.list()
            if not killed:
                break
        assert not killed, "the verb did not come to its end"
        eventually(lambda: made.refresh().state is State.RESTARTING and not made.record.pid)
        assert ran or made.record.started != started
        made.stop()
        clean(set(), {made.id})
        assert made.refresh().state is State.EXITED


def tree(root: Path) -> dict[str, Any]:
    """Everything an engine has stored of images: the content of files by path; names of temporary files without what is random."""
    found: dict[str, Any] = {}
    for path in (path for name in ("blobs", "images", "layers") for path in (root / name).rglob("*")):
        name = re.sub(r"\.tmp-\w+|\.\d+\.\w+\.tmp", "(temporary)", str(path.relative_to(root)))
        if path.is_file() and "lock" not in name:
            data = path.read_bytes()
            found[name] = json.loads(data) if path.suffix == ".json" and "(temporary)" not in name else data
    return found


@pytest.fixture
def small_image(registry: Any, tmp_path: Path) -> str:
    """A pullable image of two small layers."""
    layers = [
        ocipack.layer_from_members([ocipack.directory_member("data"), ocipack.file_member("data/one", b"1" * 100_000)]),
        ocipack.layer_from_members([ocipack.file_member("data/two", b"2"), ocipack.link_member("data/link", "two")]),
    ]
    ocipack.write_layout(tmp_path / "small", layers, {"Cmd": ["/data/one"]})
    registry.push(tmp_path / "small", "library/small:latest")
    return "small"


@pytest.fixture
def quick_directory() -> Iterator[Path]:
    """A temporary directory in memory, where waiting for the disk costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as made:
        yield Path(made)


def test_an_engine_killed_at_any_step_of_pull(small_image: str, quick_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the image is there, whole, or it is not; pulling it again gives exactly what an undisturbed pull gives."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)  # reading the real ones takes most of the time of a small pull
    with Engine(str(quick_directory / "whole"), str(quick_directory / "whole-run")) as engine:
        engine.images.pull(small_image)
        expected = tree(quick_directory / "whole")
    crashing = SimpleNamespace(root=str(quick_directory / "root"), run=str(quick_directory / "run"))
    before = after = 0
    states: list[dict[str, Any]] = []
    with contextlib.closing(Crasher(crashing)) as crasher:
        for step in range(1, MAX_STEPS):
            shutil.rmtree(crashing.root, ignore_errors=True)
            killed = crasher(step, "pull", small_image)
            state = tree(Path(crashing.root))
            if killed and state in states:
                continue  # what this step would have changed was no file
            states.append(state)
            with Engine(crashing.root, crashing.run) as second:
                if [found.id for found in second.images.list()]:
                    after += 1
                    found = tree(Path(crashing.root))
                    assert expected.items() <= found.items(), f"step {step}"
                else:
                    before += 1
                second.images.pull(small_image)
                assert tree(Path(crashing.root)) == expected, f"step {step}"
            if not killed:
                break
    assert not killed, "the verb did not come to its end"
    assert before > 5
    assert after > 1


# -- killed sandboxes ------------------------------------------------------------------------------------------------------


def stem_of(directories: Any, made: Container) -> int:
    """Pid of the stem of a running container."""
    return int(Path(directories.run, "sandboxes", made.id, "stem.pid").read_text())


def children(pid: int) -> list[int]:
    """Pids of all descendants."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(text.split()[0]))
    found = parents.get(pid, [])
    for child in found:
        found += parents.get(child, [])
    return found


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_killed_stem(
    engine: Engine, image: str, level: Level, cli: Any, directories: Any, clean: Callable[..., None], eventually: Any
) -> None:
    """What ran in the sandbox dies with it; the next call notices, releases everything, and it can be started again."""
    ports = (PortMapping(container_port=80, host_port=18080),)
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), name="box", isolation=level, ports=ports))
    made.exec(["sleep"], detach=True).close()
    stem = stem_of(directories, made)
    inside = children(stem)
    assert inside
    os.kill(stem, signal.SIGKILL)
    eventually(lambda: not any(is_alive(pid) for pid in inside), "processes of the container end with its stem")
    assert "Exited (137)" in cli("ps", "-a").stdout
    assert "box" not in cli("ps").stdout
    clean(set(), {made.id})
    state = json.loads(cli("inspect", "box").stdout)[0]["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 137, False)
    assert "sandbox was killed" in state["Error"]
    cli("start", "box")
    assert made.refresh().record.error == ""
    assert cli("exec", "box", "echo", "again").stdout == "again\n"
    assert "Up" in cli("ps").stdout


def test_a_killed_monitor(
    engine: Engine, image: str, vm: Level, cli: Any, directories: Any, clean: Callable[..., None], eventually: Any
) -> None:
    """As a killed stem, and the container's record tells what was seen, with the last lines of the console."""
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), name="box", isolation=vm, network="none", privileged=True))
    following = cli.start("logs", "-f", "box")
    assert made.exec(["write", "/dev/kmsg", "<2>the last words\n"]).wait() == 0
    console = Path(directories.run, "sandboxes", made.id, "console.log")
    eventually(lambda: b"the last words" in console.read_bytes(), "the console shows what the kernel was told")
    [monitor] = [pid for pid in children(stem_of(directories, made)) if "qemu" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(monitor, signal.SIGKILL)
    assert made.wait() == 137
    assert following.wait(30) == 0
    clean(set(), {made.id})
    error = made.refresh().record.error
    assert "killed by signal 9" in error
    assert "the last words" in error
    assert made.state is State.EXITED
    made.start()
    assert made.exec(["true"]).wait() == 0


def test_a_guest_that_panics(engine: Engine, image: str, vm: Level, cli: Any, clean: Callable[..., None]) -> None:
    """The last lines of its kernel reach whoever runs it, and the record."""
    ended = cli("run", "--name", "box", "--isolation", "vm", "--network", "none", "--privileged", image, "panic", code=137)
    assert "nacre: the guest kernel panicked: " in ended.stderr
    assert "  | " in ended.stderr
    made = engine.containers.get("box")
    assert "Kernel panic" in made.record.error
    assert made.record.exit_code == 137
    clean(set(), {made.id})
    ended = cli("run", "--rm", "--isolation", "vm", "--network", "none", "--privileged", image, "panic", code=137)
    assert "Kernel panic - not syncing" in ended.stderr


def test_a_stem_killed_under_an_attached_command_line(
    engine: Engine, image: str, level: Level, cli: Any, directories: Any, clean: Callable[..., None], eventually: Any
) -> None:
    """It says what happened and ends like a killed container; --rm holds."""
    with cli.start("run", "--rm", "--name", "box", "--isolation", level, "--network", "none", image, "ticks", "100000", "10") as child:
        assert child.stdout.readline()
        made = engine.containers.get("box")
        os.kill(stem_of(directories, made), signal.SIGKILL)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 137
    assert "nacre: its sandbox was killed" in errors
    eventually(lambda: not engine.lifecycle.load(made.id))
    clean({made.id})


def test_what_nobody_knows_of_is_swept(
    engine: Engine, image: str, fresh: Callable[[], Engine], directories: Any, clean: Callable[..., None]
) -> None:
    """Run-time directories, control groups and networks of containers that are not in the database, or that do not run."""
    stranger = "f" * 64
    stopped = engine.containers.create(ContainerSpec(image=image))
    for identifier in (stranger, stopped.id):
        Path(directories.run, "sandboxes", identifier, "stage").mkdir(parents=True)
        Path(directories.run, "sandboxes", identifier, "lock").touch()
        cgroups.create(identifier)
        _, held = engine._core.network.attach(identifier)
        for fd in held:
            os.close(fd)
    with fresh() as second:
        second.containers.list()
    clean({stranger}, {stopped.id})


def test_a_row_without_a_directory(engine: Engine, image: str, cli: Any, directories: Any, clean: Callable[..., None]) -> None:
    """Somebody has deleted the files of a container: it can be removed, and not started into nothing by surprise."""
    made = engine.containers.create(ContainerSpec(image=image, name="box", command=("true",)))
    shutil.rmtree(Path(directories.root, "containers", made.id))
    assert "Created" in cli("ps", "-a").stdout
    cli("start", "-a", "box")
    made.refresh()
    shutil.rmtree(Path(directories.root, "containers", made.id))
    cli("rm", "box")
    clean({made.id})


def test_after_a_reboot(engine: Engine, image: str, level: Level, cli: Any, directories: Any, clean: Callable[..., None]) -> None:
    """Everything of the run-time directory is gone, and every process; containers are found ended and start again."""
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), name="box", isolation=level))
    os.kill(stem_of(directories, made), signal.SIGKILL)
    for name in os.listdir(f"{directories.run}/netns"):
        subprocess.run(["umount", "-l", f"{directories.run}/netns/{name}"], check=True)
    for name in ("netns", "network", "sandboxes", "seccomp"):
        shutil.rmtree(f"{directories.run}/{name}", ignore_errors=True)
    assert "Exited (137)" in cli("ps", "-a").stdout
    cli("start", "box")
    assert cli("exec", "box", "echo", "again").stdout == "again\n"
    cli("rm", "-f", "box")
    assert engine.containers.list(all=True) == []
    clean({made.id})


# -- the command line dies, the container lives ----------------------------------------------------------------------------


def test_detached_and_removed_without_its_command_line(
    engine: Engine, image: str, level: Level, cli: Any, clean: Callable[..., None], eventually: Any
) -> None:
    """The exit command removes it: nobody calls."""
    words = ("--isolation", level, "--network", "none")
    identifier = cli("run", "-d", "--rm", *words, image, "ticks", "10", "20").stdout.strip()
    eventually(lambda: not engine.lifecycle.load(identifier), "the container removes itself")
    clean({identifier})


def test_a_killed_command_line_in_the_foreground(
    engine: Engine, image: str, level: Level, cli: Any, clean: Callable[..., None], eventually: Any
) -> None:
    """The container goes on, and is removed at its end."""
    with cli.start("run", "-i", "--rm", "--name", "box", "--isolation", level, "--network", "none", image, "trap-term") as child:
        assert child.stdout.readline()
        child.kill()
    made = engine.containers.get("box")
    assert made.state is State.RUNNING
    assert made.exec(["true"]).wait() == 0
    made.kill("TERM")
    eventually(lambda: not engine.lifecycle.load(made.id), "the container removes itself")
    clean({made.id})


# -- several callers at once -----------------------------------------------------------------------------------------------


def at_once(cli: Any, *calls: tuple[str, ...]) -> list[tuple[int, str]]:
    """Run several command lines at the same time: (exit code, error output) of each."""
    children = [cli.start(*words) for words in calls]
    ends = [child.communicate(timeout=120) for child in children]
    return [(child.returncode, errors) for child, (_, errors) in zip(children, ends, strict=True)]


@pytest.fixture
def box(engine: Engine, image: str, level: Level) -> Callable[..., Container]:
    """`box(*command, **fields)`: a running container at the test's level without a network."""

    def make(*command: str, **fields: Any) -> Container:
        spec = {"network": "none", "isolation": level, "name": "box", "command": command or ("sleep",), **fields}
        return engine.containers.run(ContainerSpec(image=image, **spec))

    return make


def test_two_starts(engine: Engine, box: Any, cli: Any) -> None:
    made = box()
    made.kill()
    assert at_once(cli, ("start", "box"), ("start", "box"), ("start", "box")) == [(0, "")] * 3
    assert made.refresh().state is State.RUNNING
    assert made.exec(["true"]).wait() == 0


def test_stop_and_rm(engine: Engine, box: Any, cli: Any, clean: Callable[..., None]) -> None:
    made = box("ignore-term")
    answers = at_once(cli, ("stop", "-t", "1", "box"), ("rm", "-f", "box"))
    assert answers[1] == (0, "")
    assert answers[0] == (0, "") or "No such container: box" in answers[0][1]
    assert engine.containers.list(all=True) == []
    clean({made.id})


def test_many_removals(engine: Engine, box: Any, cli: Any, clean: Callable[..., None]) -> None:
    """One of them does it; the others say that there is nothing (any more), which with -f is no error."""
    made = box()
    answers = at_once(cli, *[("rm", "-f", "box")] * 3)
    assert answers == [(0, "")] * 3
    clean({made.id})
    made = box()
    made.kill()
    answers = at_once(cli, *[("rm", "box")] * 3)
    assert sorted(code for code, _ in answers) == [0, 1, 1]
    assert all("No such container: box" in text for code, text in answers if code)
    clean({made.id})


def test_exec_while_it_stops(engine: Engine, box: Any, cli: Any) -> None:
    """The command runs to its end, is ended with the container, or is refused with words; nothing hangs."""
    made = box("ignore-term")
    running = cli.start("exec", "box", "sleep")
    answers = at_once(cli, ("stop", "-t", "1", "box"), *[("exec", "box", "true")] * 4)
    assert answers[0] == (0, "")
    for code, text in answers[1:]:
        assert code in (0, 137) or (code in (1, 125) and "not running" in text), (code, text)
    assert running.wait(30) != 0
    assert made.state is State.EXITED
    assert cli("exec", "box", "true", code=None).returncode != 0


def test_one_name(engine: Engine, image: str, level: Level, cli: Any) -> None:
    """Many want the same name: one gets it, the others are told who has it, and leave nothing."""
    words = ("run", "-d", "--name", "box", "--isolation", level, "--network", "none", image, "sleep")
    answers = at_once(cli, *[words] * 4)
    assert sorted(code for code, _ in answers) == [0, 125, 125, 125]
    [made] = engine.containers.list(all=True)
    for code, text in answers:
        assert not code or f'the container name "/box" is already in use by container {made.id[:12]}' in text.lower()
    assert made.exec(["true"]).wait() == 0
    refused = cli("run", "--rm", "--name", "box", image, "true", code=125)
    assert "is already in use by container" in refused.stderr
    assert len(engine.containers.list(all=True)) == 1


def test_many_short_runs_at_once(engine: Engine, image: str, cli: Any, clean: Callable[..., None]) -> None:
    """No run takes another one's container for garbage."""
    answers = at_once(cli, *[("run", "--rm", image, "true")] * 12)
    assert answers == [(0, "")] * 12
    assert engine.containers.list(all=True) == []
    clean(set())


# -- ports -----------------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(engine: Engine, image: str, level: Level, cli: Any, clean: Callable[..., None]) -> None:
    """By a program of the host, by another container, within a range: Docker's words, and nothing left."""
    words = ("--isolation", level, image, "sleep")
    with socket.create_server(("127.0.0.1", 18081)):
        refused = cli("run", "-d", "--name", "box", "-p", "127.0.0.1:18081:80", *words, code=125)
        assert "Bind for 127.0.0.1:18081 failed: port is already allocated" in refused.stderr
        made = engine.containers.get("box")
        assert made.state is State.CREATED
        assert "port is already allocated" in made.record.error
        clean(set(), {made.id})
        refused = cli("run", "--rm", "-p", "18080-18082:80-82", *words, code=125)
        assert "Bind for 0.0.0.0:18081 failed: port is already allocated" in refused.stderr
        assert len(engine.containers.list(all=True)) == 1
        clean(set(), {made.id})
    cli("start", "box")
    refused = cli("run", "--rm", "-p", "18081:80", *words, code=125)
    assert "Bind for 0.0.0.0:18081 failed: port is already allocated" in refused.stderr
    refused = cli("run", "--rm", "-p", "18081:80/udp", "-p", "18090-18091:80-82", *words, code=125)
    assert "nvalid ranges specified for container and host Ports" in refused.stderr
    assert cli("port", "box").stdout == "80/tcp -> 127.0.0.1:18081\n"
    assert cli("run", "-d", "-p", "18080-18082:80", "--name", "chosen", *words).returncode == 0
    assert engine.containers.get("chosen").ports()[0].host_port in (18080, 18082)


# -- commands that cannot run ----------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with files that cannot be executed, each in its own way."""
    for name, mode, content in (
        ("plain", 0o644, b"#!/bin/true\n"),
        ("garbage", 0o755, b"\x7fELF\x00 and nothing that belongs to it"),
        ("script", 0o755, b"#!/no/such/interpreter\n"),
        ("text", 0o755, b"no first line that names an interpreter\n"),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
    (tmp_path / "directory").mkdir()
    return tmp_path


CANNOT_RUN = [
    ("nowhere", 127, 'exec: "nowhere": executable file not found in $PATH'),
    ("/no/where", 127, 'exec: "/no/where": no such file or directory'),
    ("/t/plain/deeper", 126, 'exec: "/t/plain/deeper": not a directory'),
    ("/t/plain", 126, 'exec: "/t/plain": permission denied'),
    ("/t/directory", 126, 'exec: "/t/directory": permission denied'),
    ("/t/garbage", 126, 'exec: "/t/garbage": exec format error'),
    ("/t/text", 126, 'exec: "/t/text": exec format error'),
    ("/t/script", 127, 'exec: "/t/script": no such file or directory'),
]


def test_commands_that_cannot_run(
    engine: Engine, image: str, level: Level, cli: Any, programs: Path, clean: Callable[..., None], box: Any
) -> None:
    """Docker's exit codes and words, from run and from exec; a container that never ran is created, with the reason in its record."""
    running = box(mounts=(MountSpec(kind="bind", source=str(programs), target="/t"),))
    options = ("--isolation", level, "--network", "none", "-v", f"{programs}:/t")
    for command, code, message in CANNOT_RUN:
        answer = cli("exec", "box", command, code=None)
        assert (answer.returncode, message in answer.stderr) == (code, True), (command, answer)
    running.remove(force=True)
    for command, code, message in CANNOT_RUN if level is Level.PROCESS else CANNOT_RUN[::3]:
        answer = cli("run", "--name", "box", *options, image, command, code=None)
        assert (answer.returncode, message in answer.stderr) == (code, True), (command, answer)
        made = engine.containers.get("box")
        assert (made.state, made.record.exit_code) == (State.CREATED, code)
        assert message in made.record.error
        clean(set(), {made.id})
        made.remove()
    cli("run", "--rm", *options, image, "nowhere", code=127)
    cli("run", "--rm", "-d", *options, image, "nowhere", code=127)
    assert engine.containers.list(all=True) == []


def test_unknown_things(engine: Engine, image: str, level: Level, cli: Any, registry: Any, clean: Callable[..., None]) -> None:
    options = ("--isolation", level, "--network", "none")
    answer = cli("run", "--rm", *options, "nosuch", code=125)
    assert "Unable to find image 'nosuch:latest' locally" in answer.stderr
    assert "nosuch" in answer.stderr.splitlines()[-2]
    answer = cli("run", "--rm", *options, "guestprog:nosuch", code=125)
    assert "guestprog:nosuch" in answer.stderr
    answer = cli("run", "--rm", *options, "--pull", "never", "nosuch", code=125)
    assert "No such image: nosuch:latest" in answer.stderr
    for words in (
        ("start", "nosuch"),
        ("stop", "nosuch"),
        ("rm", "nosuch"),
        ("exec", "nosuch", "true"),
        ("logs", "nosuch"),
        ("kill", "nosuch"),
    ):
        assert "No such container: nosuch" in cli(*words, code=125 if words[0] in ("exec", "logs") else 1).stderr, words
    assert "No such image: nosuch" in cli("rmi", "nosuch", code=1).stderr
    answer = cli("run", "--rm", *options, "-u", "nosuch", image, "true", code=125)
    assert "unable to find user nosuch: no matching entries in passwd file" in answer.stderr
    answer = cli("run", "--rm", *options, "-u", "root:nosuch", image, "true", code=125)
    assert "unable to find group nosuch: no matching entries in group file" in answer.stderr
    assert engine.containers.list(all=True) == []
    clean(set())


def test_little_memory_and_a_missing_working_directory(engine: Engine, image: str, level: Level, cli: Any) -> None:
    options = ("--rm", "--isolation", level, "--network", "none")
    answer = cli("run", *options, "--memory", "4m", image, "true", code=125)
    assert "Minimum memory limit allowed is 6MB" in answer.stderr
    assert engine.containers.list(all=True) == []
    assert cli("run", *options, "--memory", "6m", image, "echo", "enough").stdout == "enough\n"
    assert cli("run", *options, "-w", "/not/there/yet", image, "pwd").stdout == "/not/there/yet\n"


# -- full disks ------------------------------------------------------------------------------------------------------------


class SmallDisk:
    """An engine's root on a small file system of its own, with a command line for it."""

    def __init__(self, cli: Any, directories: Any, mebibytes: int) -> None:
        self.root = tempfile.mkdtemp(prefix="nacre-small-", dir="/var/tmp")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", self.root], check=True)
        self._cli = cli
        self._environment = {"NACRE_ROOT": self.root, "NACRE_RUN": f"{directories.run}/small"}
        self._ballast = Path(self.root, "ballast")

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        done: subprocess.CompletedProcess[str] = self._cli(*words, environment=self._environment, **options)
        return done

    def engine(self) -> Engine:
        """An engine."""
        return Engine(self._environment["NACRE_ROOT"], self._environment["NACRE_RUN"])

    def fill(self, leave: int = 0) -> None:
        """Use all space but `leave` bytes."""
        with contextlib.suppress(OSError), open(self._ballast, "ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        os.truncate(self._ballast, max(0, self._ballast.stat().st_size - leave))

    def relieve(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything."""
        with contextlib.ExitStack() as steps:
            steps.callback(os.rmdir, self.root)
            steps.callback(subprocess.run, ["umount", "-l", self.root], check=True)
            self.relieve()
            engine = steps.enter_context(self.engine())
            for container in engine.containers.list(all=True):
                container.remove(force=True)


@pytest.fixture
def small_disk(cli: Any, directories: Any, layouts: Any, tmp_path: Path) -> Iterator[SmallDisk]:
    """12 MiB with the test image in it."""
    made = SmallDisk(cli, directories, 12)
    try:
        ocipack.archive_layout(layouts("guestprog"), tmp_path / "image.tar")
        made("load", "-q", "-i", str(tmp_path / "image.tar"))
        with made.engine() as engine:
            [image] = engine.images.list()
            engine.images.tag(image.id, "guestprog")
        yield made
    finally:
        made.close()


def test_a_container_fills_the_disk(small_disk: SmallDisk, level: Level) -> None:
    """Its own writes fail; everything else goes on, and removing it gives the space back."""
    small_disk("run", "-d", "--name", "box", "--network", "none", "--isolation", level, "guestprog", "sleep")
    answer = small_disk("exec", "box", "fill", "/big", "64", code=1)
    assert "No space left on device" in answer.stderr or (level is Level.VM and "Input/output error" in answer.stderr)
    assert small_disk("exec", "box", "echo", "alive").stdout == "alive\n"
    assert "Up" in small_disk("ps").stdout
    small_disk("stop", "-t", "0", "box")
    assert "Exited (137)" in small_disk("ps", "-a").stdout
    small_disk("rm", "box")
    assert small_disk("run", "--rm", "--network", "none", "guestprog", "fill", "/big", "4").returncode == 0


def test_no_space_for_a_new_container(small_disk: SmallDisk, clean: Callable[..., None]) -> None:
    small_disk.fill()
    small_disk("ps")  # may use what is kept back
    small_disk.fill()
    answer = small_disk("run", "--rm", "--network", "none", "guestprog", "true", code=125)
    assert "no space left for" in answer.stderr
    codes = set()
    for left in (4096, 12288, 24576, 49152, 65536, 98304):
        small_disk.fill(left)
        answer = small_disk("run", "--rm", "--network", "none", "guestprog", "true", code=None)
        codes.add(answer.returncode)
        assert not answer.returncode or "no space left" in answer.stderr or "disk is full" in answer.stderr, answer.stderr
        small_disk.relieve()
        assert small_disk("ps", "-a", "-q").stdout == ""
        assert os.listdir(f"{small_disk.root}/containers") == []
        clean(set())
    assert codes == {0, 125}
    assert small_disk("run", "--rm", "--network", "none", "guestprog", "echo", "fine").stdout == "fine\n"


def test_removing_on_a_full_disk(small_disk: SmallDisk) -> None:
    """What frees space works without any."""
    small_disk("run", "-d", "--name", "box", "--network", "none", "guestprog", "sleep")
    small_disk("exec", "box", "fill", "/some", "2")
    small_disk.fill()
    small_disk("rm", "-f", "box")
    assert small_disk("ps", "-a", "-q").stdout == ""
    small_disk.fill()
    small_disk("rmi", "-f", small_disk("images", "-q").stdout.split()[0])
    assert small_disk("images", "-q").stdout == ""


def test_logs_on_a_full_disk_stop_nobody(small_disk: SmallDisk, eventually: Any) -> None:
    """Lines of the log are lost; the container goes on, those attached see everything, and its exit code is right."""
    small_disk("run", "-d", "--name", "box", "--network", "none", "guestprog", "ticks", "40", "25")
    small_disk.fill()
    with small_disk.engine() as engine:
        made = engine.containers.get("box")
        stream = made.attach()
        code, output, _ = stream.communicate()
        assert code == 0
        assert output.splitlines()
        eventually(lambda: not made.refresh().record.pid, "its end is recorded")
        assert (made.state, made.record.exit_code, made.record.error) == (State.EXITED, 0, "")
    small_disk.relieve()
    assert "Exited (0)" in small_disk("ps", "-a").stdout


def test_a_pull_fills_the_disk(cli: Any, directories: Any, registry: Any, tmp_path: Path) -> None:
    """It says so and leaves nothing; with more space the same pull succeeds."""
    noise = ocipack.layer_from_members([ocipack.file_member("noise", os.urandom(8 << 20))])
    ocipack.write_layout(tmp_path / "large", [noise], {"Cmd": ["/noise"]})
    registry.push(tmp_path / "large", "library/large:latest")
    with contextlib.closing(SmallDisk(cli, directories, 12)) as disk:
        answer = disk("pull", "large", code=125)
        assert "disk is full" in answer.stderr or "no space left" in answer.stderr
        assert disk("images", "-q").stdout == ""
        assert tree(Path(disk.root)).keys() <= {"images/references.json"}
        subprocess.run(["mount", "-o", "remount,size=32m", disk.root], check=True)
        disk("pull", "large")
        assert "large" in disk("images").stdout


# -- hosts that lack something ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["overlay", "fuse-overlayfs", "vfs"])
def test_without_erofs_or_overlay(
    driver: str, level: Level, cli: Any, directories: Any, layouts: Any, tmp_path: Path, clean: Callable[..., None]
) -> None:
    """Every storage driver runs containers, at both levels; what they wrote is there when they start again."""
    if level is Level.VM and not shutil.which("mkfs.erofs"):
        pytest.skip("a virtual machine's layers are EROFS images; run: apt-get install erofs-utils")
    environment = {"NACRE_ROOT": str(tmp_path / "root"), "NACRE_RUN": f"{directories.run}/{driver}", "NACRE_STORAGE_DRIVER": driver}

    def run(*words: str, **options: Any) -> str:
        return str(cli(*words, environment=environment, **options).stdout)

    ocipack.archive_layout(layouts("guestprog"), tmp_path / "image.tar")
    run("load", "-q", "-i", str(tmp_path / "image.tar"))
    image = run("images", "-q").split()[0]
    assert driver in run("info", "--format", "{{.StorageDriver}}")
    options = ("--isolation", level, "--network", "none")
    assert run("run", "--rm", *options, image, "echo", "fine") == "fine\n"
    run("run", "-d", "--name", "box", *options, image, "sleep")
    run("exec", "box", "write", "/kept", "still here")
    run("exec", "box", "rm", "/bin/false")
    run("restart", "-t", "0", "box")
    assert run("exec", "box", "cat", "/kept").strip() == "still here"
    run("exec", "box", "false", code=127)
    run("rm", "-f", "box")
    run("rmi", "-f", image)
    assert os.listdir(tmp_path / "root/containers") == []
    clean(set())


def test_a_driver_that_cannot_work(cli: Any, directories: Any, tmp_path: Path) -> None:
    """An engine whose directory cannot be the upper of an overlay, and one without mkfs.erofs: asked for, they say why."""
    environment = {"NACRE_ROOT": str(tmp_path / "root"), "NACRE_RUN": f"{directories.run}/cannot", "NACRE_STORAGE_DRIVER": "nonsense"}
    answer = cli("info", environment=environment, code=125)
    assert "there is no storage driver 'nonsense'" in answer.stderr
    assert "erofs, overlay, btrfs, fuse-overlayfs, vfs" in answer.stderr


@pytest.fixture
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line of an ordinary user. As that user may not read root's Python, perhaps another one's."""
    source = Path(nacre.__file__).parent.parent
    main = "import sys; from nacre.cli import main; sys.exit(main())"

    def run(*words: str, root: str, code: int) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(source), "NACRE_ROOT": root, "NACRE_RUN": f"{root}/run"}
        user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
        for python in (sys.executable, "/usr/bin/python3"):
            try:
                # -P is not known before 3.11, which then is no Python for us.
                done = subprocess.run([python, "-P", "-c", main, *words], env=environment, capture_output=True, text=True, cwd="/", **user)
            except OSError:
                continue
            if "No module named 'nacre'" not in done.stderr and "unknown option" not in done.stderr.lower():
                assert done.returncode == code, done.stderr
                return done
        pytest.skip("an ordinary user can read no Python here")

    return run


def test_without_root(nobody: Any, tmp_path: Path) -> None:
    """It says what is missing, before anything is downloaded."""
    answer = nobody("ps", root="/proc/nacre", code=125)
    assert answer.stderr
    with tempfile.TemporaryDirectory(prefix="nacre-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        answer = nobody("ps", root=f"{directory}/root", code=125)
        assert f"cannot create {directory}/root: permission denied" in answer.stderr
        assert "point NACRE_ROOT and NACRE_RUN at directories of yours" in answer.stderr
        answer = nobody("doctor", root=f"{directory}/root", code=1)
        assert "rootless" in answer.stdout
        with Engine(f"{directory}/root", f"{directory}/root/run") as engine:
            assert engine.containers.list() == []
        answer = nobody("ps", root=f"{directory}/root", code=125)
        assert f"{directory}/root/run is not a directory of this user alone" in answer.stderr
        os.chmod(directory, 0o777)
        answer = nobody("run", "--rm", "ubuntu", "true", root=f"{directory}/mine", code=125)
        assert "has no subordinate uids" in answer.stderr or "newuidmap" in answer.stderr
        assert "Pulling" not in answer.stderr
