"""`nacre doctor`: what this host offers, what it lacks, and the exact command that fixes each lack.

The kernel is asked by `nacre.linux.kernel` in a process of its own, which is killed when it hangs; tools are asked for their
version with a time limit. So this never crashes, never hangs, and says what it can without root.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

from nacre.errors import NacreError
from nacre.model.value import Value

_SEARCH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED = ("SYS_ADMIN", "NET_ADMIN", "MKNOD", "CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "SETFCAP", "SYS_CHROOT", "KILL")

# Debian's packages that Fedora and its relatives name otherwise.
_DNF_NAMES = {
    "libseccomp2": "libseccomp",
    "linux-image-amd64": "kernel",
    "linux-image-cloud-amd64": "kernel-core",
    "linux-image-arm64": "kernel",
    "linux-image-cloud-arm64": "kernel-core",
    "qemu-system-x86": "qemu-system-x86-core",
    "qemu-system-arm": "qemu-system-aarch64-core",
    "uidmap": "shadow-utils",
}


class Check(Value):
    """One finding. fix: the command that helps, "" = nothing to do.

    status: ok; warn: less works (a level, a feature) or works less well; fail: an ordinary `nacre run` cannot work; info.
    """

    name: str
    status: str
    found: str
    fix: str = ""


class Host(Value):
    """Everything the checks look at, gathered once. kernel: see `nacre.linux.kernel.facts`, {} when it could not be asked.

    distribution: ID and ID_LIKE of os-release(5); programs: name -> path; versions: name -> first line of its --version;
    devices: the devices that QEMU knows; guests: kind (minimal, distribution) -> path of a guest kernel; sharing: those of the
    kinds that can mount the host's directories; obstacle: why no guest runs on KVM, "" = one does, None = not known;
    free, size: bytes on the disk of `root`; obstacles: (problem, way out) of what keeps an ordinary user from having containers;
    delegation: the controllers that an ordinary user may set limits with, or how to get them.
    """

    kernel: dict[str, Any] = {}
    problem: str = ""
    distribution: tuple[str, ...] = ()
    machine: str = "x86_64"
    uid: int = 0
    programs: dict[str, str] = {}
    versions: dict[str, str] = {}
    devices: str = ""
    guests: dict[str, str] = {}
    sharing: tuple[str, ...] = ()
    obstacle: str | None = None
    root: str = "/var/lib/nacre"
    free: int = 0
    size: int = 0
    obstacles: tuple[tuple[str, str], ...] = ()
    delegation: tuple[tuple[str, ...], str] = ((), "")
    engines: tuple[str, ...] = ()

    def install(self, *packages: str) -> str:
        """The command that installs Debian packages, or their counterparts."""
        if {"debian", "ubuntu"} & set(self.distribution):
            return f"apt-get install {' '.join(packages)}"
        return f"dnf install {' '.join(dict.fromkeys(_DNF_NAMES.get(name, name) for name in packages))}"


_NOTHING_DELEGATED: tuple[tuple[str, ...], str] = ((), "")
_T = TypeVar("_T")
Problems = Callable[[], list[tuple[str, str]]]


def checks(root: str = "", run: str = "", *, network: Problems | None = None, host: Host | None = None) -> list[Check]:
    """Look at everything. Never raises. Boots one guest when KVM looks usable and nobody has tried since the host booted.

    root, run: the engine's directories, "" = as for `Engine`. network: problems of container networks as (problem, way out).
    host: what was gathered before.
    """
    host = host or gather(root, run)
    found: list[Check] = []
    for part in _PARTS:
        found += _guarded(part.__name__.strip("_").replace("_", " "), functools.partial(part, host))
    found += _guarded("network", lambda: _network(host, network))
    return sorted(found, key=lambda check: _ORDER.index(check.name) if check.name in _ORDER else len(_ORDER))


def user_checks(root: str | None = None, run: str | None = None) -> list[Check]:
    """The same for an ordinary user, without entering or making the user's namespaces. Never raises."""
    from nacre.isolation import rootless
    from nacre.network.rootless import obstacles

    return checks(*rootless.directories(root, run), network=obstacles)


_ORDER = [
    "kernel", "privileges", "rootless", "limits", "namespaces", "user namespaces", "cgroups", "cgroup controllers", "overlayfs", "erofs",
    "mkfs.erofs", "mkfs.ext4", "seccomp", "nftables", "ip forwarding", "network", "disk space", "kvm", "qemu", "guest kernel, minimal",
    "guest kernel, distribution", "shared directories in VMs", "other engines",
]  # fmt: skip


def _guarded(name: str, part: Callable[[], list[Check]]) -> list[Check]:
    """A check that fails in a way nobody foresaw is itself a finding."""
    try:
        return part()
    except Exception as error:
        return [Check(name=name, status="warn", found=f"could not be checked: {type(error).__name__}: {error}")]


# The checks


def _kernel(host: Host) -> list[Check]:
    text = host.kernel.get("release") or os.uname().release
    version = _numbers(text)
    image = host.install(f"linux-image-{'arm64' if host.machine == 'aarch64' else 'amd64'}")
    if host.problem:
        return [Check(name="kernel", status="warn", found=f"Linux {text}; its abilities could not be tried: {host.problem}")]
    if version < (5, 6):
        return [Check(name="kernel", status="fail", found=f"Linux {text}; 5.6 or newer is needed (openat2)", fix=image)]
    if version < (5, 12):
        return [Check(name="kernel", status="warn", found=f"Linux {text}; without id-mapped mounts (5.12)", fix=image)]
    return [Check(name="kernel", status="ok", found=f"Linux {text} {host.machine}")]


def _privileges(host: Host) -> list[Check]:
    if host.uid:
        return [Check(name="privileges", status="info", found=f"user id {host.uid}, not root"), _rootless(host), _delegation(host)]
    if not host.kernel:
        return [Check(name="privileges", status="info", found="root; its capabilities are unknown")]
    held = {name.removeprefix("CAP_") for name in host.kernel["capabilities"]}
    lacking = [name for name in _NEEDED if name not in held]
    if lacking:
        way = "start the container or service that this runs in with these capabilities (docker: --privileged)"
        return [Check(name="privileges", status="fail", found=f"root without {' '.join(lacking)}", fix=way)]
    if "SYS_RESOURCE" not in held:
        return [
            Check(name="privileges", status="info", found="root without SYS_RESOURCE: limits cannot be raised above this process's own")
        ]
    return [Check(name="privileges", status="ok", found="root")]


def _rootless(host: Host) -> Check:
    """Whether this ordinary user can have containers."""
    if not host.obstacles:
        return Check(name="rootless", status="ok", found="user namespaces, subordinate ids and newuidmap are there")
    problems, ways = zip(*host.obstacles, strict=True)
    return Check(name="rootless", status="fail", found="; ".join(problems), fix="; ".join(ways))


def _delegation(host: Host) -> Check:
    """Whether this ordinary user's containers can have limits."""
    controllers, way = host.delegation
    if controllers:
        return Check(name="limits", status="ok", found=f"delegated to this user: {' '.join(controllers)}")
    return Check(name="limits", status="info", found="no control group is delegated to this user: containers run without limits", fix=way)


def _namespaces(host: Host) -> list[Check]:
    states: dict[str, str] = host.kernel.get("namespaces", {})
    if not states:
        return []
    missing = {name: reason for name, reason in states.items() if reason != "ok"}
    good = " ".join(name for name in states if name not in missing)
    if not missing:
        return [Check(name="namespaces", status="ok", found=good)]
    serious = set(missing) - {"time", "user"}
    reasons = ", ".join(f"{name}: {reason}" for name, reason in missing.items())
    way = "use a kernel with CONFIG_NAMESPACES and its parts; inside a container start it with more privileges"
    return [Check(name="namespaces", status="fail" if serious else "warn", found=f"{good or 'none'} (not {reasons})", fix=way)]


def _user_namespaces(host: Host) -> list[Check]:
    values: dict[str, str] = host.kernel.get("sysctls", {})
    for name, bad, wanted in (
        ("user.max_user_namespaces", "0", "15000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        only_users = name != "user.max_user_namespaces"  # root may make them whatever these two say
        if values.get(name) == bad and (host.uid or not only_users):
            return [Check(name="user namespaces", status="warn", found=f"{name} = {bad}", fix=f"sysctl -w {name}={wanted}")]
    most = values.get("user.max_user_namespaces", "")
    return [Check(name="user namespaces", status="ok", found=f"up to {most}")] if most else []


def _cgroups(host: Host) -> list[Check]:
    state = host.kernel.get("cgroups")
    if not state:
        return []
    kind = {"v2": "v2 (unified)", "v1": "v1", "hybrid": "v1 and v2 (hybrid)", "none": "none mounted"}[state["kind"]]
    if state["kind"] == "none":
        return [Check(name="cgroups", status="fail", found=kind, fix="mount -t cgroup2 none /sys/fs/cgroup")]
    found = [Check(name="cgroups", status="ok", found=kind)]
    if not state["writable"] and not host.uid:
        way = "mount -o remount,rw /sys/fs/cgroup (in a container: start it with writable cgroups)"
        found = [Check(name="cgroups", status="fail", found=f"{kind}, read-only", fix=way)]
    names = " ".join(sorted({*state["v1"], *state["v2"]}))
    lacking = state["lacking"]
    if lacking:
        way = (
            "add cgroup_enable=memory to the kernel command line and reboot"
            if "memory" in lacking
            else "use a kernel with these controllers"
        )
        text = f"{names or 'none'} (not {', '.join(lacking)}: their limits are ignored)"
        return [*found, Check(name="cgroup controllers", status="warn", found=text, fix=way)]
    return [*found, Check(name="cgroup controllers", status="ok", found=names)]


def _overlay(host: Host) -> list[Check]:
    state = host.kernel.get("overlay", "")
    if state in ("", "ok"):
        return [Check(name="overlayfs", status="ok", found="mounts and writes")] if state else []
    present = host.kernel.get("filesystems", {}).get("overlay")
    if host.uid:
        return [Check(name="overlayfs", status="info", found=f"not for this user: {state}")]
    way = "modprobe overlay" if present == "module" else "use a kernel with CONFIG_OVERLAY_FS"
    return [Check(name="overlayfs", status="warn", found=f"{state}: every container gets a full copy of its image", fix=way)]


def _erofs(host: Host) -> list[Check]:
    mkfs = host.programs.get("mkfs.erofs", "")
    kernel = host.kernel.get("filesystems", {}).get("erofs", "")
    found = []
    if not mkfs:
        text = "not installed: needed for compressed layers only, and for this page to try EROFS"
        found.append(Check(name="mkfs.erofs", status="info", found=text, fix=host.install("erofs-utils")))
    else:
        version = _numbers(host.versions.get("mkfs.erofs", ""))
        found.append(Check(name="mkfs.erofs", status="ok", found=".".join(map(str, version))))
    state = host.kernel.get("erofs", "")
    if state in ("file", "loop"):
        how = "file-backed mounts" if state == "file" else "mounts through loop devices (Linux 6.12 does without)"
        found.append(Check(name="erofs", status="ok", found=how))
    elif host.kernel and not kernel:
        way = "use a kernel with CONFIG_EROFS_FS"
        found.append(Check(name="erofs", status="warn", found="not in this kernel: layers are kept as directories", fix=way))
    elif state and not host.uid:
        found.append(Check(name="erofs", status="warn", found=f"cannot be mounted: {state}", fix="modprobe erofs; modprobe loop"))
    return found


def _tools(host: Host) -> list[Check]:
    if "mkfs.ext4" in host.programs:
        return [Check(name="mkfs.ext4", status="ok", found=host.programs["mkfs.ext4"])]
    return [Check(name="mkfs.ext4", status="warn", found="not installed: no VMs", fix=host.install("e2fsprogs"))]


def _seccomp(host: Host) -> list[Check]:
    state = host.kernel.get("libraries", {}).get("libseccomp.so.2", "")
    if state in ("", "ok"):
        return [Check(name="seccomp", status="ok", found="libseccomp 2")] if state else []
    return [Check(name="seccomp", status="fail", found="libseccomp is not installed: no default profile", fix=host.install("libseccomp2"))]


def _network(host: Host, problems: Callable[[], list[tuple[str, str]]] | None) -> list[Check]:
    program = host.programs.get("nft", "")
    found = []
    if program:
        found.append(Check(name="nftables", status="ok", found=program))
    else:
        found.append(
            Check(name="nftables", status="fail", found="not installed: no networks, no published ports", fix=host.install("nftables"))
        )
    forwarding = host.kernel.get("sysctls", {}).get("net.ipv4.ip_forward", "")
    if forwarding:
        text = "on" if forwarding == "1" else "off; the first network switches it on"
        found.append(Check(name="ip forwarding", status="ok" if forwarding == "1" else "info", found=text))
    if problems is not None and program:
        found += [Check(name="network", status="warn", found=problem, fix=way) for problem, way in problems()]
    return found


def _disk(host: Host) -> list[Check]:
    text = f"{host.free / 1e9:.1f} GB free of {host.size / 1e9:.0f} GB below {host.root}"
    if host.free >= 5e9:
        return [Check(name="disk space", status="ok", found=text)]
    return [Check(name="disk space", status="fail" if host.free < 5e8 else "warn", found=text, fix="nacre image prune")]


def _kvm(host: Host) -> list[Check]:
    device = host.kernel.get("kvm", "")
    slow = "VMs are emulated: they work, several times slower"
    hardware = host.kernel.get("virtualization", ())
    if not device:
        return []
    if device == "ok" and host.obstacle == "":
        return [Check(name="kvm", status="ok", found="usable: a guest runs on it")]
    if device == "ok" and host.obstacle is None and (hardware or host.machine != "x86_64"):
        return [Check(name="kvm", status="ok", found="/dev/kvm creates virtual machines; no guest was tried")]
    if device == "ok":
        reason = host.obstacle or "the processor shows neither VT-x nor AMD-V, and no guest was tried"
        return [Check(name="kvm", status="warn", found=f"not usable: {reason}; {slow}")]
    if device == "absent":
        firmware = "switch on virtualization (VT-x, AMD-V) in the firmware, or nested virtualization"
        way = f"modprobe kvm_{'intel' if 'vmx' in hardware else 'amd'}" if hardware else firmware
        return [Check(name="kvm", status="warn", found=f"no /dev/kvm; {slow}", fix=way)]
    way = "end the hypervisor that uses the processor, or update the kernel"
    if device == "Permission denied":
        way = "usermod -aG kvm $USER, then log in again"
    return [Check(name="kvm", status="warn", found=f"/dev/kvm: {device}; {slow}", fix=way)]


def _qemu(host: Host) -> list[Check]:
    name = f"qemu-system-{host.machine}"
    if name in host.programs:
        version = ".".join(map(str, _numbers(host.versions.get(name, ""))))
        return [Check(name="qemu", status="ok", found=f"{version} at {host.programs[name]}")]
    package = host.install("qemu-system-arm" if host.machine == "aarch64" else "qemu-system-x86")
    return [Check(name="qemu", status="warn", found=f"{name} is not installed: no VMs", fix=package)]


def _guests(host: Host) -> list[Check]:
    minimal, cloud = host.guests.get("minimal", ""), host.guests.get("distribution", "")
    image = host.install(f"linux-image-cloud-{'arm64' if host.machine == 'aarch64' else 'amd64'}")
    missing = "info" if host.guests else "warn"
    found = [
        Check(name="guest kernel, minimal", status="ok", found=minimal),
        Check(name="guest kernel, distribution", status="ok", found=cloud),
    ]
    if not minimal:
        found[0] = found[0].replace(status=missing, found="not built; VMs start faster with it", fix="make guest-kernel")
    if not cloud:
        found[1] = found[1].replace(status=missing, found="not installed", fix="" if minimal else image)
    return found


def _shares(host: Host) -> list[Check]:
    """Directories of the host in a VM go through 9p: QEMU serves it, the guest kernel mounts it."""
    name = "shared directories in VMs"
    if not host.devices or not host.guests:
        return []
    if "virtio-9p" not in host.devices:
        text = "QEMU was built without virtio-9p: no bind mounts and volumes in VMs"
        return [Check(name=name, status="warn", found=text, fix=host.install("qemu-system-common"))]
    if not host.sharing:
        text = f"no guest kernel has 9p ({', '.join(host.guests)}): no bind mounts and volumes in VMs"
        return [Check(name=name, status="warn", found=text, fix="make guest-kernel")]
    lacking = [kind for kind in host.guests if kind not in host.sharing]
    text = f"9p in QEMU and in the {' and the '.join(host.sharing)} guest kernel{f', not in the {lacking[0]} one' if lacking else ''}"
    return [Check(name=name, status="ok", found=text)]


def _others(host: Host) -> list[Check]:
    return [Check(name="other engines", status="info", found=", ".join(host.engines))] if host.engines else []


_PARTS = (
    _kernel, _privileges, _namespaces, _user_namespaces, _cgroups, _overlay, _erofs, _tools, _seccomp, _disk, _kvm, _qemu, _guests, _shares,
    _others,
)  # fmt: skip


# Gathering


def gather(root: str = "", run: str = "") -> Host:
    """Look at this host once. Never raises; takes a fraction of a second, at most the sum of the time limits."""
    from nacre.isolation import rootless

    root = root or os.environ.get("NACRE_ROOT") or "/var/lib/nacre"
    machine = os.uname().machine
    qemu = f"qemu-system-{machine}"
    names = ("mkfs.erofs", "mkfs.ext4", "nft", qemu, "newuidmap", "newgidmap")
    programs = {name: path for name in names if (path := shutil.which(name, path=_SEARCH))}
    kernel, problem = _ask_kernel(programs.get("mkfs.erofs", ""))
    versions = {
        name: _run([programs[name], flag])[0].partition("\n")[0]
        for name, flag in (("mkfs.erofs", "-V"), (qemu, "--version"))
        if name in programs
    }
    free, size = _or((0, 0), lambda: _disk_usage(root))
    no_guests: tuple[dict[str, str], tuple[str, ...]] = ({}, ())
    guests, sharing = _or(no_guests, _guest_kernels)
    return Host(
        kernel=kernel,
        problem=problem,
        distribution=_distribution(),
        machine=machine,
        uid=os.geteuid(),
        programs=programs,
        versions=versions,
        devices=_run([programs[qemu], "-machine", "none", "-device", "help"])[0] if qemu in programs else "",
        guests=guests,
        sharing=sharing,
        obstacle=_or(None, lambda: _kvm_obstacle(run or os.environ.get("NACRE_RUN") or "/run/nacre"))
        if kernel.get("kvm") == "ok"
        else None,
        root=root,
        free=free,
        size=size,
        obstacles=tuple(_or([], rootless.obstacles)) if os.geteuid() else (),
        delegation=_or(_NOTHING_DELEGATED, rootless.delegation) if os.geteuid() else _NOTHING_DELEGATED,
        engines=_engines(),
    )


def _or(otherwise: _T, look: Callable[[], _T]) -> _T:
    """What `look` returns, or a default when it fails in whatever way."""
    try:
        return look()
    except Exception:
        return otherwise


def _ask_kernel(mkfs: str) -> tuple[dict[str, Any], str]:
    """Facts from `nacre.linux.kernel`, or {} and the reason."""
    import json

    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {package!r}); from nacre.linux import kernel; kernel.main()"
    place = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None  # on a disk: EROFS does not mount files of a tmpfs
    try:
        with tempfile.TemporaryDirectory(prefix="nacre-doctor-", dir=place, ignore_cleanup_errors=True) as directory:
            out, problem = _run([sys.executable, "-I", "-B", "-c", code, directory, mkfs], limit=20.0)
        return (json.loads(out), "") if not problem else ({}, problem)
    except (OSError, ValueError) as error:
        return {}, str(error)


def _run(argv: list[str], limit: float = 5.0) -> tuple[str, str]:
    """(standard output, reason of a failure). Kills the program and what it started when it takes longer than `limit` seconds."""
    import signal
    import subprocess

    environment = {**os.environ, "LC_ALL": "C", "PATH": _SEARCH}
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
    except OSError as error:
        return "", f"{argv[0]}: {error.strerror}"
    with process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return "", f"no answer within {limit:g} s"
    last = err.decode(errors="replace").strip().rpartition("\n")[2]
    return (out or err).decode(errors="replace"), (last or f"exit code {process.returncode}") if process.returncode else ""


def _numbers(text: str) -> tuple[int, int]:
    """The first "major.minor" in a text, (0, 0) when there is none."""
    import re

    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _distribution() -> tuple[str, ...]:
    words: list[str] = []
    with contextlib.suppress(OSError), open("/etc/os-release", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            if key in ("ID", "ID_LIKE"):
                words += value.strip("\"'").split()
    return tuple(words)


def _guest_kernels() -> tuple[dict[str, str], tuple[str, ...]]:
    """The guest kernels that boot, by kind, and the kinds that can mount the host's directories."""
    from nacre.isolation.microvm import kernels

    found, sharing = {}, []
    for path in kernels.candidates():
        kind = "minimal" if path == kernels.minimal() else "distribution"
        with contextlib.suppress(NacreError, OSError):
            kernel = kernels.inspect(path)
            if kind not in found:
                found[kind] = path
                sharing += [kind] if kernel.has_9p else []
    return found, tuple(sharing)


def _kvm_obstacle(run: str) -> str | None:
    """Why a guest does not run on KVM, "" when one does; None when none can be tried."""
    from nacre.isolation.microvm import accel, initramfs, kernels
    from nacre.isolation.process import stem_path

    obstacle = accel.kvm_obstacle()
    if obstacle:
        return obstacle
    with contextlib.suppress(NacreError, OSError):
        kernel = kernels.find()
        return accel.choose(kernel, initramfs.build(stem_path(), kernel.modules), accel.Facts(run)).reason.removeprefix("kvm unusable: ")
    return None


def _disk_usage(root: str) -> tuple[int, int]:
    """Free and total bytes of the file system that `root` is or will be on."""
    while not os.path.isdir(root) and root != "/":
        root = os.path.dirname(root) or "/"
    space = os.statvfs(root)
    return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize


def _engines() -> tuple[str, ...]:
    """Other engines on this host: those that run (their socket is there) and those whose program is installed."""
    running = {"docker": "/run/docker.sock", "containerd": "/run/containerd/containerd.sock", "podman": "/run/podman/podman.sock"}
    found = []
    for name in ("docker", "dockerd", "podman", "containerd", "crun", "runc", "incus", "lxd"):
        if os.path.exists(running.get(name, "")):
            found.append(f"{name} (running)")
        elif shutil.which(name, path=_SEARCH):
            found.append(name)
    return tuple(found)
