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


def planned(path: str, name: str, *, systemd: bool = False) -> Cgroup:
    """The group at `path` ("" = one of our own, named after the container). Touches nothing. Raises InvalidArgument, Unsupported."""
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
    if where.unified and (not where.v1 or where.v2):
        directories["unified"] = f"{where.unified}{relative}"
    return Cgroup(name, where, directories)


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
