"""`nacre inspect` and its management forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.template import Struct, Template
from nacre.errors import InvalidArgument, NacreError, NotFound

KINDS = ("container", "image", "volume", "network")

# Members of the answers that are maps (any key may be missing); every other object has a fixed set of keys.
_MAPS = frozenset(
    (
        "Labels",
        "Ports",
        "PortBindings",
        "ExposedPorts",
        "Volumes",
        "Networks",
        "Options",
        "Sysctls",
        "DriverOpts",
        "Containers",
        "Annotations",
    )
)


def inspector(kind: str | None) -> Callable[[Context, Arguments], int]:
    """The function behind `nacre inspect` (None) and behind `nacre container inspect` and its like."""

    def run(ctx: Context, args: Arguments) -> int:
        chosen = kind or args.type
        if chosen and chosen not in KINDS:
            raise UsageError(f"{chosen!r} is not a valid value for --type", hint=f"One of {', '.join(KINDS)}.")
        size = kind in (None, "container") and bool(args.size)
        return inspect(ctx, args.rest, (chosen,) if chosen else KINDS, args.format, size=size, kind=chosen)

    return run


def inspect(ctx: Context, names: list[str], kinds: tuple[str, ...], form: str, *, size: bool, kind: str) -> int:
    """Prints what is known about the objects: one JSON array, or one line per object with a format. Exit code 1 if one is missing."""
    template = Template(form) if form and form != "json" else None
    found, errors = [], list[NacreError]()
    for name in names:
        try:
            found.append(find(ctx, name, kinds, size=size, kind=kind))
        except NacreError as error:
            errors.append(error)
    if template is not None or form == "json":
        for item in found:
            ctx.out(template.render(typed(item)) if template else json.dumps(item, ensure_ascii=False, separators=(",", ":")))
    else:
        ctx.out(json.dumps(found, ensure_ascii=False, indent=4))
    for problem in errors:
        ctx.report(problem)
    return 1 if errors else 0


def find(ctx: Context, name: str, kinds: tuple[str, ...], *, size: bool, kind: str) -> dict[str, Any]:
    """One object of the first kind that has this name. Raises NotFound."""
    engine = ctx.engine
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "container": lambda: _container(ctx, name, size=size),
        "image": lambda: engine.images.inspect(name),
        "volume": lambda: engine.volumes.inspect(name),
        "network": lambda: _network(ctx, name),
    }
    for candidate in kinds:
        try:
            return ways[candidate]()
        except NotFound:
            if len(kinds) == 1:
                raise
        except InvalidArgument:
            # No name of this kind can look like that; another kind's can.
            if len(kinds) == 1:
                raise
    raise NotFound(f"No such object: {name}")


def _container(ctx: Context, name: str, *, size: bool) -> dict[str, Any]:
    container = ctx.engine.containers.get(name)
    answer = container.inspect()
    if size:
        from nacre.cli.usage import container_size

        answer["SizeRw"], answer["SizeRootFs"] = container_size(container)
    return answer


def _network(ctx: Context, name: str) -> dict[str, Any]:
    found = ctx.engine.networks.inspect(name)
    ipam = [{"Subnet": found["subnet"], "Gateway": found["gateway"]}] if found["subnet"] else []
    return {
        "Name": found["name"],
        "Id": found["id"],
        "Created": found["created"],
        "Scope": "local",
        "Driver": found["driver"],
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": ipam},
        "Internal": found["internal"],
        "Attachable": False,
        "Ingress": False,
        "Containers": found["containers"],
        "Options": {"com.docker.network.bridge.name": found["bridge"], "com.docker.network.driver.mtu": str(found["mtu"])}
        if found["bridge"]
        else {},
        "Labels": {},
    }


def typed(value: Any, name: str = "") -> Any:
    """The answer with its fixed objects marked, so that a template's misspelt field is an error while a missing label is not."""
    if isinstance(value, dict):
        made = {key: typed(item, "" if name in _MAPS else key) for key, item in value.items()}
        return made if name in _MAPS else Struct(made)
    if isinstance(value, list | tuple):
        return [typed(item) for item in value]
    return value


_FORMAT = Flag("format", "json, or a Go template over the object", "string", short="f")
_SIZE = Flag("size", "Show the disk space that a container uses", short="s")

COMMANDS = {
    "inspect": Command(
        inspector(None),
        "NAME|ID [NAME|ID...]",
        (_FORMAT, _SIZE, Flag("type", "Look only for this kind of object", "string", choices=("", *KINDS))),
        least=1,
        most=None,
        complete="objects",
        examples=(
            ("inspect web", "Everything, as JSON"),
            ("inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' web", "Two fields"),
            ("inspect -f '{{json .Mounts}}' web", "One part, as JSON"),
        ),
    ),
    "container inspect": Command(
        inspector("container"), "CONTAINER [CONTAINER...]", (_FORMAT, _SIZE), least=1, most=None, complete="containers"
    ),
    "image inspect": Command(inspector("image"), "IMAGE [IMAGE...]", (_FORMAT,), least=1, most=None, complete="images"),
    "volume inspect": Command(inspector("volume"), "VOLUME [VOLUME...]", (_FORMAT,), least=1, most=None, complete="volumes"),
    "network inspect": Command(inspector("network"), "NETWORK [NETWORK...]", (_FORMAT,), least=1, most=None, complete="networks"),
}
