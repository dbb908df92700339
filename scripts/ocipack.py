"""Pack file trees as OCI image layouts: a few lines instead of a dependency, for test images only.

The product's own image code is deliberately not used here: what it reads must have been written by somebody else.
Same input, same bytes: members are sorted, times are fixed, gzip carries no name and no date.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

EPOCH = 1_700_000_000
CREATED = "2023-11-14T22:13:20Z"


def file_member(name: str, data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> tuple[tarfile.TarInfo, bytes]:
    """A regular file for `layer_from_members`."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid, info.mtime = len(data), mode, uid, gid, EPOCH
    return info, data


def directory_member(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> tuple[tarfile.TarInfo, bytes]:
    """A directory for `layer_from_members`."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.mtime = tarfile.DIRTYPE, mode, uid, gid, EPOCH
    return info, b""


def link_member(name: str, target: str, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic or hard link for `layer_from_members`."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    info.linkname, info.mode, info.mtime = target, 0o777, EPOCH
    return info, b""


def layer_from_members(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed layer with these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def normalise(source: Path, target: Path, skip: frozenset[str] = frozenset()) -> None:
    """Rewrite a root file system tar as a layer: no ``./``, nothing of `skip`, no device nodes."""
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for info in old:
            name = info.name.removeprefix("./").rstrip("/")
            if not name or name == "." or info.isdev() or name in skip or any(name.startswith(s + "/") for s in skip):
                continue
            info.name = name
            if info.islnk():
                info.linkname = info.linkname.removeprefix("./")
            info.uname = info.gname = ""
            new.addfile(info, old.extractfile(info) if info.isreg() else None)


def difference(base: Path, full: Path, target: Path) -> None:
    """Write the layer that turns the tree of the tar `base` into the tree of the tar `full`, with whiteouts (OCI layer specification)."""
    before, after = _fingerprints(base), _fingerprints(full)
    changed = {name for name, seen in after.items() if before.get(name) != seen}
    gone = sorted(name for name in before.keys() - after.keys() if str(Path(name).parent) in after or "/" not in name)
    parents = {str(parent) for name in [*changed, *gone] for parent in Path(name).parents}
    with tarfile.open(full) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for info in old:
            if info.name not in changed and not (info.isdir() and info.name in parents):
                continue
            source = info
            if info.islnk() and info.linkname not in changed:
                # The file it links to stays in the layer below, so this layer carries it again under the new name.
                source = old.getmember(info.linkname)
                source.name = info.name
            new.addfile(source, old.extractfile(source) if source.isreg() else None)
        for name in gone:
            whiteout, data = file_member(str(Path(name).parent / f".wh.{Path(name).name}"), b"")
            new.addfile(whiteout, io.BytesIO(data))


def _fingerprints(path: Path) -> dict[str, str]:
    prints = {}
    with tarfile.open(path) as tar:
        for info in tar:
            digest = hashlib.sha256()
            source = tar.extractfile(info) if info.isreg() else None
            while source and (block := source.read(1 << 20)):
                digest.update(block)
            prints[info.name] = repr((info.type, info.mode, info.uid, info.gid, info.linkname, info.pax_headers, digest.hexdigest()))
    return prints


def write_layout(target: Path, layers: Iterable[Path | bytes], config: Mapping[str, Any], tag: str = "latest") -> str:
    """Write an OCI image layout (image-layout.md) of uncompressed layer tars; answers with the digest of the manifest.

    The directory appears complete or not at all.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    blobs = new / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptors, diff_ids, history = [], [], []
    for number, layer in enumerate(layers):
        diff_id, descriptor = _add_layer(blobs, layer)
        diff_ids.append(diff_id)
        descriptors.append(descriptor)
        history.append({"created": CREATED, "created_by": f"layer {number + 1}"})
    image = {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _add_json(blobs, image, "application/vnd.oci.image.config.v1+json"),
        "layers": descriptors,
    }
    described = _add_json(blobs, manifest, "application/vnd.oci.image.manifest.v1+json")
    described["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (new / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (new / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return str(described["digest"])


def _add_layer(blobs: Path, layer: Path | bytes) -> tuple[str, dict[str, Any]]:
    plain, packed = hashlib.sha256(), hashlib.sha256()
    temporary = blobs / ".layer"
    with open(temporary, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as squeezed:
        source = io.BytesIO(layer) if isinstance(layer, bytes) else open(layer, "rb")  # noqa: SIM115
        with source:
            while block := source.read(1 << 20):
                plain.update(block)
                squeezed.write(block)
    with open(temporary, "rb") as again:
        while block := again.read(1 << 20):
            packed.update(block)
    digest = packed.hexdigest()
    size = temporary.stat().st_size
    temporary.rename(blobs / digest)
    return f"sha256:{plain.hexdigest()}", _descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, size)


def _add_json(blobs: Path, value: Any, media_type: str) -> dict[str, Any]:
    data = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return _descriptor(media_type, digest, len(data))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def extract_layer(layout: Path, number: int, target: Path) -> None:
    """Write layer `number` (0 = base) of a layout as an uncompressed tar."""
    manifest = json.loads(_blob(layout, json.loads((layout / "index.json").read_text())["manifests"][0]).read_text())
    with gzip.open(_blob(layout, manifest["layers"][number])) as packed, open(target, "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)


def _blob(layout: Path, descriptor: Mapping[str, Any]) -> Path:
    return layout / "blobs" / "sha256" / str(descriptor["digest"]).removeprefix("sha256:")


def archive_layout(layout: Path, target: Path) -> None:
    """The layout as one tar file, as `nacre load -i` and `skopeo oci-archive:` take it."""
    with tarfile.open(target, "w") as tar:
        for path in sorted(layout.rglob("*")):
            if stat.S_ISREG(path.stat().st_mode):
                info, data = file_member(str(path.relative_to(layout)), path.read_bytes())
                tar.addfile(info, io.BytesIO(data))
