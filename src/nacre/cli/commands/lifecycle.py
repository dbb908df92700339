"""The verbs over one or more containers that answer with their names: stop, kill, restart, rm, pause, unpause, rename, wait."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag
from nacre.errors import NotFound


def stop(ctx: Context, args: Arguments) -> int:
    """`nacre stop`."""

    def one(name: str) -> str:
        ctx.engine.containers.get(name).stop(args.timeout if args.given("timeout") else None, signal=args.signal)
        return name

    return ctx.each(args.rest, one)


def restart(ctx: Context, args: Arguments) -> int:
    """`nacre restart`."""

    def one(name: str) -> str:
        ctx.engine.containers.get(name).restart(args.timeout if args.given("timeout") else None, signal=args.signal)
        return name

    return ctx.each(args.rest, one)


def kill(ctx: Context, args: Arguments) -> int:
    """`nacre kill`."""

    def one(name: str) -> str:
        ctx.engine.containers.get(name).kill(args.signal)
        return name

    return ctx.each(args.rest, one)


def remove(ctx: Context, args: Arguments) -> int:
    """`nacre rm`."""

    def one(name: str) -> str | None:
        try:
            ctx.engine.containers.get(name).remove(force=args.force, volumes=args.volumes)
        except NotFound:
            if not args.force:
                raise
            return None
        return name

    return ctx.each(args.rest, one)


def pause(ctx: Context, args: Arguments) -> int:
    """`nacre pause`."""

    def one(name: str) -> str:
        ctx.engine.containers.get(name).pause()
        return name

    return ctx.each(args.rest, one)


def unpause(ctx: Context, args: Arguments) -> int:
    """`nacre unpause`."""

    def one(name: str) -> str:
        ctx.engine.containers.get(name).unpause()
        return name

    return ctx.each(args.rest, one)


def rename(ctx: Context, args: Arguments) -> int:
    """`nacre rename`."""
    ctx.engine.containers.get(args.rest[0]).rename(args.rest[1])
    return 0


def wait(ctx: Context, args: Arguments) -> int:
    """`nacre wait`."""
    return ctx.each(args.rest, lambda name: str(ctx.engine.containers.get(name).wait(args.condition)))


_PATIENCE = Flag("timeout", "Seconds to wait before killing it (-1 = as long as it takes)", "int", short="t", aliases=("time",))
_SIGNAL = Flag("signal", "Signal that asks it to end, instead of its own stop signal", "string", short="s")

COMMANDS = {
    "stop": Command(
        stop,
        "CONTAINER [CONTAINER...]",
        (_SIGNAL, _PATIENCE),
        least=1,
        most=None,
        complete="running",
        examples=(("stop web", "Ask it to end; kill it after ten seconds"), ("stop -t 60 db cache", "Give two of them a minute")),
    ),
    "restart": Command(
        restart,
        "CONTAINER [CONTAINER...]",
        (_SIGNAL, _PATIENCE),
        least=1,
        most=None,
        complete="containers",
    ),
    "kill": Command(
        kill,
        "CONTAINER [CONTAINER...]",
        (Flag("signal", "Signal to send, by name or number", "string", short="s", default="KILL"),),
        least=1,
        most=None,
        complete="running",
        examples=(("kill web", "End it at once"), ("kill -s HUP web", "Have it read its configuration again")),
    ),
    "rm": Command(
        remove,
        "CONTAINER [CONTAINER...]",
        (
            Flag("force", "Kill it first if it runs; a missing one is no error", short="f"),
            Flag("volumes", "Remove its anonymous volumes too", short="v"),
        ),
        least=1,
        most=None,
        complete="containers",
        examples=(("rm -f web", "Remove a container, running or not"),),
    ),
    "pause": Command(pause, "CONTAINER [CONTAINER...]", least=1, most=None, complete="running"),
    "unpause": Command(unpause, "CONTAINER [CONTAINER...]", least=1, most=None, complete="running"),
    "rename": Command(rename, "CONTAINER NEW_NAME", least=2, most=2, complete="containers"),
    "wait": Command(
        wait,
        "CONTAINER [CONTAINER...]",
        (Flag("condition", "What to wait for", "string", choices=("not-running", "next-exit", "removed"), default="not-running"),),
        least=1,
        most=None,
        complete="containers",
        examples=(("wait job", "Print the exit code of a container once it has ended"),),
    ),
}
