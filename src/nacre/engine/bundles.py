"""The verbs over OCI bundles: the facade of `nacre-oci`. Beside `nacre.engine.Engine`, because it keeps no database and must start fast.

Lifecycle and state are those of the OCI runtime specification 1.2, runtime.md; where it leaves something open, runc's answer is taken.
"""

from __future__ import annotations

import os
import time

from nacre.errors import Conflict, HostError, InvalidArgument, NacreError, NotFound
from nacre.isolation.oci_task import Task
from nacre.model import jsontext
from nacre.store.bundles import CONFIG, BundleStore, Claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from nacre.engine.vmbundles import Machine
    from nacre.isolation.groups import Group
    from nacre.isolation.oci_container import Wishes as Wishes
    from nacre.isolation.oci_run import Outcome
    from nacre.model.bundle import Bundle, Process

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"
_AFTERWARDS = ("poststart", "poststop")  # hooks of verbs that need nothing else of the configuration
_SIGKILL = 9
_KILL_WAIT = 10.0  # seconds that a killed process may take to end


class Runtime:
    """Containers below one directory of records.

    root: of the records. parse: config.json's bytes to a `Bundle`; the front end owns the format. systemd: let systemd make the
    control groups. virtual: bundles that do not say (annotation io.nacre.isolation) get a virtual machine. warn: gets what is worth a
    line in the log.
    """

    def __init__(
        self,
        root: str,
        parse: Callable[[bytes], Bundle],
        *,
        systemd: bool = False,
        virtual: bool = False,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.store = BundleStore(root)
        self._parse = parse
        self._systemd = systemd
        self._virtual = virtual
        self._warn = warn

    # Birth

    def create(self, name: str, directory: str, wishes: Wishes, *, start: bool, terminal: Callable[[int], None] | None = None) -> Outcome:
        """Make a container from the bundle in `directory`; it waits for `start` unless `start` is given.

        terminal: gets the master of the terminal when the process has one. Raises NacreError; then nothing is left of it.
        """
        from nacre.isolation import oci_container
        from nacre.model.bundle import VERSION

        data, bundle = self._load(directory)
        process = bundle.process
        if process and process.terminal and terminal is None:
            raise InvalidArgument("cannot allocate tty if runc will detach without setting console socket")
        if process and not process.terminal and terminal is not None and not start:
            raise InvalidArgument("cannot use console socket if runc will not detach or allocate tty")
        root = oci_container.rootfs(bundle, directory)
        with self.store.create(name) as claim:
            record: dict[str, Any] = {
                "id": name, "pid": 0, "bundle": directory, "rootfs": root, "created": _now(), "owner": os.geteuid(),
                "annotations": bundle.annotations, "status": CREATING, "version": VERSION, "cgroup": {},
                "runs": process is not None, "hooks": [kind for kind in _AFTERWARDS if getattr(bundle.hooks, kind)],
            }  # fmt: skip
            if self._wants_machine(bundle):
                record["isolation"] = "vm"
            claim.write(record)
            claim.put(CONFIG, data)
            try:
                outcome = self._create(claim, record, bundle, wishes, start=start)
                if terminal and outcome.master >= 0:
                    terminal(outcome.master)
            except BaseException:
                self._destroy(claim, record, bundle.hooks.poststop)
                raise
            return outcome

    def _wants_machine(self, bundle: Bundle) -> bool:
        from nacre.model.bundle import ISOLATION

        if not self._virtual and ISOLATION not in bundle.annotations:
            return False
        from nacre.isolation import oci_vm

        return oci_vm.wanted(bundle, self._virtual)

    def _load(self, directory: str) -> tuple[bytes, Bundle]:
        path = f"{directory}/{CONFIG}"
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no such file or directory", hint="a bundle has a config.json: nacre-oci spec makes one") from error
        except OSError as error:
            raise InvalidArgument(f"{path}: {os.strerror(error.errno or 0)}") from error
        return data, self._parse(data)

    def _create(self, claim: Claim, record: dict[str, Any], bundle: Bundle, wishes: Wishes, *, start: bool) -> Outcome:
        from nacre.isolation import oci_cgroup, oci_container

        name = str(record["id"])
        for remark in oci_container.remarks(bundle.process) if bundle.process else ():
            self._warn(remark)
        virtual = "isolation" in record
        group = None if virtual else oci_container.make_group(bundle, name, systemd=self._systemd)
        if group:
            record["cgroup"] = oci_cgroup.note(group, bundle.cgroups_path, systemd=self._systemd)
        if bundle.rdt and not virtual:
            record["rdt"] = True
            wishes = wishes.replace(join=(oci_cgroup.join_class(bundle.rdt, name),))
        fifo = -1 if start else claim.make_fifo()

        def known(pid: int) -> None:
            record.update(pid=pid, start=Task.of(pid).started)
            claim.write(record)

        def states(pid: int) -> bytes:
            creating = self._state_text(record, CREATING, pid)
            self._run_hooks("prestart", bundle.hooks.prestart, creating)
            self._run_hooks("createRuntime", bundle.hooks.create_runtime, creating)
            return creating + b"\0" + self._state_text(record, CREATED, pid) + b"\0"

        wishes = wishes.replace(fifo=fifo)
        try:
            if virtual:
                from nacre.engine import vmbundles

                outcome = vmbundles.create(claim, record, bundle, wishes, on_pid=known, states=states)
            else:
                outcome = oci_container.create(bundle, str(record["bundle"]), group, wishes, on_pid=known, states=states)
        finally:
            if fifo >= 0:
                os.close(fifo)
        if outcome.listener >= 0 and bundle.seccomp and bundle.process:
            state = self._state(record, CREATING)
            oci_container.offer_listener(bundle.seccomp, outcome, state, outcome.pid)
        record["status"] = RUNNING if start else CREATED
        claim.write(record)
        if start:
            self._started(record, bundle.hooks.poststart)
        return outcome

    def _started(self, record: dict[str, Any], hooks: tuple[Any, ...]) -> None:
        state = self._state_text(record, RUNNING, int(record["pid"]))
        try:
            self._run_hooks("poststart", hooks, state)
        except HostError as error:
            self._warn(error.message)  # the specification: logged, and the container goes on

    def start(self, name: str) -> None:
        """Have a created container run its program. Raises Conflict in another state, NotFound."""
        with self.store.open(name) as claim:
            record = self._record(claim, name)
            status = self._status(claim, record)
            if status != CREATED:
                words = {STOPPED: "cannot start a container that has stopped", RUNNING: "cannot start an already running container"}
                raise Conflict(words.get(status, f"cannot start a container in the {status} state"))
            if not record.get("runs", True):
                raise InvalidArgument("process: is required to start a container")
            if not claim.signal_fifo():
                raise Conflict("cannot start a container that has stopped")
            claim.drop_fifo()
            if machine := self._machine(record):
                machine.await_first(self._task(record).alive)
            record["status"] = RUNNING
            claim.write(record)
            if "poststart" in record.get("hooks", _AFTERWARDS):
                self._started(record, self._parse(claim.get(CONFIG)).hooks.poststart)

    # Questions

    def state(self, name: str) -> dict[str, Any]:
        """The state as runtime.md has it, with runc's additions. Raises NotFound."""
        with self.store.open(name, None) as claim:
            record = self._record(claim, name)
            status = self._status(claim, record)
            return self._state(record, status) | {"rootfs": record["rootfs"], "created": record["created"], "owner": ""}

    def list(self) -> Iterator[dict[str, Any]]:
        """The states of all containers; those that vanish meanwhile are left out."""
        for name in self.store.names():
            try:
                with self.store.open(name, None) as claim:
                    record = claim.read()
                    if record:
                        yield self._state(record, self._status(claim, record)) | {
                            "rootfs": record["rootfs"], "created": record["created"], "owner": record["owner"],
                        }  # fmt: skip
            except NotFound:
                continue
            except (HostError, KeyError) as error:  # one damaged record must not hide the others
                self._warn(f"container {name} is left out: {error}")

    def _record(self, claim: Claim, name: str) -> dict[str, Any]:
        return claim.read() or {
            "id": name, "pid": 0, "bundle": "", "rootfs": "", "created": "", "owner": 0, "annotations": {}, "status": CREATING,
            "version": "1.2.1", "cgroup": {}, "runs": True, "hooks": [],
        }  # fmt: skip

    def _status(self, claim: Claim, record: dict[str, Any]) -> str:
        if not record["pid"]:
            return CREATING
        if not self._task(record).alive():
            return STOPPED
        if record["status"] == CREATING:
            return CREATING
        if claim.has_fifo():
            return CREATED
        group = self._group(record)
        return PAUSED if group and group.frozen() else RUNNING

    @staticmethod
    def _state(record: dict[str, Any], status: str) -> dict[str, Any]:
        return {
            "ociVersion": record["version"],
            "id": record["id"],
            "pid": 0 if status == STOPPED else record["pid"],
            "status": status,
            "bundle": record["bundle"],
            "annotations": record["annotations"],
        }

    def _state_text(self, record: dict[str, Any], status: str, pid: int) -> bytes:
        return jsontext.dumps(self._state(record, status) | {"pid": pid}).encode()

    @staticmethod
    def _task(record: dict[str, Any]) -> Task:
        return Task(int(record["pid"]), int(record.get("start", 0)))

    def _group(self, record: dict[str, Any]) -> Group | Machine | None:
        """What holds all processes of a container, and can be asked about them and be told to stop."""
        return self._machine(record) or self._cgroup(record)

    @staticmethod
    def _cgroup(record: dict[str, Any]) -> Group | None:
        if not record["cgroup"]:
            return None
        from nacre.isolation import oci_cgroup

        return oci_cgroup.recorded(str(record["id"]), record["cgroup"])

    def _machine(self, record: dict[str, Any]) -> Machine | None:
        """The virtual machine of a container that has one; None also when it was never made."""
        if "isolation" not in record:
            return None
        from nacre.engine import vmbundles

        return vmbundles.machine(f"{self.store.root}/{record['id']}", record)

    @staticmethod
    def _run_hooks(kind: str, hooks: tuple[Any, ...], state: bytes) -> None:
        if hooks:
            from nacre.isolation import oci_hooks

            oci_hooks.run(kind, hooks, state)

    # Life

    def kill(self, name: str, signal: str, *, all: bool = False) -> None:
        """Send a signal (a name or a number) to the first process, or to all. Raises NotFound("container not running")."""
        from nacre.isolation import oci_task

        number = oci_task.signal_number(signal)
        with self.store.open(name, None) as claim:
            record = self._record(claim, name)
            task, machine = self._task(record), self._machine(record)
            if machine:
                if not machine.signal(number):
                    task.signal(number)  # nothing runs in it yet
                return
            group = self._cgroup(record)
            if all:
                if group:
                    oci_task.signal_all(group, number)
                return
            if not record["pid"]:
                raise NotFound("container not running")
            task.signal(number)
            if number == _SIGKILL and group and oci_task.shares_pids(task.pid):
                oci_task.signal_all(group, number)  # no namespace ends the rest with it
            if group and number == _SIGKILL and group.frozen():
                group.thaw()

    def exec(
        self, name: str, choose: Callable[[Bundle], Process], wishes: Wishes, *, ignore_paused: bool = False,
    ) -> Outcome:  # fmt: skip
        """Start one more process. choose: makes it from the container's configuration. Raises Conflict in another state."""
        with self.store.open(name, None) as claim:
            record = self._record(claim, name)
            status = self._status(claim, record)
            if status == PAUSED and not ignore_paused:
                raise Conflict("cannot exec in a paused container (use --ignore-paused to override)")
            if status not in (RUNNING, CREATED, PAUSED):
                raise Conflict("cannot exec in a stopped container" if status == STOPPED else f"cannot exec in a {status} container")
            from nacre.isolation import oci_container

            bundle = self._parse(claim.get(CONFIG))
            if "isolation" in record:
                from nacre.engine import vmbundles

                return vmbundles.enter(claim, bundle, choose(bundle), wishes)
            outcome = oci_container.enter(self._task(record), bundle, choose(bundle), self._cgroup(record), wishes)
            if outcome.listener >= 0 and bundle.seccomp:
                oci_container.offer_listener(bundle.seccomp, outcome, self._state(record, status), outcome.pid)
            return outcome

    @staticmethod
    def send_terminal(path: str, master: int) -> None:
        """Hand the master of a terminal to the console socket at `path`. Raises InvalidArgument."""
        from nacre.isolation import oci_container

        oci_container.send_terminal(path, master)

    @staticmethod
    def send_pidfd(path: str, pid: int) -> None:
        """Hand a pidfd of a process to the socket at `path`. Raises InvalidArgument."""
        from nacre.isolation import oci_container

        oci_container.send_pidfd(path, pid)

    def pause(self, name: str) -> None:
        """Freeze a running container. Raises Conflict in another state, Unsupported."""
        with self.store.open(name) as claim:
            record = self._record(claim, name)
            status, group = self._status(claim, record), self._group(record)
            if status not in (RUNNING, CREATED) or group is None:
                raise Conflict("container not running" if status != PAUSED else "container is already paused")
            group.freeze()

    def resume(self, name: str) -> None:
        """Thaw a paused container. Raises Conflict in another state."""
        with self.store.open(name) as claim:
            record = self._record(claim, name)
            group = self._group(record)
            if self._status(claim, record) != PAUSED or group is None:
                raise Conflict("container not paused")
            group.thaw()

    def update(self, name: str, resources: dict[str, Any]) -> None:
        """Change limits of a container. Raises Conflict when it has stopped, and what the limits raise."""
        with self.store.open(name) as claim:
            record = self._record(claim, name)
            group = self._group(record)
            if self._status(claim, record) in (STOPPED, CREATING) or group is None:
                raise Conflict("cannot update a container that is not running")
            group.update(resources)

    def pids(self, name: str) -> tuple[int, ...]:
        """The processes of a container. Raises NotFound."""
        with self.store.open(name, None) as claim:
            record = self._record(claim, name)
            group = self._group(record)
            if group:
                return group.pids()
            return (int(record["pid"]),) if self._task(record).alive() else ()

    def stats(self, name: str) -> dict[str, Any]:
        """Numbers of the control group in the words of runc's events. Raises Conflict when the container has stopped."""
        with self.store.open(name, None) as claim:
            record = self._record(claim, name)
            group = self._group(record)
            if self._status(claim, record) == STOPPED or group is None:
                raise Conflict("container is not running")
            return group.stats()

    def task(self, name: str) -> Task:
        """The first process. Raises NotFound."""
        with self.store.open(name, None) as claim:
            return self._task(self._record(claim, name))

    def oom_file(self, name: str) -> str:
        """The file whose line "oom_kill N" counts, "" = none. Raises NotFound."""
        with self.store.open(name, None) as claim:
            group = self._group(self._record(claim, name))
            return group.oom_file() if group else ""

    # Death

    def delete(self, name: str, *, force: bool) -> None:
        """Remove what is left of a stopped container; force: kill it first, and nothing to remove is fine.

        A container that was never started is killed as well, as runc does. Raises Conflict when it runs, NotFound.
        """
        try:
            claim = self.store.open(name)
        except NotFound:
            if force:
                return
            raise
        with claim:
            record = self._record(claim, name)
            status = self._status(claim, record)
            if not force and status not in (STOPPED, CREATED):
                raise Conflict(f"cannot delete container {name} that is not stopped: {status}", hint="nacre-oci kill, or delete --force")
            hooks: tuple[Any, ...] = ()
            try:
                if "poststop" in record.get("hooks", _AFTERWARDS):
                    hooks = self._parse(claim.get(CONFIG)).hooks.poststop
            except NacreError as error:
                self._warn(f"the hooks of container {name} are not run: {error.message}")
            self._destroy(claim, record, hooks)

    def _destroy(self, claim: Claim, record: dict[str, Any], hooks: tuple[Any, ...]) -> None:
        task, group = self._task(record), self._group(record)
        if task.alive():
            task.end()
        if group:
            group.kill(_KILL_WAIT)
            group.remove()
        if record.get("rdt"):
            from nacre.isolation import oci_cgroup

            oci_cgroup.leave_class(str(record["id"]))
        if not task.wait_end(_KILL_WAIT):
            raise HostError(f"container {record['id']}: process {task.pid} does not end", hint=f"see: cat /proc/{task.pid}/stack")
        claim.remove()
        try:
            self._run_hooks("poststop", hooks, self._state_text(record, STOPPED, 0))
        except HostError as error:
            self._warn(error.message)


def mount_options() -> list[str]:
    """Mount options that are understood, whatever the file system."""
    from nacre.isolation import oci_features

    return oci_features.mount_options()


def host_features() -> dict[str, Any]:
    """What depends on the host of the object of features-linux.md."""
    from nacre.isolation import oci_features

    return oci_features.linux()


def _now() -> str:
    """RFC 3339 with nanoseconds, as runc writes it."""
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"


def __getattr__(name: str) -> Any:
    # Most verbs do without what makes processes.
    if name == "Wishes":
        from nacre.isolation.oci_container import Wishes

        return Wishes
    raise AttributeError(f"module 'nacre.engine.bundles' has no attribute {name!r}")


__all__ = ["Runtime", "Task", "Wishes"]
