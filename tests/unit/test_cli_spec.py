"""The flags of run become the spec that Docker's would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nacre.cli.commands.run import COMMANDS
from nacre.cli.flags import UsageError
from nacre.cli.mounts import parse_mount, parse_tmpfs, parse_volume
from nacre.cli.ports import parse_private, parse_publish, ports_text
from nacre.cli.spec import attached_streams, container_spec
from nacre.errors import InvalidArgument, Unsupported
from nacre.model.container import ContainerSpec, Level, MountSpec, Ulimit
from nacre.model.network import PortMapping


def spec(*argv: str) -> ContainerSpec:
    args = COMMANDS["run"].parse("run", argv)
    assert args is not None
    return container_spec(args, args.rest[0], args.rest[1:], detached=args.detach)


def mappings(text: str) -> list[str]:
    return [str(port) for port in parse_publish(text)]


def test_nothing_asked_for_is_the_default() -> None:
    assert spec("box") == ContainerSpec(image="box")


def test_everything_else() -> None:
    made = spec(
        *("-it", "--rm", "--name", "web", "-h", "host", "-w", "/srv", "-u", "1000:1000", "--group-add", "5", "-m", "512m", "--cpus", "1.5"),
        *("-c", "512", "--pids-limit", "100", "--shm-size", "1g", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--privileged"),
        *("--security-opt", "no-new-privileges", "--read-only", "--ulimit", "nofile=1024:2048", "--sysctl", "net.ipv4.ip_forward=1"),
        *(
            "--device",
            "/dev/fuse",
            "--userns",
            "private",
            "--isolation",
            "vm",
            "--kernel",
            "/k",
            "-l",
            "a=b",
            "-l",
            "c",
            "--dns",
            "1.1.1.1",
        ),
        *(
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:1",
            "--add-host",
            "db:10.0.0.1",
            "--add-host",
            "six=[fe80::1]",
            "--net",
            "host",
        ),
        *("--stop-signal", "QUIT", "--stop-timeout", "3", "--oom-score-adj", "-5", "-P", "--entrypoint", "/bin/sh", "-e", "A=1"),
        *("box", "-c", "true"),
    )
    assert made == ContainerSpec(
        image="box", name="web", command=("-c", "true"), entrypoint=("/bin/sh",), env=("A=1",), working_dir="/srv", user="1000:1000",
        groups=("5",), hostname="host", labels={"a": "b", "c": ""}, tty=True, open_stdin=True, auto_remove=True,
        isolation=Level.VM, kernel="/k",
        resources=made.resources, network="host", publish_all=True, read_only=True, shm_size=1 << 30, cap_add=("NET_ADMIN",),
        cap_drop=("ALL",), privileged=True, security_opt=("no-new-privileges",), userns="private",
        ulimits=(Ulimit(name="nofile", soft=1024, hard=2048),), sysctls={"net.ipv4.ip_forward": "1"}, devices=("/dev/fuse",),
        dns=("1.1.1.1",), dns_search=("example.org",), dns_options=("ndots:1",), extra_hosts=("db:10.0.0.1", "six:fe80::1"),
        stop_signal="QUIT", stop_timeout=3, oom_score_adj=-5,
    )  # fmt: skip
    assert (made.resources.memory, made.resources.cpus, made.resources.cpu_shares, made.resources.pids) == (512 << 20, 1.5, 512, 100)


def test_entrypoint_can_be_taken_away() -> None:
    assert spec("box").entrypoint is None
    assert spec("--entrypoint", "", "box").entrypoint == ()


def test_size_of_the_root_file_system() -> None:
    assert spec("box").storage_size == 0
    assert spec("--storage-opt", "size=1.5g", "box").storage_size == 3 << 29


def test_no_limit_on_processes() -> None:
    assert spec("--pids-limit", "-1", "box").resources.pids == 0


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("GONE", raising=False)
    file = tmp_path / "env"
    file.write_text("\ufeff# comment\n\n  A=from file \nHERE\nGONE\nEMPTY=\nB=a=b # not a comment\n")
    made = spec("--env-file", str(file), "-e", "A=flag", "-e", "HERE", "-e", "GONE", "box")
    # GONE without a value reaches the engine as it is: there it takes a variable of the image away.
    assert made.env == ("A=from file ", "HERE=yes", "EMPTY=", "B=a=b # not a comment", "A=flag", "HERE=yes", "GONE")


def test_environment_files_that_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("FINE=1\nnot fine=1\n")
    with pytest.raises(InvalidArgument, match=r"line 2: invalid variable name 'not fine'"):
        spec("--env-file", str(file), "box")
    with pytest.raises(InvalidArgument, match="No such file"):
        spec("--env-file", str(tmp_path / "missing"), "box")


def test_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("# comment\na=file\nb=file\n")
    assert spec("--label-file", str(file), "-l", "a=flag", "box").labels == {"a": "flag", "b": "file"}


def test_isolation_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACRE_ISOLATION", "vm")
    assert spec("box").isolation is Level.VM
    assert spec("--isolation", "process", "box").isolation is Level.PROCESS
    monkeypatch.setenv("NACRE_ISOLATION", "tin foil")
    with pytest.raises(InvalidArgument, match="NACRE_ISOLATION"):
        spec("box")


def test_attached_streams() -> None:
    def streams(*argv: str) -> list[str]:
        args = COMMANDS["run"].parse("run", argv)
        assert args is not None
        return sorted(attached_streams(args))

    assert streams("box") == ["stderr", "stdout"]
    assert streams("-i", "box") == ["stderr", "stdin", "stdout"]
    assert streams("-a", "STDERR", "box") == ["stderr"]
    assert spec("-a", "stdin", "box").open_stdin
    with pytest.raises(UsageError, match="valid streams"):
        streams("-a", "nose", "box")


@pytest.mark.parametrize(
    "argv",
    [
        ["--ulimit", "nofile"],
        ["--ulimit", "nofile=a"],
        ["--ulimit", "nofile=9:1"],
        ["--ulimit", "nofile=-1:1"],
        ["--ulimit", "nofile=-2"],
        ["--sysctl", "x"],
        ["--add-host", "db"],
        ["--oom-score-adj", "2000"],
        ["--storage-opt", "inodes=5"],
        ["--storage-opt", "size"],
        ["--storage-opt", "size=0"],
        ["--network", "name=x,alias=y"],
        ["--userns"],
        ["--cgroupns", "container:x"],
        ["--annotation", "key"],
        ["--annotation", "=value"],
        ["--gpus", "some"],
        ["--gpus", "0"],
        ["--gpus", "count=2,device=0"],
        ["--gpus", "device="],
        ["--gpus", "driver=mine"],
        ["--gpus", "vendor=x"],
        ["--gpus", ""],
        ["--label", "=x"],
        ["-e", "=x"],
        ["-v", "a:/x", "--mount", "type=tmpfs,target=/x/"],
        ["--isolation", "hyperv"],
        ["--memory", "-5"],
    ],
)
def test_what_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        spec(*argv, "box")


# ---- ports


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", ["0.0.0.0:0->80/tcp"]),
        ("8080:80", ["0.0.0.0:8080->80/tcp"]),
        ("8080:80/udp", ["0.0.0.0:8080->80/udp"]),
        ("8080:80/TCP", ["0.0.0.0:8080->80/tcp"]),
        ("127.0.0.1:8080:80", ["127.0.0.1:8080->80/tcp"]),
        ("127.0.0.1::80", ["127.0.0.1:0->80/tcp"]),
        ("0.0.0.0:8080:80", ["0.0.0.0:8080->80/tcp"]),
        ("8000-8002:80-82/udp", ["0.0.0.0:8000->80/udp", "0.0.0.0:8001->81/udp", "0.0.0.0:8002->82/udp"]),
        ("80-81", ["0.0.0.0:0->80/tcp", "0.0.0.0:0->81/tcp"]),
    ],
)
def test_publish(text: str, ports: list[str]) -> None:
    assert mappings(text) == ports


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "invalid containerPort: x"),
        ("", "no port specified"),
        ("80:", "no port specified"),
        ("x:80", "invalid hostPort: x"),
        ("0", "invalid containerPort: 0"),
        ("65536", "invalid containerPort: 65536"),
        ("90-80", "invalid containerPort: 90-80"),
        ("8000-8010:80-81", "invalid ranges"),
        ("80/foo", "invalid proto: foo"),
        ("80/", "invalid proto"),
        ("1.2.3:80:80", "invalid IP address: 1.2.3"),
        ("256.1.1.1:80:80", "invalid IP address"),
        ("[::1]:80:80", "IPv6"),
        ("a:b:c:d", "invalid publish argument"),
        ("٣", "invalid containerPort"),
    ],
)
def test_what_is_no_port(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse_publish(text)


def test_private_ports() -> None:
    assert parse_private("80") == (80, "tcp")
    assert parse_private("53/UDP") == (53, "udp")
    with pytest.raises(UsageError):
        parse_private("eighty")


def test_ports_in_listings() -> None:
    def port(private: int, public: int, address: str = "", protocol: str = "tcp") -> PortMapping:
        return PortMapping(container_port=private, host_port=public, host_ip=address, protocol=protocol)

    assert ports_text([port(80, 8080)], ["443/tcp", "444/tcp", "80/tcp"]) == "443-444/tcp, 0.0.0.0:8080->80/tcp"
    assert ports_text([port(90, 90, protocol="udp"), port(91, 91, protocol="udp"), port(93, 93, protocol="udp")], []) == (
        "0.0.0.0:90-91->90-91/udp, 0.0.0.0:93->93/udp"
    )
    assert ports_text([port(80, 80, "127.0.0.1"), port(81, 81)], []) == "127.0.0.1:80->80/tcp, 0.0.0.0:81->81/tcp"
    assert ports_text([], ["8080"]) == "8080/tcp"
    assert ports_text([], []) == ""


# ---- mounts


def test_volumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_volume("/data") == MountSpec(kind="volume", target="/data")
    assert parse_volume("data:/data") == MountSpec(kind="volume", source="data", target="/data")
    assert parse_volume("data:/data:nocopy,ro") == MountSpec(
        kind="volume", source="data", target="/data", read_only=True, options=("nocopy",)
    )
    assert parse_volume("/a:/b:ro,Z") == MountSpec(kind="bind", source="/a", target="/b", read_only=True, options=("Z", "create"))
    assert parse_volume("/a:/b:rslave,rw").options == ("rslave", "create")
    assert parse_volume("data:/b:nocopy,z,delegated").options == ("nocopy", "z")
    assert parse_volume("./x:/b").source == os.path.realpath(tmp_path) + "/x"
    assert parse_volume("~/x:/b").source == "/home/me/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:b:c:d", "invalid volume specification"),
        ("", "invalid volume specification"),
        ("a:", "invalid volume specification"),
        ("a:b", "mount path must be absolute"),
        ("relative", "mount path must be absolute"),
        ("a:/", "destination can't be '/'"),
        ("a:/x/..", "destination can't be '/'"),
        ("/a:/b:foo", "invalid mode: foo"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("/a:/b:rslave,rshared", "invalid mode"),
        ("/a:/b:nocopy", "invalid mode: nocopy"),
        ("/a:/b:z,Z", "invalid mode"),
        ("a b:/x", "includes invalid characters"),
        ("a/b:/x", "includes invalid characters"),
    ],
)
def test_what_is_no_volume(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_volume(text)
    assert message in caught.value.message


def test_mounts() -> None:
    assert parse_mount("type=bind,source=/a,target=/b,readonly") == MountSpec(kind="bind", source="/a", target="/b", read_only=True)
    assert parse_mount("type=bind,src=/a,dst=/b,ro=false,bind-propagation=rshared") == MountSpec(
        kind="bind", source="/a", target="/b", options=("rshared",)
    )
    for text, options in {
        "type=bind,src=/a,dst=/b,bind-nonrecursive": ("recursive=disabled",),
        "type=bind,src=/a,dst=/b,bind-recursive=enabled": (),
        "type=bind,src=/a,dst=/b,ro,bind-recursive=writable": ("recursive=writable",),
        "type=bind,src=/a,dst=/b,ro,bind-propagation=rprivate,bind-recursive=readonly": ("rprivate", "recursive=readonly"),
        "type=bind,src=/a,dst=/b,bind-create-src": ("create",),
        "src=data,dst=/b,volume-subpath=a//b,volume-nocopy,volume-label=k=v,volume-driver=local": ("subpath=a/b", "nocopy", "label=k=v"),
        "type=image,src=busybox,dst=/b,image-subpath=bin": ("subpath=bin",),
        "type=tmpfs,dst=/b,tmpfs-size=1m,tmpfs-mode=1770": ("size=1048576", "mode=1770"),
    }.items():
        assert parse_mount(text).options == options
    assert parse_mount("source=data,destination=/b,volume-nocopy") == MountSpec(
        kind="volume", source="data", target="/b", options=("nocopy",)
    )
    assert parse_mount("type=volume,target=/b") == MountSpec(kind="volume", target="/b")
    assert parse_mount('type=bind,"source=/a,b",target=/c').source == "/a,b"
    assert parse_mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770") == MountSpec(
        kind="tmpfs", target="/t", options=(f"size={64 << 20}", "mode=1770")
    )
    assert parse_tmpfs("/run:rw,size=64m,noexec") == MountSpec(kind="tmpfs", target="/run", options=("size=64m", "noexec"))
    assert parse_tmpfs("/run:ro") == MountSpec(kind="tmpfs", target="/run", read_only=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bind,foo", "invalid field 'foo' must be a key=value pair"),
        ("type=bind,source=/a", "target is required"),
        ("type=bind,target=/a", "source is required"),
        ("type=bind,source=data,target=/a", "absolute path"),
        ("type=npipe,source=/a,target=/b", "not supported"),
        ("type=tmpfs,source=/a,target=/b", "a tmpfs has no source"),
        ("type=bind,source=/a,target=b", "mount path must be absolute"),
        ("type=bind,source=/a,target=/b,readonly=maybe", "invalid value for readonly: maybe"),
        ("type=bind,source=/a,target=/b,color=red", "unexpected key 'color'"),
        ("type=bind,source=/a,target=/b,bind-propagation=public", "invalid propagation mode: public"),
        ("type=bind,source=/a,target=/b,bind-recursive=maybe", "must be 'enabled'"),
        ("type=bind,source=/a,target=/b,bind-recursive=writable", "requires 'readonly'"),
        ("type=bind,source=/a,target=/b,ro,bind-recursive=readonly", "requires 'bind-propagation=rprivate'"),
        ("type=bind,source=/a,target=/b,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
        ("source=data,target=/b,volume-subpath=../etc", "must be a relative path"),
        ("source=data,target=/b,volume-subpath=/etc", "must be a relative path"),
        ("source=data,target=/b,volume-driver=nfs", "volume driver 'nfs' is not supported"),
        ("source=data,target=/b,volume-opt=o=x", "unexpected key 'volume-opt'"),
        ("source=data,target=/b,volume-label==x", "expected key=value"),
        ("type=image,target=/b", "source is required for an image mount"),
        ("type=volume,source=/a,target=/b", "includes invalid characters"),
        ("type=tmpfs,target=/b,tmpfs-mode=99", "octal"),
        ("type=tmpfs,target=/b,tmpfs-size=big", "tmpfs-size"),
        ('type=bind,"source=/a', "flag"),
    ],
)
def test_what_is_no_mount(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount(text)
    assert message in caught.value.message


def test_the_cluster_of_docs_examples_parses() -> None:
    for command in COMMANDS.values():
        for line, _ in command.examples:
            import shlex

            arguments: Any = command.parse("run", shlex.split(line)[1:])
            assert container_spec(arguments, arguments.rest[0], arguments.rest[1:]).image


def test_one_port_out_of_a_range() -> None:
    [port] = parse_publish("127.0.0.1:8000-8010:80")
    assert (port.host_port, port.host_port_last, port.container_port, port.host_ip) == (8000, 8010, 80, "127.0.0.1")


def test_namespaces_devices_and_volumes_of_others() -> None:
    made = spec(
        *("--pid", "container:web", "--ipc", "shareable", "--uts", "host", "--cgroupns", "host", "--userns", "keep-id", "--init"),
        *("--domainname", "example.org", "--annotation", "a=b=c", "--device-cgroup-rule", "c 42:* rwm", "--volumes-from", "data:ro"),
        *(
            "--gpus",
            "all",
            "--gpus",
            '"device=0,1"',
            "--gpus",
            "2",
            "--gpus",
            "driver=cdi,count=-1",
            "--gpus",
            "capabilities=compute",
            "box",
        ),
    )
    assert made == ContainerSpec(
        image="box",
        pid="container:web",
        ipc="shareable",
        uts="host",
        cgroupns="host",
        userns="keep-id",
        init=True,
        domainname="example.org",
        annotations={"a": "b=c"},
        device_rules=("c 42:* rwm",),
        volumes_from=("data:ro",),
        gpus=("all", "device=0,1", "2", "all", "1"),
    )
    assert spec("--userns", "host", "box").userns == ""
    assert spec("--shm-size", "0", "box").shm_size == 64 << 20


def test_a_directory_in_place_of_an_image() -> None:
    made = spec("--rootfs", "/srv/tree:O", "sh")
    assert (made.rootfs, made.rootfs_overlay, made.image, made.command) == ("/srv/tree", True, "/srv/tree:O", ("sh",))
    assert spec("--rootfs", "tree").rootfs == f"{os.getcwd()}/tree"
    assert not spec("--rootfs", "tree").rootfs_overlay


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--runtime", "runc", "box"), "--runtime runc: Nacre runs containers itself"),
        (("--volume-driver", "nfs", "box"), "there is only the driver local"),
    ],
)
def test_what_there_is_not(argv: tuple[str, ...], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        spec(*argv)
