"""update: change the limits of a container, by flags or by a `linux.resources` object."""

from __future__ import annotations

import sys

from nacre.errors import InvalidArgument, Unsupported
from nacre.ociruntime import config
from nacre.ociruntime.main import one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

TABLE_UPDATE = {
    "resources,r": "s", "blkio-weight": "i", "cpu-period": "s", "cpu-quota": "s", "cpu-burst": "s", "cpu-share": "s", "cpu-rt-period": "s",
    "cpu-rt-runtime": "s", "cpuset-cpus": "s", "cpuset-mems": "s", "cpu-idle": "s", "kernel-memory": "s", "kernel-memory-tcp": "s",
    "memory": "s", "memory-reservation": "s", "memory-swap": "s", "pids-limit": "i", "l3-cache-schema": "s", "mem-bw-schema": "s",
}  # fmt: skip
# Flag -> (section, field) of the resources object; numbers unless it is in _TEXTS, bytes with a unit in _SIZES.
_FIELDS = {
    "blkio-weight": ("blockIO", "weight"), "cpu-period": ("cpu", "period"), "cpu-quota": ("cpu", "quota"), "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"), "cpu-rt-period": ("cpu", "realtimePeriod"), "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems"), "cpu-idle": ("cpu", "idle"), "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"), "memory": ("memory", "limit"), "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"), "pids-limit": ("pids", "limit"),
}  # fmt: skip
_TEXTS = ("cpuset-cpus", "cpuset-mems")
_SIZES = ("kernel-memory", "kernel-memory-tcp", "memory", "memory-reservation", "memory-swap")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def do_update(call: Call, flags: Flags, operands: list[str]) -> int:
    """Change limits."""
    name = one(operands, "update")
    for flag in ("l3-cache-schema", "mem-bw-schema"):
        if flags.text(flag):
            raise Unsupported(f"--{flag}: Intel RDT is not available on this host")
    call.runtime().update(name, _resources(flags))
    return 0


def _resources(flags: Flags) -> dict[str, Any]:
    path = flags.text("resources")
    if path:
        data = _from_file(path)
    else:
        data = {}
        for flag, (section, field) in _FIELDS.items():
            if flags.given(flag):
                data.setdefault(section, {})[field] = _value(flag, flags.text(flag))
    if not data:
        raise InvalidArgument("update: no limit is given", hint="nacre-oci update --help")
    config.check_resources(config.Fields(data, "resources"))
    return data


def _from_file(path: str) -> dict[str, Any]:
    try:
        if path == "-":
            text = sys.stdin.buffer.read(config.SIZE_MAX + 1)
        else:
            with open(path, "rb") as file:
                text = file.read(config.SIZE_MAX + 1)
    except OSError as error:
        raise InvalidArgument(f"--resources: {path}: {error.strerror}") from error
    return config.Fields(config.load(text, path), "resources").data


def _value(flag: str, text: str) -> int | str:
    if flag in _TEXTS:
        return text
    try:
        if flag not in _SIZES:
            return int(text)
        word = text.lower().removesuffix("b") or text.lower()
        digits = word.rstrip("kmgtp")
        return int(float(digits) * _UNITS[word[len(digits) :]]) if digits != "-1" else -1
    except (ValueError, KeyError):
        raise InvalidArgument(f"invalid value for {flag}: {text}", hint="bytes, with k, m or g" if flag in _SIZES else "a number") from None
