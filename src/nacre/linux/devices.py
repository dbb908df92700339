"""Which device nodes a control group may use: rules, their text for cgroup v1, their eBPF program for cgroup v2.

Sources: the kernel's admin-guide/cgroup-v1/devices.rst and admin-guide/cgroup-v2.rst ("Device controller"); bpf(2); the OCI
runtime specification, config-linux.md, "Default Devices" and "Allowed Device list".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from nacre.errors import HostError, InvalidArgument
from nacre.model.value import Value

_ANY = -1
_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

# bpf(2): numbers of the user interface (linux/bpf.h).
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2


class DeviceRule(Value):
    """One permission. kind: b or c; major, minor: -1 = any; access: letters of r (read), w (write), m (mknod)."""

    kind: str
    major: int = _ANY
    minor: int = _ANY
    access: str = "rwm"

    def __str__(self) -> str:
        return f"{self.kind} {_number(self.major)}:{_number(self.minor)} {self.access}"


# Making nodes is harmless as long as they cannot be opened, and package managers do it.
DEFAULT_DEVICES: tuple[DeviceRule, ...] = (
    DeviceRule(kind="c", access="m"),
    DeviceRule(kind="b", access="m"),
    *(DeviceRule(kind="c", major=1, minor=minor) for minor in (3, 5, 7, 8, 9)),  # null zero full random urandom
    *(DeviceRule(kind="c", major=5, minor=minor) for minor in (0, 1, 2)),  # tty console ptmx
    DeviceRule(kind="c", major=136),  # pts/*
)


def rule_for(path: str, access: str = "rwm") -> DeviceRule:
    """The rule that permits one device of this host, by the path of its node. Raises InvalidArgument when it is no device."""
    import stat

    try:
        found = os.stat(path)
    except OSError as error:
        raise InvalidArgument(f"cannot use device {path}: {os.strerror(error.errno or 0)}") from error
    kinds = {stat.S_IFBLK: "b", stat.S_IFCHR: "c"}
    kind = kinds.get(stat.S_IFMT(found.st_mode))
    if kind is None:
        raise InvalidArgument(f"{path} is not a device node")
    if not access or set(access) - set(_ACCESS):
        raise InvalidArgument(f"invalid device access {access!r}", hint="letters of r (read), w (write) and m (mknod)")
    return DeviceRule(kind=kind, major=os.major(found.st_rdev), minor=os.minor(found.st_rdev), access=access)


def program(rules: Sequence[DeviceRule]) -> bytes:
    """An eBPF program (array of struct bpf_insn) that permits what one of the rules permits and nothing else.

    Its context is struct bpf_cgroup_dev_ctx: u32 access << 16 | kind, u32 major, u32 minor.
    """
    code = [
        _instruction(0x61, 2, 1, 0),  # r2 = access and kind
        _instruction(0x61, 4, 1, 4),  # r4 = major
        _instruction(0x61, 5, 1, 8),  # r5 = minor
        _instruction(0xBF, 3, 2),  # r3 = r2
        _instruction(0x57, 2, 0, 0, 0xFFFF),  # r2 &= 0xffff, the kind
        _instruction(0x77, 3, 0, 0, 16),  # r3 >>= 16, the access
    ]
    for rule in rules:
        code += _match(rule)
    code += [_instruction(0xB7, 0), _instruction(0x95)]  # return 0
    return b"".join(code)


def _match(rule: DeviceRule) -> list[bytes]:
    """Return 1 when every condition holds, else jump over this block."""
    tests: list[tuple[int, int, int]] = [(0x55, 2, _KINDS[rule.kind])]  # kind differs
    refused = 7 & ~sum(_ACCESS[letter] for letter in set(rule.access))
    if refused:
        tests.append((0x45, 3, refused))  # an access bit that the rule does not have
    tests += [(0x55, register, number) for register, number in ((4, rule.major), (5, rule.minor)) if number != _ANY]
    block = [_instruction(opcode, register, 0, len(tests) - place + 1, value) for place, (opcode, register, value) in enumerate(tests)]
    return [*block, _instruction(0xB7, 0, 0, 0, 1), _instruction(0x95)]


def attach(directory: str, rules: Sequence[DeviceRule]) -> None:
    """Load the program of `rules` and attach it to the cgroup v2 at `directory`; it stays until the group is removed.

    Raises HostError when the kernel refuses (no CAP_SYS_ADMIN or CAP_BPF, no CONFIG_CGROUP_BPF).
    """
    code = program(rules)
    try:
        loaded = _load(code)
        try:
            group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _bpf(_PROG_ATTACH, struct.pack("=IIII", group, loaded, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
            finally:
                os.close(group)
        finally:
            os.close(loaded)
    except OSError as error:
        raise HostError(
            f"cannot restrict the devices of cgroup {directory}: {os.strerror(error.errno or 0)}",
            hint="needs root and a kernel with CONFIG_CGROUP_BPF; --privileged does without the restriction",
        ) from error


def _load(code: bytes) -> int:
    """Load a program; returns its descriptor."""
    import ctypes

    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)
    ).ljust(64, b"\0")
    return _bpf(_PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2). Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_BPF.get(os.uname().machine, 280)
    result = int(libc.syscall(ctypes.c_long(number), ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _instruction(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One struct bpf_insn: opcode, two registers, jump or memory offset, immediate value."""
    return struct.pack("<BBhi", opcode, dst | src << 4, offset, value)


def _number(value: int) -> str:
    return "*" if value == _ANY else str(value)
