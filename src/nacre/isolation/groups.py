"""The control group of an OCI container: found by `linux.cgroupsPath`, made by hand or by systemd, ruled by `linux.resources`.

Two managers answer the same questions. `cgroupfs` makes directories; a path ``/a/b`` is taken from the mount of each controller, a
relative one from the group that this process is in. `systemd` has the service manager make a scope; its paths read
``slice:prefix:name`` and mean the unit ``prefix-name.scope`` in that slice. Source: OCI runtime specification 1.2, config-linux.md,
"Control groups".

    group = groups.group(config.cgroups_path, identifier, systemd=options.systemd_cgroup)
    group.create(resources)                  # directories or scope, limits, devices; `group.join` then lists what takes the pid
    ...
    group.update(resources); group.stats(); group.freeze(); group.kill(); group.remove()
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence

from nacre.errors import InvalidArgument
from nacre.linux import cgroups
from nacre.linux.cgroups import Cgroup, Layout, read
from nacre.linux.devices import DeviceRule, rules_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.model.container import Stats

MARK = "cgroup"
_DEPTH, _LONGEST = 128, 255


class Group:
    """The group of one container, whether it exists or not.

    path: `linux.cgroupsPath` as written, "" = the runtime's choice, ``/nacre/<identifier>``. identifier: of the container.
    where: layout of the host; restrict: whether devices are restricted (not in a user namespace, where nobody makes device nodes).
    Raises InvalidArgument for a path that cannot be used.
    """

    def __init__(self, path: str, identifier: str, *, where: Layout | None = None, restrict: bool = True) -> None:
        self.path = path
        self.identifier = identifier
        self.where = where or cgroups.layout()
        self._restrict = restrict
        self._group = Cgroup(identifier, self.where, self._directories(path))

    def _directories(self, path: str) -> dict[str, str]:
        return directories(path or f"/{cgroups.PARENT}/{self.identifier}", self.where)

    @property
    def directories(self) -> dict[str, str]:
        """Controller -> directory, for the state file; ``unified`` is the v2 group, ``name=systemd`` v1's named hierarchy."""
        return self._group.directories

    @property
    def exists(self) -> bool:
        """Is any part of it there?"""
        return any(os.path.isdir(path) for path in self._group.directories.values())

    @property
    def join(self) -> tuple[str, ...]:
        """Files into which a single-threaded process writes "0" to join the group, one after the other."""
        return self.existing().procs_paths()

    def join_of(self, pid: int) -> tuple[str, ...]:
        """The same for a further process that follows the container's main process `pid` into a group below this one (systemd inside)."""
        return self.existing().procs_paths(pid)

    def existing(self) -> Cgroup:
        """What there is of it."""
        return cgroups.existing(self._group)

    def planned(self) -> Cgroup:
        """The whole of it as it would be."""
        return self._group

    def create(self, resources: Mapping[str, Any] | None = None) -> None:
        """Make it and set limits and devices. Undone when that fails.

        resources: `linux.resources`; devices without a rule are closed but for those that every container has.
        Raises InvalidArgument, Unsupported, Conflict (it has processes), HostError, NoSpace.
        """
        self.make(_limits(resources), rules_of((resources or {}).get("devices")))

    def make(self, limits: Mapping[str, Any], rules: Sequence[DeviceRule] | None) -> None:
        """The same with limits alone and the rules of devices as values; None = every device."""
        places = dict(self._group.directories)
        # Beside v1 the v2 group is made for those controllers alone that v1 does not have: joining it takes long.
        if self.where.v1 and self.where.unified not in self.where.track and not _needs_v2(limits, self.where):
            places.pop("unified", None)
        cgroups.build(Cgroup(self.identifier, self.where, places), limits, rules=rules if self._restrict else None, fresh=False)

    def update(self, resources: Mapping[str, Any]) -> None:
        """Change limits of the living group; devices only when there is a list of them. Raises as `create` does."""
        group = self.existing()
        if not group.directories:
            raise cgroups.gone(self.identifier, next(iter(self._group.directories.values()), ""))
        group.limit(_limits(resources))
        if self._restrict and resources.get("devices") is not None:
            group.restrict(rules_of(resources["devices"]))

    def limits(self) -> dict[str, Any]:
        """The limits in force, read back as a `linux.resources` object (v2's under `unified`)."""
        from nacre.linux.cgroups_stats import limits

        return limits(self.existing())

    def stats(self) -> dict[str, Any]:
        """The `data` object of ``runc events --stats``, all numbers, without network interfaces and Intel RDT."""
        from nacre.linux.cgroups_stats import raw

        return raw(self.existing())

    def sample(self) -> Stats:
        """The small sample of `nacre stats`."""
        return self.existing().stats()

    def freeze(self) -> None:
        """Stop every process. Raises Unsupported, HostError."""
        self.existing().freeze()

    def thaw(self) -> None:
        """Let them run on."""
        self.existing().thaw()

    def frozen(self) -> bool:
        """Are all processes stopped?"""
        return self.existing().frozen()

    def pids(self) -> tuple[int, ...]:
        """Process ids in the group and below it, ascending."""
        return self.existing().pids()

    def oom_file(self) -> str:
        """Path of the file whose line ``oom_kill N`` counts the processes killed for want of memory; "" = none."""
        return self.existing().oom_file()

    def kill(self, timeout: float = 10.0) -> None:
        """End every process with SIGKILL and wait until none is left. Raises HostError naming the survivors."""
        self.existing().kill(timeout)

    def remove(self, timeout: float = 2.0) -> None:
        """Remove it with the groups below it; what is gone already is fine. Does not kill. Raises HostError when it stays busy."""
        self.existing().remove(timeout)


def group(path: str, identifier: str, *, systemd: bool = False, where: Layout | None = None, restrict: bool = True) -> Group:
    """The group of a container under the chosen manager. systemd: `linux.cgroupsPath` has three parts, as ``system.slice:nacre:ID``.

    restrict: false in a user namespace, where systemd's manager of this user is meant. Raises InvalidArgument for a path that is
    not of the manager's form.
    """
    if not systemd:
        if path.count(":") == 2 and "/" not in path:
            raise InvalidArgument(f"cgroupsPath {path!r} is of systemd's form", hint="add --systemd-cgroup, or use a path such as /a/b")
        return Group(path, identifier, where=where, restrict=restrict)
    from nacre.isolation.systemd import SystemdGroup

    return SystemdGroup(path or f":{cgroups.PARENT}:{identifier}", identifier, where=where, restrict=restrict, user=not restrict)


def below(parent: str, identifier: str, *, where: Layout | None = None, restrict: bool = True) -> Group:
    """The group of a container below a parent (Docker's --cgroup-parent): a directory, or a slice of systemd.

    where: for groups that systemd does not make. Raises InvalidArgument.
    """
    if is_slice(parent):
        return group(f"{parent}:{cgroups.PARENT}:{identifier}", identifier, systemd=True, restrict=restrict)
    return group(f"{parent.rstrip('/')}/{identifier}", identifier, where=where, restrict=restrict)


def is_slice(parent: str) -> bool:
    """Does systemd manage groups below this parent?"""
    return parent.endswith(".slice") and "/" not in parent


def record(directory: str, path: str) -> None:
    """Note in a sandbox's directory where its group is, before it is made, so that whoever cleans up finds it."""
    with open(f"{directory}/{MARK}", "w", encoding="utf-8") as file:
        file.write(path)


def recorded(directory: str, identifier: str, *, where: Layout | None = None, restrict: bool = True) -> Group | None:
    """The group noted in a sandbox's directory, if there is a note. where: for groups that systemd does not make."""
    try:
        with open(f"{directory}/{MARK}", encoding="utf-8") as file:
            path = file.read()
    except FileNotFoundError:
        return None
    systemd = path.count(":") == 2
    return group(path, identifier, systemd=systemd, where=None if systemd else where, restrict=restrict)


def directories(path: str, where: Layout) -> dict[str, str]:
    """Controller -> directory for a cgroupfs path, absolute or relative to the group that this process is in.

    On v2 a relative path starts beside that group, since a group with processes cannot hand controllers down.
    Raises InvalidArgument for a path that climbs, or has names that no group can have.
    """
    _check(path)
    own = {} if path.startswith("/") else own_groups(where)
    clean = posixpath.normpath(path.lstrip("/"))
    places = {key: f"{point}{own.get(point, '')}/{clean}" for key, point in where.v1.items()}
    if where.named:
        places["name=systemd"] = f"{where.named}{own.get(where.named, '')}/{clean}"
    if where.unified and (not where.v1 or set(where.v2) - set(where.v1) or where.unified in where.track):
        base = own.get(where.unified, "")
        places["unified"] = f"{where.unified}{base if where.v1 else posixpath.dirname(base).rstrip('/')}/{clean}"
    return places


def _check(path: str) -> None:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or len(parts) > _DEPTH or any(len(part) > _LONGEST or "\0" in part or "\n" in part for part in parts):
        raise InvalidArgument(f"invalid cgroupsPath {path!r}", hint="a path such as /a/b, without '..'")


def own_groups(where: Layout, text: str | None = None) -> dict[str, str]:
    """Mount point -> this process's group below it, "" for the top. text: of /proc/self/cgroup."""
    found: dict[str, str] = {}
    for line in (read("/proc/self/cgroup") or "" if text is None else text).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(",") if number != "0" else ("",):
            point = where.unified if number == "0" else where.named if name == "name=systemd" else where.v1.get(name, "")
            shown = where.roots.get(point, "")
            if point and path.startswith("/") and "/.." not in path:
                found[point] = path.removeprefix(shown).rstrip("/") if shown and f"{path}/".startswith(f"{shown}/") else path.rstrip("/")
    return found


def _needs_v2(limits: Mapping[str, Any], where: Layout) -> bool:
    if not limits:
        return False
    from nacre.linux.cgroups_limits import controllers

    return not set(controllers(limits)).intersection(where.v2).issubset(where.v1)


def _limits(resources: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (resources or {}).items() if name != "devices" and value is not None}
