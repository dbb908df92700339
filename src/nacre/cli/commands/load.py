"""`nacre load`."""

from __future__ import annotations

import sys

from nacre.cli.context import Context, is_terminal
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.errors import NotFound
from nacre.model.image import Progress


def run(ctx: Context, args: Arguments) -> int:
    """`nacre load`."""
    from nacre.cli import progress

    if not args.input and is_terminal(0):
        raise UsageError(
            "requested load from stdin, but stdin is empty", hint="Name a file with -i, or redirect one: nacre load < image.tar"
        )
    loaded: list[str] = []
    with progress.on("stdout", quiet=args.quiet) as display:

        def show(step: Progress) -> None:
            # What was loaded is said below, with -q too: the names in the archive, of all those that its images have.
            if (step.item, step.stage) == ("manifest", "done"):
                loaded.append(step.message)
            else:
                display(step)

        try:
            ctx.engine.images.load(args.input or sys.stdin.buffer, progress=show)
        except FileNotFoundError:
            raise NotFound(f"open {args.input}: no such file or directory") from None
    for line in loaded:
        ctx.out(line)
    return 0


COMMANDS = {
    "load": Command(
        run,
        "",
        (
            Flag("input", "Read this file instead of standard input", "string", short="i", value="file", complete="files"),
            Flag("quiet", "Do not show progress", short="q"),
        ),
        examples=(("load -i app.tar", "Load what `docker save` or `skopeo copy ... docker-archive:app.tar` wrote"),),
    ),
}
