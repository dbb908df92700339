"""Log drivers: their options, the lines that they make, their receivers, and the helper that hands lines on."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre.engine import Engine, forward, helpers, logdrivers, sinks
from nacre.errors import HostError, InvalidArgument, UserError
from nacre.isolation.logs import LogRecord
from nacre.model.container import Container, ContainerSpec, ProcessSpec
from nacre.model.life import LogConfig
from nacre.model.plan import Spawn
from nacre.testing.engine import fake_engine
from nacre.wire import stem as wire

SECOND = 1_000_000_000
PLAN = Spawn(ops=(), log="log")


def config(driver: str = "", **options: str) -> LogConfig:
    return LogConfig(driver=driver, options={name.replace("_", "-"): value for name, value in options.items()})


def record(made: LogConfig, **fields: Any) -> Container:
    spec = ContainerSpec(image="box", log=made, labels={"team": "a", "color": "red"})
    process = ProcessSpec(args=("x",), env=("MODE=fast", "PATH=/bin"))
    return Container(id="c" * 64, name="web", spec=spec, image_id="sha256:" + "1" * 64, image_name="box", process=process, **fields)


def lines(*texts: str) -> list[sinks.Line]:
    return [sinks.Line((number + 1) * SECOND, 1, text.encode()) for number, text in enumerate(texts)]


# ---- options


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (config("gelf"), "no log driver named 'gelf'"),
        (config("none", tag="x"), "unknown log opt 'tag' for none log driver"),
        (config("local", syslog_address="udp://h"), "unknown log opt 'syslog-address'"),
        (config(mode="sometimes"), "logging mode 'sometimes'"),
        (config(max_buffer_size="1m"), "only supported with 'mode=non-blocking'"),
        (config(max_size="big"), "invalid value for max-size: 'big'"),
        (config(max_file="0"), "invalid value for max-file: '0'"),
        (config(max_file="256"), "invalid value for max-file"),
        (config("json-file", max_file="3"), "max-file cannot be specified without max-size"),
        (config("json-file", compress="true"), "compress cannot be true"),
        (config(compress="maybe"), "invalid value for compress"),
        (config("syslog", cache_max_file="x"), "invalid value for cache-max-file"),
        (config(labels_regex="("), "invalid value for labels-regex"),
        (config(tag="{{.Nonsense}}"), "{{.Nonsense}} is not known"),
        (config(tag="{{if .ID}}x{{end}}"), "invalid value for tag"),
        (config("syslog", syslog_address="gopher://h"), "invalid syslog address"),
        (config("syslog", syslog_address="tcp://h:99999"), "invalid syslog address"),
        (config("syslog", syslog_facility="local9"), "invalid syslog facility"),
        (config("syslog", syslog_format="json"), "Invalid syslog format"),
        (config("syslog", syslog_address="tcp://h:1", syslog_tls_ca_cert="/x"), "need an address with TLS"),
    ],
)
def test_what_cannot_be(made: LogConfig, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        logdrivers.check(made)


@pytest.mark.parametrize(
    ("made", "limits"),
    [
        (config(), (20 << 20, 5, False)),
        (config("local", max_size="-1"), (0, 5, False)),
        (config("local", max_size="10m", max_file="3", compress="true"), (10 << 20, 3, True)),
        (config("json-file"), (0, 1, False)),
        (config("json-file", max_size="1.5k", max_file="2", compress="true"), (1536, 2, False)),
        (config("syslog", cache_max_size="1m"), (1 << 20, 5, False)),
    ],
)
def test_what_stem_keeps(made: LogConfig, limits: tuple[int, int, bool]) -> None:
    logdrivers.check(made)
    plan = logdrivers.keep(PLAN, made)
    assert (plan.log, plan.log_limit, plan.log_files, plan.log_compress) == ("log", *limits)


def test_none_keeps_nothing() -> None:
    assert logdrivers.keep(PLAN, config("none")).log == ""
    for made in (config("none"), config("syslog", cache_disabled="true")):
        with pytest.raises(UserError, match="does not support reading"):
            logdrivers.require_readable(made)
    logdrivers.require_readable(config("syslog"))


def test_attributes_and_tag() -> None:
    assert logdrivers.attributes(record(config(labels="team,absent", env_regex="^MO"))) == {"team": "a", "MODE": "fast"}
    assert logdrivers.attributes(record(config(tag="{{.Name}}/{{ .ImageName }}"))) == {"tag": "web/box"}
    assert logdrivers.tag(record(config())) == "c" * 12
    assert logdrivers.tag(record(config(tag="{{.FullID}}{{.ImageID}}"))) == "c" * 64 + "1" * 12


def test_addresses() -> None:
    def address(text: str) -> tuple[str, str, int]:
        return logdrivers.address({"syslog-address": text})

    assert logdrivers.address({}) == ("local", "/dev/log", 0)
    assert address("unixgram:///run/x") == ("unixgram", "/run/x", 0)
    assert address("udp://host") == ("udp", "host", 514)
    assert address("tcp+tls://[::1]:99") == ("tcp+tls", "::1", 99)
    assert address("tcp+tls://host") == ("tcp+tls", "host", 6514)


def test_a_receiver_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logdrivers, "JOURNAL", str(tmp_path / "none"))
    with pytest.raises(HostError, match="journald is not running"):
        logdrivers.require(config("journald"))
    with pytest.raises(HostError, match="failed to initialize logging driver: unix:///"):
        logdrivers.require(config("syslog", syslog_address=f"unix://{tmp_path}/none"))
    logdrivers.require(config())


# ---- lines


def test_lines_are_cut_from_records() -> None:
    cutter = forward.Cutter()
    fed = [(1, 1, b"a\nb"), (2, 2, b"err\n"), (3, 1, b"c\n\nd")]
    made = [line for second, stream, data in fed for line in cutter.feed(LogRecord(time_ns=second, stream=stream, data=data))]
    assert [(line.time_ns, line.stream, line.data, line.partial) for line in made] == [
        (1, 1, b"a", False), (2, 2, b"err", False), (1, 1, b"bc", False), (3, 1, b"", False),
    ]  # fmt: skip
    assert cutter.rest == {1: (3, b"d")}
    assert [line.data for line in cutter.end()] == [b"d"]
    assert cutter.rest == {}


def test_long_lines_come_in_parts() -> None:
    cutter = forward.Cutter()
    long = b"x" * (2 * forward.LONGEST + 5)
    made = list(cutter.feed(LogRecord(time_ns=1, stream=1, data=long)))
    assert [(len(line.data), line.partial) for line in made] == [(forward.LONGEST, True)] * 2
    made += cutter.feed(LogRecord(time_ns=2, stream=1, data=b"\n"))
    assert b"".join(line.data for line in made) == long
    assert not made[-1].partial


# ---- receivers


def test_json_file(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with sinks.JsonFile(path, {"team": "a"}, (0, 1, False), {}) as sink:
        sink.send(sinks.Line(1_500_000_000, 2, b'say "\xff"\t\x01'))
        sink.send(sinks.Line(2 * SECOND, 1, b"part", partial=True))
        sink.flush()
    first, second = (json.loads(line) for line in Path(path).read_text().splitlines())
    assert first == {"log": 'say "\ufffd"\t\x01\n', "stream": "stderr", "attrs": {"team": "a"}, "time": "1970-01-01T00:00:01.500000000Z"}
    assert (second["log"], second["stream"]) == ("part", "stdout")


def test_json_file_of_a_killed_helper_is_continued_without_repetition(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with sinks.JsonFile(path, {}, (0, 1, False), {}) as sink:
        sink.send(lines("one")[0])
        state = sink.flush()
        sink.send(lines("two")[0])
    with sinks.JsonFile(path, {}, (0, 1, False), state) as sink:
        sink.send(lines("two")[0])
    assert [json.loads(line)["log"] for line in Path(path).read_text().splitlines()] == ["one\n", "two\n"]


@pytest.mark.parametrize(("count", "packed"), [(1, False), (3, False), (3, True)])
def test_json_file_is_rotated(tmp_path: Path, count: int, packed: bool) -> None:
    path = tmp_path / "log"
    with sinks.JsonFile(str(path), {}, (200, count, packed), {}) as sink:
        for line in lines(*(str(number) for number in range(30))):
            sink.send(line)
    ending = ".gz" if packed else ""
    names = ["log", *(f"log.{number}{ending}" for number in range(1, count))]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    kept = [(tmp_path / name).read_bytes() for name in names]
    texts = [gzip.decompress(data) if name.endswith(".gz") else data for name, data in zip(names, kept, strict=True)]
    assert all(len(text) <= 200 for text in texts)
    numbers = [int(json.loads(line)["log"]) for text in reversed(texts) for line in text.splitlines()]
    assert numbers == list(range(30 - len(numbers), 30))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "socket"))
        made.settimeout(30)
        yield made


def test_syslog_in_the_old_format(server: socket.socket, tmp_path: Path) -> None:
    options = {"syslog-address": f"unixgram://{tmp_path}/socket", "syslog-facility": "local1"}
    with sinks.Syslog(options, "web", 7) as sink:
        sink.send(sinks.Line(SECOND, 2, b"words"))
    name = re.escape(socket.gethostname())
    assert re.fullmatch(rf"<139>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d {name} web\[7\]: words", server.recv(9999).decode())


@pytest.mark.parametrize(("form", "moment"), [("rfc5424", "1970-01-01T00:00:01Z"), ("rfc5424micro", "1970-01-01T00:00:01.234567Z")])
def test_syslog_in_the_new_format(server: socket.socket, tmp_path: Path, form: str, moment: str) -> None:
    with sinks.Syslog({"syslog-address": f"unixgram://{tmp_path}/socket", "syslog-format": form}, "web", 7) as sink:
        sink.send(sinks.Line(1_234_567_890, 1, b"words"))
    assert server.recv(9999).decode() == f"<30>1 {moment} {socket.gethostname()} web 7 web - words"


def test_syslog_over_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logdrivers, "SYSLOG", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "log"))
        listener.listen()
        with sinks.Syslog({}, "web", 7) as sink:
            for line in lines("one", "two"):
                sink.send(line)
        connection = listener.accept()[0]
        with connection, connection.makefile("rb") as file:
            assert [text.rpartition(b": ")[2] for text in file] == [b"one\n", b"two\n"]


def test_journald(server: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logdrivers, "JOURNAL", str(tmp_path / "socket"))
    with sinks.Journald(record(config("journald")), {"team": "a", "1odd-key": "x"}) as sink:
        sink.send(sinks.Line(SECOND, 2, b"words"))
        sink.send(sinks.Line(SECOND, 1, b"x" * (1 << 20), partial=True))
    fields = dict(line.split("=", 1) for line in server.recv(9999).decode().splitlines())
    assert fields == {
        "CONTAINER_ID": "c" * 12, "CONTAINER_ID_FULL": "c" * 64, "CONTAINER_NAME": "web", "CONTAINER_TAG": "c" * 12,
        "SYSLOG_IDENTIFIER": "c" * 12, "IMAGE_NAME": "box", "TEAM": "a", "ODD_KEY": "x",
        "PRIORITY": "3", "SYSLOG_TIMESTAMP": "1970-01-01T00:00:01.000000000Z", "MESSAGE": "words",
    }  # fmt: skip
    _, [file], _, _ = socket.recv_fds(server, 10, 1)
    with open(file, "rb") as sealed:
        sealed.seek(0)
        entry = sealed.read()
    assert b"CONTAINER_PARTIAL_MESSAGE=true\n" in entry
    assert entry.endswith(b"MESSAGE=" + b"x" * (1 << 20) + b"\n")


# ---- the helper


class Receiver(sinks.Sink):
    """Keeps what it is sent; is not there while `down`."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.down = False
        self.most = 100

    def send(self, line: sinks.Line) -> None:
        if self.down or len(self.lines) >= self.most:
            raise ConnectionRefusedError
        self.lines.append(line.data)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Receiver:
    made = Receiver()
    monkeypatch.setattr(sinks, "make", lambda *_: made)
    return made


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the helpers that would have been started."""
    calls: list[str] = []
    monkeypatch.setattr(helpers, "launch", lambda layout, kind, identifier: calls.append(kind))
    return calls


@pytest.fixture
def engine(tmp_path: Path, launched: list[str]) -> Iterator[Engine]:
    with fake_engine(str(tmp_path)) as (made, _, _):
        yield made


def written(engine: Engine, made: Any, *pieces: bytes) -> None:
    with open(f"{engine.lifecycle.core.layout.container(made.id)}/log", "ab") as file:
        for piece in pieces:
            file.write(wire.LOG_HEAD.pack(SECOND, 1, len(piece)) + piece)


def box(**fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", **{"log": config("json-file"), **fields})


def test_it_goes_on_where_it_has_stopped(engine: Engine, receiver: Receiver) -> None:
    made = engine.containers.create(box())
    core = engine.lifecycle.core
    written(engine, made, b"one\ntw")
    forward.Forwarder(core, made.record).run_dry(last=False)
    written(engine, made, b"o\nthree")
    forward.Forwarder(core, made.record).run_dry(last=False)
    assert receiver.lines == [b"one", b"two"]
    directory = core.layout.container(made.id)
    os.rename(f"{directory}/log", f"{directory}/log.1")
    written(engine, made, b" and a half\nfour")
    forward.Forwarder(core, made.record).run_dry(last=True)
    forward.Forwarder(core, made.record).run_dry(last=True)
    assert receiver.lines == [b"one", b"two", b"three and a half", b"four"]


def test_nothing_is_lost_while_the_receiver_is_away(engine: Engine, receiver: Receiver) -> None:
    made = engine.containers.create(box())
    forwarder = forward.Forwarder(engine.lifecycle.core, made.record)
    written(engine, made, b"one\n")
    receiver.down = True
    with pytest.raises(OSError):
        forwarder.run_dry(last=False)
    receiver.down = False
    written(engine, made, b"two\n")
    forwarder.run_dry(last=False)
    assert receiver.lines == [b"one", b"two"]


def test_nothing_is_repeated_when_the_receiver_leaves(engine: Engine, receiver: Receiver) -> None:
    made = engine.containers.create(box())
    forwarder = forward.Forwarder(engine.lifecycle.core, made.record)
    written(engine, made, b"one\nbegun", b" and done\n", b"three\n")
    receiver.most = 2
    with pytest.raises(OSError):
        forwarder.run_dry(last=False)
    receiver.most = 10
    forward.Forwarder(engine.lifecycle.core, made.record).run_dry(last=False)
    assert receiver.lines == [b"one", b"begun and done", b"three"]


def test_a_bounded_buffer_keeps_the_end(engine: Engine, receiver: Receiver) -> None:
    made = engine.containers.create(box(log=config("json-file", mode="non-blocking", max_buffer_size="100")))
    written(engine, made, *(b"line %02d\n" % number for number in range(40)))
    forward.Forwarder(engine.lifecycle.core, made.record).run_dry(last=False)
    assert receiver.lines == [b"line %02d" % number for number in range(36, 40)]


def test_a_short_life_is_handed_on_too(engine: Engine, receiver: Receiver, launched: list[str]) -> None:
    made = engine.containers.run(box(command=("echo", "hello")))
    made.wait()
    assert launched == ["forward"]
    duty = forward.Duty(engine, made.id)
    helpers.serve(engine.lifecycle.core.layout, "forward", made.id, "", duty.due, duty.attend)
    assert receiver.lines == [b"hello"]


def test_it_gives_up_some_time_after_the_end(engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LAST_TRIES", 0.0)
    receiver.down = True
    made = engine.containers.run(box(command=("echo", "hello")))
    made.wait()
    duty = forward.Duty(engine, made.id)
    helpers.serve(engine.lifecycle.core.layout, "forward", made.id, "", duty.due, duty.attend)
    assert receiver.lines == []


def test_a_life_that_goes_on(engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine.containers.run(box(command=("sleep",)))
    written(engine, made, b"early\n")

    def woken(*_: Any) -> bool:
        written(engine, made, b"late\n")
        made.stop()
        return False

    monkeypatch.setattr(forward, "_woken", woken)
    duty = forward.Duty(engine, made.id)
    helpers.serve(engine.lifecycle.core.layout, "forward", made.id, "", duty.due, duty.attend)
    assert receiver.lines == [b"early", b"late"]


def test_inspect_tells_where_the_log_is(engine: Engine) -> None:
    made = engine.containers.create(box(log=config("json-file", max_size="1m")))
    shown = made.inspect()
    assert shown["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}
    assert shown["LogPath"].endswith(f"/containers/{made.id}/{made.id}-json.log")
    plain = engine.containers.create(ContainerSpec(image="box")).inspect()
    assert plain["HostConfig"]["LogConfig"] == {"Type": "local", "Config": {}}
    assert plain["LogPath"].endswith("/log")


def test_a_container_without_a_log(engine: Engine) -> None:
    made = engine.containers.run(box(command=("echo", "x"), log=config("none")))
    made.wait()
    assert not os.path.exists(f"{engine.lifecycle.core.layout.container(made.id)}/log")
    with pytest.raises(UserError, match="does not support reading"):
        made.logs()
