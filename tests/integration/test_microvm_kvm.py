"""Hardware virtualisation on hosts that have none: our command line with KVM, inside an emulated machine with AMD-V.

The outer machine is QEMU's translator with a distribution kernel and kvm_amd; the inner one is started with exactly the words
that a host with a real KVM would use.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nacre.isolation.microvm import initramfs, kernels, qemu
from nacre.isolation.process import stem_path
from nacre.model.container import Level

HERE = Path(__file__).resolve().parent
NEEDED = ("virtio_pci", "virtio_blk", "erofs", "kvm_amd")


def outer_kernel() -> tuple[kernels.GuestKernel, tuple[str, ...]]:
    """A distribution kernel with kvm_amd, and the modules to load."""
    for name in kernels.names():
        found = kernels.find(name)
        tree = kernels.ModuleTree(f"/lib/modules/{found.version}")
        if all(module in tree for module in NEEDED):
            return found, tree.order(NEEDED)
    pytest.skip("no kernel with kvm_amd; run: apt-get install linux-image-cloud-amd64")


def closure(program: str) -> set[str]:
    """The program, its libraries and its firmware."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    accelerators = Path("/usr/lib/x86_64-linux-gnu/qemu").glob("accel-*")
    return {program, *re.findall(r"/\S+", listed), *map(str, accelerators)}


def make_tree(tree: Path, program: str, kernel: kernels.GuestKernel) -> None:
    for name in ("dev", "proc", "tmp", "boot", "usr/share"):
        (tree / name).mkdir(parents=True)
    for path in closure(program):
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in ("qemu", "seabios"):
        if Path(f"/usr/share/{name}").is_dir():
            shutil.copytree(f"/usr/share/{name}", tree / "usr/share" / name, ignore_dangling_symlinks=True)
    shutil.copy(kernel.path, tree / "boot/kernel")
    shutil.copy(initramfs.build(stem_path(), kernel.modules), tree / "boot/initramfs")
    machine = qemu.Machine(
        program=program,
        accelerator="kvm",
        kernel="/boot/kernel",
        transport=kernel.transport,
        initramfs="/boot/initramfs",
        append=qemu.append("kvm", kernel.transport, 0, 1),
        memory=192,
        channel=3,
    )
    (tree / "argv").write_bytes(b"".join(word.encode() + b"\0" for word in qemu.command_line(machine)))


def test_a_guest_on_kvm(vm: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer, modules = outer_kernel()
    program = shutil.which(qemu.PROGRAM)
    assert program
    make_tree(tmp_path / "tree", program, kernels.find())
    subprocess.run(["mkfs.erofs", str(tmp_path / "tree.erofs"), str(tmp_path / "tree")], check=True, capture_output=True)
    subprocess.run(["cc", "-O2", "-static", "-o", str(tmp_path / "init"), str(HERE / "kvm_host.c")], check=True)
    with monkeypatch.context() as patch:
        patch.setenv("NACRE_CACHE", str(tmp_path))
        archive = initramfs.build(str(tmp_path / "init"), modules)
    command = [
        program,
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "EPYC,+svm",
        "-m",
        "1024",
        "-nodefaults",
        "-no-user-config",
    ]
    command += ["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", outer.path, "-initrd", archive]
    command += ["-append", "console=ttyS0 quiet reboot=t panic=-1 no_timer_check"]
    command += [
        "-blockdev",
        f"driver=file,node-name=tree,filename={tmp_path}/tree.erofs,read-only=on",
        "-device",
        "virtio-blk-pci,drive=tree",
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    assert "GREETING 85" in done.stdout, done.stdout[-3000:] + done.stderr[-500:]
