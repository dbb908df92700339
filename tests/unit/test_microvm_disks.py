"""The layers' disk: its partition tables read back, its descriptor, what goes into it."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.errors import HostError, InvalidArgument, Unsupported
from nacre.isolation.microvm import disks
from nacre.model.container import LayerMount, Rootfs

SECTOR = 512


def image(disk: disks.LayerDisk) -> bytes:
    """The disk as a guest sees it; layer number N is filled with the byte N + 1."""
    layers = b"".join(bytes([number % 255 + 1]) * (length * SECTOR) for number, length in enumerate(disk.sectors))
    return disk.head + layers + disk.tail


def gpt(data: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """(start, sectors) of each partition of the table whose header is at this sector, and where the other header is."""
    header = data[at * SECTOR : at * SECTOR + 92]
    signature, _revision, size, check, here, other, first, last = struct.unpack_from("<8sIII4xQQQQ", header)
    table, count, length, entries_check = struct.unpack_from("<QIII", header, 72)
    assert (signature, size, here) == (b"EFI PART", 92, at)
    assert binascii.crc32(header[:16] + bytes(4) + header[20:]) == check
    entries = data[table * SECTOR : table * SECTOR + count * length]
    assert binascii.crc32(entries) == entries_check
    found, names = [], set()
    for number in range(count):
        entry = entries[number * length : (number + 1) * length]
        if any(entry):
            start, end = struct.unpack_from("<QQ", entry, 32)
            assert first <= start <= end <= last
            found.append((start, end - start + 1))
            names.add(entry[16:32])
    assert len(names) == len(found)
    return found, other


def test_mbr_of_a_few_layers() -> None:
    disk = disks.layer_disk([4096, 8192, 4096 * 300, 4096])
    data = image(disk)
    assert data[510:512] == b"\x55\xaa"
    for number in range(4):
        kind, start, length = struct.unpack_from("<4xB3xII", data, 446 + 16 * number)
        assert kind == 0x83
        assert start * SECTOR % 4096 == 0
        assert set(data[start * SECTOR : (start + length) * SECTOR]) == {number + 1}
    assert disk.tail == b""


@pytest.mark.parametrize("count", [5, 127, 128, 129, 255])
def test_gpt_of_many_layers(count: int) -> None:
    disk = disks.layer_disk([4096 * (number % 3 + 1) for number in range(count)])
    data = image(disk)
    parts, backup = gpt(data, 1)
    assert backup == len(data) // SECTOR - 1
    assert gpt(data, backup) == (parts, 1)
    assert [length for _, length in parts] == list(disk.sectors)
    assert data[450] == 0xEE
    for number, (start, length) in enumerate(parts):
        assert start * SECTOR % 4096 == 0
        assert set(data[start * SECTOR : (start + length) * SECTOR]) == {number % 255 + 1}


def test_odd_sizes_are_padded() -> None:
    assert disks.layer_disk([1, 4097]).sectors == (8, 16)


def test_layers_that_an_mbr_cannot_address() -> None:
    disk = disks.layer_disk([3 << 40])
    assert struct.unpack_from("<8s", disk.head, SECTOR) == (b"EFI PART",)


def test_too_many_layers() -> None:
    with pytest.raises(Unsupported, match="256 layers"):
        disks.layer_disk([4096] * 256)


def test_descriptor(golden: Callable[[str, str], None]) -> None:
    disk = disks.layer_disk([4096 * number for number in range(1, 7)])
    text = disks.descriptor(disk, ["/layers/head", *(f"/layers/{number}" for number in range(6)), "/layers/tail"]).decode()
    # QEMU would take an empty line for a second copy of the extent that follows it.
    assert all(text.splitlines())
    golden("microvm/layers.vmdk", text)


def test_descriptor_leaves_out_an_empty_tail() -> None:
    text = disks.descriptor(disks.layer_disk([4096]), ["/head", "/0", "/tail"]).decode()
    assert text.splitlines()[-2:] == ['RW 8 FLAT "/head" 0', 'RW 8 FLAT "/0" 0']


def rootfs(count: int = 2, kind: str = "erofs", disk: str = "/upper.ext4") -> Rootfs:
    return Rootfs(
        driver="erofs", layers=tuple(LayerMount(diff_id=str(n), path=f"/layers/{n}", format=kind) for n in range(count)), disk=disk
    )


def test_what_a_machine_cannot_use() -> None:
    assert disks.layer_paths(rootfs()) == ("/layers/0", "/layers/1")
    for unusable in (rootfs(0), rootfs(kind="directory"), rootfs().replace(tree="/tree")):
        with pytest.raises(Unsupported, match="EROFS"):
            disks.layer_paths(unusable)
    with pytest.raises(InvalidArgument, match="writable disk"):
        disks.layer_paths(rootfs(disk=""))


def test_layer_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    (tmp_path / "empty").touch()
    assert disks.layer_sizes([str(tmp_path / "a")]) == (10,)
    with pytest.raises(HostError, match="pull the image again"):
        disks.layer_sizes([str(tmp_path / "a"), str(tmp_path / "gone")])
    with pytest.raises(HostError, match="is empty"):
        disks.layer_sizes([str(tmp_path / "empty")])


def test_mounts_in_the_guest(golden: Callable[[str, str], None]) -> None:
    golden("microvm/rootfs.plan", "".join(f"{item.describe()}\n" for item in disks.rootfs_ops(rootfs(3))))


def test_overlay_options_of_the_largest_image_fit_in_a_page() -> None:
    last = disks.rootfs_ops(rootfs(255))[-1]
    assert len(str(last.args[-1])) < 4096
