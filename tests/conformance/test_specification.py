"""The OCI runtime specification, sentence by sentence, for ours and for runc on the same host.

A test quotes the page it follows. Where runc of the distribution is older than what is asked, it is left out, with the reason.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ocibundle import Bundle, Runtime, started


def since(oci: Runtime, *version: int) -> None:
    """Leave a runc out that is older than a feature."""
    if oci.name == "runc" and oci.version < version:
        pytest.skip(f"runc has this since {'.'.join(map(str, version))}")


# -- runtime.md: state, operations, lifecycle --------------------------------------------------------------------------------


def test_life(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("echo ran > /ran; exec sleep 1000")
    bundle.config["annotations"] = {"org.example.key": "value"}
    name = oci.create(bundle, "--pid-file", str(bundle.directory / "pid"))
    state = oci.state(name)
    assert (state["id"], state["status"], state["bundle"]) == (name, "created", str(bundle.directory))
    assert state["ociVersion"].startswith("1.")
    assert state["annotations"] == {"org.example.key": "value"}
    assert state["pid"] == int((bundle.directory / "pid").read_text())
    assert started(state["pid"])
    assert not (bundle.rootfs / "ran").exists()
    # "Any updates to config.json after this step MUST NOT affect the container."
    (bundle.directory / "config.json").unlink()
    oci("start", name)
    oci.until(name, "running")
    while not (bundle.rootfs / "ran").exists():
        time.sleep(0.02)
    assert oci.state(name)["pid"] == state["pid"]
    oci("kill", name, "KILL")
    oci.until(name, "stopped")
    oci("delete", name)
    assert not started(state["pid"])
    oci("state", name, code=1)


def test_wrong_state_is_an_error_without_effect(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("exec sleep 1000")
    assert "does not exist" in oci("state", "nobody", code=1).err
    for verb in (["start"], ["kill"], ["delete"]):
        assert "does not exist" in oci(*verb, "nobody", code=1).err
    name = oci.create(bundle)
    oci("create", "--bundle", str(bundle.directory), name, code=1)
    assert oci.state(name)["status"] == "created"
    oci("start", name)
    oci.until(name, "running")
    oci("start", name, code=1)
    oci("delete", name, code=1)
    assert oci.state(name)["status"] == "running"
    oci("kill", name, "KILL")
    oci.until(name, "stopped")
    oci("start", name, code=1)
    oci("kill", name, "TERM", code=1)
    oci("delete", name)
    oci("delete", name, code=1)
    oci("delete", "--force", name)


def test_names(oci: Runtime, bundle: Bundle) -> None:
    bundle.write()
    for wrong in ("../escape", "with/slash", "", ".."):
        oci("run", "--bundle", str(bundle.directory), wrong, code=1)


def test_kill_of_a_created_container(oci: Runtime, bundle: Bundle) -> None:
    name = oci.create(bundle)
    oci("kill", name, "KILL")
    oci.until(name, "stopped")
    oci("delete", name)


def test_delete_by_force_ends_a_running_one(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("trap '' TERM; while :; do sleep 1; done")
    name = oci.create(bundle)
    oci("start", name)
    oci.until(name, "running")
    pid = oci.state(name)["pid"]
    oci("delete", "--force", name)
    assert not started(pid)
    oci("state", name, code=1)


def test_signals_by_name_and_number(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("trap 'echo usr1 >> /got' USR1; trap 'echo usr2 >> /got' USR2; touch /ready; while :; do sleep 0.05; done")
    name = oci.create(bundle)
    oci("start", name)
    _await(bundle.rootfs / "ready")
    for word, said in (("SIGUSR1", "usr1"), ("USR2", "usr2"), (str(int(signal.SIGUSR1)), "usr1")):
        (bundle.rootfs / "got").unlink(missing_ok=True)
        oci("kill", name, word)
        _await(bundle.rootfs / "got")
        assert (bundle.rootfs / "got").read_text() == f"{said}\n"
    oci("kill", name, "NOSUCH", code=1)


def _await(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or (path.name == "got" and not path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


# -- config.md: process ------------------------------------------------------------------------------------------------------


def test_exit_codes(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("exit 3")
    oci.run(bundle, code=3)
    bundle.shell("kill -TERM $$; sleep 5")
    assert oci.run(bundle, code=None).code in (128 + signal.SIGTERM, 0)  # PID 1 ignores what it does not handle


def test_process(oci: Runtime, bundle: Bundle) -> None:
    process = bundle.config["process"]
    (bundle.rootfs / "home").mkdir(exist_ok=True)
    process |= {"cwd": "/home", "user": {"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o027}, "oomScoreAdj": 100}
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    bundle.shell(
        "id -u; id -g; id -G; pwd; umask; cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn; echo $NAME;"
        " grep NoNewPrivs /proc/self/status"
    )
    out = oci.run(bundle).out.split()
    assert out[:2] == ["1000", "1001"]
    assert out[2:5] == ["1001", "7", "8"]
    assert out[5:] == ["/home", "0027", "100", "111", "222", "value", "NoNewPrivs:", "1"]


def test_capabilities(oci: Runtime, bundle: Bundle) -> None:
    only = ["CAP_KILL"]
    kinds = ("bounding", "effective", "inheritable", "permitted", "ambient")
    bundle.config["process"]["capabilities"] = dict.fromkeys(kinds, only)
    bundle.config["process"]["user"] = {"uid": 1, "gid": 1}
    bundle.shell("grep Cap /proc/self/status")
    masks = dict(line.split() for line in oci.run(bundle).out.splitlines())
    assert set(masks.values()) == {f"{1 << 5:016x}"}
    assert set(masks) == {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"}


def test_command_that_cannot_run(oci: Runtime, bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["nosuchprogram"]
    assert "executable file not found in $PATH" in oci.run(bundle, code=1 if oci.name == "runc" else None).err
    bundle.config["process"]["args"] = ["/nosuchprogram"]
    assert "no such file or directory" in oci.run(bundle, code=None).err
    bundle.config["process"]["args"] = ["/etc"]
    failed = oci.run(bundle, code=None)
    assert failed.code and ("permission denied" in failed.err or "is a directory" in failed.err)


def test_stdin_and_descriptors(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("cat; ls /proc/self/fd | tr '\\n' ' '")
    # ls has its own directory open as the last one
    assert oci.run(bundle, input="typed ").out == "typed 0 1 2 3 "


def test_terminal_over_the_console_socket(oci: Runtime, bundle: Bundle) -> None:
    """runtime command line interface: "--console-socket": the master of the terminal arrives as one SCM_RIGHTS message."""
    bundle.config["process"] |= {"terminal": True, "consoleSize": {"height": 33, "width": 77}}
    bundle.shell("tty; stty size; read line; echo got $line; test -c /dev/console && echo console")
    path = bundle.directory / "console.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        name = oci.create(bundle, "--console-socket", str(path))
        connection, _ = server.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
    [(level, kind, data)] = ancillary
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    [master] = array.array("i", data)
    try:
        oci("start", name)
        os.write(master, b"typed\n")
        seen = b""
        while b"console" not in seen:
            seen += os.read(master, 4096)
    finally:
        os.close(master)
    assert b"/dev/pts/0\r\n" in seen and b"33 77\r\n" in seen and b"got typed\r\n" in seen


# -- config.md: root, mounts, hostname ---------------------------------------------------------------------------------------


def test_root_and_names(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("hostname; cat /proc/sys/kernel/domainname; touch /new && echo written")
    bundle.config["domainname"] = "example.org"
    if oci.name == "runc" and oci.version < (1, 1, 6):
        del bundle.config["domainname"]
    out = oci.run(bundle).out.split()
    assert (out[0], out[-1]) == ("box", "written")
    assert oci.name == "runc" or out[1] == "example.org"
    assert (bundle.rootfs / "new").exists()
    bundle.config["root"]["readonly"] = True
    bundle.shell("touch /other; touch /dev/shm/ok && echo writable")
    done = oci.run(bundle)
    assert "Read-only" in done.err and done.out == "writable\n"


def test_mounts(oci: Runtime, bundle: Bundle) -> None:
    """config.md, Mounts: "in the listed order", options as mount(8), targets made when missing."""
    source = bundle.directory / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("content\n")
    bundle.config["mounts"] += [
        {"destination": "/made/deep", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=0710", "nosuid"]},
        {"destination": "/bound", "type": "bind", "source": str(source), "options": ["rbind", "ro"]},
        {"destination": "/bound/sub", "type": "tmpfs", "source": "tmpfs", "options": ["noexec"]},
        {"destination": "/one", "source": str(source / "file"), "options": ["bind"]},
        {"destination": "/relative", "source": "source", "options": ["bind", "nodev"]},
    ]
    bundle.shell(
        "grep -E ' /(made|bound|one|relative)' /proc/self/mountinfo; touch /bound/x; cat /one; stat -c %a /made/deep; ls /relative"
    )
    done = oci.run(bundle)
    mounts = {line.split()[4]: line for line in done.out.splitlines() if "/" in line and "-" in line}
    assert list(mounts) == ["/made/deep", "/bound", "/bound/sub", "/one", "/relative"]
    assert "nosuid" in mounts["/made/deep"] and "size=64k" in mounts["/made/deep"]
    assert mounts["/bound"].split()[5].startswith("ro") and "noexec" in mounts["/bound/sub"] and "nodev" in mounts["/relative"]
    assert "Read-only" in done.err
    assert done.out.splitlines()[5:] == ["content", "710", "file", "sub"]
    assert (bundle.rootfs / "made/deep").is_dir()


def test_a_mount_target_does_not_escape(oci: Runtime, bundle: Bundle) -> None:
    """A symbolic link of the root file system leads nowhere else (CVE-2021-30465 and its relatives)."""
    outside = bundle.directory / "outside"
    outside.mkdir()
    (bundle.rootfs / "link").symlink_to(outside)
    (bundle.rootfs / "up").symlink_to("../../../../../../../../" + str(outside))
    bundle.config["mounts"] += [
        {"destination": "/link/one", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/up/two", "type": "tmpfs", "source": "tmpfs"},
    ]
    oci.run(bundle, code=None)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", ["", "r"])
def test_recursive_attributes(oci: Runtime, bundle: Bundle, kind: str) -> None:
    """config-linux.md: "rro" applies to what is mounted below as well, "ro" to the mount alone."""
    below = bundle.directory / "source/below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(below)], check=True)
    try:
        bundle.config["mounts"].append({"destination": "/tree", "source": str(below.parent), "options": ["rbind", f"{kind}ro"]})
        bundle.shell("touch /tree/below/file")
        oci.run(bundle, code=1 if kind else 0)
    finally:
        subprocess.run(["umount", str(below)], check=True)


def test_copy_up(oci: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "filled").mkdir()
    (bundle.rootfs / "filled/file").write_text("from the image\n")
    bundle.config["mounts"].append({"destination": "/filled", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})
    bundle.shell("cat /filled/file; echo changed > /filled/file")
    assert oci.run(bundle).out == "from the image\n"
    assert (bundle.rootfs / "filled/file").read_text() == "from the image\n"


def test_id_mapped_mount(oci: Runtime, bundle: Bundle) -> None:
    since(oci, 1, 2)
    source = bundle.directory / "source"
    source.mkdir()
    os.chown(source, 5, 6)
    entry: dict[str, Any] = {"destination": "/mapped", "source": str(source), "options": ["bind", "idmap"]}
    entry["uidMappings"] = [{"containerID": 5, "hostID": 1005, "size": 1}]
    entry["gidMappings"] = [{"containerID": 6, "hostID": 1006, "size": 1}]
    bundle.config["mounts"].append(entry)
    bundle.shell("stat -c '%u %g' /mapped")
    assert oci.run(bundle).out == "1005 1006\n"


# -- config-linux.md ---------------------------------------------------------------------------------------------------------


def test_namespaces_are_new_and_can_be_joined(oci: Runtime, bundle: Bundle) -> None:
    script = "for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done"
    bundle.shell(f"{script}; exec sleep 1000")
    bundle.config["process"]["args"][-1] = f"({script}) > /first; exec sleep 1000"
    first = oci.create(bundle)
    oci("start", first)
    _await(bundle.rootfs / "first")
    while len(inside := (bundle.rootfs / "first").read_text().split()) < 5:
        time.sleep(0.02)
    ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "ipc", "uts", "mnt")]
    assert not set(inside) & set(ours)
    pid = oci.state(first)["pid"]
    bundle.config["linux"]["namespaces"] = [
        {"type": "mount"},
        {"type": "pid", "path": f"/proc/{pid}/ns/pid"},
        {"type": "network", "path": f"/proc/{pid}/ns/net"},
        {"type": "ipc", "path": f"/proc/{pid}/ns/ipc"},
        {"type": "uts", "path": f"/proc/{pid}/ns/uts"},
    ]
    del bundle.config["hostname"]
    bundle.shell(script)
    joined = oci.run(bundle).out.split()
    assert joined[:4] == inside[:4] and joined[4] != inside[4]


def test_a_namespace_of_another_kind_is_refused(oci: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"][1]["path"] = "/proc/self/ns/ipc"
    oci.run(bundle, code=1)
    bundle.config["linux"]["namespaces"][1]["path"] = "/nowhere"
    oci.run(bundle, code=1)


def test_user_namespace(oci: Runtime, bundle: Bundle) -> None:
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1000}, {"containerID": 1000, "hostID": 300000, "size": 10}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 2000}]
    for path in [bundle.rootfs, *bundle.rootfs.rglob("*")]:
        os.lchown(path, 100000, 200000)
    for path in (bundle.directory, *bundle.directory.parents[:3]):
        path.chmod(path.stat().st_mode | 0o111)
    bundle.shell("cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /mine; stat -c '%u %g' /mine")
    out = oci.run(bundle).out.split()
    assert out == ["0", "100000", "1000", "1000", "300000", "10", "0", "200000", "2000", "0", "0", "0"]
    info = (bundle.rootfs / "mine").stat()
    assert (info.st_uid, info.st_gid) == (100000, 200000)


def test_time_namespace(oci: Runtime, bundle: Bundle) -> None:
    since(oci, 1, 2)
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "time"})
    linux["timeOffsets"] = {"boottime": {"secs": 1_000_000, "nanosecs": 0}}
    bundle.shell("cut -d. -f1 /proc/uptime")
    assert int(oci.run(bundle).out) > 1_000_000


def test_devices(oci: Runtime, bundle: Bundle) -> None:
    linux = bundle.config["linux"]
    linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o646, "uid": 3, "gid": 4},
        {"path": "/dev/sub/fifo", "type": "p", "fileMode": 0o600},
        {"path": "/dev/denied", "type": "c", "major": 1, "minor": 1, "fileMode": 0o666},
    ]
    linux["resources"]["devices"].append({"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"})
    script = "stat -c '%F %t:%T %a %u:%g' /dev/mine; test -p /dev/sub/fifo && echo fifo; echo x > /dev/mine && echo open; cat /dev/denied"
    defaults = "; for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done"
    defaults += "; for l in fd stdin ptmx; do readlink /dev/$l; done"
    bundle.shell(script + defaults)
    bundle.config["process"]["user"] = {"uid": 0, "gid": 0}
    done = oci.run(bundle)
    assert done.out.splitlines() == [
        *("character special file 1:3 646 3:4", "fifo", "open"),
        *("/proc/self/fd", "/proc/self/fd/0", "pts/ptmx" if "\npts/ptmx" in done.out else "/dev/pts/ptmx"),
    ]
    assert "Operation not permitted" in done.err


def test_limits(oci: Runtime, bundle: Bundle) -> None:
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("reads the limits back from cgroup v1")
    linux = bundle.config["linux"]
    linux["cgroupsPath"] = f"/conformance/{oci.name}"
    linux["resources"] |= {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}}
    bundle.shell("exec sleep 1000")
    name = oci.create(bundle)

    def read(controller: str, file: str) -> int:
        return int(Path(f"/sys/fs/cgroup/{controller}/conformance/{oci.name}/{file}").read_text())

    assert read("memory", "memory.limit_in_bytes") == 64 << 20
    assert read("pids", "pids.max") == 50
    assert (read("cpu", "cpu.shares"), read("cpu", "cpu.cfs_quota_us")) == (512, 50000)
    assert oci.state(name)["pid"] in (
        int(line) for line in Path(f"/sys/fs/cgroup/memory/conformance/{oci.name}/cgroup.procs").read_text().split()
    )
    oci("update", "--memory", str(80 << 20), "--pids-limit", "60", name)
    assert (read("memory", "memory.limit_in_bytes"), read("pids", "pids.max")) == (80 << 20, 60)
    oci("start", name)
    oci("pause", name)
    assert oci.state(name)["status"] == "paused"
    oci("resume", name)
    assert oci.state(name)["status"] == "running"
    stats = json.loads(oci("events", "--stats", name).out)
    assert (stats["type"], stats["id"]) == ("stats", name)
    assert stats["data"]["memory"]["usage"]["limit"] == 80 << 20 and stats["data"]["pids"]["current"] == 1
    oci("delete", "--force", name)
    assert not Path(f"/sys/fs/cgroup/memory/conformance/{oci.name}").exists()


def test_paths_and_sysctls(oci: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}
    bundle.config["linux"]["maskedPaths"] += ["/proc/acpi", "/nowhere"]
    bundle.shell(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; wc -c < /proc/keys; ls /sys/firmware | wc -l;"
        " echo 0 > /proc/sys/net/ipv4/ip_forward || echo refused"
    )
    assert oci.run(bundle).out.split() == ["1", "9000", "0", "0", "refused"]


def test_a_sysctl_of_the_host_is_refused(oci: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["sysctl"] = {"vm.swappiness": "10"}
    oci.run(bundle, code=1)
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    bundle.config["linux"]["namespaces"] = [entry for entry in bundle.config["linux"]["namespaces"] if entry["type"] != "network"]
    oci.run(bundle, code=1)


def test_seccomp(oci: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
        ],
    }
    bundle.shell("mkdir /x; kill -USR1 $$; kill -0 $$ && echo alive; grep Seccomp: /proc/self/status")
    done = oci.run(bundle)
    assert "No space left" in done.err and "not permitted" in done.err
    assert done.out.split() == ["alive", "Seccomp:", "2"]


@pytest.mark.parametrize("propagation", ["private", "shared", "slave", "unbindable"])
def test_root_propagation(oci: Runtime, bundle: Bundle, propagation: str) -> None:
    bundle.config["linux"]["rootfsPropagation"] = propagation
    bundle.shell("head -1 /proc/self/mountinfo")
    if oci.name == "runc" and propagation in ("shared", "unbindable"):
        pytest.skip("runc 1.1 makes the mount above it private first, and cannot bind what is unbindable")
    fields = oci.run(bundle).out.split(" - ")[0].split()[6:]
    kinds = {field.partition(":")[0] for field in fields}
    if propagation in ("private", "unbindable"):
        assert kinds == ({"unbindable"} if propagation == "unbindable" and kinds else set())
    elif propagation == "shared":
        assert "shared" in kinds


def test_personality(oci: Runtime, bundle: Bundle) -> None:
    since(oci, 1, 2)
    bundle.config["linux"]["personality"] = {"domain": "LINUX32"}
    bundle.shell("uname -m")
    assert oci.run(bundle).out == "i686\n"


# -- config.md: hooks --------------------------------------------------------------------------------------------------------


def test_hooks(oci: Runtime, bundle: Bundle) -> None:
    log = bundle.directory / "hooks"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")

    def hook(kind: str) -> dict[str, Any]:
        script = f'state=$(cat); echo {kind} $WORD $(echo $state | sed \'s/.*"status": *"\\([a-z]*\\)".*/\\1/\') >> {log}'
        return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WORD=word", "PATH=/usr/bin:/bin"], "timeout": 10}

    bundle.config["hooks"] = {kind: [hook(kind)] for kind in kinds}
    inside = {"path": "/bin/sh", "args": ["sh", "-c", "cat > /state-inside"], "env": ["PATH=/bin"]}
    bundle.config["hooks"]["startContainer"] = [inside]
    bundle.shell("exec sleep 1000")
    name = oci.create(bundle)
    words = [line.split()[:2] for line in log.read_text().splitlines()]
    if oci.name == "runc":  # it calls poststart too early: "after the user-specified process is executed"
        assert words.pop() == ["poststart", "word"]
    assert words == [["prestart", "word"], ["createRuntime", "word"], ["createContainer", "word"]]
    assert not (bundle.rootfs / "state-inside").exists()
    oci("start", name)
    oci.until(name, "running")
    _await(bundle.rootfs / "state-inside")
    oci("kill", name, "KILL")
    oci.until(name, "stopped")
    oci("delete", name)
    assert [line.split()[0] for line in log.read_text().splitlines()[3:]] == ["poststart", "poststop"]
    assert log.read_text().splitlines()[-1].split() == ["poststop", "word", "stopped"]


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_hook_that_fails_ends_the_container(oci: Runtime, bundle: Bundle, kind: str) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", "exit 5"]}]}
    bundle.shell("echo ran > /ran")
    oci.run(bundle, code=1)
    assert not (bundle.rootfs / "ran").exists()


def test_a_hook_that_hangs_is_ended(oci: Runtime, bundle: Bundle) -> None:
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    oci.run(bundle, code=1)


# -- further processes -------------------------------------------------------------------------------------------------------


def test_exec(oci: Runtime, bundle: Bundle) -> None:
    bundle.shell("exec sleep 1000")
    name = oci.create(bundle)
    oci("exec", name, "true", code=0 if oci.name == "runc" else None)  # a created container has its namespaces already
    oci("start", name)
    oci.until(name, "running")
    assert oci("exec", "--cwd", "/tmp", "--env", "A=b", "--user", "5:6", name, "sh", "-c", "pwd; echo $A; id -u; id -g").out.split() == [
        *("/tmp", "b", "5", "6")
    ]
    oci("exec", name, "sh", "-c", "exit 9", code=9)
    assert oci("exec", name, "cat", input="piped").out == "piped"
    record = bundle.directory / "process.json"
    record.write_text(json.dumps({**bundle.config["process"], "args": ["sh", "-c", "echo from a file"]}))
    assert oci("exec", "--process", str(record), name).out == "from a file\n"
    pid = bundle.directory / "exec.pid"
    oci("exec", "--detach", "--pid-file", str(pid), name, "sleep", "1000")
    assert started(int(pid.read_text()))
    table = json.loads(oci("ps", "--format", "json", name).out)
    assert len(table) == 2 and int(pid.read_text()) in table
    assert [entry["id"] for entry in json.loads(oci("list", "--format", "json").out)] == [name]
    assert oci("list", "--quiet").out.split() == [name]
    assert "executable file not found" in oci("exec", name, "nosuchprogram", code=None).err


# -- bad input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, value",
    [
        ("ociVersion", "not a version"),
        ("process.args", []),
        ("process.cwd", "relative"),
        ("process.rlimits", [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]),
        ("root.path", "missing"),
        ("linux.namespaces", [{"type": "nonsense"}]),
        ("linux.namespaces", [{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_NONSENSE"}),
        ("linux.devices", [{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}]),
        ("mounts", [{"destination": "/x", "type": "nonsensefs", "source": "none"}]),
        ("mounts", [{"destination": "/x", "source": "/nowhere/at/all", "options": ["bind"]}]),
        ("hooks", {"prestart": [{"path": "relative"}]}),
    ],
)
def test_a_wrong_configuration_is_refused(oci: Runtime, bundle: Bundle, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = bundle.config
    for parent in parents:
        place = place[parent]
    place[last] = value
    if oci.name == "runc" and path == "ociVersion":
        pytest.skip("runc takes any version")
    oci.run(bundle, code=1)
    assert oci("list", "--quiet").out == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ociVersion": 3}', '"text"', "null"])
def test_what_is_no_configuration_is_refused(oci: Runtime, bundle: Bundle, text: str) -> None:
    if oci.name == "runc" and text == "null":
        pytest.skip("runc 1.1 ends with a segmentation violation")
    bundle.write(text)
    done = oci("run", "--bundle", str(bundle.directory), oci.new(), code=1)
    assert done.err.strip() and "Traceback" not in done.err
    (bundle.directory / "config.json").unlink()
    assert "config.json" in oci("run", "--bundle", str(bundle.directory), oci.new(), code=1).err


def test_two_creates_of_one_name(oci: Runtime, bundle: Bundle) -> None:
    bundle.write()
    name = oci.new()
    command = [oci.program, "--root", str(oci.state_directory), "create", "--bundle", str(bundle.directory), name]
    both = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(process.wait(60) for process in both) == [0, 1]
    assert oci.state(name)["status"] == "created"


def test_specification_of_the_runtime(oci: Runtime, tmp_path: Path) -> None:
    """`spec` writes a configuration that is accepted, and does not write over one."""
    (tmp_path / "new").mkdir()
    oci("spec", "--bundle", str(tmp_path / "new"))
    made = json.loads((tmp_path / "new/config.json").read_text())
    assert made["ociVersion"].startswith("1.") and made["process"]["args"] == ["sh"]
    assert stat.S_ISREG((tmp_path / "new/config.json").stat().st_mode)
    oci("spec", "--bundle", str(tmp_path / "new"), code=1)
