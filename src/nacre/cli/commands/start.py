"""`nacre start`."""

from __future__ import annotations

from nacre.cli.context import Context, is_terminal, window
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine import Container


def run(ctx: Context, args: Arguments) -> int:
    """`nacre start`."""
    if not (args.attach or args.interactive):
        return ctx.each(args.rest, lambda name: _start(ctx.engine.containers.get(name), name))
    if len(args.rest) > 1:
        raise UsageError("you cannot start and attach multiple containers at once")
    return _attached(ctx, args, ctx.engine.containers.get(args.rest[0]))


def _start(container: Container, name: str) -> str:
    container.start()
    return name


def _attached(ctx: Context, args: Arguments, container: Container) -> int:
    from nacre.cli import terminal

    spec = container.record.spec
    interactive = args.interactive and spec.open_stdin
    if interactive and spec.tty and not is_terminal(0):
        raise InvalidArgument("the input device is not a TTY", hint="leave out -i when the input is not a terminal")
    keys = terminal.parse_keys(args.detach_keys or terminal.DETACH_KEYS)
    rows, columns = window(0, 1) if spec.tty else (0, 0)
    stream = container.start(attach=True, rows=rows, columns=columns)
    assert stream is not None
    pump = terminal.Pump(stream, tty=spec.tty, interactive=interactive, keys=keys, proxy=args.sig_proxy)
    code = terminal.follow(pump, ctx.err)
    ctx.mourn(stream.error)
    return code


COMMANDS = {
    "start": Command(
        run,
        "CONTAINER [CONTAINER...]",
        (
            Flag("attach", "Show the output and pass signals on", short="a"),
            Flag("detach-keys", "Keys that detach from the container (default ctrl-p,ctrl-q)", "string"),
            Flag("interactive", "Connect standard input too", short="i"),
            Flag("sig-proxy", "Pass signals on to the container", default=True),
        ),
        least=1,
        most=None,
        complete="stopped",
        examples=(("start web", "Start it again, with its files as they were"), ("start -ai box", "Start it and use it")),
    ),
}
