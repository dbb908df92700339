"""What a run would do, without doing it."""

from __future__ import annotations

import os

from nacre.engine import merge
from nacre.engine.core import Core
from nacre.engine.lifecycle import Lifecycle, hostname
from nacre.isolation import driver
from nacre.model.container import BoundMount, Container, ContainerSpec, LayerMount, Level, MountSpec, Rootfs
from nacre.model.network import Endpoint

EXAMPLE_ID = "e0" * 32


def explain(core: Core, lifecycle: Lifecycle, spec: ContainerSpec) -> str:
    """The spawn record of the main process as text, with example values for what only a real run decides (id, address)."""
    image = core.images.resolve(spec.image)
    merge.validate(spec)
    spec = spec.replace(mounts=merge.image_volumes(spec, image.config))
    layers = tuple(core.layers.get(layer.diff_id) for layer in image.layers)
    state = core.layout.container(EXAMPLE_ID)
    whole, disk = core.layers.driver in ("btrfs", "vfs"), spec.isolation is Level.VM
    rootfs = Rootfs(
        driver=core.layers.driver, layers=layers or (LayerMount(diff_id="", path="", format="directory"),),
        upper=f"{state}/upper", disk=f"{state}/upper.ext4" if disk else "", tree=f"{state}/tree" if whole and not disk else "",
    )  # fmt: skip
    bridged = Endpoint(
        network=spec.network, netns=f"{core.layout.run}/netns/{EXAMPLE_ID}", interface="eth0", address="10.88.0.2/16", gateway="10.88.0.1"
    )
    plain = Endpoint(network=spec.network, netns="" if spec.network == "host" else bridged.netns)
    record = Container(
        id=EXAMPLE_ID,
        name=spec.name or "example",
        spec=spec,
        image_id=image.id,
        image_name=spec.image,
        image_config=image.config,
        process=merge.process_spec(spec, image.config, hostname(spec, EXAMPLE_ID)),
        mounts=tuple(_mount(core, item) for item in spec.mounts),
        endpoint=plain if spec.network in ("host", "none") else bridged,
        rootfs=rootfs,
    )
    level = driver(spec.isolation)
    plan = lifecycle.plan(record, lifecycle.sandbox(record, 0), level)
    lines = [f"spawn at level {spec.isolation}: clone {plan.clone:#x}, log {plan.log}, exit record {plan.exit}"]
    return "\n".join([*lines, *(f"{number:4d}  {item.describe()}" for number, item in enumerate(plan.ops))])


def _mount(core: Core, spec: MountSpec) -> BoundMount:
    """What the mount would be resolved to; nothing is made."""
    if spec.kind == "bind" and os.path.exists(spec.source):
        return merge.bind(spec, create=False)
    source = f"{core.layout.root}/volumes/{spec.source or EXAMPLE_ID}/_data" if spec.kind == "volume" else spec.source
    return BoundMount(target=spec.target, kind=spec.kind, source=source, read_only=spec.read_only, options=spec.options)
