"""Tar streams for `nacre cp`: local files as one, and one as local files.

What comes out of a container is hostile: names that lead elsewhere, links to follow, devices. Nothing is written outside the target:
every name is taken apart and walked through directory descriptors that refuse symbolic links.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import Any, Protocol

from nacre.errors import BadContent, InvalidArgument, NacreError

CHUNK = 256 * 1024
_END = b"\0" * 1024


class Readable(Protocol):
    """What the engine's archives offer."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, b"" at the end."""


class Packed:
    """A local file or tree as a tar stream with `read`. name: of the top entry in the archive, "." = only its contents.

    owners: keep user and group; otherwise everything belongs to root, as `docker cp` has it. size: bytes of file data so far.
    """

    def __init__(self, path: str, name: str, *, owners: bool) -> None:
        self._owners = owners
        self._tar = tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (only for its gettarinfo)
        self._pieces = self._stream(path, name)
        self._rest = b""
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (all with -1). Raises InvalidArgument for a file that cannot be read."""
        while len(self._rest) < size or size < 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        data, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return data

    def _stream(self, path: str, name: str) -> Iterator[bytes]:
        yield from self._entry(path, name)
        yield _END

    def _entry(self, path: str, name: str) -> Iterator[bytes]:
        try:
            info = self._tar.gettarinfo(path, arcname=name)
            # Sockets have no place in an archive; everybody leaves them out.
            if info is None:
                return
            if not self._owners:
                info.uid = info.gid = 0
            info.uname = info.gname = ""
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if info.isreg():
                yield from self._contents(path, info.size)
            elif info.isdir():
                for child in sorted(os.listdir(path)):
                    yield from self._entry(f"{path}/{child}", f"{name}/{child}")
        except OSError as error:
            raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error

    def _contents(self, path: str, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes, whatever happens to the file meanwhile, and the padding to a whole block."""
        left = size
        with open(path, "rb") as file:
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise InvalidArgument(f"{path} shrank while it was copied", hint="copy it again when nothing writes to it")
                left -= len(data)
                self.size += len(data)
                yield data
        yield b"\0" * (-size % 512)


class Unpacked:
    """Extracts a tar stream whose single top entry becomes `directory/name`, or, with name "", whose contents go into `directory`.

    owners: keep user, group and set-id bits. size: bytes of file data; skipped: names that were left out (device nodes).
    """

    def __init__(self, directory: str, name: str, *, owners: bool) -> None:
        self._name = name
        self._owners = owners
        self.size = 0
        self.skipped: list[str] = []
        # The directory is the user's own word: links in it are followed.
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def extract(self, stream: Readable) -> None:
        """Reads it all. Raises BadContent for a malformed or hostile archive, NacreError when the local side fails."""
        directories: list[tuple[list[str], tarfile.TarInfo]] = []
        try:
            with tarfile.open(fileobj=_Reader(stream), mode="r|", errorlevel=2) as tar:
                top: str | None = None
                for info in tar:
                    top = info.name if top is None else top
                    parts = self._parts(info.name, top)
                    if parts:
                        self._member(tar, info, parts, top)
                        if info.isdir():
                            directories.append((parts, info))
            # Contents change a directory's time, and its mode may forbid them.
            for parts, info in reversed(directories):
                with self._parent(parts) as (parent, name):
                    self._finish(parent, name, info)
        except tarfile.TarError as error:
            raise BadContent(f"the archive is damaged: {error}") from error
        except OSError as error:
            raise NacreError(f"cannot write {error.filename or 'the files'}: {error.strerror}") from error
        finally:
            os.close(self._root)

    def _parts(self, name: str, top: str) -> list[str]:
        """Where an entry goes, below the root. [] = the root itself."""
        words = [word for word in name.split("/") if word not in ("", ".")]
        if ".." in words:
            raise BadContent(f"the archive has a name that leads outside: {name!r}")
        prefix = [word for word in top.split("/") if word not in ("", ".")]
        if words[: len(prefix)] != prefix:
            raise BadContent(f"the archive has an entry beside {top!r}: {name!r}")
        return [*([self._name] if self._name else []), *words[len(prefix) :]]

    @contextlib.contextmanager
    def _parent(self, parts: list[str]) -> Iterator[tuple[int, str]]:
        """(descriptor of the directory, last name); missing directories are made, links are not followed."""
        descriptor = os.dup(self._root)
        try:
            for word in parts[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(word, 0o755, dir_fd=descriptor)
                try:
                    inner = os.open(word, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                except OSError as error:
                    raise BadContent(f"{'/'.join(parts)}: {word!r} is no directory: {error.strerror}") from error
                os.close(descriptor)
                descriptor = inner
            yield descriptor, parts[-1]
        finally:
            os.close(descriptor)

    def _member(self, tar: tarfile.TarFile, info: tarfile.TarInfo, parts: list[str], top: str) -> None:
        with self._parent(parts) as (parent, name):
            if info.isdir():
                self._directory(parent, name)
                return
            if info.isdev() and not info.isfifo():
                self.skipped.append("/".join(parts))
                return
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise InvalidArgument(f"cannot overwrite directory {'/'.join(parts)} with a file")
                os.unlink(name, dir_fd=parent)
            if info.issym():
                os.symlink(info.linkname, name, dir_fd=parent)
            elif info.islnk():
                with self._parent(self._parts(info.linkname, top)) as (other, target):
                    os.link(target, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
                return
            elif info.isfifo():
                os.mkfifo(name, 0o600, dir_fd=parent)
            else:
                self._file(tar, info, parent, name)
            self._finish(parent, name, info)

    def _directory(self, parent: int, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise InvalidArgument(f"cannot overwrite {name} with a directory") from None

    def _file(self, tar: tarfile.TarFile, info: tarfile.TarInfo, parent: int, name: str) -> None:
        source = tar.extractfile(info)
        assert source is not None
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        with open(descriptor, "wb") as file:
            while data := source.read(CHUNK):
                file.write(data)
                self.size += len(data)

    def _finish(self, parent: int, name: str, info: tarfile.TarInfo) -> None:
        """Owner, mode and time. Without `owners` nothing becomes set-id: it would be set-id for the user who copies."""
        if self._owners:
            os.chown(name, info.uid, info.gid, dir_fd=parent, follow_symlinks=False)
        if not info.issym():
            os.chmod(name, info.mode & (0o7777 if self._owners else 0o1777), dir_fd=parent)
        with contextlib.suppress(OverflowError):
            os.utime(name, (info.mtime, info.mtime), dir_fd=parent, follow_symlinks=False)


class _Reader(io.RawIOBase):
    """Gives tarfile as many bytes as it asks for, as long as there are any."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        made: list[bytes] = []
        while size:
            data = self._stream.read(size)
            if not data:
                break
            made.append(data)
            size -= len(data)
        return b"".join(made)


def copy(source: Readable, target: Any) -> int:
    """Moves a whole stream; the number of bytes."""
    total = 0
    while data := source.read(CHUNK):
        target.write(data)
        total += len(data)
    return total
