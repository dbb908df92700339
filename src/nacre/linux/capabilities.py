"""Capabilities as bit masks: names, Docker's default set, and what `--cap-add`, `--cap-drop` and `--privileged` make of it.

Sources: capabilities(7), linux/capability.h.
"""

from __future__ import annotations

from collections.abc import Iterable

from nacre.errors import InvalidArgument

# In the order of their bits.
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
_BITS = {name: bit for bit, name in enumerate(NAMES)}
ALL = (1 << len(NAMES)) - 1
NONE = 0

_DEFAULT_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
DEFAULT = sum(1 << _BITS[name] for name in _DEFAULT_NAMES)


def bit(name: str) -> int:
    """The mask of one capability; the prefix CAP_ and the case do not matter. Raises InvalidArgument."""
    number = _BITS.get(name.strip().upper().removeprefix("CAP_"))
    if number is None:
        raise InvalidArgument(f"unknown capability: {name}", hint="names are in capabilities(7), e.g. NET_ADMIN; ALL stands for every one")
    return 1 << number


def mask(names: Iterable[str]) -> int:
    """The mask of several capabilities; ALL stands for every one. Raises InvalidArgument."""
    result = NONE
    for name in names:
        result |= ALL if name.strip().upper().removeprefix("CAP_") == "ALL" else bit(name)
    return result


def names(value: int) -> tuple[str, ...]:
    """The names (``CAP_CHOWN`` ...) of the bits in a mask, in the order of the bits; unknown bits are left out."""
    return tuple(f"CAP_{name}" for number, name in enumerate(NAMES) if value >> number & 1)


def resolve(add: Iterable[str] = (), drop: Iterable[str] = (), privileged: bool = False, available: int | None = None) -> int:
    """The capabilities of a container: Docker's default set, changed as Docker changes it.

    `add` wins over `drop`, but ``--cap-add ALL --cap-drop X`` means all except X. available: what the host can give, by default
    what this process has; what it lacks is left out. Raises InvalidArgument for unknown names.
    """
    add, drop = tuple(add), tuple(drop)
    added, dropped = mask(add), mask(drop)
    limit = held() if available is None else available
    if privileged:
        return ALL & limit
    if added == ALL:
        named = mask(name for name in drop if name.strip().upper().removeprefix("CAP_") != "ALL")
        return ALL & ~named & limit
    return (DEFAULT & ~dropped | added) & limit


def held() -> int:
    """What this process may hand on: the capabilities that are both in its permitted and in its bounding set (proc(5))."""
    found = {"CapPrm": ALL, "CapBnd": ALL}
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value, 16)
    return found["CapPrm"] & found["CapBnd"]
