"""The content store: blobs by their digest, complete and verified or not there at all.

::

    blobs/
    ├── sha256/<hex>           a blob; appears by rename, after its digest and size were checked and its bytes are on the disk
    └── ingest/
        ├── sha256-<hex>       a download under way (locked) or broken off (unlocked: the next one resumes it)
        └── load-<random>/     an archive being read (its directory is locked)

A lock on the ingest file makes concurrent downloads of one blob share one transfer: the second waits, then finds the blob.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from nacre.errors import BadContent, Denied, HostError, NacreError, NoSpace
from nacre.model.reference import check_digest, is_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import hashlib
    from typing import Self

CHUNK = 256 << 10
STALE = 24 * 3600.0
_STALE_LOAD = 60.0


class ContentStore:
    """The blobs below one directory. Any number of processes may use it at once.

    Every method that writes raises NoSpace, Denied or HostError for what the file system refuses.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.ingest_root = f"{root}/ingest"

    def path(self, digest: str) -> str:
        """Where a blob is, or would be. Raises InvalidArgument for a malformed digest."""
        algorithm, digits = check_digest(digest)
        return f"{self.root}/{algorithm}/{digits}"

    def size(self, digest: str) -> int:
        """Size in bytes of a blob that is there; -1 when it is not."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return -1

    def open(self, digest: str) -> int:
        """A read-only descriptor of a blob. Raises BadContent when it is not there."""
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise BadContent(f"blob {digest} is missing from the content store", hint="pull the image again") from error

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob whole, verified. Raises BadContent when it is missing, damaged or longer than `limit` bytes."""
        import hashlib

        with os.fdopen(self.open(digest), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit or hashlib.new(check_digest(digest)[0], data).hexdigest() != check_digest(digest)[1]:
            raise BadContent(f"blob {digest} in the content store is damaged", hint="remove the image and pull it again")
        return data

    def put(self, data: bytes, *, digest: str = "") -> str:
        """Store a small blob (a manifest, a configuration) and return its digest. Idempotent.

        digest: under which, when not sha256; it must be that of the data.
        """
        import hashlib

        digest = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.size(digest) != len(data):
            with self.ingest(digest, len(data)) as ingest:
                if not ingest.exists:
                    ingest.restart()
                    ingest.write(memoryview(data))
                    ingest.verify()
                    ingest.commit()
        return digest

    def ingest(self, digest: str, size: int, *, wait: Callable[[], None] | None = None) -> Ingest:
        """Begin, or take up again, the download of a blob; see `Ingest`. wait: called now and then while another one has the lock."""
        with translate(self.root):
            os.makedirs(self.ingest_root, 0o700, exist_ok=True)
            os.makedirs(os.path.dirname(self.path(digest)), 0o700, exist_ok=True)
        return Ingest(self, digest, size, wait)

    def is_begun(self, digest: str) -> bool:
        """Whether a download of the blob is under way or was broken off."""
        algorithm, digits = check_digest(digest)
        return os.path.exists(f"{self.ingest_root}/{algorithm}-{digits}")

    def adopt(self, path: str, digest: str) -> None:
        """Make a file of the same file system a blob. The caller has verified it, and nobody writes to it any more. Idempotent."""
        if self.size(digest) >= 0:
            return
        target = self.path(digest)
        with translate(target):
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(path, target)
            sync_directory(os.path.dirname(target))

    def remove(self, digest: str) -> bool:
        """Delete a blob; whether it was there."""
        try:
            os.unlink(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def blobs(self) -> Iterator[tuple[str, float]]:
        """(digest, time of the last change) of every blob."""
        for algorithm in _names(self.root):
            if algorithm != "ingest":
                for digits in _names(f"{self.root}/{algorithm}"):
                    if is_digest(f"{algorithm}:{digits}"):
                        with contextlib.suppress(FileNotFoundError):
                            yield f"{algorithm}:{digits}", os.stat(f"{self.root}/{algorithm}/{digits}").st_mtime

    def drop_stale_ingests(self, digests: Iterable[str] = ()) -> None:
        """Delete what broken-off downloads left a day ago, or of these digests, and loads a minute ago. Those under way stay."""
        unwanted = {digest.replace(":", "-") for digest in digests}
        for name in _names(self.ingest_root):
            path = f"{self.ingest_root}/{name}"
            with contextlib.suppress(OSError):
                age = time.time() - os.stat(path).st_mtime
                if name in unwanted or age > (_STALE_LOAD if name.startswith("load-") else STALE):
                    _drop_unless_locked(path)


class Ingest:
    """A blob on its way into the store. A context manager that holds the blob's lock.

    exists: another process finished it meanwhile; nothing is left to do. offset: bytes already there (and hashed).
    Write from `offset` on, then `verify` (now a reader may believe what it read) and `commit` (now it survives a power cut).
    Left without `commit`, the file stays for the next one to resume, unless the content was wrong or the disk was full.
    """

    def __init__(self, store: ContentStore, digest: str, size: int, wait: Callable[[], None] | None) -> None:
        self._store, self.digest, self.size = store, digest, size
        self._algorithm, self._digits = check_digest(digest)
        self.path = f"{store.ingest_root}/{self._algorithm}-{self._digits}"
        self.fd = -1
        self.offset = 0
        self.resumed = False
        self.exists = False
        self._committed = False
        self._wait = wait
        self._hash = self._new_hash()

    def __enter__(self) -> Self:
        with translate(self.path):
            self._lock()
            try:
                self.exists = self._store.size(self.digest) == self.size
                if not self.exists:
                    self._take_up()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._committed and (self.exists or isinstance(error, BadContent | NoSpace) or self.offset == 0):
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._close()

    def write(self, data: memoryview) -> None:
        """Append. Raises BadContent when the blob grows beyond its size, NoSpace when the disk is full."""
        if self.offset + len(data) > self.size:
            raise BadContent(f"blob {self.digest} is longer than the {self.size} bytes that its manifest promises")
        with translate(self.path):
            done = 0
            while done < len(data):
                done += os.pwrite(self.fd, data[done:], self.offset + done)
        self._hash.update(data)
        self.offset += len(data)

    def reader(self) -> int:
        """A read-only descriptor of the file as it grows; it stays good after `commit` and does not hold the lock."""
        with translate(self.path):
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def restart(self) -> None:
        """Throw away what is there."""
        with translate(self.path):
            os.ftruncate(self.fd, 0)
        self._hash = self._new_hash()
        self.offset = 0
        self.resumed = False

    def verify(self) -> None:
        """Raises BadContent unless size and digest are right."""
        if self.offset != self.size:
            raise BadContent(f"blob {self.digest} ends after {self.offset} of {self.size} bytes")
        actual = self._hash.hexdigest()
        if actual != self._digits:
            raise BadContent(
                f"blob {self.digest} arrived with different content ({self._algorithm}:{actual})",
                hint="the registry, or something between here and there, alters content; nothing was stored",
            )

    def commit(self) -> None:
        """Make the verified blob part of the store."""
        with translate(self.path):
            os.fsync(self.fd)
            os.rename(self.path, self._store.path(self.digest))
            sync_directory(os.path.dirname(self._store.path(self.digest)))
        self._committed = True

    def _new_hash(self) -> hashlib._Hash:
        import hashlib  # 2 ms that finding an image need not pay

        return hashlib.new(self._algorithm)

    def _lock(self) -> None:
        """Open and lock the file that has the name when the lock is held: its last owner may have renamed or deleted it."""
        while True:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._await_lock()
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(self.path), os.fstat(self.fd)):
                        return
            except BaseException:
                self._close()
                raise
            self._close()

    def _await_lock(self) -> None:
        if self._wait is None:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            return
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self._wait()

    def _take_up(self) -> None:
        """Hash what an earlier download left."""
        there = os.fstat(self.fd).st_size
        if there > self.size:
            self.restart()
            return
        buffer = memoryview(bytearray(CHUNK))
        while self.offset < there:
            count = os.preadv(self.fd, [buffer], self.offset)
            self._hash.update(buffer[:count])
            self.offset += count
        self.resumed = self.offset > 0

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextlib.contextmanager
def translate(path: str) -> Iterator[None]:
    """Turn what the file system refuses into errors of ours."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: str) -> NacreError:
    """NoSpace, Denied or HostError for an OSError on a path."""
    where = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left for {where}", hint="free some space (nacre rmi, nacre rm), or set NACRE_ROOT to a larger disk")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"permission denied: {where}", hint="run as root (sudo), or set NACRE_ROOT to a directory of yours")
    return HostError(f"{where}: {error.strerror or error}")


def write_file(path: str, data: bytes) -> None:
    """Replace a file: after a crash it has its old content or the new one. Raises NoSpace, Denied, HostError."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    with translate(path):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make renames in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _drop_unless_locked(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.isdir(path):
            for name in _names(path):
                os.unlink(f"{path}/{name}")
            os.rmdir(path)
        else:
            os.unlink(path)
    finally:
        os.close(fd)
