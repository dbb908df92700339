"""`nacre logs`."""

from __future__ import annotations

import sys
from typing import BinaryIO

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.table import labels_text
from nacre.cli.units import parse_moment, rfc3339_nano


def run(ctx: Context, args: Arguments) -> int:
    """`nacre logs`."""
    container = ctx.engine.containers.get(args.rest[0])
    records = container.logs(
        follow=args.follow,
        since=parse_moment(args.since) if args.since else None,
        until=parse_moment(args.until) if args.until else None,
        tail=tail_count(args.tail),
    )
    details = f"{labels_text(container.log_attributes())} " if args.details else ""
    outputs = {
        1: Lines(sys.stdout.buffer, details, timestamps=args.timestamps),
        2: Lines(sys.stderr.buffer, details, timestamps=args.timestamps),
    }
    for record in records:
        outputs[record.stream].write(record.time_ns, record.data)
        outputs[record.stream].flush()
    return 0


def tail_count(text: str) -> int | None:
    """Number of lines; None = all (also for a negative number, as Docker has it). Raises UsageError."""
    if text == "all":
        return None
    try:
        count = int(text)
    except ValueError:
        raise UsageError(f"invalid value {text!r} for --tail: a number of lines, or all") from None
    return None if count < 0 else count


class Lines:
    """Writes a stream, with the time (and the details) in front of every line if asked for."""

    def __init__(self, output: BinaryIO, details: str, *, timestamps: bool) -> None:
        self._output = output
        self._details = details.encode("utf-8", "surrogateescape")
        self._timestamps = timestamps
        self._fresh = True

    def write(self, time_ns: int, data: bytes) -> None:
        """One piece, which may be several lines or part of one."""
        if not (self._timestamps or self._details):
            self._output.write(data)
            return
        stamp = f"{rfc3339_nano(time_ns)} ".encode() if self._timestamps else b""
        for line in _cut(data):
            if self._fresh:
                self._output.write(stamp + self._details)
            self._output.write(line)
            self._fresh = line.endswith(b"\n")

    def flush(self) -> None:
        """What was written so far reaches the reader."""
        self._output.flush()


def _cut(data: bytes) -> list[bytes]:
    """Lines end with a newline and with nothing else (splitlines would end them at a carriage return too)."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


COMMANDS = {
    "logs": Command(
        run,
        "CONTAINER",
        (
            Flag("details", "Show in front of every line what --log-opt labels, env and tag name"),
            Flag("follow", "Go on showing what is written until the container ends", short="f"),
            Flag("since", "Show what was written after this time (2013-01-02T13:23:37Z) or in the last 42m", "string"),
            Flag("tail", "Number of lines to show from the end", "string", short="n", default="all"),
            Flag("timestamps", "Show the time of every line", short="t"),
            Flag("until", "Show what was written before this time, or before 42m ago", "string"),
        ),
        least=1,
        most=1,
        complete="containers",
        examples=(("logs -f --tail 20 web", "The last twenty lines, and everything that follows"),),
    ),
}
