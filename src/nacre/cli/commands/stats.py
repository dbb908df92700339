"""`nacre stats`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from nacre.cli.commands.ps import FORMAT
from nacre.cli.context import Context, is_terminal
from nacre.cli.flags import Arguments, Command, Flag
from nacre.cli.table import Field, short_id, show
from nacre.cli.units import binary_size, human_size
from nacre.errors import NacreError, NotFound

if TYPE_CHECKING:
    from nacre.engine import Container
    from nacre.model.container import Stats

PERIOD = 1.0
COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")


class Sample(NamedTuple):
    """One container at one moment. stats None: it has gone or does not run; cpu in percent of one processor."""

    container: Container
    asked: str
    stats: Stats | None
    cpu: float


def cpu_percent(before: Stats | None, now: Stats) -> float:
    """Processor time between two samples, 100 = one processor. 0 for the first sample and across a restart."""
    if before is None or now.time <= before.time or now.cpu < before.cpu:
        return 0.0
    return (now.cpu - before.cpu) / ((now.time - before.time) * 1e9) * 100


def fields(*, full: bool) -> dict[str, Field]:
    """The fields of a sample, in Docker's names."""
    return {
        "Container": Field("CONTAINER", lambda sample: sample.asked),
        "ID": Field("CONTAINER ID", lambda sample: sample.container.id if full else short_id(sample.container.id)),
        "Name": Field("NAME", lambda sample: sample.container.name),
        "CPUPerc": Field("CPU %", lambda sample: f"{sample.cpu:.2f}%" if sample.stats else "--"),
        "MemUsage": Field("MEM USAGE / LIMIT", lambda sample: _memory(sample.stats)),
        "MemPerc": Field("MEM %", lambda sample: _memory_percent(sample.stats)),
        "NetIO": Field("NET I/O", lambda sample: _pair(sample.stats and (sample.stats.rx, sample.stats.tx))),
        "BlockIO": Field("BLOCK I/O", lambda sample: _pair(sample.stats and (sample.stats.read, sample.stats.write))),
        "PIDs": Field("PIDS", lambda sample: str(sample.stats.pids) if sample.stats else "--"),
    }


def _limit(stats: Stats) -> int:
    return stats.memory_limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory(stats: Stats | None) -> str:
    return f"{binary_size(stats.memory)} / {binary_size(_limit(stats))}" if stats else "-- / --"


def _memory_percent(stats: Stats | None) -> str:
    return f"{stats.memory * 100 / _limit(stats):.2f}%" if stats else "--"


def _pair(values: tuple[int, int] | None) -> str:
    return f"{human_size(values[0])} / {human_size(values[1])}" if values else "--"


class Sampler:
    """Takes samples of the containers that were named, or of all that run."""

    def __init__(self, ctx: Context, names: list[str], *, everything: bool) -> None:
        self._ctx = ctx
        self._everything = everything
        self._named = [(name, ctx.engine.containers.get(name)) for name in names]
        self._before: dict[str, Stats] = {}

    def take(self) -> list[Sample]:
        """One sample of each."""
        chosen = self._named or [(short_id(item.id), item) for item in self._ctx.engine.containers.list(all=self._everything)]
        samples = []
        for asked, container in chosen:
            try:
                stats = container.stats()
            except NotFound:
                continue
            except NacreError:
                # It ended between the list and the look at it.
                samples.append(Sample(container, asked, None, 0.0))
                continue
            samples.append(Sample(container, asked, stats, cpu_percent(self._before.get(container.id), stats)))
            self._before[container.id] = stats
        return samples


def run(ctx: Context, args: Arguments) -> int:
    """`nacre stats`."""
    sampler = Sampler(ctx, args.rest, everything=args.all)
    table = fields(full=args.no_trunc)
    live = not args.no_stream
    redraw = live and is_terminal(1) and (not args.format or args.format.startswith("table"))
    # The use of processors is a difference: the first look only sets the starting point.
    sampler.take()
    while True:
        time.sleep(PERIOD)
        samples = sampler.take()
        if redraw:
            ctx.out("\x1b[H\x1b[2J\x1b[H", end="")
        show(ctx, samples, table, args.format, COLUMNS, kind="stats")
        if not live or (args.rest and not samples):
            return 0
        ctx.flush()


COMMANDS = {
    "stats": Command(
        run,
        "[CONTAINER...]",
        (
            Flag("all", "Show stopped containers too", short="a"),
            FORMAT,
            Flag("no-stream", "Show one result and quit"),
            Flag("no-trunc", "Do not cut anything short"),
        ),
        most=None,
        complete="running",
        examples=(
            ("stats", "All running containers, live"),
            ("stats --no-stream --format '{{.Name}} {{.CPUPerc}} {{.MemUsage}}' web", "One look at one of them"),
        ),
    ),
}
