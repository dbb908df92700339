"""The operations of a plan, one by one, by a real stem on the real kernel; hostile root directories among them."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stemclient import CONTAINER, PRIVATE, Client, Ended, Sandbox, enter_root, execute, make_root, shell, temporary

from nacre.model.plan import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    WRITE_CREATE,
    WRITE_OPTIONAL,
    Code,
    Op,
    op,
)
from nacre.wire import stem as wire

CHOWN, DAC_OVERRIDE, NET_BIND = 1 << 0, 1 << 1, 1 << 10


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary() as path:
        yield path


@pytest.fixture
def client(directory: Path) -> Iterator[Client]:
    box = Sandbox(directory)
    yield box.client()
    box.close()


@pytest.fixture
def root(directory: Path) -> Path:
    return make_root(directory / "r")


def in_root(root: Path, *ops: Op) -> list[Op]:
    """A mount namespace of its own with ROOT set; nothing of it is seen outside."""
    return [op(Code.MOUNT, "none", "/", "", PRIVATE, ""), op(Code.BIND, str(root), str(root), MS_BIND), op(Code.ROOT, str(root)), *ops]


def run(client: Client, root: Path, *ops: Op, script: str = "true") -> Ended:
    return client.run(*in_root(root, *ops), shell(script), clone=NEWNS)


def refused(client: Client, *ops: Op, clone: int = NEWNS) -> wire.Refused:
    with pytest.raises(wire.Refused) as caught:
        client.spawn(*ops, execute("true"), clone=clone)
    return caught.value


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_are_made_with_parents_and_exact_modes(client: Client, root: Path) -> None:
    ops = [
        op(Code.MKDIR, "%/a/b/c", 0o1777),
        op(Code.MKDIR, "%/a/b/c", 0o700),
        op(Code.TOUCH, "%/d/e", 0o604),
        op(Code.SYMLINK, "/x/y", "%/f/g"),
        op(Code.SYMLINK, "other", "%/f/g"),
        op(Code.MKNOD, "%/dev/zero", 0o020666, os.makedev(1, 5)),
        op(Code.MKNOD, "%/pipe", 0o010622, 0),
        op(Code.WRITE, "%/h", b"one", WRITE_CREATE),
        op(Code.WRITE, "%/h", b"TW", 0),
        op(Code.CHOWN, "%/h", 5, 6),
        op(Code.CHOWN, "%/f/g", 7, -1),
    ]
    assert run(client, root, *ops).code == 0
    assert [oct(os.stat(root / name).st_mode) for name in ("a", "a/b/c", "d/e", "dev/zero", "pipe")] == [
        "0o40755",
        "0o41777",
        "0o100604",
        "0o20666",
        "0o10622",
    ]
    assert os.readlink(root / "f/g") == "/x/y"
    assert os.lstat(root / "f/g").st_uid == 7
    assert os.stat(root / "dev/zero").st_rdev == os.makedev(1, 5)
    assert (root / "h").read_text() == "TWe"
    assert (os.stat(root / "h").st_uid, os.stat(root / "h").st_gid) == (5, 6)


def test_write_flags(client: Client, root: Path) -> None:
    assert refused(client, *in_root(root, op(Code.WRITE, "%/none", b"x", 0))).errno == errno.ENOENT
    assert run(client, root, op(Code.WRITE, "%/none", b"x", WRITE_OPTIONAL)).code == 0
    assert run(client, root, op(Code.WRITE, "/proc/self/oom_score_adj", b"500", 0), script="cat /proc/self/oom_score_adj").out == b"500\n"


def test_touch_leaves_what_is_there(client: Client, root: Path) -> None:
    (root / "file").write_text("kept")
    os.mkfifo(root / "fifo")
    assert run(client, root, *(op(Code.TOUCH, f"%/{name}", 0o600) for name in ("file", "fifo", "etc"))).code == 0
    assert (root / "file").read_text() == "kept"


def test_root_is_needed_for_inside_paths(client: Client) -> None:
    failure = refused(client, op(Code.MKDIR, "%/x", 0o755))
    assert (failure.errno, failure.text) == (errno.EBADF, "make directory %/x: Bad file descriptor")


def test_paths_are_relative_to_the_directory(client: Client, directory: Path) -> None:
    assert client.run(op(Code.MKDIR, "sub", 0o755), op(Code.CHDIR, "sub"), shell("pwd")).out.decode() == f"{directory}/sub\n"


def test_umask(client: Client) -> None:
    assert client.run(shell("umask")).out == b"0022\n"
    assert client.run(op(Code.UMASK, 0o77), shell("umask")).out == b"0077\n"


# -- hostile root directories ------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(root: Path, directory: Path) -> Path:
    """Links that lead out of the root directory for everybody who follows them naively."""
    outside = directory / "outside"
    outside.mkdir()
    (root / "absolute").symlink_to(outside)
    (root / "relative").symlink_to("../outside")
    (root / "far").symlink_to("../" * 40 + "outside")
    (root / "dangling").symlink_to(outside / "new")
    (root / "dangling-file").symlink_to("../outside/new-file")
    (root / "loop").symlink_to("loop")
    (root / "chain1").symlink_to("chain2/x")
    (root / "chain2").symlink_to("chain1/x")
    return root


def test_nothing_is_made_outside(client: Client, hostile: Path, directory: Path) -> None:
    ops = [op(Code.MKDIR, f"%/{name}/made", 0o755) for name in ("absolute", "relative", "far", "dangling")]
    ops += [op(Code.TOUCH, f"%/{name}/touched", 0o644) for name in ("absolute", "relative", "far", "dangling")]
    ops += [op(Code.MKDIR, "%/relative/../../../x", 0o755), op(Code.TOUCH, "%/dangling-file", 0o644)]
    ops += [op(Code.MKNOD, "%/absolute/null", 0o020666, os.makedev(1, 3)), op(Code.SYMLINK, "x", "%/relative/link")]
    ops += [op(Code.WRITE, "%/relative/written", b"x", WRITE_CREATE)]
    assert run(client, hostile, *ops).code == 0
    assert os.listdir(directory / "outside") == []
    assert (hostile / "outside/made").is_dir()
    assert (hostile / "x").is_dir()
    assert (hostile / str(directory / "outside/new").lstrip("/") / "made").is_dir()


def test_endless_links_end(client: Client, hostile: Path) -> None:
    for path in ("%/loop/x", "%/chain1/x", "%/loop"):
        assert refused(client, *in_root(hostile, op(Code.MKDIR, path, 0o755))).errno == errno.ELOOP
    with pytest.raises(wire.Refused):
        client.spawn(*in_root(hostile, op(Code.TOUCH, "%/loop", 0o644)), execute("true"), clone=NEWNS)


def test_mounts_stay_inside(client: Client, hostile: Path, directory: Path) -> None:
    (directory / "outside/witness").write_text("still here")
    ops = [
        op(Code.MKDIR, "%/outside", 0o755),
        op(Code.MOUNT, "tmpfs", "%/relative", "tmpfs", 0, ""),
        op(Code.TOUCH, "%/outside/mark", 0o644),
    ]
    end = run(client, hostile, *ops, script=f"cat {directory}/outside/witness; ls {hostile}/outside")
    assert end.out == b"still heremark\n"
    end = run(
        client, hostile, *ops[:1], op(Code.BIND, "/etc", "%/far", MS_BIND), script=f"ls {directory}/outside; ls {hostile}/outside/passwd"
    )
    assert end.out.decode() == f"witness\n{hostile}/outside/passwd\n"


def test_proc_is_not_mounted_over_the_root(client: Client, root: Path) -> None:
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/")
    for ops in (
        op(Code.MOUNT, "proc", "%/proc", "proc", 0, ""),
        op(Code.BIND, "/etc", "%/proc", MS_BIND),
        op(Code.MASK, "%/proc"),
    ):
        assert refused(client, *in_root(root, ops)).errno == errno.ELOOP


def test_etc_that_leads_out(client: Client, root: Path, directory: Path) -> None:
    for path in (root / "etc").iterdir():
        path.unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to("../../../../etc")
    (directory / "hosts").write_text("ours")
    before = Path("/etc/hosts").read_bytes()
    # In there the link leads to itself, which is an error, not a way out.
    failure = refused(
        client, *in_root(root, op(Code.TOUCH, "%/etc/hosts", 0o644), op(Code.BIND, f"{directory}/hosts", "%/etc/hosts", MS_BIND))
    )
    assert failure.errno == errno.ELOOP
    assert Path("/etc/hosts").read_bytes() == before


def test_magic_links_are_not_followed(client: Client, root: Path) -> None:
    ops = enter_root(root)
    for path in ("%/proc/self/root/x", "%/proc/1/cwd/x"):
        assert refused(client, *ops, op(Code.TOUCH, path, 0o644), clone=CONTAINER).errno == errno.ELOOP


# -- mounts ------------------------------------------------------------------------------------------------------------


def options(end: Ended, target: str) -> set[str]:
    lines = [line.split() for line in end.out.decode().splitlines()]
    return set(next(line[3] for line in reversed(lines) if line[1] == target).split(","))


def test_bind_flags(client: Client, root: Path) -> None:
    flags = MS_BIND | MS_REC | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    end = run(client, root, op(Code.BIND, "/usr", "%/usr", flags), script="cat /proc/mounts")
    assert {"ro", "nosuid", "nodev", "noexec"} <= options(end, f"{root}/usr")
    end = run(
        client,
        root,
        op(Code.TOUCH, "%/f", 0o644),
        op(Code.BIND, "/etc/passwd", "%/f", MS_BIND),
        script=f"cmp /etc/passwd {root}/f && cat /proc/mounts",
    )
    assert end.code == 0
    assert "rw" in options(end, f"{root}/f")


def test_bind_is_recursive_on_request(client: Client, root: Path) -> None:
    inner = [
        op(Code.MKDIR, "%/src/in", 0o755),
        op(Code.MKDIR, "%/dst", 0o755),
        op(Code.MOUNT, "tmpfs", "%/src/in", "tmpfs", 0, ""),
        op(Code.TOUCH, "%/src/in/x", 0o644),
    ]
    plain = run(client, root, *inner, op(Code.BIND, "%/src", "%/dst", MS_BIND), script=f"ls {root}/dst/in")
    deep = run(
        client,
        root,
        *inner,
        op(Code.BIND, "%/src", "%/dst", MS_BIND | MS_REC | MS_RDONLY),
        script=f"ls {root}/dst/in; touch {root}/dst/in/y 2>&1 | grep -o Read-only",
    )
    assert (plain.out, deep.out) == (b"", b"x\nRead-only\n")


def test_readonly_paths(client: Client, root: Path) -> None:
    (root / "data").mkdir()
    end = run(
        client,
        root,
        op(Code.READONLY, "%/data", 0),
        op(Code.READONLY, "%/etc/passwd", 0),
        op(Code.READONLY, "%/missing", 1),
        script=f"for f in data/x etc/passwd etc/new; do touch {root}/$f 2>/dev/null && echo $f; done",
    )
    assert end.out == b"etc/new\n"
    end = client.run(
        *enter_root(root), op(Code.READONLY, "%/", 0), shell("touch /x || touch /proc/self/comm && echo deeper"), clone=CONTAINER
    )
    assert end.out == b"deeper\n"


def test_read_only_root_before_pivot(client: Client, root: Path) -> None:
    plan = enter_root(root, op(Code.MOUNT, "none", "%/", "", MS_REMOUNT | MS_BIND | MS_RDONLY, ""))
    assert b"Read-only" in client.run(*plan, shell("touch /x"), clone=CONTAINER).err


def test_masked_paths(client: Client, root: Path) -> None:
    (root / "secret").mkdir()
    (root / "secret/file").write_text("x")
    (root / "key").write_text("x")
    plan = enter_root(root, op(Code.MASK, "%/secret"), op(Code.MASK, "%/key"), op(Code.MASK, "%/missing/x"), op(Code.MASK, "%/proc/uptime"))
    end = client.run(*plan, shell("ls -A /secret; cat /key; cat /proc/uptime; touch /secret/x 2>&1 | grep -o Read-only"), clone=CONTAINER)
    assert (end.out, end.err) == (b"Read-only\n", b"")


def test_mask_wants_the_real_null_device(client: Client, root: Path) -> None:
    (root / "key").write_text("x")
    plan = [*enter_root(root), op(Code.CHOWN, "%/key", 0, 0)]
    assert client.run(*plan, op(Code.MASK, "%/key"), shell("cat /key"), clone=CONTAINER).out == b""
    (root / "dev/null").unlink()
    (root / "dev/null").write_text("not the device")
    failure = refused(client, *plan, op(Code.MASK, "%/key"), clone=CONTAINER)
    assert failure.text == "mask %/key: /dev/null is missing or not the null device"


def test_mounts_after_pivot(client: Client, root: Path) -> None:
    plan = [*enter_root(root, proc=False), op(Code.MKDIR, "%/mnt/t", 0o755), op(Code.MOUNT, "tmpfs", "%/mnt/t", "tmpfs", 0, "")]
    end = client.run(*plan, op(Code.MOUNT, "proc", "%/proc", "proc", 0, ""), shell("grep -c /mnt/t /proc/mounts"), clone=CONTAINER)
    assert end.out == b"1\n"


def test_old_root_is_gone_after_pivot(client: Client, root: Path) -> None:
    end = client.run(
        *enter_root(root),
        shell("cut -d' ' -f2 /proc/mounts | grep -v -e ^/proc -e ^/dev -e ^/usr -e '^/$' -e ^/lib -e ^/bin -e ^/sbin"),
        clone=CONTAINER,
    )
    assert end.out == b""


def test_image_through_the_kernel_or_a_loop_device(client: Client, root: Path, directory: Path) -> None:
    image = directory / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    script = f"grep {root}/mnt /proc/mounts | cut -d' ' -f1,3"
    end = run(client, root, op(Code.MKDIR, "%/mnt", 0o755), op(Code.IMAGE, "image", "%/mnt", "ext4", MS_RDONLY, ""), script=script)
    device, kind = end.out.decode().split()
    assert (device.startswith("/dev/loop"), kind) == (True, "ext4")
    backing = Path(f"/sys/block/{device.removeprefix('/dev/')}/loop/backing_file")
    assert not backing.exists() or not backing.read_text().startswith(str(directory))  # detached with its last user


def test_root_follows_into_a_new_mount_namespace(client: Client, root: Path) -> None:
    for op_ in (op(Code.UNSHARE, NEWNS), op(Code.CLONE, NEWNS | NEWPID)):
        plan = in_root(root, op(Code.CHDIR, "/usr"), op_, op(Code.MOUNT, "proc", "%/proc", "proc", 0, ""), op(Code.MKDIR, "%/here", 0o755))
        end = client.run(*plan, shell(f"pwd; ls -d {root}/proc/1"), clone=NEWNS)
        assert end.out.decode() == f"/usr\n{root}/proc/1\n", end


def test_chroot(client: Client, root: Path) -> None:
    end = run(
        client,
        root,
        op(Code.BIND, "/usr", "%/usr", MS_BIND),
        op(Code.BIND, "/lib", "%/lib", MS_BIND) if not (root / "lib").is_symlink() else op(Code.NNP),
        op(Code.CHROOT, str(root)),
        op(Code.MKDIR, "%/inside", 0o755),
        script="ls -d /inside",
    )
    assert end.out == b"/inside\n", end
    assert (root / "inside").is_dir()


# -- namespaces --------------------------------------------------------------------------------------------------------


def test_setns(client: Client) -> None:
    end = client.run(
        op(Code.UNSHARE, NEWUTS | NEWIPC),
        op(Code.HOSTNAME, "elsewhere"),
        op(Code.SETNS, f"/proc/{os.getpid()}/ns/uts", NEWUTS),
        shell("hostname"),
    )
    assert end.out.decode().strip() == os.uname().nodename


def test_user_namespace(client: Client, root: Path) -> None:
    (root / "owned").write_text("x")
    os.chown(root / "owned", 0, 0)
    os.chmod(root, 0o755)
    block = "0 100000 65536\n"
    plan = [
        op(Code.MOUNT, "none", "/", "", PRIVATE, ""),
        op(Code.USERNS, block, block),
        op(Code.BIND, str(root), str(root), MS_BIND),
        op(Code.IDMAP, str(root)),
        op(Code.ROOT, str(root)),
        op(Code.BIND, "/usr", "%/usr", MS_BIND | MS_REC),
        *(op(Code.BIND, f"/{name}", f"%/{name}", MS_BIND) for name in ("bin", "lib", "lib64") if not os.path.islink(f"/{name}")),
        op(Code.ENTER),
        op(Code.CLONE, CONTAINER | NEWNET),
        op(Code.MOUNT, "proc", "%/proc", "proc", 0, ""),
        op(Code.HOSTNAME, "private"),
        op(Code.PIVOT),
    ]
    script = (
        "id -u; cat /proc/self/uid_map; stat -c %u:%g /owned; touch /new; stat -c %u /new; hostname; mount -t tmpfs x /tmp && echo mounted"
    )
    end = client.run(*plan, shell(script), clone=NEWNS)
    assert end.out.split() == b"0 0 100000 65536 0:0 0 private mounted".split(), end
    assert os.stat(root / "new").st_uid == 0  # through the id-mapped mount the container's root is the file's owner
    main = client.spawn(*plan, op(Code.DEATH, 9), shell("sleep 100"), clone=NEWNS)
    pid = client.stat()[main][0]
    assert os.stat(f"/proc/{pid}").st_uid == 100000
    join = [op(Code.JOIN, main, CONTAINER | NEWUSER | NEWNET), op(Code.CLONE, 0)]
    end = client.run(*join, op(Code.USER, "alice", "", ""), shell("id -u; id -G; echo $HOME"))
    assert end.out == b"1000\n1001 44 50\n/home/alice\n", end
    assert client.run(*join, shell("id -u; cat /proc/self/uid_map")).out.split() == b"0 0 100000 65536".split()
    client.signal(main, 9)
    client.wait(main)


def test_user_namespace_inside_a_pid_namespace(client: Client) -> None:
    block = "0 200000 1000\n"
    end = client.run(op(Code.USERNS, block, block), op(Code.ENTER), shell("cat /proc/self/uid_map"), clone=NEWPID)
    assert end.out.split() == [b"0", b"200000", b"1000"]
    assert refused(client, op(Code.USERNS, "nonsense", "0 0 1\n")).errno == errno.EINVAL
    assert refused(client, op(Code.ENTER)).errno == errno.EBADF
    assert refused(client, op(Code.IDMAP, "/tmp")).errno == errno.EBADF


# -- network -----------------------------------------------------------------------------------------------------------


def test_interface_address_and_route(client: Client) -> None:
    end = client.run(
        op(Code.TAP, "net7", 6),
        op(Code.LINK, "net7", 1400),
        op(Code.ADDRESS, "net7", socket.inet_aton("10.9.8.7"), 24),
        op(Code.ADDRESS, "net7", socket.inet_aton("10.9.8.7"), 24),
        op(Code.ADDRESS, "net7", socket.inet_pton(socket.AF_INET6, "fd00::7"), 64),
        op(Code.ROUTE, socket.inet_aton("10.9.8.1"), "net7"),
        op(Code.ROUTE, socket.inet_aton("10.77.0.1"), "net7"),
        op(Code.ROUTE, socket.inet_pton(socket.AF_INET6, "fd00::1"), "net7"),
        shell("ip -o addr; ip -o link; ip route; ip -6 route"),
        clone=NEWNET,
    )
    text = end.out.decode()
    assert "inet 10.9.8.7/24 brd 10.9.8.255" in text, end
    assert "inet6 fd00::7/64" in text
    assert "mtu 1400" in text
    assert "UP" in text
    assert text.count("default via 10.") == 1
    assert "default via 10.77.0.1" in text
    assert "default via fd00::1" in text


def test_network_errors(client: Client) -> None:
    failure = refused(client, op(Code.LINK, "nope0", 0), clone=NEWNET)
    assert (failure.errno, failure.text) == (errno.ENODEV, "set up interface nope0: No such device")
    assert refused(client, op(Code.ADDRESS, "lo", b"\1\2\3", 8), clone=NEWNET).errno == errno.EINVAL
    assert refused(client, op(Code.LINK, "x" * 40, 0), clone=NEWNET).errno == errno.ENODEV


def test_tap(client: Client) -> None:
    end = client.run(
        op(Code.TAP, "tap7", 6),
        shell("cat /sys/class/net/tap7/tun_flags 2>/dev/null; ip -o link show tap7 | cut -d: -f2; ls /proc/self/fd"),
        clone=NEWNET,
    )
    assert b"tap7" in end.out, end
    assert b"\n6\n" in end.out


# -- identity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "groups", "home", "expected"),
    [
        ("alice", "", "", "1000 1001 1001 44 50 /home/alice"),
        ("1000", "", "", "1000 1001 1001 44 50 /home/alice"),
        ("alice:staff", "", "", "1000 50 50 /home/alice"),
        ("alice:77", "video,99", "", "1000 77 77 44 99 /home/alice"),
        ("4242", "", "", "4242 0 0 /"),
        ("4242:4343", "", "/somewhere", "4242 4343 4343 /somewhere"),
        ("bob", "", "", "1002 1002 1002 50 /"),
        ("", "", "", "0 0 0 /root"),
        (":staff", "", "", "0 50 50 /root"),
    ],
)
def test_user(client: Client, root: Path, spec: str, groups: str, home: str, expected: str) -> None:
    end = client.run(*enter_root(root), op(Code.USER, spec, groups, home), shell("echo $(id -u; id -g; id -G) $HOME"), clone=CONTAINER)
    assert end.out.decode().strip() == expected, end


def test_home_of_the_environment_wins(client: Client, root: Path) -> None:
    run_ = execute("sh", "-c", "echo $HOME", env=("PATH=/usr/bin:/bin", "HOME=/mine"))
    assert client.run(*enter_root(root), op(Code.USER, "alice", "", ""), run_, clone=CONTAINER).out == b"/mine\n"


@pytest.mark.parametrize(
    ("spec", "groups", "text"),
    [
        ("nobody-here", "", "become user nobody-here: no user nobody-here in /etc/passwd"),
        ("alice:nope", "", "become user alice: no group nope in /etc/group"),
        ("alice", "nope", "become user alice: no group nope in /etc/group"),
        ("-1", "", "become user -1: no user -1 in /etc/passwd"),
        ("4294967295", "", "become user 4294967295: no user 4294967295 in /etc/passwd"),
    ],
)
def test_unknown_users(client: Client, root: Path, spec: str, groups: str, text: str) -> None:
    failure = refused(client, *enter_root(root), op(Code.USER, spec, groups, ""), clone=CONTAINER)
    assert (failure.errno, failure.text) == (errno.ENOENT, text)


def test_account_files_that_are_not_files(client: Client, root: Path) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    (root / "etc/group").unlink()
    (root / "etc/group").symlink_to("/proc/1/root/etc/group")
    end = client.run(*enter_root(root), op(Code.USER, "5:6", "", ""), shell("id -u"), clone=CONTAINER)
    assert end.out == b"5\n", end


def test_streams_belong_to_the_user(client: Client, root: Path) -> None:
    script = "echo a >/proc/self/fd/1 && echo b >/proc/self/fd/2 && stat -c %u /dev/null"
    end = client.run(*enter_root(root), op(Code.USER, "alice", "", ""), shell(script), clone=CONTAINER)
    assert (end.out, end.err) == (b"a\n0\n", b"b\n"), end
    plan = enter_root(root, op(Code.TTY, "%/dev/pts/ptmx", ""))
    end = client.run(*plan, op(Code.USER, "alice", "", ""), shell("stat -c %u $(tty)"), clone=CONTAINER, tty=True)
    assert end.out == b"1000\r\n", end


def test_capabilities(client: Client, root: Path) -> None:
    mask = CHOWN | DAC_OVERRIDE | NET_BIND
    end = client.run(
        *enter_root(root),
        op(Code.BOUND, mask),
        op(Code.USER, "alice", "", ""),
        op(Code.CAPS, mask, mask, mask, NET_BIND),
        op(Code.NNP),
        shell("grep -E '^(Cap|NoNew)' /proc/self/status"),
        clone=CONTAINER,
    )
    values = dict(line.split(":\t") for line in end.out.decode().splitlines())
    bits = {name: int(values[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert bits == {"CapInh": mask, "CapPrm": NET_BIND, "CapEff": NET_BIND, "CapBnd": mask, "CapAmb": NET_BIND}
    assert values["NoNewPrivs"] == "1"
    assert refused(client, op(Code.SETUID, 5, 5), op(Code.CAPS, mask, mask, 0, 0)).errno == errno.EPERM


def test_setuid(client: Client) -> None:
    end = client.run(op(Code.SETUID, 12, 34), shell("id -u; id -G; grep CapEff /proc/self/status"))
    assert end.out.split() == [b"12", b"34", b"CapEff:", b"0000000000000000"]


def test_rlimits_are_clamped(client: Client) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    end = client.run(op(Code.RLIMIT, resource.RLIMIT_NOFILE, 100, 200), shell("ulimit -Sn; ulimit -Hn"))
    assert end.out == b"100\n200\n"
    end = client.run(
        op(Code.RLIMIT, resource.RLIMIT_NOFILE, 100, 200),
        op(Code.RLIMIT, resource.RLIMIT_NOFILE, 300, 400),
        shell("ulimit -Sn; ulimit -Hn"),
    )
    assert end.out in (b"200\n200\n", b"300\n400\n")  # the second where CAP_SYS_RESOURCE is held
    end = client.run(op(Code.RLIMIT, resource.RLIMIT_CORE, 0, 0), shell("ulimit -Sc"))
    assert end.out == b"0\n"
    assert hard > 200


def test_seccomp(client: Client) -> None:
    # Deny uname (63 on x86-64, 160 elsewhere) with EPERM, allow the rest.
    number = 63 if os.uname().machine == "x86_64" else 160
    program = b"".join(
        struct.pack("<HBBI", *line) for line in ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000))
    )
    end = client.run(op(Code.NNP), op(Code.SECCOMP, program, 0), shell("uname 2>&1; true"))
    assert (end.code, b"not permitted" in end.out) == (0, True), end
    assert refused(client, op(Code.SECCOMP, program[:-1], 0)).errno == errno.EINVAL
    assert refused(client, op(Code.SECCOMP, b"", 0)).errno == errno.EINVAL


def test_signals_are_reset(client: Client) -> None:
    end = client.run(shell("grep -E '^Sig(Blk|Ign)' /proc/self/status"))
    assert end.out.split() == [b"SigBlk:", b"0000000000000000", b"SigIgn:", b"0000000000000000"]
