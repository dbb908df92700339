"""The reference page docs/cli.md, made from the registry and the commands' tables: python -m nacre.cli.reference > docs/cli.md."""

from __future__ import annotations

import sys

from nacre.cli import registry
from nacre.cli.flags import Command, Flag
from nacre.cli.help import GLOBAL_FLAGS, flag_help, other_names

_INTRODUCTION = """\
# Command-line reference

This page is generated from the program (`python -m nacre.cli.reference > docs/cli.md`); a test fails when it is out of date.
Commands, flags, output and exit codes are Docker's wherever Docker has them. What is Nacre's own: `--isolation` and `--kernel`,
the ISOLATION column of `ps`, `explain` and `doctor`.

    nacre [OPTIONS] COMMAND [ARG...]

Flags come before the image or container whose command line follows (`run`, `create`, `exec`, `explain`, `top`); elsewhere they
may stand anywhere. `-it` is `-i -t`; `--name=web` is `--name web`; a flag without a value is switched off with `=false`; `--`
ends the flags.

**Exit codes**: the container's own for `run`, `exec`, `start -a` and `attach`; 125 when Nacre itself failed, 126 when the command
could not be executed, 127 when it was not found; 1 when a command over several objects failed for at least one of them.

**Environment**: `NACRE_ROOT` and `NACRE_RUN` (as `--root` and `--run-root`), `NACRE_ISOLATION` (default of `--isolation`).

**Formats**: `--format` takes `table`, `json`, `table TEMPLATE` or a template of Go's text/template with the functions `json`,
`join`, `split`, `lower`, `upper`, `title`, `trim`, `pad` and `truncate` besides the built-in ones. In tables, `\\t` separates
columns.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "## Global options\n", _table(GLOBAL_FLAGS)]
    names = sorted(name for name in registry.COMMANDS if " " not in name)
    parts += ["## Commands\n", *(_section(name) for name in names)]
    documented = {id(registry.load(name)) for name in names}
    grouped = [name for name in sorted(registry.COMMANDS) if " " in name and id(registry.load(name)) not in documented]
    parts += ["## Management commands\n", _management(), *(_section(name) for name in grouped)]
    return "\n".join(parts).rstrip() + "\n"


def _management() -> str:
    lines = [f"* `nacre {group}`: {', '.join(f'`{member}`' for member in registry.members(group))}" for group in registry.GROUPS]
    return "\n".join(["Those that are not listed below are the same as the command without the first word.\n", *lines, ""])


def _section(name: str) -> str:
    command: Command = registry.load(name)
    usage = f"nacre {name} {'[OPTIONS] ' if command.flags else ''}{command.usage}".rstrip()
    lines = [f"### nacre {name}\n", f"{registry.COMMANDS[name][1]}.\n", f"    {usage}\n"]
    if command.about:
        lines.append(f"{command.about}\n")
    others = other_names(name)[1:]
    if others:
        lines.append(f"Also: {', '.join(f'`nacre {other}`' for other in others)}.\n")
    if command.flags:
        lines.append(_table(command.flags))
    if command.examples:
        lines += ["Examples:\n", *(f"    # {meaning}\n    nacre {line}\n" for line, meaning in command.examples)]
    return "\n".join(lines)


def _table(flags: tuple[Flag, ...]) -> str:
    lines = ["| flag | meaning |", "|---|---|"]
    for flag in sorted(flags, key=lambda flag: flag.name):
        short = f"`-{flag.short}`, " if flag.short else ""
        value = f" {flag.value}" if flag.value else ""
        lines.append(f"| {short}`--{flag.name}{value}` | {flag_help(flag).replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(markdown())
