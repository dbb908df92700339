"""Does verbs of the engine and kills itself (SIGKILL) in the middle: ``crash_child.py ROOT RUN``.

Each line of input is a JSON list [STEP, VERB, ARGUMENT...]; the verb is done in a fork of this warmed-up process, which dies before
its STEPth step. Each line of output is the fork's exit code: -9 when it was killed, 0 when the verb came to its end before that
step, so that the parent knows that it has tried every step.

A step is a call that may change the world: files, processes, sockets, locks, mounts, the database; from any thread.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from nacre import ContainerSpec, Engine, Level
from nacre.linux import netns
from nacre.model.network import PortMapping

HOMES = {"posix", "fcntl", "_socket", "_io", "sqlite3", "_sqlite3"}
STEPS = {
    "open", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "symlink", "link", "write", "pwrite", "writev", "truncate",
    "ftruncate", "posix_fallocate", "chmod", "fchmod", "chown", "fchown", "lchown", "utime", "setxattr", "copy_file_range", "sendfile",
    "posix_spawn", "kill", "flock", "ioctl", "bind", "listen", "connect", "send", "sendall", "sendmsg", "execute",
}  # fmt: skip
SYSTEM_CALLS = "_call"  # the functions of nacre.linux through which mount, unshare, setns ... go
WARM = (
    "engine.containers", "engine.lifecycle", "engine.images", "engine.reap", "isolation.process", "isolation.microvm", "network.manager",
    "storage.rootfs", "storage.volumes", "storage.extract", "images.pull", "images.registry", "images.transport", "linux.nft", "linux.run",
)  # fmt: skip


def is_step(frame: FrameType, event: str, argument: Any) -> bool:
    """Whether the event of sys.setprofile is the beginning of a step."""
    if event == "call":
        return frame.f_code.co_name == SYSTEM_CALLS and "/nacre/linux/" in frame.f_code.co_filename
    if event != "c_call" or argument.__name__ not in STEPS:
        return False
    home = getattr(argument, "__module__", None) or type(getattr(argument, "__self__", None)).__module__
    return home in HOMES


def arm(step: int) -> Callable[[FrameType, str, Any], None]:
    """Die before the `step`th step from now."""
    left = step

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if is_step(frame, event, argument):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(watch)
    sys.setprofile(watch)
    return watch


def watch_bare_threads(watch: Callable[[FrameType, str, Any], None]) -> None:
    """Threads that were not started by the module `threading` are watched too."""
    start = netns.in_thread

    def in_thread(function: Callable[[], Any]) -> Any:
        def body() -> Any:
            sys.setprofile(watch)
            return function()

        return start(body)

    netns.in_thread = in_thread


def do(engine: Engine, step: int, verb: str, *arguments: str) -> None:
    """One verb, watched."""
    engine._core.database  # noqa: B018 - opened before the steps are counted
    if verb == "run":
        image, level, port = arguments
        ports = (PortMapping(container_port=80, host_port=int(port)),)
        spec = ContainerSpec(image=image, command=("sleep",), isolation=Level(level), auto_remove=True, ports=ports)
        watch_bare_threads(arm(step))
        engine.containers.run(spec)
    elif verb == "start":
        made = engine.containers.get(arguments[0])
        watch_bare_threads(arm(step))
        made.start()
    elif verb == "again":
        made = engine.containers.get(arguments[0])
        engine.lifecycle.reaping = True
        watch_bare_threads(arm(step))
        made.start_again()
    elif verb == "rm":
        made = engine.containers.get(arguments[0])
        watch_bare_threads(arm(step))
        made.remove(force=True)
    elif verb == "pull":
        watch_bare_threads(arm(step))
        engine.images.pull(arguments[0])


def one(root: str, run: str, step: int, verb: str, *arguments: str) -> None:
    """The life of a fork."""
    code = 1
    try:
        with Engine(root, run) as engine:
            do(engine, step, verb, *arguments)
            sys.setprofile(None)
            threading.setprofile(None)
        code = 0
    except BaseException:
        import traceback

        sys.setprofile(None)
        traceback.print_exc()
    finally:
        os._exit(code)


def main(root: str, run: str) -> None:
    """Serve until the input ends."""
    for name in WARM:
        importlib.import_module(f"nacre.{name}")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            one(root, run, *json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
