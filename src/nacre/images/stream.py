"""Layer bytes on their way: from a file that may still be growing, through decompression and digest, to whoever unpacks them.

Three threads share one layer: the download appends to the ingest file and tells the `Feed`; the `LayerStream`'s own thread reads
the file behind it, inflates and hashes (these release the interpreter lock); the unpacker reads the stream. The end of the stream
is reached only after both digests, that of the blob and that of the uncompressed tar, have been found right.
"""

from __future__ import annotations

import collections
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from nacre.errors import BadContent
from nacre.images.config import Limits
from nacre.model.reference import check_digest

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 64 << 10
_OUT = 512 << 10
_QUEUE = 8


class Feed:
    """A blob's file as it grows. One thread writes (`advance`, `finish` or `fail`), any number read.

    `close` is the business of who made the feed, after its readers have ended.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fd = -1
        self._available = 0
        self._finished = False
        self._error: BaseException | None = None

    def attach(self, fd: int) -> None:
        """Read from this open file, which the feed closes. It must be a description of its own: a copy would share the file's lock."""
        with self._changed:
            self._fd = fd

    def advance(self, available: int) -> None:
        """So many bytes may be read by now."""
        with self._changed:
            self._available = available
            self._changed.notify_all()

    def finish(self, size: int) -> None:
        """All is there, `size` bytes, and verified."""
        with self._changed:
            self._available, self._finished = size, True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """The rest will not come: readers get this error."""
        with self._changed:
            if not self._finished and self._error is None:
                self._error = error
            self._changed.notify_all()

    def wait(self) -> None:
        """Block until something may be read. Raises what `fail` was given."""
        with self._changed:
            while not self._available and not self._finished and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def read(self, position: int, size: int, given_up: Callable[[], bool]) -> bytes:
        """Up to `size` bytes; b"" at the verified end, or when `given_up()` after a `wake`. Raises what `fail` was given."""
        with self._changed:
            while self._available <= position and not self._finished and self._error is None and not given_up():
                self._changed.wait()
            if self._error is not None:
                raise self._error
            size = min(size, self._available - position)
        return os.pread(self._fd, size, position) if size > 0 else b""

    def wake(self) -> None:
        """Make readers look whether they have been given up."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Release the file. Idempotent."""
        with self._changed:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


class _Codec(NamedTuple):
    """A compression format. errors: what its decoder raises for bad data; padding: zero bytes may follow a member (gzip)."""

    name: str
    new: Callable[[], Any]
    errors: tuple[type[BaseException], ...]
    padding: bool = False


def detect(head: bytes) -> _Codec | None:
    """The compression of data that begins with `head` (at least 6 bytes if there are that many); None for none.

    By content, as all engines do: media types and file names are often wrong. gzip RFC 1952, zstd RFC 8878, xz, bzip2.
    """
    if head[:3] == b"\x1f\x8b\x08":
        return _gzip()
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        return _zstd()
    if head[:6] == b"\xfd7zXZ\0":
        import lzma

        return _Codec("xz", lzma.LZMADecompressor, (lzma.LZMAError, EOFError))
    if head[:3] == b"BZh":
        import bz2

        return _Codec("bzip2", bz2.BZ2Decompressor, (OSError, ValueError, EOFError))
    return None


def _gzip() -> _Codec:
    import zlib

    try:
        from isal import isal_zlib
    except ImportError:
        return _Codec("gzip", lambda: zlib.decompressobj(wbits=31), (zlib.error,), padding=True)
    failure: Any = isal_zlib.error
    return _Codec("gzip", lambda: isal_zlib.decompressobj(wbits=31), (zlib.error, failure), padding=True)


def _zstd() -> _Codec:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return _Codec("zstd", zstd.ZstdDecompressor, (zstd.ZstdError, EOFError))


def decompress(read: Callable[[int], bytes], what: str) -> Iterator[bytes]:
    """Chunks of the uncompressed data of what `read(size)` delivers (b"" = end).

    Members and frames may follow one another (pigz, eStargz, zstd:chunked). what: how errors name the data. Raises BadContent for
    damaged or cut-off data.
    """
    data = read(_CHUNK)
    while 0 < len(data) < 6 and (more := read(_CHUNK)):
        data += more
    codec = detect(data)
    if codec is None:
        while data:
            yield data
            data = read(_OUT)
        return
    while data:
        decoder = codec.new()
        while not decoder.eof:
            if not data:
                raise BadContent(f"{what}: the {codec.name} data ends in the middle")
            yield from _decode(decoder, data, codec, what)
            data = decoder.unused_data if decoder.eof else read(_CHUNK)
        data = data or read(_CHUNK)
        while codec.padding and data and not data.strip(b"\0"):
            data = read(_CHUNK)
        if codec.padding:
            data = data.lstrip(b"\0")


def _decode(decoder: Any, data: bytes, codec: _Codec, what: str) -> Iterator[bytes]:
    """Feed one piece of input and yield all that comes of it, in bounded pieces."""
    pending = True
    while pending:
        try:
            out = decoder.decompress(data, _OUT)
        except codec.errors as error:
            raise BadContent(f"{what}: the {codec.name} data is damaged: {error}") from error
        if out:
            yield out
        # zlib hands unused input back, the other decoders keep it.
        data = getattr(decoder, "unconsumed_tail", b"")
        pending = not decoder.eof and (bool(data) or len(out) >= _OUT or getattr(decoder, "needs_input", True) is False)


def check_growth(total: int, compressed: int, limits: Limits, what: str) -> None:
    """Raises BadContent when uncompressed data has grown beyond what the limits allow for its compressed size, in bytes."""
    if total > limits.layer_bytes:
        raise BadContent(
            f"{what} expands to more than {limits.layer_bytes} bytes, the limit for a layer",
            hint="if you trust the image, raise the limit with NACRE_LAYER_BYTES",
        )
    if total > limits.ratio_free and total > limits.layer_ratio * compressed:
        raise BadContent(
            f"{what} looks like a decompression bomb: {compressed} bytes expand to more than {total}",
            hint=f"if you trust the image, raise the limit of {limits.layer_ratio}:1 with NACRE_LAYER_RATIO",
        )


class LayerStream(io.RawIOBase):
    """The uncompressed tar of a layer, to be read once from start to end by `LayerSink.unpack`.

    At the end it has verified the diff_id: the read that would return b"" raises BadContent instead when something is wrong. So
    who unpacks must read to the end (the padding after a tar's last entry included) before making its work permanent.

    blob: digest, size: size in bytes of the blob in the feed. on_read: told how many compressed bytes have been consumed.
    """

    def __init__(
        self, feed: Feed, diff_id: str, *, blob: str, size: int, limits: Limits, on_read: Callable[[int], None] | None = None
    ) -> None:
        super().__init__()
        self._feed, self._diff_id, self._blob, self._size, self._limits = feed, diff_id, blob, size, limits
        self._on_read = on_read or (lambda consumed: None)
        self._position = 0
        self._changed = threading.Condition()
        self._chunks: collections.deque[bytes] = collections.deque()
        self._ended: BaseException | bool = False
        self._abandoned = False
        self._current = b""
        self._taken = 0
        self.total = 0
        self.verified = False
        self._thread = threading.Thread(target=self._produce, name=f"inflate {diff_id[7:19]}", daemon=True)
        self._thread.start()

    # -- the unpacker's side ----------------------------------------------------------------------------------------------

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """What is at hand, at most `size` bytes (all the rest when negative); b"" at the end only. Raises BadContent."""
        if size < 0:
            return self.readall()
        if not size or not self._fill():
            return b""
        start, self._taken = self._taken, min(self._taken + size, len(self._current))
        return self._current[start : self._taken]

    def readinto(self, buffer: Buffer, /) -> int:
        """Like `read`, into a buffer."""
        view = memoryview(buffer).cast("B")
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Stop, whatever has been read. Idempotent."""
        if not self.closed:
            with self._changed:
                self._abandoned = True
                self._chunks.clear()
                self._changed.notify_all()
            self._feed.wake()
            self._thread.join()
        super().close()

    def _fill(self) -> bool:
        """Have bytes in `_current` from `_taken` on; False at the end."""
        if self._taken < len(self._current):
            return True
        with self._changed:
            while not self._chunks and not self._ended:
                self._changed.wait()
            if self._chunks:
                self._current, self._taken = self._chunks.popleft(), 0
                self._changed.notify_all()
                return True
            if isinstance(self._ended, BaseException):
                raise self._ended
        return False

    # -- the thread -------------------------------------------------------------------------------------------------------

    def _produce(self) -> None:
        try:
            self._inflate()
            self._end(True)
        except BaseException as error:
            self._end(error)

    def _inflate(self) -> None:
        algorithm = check_digest(self._diff_id)[0]
        digest = hashlib.new(algorithm)
        what = f"layer {self._blob}"
        for chunk in decompress(self._read_feed, what):
            self.total += len(chunk)
            check_growth(self.total, self._size, self._limits, what)
            digest.update(chunk)
            self._on_read(self._position)
            if not self._offer(chunk):
                return
        actual = f"{algorithm}:{digest.hexdigest()}"
        if actual != self._diff_id:
            raise BadContent(
                f"layer {self._blob} is not the one that the image's configuration names: expected {self._diff_id}, got {actual}",
                hint="the image was put together wrongly; nothing was stored",
            )
        self.verified = True

    def _read_feed(self, size: int) -> bytes:
        data = self._feed.read(self._position, size, lambda: self._abandoned)
        self._position += len(data)
        return data

    def _offer(self, chunk: bytes) -> bool:
        """Queue a chunk; False when nobody wants it any more."""
        with self._changed:
            while len(self._chunks) >= _QUEUE and not self._abandoned:
                self._changed.wait()
            if self._abandoned:
                return False
            self._chunks.append(chunk)
            self._changed.notify_all()
        return True

    def _end(self, how: BaseException | bool) -> None:
        with self._changed:
            self._ended = how
            self._changed.notify_all()
