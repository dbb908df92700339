"""What the caller asked for and what the image says, merged into what will run (Docker's rules, docker run reference)."""

from __future__ import annotations

import os
import posixpath

from nacre.errors import InvalidArgument
from nacre.isolation import security
from nacre.model.container import BoundMount, ContainerSpec, Level, MountSpec, ProcessSpec
from nacre.model.image import Image, ImageConfig
from nacre.model.network import PortMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine.core import Core

PLAIN = Image(id="", digest="")  # in place of an image, where a directory is the root file system
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def process_spec(spec: ContainerSpec, config: ImageConfig, hostname: str) -> ProcessSpec:
    """The main process. An entrypoint given by the caller discards the image's command.

    Raises InvalidArgument when neither side names a command, or a value cannot be used.
    """
    args = (*config.entrypoint, *(spec.command or config.cmd)) if spec.entrypoint is None else (*spec.entrypoint, *spec.command)
    if not args or not args[0]:
        raise InvalidArgument("no command specified", hint="name one after the image: nacre run IMAGE COMMAND")
    return ProcessSpec(
        args=args,
        env=environment((*config.env, *spec.env), hostname=hostname, tty=spec.tty),
        working_dir=working_dir(spec.working_dir or config.working_dir or "/"),
        user=spec.user or config.user,
        groups=spec.groups,
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        privileged=spec.privileged,
    )


def environment(given: tuple[str, ...], *, hostname: str, tty: bool) -> tuple[str, ...]:
    """Defaults, then the given variables; the last of a name wins. ``KEY`` without a value is dropped (it was unset for the caller)."""
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if tty:
        merged["TERM"] = "xterm"
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise InvalidArgument(f"invalid environment variable: {entry!r}")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_dir(path: str) -> str:
    """Normalised. Raises InvalidArgument unless absolute."""
    if not path.startswith("/"):
        raise InvalidArgument(f"the working directory '{path}' is invalid, it needs to be an absolute path")
    return posixpath.normpath(path).replace("//", "/")


def level(name: str) -> Level:
    """The isolation level of that name: callers write it as a word as well. Raises InvalidArgument."""
    try:
        return Level(name)
    except ValueError:
        raise InvalidArgument(f"unknown isolation level {name!r}", hint=f"one of {', '.join(Level)}") from None


def validate(spec: ContainerSpec) -> list[str]:
    """Refuse what cannot work; answers with warnings about what will be different. Raises InvalidArgument."""
    security.check(spec)
    if spec.rootfs:
        from nacre.engine import mounts

        mounts.check_rootfs(spec)
    if spec.restart.name != "no":
        from nacre.engine import restart

        restart.check(spec.restart, auto_remove=spec.auto_remove)
    if spec.log.driver or spec.log.options:
        from nacre.engine import logdrivers

        logdrivers.check(spec.log)
    if spec.health:
        from nacre.engine import health

        health.check(spec.health)
    if spec.hostname and (len(spec.hostname) > 63 or "/" in spec.hostname):
        raise InvalidArgument(f"invalid hostname {spec.hostname!r}: at most 63 characters, no '/'")
    seen: set[str] = set()
    for mount in spec.mounts:
        target = posixpath.normpath(mount.target)
        if target in seen:
            raise InvalidArgument(f"duplicate mount point: {target}")
        seen.add(target)
        if not target.startswith("/") or target == "/":
            raise InvalidArgument(f"invalid mount target {mount.target!r}: it must be an absolute path below /")
    found = []
    if spec.resources.oom_kill_disable:
        from nacre.isolation import limits

        found += limits.warnings(spec.resources)
    if spec.network in ("host", "none") and spec.ports:
        found.append(f"published ports are discarded when using the {spec.network} network")
    return found


def completed(core: Core, spec: ContainerSpec, *, make: bool = True) -> tuple[ContainerSpec, tuple[BoundMount, ...]]:
    """The spec with what it names found and fixed: other containers by their ids, the content of a seccomp profile, devices.

    Answers with the mounts that are there already as well: of other containers and images. make: volumes that have labels.
    Raises NotFound, InvalidArgument, Unsupported.
    """
    borrowed: tuple[BoundMount, ...] = ()
    if spec.security_opt:
        spec = security.embedded(spec)
    if any(mode.startswith("container:") for mode in (spec.network, spec.pid, spec.ipc, spec.uts, spec.userns)):
        from nacre.engine import sharing

        spec = sharing.resolve(core, spec)
    if spec.devices or spec.gpus or spec.device_rules:
        from nacre.isolation import devices

        devices.check(spec)
    if spec.volumes_from or any(item.options or item.kind == "image" for item in spec.mounts):
        from nacre.engine import mounts

        borrowed = mounts.borrowed(core, spec)
        spec, images = mounts.prepared(core, spec, make=make)
        borrowed += images
    return spec, borrowed


def with_options(spec: ContainerSpec, made: tuple[BoundMount, ...]) -> tuple[BoundMount, ...]:
    """The mounts of a spec, made, with those options of volumes that are heeded when the container starts."""
    kept = [tuple(option for option in item.options if option != "nocopy" and not option.startswith("label=")) for item in spec.mounts]
    pairs = zip(made, kept, strict=True)
    return tuple(mount.replace(options=(*mount.options, *more)) if mount.kind == "volume" else mount for mount, more in pairs)


def image_volumes(spec: ContainerSpec, config: ImageConfig, borrowed: tuple[str, ...] = ()) -> tuple[MountSpec, ...]:
    """The caller's mounts and an anonymous volume for every VOLUME of the image that none of them, nor of those borrowed, covers."""
    covered = {posixpath.normpath(path) for path in (*(mount.target for mount in spec.mounts), *borrowed)}
    extra = [MountSpec(kind="volume", target=path) for path in config.volumes if posixpath.normpath(path) not in covered]
    return (*spec.mounts, *extra)


def bind(spec: MountSpec, *, create: bool) -> BoundMount:
    """Resolve a bind mount on this host. create: make a missing source directory, as `docker run -v` does. Raises InvalidArgument."""
    source = os.path.realpath(spec.source)
    if not spec.source.startswith("/"):
        raise InvalidArgument(f"invalid mount source {spec.source!r}: it must be an absolute path")
    if not os.path.exists(source):
        if not create:
            raise InvalidArgument(f"bind source path does not exist: {spec.source}")
        try:
            os.makedirs(source, exist_ok=True)
        except OSError as error:
            raise InvalidArgument(f"cannot create bind source {spec.source}: {error.strerror}") from error
    return BoundMount(
        target=posixpath.normpath(spec.target), source=source, read_only=spec.read_only, is_dir=os.path.isdir(source), options=spec.options
    )


def published(spec: ContainerSpec, config: ImageConfig) -> tuple[PortMapping, ...]:
    """The ports to publish: the caller's, and with publish_all every exposed one on a port of the engine's choice."""
    if spec.network in ("host", "none"):
        return ()
    if not spec.publish_all:
        return spec.ports
    taken = {(port.container_port, port.protocol) for port in spec.ports}
    extra = []
    for exposed in config.exposed_ports:
        number, _, protocol = exposed.partition("/")
        if number.isdigit() and (int(number), protocol or "tcp") not in taken:
            extra.append(PortMapping(container_port=int(number), protocol=protocol or "tcp"))
    return (*spec.ports, *extra)
