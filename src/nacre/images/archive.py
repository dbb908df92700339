"""Bringing images from archives: `docker save`, `podman save`, OCI image layouts; as a tar, compressed or not, or as a directory.

A tar is read once from start to end (it may come through a pipe). Its files are spooled under numbers of our own below the content
store, hashed on the way, and those that an image refers to then become blobs by rename; no path from an archive ever becomes a
path of this host. In the archive, an OCI layout has precedence over Docker's manifest.json, as in containerd.

Names: Docker's ``RepoTags``; in an OCI layout the annotations ``io.containerd.image.name``, else
``org.opencontainers.image.ref.name``, read as a reference (``latest`` alone is thus an image called latest).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

from nacre.errors import BadContent, InvalidArgument, NacreError, NotFound
from nacre.images.config import Limits
from nacre.images.content import CHUNK, ContentStore, translate
from nacre.images.layers import LayerSink, OnProgress, Reporter, make_image, pair_layers, short, unpack_blob
from nacre.images.platform import check, choose, host_platform
from nacre.images.store import ImageStore
from nacre.images.stream import check_growth, decompress, detect
from nacre.model.image import Descriptor, Image, Layer, Platform
from nacre.model.reference import Reference, check_digest
from nacre.wire.archive import BLOCK, MAX_EXTENDED, Header, apply_pax, normal_path, parse_header, parse_pax
from nacre.wire.registry import (
    INDEXES,
    MAX_CONFIG,
    MAX_LAYERS,
    MAX_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    Index,
    IndexEntry,
    Manifest,
    decode,
    manifest_bytes,
    parse_configuration,
    parse_manifest,
    printable,
)

_MAX_IMAGES = 1000
_MAX_LINKS = 8
_INDEX_DEPTH = 4
_SPECIAL_IN_A_ROW = 16


def load(
    store: ImageStore,
    source: str | IO[bytes],
    *,
    sink: LayerSink,
    platform: Platform | None = None,
    progress: OnProgress | None = None,
    limits: Limits | None = None,
) -> list[Image]:
    """Bring in the images of an archive; returns their records in the archive's order.

    source: path of a file or of a directory with an OCI layout, or a binary file open for reading (a pipe will do).
    platform: for multi-platform layouts, None = this host's.
    Raises BadContent for what is malformed, hostile or not what its digests say, NotFound (no image for the platform, no such
    file), NoSpace, HostError, and what the sink raises. Images that had been loaded before the failure stay, nothing else.
    """
    limits = limits or Limits.from_environment(os.environ)
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.hold())
        files: _Files
        if isinstance(source, str) and os.path.isdir(source):
            files = _Directory(source, store.content)
        else:
            stream = stack.enter_context(_open(source)) if isinstance(source, str) else source
            files = _Tar(stack, store.content, limits)
            files.receive(stream)
        loader = _Loader(store, files, sink, Reporter(progress), limits, platform)
        try:
            images = loader.run()
        except BaseException:
            stack.close()
            with contextlib.suppress(NacreError):
                store.collect(orphans=loader.taken)
            raise
    store.collect()
    return images


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path}") from error
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error


class _Files(Protocol):
    """The files of an archive, wherever they are."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None when there is none of that name. Raises BadContent when it is larger than `limit`."""
        ...

    def digest(self, name: str) -> str:
        """Digest of a file. Raises BadContent when there is none of that name."""
        ...

    def size(self, digest: str) -> int:
        """Size of the file with this digest, -1 when there is none."""
        ...

    def take(self, digest: str) -> None:
        """Make the file a blob of the content store, verified. Raises BadContent."""
        ...


class _Loader:
    """From files to images."""

    def __init__(
        self, store: ImageStore, files: _Files, sink: LayerSink, report: Reporter, limits: Limits, platform: Platform | None
    ) -> None:
        self.store, self.files, self.sink, self.report, self.limits = store, files, sink, report, limits
        self.wanted = platform or host_platform()
        self.explicit = platform is not None
        self.taken: list[str] = []

    def run(self) -> list[Image]:
        index = self.files.read("index.json", MAX_MANIFEST)
        manifest = self.files.read("manifest.json", MAX_MANIFEST)
        if index is not None and (manifest is None or self.files.read("oci-layout", MAX_CONFIG) is not None):
            images = [self._load_oci(names, digest) for names, digest in self._oci_images(index)]
        elif manifest is not None:
            images = [self._load_docker(entry) for entry in _docker_images(manifest)]
        else:
            old = self.files.read("repositories", MAX_MANIFEST) is not None
            raise BadContent(
                "the archive has Docker's format of before version 1.10" if old else "the archive has no manifest.json and no index.json",
                hint="make it with docker save, podman save or skopeo copy",
            )
        if not images:
            raise BadContent("the archive has no image", hint="make it with docker save, podman save or skopeo copy")
        return images

    # -- OCI layout --------------------------------------------------------------------------------------------------------

    def _oci_images(self, data: bytes) -> list[tuple[tuple[str, ...], str]]:
        """(names, digest of the manifest) of every image. Entries of one name are one image for several platforms."""
        index = parse_manifest(data, OCI_INDEX, what="index.json")
        if not isinstance(index, Index):
            raise BadContent("index.json is not an index")
        groups: dict[str, list[IndexEntry]] = {}
        for entry in index.entries:
            if not entry.attestation:
                groups.setdefault(_group(entry), []).append(entry)
        if len(groups) > _MAX_IMAGES:
            raise BadContent(f"the archive has {len(groups)} images, more than the limit of {_MAX_IMAGES}")
        found = []
        for entries in groups.values():
            names = entries[0].names[:1]
            whole = Index(media_type=OCI_INDEX, entries=tuple(entries))
            found.append((names, self._manifest_of(whole, names[0] if names else "the archive", _INDEX_DEPTH)))
        return found

    def _manifest_of(self, index: Index, what: str, depth: int) -> str:
        """Digest of the manifest for the wanted platform. Only entries whose documents are in the archive count."""
        if depth == 0:
            raise BadContent(f"{what}: indexes within indexes, more than {_INDEX_DEPTH} deep")
        present = tuple(entry for entry in index.entries if self.files.size(entry.descriptor.digest) >= 0)
        if index.entries and not present:
            raise BadContent(f"{what}: the archive lacks blob {index.entries[0].descriptor.digest}", hint="it is incomplete, or damaged")
        entry = present[0] if len(present) == 1 else choose(index.replace(entries=present), self.wanted, what)
        document = self._document(entry.descriptor, what)
        if isinstance(document, Manifest):
            return entry.descriptor.digest
        return self._manifest_of(document, what, depth - 1)

    def _document(self, descriptor: Descriptor, what: str) -> Manifest | Index:
        data = self._blob(descriptor, MAX_MANIFEST)
        hint = descriptor.media_type if descriptor.media_type in INDEXES else ""
        return parse_manifest(data, hint, what=f"the manifest of {what}")

    def _load_oci(self, names: tuple[str, ...], digest: str) -> Image:
        what = names[0] if names else short(digest)
        tags = [_tag(name) for name in names]
        manifest = self._document(Descriptor(media_type="", digest=digest, size=self.files.size(digest)), what)
        if not isinstance(manifest, Manifest):
            raise BadContent(f"{what} is an index")
        return self._finish(manifest, digest, tags, what)

    # -- docker-archive ----------------------------------------------------------------------------------------------------

    def _load_docker(self, entry: dict[str, Any]) -> Image:
        config, names, layers = _docker_entry(entry)
        what = names[0] if names else config
        tags = [_tag(name) for name in names]
        config_digest = self.files.digest(config)
        blobs = [self.files.digest(path) for path in layers]
        for blob in (config_digest, *blobs):
            self._take(blob)
        manifest = Manifest(
            media_type="",
            config=Descriptor(media_type=OCI_CONFIG, digest=config_digest, size=self.store.content.size(config_digest)),
            layers=tuple(self._describe(blob) for blob in blobs),
        )
        digest = self.store.content.put(manifest_bytes(manifest.config, manifest.layers))
        self.taken.append(digest)
        return self._finish(manifest, digest, tags, what)

    def _describe(self, blob: str) -> Descriptor:
        fd = self.store.content.open(blob)
        try:
            codec = detect(os.pread(fd, 6, 0))
        finally:
            os.close(fd)
        suffix = f"+{codec.name}" if codec else ""
        return Descriptor(media_type=OCI_LAYER + suffix, digest=blob, size=self.store.content.size(blob))

    # -- both --------------------------------------------------------------------------------------------------------------

    def _finish(self, manifest: Manifest, digest: str, tags: Sequence[Reference | None], what: str) -> Image:
        """Content into the store, layers into the sink, the record last."""
        configuration = parse_configuration(self._blob(manifest.config, MAX_CONFIG), what=f"the configuration of {what}")
        warning = check(configuration.platform, self.wanted, explicit=self.explicit, what=what)
        if warning:
            self.report("manifest", "verifying", message=warning)
        layers = pair_layers(manifest, configuration, what)
        for descriptor in manifest.layers:
            self._blob(descriptor, None)
        if self.store.content.size(digest) < 0:
            self._take(digest)
        sizes = self._unpack(layers)
        image = make_image(manifest.config.digest, digest, configuration, layers, sizes)
        for tag in tags or (None,):
            image = self.store.add(image, tag=tag)
            self.report("manifest", "done", message=f"Loaded image: {tag.familiar()}" if tag else f"Loaded image ID: {image.id}")
        return image

    def _blob(self, descriptor: Descriptor, limit: int | None) -> bytes:
        """Have a blob in the content store with the promised size; its bytes when a limit is given."""
        digest = descriptor.digest
        if self.store.content.size(digest) < 0:
            if self.files.size(digest) < 0:
                raise BadContent(f"the archive lacks blob {digest}", hint="it is incomplete, or damaged")
            self._take(digest)
        size = self.store.content.size(digest)
        if size != descriptor.size:
            raise BadContent(f"blob {digest} has {size} bytes instead of {descriptor.size}")
        return b"" if limit is None else self.store.content.read(digest, limit)

    def _take(self, digest: str) -> None:
        if self.store.content.size(digest) < 0:
            self.taken.append(digest)
            self.files.take(digest)

    def _unpack(self, layers: tuple[Layer, ...]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for layer in {layer.diff_id: layer for layer in layers}.values():
            if self.sink.has(layer.diff_id):
                sizes[layer.diff_id] = self.sink.size(layer.diff_id)
                self.report(short(layer.blob), "exists", message="Already exists")
            else:
                sizes[layer.diff_id] = unpack_blob(self.store.content, layer, self.sink, self.limits, self.report)
        return sizes


def _group(entry: IndexEntry) -> str:
    """What entries of one image have in common: its name; without one, entries that differ by platform only are one image."""
    return entry.names[0] if entry.names else entry.descriptor.digest if entry.platform is None else ""


def _docker_images(data: bytes) -> list[dict[str, Any]]:
    document = decode(data, "manifest.json", MAX_MANIFEST)
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise BadContent("manifest.json: expected a list of objects")
    if len(document) > _MAX_IMAGES:
        raise BadContent(f"the archive has {len(document)} images, more than the limit of {_MAX_IMAGES}")
    return document


def _docker_entry(entry: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    """(path of the configuration, names, paths of the layers)."""
    config, names, layers = entry.get("Config"), entry.get("RepoTags") or [], entry.get("Layers") or []
    lists = isinstance(names, list) and isinstance(layers, list) and all(isinstance(item, str) for item in (*names, *layers))
    if not isinstance(config, str) or not lists:
        raise BadContent("manifest.json: Config must be a path, RepoTags and Layers lists of texts")
    if len(layers) > MAX_LAYERS or len(names) > _MAX_IMAGES:
        raise BadContent(f"manifest.json: an image with {len(layers)} layers and {len(names)} names is beyond the limits")
    return normal_path(config), names, [normal_path(path) for path in layers]


def _tag(name: str) -> Reference:
    try:
        reference = Reference.parse(name)
    except InvalidArgument as error:
        raise BadContent(f"the archive names an image {printable(name)!r}: {error.message}") from error
    if reference.digest:
        raise BadContent(f"the archive names an image by a digest: {printable(name)!r}")
    return reference.tagged()


# -- tar -----------------------------------------------------------------------------------------------------------------------


class _Tar:
    """An archive as a tar, spooled. The stack removes what is left of it."""

    def __init__(self, stack: contextlib.ExitStack, content: ContentStore, limits: Limits) -> None:
        self._content, self._limits = content, limits
        self._directory = f"{content.ingest_root}/load-{os.urandom(8).hex()}"
        with translate(self._directory):
            os.makedirs(self._directory, 0o700)
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            stack.callback(self._clear)
            fcntl.flock(fd, fcntl.LOCK_EX)
        self._names: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._paths: dict[str, tuple[str, int]] = {}

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                os.unlink(f"{self._directory}/{name}")
            os.rmdir(self._directory)

    def receive(self, stream: IO[bytes]) -> None:
        """Read the whole archive. Raises BadContent, NoSpace."""
        reader = _Reader(stream, self._limits)
        members = 0
        while (header := reader.next()) is not None:
            members += 1
            if members > self._limits.archive_members:
                raise BadContent(f"the archive has more than {self._limits.archive_members} members")
            self._add(header, reader)
        if not members:
            raise BadContent("the archive is empty")

    def _add(self, header: Header, reader: _Reader) -> None:
        name = normal_path(header.name)
        if header.kind == "file":
            digest = self._spool(header, reader)
            if self._names.setdefault(name, digest) != digest or name in self._links:
                raise BadContent(f"the archive has {printable(name)!r} twice, with different content")
        elif header.kind in ("symlink", "link"):
            base = name.rpartition("/")[0] if header.kind == "symlink" else ""
            target = normal_path(header.target, base=base)
            if self._links.setdefault(name, target) != target or name in self._names:
                raise BadContent(f"the archive has {printable(name)!r} twice, with different content")
        elif header.kind != "directory":
            raise BadContent(f"{printable(name)!r} in the archive is neither a file nor a directory nor a link")

    def _spool(self, header: Header, reader: _Reader) -> str:
        path = f"{self._directory}/{len(self._paths)}"
        digest = hashlib.sha256()
        with translate(path), open(path, "wb", buffering=0) as file:
            for chunk in reader.data(header.size):
                digest.update(chunk)
                file.write(chunk)
        name = f"sha256:{digest.hexdigest()}"
        if name in self._paths:
            os.unlink(path)
        else:
            self._paths[name] = (path, header.size)
        return name

    def _find(self, name: str) -> str | None:
        """Digest of a file by its name, links followed."""
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                return self._names.get(name)
            name = self._links[name]
        raise BadContent(f"{printable(name)!r} in the archive is a circle of links")

    def read(self, name: str, limit: int) -> bytes | None:
        digest = self._find(name)
        if digest is None:
            return None
        path, size = self._paths[digest]
        if size > limit:
            raise BadContent(f"{name} in the archive has {size} bytes, more than the limit of {limit}")
        with open(path if os.path.exists(path) else self._content.path(digest), "rb") as file:
            return file.read()

    def digest(self, name: str) -> str:
        digest = self._find(name)
        if digest is None:
            raise BadContent(f"the archive lacks {printable(name)!r}, which its manifest.json names", hint="it is incomplete, or damaged")
        return digest

    def size(self, digest: str) -> int:
        if check_digest(digest)[0] != "sha256":
            raise BadContent(f"the archive has content with the digest {digest}; only sha256 is supported in an archive")
        stated = self._find(_blob_path(digest))
        if digest not in self._paths and stated is not None:
            raise BadContent(f"blob {digest} in the archive has different content ({stated})", hint="the archive is damaged")
        return self._paths[digest][1] if digest in self._paths else -1

    def take(self, digest: str) -> None:
        self._content.adopt(self._paths[digest][0], digest)


class _Reader:
    """Headers and data of a tar that is read once."""

    def __init__(self, stream: IO[bytes], limits: Limits) -> None:
        self._stream, self._limits = stream, limits.replace(layer_bytes=1 << 62)
        self._consumed = self._produced = 0
        self._chunks = decompress(self._read, "the archive")
        self._buffer = memoryview(b"")
        self._skip = 0

    def next(self) -> Header | None:
        """The next member with its final name and size; None at the end."""
        changes: dict[str, str] = {}
        for _ in range(_SPECIAL_IN_A_ROW):
            self._discard(self._skip)
            self._skip = 0
            header = parse_header(self._exactly(BLOCK)) if self._fill() else None
            if header is None:
                self._drain()
                return None
            if header.kind in ("pax", "pax-global", "long-name", "long-target"):
                self._extend(header, changes)
                continue
            header = apply_pax(header, changes)
            self._skip = -header.size % BLOCK + (header.size if header.kind != "file" else 0)
            return header
        raise BadContent("the archive has too many extended headers in a row")

    def data(self, size: int) -> Iterator[memoryview]:
        """The data of the member that `next` returned; to be read completely."""
        while size:
            if not self._fill():
                raise BadContent("the archive ends in the middle of a file", hint="it is incomplete")
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(piece)
            yield piece

    def _extend(self, header: Header, changes: dict[str, str]) -> None:
        if header.size > MAX_EXTENDED:
            raise BadContent(f"the archive has an extended header of {header.size} bytes")
        data = self._exactly(header.size)
        self._discard(-header.size % BLOCK)
        if header.kind == "pax":
            changes.update(parse_pax(data))
        elif header.kind != "pax-global":
            key = "path" if header.kind == "long-name" else "linkpath"
            changes[key] = data.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def _read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size) or b""
        except OSError as error:
            raise BadContent(f"cannot read the archive: {error.strerror}") from error
        self._consumed += len(data)
        return data

    def _fill(self) -> bool:
        """Have bytes in the buffer; False at the end."""
        if not len(self._buffer):
            chunk = next(self._chunks, b"")
            self._produced += len(chunk)
            check_growth(self._produced, self._consumed, self._limits, "the archive")
            self._buffer = memoryview(chunk)
        return len(self._buffer) > 0

    def _exactly(self, size: int) -> bytes:
        return b"".join(self.data(size))

    def _discard(self, size: int) -> None:
        for _ in self.data(size):
            pass

    def _drain(self) -> None:
        """Read what is left: checksums come last, and a program that writes into a pipe wants to finish."""
        self._buffer = memoryview(b"")
        while self._fill():
            self._buffer = memoryview(b"")


# -- directory -----------------------------------------------------------------------------------------------------------------


class _Directory:
    """An OCI layout as a directory."""

    def __init__(self, path: str, content: ContentStore) -> None:
        self._root, self._content = path, content

    def read(self, name: str, limit: int) -> bytes | None:
        with self._opened(name) as file:
            if file is None:
                return None
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BadContent(f"{self._root}/{name} is larger than the limit of {limit} bytes")
        return data

    def digest(self, name: str) -> str:
        raise BadContent(f"{self._root} has no index.json", hint="a directory must be an OCI image layout; docker-archive is a tar")

    def size(self, digest: str) -> int:
        with self._opened(_blob_path(digest)) as file:
            return -1 if file is None else os.fstat(file.fileno()).st_size

    def take(self, digest: str) -> None:
        with self._opened(_blob_path(digest)) as file, self._content.ingest(digest, max(self.size(digest), 0)) as ingest:
            if file is None or ingest.exists:
                return
            ingest.restart()
            buffer = memoryview(bytearray(CHUNK))
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                ingest.write(buffer[:count])
            ingest.verify()
            ingest.commit()

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes] | None]:
        """A regular file of the layout; None when there is none. Links are not followed: a layout has none."""
        try:
            fd = os.open(f"{self._root}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except OSError as error:
            raise BadContent(f"cannot read {self._root}/{name}: {error.strerror}") from error
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadContent(f"{self._root}/{name} is not a regular file")
            yield file


def _blob_path(digest: str) -> str:
    algorithm, digits = check_digest(digest)
    return f"blobs/{algorithm}/{digits}"
