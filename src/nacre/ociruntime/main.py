"""The command line: global flags, the table of verbs, errors. Each verb loads when it is called."""

from __future__ import annotations

import gc
import os
import sys

from nacre.errors import InvalidArgument, NacreError
from nacre.ociruntime import options
from nacre.ociruntime.log import Log
from nacre.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine.bundles import Runtime
    from nacre.model.bundle import Bundle
    from nacre.ociruntime.options import Flags

GLOBAL = {
    "root": "s", "log": "s", "log-format": "s", "debug": "b", "systemd-cgroup": "b", "rootless": "s", "criu": "s", "help,h": "b",
    "version,v": "b",
}  # fmt: skip

# Called by this name, containers get virtual machines unless their bundle says otherwise.
VIRTUAL = "nacre-oci-vm"

# Verb -> (module, summary). The function is do_<verb>, its flags are in TABLE_<VERB>.
VERBS = {
    "checkpoint": ("criu", "write the state of a running container to a directory (needs CRIU)"),
    "create": ("birth", "make a container from a bundle; it waits for start"),
    "delete": ("life", "remove what a stopped container has left"),
    "events": ("watch", "print numbers and out-of-memory events"),
    "exec": ("birth", "run another process in a container"),
    "features": ("features", "print what this runtime supports, as JSON"),
    "kill": ("life", "send a signal to a container"),
    "list": ("watch", "list containers"),
    "pause": ("life", "stop all processes of a container"),
    "ps": ("watch", "show the processes of a container"),
    "restore": ("criu", "continue a container from a checkpoint (needs CRIU)"),
    "resume": ("life", "let the processes of a paused container go on"),
    "run": ("birth", "create and start a container"),
    "spec": ("template", "write a config.json to start from"),
    "start": ("life", "have a created container run its program"),
    "state": ("watch", "print the state of a container as JSON"),
    "update": ("limits", "change the limits of a container"),
}


class Call:
    """What a verb needs: the runtime, the log, the global flags."""

    def __init__(self, flags: Flags) -> None:
        style = flags.text("log-format") or "text"
        if style not in ("text", "json"):
            raise InvalidArgument(f'invalid log-format "{style}"', hint="text or json")
        self.flags = flags
        self.log = Log(flags.text("log"), style, debug=flags.on("debug"))
        self.root = os.path.abspath(flags.text("root") or default_root())

    def runtime(self) -> Runtime:
        """The containers below --root."""
        from nacre.engine import bundles

        def parsed(data: bytes) -> Bundle:
            from nacre.ociruntime import config

            return config.bundle(data)

        virtual = os.path.basename(sys.argv[0]) == VIRTUAL
        return bundles.Runtime(
            self.root, parsed, systemd=self.flags.on("systemd-cgroup"), virtual=virtual, warn=self.log.warning
        )  # fmt: skip


def default_root() -> str:
    """Where records are kept: below /run for root, in the user's own run-time directory otherwise."""
    if os.geteuid() == 0:
        return "/run/nacre-oci"
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/tmp/nacre-oci-{os.geteuid()}'}/nacre-oci"


def main(arguments: list[str]) -> int:
    """Run a command line (without the program's name); returns the exit code."""
    log = Log()
    try:
        flags, rest = options.parse(arguments, GLOBAL, "nacre-oci")
        if flags.on("version"):
            sys.stdout.write(version())
            return 0
        if flags.on("help") or not rest or rest[0] in ("help", "h"):
            sys.stdout.write(usage())
            return 0
        call = Call(flags)
        log = call.log
        return dispatch(call, rest[0], rest[1:])
    except NacreError as error:
        log.error(f"{error.message} ({error.hint})" if error.hint else error.message)
        if error.details:
            log.debug(error.details)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        log.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except Exception as error:  # engines read the log: a mistake of ours must not leave it empty
        import traceback

        log.error(f"internal error: {type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


def dispatch(call: Call, verb: str, arguments: list[str]) -> int:
    """Run one verb. Raises NacreError."""
    found = VERBS.get(verb)
    if found is None:
        raise InvalidArgument(f"no help topic for '{verb}'", hint="nacre-oci --help lists the commands")
    module = __import__(f"nacre.ociruntime.{found[0]}", fromlist=("",))
    table: dict[str, str] = getattr(module, f"TABLE_{verb.upper()}")
    flags, operands = options.parse(arguments, {**table, "help,h": "b"}, verb)
    if flags.on("help"):
        sys.stdout.write(f"nacre-oci {verb}: {found[1]}\n\n{options.usage(table)}")
        return 0
    code: int = getattr(module, f"do_{verb}")(call, flags, operands)
    return code


def version() -> str:
    """The lines that engines read."""
    from nacre.model.bundle import VERSION as SPECIFICATION

    return f"nacre-oci version {VERSION}\nspec: {SPECIFICATION}\npython: {sys.version.split()[0]}\n"


def usage() -> str:
    """The overview."""
    verbs = "".join(f"  {name:<11} {summary}\n" for name, (_module, summary) in VERBS.items())
    return f"nacre-oci [GLOBAL FLAGS] COMMAND [FLAGS] [ARGUMENTS]\n\n{verbs}\nGlobal flags:\n{options.usage(GLOBAL)}"


def one(operands: list[str], verb: str) -> str:
    """The id that a verb takes. Raises InvalidArgument."""
    if len(operands) != 1:
        raise InvalidArgument(f'nacre-oci: "{verb}" requires exactly 1 argument(s)')
    return operands[0]


def program() -> None:
    """The start of the program."""
    gc.disable()  # it ends before there is anything worth collecting
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
    # Nothing is left to tidy up, and taking the interpreter apart takes a third of its start.
    os._exit(code)
