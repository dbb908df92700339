"""The commands, from the command line to the engine and back, over an engine in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nacre.cli
from nacre.cli import registry
from nacre.cli.commands import stats, top
from nacre.cli.commands.events import docker_shaped, text
from nacre.cli.commands.inspect import typed
from nacre.cli.commands.logs import Lines, tail_count
from nacre.cli.commands.system import lines
from nacre.cli.flags import UsageError
from nacre.cli.template import Template
from nacre.engine import Engine
from nacre.errors import Conflict, NacreError, NotFound, SandboxError
from nacre.model.container import ContainerSpec, Level, State, Stats
from nacre.model.image import History, Image, ImageConfig, Progress
from nacre.model.network import Network, PortMapping
from nacre.testing.engine import IMAGE, fake_engine


class Result:
    """What a command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


Nacre = Callable[..., Result]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    def no_network(name: str) -> Network:
        raise NotFound(f"network {name} not found")

    with fake_engine(str(tmp_path / "root")) as (made, _, network):
        monkeypatch.setattr(network, "inspect", no_network, raising=False)
        monkeypatch.setattr("nacre.engine.Engine", lambda *_, **__: made)
        monkeypatch.delenv("NACRE_ISOLATION", raising=False)
        yield made


@pytest.fixture
def nacre_(engine: Engine, capfd: pytest.CaptureFixture[str]) -> Nacre:
    """`nacre_("ps", "-a")`: runs a command line; `code` is the exit code it must have."""

    def run(*words: str, code: int | None = 0) -> Result:
        got = nacre.cli.main(list(words))
        captured = capfd.readouterr()
        assert code is None or got == code, f"exit {got}: {captured.out}{captured.err}"
        return Result(got, captured.out, captured.err)

    return run


# ---- main


def test_every_command_can_be_loaded_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in registry.COMMANDS:
        command = registry.load(name)
        assert nacre.cli.main([*name.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"Usage:  nacre {name}")
        assert all(f"--{flag.name}" in shown for flag in command.flags)
        assert len({flag.short for flag in command.flags if flag.short}) == len([flag for flag in command.flags if flag.short])
        assert len({flag.name for flag in command.flags}) == len(command.flags)


def test_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"], ["-h"]):
        assert nacre.cli.main(words) == 0
        shown = capsys.readouterr().out
        assert "Common Commands:\n  run " in shown
        assert all(f"\n  {name} " in shown for name in (*registry.GROUPS, *(name for name in registry.COMMANDS if " " not in name)))
    assert nacre.cli.main(["container"]) == 0
    assert "\n  prune " in capsys.readouterr().out
    assert nacre.cli.main(["help", "container", "ls"]) == 0
    assert capsys.readouterr().out.startswith("Usage:  nacre container ls")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["pss"], "nacre: unknown command: nacre pss", "Did you mean 'nacre ps'? See 'nacre --help'."),
        (["container", "lss"], "nacre: unknown command: nacre container lss", "Did you mean 'nacre container ls'?"),
        (["push", "x"], "nacre: 'push' is a Docker command that this version of Nacre does not have", "See 'nacre --help'."),
        (["ps", "--foo"], "nacre: unknown flag: --foo", "See 'nacre ps --help'."),
        (["--rot", "x", "ps"], "nacre: unknown flag: --rot", "Did you mean --root? See 'nacre --help'."),
        (["--root"], "nacre: flag needs an argument: --root", "See 'nacre --help'."),
        (["run"], "nacre: 'nacre run' requires at least 1 argument", "See 'nacre run --help'."),
    ],
)
def test_mistakes(words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert nacre.cli.main(words) == 125
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == message
    assert captured.err.splitlines()[1].startswith(f"  {hint}")


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--version", "-v"):
        assert nacre.cli.main([flag]) == 0
        assert capsys.readouterr().out.startswith("Nacre version ")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: object) -> int:
        raise error

    monkeypatch.setattr(registry.load("ps"), "run", run)


def test_errors_are_one_line_and_details_are_for_debugging(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, SandboxError("it broke\x1b[2J", stage="boot", hint="mend it", details="line one\nline two"))
    assert nacre.cli.main(["ps"]) == 125
    assert capsys.readouterr().err == "nacre: it broke�[2J\n  mend it\n"
    assert nacre.cli.main(["--debug", "ps"]) == 125
    assert capsys.readouterr().err == "nacre: it broke�[2J\n  mend it\n  | line one\n  | line two\n"


def test_unforeseen_failures_are_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, ZeroDivisionError("oh"))
    assert nacre.cli.main(["ps"]) == 125
    shown = capsys.readouterr().err
    assert shown.startswith("nacre: internal error: ZeroDivisionError: oh\n")
    assert "Traceback" not in shown
    assert nacre.cli.main(["-D", "ps"]) == 125
    assert "Traceback" in capsys.readouterr().err


def test_interrupts_and_broken_pipes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert nacre.cli.main(["ps"]) == 130
    failing(monkeypatch, BrokenPipeError())
    assert nacre.cli.main(["ps"]) == 141
    assert capsys.readouterr().err == ""


def test_the_exit_code_is_the_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from nacre.errors import CommandNotExecutable, CommandNotFound

    failing(monkeypatch, CommandNotFound("nope"))
    assert nacre.cli.main(["ps"]) == 127
    failing(monkeypatch, CommandNotExecutable("nope"))
    assert nacre.cli.main(["ps"]) == 126


# ---- run and friends


def test_run_gives_back_output_and_exit_code(nacre_: Nacre, engine: Engine) -> None:
    assert nacre_("run", "--rm", "box", "echo", "hello").out == "hello\n"
    assert nacre_("run", "--rm", "box", "exit", "42", code=42).out == ""
    assert nacre_("run", "--rm", "--isolation", "vm", "box", "exit", "3", code=3).err == ""
    assert engine.containers.list(all=True) == []


def test_a_container_without_rm_stays(nacre_: Nacre, engine: Engine) -> None:
    nacre_("run", "--name", "job", "box", "exit", "7", code=7)
    assert engine.containers.get("job").state is State.EXITED
    assert engine.containers.get("job").refresh().record.exit_code == 7


def test_commands_that_are_not_there(nacre_: Nacre, engine: Engine) -> None:
    assert nacre_("run", "--rm", "box", "missing", code=127).err.startswith("nacre: ")
    assert nacre_("run", "--rm", "box", "forbidden", code=126).err.startswith("nacre: ")
    assert engine.containers.list(all=True) == []


def test_detached(nacre_: Nacre, engine: Engine) -> None:
    identifier = nacre_("run", "-d", "--name", "web", "box").out.strip()
    assert len(identifier) == 64
    assert engine.containers.get("web").id == identifier
    assert nacre_("exec", "web", "echo", "inside").out == "inside\n"
    assert nacre_("exec", "web", "exit", "9", code=9).out == ""
    assert nacre_("exec", "web", "missing", code=127).out == ""
    assert nacre_("stop", "web").out == "web\n"
    assert nacre_("start", "web").out == "web\n"
    assert nacre_("kill", "web").out == "web\n"
    assert nacre_("wait", "web").out == "137\n"
    assert nacre_("restart", "web").out == "web\n"
    assert nacre_("rename", "web", "site").out == ""
    assert nacre_("rm", "site", code=1).err.startswith("nacre: container site is running")
    assert nacre_("rm", "-f", "site").out == "site\n"
    assert nacre_("rm", "site", code=1).err.splitlines()[0] == "nacre: No such container: site"
    assert nacre_("rm", "-f", "site").out == ""


def test_several_at_once_go_on_after_a_failure(nacre_: Nacre) -> None:
    nacre_("run", "-d", "--name", "aa", "box")
    nacre_("run", "-d", "--name", "bb", "box")
    done = nacre_("stop", "aa", "nope", "bb", code=1)
    assert done.out == "aa\nbb\n"
    assert done.err.startswith("nacre: No such container: nope\n")


def test_start_attached(nacre_: Nacre) -> None:
    nacre_("create", "--name", "hello", "box", "echo", "hi")
    assert nacre_("start", "-a", "hello").out == "hi\n"
    nacre_("create", "--name", "seven", "box", "exit", "7")
    assert nacre_("start", "-a", "seven", code=7).out == ""
    assert "multiple containers" in nacre_("start", "-a", "hello", "seven", code=125).err


def test_input_is_passed_on(nacre_: Nacre, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"through the pump\n")
    saved = os.dup(0)
    source = os.open(tmp_path / "input", os.O_RDONLY)
    try:
        os.dup2(source, 0)
        assert nacre_("run", "-i", "--rm", "box", "cat").out == "through the pump\n"
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(source)


def test_a_terminal_is_needed_for_it(nacre_: Nacre, engine: Engine) -> None:
    saved, null = os.dup(0), os.open("/dev/null", os.O_RDONLY)
    try:
        os.dup2(null, 0)
        for words in (("run", "-it", "box"), ("run", "-t", "-a", "stdin", "box")):
            assert nacre_(*words, code=125).err.startswith("nacre: the input device is not a TTY\n")
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(null)
    assert engine.containers.list(all=True) == []


def test_conflicting_flags(nacre_: Nacre) -> None:
    assert "Conflicting options: -a and -d" in nacre_("run", "-d", "-a", "stdout", "box", code=125).err
    assert "unknown character" in nacre_("run", "--detach-keys", "shift-a", "box", code=125).err


def test_cidfile(nacre_: Nacre, tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "cid"
    identifier = nacre_("create", "--cidfile", str(path), "box").out.strip()
    assert path.read_text() == identifier
    assert "container ID file found" in nacre_("run", "--cidfile", str(path), "box", code=125).err
    assert len(engine.containers.list(all=True)) == 1
    other = tmp_path / "other"
    nacre_("run", "--pull", "never", "--cidfile", str(other), "nonesuch", code=125)
    assert not other.exists()


def test_images_are_pulled_when_they_are_missing(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[tuple[str, str | None]] = []

    def pull(reference: str, *, platform: str | None = None, progress: Any = None) -> Image:
        pulled.append((reference, platform))
        raise NotFound(f"no {reference} anywhere")

    monkeypatch.setattr(engine.images, "pull", pull)
    done = nacre_("run", "nonesuch", "true", code=125)
    assert done.err.splitlines()[0] == "Unable to find image 'nonesuch:latest' locally"
    assert "nacre: no nonesuch anywhere" in done.err
    nacre_("run", "--pull", "never", "nonesuch", code=125)
    nacre_("run", "--pull", "always", "-q", "box", code=125)
    nacre_("create", "--platform", "linux/arm64", "box", code=125)
    nacre_("create", "--platform", "linux/amd64", "box")
    assert pulled == [("nonesuch", None), ("box", None), ("box", "linux/arm64")]


def test_warnings_are_shown(nacre_: Nacre) -> None:
    done = nacre_("create", "--network", "none", "-p", "80:80", "box")
    assert done.err == "WARNING: published ports are discarded when using the none network\n"


def test_attach(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    nacre_("create", "--name", "job", "box", "sleep")
    assert "cannot attach to a stopped container" in nacre_("attach", "job", code=125).err
    job = engine.containers.get("job")
    job.start()
    attach = type(job).attach

    def killed(self: Any, *, stdin: bool = True) -> Any:
        stream = attach(self, stdin=stdin)
        stream.signal(9)
        return stream

    monkeypatch.setattr(type(job), "attach", killed)
    assert nacre_("attach", "job", code=137).out == ""


# ---- listings


def test_ps(nacre_: Nacre) -> None:
    nacre_(
        "run", "-d", "--name", "web", "-l", "tier=front", "-p", "8080:80", "-v", "data:/data:nocopy", "box", "sleep", "for a very long time"
    )
    nacre_("run", "-d", "--name", "vm", "--isolation", "vm", "box")
    nacre_("run", "--name", "done", "box", "exit", "3", code=3)
    shown = nacre_("ps").out.splitlines()
    assert shown[0].split("  ")[0] == "CONTAINER ID"
    assert shown[0].split()[-4:] == ["STATUS", "ISOLATION", "PORTS", "NAMES"]
    assert [line.split()[-1] for line in shown[1:]] == ["vm", "web"]
    assert "sleep 'for a very l…" in shown[2]
    assert "0.0.0.0:8080->80/tcp" in shown[2]
    assert nacre_("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Isolation}} {{.LocalVolumes}}").out.splitlines() == [
        "done exited process 0",
        "vm running vm 0",
        "web running process 1",
    ]
    assert nacre_("ps", "-a", "--format", "{{.Status}}").out.startswith("Exited (3) ")
    assert nacre_("ps", "-l", "-q", "--no-trunc").out.strip() == nacre_("inspect", "-f", "{{.Id}}", "done").out.strip()
    assert len(nacre_("ps", "-n", "2", "-q").out.split()) == 2
    assert "12.3kB" not in nacre_("ps", "-s").out
    assert nacre_("ps", "-s", "--format", "{{.Size}}").out.splitlines()[0].startswith("0B (virtual")
    assert json.loads(nacre_("ps", "--format", "json", "-f", "name=web").out)["Labels"] == "tier=front"


PS_FILTERS: list[tuple[str, list[str]]] = [
    ("name=we", ["web"]),
    ("name=^/web$", ["web"]),
    ("status=exited", ["done"]),
    ("exited=3", ["done"]),
    ("exited=0", []),
    ("label=tier", ["web"]),
    ("label=tier=front", ["web"]),
    ("label=tier=back", []),
    ("isolation=vm", ["vm"]),
    ("ancestor=box", ["vm", "web"]),
    ("ancestor=" + IMAGE.id, ["vm", "web"]),
    ("ancestor=other", []),
    ("before=vm", ["web"]),
    ("since=web", ["vm"]),
    ("publish=8080", ["web"]),
    ("publish=8000-8100/tcp", ["web"]),
    ("publish=8080/udp", []),
    ("network=bridge", ["vm", "web"]),
    ("volume=/data", ["web"]),
    ("health=none", ["vm", "web"]),
    ("health=healthy", []),
]


def test_filters_of_ps(nacre_: Nacre) -> None:
    nacre_("run", "-d", "--name", "web", "-l", "tier=front", "-p", "8080:80", "-v", "data:/data:nocopy", "box")
    nacre_("run", "-d", "--name", "vm", "--isolation", "vm", "box")
    nacre_("run", "--name", "done", "box", "exit", "3", code=3)
    for chosen, names in PS_FILTERS:
        assert (chosen, nacre_("ps", "-f", chosen, "--format", "{{.Names}}").out.split()) == (chosen, names)


def test_filters_that_are_wrong(nacre_: Nacre) -> None:
    assert "Filters of this command" in nacre_("ps", "-f", "color=red", code=125).err
    nacre_("run", "-d", "box")
    assert "status=sleeping" in nacre_("ps", "-f", "status=sleeping", code=125).err
    assert "is not a port" in nacre_("ps", "-f", "publish=web", code=125).err
    assert "No such container: nope" in nacre_("ps", "-f", "before=nope", code=125).err


def test_inspect(nacre_: Nacre) -> None:
    nacre_("run", "-d", "--name", "web", "-p", "8080:80", "-l", "a=b", "box")
    document = json.loads(nacre_("inspect", "web").out)
    assert document[0]["Name"] == "/web"
    assert (
        nacre_("inspect", "-f", "{{.State.Status}} {{.Config.Labels}} {{.HostConfig.Isolation}}", "web").out == "running map[a:b] process\n"
    )
    form = "{{range $p, $c := .NetworkSettings.Ports}}{{$p}} {{(index $c 0).HostPort}}{{end}}"
    assert nacre_("inspect", "-f", form, "web").out == "80/tcp 8080\n"
    assert "can't evaluate field Foo" in nacre_("inspect", "-f", "{{.State.Foo}}", "web", code=125).err
    assert nacre_("inspect", "-f", '{{.Config.Labels.foo}}|{{index .Config.Labels "q"}}', "web").out == "<no value>|\n"
    done = nacre_("inspect", "nope", "web", code=1)
    assert len(json.loads(done.out)) == 1
    assert done.err == "nacre: No such object: nope\n"
    assert nacre_("inspect", "nope", code=1).out == "[]\n"
    assert "No such image" in nacre_("inspect", "--type", "image", "web", code=1).err
    assert "expected one of" in nacre_("inspect", "--type", "cloud", "web", code=125).err
    assert json.loads(nacre_("container", "inspect", "-f", "json", "web").out)["Name"] == "/web"
    assert nacre_("inspect", "-f", "{{.Id}}", "box").out.strip() == IMAGE.id
    assert json.loads(nacre_("inspect", "-s", "web").out)[0]["SizeRw"] == 0


def test_maps_in_answers_may_lack_a_key() -> None:
    answer = typed({"State": {"Status": "x"}, "Config": {"Labels": {}}, "Mounts": [{"Type": "bind"}]})
    assert Template("{{.Config.Labels.a}}").render(answer) == "<no value>"
    with pytest.raises(NacreError):
        Template("{{(index .Mounts 0).Foo}}").render(answer)


def test_logs(nacre_: Nacre) -> None:
    nacre_("run", "--name", "job", "-l", "a=b", "-l", "c=d", "--log-opt", "labels=a", "box", "echo", "hello")
    assert nacre_("logs", "job").out == "hello\n"
    stamped = nacre_("logs", "-t", "--details", "job").out
    assert stamped.endswith("Z a=b hello\n")
    assert nacre_("logs", "--tail", "0", "job").out == ""
    assert nacre_("logs", "--until", "1h", "job").out == ""
    assert nacre_("logs", "--since", "1h", "-f", "job").out == "hello\n"
    assert "invalid value 'x' for --tail" in nacre_("logs", "-n", "x", "job", code=125).err
    assert "No such container" in nacre_("logs", "nope", code=125).err


def test_lines_of_a_log_are_stamped_once_each() -> None:
    import io

    output = io.BytesIO()
    writer = Lines(output, "", timestamps=True)
    for time_ns, data in ((0, b"one\ntw"), (10**9, b"o\n"), (2 * 10**9, b"a\rb\n\n")):
        writer.write(time_ns, data)
    assert output.getvalue().splitlines() == [
        b"1970-01-01T00:00:00.000000000Z one",
        b"1970-01-01T00:00:00.000000000Z two",
        b"1970-01-01T00:00:02.000000000Z a",
        b"b",
        b"1970-01-01T00:00:02.000000000Z ",
    ]
    assert tail_count("all") is None
    assert tail_count("-1") is None
    assert tail_count("3") == 3


def test_events(nacre_: Nacre) -> None:
    nacre_("run", "--rm", "--name", "job", "box", "true")
    shown = nacre_("events", "--since", "1m", "--until", "0s").out.splitlines()
    assert " container create " in shown[0]
    assert shown[0].endswith("(image=box, name=job)")
    first = json.loads(nacre_("events", "--since", "1m", "--until", "0s", "--format", "json").out.splitlines()[0])
    assert (first["Type"], first["Action"], first["Actor"]["Attributes"]["name"]) == ("container", "create", "job")
    form = "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.From}}"
    done = nacre_("events", "--since", "1m", "--until", "0s", "-f", "event=create", "-f", "container=job", "--format", form)
    assert done.out == "container create job box\n"
    assert nacre_("events", "--since", "1m", "--until", "0s", "-f", "type=image").out == ""


def test_an_event_as_docker_has_it() -> None:
    event = docker_shaped({"time": 1.5, "type": "container", "action": "die", "id": "x", "attributes": {"name": "n", "exitCode": "3"}})
    assert event["timeNano"] == 1_500_000_000
    assert text(event) == "1970-01-01T00:00:01.500000000Z container die x (exitCode=3, name=n)"


def test_port(nacre_: Nacre) -> None:
    nacre_("run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "-p", "53:53/udp", "box")
    assert nacre_("port", "web").out == "53/udp -> 0.0.0.0:53\n80/tcp -> 127.0.0.1:8080\n"
    assert nacre_("port", "web", "80").out == "127.0.0.1:8080\n"
    assert nacre_("port", "web", "53/udp").out == "0.0.0.0:53\n"
    assert "No public port '81' published for web" in nacre_("port", "web", "81", code=125).err


class FakeContainer:
    """What listings look at."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def test_stats() -> None:
    before, now = Stats(time=1.0, cpu=10**9), Stats(time=3.0, cpu=2 * 10**9)
    assert stats.cpu_percent(before, now) == 50.0
    assert stats.cpu_percent(None, now) == 0.0
    assert stats.cpu_percent(now, before) == 0.0
    sample = stats.Sample(
        FakeContainer(id="a" * 64, name="web"),  # type: ignore[arg-type]
        "web",
        Stats(time=1.0, memory=5_000_000, memory_limit=100_000_000, pids=3, rx=1234, tx=567890, read=4096),
        40.0,
    )
    row = {name: field.value(sample) for name, field in stats.fields(full=False).items()}
    assert row == {
        "Container": "web",
        "ID": "a" * 12,
        "Name": "web",
        "CPUPerc": "40.00%",
        "MemUsage": "4.768MiB / 95.37MiB",
        "MemPerc": "5.00%",
        "NetIO": "1.23kB / 568kB",
        "BlockIO": "4.1kB / 0B",
        "PIDs": "3",
    }
    gone = {name: field.value(sample._replace(stats=None)) for name, field in stats.fields(full=False).items()}
    assert (gone["CPUPerc"], gone["MemUsage"], gone["PIDs"]) == ("--", "-- / --", "--")


def test_stats_from_the_command_line(nacre_: Nacre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "PERIOD", 0.0)
    nacre_("run", "-d", "--name", "web", "box")
    shown = nacre_("stats", "--no-stream").out.splitlines()
    assert shown[0].split("  ")[0] == "CONTAINER ID"
    assert shown[1].split()[1] == "web"
    assert json.loads(nacre_("stats", "--no-stream", "--format", "json", "web").out)["PIDs"] == "1"
    assert "No such container" in nacre_("stats", "--no-stream", "nope", code=125).err


def test_top() -> None:
    assert top.chosen([]) == ("UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD")
    assert top.chosen(["aux"]) == top.chosen(["-ef"]) == top.chosen([])
    assert top.chosen(["-o", "pid,cmd"]) == top.chosen(["-opid,cmd"]) == ("PID", "CMD")
    assert top.clock(3725.9) == "01:02:05"
    assert [top.terminal(device) for device in ("0", "34816", "34817", "1025", "x")] == ["?", "pts/0", "pts/1", "tty1", "?"]
    for words in (["-o", "pid,nose"], ["--forest"], ["-o", ","]):
        with pytest.raises(UsageError):
            top.chosen(words)


# ---- images, volumes, networks, the rest


def image(number: int, *tags: str, **fields: Any) -> Image:
    return Image(id=f"sha256:{number:064x}", digest=f"sha256:{number:064x}", tags=tags, created=f"2024-01-{number:02d}T00:00:00Z", **fields)


@pytest.fixture
def images(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    made = [
        image(
            3,
            "docker.io/library/ubuntu:24.04",
            "docker.io/library/ubuntu:latest",
            repo_digests=("docker.io/library/ubuntu@sha256:" + "d" * 64,),
        ),
        image(2, "localhost:5000/a/app:1", size=78_123_456, config=ImageConfig(labels={"tier": "front"})),
        image(1),
    ]
    monkeypatch.setattr(engine.images, "list", lambda: made)
    monkeypatch.setattr(engine.images, "get", lambda name: next(item for item in made if any(name in tag for tag in (*item.tags, item.id))))
    return made


def test_images(nacre_: Nacre, images: list[Image]) -> None:
    shown = nacre_("images").out.splitlines()
    assert shown[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line.split()[:2] for line in shown[1:]] == [
        ["ubuntu", "24.04"],
        ["ubuntu", "latest"],
        ["localhost:5000/a/app", "1"],
        ["<none>", "<none>"],
    ]
    assert shown[3].endswith("78.1MB")
    assert nacre_("images", "--digests", "--format", "{{.Digest}}", "ubuntu:latest").out == "sha256:" + "d" * 64 + "\n"
    assert nacre_("images", "-q", "--no-trunc", "localhost:5000/a/app").out.strip() == images[1].id
    assert json.loads(nacre_("images", "--format", "json", "ubuntu:24.04").out)["Repository"] == "ubuntu"


IMAGE_FILTERS: list[tuple[tuple[str, ...], list[str]]] = [
    (("ubuntu",), ["ubuntu:24.04", "ubuntu:latest"]),
    (("ubuntu:24.04",), ["ubuntu:24.04"]),
    (("ub*",), ["ubuntu:24.04", "ubuntu:latest"]),
    (("*:latest",), ["ubuntu:latest"]),
    (("*/a/app",), ["localhost:5000/a/app:1"]),
    (("*",), ["ubuntu:24.04", "ubuntu:latest"]),
    (("Not/An/Image",), []),
    (("-f", "dangling=true"), ["<none>:<none>"]),
    (("-f", "dangling=false", "-f", "label=tier"), ["localhost:5000/a/app:1"]),
    (("-f", "since=app"), ["ubuntu:24.04", "ubuntu:latest"]),
    (("-f", "before=app"), ["<none>:<none>"]),
    (("-f", "until=2024-01-02T12:00:00Z"), ["localhost:5000/a/app:1", "<none>:<none>"]),
    (("-f", "reference=*/*/app"), ["localhost:5000/a/app:1"]),
]


def test_filters_of_images(nacre_: Nacre, images: list[Image]) -> None:
    for words, names in IMAGE_FILTERS:
        assert (words, nacre_("images", "--format", "{{.Repository}}:{{.Tag}}", *words).out.split()) == (words, names)


def test_history(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        History(created="2024-01-02T00:00:00Z", created_by='CMD  ["bash"] ' + "x" * 60, empty=True),
        History(size=78_123_456, comment="c"),
    ]
    monkeypatch.setattr(engine.images, "history", lambda _: steps)
    shown = nacre_("history", "box").out.splitlines()
    assert shown[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert shown[1].startswith("111111111111 ")
    assert f'CMD ["bash"] {"x" * 31}…' in shown[1]
    assert shown[2].startswith("<missing>      N/A ")
    assert nacre_("history", "-H=false", "--format", "{{.CreatedSince}} {{.Size}}", "box").out.splitlines()[1] == " 78123456"
    assert nacre_("history", "-q", "--no-trunc", "box").out.splitlines() == [IMAGE.id, "<missing>"]


def test_rmi_tag_and_prune(nacre_: Nacre, engine: Engine, images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    def remove(name: str, *, force: bool = False) -> list[tuple[str, str]]:
        if "used" in name:
            raise Conflict("in use")
        removed.append(name)
        return [("untagged", name), ("deleted", "sha256:x")]

    monkeypatch.setattr(engine.images, "remove", remove)
    monkeypatch.setattr(engine.images, "tag", lambda source, target: removed.append(f"{source}->{target}"))
    done = nacre_("rmi", "used", "ubuntu", code=1)
    assert done.out == "Untagged: ubuntu\nDeleted: sha256:x\n"
    assert done.err == "nacre: in use\n"
    nacre_("tag", "ubuntu", "mine:1")
    nacre_("image", "prune", "-f")
    nacre_("image", "prune", "-a", "-f")
    assert removed == ["ubuntu", "ubuntu->mine:1", "000000000000", *images[0].tags, *images[1].tags, "000000000000"]


def test_prune_asks_first(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    nacre_("run", "--name", "done", "box", "true")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "WARNING! This will remove all stopped containers." in nacre_("container", "prune").out
    assert len(engine.containers.list(all=True)) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "Deleted Containers:\n" in nacre_("container", "prune").out
    assert engine.containers.list(all=True) == []


def test_volumes(nacre_: Nacre) -> None:
    assert nacre_("volume", "create", "data").out == "data\n"
    assert len(nacre_("volume", "create").out.strip()) == 64
    nacre_("create", "--name", "box1", "-v", "data:/data:nocopy", "box")
    assert nacre_("volume", "ls", "-q", "-f", "name=data").out == "data\n"
    assert nacre_("volume", "ls", "-f", "dangling=false", "--format", "{{.Name}} {{.Driver}} {{.Links}}").out == "data local 1\n"
    assert nacre_("volume", "ls").out.splitlines()[0].split() == ["DRIVER", "VOLUME", "NAME"]
    assert json.loads(nacre_("volume", "inspect", "data").out)[0]["Name"] == "data"
    assert nacre_("volume", "rm", "data", code=1).err.startswith("nacre: ")
    nacre_("rm", "box1")
    assert nacre_("volume", "rm", "data").out == "data\n"
    assert nacre_("volume", "rm", "data", code=1).err.startswith("nacre: ")
    assert nacre_("volume", "rm", "-f", "data").out == "data\n"
    assert "driver 'nfs' is not supported" in nacre_("volume", "create", "-d", "nfs", "x", code=125).err


def test_networks(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Network(name="bridge", id="f" * 64, bridge="nacre0", subnet="10.88.0.0/16", gateway="10.88.0.1", created="2024-01-02T00:00:00Z")
    ]
    monkeypatch.setattr(engine.networks, "list", lambda: found)
    monkeypatch.setattr(engine.networks, "inspect", lambda name: {**found[0].to_data(), "containers": {}})
    assert nacre_("network", "ls").out.splitlines()[1].split() == ["ffffffffffff", "bridge", "bridge", "local"]
    assert nacre_("network", "ls", "-f", "driver=host").out.count("\n") == 1
    assert nacre_("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}} {{.Containers}}", "bridge").out == "10.88.0.0/16 map[]\n"


def test_version_and_info(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nacre_("version", "--format", "{{.Os}}").out == "linux\n"
    assert nacre_("version").out.startswith("Version: ")
    monkeypatch.setattr(engine, "info", lambda: {"MemTotal": 1 << 30, "IsolationLevels": ["process", "vm"], "KVM": {"Usable": False}})
    assert nacre_("info").out == "Isolation Levels: process vm\nTotal Memory: 1GiB\nKVM:\n  Usable: false\n"
    assert json.loads(nacre_("info", "-f", "json").out)["KVM"] == {"Usable": False}
    assert lines({"NCPU": 2, "KernelVersion": "6"}) == ["CPUs: 2", "Kernel Version: 6"]


def test_doctor(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        FakeContainer(name="overlay", status="ok", found="works", fix=""),
        FakeContainer(name="QEMU", status="warn", found="missing", fix="apt-get install qemu-system-x86"),
    ]
    monkeypatch.setattr(engine, "doctor", lambda: checks)
    assert nacre_("doctor").out.splitlines() == [
        "ok    overlay  works",
        "warn  QEMU     missing",
        "               -> apt-get install qemu-system-x86",
    ]
    checks[0].__dict__["status"] = "fail"
    assert json.loads(nacre_("doctor", "--format", "json", code=1).out)[0]["Status"] == "fail"


def test_df(nacre_: Nacre, engine: Engine, images: list[Image]) -> None:
    (Path(engine.volumes.create("data")["Mountpoint"]) / "file").write_bytes(b"x" * 10_000)
    shown = nacre_("system", "df").out.splitlines()
    assert shown[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert shown[1].split()[:3] == ["Images", "3", "0"]
    assert shown[3].split()[2:4] == ["1", "0"]
    assert shown[3].endswith("(100%)")


def test_explain(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ContainerSpec] = []

    def explain(spec: ContainerSpec) -> str:
        seen.append(spec)
        return "the plan"

    monkeypatch.setattr(engine, "explain", explain)
    assert nacre_("explain", "--isolation", "vm", "-p", "80:80", "box", "true").out == "the plan\n"
    assert (seen[0].isolation, seen[0].ports, seen[0].command) == (Level.VM, (PortMapping(container_port=80, host_port=80),), ("true",))


def test_load(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: Any, *, progress: Any = None) -> list[Image]:
        if source == "missing.tar":
            raise FileNotFoundError(2, "No such file or directory", source)
        for said in ("Loaded image: app:1", "Loaded image ID: 2"):
            progress(Progress(item="manifest", stage="done", message=said))
        # The first has one more name than the archive gave it.
        return [image(1, "docker.io/library/app:1", "localhost:5000/app:1"), image(2)]

    monkeypatch.setattr(engine.images, "load", load)
    loaded = "Loaded image: app:1\nLoaded image ID: 2\n"
    assert nacre_("load", "-i", "app.tar").out == loaded
    assert nacre_("load", "-q", "-i", "app.tar").out == loaded
    assert "open missing.tar: no such file" in nacre_("load", "-i", "missing.tar", code=125).err


def test_pull(nacre_: Nacre, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = image(1, "docker.io/library/ubuntu:latest")
    monkeypatch.setattr(engine.images, "pull", lambda *_, **__: made)
    assert nacre_("pull", "ubuntu").out == "Using default tag: latest\ndocker.io/library/ubuntu:latest\n"
    assert nacre_("pull", "-q", "ubuntu:latest").out == "docker.io/library/ubuntu:latest\n"
    assert "invalid reference format" in nacre_("pull", "Ubuntu", code=125).err
    assert "not supported" in nacre_("pull", "-a", "ubuntu", code=125).err
