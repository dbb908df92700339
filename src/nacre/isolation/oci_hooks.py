"""Hooks that run in the runtime's own namespaces (OCI runtime specification, config.md "POSIX-platform Hooks")."""

from __future__ import annotations

import os
import select

from nacre.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nacre.model.bundle import Hook

_SHOWN = 400


def run(kind: str, hooks: Iterable[Hook], state: bytes) -> None:
    """Run hooks one after the other with the container's state on standard input. Raises HostError for the first that fails."""
    for place, hook in enumerate(hooks):
        problem = _run_one(hook, state)
        if problem:
            raise HostError(f"error running {kind} hook #{place}: {hook.path}: {problem}")


def _run_one(hook: Hook, state: bytes) -> str:
    """What went wrong, "" = nothing."""
    given, answer = os.memfd_create("state", os.MFD_CLOEXEC), os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        os.write(given, state)
        os.lseek(given, 0, os.SEEK_SET)
        environment = dict(entry.partition("=")[::2] for entry in hook.env)
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, answer, 1), (os.POSIX_SPAWN_DUP2, answer, 2)]
        try:
            # A group of its own, so that what it has started can be ended with it.
            pid = os.posix_spawn(hook.path, hook.args or (hook.path,), environment, file_actions=actions, setpgroup=0, setsigmask=())
        except OSError as error:
            return (os.strerror(error.errno or 0)).lower()
        if not _wait(pid, hook.timeout):
            os.killpg(pid, 9)
            os.waitpid(pid, 0)
            return f"it did not end within {hook.timeout} s and was killed"
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return ""
        output = os.pread(answer, _SHOWN, 0).decode("utf-8", "replace").strip()
        what = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{what}: {output}" if output else what
    finally:
        os.close(given)
        os.close(answer)


def _wait(pid: int, timeout: int) -> bool:
    if not timeout:
        return True
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(pidfd)
