"""What this kernel can do, found out by trying. `nacre doctor` and whoever chooses between ways of doing something ask here.

The probes that mount or unshare need a process of their own: ``python -m nacre.linux.kernel DIRECTORY`` tries everything,
prints one JSON object (see `facts`) and leaves nothing behind. Nothing here raises: what cannot be found out is reported as such.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from nacre.linux import capabilities, cgroups
from nacre.model import plan

NAMESPACES = {
    "cgroup": plan.NEWCGROUP, "ipc": plan.NEWIPC, "mnt": plan.NEWNS, "net": plan.NEWNET, "pid": plan.NEWPID, "time": plan.NEWTIME,
    "user": plan.NEWUSER, "uts": plan.NEWUTS,
}  # fmt: skip
OK = "ok"

# linux/kvm.h
_KVM_GET_API_VERSION, _KVM_CREATE_VM = 0xAE00, 0xAE01


def release(text: str = "") -> tuple[int, int]:
    """(major, minor) of this kernel, or of a release such as "6.1.0-18-amd64"; (0, 0) for what is no release."""
    major, _, rest = (text or os.uname().release).partition(".")
    minor = rest.replace("-", ".").partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def filesystem(name: str) -> str:
    """How a file system is there: "built-in" (or loaded), "module" (mount(2) loads it), "" = not at all."""
    if name in read("/proc/filesystems").split():
        return "built-in"
    return "module" if has_module(name) else ""


def has_module(name: str, modules: str = "") -> bool:
    """Is there a module of this name (dashes and underscores are the same) for this kernel? modules: its directory."""
    directory = modules or f"/lib/modules/{os.uname().release}"
    wanted = f"/{name.replace('-', '_')}.ko"
    for index in ("modules.builtin", "modules.dep"):
        for line in read(f"{directory}/{index}").splitlines():
            if wanted in line.partition(":")[0].replace("-", "_"):
                return True
    return False


def sysctl(name: str) -> str:
    """Value of a kernel parameter in dotted notation, "" when there is none."""
    return read(f"/proc/sys/{name.replace('.', '/')}").strip()


def read(path: str) -> str:
    """A whole text file, "" when it cannot be read."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""


# Trying things out, each in a child of its own


def attempt(action: Callable[[], object]) -> str:
    """Run a probe in a forked child. OK, or the reason why not. Only for processes with one thread."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "the probe died"
        try:
            action()
            text = OK
        except OSError as error:
            text = error.strerror or str(error)
        except Exception as error:
            text = str(error)
        finally:
            os.write(writer, text.encode()[:4096])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return said or "the probe died"


def unshare(flags: int) -> None:
    """Leave the namespaces of some types for new ones. Raises OSError."""
    _call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount a file system; arguments as the kernel takes them. Raises OSError."""
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _alone(flags: int = 0) -> None:
    """New mount namespace from which nothing gets out; with a user namespace when we are not root."""
    user = os.geteuid()
    unshare(plan.NEWNS | flags | (plan.NEWUSER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {os.getegid()} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    mount("none", "/", "", plan.MS_REC | plan.MS_PRIVATE)


def try_namespaces() -> dict[str, str]:
    """Name of each namespace type -> OK or the reason. Without root each is tried inside a user namespace."""
    extra = plan.NEWUSER if os.geteuid() else 0
    return {name: attempt(lambda flag=flag: unshare(flag | extra)) for name, flag in NAMESPACES.items()}  # type: ignore[misc]


def try_overlay(directory: str) -> str:
    """Mount an overlay on a tmpfs at `directory`: OK or the reason."""

    def action() -> None:
        _alone()
        mount("tmpfs", directory, "tmpfs", 0, "mode=700")
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{directory}/{name}")
        options = ",".join(
            f"{option}={directory}/{name}" for option, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
        )
        mount("overlay", f"{directory}/merged", "overlay", 0, options)
        with open(f"{directory}/merged/file", "w", encoding="ascii"):
            pass
        if not os.path.exists(f"{directory}/upper/file"):
            raise OSError("the mount does not write to its upper directory")

    return attempt(action)


def try_erofs(directory: str, mkfs: str) -> str:
    """Make an image in `directory` (on a real disk) and mount it: "file" (file-backed), "loop", or the reason why neither works."""

    def make() -> None:
        tree = f"{directory}/tree"
        os.mkdir(tree)
        with open(f"{tree}/file", "w", encoding="ascii") as file:
            file.write("x" * 100)
        _program([mkfs, f"{directory}/image", tree])

    def through_file() -> None:
        _alone()
        mount(f"{directory}/image", f"{directory}/tree", "erofs", plan.MS_RDONLY)

    def through_loop() -> None:
        _alone()
        _program(["mount", "-t", "erofs", "-o", "loop,ro", f"{directory}/image", f"{directory}/tree"])

    made = attempt(make)
    if made != OK:
        return f"mkfs.erofs: {made}"
    if attempt(through_file) == OK:
        return "file"
    loop = attempt(through_loop)
    return "loop" if loop == OK else loop


def _program(argv: list[str]) -> None:
    """Run a tool silently; raises OSError when it fails."""
    null = os.open("/dev/null", os.O_RDWR)
    pid = os.posix_spawnp(
        argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    )
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(errno.EIO, f"{os.path.basename(argv[0])} failed ({code})")


def try_kvm(device: str = "/dev/kvm") -> str:
    """Can a virtual machine be created? OK, "absent", or the reason. OK does not prove that a guest runs: only a guest does."""
    import fcntl

    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        return error.strerror or str(error)
    try:
        if fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0) != 12:
            return "its interface is not version 12"
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"cannot create a virtual machine: {error.strerror}"
    finally:
        os.close(kvm)
    return OK


def try_library(name: str) -> str:
    """Does a shared library load? OK or the loader's words."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return OK


def facts(directory: str, mkfs: str = "") -> dict[str, Any]:
    """Everything that `nacre doctor` needs to know about the kernel. directory: empty, on a real disk; mkfs: path of mkfs.erofs."""
    where = cgroups.layout()
    return {
        "release": os.uname().release,
        "machine": os.uname().machine,
        "uid": os.geteuid(),
        "capabilities": capabilities.names(capabilities.held()) if os.geteuid() == 0 else (),
        "namespaces": try_namespaces(),
        "sysctls": {name: sysctl(name) for name in _SYSCTLS},
        "cgroups": {"kind": where.kind, "v1": sorted(where.v1), "v2": where.v2, "lacking": _lacking(where), "writable": _writable(where)},
        "overlay": try_overlay(_subdirectory(directory, "overlay")),
        "erofs": try_erofs(_subdirectory(directory, "erofs"), mkfs) if mkfs else "",
        "filesystems": {name: filesystem(name) for name in ("overlay", "erofs", "ext4", "9p", "virtiofs", "fuse")},
        "kvm": try_kvm(),
        "virtualization": sorted({"vmx", "svm"} & set(read("/proc/cpuinfo").partition("\n\n")[0].split())),
        "modules": sorted(line.split()[0] for line in read("/proc/modules").splitlines()),
        "libraries": {name: try_library(name) for name in ("libseccomp.so.2",)},
        "devices": {
            name: os.path.exists(f"/dev/{name}") for name in ("kvm", "net/tun", "loop-control", "vhost-vsock", "vhost-net", "fuse")
        },
    }


_SYSCTLS = (
    "user.max_user_namespaces", "user.max_mnt_namespaces", "user.max_net_namespaces", "user.max_pid_namespaces",
    "kernel.unprivileged_userns_clone", "kernel.apparmor_restrict_unprivileged_userns", "net.ipv4.ip_forward",
)  # fmt: skip


def _lacking(where: cgroups.Layout) -> list[str]:
    return [name for name in ("memory", "cpu", "pids", "freezer", "devices") if not where.has(name)]


def _writable(where: cgroups.Layout) -> bool:
    return all(os.access(path, os.W_OK) for path in {*where.v1.values(), *([where.unified] if where.unified and not where.v1 else [])})


def _subdirectory(directory: str, name: str) -> str:
    path = f"{directory}/{name}"
    os.makedirs(path, exist_ok=True)
    return path


def main() -> None:
    """Entry point of ``python -m nacre.linux.kernel DIRECTORY [MKFS]``."""
    import json

    json.dump(facts(*sys.argv[1:3]), sys.stdout)


if __name__ == "__main__":
    main()
