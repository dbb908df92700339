"""Taking times: contenders in turns, medians with their range."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Runner = Callable[[], float]


@dataclass(frozen=True)
class Sample:
    """Measured values of one contender, in the unit its scenario says."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(min(self.values))}-{_short(max(self.values))}, n={len(self.values)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def in_turns(contenders: Mapping[str, Runner], rounds: int, warm_up: int = 1) -> dict[str, Sample]:
    """Run every contender once per round, the first one of a round changing, so that drift of the host hits all alike."""
    names = list(contenders)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken = contenders[name]()
            if number >= warm_up:
                values[name].append(taken)
    return {name: Sample(tuple(taken)) for name, taken in values.items()}


def wall(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Runner:
    """Wall time in ms from spawn to exit, which must be 0."""
    environ = dict(os.environ if environment is None else environment)

    def run() -> float:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        try:
            start = time.perf_counter()
            pid = os.posix_spawn(command[0], list(command), environ, file_actions=actions)
            _, status = os.waitpid(pid, 0)
            taken = time.perf_counter() - start
        finally:
            os.close(null)
        if os.waitstatus_to_exitcode(status):
            explain(command, environ)
        return taken * 1000

    return run


def first_output(command: Sequence[str], needle: bytes, *, finish: bool) -> Runner:
    """Wall time in ms from spawn to `needle` on standard output. Outside the time the command is let finish, or killed."""

    def run() -> float:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        seen, taken = b"", 0.0
        while block := os.read(process.stdout.fileno(), 4096):
            seen += block
            if not taken and needle in seen:
                taken = time.perf_counter() - start
                if not finish:
                    process.kill()
        process.wait()
        process.stdout.close()
        if not taken:
            explain(command, os.environ)
        return taken * 1000

    return run


def explain(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """A contender that fails must not be taken for a fast one: run it once more, in the open, and give up."""
    again = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ)
    raise SystemExit(f"bench: failed: {' '.join(command)}\n(then exit {again.returncode}) {again.stdout[-500:]}{again.stderr[-2000:]}")
