"""What `nacre-oci features` says about this host and this room (OCI runtime specification, features-linux.md)."""

from __future__ import annotations

import os

from nacre.isolation import oci_mounts
from nacre.linux import capabilities, cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMESPACES = {
    "cgroup": "cgroup", "ipc": "ipc", "mount": "mnt", "network": "net", "pid": "pid", "time": "time", "user": "user", "uts": "uts",
}  # fmt: skip


def mount_options() -> list[str]:
    """Options of mounts that are understood by the runtime itself; others go to the file system."""
    return list(oci_mounts.OPTIONS)


def linux() -> dict[str, Any]:
    """The parts of the `linux` object that depend on the host or on what is carried out here."""
    from nacre.linux import seccomp_profile

    where = cgroups.layout()
    return {
        "namespaces": [name for name, file in _NAMESPACES.items() if os.path.exists(f"/proc/self/ns/{file}")],
        "capabilities": list(capabilities.names(capabilities.ALL)),
        "cgroup": {
            "v1": bool(where.v1),
            "v2": bool(where.unified),
            "systemd": True,
            "systemdUser": True,
            "rdma": where.has("rdma"),
        },
        "seccompArchitectures": [f"SCMP_ARCH_{name}" for name in seccomp_profile.architectures()],
        "apparmor": {"enabled": _starts("/sys/module/apparmor/parameters/enabled", "Y")},
        "selinux": {"enabled": os.path.exists("/sys/fs/selinux/enforce")},
        "intelRdt": {"enabled": os.path.exists("/sys/fs/resctrl/schemata")},
        "mountExtensions": {"idmap": {"enabled": True}},
    }


def _starts(path: str, text: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().startswith(text)
    except OSError:
        return False
