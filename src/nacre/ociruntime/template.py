"""spec: a config.json to start from, as runc's."""

from __future__ import annotations

import json
import os

from nacre.errors import Conflict, InvalidArgument
from nacre.model.bundle import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

TABLE_SPEC = {"bundle,b": "s", "rootless": "b"}
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def do_spec(call: Call, flags: Flags, operands: list[str]) -> int:
    """Write config.json into the bundle directory (or the present one). Raises Conflict when there is one."""
    if operands:
        raise InvalidArgument('nacre-oci: "spec" takes no arguments')
    path = os.path.join(flags.text("bundle") or ".", "config.json")
    data = json.dumps(configuration(rootless=flags.on("rootless")), indent="\t") + "\n"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(data)
    except FileExistsError:
        raise Conflict("File config.json exists. Remove it first") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {os.strerror(error.errno or 0)}") from error
    return 0


def configuration(*, rootless: bool) -> dict[str, Any]:
    """The configuration of a shell in `rootfs`."""
    spec: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "nacre",
        "mounts": _mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }
    return _without_root(spec) if rootless else spec


def _mounts() -> list[dict[str, Any]]:
    def mount(where: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": where, "type": kind, "source": source, **({"options": list(options)} if options else {})}

    safe = ("nosuid", "noexec", "nodev")
    return [
        mount("/proc", "proc", "proc"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", "size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", *safe),
        mount("/sys", "sysfs", "sysfs", *safe, "ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", *safe, "relatime", "ro"),
    ]


def _without_root(spec: dict[str, Any]) -> dict[str, Any]:
    """For an ordinary user: a user namespace with its one id, the host's network, no limits."""
    linux = spec["linux"]
    linux["namespaces"] = [item for item in linux["namespaces"] if item["type"] not in ("network", "user")] + [{"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    del linux["resources"]
    mounts = []
    for item in spec["mounts"]:
        if item["destination"] == "/sys":
            # sysfs shows the network namespace, which stays the host's: only a bind mount of the host's is permitted.
            item = {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}
        elif item["destination"] == "/sys/fs/cgroup":
            continue
        options = [option for option in item.get("options", []) if not option.startswith(("gid=", "uid="))]
        mounts.append({**item, "options": options} if options else item)
    spec["mounts"] = mounts
    return spec
