"""Help texts: the overview, a management group, one command. Made from the registry and the commands' own tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from nacre.cli import registry
from nacre.cli.context import window
from nacre.cli.flags import HELP, Command, Flag

GLOBAL_FLAGS: tuple[Flag, ...] = (
    Flag("root", "Directory of images, volumes and container records (default /var/lib/nacre)", "string", value="dir"),
    Flag("run-root", "Directory of what lives only while containers run (default /run/nacre)", "string", value="dir"),
    Flag("storage-driver", "How root file systems are made (default: the best that this host can do)", "string", value="name"),
    Flag("debug", "Show the evidence below error messages", short="D"),
    Flag("version", "Print the version and quit", short="v"),
)


def _width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return max(60, min(int(columns) if columns.isdigit() else window(1, 0, 2)[1] or 80, 120))


def wrap(text: str, room: int) -> list[str]:
    """Lines of at most `room` characters, broken at spaces; the standard library's textwrap is slow to import."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _pairs(pairs: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Two columns, the second one wrapped."""
    items = list(pairs)
    left = max((len(name) for name, _ in items), default=0)
    lines = []
    for name, text in items:
        wrapped = wrap(text, max(20, _width() - left - 5))
        lines.append(f"{indent}{name:<{left}}   {wrapped[0]}".rstrip())
        lines += [f"{indent}{'':<{left}}   {line}" for line in wrapped[1:]]
    return lines


def flag_help(flag: Flag) -> str:
    """The text of a flag with its default, if it has one worth naming."""
    if flag.kind == "bool":
        shown = "default true" if flag.default is True else ""
    else:
        shown = f"default {flag.default}" if flag.default not in (None, "", 0, -1, 0.0, []) else ""
    return f"{flag.help} ({shown})" if shown else flag.help


def flag_lines(flags: Sequence[Flag]) -> list[str]:
    """The "Options:" block."""
    pairs = []
    for flag in sorted((*flags, HELP), key=lambda flag: flag.name):
        short = f"-{flag.short}, " if flag.short else "    "
        pairs.append((f"{short}--{flag.name} {flag.value}".rstrip(), flag_help(flag)))
    return _pairs(pairs)


def overview() -> str:
    """What `nacre --help` prints."""
    lines = [
        "Usage:  nacre [OPTIONS] COMMAND",
        "",
        "Runs OCI images at any isolation level: as containers, or each in its own virtual machine",
        "",
    ]
    blocks = [
        ("Common Commands:", {name: text for name, (_, text) in registry.COMMON.items()}),
        ("Management Commands:", registry.GROUPS),
        ("Commands:", {name: text for name, (_, text) in registry.PLAIN.items()}),
    ]
    for title, commands in blocks:
        lines += [title, *_pairs((f"{name:<10}", text) for name, text in commands.items()), ""]
    lines += ["Global Options:", *flag_lines(GLOBAL_FLAGS), ""]
    lines += ["Run 'nacre COMMAND --help' for more information on a command."]
    return "\n".join(lines)


def group(name: str) -> str:
    """What `nacre container --help` prints."""
    lines = [f"Usage:  nacre {name} COMMAND", "", registry.GROUPS[name], "", "Commands:"]
    lines += _pairs((f"{member:<10}", text) for member, text in registry.members(name).items())
    lines += ["", f"Run 'nacre {name} COMMAND --help' for more information on a command."]
    return "\n".join(lines)


def other_names(name: str) -> list[str]:
    """All full names under which the same command can be called, the given one first."""
    target = registry.load(name)
    plain = [other for other in registry.COMMANDS if other != name and _same_word(other, name) and registry.load(other) is target]
    return [name, *plain, *(alias for alias, real in registry.ALIASES.items() if real in (name, *plain))]


def _same_word(one: str, other: str) -> bool:
    """Whether two names come from one module, which is what makes it worth loading the other."""
    return registry.COMMANDS[one][0] == registry.COMMANDS[other][0]


def command(name: str, chosen: Command) -> str:
    """What `nacre COMMAND --help` prints."""
    options = "[OPTIONS] " if chosen.flags else ""
    lines = [f"Usage:  nacre {name} {options}{chosen.usage}".rstrip(), "", registry.COMMANDS[name][1]]
    if chosen.about:
        lines += ["", *wrap(chosen.about, _width())]
    names = other_names(name)
    if len(names) > 1:
        lines += ["", "Aliases:", *(f"  {line}" for line in wrap(", ".join(f"nacre {other}" for other in names), _width() - 2))]
    lines += ["", "Options:", *flag_lines(chosen.flags)]
    if chosen.examples:
        lines += ["", "Examples:"]
        for line, meaning in chosen.examples:
            lines += [f"  # {meaning}", f"  nacre {line}", ""]
        lines.pop()
    return "\n".join(lines)
