"""Network namespaces that have a name in the file system: made, entered from a thread, removed (network_namespaces(7)).

The calling thread never leaves its own namespace: what has to happen in another one happens in a fresh thread, which is gone
afterwards. A netlink socket stays in the namespace it was opened in and can be used from any thread.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable

from nacre.errors import Denied, HostError, NoSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000

# What Docker sets in every container, so that servers that are not root can bind port 80 and ping works for everybody; and no
# IPv6 on interfaces that nobody will give an IPv6 address (::1 stays).
DEFAULT_SYSCTLS = {
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv4/ping_group_range": "0 2147483647",
    "net/ipv6/conf/default/disable_ipv6": "1",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a fresh thread, wait for it and return its result or raise what it raised."""
    done = _thread.allocate_lock()
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(body, ())
    try:
        done.acquire()
    except BaseException:
        # A signal's exception: the thread is let finish, so that the caller cleans up after a completed step.
        done.acquire()
        raise
    if failure:
        raise failure[0]
    return result[0]


def inside(path: str, function: Callable[[], T]) -> T:
    """Run a function in a thread that has entered the network namespace at `path` ("" = stay here, no thread).

    Raises HostError when there is no such namespace, Denied without the privilege.
    """
    if not path:
        return function()

    def body() -> T:
        enter(path)
        return function()

    return in_thread(body)


def enter(path: str) -> None:
    """Move the calling thread (only it) into the network namespace at `path`. Errors as for `inside`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", fd, _CLONE_NEWNET)
        finally:
            os.close(fd)
    except OSError as error:
        raise _explain(f"cannot enter the network namespace {path}", error) from error


def create(path: str, sysctls: dict[str, str] | None = None) -> None:
    """Make a network namespace and keep it at `path` (bind mount); its loopback is up. A leftover at `path` is replaced.

    sysctls: paths below /proc/sys and their values; ones that this kernel lacks or that are read-only are passed over.
    Raises Denied without CAP_SYS_ADMIN, HostError when the kernel refuses; nothing is left behind then.
    """
    values = DEFAULT_SYSCTLS if sysctls is None else sysctls
    remove(path)
    hint = f"df -i {os.path.dirname(path)}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        hint = "sysctl -w user.max_net_namespaces=10000 fs.mount-max=100000"
        in_thread(lambda: _make(path, values))
    except BaseException as error:
        remove(path)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise _explain(f"cannot make the network namespace {path}", error, hint if full else "") from error
        raise


def _make(path: str, sysctls: dict[str, str]) -> None:
    _call("unshare", _CLONE_NEWNET)
    raise_interface("lo")
    for name, value in sysctls.items():
        with contextlib.suppress(OSError):
            write_sysctl(name, value)
    _call("mount", b"/proc/thread-self/ns/net", os.fsencode(path), None, _MS_BIND, None)


def remove(path: str) -> bool:
    """Take the name away; the namespace ends with the last process or descriptor in it. Idempotent; False when absent.

    Raises HostError when the mount cannot be taken away.
    """
    try:
        # Once per mount stacked there (a killed creator may have left one); EINVAL: no mount any more.
        while True:
            _call("umount2", os.fsencode(path), _MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise _explain(f"cannot remove the network namespace {path}", error) from error
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def raise_interface(name: str) -> None:
    """Set an interface of the thread's namespace up (netdevice(7)). Raises OSError."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = struct.pack("16sh14x", name.encode(), 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags | _IFF_UP))
    finally:
        sock.close()


def write_sysctl(name: str, value: str) -> None:
    """Write one sysctl of the thread's namespace. name: path below /proc/sys. Raises OSError."""
    fd = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read_sysctl(name: str) -> str:
    """The value of a sysctl of the thread's namespace; "" when this kernel does not have it."""
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""


def create_tap(netns: str, name: str, owner: int = 0) -> None:
    """Make a persistent tap interface in a namespace, with IFF_NO_PI and IFF_VNET_HDR; the user `owner` may attach to it.

    An existing tap of that name is taken over. Raises HostError when the kernel has no tun driver or refuses.
    """

    def body() -> None:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
            fcntl.ioctl(fd, _TUNSETOWNER, owner)
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        finally:
            os.close(fd)

    try:
        inside(netns, body)
    except OSError as error:
        hint = "modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else ""
        raise _explain(f"cannot make the tap interface {name}", error, hint) from error


def _explain(what: str, error: OSError, hint: str = "") -> HostError | Denied:
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.EPERM, errno.EACCES):
        return Denied(f"{what}: {reason}", hint="run as root (sudo): network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {reason}", hint=hint)
    return HostError(f"{what}: {reason}", hint=hint)
