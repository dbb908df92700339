"""`nacre version`, and how answers about the installation are shown."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag
from nacre.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def short_version() -> str:
    """What `nacre --version` prints."""
    return f"Nacre version {VERSION}"


def version(ctx: Context, args: Arguments) -> int:
    """`nacre version`."""
    from nacre import engine

    return show(ctx, engine.version(), args.format)


def show(ctx: Context, answer: dict[str, Any], form: str) -> int:
    """Print an answer: as JSON, by a Go template, or as lines for a reader (form "")."""
    if form == "json":
        import json

        ctx.out(json.dumps(answer, ensure_ascii=False, separators=(",", ":")))
    elif form:
        from nacre.cli.commands.inspect import typed
        from nacre.cli.template import Template

        ctx.out(Template(form).render(typed(answer)))
    else:
        for line in lines(answer):
            ctx.out(line)
    return 0


def lines(answer: dict[str, Any], indent: str = "") -> list[str]:
    """Names and values, one per line, nested ones indented."""
    made = []
    for name, value in answer.items():
        if isinstance(value, dict):
            made += [f"{indent}{_words(name)}:", *lines(value, indent + "  ")]
        elif value not in ("", None):
            made.append(f"{indent}{_words(name)}: {_text(name, value)}")
    return made


def _words(name: str) -> str:
    """``KernelVersion`` as "Kernel Version", ``NCPU`` as "CPUs"."""
    known = {"NCPU": "CPUs", "MemTotal": "Total Memory", "Os": "OS", "Arch": "Architecture"}
    if name in known:
        return known[name]
    return "".join(f" {char}" if index and char.isupper() and not name[index - 1].isupper() else char for index, char in enumerate(name))


def _text(name: str, value: Any) -> str:
    from nacre.cli.units import binary_size

    if name == "MemTotal":
        return binary_size(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


FORMAT = Flag("format", "json, or a Go template", "string", short="f")

COMMANDS = {
    "version": Command(version, "", (FORMAT,), examples=(("version --format '{{.Version}}'", "Only the number"),)),
}
