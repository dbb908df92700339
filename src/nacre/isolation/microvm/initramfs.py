"""The guest's first root: a cpio archive with stem as /init, the kernel modules it loads, and nothing else.

Archives are cached by the content that goes into them, so that building one (decompressing modules, 2 MB of writing) happens
once per kernel and stem. Format: "newc" of Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence

from nacre.errors import HostError
from nacre.isolation.microvm.kernels import cache_directory
from nacre.linux.files import atomic_write, explain

# Part of the cache key: raise it when the layout of the archive changes.
LAYOUT = 2

# stage: where a container's root file system is put together.
DIRECTORIES = ("dev", "modules", "proc", "run", "stage", "sys", "tmp")
# name, permission bits, major, minor: the kernel opens /dev/console before anything is mounted.
NODES = (("dev/console", 0o600, 5, 1), ("dev/kmsg", 0o644, 1, 11), ("dev/null", 0o666, 1, 3))

_S_IFDIR, _S_IFREG, _S_IFCHR = 0o040000, 0o100000, 0o020000
_PREFIX = "initramfs-"
_UNUSED_SECONDS = 30 * 86400
_ZSTD_HINT = "pip install backports.zstd, or use Python 3.14"


def archive(init: bytes, modules: Iterable[tuple[str, bytes]] = ()) -> bytes:
    """The cpio archive. init: the program; modules: (file name, content) in the order in which they are to be loaded."""
    modules = list(modules)
    parts = [_entry(number, name, _S_IFDIR | 0o755) for number, name in enumerate(DIRECTORIES, 1)]
    parts += (_entry(16 + number, name, _S_IFCHR | mode, device=(major, minor)) for number, (name, mode, major, minor) in enumerate(NODES))
    parts.append(_entry(32, "init", _S_IFREG | 0o755, init))
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    files = [("modules/order", order), *((f"modules/{name}", content) for name, content in modules)]
    parts += (_entry(33 + number, name, _S_IFREG | 0o644, content) for number, (name, content) in enumerate(files))
    return b"".join((*parts, _entry(0, "TRAILER!!!", 0)))


def _entry(inode: int, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    raw = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def build(stem: str, modules: Sequence[str] = ()) -> str:
    """Path of the archive with this stem and these module files, from the cache or made now. Readable by everybody.

    Raises HostError when a file cannot be read, a module is damaged or the cache cannot be written.
    """
    contents = [(path, _read(path)) for path in modules]
    init = _read(stem)
    path = f"{cache_directory()}/boot/{_PREFIX}{_key(init, contents)}"
    try:
        os.utime(path)
    except OSError:
        data = archive(init, [(os.path.basename(file).partition(".ko")[0] + ".ko", _plain(file, raw)) for file, raw in contents])
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            atomic_write(path, data, fsync=False)
            _prune(os.path.dirname(path))
        except OSError as error:
            raise explain(error, f"write the initramfs {path}") from error
    return path


def _prune(directory: str) -> None:
    """Remove archives that no start has used for a month: every new stem makes new ones."""
    limit = time.time() - _UNUSED_SECONDS
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.stat().st_mtime < limit:
                os.unlink(entry.path)


def _key(init: bytes, contents: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256(f"{LAYOUT}\0{len(init)}\0".encode() + init)
    for path, raw in contents:
        digest.update(f"{os.path.basename(path)}\0{len(raw)}\0".encode() + raw)
    return digest.hexdigest()[:16]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HostError(f"cannot read {path} for the guest's initramfs: {error.strerror}") from error


def _plain(path: str, raw: bytes) -> bytes:
    """The module itself, decompressed as its name says. Raises HostError for damaged files."""
    try:
        if path.endswith(".gz"):
            import gzip

            return gzip.decompress(raw)
        if path.endswith(".xz"):
            import lzma

            return lzma.decompress(raw)
        return _unzstd(raw) if path.endswith(".zst") else raw
    except HostError:
        raise
    except Exception as error:
        raise HostError(f"kernel module {path} is damaged: {error}", hint="reinstall the kernel package") from error


def _unzstd(raw: bytes) -> bytes:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise HostError("kernel modules are zstd-compressed, which this Python cannot read", hint=_ZSTD_HINT) from error
    return bytes(zstd.decompress(raw))
