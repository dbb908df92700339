"""Bringing an image from a registry into the local store.

Manifest and configuration first, then the layers: up to three downloads at once, each layer unpacked while it arrives. The image
becomes visible in one step at the end; killed before that, a pull leaves content that the next one takes up and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from nacre.errors import BadContent, InvalidArgument, NacreError, NoSpace, NotFound, RemoteError
from nacre.images import config
from nacre.images.config import Limits, Registries, Source
from nacre.images.content import CHUNK, Ingest
from nacre.images.layers import LayerSink, OnProgress, Reporter, make_image, pair_layers, short, unpack_layer
from nacre.images.platform import check, choose, host_platform
from nacre.images.registry import Cancelled, Client, Fetched, Retry
from nacre.images.store import ImageStore
from nacre.images.stream import Feed
from nacre.images.transport import NETWORK_ERRORS
from nacre.model.image import Image, Layer, Platform
from nacre.model.reference import Reference
from nacre.model.value import Value
from nacre.wire.registry import INDEXES, Index, Manifest, parse_configuration, parse_manifest

_DOWNLOADS = 3
_UNPACKERS = 2
_INDEX_DEPTH = 4
# A connection that brought this much before it broke counts as a working one.
_PROGRESS = 1 << 20

T = TypeVar("T")


class Options(Value):
    """How to pull. registries None: as configured on this host; environ: for credentials, proxies and configuration files."""

    environ: Mapping[str, str] = os.environ
    registries: Registries | None = None
    limits: Limits | None = None
    retry: Retry = Retry()


def pull(
    store: ImageStore,
    reference: str | Reference,
    *,
    sink: LayerSink,
    platform: Platform | None = None,
    progress: OnProgress | None = None,
    options: Options | None = None,
) -> Image:
    """Fetch an image, unpack its layers into `sink`, and return its record, which then also `store.resolve` finds.

    reference: as the user wrote it (short names are resolved as `images.config` tells) or a parsed one. platform: None = this
    host's. progress: told every step (`Progress`), from several threads but never from two at once.

    Raises InvalidArgument (malformed reference or configuration), NotFound (no such image or platform), Unauthorized, Denied
    (blocked registry), RemoteError, BadContent, NoSpace, HostError, and what the sink raises. The store is then as it was.
    """
    options = options or Options()
    registries = options.registries if options.registries is not None else config.load(options.environ)
    candidates = registries.candidates(reference) if isinstance(reference, str) else [reference]
    report = Reporter(progress)
    work = _Pull(store, sink, report, options, platform)
    try:
        with contextlib.closing(work.client), store.hold():
            image = work.run([source for candidate in candidates for source in registries.sources(candidate.tagged())])
    except (NoSpace, BadContent):
        # What has arrived takes the space that is missing, or is of no use.
        with contextlib.suppress(NacreError):
            store.collect(orphans=work.fetched)
        raise
    if isinstance(reference, str):
        store.remember_short_name(reference, work.reference)
    store.collect()
    return image


class _Job:
    """One layer that has to be brought in."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.feed = Feed()


class _Pull:
    """One pull: what has been decided so far, and the parts of the work."""

    def __init__(self, store: ImageStore, sink: LayerSink, report: Reporter, options: Options, platform: Platform | None) -> None:
        self.store, self.sink, self.report = store, sink, report
        self.limits = options.limits or Limits.from_environment(options.environ)
        self.wanted = platform or host_platform()
        self.explicit = platform is not None
        self.client = Client(options.environ, retry=options.retry, on_retry=lambda message: report("manifest", "retrying", message=message))
        self.sources: list[Source] = []
        self.fetched: list[str] = []

    @property
    def reference(self) -> Reference:
        """The reference that was found."""
        return self.sources[0].reference

    def run(self, sources: list[Source]) -> Image:
        """The recipe."""
        top = self._find(sources)
        name = self.reference.familiar()
        manifest_digest, manifest, raw = self._choose(top, name)
        data = self._read_configuration(manifest)
        configuration = parse_configuration(data, what=f"the configuration of {name}")
        warning = check(configuration.platform, self.wanted, explicit=self.explicit, what=name)
        if warning:
            self.report("manifest", "downloading", message=warning)
        layers = pair_layers(manifest, configuration, f"image {name}")
        known = self._known(manifest.config.digest)
        sizes = self._bring_layers(layers)
        self.store.content.put(raw, digest=manifest_digest)
        self.store.content.put(data, digest=manifest.config.digest)
        image = make_image(manifest.config.digest, manifest_digest, configuration, layers, sizes)
        reference = self.reference
        tag = None if reference.digest else reference
        image = self.store.add(image, tag=tag, digest=reference.replace(tag="", digest=top.digest))
        self.report("manifest", "done", message=f"Digest: {top.digest}")
        newer = "Image is up to date for" if known is not None and str(reference) in known else "Downloaded newer image for"
        self.report("manifest", "done", message=f"Status: {newer} {name}")
        return image

    # -- manifest and configuration ----------------------------------------------------------------------------------------

    def _find(self, sources: list[Source]) -> Fetched:
        """The manifest or index from the first place that has it; places before it are not asked for layers."""
        errors: list[NacreError] = []
        for number, source in enumerate(sources):
            target = source.reference.digest or source.reference.tag
            self.report("manifest", "downloading", message=f"{target}: Pulling from {source.reference.repository}")
            try:
                found = self.client.manifest(source, target)
            except (RemoteError, NotFound) as error:
                errors.append(error)
                continue
            self.sources = [item for item in sources[number:] if item.reference == source.reference]
            return found
        last = errors[-1]
        last.details = "\n".join(filter(None, (last.details, *(f"{error}" for error in errors[:-1]))))
        raise last

    def _choose(self, found: Fetched, name: str) -> tuple[str, Manifest, bytes]:
        """(digest, manifest, its bytes) for the wanted platform."""
        for _ in range(_INDEX_DEPTH):
            document = parse_manifest(found.data, found.media_type, what=f"the manifest of {name}")
            if isinstance(document, Manifest):
                return found.digest, document, found.data
            found = self._follow(document, name)
        raise BadContent(f"{name}: indexes within indexes, more than {_INDEX_DEPTH} deep")

    def _follow(self, index: Index, name: str) -> Fetched:
        entry = choose(index, self.wanted, name).descriptor
        found = self._from_any(lambda source: self.client.manifest(source, entry.digest))
        if len(found.data) != entry.size:
            raise BadContent(f"{name}: manifest {entry.digest} has {len(found.data)} bytes instead of {entry.size}")
        if entry.media_type in INDEXES or not found.media_type:
            return found.replace(media_type=entry.media_type)
        return found

    def _read_configuration(self, manifest: Manifest) -> bytes:
        wanted = manifest.config
        if self.store.content.size(wanted.digest) == wanted.size:
            with contextlib.suppress(BadContent):
                return self.store.content.read(wanted.digest, wanted.size)
            self.store.content.remove(wanted.digest)
        return self._from_any(lambda source: self.client.fetch(source, wanted))

    def _from_any(self, ask: Callable[[Source], T]) -> T:
        """The answer of the first source that has one."""
        for source in self.sources[:-1]:
            with contextlib.suppress(RemoteError, NotFound):
                return ask(source)
        return ask(self.sources[-1])

    def _known(self, identifier: str) -> tuple[str, ...] | None:
        """The names of the image so far; None when it is new."""
        try:
            image = self.store.resolve(identifier)
        except (NotFound, InvalidArgument):
            return None
        return (*image.tags, *image.repo_digests)

    # -- layers ------------------------------------------------------------------------------------------------------------

    def _bring_layers(self, layers: tuple[Layer, ...]) -> dict[str, int]:
        """Have all layers unpacked; returns their unpacked sizes by diff_id."""
        sizes: dict[str, int] = {}
        jobs: list[_Job] = []
        for layer in {layer.diff_id: layer for layer in layers}.values():
            # A pull that died after the layer was unpacked may have left the end of its blob to us.
            if self.sink.has(layer.diff_id) and not self.store.content.is_begun(layer.blob):
                sizes[layer.diff_id] = self.sink.size(layer.diff_id)
                self.report(short(layer.blob), "exists", message="Already exists")
            else:
                self.report(short(layer.blob), "waiting", 0, layer.size)
                jobs.append(_Job(layer))
        if jobs:
            sizes.update(self._transfer(jobs))
        return sizes

    def _transfer(self, jobs: list[_Job]) -> dict[str, int]:
        """Download and unpack. Whatever happens, all threads have ended when this returns or raises."""
        with contextlib.ExitStack() as stack:
            for job in jobs:
                stack.callback(job.feed.close)
            downloads = stack.enter_context(ThreadPoolExecutor(_DOWNLOADS))
            unpackers = stack.enter_context(ThreadPoolExecutor(_UNPACKERS))
            arriving = [downloads.submit(self._download, job) for job in jobs]
            unpacking = [unpackers.submit(unpack_layer, job.feed, job.layer, self.sink, self.limits, self.report) for job in jobs]
            everything: list[Future[Any]] = [*arriving, *unpacking]
            try:
                done, _ = wait(everything, return_when=FIRST_EXCEPTION)
                failures = [error for future in done if (error := future.exception()) is not None]
                if failures:
                    raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])
            except BaseException:
                self._abort(jobs, everything)
                raise
            return {job.layer.diff_id: future.result() for job, future in zip(jobs, unpacking, strict=True)}

    def _abort(self, jobs: list[_Job], futures: list[Future[Any]]) -> None:
        for future in futures:
            future.cancel()
        self.client.close()
        for job in jobs:
            job.feed.fail(Cancelled())

    def _download(self, job: _Job) -> None:
        try:
            self._bring_blob(job)
        except BaseException as error:
            job.feed.fail(error)
            raise

    def _bring_blob(self, job: _Job) -> None:
        """Have the blob of a layer in the content store, and its feed filled."""
        content, layer = self.store.content, job.layer
        item = short(layer.blob)
        if content.size(layer.blob) != layer.size:
            with content.ingest(layer.blob, layer.size, wait=functools.partial(self._await_other, item, layer)) as ingest:
                if not ingest.exists:
                    self.fetched.append(layer.blob)
                    self._receive(ingest, job)
                    return
        job.feed.attach(content.open(layer.blob))
        job.feed.finish(layer.size)

    def _await_other(self, item: str, layer: Layer) -> None:
        self.report(item, "waiting", 0, layer.size)
        if self.client.sleep(0.05):
            raise Cancelled

    def _receive(self, ingest: Ingest, job: _Job) -> None:
        """Download a blob from the first source that has it right."""
        job.feed.attach(ingest.reader())
        # What an earlier download left may be damaged: then it is worth a second try from the start.
        places = [*self.sources, *(self.sources[-1:] if ingest.resumed else [])]
        # A reader may follow only where nothing will have to be taken back.
        live = len(places) == 1
        for number, source in enumerate(places, 1):
            try:
                self._receive_from(source, ingest, job, live)
                ingest.verify()
                break
            except (RemoteError, NotFound) as error:
                if number == len(places) or (places[number] == source and not isinstance(error, BadContent)):
                    raise
                if isinstance(error, BadContent):
                    ingest.restart()
        self.report(short(job.layer.blob), "verifying", ingest.size, ingest.size)
        job.feed.finish(ingest.size)
        ingest.commit()

    def _receive_from(self, source: Source, ingest: Ingest, job: _Job, live: bool) -> None:
        """Append what is missing, taking broken connections up again where they ended."""
        failures = 0
        while ingest.offset < ingest.size:
            before = ingest.offset
            try:
                self._copy(source, ingest, job, live)
            except NETWORK_ERRORS as error:
                failures = 1 if ingest.offset - before >= _PROGRESS else failures + 1
                self.client.pause(failures, error, source.location)

    def _copy(self, source: Source, ingest: Ingest, job: _Job, live: bool) -> None:
        item = short(ingest.digest)
        buffer = memoryview(bytearray(CHUNK))
        with self.client.blob(source, ingest.digest, ingest.offset) as body:
            surplus = ingest.offset - body.start
            while count := body.readinto(buffer):
                piece = buffer[min(count, surplus) : count]
                surplus -= count - len(piece)
                ingest.write(piece)
                if live:
                    job.feed.advance(ingest.offset)
                self.report(item, "downloading", ingest.offset, ingest.size)
        if ingest.offset < ingest.size:
            raise ConnectionError(f"it ended after {ingest.offset} of {ingest.size} bytes of blob {ingest.digest}")
