"""The control group of an OCI container: `linux.cgroupsPath` is a path below the mount of every controller (config-linux.md)."""

from __future__ import annotations

import os

from nacre.errors import InvalidArgument, Unsupported
from nacre.linux import cgroups
from nacre.linux.cgroups import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PARENT = "/nacre-oci"


def planned(path: str, name: str, resources: dict[str, Any], *, systemd: bool = False) -> Cgroup:
    """The group at `path` ("" = one of our own, named after the container) for these resources. Touches nothing.

    Raises InvalidArgument, Unsupported.
    """
    where = cgroups.layout()
    if systemd:
        raise Unsupported(
            "--systemd-cgroup: systemd does not manage the control groups of this host",
            hint="use the cgroupfs manager (podman --cgroup-manager cgroupfs; containerd: SystemdCgroup = false)",
        )
    if ".." in path.split("/"):
        raise InvalidArgument(f'linux.cgroupsPath: "{path}" leads upwards')
    relative = os.path.normpath("/" + path).replace("//", "/") if path else f"{_PARENT}/{name}"
    if relative == "/":
        raise InvalidArgument(f'linux.cgroupsPath: "{path}" is the root of the hierarchy')
    directories = {controller: f"{point}{relative}" for controller, point in where.v1.items()}
    # Beside v1 it would only count processes, and joining it costs 15 ms (the kernel waits for RCU).
    if where.unified and (not where.v1 or where.unified in where.track or _needs_v2(where, resources)):
        directories["unified"] = f"{where.unified}{relative}"
    return Cgroup(name, where, directories)


def _needs_v2(where: cgroups.Layout, resources: dict[str, Any]) -> bool:
    """Is a limit wanted whose controller is there, of a host that has the others on v1?"""
    limits = {key: value for key, value in resources.items() if key != "devices" and value}
    if not limits or not where.v2:
        return False
    from nacre.linux import cgroups_limits

    return "unified" in limits or bool(set(cgroups_limits.controllers(limits)) & set(where.v2) - set(where.v1))


def recorded(name: str, directories: dict[str, str]) -> Cgroup:
    """The group of a container as it was recorded; parts that are gone are left out."""
    return cgroups.existing(Cgroup(name, cgroups.layout(), directories))


def make(group: Cgroup, resources: dict[str, Any]) -> None:
    """Make a planned group and set its limits. Raises as `nacre.linux.cgroups.build`."""
    from nacre.linux import devices

    rules = devices.rules_of(resources["devices"]) if resources.get("devices") else None
    limits = {key: value for key, value in resources.items() if key != "devices"}
    cgroups.build(group, limits, rules=rules, fresh=False)


def update(group: Cgroup, resources: dict[str, Any]) -> None:
    """Change limits, and devices when there are any in `resources`. Raises as `nacre.linux.cgroups.Cgroup.limit`."""
    from nacre.linux import devices

    group.limit({key: value for key, value in resources.items() if key != "devices"})
    if resources.get("devices"):
        group.restrict(devices.rules_of(resources["devices"]))
