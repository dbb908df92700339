"""The three ways to ask for a mount: -v, --mount and --tmpfs."""

from __future__ import annotations

import os

from nacre.cli.flags import UsageError
from nacre.cli.units import parse_size
from nacre.errors import InvalidArgument
from nacre.model.container import MountSpec

# What Docker takes behind the second colon of -v. SELinux and macOS options change nothing here.
_IGNORED = frozenset(("rw", "z", "Z", "cached", "delegated", "consistent", "private", "rprivate"))
_PROPAGATION = frozenset(("shared", "rshared", "slave", "rslave"))
_HARMLESS = (("bind-propagation", "bind", "private"), ("bind-propagation", "bind", "rprivate"))
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
    read_only, options = _volume_options(text, parts[2] if len(parts) == 3 else "")
    if source.startswith((".", "~", "/")):
        path = os.path.abspath(os.path.expanduser(source) if source.startswith("~/") else source)
        return MountSpec(kind="bind", source=path, target=target, read_only=read_only, options=(*options, CREATE))
    if source:
        _check_name(source, "If you intended to pass a host directory, use an absolute path.")
    return MountSpec(kind="volume", source=source, target=target, read_only=read_only, options=options)


def _volume_options(text: str, words: str) -> tuple[bool, tuple[str, ...]]:
    read_only, options = False, []
    for word in words.split(",") if words else ():
        if word in _PROPAGATION:
            raise UsageError(f"'{text}': mount propagation {word} is not supported", hint="Mounts are private.")
        if word == "ro":
            read_only = True
        elif word == "nocopy":
            options.append(word)
        elif word not in _IGNORED:
            raise UsageError(f"invalid volume specification: '{text}': invalid mode: {word}", hint="ro, rw, z, Z or nocopy")
    return read_only, tuple(options)


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
    if kind not in ("bind", "volume", "tmpfs"):
        raise _bad(text, f"mount type '{kind}' is not supported: bind, volume or tmpfs")
    target, source = fields.pop("target", ""), fields.pop("source", "")
    read_only = _truth(text, "readonly", fields.pop("readonly", "false"))
    if not target:
        raise _bad(text, "target is required")
    _check_target(target, f'invalid argument "{text}" for "--mount" flag')
    if kind == "bind" and not source:
        raise _bad(text, "source is required for a bind mount")
    if kind == "bind" and source.startswith("."):
        source = os.path.abspath(source)
    if kind == "bind" and not source.startswith("/"):
        raise _bad(text, f"invalid mount source {source!r}: a bind mount needs an absolute path")
    if kind == "tmpfs" and source:
        raise _bad(text, "a tmpfs has no source")
    if kind == "volume" and source:
        _check_name(source, "A directory of this host is type=bind.")
    options = _mount_options(text, kind, fields)
    return MountSpec(kind=kind, source=source, target=target, read_only=read_only, options=options)


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
        if not equals and key not in ("readonly", "volume-nocopy", "bind-nonrecursive"):
            raise _bad(text, f"invalid field '{word}' must be a key=value pair")
        fields[key] = value if equals else "true"
    return fields


def _mount_options(text: str, kind: str, fields: dict[str, str]) -> tuple[str, ...]:
    options = []
    for key, value in fields.items():
        if key == "volume-nocopy" and kind == "volume":
            options += ["nocopy"] if _truth(text, key, value) else []
        elif key == "tmpfs-size" and kind == "tmpfs":
            try:
                options.append(f"size={parse_size(value)}")
            except InvalidArgument as error:
                raise _bad(text, f"tmpfs-size: {error.message}") from error
        elif key == "tmpfs-mode" and kind == "tmpfs":
            if not value or not set(value) <= set("01234567"):
                raise _bad(text, f"invalid value for tmpfs-mode: {value}: expected an octal number")
            options.append(f"mode={value}")
        elif key != "consistency" and (key, kind, value) not in _HARMLESS:
            raise _bad(
                text, f"{key}={value} is not supported for type={kind}" if "-" in key else f"unexpected key '{key}' in '{key}={value}'"
            )
    return tuple(options)


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
