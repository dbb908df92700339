"""create, run, exec: the verbs that make processes."""

from __future__ import annotations

import os

from nacre.engine.bundles import Wishes
from nacre.errors import InvalidArgument, NacreError, Unsupported
from nacre.model.bundle import CAPABILITY_SETS
from nacre.ociruntime import config
from nacre.ociruntime.main import one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine.bundles import Runtime
    from nacre.model.bundle import Bundle, Process
    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

TABLE_CREATE = {
    "bundle,b": "s", "console-socket": "s", "pidfd-socket": "s", "pid-file": "s", "no-pivot": "b", "no-new-keyring": "b",
    "preserve-fds": "i",
}  # fmt: skip
TABLE_RUN = {**TABLE_CREATE, "detach,d": "b", "keep": "b", "no-subreaper": "b"}
TABLE_EXEC = {
    "console-socket": "s", "pidfd-socket": "s", "cwd": "s", "env,e": "l", "tty,t": "b", "user,u": "s", "additional-gids,g": "l",
    "process,p": "s",
    "detach,d": "b", "pid-file": "s", "process-label": "s", "apparmor": "s", "no-new-privs": "b", "cap,c": "l", "preserve-fds": "i",
    "cgroup": "l", "ignore-paused": "b", "no-subreaper": "b",
}  # fmt: skip
_PASSED_MAX = 96
_EXEC_FAILED = 255  # as runc: no code that a program would often use


def do_create(call: Call, flags: Flags, operands: list[str]) -> int:
    """Make a container that waits for `start`."""
    _make(call, flags, one(operands, "create"), start=False)
    return 0


def do_run(call: Call, flags: Flags, operands: list[str]) -> int:
    """Make a container and run its program, in the foreground unless --detach is given."""
    name, runtime = one(operands, "run"), call.runtime()
    detach = flags.on("detach")
    master = [-1]
    pid = _make(call, flags, name, start=True, runtime=runtime, master=None if detach else master)
    if detach:
        return 0
    from nacre.ociruntime import foreground

    try:
        return foreground.wait(pid, master[0])
    finally:
        if not flags.on("keep"):
            runtime.delete(name, force=True)


def _make(call: Call, flags: Flags, name: str, *, start: bool, runtime: Runtime | None = None, master: list[int] | None = None) -> int:
    directory = os.path.realpath(flags.text("bundle") or ".")
    console = flags.text("console-socket")
    runtime = runtime or call.runtime()

    def terminal(fd: int) -> None:
        if console:
            runtime.send_terminal(console, fd)
        elif master is not None:
            master[0] = fd

    wishes = Wishes(
        no_pivot=flags.on("no-pivot"),
        keyring="" if flags.on("no-new-keyring") else f"_ses.{name}",
        passed=_passed(flags),
        cache=f"{call.root}/.seccomp",
    )
    wanted = terminal if console or master is not None else None
    outcome = runtime.create(name, directory, wishes, start=start, terminal=wanted)
    try:
        _report_pid(runtime, flags, outcome.pid)
    except NacreError:
        runtime.delete(name, force=True)
        raise
    return outcome.pid


def _passed(flags: Flags) -> int:
    """How many descriptors from 3 on belong to the container: --preserve-fds, and those of socket activation (sd_listen_fds(3))."""
    count = flags.number("preserve-fds")
    if not 0 <= count <= _PASSED_MAX:
        raise InvalidArgument(f"--preserve-fds: {count} is not between 0 and {_PASSED_MAX}")
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise InvalidArgument(f"--preserve-fds: descriptor {fd} is not open") from None
    return count


def _report_pid(runtime: Runtime, flags: Flags, pid: int) -> None:
    if flags.text("pidfd-socket"):
        runtime.send_pidfd(flags.text("pidfd-socket"), pid)
    path = flags.text("pid-file")
    if not path:
        return
    directory, name = os.path.split(os.path.abspath(path))
    temporary = f"{directory}/.{name}"
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(pid))
        os.rename(temporary, path)
    except OSError as error:
        raise InvalidArgument(f"--pid-file: {path}: {(os.strerror(error.errno or 0)).lower()}") from error


def do_exec(call: Call, flags: Flags, operands: list[str]) -> int:
    """Run another process in a container."""
    if not operands:
        raise InvalidArgument('nacre-oci: "exec" requires a minimum of 1 argument')
    name, arguments = operands[0], operands[1:]
    if not arguments and not flags.text("process"):
        raise InvalidArgument("process args cannot be empty", hint="nacre-oci exec ID COMMAND, or --process FILE")
    if flags.texts("cgroup"):
        raise Unsupported("--cgroup: a process of a container joins the container's own control group")
    runtime, console, detach = call.runtime(), flags.text("console-socket"), flags.on("detach")
    tty: list[bool] = []

    def choose(bundle: Bundle) -> Process:
        process = _process(bundle, flags, arguments)
        tty.append(process.terminal)
        if process.terminal and detach and not console:
            raise InvalidArgument("cannot allocate tty if runc will detach without setting console socket")
        return process

    wishes = Wishes(keyring="", passed=_passed(flags), cache=f"{call.root}/.seccomp")
    try:
        outcome = runtime.exec(name, choose, wishes, ignore_paused=flags.on("ignore-paused"))
    except NacreError as error:
        call.log.error(f"exec failed: {error}")
        return _EXEC_FAILED
    if outcome.master >= 0 and console:
        runtime.send_terminal(console, outcome.master)
        outcome.master = -1
    _report_pid(runtime, flags, outcome.pid)
    if detach:
        return 0
    from nacre.ociruntime import foreground

    return foreground.wait(outcome.pid, outcome.master)


def _process(bundle: Bundle, flags: Flags, arguments: list[str]) -> Process:
    """The process to run: a whole one from --process, or the container's own, changed by flags."""
    path = flags.text("process")
    if path:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise InvalidArgument(f"--process: {path}: {(os.strerror(error.errno or 0)).lower()}") from error
        return config.process(config.Fields(config.load(data, path), ""))
    if bundle.process is None:
        raise InvalidArgument("process: the container's configuration has none", hint="nacre-oci exec --process FILE")
    process = bundle.process.replace(args=tuple(arguments), terminal=flags.on("tty"))
    if flags.text("cwd"):
        process = process.replace(cwd=flags.text("cwd"))
    if flags.text("apparmor"):
        process = process.replace(apparmor=flags.text("apparmor"))
    if flags.text("process-label"):
        process = process.replace(selinux=flags.text("process-label"))
    if flags.given("no-new-privs"):
        process = process.replace(no_new_privileges=flags.on("no-new-privs"))
    if flags.texts("cap"):
        held = process.capabilities
        added = tuple(flags.texts("cap"))
        process = process.replace(
            capabilities={name: (*held.get(name, ()), *(() if name == "ambient" else added)) for name in CAPABILITY_SETS}
        )
    return _user(process.replace(env=(*process.env, *flags.texts("env"))), flags)


def _user(process: Process, flags: Flags) -> Process:
    user = flags.text("user")
    numbers = [*user.split(":"), *flags.texts("additional-gids")] if user else flags.texts("additional-gids")
    if not all(word.isascii() and word.isdigit() for word in numbers) or user.count(":") > 1:
        raise InvalidArgument(f"--user: {user}: not UID[:GID] in numbers", hint="names are the engine's business")
    if user:
        uid, _, gid = user.partition(":")
        process = process.replace(uid=int(uid), gid=int(gid) if gid else process.gid)
    groups = tuple(int(word) for word in flags.texts("additional-gids"))
    return process.replace(groups=(*process.groups, *groups))
