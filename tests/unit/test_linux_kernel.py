from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nacre.linux import kernel


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.1.0-18-cloud-amd64", (6, 1)), ("6.18.44-fc", (6, 18)), ("5.4-rc1", (5, 4)), ("linux", (0, 0)), ("6.x", (0, 0))],
)
def test_release(text: str, version: tuple[int, int]) -> None:
    assert kernel.release(text) == version


def test_modules_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (tmp_path / "modules.dep").write_text("kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/drivers/virtio-mmio.ko:\n")
    assert [kernel.has_module(name, str(tmp_path)) for name in ("ext4", "erofs", "virtio_mmio", "virtio-mmio")] == [True] * 4
    assert [kernel.has_module(name, str(tmp_path)) for name in ("ext", "libcrc32c", "xfs")] == [False] * 3
    assert not kernel.has_module("ext4", "/nowhere")


def test_sysctl() -> None:
    assert kernel.sysctl("kernel.ostype") == "Linux"
    assert kernel.sysctl("kernel.nothing") == ""


def test_attempts_report_what_happened() -> None:
    def fail() -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    assert kernel.attempt(lambda: None) == "ok"
    assert kernel.attempt(fail) == "Function not implemented"
    assert kernel.attempt(lambda: [][0]) == "list index out of range"
    assert kernel.attempt(lambda: os.kill(os.getpid(), 9)) == "the probe died"
    assert kernel.attempt(lambda: sys.exit(3)) == "the probe died"


def test_attempts_leave_no_descriptors(no_descriptor_left: Callable[[], AbstractContextManager[None]]) -> None:
    with no_descriptor_left():
        kernel.attempt(lambda: None)


def test_devices_that_are_none() -> None:
    assert kernel.try_kvm("/nowhere") == "absent"
    assert kernel.try_kvm("/dev/null").startswith("cannot create a virtual machine")
    assert "no_such_library" in kernel.try_library("no_such_library.so")
    assert kernel.try_library("libc.so.6") == "ok"
