"""What happens when things go wrong: killed engines, stems and monitors, callers that race, commands that cannot run, full disks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre import ContainerSpec, Engine, Level, State

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
def clean(remains: Callable[[set[str]], set[str]], eventually: Any) -> Callable[[set[str]], None]:
    """`clean(ids)`: nothing of these containers is on the host, and nothing else that was not there before the test."""
    before = remains(set())

    def check(containers: set[str]) -> None:
        left: set[str] = set()

        def nothing() -> bool:
            left.clear()
            left.update(remains(containers) - before)
            return not left

        # The kernel deletes interfaces in the background.
        try:
            eventually(nothing, patience=5)
        except AssertionError:
            raise AssertionError("left behind:\n  " + "\n  ".join(sorted(left))) from None

    return check


# -- killed engines --------------------------------------------------------------------------------------------------------


def test_an_engine_killed_at_any_step_of_run(
    engine: Engine, image: str, crasher: Crasher, fresh: Callable[[], Engine], directories: Any, clean: Callable[[set[str]], None]
) -> None:
    level = Level.PROCESS
    died = survived = 0
    for step in range(1, MAX_STEPS):
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
    assert survived > 1, "killed after the container ran, it goes on"
