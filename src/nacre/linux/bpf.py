"""Device programs of cgroup v2: loading, attaching and replacing them with bpf(2) (linux/bpf.h)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
_MOST = 64  # programs that the kernel attaches to one group (BPF_CGROUP_MAX_PROGS)
_LICENCE = b"Apache-2.0"


def replace_device_program(directory: str, code: bytes) -> None:
    """Have the cgroup v2 at `directory` obey this program (array of struct bpf_insn) and no other; b"" = none at all.

    At no moment is the group without any of them: the new one is attached before the old ones go. Raises OSError.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = [_call(_PROG_GET_FD_BY_ID, struct.pack("=I", identifier).ljust(64, b"\0")) for identifier in device_programs(group)]
        try:
            if code:
                _attach(group, code, old)
            for program in old:
                with contextlib.suppress(FileNotFoundError):
                    _call(_PROG_DETACH, struct.pack("=IIII", group, program, _ATTACH_CGROUP_DEVICE, 0))
        finally:
            for program in old:
                os.close(program)
    finally:
        os.close(group)


def device_programs(group: int) -> list[int]:
    """Identifiers of the device programs attached to the cgroup behind a descriptor, in the order they are run. Raises OSError."""
    found = (ctypes.c_uint32 * _MOST)()
    request = ctypes.create_string_buffer(
        struct.pack("=IIIIQI", group, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(found), _MOST).ljust(64, b"\0"), 64
    )
    try:
        _call(_PROG_QUERY, request)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return []  # before Linux 4.15
    count = struct.unpack_from("=I", request.raw, 24)[0]
    return [int(identifier) for identifier in found[:count]]


def _attach(group: int, code: bytes, old: list[int]) -> None:
    """Attach a new program; a single old one leaves `old` when the kernel exchanges the two (Linux 5.6)."""
    program = _load(code)
    try:
        if len(old) == 1:
            try:
                _call(_PROG_ATTACH, struct.pack("=IIIII", group, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI | _REPLACE, old[0]))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EPERM):
                    raise
            else:
                os.close(old.pop())
                return
        _call(_PROG_ATTACH, struct.pack("=IIII", group, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
    finally:
        os.close(program)


def _load(code: bytes) -> int:
    """Load a program; returns its descriptor."""
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENCE)
    attributes = struct.pack("=IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence))
    return _call(_PROG_LOAD, attributes.ljust(64, b"\0"))


def _call(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_BPF.get(os.uname().machine, 280)
    result = int(libc.syscall(ctypes.c_long(number), ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
