"""Containers: the collection, and the handle of one with its verbs."""

from __future__ import annotations

import builtins
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from nacre.engine import merge, names
from nacre.engine.core import Core, timestamp
from nacre.engine.lifecycle import MAIN, MOUNTED, Lifecycle, hostname
from nacre.errors import Conflict, ExecError, InvalidArgument, NacreError, NotFound, SandboxError, SandboxGone, Unsupported
from nacre.isolation import Pausable, driver
from nacre.isolation.channel import Channel, Exit, signal_number
from nacre.isolation.plan import builtin_plan, exec_plan
from nacre.isolation.stream import Stream
from nacre.model.container import BoundMount, ContainerSpec, Level, MountSpec, ProcessSpec, Sandbox, State, Stats
from nacre.model.container import Container as Record
from nacre.model.image import Image, Progress
from nacre.model.life import RestartPolicy
from nacre.model.network import PortMapping
from nacre.model.plan import Spawn
from nacre.store import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.engine.archive import TarReader
    from nacre.isolation.logs import LogRecord

SIGKILL = 9
KILL_PATIENCE = 30.0
CONDITIONS = ("not-running", "next-exit", "removed")
GLANCE = 0.05  # seconds between two looks at what nobody tells


class Containers:
    """The containers of one engine."""

    def __init__(self, core: Core, lifecycle: Lifecycle, image_for: Callable[..., Image]) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._image_for = image_for

    def create(
        self, spec: ContainerSpec, *, pull: str = "missing", progress: Callable[[Progress], None] | None = None, pending: bool = False
    ) -> Container:
        """Make a container without starting it.

        pull: missing, always or never. pending: the caller starts it at once (`run`); should the caller die before, it is garbage.
        Raises InvalidArgument, NotFound (image), Conflict (name).
        """
        if type(spec.isolation) is not Level:  # a caller's own word for it
            spec = spec.replace(isolation=merge.level(spec.isolation))
        warnings = merge.validate(spec)
        if spec.name:
            spec = spec.replace(name=names.check(spec.name))
        self._lifecycle.sweep()
        if spec.storage_size:
            self._core.rootfs.check_size(spec.storage_size, disk=spec.isolation is Level.VM)
        spec, borrowed = merge.completed(self._core, spec)
        image = merge.PLAIN if spec.rootfs else self._image_for(spec.image, pull=pull, progress=progress)
        identifier = names.new_id()
        ports = merge.published(spec, image.config)
        spec = spec.replace(ports=ports, mounts=merge.image_volumes(spec, image.config, tuple(mount.target for mount in borrowed)))
        record = Record(
            id=identifier,
            name=spec.name or names.suggest(identifier, 0),
            spec=spec,
            image_id=image.id,
            image_name=spec.image,
            image_config=image.config,
            process=merge.process_spec(spec, image.config, hostname(spec, identifier)),
            created=timestamp(),
            # Known before they are made, so that they are found should this process die in between.
            mounts=tuple(_unnamed_volume(mount) for mount in spec.mounts if mount.kind == "volume" and not mount.source),
        )
        claim = None
        # The verb lock is taken before the row exists: a sweeper that sees a pending row with free locks knows its maker is dead.
        with self._core.images.hold(), self._lifecycle.birth(identifier):
            if image.id:
                self._core.images.resolve(image.id)  # nobody may have removed it in between; from the row on it is in use
            record = self._insert(record.replace(mounts=(*record.mounts, *borrowed)), named=bool(spec.name), pending=pending)
            try:
                claim = self._lifecycle.claim(identifier) if pending else None
                if spec.mounts:
                    record = record.replace(mounts=(*merge.with_options(spec, self._mounts(record, image)), *borrowed))
                    with self._core.database.together():
                        self._core.database.put(record, active=False, pending=pending)
                        self._core.container_event(record, "create")
            except BaseException:
                self._lifecycle.remove(record, volumes=True)
                raise
        handle = Container(self._core, self._lifecycle, record, claim)
        handle.warnings = warnings
        return handle

    def run(self, spec: ContainerSpec, *, pull: str = "missing", progress: Callable[[Progress], None] | None = None) -> Container:
        """Create and start. A container that could not be started stays for inspection, unless the spec says auto_remove."""
        container = self.create(spec, pull=pull, progress=progress, pending=spec.auto_remove)
        try:
            container.start()
        except BaseException:
            if spec.auto_remove:
                with contextlib.suppress(NotFound):
                    container.remove(force=True)
            raise
        return container

    def get(self, name_or_id: str) -> Container:
        """By name, id or unambiguous id prefix. Raises NotFound, InvalidArgument when ambiguous."""
        found = self._core.database.find(name_or_id) if name_or_id else []
        if len(found) > 1:
            raise InvalidArgument(f"multiple containers match the prefix {name_or_id!r}", hint="give more digits of the id")
        settled = self._lifecycle.settled(found[0]) if found else None
        if not settled:
            raise NotFound(f"No such container: {name_or_id}", hint="list them with: nacre ps -a")
        return Container(self._core, self._lifecycle, settled[0])

    def list(self, *, all: bool = False) -> builtins.list[Container]:
        """Newest first; without `all` only running, paused and restarting ones."""
        self._lifecycle.sweep()
        handles = []
        for identifier in self._core.database.all(live=not all):
            settled = self._lifecycle.settled(identifier)
            if settled:
                handle = Container(self._core, self._lifecycle, settled[0])
                if all or handle.state in (State.RUNNING, State.PAUSED, State.RESTARTING):
                    handles.append(handle)
        return handles

    def prune(self, wanted: Callable[[Container], bool] = bool) -> builtins.list[str]:
        """Remove every container that is not running and that `wanted` says yes to; the ids removed."""
        removed = []
        for container in self.list(all=True):
            if container.state in (State.CREATED, State.EXITED, State.DEAD) and wanted(container):
                with contextlib.suppress(Conflict, NotFound):
                    container.remove()
                    removed.append(container.id)
        return removed

    def _insert(self, record: Record, *, named: bool, pending: bool) -> Record:
        """Record it; with mounts to be made it is pending until it is complete, and `create` has not happened yet."""
        for attempt in range(20):
            try:
                with self._core.database.together():
                    self._core.database.add(record, pending=pending or bool(record.spec.mounts))
                    if not record.spec.mounts:
                        self._core.container_event(record, "create")
                return record
            except Conflict:
                if named or attempt == 19:
                    raise
                record = record.replace(name=names.suggest(record.id, attempt + 1))
        raise AssertionError("unreachable")

    def _mounts(self, record: Record, image: Image) -> tuple[BoundMount, ...]:
        unnamed = {mount.target: mount.options[0].removeprefix("name=") for mount in record.mounts}
        return tuple(self._mount(spec, image, record, unnamed.get(spec.target, "")) for spec in record.spec.mounts)

    def _mount(self, spec: MountSpec, image: Image, record: Record, unnamed: str) -> BoundMount:
        if spec.kind == "bind":
            return merge.bind(spec, create="create" in spec.options)
        if spec.kind == "tmpfs":
            return BoundMount(target=spec.target, kind="tmpfs", read_only=spec.read_only, options=spec.options)
        volume = self._core.make_volume(spec.source or unnamed, anonymous=not spec.source)
        options = (f"name={volume.name}", *((MOUNTED,) if volume.options else ()))
        mount = BoundMount(target=spec.target, kind="volume", source=volume.path, read_only=spec.read_only, options=options)
        if "nocopy" not in spec.options:
            made = record.replace(mounts=(mount,))
            try:
                self._lifecycle.use_volumes(made)
                if not os.listdir(volume.path):
                    self._core.volumes.copy_up_from_layers(self._core.layer_mounts(image), spec.target, volume.path)
            finally:
                self._lifecycle.release_volumes(made)
        return mount


def _unnamed_volume(spec: MountSpec) -> BoundMount:
    return BoundMount(target=spec.target, kind="volume", read_only=spec.read_only, options=(f"name={names.new_id()}",))


class Container:
    """One container. `record` is what was last read; verbs re-read it under the container's lock."""

    def __init__(self, core: Core, lifecycle: Lifecycle, record: Record, claim: Lock | None = None) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._claim = claim
        self.record = record
        self.warnings: builtins.list[str] = []

    @property
    def id(self) -> str:
        """64 hex digits."""
        return self.record.id

    @property
    def name(self) -> str:
        """The name, without a slash."""
        return self.record.name

    @property
    def state(self) -> State:
        """What it is doing now, asked of the kernel."""
        if self._running():
            return State.PAUSED if self._paused() else State.RUNNING
        if self.record.removing:
            return State.DEAD
        if self.record.restart_at or (self.record.pid and self.record.spec.restart.name != "no" and self._owed()):
            return State.RESTARTING
        return State.EXITED if self.record.started else State.CREATED

    def _owed(self) -> bool:
        """Whether it will be restarted, as long as its end has not been recorded."""
        from nacre.engine import restart

        exit = self._lifecycle.exit_of(self.id)
        return restart.decide(self.record.replace(exit_code=exit.code if exit else 137), 0.0).restart_at > 0

    def refresh(self) -> Container:
        """Re-read the record. Raises NotFound when it was removed."""
        settled = self._lifecycle.settled(self.id)
        if not settled:
            raise NotFound(f"No such container: {self.name}")
        self.record = settled[0]
        return self

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, *, attach: bool = False, rows: int = 0, columns: int = 0) -> Stream | None:
        """Start it; with `attach`, the stream of its main process from the first byte. Starting a running one does nothing."""
        with self._lifecycle.verb(self.id):
            record, block, active = self._load()
            record = self._lifecycle.settle(record, block, active)
            self.record = record
            if self._lifecycle.alive(self.id):
                return self.attach() if attach else None
            if record.stopped or record.restarts or record.restart_at:  # what its policy counts begins anew
                record = self._lifecycle.renounce(record, active=False).replace(stopped=False, restarts=0, backoff=0)
            stream = self._bring_up(record, block, attach=attach, rows=rows, columns=columns)
            self._unclaim()
        return stream

    def start_again(self) -> None:
        """Start it because its restart policy says so; does nothing unless that is owed. The record says why it failed, if it did."""
        with self._lifecycle.verb(self.id):
            record, block, active = self._load()
            self.record = record = self._lifecycle.settle(record, block, active)
            if record.restart_at and not self._lifecycle.alive(self.id):
                with contextlib.suppress(NacreError):
                    self._bring_up(record, block)

    def _bring_up(self, record: Record, block: int, *, attach: bool = False, rows: int = 0, columns: int = 0) -> Stream | None:
        try:
            self.record, stream = self._lifecycle.start(record, block, attach=attach, rows=rows, columns=columns)
        except BaseException as error:
            code = error.exit_code if isinstance(error, ExecError) else 128
            message = str(error) if isinstance(error, NacreError) else type(error).__name__
            self.record = record.replace(error=message, exit_code=code, restart_at=0.0)
            self._core.database.put(self.record, active=False, pending=record.spec.auto_remove)
            raise
        return stream

    def stop(self, timeout: int | None = None, *, signal: str = "") -> None:
        """Ask it to end (by `signal`, "" = its own), then kill it after `timeout` seconds (None: its own, usually 10; -1 = never)."""
        number = signal_number(signal or self.record.spec.stop_signal or self.record.image_config.stop_signal or "SIGTERM")
        patience = self.record.spec.stop_timeout if timeout is None else timeout
        with self._lifecycle.verb(self.id):
            record, block, active = self._load()
            went_on = bool(record.restart_at)
            if record.spec.restart.name != "no":
                record = self._lifecycle.renounce(record, active=active)
            self.record = record
            if self._running():
                if self._paused():
                    self._pausable().resume(self._sandbox())
                self._core.container_event(record, "kill", signal=str(number))
                self._end(number, patience)
            self.record = self._lifecycle.settle(record, block, active)
        if active or went_on:
            self._core.container_event(self.record, "stop")
        self._auto_remove()

    def kill(self, signal: str = "KILL") -> None:
        """Send a signal to the main process. Raises Conflict when it is not running, InvalidArgument for an unknown signal."""
        number = signal_number(signal)
        if self._running() and self._paused():
            raise Conflict(f"container {self.name} is paused", hint="unpause it before killing it: nacre unpause " + self.name)
        if self.record.spec.restart.name != "no" and self._renounced(number):
            return
        self._require_running()
        self._core.container_event(self.record, "kill", signal=str(number))
        with contextlib.closing(Channel(self._core.layout.sandbox(self.id), custody=number == SIGKILL)) as channel:
            if number == SIGKILL:
                channel.hello()
                ended = channel.end(MAIN, number, timeout=KILL_PATIENCE)
                if ended:
                    self._lifecycle.see_out(self.record, channel)
            else:
                channel.signal(MAIN, number)
                ended = False
        if ended:
            self._lifecycle.finish(self.id)
            self._auto_remove()

    def _renounced(self, number: int) -> bool:
        """A signal that ends it on purpose takes its restarts away, as `stop` does; whether that was all there was to be done."""
        if self._load()[0].stopped:
            return False  # by a `stop` under way, which a kill must not wait for
        waiting = False
        with contextlib.suppress(Conflict), self._lifecycle.verb(self.id, wait=KILL_PATIENCE):
            self.record, _, active = self._load()
            waiting = bool(self.record.restart_at)
            own = self.record.spec.stop_signal or self.record.image_config.stop_signal
            # Docker's rule: with a stop signal of its own, other signals than that and KILL do not mean its end.
            if waiting or number == SIGKILL or not own or number == signal_number(own):
                self.record = self._lifecycle.renounce(self.record, active=active)
        return waiting and not self._lifecycle.alive(self.id)

    def set_restart(self, policy: RestartPolicy) -> None:
        """Give it another restart policy. Raises InvalidArgument."""
        from nacre.engine import restart

        with self._lifecycle.verb(self.id):
            record, _, active = self._load()
            restart.check(policy, auto_remove=record.spec.auto_remove)
            record = record.replace(spec=record.spec.replace(restart=policy))
            if policy.name == "no" and record.restart_at:
                record = self._lifecycle.renounce(record, active=active)
            self._core.database.put(record, active=active, pending=record.removing)
            self.record = record

    def update(self, **changes: Any) -> builtins.list[str]:
        """Change limits, at once when it runs and for its next start; answers with warnings.

        changes: fields of `Resources`; -1 lifts pids, memory_swap and cpu_quota. Raises InvalidArgument, Unsupported, Conflict, HostError.
        """
        from nacre.engine import update

        with self._lifecycle.verb(self.id):
            record, block, active = self._load()
            record = self._lifecycle.settle(record, block, active)
            after = update.merged(record.spec, changes)
            self.record = record
            if running := self._running():
                update.apply(self._sandbox(), after, changes)
            self.record = record.replace(spec=record.spec.replace(resources=update.recorded(after)))
            self._core.database.put(self.record, active=running, pending=record.removing)
        self._core.container_event(self.record, "update")
        return update.warnings(after)

    def restart(self, timeout: int | None = None, *, signal: str = "") -> None:
        """Stop, then start."""
        removing = self.record.spec.auto_remove
        if removing and self._running():
            raise Conflict(f"container {self.name} removes itself when it stops", hint="start a new one instead")
        self.stop(timeout, signal=signal)
        self.start()
        self._core.container_event(self.record, "restart")

    def wait(self, condition: str = "not-running") -> int:
        """Wait for its end; the exit code.

        condition: not-running (or the next end of one that is being restarted), next-exit (also of one that does not run yet) or removed.
        Raises NotFound when it was removed and took its code with it, InvalidArgument.
        """
        if condition not in CONDITIONS:
            raise InvalidArgument(f"invalid condition: {condition!r}", hint=f"one of {', '.join(CONDITIONS)}")
        before = self.record.finished
        while condition == "next-exit" and self.refresh().state in (State.CREATED, State.EXITED) and self.record.finished == before:
            time.sleep(GLANCE)
        code = self._end_of_run()
        while condition == "removed" and (found := self._lifecycle.settled(self.id)):
            code = found[0].exit_code
            time.sleep(GLANCE)
        return code

    def _end_of_run(self) -> int:
        last = self.record.finished
        while True:
            exit = self._await_end()
            finished = self._lifecycle.finish(self.id)
            self.record = finished or self.record
            if exit or not finished or finished.finished != last or self.state not in (State.RUNNING, State.PAUSED, State.RESTARTING):
                break
            # It waits for its restart; or its sandbox is falling apart: nobody answers any more, but its end is not recorded yet.
            time.sleep(0.02)
        self._auto_remove()
        if exit:
            return exit.code
        if finished:
            return finished.exit_code
        raise NotFound(f"No such container: {self.name}")

    def _await_end(self) -> Exit | None:
        """Wait for its main process; None when there is nobody to ask."""
        try:
            with contextlib.closing(Channel(self._core.layout.sandbox(self.id), custody=True)) as channel:
                channel.announce(later=True)
                exit = channel.wait(MAIN)
                self._lifecycle.see_out(self.record, channel)
                return exit
        except (SandboxError, FileNotFoundError):
            return None

    def pause(self) -> None:
        """Stop its time. Raises Conflict unless it is running."""
        self._require_running()
        if self._paused():
            raise Conflict(f"container {self.name} is already paused")
        self._pausable().pause(self._sandbox())
        self._core.container_event(self.record, "pause")

    def unpause(self) -> None:
        """Let it go on. Raises Conflict unless it is paused."""
        if not self._running() or not self._paused():
            raise Conflict(f"container {self.name} is not paused")
        self._pausable().resume(self._sandbox())
        self._core.container_event(self.record, "unpause")

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Delete it; Conflict while it runs. force: kill it first. volumes: its anonymous volumes too (always with auto_remove)."""
        with self._lifecycle.verb(self.id):
            record, block, active = self._load()
            self.record = record = self._lifecycle.settle(record, block, active)
            alive = self._lifecycle.alive(self.id)
            if (alive or record.restart_at) and not force:
                raise Conflict(
                    f"container {self.name} is {'running' if alive else 'restarting'}: stop the container before removing or force remove",
                    hint=f"nacre stop {self.name}, or nacre rm -f {self.name}",
                )
            # From here on it goes, whatever becomes of this process.
            if record.restart_at:
                record = self._lifecycle.renounce(record, active=alive)
            self.record = record = record.replace(removing=True, removing_volumes=volumes)
            self._core.database.put(record, active=alive, pending=True)
            if alive:
                self._kill_now()
                record = self._lifecycle.settle(record, block, True)
            self._lifecycle.remove(record, volumes=volumes)
            self._unclaim()

    def rename(self, name: str) -> None:
        """Give it another name. Raises Conflict when taken."""
        name = names.check(name)
        with self._lifecycle.verb(self.id):
            record, _, active = self._load()
            old, self.record = record.name, record.replace(name=name)
            self._core.database.put(self.record, active=active)
        self._core.container_event(self.record, "rename", oldName=f"/{old}")

    # -- processes -----------------------------------------------------------------------------------------------------

    def exec(
        self,
        args: Sequence[str],
        *,
        env: Iterable[str] = (),
        user: str = "",
        workdir: str = "",
        tty: bool = False,
        stdin: bool = False,
        privileged: bool = False,
        detach: bool = False,
        rows: int = 0,
        columns: int = 0,
    ) -> Stream:
        """Run one more process in it. Raises Conflict unless running, CommandNotFound, CommandNotExecutable."""
        self._require_running()
        if self._paused():
            raise Conflict(f"container {self.name} is paused, unpause the container before exec")
        plan = self._exec_plan(
            args, env=env, user=user, workdir=workdir, tty=tty, stdin=stdin, privileged=privileged, rows=rows, columns=columns
        )
        number, line = names.new_id(), " ".join(args)
        with self._core.database.together():
            for action in ("exec_create", "exec_start"):
                self._core.container_event(self.record, f"{action}: {line}", execID=number)
        return self._spawn(plan.replace(attach=not detach), execution=number)

    def probe(self, args: Sequence[str], timeout: float) -> Stream:
        """Run its health check: as `exec`, but the journal tells only when its health changes.

        Raises TimeoutError when it has not begun after `timeout` seconds.
        """
        self._require_running()
        return self._spawn(self._exec_plan(args).replace(attach=True), timeout=timeout)

    def _exec_plan(
        self,
        args: Sequence[str],
        *,
        env: Iterable[str] = (),
        user: str = "",
        workdir: str = "",
        tty: bool = False,
        stdin: bool = False,
        privileged: bool = False,
        rows: int = 0,
        columns: int = 0,
    ) -> Spawn:
        main = self.record.process
        process = ProcessSpec(
            args=tuple(args),
            env=merge.environment((*main.env, *env), hostname=self._hostname(), tty=tty),
            working_dir=merge.working_dir(workdir) if workdir else main.working_dir,
            user=user or main.user,
            groups=main.groups if not user else (),
            tty=tty,
            open_stdin=stdin,
            privileged=privileged,
            rows=rows,
            columns=columns,
        )
        sandbox = self._sandbox()
        security = self._lifecycle.security(self.record.spec, privileged=privileged)
        return exec_plan(MAIN, process, driver(self.record.spec.isolation).place(sandbox), security)

    def enter(self, argv: Sequence[str], kinds: Sequence[str], *, directory: str = "") -> int:
        """Run a program of this host in namespaces of it (see `nacre.engine.shell`); its exit code, unless it replaces this process."""
        from nacre.engine import shell

        self._require_running()
        return shell.enter(self._core, self.record, argv, kinds, directory=directory)

    def attach(self, *, stdin: bool = True) -> Stream:
        """The streams of the main process from now on. Raises Conflict unless running."""
        self._require_running()
        channel = Channel(self._core.layout.sandbox(self.id), custody=True)
        try:
            channel.hello()
            channel.attach(MAIN, stdin=stdin)
        except BaseException:
            channel.close()
            raise
        self._core.container_event(self.record, "attach")
        return Stream(channel, MAIN, ended=lambda: self._lifecycle.ended(self.id))

    def top(self) -> builtins.list[dict[str, Any]]:
        """Its processes as it sees them: pid, ppid, user id, tty, start and cpu time in seconds, command."""
        code, output, _ = self._builtin("ps").communicate()
        if code:
            raise SandboxError("could not list the container's processes", stage="run")
        ticks = os.sysconf("SC_CLK_TCK")
        rows = []
        for line in output.decode(errors="replace").splitlines():
            pid, ppid, uid, tty, start, cpu, command = line.split(" ", 6)
            rows.append(
                {
                    "pid": int(pid), "ppid": int(ppid), "uid": int(uid), "tty": tty,
                    "start": int(start) / ticks, "cpu": int(cpu) / ticks, "command": command.replace("\0", " ").strip(),
                }
            )  # fmt: skip
        return rows

    def logs(
        self, *, follow: bool = False, since: float | None = None, until: float | None = None, tail: int | None = None
    ) -> Iterator[LogRecord]:
        """What it has written, oldest first. since, until: seconds since the epoch; tail: the last N lines; follow: until it ends."""
        from nacre.isolation.logs import read_logs

        if self.record.spec.log.driver:
            from nacre.engine import logdrivers

            logdrivers.require_readable(self.record.spec.log)
        alive = (lambda: self._running()) if follow else None
        return read_logs(f"{self._core.layout.container(self.id)}/log", alive=alive, since=since, until=until, tail=tail)

    def log_attributes(self) -> dict[str, str]:
        """The labels and variables that its log options name (labels, env, tag): they go with its lines."""
        if not self.record.spec.log.options:
            return {}
        from nacre.engine import logdrivers

        return logdrivers.attributes(self.record)

    def stats(self) -> Stats:
        """One sample of what it uses; zeros when it is not running."""
        if not self._running():
            return Stats(time=time.time())
        sample = driver(self.record.spec.isolation).stats(self._sandbox())
        received, sent = self._core.network.stats(self.record.endpoint) if self.record.endpoint else (0, 0)
        return sample.replace(rx=received, tx=sent)

    def health(self) -> dict[str, Any] | None:
        """Docker's State.Health: Status (starting, healthy, unhealthy), FailingStreak and Log; None when nothing is checked."""
        if not (self.record.spec.health or self.record.image_config.healthcheck):
            return None
        from nacre.engine import health

        if not health.effective(self.record) or not self.record.started:
            return None
        state = health.load(self._core, self.id)
        return state if self._running() else {**state, "Status": health.UNHEALTHY}

    def check_health(self) -> dict[str, Any]:
        """Carry out its health check now: Start, End, ExitCode, Output. Raises InvalidArgument when it has none, Conflict."""
        from nacre.engine import health

        self._require_running()
        return health.run_once(self._core, self)

    def sizes(self) -> tuple[int, int]:
        """Bytes of disk that it has written, and those together with its image's files (which others may share)."""
        rootfs = self.record.rootfs
        own = self._core.rootfs.size(rootfs) if rootfs else 0
        with contextlib.suppress(NotFound):
            return own, own + self._core.images.resolve(self.record.image_id).size
        return own, own

    def ports(self) -> tuple[PortMapping, ...]:
        """Its published ports, as they really are."""
        return self.record.endpoint.ports if self.record.endpoint and self._running() else ()

    def inspect(self) -> dict[str, Any]:
        """Everything known about it, shaped like Docker's."""
        from nacre.engine.inspect import container_json

        running = self._running()
        isolation = driver(self.record.spec.isolation).describe(self._sandbox()) if running else {}
        shown = container_json(self.record, self.state, self._core.layout, isolation)
        if health := self.health():
            shown["State"]["Health"] = health
        return shown

    # -- files ---------------------------------------------------------------------------------------------------------

    def changes(self) -> builtins.list[tuple[str, str]]:
        """What it has changed: ("A" added | "C" changed | "D" deleted, path), by path. Raises SandboxError, HostError."""
        from nacre.engine import changes

        with contextlib.ExitStack() as stack:
            sandbox = None
            if changes.inside(self.record):
                sandbox = self._sandbox() if self._running() else stack.enter_context(self._files_sandbox())
            found = changes.changed(self._core, self.record, sandbox)
        return [(change.kind, f"/{os.fsdecode(change.path)}") for change in found]

    def stat_path(self, path: str) -> dict[str, Any]:
        """Name, size, mode, mtime and linkTarget of a path in it. Raises NotFound."""
        from nacre.engine.archive import stat_line

        with self._files() as run:
            return stat_line(run("stat", path), path, self.name)

    def get_archive(self, path: str) -> TarReader:
        """A tar stream of a path in it (`read(n)`, `close()`). Raises NotFound."""
        from nacre.engine.archive import TarReader

        self.stat_path(path)
        with contextlib.ExitStack() as stack:
            run = stack.enter_context(self._files())
            return TarReader(run("tar-get", path), stack.pop_all().close)

    def put_archive(self, path: str, stream: Any) -> None:
        """Extract a tar stream (`read(n)`) into a directory in it. Raises NotFound, InvalidArgument for an archive that leads outside."""
        from nacre.engine.archive import put_tar

        if not self.stat_path(path)["mode"] & 0o170000 == 0o040000:
            raise InvalidArgument(f"extraction point {path} is not a directory")
        with self._files() as run:
            put_tar(run("tar-put", path, stdin=True), stream)

    @contextlib.contextmanager
    def _files(self) -> Iterator[Callable[..., Stream]]:
        """A way to run stem's file programs inside; a stopped container's files are brought up without its own process."""
        if self._running():
            yield self._builtin
            return
        with self._files_sandbox() as sandbox:
            yield lambda *arguments, stdin=False: self._builtin(*arguments, stdin=stdin, sandbox=sandbox)

    @contextlib.contextmanager
    def _files_sandbox(self) -> Iterator[Sandbox]:
        with self._lifecycle.verb(self.id):
            record, block, active = self._load()
            record = self._lifecycle.settle(record, block, active)
            with self._lifecycle.files_sandbox(record, block) as sandbox:
                yield sandbox

    def _builtin(self, *arguments: str, stdin: bool = False, sandbox: Sandbox | None = None) -> Stream:
        sandbox = sandbox or self._sandbox()
        place = driver(self.record.spec.isolation).place(sandbox)
        return self._spawn(builtin_plan(MAIN, place, arguments, stdin=stdin).replace(attach=True), sandbox.directory)

    # -- below ---------------------------------------------------------------------------------------------------------

    def _spawn(self, plan: Spawn, directory: str = "", *, execution: str = "", timeout: float | None = None) -> Stream:
        channel = Channel(directory or self._core.layout.sandbox(self.id))
        try:
            proc, _ = channel.spawn(plan, timeout=timeout)
        except BaseException:
            channel.close()
            raise
        if not execution:
            return Stream(channel, proc)

        def died() -> str:
            with contextlib.suppress(NacreError):
                self._core.container_event(self.record, "exec_die", execID=execution, exitCode=str(stream.exit_code))
            return ""

        stream = Stream(channel, proc, ended=died)
        return stream

    def _load(self) -> tuple[Record, int, bool]:
        found = self._lifecycle.load(self.id)
        if not found:
            raise NotFound(f"No such container: {self.name}")
        return found

    def _hostname(self) -> str:
        return hostname(self.record.spec, self.id)

    def _sandbox(self) -> Sandbox:
        found = self._load()
        return self._lifecycle.sandbox(found[0], found[1])

    def _ended(self) -> bool:
        return self._lifecycle.exit_of(self.id) is not None

    def _running(self) -> bool:
        if not self._lifecycle.alive(self.id) or self._ended():
            return False
        if not self.record.main:
            # Perhaps another caller has started it since the record was read, or is about to.
            found = self._lifecycle.load(self.id)
            self.record = found[0] if found else self.record
        return bool(self.record.main)

    def _unclaim(self) -> None:
        if self._claim:
            self._lifecycle.unclaim(self.id, self._claim)
            self._claim = None

    def _require_running(self) -> None:
        if not self._running():
            if self.record.restart_at:
                raise Conflict(f"container {self.name} is restarting, wait until it is running", hint=f"nacre ps; nacre logs {self.name}")
            raise Conflict(f"container {self.name} is not running", hint=f"start it: nacre start {self.name}")
        self.record = self._load()[0]

    def _paused(self) -> bool:
        level = driver(self.record.spec.isolation)
        if not isinstance(level, Pausable):
            return False
        with contextlib.suppress(NacreError, OSError):
            return level.paused(self._sandbox())
        return False

    def _pausable(self) -> Pausable:
        level = driver(self.record.spec.isolation)
        if not isinstance(level, Pausable):
            raise Unsupported(f"isolation level {self.record.spec.isolation} cannot pause")
        return level

    def _end(self, number: int, patience: int) -> None:
        """Signal the main process and wait for it; SIGKILL when it takes too long. The verb lock is held."""
        with contextlib.suppress(SandboxGone), contextlib.closing(Channel(self._core.layout.sandbox(self.id), custody=True)) as channel:
            channel.hello()
            if channel.end(MAIN, number, timeout=None if patience < 0 else float(patience)):
                self._lifecycle.see_out(self.record, channel)
                return
        self._kill_now()

    def _kill_now(self) -> None:
        if self._paused():
            with contextlib.suppress(NacreError):
                self._pausable().resume(self._sandbox())
        with contextlib.suppress(SandboxError), contextlib.closing(Channel(self._core.layout.sandbox(self.id), custody=True)) as channel:
            channel.hello(timeout=KILL_PATIENCE)
            if channel.end(MAIN, SIGKILL, timeout=KILL_PATIENCE):
                self._lifecycle.see_out(self.record, channel)
        if self._lifecycle.alive(self.id) and not self._ended():
            self._lifecycle.kill_stem(self.id)

    def _auto_remove(self) -> None:
        if self.record.spec.auto_remove and not self._lifecycle.alive(self.id):
            with contextlib.suppress(NotFound, Conflict):
                self.remove()


__all__ = ["Container", "Containers"]
