"""Control groups on every layout a host may have: v2 alone, v1 with a mount per controller, and hybrids of the two.

A group is known by a name and lives at ``nacre/<name>`` below the mount of each controller that is used. Sources: the
kernel's admin-guide/cgroup-v1/*.rst and admin-guide/cgroup-v2.rst. Warnings and errors about limits use Docker's words.

Every function that touches files takes them below `Layout`, so that tests run on trees in a temporary directory.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence

from nacre.errors import Conflict, HostError, InvalidArgument, NoSpace, Unsupported
from nacre.linux import devices
from nacre.linux.devices import DEFAULT_DEVICES, DeviceRule
from nacre.model.container import Resources, Stats
from nacre.model.value import Value

PARENT = "nacre"
MINIMUM_MEMORY = 6 * 1024 * 1024

_PERIOD = 100_000  # microseconds, the kernel's default CFS period
_SIGKILL = 9
_UNLIMITED = 1 << 60  # v1 shows "no limit" as the largest multiple of the page size
_LEAF = "init"  # where a nested host's own processes go: no processes may live beside sub-groups with controllers

# Always made: limits and statistics need them. `cpu` is made when a share or quota is asked for.
_BASE = ("memory", "cpuacct", "pids", "freezer", "devices", "blkio")
_V1_CONTROLLERS = frozenset((*_BASE, "cpu", "cpuset", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma"))
_V2_WANTED = ("cpu", "io", "memory", "pids")


class Layout(Value):
    """Where the controllers of this host are.

    v1: controller -> directory of its mount; unified: directory of the cgroup2 mount, "" = none;
    v2: controllers available there. track: process-tracking hierarchies of systemd that a container must leave as well
    (else the end of the login session that started it would end it), empty on hosts without systemd.
    """

    v1: dict[str, str] = {}
    unified: str = ""
    v2: tuple[str, ...] = ()
    track: tuple[str, ...] = ()

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
    named, unified = "", ""
    for point, kind, options in _mounts(f"{root}/proc/self/mountinfo"):
        point = root + point
        if kind == "cgroup2":
            unified = unified or point
        for option in options if kind == "cgroup" else ():
            if option == "name=systemd":
                named = named or point
            elif option in _V1_CONTROLLERS:
                v1.setdefault(option, point)
    v2 = tuple((_read(f"{unified}/cgroup.controllers") or "").split()) if unified else ()
    track = tuple(point for point in (named, unified) if point) if v1 and os.path.isdir(f"{root}/run/systemd/system") else ()
    return Layout(v1=v1, unified=unified, v2=v2, track=track)


def _mounts(path: str) -> list[tuple[str, str, list[str]]]:
    """(mount point, type, super options) of the control group mounts; those below /sys/fs/cgroup first (proc(5))."""
    found = []
    for line in (_read(path) or "").splitlines():
        left, mark, right = line.partition(" - ")
        if mark and right.startswith("cgroup"):
            kind, _source, options = right.split(" ", 2)
            found.append((_unescape(left.split(" ")[4]), kind, options.split(",")))
    return sorted(found, key=lambda item: not item[0].startswith("/sys/fs/cgroup"))


def _unescape(path: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo."""
    if "\\" not in path:
        return path
    head, *rest = path.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def check(resources: Resources) -> None:
    """Refuse limits that make no sense on this host, in Docker's words. Raises InvalidArgument."""
    if resources.memory and resources.memory < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB", hint="--memory 6m or more")
    if resources.memory >= 1 << 63:
        raise InvalidArgument(f"memory limit {resources.memory} is too large")
    count = len(os.sched_getaffinity(0))
    if resources.cpus and not 0.01 <= resources.cpus <= count:
        raise InvalidArgument(f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available")
    if resources.cpu_shares < 0:
        raise InvalidArgument(f"invalid cpu shares ({resources.cpu_shares}): value must be a positive integer")


class Cgroup:
    """A container's control group: one directory on v2, one per controller on v1.

    warnings: limits that this kernel could not give, one sentence each.
    """

    def __init__(self, name: str, where: Layout, directories: dict[str, str]) -> None:
        self.name = name
        self.layout = where
        self.warnings: list[str] = []
        self._v1 = {key: path for key, path in directories.items() if key in where.v1}
        self._unified = directories.get("unified", "")
        self._all = tuple(dict.fromkeys(directories.values()))

    def procs_paths(self, pid: int = 0) -> tuple[str, ...]:
        """Files into which a single-threaded process writes "0" to join the group, one after the other.

        pid: of the container's main process when a further one joins: a main process that divides its own v2 group (systemd
        does) has moved below it, where the newcomer must follow.

        On v1 these are `tasks` files: they do the same as `cgroup.procs` for a process of one thread, without the kernel's
        lock against changes of the thread group, which costs 5 ms on an idle machine.
        """
        first = [f"{path}/tasks" for path in self._all if path != self._unified]
        return (*first, f"{self._current(pid)}/cgroup.procs") if self._unified else tuple(first)

    def _current(self, pid: int) -> str:
        """The v2 group of a process if it is below this one."""
        for line in (_read(f"/proc/{pid}/cgroup") or "").splitlines() if pid else ():
            hierarchy, _controllers, path = line.split(":", 2)
            place = f"{self.layout.unified}{path}"
            if hierarchy == "0" and place.startswith(f"{self._unified}/") and "/../" not in place and os.path.isdir(place):
                return place
        return self._unified

    def oom_file(self) -> str:
        """Path of the file whose line ``oom_kill N`` counts the processes killed for want of memory; "" = no memory controller."""
        if "memory" in self._v1:
            return f"{self._v1['memory']}/memory.oom_control"
        return f"{self._unified}/memory.events" if self._controls("memory") else ""

    def _controls(self, controller: str) -> bool:
        """Does v2 govern this controller in this group?"""
        return bool(self._unified) and controller in self.layout.v2

    # Limits

    def limit(self, resources: Resources) -> None:
        """Apply limits; those that the kernel cannot give become `warnings`, or Unsupported where Docker refuses as well."""
        if resources.memory:
            self._limit_memory(resources.memory)
        if resources.cpus:
            self._limit_cpus(resources.cpus)
        if resources.cpu_shares:
            self._weigh(resources.cpu_shares)
        if resources.pids > 0:
            directory = self._v1.get("pids") or (self._unified if self._controls("pids") else "")
            if not directory:
                self.warnings.append(_discarded("PIDs limit capabilities", "PIDs limit discarded."))
            else:
                self._write(f"{directory}/pids.max", str(resources.pids))

    def _limit_memory(self, limit: int) -> None:
        """Memory, and swap as Docker does: as much again."""
        if "memory" in self._v1:
            directory = self._v1["memory"]
            swap, value = f"{directory}/memory.memsw.limit_in_bytes", 2 * limit
            self._write(f"{directory}/memory.limit_in_bytes", str(limit))
        elif self._controls("memory"):
            swap, value = f"{self._unified}/memory.swap.max", limit
            self._write(f"{self._unified}/memory.max", str(limit))
        else:
            self.warnings.append(_discarded("memory limit capabilities", "Limitation discarded."))
            return
        if os.path.exists(swap):
            self._write(swap, str(value))
        else:
            self.warnings.append(_discarded("swap limit capabilities", "Memory limited without swap."))

    def _limit_cpus(self, cpus: float) -> None:
        quota = max(1000, round(cpus * _PERIOD))
        if "cpu" in self._v1 and os.path.exists(f"{self._v1['cpu']}/cpu.cfs_quota_us"):
            self._write(f"{self._v1['cpu']}/cpu.cfs_period_us", str(_PERIOD))
            self._write(f"{self._v1['cpu']}/cpu.cfs_quota_us", str(quota))
        elif self._controls("cpu"):
            self._write(f"{self._unified}/cpu.max", f"{quota} {_PERIOD}")
        else:
            raise Unsupported(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
                hint="mount the cpu controller, use a kernel with CONFIG_CFS_BANDWIDTH, or leave out --cpus",
            )

    def _weigh(self, shares: int) -> None:
        """CPU shares; v2 has weights of 1-10000 instead, converted linearly as every runtime does."""
        shares = min(max(shares, 2), 262144)
        if "cpu" in self._v1:
            self._write(f"{self._v1['cpu']}/cpu.shares", str(shares))
        elif self._controls("cpu"):
            self._write(f"{self._unified}/cpu.weight", str(1 + (shares - 2) * 9999 // 262142))
        else:
            self.warnings.append(_discarded("CPU shares", "Shares discarded."))

    def restrict(self, rules: Sequence[DeviceRule]) -> None:
        """Permit the devices of `rules` and no others. Raises HostError."""
        if "devices" in self._v1:
            self._write(f"{self._v1['devices']}/devices.deny", "a")
            for rule in rules:
                self._write(f"{self._v1['devices']}/devices.allow", str(rule))
        elif self._unified and not self._v1:
            devices.attach(self._unified, rules)
        else:
            self.warnings.append(_discarded("device control", "Devices are not restricted."))

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
        if "freezer" in self._v1:
            return (_read(f"{self._v1['freezer']}/freezer.state") or "").strip() == "FROZEN"
        return "frozen 1" in (_read(f"{self._unified}/cgroup.events") or "").splitlines()

    def _set_frozen(self, frozen: bool) -> None:
        if "freezer" in self._v1:
            self._write(f"{self._v1['freezer']}/freezer.state", "FROZEN" if frozen else "THAWED")
        elif self._unified and os.path.exists(f"{self._unified}/cgroup.freeze"):
            self._write(f"{self._unified}/cgroup.freeze", str(int(frozen)))
        else:
            raise Unsupported("this host cannot pause containers", hint="mount the freezer controller (cgroup v1) or use Linux 5.2 with v2")

    def pids(self) -> tuple[int, ...]:
        """Process ids in the group and below it, ascending; () when the group is gone."""
        main = self._v1.get("pids") or self._v1.get("freezer") or self._unified or next(iter(self._all), "")
        found: set[int] = set()
        for directory in _tree(main):
            found.update(int(pid) for pid in (_read(f"{directory}/cgroup.procs") or "").split())
        return tuple(sorted(found))

    def kill(self, timeout: float = 10.0) -> None:
        """End every process of the group with SIGKILL and wait until none is left.

        Raises HostError naming the survivors after `timeout` seconds.
        """
        if not self.pids():
            return
        if self._unified and not self._v1 and os.path.exists(f"{self._unified}/cgroup.kill"):
            self._write(f"{self._unified}/cgroup.kill", "1")
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
            if not frozen or "freezer" in self._v1:
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
        usage, limit = self._memory()
        read, written = self._blkio()
        return Stats(
            time=time.time(),
            cpu=self._cpu(),
            cpus=os.cpu_count() or 1,
            system_cpu=_system_cpu(),
            memory=usage,
            memory_limit=limit,
            pids=_number(_read(f"{self._v1.get('pids') or self._unified}/pids.current")) or len(self.pids()),
            read=read,
            write=written,
        )

    def _cpu(self) -> int:
        if "cpuacct" in self._v1:
            return _number(_read(f"{self._v1['cpuacct']}/cpuacct.usage"))
        return 1000 * _field(_read(f"{self._unified}/cpu.stat"), "usage_usec")

    def _memory(self) -> tuple[int, int]:
        """Usage without the page cache that the kernel would give back first (as the docker command computes it), and the limit."""
        if "memory" in self._v1:
            base = self._v1["memory"]
            used, idle = _read(f"{base}/memory.usage_in_bytes"), _field(_read(f"{base}/memory.stat"), "total_inactive_file")
            limit = _number(_read(f"{base}/memory.limit_in_bytes"))
        else:
            base = self._unified
            used, idle = _read(f"{base}/memory.current"), _field(_read(f"{base}/memory.stat"), "inactive_file")
            limit = _number(_read(f"{base}/memory.max"))
        usage = _number(used)
        return usage - idle if idle < usage else usage, 0 if limit >= _UNLIMITED else limit

    def _blkio(self) -> tuple[int, int]:
        if "blkio" not in self._v1:
            words = (_read(f"{self._unified}/io.stat") or "").split()
            return _sum(words, "rbytes="), _sum(words, "wbytes=")
        for scheduler in ("bfq", "throttle"):
            lines = (_read(f"{self._v1['blkio']}/blkio.{scheduler}.io_service_bytes_recursive") or "").splitlines()
            fields = [line.split() for line in lines]
            read, written = (sum(int(row[2]) for row in fields if len(row) == 3 and row[1] == word) for word in ("Read", "Write"))
            if read or written:
                return read, written
        return 0, 0

    def _write(self, path: str, text: str) -> None:
        try:
            _put(path, text)
        except OSError as error:
            raise _failure(f"cannot write {text!r} to {path}", error) from error


def create(
    name: str, resources: Resources | None = None, *, rules: Sequence[DeviceRule] | None = DEFAULT_DEVICES, where: Layout | None = None
) -> Cgroup:
    """Make the group of a container and set its limits. An empty group that an engine left behind is replaced.

    name: of the group, e.g. the container's id. rules: permitted devices, None = all (privileged).
    Raises InvalidArgument (see `check`), Conflict when the group has processes, HostError, NoSpace, Unsupported.
    """
    wanted, where = resources or Resources(), where or layout()
    if not name or "/" in name or name.startswith("."):
        raise InvalidArgument(f"invalid cgroup name {name!r}")
    check(wanted)
    if where.kind == "none":
        raise Unsupported("no control groups are mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
    group = Cgroup(name, where, _places(name, where, cpu=bool(wanted.cpus or wanted.cpu_shares)))
    try:
        _make(group, where)
        group.limit(wanted)
        if rules is not None:
            group.restrict(rules)
    except BaseException:
        with contextlib.suppress(HostError):
            group.remove(timeout=0.1)
        raise
    return group


def find(name: str, *, where: Layout | None = None) -> Cgroup:
    """The group of a container made earlier, possibly by another process; parts that do not exist are left out."""
    where = where or layout()
    return Cgroup(name, where, {key: path for key, path in _places(name, where, cpu=True).items() if os.path.isdir(path)})


def planned(name: str, resources: Resources, *, where: Layout | None = None) -> Cgroup:
    """The group that `create` would make. Touches nothing."""
    where = where or layout()
    return Cgroup(name, where, _places(name, where, cpu=bool(resources.cpus or resources.cpu_shares)))


def _places(name: str, where: Layout, *, cpu: bool) -> dict[str, str]:
    """Controller -> directory of the group; the key `unified` is the v2 group."""
    chosen = [key for key in (*_BASE, *(["cpu"] if cpu else [])) if key in where.v1]
    places = {key: f"{where.v1[key]}/{PARENT}/{name}" for key in chosen}
    places.update({f"track{index}": f"{point}/{PARENT}/{name}" for index, point in enumerate(where.track) if point != where.unified})
    if where.unified and (not where.v1 or where.unified in where.track or set(where.v2) & set(_V2_WANTED)):
        places["unified"] = f"{where.unified}/{PARENT}/{name}"
    return places


def _make(group: Cgroup, where: Layout) -> None:
    for path in group._all:
        try:
            _make_directory(path)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(f"cgroup {path} still has processes", hint=f"kill {' '.join(map(str, group.pids()))}") from error
            raise _failure(f"cannot create cgroup {path}", error) from error
    if group._unified and where.v2:
        try:
            enable(where, [name for name in _V2_WANTED if name in where.v2 and name not in where.v1])
        except OSError as error:
            raise _failure(f"cannot enable cgroup controllers below {where.unified}", error) from error


def _make_directory(path: str) -> None:
    """Make it with its parent; an existing empty group is made anew, so that its counters start at zero. Raises OSError."""
    try:
        os.mkdir(path, 0o755)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o755)
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not _remove_tree(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from None
        os.mkdir(path, 0o755)


def enable(where: Layout, controllers: Iterable[str]) -> None:
    """Hand controllers down to the groups below ``nacre`` on v2 (cgroup.subtree_control). Raises OSError.

    In a container the mount is no real root: its own processes must first move into a leaf ("no internal processes").
    """
    for directory in (where.unified, f"{where.unified}/{PARENT}"):
        path = f"{directory}/cgroup.subtree_control"
        present = (_read(path) or "").split()
        missing = " ".join(f"+{name}" for name in controllers if name not in present)
        if not missing:
            continue
        try:
            _put(path, missing)
        except OSError as error:
            if error.errno != errno.EBUSY or directory != where.unified:
                raise
            _evacuate(directory)
            _put(path, missing)


def _evacuate(directory: str) -> None:
    """Move every process of a group into a leaf below it; the loop catches those that were forked meanwhile."""
    leaf = f"{directory}/{_LEAF}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf, 0o755)
    for _ in range(10):
        inside = (_read(f"{directory}/cgroup.procs") or "").split()
        if not inside:
            return
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                _put(f"{leaf}/cgroup.procs", pid)


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
            raise _failure(f"cannot remove cgroup {directory}", error) from error
        below = _tree(directory)[:-1]
        return bool(below) and all(_remove_tree(path) for path in below) and _remove_tree(directory)
    return True


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            if pid > 0:  # 0: a process outside of this PID namespace
                os.kill(pid, _SIGKILL)


def _failure(what: str, error: OSError) -> HostError:
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.ENOMEM):
        return NoSpace(f"{what}: {reason}", hint="too many control groups exist; see /proc/cgroups and cgroup.max.descendants")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HostError(f"{what}: {reason}", hint="run as root, with the cgroup file systems mounted writable")
    return HostError(f"{what}: {reason}")


def _discarded(what: str, consequence: str) -> str:
    return f"Your kernel does not support {what} or the cgroup is not mounted. {consequence}"


def _put(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str | None:
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


def _number(text: str | None) -> int:
    word = (text or "").strip()
    return int(word) if word.isdigit() else 0


def _field(text: str | None, name: str) -> int:
    """The number in the line ``name N``."""
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value)
    return 0


def _sum(words: Iterable[str], prefix: str) -> int:
    return sum(_number(word[len(prefix) :]) for word in words if word.startswith(prefix))


def _system_cpu() -> int:
    """CPU time of the whole host in ns: user, nice, system, idle, iowait, irq, softirq and steal of /proc/stat, as Docker sums it."""
    fields = (_read("/proc/stat") or "cpu").split("\n", 1)[0].split()[1:9]
    return sum(map(int, fields)) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
