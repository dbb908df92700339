"""Small images made in memory, and their archives: what tests push, pull and load."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nacre.model.image import Platform
from nacre.wire.registry import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)

_OCI_SUFFIX = {"": "", "gzip": "+gzip", "zstd": "+zstd"}


class Sample:
    """An image or an index with all its content. blobs: bytes by digest; digest and media_type: of the topmost document."""

    def __init__(self, blobs: Mapping[str, bytes], digest: str, media_type: str, platform: Platform | None = None) -> None:
        self.blobs = dict(blobs)
        self.digest = digest
        self.media_type = media_type
        self.platform = platform

    @property
    def manifest(self) -> dict[str, Any]:
        """The topmost document, parsed."""
        document: dict[str, Any] = json.loads(self.blobs[self.digest])
        return document

    @property
    def id(self) -> str:
        """Digest of the configuration."""
        return str(self.manifest["config"]["digest"])

    @property
    def diff_ids(self) -> list[str]:
        """Digests of the uncompressed layers."""
        return list(json.loads(self.blobs[self.id])["rootfs"]["diff_ids"])

    @property
    def layers(self) -> list[str]:
        """Digests of the layer blobs."""
        return [layer["digest"] for layer in self.manifest["layers"]]


class MemorySink:
    """A `LayerSink` that keeps the tars it is given. error: what `unpack` raises after its first read."""

    def __init__(self) -> None:
        self.layers: dict[str, bytes] = {}
        self.error: Exception | None = None

    def has(self, diff_id: str) -> bool:
        """Whether the layer was unpacked completely."""
        return diff_id in self.layers

    def size(self, diff_id: str) -> int:
        """Size of the layer's tar."""
        return len(self.layers[diff_id])

    def unpack(self, diff_id: str, stream: io.RawIOBase, /) -> int:
        """Keep a layer; returns the size of its tar."""
        parts = []
        while part := stream.read(1 << 16):
            parts.append(part)
            if self.error is not None:
                raise self.error
        self.layers[diff_id] = b"".join(parts)
        return len(self.layers[diff_id])


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_tar(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar of regular files; names that end with "/" are directories. The same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.mode = 0o755
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def compress(data: bytes, method: str) -> bytes:
    """Compressed with "gzip" or "zstd"; unchanged with ""."""
    if method == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if method == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return bytes(zstd.compress(data))
    return data


def make_sample(
    layers: Sequence[bytes],
    *,
    compression: str = "gzip",
    docker: bool = False,
    platform: Platform | None = None,
    config: Mapping[str, Any] | None = None,
    change: Mapping[str, Any] | None = None,
) -> Sample:
    """An image of uncompressed layer tars. config: its ``config`` object; change: overrides of fields of the manifest."""
    platform = platform or Platform()
    blobs = [compress(layer, compression) for layer in layers]
    document = {
        "created": "2026-01-02T03:04:05Z",
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
        "config": dict(config or {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))] + [{"created_by": "CMD", "empty_layer": True}],
    }
    raw = json.dumps(document).encode()
    layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip" if docker else OCI_LAYER + _OCI_SUFFIX[compression]
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": describe(raw, DOCKER_CONFIG if docker else OCI_CONFIG),
        "layers": [describe(blob, layer_type) for blob in blobs],
        **(change or {}),
    }
    top = json.dumps(manifest).encode()
    content = {digest_of(blob): blob for blob in (*blobs, raw, top)}
    return Sample(content, digest_of(top), str(manifest["mediaType"]), platform)


def make_index(samples: Iterable[Sample], *, docker: bool = False, extra: Sequence[Mapping[str, Any]] = ()) -> Sample:
    """An index over images by their platforms. extra: further entries, as they are."""
    samples = list(samples)
    entries = [
        {**describe(sample.blobs[sample.digest], sample.media_type), "platform": sample.platform.to_data() if sample.platform else None}
        for sample in samples
    ]
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    top = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": [*entries, *extra]}).encode()
    content = {digest: blob for sample in samples for digest, blob in sample.blobs.items()}
    return Sample({**content, digest_of(top): top}, digest_of(top), media_type)


def describe(data: bytes, media_type: str) -> dict[str, Any]:
    """The descriptor of some bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def oci_layout(named: Mapping[str, Sample]) -> dict[str, bytes]:
    """Files of an OCI image layout with the given images; names go into the annotation org.opencontainers.image.ref.name."""
    entries = []
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    for name, sample in named.items():
        entry = describe(sample.blobs[sample.digest], sample.media_type)
        entries.append({**entry, **({"annotations": {"org.opencontainers.image.ref.name": name}} if name else {})})
        files.update({f"blobs/sha256/{digest.partition(':')[2]}": blob for digest, blob in sample.blobs.items()})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return files


def docker_archive(named: Mapping[str, Sample]) -> dict[str, bytes]:
    """Files of what `docker save` writes: layers first, manifest.json last."""
    files: dict[str, bytes] = {}
    entries = []
    for name, sample in named.items():
        paths = []
        for layer in sample.layers:
            paths.append(f"{layer[7:]}/layer.tar")
            files[paths[-1]] = sample.blobs[layer]
        files[f"{sample.id[7:]}.json"] = sample.blobs[sample.id]
        entries.append({"Config": f"{sample.id[7:]}.json", "RepoTags": [name] if name else None, "Layers": paths})
    files["manifest.json"] = json.dumps(entries).encode()
    return files


def write_files(directory: str, files: Mapping[str, bytes]) -> None:
    """Write files below a directory."""
    for name, data in files.items():
        path = f"{directory}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
