from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.errors import BadContent
from nacre.images.config import Limits
from nacre.images.stream import Feed, LayerStream, check_growth, decompress, detect
from nacre.testing.images import compress, digest_of

DATA = os.urandom(90_000) + bytes(1_200_000) + b"end"
METHODS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: compress(data, "gzip"),
    "zstd": lambda data: compress(data, "zstd"),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "none": lambda data: data,
}


def unpack(data: bytes) -> bytes:
    return b"".join(decompress(io.BytesIO(data).read, "the data"))


def refusal(data: bytes) -> str:
    with pytest.raises(BadContent) as caught:
        unpack(data)
    return caught.value.message


@pytest.mark.parametrize("name", METHODS)
def test_every_format(name: str) -> None:
    packed = METHODS[name](DATA)
    codec = detect(packed[:6])
    assert (codec.name if codec else "none") == name
    assert unpack(packed) == DATA


@pytest.mark.parametrize("name", METHODS)
def test_members_one_after_another(name: str) -> None:
    assert unpack(METHODS[name](DATA) + METHODS[name](b"second")) == DATA + b"second"


@pytest.mark.parametrize("name", ["gzip", "zstd", "xz", "bzip2"])
def test_cut_off(name: str) -> None:
    packed = METHODS[name](DATA)
    for size in (len(packed) - 1, len(packed) // 2, 7):
        assert refusal(packed[:size]) == f"the data: the {name} data ends in the middle"


@pytest.mark.parametrize("name", ["gzip", "xz", "bzip2"])
def test_damaged(name: str) -> None:
    packed = bytearray(METHODS[name](DATA))
    packed[len(packed) // 2] ^= 0xFF
    assert refusal(bytes(packed)).startswith(f"the data: the {name} data is damaged")


def test_many_small_gzip_members() -> None:
    assert unpack(b"".join(gzip.compress(bytes([number % 256])) for number in range(5000))) == bytes(number % 256 for number in range(5000))


def test_gzip_padding_and_zstd_skippable_frames() -> None:
    packed = compress(DATA, "gzip")
    assert unpack(packed + bytes(200_000)) == DATA
    assert unpack(packed + bytes(200_000) + packed) == DATA + DATA
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert unpack(frame + compress(DATA, "zstd") + frame) == DATA


def test_tiny_and_empty() -> None:
    assert unpack(b"") == b""
    assert unpack(b"\x1f") == b"\x1f"


def test_input_in_single_bytes() -> None:
    source = io.BytesIO(compress(b"hello" * 100, "gzip"))
    assert b"".join(decompress(lambda size: source.read(1), "x")) == b"hello" * 100


def test_pieces_stay_small() -> None:
    assert max(map(len, decompress(io.BytesIO(compress(bytes(8_000_000), "gzip")).read, "x"))) <= 1 << 20


def test_growth_limits() -> None:
    limits = Limits(layer_bytes=1000, layer_ratio=10, ratio_free=100)
    check_growth(100, 1, limits, "x")
    check_growth(1000, 100, limits, "x")
    with pytest.raises(BadContent, match="decompression bomb") as caught:
        check_growth(101, 10, limits, "x")
    assert "NACRE_LAYER_RATIO" in caught.value.hint
    with pytest.raises(BadContent, match="more than 1000 bytes"):
        check_growth(1001, 1000, limits, "x")


# -- layer streams


class Blob:
    """A blob in a file with its feed."""

    def __init__(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        self.data, self.feed = data, Feed()
        self.feed.attach(os.open(path, os.O_RDONLY))

    def stream(self, diff_id: str, limits: Limits | None = None) -> LayerStream:
        return LayerStream(self.feed, diff_id, blob=digest_of(self.data), size=len(self.data), limits=limits or Limits())


def read_all(stream: LayerStream) -> bytes:
    with stream:
        return b"".join(iter(lambda: stream.read(70_000), b""))


def test_layer_stream(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(DATA, "gzip"))
    blob.feed.finish(len(blob.data))
    stream = blob.stream(digest_of(DATA))
    assert stream.read(5) == DATA[:5]
    assert stream.read(0) == b""
    buffer = bytearray(10)
    assert stream.readinto(buffer) == 10
    assert bytes(buffer) == DATA[5:15]
    assert stream.read() == DATA[15:]
    assert stream.read(1) == b""
    assert stream.verified
    stream.close()
    stream.close()


def test_end_is_refused_for_another_diff_id(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(DATA, "gzip"))
    blob.feed.finish(len(blob.data))
    stream = blob.stream(digest_of(b"other"))
    got = 0
    with pytest.raises(BadContent, match="is not the one that the image's configuration names"), stream:
        while piece := stream.read(1 << 20):
            got += len(piece)
    assert got == len(DATA)
    assert not stream.verified


def test_stream_follows_a_growing_blob(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(DATA, "gzip"))
    stream = blob.stream(digest_of(DATA))
    blob.feed.advance(80_000)
    assert stream.read(1000) == DATA[:1000]
    rest: list[bytes] = []
    reader = threading.Thread(target=lambda: rest.append(stream.read()))
    reader.start()
    blob.feed.advance(len(blob.data))
    assert reader.is_alive()  # the end is not the end before the blob is verified
    blob.feed.finish(len(blob.data))
    reader.join(10)
    assert rest == [DATA[1000:]]
    stream.close()


def test_failed_download_reaches_the_reader(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(DATA, "gzip"))
    blob.feed.advance(1000)
    stream = blob.stream(digest_of(DATA))
    blob.feed.fail(BadContent("wrong blob"))
    with pytest.raises(BadContent, match="wrong blob"):
        read_all(stream)


def test_nothing_is_read_before_it_may(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(DATA, "gzip"))
    blob.feed.fail(BadContent("never came"))
    with pytest.raises(BadContent, match="never came"):
        blob.feed.wait()


def test_reader_may_leave_while_the_download_stalls(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(DATA, "gzip"))
    blob.feed.advance(100)
    before = threading.active_count()
    blob.stream(digest_of(DATA)).close()
    assert threading.active_count() == before


def test_reader_may_leave_a_full_queue(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(bytes(10_000_000), "gzip"))
    blob.feed.finish(len(blob.data))
    stream = blob.stream(digest_of(bytes(10_000_000)))
    assert stream.read(10) == bytes(10)
    stream.close()
    assert stream.total < 10_000_000


def test_bomb(tmp_path: Path) -> None:
    blob = Blob(tmp_path / "b", compress(bytes(10_000_000), "gzip"))
    blob.feed.finish(len(blob.data))
    limits = Limits(ratio_free=1 << 20, layer_ratio=100)
    with pytest.raises(BadContent, match="looks like a decompression bomb"):
        read_all(blob.stream(digest_of(bytes(10_000_000)), limits))
