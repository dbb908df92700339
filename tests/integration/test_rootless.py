"""Everything as an ordinary user: an account made for these tests, with subordinate ids and an installation it can read.

The host is a laboratory: a network namespace linked to another machine, so that no port, bridge or rule of the real host is used.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ocipack
from nacre.linux import cgroups
from nacre.testing.network import HOST_ADDRESS, REMOTE_ADDRESS, Lab, ask, serve

SOURCE = Path(__file__).resolve().parents[2]
PROGRAMS = ("useradd", "newuidmap", "newgidmap")
COUNT = 65536
FIRST = 2_000_000_000 + os.getpid() % 15_000 * 2 * COUNT  # subordinate ids that no account of a real host has, nor of another run

pytestmark = pytest.mark.skipif(
    any(not shutil.which(name) for name in PROGRAMS), reason="no uidmap; run: scripts/install-dependencies run test"
)


class User:
    """An account and its command line, in a clean environment. home: of the account; run: its run-time directory."""

    def __init__(self, prefix: Path, name: str) -> None:
        self.name, self.prefix = name, prefix
        # Short, as /run/user/UID is: paths of unix sockets end at 107 characters.
        self.home, self.runtime = prefix / f"home-{name}", Path(f"/run/{name}")
        subprocess.run(["useradd", "--create-home", "--home-dir", str(self.home), "--shell", "/bin/sh", name], check=True)
        account = pwd.getpwnam(name)
        self.uid, self.gid = account.pw_uid, account.pw_gid
        self.runtime.mkdir(mode=0o700)
        os.chown(self.runtime, self.uid, self.gid)
        self.run = self.runtime / "nacre"
        path = "/usr/local/bin:/usr/bin:/bin"
        self.environment = {"HOME": str(self.home), "USER": name, "PATH": path, "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(self.runtime)}

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """The command line as this user; what is not said is a pipe."""
        environment = {**self.environment, **options.pop("environment", {})}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [str(self.prefix / "env/bin/nacre"), *words]
        return subprocess.Popen(command, env=environment, cwd=self.home, user=self.uid, group=self.gid, extra_groups=[], **streams)

    def __call__(self, *words: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end; `code`: the exit code it must have (None = any)."""
        with self.start(*words, **options) as process:
            out, err = process.communicate(timeout=120)
        assert code in (None, process.returncode), f"nacre {' '.join(words)}: exit {process.returncode}\n{out[-2000:]}{err[-2000:]}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def stem(self, sandbox: str) -> int:
        """The pid of a sandbox's stem."""
        return int((self.run / sandbox / "stem.pid").read_text())

    def processes(self) -> list[int]:
        """Everything that runs under one of this account's ids."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                owner = entry.stat().st_uid
                if owner == self.uid or FIRST <= owner < FIRST + COUNT:
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """No process of this account is left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """The account and everything of it."""
        self.end()
        subprocess.run(["userdel", "--force", self.name], check=True, capture_output=True)
        for path in (self.home, self.runtime):
            shutil.rmtree(path, ignore_errors=True)


def give_ids(name: str, *ranges: str) -> None:
    """Replace an account's lines in subuid(5) and subgid(5)."""
    for kind in ("uid", "gid"):
        path = Path(f"/etc/sub{kind}")
        others = [line for line in path.read_text().splitlines() if not line.startswith(f"{name}:")]
        path.write_text("".join(f"{line}\n" for line in (*others, *ranges)))


@contextlib.contextmanager
def ids(name: str, first: int, count: int) -> Iterator[None]:
    """Another range for a while."""
    give_ids(name, f"{name}:{first}:{count}")
    try:
        yield
    finally:
        give_ids(name, f"{name}:{FIRST}:{COUNT}")


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    """An installation that everybody can read: an environment of the distribution's Python with a copy of the package."""
    directory = Path(tempfile.mkdtemp(prefix="nr-", dir="/var/tmp"))
    directory.chmod(0o755)
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    subprocess.run([python, "-m", "venv", "--without-pip", str(directory / "env")], check=True)
    site = next(directory.glob("env/lib/python*/site-packages"))
    shutil.copytree(SOURCE / "src/nacre", site / "nacre", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([str(SOURCE / "scripts/write-launcher"), str(directory / "env")], check=True)
    probe = subprocess.run([str(directory / "env/bin/nacre"), "--version"], user=65534, group=65534, extra_groups=[], capture_output=True)
    if probe.returncode:
        pytest.skip(f"other users cannot run this Python: {python}")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The host's network. Its programs may not bind low ports, as on any host."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def account(prefix: Path, lab: Lab, layouts: Callable[[str], Path]) -> Iterator[User]:
    """A user with subordinate ids and the image `box`."""
    made = User(prefix, f"nt{os.getpid()}")
    try:
        give_ids(made.name, f"{made.name}:{FIRST}:{COUNT}")
        archive = prefix / "box.tar"
        ocipack.archive_layout(layouts("busybox"), archive)
        archive.chmod(0o644)
        name = made("load", "-i", str(archive)).stdout.split()[-1]
        made("tag", name, "box")
        yield made
    finally:
        made.remove()


@pytest.fixture
def user(account: User) -> Iterator[User]:
    """The account; no container is left of a test, and nothing on the host."""
    yield account
    for name in account("ps", "-aq").stdout.split():
        account("rm", "-f", name)
    assert os.listdir(account.run / "sandboxes") == []
    assert not any(str(account.prefix) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def names(user: User) -> str:
    return user("ps", "-a", "--format", "{{.Names}} {{.Status}}").stdout


# ---- without any set-up


def test_without_ids_everything_says_what_to_do(prefix: Path, lab: Lab, eventually: Callable[..., Any]) -> None:
    nobody = User(prefix, f"nb{os.getpid()}")
    try:
        give_ids(nobody.name)
        assert nobody("version").stdout.startswith("Version: ")
        assert "no subordinate uids" in nobody("info").stdout
        doctor = nobody("doctor", code=1).stdout
        assert "usermod --add-subuids " in doctor
        assert f" {nobody.name}" in doctor
        refused = nobody("run", "--rm", "box", "true", code=125).stderr
        assert f"user {nobody.name} has no subordinate uids" in refused
        assert "usermod --add-subuids" in refused
        eventually(lambda: not nobody.processes())
    finally:
        nobody.remove()


def test_a_run_directory_of_somebody_else_is_refused(user: User) -> None:
    directory = user.prefix / "everybody"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    refused = user("ps", code=125, environment={"NACRE_RUN": str(directory)}).stderr
    assert "is not a directory of this user alone" in refused


# ---- containers


def test_from_start_to_end(user: User) -> None:
    assert user("run", "--rm", "box", "id", "-u").stdout == "0\n"
    user("run", "-d", "--name", "first", "box", "sh", "-c", "echo begun; exec sleep 1000")
    assert user("ps", "--format", "{{.Names}}").stdout == "first\n"
    assert user("exec", "first", "sh", "-c", "hostname; exit 3", code=3).stdout.strip() == user("ps", "-q").stdout.strip()
    assert user("logs", "first").stdout == "begun\n"
    (user.home / "file").write_text("from outside")
    user("cp", str(user.home / "file"), "first:/tmp/file")
    assert user("exec", "first", "cat", "/tmp/file").stdout == "from outside"
    # Every command joins the namespaces of the first one: what it does is done to the same mounts.
    assert user("stop", "-t", "0", "first").stdout == "first\n"
    user("start", "first")
    assert user("exec", "first", "cat", "/tmp/file").stdout == "from outside"
    user("rm", "-f", "first")
    assert names(user) == ""


def test_ids_are_those_of_the_user(user: User) -> None:
    shared = user.home / "shared"
    shared.mkdir(exist_ok=True)
    os.chown(shared, user.uid, user.gid)
    script = "touch /s/root; touch /s/other; chown 5:6 /s/other; cat /proc/self/uid_map; test ! -w /sys/kernel; mknod /s/n c 1 3"
    done = user("run", "--rm", "-v", f"{shared}:/s", "box", "sh", "-c", script, code=1)
    assert [line.split() for line in done.stdout.splitlines()] == [["0", str(user.uid), "1"], ["1", str(FIRST), str(COUNT)]]
    assert "Operation not permitted" in done.stderr
    assert {path.name: (path.stat().st_uid, path.stat().st_gid) for path in shared.iterdir()} == {
        "root": (user.uid, user.gid),
        "other": (FIRST + 4, FIRST + 5),
    }


def test_devices_and_a_terminal(user: User) -> None:
    script = "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; ls /dev/mqueue /dev/shm; echo y > /dev/full"
    done = user("run", "--rm", "box", "sh", "-c", script, code=1)
    assert done.stdout.split() == ["4", "4", "/dev/mqueue:", "/dev/shm:"]
    assert "No space left" in done.stderr
    master, slave = os.openpty()
    try:
        with user.start(
            "run", "--rm", "-t", "box", "sh", "-c", "tty; stat -c %g /dev/pts/0", stdin=slave, stdout=slave, stderr=slave
        ) as run:
            assert run.wait(timeout=60) == 0
        assert os.read(master, 4096).split() == [b"/dev/pts/0", b"5"]
    finally:
        os.close(master)
        os.close(slave)


# ---- networks


@pytest.mark.parametrize("program", ["pasta", "slirp4netns"])
def test_a_server(user: User, lab: Lab, program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed; run: scripts/install-dependencies run test")
    user.end()  # another uplink may be there
    environment = {"NACRE_UPLINK": program}
    page = "echo page > /index.html; exec httpd -f -p 80 -h /"
    user("run", "-d", "--name", "web", "-p", "8080:80", "box", "sh", "-c", page, environment=environment)
    assert f"Network Uplink: {program}\n" in user("info").stdout
    address = user("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web").stdout.strip()
    fetch = ("run", "--rm", "box", "wget", "-q", "-O", "-")
    with serve(lab.remote, 7000, "remote"), serve("", 7001, "host", address="127.0.0.1"):
        # To the outside as if the user's own programs had called; to a neighbour; to one's own published port; not to the host's loopback.
        # The server closes first: early versions of pasta lose the end of a connection that both sides close at once.
        ask_remote = f"sleep 1 | nc {REMOTE_ADDRESS} 7000"
        assert user("run", "--rm", "box", "sh", "-c", ask_remote).stdout == f"remote {HOST_ADDRESS}"
        assert user(*fetch, f"http://{address}/").stdout == "page\n"
        user("run", "--rm", "box", "nc", "-w", "2", "127.0.0.1", "7001", code=1)
    for where in ("127.0.0.1", HOST_ADDRESS):
        assert http(where, 8080) == "page\n"
    assert http(HOST_ADDRESS, 8080, lab.remote) == "page\n"
    refused = user("run", "--rm", "-p", "8080:80", "box", "true", code=125).stderr
    assert "port is already allocated" in refused
    user("stop", "-t", "0", "web")
    assert ask("", "127.0.0.1", 8080) == ""
    user("start", "web")
    assert http("127.0.0.1", 8080) == "page\n"


def http(address: str, port: int, namespace: str = "") -> str:
    """The page of a server, seen from a namespace."""
    from nacre.linux import netns

    def fetch() -> str:
        done = subprocess.run(["curl", "-sS", "-m", "10", f"http://{address}:{port}/"], capture_output=True, text=True)
        return done.stdout or done.stderr

    return netns.inside(namespace, fetch)


def test_a_resolver_on_the_hosts_loopback(user: User, lab: Lab) -> None:
    """The container cannot reach it; the uplink passes the queries on."""
    user.end()
    conf = user.prefix / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\n")
    # In a mount namespace of the test's own, which the user's namespaces are made from.
    change = 'mount --make-rprivate /; mount --bind "$1" /etc/resolv.conf; shift; exec "$@"'
    become = ("setpriv", "--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups", f"{user.prefix}/env/bin/nacre")
    words = ("run", "-d", "--name", "asks", "box", "sleep", "1000")
    command = ["unshare", "-m", "sh", "-c", change, "sh", str(conf), *become, *words]
    subprocess.run(command, env=user.environment, cwd=user.home, check=True)
    server = user("exec", "asks", "cat", "/etc/resolv.conf").stdout.split()[1]
    with serve("", 53, "resolver", "udp", address="127.0.0.1"):
        pid = user("inspect", "-f", "{{.State.Pid}}", "asks").stdout.strip()
        assert ask(f"/proc/{pid}/ns/net", server, 53, "udp") == "resolver 127.0.0.1"
    user.end()  # nor shall others have that resolver


def test_datagrams(user: User) -> None:
    user("run", "-d", "--name", "udp", "-p", "127.0.0.1:5353:53/udp", "box", "sleep", "1000")
    pid = user("inspect", "-f", "{{.State.Pid}}", "udp").stdout.strip()
    with serve(f"/proc/{pid}/ns/net", 53, "inside", "udp"):
        answers = {ask("", "127.0.0.1", 5353, "udp", source_port=port) for port in (0, 6001, 6002)}
    gateway = user("exec", "udp", "ip", "route").stdout.split()[2]
    assert answers == {f"inside {gateway}"}


def test_low_ports_are_the_administrators(user: User) -> None:
    refused = user("run", "--rm", "-p", "80:80", "box", "true", code=125).stderr
    assert "Bind for 0.0.0.0:80 failed: permission denied" in refused
    assert "sysctl -w net.ipv4.ip_unprivileged_port_start=80" in refused


def test_networks_without_a_bridge(user: User) -> None:
    links = ("ip", "-o", "link")
    assert [line.split()[1] for line in user("run", "--rm", "--network", "none", "box", *links).stdout.splitlines()] == ["lo:"]
    assert " uplink" in user("run", "--rm", "--network", "host", "box", *links).stdout


def test_namespaces_of_the_host_and_of_others(user: User) -> None:
    """The host's are as the user has them: what shows them is bound, since an ordinary user cannot mount it."""
    host = ("--pid", "host", "--ipc", "host", "--uts", "host", "--cgroupns", "host", "--network", "host")
    script = "cat /proc/1/comm; hostname; cat /proc/self/cgroup"
    seen = user("run", "--rm", *host, "box", "sh", "-c", script).stdout.splitlines()
    assert seen == [
        *Path("/proc/1/comm").read_text().splitlines(),
        os.uname().nodename,
        *Path("/proc/self/cgroup").read_text().splitlines(),
    ]
    user("run", "-d", "--name", "first", "--ipc", "shareable", "box", "sleep", "1000")
    joined = ("--pid", "container:first", "--ipc", "container:first", "--network", "container:first")
    assert user("run", "--rm", *joined, "box", "cat", "/proc/1/cmdline").stdout == "sleep\x001000\0"
    refused = user("run", "--rm", "--userns", "keep-id", "box", "true", code=125).stderr
    assert "has no other ids than the user's" in refused


def test_unshare_is_a_look_from_inside(user: User) -> None:
    """Without flags: root of the user's namespaces, for whom files of subordinate ids are no strangers, and who has the same engine."""
    user("run", "-d", "--name", "first", "--network", "none", "-v", "seen:/data", "box", "sh", "-c", "chown 5:6 /data; sleep 1000")
    data = user.home / ".local/share/nacre/volumes/seen/_data"
    script = f"id -u; stat -c %u:%g {data}; {user.prefix}/env/bin/nacre ps --format '{{{{.Names}}}}'"
    assert user("unshare", "sh", "-c", script).stdout.split() == ["0", "5:6", "first"]
    user("rm", "-f", "first")
    user("volume", "rm", "seen")


# ---- what dies, and who comes first


def test_containers_outlive_what_keeps_the_namespaces(user: User, lab: Lab) -> None:
    page = "echo page > /index.html; exec httpd -f -p 80 -h /"
    user("run", "-d", "--name", "web", "-p", "8081:80", "box", "sh", "-c", page)
    os.kill(user.stem("home"), signal.SIGKILL)
    assert user("exec", "web", "cat", "/index.html").stdout == "page\n"
    assert http("127.0.0.1", 8081) == "page\n"
    # The uplink went with it, and came back.
    with serve(lab.remote, 7000, "remote"):
        seen = user("exec", "web", "sh", "-c", f"sleep 1 | nc {REMOTE_ADDRESS} 7000").stdout
    assert seen == f"remote {HOST_ADDRESS}"
    user.end()
    assert names(user) == f"web Exited (137) {names(user).rpartition(') ')[2]}"
    user("start", "web")
    assert http("127.0.0.1", 8081) == "page\n"


@pytest.mark.parametrize("driver", ["overlay", "fuse-overlayfs", "vfs"])
def test_storage_drivers(user: User, driver: str) -> None:
    """Every driver that a user namespace may have: files of several owners, what is deleted stays so, nothing is left."""
    if driver == "fuse-overlayfs" and not shutil.which(driver):
        pytest.skip("no fuse-overlayfs; run: scripts/install-dependencies test")
    storage = ("--storage-driver", driver)
    assert user(*storage, "info", "--format", "{{.Driver}}").stdout == f"{driver}\n"
    user(*storage, "run", "-d", "--name", driver, "--network", "none", "box", "sleep", "1000")
    change = "rm /bin/vi && rm -r /home && mkdir /home && echo mine > /home/file && chown 1000:2000 /home/file && stat -c %u:%g /home/file"
    assert user("exec", driver, "sh", "-c", change).stdout == "1000:2000\n"
    user("restart", "-t", "0", driver)
    assert user("exec", driver, "sh", "-c", "ls /home; ls /bin/vi 2>/dev/null; stat -c %u:%g /home/file /bin/sh").stdout.split() == [
        "file", "1000:2000", "0:0",
    ]  # fmt: skip
    assert user("inspect", "--format", "{{.Driver}}", driver).stdout == f"{driver}\n"
    user("rm", "-f", driver)
    assert os.listdir(user.home / ".local/share/nacre/containers") == []


def test_volumes_that_are_mounts(user: User) -> None:
    """In memory, seen by all of the user's commands, and gone with the last container that uses it."""
    user("volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m", "memory")
    user("run", "-d", "--name", "one", "--network", "none", "-v", "memory:/data", "box", "sleep", "1000")
    user("exec", "one", "sh", "-c", "echo shared > /data/file")
    assert user("run", "--rm", "--network", "none", "-v", "memory:/data", "box", "cat", "/data/file").stdout == "shared\n"
    user("rm", "-f", "one")
    assert user("run", "--rm", "--network", "none", "-v", "memory:/data", "box", "ls", "/data").stdout == ""
    user("volume", "rm", "memory")


def test_many_at_once_make_one_home(user: User) -> None:
    user.end()
    running = [user.start("run", "--rm", "--network", "none", "box", "echo", str(number)) for number in range(4)]
    assert [run.communicate(timeout=60)[0] for run in running] == [f"{number}\n" for number in range(4)]
    home = f"{user.run}/home"
    stems = [pid for pid in user.processes() if home in Path(f"/proc/{pid}/cmdline").read_text()]
    assert stems == [user.stem("home")]


def test_another_range_of_ids(user: User) -> None:
    """What does not fit into the range is named; after a change `system migrate` brings the new one into use."""
    layout, archive = user.prefix / "many", user.prefix / "many.tar"
    ocipack.write_layout(layout, [ocipack.layer_from_members([ocipack.file_member("far", b"", uid=70000)])], {})
    ocipack.archive_layout(layout, archive)
    refused = user("load", "-i", str(archive), code=125).stderr
    assert "the image has files of owner 70000:0, and this user namespace has no such id" in refused
    user("run", "-d", "--name", "old", "--network", "none", "box", "sleep", "1000")
    with ids(user.name, FIRST, 2 * COUNT):
        assert user("system", "migrate", "-t", "0").stdout == "old\n"
        user("load", "-i", str(archive))
        assert names(user).startswith("old Exited (137)")
        assert user("run", "--rm", "--network", "none", "box", "cat", "/proc/self/uid_map").stdout.split()[-1] == str(2 * COUNT)
    user("system", "migrate")
    assert "has no such id" in user("run", "--rm", "--user", "70000", "--network", "none", "box", "true", code=125).stderr


# ---- limits


def test_limits_need_a_delegated_group(user: User, eventually: Callable[..., Any]) -> None:
    refused = user("run", "--rm", "--memory", "64m", "box", "true", code=125).stderr
    assert "delegated to this user" in refused
    with delegated(user, eventually) as join:
        assert "delegated to this user: " in user("doctor", code=None, preexec_fn=join).stdout
        user("run", "-d", "--name", "box", "--memory", "64m", "box", "sleep", "1000", preexec_fn=join)
        # From a session to which nothing is delegated.
        assert user("stats", "--no-stream", "--format", "{{.MemUsage}}", "box").stdout.endswith("/ 64MiB\n")
        user("rm", "-f", "box")


@contextlib.contextmanager
def delegated(user: User, eventually: Callable[..., Any]) -> Iterator[Callable[[], None]]:
    """A group of the user's in every hierarchy; yields what moves the calling process there."""
    where = cgroups.layout()
    points = [where.v1[name] for name in ("memory", "pids", "freezer") if name in where.v1] or [where.unified]
    made = [Path(point, f"nacretest{os.getpid()}") for point in points]
    try:
        for directory in made:
            directory.mkdir()
            os.chown(directory, user.uid, user.gid)
            for name in ("tasks", "cgroup.procs", "cgroup.subtree_control"):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(directory / name, user.uid, user.gid)

        def join() -> None:
            for directory in made:
                (directory / "cgroup.procs").write_text("0")

        yield join
    finally:
        for directory in made:
            eventually(lambda directory=directory: remove_group(directory))


def remove_group(directory: Path) -> bool:
    """Whether the group is gone: processes that have just ended keep it until somebody has waited for them."""
    for path in (*sorted(directory.rglob("*/"), reverse=True), directory):
        with contextlib.suppress(OSError):
            path.rmdir()
    return not directory.exists()


# ---- virtual machines


def test_a_virtual_machine(user: User, vm: Any) -> None:
    shared = user.home / "vm"
    shared.mkdir(exist_ok=True)
    os.chown(shared, user.uid, user.gid)
    script = "uname -r; echo page > /index.html; touch /s/made; exec httpd -f -p 80 -h /"
    flags = ("--isolation", "vm", "--name", "machine", "-p", "8082:80", "-v", f"{shared}:/s")
    user("run", "-d", *flags, "box", "sh", "-c", script)
    assert user("exec", "machine", "id", "-u").stdout == "0\n"
    assert user("logs", "machine").stdout.strip() != os.uname().release
    assert http("127.0.0.1", 8082) == "page\n"
    assert (shared / "made").stat().st_uid == user.uid
    user("rm", "-f", "machine")
