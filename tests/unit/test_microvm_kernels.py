"""Finding guest kernels and their modules, on made-up /boot, /lib/modules and cache directories."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nacre.errors import HostError, InvalidArgument, NotFound, Unsupported
from nacre.isolation.microvm import kernels

VIRTIO = ("virtio_console", "virtio_blk", "virtio_net", "virtio-rng", "erofs", "overlay", "ext4")


def bzimage(version: str) -> bytes:
    """The parts of a bzImage that count: boot flag, magic, the pointer to the version string."""
    image = bytearray(4096)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x300)
    text = f"{version} (builder@host) #1 SMP".encode() + b"\0"
    image[0x500 : 0x500 + len(text)] = text
    return bytes(image)


def vmlinux(version: str = "", *, pvh: bool = True) -> bytes:
    """An ELF file with one note segment."""
    notes = struct.pack("<III4sI", 4, 4, 6, b"GNU\0", 7)
    if pvh:
        notes += struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x1000680)
    head = bytearray(64)
    head[:4] = b"\x7fELF"
    struct.pack_into("<Q", head, 0x20, 64)
    struct.pack_into("<HH", head, 0x36, 56, 1)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    words = b"Linux version %s\0" + (f"Linux version {version} (x@y)".encode() if version else b"")
    return bytes(head) + segment + notes + words + bytes(64)


class Host:
    """Directories that stand in for the host's, and what to put there."""

    def __init__(self, root: Path) -> None:
        self.boot, self.modules, self.cache = root / "boot", root / "modules", root / "cache"
        for path in (self.boot, self.modules, self.cache):
            path.mkdir()

    def kernel(self, version: str) -> str:
        path = self.boot / f"vmlinuz-{version}"
        path.write_bytes(bzimage(version))
        return str(path)

    def minimal(self, content: bytes | None = None) -> str:
        path = self.cache / "kernels" / "abc" / "vmlinux"
        path.parent.mkdir(parents=True)
        path.write_bytes(content if content is not None else vmlinux())
        (path.parent / "version").write_text("6.1.99\n")
        (self.cache / "kernels" / "current").symlink_to("abc")
        return str(path)

    def tree(self, version: str, dependencies: str, builtin: str = "", **files: str) -> Path:
        directory = self.modules / version
        directory.mkdir()
        (directory / "modules.dep").write_text(dependencies)
        (directory / "modules.builtin").write_text(builtin)
        for name, text in files.items():
            (directory / f"modules.{name}").write_text(text)
        return directory


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(kernels, "BOOT", str(made.boot))
    monkeypatch.setattr(kernels, "MODULE_ROOTS", (str(made.modules),))
    monkeypatch.setenv("NACRE_CACHE", str(made.cache))
    return made


def modular(*names: str, bus: str = "virtio_mmio", suffix: str = ".ko") -> str:
    """modules.dep of a kernel with virtio as modules."""
    lines = [f"kernel/virtio_ring{suffix}:", f"kernel/virtio{suffix}: kernel/virtio_ring{suffix}"]
    lines += [f"kernel/{name}{suffix}: kernel/virtio{suffix} kernel/virtio_ring{suffix}" for name in (bus, *(names or VIRTIO))]
    return "\n".join(lines) + "\n"


def test_ours_comes_first_then_cloud_then_the_newest(host: Host) -> None:
    for version in ("6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.1-amd64"):
        host.kernel(version)
        host.tree(version, modular())
    assert kernels.find().version == "6.1.0-56-cloud-amd64"
    path = host.minimal()
    found = kernels.find()
    assert (found.path, found.version, found.kind, found.transport, found.modules) == (path, "6.1.99", "pvh", "cmdline", ())
    assert kernels.names() == ("minimal", "6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64", "6.12.1-amd64")


def test_by_name(host: Host) -> None:
    path = host.kernel("6.12.1-amd64")
    host.tree("6.12.1-amd64", modular())
    assert kernels.find("6.12.1-amd64") == kernels.find(path)
    with pytest.raises(NotFound, match=r"choose one of: 6\.12\.1-amd64"):
        kernels.find("6.13")
    with pytest.raises(NotFound, match="make guest-kernel"):
        kernels.find("minimal")
    with pytest.raises(NotFound, match="does not exist"):
        kernels.find("/nowhere/vmlinuz")


def test_none_installed(host: Host) -> None:
    with pytest.raises(HostError, match="make guest-kernel, or: apt-get install linux-image-cloud-amd64"):
        kernels.find()


def test_a_removed_kernels_leftover_is_passed_over(host: Host) -> None:
    host.kernel("6.2.0-cloud")
    host.tree("6.2.0-cloud", modular("virtio_blk"))
    host.kernel("6.1.0-cloud")
    host.tree("6.1.0-cloud", modular())
    assert kernels.find().version == "6.1.0-cloud"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", bytes(8192), b"\x7fELF", b"\x7fELF" + bytes(100), bzimage("x")[:0x210]])
def test_no_kernel_at_all(host: Host, content: bytes) -> None:
    path = host.boot / "vmlinuz-odd"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="odd"):
        kernels.find("odd")


def test_vmlinux_without_pvh(host: Host) -> None:
    host.minimal(vmlinux(pvh=False))
    with pytest.raises(InvalidArgument, match="CONFIG_PVH=y"):
        kernels.find("minimal")


def test_version_inside_a_vmlinux(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux("6.6.1-custom"))
    assert kernels.find(str(path)).version == "6.6.1-custom"
    path.write_bytes(vmlinux())
    assert kernels.find(str(path)).version == "unknown"


def test_modules_in_the_order_of_their_dependencies(host: Host) -> None:
    host.kernel("6.1-cloud")
    host.tree("6.1-cloud", modular(), builtin="kernel/net/packet/af_packet.ko\n")
    found = kernels.find()
    names = [Path(file).name for file in found.modules]
    assert names[:5] == ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio_console.ko", "virtio_blk.ko"]
    assert sorted(names) == sorted({"virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", *(f"{name}.ko" for name in VIRTIO)})
    assert (found.transport, found.has_9p, found.nine) == ("acpi", False, ())


def test_what_is_built_in_is_not_loaded(host: Host) -> None:
    host.kernel("6.1-cloud")
    builtin = "".join(f"kernel/{name}.ko\n" for name in ("virtio_mmio", "virtio_blk", "virtio_console", "ext4", "overlay", "erofs"))
    host.tree("6.1-cloud", "kernel/9p.ko: kernel/9pnet.ko\nkernel/9pnet.ko:\nkernel/9pnet_virtio.ko: kernel/9pnet.ko\n", builtin)
    found = kernels.find()
    assert found.modules == ()
    assert [Path(file).name for file in found.nine] == ["9pnet.ko", "9pnet_virtio.ko", "9p.ko"]
    assert found.has_9p


def test_pci_where_there_is_no_mmio(host: Host) -> None:
    host.kernel("6.1-cloud")
    host.tree("6.1-cloud", modular(bus="virtio_pci", suffix=".ko.xz"))
    found = kernels.find()
    assert found.transport == "pci"
    assert found.modules[2].endswith("kernel/virtio_pci.ko.xz")


def test_missing_drivers_are_named(host: Host) -> None:
    path = host.kernel("6.1-odd")
    host.tree("6.1-odd", modular("virtio_console", "virtio_blk", "ext4"))
    with pytest.raises(HostError, match="lacks erofs, overlay"):
        kernels.inspect(path)
    directory = host.tree("6.0-odd", "", builtin="kernel/ext4.ko\n")
    (directory / "modules.dep").unlink()
    with pytest.raises(HostError, match=r"run: depmod 6\.0-odd"):
        kernels.inspect(host.kernel("6.0-odd"))
    host.kernel("6.2-odd")
    host.tree("6.2-odd", modular(*VIRTIO, bus="virtio_vdpa"))
    with pytest.raises(HostError, match="lacks virtio_mmio"):
        kernels.find("6.2-odd")


def test_no_module_directory_means_monolithic(host: Host) -> None:
    host.kernel("6.1-own")
    assert (kernels.find().modules, kernels.find().transport) == ((), "acpi")


def test_soft_dependencies(host: Host) -> None:
    host.kernel("6.1-cloud")
    needs = modular() + "kernel/libcrc32c.ko:\nkernel/crc32c-intel.ko:\nkernel/other.ko:\n"
    needs = needs.replace("kernel/erofs.ko:", "kernel/erofs.ko: kernel/libcrc32c.ko")
    extra = {
        "softdep": "# comment\nsoftdep libcrc32c pre: crc32c\nsoftdep ext4 pre: other post: virtio_net\n",
        "alias": "alias crc32c crc32c_intel\n",
    }
    host.tree("6.1-cloud", needs, **extra)
    names = [Path(file).name for file in kernels.find().modules]
    assert names.index("crc32c-intel.ko") < names.index("libcrc32c.ko") < names.index("erofs.ko")
    assert names.index("other.ko") < names.index("ext4.ko")


def test_circles_and_strangers_in_the_dependencies(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\nkernel/c.ko: kernel/gone.ko\n")
    tree = kernels.ModuleTree(str(tmp_path))
    assert {Path(file).name for file in tree.order(["a", "c", "nowhere"])} == {"a.ko", "b.ko", "c.ko"}


def test_bind_mounts_name_a_kernel_that_has_9p(host: Host) -> None:
    host.kernel("6.1-cloud")
    host.tree("6.1-cloud", modular())
    without = kernels.find()
    with pytest.raises(Unsupported, match="make guest-kernel"):
        kernels.require_9p(without)
    host.minimal()
    with pytest.raises(Unsupported, match="choose another with --kernel: minimal"):
        kernels.require_9p(without)
    kernels.require_9p(kernels.find())


def test_a_kernel_only_root_may_read_is_copied(host: Host) -> None:
    path = Path(host.kernel("6.1-own"))
    found = kernels.find()
    assert kernels.readable(found) == str(path)
    path.chmod(0o600)
    copy = Path(kernels.readable(found))
    assert copy.read_bytes() == path.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o644
    assert kernels.readable(found) == str(copy)
    path.write_bytes(bzimage("6.1-own") + b"changed")
    assert kernels.readable(found) != str(copy)
