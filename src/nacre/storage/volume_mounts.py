"""Volumes that are mounts: the options type, device and o of Docker's local volume driver (docker volume create --opt).

Such a volume is mounted at its ``_data`` while a container uses it, by any number of them. Who does is written down in the run
directory, ``<run>/volumes/<name>/<container id>``, so that it ends with the boot, as mounts do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from nacre.errors import HostError, InvalidArgument
from nacre.linux.files import is_mount_point
from nacre.linux.kernel import mount
from nacre.model.plan import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_STRICTATIME,
)
from nacre.storage.fuse import unmount

_KNOWN = ("type", "device", "o")
_SYNC, _DIRSYNC, _NODIRATIME = 16, 128, 2048  # linux/mount.h
# Words of mount(8) that are flags of mount(2): set and cleared.
_FLAGS = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (_SYNC, 0),
    "async": (0, _SYNC),
    "dirsync": (_DIRSYNC, 0),
    "noatime": (MS_NOATIME, 0),
    "atime": (0, MS_NOATIME),
    "nodiratime": (_NODIRATIME, 0),
    "diratime": (0, _NODIRATIME),
    "relatime": (MS_RELATIME, 0),
    "strictatime": (MS_STRICTATIME, 0),
    "bind": (MS_BIND, 0),
    "rbind": (MS_BIND | MS_REC, 0),
    "defaults": (0, 0),
}
_OF_FILE = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | _NODIRATIME | MS_RELATIME | MS_STRICTATIME


def check_options(options: Mapping[str, str]) -> None:
    """Refuse what cannot be mounted. Raises InvalidArgument."""
    if "size" in options:
        raise InvalidArgument(
            "the size of a volume cannot be limited", hint="make one in memory: --opt type=tmpfs --opt device=tmpfs --opt o=size=100m"
        )
    for name in options:
        if name not in _KNOWN:
            raise InvalidArgument(f"invalid volume option: {name!r}", hint="type, device and o are known")
    if options:
        for name in ("type", "device"):
            if not options.get(name):
                raise InvalidArgument(f"missing required volume option: {name!r}", hint=_EXAMPLE)
    flags, _ = parse_flags(options.get("o", ""))
    if flags & MS_BIND and not options["device"].startswith("/"):
        raise InvalidArgument(f"the device of a bound volume must be an absolute path, not {options['device']!r}", hint=_EXAMPLE)
    if flags & MS_REMOUNT:
        raise InvalidArgument("a volume cannot be a remount")


_EXAMPLE = "a directory is --opt type=none --opt o=bind --opt device=/path"


def parse_flags(text: str) -> tuple[int, str]:
    """Flags of mount(2), and what is left for the file system, from a list of words as mount -o has it."""
    flags, rest = 0, []
    for word in filter(None, text.split(",")):
        if word in _FLAGS:
            added, removed = _FLAGS[word]
            flags = flags & ~removed | added
        else:
            rest.append(word)
    return flags, ",".join(rest)


def use(register: str, user: str, data: str, options: Mapping[str, str]) -> None:
    """Note a user of a volume in its register, a directory, and mount it at `data` unless it is. Raises OSError, HostError.

    The caller holds the volume's lock, as for `release`.
    """
    os.makedirs(register, 0o700, exist_ok=True)
    with open(f"{register}/{user}", "w", encoding="ascii"):
        pass
    if not is_mount_point(data):
        _mount(os.path.basename(register), data, options)


def release(register: str, gone: Callable[[str], bool], data: str) -> None:
    """Forget the users that are gone; unmount the volume when nobody is left. Idempotent. Raises OSError."""
    try:
        users = os.listdir(register)
    except FileNotFoundError:
        return
    for user in filter(gone, users):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{register}/{user}")
    if all(map(gone, users)):
        unmount(data)
        os.rmdir(register)


def _mount(name: str, data: str, options: Mapping[str, str]) -> None:
    flags, rest = parse_flags(options.get("o", ""))
    kind, device = options["type"], options["device"]
    if kind.startswith("nfs") or kind == "cifs":
        rest = _resolve(rest)
    try:
        mount(device, data, "" if flags & MS_BIND else kind, flags & ~_OF_FILE if flags & MS_BIND else flags, rest)
        if flags & MS_BIND and flags & _OF_FILE:
            mount("none", data, "", MS_REMOUNT | MS_BIND | flags & _OF_FILE)
    except OSError as error:
        unmount(data)
        words = " ".join(f"{key}={value}" for key, value in options.items())
        raise HostError(
            f"cannot mount volume {name}: {error.strerror}", hint="look at its options: nacre volume inspect " + name, details=words
        ) from error


def _resolve(text: str) -> str:
    """Options of a network file system with the name in addr= as an address: the kernel does not look up names."""
    import socket

    words = []
    for word in text.split(","):
        key, _, value = word.partition("=")
        if key == "addr":
            try:
                value = str(socket.getaddrinfo(value, None)[0][4][0])
            except OSError as error:
                raise HostError(
                    f"cannot find the address of {value}: {error.strerror}", hint="give its address: o=addr=192.0.2.1,..."
                ) from error
            word = f"addr={value}"
        words.append(word)
    return ",".join(words)
