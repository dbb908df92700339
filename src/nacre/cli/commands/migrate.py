"""`nacre system migrate`."""

from __future__ import annotations

import os

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag
from nacre.errors import Conflict


def migrate(ctx: Context, args: Arguments) -> int:
    """`nacre system migrate`."""
    if os.geteuid() == 0:
        raise Conflict("root's containers are in no user namespace: there is nothing to migrate")
    running = ctx.engine.containers.list()

    def stop(name: str) -> str:
        ctx.engine.containers.get(name).stop(args.timeout if args.given("timeout") else None)
        return name

    code = ctx.each([container.record.name for container in running], stop)
    if not code:
        from nacre.engine import leave

        ctx.close()
        leave(ctx.directories[1] or "")
    return code


COMMANDS = {
    "migrate": Command(
        migrate,
        "",
        (Flag("timeout", "Seconds to wait for each container to stop before killing it", "int", short="t", aliases=("time",)),),
        about="For ordinary users, after the administrator has changed their subordinate ids: stops their running containers and ends the "
        "namespaces that these were in. The next command makes new ones.",
        examples=(("system migrate", "Use the new range of /etc/subuid"),),
    ),
}
