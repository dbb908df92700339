"""The QEMU Machine Protocol as bytes (docs/interop/qmp-spec.rst of QEMU, version 7.2). Sans-I/O: messages in, bytes out, and back.

A monitor sends one JSON object per line: first a greeting, then answers and, in between, events. What arrives is bounded in
size and checked in shape, for the program that sends it is the one a guest may have taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nacre.model.value import Value

MESSAGE_MAX = 1 << 20


class Greeting(Value):
    """The first message of a monitor. version: "7.2.22"; package: what the distributor calls it, may be ""."""

    version: str
    package: str = ""


class Reply(Value):
    """The answer to the command with this tag (0 when the command was too broken to have one).

    value: what the command returned, {} for most; error: "" or the monitor's words, error_class e.g. CommandNotFound.
    """

    tag: int = 0
    value: Any = None
    error: str = ""
    error_class: str = ""


class Event(Value):
    """Something that happened by itself: name as in SHUTDOWN, STOP, GUEST_PANICKED; time in seconds since the epoch."""

    name: str
    data: dict[str, Any] = {}
    time: float = 0.0


Message = Greeting | Reply | Event


def encode(command: str, tag: int, arguments: Mapping[str, Any] | None = None) -> bytes:
    """One command. tag: 1 or more, echoed in the `Reply`."""
    message: dict[str, Any] = {"execute": command, "id": tag}
    if arguments:
        message["arguments"] = dict(arguments)
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Decoder:
    """Turns the byte stream of a monitor into messages; holds back at most one incomplete message."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises ValueError for anything that is not QMP; the stream is of no use then."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MESSAGE_MAX or any(len(line) > MESSAGE_MAX for line in lines):
            raise ValueError(f"QMP message of more than {MESSAGE_MAX} bytes")
        return [_message(line) for line in lines if line.strip()]


def _message(line: bytes) -> Message:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"QMP message is not JSON: {error}") from error
    if not isinstance(item, dict):
        raise ValueError(f"QMP message is no object: {line[:80]!r}")
    if "QMP" in item:
        return _greeting(item["QMP"])
    if "event" in item:
        return Event(name=_text(item["event"]), data=_object(item.get("data", {})), time=_time(item.get("timestamp")))
    tag = item.get("id", 0)
    if not isinstance(tag, int):
        raise ValueError("QMP answer to something that was not asked")
    if "error" in item:
        failure = _object(item["error"])
        return Reply(tag=tag, error=_text(failure.get("desc", "")) or "unknown error", error_class=_text(failure.get("class", "")))
    if "return" in item:
        return Reply(tag=tag, value=item["return"])
    raise ValueError(f"QMP message of unknown kind: {line[:80]!r}")


def _greeting(item: Any) -> Greeting:
    version = _object(_object(item).get("version"))
    numbers = _object(version.get("qemu"))
    parts = [numbers.get(name) for name in ("major", "minor", "micro")]
    if not all(isinstance(part, int) for part in parts):
        raise ValueError("QMP greeting without a version")
    return Greeting(version=".".join(map(str, parts)), package=_text(version.get("package", "")))


def _time(item: Any) -> float:
    if not isinstance(item, dict):
        return 0.0
    seconds, micros = item.get("seconds"), item.get("microseconds")
    return seconds + micros / 1e6 if isinstance(seconds, int) and isinstance(micros, int) else 0.0


def _object(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError("QMP message without its object")
    return item


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise ValueError("QMP message without its text")
    return item
