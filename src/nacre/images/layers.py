"""What pulling and loading have in common: layers handed to the storage room, progress, the record of the finished image."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from nacre.errors import BadContent
from nacre.images.config import Limits
from nacre.images.content import ContentStore
from nacre.images.stream import Feed, LayerStream
from nacre.model.image import Image, Layer, Progress
from nacre.wire.registry import Configuration, Manifest

_INTERVAL = 0.05

OnProgress = Callable[[Progress], None]


class LayerSink(Protocol):
    """Where unpacked layers go; the storage room's `LayerStore`. Called from several threads at once, for different layers."""

    def has(self, diff_id: str) -> bool:
        """Whether the layer is there, complete."""
        ...

    def size(self, diff_id: str) -> int:
        """Bytes unpacked of a layer that is there."""
        ...

    def unpack(self, diff_id: str, stream: LayerStream, /) -> int:
        """Unpack the uncompressed tar and return the bytes unpacked.

        Read the stream to its end (``read`` returns b"") before making the layer permanent: the last read raises BadContent when
        the content is not what the digest says. Whatever the stream raises must leave no trace of the layer. When another
        process has made the layer meanwhile, it may return without reading.
        """
        ...


class Reporter:
    """Progress for one operation: serialised, and thinned out to what eyes can follow."""

    def __init__(self, tell: OnProgress | None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._last: dict[str, tuple[str, float]] = {}

    def __call__(self, item: str, stage: str, current: int = 0, total: int = 0, message: str = "") -> None:
        """Report a step. Steps of the same stage of an item that follow too fast are left out, unless they are the last."""
        if self._tell is None:
            return
        with self._lock:
            now = time.monotonic()
            stage_before, then = self._last.get(item, ("", 0.0))
            if stage == stage_before and now - then < _INTERVAL and not message and current < total:
                return
            self._last[item] = (stage, now)
            self._tell(Progress(item=item, stage=stage, current=current, total=total, message=message))


def short(digest: str) -> str:
    """The first twelve digits of a digest, which name a layer to the user."""
    return digest.partition(":")[2][:12]


def pair_layers(manifest: Manifest, configuration: Configuration, what: str) -> tuple[Layer, ...]:
    """The layers with the digests of their content. Raises BadContent when manifest and configuration disagree."""
    if len(manifest.layers) != len(configuration.diff_ids):
        raise BadContent(
            f"{what}: the manifest has {len(manifest.layers)} layers, the configuration {len(configuration.diff_ids)}",
            hint="the image was put together wrongly; nothing was stored",
        )
    pairs = zip(configuration.diff_ids, manifest.layers, strict=True)
    return tuple(Layer(diff_id=diff_id, blob=blob.digest, size=blob.size, media_type=blob.media_type) for diff_id, blob in pairs)


def unpack_layer(feed: Feed, layer: Layer, sink: LayerSink, limits: Limits, report: Reporter) -> int:
    """Give a layer to the sink; returns its unpacked size in bytes. Raises BadContent and what the sink raises."""
    item = short(layer.blob)
    feed.wait()
    stream = LayerStream(
        feed,
        layer.diff_id,
        blob=layer.blob,
        size=layer.size,
        limits=limits,
        on_read=lambda consumed: report(item, "extracting", consumed, layer.size),
    )
    with stream:
        size = sink.unpack(layer.diff_id, stream)
    report(item, "done", layer.size, layer.size)
    return size


def unpack_kept(content: ContentStore, layers: Iterable[Layer], sink: LayerSink, limits: Limits | None = None) -> None:
    """Unpack layers that the sink lacks from the blobs that pulling and loading have kept. Raises BadContent when one is missing."""
    limits = limits or Limits.from_environment(os.environ)
    for layer in layers:
        if not sink.has(layer.diff_id):
            unpack_blob(content, layer, sink, limits, Reporter(None))


def unpack_blob(content: ContentStore, layer: Layer, sink: LayerSink, limits: Limits, report: Reporter) -> int:
    """Give a layer whose blob is in the content store to the sink; returns its unpacked size. Raises as `unpack_layer` does."""
    feed = Feed()
    feed.attach(content.open(layer.blob))
    with contextlib.closing(feed):
        feed.finish(layer.size)
        return unpack_layer(feed, layer, sink, limits, report)


def make_image(
    identifier: str, manifest_digest: str, configuration: Configuration, layers: tuple[Layer, ...], sizes: Mapping[str, int]
) -> Image:
    """The record of an image without names. identifier: digest of its configuration; sizes: unpacked bytes by diff_id."""
    steps = list(configuration.history)
    with_layer = [number for number, step in enumerate(steps) if not step.empty]
    if len(with_layer) == len(layers):
        for number, layer in zip(with_layer, layers, strict=True):
            steps[number] = steps[number].replace(size=sizes.get(layer.diff_id, 0))
    return Image(
        id=identifier,
        digest=manifest_digest,
        created=configuration.created,
        size=sum(sizes.get(layer.diff_id, 0) for layer in layers),
        platform=configuration.platform,
        author=configuration.author,
        config=configuration.config,
        layers=layers,
        history=tuple(steps),
    )
