"""`nacre network ls`."""

from __future__ import annotations

from nacre.cli.commands.ps import FILTER, FORMAT
from nacre.cli.context import Context
from nacre.cli.filters import Filters
from nacre.cli.flags import Arguments, Command, Flag
from nacre.cli.table import Field, short_id, show
from nacre.cli.units import local_time, parse_time


def fields(*, full: bool) -> dict[str, Field]:
    """The fields of a network, in Docker's names."""
    return {
        "ID": Field("NETWORK ID", lambda item: item.id if full else short_id(item.id)),
        "Name": Field("NAME", lambda item: item.name),
        "Driver": Field("DRIVER", lambda item: item.driver),
        "Scope": Field("SCOPE", lambda item: "local"),
        "IPv4": Field("IPV4", lambda item: "true"),
        "IPv6": Field("IPV6", lambda item: "false"),
        "Internal": Field("INTERNAL", lambda item: "true" if item.internal else "false"),
        "Labels": Field("LABELS", lambda item: ""),
        "CreatedAt": Field("CREATED AT", lambda item: local_time(parse_time(item.created))),
    }


def ls(ctx: Context, args: Arguments) -> int:
    """`nacre network ls`."""
    filters = Filters(args.filter, ("driver", "id", "name"))
    found = filters.apply(
        ctx.engine.networks.list(),
        {
            "driver": lambda item, value: item.driver == value,
            "id": lambda item, value: item.id.startswith(value),
            "name": lambda item, value: value in item.name,
        },
    )
    show(
        ctx,
        found,
        fields(full=args.no_trunc),
        args.format,
        ("ID", "Name", "Driver", "Scope"),
        quiet="ID" if args.quiet else "",
        kind="network",
    )
    return 0


COMMANDS = {
    "network ls": Command(
        ls,
        "",
        (FILTER, FORMAT, Flag("no-trunc", "Do not cut anything short"), Flag("quiet", "Show only ids", short="q")),
        about="Filters: driver, id, name.",
    ),
}
