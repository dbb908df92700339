from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from nacre.errors import BadContent, Denied, HostError, InvalidArgument, NoSpace
from nacre.images.content import ContentStore, explain, write_file
from nacre.testing.images import digest_of

DATA = os.urandom(600_000)
DIGEST = digest_of(DATA)


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path / "blobs"))


def ingests(content: ContentStore) -> list[str]:
    return sorted(os.listdir(content.ingest_root))


def download(content: ContentStore, data: bytes = DATA, digest: str = DIGEST) -> None:
    with content.ingest(digest, len(data)) as ingest:
        ingest.write(memoryview(data)[ingest.offset :])
        ingest.verify()
        ingest.commit()


def test_small_blobs(content: ContentStore) -> None:
    digest = content.put(b"hello")
    assert digest == digest_of(b"hello")
    assert content.put(b"hello") == digest
    assert content.read(digest, 5) == b"hello"
    assert content.size(digest) == 5
    assert ingests(content) == []
    assert content.remove(digest)
    assert not content.remove(digest)
    assert content.size(digest) == -1


def test_reading_checks_the_content(content: ContentStore) -> None:
    digest = content.put(b"hello")
    with pytest.raises(BadContent, match="damaged"):
        content.read(digest, 4)
    Path(content.path(digest)).write_bytes(b"hellO")
    with pytest.raises(BadContent, match="damaged"):
        content.read(digest, 100)
    with pytest.raises(BadContent, match="missing"):
        content.read(DIGEST, 100)


def test_paths_come_from_digests_only(content: ContentStore) -> None:
    for text in ("sha256:../../etc/passwd", "../x:" + "a" * 64, "sha256:" + "/" * 64):
        with pytest.raises(InvalidArgument):
            content.path(text)


def test_ingest(content: ContentStore) -> None:
    with content.ingest(DIGEST, len(DATA)) as ingest:
        assert (ingest.offset, ingest.exists, ingest.resumed) == (0, False, False)
        ingest.write(memoryview(DATA))
        ingest.verify()
        assert content.size(DIGEST) == -1
        ingest.commit()
    assert content.read(DIGEST, len(DATA)) == DATA
    assert ingests(content) == []


def test_broken_off_download_is_resumed(content: ContentStore) -> None:
    with pytest.raises(ConnectionError), content.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(memoryview(DATA)[:400_000])
        raise ConnectionError
    assert len(ingests(content)) == 1
    with content.ingest(DIGEST, len(DATA)) as ingest:
        assert (ingest.offset, ingest.resumed) == (400_000, True)
    download(content)
    assert content.read(DIGEST, len(DATA)) == DATA


def test_wrong_content_is_thrown_away(content: ContentStore) -> None:
    with pytest.raises(BadContent, match="different content"):
        download(content, bytes(len(DATA)))
    assert ingests(content) == []
    assert content.size(DIGEST) == -1


def test_wrong_sizes(content: ContentStore) -> None:
    with pytest.raises(BadContent, match="longer than the 10 bytes"), content.ingest(DIGEST, 10) as ingest:
        ingest.write(memoryview(DATA)[:11])
    with pytest.raises(BadContent, match="ends after 5 of 10 bytes"), content.ingest(DIGEST, 10) as ingest:
        ingest.write(memoryview(DATA)[:5])
        ingest.verify()
    assert ingests(content) == []


def test_leftover_that_is_too_long_starts_again(content: ContentStore) -> None:
    with pytest.raises(ConnectionError), content.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(memoryview(DATA))
        raise ConnectionError
    with content.ingest(DIGEST, 10) as ingest:
        assert ingest.offset == 0


def test_full_disk_gives_the_space_back(content: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(NoSpace, match="no space left"), content.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(memoryview(DATA))
    assert ingests(content) == []


def test_second_download_waits_and_finds_the_blob(content: ContentStore) -> None:
    seen: list[tuple[bool, int]] = []
    waiting = threading.Event()

    def other() -> None:
        with content.ingest(DIGEST, len(DATA), wait=waiting.set) as ingest:
            seen.append((ingest.exists, ingest.offset))

    with content.ingest(DIGEST, len(DATA)) as ingest:
        thread = threading.Thread(target=other)
        thread.start()
        assert waiting.wait(10)
        assert not seen
        ingest.write(memoryview(DATA))
        ingest.verify()
        ingest.commit()
    thread.join(10)
    assert seen == [(True, 0)]
    assert ingests(content) == []


def test_reader_neither_holds_the_lock_nor_loses_the_file(content: ContentStore) -> None:
    with content.ingest(DIGEST, len(DATA)) as ingest:
        reader = ingest.reader()
        waiting = os.open(ingest.path, os.O_RDWR)
        ingest.write(memoryview(DATA))
        ingest.verify()
        ingest.commit()
    try:
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who opened the file before it was renamed must not wait for its readers
        assert os.pread(reader, 10, 5) == DATA[5:15]
    finally:
        os.close(reader)
        os.close(waiting)


def test_second_download_takes_over_when_the_first_dies(content: ContentStore) -> None:
    seen: list[int] = []
    waiting = threading.Event()

    def other() -> None:
        with content.ingest(DIGEST, len(DATA), wait=waiting.set) as ingest:
            seen.append(ingest.offset)

    thread = threading.Thread(target=other)
    with pytest.raises(ConnectionError), content.ingest(DIGEST, len(DATA)) as ingest:
        thread.start()
        assert waiting.wait(10)
        ingest.write(memoryview(DATA)[:1000])
        raise ConnectionError
    thread.join(10)
    assert seen == [1000]


def test_adopt(content: ContentStore, tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "file").write_bytes(DATA)
        content.adopt(str(tmp_path / "file"), DIGEST)
    assert content.read(DIGEST, len(DATA)) == DATA
    assert [digest for digest, _ in content.blobs()] == [DIGEST]


def test_stale_ingests(content: ContentStore) -> None:
    os.makedirs(f"{content.ingest_root}/load-dead")
    os.makedirs(f"{content.ingest_root}/load-alive")
    for name in ("sha256-old", "sha256-new", "sha256-busy", "load-dead/0"):
        Path(content.ingest_root, name).write_bytes(b"x")
    long_ago = time.time() - 100_000
    for name in ("sha256-old", "sha256-busy", "load-dead", "load-alive"):
        os.utime(f"{content.ingest_root}/{name}", (long_ago, long_ago))
    held = [os.open(f"{content.ingest_root}/{name}", os.O_RDONLY) for name in ("sha256-busy", "load-alive")]
    try:
        for fd in held:
            fcntl.flock(fd, fcntl.LOCK_EX)
        content.drop_stale_ingests()
    finally:
        for fd in held:
            os.close(fd)
    assert ingests(content) == ["load-alive", "sha256-busy", "sha256-new"]


def test_replaced_files_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "f")
    write_file(path, b"old")

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(NoSpace):
            write_file(path, b"new")
    assert Path(path).read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_explanations() -> None:
    assert isinstance(explain(OSError(errno.EDQUOT, "quota"), "/x"), NoSpace)
    assert isinstance(explain(OSError(errno.EACCES, "no"), "/x"), Denied)
    error = explain(OSError(errno.EROFS, "Read-only file system"), "/x")
    assert isinstance(error, HostError)
    assert error.message == "/x: Read-only file system"
