"""`nacre events`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nacre.cli.context import Context
from nacre.cli.filters import Filters, has_label
from nacre.cli.flags import Arguments, Command, Flag
from nacre.cli.units import parse_moment, rfc3339_nano

FILTERS = ("container", "event", "image", "label", "network", "type", "volume")


def docker_shaped(event: dict[str, Any]) -> dict[str, Any]:
    """A journal entry as Docker's events are (Engine API, EventMessage)."""
    time_ns = int(event["time"] * 1e9)
    # Docker's older names for the same, which its answers still have.
    older = {"status": event["action"], "id": event["id"], "from": event["attributes"].get("image", "")}
    return {
        **(older if event["type"] == "container" else {}),
        "Type": event["type"],
        "Action": event["action"],
        "Actor": {"ID": event["id"], "Attributes": dict(sorted(event["attributes"].items()))},
        "scope": "local",
        "time": time_ns // 10**9,
        "timeNano": time_ns,
    }


def text(event: dict[str, Any]) -> str:
    """One line: time, type, action, id, attributes."""
    attributes = ", ".join(f"{key}={value}" for key, value in event["Actor"]["Attributes"].items())
    line = f"{rfc3339_nano(event['timeNano'])} {event['Type']} {event['Action']} {event['Actor']['ID']}"
    return f"{line} ({attributes})" if attributes else line


def _named(kind: str) -> Callable[[dict[str, Any], str], bool]:
    def test(event: dict[str, Any], value: str) -> bool:
        actor = event["Actor"]
        if kind == "image" and event["Type"] == "container":
            return bool(actor["Attributes"].get("image") == value)
        known = actor["Attributes"].get("name") == value or actor["ID"].removeprefix("sha256:").startswith(value)
        return bool(event["Type"] == kind and known)

    return test


_TESTS: dict[str, Callable[[Any, str], bool]] = {
    "type": lambda event, value: event["Type"] == value,
    "event": lambda event, value: event["Action"].partition(":")[0] == value or event["Action"] == value,
    "label": lambda event, value: has_label(event["Actor"]["Attributes"], value),
    **{kind: _named(kind) for kind in ("container", "image", "network", "volume")},
}


def run(ctx: Context, args: Arguments) -> int:
    """`nacre events`."""
    filters = Filters(args.filter, FILTERS)
    since = parse_moment(args.since) if args.since else None
    until = parse_moment(args.until) if args.until else None
    show = _formatter(args.format)
    for entry in ctx.engine.events(since=since, until=until, follow=True):
        event = docker_shaped(entry)
        if filters.apply([event], _TESTS):
            ctx.out(show(event))
            ctx.flush()
    return 0


def _formatter(form: str) -> Callable[[dict[str, Any]], str]:
    if not form:
        return text
    if form == "json":
        return lambda event: json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    from nacre.cli.template import Struct, Template

    template = Template(form.replace("\\t", "\t").replace("\\n", "\n"))

    def shaped(event: dict[str, Any]) -> Struct:
        actor = event["Actor"]
        # Docker's older names for the same, which its documentation still uses.
        older = {"ID": actor["ID"], "Status": event["Action"], "From": actor["Attributes"].get("image", "")}
        newer = {"Scope": event["scope"], "Time": event["time"], "TimeNano": event["timeNano"]}
        return Struct({**event, **older, **newer, "Actor": Struct(actor)}, kind="event")

    return lambda event: template.render(shaped(event))


COMMANDS = {
    "events": Command(
        run,
        "",
        (
            Flag("filter", "Show only what matches (name=value)", "list", short="f"),
            Flag("format", "json, or a Go template over the event", "string"),
            Flag("since", "Begin with the events after this time, or of the last 10m", "string"),
            Flag("until", "Stop at this time", "string"),
        ),
        about=f"Filters: {', '.join(FILTERS)}.",
        examples=(
            ("events --since 10m --until 0s", "What happened in the last ten minutes"),
            ("events --filter type=container --filter event=die", "Wait for containers to end"),
        ),
    ),
}
