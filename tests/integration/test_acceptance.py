"""What somebody who knows Docker does with real images, typed as they would type it, at both levels.

The images are those of the demo: a distribution's root file system, nginx over it, busybox; pulled from a real registry that stands in
for docker.io. What one container can answer is asked of one container: at level vm each is a machine that has to boot.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Cli
from test_cli_terminal_live import Terminal

from loopback_registry import Registry
from nacre import Engine, Level

HUB = {"library/ubuntu": "debian", "library/debian": "debian", "library/nginx": "nginx", "library/busybox": "busybox"}
UDP_SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5000))
print("ready", flush=True)
data, peer = s.recvfrom(65000)
s.sendto(data.upper(), peer)
print(len(data), peer[0])
"""
TCP_SERVER = """
import socket, hashlib
s = socket.socket()
s.bind(("", 6000))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
h = hashlib.sha256()
while d := c.recv(65536):
    h.update(d)
c.sendall(h.hexdigest().encode())
"""


@pytest.fixture(scope="module")
def hub(registry: Registry, layouts: Callable[[str], Path]) -> Registry:
    """The registry with the images of the demo under their names on Docker Hub."""
    if not shutil.which("mmdebstrap"):
        pytest.skip("no test images; run: apt-get install mmdebstrap")
    for name, image in HUB.items():
        registry.push(layouts(image), f"{name}:latest")
    return registry


@pytest.fixture
def nacre(cli: Cli, hub: Registry, session_engine: Engine) -> Cli:
    """The command line, with the images pulled."""
    present = {tag for image in session_engine.images.list() for tag in image.tags}
    for name in HUB:
        if f"docker.io/{name}:latest" not in present:
            cli("pull", "-q", name.removeprefix("library/"))
    return cli


@pytest.fixture
def run(nacre: Cli, level: Level) -> Callable[..., str]:
    """`run("--rm", "debian", "id")`: standard output of a run at the test's level."""
    return lambda *words, **rest: nacre("run", "--isolation", str(level), *words, **rest).stdout


@pytest.fixture
def terminal(nacre: Cli) -> Iterator[Callable[..., Terminal]]:
    """`terminal("run", "-it", ...)`: a command line at a terminal of its own."""
    made: list[Terminal] = []

    def start(*words: str, **size: int) -> Terminal:
        made.append(Terminal([*nacre.command, *words], {**nacre.environment, **os.environ, "TERM": "xterm"}, **size))
        return made[-1]

    yield start
    for one in made:
        one.close()


def get(host: str, port: int, path: str = "/") -> tuple[int, str]:
    """Status and page, (0, "") as long as nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def sections(text: str) -> dict[str, str]:
    """Output of a script that writes ``== NAME`` before each part."""
    parts = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


# ---- the words of the tour


def test_a_machine_and_its_kernel(nacre: Cli, vm: Level) -> None:
    shown = nacre("pull", "ubuntu").stdout.splitlines()
    assert shown[0] == "Using default tag: latest"
    assert shown[-2:] == ["Status: Image is up to date for ubuntu:latest", "docker.io/library/ubuntu:latest"]
    assert re.fullmatch(r"[0-9a-f]{64}\n", nacre("run", "-d", "-t", "--name", "machine", "ubuntu").stdout)
    assert {"bin", "etc", "proc", "usr"} <= set(nacre("exec", "machine", "ls").stdout.split())
    assert os.uname().release in nacre("exec", "machine", "uname", "-a").stdout
    assert os.uname().release not in nacre("run", "--rm", "--isolation", "vm", "ubuntu", "uname", "-a").stdout
    assert nacre("ps", "--format", "{{.Names}} {{.Image}} {{.Command}}").stdout == 'machine ubuntu "bash"\n'
    assert nacre("rm", "-f", "machine").stdout == "machine\n"


def test_a_web_server(nacre: Cli, run: Any, eventually: Any) -> None:
    run("-d", "-p", "8080:80", "--name", "web", "nginx")
    eventually(lambda: get("127.0.0.1", 8080)[0] == 200)
    host = nacre("inspect", "-f", "{{.NetworkSettings.Gateway}}", "web").stdout.strip()
    assert "Welcome to nginx!" in get(host, 8080)[1]
    assert get("127.0.0.1", 8080, "/nonesuch")[0] == 404
    assert nacre("port", "web").stdout == "80/tcp -> 0.0.0.0:8080\n"
    assert nacre("ps", "--format", "{{.Ports}} {{.Command}}").stdout == '0.0.0.0:8080->80/tcp "nginx -g \'daemon of…"\n'
    taken = nacre("run", "--rm", "-p", "8080:80", "busybox", "true", code=125).stderr
    assert "Bind for 0.0.0.0:8080 failed: port is already allocated" in taken

    follower = nacre.start("logs", "-f", "web")
    assert follower.stdout is not None
    seen = ""
    while '"GET /nonesuch HTTP/1.1" 404' not in seen:
        seen += follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 130
    assert nacre("ps", "-q", "--filter", "status=running").stdout

    assert nacre("stop", "web").stdout == "web\n"
    # Ended by the image's own stop signal, QUIT: nginx then answers what it has begun and exits with 0.
    assert nacre("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web").stdout == "exited 0\n"
    assert get("127.0.0.1", 8080) == (0, "")
    assert nacre("start", "web").stdout == "web\n"
    eventually(lambda: get("127.0.0.1", 8080)[0] == 200)
    assert "stop web, or nacre rm -f web" in nacre("rm", "web", code=1).stderr
    assert nacre("rm", "-f", "web").stdout == "web\n"
    assert nacre("ps", "-aq").stdout == ""


def test_a_shell(nacre: Cli, terminal: Any, level: Level) -> None:
    shell = terminal("run", "--rm", "-it", "--isolation", str(level), "--name", "shell", "debian", "bash", rows=30, columns=100)
    prompt = r"root@[0-9a-f]{12}:/# "
    shell.expect(prompt)
    shell.type(b"stty size\r")
    shell.expect("30 100\r\n")
    shell.expect(prompt)
    shell.type(b"tty; echo $TERM; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo re''sized\r")
    shell.expect("/dev/pts/0\r\nxterm\r\n")
    shell.resize(50, 132)
    shell.expect("resized\r\n")
    shell.expect(prompt)
    # Ctrl-C ends the command and not the shell; Ctrl-Z stops it and fg lets it go on.
    shell.type(b"sh -c 'echo begun; exec sleep 1000'\r")
    shell.expect("begun\r\n")
    shell.type(b"\x03")
    shell.expect(prompt)
    shell.type(b"echo code $?; cat\r")
    shell.expect("code 130\r\n")
    shell.type(b"line\r")
    shell.expect("line\r\nline\r\n")
    shell.type(b"\x1a")
    shell.expect(r"\[1\]\+  Stopped +cat\r\n")
    shell.expect(prompt)
    shell.type(b"fg\r")
    shell.expect("cat\r\n")
    shell.type(b"\x04")
    shell.expect(prompt)
    shell.type(b"\x10\x11")
    shell.expect("read escape sequence")
    assert shell.wait() == 0

    other = terminal("exec", "-it", "shell", "bash")
    other.expect(prompt)
    other.type(b"exit 4\r")
    assert other.wait() == 4
    again = terminal("attach", "shell", rows=40, columns=90)
    again.listening()
    again.type(b"stty size\r")
    again.expect("40 90\r\n")
    again.type(b"exit 3\r")
    assert again.wait() == 3
    assert nacre("ps", "-aq").stdout == ""


# ---- streams


def test_much_data_both_ways(nacre: Cli, level: Level, tmp_path: Path) -> None:
    data = os.urandom(24 << 20)
    (tmp_path / "data").write_bytes(data)
    command = [*nacre.command, "run", "--rm", "-i", "--network", "none", "--isolation", str(level), "debian"]
    environment = {**nacre.environment, **os.environ}
    script = "tee /dev/stderr; exit 7"
    with open(tmp_path / "data", "rb") as source, open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        done = subprocess.run([*command, "sh", "-c", script], stdin=source, stdout=out, stderr=err, env=environment, timeout=120)
    assert done.returncode == 7
    expected = hashlib.sha256(data).digest()
    assert [hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("out", "err")] == [expected, expected]
    # A process that leaves its input alone does not mind how much of it there is.
    with open(tmp_path / "data", "rb") as source:
        short = subprocess.run([*command, "head", "-c", "10"], stdin=source, capture_output=True, env=environment, timeout=120)
    assert (short.returncode, short.stdout, short.stderr) == (0, data[:10], b"")


def test_scripts_from_a_pipe(nacre: Cli, run: Any) -> None:
    run("-d", "--name", "box", "debian", "sleep", "1000")
    assert nacre("exec", "-i", "box", "bash", input="read line\nfoo\necho got $line; exit 3", code=3).stdout == "got foo\n"
    done = nacre("exec", "box", "sh", "-c", "cat; echo out; echo err >&2; kill -TERM $$", input="ignored", code=143)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert "the input device is not a TTY" in nacre("exec", "-it", "box", "ls", code=125).stderr
    # Somebody in the container keeps the input open that its reader has left: the next ones are not disturbed by it.
    left = "exec 3<&0; sleep 2 <&3 >/dev/null 2>&1 & exit 4"
    nacre("exec", "-i", "box", "bash", "-c", left, input="x" * 2_000_000, code=4)
    assert nacre("exec", "box", "echo", "fine").stdout == "fine\n"


# ---- inside


LOOK = r"""
section() { echo "== $1"; }
section identity; id; pwd; echo $HOSTNAME; hostname; cat /etc/hostname
section hosts; cat /etc/hosts
section devices; ls /dev
section writable; for d in null zero full random urandom tty; do [ -c /dev/$d ] && echo $d; done
section mounts; cat /proc/mounts
section processes; ps -e -o pid=,comm=
section address; ip -4 -o addr show eth0; ip route; ip -6 -o addr show eth0
section files; ulimit -n; ulimit -Hn; umask
section masked; cat /proc/kcore /proc/timer_list | wc -c; ls /sys/firmware | wc -l
section refused; echo 1 2>&1 >/proc/sys/kernel/panic
mknod /tmp/sda b 8 0; head -c1 /tmp/sda >/dev/null 2>&1 || echo no disk; chroot / true && echo chroot
section clock; date -u +%s; date +%Z
"""


def test_what_it_finds_around_it(run: Any) -> None:
    now = time.time()
    found = sections(run("--rm", "debian", "sh", "-c", LOOK, code=None))
    identity = found["identity"].splitlines()
    assert identity[:2] == ["uid=0(root) gid=0(root) groups=0(root)", "/"]
    assert re.fullmatch(r"[0-9a-f]{12}", identity[2])
    assert identity[2:] == [identity[2]] * 3
    hosts = [line.split() for line in found["hosts"].splitlines()]
    assert ["127.0.0.1", "localhost"] in hosts
    assert hosts[-1][1:] == [identity[2]]
    shown = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert found["devices"].split() == shown.split()
    assert found["writable"].split() == ["null", "zero", "full", "random", "urandom", "tty"]
    mounts = {line.split()[1]: line.split() for line in found["mounts"].splitlines()}
    assert mounts["/"][2] == "overlay"
    for path in ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
        assert path in mounts
    for path in ("/sys", "/sys/fs/cgroup", "/proc/sys", "/proc/bus"):
        assert "ro" in mounts[path][3].split(","), path
    assert not re.search("nacre|containers/|sandboxes", "".join(line.split()[0] for line in found["mounts"].splitlines()))
    assert found["processes"].split() == ["1", "sh", found["processes"].split()[2], "ps"]
    address = found["address"].splitlines()
    assert f"inet {hosts[-1][0]}/" in address[0]
    assert address[1].startswith("default via ")
    assert not re.search("inet6", found["address"])
    assert int(found["files"].split()[1]) >= 20000
    assert found["files"].split()[2] == "0022"
    assert found["masked"].split() == ["0", "0"]
    refused = found["refused"].splitlines()
    assert refused[0].endswith("Read-only file system")
    assert refused[1:] == ["no disk", "chroot"]
    clock, zone = found["clock"].split()
    assert abs(int(clock) - now) < 60
    assert zone == "UTC"


INSTALL = r"""
set -e
section() { echo "== $1"; }
section users
useradd -m -s /bin/bash joe
su joe -c 'cd; id -un; touch mine; stat -c %U mine'
su - joe -c 'echo no >/root/x' 2>&1 || echo refused
echo joe:secret | chpasswd
section links
cd /tmp; echo text >a; ln a b; chown 5:6 a; chmod 6755 b; stat -c '%h %u %g %a' a b
ln /usr/bin/true /usr/bin/verily; stat -c %h /usr/bin/true; cat /usr/bin/true >/dev/null
section trees
mv /usr/share/misc /usr/share/other 2>/dev/null || mv /usr/share/doc /usr/share/other; ls -d /usr/share/other
rm -rf /usr/share/common-licenses; mkdir /usr/share/common-licenses; ls -A /usr/share/common-licenses | wc -l
section capabilities
cp /usr/bin/python3.* /tmp/py
python3 -c 'import os; os.setxattr("/tmp/py", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))'
section sockets
python3 -c '
import os, socket
s = socket.socket(socket.AF_UNIX); s.bind("/tmp/s"); s.listen()
c = socket.socket(socket.AF_UNIX); c.connect("/tmp/s"); print("connected")
os.mkfifo("/tmp/fifo"); open("/tmp/sparse", "w").truncate(1 << 32); print(os.stat("/tmp/sparse").st_blocks < 100)'
section package
mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin
printf 'Package: pearl\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' >/tmp/p/DEBIAN/control
printf '#!/bin/sh\nchown 7:8 /usr/bin/pearl; chmod 4755 /usr/bin/pearl\n' >/tmp/p/DEBIAN/postinst; chmod 755 /tmp/p/DEBIAN/postinst
echo pearl >/tmp/p/usr/bin/pearl
dpkg-deb -b /tmp/p /tmp/pearl.deb >/dev/null
dpkg -i /tmp/pearl.deb >/dev/null
stat -c '%u %g %a' /usr/bin/pearl; dpkg -l pearl | grep -c '^ii'
dpkg -P pearl >/dev/null; [ -e /usr/bin/pearl ] || echo gone
dpkg --audit; echo audited
"""
RAW = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('raw')"
LOW = "import socket; socket.socket().bind(('', 80)); socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); print('low and ping')"


@pytest.mark.parametrize("namespace", ["host", "private"])
def test_a_distribution_lives_in_it(nacre: Cli, run: Any, level: Level, namespace: str) -> None:
    if level is Level.VM and namespace == "private":
        pytest.skip("a guest has ids of its own")
    run("-d", "--name", "box", "--userns", namespace, "debian", "sleep", "1000")
    found = sections(nacre("exec", "-i", "box", "sh", input=INSTALL).stdout)
    users = found["users"].splitlines()
    assert users[:2] == ["joe", "joe"]
    assert users[-1] == "refused"
    assert found["links"].splitlines() == ["2 5 6 6755", "2 5 6 6755", "2"]
    assert found["trees"].split() == ["/usr/share/other", "0"]
    assert found["sockets"].split() == ["connected", "True"]
    assert found["package"].splitlines() == ["7 8 4755", "1", "gone", "audited"]
    # Everybody can bind port 80 and ping, as under Docker; raw sockets take the capability, which a file may give.
    assert nacre("exec", "-u", "joe", "box", "python3", "-c", LOW).stdout == "low and ping\n"
    assert "PermissionError" in nacre("exec", "-u", "joe", "box", "python3", "-c", RAW, code=1).stderr
    if namespace == "host":
        assert nacre("exec", "-u", "joe", "box", "/tmp/py", "-c", RAW).stdout == "raw\n"
    assert (
        nacre("exec", "-u", "joe:games", "-w", "/srv", "-e", "A=1", "box", "sh", "-c", "id -gn; pwd; echo $A").stdout == "games\n/srv\n1\n"
    )
    # Its streams can be opened again by name, by everybody, and it can have a terminal.
    for user in ("root", "joe"):
        assert nacre("exec", "-u", user, "box", "sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr").stderr == "err\n"
    shown = run("--rm", "-t", "--userns", namespace, "debian", "sh", "-c", "tty; stat -c '%u %t' /dev/console")
    assert shown.split() == ["/dev/pts/0", "0", "88"]
    # A volume belongs to the same people in every container.
    for words in (("--userns", namespace), ("--userns", "host"), ("--isolation", "process")):
        script = "id -u; touch /kept/mine; chown 33 /kept/mine; stat -c %u /kept /kept/mine"
        assert run("--rm", *words, "-v", "kept:/kept", "debian", "sh", "-c", script) == "0\n0\n33\n"
    nacre("volume", "rm", "kept")
    # It survives being stopped.
    nacre("stop", "-t", "0", "box")
    nacre("start", "box")
    assert nacre("exec", "box", "stat", "-c", "%h %u %a", "/tmp/b").stdout == "2 5 6755\n"
    assert nacre("exec", "box", "id", "-u", "joe").stdout == "1000\n"


# ---- flags


FLAGS = r"""
section() { echo "== $1"; }
section identity; id; pwd; hostname; cat /etc/hostname; echo $HOSTNAME
section environment; echo "$A|$B|$C|$D"
section hosts; for name in db gw pearl; do getent ahostsv4 $name | head -n 1; done
section resolver; cat /etc/resolv.conf
section writes; touch /x 2>&1; touch /scratch/x && echo scratch; (echo x >>/etc/hosts) 2>&1
section sizes; df -k /scratch /dev/shm | awk 'NR > 1 {print $2}'
section capabilities; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status | awk '{print $2}'
section limits; ulimit -n; ulimit -Hn; ulimit -c
section sysctls; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni
section device; stat -c '%t:%T' /dev/fuse
section pids; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null
section memory; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null
section score; cat /proc/self/oom_score_adj
"""


def test_every_flag_at_once(nacre: Cli, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("# comment\nA=file\nB=two words\n\nC=file\n")
    monkeypatch.setenv("D", "mine")
    flags = f"""
        --user nobody:games --group-add 1234 --workdir /srv/new --hostname pearl --add-host db:10.9.8.7 --add-host gw:host-gateway
        --env-file {tmp_path}/env --env C=flag -e D -e UNSET --dns 1.2.3.4 --dns-search example.org --dns-option ndots:2
        --read-only --tmpfs /scratch:size=1m,mode=1777 --shm-size 12m --cap-drop ALL --cap-add chown --ulimit nofile=100:200 --ulimit core=0
        --sysctl net.ipv4.ip_forward=1 --sysctl net.core.somaxconn=2000 --sysctl kernel.shmmni=99 --device /dev/fuse --pids-limit 77
        -m 96m --cpus 0.5 --oom-score-adj 500 --security-opt no-new-privileges --label a=b
    """
    found = sections(run("--rm", *flags.split(), "debian", "sh", "-c", FLAGS))
    assert found["identity"].splitlines() == [
        "uid=65534(nobody) gid=60(games) groups=60(games),1234", "/srv/new", "pearl", "pearl", "pearl"
    ]  # fmt: skip
    assert found["environment"] == "file|two words|flag|mine"
    hosts = [line.split() for line in found["hosts"].splitlines()]
    assert [name for _, _, name in hosts] == ["db", "gw", "pearl"]
    assert hosts[0][0] == "10.9.8.7"
    assert hosts[1][0] != hosts[2][0]
    assert found["resolver"].splitlines() == ["nameserver 1.2.3.4", "search example.org", "options ndots:2"]
    writes = found["writes"].splitlines()
    assert [line.rpartition(": ")[2] for line in writes] == ["Read-only file system", "scratch", writes[-1].rpartition(": ")[2]]
    assert writes[-1].rpartition(": ")[2] in ("Read-only file system", "Permission denied")
    assert found["sizes"].split() == ["1024", "12288"]
    assert found["capabilities"].split() == ["0000000000000000", "0000000000000001", "1"]
    assert found["limits"].split() == ["100", "200", "0"]
    assert found["sysctls"].split() == ["1", "2000", "99"]
    assert found["device"] == "a:e5"
    assert found["pids"] == "77"
    assert found["memory"] == str(96 << 20)
    assert found["score"] == "500"


def test_privileged(run: Any, level: Level) -> None:
    script = (
        "grep CapEff /proc/self/status; echo 0 >/proc/sys/net/ipv4/ip_forward && echo writes; ls /dev | wc -l; unshare -m true && echo free"
    )
    lines = run("--rm", "--privileged", "debian", "sh", "-c", script).splitlines()
    assert int(lines[0].split()[1], 16) & 1 << 21
    assert lines[1] == "writes"
    assert int(lines[2]) > 16
    assert lines[3] == "free"


def test_entrypoints_and_codes(run: Any, nacre: Cli, level: Level) -> None:
    assert run("--rm", "--entrypoint", "echo", "debian", "a", "b") == "a b\n"
    assert run("--rm", "--entrypoint", "", "debian", "echo", "plain") == "plain\n"
    failing = ("run", "--rm", "--isolation", str(level))
    assert 'exec: "nonesuch": executable file not found in $PATH' in nacre(*failing, "debian", "nonesuch", code=127).stderr
    assert 'exec: "/etc/passwd": permission denied' in nacre(*failing, "debian", "/etc/passwd", code=126).stderr
    assert "unable to find user nosuch" in nacre(*failing, "-u", "nosuch", "debian", "true", code=125).stderr
    assert nacre("ps", "-aq").stdout == ""


def test_out_of_memory(nacre: Cli, run: Any) -> None:
    eater = "x = []\nwhile True: x.append(bytearray(b'x' * 1000000))"
    run("--name", "eater", "-m", "40m", "debian", "python3", "-c", eater, code=137)
    assert (
        nacre("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}} {{.HostConfig.Memory}}", "eater").stdout == "true 137 41943040\n"
    )


def test_a_machine_of_its_own_size(nacre: Cli, vm: Level) -> None:
    run = ("run", "--rm", "--isolation", "vm", "--network", "none")
    script = "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; cat /proc/sys/kernel/random/entropy_avail"
    processors, memory, entropy = nacre(*run, "--cpus", "2", "-m", "128m", "debian", "sh", "-c", script).stdout.split()
    assert processors == "2"
    assert 128 << 10 <= int(memory) < 256 << 10
    assert int(entropy) >= 128
    ids = {nacre(*run, "busybox", "cat", "/proc/sys/kernel/random/uuid").stdout for _ in range(2)}
    assert len(ids) == 2
    if kernels := sorted(Path("/boot").glob("vmlinuz-*cloud*")):
        assert nacre(*run, "--kernel", str(kernels[0]), "debian", "uname", "-r").stdout.strip() == kernels[0].name.removeprefix("vmlinuz-")
    assert "is no Linux kernel" in nacre(*run, "--kernel", "/etc/passwd", "debian", "true", code=125).stderr
    assert "cannot share the network of the host" in nacre(*run[:-1], "host", "debian", "true", code=125).stderr
    assert (
        "cannot be given a device" in nacre(*run, "--device", "/dev/loop0", "debian", "true", code=None).stderr
        or not Path("/dev/loop0").exists()
    )


# ---- several of them


def test_levels_talk_to_each_other(nacre: Cli, vm: Level) -> None:
    nacre("run", "-d", "--name", "here", "debian", "sleep", "1000")
    nacre("run", "-d", "--name", "there", "--isolation", "vm", "debian", "sleep", "1000")
    nacre("run", "-d", "--name", "small", "--isolation", "vm", "busybox", "sleep", "1000")
    addresses = {name: nacre("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).stdout.strip() for name in ("here", "there", "small")}
    for name in ("here", "there"):
        assert "2 packets received" in nacre("exec", "small", "ping", "-c", "2", "-W", "10", addresses[name]).stdout
    for server, client in (("here", "there"), ("there", "here")):
        with serving(nacre, server, UDP_SERVER) as answer:
            script = (
                "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n"
                f"s.sendto(b'x' * 20000, ('{addresses[server]}', 5000)); print(s.recv(65000) == b'X' * 20000)"
            )
            assert nacre("exec", client, "python3", "-c", script).stdout == "True\n"
        assert answer == [f"20000 {addresses[client]}"]
        with serving(nacre, server, TCP_SERVER):
            script = (
                f"import socket, hashlib; s = socket.create_connection(('{addresses[server]}', 6000)); d = bytes(range(256)) * 32768\n"
                "s.sendall(d); s.shutdown(1); print(s.recv(64).decode() == hashlib.sha256(d).hexdigest())"
            )
            assert nacre("exec", client, "python3", "-c", script).stdout == "True\n"


@contextlib.contextmanager
def serving(nacre: Cli, name: str, program: str) -> Iterator[list[str]]:
    """Run a Python program that says it is ready; what it says later is in the list afterwards."""
    process = nacre.start("exec", name, "python3", "-c", program)
    assert process.stdout is not None
    said: list[str] = []
    try:
        assert process.stdout.readline() == "ready\n"
        yield said
        said += process.communicate(timeout=PATIENCE)[0].splitlines()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_volumes_and_binds(nacre: Cli, run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host\n")
    os.chown(tmp_path / "file", 123, 456)
    os.link(tmp_path / "file", tmp_path / "twin")
    script = r"""
section() { echo "== $1"; }
section copied; stat -c '%u %g %a' /kept/shadow; ls /kept | wc -l; touch /kept/mine
section bind; stat -c '%u %g %h' /data/file; echo new >/data/new; chown 11:22 /data/new; chmod 4755 /data/new; ln /data/new /data/newer
ln -s new /data/link; mv /data/newer /data/newest; rm /data/twin; head -c 5000000 /dev/urandom >/data/big; sha256sum </data/big
section one; cat /etc/one; echo more >>/etc/one
section frozen; (touch /frozen/x; echo x >/frozen/file; echo x >/etc/one-frozen) 2>&1
section anonymous; touch /anonymous/x; ls /anonymous
"""
    mounts = f"""
        -v kept:/kept -v {tmp_path}:/data -v {tmp_path}:/frozen:ro -v {tmp_path}/file:/etc/one
        -v {tmp_path}/file:/etc/one-frozen:ro -v /anonymous
    """
    nacre("run", "--rm", "-v", "kept:/etc", "busybox", "true")
    nacre("volume", "rm", "kept")
    nacre("run", "--rm", "-v", "kept:/etc", "debian", "true")
    found = sections(run("--rm", *mounts.split(), "debian", "sh", "-c", script))
    assert found["copied"].splitlines()[0] == "0 42 640"
    assert int(found["copied"].splitlines()[1]) > 30
    digest = hashlib.sha256((tmp_path / "big").read_bytes()).hexdigest()
    assert found["bind"].splitlines() == ["123 456 2", f"{digest}  -"]
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_nlink) == (11, 22, 0o4755, 2)
    assert os.readlink(tmp_path / "link") == "new"
    assert not (tmp_path / "twin").exists()
    assert found["one"] == "host"
    assert (tmp_path / "file").read_text() == "host\nmore\n"
    assert found["frozen"].count("Read-only file system") == 3
    assert found["anonymous"] == "x"
    assert nacre("volume", "ls", "-q").stdout == "kept\n"
    assert run("--rm", "-v", "kept:/kept", "debian", "ls", "/kept/mine") == "/kept/mine\n"
    assert nacre("volume", "rm", "kept").stdout == "kept\n"


def test_copying_a_tree(nacre: Cli, run: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "big").write_bytes(os.urandom(2_000_000))
    os.link(tree / "big", tree / "twin")
    (tree / "a/link").symlink_to("../big")
    (tree / ("n" * 200)).touch()
    (tree / "sp ace\nline").touch()
    os.chown(tree / "a/b", 12, 34)
    (tree / "big").chmod(0o711)
    run("-d", "--name", "box", "debian", "sleep", "1000")
    nacre("cp", str(tree), "box:/srv")
    nacre("cp", "-a", f"{tree}/.", "box:/opt/new")
    script = "cd /srv/tree; stat -c '%h %u %a' big; readlink a/link; stat -c %u a/b /opt/new/a/b; ls -q | wc -l; sha256sum <twin"
    lines = nacre("exec", "box", "sh", "-c", script).stdout.splitlines()
    assert lines[:5] == ["2 0 711", "../big", "0", "12", "5"]
    assert lines[5].split()[0] == hashlib.sha256((tree / "big").read_bytes()).hexdigest()
    nacre("cp", "box:/srv/tree", str(tmp_path / "back"))
    assert sorted(os.listdir(tmp_path / "back")) == sorted(os.listdir(tree))
    assert (tmp_path / "back/big").stat().st_nlink == 2
    nacre("cp", "box:/usr/bin/bash", str(tmp_path / "bash"))
    assert os.access(tmp_path / "bash", os.X_OK)
    nacre("cp", "box:/etc/os-release", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    nacre("cp", "-L", "box:/etc/os-release", str(tmp_path / "text"))
    assert "NAME=" in (tmp_path / "text").read_text()
    listing = subprocess.run(
        [*nacre.command, "cp", "box:/etc/apt", "-"], stdout=subprocess.PIPE, env={**nacre.environment, **os.environ}, check=True, timeout=60
    )
    assert b"apt/sources.list" in listing.stdout
    assert "Could not find the file /nodir" in nacre("cp", str(tree / "big"), "box:/nodir/x", code=125).stderr
    nacre("stop", "-t", "0", "box")
    nacre("cp", str(tmp_path / "text"), "box:/root/text")
    nacre("cp", "box:/root/text", str(tmp_path / "again"))
    assert (tmp_path / "again").read_text() == (tmp_path / "text").read_text()
    nacre("start", "box")
    assert nacre("exec", "box", "cat", "/root/text").stdout == (tmp_path / "text").read_text()


def test_verbs(nacre: Cli, run: Any, level: Level, eventually: Any) -> None:
    loop = 'trap "exit 5" TERM; while :; do echo tick; sleep 0.05; done'
    run("-d", "--name", "box", "-m", "64m", "-l", "a=b", "debian", "sh", "-c", loop)
    assert nacre("rename", "box", "clock").stdout == ""
    row = nacre("ps", "--filter", "name=clock", "--filter", "label=a=b", "--format", "{{.Names}} {{.State}} {{.Isolation}} {{.Command}}")
    assert row.stdout == f'clock running {level} "sh -c \'trap \\"exit 5…"\n'
    assert json.loads(nacre("ps", "--format", "json").stdout)["Names"] == "clock"
    nacre("pause", "clock")
    assert nacre("ps", "--format", "{{.Status}}").stdout.endswith("(Paused)\n")
    assert "is paused" in nacre("exec", "clock", "true", code=None).stderr
    length = len(nacre("logs", "clock").stdout)
    time.sleep(0.2)
    assert len(nacre("logs", "clock").stdout) == length
    nacre("unpause", "clock")
    eventually(lambda: len(nacre("logs", "clock").stdout) > length)
    top = nacre("top", "clock").stdout.splitlines()
    assert top[0].split()[:2] == ["UID", "PID"]
    assert "trap" in top[1]
    usage = json.loads(nacre("stats", "--no-stream", "--format", "json", "clock").stdout)
    assert (usage["Name"], int(usage["PIDs"]) >= 1) == ("clock", True)
    waiter = nacre.start("wait", "clock")
    assert nacre("stop", "clock").stdout == "clock\n"
    assert waiter.communicate(timeout=PATIENCE)[0] == "5\n"
    assert nacre("logs", "-n", "1", "clock").stdout == "tick\n"
    attached = nacre.start("start", "-a", "clock")
    assert attached.stdout is not None
    assert attached.stdout.readline() == "tick\n"
    assert nacre("kill", "clock").stdout == "clock\n"
    attached.communicate(timeout=PATIENCE)
    assert attached.returncode == 137
    template = (
        "{{.Name}} {{.State.ExitCode}} {{.Config.Labels.a}} {{.HostConfig.Memory}} {{.Config.Image}} {{json .Path}} {{index .Args 0}}"
    )
    assert nacre("inspect", "-f", template, "clock").stdout == f'/clock 137 b {64 << 20} debian "sh" -c\n'
    assert nacre("rm", "clock").stdout == "clock\n"


# ---- images


def test_archives_of_skopeo(nacre: Cli, hub: Registry, tmp_path: Path, session_engine: Engine) -> None:
    source = f"docker://{hub.address}/library/busybox:latest"
    for target in (
        f"docker-archive:{tmp_path}/docker.tar:example.com/foo/box:v1",
        f"oci-archive:{tmp_path}/oci.tar:box2:v2",
        f"oci:{tmp_path}/dir:box3",
    ):
        command = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", source, target]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
    assert nacre("load", "-i", f"{tmp_path}/docker.tar").stdout.splitlines()[-1] == "Loaded image: example.com/foo/box:v1"
    (tmp_path / "oci.tar.gz").write_bytes(gzip.compress((tmp_path / "oci.tar").read_bytes()))
    with open(tmp_path / "oci.tar.gz", "rb") as archive:
        done = subprocess.run(
            [*nacre.command, "load", "-q"], stdin=archive, capture_output=True, env={**nacre.environment, **os.environ}, timeout=60
        )
    assert (done.returncode, done.stdout) == (0, b"Loaded image: box2:v2\n")
    assert nacre("load", "-q", "-i", f"{tmp_path}/dir").stdout == "Loaded image: box3:latest\n"
    assert nacre("run", "--rm", "--network", "none", "box2:v2", "echo", "loaded").stdout == "loaded\n"
    nacre("tag", "box2:v2", "localhost:5000/team/box")
    [image] = json.loads(nacre("inspect", "box3").stdout)
    assert image["RepoTags"] == ["box2:v2", "box3:latest", "busybox:latest", "example.com/foo/box:v1", "localhost:5000/team/box:latest"]
    assert image["RepoDigests"][0].startswith("busybox@sha256:")
    names = nacre("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").stdout.splitlines()
    assert f"localhost:5000/team/box:latest {image['Id'][7:19]}" in names
    assert nacre("history", "-q", "nginx").stdout.count("\n") == 2
    nacre("run", "-d", "--name", "box", "box3", "sleep", "1000")
    assert "must be forced" in nacre("rmi", image["Id"][7:19], code=1).stderr
    for name in ("box2:v2", "box3", "example.com/foo/box:v1", "localhost:5000/team/box"):
        assert nacre("rmi", name).stdout.startswith("Untagged: ")
    assert "is using its referenced image" in nacre("rmi", "busybox", code=1).stderr
    assert nacre("rmi", "-f", "busybox").stdout.startswith("Untagged: busybox:latest\n")
    assert nacre("exec", "box", "echo", "still here").stdout == "still here\n"


# ---- what a user may type wrongly

REFUSALS = (
    ("run nosuch true", 125, "manifest for nosuch:latest not found"),
    ("run --pull never nosuch true", 125, "No such image: nosuch:latest"),
    ("pull ubuntu:nosuch", 125, "manifest for ubuntu:nosuch not found"),
    ("pull a//b", 125, "invalid reference format"),
    ("pull UPPER", 125, "must be lowercase"),
    ("pull localhost:1/foo", 125, "cannot reach registry localhost:1: connection refused"),
    ("exec nosuch ls", 125, "No such container: nosuch"),
    ("start nosuch", 1, "No such container: nosuch"),
    ("stop nosuch", 1, "No such container: nosuch"),
    ("rm nosuch", 1, "No such container: nosuch"),
    ("rmi nosuch", 1, "No such image: nosuch"),
    ("inspect nosuch", 1, "No such object: nosuch"),
    ("tag nosuch other", 125, "No such image: nosuch"),
    ("load -i /nonesuch.tar", 125, "no such file"),
    ("run --name x debian true", 125, "invalid container name (x)"),
    ("run -m 4m debian true", 125, "Minimum memory limit allowed is 6MB"),
    ("run -m lots debian true", 125, 'invalid argument "lots" for "-m, --memory" flag'),
    ("run --cpus 1000 debian true", 125, "range of CPUs"),
    ("run -w relative debian true", 125, "needs to be an absolute path"),
    ("run -v relative/path:/x debian true", 125, "use an absolute path"),
    ("run -v a:relative debian true", 125, "must be absolute"),
    ("run --mount type=bind,source=/nonesuch,target=/x debian true", 125, "bind source path does not exist: /nonesuch"),
    ("run -p 99999:80 debian true", 125, "invalid hostPort: 99999"),
    ("run --cap-add NONSENSE debian true", 125, "unknown capability: NONSENSE"),
    ("run --ulimit nonsense=1 debian true", 125, "invalid ulimit type: nonsense"),
    ("run --sysctl kernel.panic=1 debian true", 125, "is not allowed"),
    ("run --sysctl net.nonsense=1 debian true", 125, "/proc/sys/net/nonsense: No such file"),
    ("run --device /dev/nonsense debian true", 125, 'custom device "/dev/nonsense": No such file'),
    ("run --stop-signal NONSENSE debian true", 125, "Invalid signal: NONSENSE"),
    ("run --isolation nonsense debian true", 125, "expected one of default, process, vm"),
    ("run --kernel minimal debian true", 125, "--isolation vm"),
    ("run --network nonsense debian true", 125, "network nonsense not found"),
    ("run --env-file /nonesuch debian true", 125, "open /nonesuch: No such file"),
    ("run --nonsense debian true", 125, "unknown flag: --nonsense"),
    ("run --mac-address x debian true", 125, "does not have this flag of Docker's"),
    ("run -d -a stdout debian true", 125, "Conflicting options: -a and -d"),
    ("run", 125, "requires at least 1 argument"),
    ("commit a b", 125, "does not have"),
    ("nonsense", 125, "unknown command"),
)


def test_refusals(nacre: Cli) -> None:
    wrong = []
    for words, code, text in REFUSALS:
        done = nacre(*words.split(), code=None)
        fine = done.returncode == code and text in done.stderr and done.stderr.startswith(("nacre: ", "Unable to find image", "Using"))
        if not fine or "Traceback" in done.stderr:
            wrong.append(f"nacre {words}: exit {done.returncode} (expected {code}), {done.stderr!r}")
    assert not wrong, "\n".join(wrong)
    assert nacre("ps", "-aq", "--filter", "status=running").stdout == ""
    assert nacre("volume", "ls", "-q").stdout == ""
