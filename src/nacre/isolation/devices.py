"""The devices a container asks for: --device (nodes, directories of nodes, CDI names), --gpus and --device-cgroup-rule.

Formats as in the docker run reference; CDI names are resolved by `nacre.isolation.cdi`.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator

from nacre.errors import Conflict, InvalidArgument
from nacre.isolation.plan import Device
from nacre.linux.devices import DEFAULT_DEVICES, DeviceRule, parse_rule
from nacre.model.container import ContainerSpec, Level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.isolation.cdi import Edits

_LETTERS = frozenset("rwm")
# What every container has by itself, or gets from its own file systems.
_OWN = frozenset(("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"))
_ELSEWHERE = ("/dev/pts", "/dev/shm", "/dev/mqueue")
_MOST = 4096  # nodes of one directory


def parse(text: str) -> tuple[str, str, str]:
    """(path on the host, path in the container, access) of ``HOST[:CONTAINER][:rwm]``. Raises InvalidArgument."""
    words = text.split(":")
    source, target, access = words[0], words[0], "rwm"
    if len(words) == 2:
        if _is_access(words[1]):
            access = words[1]
        else:
            target = words[1]
    elif len(words) == 3:
        target, access = words[1] or source, words[2]
    if len(words) > 3 or not source.startswith("/") or not target.startswith("/"):
        raise InvalidArgument(f"invalid device specification: {text}", hint="--device /dev/A[:/dev/B][:rwm], or VENDOR/CLASS=NAME")
    if not _is_access(access):
        raise InvalidArgument(f"bad mode specified: {access}", hint="letters of r (read), w (write) and m (mknod)")
    return posixpath.normpath(source), posixpath.normpath(target), access


def _is_access(text: str) -> bool:
    return 0 < len(text) == len(set(text)) and _LETTERS.issuperset(text)


def is_cdi(text: str) -> bool:
    """Whether a --device names a device by its CDI name (``vendor.com/class=name``) rather than by its path."""
    return not text.startswith("/") and "=" in text and "/" in text.partition("=")[0]


def check(spec: ContainerSpec) -> None:
    """Refuse what is no device, rule or CDI name at all. Raises InvalidArgument."""
    for text in spec.devices:
        if not is_cdi(text):
            parse(text)
    for rule in spec.device_rules:
        parse_rule(rule)
    if wants_cdi(spec):
        from nacre.isolation import cdi

        cdi.check(spec)


def wants_cdi(spec: ContainerSpec) -> bool:
    """Whether any device comes from a CDI specification."""
    return bool(spec.gpus) or any(map(is_cdi, spec.devices))


def edits(spec: ContainerSpec) -> Edits | None:
    """What the CDI devices of a spec change in its container; None without any. Raises InvalidArgument, NotFound, HostError."""
    if not wants_cdi(spec):
        return None
    from nacre.isolation import cdi

    return cdi.edits(spec)


def requested(spec: ContainerSpec) -> list[Device]:
    """Device nodes a container gets beyond the defaults. Privileged containers at level process get every device of the host's /dev.

    Raises Conflict when a named device does not exist, and as `edits`.
    """
    found = {device.name: device for device in (_host_devices() if spec.privileged and spec.isolation is Level.PROCESS else ())}
    for text in spec.devices:
        if not is_cdi(text):
            found.update((device.name, device) for device, _ in _named(text))
    changed = edits(spec)
    return [*found.values(), *(changed.devices if changed else ())]


def rules(spec: ContainerSpec) -> tuple[DeviceRule, ...] | None:
    """What a container may do with devices: the defaults and what it asked for; None = everything. Raises as `requested`."""
    if spec.privileged:
        return None
    asked = [
        DeviceRule(kind=device.kind, major=device.major, minor=device.minor, access=access)
        for text in spec.devices if not is_cdi(text) for device, access in _named(text)
    ]  # fmt: skip
    changed = edits(spec)
    return (*DEFAULT_DEVICES, *asked, *(changed.rules if changed else ()), *(parse_rule(text) for text in spec.device_rules))


def _named(text: str) -> list[tuple[Device, str]]:
    """The nodes that one --device stands for, with the access to each."""
    source, target, access = parse(text)
    try:
        if not os.path.isdir(source):
            return [(node(source, target), access)]
        found = [(node(path, target + path[len(source) :]), access) for path in _below(source)]
    except OSError as error:
        raise Conflict(
            f'error gathering device information while adding custom device "{source}": {error.strerror}',
            hint="name a device of this host, as ls /dev shows them",
        ) from error
    if not found:
        raise Conflict(f'error gathering device information while adding custom device "{source}": no devices below it')
    return found


def _below(directory: str) -> list[str]:
    found = []
    for parent, _, names in os.walk(directory):
        for path in (f"{parent}/{name}" for name in sorted(names)):
            with contextlib.suppress(OSError):
                if stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
                    found.append(path)
        if len(found) > _MOST:
            raise InvalidArgument(f"--device {directory}: more than {_MOST} devices", hint="name those that are needed")
    return found


def node(source: str, target: str) -> Device:
    """The node of a device of this host under the path that it is to have. Raises OSError, InvalidArgument."""
    status = os.stat(source)
    kind = {stat.S_IFBLK: "b", stat.S_IFCHR: "c"}.get(stat.S_IFMT(status.st_mode))
    if not kind:
        raise InvalidArgument(f"{source} is not a device node", hint="a file or directory is given with -v")
    return Device(
        name=target.removeprefix("/dev/"),
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        kind=kind,
        mode=status.st_mode & 0o777,
        source=source,
        uid=status.st_uid,
        gid=status.st_gid,
    )


def _host_devices() -> Iterator[Device]:
    for directory, _, names in os.walk("/dev"):
        if directory.startswith(_ELSEWHERE):
            continue
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if name not in _OWN and stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
                    yield node(path, path)
