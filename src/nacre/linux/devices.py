"""Which device nodes a control group may use: rules, the list of cgroup v1 and the eBPF program of cgroup v2 that they come to.

Rules are read in order. A request (read a device, write it, make its node, or several at once) is permitted when for each kind of
access the last rule that matches permits it; where none matches, it is refused. Sources: the kernel's
admin-guide/cgroup-v1/devices.rst and admin-guide/cgroup-v2.rst ("Device controller"); the OCI runtime specification,
config-linux.md, "Default Devices" and "Allowed Device list".
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from nacre.errors import HostError, InvalidArgument, Unsupported
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ANY = -1
_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_EVERY = 7
_LARGEST = (1 << 32) - 1

# (kind, major, minor) -> access bits.
Exceptions = dict[tuple[str, int, int], int]


class DeviceRule(Value):
    """One rule. kind: b or c, or a: every device and access, whatever the rest says (devices.rst); major, minor: -1 = any;
    access: letters of r (read), w (write), m (mknod).
    """

    kind: str
    major: int = ANY
    minor: int = ANY
    access: str = "rwm"
    allow: bool = True

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
    _check_access(access)
    return DeviceRule(kind=kind, major=os.major(found.st_rdev), minor=os.minor(found.st_rdev), access=access)


def _check_access(access: object) -> None:
    if not isinstance(access, str) or not access or set(access) - set(_ACCESS):
        raise InvalidArgument(f"invalid device access {access!r}", hint="letters of r (read), w (write) and m (mknod)")


def parse_rule(text: str) -> DeviceRule:
    """A rule as `--device-cgroup-rule` takes it: ``c 42:* rmw``. Raises InvalidArgument."""
    words = text.split()
    numbers = words[1].split(":") if len(words) == 3 else []
    if len(numbers) != 2 or words[0] not in ("a", "b", "c") or not all(word == "*" or word.isdecimal() for word in numbers):
        raise InvalidArgument(f"invalid device cgroup format '{text}'", hint="as in: c 42:* rmw")
    _check_access(words[2])
    major, minor = (ANY if word == "*" else int(word) for word in numbers)
    if words[0] == "a":
        return DeviceRule(kind="a")
    return DeviceRule(kind=words[0], major=major, minor=minor, access=words[2])


def rules_of(entries: object) -> tuple[DeviceRule, ...]:
    """Rules of the OCI `linux.resources.devices`, then those of the devices every container has. Raises InvalidArgument."""
    if entries is None:
        return DEFAULT_DEVICES
    if not isinstance(entries, list | tuple):
        raise InvalidArgument("linux.resources.devices: expected a list")
    return (*(_rule_of(entry) for entry in entries), *DEFAULT_DEVICES)


def _rule_of(entry: Any) -> DeviceRule:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("allow"), bool):
        raise InvalidArgument(f"linux.resources.devices: {entry!r} needs a boolean 'allow'")
    kind = entry.get("type") or "a"
    if kind not in ("a", "b", "c", "u", "p"):
        raise InvalidArgument(f"linux.resources.devices: unknown type {kind!r}", hint="a, b, c, u or p")
    numbers = [_device_number(entry.get(name), name) for name in ("major", "minor")]
    access = entry.get("access") or "rwm"
    _check_access(access)
    if kind == "p":
        raise InvalidArgument("linux.resources.devices: a FIFO (type p) is no device that can be allowed or denied")
    if kind == "a":  # numbers and access say nothing then (devices.rst)
        return DeviceRule(kind="a", allow=entry["allow"])
    return DeviceRule(kind="c" if kind == "u" else kind, major=numbers[0], minor=numbers[1], access=access, allow=entry["allow"])


def _device_number(value: object, name: str) -> int:
    if value is None:
        return ANY
    if isinstance(value, bool) or not isinstance(value, int) or not ANY <= value <= _LARGEST:
        raise InvalidArgument(f"linux.resources.devices: {name} {value!r} is out of range")
    return value


def permits_all(rules: Sequence[DeviceRule]) -> bool:
    """Is every device open? The last rule about all devices permits it and none after it forbids anything."""
    for rule in reversed(rules):
        if not rule.allow:
            return False
        if rule.kind == "a":
            return True
    return False


# cgroup v1: a default and the exceptions from it


def exceptions(rules: Sequence[DeviceRule]) -> tuple[bool, Exceptions]:
    """What the rules come to as v1 keeps it: whether everything is permitted, and the exceptions from that.

    Raises Unsupported for a rule that makes a hole in a wider one, which v1 would ignore without a word.
    """
    everything, found = False, Exceptions()
    for rule in rules:
        bits = _bits(rule.access)
        key = (rule.kind, rule.major, rule.minor)
        if rule.kind == "a":
            everything, found = rule.allow, Exceptions()
        elif rule.allow is everything:
            _close(found, key, bits, rule)
        else:
            found[key] = found.get(key, 0) | bits
    return everything, found


def _close(found: Exceptions, key: tuple[str, int, int], bits: int, rule: DeviceRule) -> None:
    """Take bits out of the exceptions that a rule covers; an exception that is wider than the rule cannot be cut into."""
    for other in list(found):
        covers = other[0] == key[0] and all(mine in (ANY, theirs) for mine, theirs in zip(key[1:], other[1:], strict=True))
        meets = other[0] == key[0] and all(ANY in (mine, theirs) or mine == theirs for mine, theirs in zip(key[1:], other[1:], strict=True))
        if covers:
            found[other] &= ~bits
            if not found[other]:
                del found[other]
        elif meets and found[other] & bits:
            verb = "allow" if rule.allow else "deny"
            raise Unsupported(
                f"cgroup v1 cannot {verb} {rule}: an earlier rule, {_line(other, found[other])}, is wider",
                hint="name the devices one by one, or boot with cgroup v2",
            )


def restrict_v1(directory: str, rules: Sequence[DeviceRule]) -> None:
    """Bring the v1 group at `directory` to these rules, writing what differs from its present list. Raises HostError, Unsupported."""
    everything, wanted = exceptions(rules)
    now_everything, now = _listed(directory)
    try:
        if everything or now_everything:
            _write(f"{directory}/devices.{'allow' if everything else 'deny'}", "a")
            now = {}
        more, less = ("deny", "allow") if everything else ("allow", "deny")
        for key, bits in now.items():
            if surplus := bits & ~wanted.get(key, 0):
                _write(f"{directory}/devices.{less}", _line(key, surplus))
        for key, bits in wanted.items():
            if missing := bits & ~now.get(key, 0):
                _write(f"{directory}/devices.{more}", _line(key, missing))
    except OSError as error:
        raise HostError(
            f"cannot restrict the devices of cgroup {directory}: {os.strerror(error.errno or 0)}",
            hint="a group cannot have a device that the group above it does not have",
        ) from error


def _listed(directory: str) -> tuple[bool, Exceptions]:
    """What devices.list shows: everything, or the exceptions. What a list of exceptions from "everything" is, it does not show."""
    found = Exceptions()
    try:
        with open(f"{directory}/devices.list", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return True, {}
    for line in lines:
        kind, numbers, access = line.split()
        if kind == "a":
            return True, {}
        major, minor = (ANY if word == "*" else int(word) for word in numbers.split(":"))
        found[(kind, major, minor)] = found.get((kind, major, minor), 0) | _bits(access)
    return False, found


def _line(key: tuple[str, int, int], bits: int) -> str:
    access = "".join(letter for letter in "rwm" if bits & _ACCESS[letter])
    return str(DeviceRule(kind=key[0], major=key[1], minor=key[2], access=access))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# cgroup v2: a program


def program(rules: Sequence[DeviceRule]) -> bytes:
    """The eBPF program (array of struct bpf_insn) that answers as the rules do: 1 = permitted, 0 = refused.

    Its context is struct bpf_cgroup_dev_ctx: u32 access << 16 | kind, u32 major, u32 minor. r3 holds the access bits that no rule
    has decided yet; rules are tried from the last to the first, and what the first of them permits is taken out of r3.
    """
    code = [
        _instruction(0x61, 2, 1, 0),  # r2 = access and kind
        _instruction(0x61, 4, 1, 4),  # r4 = major
        _instruction(0x61, 5, 1, 8),  # r5 = minor
        _instruction(0xBF, 3, 2),  # r3 = r2
        _instruction(0x57, 2, 0, 0, 0xFFFF),  # r2 &= 0xffff, the kind
        _instruction(0x77, 3, 0, 0, 16),  # r3 >>= 16, the access
    ]
    for rule in reversed(rules):
        code += _match(rule)
        if rule.kind == "a":
            return b"".join(code)  # nothing is left undecided
    code += [_instruction(0xB7, 0), _instruction(0x95)]  # return 0
    return b"".join(code)


def _match(rule: DeviceRule) -> list[bytes]:
    """Tests that jump over the block, then the verdict for the bits that the rule is about."""
    if rule.kind == "a":
        return [_instruction(0xB7, 0, 0, 0, int(rule.allow)), _instruction(0x95)]
    bits = _bits(rule.access)
    tests: list[tuple[int, int, int]] = [(0x55, 2, _KINDS[rule.kind])]  # kind differs
    tests += [(0x55, register, _signed(number)) for register, number in ((4, rule.major), (5, rule.minor)) if number != ANY]
    if rule.allow and bits == _EVERY:
        verdict = [_instruction(0xB7, 0, 0, 0, 1), _instruction(0x95)]  # return 1
    elif rule.allow:
        verdict = [
            _instruction(0x57, 3, 0, 0, _EVERY & ~bits),  # r3 &= the others
            _instruction(0x55, 3, 0, 2, 0),  # some are left: go on
            _instruction(0xB7, 0, 0, 0, 1),
            _instruction(0x95),
        ]
    elif bits == _EVERY:
        verdict = [_instruction(0xB7, 0), _instruction(0x95)]  # return 0
    else:
        verdict = [
            _instruction(0x45, 3, 0, 1, bits),  # some of these are asked for: refuse
            _instruction(0x05, 0, 0, 2),  # go on
            _instruction(0xB7, 0),
            _instruction(0x95),
        ]
    steps = len(tests) + len(verdict)
    return [*(_instruction(opcode, register, 0, steps - at - 1, value) for at, (opcode, register, value) in enumerate(tests)), *verdict]


def restrict_v2(directory: str, rules: Sequence[DeviceRule]) -> None:
    """Put the program of the rules in the place of those that the v2 group at `directory` has; it stays until the group is removed.

    Raises HostError when the kernel refuses (no CAP_SYS_ADMIN or CAP_BPF, no CONFIG_CGROUP_BPF).
    """
    from nacre.linux import bpf

    try:
        bpf.replace_device_program(directory, b"" if permits_all(rules) else program(rules))
    except OSError as error:
        raise HostError(
            f"cannot restrict the devices of cgroup {directory}: {os.strerror(error.errno or 0)}",
            hint="needs root and a kernel with CONFIG_CGROUP_BPF; --privileged does without the restriction",
        ) from error


def _bits(access: str) -> int:
    return sum(_ACCESS[letter] for letter in set(access))


def _signed(value: int) -> int:
    """As the immediate operand of a 64-bit comparison; device numbers of Linux are far below 2^31."""
    return value if value < 1 << 31 else value - (1 << 32)


def _instruction(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One struct bpf_insn: opcode, two registers, jump or memory offset, immediate value."""
    import struct

    return struct.pack("<BBhi", opcode, dst | src << 4, offset, value)


def _number(value: int) -> str:
    return "*" if value == ANY else str(value)
