"""Devices by name: the Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md), versions 0.3 to 1.0.

A vendor's tool writes specifications into /etc/cdi or /var/run/cdi; each names a kind (``vendor.com/class``), its devices, and what
has to be changed in a container that is given one: nodes, mounts, environment variables, groups.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from nacre.errors import HostError, InvalidArgument, NotFound, Unsupported
from nacre.isolation.devices import is_cdi, node
from nacre.isolation.plan import Device
from nacre.linux.devices import DeviceRule
from nacre.model.container import BoundMount, ContainerSpec
from nacre.model.value import Value

# In rising priority: a device in a later directory replaces one of that name in an earlier one.
DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
_LARGEST = 4 << 20
_GPU = "nvidia.com/gpu"
_KNOWN = frozenset(("env", "deviceNodes", "mounts", "additionalGids", "hooks", "intelRdt", "netDevices"))
_MOUNT_OPTIONS = frozenset(("nosuid", "nodev", "noexec"))
_SILENT = frozenset(("bind", "rbind", "rw", "suid", "dev", "exec", "private", "rprivate", "relatime"))


class Edits(Value):
    """What CDI devices change in a container. env: KEY=value; groups: numeric ids."""

    env: tuple[str, ...] = ()
    mounts: tuple[BoundMount, ...] = ()
    devices: tuple[Device, ...] = ()
    rules: tuple[DeviceRule, ...] = ()
    groups: tuple[str, ...] = ()


def check(spec: ContainerSpec) -> None:
    """Refuse names that no CDI device can have. Raises InvalidArgument."""
    for text in filter(is_cdi, spec.devices):
        _split(text)


def edits(spec: ContainerSpec) -> Edits:
    """What the devices of --gpus and --device change, each specification's own part once.

    Raises NotFound for a device that no specification has, InvalidArgument for a bad specification, Unsupported for what it wants
    and cannot have here.
    """
    known = _load()
    names = [*filter(is_cdi, spec.devices), *(name for request in spec.gpus for name in _gpus(request, known))]
    missing = [name for name in names if name not in known]
    if missing:
        raise NotFound(
            f"unresolvable CDI devices {', '.join(missing)}",
            hint=f"there are: {', '.join(sorted(known)) or 'none'}; specifications are in {' and '.join(DIRECTORIES)}",
        )
    parts: list[tuple[str, dict[str, Any]]] = []
    for name in dict.fromkeys(names):
        path, common, own = known[name]
        if (path, common) not in parts:
            parts.append((path, common))
        parts.append((path, own))
    return _merged(parts)


def _split(text: str) -> tuple[str, str]:
    kind, _, name = text.partition("=")
    vendor, _, group = kind.partition("/")
    for what, word, more in (("vendor", vendor, "_-."), ("class", group, "_-."), ("name", name, "_-.:")):
        letters = word.translate({ord(letter): None for letter in more})
        if not word or not (letters.isalnum() and letters.isascii()) or not word[0].isalnum() or word[-1] in "_-.:":
            raise InvalidArgument(f"invalid CDI device {text!r}: bad {what}", hint="VENDOR/CLASS=NAME, as nvidia.com/gpu=0")
    return kind, name


Known = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]


def _load() -> Known:
    """Every device by its qualified name: file of its specification, the edits of all its devices, its own."""
    known: Known = {}
    for directory in DIRECTORIES:
        here: Known = {}
        twice: set[str] = set()
        for path in _files(directory):
            for name, entry in _devices(path):
                if name in here:
                    twice.add(name)
                here[name] = entry
        for name in twice:  # as the specification says: which one is meant cannot be told
            del here[name]
        known.update(here)
    return known


def _files(directory: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.endswith((".json", ".yaml", ".yml"))]
    except OSError:
        return []


def _devices(path: str) -> Iterator[tuple[str, tuple[str, dict[str, Any], dict[str, Any]]]]:
    data = _read(path)
    try:
        kind, common = str(data["kind"]), data.get("containerEdits") or {}
        for item in data["devices"]:
            name = f"{kind}={item['name']}"
            _split(name)
            yield name, (path, _checked(common), _checked(item.get("containerEdits") or {}))
    except (KeyError, TypeError, AttributeError, ValueError, InvalidArgument) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else getattr(error, "message", error)
        raise InvalidArgument(f"CDI specification {path}: {reason}", hint="make it again with the vendor's tool, or remove it") from error


def _checked(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("containerEdits is no object")
    return data


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise HostError(f"cannot read CDI specification {path}: {error.strerror}") from error
    try:
        if len(text) > _LARGEST:
            raise ValueError(f"larger than {_LARGEST >> 20} MiB")
        data = json.loads(text) if path.endswith(".json") else _yaml(path, text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"CDI specification {path}: {error}", hint="make it again with the vendor's tool, or remove it") from error
    if not isinstance(data, dict):
        raise InvalidArgument(f"CDI specification {path}: it is no object")
    return data


def _yaml(path: str, text: bytes) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise HostError(
            f"cannot read CDI specification {path}: YAML needs the Python module yaml",
            hint="apt-get install python3-yaml (pip install pyyaml), or generate it as JSON: nvidia-ctk cdi generate --format=json",
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from error


def _gpus(request: str, known: Known) -> list[str]:
    """The names of the devices that one --gpus asks for: ``all``, a number, or ``device=NAME,...``."""
    kinds = {name.partition("=")[0] for name in known}
    kind = _GPU if _GPU in kinds else next((kind for kind in sorted(kinds) if kind.endswith("/gpu")), "")
    if not kind:
        raise NotFound(
            'could not select device driver "" with capabilities: [[gpu]]: no CDI specification has GPUs',
            hint="for NVIDIA: nvidia-ctk cdi generate --format=json --output=/etc/cdi/nvidia.json",
        )
    own = [name.partition("=")[2] for name in known if name.startswith(f"{kind}=")]
    if request == "all":
        return [f"{kind}=all"] if "all" in own else [f"{kind}={name}" for name in own]
    if request.startswith("device="):
        return [name if is_cdi(name) else f"{kind}={name}" for name in request.removeprefix("device=").split(",") if name]
    numbered = sorted((name for name in own if name.isdecimal()), key=int)
    if int(request) > len(numbered):
        raise InvalidArgument(f"--gpus {request}: there are {len(numbered)}", hint=f"CDI devices: {', '.join(sorted(own))}")
    return [f"{kind}={name}" for name in numbered[: int(request)]]


def _merged(parts: list[tuple[str, dict[str, Any]]]) -> Edits:
    env: list[str] = []
    groups: list[str] = []
    mounts: dict[str, BoundMount] = {}
    devices: dict[str, Device] = {}
    rules: list[DeviceRule] = []
    for path, part in parts:
        try:
            _refuse(path, part)
            env += (str(entry) for entry in part.get("env") or ())
            groups += (str(int(number)) for number in part.get("additionalGids") or ())
            mounts.update((mount.target, mount) for mount in map(_mount, part.get("mounts") or ()))
            for item in part.get("deviceNodes") or ():
                device = _device(item)
                devices[device.name] = device
                access = item.get("permissions") or "rwm"
                rules.append(DeviceRule(kind=device.kind, major=device.major, minor=device.minor, access=access))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise InvalidArgument(f"CDI specification {path}: {reason}") from error
    return Edits(env=tuple(env), mounts=tuple(mounts.values()), devices=tuple(devices.values()), rules=tuple(rules), groups=tuple(groups))


def _refuse(path: str, part: dict[str, Any]) -> None:
    """What would be needed and cannot be done is refused, not left out."""
    for name in ("hooks", "intelRdt", "netDevices"):
        if part.get(name):
            hint = "generate it without hooks: nvidia-ctk cdi generate --disable-hook=all" if name == "hooks" else "use another device"
            raise Unsupported(f"CDI specification {path} wants {name}, which this version does not have", hint=hint)
    if unknown := set(part) - _KNOWN:
        raise Unsupported(f"CDI specification {path} wants {min(unknown)}, which this version does not know")


def _mount(item: dict[str, Any]) -> BoundMount:
    source, target, kind = item.get("hostPath", ""), item["containerPath"], item.get("type") or "bind"
    options = [str(option) for option in item.get("options") or ()]
    if not target.startswith("/"):
        raise ValueError(f"containerPath {target!r} is not absolute")
    if kind == "tmpfs":
        kept = tuple(option for option in options if option not in ("ro", "rw"))
        return BoundMount(target=target, kind="tmpfs", read_only="ro" in options, options=kept)
    unknown = [option for option in options if option not in _MOUNT_OPTIONS | _SILENT | {"ro"}]
    if kind not in ("bind", "none") or unknown:
        raise ValueError(f"mount {target}: {f'option {unknown[0]}' if unknown else f'type {kind}'} is not supported")
    if not os.path.exists(source):
        raise ValueError(f"hostPath {source} does not exist")
    kept = tuple(option for option in options if option in _MOUNT_OPTIONS)
    return BoundMount(target=target, source=source, read_only="ro" in options, is_dir=os.path.isdir(source), options=kept)


def _device(item: dict[str, Any]) -> Device:
    path = item["path"]
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(f"device path {path!r} is not absolute")
    source = item.get("hostPath") or path
    if item.get("major") or item.get("minor"):
        kind = {"b": "b", "c": "c", "u": "c"}[item.get("type") or "c"]
        numbers = int(item["major"]), int(item.get("minor") or 0)
        found = Device(name=path.removeprefix("/dev/"), major=numbers[0], minor=numbers[1], kind=kind, source=source)
    else:
        try:
            found = node(source, path)
        except OSError as error:
            raise ValueError(f"device {source}: {error.strerror}") from error
    changes = {field: int(item[key]) for field, key in (("mode", "fileMode"), ("uid", "uid"), ("gid", "gid")) if item.get(key) is not None}
    return found.replace(**changes)
