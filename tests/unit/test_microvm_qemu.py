"""QEMU's command lines and the plan of its jail, compared with golden files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.errors import HostError
from nacre.isolation.microvm import jail, qemu
from nacre.isolation.microvm.jail import Confinement
from nacre.model.container import BoundMount, ContainerSpec, Level, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import Code, Spawn

Golden = Callable[[str, str], None]

BINDS = (
    BoundMount(target="/data", source="/srv/data"),
    BoundMount(target="/etc/one", source="/srv/one", is_dir=False, read_only=True),
)


def machine(accelerator: str = "tcg", transport: str = "cmdline", **values: object) -> qemu.Machine:
    made = qemu.Machine(
        program="/usr/bin/qemu-system-x86_64",
        accelerator=accelerator,
        kernel="/cache/vmlinux",
        transport=transport,
        initramfs="/cache/initramfs",
        append=qemu.append(accelerator, transport, 2596144, 1),
        memory=512,
    )
    return made.replace(**values)


def sandbox(**values: object) -> Sandbox:
    made = Sandbox(
        id="1" * 64,
        level=Level.VM,
        directory="/run/nacre/sandboxes/1",
        state="/var/lib/nacre/containers/1",
        hostname="box",
        rootfs=Rootfs(driver="erofs"),
        endpoint=Endpoint(network="bridge", netns="/run/nacre/netns/1", interface="eth0", mac="02:00:00:00:00:02"),
        spec=ContainerSpec(image="busybox", isolation=Level.VM),
        owner=1879048192,
    )
    return made.replace(**values)


def shown(argv: tuple[str, ...]) -> str:
    """One option and its value per line."""
    return " ".join(argv).replace(" -", "\n-") + "\n"


@pytest.mark.parametrize("transport", ["cmdline", "acpi", "pci"])
@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_command_line(golden: Golden, accelerator: str, transport: str) -> None:
    full = machine(
        accelerator, transport, channel=20, control=21, layers="/layers/disk.vmdk", disk=22, tap=23, mac="02:00:00:00:00:02", cpus=2
    )
    golden(f"microvm/qemu-{accelerator}-{transport}.txt", shown(qemu.command_line(full.replace(share="/binds"))))


def test_command_line_of_the_probe(golden: Golden) -> None:
    golden("microvm/qemu-probe.txt", shown(qemu.command_line(machine("kvm", channel=3))))


def test_the_fast_command_line_is_for_translated_guests_only() -> None:
    assert "tsc" not in qemu.append("kvm", "cmdline", 2596144, 1)
    assert "tsc" not in qemu.append("tcg", "cmdline", 0, 1)
    assert "tsc_early_khz=2596144 tsc=reliable" in qemu.append("tcg", "cmdline", 2596144, 1)
    assert "noapictimer" in qemu.append("tcg", "cmdline", 0, 1)
    # Several processors need their own timers, and a machine with ACPI has no other one.
    assert "noapictimer" not in qemu.append("tcg", "cmdline", 0, 2)
    assert "noapictimer" not in qemu.append("tcg", "acpi", 0, 1)


@pytest.mark.parametrize(
    "text", ["QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright", "QEMU emulator version 7.2.22"]
)
def test_version(tmp_path: Path, text: str) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    assert qemu.version(str(program)) == "7.2.22"


def test_a_program_that_is_not_qemu(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    with pytest.raises(HostError, match="does not tell its version"):
        qemu.version(str(program))


@pytest.fixture
def plain_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with merged /usr, whatever this one looks like."""
    links = {"/lib": "usr/lib", "/lib64": "usr/lib64"}
    monkeypatch.setattr(os.path, "islink", lambda path: path in links)
    monkeypatch.setattr(os, "readlink", lambda path: links[path])
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/usr")
    monkeypatch.setattr(os.path, "isfile", lambda path: path == "/etc/ld.so.cache")
    monkeypatch.setattr(os.path, "realpath", lambda path: path)


def record(spawn: Spawn) -> str:
    lines = [item.describe() for item in spawn.ops if item.code is not Code.EXEC]
    return "".join(f"{line}\n" for line in (f"clone {spawn.clone:#x}", *lines))


@pytest.mark.parametrize("who", list(Confinement), ids=lambda who: who.name.lower())
def test_jail(golden: Golden, plain_host: None, who: Confinement) -> None:
    files = jail.Files(
        kernel="/boot/vmlinuz",
        initramfs="/cache/initramfs",
        layers=("/run/d.vmdk", "/run/d.head", "/var/l1", "/run/d.tail"),
        disk="/var/upper.ext4",
        binds=() if who is Confinement.USER else BINDS,
    )
    inside = jail.inside(machine("kvm" if who is Confinement.USER else "tcg", mac="02:00:00:00:00:02"), files)
    user = 65535 if who is Confinement.OWNER else 0
    spawn = jail.spawn(sandbox(), inside, files, ["/sys/fs/cgroup/nacre/1/cgroup.procs"], who, user=user)
    assert (spawn.local, spawn.channel, spawn.console, spawn.log) == (True, True, True, "console.log")
    assert spawn.ops[-1].args[1:] == qemu.command_line(inside)
    golden(f"microvm/jail-{who.name.lower()}.plan", record(spawn))


def test_the_monitor_never_keeps_more_than_it_needs(plain_host: None) -> None:
    """Whoever it is: privileges are given up before the program runs, and nothing of the host's tree is writable but the binds."""
    for who in Confinement:
        files = jail.Files(kernel="/k", initramfs="/i", layers=("/a", "/b", "/c", "/d"), disk="/e", binds=BINDS)
        ops = jail.spawn(sandbox(), jail.inside(machine(), files), files, [], who).ops
        codes = [item.code for item in ops]
        last = [codes.index(code) for code in (Code.PIVOT, Code.BOUND, Code.CAPS, Code.NNP, Code.EXEC)]
        assert last == sorted(last)
        bound = next(item.args[0] for item in ops if item.code is Code.BOUND)
        assert bound == (0 if who is Confinement.USER else jail.FILE_CAPABILITIES)
        writable = [item.args[0] for item in ops if item.code is Code.BIND and not int(item.args[2]) & 1]
        assert writable == ["/srv/data"]


def test_mapping_trial_changes_nothing() -> None:
    spawn = jail.mapping_trial(sandbox(), BINDS)
    assert spawn.local
    assert not spawn.channel
    assert [item.code for item in spawn.ops].count(Code.IDMAP) == 2
    assert spawn.ops[-1].code is Code.BUILTIN


def test_a_program_of_ones_own_comes_with_its_directory(tmp_path: Path) -> None:
    program = tmp_path / "qemu" / "bin" / "qemu-system-x86_64"
    program.parent.mkdir(parents=True)
    program.touch()
    files = jail.Files(kernel="/k", initramfs="/i")
    ops = jail.spawn(sandbox(), jail.inside(machine(program=str(program)), files), files, [], Confinement.USER).ops
    assert str(tmp_path / "qemu") in [item.args[0] for item in ops if item.code is Code.BIND]
