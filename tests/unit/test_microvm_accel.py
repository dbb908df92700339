"""Choosing the accelerator: obstacles, the kept verdict, the override; facts about the host that outlive a process."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from nacre.errors import HostError, InvalidArgument
from nacre.isolation.microvm import accel
from nacre.isolation.microvm.kernels import GuestKernel
from nacre.wire import stem as wire


@pytest.fixture
def kernel(tmp_path: Path) -> GuestKernel:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"kernel")
    return GuestKernel(path=str(path), version="6.1", kind="pvh")


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "qemu-test"
    program.write_text(f"#!/bin/sh\necho called >>{tmp_path}/calls\necho 'QEMU emulator version 8.1.2'\n")
    program.chmod(0o755)
    monkeypatch.setenv("NACRE_QEMU", str(program))
    monkeypatch.delenv("NACRE_ACCEL", raising=False)
    return program


def test_override(kernel: GuestKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = accel.Facts(str(tmp_path))
    monkeypatch.setenv("NACRE_ACCEL", "kvm")
    assert accel.choose(kernel, "", facts) == accel.Accelerator(name="kvm")
    monkeypatch.setenv("NACRE_ACCEL", "tcg")
    assert accel.choose(kernel, "", facts).name == "tcg"
    monkeypatch.setenv("NACRE_ACCEL", "xen")
    with pytest.raises(InvalidArgument, match="NACRE_ACCEL=xen"):
        accel.choose(kernel, "", facts)


def test_a_known_obstacle_needs_no_test_guest(kernel: GuestKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NACRE_ACCEL", raising=False)
    monkeypatch.setattr(accel, "kvm_obstacle", lambda: "no such luck")
    monkeypatch.setattr(accel, "probe_kvm", lambda *_: pytest.fail("booted"))
    assert accel.choose(kernel, "", accel.Facts(str(tmp_path))) == accel.Accelerator(name="tcg", reason="kvm unusable: no such luck")


@pytest.mark.parametrize(("verdict", "name"), [("", "kvm"), ("a test guest hung", "tcg")])
def test_one_test_guest_per_boot_kernel_and_monitor(
    kernel: GuestKernel, qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, name: str
) -> None:
    booted: list[str] = []
    monkeypatch.setattr(accel, "kvm_obstacle", lambda: "")

    def probe(program: str, kernel: GuestKernel, initramfs: str) -> str:
        booted.append(kernel.path)
        return verdict

    monkeypatch.setattr(accel, "probe_kvm", probe)
    for _ in range(2):
        choice = accel.choose(kernel, "", accel.Facts(str(tmp_path)))
        assert choice.name == name
        assert verdict in choice.reason
    assert len(booted) == 1
    Path(kernel.path).write_bytes(b"another kernel")
    accel.choose(kernel, "", accel.Facts(str(tmp_path)))
    assert len(booted) == 2
    qemu.write_text(qemu.read_text().replace("8.1.2", "8.1.3"))
    accel.choose(kernel, "", accel.Facts(str(tmp_path)))
    assert len(booted) == 3


def test_obstacles(tmp_path: Path) -> None:
    assert "there is no" in accel.kvm_obstacle(str(tmp_path / "kvm"))
    (tmp_path / "kvm").touch()
    assert "does not answer" in accel.kvm_obstacle(str(tmp_path / "kvm"))
    if os.geteuid():
        (tmp_path / "kvm").chmod(0)
        assert "cannot open" in accel.kvm_obstacle(str(tmp_path / "kvm"))


@pytest.mark.parametrize(
    ("modules", "answer", "obstacle"),
    [
        (["kvm_intel"], 12, ""),
        (["kvm_amd", "kvm_pvm"], 12, ""),
        (["kvm_pvm"], 12, "kvm_pvm"),
        (["kvm_intel"], 11, "version 11"),
        ([], 12, ""),
    ],
)
def test_a_kvm_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: list[str], answer: int, obstacle: str) -> None:
    (tmp_path / "kvm").touch()
    for name in modules:
        (tmp_path / name).mkdir()
    monkeypatch.setattr("fcntl.ioctl", lambda *_: answer)
    found = accel.kvm_obstacle(str(tmp_path / "kvm"), str(tmp_path))
    assert obstacle in found
    assert bool(found) is bool(obstacle)


def test_the_monitor_is_asked_once(qemu: Path, tmp_path: Path) -> None:
    assert accel.find_qemu(accel.Facts(str(tmp_path))) == (str(qemu), "8.1.2")
    assert accel.find_qemu(accel.Facts(str(tmp_path))) == (str(qemu), "8.1.2")
    assert (tmp_path / "calls").read_text() == "called\n"


def test_no_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACRE_QEMU", str(tmp_path / "none"))
    with pytest.raises(HostError, match="not installed"):
        accel.find_qemu(accel.Facts(str(tmp_path)))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"boot": "another boot", "x": 1}', '{"x": 1}', "\udcff"])
def test_facts_of_another_boot_or_damaged_ones_are_dropped(tmp_path: Path, content: str) -> None:
    facts = accel.Facts(str(tmp_path))
    Path(facts.path).write_bytes(content.encode(errors="surrogateescape"))
    fresh = accel.Facts(str(tmp_path))
    assert fresh.get("x") is None
    fresh.put("y", 2)
    assert accel.Facts(str(tmp_path)).get("y") == 2


def test_facts_that_cannot_be_kept_are_no_error(tmp_path: Path) -> None:
    facts = accel.Facts(str(tmp_path / "gone"))
    facts.put("x", 1)
    assert facts.get("x") == 1


def test_tsc_is_measured_once_and_only_when_steady(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_steady_tsc", lambda: True)
    monkeypatch.setattr(accel, "_measure_tsc", lambda: 2596144)
    assert accel.tsc_khz(accel.Facts(str(tmp_path))) == 2596144
    monkeypatch.setattr(accel, "_measure_tsc", lambda: 1)
    assert accel.tsc_khz(accel.Facts(str(tmp_path))) == 2596144
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(accel, "_steady_tsc", lambda: False)
    assert accel.tsc_khz(accel.Facts(str(other))) == 0
    assert json.loads((other / "probe-vm.json").read_text())["tsc_khz"] == 0


def test_probe_of_a_monitor_that_fails(kernel: GuestKernel, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'Could not access KVM kernel module' >&2\nexit 1\n")
    program.chmod(0o755)
    assert accel.probe_kvm(str(program), kernel, "") == "a test guest ended early: Could not access KVM kernel module"
    assert "cannot start" in accel.probe_kvm(str(tmp_path / "none"), kernel, "")


def test_probe_of_a_guest_that_greets(kernel: GuestKernel, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    ready = wire.encode(wire.Frame(wire.Type.READY, 0, 0, 0, struct.pack("<II1sQ", 1, 1, b"x", 1)))
    (tmp_path / "ready").write_bytes(ready)
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/ready >&3\nexec sleep 60\n")
    program.chmod(0o755)
    assert accel.probe_kvm(str(program), kernel, "") == ""


def test_probe_of_a_guest_that_hangs(kernel: GuestKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'Booting'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(accel, "PROBE_SECONDS", 0.2)
    assert accel.probe_kvm(str(program), kernel, "") == "a test guest did not boot within 0.2 s: Booting"
