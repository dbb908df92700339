"""`nacre exec`."""

from __future__ import annotations

from nacre.cli.context import Context, is_terminal, window
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.spec import ENV_FLAGS, environment
from nacre.errors import InvalidArgument


def run(ctx: Context, args: Arguments) -> int:
    """`nacre exec`."""
    if args.detach and args.detach_keys:
        raise UsageError("Conflicting options: -d and --detach-keys")
    attached = not args.detach
    interactive = args.interactive and attached
    if interactive and args.tty and not is_terminal(0):
        raise InvalidArgument("the input device is not a TTY", hint="leave out -t when the input is not a terminal")
    container = ctx.engine.containers.get(args.rest[0])
    rows, columns = window(0, 1) if args.tty and attached else (0, 0)
    stream = container.exec(
        args.rest[1:],
        env=environment(args.env, args.env_file),
        user=args.user,
        workdir=args.workdir,
        tty=args.tty,
        stdin=interactive,
        privileged=args.privileged,
        detach=args.detach,
        rows=rows,
        columns=columns,
    )
    if args.detach:
        stream.close()
        return 0
    from nacre.cli import terminal

    keys = terminal.parse_keys(args.detach_keys or terminal.DETACH_KEYS)
    return terminal.follow(terminal.Pump(stream, tty=args.tty, interactive=interactive, keys=keys), ctx.err)


COMMANDS = {
    "exec": Command(
        run,
        "CONTAINER COMMAND [ARG...]",
        (
            *ENV_FLAGS,
            Flag("detach", "Do not wait for the command", short="d"),
            Flag("detach-keys", "Keys that detach from the command (default ctrl-p,ctrl-q)", "string"),
            Flag("interactive", "Keep standard input open", short="i"),
            Flag("privileged", "Give the command all capabilities"),
            Flag("tty", "Give the command a terminal", short="t"),
            Flag("user", "User, and group, by name or number (user[:group])", "string", short="u"),
            Flag("workdir", "Working directory inside the container", "string", short="w"),
        ),
        least=2,
        most=None,
        interspersed=False,
        complete="running",
        about="The exit code is that of the command.",
        examples=(
            ("exec web ls /etc", "Run a command"),
            ("exec -it web sh", "A shell in a running container, at any isolation level"),
        ),
    ),
}
