"""The command line. `main` finds the command, imports its module, and turns what is raised into a line and an exit code.

Exit codes are Docker's: the container's own for run, exec and start --attach, 127 and 126 for a command that is not there or not
executable, 125 when Nacre failed, 1 when a command over several objects failed for one of them.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable

from nacre.cli import registry
from nacre.errors import NacreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.cli.context import Context

# What a shell reports for a program that SIGPIPE or SIGINT ended.
_BROKEN_PIPE = 141
_INTERRUPTED = 130
# Objects made before the collector looks for cycles: more than a short command makes, so that only long ones pay for it.
_COLLECT_AFTER = 100_000


def main(argv: list[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code. Never raises."""
    from nacre.cli.context import Context

    ctx = Context()
    return _perform(ctx, sys.argv[1:] if argv is None else list(argv), finish=ctx.close)


def program() -> None:
    """The program `nacre`: `main`, and then the end of the process without taking the interpreter apart first.

    Nor is the engine closed: for its database that is a kill like any other, and moving its log would take milliseconds.
    """
    gc.set_threshold(_COLLECT_AFTER)
    from nacre.cli.context import Context

    ctx = Context()
    code = _perform(ctx, sys.argv[1:])
    os._exit(code)


def _perform(ctx: Context, words: list[str], *, finish: Callable[[], None] | None = None) -> int:
    """Carries out one command line, then calls `finish`."""
    if words[:1] == ["__complete"]:
        from nacre.cli import complete

        return complete.main(words[1:])
    _prepare_streams()
    try:
        try:
            code = _dispatch(ctx, words)
        finally:
            if finish:
                finish()
        sys.stdout.flush()
    except NacreError as error:
        _quietly(ctx.report, error)
        code = error.exit_code
    except BrokenPipeError:
        code = _BROKEN_PIPE
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        _quietly(_internal, ctx, error)
        code = 125
    _discard_output()
    return code


def _prepare_streams() -> None:
    """Standard streams that are closed or narrow-minded must not turn into tracebacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (lives as long as the process)
        elif hasattr(stream, "reconfigure") and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="surrogateescape")


def _dispatch(ctx: Context, words: list[str]) -> int:
    index = 0
    while index < len(words) and words[index].startswith("-") and len(words[index]) > 1:
        # A value that is a word of its own belongs to the flag before it.
        index += 2 if words[index] in ("--root", "--run-root", "--storage-driver") else 1
    if index or not words:
        code = _global_flags(ctx, words[:index])
        if code is not None:
            return code
    if index >= len(words):
        from nacre.cli import help

        ctx.out(help.overview())
        return 0
    return _command(ctx, words[index:])


def _global_flags(ctx: Context, words: list[str]) -> int | None:
    """Reads the options before the command into the context; an exit code when they leave nothing to do."""
    from nacre.cli import help
    from nacre.cli.context import Context
    from nacre.cli.flags import Command

    arguments = Command(lambda _ctx, _arguments: 0, flags=help.GLOBAL_FLAGS).parse("", words)
    if arguments is None:
        ctx.out(help.overview())
        return 0
    if arguments.version:
        from nacre.cli.commands.system import short_version

        ctx.out(short_version())
        return 0
    Context.__init__(ctx, arguments.root or None, arguments.run_root or None, arguments.storage_driver or None, debug=arguments.debug)
    return None


def _command(ctx: Context, words: list[str]) -> int:
    name, rest = registry.resolve(words)
    if name == "help" or words[0] == "help":
        return _command(ctx, [*words[1:], "--help"]) if words[1:] else _dispatch(ctx, ["--help"])
    if name in registry.GROUPS:
        from nacre.cli import help

        ctx.out(help.group(name))
        return 0
    if not name:
        from nacre.cli.unknown import unknown_command

        raise unknown_command(words)
    chosen = registry.load(name)
    arguments = chosen.parse(name, rest)
    if arguments is None:
        from nacre.cli import help

        ctx.out(help.command(name, chosen))
        return 0
    return chosen.run(ctx, arguments)


def _internal(ctx: Context, error: Exception) -> None:
    """A failure that no one foresaw: still one line, and the way to the evidence."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        ctx.err("nacre: the output could not be written: no space left on the device")
        return
    if ctx.debug:
        import traceback

        ctx.err("".join(traceback.format_exception(error)).rstrip())
    ctx.err(f"nacre: internal error: {type(error).__name__}: {error}")
    if not ctx.debug:
        ctx.err("  Run the same command with 'nacre --debug ...' and report what it prints.")


def _quietly(action: Callable[..., None], *arguments: object) -> None:
    """Says something to a terminal that may be gone."""
    try:
        action(*arguments)
        sys.stderr.flush()
    except OSError:
        pass


def _discard_output() -> None:
    """What cannot be delivered any more must not be tried again (and complained about) at interpreter exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with open(os.devnull, "w") as sink:
                os.dup2(sink.fileno(), stream.fileno())
