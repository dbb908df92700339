"""`nacre images`, `nacre rmi`, `nacre tag`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nacre.cli.commands.ps import FILTER, FORMAT
from nacre.cli.context import Context
from nacre.cli.filters import Filters, has_label
from nacre.cli.flags import Arguments, Command, Flag
from nacre.cli.table import Field, short_id, show
from nacre.cli.units import ago, human_size, local_time, parse_time
from nacre.errors import NacreError
from nacre.model.reference import Reference

if TYPE_CHECKING:
    from nacre.model.image import Image

NONE = "<none>"
FILTERS = ("before", "dangling", "label", "reference", "since", "until")


class Row(NamedTuple):
    """One name of an image (an image with several names has several lines)."""

    image: Image
    repository: str
    tag: str
    digest: str


def rows(image: Image) -> list[Row]:
    """The lines of an image: one per tag, one per digest that no tag covers, one without names at the end of its life."""
    digests = {reference.familiar_name: reference.digest for reference in map(Reference.parse, image.repo_digests)}
    found = []
    for reference in map(Reference.parse, image.tags):
        name = reference.familiar_name
        found.append(Row(image, name, reference.tag or NONE, digests.get(name, reference.digest or NONE)))
    tagged = {row.repository for row in found}
    found += [Row(image, name, NONE, digest) for name, digest in digests.items() if name not in tagged]
    return found or [Row(image, NONE, NONE, NONE)]


def fields(*, full: bool) -> dict[str, Field]:
    """The fields of an image, in Docker's names. full: nothing cut short."""
    return {
        "ID": Field("IMAGE ID", lambda row: row.image.id if full else short_id(row.image.id)),
        "Repository": Field("REPOSITORY", lambda row: row.repository),
        "Tag": Field("TAG", lambda row: row.tag),
        "Digest": Field("DIGEST", lambda row: row.digest),
        "CreatedSince": Field("CREATED", lambda row: ago(parse_time(row.image.created))),
        "CreatedAt": Field("CREATED AT", lambda row: local_time(parse_time(row.image.created))),
        "Size": Field("SIZE", lambda row: human_size(row.image.size)),
        "Platform": Field("PLATFORM", lambda row: str(row.image.platform)),
    }


def images(ctx: Context, args: Arguments) -> int:
    """`nacre images`."""
    filters = Filters(args.filter, FILTERS)
    if args.rest:
        filters.values.setdefault("reference", []).append(args.rest[0])
    found = select(ctx, [row for image in ctx.engine.images.list() for row in rows(image)], filters)
    columns = ["Repository", "Tag", *(["Digest"] if args.digests else []), "ID", "CreatedSince", "Size"]
    show(ctx, found, fields(full=args.no_trunc), args.format, columns, quiet="ID" if args.quiet else "", kind="image")
    return 0


def select(ctx: Context, found: list[Row], filters: Filters) -> list[Row]:
    """The lines that the filters let through."""
    if "dangling" in filters:
        dangling = filters.flag("dangling")
        found = [row for row in found if (not row.image.tags) == dangling]
    moments = {value: ctx.engine.images.get(value).created for name in ("before", "since") for value in filters.values.get(name, ())}
    tests: dict[str, Any] = {
        "dangling": lambda row, value: True,
        "label": lambda row, value: has_label(row.image.config.labels, value),
        "reference": matches_reference,
        "before": lambda row, value: row.image.created < moments[value],
        "since": lambda row, value: row.image.created > moments[value],
        "until": lambda row, value: parse_time(row.image.created) < _until(value),
    }
    return filters.apply(found, tests)


def _until(value: str) -> float:
    from nacre.cli.units import parse_moment

    return parse_moment(value)


def matches_reference(row: Row, pattern: str) -> bool:
    """Whether a name fits a pattern: ``ubuntu``, ``ubuntu:24.04``, ``localhost:5000/*``, ``*:latest`` (path.Match rules)."""
    import fnmatch

    if "*" not in pattern and "?" not in pattern and "[" not in pattern:
        try:
            wanted = Reference.parse(pattern)
        except NacreError:
            return False
        return row.repository == wanted.familiar_name and wanted.tag in ("", row.tag) and wanted.digest in ("", row.digest)
    if row.repository == NONE:
        return False
    name, tag = row.repository, f"{row.repository}:{row.tag}"
    return any(text.count("/") == pattern.count("/") and fnmatch.fnmatchcase(text, pattern) for text in (name, tag))


def remove(ctx: Context, args: Arguments) -> int:
    """`nacre rmi`."""

    def one(name: str) -> str | None:
        done = ctx.engine.images.remove(name, force=args.force)
        return "\n".join(f"{action.capitalize()}: {what}" for action, what in done) or None

    return ctx.each(args.rest, one)


def tag(ctx: Context, args: Arguments) -> int:
    """`nacre tag`."""
    ctx.engine.images.tag(args.rest[0], args.rest[1])
    return 0


COMMANDS = {
    "images": Command(
        images,
        "[REPOSITORY[:TAG]]",
        (
            Flag("all", "Has no effect (there are no intermediate images)", short="a"),
            Flag("digests", "Show digests"),
            FILTER,
            FORMAT,
            Flag("no-trunc", "Do not cut anything short"),
            Flag("quiet", "Show only ids", short="q"),
        ),
        most=1,
        complete="images",
        about=f"Filters: {', '.join(FILTERS)}.",
        examples=(
            ("images ubuntu", "All tags of one repository"),
            ("images --format '{{.Repository}}:{{.Tag}} {{.Size}}'", "Names and sizes only"),
        ),
    ),
    "rmi": Command(
        remove,
        "IMAGE [IMAGE...]",
        (Flag("force", "Remove it even when stopped containers use it", short="f"), Flag("no-prune", "Has no effect")),
        least=1,
        most=None,
        complete="images",
        examples=(("rmi ubuntu:24.04", "Take this name away, and the image with its last name"),),
    ),
    "tag": Command(
        tag,
        "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        least=2,
        most=2,
        complete="images",
        examples=(("tag app localhost:5000/app:1.2", "Give an image the name under which a registry will have it"),),
    ),
}
