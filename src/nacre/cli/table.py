"""Lists on the screen: aligned columns, and everything that `--format` can ask for instead.

A list is described by its fields, in Docker's names: ``{"ID": Field("CONTAINER ID", lambda ctr: ctr.id[:12]), ...}``. A field's value
is computed when a template asks for it and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nacre.cli.context import printable
from nacre.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.cli.context import Context

MINIMUM, PADDING = 10, 3


class Field:
    """One field: its column header, and how it is found. in_json: part of ``json`` and ``{{json .}}``."""

    def __init__(self, header: str, value: Callable[[Any], Any], in_json: bool = True) -> None:
        self.header = header
        self.value = value
        self.in_json = in_json


def width(text: str) -> int:
    """Columns that a text takes on a terminal: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def align(rows: Sequence[Sequence[str]], *, minimum: int = MINIMUM, padding: int = PADDING) -> list[str]:
    """Rows of cells as lines. Every cell but the last of a row is padded to its column's width."""
    columns = max((len(row) for row in rows), default=0)
    widths = [max([minimum, *(width(row[index]) + padding for row in rows if len(row) > index + 1)]) for index in range(columns)]
    lines = []
    for row in rows:
        cells = [cell + " " * (widths[index] - width(cell)) for index, cell in enumerate(row[:-1])]
        lines.append("".join(cells) + (row[-1] if row else ""))
    return lines


def show(
    ctx: Context,
    objects: Iterable[Any],
    fields: dict[str, Field],
    form: str,
    default: Sequence[str],
    *,
    quiet: str = "",
    kind: str = "struct",
) -> None:
    """Prints objects as the user asked.

    form: the value of --format ("" and "table" = the default columns); default: the names of these; quiet: print only this field.
    """
    form = form.replace("\\t", "\t").replace("\\n", "\n")
    template, is_table = table_form(form)
    if quiet and (not form or (is_table and not template)):
        for item in objects:
            ctx.out(str(fields[quiet].value(item)))
    elif form == "json":
        for item in objects:
            ctx.out(to_json(fields, item))
    elif is_table and not template:
        rows = [[printable(str(fields[name].value(item))) for name in default] for item in objects]
        for line in align([[fields[name].header for name in default], *rows]):
            ctx.out(line)
    else:
        _templated(ctx, objects, fields, template, is_table, kind)


def table_form(form: str) -> tuple[str, bool]:
    """(template, whether it is a table): "table X" -> X; "table" and "" -> the default columns."""
    if form == "" or form == "table":
        return "", True
    if form.startswith("table "):
        return form[6:].strip(), True
    return form, False


def to_json(fields: dict[str, Field], item: Any) -> str:
    """One object as a line of JSON, its fields sorted by name."""
    from nacre.cli.template_functions import to_json

    return to_json({name: field.value(item) for name, field in fields.items() if field.in_json})


def _templated(ctx: Context, objects: Iterable[Any], fields: dict[str, Field], text: str, is_table: bool, kind: str) -> None:
    from nacre.cli.template import Row, Template

    template = Template(text)
    try:
        # The header row is made even for an empty list, which also finds misspelt fields.
        lines = [Template(text, _header_functions()).render(_headers(fields, kind))] if is_table else []
        for item in objects:
            line = template.render(Row(fields, item, kind))
            if is_table:
                lines.append(line)
            else:
                ctx.out(line)
    except InvalidArgument as error:
        if "can't evaluate field" in error.message and not error.hint:
            error.hint = f"Fields: {', '.join(sorted(fields))}"
        raise
    for line in align([printable(line).split("\t") for chunk in lines for line in chunk.split("\n")]) if is_table else ():
        ctx.out(line)


def _headers(fields: dict[str, Field], kind: str) -> Any:
    from nacre.cli.template import Struct

    headers = Struct({name: field.header for name, field in fields.items()}, kind=kind)
    if "Label" in fields:
        headers["Label"] = lambda label: label.rpartition(".")[2].replace("-", " ").replace("_", " ")
    return headers


def _header_functions() -> dict[str, Callable[..., Any]]:
    """In the header row the functions leave the words alone, except for those that only change their looks."""
    same: Callable[..., Any] = lambda text, *_: text  # noqa: E731
    return dict.fromkeys(("json", "split", "truncate"), same) | {"join": same}


def ellipsis(text: str, size: int) -> str:
    """At most `size` characters, the last one … when something was cut off."""
    return text if len(text) <= size else text[: size - 1] + "…"


def short_id(identifier: str) -> str:
    """The twelve digits by which people know an object."""
    return identifier.removeprefix("sha256:")[:12]


def labels_text(labels: dict[str, str]) -> str:
    """``a=b,c=d``, sorted."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
