"""What a container may do: options checked early, turned into the plan's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nacre.errors import InvalidArgument
from nacre.isolation import security
from nacre.isolation.plan import MASKED, Security
from nacre.linux import capabilities, seccomp
from nacre.linux.process import RLIM_INFINITY
from nacre.model.container import ContainerSpec, Level, Resources, Ulimit

EVERYTHING = capabilities.ALL
FILTER = b"filter"


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A host that can give every capability, and a compiler of filters that only takes notes: (profile, capabilities)."""
    asked: list[tuple[str, int]] = []

    def program(profile: str, caps: int, *, cache: str = "", kernel: str = "") -> bytes:
        asked.append((profile, caps))
        return b"" if profile == "unconfined" else FILTER

    monkeypatch.setattr(capabilities, "held", lambda: EVERYTHING)
    monkeypatch.setattr(seccomp, "program", program)
    return asked


def spec(**fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", **fields)


def made(**fields: Any) -> Security:
    return security.security(spec(**fields), "/cache")


# -- values ----------------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert made() == Security(capabilities=capabilities.DEFAULT, seccomp=FILTER, no_new_privileges=False)


def test_the_filter_knows_the_capabilities(host: list[tuple[str, int]]) -> None:
    assert made(cap_drop=("ALL",), cap_add=("chown",)).capabilities == capabilities.bit("CHOWN")
    assert host == [("default", capabilities.bit("CHOWN"))]


def test_privileged_is_everything() -> None:
    assert made(privileged=True) == Security(capabilities=EVERYTHING, seccomp=b"", hidden=(), read_only=())


def test_exec_may_be_privileged_in_a_container_that_is_not() -> None:
    assert security.security(spec(), "", privileged=True) == Security(capabilities=EVERYTHING, seccomp=b"", hidden=(), read_only=())


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("no-new-privileges", "no_new_privileges", True),
        ("no-new-privileges=true", "no_new_privileges", True),
        ("no-new-privileges:true", "no_new_privileges", True),
        ("no-new-privileges=false", "no_new_privileges", False),
        ("seccomp=unconfined", "seccomp", b""),
        ("seccomp:unconfined", "seccomp", b""),
        ("systempaths=unconfined", "hidden", ()),
        ("systempaths=unconfined", "read_only", ()),
        ("unmask=ALL", "read_only", ()),
        ("unmask=ALL", "hidden", ()),
        ("unmask=/proc/*", "hidden", ("/sys/firmware", "/sys/devices/virtual/powercap")),
        ("unmask=/proc/sys:/proc/irq", "read_only", ("/proc/bus", "/proc/fs", "/proc/sysrq-trigger")),
        ("mask=/etc/shadow:/root", "hidden", (*MASKED, "/etc/shadow", "/root")),
    ],
)
def test_options(option: str, field: str, value: object) -> None:
    security.check(spec(security_opt=(option,)))
    assert getattr(made(security_opt=(option,)), field) == value


def test_the_content_of_a_profile_is_kept(host: list[tuple[str, int]], tmp_path: Path) -> None:
    path = tmp_path / "a:b=c.json"
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}')
    for option in (f"seccomp={path}", f"seccomp:{tmp_path}/plain.json"):
        (tmp_path / "plain.json").write_text(path.read_text())
        kept = security.embedded(spec(security_opt=(option, "no-new-privileges")))
        assert kept.security_opt == (
            'seccomp={"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}',
            "no-new-privileges",
        )
        assert security.embedded(kept) == kept
    assert security.security(kept, "").seccomp_flags == 2
    assert host[-1][0].startswith('{"defaultAction"')
    assert security.embedded(spec(security_opt=("seccomp=unconfined",))).security_opt == ("seccomp=unconfined",)
    with pytest.raises(InvalidArgument, match="opening seccomp profile"):
        security.embedded(spec(security_opt=("seccomp=/nowhere",)))


def test_a_privileged_container_may_have_a_filter(host: list[tuple[str, int]]) -> None:
    made(privileged=True, security_opt=("seccomp=builtin",))
    assert host[-1][0] == "builtin"
    security.security(spec(privileged=True, security_opt=("seccomp=builtin",)), "", privileged=True)
    assert host[-1][0] == "unconfined"


def test_limits() -> None:
    limits = (Ulimit(name="nofile", soft=10, hard=20), Ulimit(name="core", soft=-1, hard=-1))
    assert made(ulimits=limits).rlimits == ((7, 10, 20), (4, RLIM_INFINITY, RLIM_INFINITY))
    assert made(isolation=Level.VM).rlimits == ((7, 1024, 524288),)
    assert made(isolation=Level.VM, ulimits=limits[:1]).rlimits == ((7, 10, 20),)


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"cap_add": ("NONSENSE",)}, "unknown capability: NONSENSE"),
        ({"cap_drop": ("CAP_NONSENSE",)}, "unknown capability"),
        ({"security_opt": ("apparmour=x",)}, "invalid --security-opt: 'apparmour'"),
        ({"security_opt": ("no-new-privileges=maybe",)}, "no-new-privileges=maybe"),
        ({"security_opt": ("systempaths=all",)}, "systempaths=all"),
        ({"userns": "auto"}, "--userns: invalid mode 'auto'"),
        ({"security_opt": ("mask=proc",)}, "'proc' is no absolute path"),
        ({"security_opt": ("unmask=/proc/../etc",)}, "is no absolute path"),
        ({"security_opt": ("apparmor=",)}, "the name of a profile is missing"),
        ({"ulimits": (Ulimit(name="files", soft=1, hard=1),)}, "invalid ulimit type: files"),
        ({"ulimits": (Ulimit(name="nofile", soft=2, hard=1),)}, "soft limit 2 exceeds the hard limit 1"),
        ({"ulimits": (Ulimit(name="nofile", soft=-1, hard=1),)}, "soft limit -1 exceeds"),
        ({"resources": Resources(memory=1)}, "Minimum memory limit"),
        ({"sysctls": {"kernel.core_pattern": "|/x"}}, "is not allowed: it is the whole host's"),
        ({"sysctls": {"vm.swappiness": "0"}}, "is not allowed"),
        ({"sysctls": {"net.ipv4.ip_forward": "1"}, "network": "host"}, "not allowed in host network namespace"),
        ({"sysctls": {"net.ipv4/../../kernel/core_pattern": "|/x"}}, "invalid sysctl"),
        ({"sysctls": {"net..x": "1"}}, "invalid sysctl"),
        ({"sysctls": {"": "1"}}, "invalid sysctl"),
        ({"kernel": "minimal"}, "--kernel minimal: a container at level process"),
        ({"stop_signal": "NONSENSE"}, "Invalid signal: NONSENSE"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        security.check(spec(**fields))


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "kernel.shmmax", "fs.mqueue.msg_max", "net.ipv4.conf.eth0-1.forwarding"])
def test_parameters_of_its_own_namespaces(name: str) -> None:
    security.check(spec(sysctls={name: "1"}))


def test_a_kernel_of_its_own_has_all_parameters_to_itself() -> None:
    security.check(spec(sysctls={"vm.swappiness": "0", "net.core.somaxconn": "1"}, isolation=Level.VM))


def test_an_unlimited_hard_limit_goes_with_any_soft_one() -> None:
    security.check(spec(ulimits=(Ulimit(name="nofile", soft=5, hard=-1), Ulimit(name="core", soft=-1, hard=-1))))
