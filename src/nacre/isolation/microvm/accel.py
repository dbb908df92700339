"""What runs the guest's instructions: the processor itself (KVM) or QEMU's translator (TCG).

A /dev/kvm proves nothing: some hosts offer one on which no ordinary kernel boots. So a guest is booted once per boot of the
host, kernel and QEMU, and the verdict is kept in a file below the run directory, beside the frequency of the time stamp counter
that translated guests are told.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nacre.errors import HostError, InvalidArgument
from nacre.isolation.microvm import qemu
from nacre.isolation.microvm.kernels import GuestKernel
from nacre.linux.files import atomic_write
from nacre.linux.run import find_program, missing_program
from nacre.model.value import Value
from nacre.wire import stem as wire

if TYPE_CHECKING:
    from socket import socket

PROBE_SECONDS = 10.0
PROBE_MEMORY = 256
CHANNEL_FD = 3

_KVM_GET_API_VERSION = 0xAE00
_KVM_API = 12
_MEASURE_SECONDS = 0.05
# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")


class Accelerator(Value):
    """The choice. name: kvm or tcg; reason: why it is not kvm, "" when it is."""

    name: str
    reason: str = ""


class Facts:
    """What was found out about this host since it booted, kept in one small file that any number of engines may replace."""

    def __init__(self, run_directory: str) -> None:
        self.path = f"{run_directory}/probe-vm.json"
        self._boot = _read_text("/proc/sys/kernel/random/boot_id")
        self._data: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            with open(self.path, encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found, dict) and found.get("boot") == self._boot:
                self._data = found

    def get(self, key: str) -> Any:
        """A fact by its name, or None."""
        return self._data.get(key)

    def put(self, key: str, value: Any) -> None:
        """Add a fact. That it cannot be kept is no error: it will be found out again."""
        self._data = {**self._data, "boot": self._boot, key: value}
        with contextlib.suppress(OSError):
            atomic_write(self.path, json.dumps(self._data).encode(), fsync=False)


def find_qemu(facts: Facts) -> tuple[str, str]:
    """Path and version ("7.2.22") of the monitor; NACRE_QEMU names another one. Raises HostError when it is not installed."""
    name = os.environ.get("NACRE_QEMU") or qemu.PROGRAM
    path = find_program(name)
    if not path:
        raise missing_program(name)
    status = os.stat(path)
    key = f"version {path} {status.st_size} {status.st_mtime_ns}"
    version = facts.get(key)
    if not isinstance(version, str):
        version = qemu.version(path)
        facts.put(key, version)
    return path, version


def choose(kernel: GuestKernel, initramfs: str, facts: Facts) -> Accelerator:
    """The accelerator for this kernel. NACRE_ACCEL=kvm or tcg decides instead of the probe.

    Raises InvalidArgument for another value of NACRE_ACCEL, HostError when QEMU is missing.
    """
    wish = os.environ.get("NACRE_ACCEL", "")
    if wish == "kvm":
        return Accelerator(name="kvm")
    if wish == "tcg":
        return Accelerator(name="tcg", reason="NACRE_ACCEL=tcg")
    if wish:
        raise InvalidArgument(f"NACRE_ACCEL={wish}: no such accelerator", hint="set it to kvm or tcg, or leave it out")
    reason = kvm_obstacle() or _kept_verdict(kernel, initramfs, facts)
    return Accelerator(name="tcg", reason=f"kvm unusable: {reason}") if reason else Accelerator(name="kvm")


def kvm_obstacle(device: str = "/dev/kvm", modules: str = "/sys/module") -> str:
    """Why KVM cannot work here, as far as that is known without booting a guest; "" when nothing speaks against it."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return (
            f"there is no {device} (virtualisation is off in the firmware, hidden from this machine, or kvm_intel or kvm_amd is not loaded)"
        )
    except OSError as error:
        return f"cannot open {device}: {error.strerror}"
    try:
        api = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        return f"{device} does not answer: {error.strerror}"
    finally:
        os.close(fd)
    if api != _KVM_API:
        return f"{device} speaks API version {api}, not {_KVM_API}"
    if os.path.isdir(f"{modules}/kvm_pvm") and not any(os.path.isdir(f"{modules}/{name}") for name in ("kvm_intel", "kvm_amd")):
        return f"{device} is the paravirtual kvm_pvm, on which ordinary guest kernels do not boot"
    return ""


def _kept_verdict(kernel: GuestKernel, initramfs: str, facts: Facts) -> str:
    program, version = find_qemu(facts)
    status = os.stat(kernel.path)
    key = f"kvm {version} {kernel.path} {status.st_size} {status.st_mtime_ns}"
    reason = facts.get(key)
    if not isinstance(reason, str):
        reason = probe_kvm(program, kernel, initramfs)
        facts.put(key, reason)
    return reason


def probe_kvm(program: str, kernel: GuestKernel, initramfs: str, *, accelerator: str = "kvm") -> str:
    """Boot a guest that greets, and end it. Returns "" when it greeted within 10 s, else what happened instead."""
    machine = qemu.Machine(
        program=program,
        accelerator=accelerator,
        kernel=kernel.path,
        transport=kernel.transport,
        initramfs=initramfs,
        append=qemu.append(accelerator, kernel.transport, 0, 1),
        memory=PROBE_MEMORY,
        channel=CHANNEL_FD,
    )
    from socket import socketpair  # 2 ms of import that only a probe pays

    ours, theirs = socketpair()
    said, mouth = os.pipe2(os.O_CLOEXEC)
    with ours, theirs:
        try:
            pid = _spawn(qemu.command_line(machine), theirs.fileno(), mouth)
        except OSError as error:
            os.close(said)
            return f"cannot start {program}: {error.strerror}"
        finally:
            os.close(mouth)
        theirs.close()
        try:
            greeted, over = _await_greeting(ours, time.monotonic() + PROBE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            os.waitpid(pid, 0)
            text = _drain(said)
    if greeted:
        return ""
    last = text.strip().splitlines()[-1] if text.strip() else "it printed nothing"
    return f"a test guest {'ended early' if over else f'did not boot within {PROBE_SECONDS:g} s'}: {last}"


def _spawn(argv: Sequence[str], channel: int, output: int) -> int:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
        (os.POSIX_SPAWN_DUP2, channel, CHANNEL_FD),
    ]
    return os.posix_spawn(argv[0], list(argv), {}, file_actions=actions)


def _await_greeting(channel: socket, deadline: float) -> tuple[bool, bool]:
    """(the guest said READY, the monitor closed the channel)."""
    decoder = wire.Decoder()
    while (left := deadline - time.monotonic()) > 0 and select.select([channel], [], [], left)[0]:
        try:
            data = channel.recv(4096)
            if any(frame.type == wire.Type.READY for frame in decoder.feed(data)):
                return True, False
        except (OSError, ValueError):
            return False, True
        if not data:
            return False, True
    return False, False


def _drain(pipe: int) -> str:
    with open(pipe, "rb", buffering=0) as file:
        os.set_blocking(pipe, False)
        return (file.read(65536) or b"").decode(errors="replace")


# -- the time stamp counter --------------------------------------------------------------------------------------------


def tsc_khz(facts: Facts) -> int:
    """Frequency of the host's time stamp counter in kHz, which is a translated guest's too; 0 when it cannot be relied on.

    A translated guest has nothing to measure it by but an emulated timer, and gives up when the host is busy.
    """
    known = facts.get("tsc_khz")
    if not isinstance(known, int):
        known = _measure_tsc() if _steady_tsc() else 0
        facts.put("tsc_khz", known)
    return known


def _steady_tsc() -> bool:
    flags = _read_text("/proc/cpuinfo").partition("\nflags")[2].partition("\n")[0].split()
    return "constant_tsc" in flags and "nonstop_tsc" in flags


def _measure_tsc() -> int:
    """Count for 50 ms. The kernel's raw clock comes from the same counter, so the result is what the kernel takes it for."""
    import ctypes
    import mmap

    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0
    code.write(_RDTSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def sample() -> tuple[int, int]:
        best = None
        for _ in range(16):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            ticks = read()
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, ticks)
        assert best is not None
        return best[1], best[2]

    start = sample()
    time.sleep(_MEASURE_SECONDS)
    end = sample()
    return round((end[1] - start[1]) * 1_000_000 / (end[0] - start[0]))


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", hint="mount -t proc proc /proc") from error
