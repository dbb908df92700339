"""What a run would do, without doing it."""

from __future__ import annotations

import os

from nacre.engine import merge
from nacre.engine.core import Core
from nacre.engine.lifecycle import Lifecycle, hostname
from nacre.isolation import driver
from nacre.model.container import BoundMount, Container, ContainerSpec, LayerMount, Level, MountSpec, Rootfs, Sandbox
from nacre.model.network import Endpoint

EXAMPLE_ID = "e0" * 32


def explain(core: Core, lifecycle: Lifecycle, spec: ContainerSpec) -> str:
    """The spawn record of the main process as text, with example values for what only a real run decides (id, address)."""
    merge.validate(spec)
    spec, borrowed = merge.completed(core, spec, make=False)
    image = merge.PLAIN if spec.rootfs else core.images.resolve(spec.image)
    spec = spec.replace(mounts=merge.image_volumes(spec, image.config, tuple(mount.target for mount in borrowed)))
    layers = tuple(core.layers.get(layer.diff_id) for layer in image.layers)
    state = core.layout.container(EXAMPLE_ID)
    disk = spec.isolation is Level.VM
    trees = {"btrfs": f"{state}/tree/root", "vfs": f"{state}/tree/root", "fuse-overlayfs": f"{core.layout.run}/fuse/{EXAMPLE_ID}/root"}
    rootfs = Rootfs(
        driver=core.layers.driver, layers=layers or (LayerMount(diff_id="", path="", format="directory"),),
        upper=f"{state}/upper", disk=f"{state}/upper.ext4" if disk else "", tree="" if disk else trees.get(core.layers.driver, ""),
        options="userxattr" if core.layers.choice.user_namespace else "",
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
        mounts=(*merge.with_options(spec, tuple(_mount(core, item) for item in spec.mounts)), *borrowed),
        endpoint=plain if spec.network in ("host", "none") or spec.network.startswith("container:") else bridged,
        rootfs=rootfs,
    )
    if spec.rootfs:
        record = record.replace(rootfs=_plain(spec, f"{state}/upper"))
    level = driver(spec.isolation)
    plan = lifecycle.plan(record, _sandbox(core, lifecycle, record), level)
    lines = [f"spawn at level {spec.isolation}: clone {plan.clone:#x}, log {plan.log}, exit record {plan.exit}"]
    return "\n".join([*lines, *(f"{number:4d}  {item.describe()}" for number, item in enumerate(plan.ops))])


def _sandbox(core: Core, lifecycle: Lifecycle, record: Container) -> Sandbox:
    """The sandbox with the places where namespaces of others are now, or would be."""
    sandbox = lifecycle.sandbox(record, 0)
    if any(mount.kind == "image" for mount in sandbox.mounts):
        from nacre.engine import mounts

        sandbox = sandbox.replace(mounts=mounts.current(core, sandbox.mounts, sandbox.level))
    spec = record.spec
    if any(mode.startswith("container:") for mode in (spec.network, spec.pid, spec.ipc, spec.uts, spec.userns)):
        from nacre.engine import sharing

        sandbox = sandbox.replace(joins=sharing.paths(core, spec))
    return sandbox


def _plain(spec: ContainerSpec, upper: str) -> Rootfs:
    if not spec.rootfs_overlay:
        return Rootfs(driver="directory", tree=spec.rootfs)
    return Rootfs(driver="overlay", layers=(LayerMount(diff_id="", path=spec.rootfs, format="directory"),), upper=upper)


def _mount(core: Core, spec: MountSpec) -> BoundMount:
    """What the mount would be resolved to; nothing is made."""
    if spec.kind == "bind" and os.path.exists(spec.source):
        return merge.bind(spec, create=False)
    name = spec.source or EXAMPLE_ID
    source = f"{core.layout.root}/volumes/{name}/_data" if spec.kind == "volume" else spec.source
    options = (f"name={name}",) if spec.kind == "volume" else spec.options
    return BoundMount(target=spec.target, kind=spec.kind, source=source, read_only=spec.read_only, options=options)
