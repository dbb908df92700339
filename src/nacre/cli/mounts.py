"""The three ways to ask for a mount: -v, --mount and --tmpfs."""

from __future__ import annotations

import os

from nacre.cli.flags import UsageError
from nacre.cli.units import parse_size
from nacre.errors import InvalidArgument
from nacre.model.container import MountSpec

# What Docker takes behind the second colon of -v: at most one of each kind. Those for macOS change nothing here.
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_MODES = {"read": ("ro", "rw"), "label": ("z", "Z"), "copy": ("nocopy",), "consistency": ("consistent", "cached", "delegated")}
_KINDS = {word: kind for kind, words in (*_MODES.items(), ("propagation", _PROPAGATION)) for word in words}
CREATE = "create"  # understood by the engine: make a missing source directory

_SYNONYMS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def parse_volume(text: str) -> MountSpec:
    """One value of -v: ``target``, ``source:target`` or ``source:target:options``.

    A source that is a path is a directory of this host, made when it is missing; any other is the name of a volume. Raises UsageError.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise UsageError(f"invalid volume specification: '{text}'", hint="-v takes [source:]target[:ro]")
    source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    _check_target(target, f"invalid volume specification: '{text}'")
    modes = _modes(text, parts[2] if len(parts) == 3 else "")
    read_only = modes.get("read") == "ro"
    options = tuple(word for kind, word in modes.items() if kind in ("label", "copy", "propagation"))
    if source.startswith((".", "~", "/")):
        if "copy" in modes:
            raise _invalid_mode(text, "nocopy")
        path = os.path.abspath(os.path.expanduser(source) if source.startswith("~/") else source)
        return MountSpec(kind="bind", source=path, target=target, read_only=read_only, options=(*options, CREATE))
    if source:
        _check_name(source, "If you intended to pass a host directory, use an absolute path.")
    return MountSpec(kind="volume", source=source, target=target, read_only=read_only, options=options)


def _modes(text: str, words: str) -> dict[str, str]:
    """The options of one -v by their kind."""
    found: dict[str, str] = {}
    for word in words.split(",") if words else ():
        kind = _KINDS.get(word)
        if kind is None or kind in found:
            raise _invalid_mode(text, words)
        found[kind] = word
    return found


def _invalid_mode(text: str, words: str) -> UsageError:
    return UsageError(f"invalid volume specification: '{text}': invalid mode: {words}", hint="ro, rw, z, Z, nocopy, rslave, rshared ...")


def _check_name(name: str, hint: str) -> None:
    valid = name.isascii() and name[0].isalnum() and len(name) > 1 and all(char.isalnum() or char in "_.-" for char in name)
    if not valid:
        raise UsageError(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed', hint=hint
        )


def _check_target(target: str, message: str) -> None:
    if not target.startswith("/"):
        raise UsageError(f"{message}: invalid mount path: '{target}' mount path must be absolute")
    if os.path.normpath(target) in ("/", "//"):
        raise UsageError(f"{message}: destination can't be '/'")


def parse_mount(text: str) -> MountSpec:
    """One value of --mount: ``type=bind,source=/data,target=/data,readonly`` and the like. Raises UsageError."""
    fields = _fields(text)
    kind = fields.pop("type", "volume").lower()
    if kind not in ("bind", "volume", "tmpfs", "image"):
        raise _bad(text, f"mount type '{kind}' is not supported: bind, volume, tmpfs or image")
    target, source = fields.pop("target", ""), fields.pop("source", "")
    read_only = _truth(text, "readonly", fields.pop("readonly", "false"))
    if not target:
        raise _bad(text, "target is required")
    _check_target(target, f'invalid argument "{text}" for "--mount" flag')
    source = _mount_source(text, kind, source)
    options = _mount_options(text, kind, fields)
    _check_recursive(text, read_only, options)
    return MountSpec(kind=kind, source=source, target=target, read_only=read_only, options=options)


def _mount_source(text: str, kind: str, source: str) -> str:
    if kind in ("bind", "image") and not source:
        raise _bad(text, f"source is required for {'a bind' if kind == 'bind' else 'an image'} mount")
    if kind == "bind" and source.startswith("."):
        source = os.path.abspath(source)
    if kind == "bind" and not source.startswith("/"):
        raise _bad(text, f"invalid mount source {source!r}: a bind mount needs an absolute path")
    if kind == "tmpfs" and source:
        raise _bad(text, "a tmpfs has no source")
    if kind == "volume" and source:
        _check_name(source, "A directory of this host is type=bind.")
    return source


def _check_recursive(text: str, read_only: bool, options: tuple[str, ...]) -> None:
    for word in ("writable", "readonly"):
        if f"recursive={word}" in options and not read_only:
            raise _bad(text, f"option 'bind-recursive={word}' requires 'readonly' to be specified in conjunction")
    if "recursive=readonly" in options and "rprivate" not in options:
        raise _bad(text, "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")


def _fields(text: str) -> dict[str, str]:
    import csv

    fields: dict[str, str] = {}
    try:
        words = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise _bad(text, str(error)) from error
    for word in words:
        key, equals, value = word.partition("=")
        key = _SYNONYMS.get(key.strip().lower(), key.strip().lower())
        if not equals and key not in ("readonly", "volume-nocopy", "bind-nonrecursive", "bind-create-src"):
            raise _bad(text, f"invalid field '{word}' must be a key=value pair")
        fields[key] = value if equals else "true"
    return fields


def _mount_options(text: str, kind: str, fields: dict[str, str]) -> tuple[str, ...]:
    options: list[str] = []
    for key, value in fields.items():
        prefix, dash, _ = key.partition("-")
        if dash and prefix in ("bind", "volume", "tmpfs", "image") and prefix != kind:
            raise _bad(text, f"cannot mix '{prefix}-*' options with mount type '{kind}'")
        if key in _OPTIONS:
            options += _OPTIONS[key](text, key, value)
        elif key != "consistency":
            raise _bad(text, f"unexpected key '{key}' in '{key}={value}'")
    return tuple(options)


def _propagation(text: str, key: str, value: str) -> list[str]:
    if value.lower() not in _PROPAGATION:
        raise _bad(text, f"invalid propagation mode: {value}: one of {', '.join(_PROPAGATION)}")
    return [value.lower()]


def _nonrecursive(text: str, key: str, value: str) -> list[str]:
    return ["recursive=disabled"] if _truth(text, key, value) else []


def _recursive(text: str, key: str, value: str) -> list[str]:
    if value not in ("enabled", "disabled", "writable", "readonly"):
        raise _bad(text, f"invalid value for {key}: {value} (must be 'enabled', 'disabled', 'writable', or 'readonly')")
    return [] if value == "enabled" else [f"recursive={value}"]


def _create_source(text: str, key: str, value: str) -> list[str]:
    return [CREATE] if _truth(text, key, value) else []


def _nocopy(text: str, key: str, value: str) -> list[str]:
    return ["nocopy"] if _truth(text, key, value) else []


def _subpath(text: str, key: str, value: str) -> list[str]:
    if not value or value.startswith("/") or ".." in value.split("/"):
        raise _bad(text, f"invalid value for {key}: {value}: it must be a relative path without '..'")
    return [f"subpath={os.path.normpath(value)}"]


def _label(text: str, key: str, value: str) -> list[str]:
    if not value.partition("=")[0]:
        raise _bad(text, f"invalid value for {key}: {value}: expected key=value")
    return [f"label={value}"]


def _driver(text: str, key: str, value: str) -> list[str]:
    if value not in ("", "local"):
        raise _bad(text, f"volume driver '{value}' is not supported: local is the only one")
    return []


def _size(text: str, key: str, value: str) -> list[str]:
    try:
        return [f"size={parse_size(value)}"]
    except InvalidArgument as error:
        raise _bad(text, f"{key}: {error.message}") from error


def _mode(text: str, key: str, value: str) -> list[str]:
    if not value or not set(value) <= set("01234567"):
        raise _bad(text, f"invalid value for {key}: {value}: expected an octal number")
    return [f"mode={value}"]


_OPTIONS = {
    "bind-propagation": _propagation, "bind-nonrecursive": _nonrecursive, "bind-recursive": _recursive, "bind-create-src": _create_source,
    "volume-nocopy": _nocopy, "volume-subpath": _subpath, "volume-label": _label, "volume-driver": _driver,
    "tmpfs-size": _size, "tmpfs-mode": _mode, "image-subpath": _subpath,
}  # fmt: skip


def _truth(text: str, key: str, value: str) -> bool:
    if value.lower() in ("true", "1", ""):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise _bad(text, f"invalid value for {key}: {value}")


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f'invalid argument "{text}" for "--mount" flag: {why}')


def parse_tmpfs(text: str) -> MountSpec:
    """One value of --tmpfs: ``/run`` or ``/run:rw,size=64m,mode=1777``. Raises UsageError."""
    target, _, words = text.partition(":")
    _check_target(target, f"invalid tmpfs specification: '{text}'")
    options = tuple(word for word in words.split(",") if word and word not in ("ro", "rw"))
    return MountSpec(kind="tmpfs", target=target, read_only="ro" in words.split(","), options=options)
