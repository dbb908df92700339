"""`nacre volume ls`, `create` and `rm`."""

from __future__ import annotations

import os

from nacre.cli.commands.ps import FILTER, FORMAT
from nacre.cli.context import Context
from nacre.cli.filters import Filters, has_label
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.table import Field, show
from nacre.errors import NotFound

_FIELDS = {
    "Name": Field("VOLUME NAME", lambda item: item["Name"]),
    "Driver": Field("DRIVER", lambda item: item["Driver"]),
    "Scope": Field("SCOPE", lambda item: item["Scope"]),
    "Mountpoint": Field("MOUNTPOINT", lambda item: item["Mountpoint"]),
    "Labels": Field("LABELS", lambda item: ",".join(f"{key}={value}" for key, value in (item["Labels"] or {}).items())),
    "Links": Field("LINKS", lambda item: str(len(item["UsedBy"]))),
}


def ls(ctx: Context, args: Arguments) -> int:
    """`nacre volume ls`."""
    filters = Filters(args.filter, ("dangling", "driver", "label", "name"))
    dangling = filters.flag("dangling")
    found = filters.apply(
        ctx.engine.volumes.list(),
        {
            "dangling": lambda item, _: (not item["UsedBy"]) == dangling,
            "driver": lambda item, value: item["Driver"] == value,
            "label": lambda item, value: has_label(item["Labels"] or {}, value),
            "name": lambda item, value: value in item["Name"],
        },
    )
    show(ctx, found, _FIELDS, args.format, ("Driver", "Name"), quiet="Name" if args.quiet else "", kind="volume")
    return 0


def create(ctx: Context, args: Arguments) -> int:
    """`nacre volume create`."""
    if args.driver not in ("", "local"):
        raise UsageError(f"volume driver {args.driver!r} is not supported", hint="Only local is.")
    name = args.rest[0] if args.rest else os.urandom(32).hex()
    made = ctx.engine.volumes.create(name, labels=_pairs(args.label, "label"), options=_pairs(args.opt, "opt"))
    ctx.out(made["Name"])
    return 0


def _pairs(texts: list[str], flag: str) -> dict[str, str]:
    """``key=value``; a label may do without a value."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or (flag == "opt" and not equals):
            raise UsageError(f"invalid value {text!r} for --{flag}", hint="It looks like key=value.")
        found[key] = value
    return found


def remove(ctx: Context, args: Arguments) -> int:
    """`nacre volume rm`."""

    def one(name: str) -> str | None:
        try:
            ctx.engine.volumes.remove(name)
        except NotFound:
            if not args.force:
                raise
        return name

    return ctx.each(args.rest, one)


COMMANDS = {
    "volume ls": Command(
        ls, "", (FILTER, FORMAT, Flag("quiet", "Show only names", short="q")), about="Filters: dangling, driver, label, name."
    ),
    "volume create": Command(
        create,
        "[VOLUME]",
        (
            Flag("driver", "Volume driver (only local)", "string", short="d"),
            Flag("label", "Attach a label", "list", value="key=value"),
            Flag("opt", "Mount something there while it is used (type=..., device=..., o=...)", "list", short="o", value="key=value"),
        ),
        most=1,
        examples=(
            ("volume create data", "A volume for: nacre run -v data:/data ..."),
            ("volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=100m scratch", "One in memory"),
            ("volume create --opt type=none --opt o=bind --opt device=/srv/data data", "A directory of this host"),
            ("volume create --opt type=nfs --opt o=addr=192.0.2.1,rw --opt device=:/export data", "An export of a file server"),
        ),
    ),
    "volume rm": Command(
        remove, "VOLUME [VOLUME...]", (Flag("force", "A missing volume is no error", short="f"),), least=1, most=None, complete="volumes"
    ),
}
