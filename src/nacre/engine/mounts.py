"""What is mounted into a container: resolved when it is made, pinned when it starts; and a plain directory as its root file system."""

from __future__ import annotations

import os
import posixpath

from nacre.engine.core import Core
from nacre.engine.sharing import find
from nacre.errors import InvalidArgument, NotFound, Unsupported
from nacre.isolation.binds import check, is_directory_below
from nacre.isolation.plan import subpath
from nacre.model.container import BoundMount, ContainerSpec, LayerMount, Level, MountSpec, Rootfs

_LABEL = "label="


def prepared(core: Core, spec: ContainerSpec, *, make: bool) -> tuple[ContainerSpec, tuple[BoundMount, ...]]:
    """Check what is to be mounted, make volumes that have labels, and take out images, which exist. Raises InvalidArgument, NotFound."""
    found = []
    for item in spec.mounts:
        check(item, spec)
        if item.kind == "image":
            found.append(_image(core, item))
        labels = dict(option.removeprefix(_LABEL).partition("=")[::2] for option in item.options if option.startswith(_LABEL))
        if labels and not item.source:
            raise InvalidArgument(f"mount {item.target}: a volume without a name cannot have labels", hint="name it: source=NAME")
        if labels and make:
            core.volumes.create(item.source, labels=labels)
    return spec.replace(mounts=tuple(item for item in spec.mounts if item.kind != "image")), tuple(found)


def _image(core: Core, item: MountSpec) -> BoundMount:
    try:
        found = core.images.resolve(item.source)
    except NotFound as error:
        raise NotFound(f"image mount: {error.message}", hint=f"nacre pull {item.source}") from error
    return BoundMount(target=item.target, kind="image", source=found.id, read_only=True, options=(f"name={item.source}", *item.options))


def borrowed(core: Core, spec: ContainerSpec) -> tuple[BoundMount, ...]:
    """The volumes and binds of the containers that --volumes-from names; what the container mounts itself wins, and the last named.

    Raises NotFound, InvalidArgument for a mode that does not exist.
    """
    own = {posixpath.normpath(item.target) for item in spec.mounts}
    found: dict[str, BoundMount] = {}
    for text in spec.volumes_from:
        name, _, mode = text.partition(":")
        words = mode.split(",") if mode else []
        if not name or (unknown := [word for word in words if word not in ("ro", "rw", "z", "Z")]):
            wrong = f"invalid mode: {unknown[0]}" if name else "the name of a container is missing"
            raise InvalidArgument(f"--volumes-from {text}: {wrong}", hint="--volumes-from NAME[:ro]")
        for mount in find(core, name).mounts:
            if mount.kind in ("bind", "volume") and mount.target not in own:
                found[mount.target] = mount.replace(read_only="ro" in words or (mount.read_only and "rw" not in words))
    return tuple(found.values())


def current(core: Core, mounts: tuple[BoundMount, ...], level: Level) -> tuple[BoundMount, ...]:
    """The mounts as they are at this start: with the layers of images, and what a part of a volume is. Raises NotFound, InvalidArgument."""
    return tuple(_current(core, mount, level) for mount in mounts)


def _current(core: Core, mount: BoundMount, level: Level) -> BoundMount:
    if mount.kind == "image":
        find = core.layers.image if level is Level.VM else core.layers.get
        return mount.replace(layers=tuple(find(layer.diff_id) for layer in core.images.resolve(mount.source).layers))
    if not subpath(mount):
        return mount
    try:
        return mount.replace(is_dir=is_directory_below(mount.source, subpath(mount)))
    except OSError as error:
        name = mount.options[0].removeprefix("name=")
        raise InvalidArgument(f"cannot access path {subpath(mount)} of volume {name}: {error.strerror}", hint="make it first") from error


def plain_rootfs(core: Core, identifier: str, spec: ContainerSpec) -> Rootfs:
    """The root file system of a container that has a directory instead of an image. Raises InvalidArgument, HostError."""
    path = check_rootfs(spec)
    if not spec.rootfs_overlay:
        return Rootfs(driver="directory", tree=path)
    from nacre.storage.driver import make_upper

    status = os.stat(path)
    directory = core.layout.container(identifier)
    upper = make_upper(directory, (status.st_mode & 0o7777, status.st_uid, status.st_gid), None)
    return Rootfs(driver="overlay", layers=(LayerMount(diff_id="", path=path, format="directory"),), upper=upper)


def check_rootfs(spec: ContainerSpec) -> str:
    """The real path of the directory. Raises InvalidArgument, Unsupported."""
    if spec.isolation is Level.VM:
        # The machine sees the directory through 9p, which is no layer for overlayfs and cannot be id-mapped; and it has no disk then.
        image = any(mount.kind == "image" for mount in spec.mounts)
        reasons = {"DIR:O": spec.rootfs_overlay, f"--userns {spec.userns}": spec.userns not in ("", "host"), "image mounts": image}
        for what, wanted in reasons.items():
            if wanted:
                raise Unsupported(
                    f"--rootfs {spec.rootfs}: a virtual machine uses a directory in place; {what} is not possible with it",
                    hint="use --isolation process, or leave it out",
                )
    path = os.path.realpath(spec.rootfs)
    if not os.path.isdir(path):
        raise InvalidArgument(f"--rootfs {spec.rootfs}: no such directory", hint="name a directory with a root file system in it")
    if path == "/":
        raise InvalidArgument("--rootfs /: the host's own root directory cannot be a container's", hint="nacre unshare runs in namespaces")
    return path
