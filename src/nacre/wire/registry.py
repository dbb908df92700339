"""What registries and archives say about images: bytes to values, and back. No I/O.

Sources: OCI image specification 1.1 (manifest.md, image-index.md, config.md, descriptor.md), Docker image manifest version 2
schema 2, OCI distribution specification 1.1 (error codes), RFC 9110 section 11 and RFC 6750 section 3 (challenges).

Everything read here comes from strangers: sizes, counts, depths and types are checked before anything is believed, and every
failure is BadContent with the name of the offending field.
"""

from __future__ import annotations

import json
import re
from typing import Any

from nacre.errors import BadContent, InvalidArgument
from nacre.model.image import Descriptor, History, ImageConfig, Platform
from nacre.model.reference import check_digest
from nacre.model.value import Value

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_SCHEMA1 = ("application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws")

ACCEPT = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_INDEX)

MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 1000
MAX_ENTRIES = 4096
_MAX_HISTORY = 10_000
_MAX_TEXT = 1 << 20
_MAX_SIZE = 1 << 50

_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:diff|foreign\.diff)\.tar(?:\.gzip|\.zstd|)|docker\.container\.image\.rootfs\.diff\+x-gtar)"
)


class Manifest(Value):
    """An image manifest: its configuration and its layers, base first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class IndexEntry(Value):
    """One line of an index. platform None: it does not say. names: values of the annotations that name an image, best first."""

    descriptor: Descriptor
    platform: Platform | None = None
    names: tuple[str, ...] = ()
    attestation: bool = False


class Index(Value):
    """An image index (OCI) or manifest list (Docker)."""

    media_type: str
    entries: tuple[IndexEntry, ...]


class Configuration(Value):
    """An image configuration, complete with what is not part of `ImageConfig`. diff_ids: base first."""

    platform: Platform
    config: ImageConfig
    diff_ids: tuple[str, ...]
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""


class Challenge(Value):
    """One challenge of a WWW-Authenticate field. scheme and the names of the parameters are lower case."""

    scheme: str
    parameters: dict[str, str] = {}


# -- manifests and indexes ---------------------------------------------------------------------------------------------------


def parse_manifest(data: bytes, media_type: str = "", *, what: str = "manifest") -> Manifest | Index:
    """Read a manifest or an index.

    media_type: as announced by the registry; "" or a generic one when unknown. what: how errors name the document.
    Raises BadContent, also for the retired schema 1 and for documents that are an index and a manifest at once (CVE-2021-41190).
    """
    document = _object(decode(data, what, MAX_MANIFEST), what)
    media_type = _media_type(document, media_type.partition(";")[0].strip(), what)
    if media_type in _SCHEMA1 or document.get("schemaVersion") == 1:
        raise BadContent(
            f"{what} has Docker schema 1, a format without verifiable layers that registries and engines have retired",
            hint="push the image again with a current tool, for instance: skopeo copy docker://IMAGE docker://IMAGE",
        )
    if document.get("schemaVersion") != 2:
        raise BadContent(f"{what}: schemaVersion is {document.get('schemaVersion')!r}, not 2")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise BadContent(f"{what} is ambiguous: it has the fields of an index and of a manifest")
    if media_type in INDEXES:
        entries = _items(document, "manifests", what, MAX_ENTRIES)
        return Index(
            media_type=media_type, entries=tuple(_entry(item, f"{what}: manifests[{number}]") for number, item in enumerate(entries))
        )
    return _manifest(document, media_type, what)


def _media_type(document: dict[str, Any], announced: str, what: str) -> str:
    stated = _text(document, "mediaType", what)
    known = {*ACCEPT, *_SCHEMA1}
    if stated and announced in known and stated != announced:
        raise BadContent(f"{what}: announced as {announced}, but its mediaType is {stated}")
    media_type = stated or (announced if announced in known else "")
    if not media_type:
        media_type = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    if media_type not in known:
        raise BadContent(f"{what} is of type {media_type[:100]}, which is not a container image")
    return media_type


def _manifest(document: dict[str, Any], media_type: str, what: str) -> Manifest:
    config = _descriptor(document.get("config"), f"{what}: config")
    if config.media_type not in (OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream"):
        raise BadContent(
            f"{what} is not a container image but an artifact with a configuration of type {config.media_type[:100]}",
            hint="artifacts (charts, signatures, models ...) cannot be run",
        )
    if config.size > MAX_CONFIG:
        raise BadContent(f"{what}: a configuration of {config.size} bytes is larger than the limit of {MAX_CONFIG}")
    layers = tuple(
        _descriptor(item, f"{what}: layers[{number}]") for number, item in enumerate(_items(document, "layers", what, MAX_LAYERS))
    )
    for number, layer in enumerate(layers):
        if not _LAYER_TYPE.fullmatch(layer.media_type):
            extra = "; encrypted layers are not supported" if layer.media_type.endswith("+encrypted") else ""
            raise BadContent(f"{what}: layers[{number}] is of type {layer.media_type[:100]}, which is not a layer{extra}")
    return Manifest(media_type=media_type, config=config, layers=layers)


def _descriptor(item: Any, what: str) -> Descriptor:
    item = _object(item, what)
    digest, size = _text(item, "digest", what), item.get("size")
    try:
        check_digest(digest)
    except InvalidArgument as error:
        raise BadContent(f"{what}: {error.message}") from error
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise BadContent(f"{what}: size is {str(size)[:40]}")
    return Descriptor(media_type=_text(item, "mediaType", what), digest=digest, size=size)


def _entry(item: Any, what: str) -> IndexEntry:
    item = _object(item, what)
    annotations = _texts_by_name(item, "annotations", what)
    keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    return IndexEntry(
        descriptor=_descriptor(item, what),
        platform=_platform(item["platform"], f"{what}: platform") if item.get("platform") is not None else None,
        names=tuple(annotations[key] for key in keys if annotations.get(key)),
        attestation="vnd.docker.reference.type" in annotations,
    )


def _platform(item: Any, what: str) -> Platform:
    item = _object(item, what)
    names = ("os", "architecture", "variant")
    return Platform(**{name: _text(item, name, what).lower()[:64] for name in names})


def manifest_bytes(config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """The OCI manifest of an image that came without one (docker-archive). The same image always gives the same bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _describe(config),
        "layers": [_describe(layer) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _describe(item: Descriptor) -> dict[str, Any]:
    return {"mediaType": item.media_type, "digest": item.digest, "size": item.size}


# -- configurations ----------------------------------------------------------------------------------------------------------


def parse_configuration(data: bytes, *, what: str = "configuration") -> Configuration:
    """Read an image configuration (OCI config.md; Docker's has the same fields). Raises BadContent."""
    document = _object(decode(data, what, MAX_CONFIG), what)
    rootfs = _object(document.get("rootfs"), f"{what}: rootfs")
    if rootfs.get("type", "layers") != "layers":
        raise BadContent(f"{what}: rootfs.type is {str(rootfs['type'])[:40]!r}, not 'layers'")
    diff_ids = tuple(_digest(item, f"{what}: rootfs.diff_ids") for item in _items(rootfs, "diff_ids", what, MAX_LAYERS))
    history = _items(document, "history", what, _MAX_HISTORY)
    return Configuration(
        platform=_platform(
            {"os": document.get("os"), "architecture": document.get("architecture"), "variant": document.get("variant")}, what
        ),
        config=_image_config(document.get("config"), f"{what}: config"),
        diff_ids=diff_ids,
        history=tuple(_history(item, f"{what}: history[{number}]") for number, item in enumerate(history)),
        created=_text(document, "created", what)[:64],
        author=_text(document, "author", what),
    )


def _digest(item: Any, what: str) -> str:
    try:
        check_digest(item if isinstance(item, str) else "")
    except InvalidArgument as error:
        raise BadContent(f"{what}: {error.message}") from error
    return str(item)


def _history(item: Any, what: str) -> History:
    item = _object(item, what)
    return History(
        created=_text(item, "created", what)[:64],
        created_by=_text(item, "created_by", what),
        comment=_text(item, "comment", what),
        empty=item.get("empty_layer") is True,
    )


def _image_config(item: Any, what: str) -> ImageConfig:
    item = _object(item if item is not None else {}, what)
    healthcheck = item.get("Healthcheck")
    return ImageConfig(
        env=_texts(item, "Env", what),
        entrypoint=_texts(item, "Entrypoint", what),
        cmd=_texts(item, "Cmd", what),
        working_dir=_text(item, "WorkingDir", what),
        user=_text(item, "User", what),
        labels=_texts_by_name(item, "Labels", what),
        exposed_ports=tuple(_object(item.get("ExposedPorts") or {}, f"{what}: ExposedPorts")),
        volumes=tuple(_object(item.get("Volumes") or {}, f"{what}: Volumes")),
        stop_signal=_text(item, "StopSignal", what),
        shell=_texts(item, "Shell", what),
        healthcheck=_object(healthcheck, f"{what}: Healthcheck") if healthcheck is not None else None,
    )


# -- challenges and errors ---------------------------------------------------------------------------------------------------

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:\s+|$|,)")


def parse_challenges(fields: list[str]) -> list[Challenge]:
    """Challenges of all WWW-Authenticate fields of an answer, in order. Parts that cannot be read are skipped."""
    found: list[Challenge] = []
    for field in fields:
        position = 0
        field = field[:16384]
        while scheme := _SCHEME.match(field, position):
            position = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(field, position):
                name, quoted, plain = parameter.groups()
                parameters.setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
                position = parameter.end()
            found.append(Challenge(scheme=scheme.group(1).lower(), parameters=parameters))
    return found


def parse_errors(data: bytes) -> list[tuple[str, str]]:
    """(code, message) of a registry's error document; empty when it is something else. Texts are made printable and short."""
    try:
        document = decode(data, "error", 1 << 16)
    except BadContent:
        return []
    errors = document.get("errors") if isinstance(document, dict) else None
    found = [item for item in errors if isinstance(item, dict)] if isinstance(errors, list) else []
    return [(printable(item.get("code")), printable(item.get("message"))) for item in found[:5]]


def printable(text: object) -> str:
    """A stranger's text, safe for a terminal and at most 300 characters; "" for anything but text."""
    return "".join(char if char.isprintable() else "?" for char in text[:300]) if isinstance(text, str) else ""


# -- untrusted JSON ----------------------------------------------------------------------------------------------------------


def decode(data: bytes, what: str, limit: int) -> Any:
    """JSON of at most `limit` bytes. Raises BadContent for anything else, including nesting that exhausts the parser."""
    if len(data) > limit:
        raise BadContent(f"{what} is larger than the limit of {limit} bytes")
    try:
        document = json.loads(data.decode())
        if b"\\u" in data:
            json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate would break whoever prints it later
    except (ValueError, RecursionError) as error:
        raise BadContent(f"{what} is not valid JSON: {printable(str(error))}") from error
    return document


def _object(item: Any, what: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadContent(f"{what}: expected an object, got {_kind(item)}")
    return item


def _items(item: dict[str, Any], name: str, what: str, limit: int) -> list[Any]:
    value = item.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadContent(f"{what}: {name}: expected a list, got {_kind(value)}")
    if len(value) > limit:
        raise BadContent(f"{what}: {name} has {len(value)} entries, more than the limit of {limit}")
    return value


def _text(item: dict[str, Any], name: str, what: str) -> str:
    value = item.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or "\0" in value:
        raise BadContent(f"{what}: {name}: expected a text without NUL, got {_kind(value)}")
    return value


def _texts(item: dict[str, Any], name: str, what: str) -> tuple[str, ...]:
    """A list of texts; a single text counts as a list of one (Docker's old Entrypoint and Cmd)."""
    if isinstance(item.get(name), str):
        return (_text(item, name, what),)
    values = _items(item, name, what, _MAX_HISTORY)
    return tuple(_text({name: value if value is not None else 0}, name, what) for value in values)


def _texts_by_name(item: dict[str, Any], name: str, what: str) -> dict[str, str]:
    values = _object(item.get(name) or {}, f"{what}: {name}")
    if len(values) > _MAX_HISTORY:
        raise BadContent(f"{what}: {name} has {len(values)} entries, more than the limit of {_MAX_HISTORY}")
    return {key: _text(values, key, f"{what}: {name}") for key in values}


def _kind(item: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(item), "nothing")
