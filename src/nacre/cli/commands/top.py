"""`nacre top`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, UsageError
from nacre.cli.table import align
from nacre.cli.units import parse_time

_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "UID": lambda row: str(row["uid"]),
    "USER": lambda row: str(row["uid"]),
    "PID": lambda row: str(row["pid"]),
    "PPID": lambda row: str(row["ppid"]),
    "STIME": lambda row: started(row["moment"]),
    "TTY": lambda row: terminal(row["tty"]),
    "TIME": lambda row: clock(row["cpu"]),
    "CMD": lambda row: row["command"],
    "COMMAND": lambda row: row["command"],
    "ARGS": lambda row: row["command"],
}
_DEFAULT = ("UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD")


def run(ctx: Context, args: Arguments) -> int:
    """`nacre top`."""
    columns = chosen(args.rest[1:])
    container = ctx.engine.containers.get(args.rest[0])
    rows = container.top()
    # Times of start count from the boot of the kernel in question, which may be the container's own. The first process is the link
    # between that clock and ours.
    first = min((row["start"] for row in rows), default=0.0)
    for row in rows:
        row["moment"] = parse_time(container.record.started) + row["start"] - first
    for line in align([list(columns), *([_COLUMNS[name](row) for name in columns] for row in rows)], minimum=20):
        ctx.out(line)
    return 0


def chosen(options: list[str]) -> tuple[str, ...]:
    """The columns that ps options ask for: ``-o pid,comm`` and the full formats. Raises UsageError for what the processes do not tell."""
    words = [word for word in options if word not in ("aux", "-aux", "ax", "-ef", "-e", "-f", "-a", "-x")]
    if not words:
        return _DEFAULT
    if words[0] in ("-o", "o", "-eo") and len(words) > 1:
        names = tuple(name.strip().upper() for word in words[1:] for name in word.split(",") if name.strip())
    elif words[0].startswith("-o"):
        names = tuple(name.upper() for name in words[0][2:].split(",") if name)
    else:
        raise UsageError(f"ps option {words[0]!r} is not supported", hint="As in: nacre top CONTAINER -o pid,user,cmd")
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown or not names:
        raise UsageError(
            f"unknown column {unknown[0].lower()!r}" if unknown else "no column", hint=f"Columns: {', '.join(_COLUMNS).lower()}"
        )
    return names


def started(moment: float) -> str:
    """Clock time of the start, or the day when that was not today."""
    local = time.localtime(moment)
    return time.strftime("%H:%M" if local[:3] == time.localtime()[:3] else "%b%d", local)


def terminal(device: str) -> str:
    """The name of a terminal from its device number (proc(5), tty_nr): ``pts/0``, ``tty1``; "?" for none."""
    number = int(device) if device.isascii() and device.isdigit() else 0
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    if 136 <= major <= 143:
        return f"pts/{minor + (major - 136) * 256}"
    return f"tty{minor}" if major == 4 else "?"


def clock(seconds: float) -> str:
    """Processor time as 00:01:02."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


COMMANDS = {
    "top": Command(
        run,
        "CONTAINER [-o COLUMN,...]",
        least=1,
        most=None,
        interspersed=False,
        complete="running",
        about="Users are shown by number: the container's names for them are its own affair.",
        examples=(("top web", "Its processes, at any isolation level"), ("top web -o pid,cmd", "Two columns only")),
    ),
}
