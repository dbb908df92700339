"""`nacre load`."""

from __future__ import annotations

import sys

from nacre.cli.context import Context, is_terminal
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.errors import NotFound
from nacre.model.image import Image, Progress
from nacre.model.reference import Reference


def run(ctx: Context, args: Arguments) -> int:
    """`nacre load`."""
    from nacre.cli import progress

    if not args.input and is_terminal(0):
        raise UsageError(
            "requested load from stdin, but stdin is empty", hint="Name a file with -i, or redirect one: nacre load < image.tar"
        )
    with progress.on("stdout", quiet=args.quiet) as display:

        def show(step: Progress) -> None:
            # What was loaded is said below, with -q too.
            if (step.item, step.stage) != ("manifest", "done"):
                display(step)

        try:
            images = ctx.engine.images.load(args.input or sys.stdin.buffer, progress=show)
        except FileNotFoundError:
            raise NotFound(f"open {args.input}: no such file or directory") from None
    for image in images:
        ctx.out(loaded(image))
    return 0


def loaded(image: Image) -> str:
    """What Docker says about an image that was loaded."""
    names = [Reference.parse(tag).familiar() for tag in image.tags]
    return "\n".join(f"Loaded image: {name}" for name in names) or f"Loaded image ID: {image.id}"


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
