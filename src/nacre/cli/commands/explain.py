"""`nacre explain`."""

from __future__ import annotations

from nacre.cli.commands.run import COMMANDS as RUN
from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command
from nacre.cli.spec import container_spec


def run(ctx: Context, args: Arguments) -> int:
    """`nacre explain`."""
    ctx.out(ctx.engine.explain(container_spec(args, args.rest[0], args.rest[1:], detached=args.detach)))
    return 0


COMMANDS = {
    "explain": Command(
        run,
        "IMAGE [COMMAND] [ARG...]",
        RUN["run"].flags,
        least=1,
        most=None,
        interspersed=False,
        complete="images",
        unsupported=RUN["run"].unsupported,
        about="Takes the arguments of run and prints, one operation per line, what would be carried out. Nothing is changed.",
        examples=(("explain --isolation vm -v data:/data ubuntu", "What would `nacre run` do with these arguments?"),),
    ),
}
