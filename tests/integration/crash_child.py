"""Runs one verb and kills itself (SIGKILL) at its Nth step: ``crash_child.py N ROOT RUN VERB ARGUMENT...``.

A step is a call from Nacre into the operating system's interfaces (files, processes, sockets, locks, database). Exit code 0
means the verb came to its end before step N; the parent then knows that it has tried every step.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from nacre import ContainerSpec, Engine, Level

MODULES = {"posix", "fcntl", "_socket", "select", "_io", "_sqlite3", "sqlite3"}
QUIET = {"fspath", "getpid", "urandom", "get_terminal_size", "stat", "lstat", "listdir", "scandir", "fstat", "getcwd", "close", "sched_getaffinity"}


def is_step(function: Any) -> bool:
    """Whether a call of this built-in may change the world."""
    owner = getattr(function, "__self__", None)
    home = getattr(function, "__module__", None) or type(owner).__module__
    return home in MODULES and function.__name__ not in QUIET


def arm(step: int) -> None:
    """Die at the `step`th step from now."""
    count = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event == "c_call" and is_step(argument) and "/nacre/" in frame.f_code.co_filename:
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


def main(step: int, root: str, run: str, verb: str, *arguments: str) -> None:
    """Do the verb."""
    with Engine(root, run) as engine:
        engine._core.database  # noqa: B018 - opened before the steps are counted
        if verb == "run":
            spec = ContainerSpec(image=arguments[0], command=("sleep",), isolation=Level(arguments[1]), auto_remove=True)
            arm(step)
            engine.containers.run(spec)
        elif verb == "rm":
            made = engine.containers.get(arguments[0])
            arm(step)
            made.remove(force=True)
        elif verb == "pull":
            arm(step)
            engine.images.pull(arguments[0])
        sys.setprofile(None)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
