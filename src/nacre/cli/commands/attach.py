"""`nacre attach`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacre.cli import terminal
from nacre.cli.context import Context, is_terminal, window
from nacre.cli.flags import Arguments, Command, Flag
from nacre.errors import Conflict, InvalidArgument
from nacre.model.container import State

if TYPE_CHECKING:
    from nacre.engine import Container


def run(ctx: Context, args: Arguments) -> int:
    """`nacre attach`."""
    container = ctx.engine.containers.get(args.rest[0])
    state = container.state
    if state is not State.RUNNING:
        what = {State.PAUSED: "a paused container, unpause it first"}.get(state, "a stopped container, start it first")
        raise Conflict(f"cannot attach to {what}", hint=f"nacre {'unpause' if state is State.PAUSED else 'start'} {container.name}")
    return attach(ctx, container, interactive=not args.no_stdin, proxy=args.sig_proxy, keys=args.detach_keys)


def attach(ctx: Context, container: Container, *, interactive: bool, proxy: bool, keys: str) -> int:
    """Attaches the terminal to a running container; its exit code, or 0 after the detach keys."""
    spec = container.record.spec
    interactive = interactive and spec.open_stdin
    if interactive and spec.tty and not is_terminal(0):
        raise InvalidArgument("the input device is not a TTY", hint="attach from a terminal, or with --no-stdin")
    watched = terminal.parse_keys(keys or terminal.DETACH_KEYS)
    stream = container.attach(stdin=interactive)
    if spec.tty:
        stream.resize(*window(0, 1))
    pump = terminal.Pump(stream, tty=spec.tty, interactive=interactive, keys=watched, proxy=proxy and not spec.tty)
    code = terminal.follow(pump, ctx.err)
    ctx.mourn(stream.error)
    return code


COMMANDS = {
    "attach": Command(
        run,
        "CONTAINER",
        (
            Flag("detach-keys", "Keys that detach from the container (default ctrl-p,ctrl-q)", "string"),
            Flag("no-stdin", "Do not connect standard input"),
            Flag("sig-proxy", "Pass signals on to the container", default=True),
        ),
        least=1,
        most=1,
        complete="running",
        examples=(("attach web", "See what the container writes from now on; Ctrl-P Ctrl-Q leaves it running"),),
    ),
}
