"""What a container may do and use: capabilities, filter, limits. Checked before anything exists, turned into plan values later."""

from __future__ import annotations

import os

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation.plan import MASKED, READ_ONLY, Security
from nacre.linux import capabilities, seccomp
from nacre.linux.process import RLIM_INFINITY, rlimit_number, signal_number
from nacre.model.container import ContainerSpec, Level, Resources, Ulimit

_OPTIONS = ("seccomp", "no-new-privileges", "systempaths", "apparmor", "label", "mask", "unmask")
_VALUES = {"no-new-privileges": ("", "true", "false"), "systempaths": ("unconfined",)}
_BUILTIN = ("", "default", "builtin", "unconfined")
# Kernel parameters that an IPC or network namespace has to itself (namespaces(7), ipc_namespaces(7)).
_OWN_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def check(spec: ContainerSpec) -> None:
    """Refuse limits, capabilities, options and kernels that cannot be had. Raises InvalidArgument."""
    if spec.resources != Resources():
        from nacre.isolation import limits

        limits.check(spec.resources, spec.isolation)
    if spec.cgroup_parent:
        from nacre.isolation import groups

        groups.below(spec.cgroup_parent, "any")
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
    _check_modules(spec)
    for path in (*_paths(spec, "mask"), *(path for path in _paths(spec, "unmask") if path != "ALL")):
        if not path.startswith("/") or ".." in path.split("/"):
            raise InvalidArgument(f"invalid --security-opt: {path!r} is no absolute path", hint="mask=/proc/one:/proc/other, unmask=ALL")
    if spec.kernel and spec.isolation is not Level.VM:
        raise InvalidArgument(f"--kernel {spec.kernel}: a container at level {spec.isolation} runs on the host's", hint="--isolation vm")
    if spec.stop_signal:
        signal_number(spec.stop_signal)
    if any((spec.pid, spec.ipc, spec.uts, spec.cgroupns, spec.userns)) or spec.network.startswith("container:"):
        from nacre.isolation import namespaces

        namespaces.check(spec)
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
    if spec.ipc == "host" and (name in _OWN_SYSCTLS or name.startswith("fs.mqueue.")):
        raise InvalidArgument(f"sysctl '{name}' not allowed in host ipc namespace", hint=f"set it on the host: sysctl -w {name}=...")
    if name not in _OWN_SYSCTLS and not name.startswith(("net.", "fs.mqueue.")):
        raise InvalidArgument(
            f"sysctl '{name}' is not allowed: it is the whole host's, not the container's",
            hint=f"set it on the host (sysctl -w {name}=...), or give the container a kernel of its own: --isolation vm",
        )


def _check_modules(spec: ContainerSpec) -> None:
    """What only a Linux security module can do is refused where there is none."""
    for text in spec.security_opt:
        name, value = _split(text)
        if name == "label" and value != "disable":
            raise Unsupported(
                f"--security-opt {text}: this version applies no SELinux labels", hint="--security-opt label=disable, or leave it out"
            )
        if name == "apparmor" and value != "unconfined":
            _check_profile(value, spec)


def _check_profile(name: str, spec: ContainerSpec) -> None:
    if not name or not name.isprintable():
        raise InvalidArgument("--security-opt apparmor: the name of a profile is missing", hint="apparmor=PROFILE, or apparmor=unconfined")
    if spec.isolation is not Level.PROCESS:
        raise Unsupported(f"--security-opt apparmor={name}: the guest's kernel has no AppArmor", hint="use --isolation process for it")
    if _first_line("/sys/module/apparmor/parameters/enabled") != "Y":
        raise Unsupported(f"--security-opt apparmor={name}: this host's kernel has no AppArmor, or it is off", hint="leave the option out")
    try:
        with open("/sys/kernel/security/apparmor/profiles", encoding="utf-8") as file:
            loaded = {line.rpartition(" (")[0] for line in file}
    except OSError:
        return  # securityfs is not mounted: the start of the container will tell
    if name not in loaded:
        raise InvalidArgument(f"AppArmor profile {name} is not loaded", hint=f"apparmor_parser -r FILE, with profile {name} in it")


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _split(text: str) -> tuple[str, str]:
    """Name and value; both `name=value` and Docker's older `name:value` are understood."""
    name, _, value = text.partition("=") if "=" in text else text.partition(":")
    return name, value


def options(spec: ContainerSpec) -> dict[str, str]:
    """The security options as a mapping, the last of a name."""
    return dict(_split(text) for text in spec.security_opt)


def _paths(spec: ContainerSpec, option: str) -> tuple[str, ...]:
    """The paths of all occurrences of `mask` or `unmask`, which are lists with colons."""
    values = (value for name, value in map(_split, spec.security_opt) if name == option)
    return tuple(path for value in values for path in value.split(":") if path)


def _visible(defaults: tuple[str, ...], unmask: tuple[str, ...]) -> tuple[str, ...]:
    """The defaults without what the caller wants to see: "ALL", paths, or patterns of the shell."""
    if not unmask:
        return defaults
    import fnmatch

    return () if "ALL" in unmask else tuple(path for path in defaults if not any(fnmatch.fnmatchcase(path, word) for word in unmask))


def visibility(spec: ContainerSpec, *, privileged: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths that are hidden from a container, and those that are read-only to it."""
    bare = spec.privileged or privileged or options(spec).get("systempaths") == "unconfined"
    unmask = ("ALL",) if bare else _paths(spec, "unmask")
    return (*_visible(MASKED, unmask), *_paths(spec, "mask")), _visible(READ_ONLY, unmask)


def embedded(spec: ContainerSpec) -> ContainerSpec:
    """The spec with the content of its seccomp profile in place of the path: the file may go. Raises InvalidArgument for a bad one."""
    chosen = [(text, *_split(text)) for text in spec.security_opt]
    if not any(name == "seccomp" and value not in _BUILTIN for _, name, value in chosen):
        return spec
    import json

    from nacre.linux import seccomp_profile

    made = []
    for text, name, value in chosen:
        if name == "seccomp" and value not in _BUILTIN:
            content, where = seccomp.load(value), "" if seccomp.is_text(value) else value
            mask = capabilities.resolve(spec.cap_add, spec.cap_drop, spec.privileged)
            seccomp_profile.parse(content, os.uname().machine, mask, os.uname().release, where)
            seccomp_profile.parse_flags(content, where)
            made.append(f"seccomp={json.dumps(json.loads(content), separators=(',', ':'))}")
        else:
            made.append(text)
    return spec.replace(security_opt=tuple(made))


def security(spec: ContainerSpec, cache: str, *, privileged: bool = False) -> Security:
    """The plan's values. cache: directory of compiled filters; privileged: this process more than its container (exec --privileged).

    Raises InvalidArgument, HostError.
    """
    chosen = options(spec)
    whole = spec.privileged or privileged
    mask = capabilities.resolve(spec.cap_add, spec.cap_drop, whole)
    # A privileged container has no filter unless it asks for one, as in Docker.
    profile = "unconfined" if privileged else chosen.get("seccomp", "unconfined" if whole else "default")
    # A guest's kernel starts with 4096 files at most; this is what systemd gives to everything on a host.
    files = (Ulimit(name="nofile", soft=1024, hard=524288),) if spec.isolation is Level.VM else ()
    chosen_limits = {limit.name: limit for limit in (*files, *spec.ulimits)}.values()
    limits = ((rlimit_number(limit.name), _limit(limit.soft), _limit(limit.hard)) for limit in chosen_limits)
    hidden, read_only = visibility(spec, privileged=privileged)
    apparmor = chosen.get("apparmor", "unconfined")
    return Security(
        capabilities=mask,
        seccomp=seccomp.program(profile, mask, cache=cache, kernel=_kernel(spec, profile)),
        seccomp_flags=seccomp.flags(profile),
        no_new_privileges=chosen.get("no-new-privileges", "false") in ("", "true"),
        hidden=hidden,
        read_only=read_only,
        apparmor="" if apparmor == "unconfined" else apparmor,
        rlimits=tuple(limits),
    )


def _kernel(spec: ContainerSpec, profile: str) -> str:
    """The release of the kernel that the filter runs on, for profiles that ask for one; "" = this host's."""
    if spec.isolation is not Level.VM or profile in _BUILTIN:
        return ""
    from nacre.isolation.microvm import kernels

    return kernels.find(spec.kernel).version


def _limit(value: int) -> int:
    return RLIM_INFINITY if value < 0 else value
