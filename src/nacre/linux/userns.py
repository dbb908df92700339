"""User namespaces for ordinary users: whose ids may be used, how one is made and mapped, how one is joined.

Sources: user_namespaces(7), subuid(5), subgid(5), newuidmap(1), setns(2), ioctl_ns(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from nacre.errors import Denied, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NEWNS, _NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_NS_GET_USERNS = 0xB701
_ALL = 4294967295

# Parameters that can forbid user namespaces to ordinary users: (name, value that forbids, value that allows).
SWITCHES = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def _call(name: str, *args: Any) -> None:
    import ctypes  # only for who makes or joins a namespace: whoever asks in which one it is should not pay for it

    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Whose ids


def parse_subordinate(text: str, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """The ranges (first id, count) that a subuid(5) or subgid(5) file gives to a user. names: login name and decimal uid."""
    found = []
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in names and first.isdecimal() and count.strip().isdecimal() and int(count):
            found.append((int(first), int(count)))
    return tuple(found)


def subordinate(kind: str, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """The subordinate ranges of a user. kind: "uid" or "gid". From the file in /etc, else from the directory service (getsubids(1))."""
    with contextlib.suppress(OSError), open(f"/etc/sub{kind}", encoding="utf-8", errors="replace") as file:
        if found := parse_subordinate(file.read(), names):
            return found
    from nacre.linux.run import find_program, run

    if not find_program("getsubids"):
        return ()
    result = run(["getsubids", *(["-g"] if kind == "gid" else []), names[0]])
    lines = (line.partition(": ")[2].split() for line in result.stdout.decode(errors="replace").splitlines())
    numbers = (words for words in lines if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal())
    return tuple((int(words[1]), int(words[2])) for words in numbers)


def extents(own: int, ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """The map (inside, outside, count) of a user's namespace: 0 is the user, from 1 on the subordinate ids, range after range."""
    made, at = [(0, own, 1)], 1
    for first, count in ranges:
        made.append((at, first, count))
        at += count
    return tuple(made)


# The namespace this process is in


def is_initial(text: str | None = None) -> bool:
    """Whether this process is in the host's first user namespace, where root is the host's root. text: of /proc/self/uid_map."""
    if text is None:
        try:
            with open("/proc/self/uid_map", encoding="ascii") as file:
                text = file.read()
        except OSError:
            return True  # a kernel without user namespaces
    return text.split() == ["0", "0", str(_ALL)]


def outer_uid() -> int:
    """The uid of this process's user on the host: root of a user namespace is somebody there."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/uid_map", encoding="ascii") as file:
        for line in file:
            inside, outside, count = map(int, line.split())
            if inside <= os.getuid() < inside + count:
                return outside + os.getuid() - inside
    return os.getuid()


def mapped_ids() -> int:
    """How many ids, from 0 on without a gap, this user namespace has for both users and groups."""
    counts = []
    for name in ("uid_map", "gid_map"):
        at = 0
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", encoding="ascii") as file:
            for first, _, count in sorted(tuple(map(int, line.split())) for line in file):
                at = first + count if first == at else at
        counts.append(at)
    return min(counts)


def owns_network(path: str = "/proc/self/ns/net") -> bool:
    """Whether the network namespace at `path` belongs to this user namespace, so that its root may change it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = fcntl.ioctl(fd, _NS_GET_USERNS)
        finally:
            os.close(fd)
    except OSError:  # EPERM: the owner is no namespace that can be seen from here
        return False
    try:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
    finally:
        os.close(owner)


# Making and joining


def join(pidfd: int) -> None:
    """Enter the user and the mount namespace of a process and become root there. Only for processes with one thread. Raises OSError."""
    _call("setns", pidfd, _NEWUSER | _NEWNS)
    _become_root()


def make(uids: tuple[tuple[int, int, int], ...], gids: tuple[tuple[int, int, int], ...]) -> None:
    """Move this process into a new user namespace with these maps, as its root, and a new mount namespace that follows the host's mounts.

    Only for processes with one thread. Raises HostError or Denied with what the administrator has to change.
    """
    parent = os.getpid()
    begin, go = os.pipe2(os.O_CLOEXEC)
    said, mouth = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()  # stays behind in the old namespace, where newuidmap has its power
    if helper == 0:
        os.close(go)
        _write_maps(parent, begin, mouth, uids, gids)
    os.close(begin)
    os.close(mouth)
    try:
        _call("unshare", _NEWUSER)
        os.write(go, b"1")
        with open(said, "rb", closefd=False) as file:
            text = file.read().decode(errors="replace")
    except OSError as error:
        raise refusal(error) from error
    finally:
        os.close(go)
        os.close(said)
        os.waitpid(helper, 0)
    if text:
        message, _, hint = text.partition("\n")
        raise HostError(message, hint=hint)
    try:
        _become_root()
        _call("unshare", _NEWNS)
        _call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
    except OSError as error:
        raise refusal(error) from error


def _become_root() -> None:
    # Supplementary groups stay: the way of many users to /dev/kvm. They are nobody's inside.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _write_maps(pid: int, begin: int, mouth: int, uids: tuple[tuple[int, int, int], ...], gids: tuple[tuple[int, int, int], ...]) -> None:
    """In the helper: say nothing when the maps are written, else what failed and what helps. Does not return."""
    text = "\n"
    try:
        text = ""
        if os.read(begin, 1):
            for program, extent in (("newuidmap", uids), ("newgidmap", gids)):
                text = text or _write_map(program, pid, extent)
    except Exception as error:
        text = f"cannot map ids: {error}\n{getattr(error, 'hint', '')}"
    finally:
        os.write(mouth, text.encode())
        os._exit(0)


def _write_map(program: str, pid: int, extent: tuple[tuple[int, int, int], ...]) -> str:
    from nacre.linux.run import run

    result = run([program, str(pid), *(str(number) for part in extent for number in part)])
    if not result.code:
        return ""
    reason = (result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.code}"])[-1]
    return f"cannot map ids: {reason.removeprefix(f'{program}: ')}\n{_cure(program)}"


def _cure(program: str) -> str:
    if _status("NoNewPrivs") == "1":
        return f"this session has no_new_privs, so that {program} cannot have its privilege: use another session"
    kind = "cap_setuid" if program == "newuidmap" else "cap_setgid"
    return (
        f"as root: give {program} its privilege (apt-get install --reinstall uidmap, or setcap {kind}+ep $(command -v {program})), and see "
        f"that /etc/sub{'uid' if program == 'newuidmap' else 'gid'} has a range of this user that overlaps nobody's"
    )


def _status(name: str) -> str:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return line.split()[1]
    return ""


def refusal(error: OSError) -> HostError | Denied:
    """Why the kernel refuses a user namespace, and what the administrator has to change."""
    reason = os.strerror(error.errno or 0)
    for name, bad, wanted in SWITCHES:
        if sysctl(name) == bad:
            more = "; or an AppArmor profile for this program: docs/rootless.md" if "apparmor" in name else ""
            return Denied(
                f"ordinary users may not make user namespaces on this host: {name} = {bad}",
                hint=f"as root: sysctl -w {name}={wanted}{more}",
            )
    if error.errno == errno.EINVAL:
        return HostError(
            f"cannot enter a user namespace: {reason}",
            hint="only a process with one thread can, on a kernel with CONFIG_USER_NS: use the nacre command, or nacre unshare python3 ...",
        )
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return HostError(f"cannot make a user namespace: {reason}", hint="as root: sysctl -w user.max_user_namespaces=15000")
    return Denied(
        f"cannot make a user namespace: {reason}",
        hint="a container's seccomp filter or a chroot may forbid it: run on the host, or start the outer container with more privileges",
    )


def sysctl(name: str) -> str:
    """Value of a kernel parameter in dotted notation, "" when there is none."""
    with contextlib.suppress(OSError), open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
        return file.read().strip()
    return ""
