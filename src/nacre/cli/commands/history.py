"""`nacre history`."""

from __future__ import annotations

from nacre.cli.commands.ps import FORMAT
from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag
from nacre.cli.table import Field, ellipsis, short_id, show
from nacre.cli.units import ago, human_size, parse_time, rfc3339
from nacre.model.image import History

MISSING = "<missing>"


def fields(*, full: bool, human: bool, image_id: str) -> dict[str, Field]:
    """The fields of one step. Only the newest step has an id: that of the image."""
    cut = (lambda text, _: text) if full else ellipsis
    return {
        "ID": Field("IMAGE", lambda step: (image_id if full else short_id(image_id)) if step[0] == 0 else MISSING),
        "CreatedSince": Field(
            "CREATED" if human else "CREATED AT", lambda step: ago(parse_time(step[1].created)) if human else _at(step[1])
        ),
        "CreatedAt": Field("CREATED AT", lambda step: _at(step[1])),
        "CreatedBy": Field("CREATED BY", lambda step: cut(" ".join(step[1].created_by.split()), 45)),
        "Size": Field("SIZE", lambda step: human_size(step[1].size) if human else str(step[1].size)),
        "Comment": Field("COMMENT", lambda step: step[1].comment),
    }


def _at(step: History) -> str:
    return rfc3339(parse_time(step.created))


def run(ctx: Context, args: Arguments) -> int:
    """`nacre history`."""
    image = ctx.engine.images.get(args.rest[0])
    steps = list(enumerate(ctx.engine.images.history(args.rest[0])))
    table = fields(full=args.no_trunc, human=args.human, image_id=image.id)
    columns = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
    show(ctx, steps, table, args.format, columns, quiet="ID" if args.quiet else "", kind="history")
    return 0


COMMANDS = {
    "history": Command(
        run,
        "IMAGE",
        (
            FORMAT,
            Flag("human", "Sizes and dates for people", short="H", default=True),
            Flag("no-trunc", "Do not cut anything short"),
            Flag("quiet", "Show only ids", short="q"),
        ),
        least=1,
        most=1,
        complete="images",
        examples=(("history --no-trunc nginx", "Every step with its whole command"),),
    ),
}
