"""Flags of run and create about namespaces, devices and other containers' volumes, and --rootfs. Loaded when one of them is used."""

from __future__ import annotations

import os

from nacre.cli.flags import Arguments, UsageError
from nacre.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OVERLAY = ":O"


def fields(args: Arguments, image: str) -> dict[str, Any]:
    """The fields of a ContainerSpec that these flags make. image: the first positional argument. Raises UsageError, Unsupported."""
    if args.runtime:
        raise Unsupported(
            f"--runtime {args.runtime}: Nacre runs containers itself, without an OCI runtime below it",
            hint="--isolation process or vm chooses how; as a runtime below another engine: nacre-oci",
        )
    if args.volume_driver not in ("", "local"):
        raise Unsupported(f"--volume-driver {args.volume_driver}: there is only the driver local", hint="leave --volume-driver out")
    made: dict[str, Any] = {
        "annotations": dict(_annotation(text) for text in args.annotation),
        "cgroupns": args.cgroupns,
        "device_rules": tuple(args.device_cgroup_rule),
        "domainname": args.domainname,
        "gpus": tuple(request for text in args.gpus for request in parse_gpus(text)),
        "init": args.init,
        "ipc": args.ipc,
        "pid": args.pid,
        "uts": args.uts,
        "userns": "" if args.userns == "host" else args.userns,
        "volumes_from": tuple(args.volumes_from),
    }
    if args.rootfs:
        directory = image.removesuffix(_OVERLAY)
        if not directory:
            raise UsageError("--rootfs: name a directory in place of the image")
        made |= {"rootfs": os.path.abspath(directory), "rootfs_overlay": image.endswith(_OVERLAY), "image": image}
    return made


def _annotation(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f'invalid argument "{text}" for "--annotation" flag: expected key=value')
    return key, value


def parse_gpus(text: str) -> tuple[str, ...]:
    """One value of --gpus: ``all``, a number, or fields: ``"device=0,1"`` (in quotes), ``count=2``, ``driver=cdi``. Raises UsageError."""
    import csv

    request = ""
    try:
        words = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise _bad(text, str(error)) from error
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "count", word
        if key == "count":
            if value not in ("all", "-1") and not (value.isdecimal() and value.isascii() and int(value)):
                raise _bad(text, f"count must be an integer or 'all', not {value!r}")
            request = _only(text, request, "all" if value == "-1" else value)
        elif key == "device":
            if not value:
                raise _bad(text, "device names no device")
            request = _only(text, request, f"device={value}")
        elif key == "driver" and value in ("", "nvidia", "cdi"):
            continue
        elif key == "capabilities" and value:
            continue  # a CDI device has what its specification says
        else:
            raise _bad(text, f"unexpected field {word!r}: count, device, driver=cdi or capabilities")
    if not request and not words:
        raise _bad(text, "it is empty")
    return (request or "1",)


def _only(text: str, old: str, new: str) -> str:
    if old:
        raise _bad(text, "cannot set both count and device on one request")
    return new


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f'invalid argument "{text}" for "--gpus" flag: {why}')
