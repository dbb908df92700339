"""What others were attacked with, one test for each advisory, and what a runtime must survive: its own death, records of others.

The tests are written from the advisories; the way of the attack is in the docstring, what must hold is asserted from outside.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocibundle import PATIENCE, Bundle, Runtime, started

STEM = Path(__file__).resolve().parent.parent.parent / "src" / "nacre" / "bin" / "stem"
FEW_POWERS = ["CAP_KILL"]
ROOT_POWERS = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_CHOWN", "CAP_KILL"]


@pytest.fixture
def ours(runtime: str, tmp_path: Path) -> Iterator[Runtime]:
    """The runtime under test alone: the distribution's runc is not asked to withstand what is newer than it."""
    made = Runtime("ours", runtime, tmp_path / "state")
    yield made
    made.close()


def second(bundle: Bundle, name: str) -> Bundle:
    """Another bundle with the same root file system."""
    other = Bundle(bundle.directory.parent / name)
    other.directory.mkdir()
    other.config["root"]["path"] = str(bundle.rootfs)
    return other


# -- advisories --------------------------------------------------------------------------------------------------------------


def test_the_runtime_cannot_be_overwritten_from_inside(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2019-5736: a container opens /proc/PID/exe of the runtime that is on its way into it, and writes to the host's program."""
    before = hashlib.sha256(STEM.read_bytes()).hexdigest()
    bundle.shell("exec sleep 1000")
    waiting = ours.create(bundle)  # its first process is the runtime's program until `start`
    pid = ours.state(waiting)["pid"]
    attack = second(bundle, "attack")
    attack.config["linux"]["namespaces"][0]["path"] = f"/proc/{pid}/ns/pid"
    attack.config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), ROOT_POWERS)
    attack.shell("readlink /proc/1/exe; echo gone > /proc/1/exe; cat /proc/1/exe > /copy; exec 3< /proc/1/exe; echo gone > /proc/self/fd/3")
    said = ours.run(attack, code=None)
    assert "memfd:" in said.out, said  # otherwise the attack was not one
    attack.config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), FEW_POWERS)
    attack.shell("cat /proc/1/exe > /dev/null && echo readable")
    assert "readable" not in ours.run(attack, code=None).out  # not dumpable: without CAP_SYS_PTRACE it cannot even be opened
    assert hashlib.sha256(STEM.read_bytes()).hexdigest() == before
    ours("start", waiting)
    # The program itself as an interpreter of a script in the image: it runs as the container, from the sealed copy.
    (bundle.rootfs / "bad").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "bad").chmod(0o755)
    ours("exec", waiting, "/bad", code=None)
    assert hashlib.sha256(STEM.read_bytes()).hexdigest() == before


def test_a_mount_target_that_is_swapped_does_not_escape(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2021-30465: somebody exchanges a directory of the root file system for a link while mounts are being made."""
    outside = bundle.directory / "outside"
    outside.mkdir()
    (bundle.rootfs / "race").mkdir()
    (bundle.rootfs / "link").symlink_to("/../../../../../../../.." + str(outside))
    bundle.config["mounts"] += [{"destination": f"/race/{number}", "type": "tmpfs", "source": "tmpfs"} for number in range(20)]
    libc, over = ctypes.CDLL(None), threading.Event()

    def swap() -> None:
        one, other = str(bundle.rootfs / "race").encode(), str(bundle.rootfs / "link").encode()
        while not over.is_set():
            libc.renameat2(-100, one, -100, other, 2)  # RENAME_EXCHANGE
            time.sleep(0.0002)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(8):
            ours.run(bundle, code=None)
    finally:
        over.set()
        thread.join()
    assert list(outside.iterdir()) == []


def test_no_descriptor_of_the_host_gets_in(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2024-21626: a leaked descriptor of a host directory, and a working directory that names it."""
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    try:
        bundle.shell("ls /proc/self/fd")
        assert ours.run(bundle, pass_fds=(leaked,)).out.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
        for number in range(3, 24):
            bundle.config["process"]["cwd"] = f"/proc/self/fd/{number}"
            bundle.shell("ls -d ../../../../etc/hostname; cat ../../../../../etc/machine-id")
            done = ours.run(bundle, code=None, pass_fds=(leaked,))
            assert done.code != 0 and "hostname" not in done.out, (number, done)
        bundle.config["process"]["cwd"] = "/"
        bundle.shell("exec sleep 1000")
        name = ours.create(bundle)
        ours("start", name)
        for number in range(3, 24):
            done = ours("exec", "--cwd", f"/proc/self/fd/{number}", name, "cat", "../../../etc/machine-id", code=None, pass_fds=(leaked,))
            assert done.code != 0 and not done.out, (number, done)
    finally:
        os.close(leaked)


def test_a_mask_is_the_null_device_of_the_host(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2025-31133: the image's /dev/null is a link to a file of /proc, which would be bound over masked paths, writable."""
    bundle.config["mounts"] = [item for item in bundle.config["mounts"] if not item["destination"].startswith("/dev")]
    (bundle.rootfs / "dev" / "null").unlink(missing_ok=True)
    (bundle.rootfs / "dev").mkdir(exist_ok=True)
    (bundle.rootfs / "dev" / "null").symlink_to("/proc/sys/kernel/core_pattern")
    bundle.shell("stat -c %t:%T /proc/keys /proc/timer_list; echo x > /proc/sys/kernel/core_pattern")
    done = ours.run(bundle, code=None)
    assert done.out.split() == ["1:3", "1:3"] and "Read-only" in done.err


@pytest.mark.parametrize("target", ["/proc/sysrq-trigger", "/etc/passwd", "/../../../../../../etc/passwd"])
def test_a_console_is_not_bound_over_a_link(ours: Runtime, bundle: Bundle, target: str) -> None:
    """CVE-2025-52565: the image's /dev/console is a link, so that the terminal covers another file before paths are masked."""
    bundle.config["mounts"] = [item for item in bundle.config["mounts"] if item["destination"] != "/dev/shm"]
    bundle.config["mounts"][1] = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}
    (bundle.rootfs / "dev").mkdir(exist_ok=True)
    (bundle.rootfs / "dev" / "console").unlink(missing_ok=True)
    (bundle.rootfs / "dev" / "console").symlink_to(target)
    bundle.config["process"]["terminal"] = True
    done = ours.run(bundle, code=1)
    assert "open terminal" in done.err and "symbolic links" in done.err


def test_a_sysctl_is_written_to_the_kernel_and_nowhere_else(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2025-52881: /proc of the container is something else, so that what is meant for a sysctl is written to a file of choice."""
    fake = bundle.directory / "fake"
    (fake / "sys/net/ipv4").mkdir(parents=True)
    (fake / "sys/net/ipv4/ip_forward").write_text("untouched")
    (fake / "self").mkdir()
    (fake / "self/oom_score_adj").write_text("untouched")
    bundle.config["mounts"][0] = {"destination": "/proc", "type": "bind", "source": str(fake), "options": ["bind"]}
    bundle.config["mounts"].append({"destination": "/real", "type": "proc", "source": "proc"})
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    bundle.config["linux"]["maskedPaths"] = bundle.config["linux"]["readonlyPaths"] = []
    bundle.config["process"]["oomScoreAdj"] = 77
    bundle.shell("cat /real/sys/net/ipv4/ip_forward /real/self/oom_score_adj")
    assert ours.run(bundle).out.split() == ["1", "77"]
    assert {path.read_text() for path in (fake / "sys/net/ipv4/ip_forward", fake / "self/oom_score_adj")} == {"untouched"}


def test_proc_is_not_mounted_over_the_root_directory(ours: Runtime, bundle: Bundle) -> None:
    """An image whose /proc is a link to / would have the file system of processes as its root."""
    (bundle.rootfs / "proc").rmdir()
    (bundle.rootfs / "proc").symlink_to("/")
    assert "symbolic links" in ours.run(bundle, code=1).err


def test_the_image_does_not_choose_who_runs(ours: Runtime, bundle: Bundle) -> None:
    """A user called "1000" who is root, in /etc/passwd and /etc/group of the image."""
    (bundle.rootfs / "etc/passwd").write_text("1000:x:0:0::/evil:/bin/sh\nreal:x:1000:1000::/home/real:/bin/sh\n")
    (bundle.rootfs / "etc/group").write_text("1000:x:0:1000\n")
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [1000]}
    bundle.shell("id -u; id -g; id -G; echo $HOME")
    assert ours.run(bundle).out.split() == ["1000", "1000", "1000", "/home/real"]


# -- survival ----------------------------------------------------------------------------------------------------------------


def test_a_runtime_that_is_killed_leaves_what_can_be_removed(ours: Runtime, bundle: Bundle) -> None:
    """SIGKILL between the beginning of create and start."""
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}
    bundle.config["linux"]["cgroupsPath"] = f"/{ours.new()}"
    bundle.write()
    name = ours.new()
    process = subprocess.Popen([ours.program, "--root", str(ours.state_directory), "create", "--bundle", str(bundle.directory), name])
    deadline = time.monotonic() + PATIENCE
    while not (found := subprocess.run(["pgrep", "-P", str(process.pid), "-x", "sleep"], capture_output=True, text=True).stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    state = ours.state(name)
    assert state["status"] == "creating" and state["pid"] > 0
    ours("start", name, code=1)
    process.kill()
    process.wait()
    os.kill(int(found[0]), signal.SIGKILL)
    while started(state["pid"]):  # it sees that nobody waits for it any more
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ours("delete", "--force", name)
    assert ours("list", "--quiet").out == "" and not list(ours.state_directory.iterdir())
    path = bundle.config["linux"]["cgroupsPath"].strip("/")
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{path}"))


def test_a_half_written_record_can_be_removed(ours: Runtime) -> None:
    (ours.state_directory / "half").mkdir(parents=True)
    assert ours.state("half")["status"] == "creating"
    ours("delete", "half", code=1)
    ours("delete", "--force", "half")
    ours("state", "half", code=1)


def test_a_number_that_was_taken_by_another_process_is_not_it(ours: Runtime, bundle: Bundle) -> None:
    """Process ids come back; the record knows the start time as well."""
    bundle.shell("exec sleep 1000")
    name = ours.create(bundle)
    ours("start", name)
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        path = ours.state_directory / name / "state.json"
        record = json.loads(path.read_text())
        os.kill(record["pid"], signal.SIGKILL)
        path.write_text(json.dumps(record | {"pid": bystander.pid}))
        assert ours.state(name)["status"] == "stopped" and ours.state(name)["pid"] == 0
        assert "not running" in ours("kill", name, "KILL", code=1).err
        ours("delete", name)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_control_group_that_vanishes_is_missed(ours: Runtime, bundle: Bundle) -> None:
    """Somebody moves the process away and removes the group: nothing may run without the container's limits, and it can be removed."""
    bundle.config["linux"]["cgroupsPath"] = f"/{ours.new()}"
    bundle.shell("exec sleep 1000")
    name = ours.create(bundle)
    ours("start", name)
    pid = ours.state(name)["pid"]
    for place in Path("/sys/fs/cgroup").glob(f"**{bundle.config['linux']['cgroupsPath']}"):
        (place.parent / "cgroup.procs").write_text(str(pid))
        place.rmdir()
    assert ours.state(name)["status"] == "running"
    for words in (["exec", name, "true"], ["pause", name], ["events", "--stats", name], ["update", "--pids-limit", "9", name]):
        done = ours(*words, code=None)
        assert done.code in (1, 255) and "is gone" in done.err, words
    ours("delete", "--force", name)
    assert not started(pid)


def test_thousands_of_mounts_are_no_trouble(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["mounts"] += [{"destination": "/m", "type": "bind", "source": "/tmp", "options": ["bind", "ro"]}] * 3000
    bundle.shell("wc -l < /proc/self/mountinfo")
    assert int(ours.run(bundle).out) > 3000


# -- seccomp listener --------------------------------------------------------------------------------------------------------

_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND


def test_a_listener_answers_system_calls(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """config-linux.md: the descriptor and the state of the process come over the socket at listenerPath."""
    path = tmp_path / "agent.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    seen: list[dict[str, object]] = []

    def agent() -> None:
        connection, _ = server.accept()
        with connection:
            text, control, _, _ = connection.recvmsg(65536, 64)
        [(_, _, content)] = control
        listener = array.array("i", content[:4])[0]
        seen.append(json.loads(text))
        assert stat.S_IFMT(os.fstat(listener).st_mode) == 0
        request = bytearray(80)
        fcntl.ioctl(listener, _RECEIVE, request)
        identifier = struct.unpack_from("<Q", request)[0]
        fcntl.ioctl(listener, _SEND, struct.pack("<QqiI", identifier, 0, -77, 0))  # EBADFD
        os.close(listener)

    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(path), "listenerMetadata": "hello",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }  # fmt: skip
    thread = threading.Thread(target=agent)
    thread.start()
    with server:
        bundle.shell("mkdir /never")
        done = ours.run(bundle, code=1)
        thread.join(PATIENCE)
    assert "File descriptor in bad state" in done.err and not (bundle.rootfs / "never").exists()
    [message] = seen
    assert message["metadata"] == "hello" and message["fds"] == ["seccompFd"] and message["pid"]
    state = message["state"]
    assert isinstance(state, dict) and state["status"] == "creating" and state["bundle"] == str(bundle.directory)
