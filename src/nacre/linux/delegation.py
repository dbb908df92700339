"""The part of the control group tree that an ordinary user may manage: what systemd, or an administrator, has delegated.

A process may make groups below its own group when that belongs to its user (cgroup-v2.rst, "Delegation"; cgroup-v1 by the
same means: ownership of the directory and its files).
"""

from __future__ import annotations

import json
import os

from nacre.errors import InvalidArgument
from nacre.linux.cgroups import LEAF, Layout

_RECORD = "delegation.json"


def delegated(where: Layout, groups: str | None = None) -> Layout:
    """The layout with each mount narrowed to this process's own group there, without those that it may not manage.

    groups: text of /proc/self/cgroup.
    """
    own = _own_groups(groups)
    v1 = {}
    for controller, point in where.v1.items():
        place = _below(point, own.get(controller, ""))
        if place and _is_ours(place, "tasks"):
            v1[controller] = place
    unified = _below(where.unified, own.get("", "")) if where.unified else ""
    if not unified or not _is_ours(unified, "cgroup.procs", "cgroup.subtree_control"):
        return where.replace(v1=v1, unified="", v2=(), track=())
    controllers = _words(f"{unified}/cgroup.controllers")
    return where.replace(v1=v1, unified=unified, v2=tuple(name for name in where.v2 if name in controllers), track=())


def of_manager(where: Layout, uid: int) -> tuple[str, ...]:
    """The controllers that this user's systemd can hand on (v2 alone); () when it does not run."""
    if where.v1 or not where.unified:
        return ()
    controllers = _words(f"{where.unified}/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers")
    return tuple(name for name in where.v2 if name in controllers)


def record(directory: str, where: Layout) -> None:
    """Write down what was delegated when the sandbox in `directory` was started. Raises OSError."""
    with open(f"{directory}/{_RECORD}", "w", encoding="utf-8") as file:
        json.dump(where.to_data(), file)


def recorded(directory: str) -> Layout | None:
    """What was delegated to the sandbox in `directory`; None when nothing was written there."""
    try:
        with open(f"{directory}/{_RECORD}", encoding="utf-8") as file:
            return Layout.from_data(json.load(file))
    except (OSError, ValueError, InvalidArgument):
        return None


def way_out(where: Layout) -> str:
    """What makes limits possible for an ordinary user on a host with this layout."""
    if where.v1:
        return "as root: make a group for each controller, chown -R it to this user, move the session there; or use cgroup v2"
    if os.path.isdir("/run/systemd/system"):
        return (
            "as root: loginctl enable-linger USER, so that the user has a systemd to ask; for more than memory and pids: "
            "systemctl edit user@.service, with [Service] Delegate=cpu cpuset io memory pids"
        )
    return (
        "as root: make a control group, chown it with its cgroup.procs and cgroup.subtree_control to this user, and start the session there"
    )


def _own_groups(text: str | None) -> dict[str, str]:
    """Controller ("" = v2) -> path of this process's group (cgroups(7))."""
    if text is None:
        try:
            with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return {}
    found = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found.update(dict.fromkeys(controllers.split(",") if number != "0" else ("",), path))
    return found


def _below(point: str, path: str) -> str:
    """A group's directory; "" when it is not below the mount (another cgroup namespace)."""
    if not path.startswith("/") or "/.." in path:
        return ""
    # An engine before us has moved the session's processes into a leaf, to make groups beside it.
    return f"{point}{path.removesuffix(f'/{LEAF}')}".rstrip("/")


def _is_ours(directory: str, *files: str) -> bool:
    return all(os.access(path, os.W_OK) for path in (directory, *(f"{directory}/{name}" for name in files)))


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []
