"""`nacre healthcheck run`."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command


def run(ctx: Context, args: Arguments) -> int:
    """`nacre healthcheck run`: 0 when the check succeeds, 1 when it fails."""
    result = ctx.engine.containers.get(args.rest[0]).check_health()
    if result["ExitCode"] == 0:
        return 0
    ctx.out("unhealthy")
    if output := result["Output"].strip():
        ctx.err(output)
    return 1


COMMANDS = {
    "healthcheck run": Command(
        run,
        "CONTAINER",
        least=1,
        most=1,
        complete="running",
        about="The result counts like one of the container's own checks. The exit code is 0 when the check succeeds, 1 when it fails.",
        examples=(("healthcheck run web", "Is it well, now?"),),
    ),
}
