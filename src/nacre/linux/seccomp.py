"""Seccomp filters: classic BPF from the default profile or from profiles in Docker's JSON format.

The default permits what Docker's default profile permits (docs.docker.com, "Seccomp security profiles for Docker"): a list of
harmless system calls, more for containers with more capabilities, EPERM for the rest. System calls younger than the profile get
ENOSYS, so that C libraries fall back to older ones instead of failing. io_uring is refused.

libseccomp compiles (`nacre.linux.seccomp_profile`, loaded only then); the result is kept in a cache directory, so that the usual
start of a container reads one file.
"""

from __future__ import annotations

import os
import struct
import time

from nacre.errors import InvalidArgument
from nacre.version import VERSION


def program(profile: str, caps: int, *, cache: str = "", kernel: str = "", listener: bool = False) -> bytes:
    """The filter of a container as an array of struct sock_filter; b"" for "unconfined".

    profile: "" or "default" or "builtin" (ours), "unconfined", a profile in Docker's JSON format, or the path of one.
    caps: the container's capabilities as a mask. cache: directory for compiled filters, "" = none.
    kernel: release that the filter will run on ("6.1.0-...") for rules that ask for one, "" = this host's.
    listener: somebody will answer what the profile refers to a listener.
    Raises InvalidArgument for a bad profile, HostError when libseccomp is needed and missing.
    """
    if profile == "unconfined":
        return b""
    machine = os.uname().machine
    if profile in ("", "default", "builtin"):
        key = f"default-{machine}-{_edition()}-{caps:x}"
        return _cached(cache, key) or _make_default(cache, key, caps, machine)
    text = load(profile)
    release = kernel or os.uname().release
    key = _digest(b"\0".join((text, machine.encode(), release.encode(), _edition().encode(), b"%x" % caps)))
    name = "" if is_text(profile) else profile
    if listener:
        from nacre.linux import seccomp_profile

        parsed = seccomp_profile.parse(text, machine, caps, release, name, listener=True)
        return seccomp_profile.compile_profile(parsed, machine)
    return _cached(cache, key) or _make_from(text, cache, key, caps, machine, release, name)


def flags(profile: str) -> int:
    """The flags that a profile wants its filter to be set with (seccomp(2)). Raises InvalidArgument."""
    if profile in ("", "default", "builtin", "unconfined"):
        return 0
    from nacre.linux import seccomp_profile

    return seccomp_profile.parse_flags(load(profile))


def is_text(profile: str) -> bool:
    """Whether a profile is given as its content rather than by its path."""
    return profile.lstrip()[:1] == "{"


def _digest(data: bytes) -> str:
    try:
        from _blake2 import blake2b  # without the rest of hashlib, which loads OpenSSL: 4 ms
    except ImportError:
        from hashlib import blake2b
    return str(blake2b(data, digest_size=32).hexdigest())


def _edition() -> str:
    """Names our profile as it is now: a filter made from another edition of it is not used. Cheaper than loading it."""
    try:
        source = os.stat(f"{os.path.dirname(__file__)}/seccomp_profile.py")
    except OSError:
        return VERSION
    return f"{source.st_mtime_ns:x}-{source.st_size:x}"


_LARGEST = 1 << 20  # bytes of a profile; Docker's own has 14 thousand


def load(profile: str) -> bytes:
    """The content of a profile that is given as such or by its path. Raises InvalidArgument."""
    if is_text(profile):
        return profile.encode()
    path = profile
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise InvalidArgument(f"seccomp profile {path} is larger than {_LARGEST >> 20} MiB")
        return text
    except OSError as error:
        raise InvalidArgument(
            f"opening seccomp profile ({path}) failed: {os.strerror(error.errno or 0)}",
            hint="default, unconfined or the path of a JSON file",
        ) from error


def _make_default(cache: str, key: str, caps: int, machine: str) -> bytes:
    from nacre.linux import seccomp_profile

    return _store(cache, key, seccomp_profile.compile_profile(seccomp_profile.default_profile(machine, caps), machine))


def _make_from(text: bytes, cache: str, key: str, caps: int, machine: str, kernel: str, name: str) -> bytes:
    from nacre.linux import seccomp_profile

    return _store(cache, key, seccomp_profile.compile_profile(seccomp_profile.parse(text, machine, caps, kernel, name), machine))


# The cache: a header that a torn write cannot fake, then the program.

_MAGIC = b"NACREBPF"
_PRIME = (1 << 61) - 1


def _header(body: bytes) -> bytes:
    # A remainder by a prime serves as checksum: no module to load.
    return _MAGIC + struct.pack("<QQ", len(body), int.from_bytes(body, "little") % _PRIME)


def _cached(cache: str, key: str) -> bytes:
    """The compiled filter, or b"" when there is none that is whole."""
    if not cache:
        return b""
    try:
        with open(f"{cache}/{key}.bpf", "rb", buffering=0) as file:
            data = file.read()
    except OSError:
        return b""
    body = data[24:]
    return body if body and data[:24] == _header(body) else b""


def _store(cache: str, key: str, body: bytes) -> bytes:
    """Keep a compiled filter, and return it. A cache that cannot be written costs time later, nothing else."""
    if not cache:
        return body
    temporary = f"{cache}/.{key}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        os.makedirs(cache, mode=0o700, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(_header(body) + body)
        os.replace(temporary, f"{cache}/{key}.bpf")
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return body
