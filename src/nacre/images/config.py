"""Where an image may be fetched from: ``registries.conf`` version 2, read as podman and skopeo read it.

Files (containers-registries.conf(5)): the one named by ``CONTAINERS_REGISTRIES_CONF``; else ``~/.config/containers/registries.conf``
with ``registries.conf.d/*.conf`` beside it; else ``/etc/containers/registries.conf``. In the first and the last case the drop-in
files of ``/etc/containers/registries.conf.d`` and then those of the user are read after it. A later file replaces
``unqualified-search-registries``, a ``[[registry]]`` of the same prefix and single aliases of an earlier one.

What a short name (``ubuntu``, ``nginx/unit``) means:

1. the alias of that name in an ``[aliases]`` table, if there is one;
2. else, only if ``unqualified-search-registries`` is set and not empty, the name on each of these registries, in order, until one
   has it;
3. else Docker Hub, as Docker does it (``ubuntu`` is ``docker.io/library/ubuntu``).

There is no prompt: ``short-name-mode`` has no effect. Aliases that podman recorded from its own prompts
(``short-name-aliases.conf``) are not read.

Plain HTTP: a registry on the loopback interface is spoken to without TLS unless the configuration says ``insecure = false`` or
has a certificate directory for it. Everywhere else TLS is verified; ``insecure = true`` tries TLS without verification and then
plain HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nacre.errors import Denied, InvalidArgument
from nacre.model.reference import DOCKER_HUB, Reference, split_registry
from nacre.model.value import Value

_SYSTEM = "/etc/containers"
_PULL_FROM_MIRROR = ("all", "digest-only", "tag-only")


class Source(Value):
    """One place that may have an image.

    location:   registry host with optional port, as it is spoken to (``mirror.example:5000``).
    repository: path there. insecure: True, False, or None when the configuration does not say.
    reference:  what the image is called locally, whatever the place.
    """

    location: str
    repository: str
    reference: Reference
    insecure: bool | None = None
    mirror: bool = False


class Mirror(Value):
    """A ``[[registry.mirror]]``. pull_from: all, digest-only or tag-only."""

    location: str
    insecure: bool | None = None
    pull_from: str = "all"


class Registry(Value):
    """A ``[[registry]]``. prefix: host[:port][/path], or ``*.domain``; file: where it was read, for error messages."""

    prefix: str
    location: str
    insecure: bool | None = None
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirrors: tuple[Mirror, ...] = ()
    file: str = ""


class Limits(Value):
    """How far a stranger's content is trusted.

    layer_bytes: largest uncompressed layer; layer_ratio: largest ratio of uncompressed to compressed size once a layer (or an
    archive) has grown beyond ratio_free bytes; archive_members: files in an archive given to `load`.
    """

    layer_bytes: int = 128 << 30
    layer_ratio: int = 200
    ratio_free: int = 256 << 20
    archive_members: int = 100_000

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Limits:
        """NACRE_LAYER_BYTES and NACRE_LAYER_RATIO override the defaults. Raises InvalidArgument when one is not a positive number."""
        values: dict[str, int] = {}
        for name in ("layer_bytes", "layer_ratio"):
            variable = f"NACRE_{name.upper()}"
            text = environ.get(variable, "")
            if text and not (text.isascii() and text.isdigit() and int(text[:20]) > 0):
                raise InvalidArgument(f"{variable}: expected a positive number, got {text[:40]!r}")
            if text:
                values[name] = int(text[:20])
        return cls(**values)


class Registries(Value):
    """The whole configuration, all files merged."""

    search: tuple[str, ...] = ()
    registries: tuple[Registry, ...] = ()
    aliases: dict[str, str] = {}

    def candidates(self, text: str) -> list[Reference]:
        """The references that a name as the user wrote it may mean, best first (see the rules above). Raises InvalidArgument."""
        plain = Reference.parse(text)
        if split_registry(text)[0]:
            return [plain]
        # A short name cannot contain a colon or an at sign but before a tag or a digest.
        name = text.partition("@")[0].partition(":")[0]
        alias = self.aliases.get(name)
        if alias:
            return [Reference.parse(alias).replace(tag=plain.tag, digest=plain.digest)]
        return [Reference.parse(f"{host}/{text}") for host in self.search] or [plain]

    def sources(self, reference: Reference) -> list[Source]:
        """Where to ask for a reference: its mirrors in order, then its own location. Raises Denied when it is blocked."""
        full = str(reference)
        matches = [(length, item) for item in self.registries if (length := _match(full, item.prefix))]
        if not matches:
            return [Source(location=reference.registry, repository=reference.repository, reference=reference)]
        length, registry = max(matches, key=lambda match: match[0])
        if registry.blocked:
            raise Denied(f"registry {registry.prefix} is blocked", hint=f"see {registry.file}")
        mirrors = [mirror for mirror in registry.mirrors if _mirror_serves(mirror, registry, reference)]
        places: list[Mirror | Registry] = [*mirrors, registry]
        return [_source(place, length, reference) for place in places]


def load(environ: Mapping[str, str] | None = None, *, system: str = _SYSTEM) -> Registries:
    """Read and merge the configuration files of this host and user; defaults when there are none.

    system: directory of the host's files. Raises InvalidArgument naming the file and the key when something is malformed.
    """
    environ = os.environ if environ is None else environ
    merged = Registries()
    for path in _files(environ, system):
        merged = _merge(merged, _read(path))
    return merged


def user_directory(environ: Mapping[str, str]) -> str:
    """``~/.config/containers`` (or below XDG_CONFIG_HOME)."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "containers")


def _files(environ: Mapping[str, str], system: str) -> list[str]:
    user = user_directory(environ)
    chosen = environ.get("CONTAINERS_REGISTRIES_CONF", "")
    if chosen and not os.path.exists(chosen):
        raise InvalidArgument(f"CONTAINERS_REGISTRIES_CONF: no such file: {chosen}")
    if not chosen and os.path.exists(f"{user}/registries.conf"):
        return [f"{user}/registries.conf", *_drop_ins(user)]
    main = chosen or f"{system}/registries.conf"
    return [*([main] if os.path.exists(main) else []), *_drop_ins(system), *_drop_ins(user)]


def _drop_ins(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(f"{directory}/registries.conf.d"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [f"{directory}/registries.conf.d/{name}" for name in names if name.endswith(".conf")]


# -- one file ----------------------------------------------------------------------------------------------------------------


def _read(path: str) -> Registries:
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    if "registries" in document:
        raise InvalidArgument(
            f"{path}: [registries]: this is version 1 of the format, which is not supported",
            hint="rewrite it with unqualified-search-registries and [[registry]] (containers-registries.conf(5))",
        )
    search = _strings(document, "unqualified-search-registries", path)
    tables = _tables(document, "registry", path)
    aliases = document.get("aliases", {})
    if not isinstance(aliases, dict):
        raise InvalidArgument(f"{path}: aliases: expected a table")
    return Registries(
        search=tuple(_location(host, f"{path}: unqualified-search-registries") for host in search),
        registries=tuple(_registry(table, path, f"{path}: registry[{number}]") for number, table in enumerate(tables)),
        aliases={name: _alias(name, value, f"{path}: aliases.{name}") for name, value in aliases.items()},
    )


def _registry(table: dict[str, Any], path: str, where: str) -> Registry:
    location = _string(table, "location", where)
    prefix = _string(table, "prefix", where) or location
    if not prefix:
        raise InvalidArgument(f"{where}: neither prefix nor location is set")
    if not location and not prefix.startswith("*."):
        raise InvalidArgument(f"{where}: location is not set", hint="only a prefix that starts with '*.' may go without")
    _location(prefix.removeprefix("*."), f"{where}.prefix")
    return Registry(
        prefix=prefix,
        location=_location(location, f"{where}.location") if location else "",
        insecure=_boolean(table, "insecure", where),
        blocked=_boolean(table, "blocked", where) or False,
        mirror_by_digest_only=_boolean(table, "mirror-by-digest-only", where) or False,
        mirrors=tuple(_mirror(item, f"{where}.mirror[{number}]") for number, item in enumerate(_tables(table, "mirror", where))),
        file=path,
    )


def _mirror(table: dict[str, Any], where: str) -> Mirror:
    pull_from = _string(table, "pull-from-mirror", where) or "all"
    if pull_from not in _PULL_FROM_MIRROR:
        raise InvalidArgument(f"{where}.pull-from-mirror: expected one of {', '.join(_PULL_FROM_MIRROR)}, got {pull_from!r}")
    location = _location(_string(table, "location", where), f"{where}.location")
    return Mirror(location=location, insecure=_boolean(table, "insecure", where), pull_from=pull_from)


def _location(text: str, where: str) -> str:
    """host[:port][/path] without a trailing slash."""
    if "://" in text:
        raise InvalidArgument(
            f"{where}: {text!r}: a location has no scheme", hint="write host[:port][/path] (and insecure = true for HTTP)"
        )
    text = text.rstrip("/")
    host, _, path = text.partition("/")
    if not split_registry(f"{host}/x")[0]:
        raise InvalidArgument(
            f"{where}: {text!r} does not start with a registry", hint="a host name without a dot needs its port: registry:5000"
        )
    try:
        Reference.parse(f"{host}/{path or 'x'}")
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {text!r} is not a registry location: {error.message}") from error
    return text


def _alias(name: str, value: Any, where: str) -> str:
    """The target of an alias; "" takes an alias of an earlier file back. Raises InvalidArgument."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: expected a string")
    if split_registry(name)[0] or "@" in name or ":" in name:
        raise InvalidArgument(f"{where}: {name!r} is not a short name", hint="an alias has no registry, tag or digest")
    if value:
        target = Reference.parse(value)
        if not split_registry(value)[0] or target.tag or target.digest:
            raise InvalidArgument(f"{where}: {value!r} must be registry/repository, without a tag or digest")
    return value


def _tables(table: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    items = table.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidArgument(f"{where}: {key}: expected [[{key}]] tables")
    return items


def _strings(table: dict[str, Any], key: str, where: str) -> list[str]:
    items = table.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InvalidArgument(f"{where}: {key}: expected a list of strings")
    return items


def _string(table: dict[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}.{key}: expected a string")
    return value


def _boolean(table: dict[str, Any], key: str, where: str) -> bool | None:
    value = table.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidArgument(f"{where}.{key}: expected true or false")
    return value


# -- merging and matching ----------------------------------------------------------------------------------------------------


def _merge(earlier: Registries, later: Registries) -> Registries:
    registries = {item.prefix: item for item in (*earlier.registries, *later.registries)}
    aliases = {**earlier.aliases, **later.aliases}
    return Registries(
        search=later.search or earlier.search,
        registries=tuple(registries.values()),
        aliases={name: target for name, target in aliases.items() if target},
    )


def _match(reference: str, prefix: str) -> int:
    """How many characters of the reference the prefix covers; 0 when it does not apply."""
    if prefix.startswith("*."):
        start = reference.partition("/")[0].find(prefix[1:])
        length = start + len(prefix) - 1 if start > 0 else 0
    else:
        length = len(prefix) if reference.startswith(prefix) else 0
    return length if length and (length == len(reference) or reference[length] in "/:@") else 0


def _mirror_serves(mirror: Mirror, registry: Registry, reference: Reference) -> bool:
    if reference.digest:
        return mirror.pull_from != "tag-only"
    return mirror.pull_from != "digest-only" and not registry.mirror_by_digest_only


def _source(place: Mirror | Registry, length: int, reference: Reference) -> Source:
    """The reference with the matched prefix replaced by the location of the place ("" keeps it)."""
    name = reference.name
    if place.location:
        # A prefix may match as far as a tag; the name is all that is rewritten.
        name = place.location + name[length:]
    moved = Reference.parse(name) if "/" in name else reference
    return Source(
        location=moved.registry,
        repository=moved.repository,
        reference=reference,
        insecure=place.insecure,
        mirror=isinstance(place, Mirror),
    )


def is_loopback(location: str) -> bool:
    """Whether a registry host is this machine's loopback interface, by its name or address alone."""
    if location.startswith("["):
        return location[1:].partition("]")[0] in ("::1", "0:0:0:0:0:0:0:1")
    host = location.partition(":")[0]
    parts = host.split(".")
    numeric = len(parts) == 4 and parts[0] == "127" and all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts)
    return host == "localhost" or host.endswith(".localhost") or numeric


def is_docker_hub(location: str) -> bool:
    """Whether a location is Docker Hub under one of its names."""
    return location in (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
