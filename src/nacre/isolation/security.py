"""What a container may do and use: capabilities, filter, limits. Checked before anything exists, turned into plan values later."""

from __future__ import annotations

from nacre.errors import InvalidArgument
from nacre.isolation.plan import Security
from nacre.linux import capabilities, seccomp
from nacre.linux.process import RLIM_INFINITY, rlimit_number, signal_number
from nacre.model.container import ContainerSpec, Level, Resources, Ulimit

_OPTIONS = ("seccomp", "no-new-privileges", "systempaths", "apparmor", "label")
_VALUES = {"no-new-privileges": ("", "true", "false"), "systempaths": ("unconfined",)}
# Kernel parameters that an IPC or network namespace has to itself (namespaces(7), ipc_namespaces(7)).
_OWN_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def check(spec: ContainerSpec) -> None:
    """Refuse limits, capabilities, options and kernels that cannot be had. Raises InvalidArgument."""
    if spec.resources != Resources():
        from nacre.isolation import limits

        limits.check(spec.resources, spec.isolation)
    capabilities.resolve(spec.cap_add, spec.cap_drop, spec.privileged)
    for limit in spec.ulimits:
        rlimit_number(limit.name)
        if -1 < limit.hard < limit.soft or (limit.soft == -1 < limit.hard):
            raise InvalidArgument(f"ulimit {limit.name}: the soft limit {limit.soft} exceeds the hard limit {limit.hard}")
    for option, value in options(spec).items():
        if option not in _OPTIONS:
            raise InvalidArgument(f"invalid --security-opt: {option!r}", hint=f"one of {', '.join(_OPTIONS)}")
        if option in _VALUES and value not in _VALUES[option]:
            words = ", ".join(word for word in _VALUES[option] if word)
            raise InvalidArgument(f"invalid --security-opt: {option}={value}", hint=f"the value is one of {words}")
    if spec.kernel and spec.isolation is not Level.VM:
        raise InvalidArgument(f"--kernel {spec.kernel}: a container at level {spec.isolation} runs on the host's", hint="--isolation vm")
    if spec.stop_signal:
        signal_number(spec.stop_signal)
    if spec.userns not in ("", "host", "private"):
        raise InvalidArgument(f"invalid user namespace mode: {spec.userns!r}", hint="host or private")
    for name in spec.sysctls:
        _check_sysctl(name, spec)


def _check_sysctl(name: str, spec: ContainerSpec) -> None:
    """A parameter that is not the container's own would be changed on the host, for everybody."""
    if not name.isascii() or not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or "" in name.split("."):
        raise InvalidArgument(f"invalid sysctl: {name!r}", hint="a name looks like net.ipv4.ip_forward")
    if spec.isolation is not Level.PROCESS:
        return
    if name.startswith("net.") and spec.network == "host":
        raise InvalidArgument(f"sysctl '{name}' not allowed in host network namespace", hint=f"set it on the host: sysctl -w {name}=...")
    if name not in _OWN_SYSCTLS and not name.startswith(("net.", "fs.mqueue.")):
        raise InvalidArgument(
            f"sysctl '{name}' is not allowed: it is the whole host's, not the container's",
            hint=f"set it on the host (sysctl -w {name}=...), or give the container a kernel of its own: --isolation vm",
        )


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
    # A guest's kernel starts with 4096 files at most; this is what systemd gives to everything on a host.
    files = (Ulimit(name="nofile", soft=1024, hard=524288),) if spec.isolation is Level.VM else ()
    chosen_limits = {limit.name: limit for limit in (*files, *spec.ulimits)}.values()
    limits = ((rlimit_number(limit.name), _limit(limit.soft), _limit(limit.hard)) for limit in chosen_limits)
    return Security(
        capabilities=mask,
        seccomp=seccomp.program(profile, mask, cache=cache),
        no_new_privileges=chosen.get("no-new-privileges", "false") in ("", "true"),
        masked=not whole and chosen.get("systempaths") != "unconfined",
        rlimits=tuple(limits),
    )


def _limit(value: int) -> int:
    return RLIM_INFINITY if value < 0 else value
