"""`nacre update`."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.lifeflags import restart_policy
from nacre.cli.resources import changes
from nacre.cli.spec import RESOURCE_FLAGS


def update(ctx: Context, args: Arguments) -> int:
    """`nacre update`."""
    changed = changes(args)
    policy = restart_policy(args.restart) if args.given("restart") else None
    if not changed and policy is None:
        raise UsageError("you must provide one or more flags when using this command")

    def one(name: str) -> str:
        container = ctx.engine.containers.get(name)
        if changed:
            for warning in container.update(**changed):
                ctx.err(f"WARNING: {warning}")
        if policy is not None:
            container.set_restart(policy)
        return name

    return ctx.each(args.rest, one)


COMMANDS = {
    "update": Command(
        update,
        "CONTAINER [CONTAINER...]",
        (*RESOURCE_FLAGS, Flag("restart", "When to start it again: no, on-failure[:N], always or unless-stopped", "string")),
        least=1,
        most=None,
        complete="containers",
        examples=(
            ("update --memory 1g --cpus 1.5 web", "Change limits of a running container, and of its next start"),
            ("update --pids-limit -1 $(nacre ps -q)", "Lift the limit of processes of all that run"),
        ),
    ),
}
