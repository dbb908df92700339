"""Sizes, processors, durations and points in time, as people type them and as Docker prints them."""

from __future__ import annotations

import time as _time

from nacre.errors import InvalidArgument
from nacre.model.moment import parse

_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``64k``, ``1.5g``, ``2 GiB``: powers of 1024, as Docker's memory flags read them. Raises InvalidArgument."""
    body = text.strip().lower()
    digits = body.rstrip("abcdefghijklmnopqrstuvwxyz ")
    suffix = body[len(digits) :].strip()
    unit = suffix.removesuffix("b").removesuffix("i") if suffix != "i" else suffix
    try:
        number = float(digits) if _is_number(digits) else -1.0
    except ValueError:
        number = -1.0
    if number < 0:
        raise InvalidArgument(f"invalid size: '{text}'")
    if unit not in _BINARY:
        raise InvalidArgument(f"invalid suffix: '{suffix}'")
    return int(number * _BINARY[unit])


def _is_number(text: str) -> bool:
    return bool(text) and all(char in "0123456789." for char in text) and text.isascii()


def parse_cpus(text: str) -> float:
    """Processors from ``1``, ``0.5``, ``.25``; at most nine decimals. Raises InvalidArgument."""
    if not _is_number(text) or text.count(".") > 1 or text == ".":
        raise InvalidArgument(f"failed to parse {text} as a number of processors")
    if len(text.partition(".")[2]) > 9:
        raise InvalidArgument("more than nine decimals")
    return float(text)


_DURATION = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds from Go's notation: ``300ms``, ``1h30m``, ``-1.5h``. Raises InvalidArgument."""
    body, total = text.lstrip("+-"), 0.0
    if body == "0":
        return 0.0
    if not body or len(text) - len(body) > 1:
        raise InvalidArgument(f"invalid duration: '{text}'")
    while body:
        number = body[: len(body) - len(body.lstrip("0123456789."))]
        body = body[len(number) :]
        unit = body[: len(body) - len(body.lstrip("nuµmsh"))]
        # "1h30m" ends a unit where the next number starts; "ms" must win over "m".
        if not _is_number(number) or number.count(".") > 1 or number == "." or unit not in _DURATION:
            raise InvalidArgument(f"invalid duration: '{text}'")
        total += float(number) * _DURATION[unit]
        body = body[len(unit) :]
    return -total if text[0] == "-" else total


def parse_moment(text: str, now: float | None = None) -> float:
    """A point in time as seconds since the epoch.

    Takes a duration before now (``10m``), seconds since the epoch (``1136073600.5``), RFC 3339, or a prefix of it (``2006-01-02``,
    ``2006-01-02T15:04``), which is local time without a zone, as `docker logs --since` does. Raises InvalidArgument.
    """
    if _is_number(text) and text.count(".") < 2 and text != ".":
        return float(text)
    if "-" not in text[1:]:
        try:
            return (_time.time() if now is None else now) - parse_duration(text)
        except InvalidArgument:
            raise InvalidArgument(f"failed to parse '{text}' as a time or a duration") from None
    from datetime import datetime

    try:
        return datetime.fromisoformat(_micro(text)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidArgument(f"failed to parse '{text}' as a time or a duration") from None


def _micro(text: str) -> str:
    """RFC 3339 with nine decimals cut to the six that datetime has."""
    head, dot, tail = text.partition(".")
    if not dot:
        return text
    rest = tail.lstrip("0123456789")
    return f"{head}.{tail[: len(tail) - len(rest)][:6].ljust(6, '0')}{rest}"


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time in a record; 0.0 for "" and for what is none (a hostile image says "yesterday")."""
    if not text:
        return 0.0
    if len(text) > 19 and text.endswith("Z") and text[4] == text[7] == "-":
        try:
            return parse(text)
        except ValueError:
            return 0.0
    from datetime import datetime

    try:
        return datetime.fromisoformat(_micro(text)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def human_duration(seconds: float) -> str:
    """A length of time in words: "Less than a second", "5 seconds", "About a minute", "3 weeks"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if whole < 120:
        return "About a minute"
    if whole < 3600:
        return f"{whole // 60} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, unit, name in ((48, 1, "hours"), (24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 730, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // unit} {name}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(moment: float, now: float | None = None) -> str:
    """Time since a moment: "2 minutes ago"; "N/A" when there is none (moment 0)."""
    return f"{human_duration((_time.time() if now is None else now) - moment)} ago" if moment else "N/A"


def human_size(size: float, digits: int = 3) -> str:
    """Decimal units with `digits` significant digits: 7800000 -> "7.8MB"."""
    return _scaled(size, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), digits)


def binary_size(size: float) -> str:
    """Powers of 1024 with four significant digits: 1572864 -> "1.5MiB"."""
    return _scaled(size, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 4)


def _scaled(size: float, base: float, names: tuple[str, ...], digits: int) -> str:
    value, index = float(size), 0
    while value >= base and index < len(names) - 1:
        value /= base
        index += 1
    # %g would write 1e+03 for a value that rounds up to more digits than it has.
    text = f"{value:.{digits}g}"
    return (f"{value:.0f}" if "e" in text else text) + names[index]


def local_time(moment: float) -> str:
    """A moment as Docker's CreatedAt: ``2024-01-02 15:04:05 +0000 UTC``, in the local zone; "" for moment 0."""
    if not moment:
        return ""
    return _time.strftime("%Y-%m-%d %H:%M:%S %z %Z", _time.localtime(moment))


def rfc3339(moment: float) -> str:
    """A moment with its zone, to the second: ``2024-01-02T15:04:05+01:00``; "" for moment 0."""
    if not moment:
        return ""
    text = _time.strftime("%Y-%m-%dT%H:%M:%S%z", _time.localtime(moment))
    return text[:-5] + "Z" if text.endswith("+0000") else f"{text[:-2]}:{text[-2:]}"


def rfc3339_nano(time_ns: int) -> str:
    """Nanoseconds since the epoch in UTC with nine decimals, as log lines carry them."""
    return f"{_time.strftime('%Y-%m-%dT%H:%M:%S', _time.gmtime(time_ns // 10**9))}.{time_ns % 10**9:09d}Z"
