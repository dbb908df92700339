"""How a container comes to life, ends and is cleaned up: the one recipe, for every level (docs/architecture.md, section 5).

Everything that is made for a container carries its id, is made in a fixed order, and can be removed without knowing how far
the making came. A caller that is killed in the middle leaves work for `settle`, which every later verb begins with, and for
`sweep`, which `create` and `list` begin with. A row is *pending* while something is to be finished should its owner die: a
container made for `run` that does not run yet, a start under way, a removal, one with auto_remove that has ended, one that is owed a
restart.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from nacre.engine.core import Core, seconds, timestamp
from nacre.errors import Conflict, HostError, NacreError, NotFound, SandboxError, SandboxGone
from nacre.isolation import DRIVERS, Driver, Explaining, Tapped, driver
from nacre.isolation.channel import Channel, Exit, read_exit_record
from nacre.isolation.plan import Device, Etc, Security, container_plan
from nacre.isolation.process import reap_command
from nacre.isolation.security import security
from nacre.isolation.stream import Stream
from nacre.model.container import Container, ContainerSpec, Level, ProcessSpec, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import Code, Spawn, op
from nacre.network import files
from nacre.store import Lock, is_locked

MAIN = 1  # the number a stem gives to the first process it is asked to run
BLOCK_BASE, BLOCK = 0x1000_0000, 65536
ENDING = 30.0
FILES = ".files"
MOUNTED = "mounted"  # option of a mount whose volume has to be mounted itself
FORWARDED = ("json-file", "syslog", "journald")  # log drivers that hand lines on (`nacre.engine.logdrivers`)
CLAIM = "claim"  # file in a container's directory, locked by the `run` that has made it and is going to start it
STAT_PATIENCE = 5.0
LOG_SIZE, LOG_FILES = 20 << 20, 5  # of a container that asked for nothing else (docs/decisions/log-drivers.md)
ALL_CAPABILITIES = (1 << 41) - 1
LOST = Exit(code=137, signal=9)


class Lifecycle:
    """Start, settle and remove, on records. One object per engine; no state of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.reaping = False  # this process is the helper that carries out restarts

    # -- questions -----------------------------------------------------------------------------------------------------

    def alive(self, identifier: str) -> bool:
        """Whether a stem lives for this container: asked of the kernel."""
        return is_locked(f"{self.core.layout.sandbox(identifier)}/lock")

    def exit_of(self, identifier: str) -> Exit | None:
        """How the main process of the last run ended; None while it runs. A stem on a full disk leaves it in the run-time directory."""
        places = (self.core.layout.container(identifier), self.core.layout.sandbox(identifier))
        return read_exit_record(f"{places[0]}/exit") or read_exit_record(f"{places[1]}/exit")

    def load(self, identifier: str) -> tuple[Container, int, bool] | None:
        """The record, its block and whether its end is unrecorded."""
        return self.core.database.get(identifier)

    @contextmanager
    def verb(self, identifier: str, *, wait: float | None = 60.0) -> Iterator[None]:
        """Hold the container for one verb: two callers take turns. Raises Conflict after `wait` seconds, NotFound when it was removed."""
        busy = f"container {identifier[:12]} is busy: another command is working on it"
        path = f"{self.core.layout.container(identifier)}/lock"
        try:
            # Not made when absent: a late caller must not put a file into a directory that is just being removed.
            lock = Lock(path, create=False, wait=wait, busy=busy)
        except FileNotFoundError:
            if not self.load(identifier):
                raise NotFound(f"No such container: {identifier[:12]}") from None
            # Somebody has deleted its directory; it must be possible to remove what is left of it.
            os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
            lock = Lock(path, wait=wait, busy=busy)
        with lock:
            yield

    def claim(self, identifier: str) -> Lock:
        """Keep a pending container from being swept until the lock is released (`unclaim`), or this process ends."""
        return Lock(f"{self.core.layout.container(identifier)}/{CLAIM}", wait=0)

    def unclaim(self, identifier: str, lock: Lock) -> None:
        """Give a claim up."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self.core.layout.container(identifier)}/{CLAIM}")
        lock.release()

    @contextmanager
    def birth(self, identifier: str) -> Iterator[None]:
        """Make the directory of a new container and hold its verb lock. Undone when the context fails before a row exists."""
        directory = self.core.layout.container(identifier)
        with ExitStack() as stack:
            # A sweeper must not take the directory for an orphan between its making and its locking.
            with Lock(f"{self.core.layout.run}/birth.lock", shared=True):
                os.mkdir(directory, 0o711)
                stack.enter_context(Lock(f"{directory}/lock"))
            try:
                yield
            except BaseException:
                if not self.load(identifier):
                    self.core.layout.discard(directory)
                raise

    def sandbox(self, record: Container, block: int) -> Sandbox:
        """The value that drivers work from."""
        return Sandbox(
            id=record.id,
            level=record.spec.isolation,
            directory=self.core.layout.sandbox(record.id),
            state=self.core.layout.container(record.id),
            hostname=hostname(record.spec, record.id),
            rootfs=record.rootfs or Rootfs(driver=""),
            endpoint=record.endpoint or Endpoint(network="none"),
            spec=record.spec,
            mounts=record.mounts,
            owner=self._owner(record.spec, block),
        )

    def _owner(self, spec: ContainerSpec, block: int) -> int:
        """The host's id of the container's root, in the user namespace that it has or shares; 0 = the host's root."""
        if spec.userns.startswith("container:"):
            from nacre.engine import sharing

            mode, block = sharing.users(self.core, spec, block)
            return 0 if mode == "keep-id" else BLOCK_BASE + block * BLOCK
        return BLOCK_BASE + block * BLOCK

    # -- the recipe ----------------------------------------------------------------------------------------------------

    def start(self, record: Container, block: int, *, attach: bool, rows: int = 0, columns: int = 0) -> tuple[Container, Stream | None]:
        """Bring a container to life; the caller holds its verb lock and has settled it.

        Raises what the failing step raises; nothing is left behind then, and the record says what went wrong.
        """
        core = self.core
        level = driver(record.spec.isolation)
        if record.spec.log.driver in FORWARDED:
            from nacre.engine import logdrivers

            logdrivers.require(record.spec.log)
        with ExitStack() as undo:
            undo.callback(self.clean, record)
            # 1. and 2. the layers of the image that the record pins, and a writable root file system over them
            rootfs = self._rootfs(record, block)
            self.use_volumes(record)
            if record.spec.auto_remove:
                rootfs = core.rootfs.transient(rootfs)
            # 3. the network: at every level a namespace with one end of a veth pair in it, or another container's
            endpoint, reserved = self._attach(record)
            for fd in reserved:
                undo.callback(os.close, fd)
            # 4. the sandbox: an empty one with a stem that answers
            process = record.process.replace(rows=rows, columns=columns)
            record = record.replace(rootfs=rootfs, endpoint=endpoint, process=process, error="", pid=0, main=0)
            held = ExitStack()
            undo.callback(held.close)
            sandbox = self._joined(self.sandbox(record, block), held)
            if isinstance(level, Tapped) and endpoint.interface:
                core.network.tap(endpoint, level.tap_owner(sandbox))
            lock = self._open_sandbox(sandbox)
            undo.callback(lock.release)
            core.database.put(record, active=True, pending=True)
            channel = level.start(
                sandbox, keep=(lock.fd, *reserved), exit_command=reap_command(core.layout.root, core.layout.run, record.id), custody=attach
            )
            undo.callback(channel.close)
            # 5. the container in it
            plan = self.plan(record, sandbox, level).replace(attach=attach)
            try:
                proc, pid = channel.spawn(plan)
            except SandboxGone as error:
                raise self._explain(error, sandbox) from error
            record = record.replace(pid=pid, main=proc, started=timestamp(), exit_code=0, restart_at=0.0)
            with core.database.together():
                core.database.put(record, active=True)
                core.use_events(record, "connect", "mount")
                core.container_event(record, "start")
            undo.pop_all()
        self._accompany(record)
        held.close()
        lock.release()  # ours; the stem's copy keeps it held
        for fd in reserved:
            os.close(fd)
        if attach:
            return record, Stream(channel, proc, ended=lambda: self.ended(record.id))
        channel.close()
        return record, None

    def plan(self, record: Container, sandbox: Sandbox, level: Driver) -> Spawn:
        """The main process's plan with everything the stem keeps for it."""
        record, sandbox = self._with_cdi(record, sandbox)
        spec, endpoint = record.spec, sandbox.endpoint
        base = _read_text("/etc/hosts") if spec.network == "host" else ""
        name = f"{sandbox.hostname}.{spec.domainname}" if spec.domainname else sandbox.hostname
        etc = self._shared_etc(spec) or Etc(
            hosts=files.hosts(name, endpoint.address, extra=spec.extra_hosts, gateway=endpoint.gateway, base=base),
            resolv=files.resolv_conf(endpoint.dns, endpoint.search, endpoint.options),
            hostname=files.hostname(sandbox.hostname),
        )
        devices = requested_devices(spec)
        made = container_plan(sandbox, record.process, level.place(sandbox), self.security(record.spec), devices, etc)
        made = made.replace(log=f"{sandbox.state}/log", log_limit=LOG_SIZE, log_files=LOG_FILES, exit=f"{sandbox.state}/exit", main=True)
        if spec.log.driver or spec.log.options:
            from nacre.engine import logdrivers

            made = logdrivers.keep(made, spec.log)
        return made

    def _attach(self, record: Container) -> tuple[Endpoint, list[int]]:
        """The container's place on its network, and the descriptors that keep it."""
        spec = record.spec
        if spec.network.startswith("container:"):
            from nacre.engine import sharing

            return sharing.endpoint(self.core, spec), []
        return self.core.network.attach(
            record.id,
            spec.network,
            hostname(spec, record.id),
            spec.ports,
            dns=spec.dns,
            search=spec.dns_search,
            options=spec.dns_options,
        )

    def _joined(self, sandbox: Sandbox, held: ExitStack) -> Sandbox:
        """The sandbox with what is found or opened for this start: others' namespaces, layers of images, parts of volumes."""
        spec = sandbox.spec
        if any(mode.startswith("container:") for mode in (spec.network, spec.pid, spec.ipc, spec.uts, spec.userns)):
            from nacre.engine import sharing

            sandbox = sandbox.replace(joins=sharing.join(self.core, spec, held))
        if any(mount.kind == "image" or len(mount.options) > 1 for mount in sandbox.mounts):
            from nacre.engine import mounts

            sandbox = sandbox.replace(mounts=mounts.current(self.core, sandbox.mounts, sandbox.level))
        return sandbox

    def _with_cdi(self, record: Container, sandbox: Sandbox) -> tuple[Container, Sandbox]:
        """The record and the sandbox of this start with what CDI devices change beside their nodes."""
        if not (record.spec.gpus or record.spec.devices):
            return record, sandbox
        from nacre.isolation import devices

        changed = devices.edits(record.spec)
        if not changed:
            return record, sandbox
        process = record.process
        process = process.replace(env=(*process.env, *changed.env), groups=(*process.groups, *changed.groups))
        return record.replace(process=process), sandbox.replace(mounts=(*sandbox.mounts, *changed.mounts))

    def _shared_etc(self, spec: ContainerSpec) -> Etc | None:
        """The files of /etc of the container whose network is shared; None when none is."""
        if not spec.network.startswith("container:"):
            return None
        from nacre.engine import sharing

        return Etc(hosts=b"", resolv=b"", hostname=b"", source=sharing.etc_directory(self.core, spec))

    @contextmanager
    def files_sandbox(self, record: Container, block: int) -> Iterator[Sandbox]:
        """A sandbox over a stopped container's root file system, in which nothing of its image runs; the caller holds the verb lock.

        It has a name of its own, so that nobody takes the container for running. Gone when the context ends.
        """
        users = "private" if record.spec.userns.startswith("container:") else record.spec.userns
        spec = record.spec.replace(
            network="none", ports=(), sysctls={}, read_only=False, userns=users, pid="", ipc="", uts="", cgroupns="", domainname="",
            init=False, devices=(), gpus=(),
        )  # fmt: skip
        record = record.replace(id=f"{record.id}{FILES}", spec=spec, endpoint=None, rootfs=self._rootfs(record, block))
        level = driver(spec.isolation)
        sandbox = self.sandbox(record, block).replace(state=self.core.layout.container(record.id.removesuffix(FILES)))
        with ExitStack() as undo:
            undo.callback(self.clean, record)
            self.use_volumes(record)
            sandbox = self._joined(sandbox, undo)
            endpoint, held = self.core.network.attach(record.id, "none", sandbox.hostname, ())
            for fd in held:
                undo.callback(os.close, fd)
            sandbox = sandbox.replace(endpoint=endpoint)
            os.makedirs(f"{sandbox.directory}/stage", 0o711, exist_ok=True)
            lock = Lock(f"{sandbox.directory}/lock", wait=0)
            undo.callback(lock.release)
            channel = level.start(sandbox, keep=(lock.fd, *held), exit_command=(), custody=True)
            undo.callback(channel.close)
            process = ProcessSpec(args=("pause",))
            open_to_all = Security(capabilities=ALL_CAPABILITIES, hidden=(), read_only=())
            plan = container_plan(sandbox, process, level.place(sandbox), open_to_all, (), Etc())
            setup = plan.ops[: next(index for index, item in enumerate(plan.ops) if item.code is Code.PIVOT) + 1]
            channel.spawn(plan.replace(ops=(*setup, op(Code.DEATH, 9), op(Code.BUILTIN, 1, "pause"))))
            yield sandbox
            # Not by force: what was written must reach the disk of a virtual machine before its guest ends.
            channel.shutdown(timeout=ENDING)

    def _rootfs(self, record: Container, block: int) -> Rootfs:
        if record.spec.rootfs:
            from nacre.engine import mounts

            return mounts.plain_rootfs(self.core, record.id, record.spec)
        image = self.core.images.resolve(record.image_id)
        diff_ids = tuple(layer.diff_id for layer in image.layers)
        disk = record.spec.isolation is Level.VM
        layers, rootfs = self.core.storage(record.rootfs.driver if record.rootfs and not disk else "")
        size, project = record.spec.storage_size, BLOCK_BASE + block * BLOCK
        try:
            return rootfs.prepare(record.id, diff_ids, disk=disk, size=size, project=project)
        except NotFound:
            # Unpacked by another storage driver, in a form that is of no use to this one.
            self.core.unpack(image, layers)
            return rootfs.prepare(record.id, diff_ids, disk=disk, size=size, project=project)

    def security(self, spec: ContainerSpec, *, privileged: bool = False) -> Security:
        """Capabilities, filter and limits of a spec. Raises InvalidArgument for names that do not exist."""
        return security(spec, f"{self.core.layout.run}/seccomp", privileged=privileged)

    def _open_sandbox(self, sandbox: Sandbox) -> Lock:
        os.makedirs(f"{sandbox.directory}/stage", 0o711, exist_ok=True)
        lock = Lock(f"{sandbox.directory}/lock", wait=0, busy=f"container {sandbox.id[:12]} is already running")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{sandbox.state}/exit")
        return lock

    def _explain(self, error: SandboxGone, sandbox: Sandbox) -> SandboxError:
        tail = console_tail(sandbox.directory)
        return SandboxError(
            f"the sandbox ended before the container ran: {error.message}",
            stage=error.stage,
            details="\n".join(part for part in (error.details, tail) if part),
            hint="the last lines of its console follow with --debug" if tail else "",
        )

    # -- the end -------------------------------------------------------------------------------------------------------

    def ended(self, identifier: str) -> str:
        """An attached caller saw the end: settle here, since this connection has custody. Why its sandbox ended, if it did."""
        with contextlib.suppress(NacreError):
            if record := self.finish(identifier):
                return record.error
        return ""

    def finish(self, identifier: str) -> Container | None:
        """Settle a container whose main process has ended (or whose sandbox is gone), as soon as its stem has let go. None = removed."""
        try:
            with self.verb(identifier):
                found = self.load(identifier)
                return self.settle(*found) if found else None
        except NotFound:
            return None

    def settle(self, record: Container, block: int, active: bool) -> Container:
        """Bring record and host in line with the kernel; the caller holds the verb lock. Idempotent.

        A container whose sandbox still lives, with a main process that has not ended, is left alone.
        """
        if not active:
            return record
        exit = self.exit_of(record.id)
        if self.alive(record.id):
            if exit is None:
                return record if record.main else self._take_over(record)
            self._hang_up(record)
        # Read again: a stem writes its record before it lets go of the lock.
        exit = exit or self.exit_of(record.id)
        if exit is None and not record.main:
            return self._abandon(record)
        error = self._cause_of_death(record, lost=exit is None)
        exit = exit or LOST
        self.clean(record)
        finished = timestamp(exit.time_ns / 1e9 if exit.time_ns else None)
        record = record.replace(
            exit_code=exit.code,
            oom_killed=exit.oom,
            started=record.started if record.main else finished,
            finished=finished,
            pid=0,
            error=error,
        )
        if record.spec.restart.name != "no":
            from nacre.engine import restart

            record = restart.decide(record, seconds(record.finished) - seconds(record.started))
        # Whoever asked for its removal may die before doing it.
        with self.core.database.together():
            self.core.database.put(record, active=False, pending=record.spec.auto_remove or record.removing)
            if exit.oom:
                self.core.container_event(record, "oom")
            ran = seconds(record.finished) - seconds(record.started)
            self.core.container_event(record, "die", exitCode=str(exit.code), execDuration=str(max(0, int(ran))))
            self.core.use_events(record, "disconnect", "unmount")
        self._see_to_restart(record)
        return record

    def _see_to_restart(self, record: Container) -> None:
        """Have a restart that is owed carried out: by a process that outlives this one, which has other things to do."""
        if record.restart_at and not self.reaping:
            from nacre.engine import helpers

            with contextlib.suppress(HostError):  # sweep tries again
                helpers.launch(self.core.layout, "reap", record.id)

    def renounce(self, record: Container, *, active: bool) -> Container:
        """Somebody ends it on purpose: no restart is owed, and none will be. The caller holds the verb lock."""
        if record.restart_at:
            from nacre.engine import helpers

            helpers.dismiss(self.core.layout, "reap", record.id)
        record = record.replace(stopped=True, restart_at=0.0)
        self.core.database.put(record, active=active, pending=record.removing)
        return record

    def _cause_of_death(self, record: Container, *, lost: bool) -> str:
        """Why a sandbox ended with its container in it, with the last lines of its console; "" when the container itself ended."""
        directory = self.core.layout.sandbox(record.id)
        level = driver(record.spec.isolation)
        if isinstance(level, Explaining) and (cause := level.post_mortem(directory)):
            return cause
        return "\n".join(filter(None, ("its sandbox was killed (no exit record)", console_tail(directory)))) if lost else record.error

    def _take_over(self, record: Container) -> Container:
        """Its starter died with a stem alive: what runs is kept, a sandbox in which nothing runs yet is ended."""
        rows: list[tuple[int, int, int, int]] = []
        with contextlib.suppress(SandboxError), contextlib.closing(Channel(self.core.layout.sandbox(record.id))) as channel:
            rows = channel.stat(timeout=STAT_PATIENCE)
        for number, pid, _, _ in rows:
            if number == MAIN:
                record = record.replace(pid=pid, main=number, started=timestamp(), exit_code=0, restart_at=0.0)
                with self.core.database.together():
                    self.core.database.put(record, active=True)
                    self.core.use_events(record, "connect", "mount")
                    self.core.container_event(record, "start")
                self._accompany(record)
                return record
        return self._abandon(record)

    def _accompany(self, record: Container) -> None:
        """It runs: start the helpers that it asked for."""
        if record.spec.health or record.image_config.healthcheck:
            from nacre.engine import health

            with contextlib.suppress(HostError, OSError):  # sweep tries again
                health.begin(self.core, record)
        if record.spec.log.driver in FORWARDED:
            from nacre.engine import helpers

            with contextlib.suppress(HostError):
                helpers.launch(self.core.layout, "forward", record.id)

    def _abandon(self, record: Container) -> Container:
        """Undo a start whose caller died before the container ran."""
        self.clean(record)
        record = record.replace(pid=0, error="its start was interrupted")
        self.core.database.put(record, active=False, pending=record.spec.auto_remove or record.removing)
        self._see_to_restart(record)
        return record

    def see_out(self, record: Container, channel: Channel) -> None:
        """The main process ended: keep custody until its stem is gone, so that it need not start an engine to clean up."""
        if record.spec.auto_remove or record.removing:
            channel.shutdown(force=True, timeout=5)
        else:
            channel.linger(ENDING)

    def _hang_up(self, record: Container) -> None:
        """The main process ended: wait for the stem, which is on its way out; hurry it along when nothing is to be kept."""
        if record.spec.auto_remove:
            self.end_stem(record.id)
        deadline = time.monotonic() + ENDING
        pause = 0.0001
        while self.alive(record.id):
            if time.monotonic() > deadline:
                self.kill_stem(record.id)
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def end_stem(self, identifier: str) -> None:
        """End a sandbox at once, if it lives: ask its stem; failing that, kill it."""
        if not self.alive(identifier):
            return
        directory = self.core.layout.sandbox(identifier)
        with contextlib.suppress(SandboxError, FileNotFoundError), contextlib.closing(Channel(directory, custody=True)) as channel:
            channel.announce()
            channel.shutdown(force=True, timeout=5)
        if self.alive(identifier):
            self.kill_stem(identifier)

    def kill_stem(self, identifier: str) -> None:
        """Last resort: SIGKILL the stem; its children die with it (parent-death signal, cgroup)."""
        path = f"{self.core.layout.sandbox(identifier)}/stem.pid"
        deadline = time.monotonic() + 5
        while self.alive(identifier) and time.monotonic() < deadline:
            # Again and again: the one whose starter was killed may not have written its pid yet, nor listen.
            with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
                pid = int(file.read())
                # The lock is held, so the pid cannot have been reused by a stranger.
                if self.alive(identifier):
                    os.kill(pid, 9)
            time.sleep(0.005)

    def clean(self, record: Container) -> None:
        """Remove everything a container's run left on the host: stem, cgroups, network, run-time directory. Idempotent, never raises.

        The directory goes last, and only when the rest is gone: as long as it is there, `sweep` tries again.
        """
        identifier = record.id
        steps: tuple[Callable[[], object], ...] = (
            lambda: self.end_stem(identifier),
            lambda: driver(record.spec.isolation).clean(identifier, self.core.layout.sandbox(identifier)),
            lambda: self.core.network.detach(identifier),
            lambda: self._release_rootfs(identifier.removesuffix(FILES)),
            lambda: self.release_volumes(record),
        )
        done = 0
        for step in steps:
            with contextlib.suppress(NacreError, OSError):
                step()
                done += 1
        if done == len(steps) and not self.alive(identifier):
            self.core.layout.discard(self.core.layout.sandbox(identifier))

    def _release_rootfs(self, identifier: str) -> None:
        # Asked here, because that room is slow to load and only one driver keeps anything.
        if os.path.isdir(f"{self.core.layout.run}/fuse/{identifier}"):
            self.core.rootfs.release(identifier)

    def remove(self, record: Container, *, volumes: bool = False) -> None:
        """Delete a container, ending what lives of it: files first, then the row, then the directory with the lock that we hold.

        Killed in between, the row stays pending, or the directory is one without a row: both are swept. volumes: its anonymous
        volumes too, as always with auto_remove.
        """
        self.clean(record)
        if record.spec.log.driver in FORWARDED:
            from nacre.engine import forward

            forward.wait_for(self.core, record.id)
        self.core.rootfs.remove(record.id)
        if volumes or record.spec.auto_remove:
            self._remove_anonymous_volumes(record)
        with self.core.database.together():
            self.core.database.drop(record.id)
            self.core.container_event(record, "destroy")
        self.core.layout.discard(self.core.layout.container(record.id))

    def _remove_anonymous_volumes(self, record: Container) -> None:
        """Those that were made for it; one that another container has joined by its name stays."""
        unnamed = {mount.target for mount in record.spec.mounts if mount.kind == "volume" and not mount.source}
        for mount in record.mounts:
            if mount.kind == "volume" and mount.target in unnamed:
                name = mount.options[0].removeprefix("name=")
                with contextlib.suppress(NacreError):
                    self.core.volumes.remove(name, in_use=lambda name: self.core.volume_users(name, other_than=record.id))
                    self.core.event("volume", "destroy", name, driver="local")

    def use_volumes(self, record: Container) -> None:
        """Mount what its volumes stand for, where they have options. Raises HostError, NotFound."""
        for name in _mounted_volumes(record):
            self.core.volumes.use(self.core.volumes.get(name), record.id)

    def release_volumes(self, record: Container) -> None:
        """End what `use_volumes` began. Idempotent. Raises HostError."""
        for name in _mounted_volumes(record):
            self.core.volumes.release(name, record.id)

    # -- what killed callers left ----------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Finish what killed callers left (see the top of this page). Costs a few directory listings when there is nothing. Never raises.

        What somebody is working on is left alone: its verb lock is held.
        """
        for identifier in self.core.database.all(pending=True):
            with contextlib.suppress(NacreError, OSError), self.verb(identifier, wait=0):
                self._sweep_pending(identifier)
        active = self.core.database.all(active=True)
        for identifier in active:
            if not self.alive(identifier):
                with contextlib.suppress(NacreError, OSError):
                    self.settled(identifier)
        with contextlib.suppress(NacreError, OSError):
            self._sweep_directories()
        for name in set(os.listdir(f"{self.core.layout.run}/sandboxes")).difference(active):
            with contextlib.suppress(NacreError, OSError):
                self._sweep_sandbox(name)
        self._sweep_network(active)
        self._sweep_helpers()

    def _sweep_pending(self, identifier: str) -> None:
        found = self.load(identifier)
        if not found or is_locked(f"{self.core.layout.container(identifier)}/{CLAIM}"):
            return
        record, block, active = found
        if record.restart_at and not active:
            self._see_to_restart(record)
            return
        if not record.removing:
            record = self.settle(record, block, active)
            if self.alive(identifier) or (active and not record.spec.auto_remove):
                return
        # Half made, or one that removes itself: either way its anonymous volumes are nobody's.
        self.remove(record, volumes=record.removing_volumes or not record.removing)

    def _sweep_directories(self) -> None:
        """Directories of containers without a row: of a birth or a removal that was cut short."""
        orphans = set(os.listdir(f"{self.core.layout.root}/containers")).difference(self.core.database.all())
        if not orphans:
            return
        with Lock(f"{self.core.layout.run}/birth.lock", wait=0):
            for identifier in orphans.difference(self.core.database.all()):
                directory = self.core.layout.container(identifier)
                # The lock file is made when absent: its maker may have died before.
                with contextlib.suppress(Conflict, OSError), Lock(f"{directory}/lock", wait=0):
                    if not self.load(identifier):
                        self.core.rootfs.remove(identifier)
                        self.core.layout.discard(directory)

    def _sweep_sandbox(self, name: str) -> None:
        """A run-time directory of no container that runs: of a start, a transfer of files or a cleaning that was cut short."""
        identifier = name.removesuffix(FILES)
        try:
            with self.verb(identifier, wait=0):
                found = self.load(identifier)
                if found and (name != identifier or not (found[2] or self.alive(name))):
                    self.clean(found[0].replace(id=name))
        except NotFound:
            # No row tells its level. A living one is another engine's that has the same run directory.
            if not self.alive(name):
                for level in DRIVERS:
                    driver(level).clean(name, self.core.layout.sandbox(name))
                self.core.layout.discard(self.core.layout.sandbox(name))

    def _sweep_network(self, active: list[str]) -> None:
        """Endpoints of no container that runs and that nobody holds. They are listed here, because that room is slow to load."""
        with contextlib.suppress(NacreError, OSError):
            left = [name for name in os.listdir(f"{self.core.layout.run}/network/endpoints") if name not in active]
            if any(not is_locked(f"{self.core.layout.run}/network/endpoints/{name}") for name in left):
                self.core.network.sweep(active)

    def _sweep_helpers(self) -> None:
        """Helpers that were killed (`nacre.engine.helpers`, which is loaded only when there are any)."""
        directory = f"{self.core.layout.run}/helpers"
        with contextlib.suppress(OSError):
            if not all(is_locked(f"{directory}/{name}") for name in os.listdir(directory)):
                from nacre.engine import helpers

                helpers.revive(self.core.layout)

    def settled(self, identifier: str) -> tuple[Container, int, bool] | None:
        """The record as of now: settled first if its sandbox ended. Does not wait for a verb in progress."""
        found = self.load(identifier)
        if not found or not found[2]:
            return found
        if found[0].main and self.alive(identifier) and not self.exit_of(identifier):
            return found
        try:
            with self.verb(identifier, wait=0):
                found = self.load(identifier)
                if found:
                    record = self.settle(*found)
                    if record.spec.auto_remove and not self.alive(identifier):
                        self.remove(record)
        except (Conflict, NotFound):
            pass
        found = self.load(identifier)
        exit = self.exit_of(identifier) if found and found[2] and found[0].main else None
        if found and exit:  # somebody else is recording its end
            return found[0].replace(exit_code=exit.code, oom_killed=exit.oom, finished=timestamp(exit.time_ns / 1e9)), found[1], found[2]
        return found


def requested_devices(spec: ContainerSpec) -> list[Device]:
    """Device nodes a container gets beyond the defaults, as they are now. Raises as `nacre.isolation.devices.requested`."""
    if not (spec.devices or spec.gpus or spec.privileged):
        return []
    from nacre.isolation import devices

    return devices.requested(spec)


def _mounted_volumes(record: Container) -> Iterator[str]:
    """Names of its volumes that have options."""
    return (mount.options[0].removeprefix("name=") for mount in record.mounts if mount.kind == "volume" and MOUNTED in mount.options)


def hostname(spec: ContainerSpec, identifier: str) -> str:
    """The name a container goes by: asked for, the host's (network host), or the short id."""
    return spec.hostname or (os.uname().nodename if "host" in (spec.network, spec.uts) else identifier[:12])


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def console_tail(directory: str, size: int = 2048) -> str:
    """The last lines of a guest's console, "" when there is none."""
    try:
        with open(f"{directory}/console.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode(errors="replace").strip()
    except OSError:
        return ""


__all__ = ["MAIN", "Lifecycle", "console_tail", "hostname", "requested_devices"]
