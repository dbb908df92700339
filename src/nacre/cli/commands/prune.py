"""`nacre container prune`, `image prune`, `volume prune`, `system prune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nacre.cli.context import Context, confirm
from nacre.cli.filters import Filters, has_label
from nacre.cli.flags import Arguments, Command, Flag
from nacre.cli.table import short_id
from nacre.cli.units import human_size, parse_moment, parse_time
from nacre.cli.usage import allocated, container_size
from nacre.errors import NacreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine import Container


def containers(ctx: Context, args: Arguments) -> int:
    """`nacre container prune`."""
    filters = Filters(args.filter, ("label", "label!", "until"))
    question = "This will remove all stopped containers."
    if args.filter:
        question += f"\n  Items to be pruned will be filtered with: {', '.join(args.filter)}"
    moments = [parse_moment(text) for text in filters.values.get("until", ())]

    def wanted(container: Container) -> bool:
        labels = {**container.record.image_config.labels, **container.record.spec.labels}
        asked = all(has_label(labels, text) for text in filters.values.get("label", ()))
        shunned = any(has_label(labels, text) for text in filters.values.get("label!", ()))
        return asked and not shunned and all(parse_time(container.record.created) < moment for moment in moments)

    return _asked(ctx, args, question, lambda: prune_containers(ctx, wanted))


def images(ctx: Context, args: Arguments) -> int:
    """`nacre image prune`."""
    what = "all images without at least one container associated to them" if args.all else "all dangling images"
    return _asked(ctx, args, f"This will remove {what}.", lambda: prune_images(ctx, everything=args.all))


def volumes(ctx: Context, args: Arguments) -> int:
    """`nacre volume prune`."""
    filters = Filters(args.filter, ("all", "label", "label!"))
    everything = args.all or filters.flag("all")
    what = "all local volumes" if everything else "anonymous local volumes"
    question = f"This will remove {what} not used by at least one container."
    wanted, unwanted = filters.values.get("label", []), filters.values.get("label!", [])
    if wanted or unwanted:
        words = [*(f"label={text}" for text in wanted), *(f"label!={text}" for text in unwanted)]
        question += f"\n  Items to be pruned will be filtered with: {', '.join(words)}"

    def only(labels: Mapping[str, str]) -> bool:
        given = dict(labels)
        return all(has_label(given, text) for text in wanted) and not any(has_label(given, text) for text in unwanted)

    return _asked(ctx, args, question, lambda: prune_volumes(ctx, everything=everything, only=only))


def system(ctx: Context, args: Arguments) -> int:
    """`nacre system prune`."""
    images_too = "all images without at least one container associated to them" if args.all else "all dangling images"
    parts = ["all stopped containers", *(["anonymous volumes not used by at least one container"] if args.volumes else []), images_too]
    question = "\n".join(["This will remove:", *(f"  - {part}" for part in parts)])

    def everything() -> int:
        freed = prune_containers(ctx) + (prune_volumes(ctx, everything=False) if args.volumes else 0)
        return freed + prune_images(ctx, everything=args.all)

    return _asked(ctx, args, question, everything)


def _asked(ctx: Context, args: Arguments, question: str, action: Callable[[], int]) -> int:
    if args.force or confirm(f"WARNING! {question}"):
        ctx.out(f"Total reclaimed space: {human_size(action(), 4)}")
    return 0


def prune_containers(ctx: Context, wanted: Callable[[Container], bool] = bool) -> int:
    """Removes every container that does not run and that `wanted` says yes to, and names them; the bytes that became free."""
    sizes = {container.id: container_size(container)[0] for container in ctx.engine.containers.list(all=True)}
    removed = ctx.engine.containers.prune(wanted)
    if removed:
        ctx.out("\n".join(["Deleted Containers:", *removed, ""]))
    return sum(sizes.get(identifier, 0) for identifier in removed)


def prune_volumes(ctx: Context, *, everything: bool, only: Callable[[Mapping[str, str]], bool] | None = None) -> int:
    """Removes unused volumes, the anonymous ones or every one, and names them; the bytes that became free. only: judges by labels."""
    sizes = {volume["Name"]: allocated(volume["Mountpoint"]) for volume in ctx.engine.volumes.list() if not volume["UsedBy"]}
    removed = ctx.engine.volumes.prune(all=everything, only=only)
    if removed:
        ctx.out("\n".join(["Deleted Volumes:", *removed, ""]))
    return sum(sizes.get(name, 0) for name in removed)


def prune_images(ctx: Context, *, everything: bool) -> int:
    """Removes images that no container uses: those without a name, or every one; the bytes that became free."""
    used = {container.record.image_id for container in ctx.engine.containers.list(all=True)}
    lines, freed = [], 0
    for image in ctx.engine.images.list():
        if image.id in used or (image.tags and not everything):
            continue
        try:
            for name in image.tags or (short_id(image.id),):
                lines += [f"{action}: {what}" for action, what in ctx.engine.images.remove(name)]
            freed += image.size
        except NacreError as error:
            ctx.report(error)
    if lines:
        ctx.out("\n".join(["Deleted Images:", *lines, ""]))
    return freed


_FORCE = Flag("force", "Do not ask", short="f")

COMMANDS = {
    "container prune": Command(
        containers,
        "",
        (Flag("filter", "Remove only what matches (name=value)", "list"), _FORCE),
        about="Filters: label, label!, until.",
        examples=(("container prune -f --filter until=24h", "Stopped containers that were made more than a day ago"),),
    ),
    "image prune": Command(
        images, "", (Flag("all", "All images that no container uses, not only those without a name", short="a"), _FORCE)
    ),
    "volume prune": Command(
        volumes,
        "",
        (
            Flag("all", "All unused volumes, not only anonymous ones", short="a"),
            Flag("filter", "Remove only what matches (name=value)", "list"),
            _FORCE,
        ),
        about="Filters: all, label, and label! for those without.",
        examples=(("volume prune -a --filter label!=keep", "All unused volumes but those labelled keep"),),
    ),
    "system prune": Command(
        system,
        "",
        (
            Flag("all", "All images that no container uses, not only those without a name", short="a"),
            _FORCE,
            Flag("volumes", "Anonymous volumes too"),
        ),
        examples=(("system prune -f", "Stopped containers and images without a name, without being asked"),),
    ),
}
