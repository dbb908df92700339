"""The default filter under the real kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from nacre.linux import capabilities, seccomp

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
LIBC = ctypes.CDLL(None, use_errno=True)


def confined(program: bytes, body: Callable[[], int]) -> int:
    """Exit code of `body` in a child under the filter."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        buffer = ctypes.create_string_buffer(program, len(program))

        class Fprog(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

        fprog = Fprog(len(program) // 8, ctypes.addressof(buffer))
        if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.syscall(317, 1, 0, ctypes.byref(fprog)):
            os._exit(90)
        os._exit(body())
    finally:
        os._exit(91)


def failure(number: int, *arguments: int) -> int:
    """Errno of a system call, 0 on success."""
    return ctypes.get_errno() if LIBC.syscall(number, *map(ctypes.c_ulong, arguments)) < 0 else 0


def test_the_kernel_takes_the_default_filter() -> None:
    program = seccomp.program("default", capabilities.DEFAULT)

    def body() -> int:
        assert failure(165, 0, 0, 0, 0, 0) == errno.EPERM  # mount
        assert failure(272, 0x10000000) == errno.EPERM  # unshare(CLONE_NEWUSER)
        assert failure(435, 0, 0) == errno.ENOSYS  # clone3
        assert failure(999) == errno.ENOSYS
        assert failure(425, 1, 0) == errno.EPERM  # io_uring_setup
        assert failure(135, 0xFFFFFFFF) == 0  # personality, query
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        try:
            socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        except PermissionError:
            return subprocess.run(["/bin/sh", "-c", "echo through | cat > /dev/null"], check=False).returncode
        return 1

    assert confined(program, body) == 0


def test_sys_admin_may_unshare() -> None:
    program = seccomp.program("default", capabilities.DEFAULT | capabilities.bit("SYS_ADMIN"))
    assert confined(program, lambda: failure(272, 0x10000000)) == 0
