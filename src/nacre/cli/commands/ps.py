"""`nacre ps`."""

from __future__ import annotations

import time
from collections.abc import Callable

from nacre.cli.context import Context
from nacre.cli.filters import Filters, has_label, matches_name
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.ports import ports_text
from nacre.cli.table import Field, ellipsis, labels_text, short_id, show
from nacre.cli.units import ago, human_duration, human_size, local_time, parse_time
from nacre.model.container import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.engine import Container

COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Isolation", "Ports", "Names")
FILTERS = (
    *("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation"),
    *("label", "name", "network", "publish", "since", "status", "volume"),
)


def fields(ctx: Context, *, full: bool, sizes: bool = False) -> dict[str, Field]:
    """The fields of a container, in Docker's names, and our Isolation. full: nothing cut short; sizes: JSON has Size too."""
    cut: Callable[[str], str] = (lambda text: text) if full else short_id
    return {
        "ID": Field("CONTAINER ID", lambda item: cut(item.id)),
        "Image": Field("IMAGE", lambda item: image_text(item, full=full)),
        "Command": Field("COMMAND", lambda item: command_text(item, full=full)),
        "CreatedAt": Field("CREATED AT", lambda item: local_time(parse_time(item.record.created))),
        "RunningFor": Field("CREATED", lambda item: ago(parse_time(item.record.created))),
        "Status": Field("STATUS", status_text),
        "State": Field("STATE", lambda item: str(item.state)),
        "Isolation": Field("ISOLATION", lambda item: str(item.record.spec.isolation)),
        "Ports": Field("PORTS", container_ports),
        "Names": Field("NAMES", lambda item: item.name),
        "Labels": Field("LABELS", lambda item: labels_text(labels_of(item))),
        "Label": Field("LABEL", lambda item: lambda key: labels_of(item).get(key, ""), in_json=False),
        "Mounts": Field("MOUNTS", lambda item: ",".join(mount_names(item, full=full))),
        "LocalVolumes": Field("LOCAL VOLUMES", lambda item: str(sum(mount.kind == "volume" for mount in item.record.mounts))),
        "Networks": Field("NETWORKS", lambda item: item.record.spec.network),
        # Finding it means looking at every file.
        "Size": Field("SIZE", lambda item: size_text(ctx, item), in_json=sizes),
    }


def image_text(item: Container, *, full: bool) -> str:
    """The image as it was named when the container was made; an id is cut."""
    name = item.record.image_name or "<no image>"
    return name if full or not name.startswith("sha256:") else short_id(name)


def command_text(item: Container, *, full: bool) -> str:
    """The command in quotes, cut to twenty characters; what has a space in it is quoted once more."""
    from nacre.cli.quote import quoted

    program, *rest = item.record.process.args
    text = " ".join((program, *(f"'{word}'" if " " in word else word for word in rest)))
    return quoted(text if full else ellipsis(text, 20))


def status_text(item: Container) -> str:
    """``Up 2 minutes``, ``Exited (0) 5 seconds ago``, ``Created`` ..."""
    state, record = item.state, item.record
    if state in (State.RUNNING, State.PAUSED):
        return f"Up {human_duration(time.time() - parse_time(record.started))}{_remark(item, state)}"
    if state is State.RESTARTING:
        return f"Restarting ({record.exit_code}) {ago(parse_time(record.finished))}"
    if state is State.EXITED:
        return f"Exited ({record.exit_code}) {ago(parse_time(record.finished))}"
    return "Removal In Progress" if record.removing else str(state).capitalize()


def _remark(item: Container, state: State) -> str:
    if state is State.PAUSED:
        return " (Paused)"
    health = item.health()
    return f" ({'health: ' if health['Status'] == 'starting' else ''}{health['Status']})" if health else ""


def container_ports(item: Container) -> str:
    """Its published and exposed ports; none unless it runs."""
    if item.state not in (State.RUNNING, State.PAUSED):
        return ""
    return ports_text(item.ports(), item.record.image_config.exposed_ports)


def labels_of(item: Container) -> dict[str, str]:
    """The labels of the image and its own, which win."""
    return {**item.record.image_config.labels, **item.record.spec.labels}


def mount_names(item: Container, *, full: bool) -> list[str]:
    """What is mounted: a volume's name, a host path."""
    names = [volume_name(mount) or mount.source for mount in item.record.mounts if mount.kind != "tmpfs"]
    return names if full else [ellipsis(name, 15) for name in names]


def volume_name(mount: Any) -> str:
    """The volume's name; "" for other mounts."""
    return next((option[5:] for option in mount.options if option.startswith("name=")), "") if mount.kind == "volume" else ""


def size_text(ctx: Context, item: Container) -> str:
    """``12.3kB (virtual 7.81MB)``: what it wrote, and with its image."""
    from nacre.cli.usage import container_size

    own, whole = container_size(item)
    return f"{human_size(own)} (virtual {human_size(whole)})"


def run(ctx: Context, args: Arguments) -> int:
    """`nacre ps`."""
    filters = Filters(args.filter, FILTERS)
    last = 1 if args.latest else args.last
    if args.given("last") and args.last < 1 and not args.latest:
        last = -1
    everything = args.all or last > 0 or any(name in filters for name in ("status", "exited"))
    containers = ctx.engine.containers.list(all=everything)
    if filters.values:
        containers = select(ctx, containers, filters)
    if last > 0:
        containers = containers[:last]
    columns = (*COLUMNS, "Size") if args.size else COLUMNS
    show(
        ctx,
        containers,
        fields(ctx, full=args.no_trunc, sizes=args.size),
        args.format,
        columns,
        quiet="ID" if args.quiet else "",
        kind="container",
    )
    return 0


def select(ctx: Context, containers: list[Container], filters: Filters) -> list[Container]:
    """The containers that the filters let through. Raises NotFound for a reference point that does not exist."""
    tests: dict[str, Callable[[Any, str], bool]] = {
        "id": lambda item, value: item.id.startswith(value),
        "name": lambda item, value: (
            matches_name(item.name, value.removeprefix("^/").removeprefix("/")) or matches_name(f"/{item.name}", value)
        ),
        "label": lambda item, value: has_label(labels_of(item), value),
        "status": lambda item, value: str(item.state) == _known(value, (*map(str, State), "removing"), "status"),
        "exited": lambda item, value: item.state is State.EXITED and str(item.record.exit_code) == value,
        "isolation": lambda item, value: str(item.record.spec.isolation) == value,
        "network": lambda item, value: item.record.spec.network == value,
        "volume": lambda item, value: any(value in (volume_name(mount), mount.source, mount.target) for mount in item.record.mounts),
        "publish": lambda item, value: _has_port(
            [(port.host_port, port.protocol) for port in item.record.spec.ports + item.ports()], value
        ),
        "expose": lambda item, value: _has_port([_exposed(port) for port in item.record.image_config.exposed_ports], value),
        "health": lambda item, value: (item.health() or {"Status": "none"})["Status"] == _known(value, _HEALTH, "health"),
        "is-task": lambda item, value: value in ("false", "0"),
    }
    if "before" in filters or "since" in filters:
        moments = {
            value: ctx.engine.containers.get(value).record.created for name in ("before", "since") for value in filters.values.get(name, ())
        }
        tests["before"] = lambda item, value: item.record.created < moments[value]
        tests["since"] = lambda item, value: item.record.created > moments[value]
    if "ancestor" in filters:
        ancestors = {value: _image_id(ctx, value) for value in filters.values["ancestor"]}
        tests["ancestor"] = lambda item, value: item.record.image_name == value or item.record.image_id == ancestors[value]
    return filters.apply(containers, tests)


_HEALTH = ("starting", "healthy", "unhealthy", "none")


def _known(value: str, known: tuple[str, ...], filter: str) -> str:
    if value not in known:
        raise UsageError(f"invalid filter '{filter}={value}'", hint=f"One of {', '.join(known)}.")
    return value


def _image_id(ctx: Context, reference: str) -> str:
    from nacre.errors import NotFound

    try:
        return ctx.engine.images.get(reference).id
    except NotFound:
        return ""


def _exposed(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return (int(number) if number.isdigit() else 0), protocol or "tcp"


def _has_port(ports: list[tuple[int, str]], value: str) -> bool:
    """``8080``, ``8080/udp``, ``8000-8080/tcp``."""
    numbers, slash, protocol = value.partition("/")
    first, dash, last = numbers.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise UsageError(f"invalid filter: {value!r} is not a port", hint="as 80, 80/udp or 8000-8080/tcp")
    low, high = int(first), int(last or first)
    return any(low <= port <= high and (not slash or protocol == kind) for port, kind in ports)


FORMAT = Flag("format", "table, json, 'table TEMPLATE' or TEMPLATE: a Go template over the fields", "string")
FILTER = Flag("filter", "Show only what matches (name=value)", "list", short="f")

COMMANDS = {
    "ps": Command(
        run,
        "",
        (
            Flag("all", "Show stopped containers too", short="a"),
            FILTER,
            FORMAT,
            Flag("last", "Show the n newest containers, in any state", "int", short="n", default=-1),
            Flag("latest", "Show the newest container, in any state", short="l"),
            Flag("no-trunc", "Do not cut anything short"),
            Flag("quiet", "Show only ids", short="q"),
            Flag("size", "Show the disk space that each one uses", short="s"),
        ),
        about=f"Filters: {', '.join(sorted(FILTERS))}.",
        examples=(
            ("ps -a", "All containers, running or not"),
            ("ps --filter isolation=vm --format '{{.Names}}: {{.Status}}'", "Names and states of those that have a kernel of their own"),
            ("ps -aq --filter status=exited", "Ids of what has ended"),
        ),
    ),
}
