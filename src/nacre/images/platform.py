"""Which image of an index suits this host: operating system, architecture and variant (OCI image-index.md, "platform")."""

from __future__ import annotations

import os
import re

from nacre.errors import InvalidArgument, NotFound
from nacre.model.image import Platform
from nacre.wire.registry import Index, IndexEntry

_MACHINES = {
    "x86_64": ("amd64", ""),
    "i686": ("386", ""),
    "i586": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "i386": "386", "aarch64": "arm64", "armhf": "arm", "armel": "arm"}
_DEFAULT_VARIANT = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


def host_platform() -> Platform:
    """The platform of this host's kernel."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


def parse_platform(text: str) -> Platform:
    """``os/architecture[/variant]`` or an architecture alone, as for `docker --platform`. Raises InvalidArgument."""
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(re.fullmatch("[a-z0-9_.-]{1,64}", part) for part in parts):
        raise InvalidArgument(f"{text!r} is not a platform", hint="write os/architecture[/variant], for instance linux/arm64/v8")
    if len(parts) == 1:
        parts = [parts[0], host_platform().architecture] if parts[0] in ("linux", "windows") else ["linux", parts[0]]
    variant = parts[2] if len(parts) == 3 else {"armel": "v6"}.get(parts[1], "")
    return Platform(os=parts[0], architecture=_ALIASES.get(parts[1], parts[1]), variant=variant)


def suitable(wanted: Platform) -> list[Platform]:
    """Platforms that run where `wanted` runs, best first; variants are normalised ("" stands for the architecture's usual one)."""
    wanted = _normalise(wanted)
    found = [wanted.replace(variant=variant) for variant in _variants(wanted)]
    if wanted.architecture == "arm64":
        found += [wanted.replace(architecture="arm", variant=variant) for variant in ("v8", "v7", "v6", "v5")]
    if wanted.architecture == "amd64":
        found.append(wanted.replace(architecture="386", variant=""))
    return found


def matches(image: Platform, wanted: Platform) -> bool:
    """Whether an image of a platform runs on another one. Fields that the image leaves open are believed to fit."""
    whole = image.replace(os=image.os or wanted.os, architecture=image.architecture or wanted.architecture)
    return _normalise(whole) in suitable(wanted)


def choose(index: Index, wanted: Platform, what: str) -> IndexEntry:
    """The entry of an index for a platform: the exact one or the best that runs there. Raises NotFound with what there is."""
    entries = [entry for entry in index.entries if not entry.attestation and (entry.platform is None or entry.platform.os != "unknown")]
    for platform in suitable(wanted):
        for entry in entries:
            if entry.platform is not None and _normalise(entry.platform) == platform:
                return entry
    unnamed = [entry for entry in entries if entry.platform is None]
    if len(unnamed) == 1:
        return unnamed[0]
    names = sorted({str(entry.platform) for entry in entries if entry.platform is not None})
    shown = ", ".join(names[:20]) or "none"
    raise NotFound(f"no matching manifest for {wanted} in {what}", hint=f"available: {shown}; choose one with --platform")


def check(image: Platform, wanted: Platform, *, explicit: bool, what: str) -> str:
    """A warning when an image does not run on a platform, "" when it does. Raises NotFound when the user named the platform."""
    if matches(image, wanted):
        return ""
    if explicit:
        message = f"image {what} does not match the specified platform: wanted {wanted}, it is {image}"
        raise NotFound(message, hint="leave out --platform to take it anyway")
    return f"WARNING: {what} is for {image}, this host is {wanted}"


def _normalise(platform: Platform) -> Platform:
    usual = _DEFAULT_VARIANT.get(platform.architecture, "")
    variant = platform.variant or usual
    return platform.replace(architecture=_ALIASES.get(platform.architecture, platform.architecture), variant=variant)


def _variants(platform: Platform) -> list[str]:
    """The variant and all below it: v7, v6, v5."""
    number = platform.variant.removeprefix("v")
    if not number.isdigit() or not 0 < int(number[:3]) < 100:
        return [platform.variant]
    return [f"v{count}" for count in range(int(number), 0, -1)]
