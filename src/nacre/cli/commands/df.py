"""`nacre system df`."""

from __future__ import annotations

from typing import NamedTuple

from nacre.cli.commands.ps import FORMAT
from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command
from nacre.cli.table import Field, show
from nacre.cli.units import human_size
from nacre.cli.usage import allocated, container_size
from nacre.model.container import State
from nacre.model.image import Image


class Kind(NamedTuple):
    """One line: how many there are, how many of them are used, their bytes and what would become free."""

    name: str
    total: int
    active: int
    size: int
    free: int


_FIELDS = {
    "Type": Field("TYPE", lambda kind: kind.name),
    "TotalCount": Field("TOTAL", lambda kind: str(kind.total)),
    "Active": Field("ACTIVE", lambda kind: str(kind.active)),
    "Size": Field("SIZE", lambda kind: human_size(kind.size, 4)),
    "Reclaimable": Field("RECLAIMABLE", lambda kind: f"{human_size(kind.free, 4)} ({kind.free * 100 // kind.size if kind.size else 0}%)"),
}


def run(ctx: Context, args: Arguments) -> int:
    """`nacre system df`."""
    show(ctx, [_images(ctx), _containers(ctx), _volumes(ctx)], _FIELDS, args.format, tuple(_FIELDS), kind="usage")
    return 0


def _images(ctx: Context) -> Kind:
    found = ctx.engine.images.list()
    used = {container.record.image_id for container in ctx.engine.containers.list(all=True)}
    # Layers that images share are there once: counted once, and free only when no used image has them.
    layers = {digest: size for image in found for digest, size in _layer_sizes(image).items()}
    kept = {digest for image in found if image.id in used for digest in _layer_sizes(image)}
    whole = sum(layers.values())
    free = sum(size for digest, size in layers.items() if digest not in kept)
    return Kind("Images", len(found), sum(image.id in used for image in found), whole, free)


def _layer_sizes(image: Image) -> dict[str, int]:
    """Bytes on this host by layer. An image whose history does not tell is counted as one piece."""
    sizes = [step.size for step in image.history if not step.empty]
    if len(sizes) != len(image.layers) or sum(sizes) != image.size:
        return {image.id: image.size}
    return {layer.diff_id: size for layer, size in zip(image.layers, sizes, strict=True)}


def _containers(ctx: Context) -> Kind:
    found = [
        (container_size(container)[0], container.state in (State.RUNNING, State.PAUSED))
        for container in ctx.engine.containers.list(all=True)
    ]
    running = sum(active for _, active in found)
    return Kind("Containers", len(found), running, sum(size for size, _ in found), sum(size for size, active in found if not active))


def _volumes(ctx: Context) -> Kind:
    found = [(allocated(volume["Mountpoint"]), bool(volume["UsedBy"])) for volume in ctx.engine.volumes.list()]
    used = sum(active for _, active in found)
    return Kind("Local Volumes", len(found), used, sum(size for size, _ in found), sum(size for size, active in found if not active))


COMMANDS = {"system df": Command(run, "", (FORMAT,), examples=(("system df", "How much disk space images, containers and volumes take"),))}
