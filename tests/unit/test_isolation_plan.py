"""What a container's plan says, word for word: golden files in tests/golden/plan, one per kind of container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nacre.errors import InvalidArgument
from nacre.isolation import plan
from nacre.isolation.microvm.disks import rootfs_ops as guest_rootfs_ops
from nacre.isolation.plan import Device, Etc, Place, Security, builtin_plan, container_plan, exec_plan, guest_cgroup_ops
from nacre.isolation.process import cgroup_mounts, rootfs_ops
from nacre.linux.cgroups import Layout
from nacre.model.container import BoundMount, ContainerSpec, LayerMount, Level, ProcessSpec, Rootfs, Sandbox
from nacre.model.network import Endpoint
from nacre.model.plan import MS_BIND, MS_REC, Code, Op, Spawn, op

Golden = Callable[[str, str], None]

DEFAULT, EVERYTHING = 0xA80425FB, (1 << 41) - 1
FILTER = bytes(80)
SECURITY = Security(capabilities=DEFAULT, seccomp=FILTER)
ETC = Etc(hosts=b"127.0.0.1\tlocalhost\n", resolv=b"nameserver 192.0.2.53\n", hostname=b"box\n")
LAYERS = (
    LayerMount(diff_id="sha256:a", path="/root/layers/a/layer.erofs", format="erofs"),
    LayerMount(diff_id="sha256:b", path="/root/layers/b/fs", format="directory"),
)
ROOTFS = Rootfs(driver="erofs", layers=LAYERS, upper="/root/containers/1/upper")
BRIDGE = Endpoint(
    network="bridge", netns="/run/netns/1", interface="eth0", mac="02:6e:0a:58:00:02", address="10.88.0.2/16", gateway="10.88.0.1"
)
NONE = Endpoint(network="none", netns="/run/netns/1")
HOST = Endpoint(network="host")
V1 = Layout(v1={"memory": "/sys/fs/cgroup/memory", "cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct"})
V2 = Layout(unified="/sys/fs/cgroup", v2=("cpu", "memory", "pids"))
SHELL = ProcessSpec(args=("sh",), env=("PATH=/bin",))


def sandbox(endpoint: Endpoint = BRIDGE, mounts: tuple[BoundMount, ...] = (), **fields: Any) -> Sandbox:
    return Sandbox(
        id="1" * 64,
        level=Level.PROCESS,
        directory="/run/sandboxes/1",
        state="/root/containers/1",
        hostname="box",
        rootfs=ROOTFS,
        endpoint=endpoint,
        spec=ContainerSpec(image="image", **fields),
        mounts=mounts,
    )


def place(endpoint: Endpoint = BRIDGE, layout: Layout = V2, *, block: int = 0) -> Place:
    """What the driver of level process would say, on a host that is the same everywhere."""
    return Place(
        stage="/run/sandboxes/1/stage",
        scratch="/root/containers/1/etc",
        rootfs=tuple(rootfs_ops(ROOTFS, block=block)),
        join=("/sys/fs/cgroup/nacre/1/cgroup.procs",),
        cgroup=cgroup_mounts(layout),
        netns=endpoint.netns,
        oom="/sys/fs/cgroup/nacre/1/memory.events",
        user_block=block,
    )


def text(spawn: Spawn) -> str:
    head = f"clone {spawn.clone:#x} tty {spawn.tty} stdin {spawn.stdin} size {spawn.rows}x{spawn.columns} oom {spawn.oom or '-'}\n"
    return head + "".join(f"{item.describe()}\n" for item in spawn.ops)


def plain(
    box: Sandbox | None = None,
    process: ProcessSpec = SHELL,
    where: Place | None = None,
    security: Security = SECURITY,
    devices: tuple[Device, ...] = (),
) -> Spawn:
    box = box or sandbox()
    return container_plan(box, process, where or place(box.endpoint), security, devices, ETC)


def index(spawn: Spawn, code: Code, first: object = None) -> int:
    """Place of the only operation with this code (and first argument)."""
    [found] = [
        number for number, item in enumerate(spawn.ops) if item.code is code and (first is None or (item.args and item.args[0] == first))
    ]
    return found


# -- golden files --------------------------------------------------------------------------------------------------------


def test_plain(golden: Golden) -> None:
    golden("plan/process.plan", text(plain()))


def test_terminal_working_directory_and_user(golden: Golden) -> None:
    process = ProcessSpec(
        args=("bash", "-l"),
        env=("PATH=/bin", "TERM=xterm"),
        working_dir="/srv/app",
        user="www-data:adm",
        groups=("audio", "44"),
        tty=True,
        open_stdin=True,
        rows=24,
        columns=80,
    )
    golden("plan/tty-user.plan", text(plain(sandbox(hostname="box"), process)))


def test_read_only_root_and_every_kind_of_mount(golden: Golden) -> None:
    mounts = (
        BoundMount(target="/data/inner", source="/srv/inner"),
        BoundMount(target="/run", kind="tmpfs", options=("size=64m", "mode=1777", "exec")),
        BoundMount(target="/data", source="/srv/data", read_only=True),
        BoundMount(target="/etc/app.conf", source="/srv/app.conf", is_dir=False),
        BoundMount(target="/var/lib/app", kind="volume", source="/root/volumes/app/_data", options=("name=app",)),
    )
    golden("plan/mounts.plan", text(plain(sandbox(mounts=mounts, read_only=True, shm_size=1 << 20))))


def test_user_namespace(golden: Golden) -> None:
    box = sandbox(userns="private")
    golden("plan/user-namespace.plan", text(plain(box, where=place(block=0x10010000))))


def test_privileged(golden: Golden) -> None:
    security = Security(capabilities=EVERYTHING, hidden=(), read_only=())
    devices = (Device(name="kvm", major=10, minor=232, mode=0o660), Device(name="mapper/disk", major=253, minor=0, kind="b", mode=0o600))
    golden("plan/privileged.plan", text(plain(sandbox(privileged=True), security=security, devices=devices)))


@pytest.mark.parametrize("endpoint", [NONE, HOST], ids=lambda endpoint: str(endpoint.network))
def test_networks(golden: Golden, endpoint: Endpoint) -> None:
    golden(f"plan/network-{endpoint.network}.plan", text(plain(sandbox(endpoint, network=endpoint.network))))


def test_without_the_power_to_make_nodes_and_to_mount_what_is_the_hosts(golden: Golden) -> None:
    """As an ordinary user: the host's nodes and views are bound where they would be made or mounted."""
    bound = {"sysfs": "/sys", "proc": "/proc", "mqueue": "", "cgroup": "/sys/fs/cgroup"}
    box = sandbox(HOST, network="host", pid="host", ipc="host", cgroupns="host")
    devices = (Device(name="xfuse", major=10, minor=229, source="/dev/fuse"),)
    where = place(HOST).replace(join=(), nodes=False, bound=bound)
    made = plain(box, where=where, devices=devices)
    assert not any(op.code is Code.MKNOD for op in made.ops)
    golden("plan/ordinary-user.plan", text(made))


def test_everything_that_has_a_flag_of_its_own(golden: Golden) -> None:
    security = SECURITY.replace(no_new_privileges=True, rlimits=((7, 1024, 4096), (6, 100, 100)))
    box = sandbox(sysctls={"net.ipv4.ip_unprivileged_port_start": "0"}, oom_score_adj=500)
    golden("plan/options.plan", text(plain(box, where=place(layout=V1), security=security)))


def test_exec(golden: Golden) -> None:
    process = ProcessSpec(args=("id",), env=("PATH=/bin",), user="1000", tty=True, rows=50, columns=132)
    texts = [text(exec_plan(1, process, where, SECURITY)) for where in (place(), place(HOST), place(block=0x10010000))]
    golden("plan/exec.plan", "\n".join(texts))


def test_file_transfer(golden: Golden) -> None:
    texts = [
        text(builtin_plan(1, place(), ("tar-get", "/etc"))),
        text(builtin_plan(1, place(block=0x10010000), ("tar-put", "/srv"), stdin=True)),
    ]
    golden("plan/builtin.plan", "\n".join(texts))


def test_virtual_machine(golden: Golden) -> None:
    rootfs = Rootfs(driver="erofs", layers=LAYERS[:1], disk="/root/containers/1/upper.ext4")
    where = Place(
        stage="/stage",
        scratch="/run/nacre/etc",
        rootfs=guest_rootfs_ops(rootfs),
        join=("/sys/fs/cgroup/container/cgroup.procs",),
        cgroup_setup=guest_cgroup_ops(
            "/sys/fs/cgroup/container", [("memory.max", str(64 << 20)), ("memory.swap.max", "0"), ("pids.max", "100")]
        ),
        cgroup=(("cgroup2", "cgroup2", "", ""),),
        binds={"/data": (op(Code.MKDIR, "%/data", 0o755), op(Code.BIND, "/stage/binds/0", "%/data", MS_BIND | MS_REC))},
        oom="/sys/fs/cgroup/container/memory.events",
        devtmpfs=True,
    )
    mounts = (BoundMount(target="/data", source="/srv/data"), BoundMount(target="/tmp", kind="tmpfs"))
    box = sandbox(mounts=mounts, isolation=Level.VM)
    golden("plan/vm.plan", text(plain(box, where=where)))
    assert "devtmpfs" in text(plain(box.replace(spec=box.spec.replace(privileged=True)), where=where))


# -- what must hold for every plan ---------------------------------------------------------------------------------------


@pytest.fixture(params=["process", "user namespace", "no new privileges", "read-only"])
def any_plan(request: pytest.FixtureRequest) -> Spawn:
    if request.param == "user namespace":
        return plain(sandbox(userns="private"), where=place(block=0x10010000))
    if request.param == "no new privileges":
        return plain(security=SECURITY.replace(no_new_privileges=True))
    return plain(sandbox(read_only=request.param == "read-only"))


def test_the_program_comes_last_and_nothing_of_the_host_is_touched_after_the_pivot(any_plan: Spawn) -> None:
    assert any_plan.ops[-1].code is Code.EXEC
    after = any_plan.ops[index(any_plan, Code.PIVOT) + 1 :]
    assert {item.code for item in after} <= {
        Code.UMASK, Code.CHDIR, Code.RLIMIT, Code.BOUND, Code.NNP, Code.SECCOMP, Code.USER, Code.CAPS, Code.DEATH, Code.EXEC,
    }  # fmt: skip


def test_privileges_are_gone_before_the_program_runs(any_plan: Spawn) -> None:
    order = [index(any_plan, code) for code in (Code.BOUND, Code.USER, Code.CAPS, Code.DEATH, Code.EXEC)]
    assert order == sorted(order)
    filtered = index(any_plan, Code.SECCOMP)
    if any(item.code is Code.NNP for item in any_plan.ops):
        assert index(any_plan, Code.CAPS) < filtered, "with no_new_privs the filter can come last, when nothing more has to be permitted"
    else:
        assert filtered < index(any_plan, Code.USER), "without it a filter needs CAP_SYS_ADMIN"


def test_the_files_of_etc_are_written_before_the_host_goes_out_of_sight(any_plan: Spawn) -> None:
    written = [number for number, item in enumerate(any_plan.ops) if item.code is Code.WRITE and "/etc/" in str(item.args[0])]
    assert written
    assert max(written) < index(any_plan, Code.CHDIR, "/run/sandboxes/1/stage")


def test_paths_in_the_container_never_leave_it() -> None:
    made = plain(sandbox(mounts=(BoundMount(target="/a", source="/srv/a"),)), SHELL.replace(working_dir="/deep/er"))
    start = index(made, Code.ROOT)
    for item in made.ops[start + 1 : index(made, Code.PIVOT)]:
        if item.code in (Code.MKDIR, Code.TOUCH, Code.MKNOD, Code.SYMLINK, Code.MASK, Code.READONLY):
            path = item.args[1] if item.code is Code.SYMLINK else item.args[0]
            assert str(path).startswith("%/"), item.describe()
        if item.code in (Code.MOUNT, Code.BIND):
            assert str(item.args[1]).startswith("%/"), item.describe()


def test_parents_are_mounted_before_children() -> None:
    mounts = tuple(BoundMount(target=target, source="/srv") for target in ("/a/b/c", "/a", "/a/b"))
    targets = [item.args[1] for item in plan.mount_ops(mounts, {}) if item.code is Code.BIND]
    assert targets == ["%/a", "%/a/b", "%/a/b/c"]


@pytest.mark.parametrize(("target", "covered"), [("/etc", True), ("/etc/", True), ("/etc/hosts", False), ("/etc/x", False)])
def test_the_generated_files_are_seen_unless_the_caller_mounts_them(target: str, covered: bool) -> None:
    made = plain(sandbox(mounts=(BoundMount(target=target, source="/srv"),)))
    targets = [str(item.args[1]) for item in made.ops if item.code is Code.BIND]
    assert (targets.index(f"%{target}") < targets.index("%/etc/hosts")) is covered
    hidden = plain(sandbox(mounts=(BoundMount(target="/etc", source="/srv", read_only=True),)))
    assert [str(item.args[1]) for item in hidden.ops if item.code is Code.BIND][-1] == "%/etc", "nothing can be made in there"


@pytest.mark.parametrize("target", ["/", "relative", ""])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(InvalidArgument, match="absolute path below /"):
        plan.mount_ops([BoundMount(target=target, source="/srv")], {})


def test_what_belongs_to_the_root_of_a_user_namespace() -> None:
    kinds = ("bind", "volume", "tmpfs")
    mounts = [BoundMount(target=f"/{kind}", kind=kind, source="" if kind == "tmpfs" else "/srv") for kind in kinds]
    mounts.append(BoundMount(target="/mine", kind="tmpfs", options=("uid=5",)))
    made = plan.mount_ops(mounts, {}, 100000)
    assert [item.args for item in made if item.code is Code.IDMAP] == [("%/volume",)]
    assert [item.args[4] for item in made if item.code is Code.MOUNT] == ["uid=100000,gid=100000", "uid=100005,gid=100000"]


def test_tmpfs_options() -> None:
    def made(*options: str, read_only: bool = False) -> Op:
        return plan.mount_ops([BoundMount(target="/t", kind="tmpfs", options=options, read_only=read_only)], {})[1]

    assert made().args == ("tmpfs", "%/t", "tmpfs", plan.SAFE, "")
    assert made("exec", "suid", "dev", "size=1m").args == ("tmpfs", "%/t", "tmpfs", 0, "size=1m")
    assert made("exec", "noexec", "ro", "rw").args[3] == plan.SAFE, "the last one wins"
    assert made(read_only=True).args[3] == plan.SAFE | 1
    assert made("uid=5", "gid=6", "mode=700").args[4] == "mode=700,uid=5,gid=6"
    with pytest.raises(InvalidArgument, match="invalid tmpfs option 'uid=x'"):
        made("uid=x")
    with pytest.raises(InvalidArgument, match="invalid tmpfs option 'lowerdir=/'"):
        made("lowerdir=/")


def test_device_numbers_are_the_kernels() -> None:
    import os

    for major, minor in ((1, 3), (253, 0), (8, 300), (4095, 1048575)):
        assert plan.makedev(major, minor) == os.makedev(major, minor)


JOINS = {kind: f"/proc/7/ns/{kind}" for kind in ("pid", "ipc", "uts", "user", "net")}
SHARED: dict[str, Any] = {"pid": "container:9", "ipc": "container:9", "uts": "container:9", "network": "container:9"}


def test_namespaces_of_another_container(golden: Golden) -> None:
    endpoint = Endpoint(network="container:9", netns="/run/netns/9")
    etc = Etc(hosts=b"", resolv=b"", hostname=b"", source="/root/containers/9/etc")
    where = place().replace(netns=JOINS["net"], configure=False, shm="/run/sandboxes/9/shm")
    boxes = (
        (sandbox(endpoint, **SHARED).replace(joins={kind: path for kind, path in JOINS.items() if kind != "user"}), where),
        (sandbox(endpoint, **SHARED, userns="container:9").replace(joins=JOINS), where.replace(user_block=5 << 16, users=JOINS["user"])),
        (sandbox(HOST, pid="host", ipc="host", uts="host", cgroupns="host", network="host"), place(HOST).replace(shm="/dev/shm")),
        (sandbox(ipc="none", userns="keep-id"), place().replace(users="0 0 4294967295\n")),
    )
    golden("plan/shared.plan", "\n".join(text(container_plan(box, SHELL, at, SECURITY, (), etc)) for box, at in boxes))
    assert plan.own_namespaces(boxes[0][0].spec) == 0
    assert text(exec_plan(1, SHELL, boxes[3][1], SECURITY)).count("join 1") == 1


def test_parameters_are_set_by_who_has_power_over_them() -> None:
    def written(**fields: Any) -> list[str]:
        ops = plain(sandbox(sysctls={"kernel.shmmax": "1", "net.core.somaxconn": "1", "vm.swappiness": "1"}, **fields)).ops
        return [str(item.args[0]) for item in ops if item.code is Code.WRITE and "/proc/sys" in str(item.args[0])]

    outside = ["/proc/sys/net/core/somaxconn", "/proc/sys/vm/swappiness"]
    assert written() == [*outside, "%/proc/sys/kernel/shmmax"]
    assert written(ipc="container:9") == ["/proc/sys/kernel/shmmax", *outside]


def test_init_names_and_security(golden: Golden) -> None:
    security = SECURITY.replace(hidden=("/etc/shadow",), read_only=(), apparmor="web", seccomp_flags=2)
    box = sandbox(init=True, domainname="example.org")
    devices = (Device(name="dri/card0", major=226, minor=0, mode=0o660, gid=44), Device(name="/opt/null", major=1, minor=3))
    golden("plan/init.plan", text(plain(box, where=place().replace(stem="/usr/bin/stem"), security=security, devices=devices)))


def test_propagation_parts_and_images(golden: Golden) -> None:
    mounts = (
        BoundMount(target="/shared", source="/srv/shared", options=("rshared",)),
        BoundMount(target="/shared-ro", source="/srv/a", read_only=True, options=("rshared", "recursive=writable")),
        BoundMount(target="/slave", source="/srv/slave", options=("rslave", "create")),
        BoundMount(target="/flat", source="/srv/flat", read_only=True, options=("recursive=disabled",)),
        BoundMount(target="/top", source="/srv/top", read_only=True, options=("recursive=writable",)),
        BoundMount(target="/safe", source="/srv/safe", options=("nosuid", "nodev", "noexec")),
        BoundMount(target="/part", kind="volume", source="/vol/_data", is_dir=False, options=("name=vol", "subpath=a/b")),
        BoundMount(target="/image", kind="image", source="sha256:1", read_only=True, options=("name=box",), layers=LAYERS),
        BoundMount(
            target="/image-part", kind="image", source="sha256:1", options=("name=box", "subpath=bin"), read_only=True, layers=LAYERS[:1]
        ),
        BoundMount(target="/tmp", kind="tmpfs", options=("noatime", "uid=5", "gid=6", "nr_inodes=10", "mpol=local", "sync", "dev")),
    )
    golden("plan/mounts-docker.plan", "\n".join(text(plain(sandbox(mounts=mounts), where=place(block=block))) for block in (0, 5 << 16)))


@pytest.mark.parametrize("option", ["bogus", "size", "uid=x", "size=", "mode", "rw=1"])
def test_options_that_a_tmpfs_does_not_have(option: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid tmpfs option"):
        plan.check_tmpfs(BoundMount(target="/tmp", kind="tmpfs", options=(option,)))
