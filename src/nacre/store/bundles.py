"""Records of OCI containers: a directory with a lock and small JSON files for each, below one root. No database.

Making the directory is what claims an id; the record is replaced by rename, so that a reader sees the old one or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from nacre.errors import Conflict, Denied, HostError, InvalidArgument, NotFound
from nacre.model import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RECORD, CONFIG, FIFO = "state.json", "config.json", "exec.fifo"
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(name: str) -> None:
    """Raises InvalidArgument for what cannot be a container's id."""
    if not name:
        raise InvalidArgument("container id cannot be empty")
    if not set(name) <= _LETTERS or name.startswith(".") or len(name) > 1024:
        raise InvalidArgument(f'invalid id format: "{name}"', hint="letters, digits and _ + - . that do not begin with a dot")


class Claim:
    """A container's directory, locked (flock on the directory itself) or not. Use as a context manager.

    wait: seconds to wait for the lock, None = it is not taken: records are replaced as a whole, so readers need none, and hooks
    that ask for the state must get it while their container is being made. Raises NotFound, Denied, Conflict.
    """

    def __init__(self, path: str, wait: float | None) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound("container does not exist") from error
        except PermissionError as error:
            raise Denied(f"{path}: permission denied") from error
        try:
            if wait is not None:
                self._lock(time.monotonic() + wait)
        except BaseException:
            self.release()
            raise

    def _lock(self, deadline: float) -> None:
        pause = 0.001
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    name = os.path.basename(self.path)
                    raise Conflict(f"container {name} is busy: another command works on it", hint="try again when it has ended") from None
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        if os.fstat(self._fd).st_nlink == 0:  # removed while we waited
            raise NotFound("container does not exist")

    def read(self) -> dict[str, Any]:
        """The record. Raises HostError when it is damaged."""
        try:
            with open(f"{self.path}/{RECORD}", "rb") as file:
                found = jsontext.loads(file.read())
        except FileNotFoundError:
            return {}  # whoever claimed the id was killed before it wrote anything
        except ValueError as error:
            raise HostError(f"{self.path}/{RECORD}: not JSON: {error}", hint="remove that directory") from error
        return found if isinstance(found, dict) else {}

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record."""
        self.put(RECORD, jsontext.dumps(record).encode())

    def put(self, name: str, data: bytes) -> None:
        """Replace a file. Raises HostError."""
        temporary = f"{self.path}/.{name}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            os.rename(temporary, f"{self.path}/{name}")
        except OSError as error:
            raise HostError(f"{self.path}/{name}: {os.strerror(error.errno or 0)}") from error

    def get(self, name: str) -> bytes:
        """The content of a file, b"" when it is absent."""
        try:
            with open(f"{self.path}/{name}", "rb", buffering=0) as file:
                return file.read() or b""
        except FileNotFoundError:
            return b""

    def make_fifo(self) -> int:
        """The FIFO by which `start` is told, open for both directions, so that nobody's opening or closing of it matters."""
        path = f"{self.path}/{FIFO}"
        os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def has_fifo(self) -> bool:
        """Was the container made and not started yet?"""
        return os.path.exists(f"{self.path}/{FIFO}")

    def drop_fifo(self) -> None:
        """The container has been started."""
        if self.has_fifo():
            os.unlink(f"{self.path}/{FIFO}")

    def signal_fifo(self) -> bool:
        """Tell the waiting process; False when it is gone."""
        try:
            fd = os.open(f"{self.path}/{FIFO}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                return False
            raise HostError(f"{self.path}/{FIFO}: {os.strerror(error.errno or 0)}") from error
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
        return True

    def remove(self) -> None:
        """Remove the directory; the lock is kept until `release`."""
        for name in os.listdir(self.path):
            os.unlink(f"{self.path}/{name}")
        os.rmdir(self.path)

    def release(self) -> None:
        """Give up the lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class BundleStore:
    """All records below `root`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def create(self, name: str) -> Claim:
        """Claim an id. Raises Conflict when it is taken, InvalidArgument, HostError."""
        check_id(name)
        path = f"{self.root}/{name}"
        try:
            try:
                os.mkdir(path, 0o711)
            except FileNotFoundError:
                os.makedirs(self.root, 0o711, exist_ok=True)
                os.mkdir(path, 0o711)
        except FileExistsError as error:
            raise Conflict("container with given ID already exists", hint=f"nacre-oci delete {name}, or another id") from error
        except OSError as error:
            raise HostError(f"{path}: {(os.strerror(error.errno or 0)).lower()}", hint="choose another place with --root") from error
        return Claim(path, 10.0)

    def open(self, name: str, wait: float | None = 10.0) -> Claim:
        """The record of a container. Raises as `Claim`, InvalidArgument."""
        check_id(name)
        return Claim(f"{self.root}/{name}", wait)

    def names(self) -> Iterator[str]:
        """The ids, sorted."""
        try:
            found = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return
        yield from (name for name in found if not name.startswith(".") and os.path.isdir(f"{self.root}/{name}"))
