"""What seccomp filters permit: the default profile, profiles in Docker's JSON format, and their compilation to classic BPF.

Loaded only to make a filter that is not in the cache yet: see `nacre.linux.seccomp`.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from nacre.errors import HostError, InvalidArgument
from nacre.linux import capabilities

if TYPE_CHECKING:
    import ctypes

_EPERM, _ENOSYS = 1, 38
_ALLOW, _LOG, _TRAP, _KILL_THREAD, _KILL_PROCESS = 0x7FFF0000, 0x7FFC0000, 0x00030000, 0x00000000, 0x80000000
_ERRNO, _TRACE, _NOTIFY = 0x00050000, 0x7FF00000, 0x7FC00000

_NOT_EQUAL, _EQUAL, _MASKED = 1, 4, 7
_OPTIMIZE, _AS_TREE = 8, 2  # SCMP_FLTATR_CTL_OPTIMIZE: a binary tree of system calls (libseccomp 2.5)
_OPERATORS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
_ACTIONS = {
    "ALLOW": _ALLOW, "LOG": _LOG, "TRAP": _TRAP, "KILL": _KILL_THREAD, "KILL_THREAD": _KILL_THREAD, "KILL_PROCESS": _KILL_PROCESS,
    "ERRNO": _ERRNO, "TRACE": _TRACE, "NOTIFY": _NOTIFY,
}  # fmt: skip

# libseccomp's tokens (for all but X32 the kernel's AUDIT_ARCH_*) by the name in profiles.
_ARCHITECTURES = {
    "X86_64": 0xC000003E, "X86": 0x40000003, "X32": 0x4000003E, "AARCH64": 0xC00000B7, "ARM": 0x40000028, "RISCV64": 0xC00000F3,
    "PPC64LE": 0xC0000015, "S390X": 0x80000016, "S390": 0x00000016,
}  # fmt: skip
# Those of processors that Nacre does not run on: no program of theirs can be started, so that a filter need not know them.
_FOREIGN = frozenset((
    "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PARISC", "PARISC64", "LOONGARCH64", "M68K", "SH",
    "SHEB",
))  # fmt: skip
_FLAGS = {"TSYNC": 1, "LOG": 2, "SPEC_ALLOW": 4}  # SECCOMP_FILTER_FLAG_* (linux/seccomp.h)
_LONGEST = 4096  # BPF_MAXINSNS
# uname machine -> the name in profiles, Docker's name, the architectures whose programs the kernel runs as well.
_MACHINES = {
    "x86_64": ("X86_64", "amd64", ("X86", "X32")),
    "aarch64": ("AARCH64", "arm64", ("ARM",)),
    "riscv64": ("RISCV64", "riscv64", ()),
    "ppc64le": ("PPC64LE", "ppc64le", ()),
    "s390x": ("S390X", "s390x", ("S390",)),
}
_X32_BIT = 0x40000000

# System calls that every container may use, by what they deal with.
_FREE = {
    "files": """
        access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
        fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64
        fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown lchown32 link linkat
        _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv
        preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64
        splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink
        unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev""",
    "attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr lremovexattr lsetxattr
        removexattr removexattrat setxattr setxattrat""",
    "memory": """
        brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
        mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages""",
    "processes": """
        execve execveat exit exit_group fork getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid
        get_robust_list get_thread_area pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace
        restart_syscall rseq seccomp setpgid setpriority setrlimit setsid set_robust_list set_thread_area set_tid_address sysinfo times
        ugetrlimit uname vfork wait4 waitid waitpid""",
    "identity": """
        capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
        getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32
        setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32""",
    "scheduling": """
        ioprio_get ioprio_set sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
        sched_setscheduler sched_yield""",
    "signals": """
        alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn tgkill tkill""",
    "time": """
        adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
        clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime
        timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64""",
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
        fanotify_mark futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake inotify_add_watch inotify_init inotify_init1
        inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect poll ppoll
        ppoll_time64 pselect6 pselect6_time64 select""",
    "network": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send sendmmsg
        sendmsg sendto setsockopt shutdown socketcall socketpair""",
    "ipc": """
        ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget
        msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget""",
    "sandboxing": "landlock_add_rule landlock_create_ruleset landlock_restrict_self",
    "entropy": "getrandom",
}

# Those that only some processors have.
_BY_MACHINE = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "ppc64le": "sync_file_range2 swapcontext",
    "riscv64": "riscv_flush_icache riscv_hwprobe",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}

# Those that a capability opens; the kernel checks the capability again.
_BY_CAPABILITY = {
    "DAC_READ_SEARCH": "open_by_handle_at",
    "SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount mount_setattr move_mount open_tree
        perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare""",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
    "SYSLOG": "syslog",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
}

# Execution domains: Linux with and without address randomisation and 32-bit uname, and the query.
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_AF_VSOCK = 40


class Condition(NamedTuple):
    """A test of one argument (0-5). For the masked operator: first & value == second."""

    argument: int
    operator: int
    first: int
    second: int = 0


class Rule(NamedTuple):
    """What happens to some system calls when all conditions hold. action: as SECCOMP_RET_*, with the errno in the low 16 bits."""

    names: tuple[str, ...]
    action: int = _ALLOW
    conditions: tuple[Condition, ...] = ()


class Profile(NamedTuple):
    """A filter before compilation. others: architectures beside the native one; known: names that fix what is "younger"."""

    default: int
    rules: tuple[Rule, ...]
    others: tuple[str, ...]
    known: tuple[str, ...]


def default_profile(machine: str, caps: int) -> Profile:
    """Our default for a machine (as uname says) and a set of capabilities."""
    names = [name for group in _FREE.values() for name in group.split()] + _BY_MACHINE.get(machine, "").split()
    for capability, opened in _BY_CAPABILITY.items():
        if caps & capabilities.bit(capability):
            names += opened.split()
    rules = [Rule(names=tuple(dict.fromkeys(names))), Rule(("socket",), _ALLOW, (Condition(0, _NOT_EQUAL, _AF_VSOCK),))]
    rules += [Rule(("personality",), _ALLOW, (Condition(0, _EQUAL, value),)) for value in _PERSONALITIES]
    if not caps & capabilities.bit("SYS_ADMIN"):
        flags = 1 if machine == "s390x" else 0
        rules.append(Rule(("clone",), _ALLOW, (Condition(flags, _MASKED, _NAMESPACE_FLAGS, 0),)))
        rules.append(Rule(("clone3",), _ERRNO | _ENOSYS))  # its flags are in memory, where no filter sees them
    known = {name for group in (*_FREE.values(), *_BY_CAPABILITY.values()) for name in group.split()}
    return Profile(_ERRNO | _EPERM, tuple(rules), _MACHINES.get(machine, ("", "", ()))[2], tuple(sorted(known)))


def architectures() -> tuple[str, ...]:
    """The names of architectures that profiles may list, without ``SCMP_ARCH_``."""
    return tuple(_ARCHITECTURES)


# Profiles in JSON


def parse(text: bytes, machine: str, caps: int, kernel: str, name: str = "profile", *, listener: bool = False) -> Profile:
    """A profile in the format of Docker's profiles or of the OCI runtime specification ("seccomp" of config-linux.md).

    listener: somebody will answer what is decided by SCMP_ACT_NOTIFY. Raises InvalidArgument.
    """
    with _decoding(name):
        data = _read(text)
        rules = tuple(_rule(item) for item in data.get("syscalls") or () if _applies(item, machine, caps, kernel))
        known = tuple(sorted({entry for item in data.get("syscalls") or () for entry in _names(item)}))
        default = _action(data["defaultAction"], data.get("defaultErrnoRet"))
        if not listener and _NOTIFY in (default, *(rule.action for rule in rules)):
            raise ValueError("action SCMP_ACT_NOTIFY needs a program that answers, which the engine's containers have none of")
        return Profile(default, rules, _others(data, machine), known)


def parse_flags(text: bytes, name: str = "profile") -> int:
    """The flags of seccomp(2) that a profile asks for. Raises InvalidArgument for one that does not exist, or cannot be had here."""
    with _decoding(name):
        words = [_word(word, "SECCOMP_FILTER_FLAG_") for word in _read(text).get("flags") or ()]
        if unknown := [word for word in words if word not in _FLAGS]:
            raise ValueError(f"flag SECCOMP_FILTER_FLAG_{unknown[0]} is not supported")
        return sum(_FLAGS[word] for word in set(words))


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever is wrong with a profile is the caller's mistake."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise InvalidArgument(f"decoding seccomp profile {name} failed: {reason}".replace("  ", " ")) from error


def _read(text: bytes) -> dict[str, Any]:
    import json

    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def _names(item: dict[str, Any]) -> tuple[str, ...]:
    if item.get("name") and item.get("names"):
        raise ValueError("use either 'name' or 'names' in a rule, never both")
    names = tuple(item.get("names") or ()) or ((item["name"],) if item.get("name") else ())
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("a rule names no system call")
    return names


def _rule(item: dict[str, Any]) -> Rule:
    conditions = tuple(
        Condition(int(arg["index"]), _operator(arg["op"]), _argument(arg["value"]), _argument(arg.get("valueTwo") or 0))
        for arg in item.get("args") or ()
    )
    if any(not 0 <= condition.argument <= 5 for condition in conditions):
        raise ValueError("an argument index is not between 0 and 5")
    return Rule(_names(item), _action(item["action"], item.get("errnoRet")), conditions)


def _operator(word: str) -> int:
    value = _OPERATORS.get(_word(word, "SCMP_CMP_"))
    if value is None:
        raise ValueError(f"operator {word} does not exist")
    return value


def _argument(value: int) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no value of an argument: a whole number below 2^64")
    return value


def _action(word: str, code: int | None) -> int:
    value = _ACTIONS.get(_word(word, "SCMP_ACT_"))
    if value is None:
        raise ValueError(f"action {word} is not supported")
    return value | ((_EPERM if code is None else int(code) & 0xFFFF) if value in (_ERRNO, _TRACE) else 0)


def _word(word: str, prefix: str) -> str:
    if not word.startswith(prefix):
        raise ValueError(f"{word} does not begin with {prefix}")
    return word[len(prefix) :]


def _applies(item: dict[str, Any], machine: str, caps: int, kernel: str) -> bool:
    """Does a rule hold for this container? includes: everything must be true; excludes: nothing may be."""
    includes, excludes = item.get("includes") or {}, item.get("excludes") or {}
    docker = _MACHINES.get(machine, ("", machine, ()))[1]
    has = {name for name in (*(includes.get("caps") or ()), *(excludes.get("caps") or ())) if caps & capabilities.bit(name)}
    return (
        has >= set(includes.get("caps") or ())
        and not has & set(excludes.get("caps") or ())
        and docker in (includes.get("arches") or (docker,))
        and docker not in (excludes.get("arches") or ())
        and (not includes.get("minKernel") or _release(kernel) >= _release(includes["minKernel"]))
        and (not excludes.get("minKernel") or _release(kernel) < _release(excludes["minKernel"]))
    )


def _release(text: str) -> tuple[int, int]:
    """(6, 1) for "6.1.0-18-cloud-amd64"."""
    major, _, rest = text.partition(".")
    minor = rest.replace("-", ".").partition(".")[0]
    return int(major), int(minor or 0)


def _others(data: dict[str, Any], machine: str) -> tuple[str, ...]:
    native = _MACHINES.get(machine, ("", "", ()))[0]
    chosen = list(data.get("architectures") or ())
    if chosen and data.get("archMap"):
        raise ValueError("use either 'architectures' or 'archMap', never both")
    for entry in data.get("archMap") or ():
        if _word(entry["architecture"], "SCMP_ARCH_") == native:
            chosen += entry.get("subArchitectures") or ()
    words = [_word(name, "SCMP_ARCH_") for name in chosen]
    if unknown := [word for word in words if word not in _ARCHITECTURES and word not in _FOREIGN]:
        raise ValueError(f"architecture SCMP_ARCH_{unknown[0]} does not exist")
    return tuple(dict.fromkeys(word for word in words if word != native and word in _ARCHITECTURES))


# Compilation


def compile_profile(profile: Profile, machine: str) -> bytes:
    """Classic BPF of a profile. Raises HostError without libseccomp, InvalidArgument when it refuses a rule."""
    library = _library()
    context = library.seccomp_init(profile.default)
    if not context:
        raise InvalidArgument("seccomp: the default action is not valid")
    try:
        # A list of 400 comparisons costs the kernel 1 ms when the filter is set. A library that is too old makes one all the same.
        library.seccomp_attr_set(context, _OPTIMIZE, _AS_TREE)
        for name in profile.others:
            library.seccomp_arch_add(context, _ARCHITECTURES[name])
        for rule in profile.rules:
            _add(library, context, rule, profile.default)
        body = _export(library, context)
    finally:
        library.seccomp_release(context)
    code = _prologue(library, profile, machine) + body
    if len(code) // 8 > _LONGEST:
        raise InvalidArgument(f"seccomp: the profile makes {len(code) // 8} instructions; the kernel takes {_LONGEST}")
    return code


def _add(library: ctypes.CDLL, context: int, rule: Rule, default: int) -> None:
    if rule.action == default:  # libseccomp refuses what would change nothing
        return
    for conditions in _alternatives(rule.conditions):
        packed = b"".join(struct.pack("=IIQQ", *condition) for condition in conditions)  # struct scmp_arg_cmp
        for name in rule.names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:  # of another processor, or younger than the library: falls under the default or ENOSYS
                continue
            result = library.seccomp_rule_add_array(context, rule.action, number, len(conditions), packed)
            if result < 0:
                raise InvalidArgument(f"seccomp: the rule for {name} cannot be used: {os.strerror(-result)}")


def _alternatives(conditions: tuple[Condition, ...]) -> list[tuple[Condition, ...]]:
    """Conditions on different arguments must all hold; several on one argument are alternatives, as runc reads them."""
    if len({condition.argument for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [conditions]


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result < 0:
            raise HostError(f"libseccomp cannot compile the filter: {os.strerror(-result)}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _prologue(library: ctypes.CDLL, profile: Profile, machine: str) -> bytes:
    """Instructions before libseccomp's own: ENOSYS for numbers above every name that profile and library know.

    struct seccomp_data: u32 nr at 0, u32 arch at 4. x32 numbers (bit 30) are left to the filter.
    """
    if profile.default & 0xFFFF0000 != _ERRNO:
        return b""
    blocks = []
    for name in (_MACHINES.get(machine, ("",))[0], *profile.others):
        token = _ARCHITECTURES.get(name)
        if token is None or name == "X32":
            continue
        last = max((library.seccomp_syscall_resolve_name_arch(token, word.encode()) for word in profile.known), default=-1)
        if last >= 0:
            blocks.append((token, last))
    # Each block: is it this arch? nr; x32 -> end; younger -> ENOSYS; -> end.
    code = [_bpf(0x20, 0, 0, 4)]
    for place, (token, last) in enumerate(blocks):
        rest = 6 * (len(blocks) - place - 1)
        code += [
            _bpf(0x15, 0, 5, token),
            _bpf(0x20, 0, 0, 0),
            _bpf(0x35, 2, 0, _X32_BIT),
            _bpf(0x25, 0, 1, last),
            _bpf(0x06, 0, 0, _ERRNO | _ENOSYS),
            _bpf(0x05, 0, 0, rest),
        ]
    return b"".join(code)


def _bpf(code: int, yes: int, no: int, value: int) -> bytes:
    """One struct sock_filter."""
    return struct.pack("=HBBI", code, yes, no, value)


def _library() -> ctypes.CDLL:
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise HostError(
            "cannot compile the seccomp filter: libseccomp is not installed",
            hint="apt-get install libseccomp2 (dnf install libseccomp), or --security-opt seccomp=unconfined",
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_release.restype = None
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library
