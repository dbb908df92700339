"""`nacre port`."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command
from nacre.cli.ports import parse_private
from nacre.errors import NotFound


def run(ctx: Context, args: Arguments) -> int:
    """`nacre port`."""
    container = ctx.engine.containers.get(args.rest[0])
    ports = sorted(container.ports(), key=lambda port: (port.container_port, port.protocol, port.host_port))
    if len(args.rest) == 1:
        for port in ports:
            ctx.out(f"{port.container_port}/{port.protocol} -> {port.host_ip or '0.0.0.0'}:{port.host_port}")
        return 0
    wanted = parse_private(args.rest[1])
    found = [port for port in ports if (port.container_port, port.protocol) == wanted]
    if not found:
        raise NotFound(f"No public port '{args.rest[1]}' published for {args.rest[0]}")
    for port in found:
        ctx.out(f"{port.host_ip or '0.0.0.0'}:{port.host_port}")
    return 0


COMMANDS = {
    "port": Command(
        run,
        "CONTAINER [PORT[/PROTOCOL]]",
        least=1,
        most=2,
        complete="running",
        examples=(("port web 80", "Where on this host its port 80 is"),),
    ),
}
