"""Images as values: descriptors, configuration, records of the local store (OCI image specification 1.1)."""

from __future__ import annotations

from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Platform(Value):
    """OCI platform object. `variant` is "" when it does not apply."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(Value):
    """OCI content descriptor: media type, digest (``sha256:<hex>``) and size in bytes."""

    media_type: str
    digest: str
    size: int


class ImageConfig(Value):
    """The parts of an OCI image configuration that decide how a container of it runs (``config`` of the specification)."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    shell: tuple[str, ...] = ()
    healthcheck: dict[str, Any] | None = None


class Layer(Value):
    """One layer as the local store has it.

    diff_id: digest of the uncompressed tar, which names the unpacked layer on every host.
    blob:    digest of the (compressed) blob it came from; size: of that blob, in bytes.
    """

    diff_id: str
    blob: str
    size: int
    media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip"


class History(Value):
    """One entry of an image's history. `empty` entries (ENV, CMD ...) have no layer."""

    created: str = ""
    created_by: str = ""
    comment: str = ""
    empty: bool = False
    size: int = 0


class Image(Value):
    """An image in the local store.

    id:      digest of its configuration (what Docker calls the image id).
    digest:  digest of its manifest; repo_digests: ``repository@digest`` under which it was pulled.
    tags:    normalised references (``docker.io/library/ubuntu:latest``).
    created: RFC 3339; size: bytes of the unpacked layers (what a listing shows), 0 when not unpacked yet.
    """

    id: str
    digest: str
    tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    created: str = ""
    size: int = 0
    platform: Platform = Platform()
    author: str = ""
    config: ImageConfig = ImageConfig()
    layers: tuple[Layer, ...] = ()
    history: tuple[History, ...] = ()


class Progress(Value):
    """One step of a long image operation, for progress bars.

    item: what is being worked on (short digest of a layer, or "manifest"); stage: waiting, downloading, verifying,
    extracting, exists, done, retrying; current and total in bytes, total 0 when unknown; message: free text.
    """

    item: str
    stage: str
    current: int = 0
    total: int = 0
    message: str = ""


class Removed(Value):
    """One step of removing an image, as `docker rmi` prints it; one of the two is set.

    untagged: a familiar reference that is gone; deleted: the id of an image that is gone.
    """

    untagged: str = ""
    deleted: str = ""
