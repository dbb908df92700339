"""The bare virtual machine that level vm is compared with: QEMU, a kernel, and an initramfs whose only program prints a line."""

from __future__ import annotations

import os
from pathlib import Path

LINE = b"ready"


def initramfs(program: Path, target: Path) -> Path:
    """A newc cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst) with `program` as /init and a console."""
    entries = [
        (b"dev", 0o040755, b"", (0, 0)),
        (b"dev/console", 0o020600, b"", (5, 1)),
        (b"init", 0o100755, program.read_bytes(), (0, 0)),
        (b"TRAILER!!!", 0, b"", (0, 0)),
    ]
    out = b""
    for number, (name, mode, data, (major, minor)) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
        out += header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)
    target.write_bytes(out)
    return target


def machine(kernel: Path, initrd: Path, accelerator: str, memory: int = 256) -> list[str]:
    """Command line of the bare machine: the board this kernel can use, a serial console, and nothing else."""
    minimal = kernel.name == "vmlinux"
    board = "microvm,acpi=off,rtc=on" if minimal else "q35"
    line = "console=ttyS0 quiet reboot=t panic=-1"
    return [
        "/usr/bin/qemu-system-x86_64",
        *("-machine", board, "-accel", accelerator, "-cpu", "max" if accelerator == "tcg" else "host", "-m", str(memory), "-smp", "1"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", line),
    ]


def cloud_kernel() -> Path | None:
    """The newest kernel of the distribution; it is the guest's kernel until a minimal one has been built."""
    found = sorted(Path("/boot").glob("vmlinuz-*"), key=os.path.getmtime)
    return found[-1] if found else None


def minimal_kernel() -> Path | None:
    """What `make guest-kernel` built."""
    path = Path(os.environ.get("NACRE_CACHE") or "/var/cache/nacre") / "kernels/current/vmlinux"
    return path.resolve() if path.exists() else None
