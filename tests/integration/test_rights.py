"""Identity, security, namespaces, devices and mounts as `docker run` has them, under the real kernel."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Directories

import ocipack
from nacre import ContainerSpec, Engine, Level, MountSpec, Ulimit
from nacre.errors import Conflict, InvalidArgument, Unsupported
from nacre.isolation import cdi
from nacre.isolation.channel import Channel
from nacre.isolation.process import stem_path
from nacre.linux import capabilities
from nacre.model.plan import NEWNS, NEWPID, Code, Spawn, op

BOX = "rights"
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
}


@pytest.fixture(scope="module")
def box(session_engine: Engine, layouts: Callable[[str], Path], directories: Directories) -> str:
    """The busybox image under a name of this file's own."""
    archive = Path(directories.root) / "busybox.tar"
    ocipack.archive_layout(layouts("busybox"), archive)
    [loaded] = session_engine.images.load(str(archive))
    archive.unlink()
    session_engine.images.tag(loaded.id, BOX)
    return BOX


@pytest.fixture
def ask(engine: Engine, box: str) -> Callable[..., str]:
    """`ask(script, **fields of the spec)`: what the script says; it must end well, and what went wrong is part of the failure."""

    def run(script: str, *, code: int = 0, **fields: Any) -> str:
        spec = ContainerSpec(image=fields.pop("image", box), command=("sh", "-c", script), auto_remove=True, network="none")
        stream = engine.containers.create(spec.replace(**fields)).start(attach=True)
        assert stream is not None
        ended, output, errors = stream.communicate()
        assert ended == code, (output.decode(), errors.decode())
        return output.decode()

    return run


def sections(text: str) -> dict[str, list[str]]:
    """Lines below each ``== name``."""
    parts = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)
    return {name: body.splitlines() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


EVERYTHING = """
left() { n=0; while cat /proc/[0-9]*/comm 2>/dev/null | grep -qx sleep && [ $n -lt 200 ]; do n=$((n + 1)); usleep 50000; done; echo $n; }
echo == id; id -u; id -g; id -G
echo == names; hostname; cat /proc/sys/kernel/domainname; grep -c 'box.example.org box' /etc/hosts
echo == processes; cat /proc/1/cmdline | tr '\\0' ' '; echo; (sleep 0.1 &); left
echo == maps; cat /proc/self/uid_map
echo == limits; ulimit -c; ulimit -n
echo == shm; df -k /dev/shm | tail -1 | awk '{print $2}'
echo == tmpfs; grep ' /scratch ' /proc/mounts; stat -c '%a %u' /scratch
echo == written; mkdir /tmp/x 2>&1; touch /dev/x /dev/shm/x /scratch/x && echo yes
echo == hidden; wc -c < /etc/hostname; ls -A /home | wc -l; cat /proc/timer_list >/dev/null && echo seen
echo == filter; chmod 700 /scratch/x 2>&1
echo == status; grep -E '^(NoNewPrivs|CapBnd|Seccomp):' /proc/self/status | tr -d '\\t'
"""


def test_everything_that_one_container_may_say_of_itself(ask: Callable[..., str], level: Level, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    told = sections(
        ask(
            EVERYTHING,
            isolation=level,
            user="tester",
            groups=("extra", "4444"),
            hostname="box",
            domainname="example.org",
            network="none" if level is Level.VM else "bridge",
            init=True,
            userns="private",
            ulimits=(Ulimit(name="core", soft=0, hard=0), Ulimit(name="nofile", soft=99, hard=100)),
            shm_size=1 << 20,
            mounts=(MountSpec(kind="tmpfs", target="/scratch", options=("size=2m", "mode=1770", "uid=1000", "noatime")),),
            read_only=True,
            cap_drop=("ALL",),
            cap_add=("CAP_chown", "kill"),
            security_opt=(
                f"seccomp={tmp_path}/profile.json", "no-new-privileges", "mask=/etc/hostname:/home", "unmask=/proc/timer_list",
                "apparmor=unconfined", "label=disable",
            ),
        )
    )  # fmt: skip
    assert told["id"][:2] == ["1000", "1000"]
    assert {"4444"} < set(told["id"][2].split())
    assert told["names"][:2] == ["box", "example.org"]
    if level is Level.PROCESS:  # an address, and with it a line, only on a network
        assert told["names"][2] == "1"
    assert told["processes"][0].startswith("nacre-init ")
    assert int(told["processes"][1]) < 200, "init has not reaped"
    assert re.fullmatch(r" *0 +\d{9} +65536", told["maps"][0])
    assert told["limits"] == ["0", "99"]
    assert told["shm"] == ["1024"]
    assert "noatime" in told["tmpfs"][0]
    assert "size=2048k" in told["tmpfs"][0]
    assert told["tmpfs"][1] == "1770 1000"
    assert "Read-only file system" in told["written"][0]
    assert told["hidden"][:2] == ["0", "0"]
    assert "Permission denied" in told["filter"][0]
    assert set(told["status"]) == {"NoNewPrivs:1", "CapBnd:0000000000000021", "Seccomp:2"}


def test_an_init_reaps_forwards_and_ends_as_its_child(engine: Engine, box: str, ask: Callable[..., str], level: Level) -> None:
    before = hashlib.sha256(Path(stem_path()).read_bytes()).digest()
    script = (
        "echo x > /proc/1/exe; echo x >> /proc/self/root/proc/1/exe; trap 'echo caught; exit 41' USR1; echo ready; "
        "while :; do sleep 0.05; done"
    )
    made = engine.containers.run(ContainerSpec(image=box, command=("sh", "-c", script), init=True, network="none", isolation=level))
    for _ in made.logs(follow=True):
        if b"ready" in b"".join(record.data for record in made.logs()):
            break
    assert made.exec(["sh", "-c", "cat /proc/1/environ | tr '\\0' '\\n' | grep -c ^PATH="]).communicate()[1] == b"1\n"
    assert made.inspect()["HostConfig"]["Init"] is True
    made.kill("USR1")
    assert made.wait() == 41
    said = b"".join(record.data for record in made.logs()).decode()
    assert "caught" in said
    assert said.count("Read-only file system") + said.count("Text file busy") == 2
    assert hashlib.sha256(Path(stem_path()).read_bytes()).digest() == before
    if level is Level.PROCESS:
        ask("kill -KILL $$", init=True, code=137)
        ask("exit 7", init=True, code=7)
        ask("exit 8", init=True, pid="host", code=8)


def test_what_joins_a_container_does_not_give_its_program_away(engine: Engine, box: str, directories: Directories) -> None:
    """Between JOIN and EXEC, and in stem's own programs, with no more rights than the container has (CVE-2019-5736)."""
    made = engine.containers.run(ContainerSpec(image=box, command=("sleep", "1000"), network="none"))
    mask = capabilities.DEFAULT
    plan = Spawn(
        ops=(
            op(Code.JOIN, 1, NEWNS | NEWPID), op(Code.CLONE, 0), op(Code.BOUND, mask), op(Code.CAPS, mask, mask, 0, 0), op(Code.DEATH, 9),
            op(Code.BUILTIN, 1, "pause"),
        )
    )  # fmt: skip
    with contextlib.closing(Channel(f"{directories.run}/sandboxes/{made.id}")) as channel:
        channel.spawn(plan)
        script = "cd /proc; for p in [0-9]*; do test $p = $$ || { cat $p/exe >/dev/null 2>&1 && echo open $p || echo closed; }; done"
        _, output, _ = made.exec(["sh", "-c", script]).communicate()
    assert sorted(output.splitlines()) == [b"closed", b"open 1"]


def test_namespaces_of_another_container(engine: Engine, box: str, ask: Callable[..., str]) -> None:
    other = engine.containers.run(
        ContainerSpec(image=box, name="other", command=("sh", "-c", "echo there > /dev/shm/said; exec sleep 1000"), ipc="shareable")
    )
    shared: dict[str, Any] = {
        "pid": "container:other",
        "ipc": "container:other",
        "uts": f"container:{other.id[:12]}",
        "network": "container:other",
    }
    questions = "for kind in pid ipc uts net; do readlink /proc/self/ns/$kind; done; readlink /proc/1/ns/pid; cat /dev/shm/said"
    lines = ask(f"{questions}; hostname; ps | grep -c 'sleep 1000'; cat /etc/hostname; echo back > /dev/shm/answer", **shared).splitlines()
    theirs = [os.readlink(f"/proc/{other.record.pid}/ns/{kind}") for kind in ("pid", "ipc", "uts", "net", "pid")]
    assert lines[:5] == theirs
    assert lines[5:] == ["there", other.id[:12], lines[7], other.id[:12]]
    assert int(lines[7]) > 0
    assert other.exec(["cat", "/dev/shm/answer"]).communicate()[1] == b"back\n"

    explained = engine.explain(ContainerSpec(image=box, command=("true",), **shared))
    assert all(f"setns /proc/{other.record.pid}/ns/{kind} " in explained for kind in ("pid", "ipc", "uts", "net"))

    # What it shares is the other's: its address, its end. And the names are resolved to ids when it is made.
    joined = engine.containers.run(ContainerSpec(image=box, name="joined", command=("sleep", "1000"), **shared))
    other.rename("renamed")
    config = joined.inspect()["HostConfig"]
    assert config["PidMode"] == config["IpcMode"] == config["NetworkMode"] == f"container:{other.id}"
    assert joined.exec(["hostname"]).communicate()[1].decode().strip() == other.id[:12]
    third = ask("ip -4 addr show eth0 | grep -c inet; cat /etc/hosts", network="container:joined")
    assert third.splitlines()[0] == "1"
    assert other.record.endpoint and other.record.endpoint.address.partition("/")[0] in third
    with pytest.raises(InvalidArgument, match="non-shareable IPC"):
        engine.containers.create(ContainerSpec(image=box, ipc="container:joined"))
    other.kill()
    assert joined.wait() == 137, "the end of a PID namespace is the end of all in it"
    with pytest.raises(Conflict, match="cannot join the pid namespace of container renamed: it is not running"):
        joined.start()
    assert joined.refresh().record.error


def test_a_shared_user_namespace_has_the_same_ids(engine: Engine, box: str, ask: Callable[..., str]) -> None:
    first = engine.containers.run(ContainerSpec(image=box, name="users", command=("sleep", "1000"), userns="private", network="none"))
    second = engine.containers.run(
        ContainerSpec(image=box, name="more", command=("sleep", "1000"), userns="container:users", pid="container:users", network="none")
    )
    assert os.readlink(f"/proc/{first.record.pid}/ns/user") == os.readlink(f"/proc/{second.record.pid}/ns/user")
    code, output, _ = second.exec(["sh", "-c", "id -u; ps | grep -c 'sleep 1000'; touch /made; stat -c %u /made /bin"]).communicate()
    assert (code, output.split()) == (0, [b"0", output.split()[1], b"0", b"0"])
    second.stop(0)
    assert second.stat_path("/made")["size"] == 0, "files of a stopped container are found under its ids"
    assert ask("cat /proc/self/uid_map; stat -c %u /bin", userns="keep-id").split() == ["0", "0", "4294967295", "0"]
    with pytest.raises(InvalidArgument, match="has no user namespace of its own"):
        engine.containers.run(ContainerSpec(image=box, name="plain", command=("sleep", "9"), network="none"))
        engine.containers.create(ContainerSpec(image=box, userns="container:plain"))


def test_namespaces_of_the_host(ask: Callable[..., str]) -> None:
    kinds = ("pid", "ipc", "uts", "cgroup")
    script = f"for kind in {' '.join(kinds)}; do readlink /proc/self/ns/$kind; done; hostname"
    lines = ask(script, pid="host", ipc="host", uts="host", cgroupns="host").splitlines()
    assert lines[:4] == [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert lines[4] == os.uname().nodename
    own = ask(f"{script}; grep -c '/dev/shm' /proc/mounts || true", ipc="none", code=0).splitlines()
    assert not set(own[:4]) & set(lines[:4])
    assert own[-1] == "0"
    assert os.uname().nodename == lines[4], "the host keeps its name"


def test_a_killed_sharer_leaves_no_mount(engine: Engine, box: str, directories: Directories, eventually: Callable[..., Any]) -> None:
    made = engine.containers.run(ContainerSpec(image=box, command=("sleep", "1000"), ipc="shareable", network="none"))
    assert os.path.ismount(f"{directories.run}/sandboxes/{made.id}/shm")
    os.kill(int(Path(f"{directories.run}/sandboxes/{made.id}/stem.pid").read_text()), signal.SIGKILL)
    eventually(lambda: not engine.containers.list())
    assert not os.path.exists(f"{directories.run}/sandboxes/{made.id}")


# -- mounts --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A shared mount with another one below it."""
    top = tmp_path / "tree"
    top.mkdir()

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words], check=True)

    mount("-t", "tmpfs", "tree", str(top))
    mount("--make-private", str(top))
    mount("--make-shared", str(top))
    (top / "sub").mkdir()
    mount("-t", "tmpfs", "sub", str(top / "sub"))
    (top / "sub" / "inner").write_text("")
    yield top
    subprocess.run(["umount", "-R", str(top)], check=False)


def test_recursion_and_propagation_of_binds(engine: Engine, box: str, ask: Callable[..., str], tree: Path) -> None:
    def bind(target: str, *options: str, read_only: bool = True) -> MountSpec:
        return MountSpec(kind="bind", source=str(tree), target=target, read_only=read_only, options=options)

    told = ask(
        "for d in /all /top /flat; do ls $d/sub | wc -l; touch $d/x 2>/dev/null && echo wrote; touch $d/sub/x 2>/dev/null && echo wrote; "
        "echo -; done; mkdir /shared/new && mount -t tmpfs new /shared/new && touch /shared/new/mine",
        cap_add=("SYS_ADMIN",),
        mounts=(
            bind("/all"),
            bind("/top", "recursive=writable"),
            bind("/flat", "recursive=disabled"),
            bind("/shared", "rshared", read_only=False),
        ),
    )
    assert told.split() == ["1", "-", "1", "wrote", "-", "0", "-"]
    assert (tree / "new" / "mine").exists(), "what a container mounts below a shared mount is seen here"
    listening = engine.containers.run(
        ContainerSpec(
            image=box, command=("sleep", "1000"), network="none", mounts=(bind("/slave", "rslave"), bind("/private"))
        )
    )  # fmt: skip
    (tree / "late").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "late", str(tree / "late")], check=True)
    (tree / "late" / "come").write_text("")
    assert listening.exec(["ls", "/slave/late", "/private/late"]).communicate()[1].split() == [b"/private/late:", b"/slave/late:", b"come"]
    assert [mount["Propagation"] for mount in listening.inspect()["Mounts"]] == ["rslave", "rprivate"]
    subprocess.run(["mount", "--make-private", str(tree)], check=True)
    with pytest.raises(InvalidArgument, match="but it is not a shared mount"):
        engine.containers.create(ContainerSpec(image=box, mounts=(bind("/x", "rshared"),)))


def test_parts_of_volumes_and_volumes_of_others(engine: Engine, box: str, ask: Callable[..., str], level: Level) -> None:
    fill = "mkdir -p /v/a/b && echo part > /v/a/b/file && ln -s a/b /v/link && ln -s /etc /v/out"
    ask(fill, mounts=(MountSpec(kind="volume", source="parts", target="/v", options=("label=made=here",)),))
    assert engine.volumes.inspect("parts")["Labels"] == {"made": "here"}

    def part(path: str, target: str, read_only: bool = False) -> MountSpec:
        return MountSpec(kind="volume", source="parts", target=target, read_only=read_only, options=("nocopy", f"subpath={path}"))

    told = ask(
        "cat /p/file /f; ls /l; touch /l/x 2>/dev/null || echo refused; touch /p/new",
        isolation=level,
        mounts=(part("a/b", "/p"), part("link", "/l", read_only=True), part("a/b/file", "/f")),
    )
    assert told.split() == ["part", "part", "file", "refused"]
    for path in ("out", "none"):  # /etc of the volume, which it does not have
        with pytest.raises(InvalidArgument, match=f"cannot access path {path} of volume parts: No such file"):
            ask("true", isolation=level, mounts=(part(path, "/p"),))
    if level is Level.PROCESS:
        holder = engine.containers.create(
            ContainerSpec(image=box, name="holder", mounts=(part("a", "/given"), MountSpec(kind="volume", target="/unnamed")))
        )
        told = ask("ls /given/b; touch /given/x 2>/dev/null || echo refused; touch /unnamed/x && echo own", volumes_from=("holder:ro",),
                   mounts=(MountSpec(kind="tmpfs", target="/unnamed"),))  # fmt: skip
        assert told.split() == ["file", "new", "refused", "own"]
        user = engine.containers.create(ContainerSpec(image=box, volumes_from=("holder",)))
        [unnamed] = [mount.source for mount in user.record.mounts if mount.target == "/unnamed"]
        holder.remove(volumes=True)
        assert os.path.isdir(unnamed), "somebody else still has it"
    for container in engine.containers.list(all=True):
        container.remove()
    engine.volumes.prune(all=True)
    assert engine.volumes.list() == []


def test_images_as_mounts(engine: Engine, box: str, ask: Callable[..., str], level: Level) -> None:
    part = MountSpec(kind="image", source=box, target="/bin2", options=("subpath=bin",))
    own = MountSpec(kind="image", source=box, target="/image")
    script = "/bin2/busybox echo ran; ls /image | grep -cx etc; touch /image/x 2>/dev/null || echo refused; stat -c %u /image/bin"
    assert ask(script, isolation=level, mounts=(own, part), userns="private").split() == ["ran", "1", "refused", "0"]
    stopped = engine.containers.create(ContainerSpec(image=box, isolation=level, mounts=(own, part)))
    assert stopped.stat_path("/image/bin/busybox")["size"] > 1000


def test_directories_as_root(engine: Engine, box: str, tmp_path: Path, cli: Cli, level: Level) -> None:
    holder = engine.containers.create(ContainerSpec(image=box, command=("true",)))
    root = tmp_path / "root"
    root.mkdir()
    with open(tmp_path / "root.tar", "wb") as file:
        reader = holder.get_archive("/.")
        while data := reader.read(1 << 20):
            file.write(data)
        reader.close()
    subprocess.run(["tar", "-xf", str(tmp_path / "root.tar"), "-C", str(root)], check=True)
    start = ("run", "--rm", "--network", "none", "--isolation", str(level))
    users = ("--userns", "private") if level is Level.PROCESS else ()
    assert cli(*start, *users, "--rootfs", str(root), "sh", "-c", "touch /made; id -u").stdout == "0\n"
    assert (root / "made").stat().st_uid == 0, "in place, with the ids of the directory"
    if level is Level.PROCESS:
        said = cli(*start, "--rootfs", f"{root}:O", "sh", "-c", "touch /above && stat -c %u /bin && hostname | wc -c")
        assert said.stdout.split() == ["0", "13"]
        assert not (root / "above").exists()
        assert "the host's own root directory" in cli(*start, "--rootfs", "/", "true", code=125).stderr
        assert "no such directory" in cli(*start, "--rootfs", str(root / "nowhere"), "true", code=125).stderr


# -- devices -------------------------------------------------------------------------------------------------------------


def test_devices_by_path_directory_rule_and_name(
    engine: Engine, ask: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tmp_path / "nodes"
    (nodes / "deep").mkdir(parents=True)
    os.mknod(nodes / "deep" / "control", 0o20640, os.makedev(10, 237))  # loop-control
    os.chown(nodes / "deep" / "control", 0, 44)
    edits = {"env": ["FROM_CDI=yes"], "deviceNodes": [{"path": "/dev/cdi", "hostPath": "/dev/full"}], "additionalGids": [77],
             "mounts": [{"hostPath": str(tmp_path), "containerPath": "/cdi", "options": ["ro", "nosuid", "bind"]}]}  # fmt: skip
    (tmp_path / "spec.json").write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [{"name": "0", "containerEdits": edits}]})
    )
    monkeypatch.setattr(cdi, "DIRECTORIES", (str(tmp_path),))
    script = """
        stat -c '%a %u %g' /dev/mine/deep/control; dd if=/dev/mine/deep/control count=0 && echo readable
        dd of=/dev/mine/deep/control count=0 || echo unwritable
        stat -c '%t:%T' /dev/cdi /opt/null; echo $FROM_CDI; id -G | tr ' ' '\\n' | grep -cx 77
        test -r /cdi/spec.json && touch /cdi/x || echo ro
        mknod /tmp/fuse c 10 229; dd if=/tmp/fuse count=0 2>/dev/null && echo opened; mknod /tmp/kmsg c 1 11; cat /tmp/kmsg || echo closed
    """
    told = ask(
        f"({script}) 2>/dev/null",
        devices=(f"{nodes}:/dev/mine:r", "/dev/null:/opt/null"),
        device_rules=("c 10:229 rwm",),
        gpus=("all",),
    ).split("\n")
    assert told == ["640 0 44", "readable", "unwritable", "1:7", "1:3", "yes", "1", "ro", "opened", "closed", ""]


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"pid": "host"}, "--pid host: a virtual machine has no namespaces in common"),
        ({"network": "container:x"}, "different virtual machines"),
        ({"rootfs": "/srv", "rootfs_overlay": True}, "uses a directory in place; DIR:O is not possible"),
        ({"mounts": (MountSpec(kind="bind", source="/srv", target="/i", options=("rshared",)),)}, "do not propagate"),
        ({"mounts": (MountSpec(kind="bind", source="/srv", target="/i", options=("recursive=disabled",)),)}, "leave bind-recursive out"),
        ({"security_opt": ("apparmor=web",)}, "the guest's kernel has no AppArmor"),
        ({"security_opt": ("label=type:x",)}, "applies no SELinux labels"),
    ],
)
def test_what_a_virtual_machine_does_not_have(engine: Engine, box: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(Unsupported, match=text) as caught:
        engine.containers.create(ContainerSpec(image=box, isolation=Level.VM, **fields))
    assert caught.value.hint
    assert engine.containers.list(all=True) == []


# -- programs of the host ------------------------------------------------------------------------------------------------


def test_enter_and_unshare(engine: Engine, box: str, cli: Cli) -> None:
    made = engine.containers.run(
        ContainerSpec(image=box, name="entered", command=("sleep", "1000"), hostname="inside", network="none", userns="private")
    )
    here = os.readlink("/proc/self/ns/mnt")
    told = cli(
        "enter", "entered", "--", "sh", "-c", "hostname; ls /proc | grep -c '^[0-9]'; readlink /proc/self/ns/net; id -u; exit 4", code=4
    )
    name, count, net, uid = told.stdout.split()
    assert (name, net, uid) == ("inside", os.readlink(f"/proc/{made.record.pid}/ns/net"), "0")
    assert int(count) < 10, "its /proc is that of the container"
    assert os.readlink("/proc/self/ns/mnt") == here
    whole = cli(
        "enter", "--namespaces", "all", "entered", "--", "sh", "-c", "readlink /proc/self/exe; cat /proc/self/uid_map"
    ).stdout.split()
    assert whole[0].startswith("/bin/")
    assert whole[3] == "65536"
    only = cli("enter", "--namespaces", "uts", "entered", "--", "python3", "-c", "import os; print(os.uname().nodename)").stdout
    assert only == "inside\n"
    assert "unknown namespace: nett" in cli("enter", "--namespaces", "nett", "entered", code=125).stderr
    cli("enter", "entered", "--", "no-such-program", code=127)
    cli("enter", "entered", "--", "/etc/passwd", code=126)
    made.stop(0)
    assert "is not running" in cli("enter", "entered", "--", "true", code=125).stderr

    assert cli("unshare", "--pid", "--mount-proc", "sh", "-c", "echo $$; ls /proc | grep -c '^[0-9]'").stdout.split()[0] == "1"
    mapped = cli(
        "unshare", "-r", "-n", "-u", "sh", "-c", "id -u; cat /proc/self/uid_map; hostname other && hostname; grep -c : /proc/net/dev"
    )
    assert mapped.stdout.split() == ["0", "0", "0", "1", "other", "1"]
    assert cli("unshare", "-S", "1234", "-G", "5678", "-w", "/", "sh", "-c", "id -u; id -G; pwd").stdout.split() == ["1234", "5678", "/"]
    cli("unshare", "-f", "sh", "-c", "exit 9", code=9)
    assert "unknown propagation" in cli("unshare", "-m", "--propagation", "x", "true", code=125).stderr
    assert os.uname().nodename != "other"
