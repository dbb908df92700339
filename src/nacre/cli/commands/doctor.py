"""`nacre doctor`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from nacre.cli.context import Context, is_terminal
from nacre.cli.flags import Arguments, Command, Flag

if TYPE_CHECKING:
    from nacre.engine import Check

_MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "info": "info"}
_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def run(ctx: Context, args: Arguments) -> int:
    """`nacre doctor`. Exit code 1 when something that everything needs is missing."""
    checks = _checks(ctx)
    failed = any(check.status == "fail" for check in checks)
    if args.format == "json":
        ctx.out(
            json.dumps([{"Name": check.name, "Status": check.status, "Found": check.found, "Fix": check.fix} for check in checks], indent=4)
        )
        return int(failed)
    colour = is_terminal(1)
    room = max((len(check.name) for check in checks), default=0)
    for check in checks:
        mark = f"{_MARKS[check.status]:<4}"
        if colour and check.status in _COLOURS:
            mark = f"\x1b[{_COLOURS[check.status]}m{mark}\x1b[0m"
        ctx.out(f"{mark}  {check.name:<{room}}  {check.found}".rstrip())
        if check.fix:
            ctx.out(f"      {'':<{room}}  -> {check.fix}")
    return int(failed)


def _checks(ctx: Context) -> list[Check]:
    """Also for a user who cannot have an engine: to say why is what this command is for."""
    if not os.geteuid():
        return ctx.engine.doctor()
    from nacre.engine import user_checks

    return user_checks(*ctx.directories)


COMMANDS = {
    "doctor": Command(
        run,
        "",
        (Flag("format", "json for machines", "string", choices=("", "json")),),
        about="Every check shows what was found; what is missing is followed by the command that brings it. The exit code is 1 when "
        "something is missing that no container can do without.",
        examples=(("doctor", "What can this host do, and what does it lack?"),),
    ),
}
