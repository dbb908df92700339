"""The layers of all images, unpacked once and shared by every container and virtual machine.

::

    <root>/layers/<64 hex digits>/       named by the digest of the uncompressed archive
        layer.erofs                      the layer as an EROFS image, and/or
        fs/                              as a directory
        layer.json                       {"size": bytes of its files, "root": [mode, uid, gid] of its root directory or null}

A layer appears complete, by a rename, or not at all (`nacre.storage.shelf`). It may be there in both forms: drivers differ in
what they stack, and level vm needs images.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from functools import cached_property

from nacre.errors import InvalidArgument, NotFound
from nacre.linux.files import explained, remove_tree, sync_directory
from nacre.model import jsontext
from nacre.model.container import LayerMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.storage.extract import Unpacked
    from nacre.storage.probe import Choice
    from nacre.storage.shelf import Shelf
    from nacre.storage.tar import Limits, Stream

IMAGE = "layer.erofs"
TREE = "fs"
_RECORD = "layer.json"
_LIMIT_VARIABLES = {"NACRE_LAYER_BYTES": "bytes", "NACRE_LAYER_ENTRIES": "entries"}


class LayerStore:
    """Unpacked layers below `root`. Safe for several threads and processes.

    driver: one of `nacre.storage.probe.DRIVERS`; None = the best this host can do. run: directory for what is known until the
    next boot. compression: an algorithm of mkfs.erofs (lz4hc ...) for new images, which then takes longer; "" = none.
    """

    def __init__(self, root: str, driver: str | None = None, *, run: str = "", limits: Limits | None = None, compression: str = "") -> None:
        self._root = os.path.abspath(root)
        self._run = os.path.abspath(run or f"{root}/run")
        self._wanted = driver
        self._limits = limits
        self._compression = compression
        self._choice: Choice | None = None
        self.path = f"{self._root}/layers"

    @property
    def root(self) -> str:
        """The directory that everything is kept in."""
        return self._root

    @property
    def run(self) -> str:
        """The directory for what ends with the boot."""
        return self._run

    @property
    def choice(self) -> Choice:
        """The driver in use and why it is not a better one. Raises InvalidArgument, HostError."""
        if self._choice is None:
            from nacre.storage.probe import choose

            with explained(f"use the storage directory {self._root}"):
                self._choice = choose(self._root, self._run, self._wanted)
        return self._choice

    @property
    def driver(self) -> str:
        """Name of the driver in use."""
        return self.choice.driver

    def status(self) -> list[tuple[str, str]]:
        """What stands behind the choice, as names and values for a reader. Raises InvalidArgument, HostError."""
        from nacre.storage.probe import DRIVERS, abilities, backing

        found = abilities(self._root, self._run)
        rows = [("Backing Filesystem", backing(self._root) or "unknown")]
        if self.driver == "erofs":
            rows.append(("Layers", "mounted as files" if found.through == "file" else "mounted through loop devices"))
        if self.driver in ("erofs", "overlay"):
            rows.append(("userxattr", "true" if found.user_namespace else "false"))
        rows.append(("Chosen", self.choice.reason or "the best this host offers"))
        return rows + [(f"Driver {name}", found.of(name)) for name in DRIVERS]

    def has(self, diff_id: str) -> bool:
        """Whether the layer is there, complete, in a form that the driver can use."""
        return bool(self._format(self._directory(diff_id)))

    def get(self, diff_id: str) -> LayerMount:
        """Where the layer is. Raises NotFound."""
        directory = self._directory(diff_id)
        found = self._format(directory)
        if not found:
            raise _missing(diff_id)
        return LayerMount(diff_id=diff_id, path=f"{directory}/{IMAGE if found == 'erofs' else TREE}", format=found)

    def size(self, diff_id: str) -> int:
        """Bytes of the layer's files, as a listing shows them. Raises NotFound."""
        return int(self._record(diff_id)["size"])

    def root_attributes(self, diff_ids: Collection[str]) -> tuple[int, int, int]:
        """(mode, uid, gid) of the root directory that these layers (base first) make together: what the topmost that says so says."""
        for diff_id in reversed(tuple(diff_ids)):
            if found := self._record(diff_id)["root"]:
                mode, uid, gid = found
                return mode, uid, gid
        return 0o755, 0, 0

    def unpack(self, diff_id: str, stream: Stream, /) -> int:
        """Make a layer from its uncompressed archive; returns the bytes of its files.

        The stream is read to its end, and the layer kept only if it ends without raising. When the layer is already there,
        or somebody else is making it (then this waits), the stream is not touched.
        Raises BadContent for a hostile or broken archive, NoSpace, HostError, and what the stream raises; nothing is left then.
        """
        directory = self._directory(diff_id)
        with self._making(diff_id, "unpack"):
            if not self.has(diff_id):
                with self._shelf.temporary() as path:
                    self._build(diff_id, stream, path)
                    self._publish(path, directory)
        return self.size(diff_id)

    def image(self, diff_id: str) -> LayerMount:
        """The layer as an EROFS image, made from its directory when there is none yet. Raises NotFound, NoSpace, HostError."""
        image, tree = (f"{self._directory(diff_id)}/{name}" for name in (IMAGE, TREE))
        if not os.path.exists(image):
            with self._making(diff_id, "convert"):
                self._record(diff_id)
                if not os.path.exists(tree):
                    raise _missing(diff_id)
                if not os.path.exists(image):
                    with self._shelf.temporary() as path:
                        self._make_image(diff_id, tree, f"{path}/{IMAGE}")
                        os.rename(f"{path}/{IMAGE}", image)
        return LayerMount(diff_id=diff_id, path=image, format="erofs")

    def list(self) -> list[str]:
        """The digests of all layers, in no order."""
        return [f"sha256:{name}" for name in self._shelf.names()]

    def remove(self, diff_id: str) -> None:
        """Forget a layer and free its space; fine when it is not there. It must not be in use. Raises HostError."""
        with self._making(diff_id, "remove"):
            self._shelf.discard(self._directory(diff_id))

    def prune(self, wanted: Collection[str]) -> int:
        """Remove every layer that is not wanted, and what dead processes left; returns how many layers went. Raises HostError."""
        unwanted = [diff_id for diff_id in self.list() if diff_id not in wanted]
        if os.path.isdir(f"{self._root}/stacks"):
            from nacre.storage.snapshots import prune_stacks

            prune_stacks(self._root, wanted)
        for diff_id in unwanted:
            self.remove(diff_id)
        self.sweep()
        return len(unwanted)

    def sweep(self) -> None:
        """Remove what processes left that were killed at work. Never touches what a living one works on."""
        self._shelf.sweep()

    def scratch(self) -> contextlib.AbstractContextManager[str]:
        """An empty directory on the file system of the store, which goes with the context or with this process. Raises OSError."""
        os.makedirs(self.path, 0o700, exist_ok=True)
        return self._shelf.temporary()

    # -- where

    def _directory(self, diff_id: str) -> str:
        algorithm, _, digits = diff_id.partition(":")
        if algorithm != "sha256" or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
            raise InvalidArgument(f"{diff_id!r} is no digest of a layer")
        return f"{self.path}/{digits}"

    def _format(self, directory: str) -> str:
        """In which form a layer is usable: "erofs", "directory" or "" for not at all."""
        if self.driver == "erofs" and os.path.exists(f"{directory}/{IMAGE}"):
            return "erofs"
        return "directory" if os.path.exists(f"{directory}/{TREE}") else ""

    def _record(self, diff_id: str) -> dict[str, Any]:
        try:
            with open(f"{self._directory(diff_id)}/{_RECORD}", encoding="utf-8") as file:
                record: dict[str, Any] = jsontext.loads(file.read())
                return record
        except FileNotFoundError:
            raise _missing(diff_id) from None

    # -- making

    @cached_property
    def _shelf(self) -> Shelf:
        from nacre.storage.shelf import Shelf

        return Shelf(self.path)

    def _making(self, diff_id: str, verb: str) -> contextlib.AbstractContextManager[None]:
        """One process at a time makes or removes a layer."""
        self._directory(diff_id)  # a name that is one
        name = diff_id.partition(":")[2]
        return self._shelf.changing(name, f"{verb} layer {name[:12]}")

    def _build(self, diff_id: str, stream: Stream, path: str) -> None:
        import json

        limits = self._limits or _default_limits()
        if self.driver == "erofs" and not self._compression:
            from nacre.storage.image import write_archive

            with _new_image(f"{path}/{IMAGE}") as fd:
                unpacked = write_archive(stream, fd, uuid=_uuid(diff_id), limits=limits)
        else:
            unpacked = self._extract(stream, f"{path}/{TREE}", limits)
            if self.driver == "erofs":
                self._make_image(diff_id, f"{path}/{TREE}", f"{path}/{IMAGE}")
                remove_tree(f"{path}/{TREE}")
        with open(f"{path}/{_RECORD}", "w", encoding="ascii") as file:
            json.dump({"size": unpacked.size, "root": unpacked.root}, file)
            file.flush()
            os.fsync(file.fileno())

    def _extract(self, stream: Stream, tree: str, limits: Limits) -> Unpacked:
        from nacre.storage.extract import extract

        os.mkdir(tree, 0o700)
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return extract(stream, fd, limits=limits, user_namespace=self.choice.user_namespace)
        finally:
            os.close(fd)

    def _make_image(self, diff_id: str, tree: str, image: str) -> None:
        """An image of a directory."""
        if self._compression:
            from nacre.linux.run import check

            uuid = _uuid(diff_id).hex()
            dashed = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
            check(["mkfs.erofs", "--quiet", "-U", dashed, f"-z{self._compression}", image, tree])
            os.chmod(image, 0o444)
            return
        from nacre.storage.image import write_directory

        with _new_image(image) as fd:
            write_directory(tree, fd, uuid=_uuid(diff_id))

    def _publish(self, path: str, directory: str) -> None:
        part = IMAGE if os.path.exists(f"{path}/{IMAGE}") else TREE
        if part == TREE:
            from nacre.linux.files import sync_filesystem

            sync_filesystem(path)
        if os.path.exists(f"{directory}/{_RECORD}"):
            # There in the other form, in which somebody may be using it.
            os.rename(f"{path}/{part}", f"{directory}/{part}")
            sync_directory(directory)
            return
        self._shelf.discard(directory)
        os.rename(path, directory)
        sync_directory(self.path)


def _missing(diff_id: str) -> NotFound:
    return NotFound(f"layer {diff_id} is not on this host", hint="pull the image again")


@contextlib.contextmanager
def _new_image(path: str) -> Iterator[int]:
    """A new file to write an image to; on disk afterwards.

    Readable by a monitor that is not root, once it is shown the file; the directories above are root's alone.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    finally:
        os.close(fd)


def _uuid(diff_id: str) -> bytes:
    """The same for the same layer everywhere (RFC 9562, version 8)."""
    raw = bytearray.fromhex(diff_id.partition(":")[2][:32])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def _default_limits() -> Limits:
    from nacre.storage.tar import Limits

    changes = {}
    for variable, field in _LIMIT_VARIABLES.items():
        if text := os.environ.get(variable, ""):
            if not text.isdigit():
                raise InvalidArgument(f"{variable} is {text!r}, not a number")
            changes[field] = int(text)
    return Limits(**changes)
