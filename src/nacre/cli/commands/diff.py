"""`nacre diff`."""

from __future__ import annotations

from nacre.cli.context import Context, printable
from nacre.cli.flags import Arguments, Command


def run(ctx: Context, args: Arguments) -> int:
    """`nacre diff`."""
    for kind, path in ctx.engine.containers.get(args.rest[0]).changes():
        ctx.out(f"{kind} {printable(path)}")
    return 0


COMMANDS = {
    "diff": Command(
        run,
        "CONTAINER",
        least=1,
        most=1,
        complete="containers",
        about="A: added, C: changed, D: deleted. A directory counts as changed when something in it has.",
        examples=(("diff web", "What it has written to its root file system"),),
    ),
}
