"""What a container may do and use: capabilities, filter, limits. Checked before anything exists, turned into plan values later."""

from __future__ import annotations

from nacre.errors import InvalidArgument
from nacre.isolation.plan import Security
from nacre.linux import capabilities, cgroups, seccomp
from nacre.linux.process import RLIM_INFINITY, rlimit_number
from nacre.model.container import ContainerSpec

_OPTIONS = ("seccomp", "no-new-privileges", "systempaths", "apparmor", "label")


def check(spec: ContainerSpec) -> None:
    """Refuse limits, capabilities and options that cannot be had. Raises InvalidArgument."""
    cgroups.check(spec.resources)
    capabilities.resolve(spec.cap_add, spec.cap_drop, spec.privileged)
    for limit in spec.ulimits:
        rlimit_number(limit.name)
        if -1 < limit.hard < limit.soft or (limit.soft == -1 < limit.hard):
            raise InvalidArgument(f"ulimit {limit.name}: the soft limit {limit.soft} exceeds the hard limit {limit.hard}")
    for option in options(spec):
        if option not in _OPTIONS:
            raise InvalidArgument(f"invalid --security-opt: {option!r}", hint=f"one of {', '.join(_OPTIONS)}")
    if spec.userns not in ("", "host", "private"):
        raise InvalidArgument(f"invalid user namespace mode: {spec.userns!r}", hint="host or private")


def options(spec: ContainerSpec) -> dict[str, str]:
    """The security options as a mapping; both `name=value` and Docker's older `name:value` are understood."""
    pairs = (option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=") for option in spec.security_opt)
    return {name: value for name, _, value in pairs}


def security(spec: ContainerSpec, cache: str, *, privileged: bool = False) -> Security:
    """The plan's values. cache: directory of compiled filters; privileged: this process more than its container (exec --privileged).

    Raises InvalidArgument, HostError.
    """
    chosen = options(spec)
    whole = spec.privileged or privileged
    mask = capabilities.resolve(spec.cap_add, spec.cap_drop, whole)
    profile = "unconfined" if whole else chosen.get("seccomp", "default")
    limits = ((rlimit_number(limit.name), _limit(limit.soft), _limit(limit.hard)) for limit in spec.ulimits)
    return Security(
        capabilities=mask,
        seccomp=seccomp.program(profile, mask, cache=cache),
        no_new_privileges=chosen.get("no-new-privileges", "false") in ("", "true"),
        masked=not whole and chosen.get("systempaths") != "unconfined",
        rlimits=tuple(limits),
    )


def _limit(value: int) -> int:
    return RLIM_INFINITY if value < 0 else value
