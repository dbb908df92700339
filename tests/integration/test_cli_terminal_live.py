"""The command line at a terminal and in pipelines, as a user has it, at every level."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Cli

from nacre import Engine, Level, State
from nacre.errors import NotFound


class Terminal:
    """A terminal with a command line in it. What it shows is collected in `shown`."""

    def __init__(self, command: list[str], environment: dict[str, str], rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.slave = slave
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, pattern: str) -> str:
        """Waits until what was shown since the last match has the pattern; the match."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern.encode(), self.shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.shown!r}"
            if select.select([self.master], [], [], min(left, 0.1))[0]:
                self.shown += os.read(self.master, 4096)
            elif self.process.poll() is not None:
                deadline = 0.0
        self.shown = self.shown[match.end() :]
        return match[0].decode()

    def listening(self) -> None:
        """Waits until the command line has put the terminal into raw mode; before, some keys would be the terminal's own."""
        deadline = time.monotonic() + PATIENCE
        while termios.tcgetattr(self.slave)[3] & termios.ICANON:
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.02)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def wait(self) -> int:
        """The exit code; the terminal's settings must be what they were."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.shown!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                self.shown += os.read(self.master, 4096)
        assert termios.tcgetattr(self.slave) == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(cli: Cli) -> Iterator[Callable[..., Terminal]]:
    """`terminal("run", "-it", ...)`: a command line at a terminal of its own."""
    made: list[Terminal] = []

    def start(*words: str, **size: int) -> Terminal:
        made.append(Terminal([*cli.command, *words], {**cli.environment, "TERM": "xterm"}, **size))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def run(image: str, level: Level) -> Callable[..., list[str]]:
    """`run("-it", "--rm", "--", "isatty")`: the words of a run of the guest program at the test's level."""

    def words(*given: str) -> list[str]:
        flags, verb = given[: given.index("--")], given[given.index("--") + 1 :]
        return ["run", "--isolation", str(level), "--network", "none", *flags, image, *verb]

    return words


# ---- at a terminal


def test_a_terminal_on_both_sides(terminal: Any, run: Any, engine: Engine) -> None:
    shell = terminal(*run("-it", "--rm", "--", "isatty"))
    shell.expect("1 1 1\r\n")
    assert shell.wait() == 0
    assert engine.containers.list(all=True) == []


def test_its_size_follows_the_users(terminal: Any, run: Any) -> None:
    shell = terminal(*run("-it", "--rm", "--name", "sized", "--", "resizes"), rows=33, columns=101)
    shell.expect("33 101\r\n")
    shell.resize(40, 120)
    shell.expect("40 120\r\n")
    shell.type(b"\x03")
    shell.type(b"\x10\x11")
    shell.expect("read escape sequence")
    assert shell.wait() == 0


def test_every_key_goes_to_the_container(terminal: Any, run: Any) -> None:
    shell = terminal(*run("-it", "--rm", "--", "raw"))
    shell.expect("ready")
    # Ctrl-C, Ctrl-Z, Ctrl-\, Ctrl-S, Ctrl-Q, Ctrl-D, and a Ctrl-P that no Ctrl-Q follows.
    shell.type(b"\x03\x1a\x1c\x13\x11\x04\x10xq")
    for byte in ("03", "1a", "1c", "13", "11", "04", "10", "78", "71"):
        shell.expect(f"{byte}\r\n")
    assert shell.wait() == 0


def test_detach_and_attach_again(terminal: Any, run: Any, engine: Engine) -> None:
    shell = terminal(*run("-it", "--name", "box", "--", "raw"))
    shell.expect("ready")
    shell.type(b"\x10\x11")
    shell.expect("read escape sequence")
    assert shell.wait() == 0
    assert engine.containers.get("box").state is State.RUNNING
    again = terminal("attach", "--detach-keys", "ctrl-a,d", "box")
    again.listening()
    again.type(b"\x10\x11")
    again.expect("10\r\n11\r\n")
    again.type(b"\x01d")
    assert again.wait() == 0
    last = terminal("attach", "box")
    last.listening()
    last.type(b"q")
    assert last.wait() == 0
    assert engine.containers.get("box").refresh().state is State.EXITED


def test_exec_at_a_terminal(terminal: Any, run: Any, cli: Cli) -> None:
    cli(*run("-d", "--name", "box", "--", "sleep"))
    shell = terminal("exec", "-it", "box", "winsize", rows=17, columns=71)
    shell.expect("17 71\r\n")
    assert shell.wait() == 0
    shell = terminal("exec", "-it", "box", "exit", "9")
    assert shell.wait() == 9


def test_start_attached_to_a_terminal(terminal: Any, run: Any, cli: Cli) -> None:
    cli("create", *run("-it", "--name", "box", "--", "raw")[1:])
    shell = terminal("start", "-ai", "box")
    shell.expect("ready")
    shell.type(b"q")
    shell.expect("71")
    assert shell.wait() == 0


def test_a_killed_terminal_leaves_the_container_alone(terminal: Any, run: Any, engine: Engine) -> None:
    shell = terminal(*run("-it", "--name", "box", "--sig-proxy=false", "--", "raw"))
    shell.expect("ready")
    shell.process.send_signal(signal.SIGTERM)
    assert shell.wait() == 128 + signal.SIGTERM
    assert engine.containers.get("box").state is State.RUNNING


def test_a_program_that_fills_the_terminal(terminal: Any, run: Any) -> None:
    shell = terminal(*run("-t", "--rm", "--", "ticks", "500", "0"))
    # Without -i our terminal is not in raw mode and adds a carriage return of its own, as with Docker.
    shell.expect("tick 500\r+\n")
    assert shell.wait() == 0


# ---- in pipelines


def test_bytes_pass_unchanged(cli: Cli, run: Any, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    (tmp_path / "data").write_bytes(data)
    with open(tmp_path / "data", "rb") as source, open(tmp_path / "back", "wb") as sink:
        done = subprocess.run([*cli.command, *run("-i", "--rm", "--", "cat")], stdin=source, stdout=sink, env=cli.environment, timeout=120)
    assert done.returncode == 0
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_outputs_and_codes(cli: Cli, run: Any) -> None:
    done = cli(*run("--rm", "--", "both", "out", "err"))
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    cli(*run("--rm", "--", "exit", "42"), code=42)
    cli(*run("-d", "--name", "box", "--", "sleep"))
    cli("exec", "box", "die", "15", code=143)
    assert "no such file" in cli(*run("--rm", "--entrypoint", "/nonesuch", "--", "x"), code=127).stderr
    assert cli(*run("--rm", "--entrypoint", "/", "--", "x"), code=126).stderr.startswith("nacre: ")


def test_a_reader_that_stops(cli: Any, run: Any, engine: Engine, eventually: Any) -> None:
    process = cli.start(*run("--rm", "--", "ticks", "100000", "1"), text=False)
    assert process.stdout.read(7) == b"tick 1\n"
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()
    eventually(lambda: engine.containers.list(all=True) == [])


def test_a_slow_reader_loses_nothing(cli: Any, run: Any) -> None:
    process = cli.start(*run("--rm", "--", "spam", "4000000"), text=False)
    select.select([process.stdout], [], [], PATIENCE)
    output, errors = process.communicate(timeout=PATIENCE * 2)
    assert (len(output), errors, process.returncode) == (4_000_000, b"", 0)


def test_signals_are_passed_on(cli: Any, run: Any) -> None:
    process = cli.start(*run("--rm", "--", "signal-report"))
    assert process.stdout.readline() == "ready\n"
    for name in ("INT", "HUP", "USR1", "TERM"):
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.stdout.readline() == f"{name}\n"
    assert process.wait(PATIENCE) == 0
    process.communicate()


def test_without_sig_proxy_only_the_command_line_ends(cli: Any, run: Any, engine: Engine) -> None:
    process = cli.start(*run("--name", "box", "--sig-proxy=false", "--", "signal-report"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert engine.containers.get("box").state is State.RUNNING


def test_signals_reach_an_exec(cli: Any, run: Any) -> None:
    cli(*run("-d", "--name", "box", "--", "sleep"))
    process = cli.start("exec", "box", "trap-term", "5")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 5


def test_logs_follow(cli: Any, run: Any) -> None:
    cli(*run("-d", "--name", "box", "--", "ticks", "20", "50"))
    follower = cli.start("logs", "-f", "box")
    lines = follower.stdout.read().splitlines()
    assert lines == [f"tick {number}" for number in range(1, 21)]
    assert follower.wait(PATIENCE) == 0
    follower.communicate()
    assert cli("logs", "-n", "2", "box").stdout == "tick 19\ntick 20\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z tick 20\n", cli("logs", "-t", "-n", "1", "box").stdout)
    assert cli("logs", "--until", "1h", "box").stdout == ""


def test_a_cli_that_is_killed_leaves_the_container_running(cli: Any, run: Any, engine: Engine) -> None:
    process = cli.start(*run("--name", "box", "--", "ticks", "100000", "10"))
    assert process.stdout.readline() == "tick 1\n"
    process.kill()
    process.communicate()
    box = engine.containers.get("box")
    assert box.state is State.RUNNING
    assert cli("logs", "-n", "1", "box").stdout.startswith("tick ")


# ---- other commands, for real


def test_listing_and_inspecting(cli: Cli, run: Any, level: Level) -> None:
    identifier = cli(*run("-d", "--name", "box", "-l", "a=b", "-h", "nest", "--", "sleep")).stdout.strip()
    row = cli("ps", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Isolation}} {{.Labels}}").stdout
    assert row == f"{identifier[:12]} box running {level} a=b\n"
    assert cli("inspect", "-f", "{{.State.Running}} {{.Isolation.Level}} {{.Config.Hostname}}", "box").stdout == f"true {level} nest\n"
    assert cli("top", "box", "-o", "pid,cmd").stdout.splitlines()[1].split()[0] == "1"
    sample = cli("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "box").stdout
    assert re.match(r"box [1-9]\d* \d", sample)
    assert "box" in cli("ps", "-s").stdout
    assert cli("stop", "-t", "1", "box").stdout == "box\n"
    assert re.match(r"Exited \(\d+\) ", cli("ps", "-a", "--format", "{{.Status}}").stdout)
    assert cli("rm", "box").stdout == "box\n"


def test_what_run_takes(cli: Cli, run: Any, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "env").write_text("A=file\nB=file\n")
    flags = ("--env-file", str(tmp_path / "env"), "-e", "B=flag", "-w", "/tmp", "-u", "1000:2000", "--rm")
    assert cli(*run(*flags, "--", "env", "B")).stdout == "flag\n"
    assert cli(*run(*flags, "--", "pwd")).stdout == "/tmp\n"
    cli(*run("--rm", "-v", f"{tmp_path}/shared:/mnt", "--", "write", "/mnt/file", "text"))
    assert (tmp_path / "shared/file").read_text().strip() == "text"
    cli(*run("--rm", "-v", f"{tmp_path}/made:/mnt:ro", "--", "write", "/mnt/file", "text"), code=1)
    assert (tmp_path / "made").is_dir()
    missing = cli(*run("--rm", "--mount", f"type=bind,source={tmp_path}/missing,target=/mnt", "--", "true"), code=125)
    assert "bind source path does not exist" in missing.stderr


def test_copying(cli: Cli, run: Any, tmp_path: Path) -> None:
    cli(*run("-d", "--name", "box", "--", "sleep"))
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_bytes(os.urandom(300_000))
    (tmp_path / "tree/link").symlink_to("sub/file")
    cli("cp", str(tmp_path / "tree"), "box:/tmp")
    cli("cp", "box:/tmp/tree/.", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_bytes() == (tmp_path / "tree/sub/file").read_bytes()
    assert os.readlink(tmp_path / "back/link") == "sub/file"
    cli("cp", "-L", "box:/tmp/tree/link", str(tmp_path / "followed"))
    assert (tmp_path / "followed").stat().st_size == 300_000
    assert "Could not find the file /nonesuch" in cli("cp", "box:/nonesuch", str(tmp_path), code=125).stderr
    cli("stop", "-t", "1", "box")
    cli("cp", "box:/tmp/tree/sub/file", str(tmp_path / "stopped"))
    assert (tmp_path / "stopped").stat().st_size == 300_000


def test_tar_streams(cli: Cli, run: Any, tmp_path: Path) -> None:
    cli(*run("-d", "--name", "box", "--", "sleep"))
    (tmp_path / "file").write_text("text")
    cli("cp", str(tmp_path / "file"), "box:/tmp/file")
    with open(tmp_path / "archive.tar", "wb") as sink:
        subprocess.run([*cli.command, "cp", "box:/tmp/file", "-"], stdout=sink, env=cli.environment, check=True, timeout=PATIENCE)
    with open(tmp_path / "archive.tar", "rb") as source:
        subprocess.run([*cli.command, "cp", "-", "box:/run"], stdin=source, env=cli.environment, check=True, timeout=PATIENCE)
    assert cli("exec", "box", "cat", "/run/file").stdout == "text"


def test_two_at_once(cli: Cli, run: Any, engine: Engine) -> None:
    cli(*run("-d", "--name", "box", "--", "ignore-term"))
    removers = [cli.start("rm", "-f", "box") for _ in range(3)]
    outcomes = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in removers]
    assert all(code == 0 for _, code in outcomes), outcomes
    with pytest.raises(NotFound):
        engine.containers.get("box")
