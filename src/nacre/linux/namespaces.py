"""Entering namespaces, and what the mounts of this process say about their propagation.

Sources: setns(2), mount_namespaces(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import os

from nacre.model import plan

# The files below /proc/PID/ns, by the word for the namespace.
KINDS = {
    "user": plan.NEWUSER, "ipc": plan.NEWIPC, "uts": plan.NEWUTS, "net": plan.NEWNET, "pid": plan.NEWPID, "cgroup": plan.NEWCGROUP,
    "time": plan.NEWTIME, "mnt": plan.NEWNS,
}  # fmt: skip
_DETACH = 2


def setns(fd: int, flags: int = 0) -> None:
    """Enter the namespace that a descriptor stands for, or with a pidfd those of a process that flags name. Raises OSError."""
    _call("setns", fd, ctypes.c_int(flags))


def unmount(path: str) -> None:
    """Take a mount away; what is still used of it goes with its last user. Raises OSError."""
    _call("umount2", path.encode(), ctypes.c_int(_DETACH))


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def propagation(path: str, text: str | None = None) -> tuple[str, str]:
    """The mount that a path is on, and its propagation: shared, slave or private. text: of /proc/self/mountinfo."""
    if text is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    best, found = "", "private"
    for line in text.splitlines():
        words = line.split(" ")
        point = _unescaped(words[4])
        # A later line covers an earlier one at the same place.
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            tags = words[6 : words.index("-")]
            kinds = [kind for kind, start in (("shared", "shared:"), ("slave", "master:")) if any(tag.startswith(start) for tag in tags)]
            best, found = point, kinds[0] if kinds else "private"
    return best, found


def _unescaped(text: str) -> str:
    """Spaces, tabs, newlines and backslashes are octal in mountinfo."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text
