"""state, list, ps, events: the verbs that ask."""

from __future__ import annotations

import os
import sys
import time

from nacre.errors import InvalidArgument, NacreError, NotFound
from nacre.model import jsontext
from nacre.ociruntime.main import one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

TABLE_STATE: dict[str, str] = {}
TABLE_LIST = {"format,f": "s", "quiet,q": "b"}
TABLE_PS = {"format,f": "s"}
TABLE_EVENTS = {"interval": "s", "stats": "b"}


def do_state(call: Call, flags: Flags, operands: list[str]) -> int:
    """Print the state of a container."""
    found = call.runtime().state(one(operands, "state"))
    lines = ",\n".join(f"  {jsontext.dumps(key)}: {jsontext.dumps(value)}" for key, value in found.items())
    sys.stdout.write(f"{{\n{lines}\n}}\n")
    return 0


def do_list(call: Call, flags: Flags, operands: list[str]) -> int:
    """List containers."""
    style = _style(flags)
    found = [*call.runtime().list()]
    if flags.on("quiet"):
        sys.stdout.write("".join(f"{item['id']}\n" for item in found))
    elif style == "json":
        sys.stdout.write((jsontext.dumps([{**item, "owner": _owner(item["owner"])} for item in found]) if found else "null") + "\n")
    else:
        rows = [[item["id"], item["pid"], item["status"], item["bundle"], item["created"], _owner(item["owner"])] for item in found]
        _table([["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], *rows], 12)
    return 0


def _style(flags: Flags) -> str:
    style = flags.text("format") or "table"
    if style not in ("table", "json"):
        raise InvalidArgument(f'invalid format option "{style}"', hint="table or json")
    return style


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _table(rows: list[list[object]], least: int) -> None:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(least, *(len(row[place]) + 1 for row in texts)) for place in range(len(texts[0]))]
    for row in texts:
        sys.stdout.write("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def do_ps(call: Call, flags: Flags, operands: list[str]) -> int:
    """Show processes: through ps(1), whose lines are filtered by pid, or their pids as JSON."""
    if not operands:
        raise InvalidArgument('nacre-oci: "ps" requires a minimum of 1 argument')
    pids = call.runtime().pids(operands[0])
    if _style(flags) == "json":
        sys.stdout.write(jsontext.dumps([*pids]) + "\n")
        return 0
    lines = _ps_output(operands[1:] or ["-ef"])
    titles = lines[0].split()
    if "PID" not in titles:
        raise InvalidArgument("couldn't find PID field in ps output", hint="choose columns with the pid, for example: -o pid,args")
    place = titles.index("PID")
    sys.stdout.write(lines[0] + "\n")
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > place and fields[place].isdigit() and int(fields[place]) in pids:
            sys.stdout.write(line + "\n")
    return 0


def _ps_output(arguments: list[str]) -> list[str]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp("ps", ["ps", *arguments], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
    except FileNotFoundError:
        os.close(reading)
        raise NotFound("ps: executable file not found in $PATH", hint="apt-get install procps, or --format json") from None
    finally:
        os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    if os.waitpid(pid, 0)[1] or not lines:
        raise InvalidArgument(f"ps {' '.join(arguments)} failed")
    return lines


def do_events(call: Call, flags: Flags, operands: list[str]) -> int:
    """Print numbers once (--stats), or again and again with out-of-memory events until the container ends."""
    name, runtime = one(operands, "events"), call.runtime()
    interval = _seconds(flags.text("interval") or "5s")
    if flags.on("stats"):
        _event(name, "stats", runtime.stats(name))
        return 0
    task, counter = runtime.task(name), runtime.oom_file(name)
    if not task.alive():
        raise NotFound(f"container with id {name} is not running")
    killed = _oom_kills(counter)
    due = time.monotonic()
    while True:
        if time.monotonic() >= due:
            try:
                _event(name, "stats", runtime.stats(name))
            except NacreError:
                return 0
            due += interval
        if task.wait_end(min(1.0, max(0.0, due - time.monotonic()))):
            return 0
        now = _oom_kills(counter)
        if now > killed:
            _event(name, "oom", None)
        killed = now


def _event(name: str, kind: str, data: Any) -> None:
    event = {"type": kind, "id": name} | ({"data": data} if data is not None else {})
    sys.stdout.write(jsontext.dumps(event) + "\n")
    sys.stdout.flush()


def _oom_kills(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


def _seconds(text: str) -> float:
    """A duration as Go writes it: 5s, 500ms, 1m30s."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}
    total, number, place = 0.0, "", 0
    try:
        while place < len(text):
            if text[place].isdigit() or text[place] == ".":
                number += text[place]
                place += 1
                continue
            unit = text[place : place + 2] if text[place : place + 2] in units else text[place]
            total += float(number) * units[unit]
            number, place = "", place + len(unit)
    except (KeyError, ValueError):
        total = 0.0
    if total <= 0 or number:
        raise InvalidArgument(f'invalid value "{text}" for flag -interval', hint="a duration such as 5s or 500ms")
    return total
