"""All layers of a container as one read-only disk, whose partitions are the layers' image files, copied nowhere.

QEMU reads the disk through a VMDK descriptor of "flat" extents: partition table, layer, layer, ..., backup table. So a guest
has one virtio-blk device for any number of layers (machine type microvm has eight slots in all), and every guest and the host
share one page cache for the same layer file. In the guest layer number N (base first, from 0) is /dev/vda<N+1>. Up to four layers
have an MBR, which takes a booting guest fewer reads than a GPT.

Sources: UEFI specification 2.10, chapter 5 (MBR and GPT); Virtual Disk Format 5.0 (VMDK descriptor). QEMU 7.2 reads an empty line
before an extent as a second copy of it, so the descriptor has none; extents of a VMDK are never probed for another format.
"""

from __future__ import annotations

import binascii
import os
import struct
from collections.abc import Sequence

from nacre.errors import HostError, InvalidArgument, Unsupported
from nacre.model.container import Rootfs
from nacre.model.plan import MS_RDONLY, Code, Op, op
from nacre.model.value import Value

SECTOR = 512
BLOCK = 4096
# Linux makes no more partitions than this of one disk (DISK_MAX_PARTS).
LAYERS_MAX = 255
MBR_MAX = 4

# Type GUID "Linux filesystem data" and an arbitrary disk GUID, as they lie on the disk.
_LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
_DISK = bytes.fromhex("6e61637265206c617965727320202020")
_READ_ONLY = 1 << 60
_ENTRY = 128


class LayerDisk(Value):
    """What the monitor needs for the layers' disk: the table before the layers, the sizes of these in sectors, the table after them."""

    head: bytes
    sectors: tuple[int, ...]
    tail: bytes = b""


def layer_disk(sizes: Sequence[int]) -> LayerDisk:
    """The partition tables for layer images of these sizes in bytes. Raises Unsupported for more than 255."""
    if len(sizes) > LAYERS_MAX:
        raise Unsupported(
            f"an image of {len(sizes)} layers cannot run at level vm: the limit is {LAYERS_MAX}", hint="squash some of its layers"
        )
    sectors = tuple(_whole_blocks(-(-size // SECTOR)) for size in sizes)
    if len(sizes) <= MBR_MAX and sum(sectors) < 1 << 32:
        return LayerDisk(head=_mbr(sectors), sectors=sectors)
    count = max(128, -(-len(sizes) // 4) * 4)
    table = count * _ENTRY // SECTOR
    first = _whole_blocks(2 + table)
    entries, at = b"", first
    for number, length in enumerate(sectors, 1):
        entries += struct.pack("<16s16sQQQ72x", _LINUX, _DISK[:15] + bytes([number]), at, at + length - 1, _READ_ONLY)
        at += length
    entries = entries.ljust(table * SECTOR, b"\0")
    total = at + _whole_blocks(table + 1)
    usable = (first, total - table - 2)
    head = _protective(total) + _header(1, total - 1, 2, usable, count, entries) + entries
    tail = entries + _header(total - 1, 1, total - 1 - table, usable, count, entries)
    return LayerDisk(head=head.ljust(first * SECTOR, b"\0"), sectors=sectors, tail=tail.rjust((total - at) * SECTOR, b"\0"))


def _whole_blocks(sectors: int) -> int:
    step = BLOCK // SECTOR
    return -(-sectors // step) * step


def _mbr(sectors: Sequence[int]) -> bytes:
    entries, at = b"", BLOCK // SECTOR
    for length in sectors:
        entries += _mbr_entry(0x83, at, length)
        at += length
    return (bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa").ljust(BLOCK, b"\0")


def _mbr_entry(kind: int, start: int, length: int) -> bytes:
    """Only the linear addresses count; those in cylinders, heads and sectors say that they do not fit."""
    return struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start, length)


def _protective(total: int) -> bytes:
    """The MBR that keeps old tools off: one partition of type 0xee over everything."""
    return bytes(446) + _mbr_entry(0xEE, 1, min(total - 1, 0xFFFFFFFF)) + bytes(48) + b"\x55\xaa"


def _header(here: int, other: int, table: int, usable: tuple[int, int], count: int, entries: bytes) -> bytes:
    body = struct.pack("<QQQQ16sQIII", here, other, *usable, _DISK, table, count, _ENTRY, binascii.crc32(entries))
    unsigned = struct.pack("<8sIII4x", b"EFI PART", 0x10000, 92, 0) + body
    return (unsigned[:16] + struct.pack("<I", binascii.crc32(unsigned)) + unsigned[20:]).ljust(SECTOR, b"\0")


def descriptor(disk: LayerDisk, paths: Sequence[str]) -> bytes:
    """The VMDK descriptor. paths: of head, layers and tail in this order, as the monitor is to open them."""
    lengths = (len(disk.head) // SECTOR, *disk.sectors, len(disk.tail) // SECTOR)
    extents = [f'RW {length} FLAT "{path}" 0' for length, path in zip(lengths, paths, strict=True) if length]
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff", 'createType="twoGbMaxExtentFlat"']
    return "\n".join((*lines, *extents, "")).encode()


def layer_paths(rootfs: Rootfs) -> tuple[str, ...]:
    """Image files of the layers, base first. Raises Unsupported when this root file system is not made of EROFS images."""
    if rootfs.tree or not rootfs.layers or any(layer.format != "erofs" for layer in rootfs.layers):
        raise Unsupported(
            f"level vm needs the image's layers as EROFS images, but storage driver {rootfs.driver!r} has them as directories",
            hint="apt-get install erofs-utils, remove the image and pull it again",
        )
    if not rootfs.disk:
        raise InvalidArgument("level vm needs a writable disk, but the root file system has none")
    return tuple(layer.path for layer in rootfs.layers)


def layer_sizes(paths: Sequence[str]) -> tuple[int, ...]:
    """Sizes of the image files. Raises HostError when one is missing or empty."""
    sizes = []
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise HostError(f"layer {path} is not there: {error.strerror}", hint="pull the image again") from error
        if not size:
            raise HostError(f"layer {path} is empty", hint="remove the image and pull it again")
        sizes.append(size)
    return tuple(sizes)


def rootfs_ops(rootfs: Rootfs, *, block: int = 0) -> tuple[Op, ...]:
    """Operations in the guest that put the root file system at `root` below the working directory: layers, upper disk, overlay.

    block: first id of the container's user namespace, which layers are mapped into; 0 = it has none.
    """
    count = len(layer_paths(rootfs))
    ops = [op(Code.MKDIR, name, 0o755) for name in ("root", "u", *(f"l{number}" for number in range(count)))]
    ops += (op(Code.IMAGE, f"/dev/vda{number + 1}", f"l{number}", "erofs", MS_RDONLY, "") for number in range(count))
    # A fresh sparse file is zeros already: without `noinit_itable` the guest would fill 64 MiB of it with more of them.
    ops.append(op(Code.IMAGE, "/dev/vdb", "u", "ext4", 0, "discard,noinit_itable"))
    # Short relative names: the options of a mount must fit in one page.
    lower = ":".join(f"l{number}" for number in reversed(range(count)))
    if block:
        ops += [*(op(Code.IDMAP, f"l{number}") for number in range(count)), op(Code.CHOWN, "u/upper", block, block)]
    return (*ops, op(Code.MOUNT, "overlay", "root", "overlay", 0, f"lowerdir={lower},upperdir=u/upper,workdir=u/work"))
