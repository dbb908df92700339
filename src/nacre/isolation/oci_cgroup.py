"""The control group of an OCI container, as it is made and as it was recorded; and its class of Intel RDT (config-linux.md)."""

from __future__ import annotations

import os

from nacre.errors import HostError, InvalidArgument, Unsupported
from nacre.isolation.groups import Group, group
from nacre.linux import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.model.bundle import Rdt

_PARENT = "/nacre-oci"
_RESCTRL = "/sys/fs/resctrl"


class Recorded(Group):
    """The group of a container that was made earlier, in the directories that were noted then."""

    def __init__(self, name: str, directories: dict[str, str], *, restrict: bool) -> None:
        self._noted = directories
        super().__init__("", name, restrict=restrict)

    def _directories(self, path: str) -> dict[str, str]:
        return self._noted

    def _present(self) -> None:
        if not self.exists:
            raise cgroups.gone(self.identifier, next(iter(self._noted.values()), ""))

    def freeze(self) -> None:
        """As `Group.freeze`; raises HostError when the group is gone."""
        self._present()
        super().freeze()

    def stats(self) -> dict[str, Any]:
        """As `Group.stats`; raises HostError when the group is gone."""
        self._present()
        return super().stats()

    def join_of(self, pid: int) -> tuple[str, ...]:
        """As `Group.join_of`; raises HostError when the group is gone: a process must not run without the container's limits."""
        self._present()
        return super().join_of(pid)


def planned(path: str, name: str, *, systemd: bool) -> Group:
    """The group at `linux.cgroupsPath`, "" = one named after the container. Touches nothing. Raises InvalidArgument."""
    if not path and not systemd:
        path = f"{_PARENT}/{name}"
    return group(path, name, systemd=systemd, restrict=os.geteuid() == 0)


def note(made: Group, path: str, *, systemd: bool) -> dict[str, Any]:
    """What is recorded of a group."""
    return {"path": path, "systemd": systemd, "directories": made.existing().directories}


def recorded(name: str, noted: dict[str, Any]) -> Group:
    """The group that `note` noted; none of its parts is there when another version wrote the note."""
    restrict = os.geteuid() == 0
    if noted.get("systemd"):
        return group(str(noted["path"]), name, systemd=True, restrict=restrict)
    return Recorded(name, noted.get("directories", {}), restrict=restrict)


def give(made: Group, owner: int, files: str = "/sys/kernel/cgroup/delegate") -> None:
    """Let the root of a user namespace divide its group on v2: the directory and the files that the kernel lists become its own.

    owner: host uid. Source: config-linux.md, "Cgroup ownership". Raises HostError.
    """
    directory = made.directories.get("unified", "")
    if not directory or made.where.v1:
        return
    try:
        with open(files, encoding="utf-8") as file:
            names = file.read().split()
    except FileNotFoundError:
        names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
    try:
        os.chown(directory, owner, -1)
        for name in names:
            if os.path.exists(f"{directory}/{name}"):
                os.chown(f"{directory}/{name}", owner, -1)
    except OSError as error:
        raise HostError(f"cannot give cgroup {directory} to uid {owner}: {os.strerror(error.errno or 0)}") from error


def join_class(rdt: Rdt, name: str) -> str:
    """Make (or find) a class of Intel RDT and set its schemata; the file that takes "0" to join it. Raises Unsupported, HostError."""
    if not os.path.exists(f"{_RESCTRL}/schemata"):
        raise Unsupported(
            "linux.intelRdt: this host has no resource control (Intel RDT)",
            hint=f"mount -t resctrl resctrl {_RESCTRL}, on a CPU that has it",
        )
    directory = f"{_RESCTRL}/{rdt.clos_id or name}"
    try:
        if rdt.clos_id and not rdt.schemata and not os.path.isdir(directory):
            raise InvalidArgument(f"linux.intelRdt.closID: there is no class {rdt.clos_id}", hint="give its schemata, or make it")
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/schemata", "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in rdt.schemata))
    except OSError as error:
        raise HostError(f"linux.intelRdt: {directory}: {os.strerror(error.errno or 0)}") from error
    return f"{directory}/tasks"


def leave_class(name: str) -> None:
    """Remove the class that was made for one container alone."""
    if os.path.isdir(f"{_RESCTRL}/{name}/mon_data"):
        os.rmdir(f"{_RESCTRL}/{name}")
