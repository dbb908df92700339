"""What doctor concludes from what it was told, without looking at this host."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nacre.engine import doctor
from nacre.engine.doctor import Check, Host

NAMES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def good(**changes: Any) -> dict[str, Any]:
    """A kernel that has everything."""
    return {
        "release": "6.12.1-amd64",
        "capabilities": [f"CAP_{name}" for name in (*doctor._NEEDED, "SYS_RESOURCE")],
        "namespaces": dict.fromkeys(NAMES, "ok"),
        "sysctls": {"user.max_user_namespaces": "1000", "net.ipv4.ip_forward": "1"},
        "cgroups": {"kind": "v2", "v1": [], "v2": ["cpu", "io", "memory", "pids"], "lacking": [], "writable": True},
        "overlay": "ok",
        "erofs": "file",
        "filesystems": {"overlay": "built-in", "erofs": "module"},
        "kvm": "ok",
        "virtualization": ["vmx"],
        "libraries": {"libseccomp.so.2": "ok"},
        **changes,
    }


def machine(**changes: Any) -> Host:
    """A host that has everything."""
    programs = {name: f"/usr/bin/{name}" for name in ("mkfs.erofs", "mkfs.ext4", "nft", "qemu-system-x86_64", "newuidmap", "newgidmap")}
    return Host(
        kernel=good(),
        distribution=("debian",),
        programs=programs,
        versions={"mkfs.erofs": "mkfs.erofs (erofs-utils) 1.8.6", "qemu-system-x86_64": "QEMU emulator version 10.0.2 (Debian)"},
        devices='name "virtio-9p-device"',
        guests={"minimal": "/m", "distribution": "/boot/vmlinuz-6.1-cloud"},
        sharing=("minimal",),
        obstacle="",
        free=10**11,
        size=10**12,
    ).replace(**changes)


def look(host: Host, **arguments: Any) -> dict[str, Check]:
    return {check.name: check for check in doctor.checks(host=host, **arguments)}


def test_a_host_with_everything_has_nothing_to_fix() -> None:
    found = look(machine())
    assert {check.status for check in found.values()} == {"ok"}
    assert not any(check.fix for check in found.values())
    assert found["qemu"].found == "10.0 at /usr/bin/qemu-system-x86_64"
    assert list(found)[:3] == ["kernel", "privileges", "namespaces"]


@pytest.mark.parametrize(
    ("kernel", "name", "status", "fix"),
    [
        ({"release": "5.4.0"}, "kernel", "fail", "apt-get install linux-image-amd64"),
        ({"release": "5.10.0"}, "kernel", "warn", "apt-get install linux-image-amd64"),
        ({"capabilities": ["CAP_CHOWN"]}, "privileges", "fail", "--privileged"),
        ({"namespaces": {**dict.fromkeys(NAMES, "ok"), "net": "Operation not permitted"}}, "namespaces", "fail", "privileges"),
        ({"namespaces": {**dict.fromkeys(NAMES, "ok"), "user": "No space left on device"}}, "namespaces", "warn", "privileges"),
        ({"sysctls": {"user.max_user_namespaces": "0"}}, "user namespaces", "warn", "sysctl -w user.max_user_namespaces=15000"),
        ({"cgroups": {"kind": "none", "v1": [], "v2": [], "lacking": [], "writable": True}}, "cgroups", "fail", "mount -t cgroup2"),
        (
            {"cgroups": {"kind": "v2", "v1": [], "v2": ["cpu"], "lacking": ["memory"], "writable": True}},
            "cgroup controllers",
            "warn",
            "cgroup_enable=memory",
        ),
        ({"cgroups": {"kind": "v1", "v1": ["memory"], "v2": [], "lacking": [], "writable": False}}, "cgroups", "fail", "remount,rw"),
        ({"overlay": "No such device", "filesystems": {"overlay": "module"}}, "overlayfs", "warn", "modprobe overlay"),
        ({"overlay": "No such device", "filesystems": {}}, "overlayfs", "warn", "CONFIG_OVERLAY_FS"),
        ({"erofs": "No such device", "filesystems": {}}, "erofs", "warn", "CONFIG_EROFS_FS"),
        ({"erofs": "mount failed (32)"}, "erofs", "warn", "modprobe loop"),
        ({"libraries": {"libseccomp.so.2": "cannot open"}}, "seccomp", "fail", "apt-get install libseccomp2"),
        ({"kvm": "absent"}, "kvm", "warn", "modprobe kvm_intel"),
        ({"kvm": "absent", "virtualization": []}, "kvm", "warn", "firmware"),
        ({"kvm": "Permission denied"}, "kvm", "warn", "usermod -aG kvm"),
        ({"kvm": "cannot create a virtual machine: Device or resource busy"}, "kvm", "warn", "hypervisor"),
    ],
)
def test_each_lack_of_the_kernel_has_its_fix(kernel: dict[str, Any], name: str, status: str, fix: str) -> None:
    check = look(machine(kernel=good(**kernel)))[name]
    assert check.status == status
    assert fix in check.fix


@pytest.mark.parametrize(
    ("missing", "name", "package", "status"),
    [
        ("mkfs.erofs", "mkfs.erofs", "erofs-utils", "info"),
        ("mkfs.ext4", "mkfs.ext4", "e2fsprogs", "warn"),
        ("qemu-system-x86_64", "qemu", "qemu-system-x86", "warn"),
    ],
)
def test_each_missing_program_has_its_package(missing: str, name: str, package: str, status: str) -> None:
    host = machine()
    check = look(host.replace(programs={key: path for key, path in host.programs.items() if key != missing}))[name]
    assert (check.status, check.fix) == (status, f"apt-get install {package}")


def test_other_distributions_use_their_own_names() -> None:
    host = machine(distribution=("fedora",), programs={}, kernel=good(libraries={"libseccomp.so.2": "no"}))
    found = look(host)
    assert found["seccomp"].fix == "dnf install libseccomp"
    assert found["nftables"].fix == "dnf install nftables"
    assert found["qemu"].fix == "dnf install qemu-system-x86-core"


def test_loop_mounts_and_old_tools_are_fine() -> None:
    found = look(machine(kernel=good(erofs="loop"), versions={"mkfs.erofs": "mkfs.erofs 1.5"}))
    assert (found["erofs"].status, found["mkfs.erofs"].status) == ("ok", "ok")
    assert found["mkfs.erofs"].found == "1.5"


def test_guest_kernels() -> None:
    found = look(machine(guests={}, sharing=()))
    assert found["guest kernel, distribution"].fix == "apt-get install linux-image-cloud-amd64"
    assert found["guest kernel, minimal"].fix == "make guest-kernel"
    assert {found["guest kernel, minimal"].status, found["guest kernel, distribution"].status} == {"warn"}
    found = look(machine(guests={"distribution": "/boot/vmlinuz"}))
    assert (found["guest kernel, minimal"].status, found["guest kernel, distribution"].status) == ("info", "ok")
    found = look(machine(guests={"minimal": "/m"}))
    assert (found["guest kernel, distribution"].status, found["guest kernel, distribution"].fix) == ("info", "")


def test_shared_directories_need_qemu_and_a_guest_kernel() -> None:
    name = "shared directories in VMs"
    assert look(machine())[name].found == "9p in QEMU and in the minimal guest kernel, not in the distribution one"
    assert look(machine(sharing=()))[name].fix == "make guest-kernel"
    assert look(machine(devices="virtio-blk"))[name].fix == "apt-get install qemu-system-common"
    assert name not in look(machine(guests={}))


@pytest.mark.parametrize(
    ("virtualization", "obstacle", "status", "found"),
    [
        (["svm"], "", "ok", "a guest runs"),
        ([], "", "ok", "a guest runs"),
        (["vmx"], None, "ok", "no guest was tried"),
        ([], None, "warn", "neither VT-x nor AMD-V"),
        (["vmx"], "a test guest did not boot within 10 s", "warn", "did not boot within 10 s"),
    ],
)
def test_the_word_of_a_guest_counts_more_than_the_device(virtualization: list[str], obstacle: str | None, status: str, found: str) -> None:
    check = look(machine(kernel=good(virtualization=virtualization), obstacle=obstacle))["kvm"]
    assert check.status == status
    assert found in check.found


def test_network_problems_are_passed_on() -> None:
    found = look(machine(), network=lambda: [("another firewall drops packets", "nft insert rule ...")])
    assert (found["network"].status, found["network"].fix) == ("warn", "nft insert rule ...")


def test_little_space() -> None:
    assert look(machine(free=10**9))["disk space"].status == "warn"
    assert look(machine(free=10**8))["disk space"].status == "fail"


def test_an_ordinary_user_learns_what_stands_in_the_way() -> None:
    host = machine(uid=1000, obstacles=(("no newuidmap", "apt-get install uidmap"), ("no ids", "usermod")), delegation=((), "systemd-run"))
    found = look(host.replace(kernel=good(sysctls={"kernel.unprivileged_userns_clone": "0"})))
    assert found["user namespaces"].fix == "sysctl -w kernel.unprivileged_userns_clone=1"
    assert (found["rootless"].status, found["rootless"].found) == ("fail", "no newuidmap; no ids")
    assert found["rootless"].fix == "apt-get install uidmap; usermod"
    assert (found["limits"].status, found["limits"].fix) == ("info", "systemd-run")
    found = look(host.replace(obstacles=(), delegation=(("memory", "pids"), "")))
    assert (found["rootless"].status, found["rootless"].fix) == ("ok", "")
    assert found["limits"].found == "delegated to this user: memory pids"


def test_a_kernel_that_did_not_answer_is_said_and_nothing_is_made_up() -> None:
    found = look(machine(kernel={}, problem="no answer within 20 s"))
    assert found["kernel"].status == "warn"
    assert "no answer" in found["kernel"].found
    assert not {"namespaces", "cgroups", "overlayfs", "seccomp", "kvm"} & set(found)


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> list[tuple[str, str]]:
        raise RuntimeError("boom")

    found = look(machine(kernel={"release": "6.1"}), network=broken)
    assert found["privileges"].status == "warn"
    assert "KeyError" in found["privileges"].found
    assert "boom" in found["network"].found


def test_programs_that_hang_or_fail_do_not_stop_it() -> None:
    assert doctor._run(["/bin/sh", "-c", "sleep 60 & sleep 60"], limit=0.05) == ("", "no answer within 0.05 s")
    assert doctor._run(["/nowhere/tool"]) == ("", "/nowhere/tool: No such file or directory")
    assert doctor._run(["/bin/sh", "-c", "echo one; echo bad >&2; exit 3"]) == ("one\n", "bad")
    assert doctor._run(["/bin/sh", "-c", "echo said >&2"])[0] == "said\n"


def test_disk_usage_of_a_directory_to_come() -> None:
    free, size = doctor._disk_usage("/nowhere/at/all")
    assert 0 < free <= size == os.statvfs("/").f_blocks * os.statvfs("/").f_frsize
