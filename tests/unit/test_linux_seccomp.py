"""Filters are judged by running them: a small interpreter of classic BPF over struct seccomp_data."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import HostError, InvalidArgument
from nacre.linux import capabilities, seccomp, seccomp_profile

X86_64, X86 = 0xC000003E, 0x40000003
ALLOW, KILL = 0x7FFF0000, 0
EPERM, ENOSYS = 0x00050001, 0x00050026
DEFAULT = capabilities.DEFAULT


def has_library() -> bool:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return True


needs_library = pytest.mark.skipif(not has_library() or os.uname().machine != "x86_64", reason="needs libseccomp on x86_64")


def judge(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> int:
    """What the filter returns for a system call."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, arch, 0, *values)
    code = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            at += value
        elif operation == 0x06:
            return int(value)
        else:
            test = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[operation]
            at += yes if test else no


@pytest.fixture(scope="module")
def default() -> bytes:
    return seccomp.program("default", DEFAULT)


@needs_library
@pytest.mark.parametrize(
    "number", [0, 1, 2, 59, 101, 158, 257, 318, 439]
)  # read write open execve ptrace arch_prctl openat getrandom faccessat2
def test_everyday_calls_are_allowed(default: bytes, number: int) -> None:
    assert judge(default, number) == ALLOW


@needs_library
@pytest.mark.parametrize("number", [165, 166, 169, 175, 246, 250, 272, 308, 321, 323, 425, 304])
def test_dangerous_calls_are_refused(default: bytes, number: int) -> None:
    # mount umount2 reboot init_module kexec_load keyctl unshare setns bpf userfaultfd io_uring_setup open_by_handle_at
    assert judge(default, number) == EPERM


@needs_library
def test_namespaces_cannot_be_made_but_threads_can(default: bytes) -> None:
    assert judge(default, 56, 0x3D0F00) == ALLOW
    for flag in (0x20000, 0x10000000, 0x40000000):
        assert judge(default, 56, 17 | flag) == EPERM
    assert judge(default, 435) == ENOSYS  # clone3: the C library falls back to clone


@needs_library
def test_argument_rules(default: bytes) -> None:
    assert [judge(default, 135, value) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)] == [ALLOW] * 5
    assert judge(default, 135, 0x40000) == EPERM  # ADDR_NO_RANDOMIZE
    assert judge(default, 41, 2, 1) == ALLOW
    assert judge(default, 41, 40, 1) == EPERM  # AF_VSOCK


@needs_library
def test_younger_calls_do_not_exist(default: bytes) -> None:
    assert judge(default, 600) == ENOSYS
    assert judge(default, 600, arch=X86) == ENOSYS
    assert judge(default, 335) == EPERM  # a hole inside of the known range


@needs_library
def test_other_abis_of_the_processor(default: bytes) -> None:
    assert judge(default, 5, arch=X86) == ALLOW  # open
    assert judge(default, 21, arch=X86) == EPERM  # mount
    assert judge(default, 0x40000000) == ALLOW  # x32 read
    assert judge(default, 0x400000A5) == EPERM  # x32 mount
    assert judge(default, 0, arch=0xC00000B7) == KILL


@needs_library
@pytest.mark.parametrize(
    ("capability", "numbers"),
    [
        ("SYS_ADMIN", [165, 166, 272, 308, 321, 298, 435]),
        ("SYS_TIME", [164, 227]),
        ("SYS_MODULE", [175, 313]),
        ("SYS_PTRACE", [312, 438]),
        ("SYS_NICE", [237]),
        ("DAC_READ_SEARCH", [304]),
        ("SYSLOG", [103]),
        ("SYS_BOOT", [169]),
    ],
)
def test_capabilities_open_calls(default: bytes, capability: str, numbers: list[int]) -> None:
    opened = seccomp.program("default", DEFAULT | capabilities.bit(capability))
    for number in numbers:
        assert judge(default, number) != ALLOW
        assert judge(opened, number) == ALLOW


@needs_library
def test_without_sys_chroot_there_is_no_chroot(default: bytes) -> None:
    assert judge(default, 161) == ALLOW
    assert judge(seccomp.program("default", DEFAULT & ~capabilities.bit("SYS_CHROOT")), 161) == EPERM


@needs_library
def test_sys_admin_may_clone_namespaces() -> None:
    assert judge(seccomp.program("default", DEFAULT | capabilities.bit("SYS_ADMIN")), 56, 0x10000000) == ALLOW


def test_unconfined_is_no_filter() -> None:
    assert seccomp.program("unconfined", 0) == b""


def write(path: Path, **profile: Any) -> str:
    path.write_text(json.dumps(profile))
    return str(path)


@needs_library
def test_docker_profile(tmp_path: Path) -> None:
    rules = [
        {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"name": "umask", "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"name": "kill", "action": "SCMP_ACT_KILL_PROCESS"},
        {
            "names": ["dup2"],
            "action": "SCMP_ACT_ALLOW",
            "args": [
                {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 0xF0, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ"},
            ],
        },
        {
            "names": ["dup"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}],
        },
        {"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ]
    archs = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]
    path = write(tmp_path / "p.json", defaultAction="SCMP_ACT_ERRNO", archMap=archs, syscalls=rules)
    program = seccomp.program(path, DEFAULT, kernel="6.1.0-18-amd64")
    assert [judge(program, number) for number in (0, 165, 101, 95, 2)] == [ALLOW, 0x0005000D, ALLOW, EPERM, EPERM]
    assert judge(program, 62) == 0x80000000
    assert [judge(program, 33, 5, value) for value in (0x10, 0x1F, 0x20)] == [ALLOW, ALLOW, EPERM]
    assert [judge(program, 32, value) for value in (1, 2, 3)] == [ALLOW, ALLOW, EPERM]
    assert judge(program, 3, arch=X86) == ALLOW
    assert judge(seccomp.program(path, capabilities.ALL), 165) == ALLOW
    assert judge(seccomp.program(path, DEFAULT, kernel="4.4.0"), 101) == EPERM


@needs_library
def test_a_profile_that_allows_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", defaultAction="SCMP_ACT_ALLOW", syscalls=[{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}])
    program = seccomp.program(path, DEFAULT)
    assert [judge(program, number) for number in (90, 0, 600)] == [EPERM, ALLOW, ALLOW]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"defaultAction": "ALLOW"}',
        '{"defaultAction": "SCMP_ACT_NOTIFY"}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_NOTIFY"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "name": "b", "action": "SCMP_ACT_ERRNO"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ["kill"]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_65"]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", '
        '"args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", '
        '"args": [{"index": 0, "value": 1, "op": "SCMP_CMP_ALMOST"}]}]}',
        "[" * 100000,
        '{"defaultAction": 7}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ["read"]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1,'
        ' "op": "SCMP_CMP_EQ"}]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1,'
        ' "op": "SCMP_CMP_ODD"}]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "x"}}]}',
    ],
)
def test_bad_profiles(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"decoding seccomp profile .*bad\.json failed"):
        seccomp.program(str(path), DEFAULT)


def test_missing_profile() -> None:
    with pytest.raises(InvalidArgument, match=r"opening seccomp profile \(/nowhere\) failed: No such file"):
        seccomp.program("/nowhere", DEFAULT)


@needs_library
def test_the_cache_replaces_the_compiler(tmp_path: Path, default: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path / "new" / "cache")
    assert seccomp.program("default", DEFAULT, cache=cache) == default
    monkeypatch.setattr(seccomp_profile, "_library", lambda: pytest.fail("compiled again"))
    assert seccomp.program("", DEFAULT, cache=cache) == default
    assert len(os.listdir(cache)) == 1


@needs_library
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-8], lambda data: data[:100] + b"\xff" + data[101:]])
def test_a_damaged_cache_is_repaired(tmp_path: Path, default: bytes, damage: Any) -> None:
    cache = str(tmp_path)
    seccomp.program("default", DEFAULT, cache=cache)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert seccomp.program("default", DEFAULT, cache=cache) == default
    assert entry.read_bytes() == whole


@needs_library
def test_profiles_are_cached_by_content_and_capabilities(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    path = tmp_path / "p.json"
    for action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"):
        write(path, defaultAction=action)
        for caps in (0, 1):
            assert judge(seccomp.program(str(path), caps, cache=cache), 0) == (ALLOW if action.endswith("ALLOW") else 0x7FFC0000)
    assert len(os.listdir(cache)) == 4


@needs_library
def test_an_unwritable_cache_costs_nothing_but_time(default: bytes) -> None:
    assert seccomp.program("default", DEFAULT, cache="/proc/nowhere") == default


def test_without_the_library_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("not found")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(HostError, match="libseccomp is not installed") as caught:
        seccomp.program("default", DEFAULT)
    assert "libseccomp2" in caught.value.hint


@needs_library
def test_operators_and_actions_of_a_profile_given_as_text() -> None:
    def rule(name: str, action: str, *condition: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"names": [name], "action": f"SCMP_ACT_{action}"}
        return made | ({"args": [{"index": 0, "op": f"SCMP_CMP_{condition[0]}", "value": condition[1]}]} if condition else {})

    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_MIPS"],
            "syscalls": [
                rule("read", "ALLOW", "LT", 5),
                rule("write", "ALLOW", "LE", 5),
                rule("close", "ALLOW", "GE", 5),
                rule("dup", "ALLOW", "GT", 5),
                rule("alarm", "ALLOW", "NE", 5),
                rule("kill", "LOG"),
                rule("pause", "TRAP"),
                rule("getpid", "KILL_THREAD"),
                rule("umask", "TRACE") | {"errnoRet": 7},
            ],
        }
    )
    program = seccomp.program(text, DEFAULT)
    for number, allowed in ((0, (4,)), (1, (4, 5)), (3, (5, 6)), (32, (6,)), (37, (4, 6))):
        assert [value for value in (4, 5, 6) if judge(program, number, value) == ALLOW] == list(allowed)
    assert [judge(program, number) for number in (62, 34, 39, 95)] == [0x7FFC0000, 0x00030000, 0, 0x7FF00007]
    assert judge(program, 57) == 0x0005000D
    assert judge(program, 39, arch=X86) == 0x0005000D  # another number there


def test_flags() -> None:
    assert seccomp.flags("default") == seccomp.flags("unconfined") == 0
    text = '{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}'
    assert seccomp.flags(text) == 6
    with pytest.raises(InvalidArgument, match="FLAG_NEW_LISTENER is not supported"):
        seccomp.flags('{"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}')


def test_a_huge_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile"
    path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(InvalidArgument, match="larger than 1 MiB"):
        seccomp.program(str(path), DEFAULT)
