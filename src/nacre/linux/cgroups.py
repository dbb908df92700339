"""Control groups on every layout a host may have: v2 alone, v1 with a mount per controller, and hybrids of the two.

A group is one directory on v2 and one below the mount of each controller on v1. The engine's lie at ``nacre/<name>``; `at` takes
any place (`nacre.isolation.groups` finds those of the OCI runtime specification). Sources: the kernel's
admin-guide/cgroup-v1/*.rst and admin-guide/cgroup-v2.rst. What is used less often lives beside this module: limits in
`cgroups_limits`, numbers in `cgroups_stats`.

Every function that touches files takes them below `Layout`, so that tests run on trees in a temporary directory.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from nacre.errors import Conflict, HostError, InvalidArgument, NoSpace, Unsupported
from nacre.linux.devices import DEFAULT_DEVICES, DeviceRule
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.model.container import Stats

PARENT = "nacre"

_SIGKILL = 9
LEAF = "init"  # where a nested host's own processes go: no processes may live beside sub-groups with controllers

# Always made: limits and statistics need them. `cpu` is made when a share or quota is asked for.
_BASE = ("memory", "cpuacct", "pids", "freezer", "devices", "blkio")
_V1_CONTROLLERS = frozenset((*_BASE, "cpu", "cpuset", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma"))
_V2_WANTED = ("cpu", "io", "memory", "pids")
_V2_NAMES = {"blkio": "io", "cpuacct": "cpu"}


class Layout(Value):
    """Where the controllers of this host are.

    v1: controller -> directory of its mount; unified: directory of the cgroup2 mount, "" = none;
    v2: controllers available there. track: process-tracking hierarchies of systemd that a container must leave as well
    (else the end of the login session that started it would end it), empty on hosts without systemd.
    named: mount of v1's ``name=systemd``, "" = none. roots: mount point -> directory of its hierarchy that it shows, where that is not "/".
    """

    v1: dict[str, str] = {}
    unified: str = ""
    v2: tuple[str, ...] = ()
    track: tuple[str, ...] = ()
    named: str = ""
    roots: dict[str, str] = {}

    @property
    def kind(self) -> str:
        """The layout in one word: v2, v1, hybrid (v1 controllers beside a cgroup2 mount) or none."""
        if self.v1:
            return "hybrid" if self.unified else "v1"
        return "v2" if self.unified else "none"

    def has(self, controller: str) -> bool:
        """Can this controller be used? On v2 freezing, CPU time and device rules belong to every group."""
        if controller in self.v1:
            return True
        if not self.unified:
            return False
        if controller in ("freezer", "devices", "cpuacct"):
            return not self.v1
        return {"blkio": "io"}.get(controller, controller) in self.v2


@functools.cache
def layout(root: str = "") -> Layout:
    """The layout of this host. root: prefix of /proc, /run and the mount points ("" = the real ones)."""
    v1: dict[str, str] = {}
    roots: dict[str, str] = {}
    named, unified = "", ""
    for point, shown, kind, options in _mounts(f"{root}/proc/self/mountinfo"):
        point = root + point
        if shown != "/":
            roots.setdefault(point, shown)
        if kind == "cgroup2":
            unified = unified or point
        for option in options if kind == "cgroup" else ():
            if option == "name=systemd":
                named = named or point
            elif option in _V1_CONTROLLERS:
                v1.setdefault(option, point)
    v2 = tuple((read(f"{unified}/cgroup.controllers") or "").split()) if unified else ()
    track = tuple(point for point in (named, unified) if point) if v1 and os.path.isdir(f"{root}/run/systemd/system") else ()
    return Layout(v1=v1, unified=unified, v2=v2, track=track, named=named if v1 else "", roots=roots)


def _mounts(path: str) -> list[tuple[str, str, str, list[str]]]:
    """(mount point, shown directory, type, super options) of the control group mounts; those below /sys/fs/cgroup first (proc(5))."""
    found = []
    for line in (read(path) or "").splitlines():
        left, mark, right = line.partition(" - ")
        if mark and right.startswith("cgroup"):
            kind, _source, options = right.split(" ", 2)
            words = left.split(" ")
            found.append((_unescape(words[4]), _unescape(words[3]), kind, options.split(",")))
    return sorted(found, key=lambda item: not item[0].startswith("/sys/fs/cgroup"))


def _unescape(path: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo."""
    if "\\" not in path:
        return path
    head, *rest = path.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


class Cgroup:
    """A container's control group: one directory on v2, one per controller on v1.

    name: for messages. directories: controller -> directory; the key ``unified`` is the v2 group. v1: those of controllers alone.
    """

    def __init__(self, name: str, where: Layout, directories: dict[str, str]) -> None:
        self.name = name
        self.layout = where
        self.directories = directories
        self.v1 = {key: path for key, path in directories.items() if key in where.v1}
        self.unified = directories.get("unified", "")
        self._all = tuple(dict.fromkeys(directories.values()))

    def procs_paths(self, pid: int = 0) -> tuple[str, ...]:
        """Files into which a single-threaded process writes "0" to join the group, one after the other.

        pid: of the container's main process when a further one joins: a main process that divides its own v2 group (systemd
        does) has moved below it, where the newcomer must follow.

        On v1 these are `tasks` files: they do the same as `cgroup.procs` for a process of one thread, without the kernel's
        lock against changes of the thread group, which costs 5 ms on an idle machine.
        """
        # In one order, whoever asks: plans are compared.
        first = sorted(f"{path}/tasks" for path in self._all if path != self.unified)
        return (*first, f"{self._current(pid)}/cgroup.procs") if self.unified else tuple(first)

    def _current(self, pid: int) -> str:
        """The v2 group of a process if it is below this one."""
        for line in (read(f"/proc/{pid}/cgroup") or "").splitlines() if pid else ():
            hierarchy, _controllers, path = line.split(":", 2)
            place = f"{self.layout.unified}{path}"
            if hierarchy == "0" and place.startswith(f"{self.unified}/") and "/../" not in place and os.path.isdir(place):
                return place
        return self.unified

    def oom_file(self) -> str:
        """Path of the file whose line ``oom_kill N`` counts the processes killed for want of memory; "" = no memory controller."""
        if "memory" in self.v1:
            return f"{self.v1['memory']}/memory.oom_control"
        return f"{self.unified}/memory.events" if self.controls("memory") else ""

    def controls(self, controller: str) -> bool:
        """Does v2 govern this controller in this group?"""
        return bool(self.unified) and controller in self.layout.v2 and controller not in self.layout.v1

    # Limits

    def limit(self, limits: Mapping[str, Any]) -> None:
        """Apply limits, an OCI `linux.resources` object without its devices: see `cgroups_limits.apply`, which says what it raises."""
        if limits:
            from nacre.linux import cgroups_limits

            cgroups_limits.apply(self, limits)

    def restrict(self, rules: Sequence[DeviceRule]) -> None:
        """Permit the devices that `rules` permit, the last that matches deciding, and no others. Raises HostError, Unsupported."""
        from nacre.linux import devices

        if "devices" in self.v1:
            devices.restrict_v1(self.v1["devices"], rules)
        elif self.unified and not self.v1:
            devices.restrict_v2(self.unified, rules)
        else:
            raise Unsupported(
                "devices cannot be restricted: the devices controller is not mounted",
                hint="mount -t cgroup -o devices none /sys/fs/cgroup/devices; --privileged does without the restriction",
            )

    # State

    def freeze(self, timeout: float = 10.0) -> None:
        """Stop every process of the group and wait until the kernel says so.

        Raises Unsupported without a freezer, HostError (thawed again) when a process cannot be stopped within `timeout` seconds.
        """
        self._set_frozen(True)
        if not self._wait(self.frozen, timeout):
            self._set_frozen(False)
            raise HostError(
                f"container {self.name} could not be paused: a process did not stop within {timeout:g} s",
                hint="a process waiting for a device or a file server cannot be frozen; try again",
            )

    def thaw(self) -> None:
        """Let the processes run on. Nothing happens when they were not frozen."""
        self._set_frozen(False)

    def frozen(self) -> bool:
        """Are all processes stopped?"""
        if "freezer" in self.v1:
            return (read(f"{self.v1['freezer']}/freezer.state") or "").strip() == "FROZEN"
        return "frozen 1" in (read(f"{self.unified}/cgroup.events") or "").splitlines()

    def _set_frozen(self, frozen: bool) -> None:
        if "freezer" in self.v1:
            self.write(f"{self.v1['freezer']}/freezer.state", "FROZEN" if frozen else "THAWED")
        elif self.unified and os.path.exists(f"{self.unified}/cgroup.freeze"):
            self.write(f"{self.unified}/cgroup.freeze", str(int(frozen)))
        elif self.unified and not os.path.isdir(self.unified):
            raise gone(self.name, self.unified)
        else:
            raise Unsupported("this host cannot pause containers", hint="mount the freezer controller (cgroup v1) or use Linux 5.2 with v2")

    def pids(self) -> tuple[int, ...]:
        """Process ids in the group and below it, ascending; () when the group is gone."""
        places = (self.v1.get("pids", ""), self.v1.get("freezer", ""), self.unified, *self._all)
        main = next((path for path in places if path and os.path.isdir(path)), "")
        found: set[int] = set()
        for directory in _tree(main):
            found.update(int(pid) for pid in (read(f"{directory}/cgroup.procs") or "").split())
        return tuple(sorted(found))

    def kill(self, timeout: float = 10.0) -> None:
        """End every process of the group with SIGKILL and wait until none is left.

        Raises HostError naming the survivors after `timeout` seconds.
        """
        if not self.pids():
            return
        if self.unified and not self.v1 and os.path.exists(f"{self.unified}/cgroup.kill"):
            self.write(f"{self.unified}/cgroup.kill", "1")
        else:
            self._kill_each()
        if not self._wait(self._kill_rest, timeout):
            left = " ".join(map(str, self.pids()))
            raise HostError(f"processes of container {self.name} do not end: {left}", hint="see their state with: ps -o pid,stat,wchan,cmd")

    def _kill_each(self) -> None:
        """Kill what is frozen first, so that nothing forks away and no process id is taken by another meanwhile."""
        frozen = False
        with contextlib.suppress(HostError):
            self._set_frozen(True)
            frozen = self._wait(self.frozen, 1.0)
        _kill(self.pids())
        with contextlib.suppress(HostError):
            if not frozen or "freezer" in self.v1:
                self._set_frozen(False)  # v1: a frozen process dies when it is thawed

    def _kill_rest(self) -> bool:
        left = self.pids()
        _kill(left)
        return not left

    def remove(self, timeout: float = 2.0) -> None:
        """Remove the group and the groups below it; what is already gone is fine. Does not kill: see `kill`.

        A process that has just ended keeps its group busy for a moment, so this retries; raises HostError after `timeout` seconds.
        """
        busy: list[str] = []

        def attempt() -> bool:
            busy[:] = [path for path in self._all if not _remove_tree(path)]
            return not busy

        if not self._wait(attempt, timeout):
            left = " ".join(map(str, self.pids()))
            raise HostError(f"cgroup {busy[0]} is busy", hint=f"processes in it: {left}" if left else "it is used by something else")

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Try a condition until it holds, less and less often."""
        end, pause = time.monotonic() + timeout, 0.0005
        while not condition():
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        return True

    # Numbers

    def stats(self) -> Stats:
        """One sample of the group (network counters excepted); a missing controller leaves zeros."""
        from nacre.linux.cgroups_stats import sample

        return sample(self)

    def write(self, path: str, text: str) -> None:
        """Write a value into a control file. Raises HostError: the kernel's reason, or that the group is gone."""
        try:
            put(path, text)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV) and not os.path.isdir(os.path.dirname(path)):
                raise gone(self.name, os.path.dirname(path)) from error
            raise failure(f"cannot write {text!r} to {path}", error) from error


def create(
    name: str, limits: Mapping[str, Any] | None = None, *, rules: Sequence[DeviceRule] | None = DEFAULT_DEVICES, where: Layout | None = None
) -> Cgroup:
    """Make the group of a container, ``nacre/<name>``, and set its limits. An empty group that an engine left behind is replaced.

    limits: OCI `linux.resources` object, see `Cgroup.limit`. rules: permitted devices, None = all (privileged).
    Raises InvalidArgument, Conflict when the group has processes, HostError, NoSpace, Unsupported.
    """
    group = planned(name, limits, where=where)
    build(group, limits, rules=rules)
    return group


def find(name: str, *, where: Layout | None = None) -> Cgroup:
    """The group of a container made earlier, possibly by another process; parts that do not exist are left out."""
    where = where or layout()
    return existing(Cgroup(name, where, _places(name, where, (*where.v1, *where.v2))))


def existing(group: Cgroup) -> Cgroup:
    """The parts of a group that exist."""
    return Cgroup(group.name, group.layout, {key: path for key, path in group.directories.items() if os.path.isdir(path)})


def planned(name: str, limits: Mapping[str, Any] | None = None, *, where: Layout | None = None) -> Cgroup:
    """The group that `create` would make. Touches nothing."""
    where = where or layout()
    if not name or "/" in name or name.startswith("."):
        raise InvalidArgument(f"invalid cgroup name {name!r}")
    return Cgroup(name, where, _places(name, where, (*_BASE, *_needed(limits))))


def _needed(limits: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The controllers that limits need, by their v1 names."""
    if not limits:
        return ()
    from nacre.linux.cgroups_limits import controllers

    return controllers(limits)


def build(
    group: Cgroup, limits: Mapping[str, Any] | None, *, rules: Sequence[DeviceRule] | None, fresh: bool = True, taken: bool = False
) -> None:
    """Make the directories of a group and set its limits; undone when that fails.

    fresh: an empty group of that name is made anew, so that its counters start at zero. taken: processes may be in it already.
    Raises as `create` does.
    """
    if group.layout.kind == "none":
        raise Unsupported("no control groups are mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
    made: list[str] = []
    try:
        _make(group, fresh=fresh, taken=taken, made=made)
        if group.unified:
            _delegate(group, (*_V2_WANTED, *_needed(limits)))
        group.limit(limits or {})
        if rules is not None:
            group.restrict(rules)
    except BaseException:
        for path in made:
            with contextlib.suppress(HostError):
                _remove_tree(path)
        raise


def extend(group: Cgroup, controllers: Iterable[str]) -> Cgroup:
    """The group with more controllers: on v1 its processes join further directories, on v2 they are handed down to it.

    Controllers that the host lacks are left out. Raises HostError.
    """
    where, names = group.layout, tuple(controllers)
    anchor = next(iter(group.v1), "")
    missing = [key for key in names if key in where.v1 and key not in group.v1]
    more: dict[str, str] = {}
    if anchor:
        relative = os.path.relpath(group.v1[anchor], where.v1[anchor])
        more = {key: f"{where.v1[key]}/{relative}" for key in missing}
        if not group.unified and any(name in where.v2 for name in names if name not in where.v1):
            more["unified"] = f"{where.unified}/{relative}"
    wider = Cgroup(group.name, where, group.directories | more)
    pids = group.pids() if more else ()
    for path in more.values():
        _make_one(wider, path, fresh=False)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                put(f"{path}/cgroup.procs", str(pid))
    if wider.unified:
        _delegate(wider, names)
    return wider


def _places(name: str, where: Layout, controllers: Sequence[str]) -> dict[str, str]:
    """Controller -> directory of the group; the key `unified` is the v2 group."""
    places = {key: f"{where.v1[key]}/{PARENT}/{name}" for key in controllers if key in where.v1}
    places.update({f"track{index}": f"{point}/{PARENT}/{name}" for index, point in enumerate(where.track) if point != where.unified})
    wanted = {*_V2_WANTED, *(_V2_NAMES.get(key, key) for key in controllers)}
    if where.unified and (not where.v1 or where.unified in where.track or wanted.intersection(where.v2).difference(where.v1)):
        places["unified"] = f"{where.unified}/{PARENT}/{name}"
    return places


def _make(group: Cgroup, *, fresh: bool, taken: bool, made: list[str]) -> None:
    for path in dict.fromkeys(group.directories.values()):
        if fresh or not os.path.isdir(path):
            _make_one(group, path, fresh=fresh)
            made.append(path)
    if not fresh and not taken and (left := group.pids()):
        raise _occupied(group, next(iter(group.directories.values())), left)


def _make_one(group: Cgroup, path: str, *, fresh: bool) -> None:
    try:
        _make_directory(path, fresh=fresh)
        if path == group.v1.get("cpuset"):
            _inherit_cpuset(path, group.layout.v1["cpuset"])
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _occupied(group, path, group.pids()) from error
        raise failure(f"cannot create cgroup {path}", error) from error


def _occupied(group: Cgroup, path: str, pids: Sequence[int]) -> Conflict:
    return Conflict(f"cgroup {path} still has processes", hint=f"kill {' '.join(map(str, pids))}" if pids else "")


def _make_directory(path: str, *, fresh: bool = True) -> None:
    """Make it with its parents; an existing empty group is made anew when it is to be fresh. Raises OSError."""
    try:
        os.mkdir(path, 0o755)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)
    except FileExistsError:
        if not fresh:
            return
        if not _remove_tree(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from None
        os.mkdir(path, 0o755)


def _inherit_cpuset(path: str, mount: str) -> None:
    """Give a new v1 cpuset group, and those above it, the processors and memory nodes of its parent: it starts with none."""
    parent = os.path.dirname(path)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (read(f"{path}/{name}") or "").strip():
            continue
        if parent != mount and not (read(f"{parent}/{name}") or "").strip():
            _inherit_cpuset(parent, mount)
        put(f"{path}/{name}", (read(f"{parent}/{name}") or "").strip())


def _delegate(group: Cgroup, controllers: Iterable[str]) -> None:
    """Hand those of the controllers that v2 governs down to the group. Raises HostError."""
    where = group.layout
    names = dict.fromkeys(_V2_NAMES.get(name, name) for name in controllers)
    chosen = [name for name in names if name in where.v2 and name not in where.v1]
    if chosen:
        try:
            enable(where, os.path.dirname(group.unified), chosen)
        except OSError as error:
            raise failure(f"cannot enable cgroup controllers ({' '.join(chosen)}) for {group.unified}", error) from error


def enable(where: Layout, directory: str, controllers: Iterable[str]) -> None:
    """Hand controllers down to the groups below `directory` on v2 (cgroup.subtree_control), from the mount on. Raises OSError.

    In a container the mount is no real root: its own processes must first move into a leaf ("no internal processes"). Above a
    delegated directory an unprivileged user may not write; what is missing there is left to whoever sets a limit to notice.
    """
    steps = [where.unified]
    for part in directory.removeprefix(where.unified).strip("/").split("/"):
        steps += [f"{steps[-1]}/{part}"] if part else []
    for step in steps:
        path = f"{step}/cgroup.subtree_control"
        present = (read(path) or "").split()
        offered = (read(f"{step}/cgroup.controllers") or "").split()
        missing = " ".join(f"+{name}" for name in controllers if name not in present and (name in offered or not offered))
        if not missing:
            continue
        try:
            put(path, missing)
        except PermissionError:
            if os.geteuid() == 0:
                raise
        except OSError as error:
            if error.errno != errno.EBUSY or step != where.unified:
                raise
            _evacuate(step)
            put(path, missing)


def _evacuate(directory: str) -> None:
    """Move every process of a group into a leaf below it; the loop catches those that were forked meanwhile."""
    leaf = f"{directory}/{LEAF}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf, 0o755)
    for _ in range(10):
        # 0: a process outside of our PID namespace, which we cannot move (and 0 written there means ourselves)
        inside = [pid for pid in (read(f"{directory}/cgroup.procs") or "").split() if pid != "0"]
        if not inside:
            return
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                put(f"{leaf}/cgroup.procs", pid)


def _tree(directory: str) -> list[str]:
    """A group and all groups below it, children before parents."""
    found: list[str] = []
    if directory:
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found += _tree(entry.path)
        found.append(directory)
    return found


def _remove_tree(directory: str) -> bool:
    """Remove a group and those below it; False when one of them is busy."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise failure(f"cannot remove cgroup {directory}", error) from error
        below = _tree(directory)[:-1]
        return bool(below) and all(_remove_tree(path) for path in below) and _remove_tree(directory)
    return True


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            if pid > 0:  # 0: a process outside of this PID namespace
                os.kill(pid, _SIGKILL)


def failure(what: str, error: OSError) -> HostError:
    """A HostError for what the kernel refused, with the way out where the errno tells one."""
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.ENOMEM):
        return NoSpace(f"{what}: {reason}", hint="too many control groups exist; see /proc/cgroups and cgroup.max.descendants")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HostError(f"{what}: {reason}", hint="run as root, with the cgroup file systems mounted writable")
    return HostError(f"{what}: {reason}")


def gone(name: str, path: str) -> HostError:
    """The error for a group that vanished under its container."""
    return HostError(
        f"the cgroup of {name} is gone: {path}",
        hint="somebody removed it, so that its processes are no longer limited or counted; restart the container to make it anew",
    )


def put(path: str, text: str) -> None:
    """Write a control file in one go. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path: str) -> str | None:
    """A whole file, or None when it (or its group) is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")
    except OSError:  # ENODEV: the group was removed between the two calls
        return None
    finally:
        os.close(fd)
