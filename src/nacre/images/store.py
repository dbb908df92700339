"""The images of this host: records, references, and what may be deleted.

::

    images/
    ├── references.json   which images there are and what they are called: the one truth, replaced by rename
    ├── <hex>.json        the record of an image (id sha256:<hex>); without a line in references.json it is garbage
    ├── lock              held while references.json changes
    └── use.lock          held shared while images are brought in or taken into use, exclusively while garbage is collected

Reading takes no lock: a rename shows the old state or the new one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

from nacre.errors import Conflict, HostError, InvalidArgument, NotFound
from nacre.images.content import STALE, ContentStore, translate, write_file
from nacre.model import jsontext
from nacre.model.image import History, Image, Removed
from nacre.model.reference import Reference, is_digest, split_registry
from nacre.store.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VERSION = 1
_HEX = frozenset("0123456789abcdef")
_MAX_CONFIG = 8 << 20

# ImageStore.list hides the builtin inside the class.
_Images = list[Image]
_Steps = list[Removed]
_Histories = list[History]
Users = Callable[[Image], list[str]]


class _References:
    """The content of references.json.

    images: ids; tags and digests: id by reference; short: what a short name stood for in the last pull by it, where that was
    not Docker Hub's image; orphans: digests of content whose image was removed and that `collect` has not deleted yet.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.images: list[str] = list(data.get("images", ()))
        self.tags: dict[str, str] = dict(data.get("tags", {}))
        self.digests: dict[str, str] = dict(data.get("digests", {}))
        self.short: dict[str, str] = dict(data.get("short", {}))
        self.orphans: list[str] = list(data.get("orphans", ()))

    def to_bytes(self) -> bytes:
        return jsontext.dumps({"version": _VERSION, **self.__dict__}).encode()

    def names(self, identifier: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(tags, digests) of an image."""
        tags = tuple(sorted(name for name, image in self.tags.items() if image == identifier))
        return tags, tuple(sorted(name for name, image in self.digests.items() if image == identifier))

    def by_name(self, text: str) -> str:
        """Id of the image with this name, "" when there is none. Raises InvalidArgument."""
        reference = Reference.parse(text)
        name = self.short.get(short_name(text), reference.name)
        if reference.digest:
            return self.digests.get(f"{name}@{reference.digest}", "")
        return self.tags.get(f"{name}:{reference.tagged().tag}", "")

    def by_id(self, text: str) -> str:
        """Id of the image with this id, or whose manifest has this digest; "" when there is none."""
        digest = f"sha256:{text}" if len(text) == 64 else text
        if not is_digest(digest):
            return ""
        if digest in self.images:
            return digest
        return next((image for name, image in self.digests.items() if name.endswith(f"@{digest}")), "")

    def by_prefix(self, text: str) -> str:
        """Id of the only image whose id begins so; "" when there is none. Raises InvalidArgument when there are several."""
        digits = text.removeprefix("sha256:")
        if not digits or not _HEX.issuperset(digits):
            return ""
        found = [image for image in self.images if image.startswith(f"sha256:{digits}")]
        if len(found) > 1:
            raise InvalidArgument(
                f"ambiguous image id {text!r}: it is the beginning of {len(found)} ids", hint=", ".join(image[7:23] for image in found[:5])
            )
        return found[0] if found else ""

    def find(self, text: str) -> str:
        """Id of the image that a user's word means. Raises NotFound, InvalidArgument."""
        identifier = self.by_id(text)
        if not identifier and not is_digest(text) and not (len(text) == 64 and _HEX.issuperset(text)):
            identifier = self.by_name(text) or self.by_prefix(text)
        if not identifier:
            identifiable = is_digest(text) or len(text) == 64
            name = text if identifiable else Reference.parse(text).tagged().familiar()
            raise NotFound(f"No such image: {name}", hint="see nacre images" if identifiable else f"nacre pull {name}")
        return identifier


class ImageStore:
    """The images below `<root>/images`, their content below `<root>/blobs`. Creates the directories when it first writes.

    Any number of processes may use it at once. Methods that write raise NoSpace, Denied or HostError for what the file system
    refuses; those that read raise HostError when the store is damaged.
    """

    def __init__(self, root: str) -> None:
        self.root = f"{root}/images"
        self.content = ContentStore(f"{root}/blobs")
        # What was read last, so that a file that has not changed is not taken apart again: one command asks several times.
        self._documents: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self._values: dict[str, tuple[dict[str, Any], Image]] = {}

    # -- reading -----------------------------------------------------------------------------------------------------------

    def resolve(self, text: str) -> Image:
        """The image that a reference, an id, a digest or a unique prefix of an id means; names come before prefixes, as in Docker.

        Raises NotFound("No such image: ..."), InvalidArgument for a malformed reference or an ambiguous prefix.
        """
        references = self._load()
        image = self._image(references.find(text), references)
        if image is None:
            raise NotFound(f"No such image: {text}", hint=f"nacre pull {text}")
        return image

    def list(self) -> _Images:
        """All images, newest first."""
        return sorted(self._all(self._load()), key=lambda image: image.created, reverse=True)

    def history(self, text: str) -> _Histories:
        """How the image was made, newest step first, as `docker history` lists it. size: of the unpacked layer, in bytes."""
        return [*reversed(self.resolve(text).history)]

    def configuration(self, image: Image) -> dict[str, Any]:
        """The image's configuration as it was published: the JSON document of the OCI specification. Raises BadContent."""
        document = jsontext.loads(self.content.read(image.id, _MAX_CONFIG))
        return document if isinstance(document, dict) else {}

    # -- changing ----------------------------------------------------------------------------------------------------------

    def hold(self) -> Lock:
        """Keep all content and layers from being collected while something is brought in or taken into use. A context manager."""
        self._make_directory()
        with translate(self.root):
            return Lock(f"{self.root}/use.lock", shared=True)

    def add(self, image: Image, *, tag: Reference | None = None, digest: Reference | None = None) -> Image:
        """Record an image whose content and layers are all there; the given names move to it from wherever they were.

        To be called under `hold`. Returns the image with all its names.
        """
        record = {"image": image.replace(tags=(), repo_digests=()).to_data()}
        with self._changing() as references:
            write_file(self._path(image.id), jsontext.dumps(record).encode())
            if image.id not in references.images:
                references.images.append(image.id)
            if tag is not None:
                references.tags[str(tag)] = image.id
            if digest is not None:
                references.digests[str(digest)] = image.id
        tags, digests = references.names(image.id)
        return image.replace(tags=tags, repo_digests=digests)

    def remember_short_name(self, text: str, reference: Reference) -> None:
        """Let `resolve` understand a short name as the pull did that found it elsewhere than on Docker Hub."""
        name, known = short_name(text), self._load().short
        if not name or known.get(name, Reference.parse(name).name) == reference.name:
            return
        with self._changing() as references:
            references.short[name] = reference.name

    def tag(self, source: str, target: str) -> Image:
        """Give an image another name (`latest` when it has no tag); a name that another image has moves. Returns the image.

        Raises NotFound, InvalidArgument.
        """
        reference = Reference.parse(target)
        if reference.digest:
            raise InvalidArgument("refusing to create a tag with a digest reference", hint="leave out the part from @ on")
        with self._changing() as references:
            identifier = references.find(source)
            references.tags[str(reference.tagged())] = identifier
            references.short.pop(short_name(target), None)
        return self.resolve(identifier)

    def remove(self, text: str, *, force: bool = False, in_use: Users | None = None, running: Users | None = None) -> _Steps:
        """Take a name away, and the image with its last name; by id, the image with all its names. Returns Docker's steps.

        force: also when it has several names, or stopped containers use it. in_use: ids of all containers of an image,
        running: of those that run. The content goes with the next `collect`.
        Raises NotFound, InvalidArgument, and Conflict when the image is in use or has several names.
        """
        with self._changing() as references:
            identifier = references.find(text)
            image = self._image(identifier, references) or Image(id=identifier, digest="")
            by_name = not references.by_id(text) and references.by_name(text) == identifier
            going = _names_to_drop(references, image, text) if by_name else [*image.tags, *image.repo_digests]
            last = len(going) == len(image.tags) + len(image.repo_digests)
            if not by_name and not force:
                _check_single(image)
            if last:
                last = _may_delete(image, text if by_name else "", force, in_use, running)
            for name in going:
                references.tags.pop(name, None)
                references.digests.pop(name, None)
            if last:
                references.images.remove(identifier)
                references.orphans += (identifier, image.digest, *(layer.blob for layer in image.layers))
            left = {name.rpartition(":")[0] for name in references.tags}
            references.short = {name: target for name, target in references.short.items() if target in left}
        if last:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(identifier))
        steps = [Removed(untagged=Reference.parse(name).familiar()) for name in going]
        return [*steps, Removed(deleted=identifier)] if last else steps

    def collect(self, prune_layers: Callable[[frozenset[str]], object] | None = None, *, orphans: Iterable[str] = ()) -> bool:
        """Delete content that no image refers to. False when something is being brought in: then a later call will do it.

        prune_layers: called with the diff_ids of all images, while nothing can be added; unpacked layers belong to the storage
        room. What a broken-off pull left is kept for a day, so that the next pull can use it; what a removed image left is not,
        nor are orphans: digests of content that is in nobody's interest any more.
        """
        dropped = set(orphans)
        self._make_directory()
        try:
            lock = Lock(f"{self.root}/use.lock", wait=0)
        except Conflict:
            return False
        with lock, translate(self.root), self._changing() as references:
            self._drop_records(references)
            images = self._all(references)
            needed = {digest for image in images for digest in (image.id, image.digest, *(layer.blob for layer in image.layers))}
            dropped.update(references.orphans)
            for digest, changed in [*self.content.blobs()]:
                if digest not in needed and (digest in dropped or time.time() - changed > STALE):
                    self.content.remove(digest)
            references.orphans = []
            self.content.drop_stale_ingests(dropped)
            if prune_layers is not None:
                prune_layers(frozenset(layer.diff_id for image in images for layer in image.layers))
        return True

    # -- files -------------------------------------------------------------------------------------------------------------

    def _path(self, identifier: str) -> str:
        return f"{self.root}/{identifier.partition(':')[2]}.json"

    def _make_directory(self) -> None:
        with translate(self.root):
            os.makedirs(self.root, 0o700, exist_ok=True)

    def _load(self) -> _References:
        document = self._read_json(f"{self.root}/references.json")
        if document and document.get("version") != _VERSION:
            raise HostError(f"{self.root} has version {document.get('version')}, this program knows {_VERSION}", hint="use a newer Nacre")
        return _References(document or {})

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_References]:
        """The references, locked; written back when they have changed."""
        self._make_directory()
        with translate(self.root):
            lock = Lock(f"{self.root}/lock")
        with lock:
            references = self._load()
            before = references.to_bytes()
            yield references
            after = references.to_bytes()
            if after != before:
                write_file(f"{self.root}/references.json", after)

    def _read_json(self, path: str) -> dict[str, Any] | None:
        """A JSON object; None when there is no such file."""
        with translate(path):
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                return None
        known = self._documents.get(path)
        if known and known[0] == data:
            return known[1]
        try:
            document = jsontext.loads(data)
            if not isinstance(document, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise HostError(f"{path} is damaged: {error}", hint="restore it, or move it away and pull the images again") from error
        self._documents[path] = data, document
        return document

    def _read_record(self, identifier: str) -> dict[str, Any] | None:
        return self._read_json(self._path(identifier))

    def _image(self, identifier: str, references: _References) -> Image | None:
        """The image with its names; None when another process has just removed it."""
        record = self._read_record(identifier)
        if record is None:
            return None
        known = self._values.get(identifier)
        if known is None or known[0] is not record:
            known = self._values[identifier] = record, Image.from_data(record.get("image", {}))
        tags, digests = references.names(identifier)
        return known[1].replace(tags=tags, repo_digests=digests)

    def _all(self, references: _References) -> _Images:
        return [image for identifier in references.images if (image := self._image(identifier, references)) is not None]

    def _drop_records(self, references: _References) -> None:
        """Delete records, and half-written ones, that no line in references.json speaks of."""
        known = {f"{identifier.partition(':')[2]}.json" for identifier in references.images} | {"references.json", "lock", "use.lock"}
        for name in os.listdir(self.root):
            if name not in known and name.endswith((".json", ".tmp")):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.root}/{name}")


def short_name(text: str) -> str:
    """The name part of a reference without a registry; "" when it has one."""
    return "" if split_registry(text)[0] else text.partition("@")[0].partition(":")[0]


def _names_to_drop(references: _References, image: Image, text: str) -> list[str]:
    """The name that the user gave; with the last tag of a repository, also the digests under which it was pulled from there."""
    reference = Reference.parse(text)
    name = references.short.get(short_name(text), reference.name)
    if reference.digest:
        return [f"{name}@{reference.digest}"]
    tag = f"{name}:{reference.tagged().tag}"
    others = [item for item in image.tags if item != tag and item.rpartition(":")[0] == name]
    return [tag] if others else [tag, *(item for item in image.repo_digests if item.partition("@")[0] == name)]


def _check_single(image: Image) -> None:
    """Raises Conflict when an image to be removed by its id has names that the user may not know of."""
    repositories = {Reference.parse(name).name for name in (*image.tags, *image.repo_digests)}
    if len(repositories) > 1 or len(image.tags) > 1:
        names = ", ".join(Reference.parse(tag).familiar() for tag in image.tags)
        raise Conflict(
            f"conflict: unable to delete {image.id[7:19]} (must be forced) - image is referenced in multiple repositories",
            hint=f"remove it by its names ({names}), or use --force",
        )


def _may_delete(image: Image, name: str, force: bool, in_use: Users | None, running: Users | None) -> bool:
    """Whether the last name takes the image with it (False: it stays without a name). name: "" when removed by id. Raises Conflict."""
    active = running(image) if running else []
    users = [*active, *(in_use(image) if in_use else [])]
    if active and name and force:
        return False
    if active and not name:
        reason = f"unable to delete {image.id[7:19]} (cannot be forced) - image is being used by running container {active[0][:12]}"
        raise Conflict(f"conflict: {reason}", hint=f"nacre rm -f {active[0][:12]}")
    if users and not force:
        what = f'remove repository reference "{name}" (must force)' if name else f"delete {image.id[7:19]} (must be forced)"
        why = f"container {users[0][:12]} is using its referenced image {image.id[7:19]}"
        raise Conflict(f"conflict: unable to {what} - {why}", hint=f"nacre rm {users[0][:12]}, or --force")
    return True
