"""Guest kernels: which there are, what they can do, which of their modules a guest must load and in what order.

Two kinds boot here. Our own minimal kernel (guest/) is monolithic, enters by PVH and finds its devices on the command line.
A distribution's kernel is a bzImage that finds them by ACPI and has its drivers as modules, which go into the initramfs.

Sources: Documentation/arch/x86/boot.rst (bzImage header), include/xen/interface/elfnote.h (PVH), modules.dep(5),
Documentation/kbuild/modules (modules.builtin), modprobe.d(5) (soft dependencies).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Iterable

from nacre.errors import HostError, InvalidArgument, NotFound, Unsupported
from nacre.linux import userns
from nacre.linux.files import atomic_write
from nacre.model.value import Value

INSTALL = "run: make guest-kernel, or: apt-get install linux-image-cloud-amd64"
MODULE_ROOTS = ("/lib/modules", "/usr/lib/modules")
BOOT = "/boot"
SHARED = "/var/cache/nacre"  # root's cache, readable for everybody

# What a guest cannot do without, and what it uses when it is there; by the names of the modules.
NEEDED = ("virtio_console", "virtio_blk", "erofs", "overlay", "ext4")
WELCOME = ("virtio_net", "virtio_rng", "af_packet")
NINE = ("9pnet_virtio", "9p")

_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
_PHYS32_ENTRY = 18
_VERSION = b"Linux version "


class GuestKernel(Value):
    """A kernel that can boot a guest.

    kind:      pvh (an ELF vmlinux with the PVH entry) or bzImage.
    transport: how it finds its devices: cmdline (virtio-mmio, on its command line), acpi (virtio-mmio, by ACPI) or pci.
    modules:   files to load before anything else, dependencies first; nine: further ones for bind mounts (9p).
    has_9p:    whether it can mount 9p at all.
    """

    path: str
    version: str
    kind: str
    transport: str = "cmdline"
    modules: tuple[str, ...] = ()
    nine: tuple[str, ...] = ()
    has_9p: bool = True


def cache_directory() -> str:
    """Where kernels and initramfs images are cached: NACRE_CACHE, /var/cache/nacre for root, ~/.cache/nacre for others."""
    given = os.environ.get("NACRE_CACHE")
    if given:
        return os.path.abspath(given)
    if os.geteuid() == 0 and userns.is_initial():
        return SHARED
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nacre")


def find(name: str = "") -> GuestKernel:
    """The guest kernel with this name: a path, ``minimal`` (ours), or the version of one in /boot; "" = the best there is.

    The best is ours, then the newest cloud kernel of the distribution, then its newest other kernel.
    Raises NotFound, InvalidArgument (no kernel image) or HostError (none installed, or its drivers are missing).
    """
    if "/" in name:
        return inspect(name)
    if name == "minimal":
        if not os.path.exists(minimal()):
            raise NotFound("the minimal guest kernel is not built", hint="run: make guest-kernel")
        return inspect(minimal())
    if name:
        path = f"{BOOT}/vmlinuz-{name}"
        if not os.path.exists(path):
            raise NotFound(f"no guest kernel {name!r}: there is no {path}", hint=f"choose one of: {', '.join(names()) or 'none installed'}")
        return inspect(path)
    return _best()


def _best() -> GuestKernel:
    failures: list[str] = []
    for path in candidates():
        try:
            return inspect(path)
        except (HostError, InvalidArgument) as error:
            failures.append(str(error))
    raise HostError("no guest kernel is installed", hint=INSTALL, details="\n".join(failures))


def minimal() -> str:
    """Path of our own kernel, whether it is built or not. An ordinary user may use the one that root has built."""
    own, shared = (f"{directory}/kernels/current/vmlinux" for directory in (cache_directory(), SHARED))
    return shared if os.path.exists(shared) and not os.path.exists(own) and "NACRE_CACHE" not in os.environ else own


def candidates() -> tuple[str, ...]:
    """Paths of all kernels found, best first."""
    try:
        found = [name for name in os.listdir(BOOT) if name.startswith("vmlinuz-")]
    except OSError:
        found = []
    found.sort(key=lambda name: ("cloud" in name, _natural(name)), reverse=True)
    ours = [minimal()] if os.path.exists(minimal()) else []
    return (*ours, *(f"{BOOT}/{name}" for name in found))


def names() -> tuple[str, ...]:
    """What `find` takes, best first."""
    return tuple("minimal" if path == minimal() else os.path.basename(path).removeprefix("vmlinuz-") for path in candidates())


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(digits or -1), rest) for digits, rest in re.findall(r"(\d+)|(\D+)", text)]


def inspect(path: str) -> GuestKernel:
    """What there is to know about the kernel in a file. Raises NotFound, InvalidArgument and HostError as `find` does."""
    real = os.path.realpath(path)
    try:
        with open(real, "rb") as file:
            head = file.read(4096)
            if head[:4] == b"\x7fELF":
                return _vmlinux(path, real, file.fileno())
            version = _bzimage_version(head, file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no guest kernel: {path} does not exist", hint=f"choose one of: {', '.join(names()) or 'none installed'}") from None
    except OSError as error:
        raise HostError(f"cannot read the guest kernel {path}: {error.strerror}", hint="run as root") from error
    if not version:
        raise InvalidArgument(
            f"{path} is no Linux kernel for this kind of machine", hint="give a bzImage (vmlinuz) or a vmlinux with CONFIG_PVH=y"
        )
    return _with_modules(GuestKernel(path=real, version=version, kind="bzImage", transport="acpi"))


def _bzimage_version(head: bytes, fd: int) -> str:
    """The version string a bzImage carries ("" when it is none): boot flag, magic, and a pointer relative to offset 0x200."""
    if len(head) < 0x220 or head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":
        return ""
    (pointer,) = struct.unpack_from("<H", head, 0x20E)
    text = os.pread(fd, 256, pointer + 0x200) if pointer else b""
    return text.split(b"\0", 1)[0].split(b" ", 1)[0].decode("ascii", "replace") or "unknown"


def _vmlinux(path: str, real: str, fd: int) -> GuestKernel:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as image:
        if not _has_pvh_entry(image):
            raise InvalidArgument(f"{path} has no PVH entry point", hint="build it with CONFIG_PVH=y, or give its bzImage")
        version = _recorded_version(real) or _version_inside(image)
    return _with_modules(GuestKernel(path=real, version=version, kind="pvh"))


def _recorded_version(real: str) -> str:
    """The build leaves it beside its result, which saves reading 20 MB."""
    try:
        with open(f"{os.path.dirname(real)}/version", encoding="ascii") as file:
            return file.read(256).strip()
    except (OSError, ValueError):
        return ""


def _version_inside(image: mmap.mmap) -> str:
    start = image.find(_VERSION)
    # The format string of the same message comes with a per cent sign.
    while start >= 0 and image[start + len(_VERSION)] == 0x25:
        start = image.find(_VERSION, start + 1)
    if start < 0:
        return "unknown"
    return image[start + len(_VERSION) : start + 256].split(b" ", 1)[0].decode("ascii", "replace")


def _has_pvh_entry(image: mmap.mmap) -> bool:
    """Whether an ELF note of the owner Xen gives the 32-bit entry point."""
    try:
        offset, size, count = *struct.unpack_from("<Q", image, 0x20), *struct.unpack_from("<HH", image, 0x36)
        for number in range(count):
            kind, _flags, start, _virtual, _physical, length = struct.unpack_from("<IIQQQQ", image, offset + number * size)
            if kind == 4 and _note(image[start : start + min(length, 65536)]):
                return True
    except struct.error:
        return False
    return False


def _note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        if kind == _PHYS32_ENTRY and name.rstrip(b"\0") == b"Xen":
            return True
        at += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
    return False


# -- modules -----------------------------------------------------------------------------------------------------------


class ModuleTree:
    """The modules of one kernel version below a directory like /lib/modules/VERSION, by name (dashes are underscores)."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.builtin = {_module_name(line) for line in self._lines("modules.builtin")}
        self.files: dict[str, str] = {}
        self._needs: dict[str, list[str]] = {}
        for line in self._lines("modules.dep"):
            file, _, needs = line.partition(":")
            self.files[_module_name(file)] = f"{directory}/{file}"
            self._needs[_module_name(file)] = [_module_name(item) for item in needs.split()]

    def _lines(self, name: str) -> list[str]:
        try:
            with open(f"{self.directory}/{name}", encoding="utf-8", errors="replace") as file:
                return [line for line in file.read().splitlines() if line and not line.startswith("#")]
        except OSError:
            return []

    def __contains__(self, name: str) -> bool:
        return name in self.builtin or name in self.files

    def order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Files to load so that all of `names` run, dependencies first; what is built in or unknown is left out."""
        soft = self._soft_needs()
        done: dict[str, str] = {}
        busy: set[str] = set()

        def visit(name: str) -> None:
            if name in done or name in busy or name not in self.files:
                return
            busy.add(name)
            for need in (*soft.get(name, ()), *reversed(self._needs[name])):
                visit(need)
            done[name] = self.files[name]

        for name in names:
            visit(name)
        return tuple(done.values())

    def _soft_needs(self) -> dict[str, list[str]]:
        """Modules that another wants loaded before it although it does not link to them (a checksum, say)."""
        result: dict[str, list[str]] = {}
        for line in self._lines("modules.softdep"):
            words = line.split()
            if len(words) > 3 and words[0] == "softdep" and words[2] == "pre:":
                before = words[3 : words.index("post:") if "post:" in words else None]
                result.setdefault(words[1].replace("-", "_"), []).extend(before)
        return {name: [found for word in needs if (found := self._resolve(word))] for name, needs in result.items() if name in _SOFT}

    def _resolve(self, word: str) -> str:
        """The module behind a name or an alias like ``crypto-crc32c``; "" when it is built in or nowhere."""
        name = word.replace("-", "_")
        if name in self.files or name in self.builtin:
            return name
        inside = f"alias={word}".encode()
        with contextlib.suppress(OSError), open(f"{self.directory}/modules.builtin.modinfo", "rb") as file:
            if any(entry.endswith(b"." + inside) for entry in file.read().split(b"\0")):
                return ""
        for line in self._lines("modules.alias"):
            words = line.split()
            if len(words) == 3 and words[1] == word:
                return words[2].replace("-", "_")
        return ""


# The only ones among our modules whose soft dependencies matter: looking up aliases means reading a large file.
_SOFT = frozenset({"libcrc32c", "ext4", "erofs"})


def _module_name(path: str) -> str:
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def _with_modules(kernel: GuestKernel) -> GuestKernel:
    """The kernel with its modules, if it has any; a kernel without a module directory is taken for monolithic."""
    directory = next((path for root in MODULE_ROOTS if os.path.isdir(path := f"{root}/{kernel.version}")), "")
    if not directory:
        return kernel
    tree = ModuleTree(directory)
    if not tree.files and not tree.builtin:
        return kernel
    missing = [name for name in NEEDED if name not in tree]
    if "virtio_mmio" in tree:
        transport, bus = ("cmdline" if kernel.kind == "pvh" else "acpi"), "virtio_mmio"
    elif "virtio_pci" in tree:
        transport, bus = "pci", "virtio_pci"
    else:
        missing.append("virtio_mmio")
        transport = bus = ""
    if missing:
        hint = INSTALL if tree.files else f"run: depmod {kernel.version}"
        raise HostError(f"guest kernel {kernel.version} lacks {', '.join(missing)}: {directory} has no such modules", hint=hint)
    base = tree.order((bus, *NEEDED, *WELCOME))
    nine = tuple(file for file in tree.order(NINE) if file not in base)
    return kernel.replace(transport=transport, modules=base, nine=nine, has_9p=all(name in tree for name in NINE))


def require_9p(kernel: GuestKernel) -> None:
    """Raises Unsupported when bind mounts cannot work with this kernel; the hint names one that has what they need."""
    if kernel.has_9p:
        return
    able = [name for name, path in zip(names(), candidates(), strict=True) if _can_bind(path)]
    hint = f"choose another with --kernel: {', '.join(able)}" if able else "run: make guest-kernel (the minimal kernel has it)"
    raise Unsupported(f"guest kernel {kernel.version} has no 9p file system, which bind mounts and volumes need at level vm", hint=hint)


def _can_bind(path: str) -> bool:
    try:
        return inspect(path).has_9p
    except (HostError, InvalidArgument, NotFound):
        return False


def readable(kernel: GuestKernel) -> str:
    """A path of the kernel that the unprivileged monitor may read: some distributions make theirs readable by root alone.

    Copies the kernel into the cache when needed. Raises HostError when that fails.
    """
    status = os.stat(kernel.path)
    if status.st_mode & 0o004:
        return kernel.path
    import hashlib

    key = hashlib.sha256(f"{kernel.path}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = f"{cache_directory()}/boot/kernel-{key}"
    if not os.path.exists(copy):
        try:
            os.makedirs(os.path.dirname(copy), 0o755, exist_ok=True)
            with open(kernel.path, "rb") as file:
                atomic_write(copy, file.read(), fsync=False)
        except OSError as error:
            raise HostError(f"cannot copy the guest kernel {kernel.path} to {copy}: {error.strerror}") from error
    return copy
