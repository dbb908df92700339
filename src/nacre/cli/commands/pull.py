"""`nacre pull`, and the pulling that run and create do."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.model.image import Image


def ensure(ctx: Context, name: str, policy: str, platform: str, *, quiet: bool) -> None:
    """Makes the image present: policy always, missing or never; platform "" = any. Raises NotFound, RemoteError ..."""
    if policy != "always":
        try:
            image = ctx.engine.images.get(name)
        except NotFound:
            if policy == "never":
                raise
        else:
            if not platform or policy == "never" or _fits(image, platform):
                return
    if policy == "missing" and not quiet:
        ctx.err(f"Unable to find image '{familiar(name)}' locally")
    fetch(ctx, name, platform, stream="stderr", quiet=quiet)


def _fits(image: Image, platform: str) -> bool:
    wanted = platform.split("/")
    return str(image.platform).split("/")[: len(wanted)] == wanted


def fetch(ctx: Context, name: str, platform: str, *, stream: str, quiet: bool) -> Image:
    """Pulls with progress on standard output or standard error, in Docker's words (the engine's messages)."""
    from nacre.cli import progress

    with progress.on(stream, quiet=quiet) as display:
        return ctx.engine.images.pull(name, platform=platform or None, progress=display)


def familiar(name: str) -> str:
    """A reference as Docker names it, with its tag; what is none stays as it is."""
    from nacre.errors import InvalidArgument
    from nacre.model.reference import Reference

    try:
        return Reference.parse(name).tagged().familiar()
    except InvalidArgument:
        return name


def pull(ctx: Context, args: Arguments) -> int:
    """`nacre pull`."""
    from nacre.model.reference import Reference

    if args.all_tags:
        raise UsageError("--all-tags is not supported by this version", hint="Pull the tags one by one.")
    name = args.rest[0]
    reference = Reference.parse(name)
    if not (reference.tag or reference.digest) and not args.quiet:
        ctx.out("Using default tag: latest")
    image = fetch(ctx, name, args.platform, stream="stdout", quiet=args.quiet)
    full = str(reference.tagged())
    # A short name may have been found somewhere else than on Docker Hub.
    ctx.out(full if reference.digest or full in image.tags or not image.tags else image.tags[-1])
    return 0


COMMANDS = {
    "pull": Command(
        pull,
        "NAME[:TAG|@DIGEST]",
        (
            Flag("all-tags", "Not supported by this version", short="a"),
            Flag("disable-content-trust", "Has no effect (images are verified by their digests)", default=True),
            Flag("platform", "Platform of the image (os/architecture[/variant])", "string"),
            Flag("quiet", "Print nothing but the image's full name", short="q"),
        ),
        least=1,
        most=1,
        complete="images",
        examples=(
            ("pull ubuntu", "The image ubuntu:latest from the default registry"),
            ("pull localhost:5000/app:1.2", "From a registry on this host"),
        ),
    ),
}
