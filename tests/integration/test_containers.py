"""The verbs over containers, every one at every level: the level changes nothing that a caller can see but the kernel."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacre import ContainerSpec, Engine, Level, MountSpec, Resources, State, Ulimit
from nacre.errors import CommandNotExecutable, CommandNotFound, Conflict, InvalidArgument, NacreError, NotFound

VM_MEMORY = 128 << 20


@pytest.fixture
def spec(image: str, level: Level) -> Callable[..., ContainerSpec]:
    """A spec of the guest program at the test's level, without a network unless asked for."""

    def make(*command: str, **fields: Any) -> ContainerSpec:
        fields.setdefault("network", "none")
        return ContainerSpec(image=image, command=command, isolation=level, **fields)

    return make


def output(engine: Engine, spec: ContainerSpec, data: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Run attached to its end: exit code, standard output, standard error."""
    stream = engine.containers.create(spec).start(attach=True)
    assert stream is not None
    return stream.communicate(data)


def test_output_errors_and_code_are_kept_apart(engine: Engine, spec: Any) -> None:
    assert output(engine, spec("both", "to out", "to err")) == (0, b"to out\n", b"to err\n")
    assert output(engine, spec("exit", "42"))[0] == 42


def test_input_ends_and_nothing_is_lost(engine: Engine, spec: Any) -> None:
    data = os.urandom(3 << 20)
    code, back, errors = output(engine, spec("cat", open_stdin=True), data)
    assert (code, errors) == (0, b"")
    assert back == data


def test_without_stdin_input_is_empty(engine: Engine, spec: Any) -> None:
    assert output(engine, spec("cat")) == (0, b"", b"")


def test_a_terminal(engine: Engine, spec: Any) -> None:
    made = engine.containers.create(spec("isatty", tty=True))
    stream = made.start(attach=True, rows=33, columns=101)
    assert stream is not None
    code, shown, errors = stream.communicate()
    assert code == 0
    assert errors == b""
    assert b"\r\n" in shown
    made = engine.containers.create(spec("winsize", tty=True))
    stream = made.start(attach=True, rows=33, columns=101)
    assert stream is not None
    assert b"33" in (shown := stream.communicate()[1])
    assert b"101" in shown


def test_detached_then_exec_then_stop(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("trap-term", "7", tty=True, name="machine"))
    assert made.state is State.RUNNING
    code, listing, errors = made.exec(["ls", "/"]).communicate()
    assert (code, errors) == (0, b"")
    assert {"proc", "sys", "dev"} <= set(listing.decode().split())
    assert made.exec(["exit", "9"]).wait() == 9
    assert made.exec(["cat"], stdin=True).communicate(b"through exec") == (0, b"through exec", b"")
    code, shown, _ = made.exec(["isatty"], tty=True, rows=20, columns=60).communicate()
    assert code == 0
    assert shown
    made.stop(10)
    assert made.state is State.EXITED
    assert made.refresh().record.exit_code == 7


def test_start_again_keeps_what_was_written(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("trap-term"))
    assert made.exec(["write", "/kept", "still here"]).wait() == 0
    made.stop()
    made.start()
    assert made.exec(["cat", "/kept"]).communicate()[1].strip() == b"still here"
    made.restart()
    assert made.exec(["cat", "/kept"]).communicate()[1].strip() == b"still here"


def test_stop_kills_what_does_not_listen(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("ignore-term"))
    made.stop(1)
    assert made.refresh().record.exit_code == 137


def test_commands_that_cannot_run(engine: Engine, spec: Any) -> None:
    with pytest.raises(CommandNotFound, match="nowhere"):
        engine.containers.create(spec("x", entrypoint=("nowhere",))).start()
    made = engine.containers.create(spec("x", entrypoint=("/etc",)))
    with pytest.raises((CommandNotExecutable, CommandNotFound)):
        made.start()
    assert made.refresh().state is State.CREATED or made.record.exit_code in (126, 127)
    running = engine.containers.run(spec("sleep"))
    with pytest.raises(CommandNotFound):
        running.exec(["nowhere"])
    with pytest.raises(NotFound, match="unable to find user"):
        running.exec(["true"], user="nobody-at-all")


def test_it_is_alone(engine: Engine, spec: Any) -> None:
    code, shown, _ = output(engine, spec("pid"))
    assert code == 0
    assert shown.split()[0] == b"1"
    code, shown, _ = output(engine, spec("uname", "-n", hostname="pearl"))
    assert shown.strip() == b"pearl"
    _, interfaces, _ = output(engine, spec("ls", "/sys/class/net"))
    assert interfaces.split() == [b"lo"]


def test_the_kernel_is_the_only_difference(engine: Engine, spec: Any, level: Level) -> None:
    _, release, _ = output(engine, spec("uname", "-r"))
    own = os.uname().release.encode()
    assert (release.strip() == own) is (level is Level.PROCESS)


def test_privileges_are_dropped(engine: Engine, spec: Any) -> None:
    _, shown, _ = output(engine, spec("caps"))
    words = dict(line.split(None, 1) for line in shown.decode().splitlines() if ":" in line)
    bounding = int(words["CapBnd:"], 16)
    assert bounding & 1 << 21 == 0, "CAP_SYS_ADMIN"
    assert bounding & 1 << 0, "CAP_CHOWN"
    assert int(words["CapEff:"], 16) == bounding
    assert words["Seccomp:"].strip() == "2"
    _, shown, _ = output(engine, spec("caps", user="1000:1000"))
    words = dict(line.split(None, 1) for line in shown.decode().splitlines() if ":" in line)
    assert int(words["CapEff:"], 16) == 0
    _, shown, _ = output(engine, spec("caps", privileged=True))
    words = dict(line.split(None, 1) for line in shown.decode().splitlines() if ":" in line)
    assert int(words["CapBnd:"], 16) & 1 << 21
    assert words["Seccomp:"].strip() == "0"


def test_kernel_interfaces_are_covered(engine: Engine, spec: Any) -> None:
    assert output(engine, spec("cat", "/proc/kcore"))[1] == b""
    assert output(engine, spec("write", "/proc/sys/kernel/hostname", "x"))[0] != 0
    assert output(engine, spec("write", "/sys/kernel/mm/ksm/run", "0"))[0] != 0
    assert output(engine, spec("mount", "tmpfs", "none", "/tmp"))[0] != 0


def test_environment_user_and_directory(engine: Engine, spec: Any) -> None:
    _, shown, _ = output(engine, spec("env", env=("A=1", "B=two words")))
    assert {"A=1", "B=two words", "HOME=/root"} <= set(shown.decode().splitlines())
    assert output(engine, spec("pwd", working_dir="/made/for/it"))[1].strip() == b"/made/for/it"
    _, shown, _ = output(engine, spec("id", user="1234:5678", groups=("42",)))
    assert b"1234" in shown
    assert b"5678" in shown
    assert b"42" in shown


def test_limits(engine: Engine, spec: Any) -> None:
    _, shown, _ = output(engine, spec("limits", ulimits=(Ulimit(name="nofile", soft=123, hard=456),)))
    assert b"123" in shown
    made = engine.containers.run(spec("alloc", "64", resources=Resources(memory=16 << 20)))
    assert made.wait() == 137
    assert made.refresh().record.oom_killed
    _, unlimited, _ = output(engine, spec("fork-bomb", "64"))
    _, shown, _ = output(engine, spec("fork-bomb", "64", resources=Resources(pids=8)))
    assert shown != unlimited


def test_memory_that_no_container_can_live_in(engine: Engine, spec: Any) -> None:
    with pytest.raises(InvalidArgument, match="6MB"):
        engine.containers.create(spec("true", resources=Resources(memory=4 << 20)))


def test_bind_mounts(engine: Engine, spec: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    both = (
        MountSpec(kind="bind", source=str(tmp_path), target="/data"),
        MountSpec(kind="bind", source=str(tmp_path / "file"), target="/etc/one-file", read_only=True),
        MountSpec(kind="bind", source=str(tmp_path), target="/frozen", read_only=True),
    )
    made = engine.containers.run(spec("sleep", mounts=both))
    assert made.exec(["cat", "/data/file"]).communicate()[1] == b"from the host\n"
    assert made.exec(["cat", "/etc/one-file"]).communicate()[1] == b"from the host\n"
    assert made.exec(["write", "/data/new", "from inside"]).wait() == 0
    assert made.exec(["chown", "1000", "1001", "/data/new"]).wait() == 0
    assert (tmp_path / "new").read_text().strip() == "from inside"
    assert ((tmp_path / "new").stat().st_uid, (tmp_path / "new").stat().st_gid) == (1000, 1001)
    assert made.exec(["write", "/frozen/new", "no"]).wait() != 0
    assert made.exec(["write", "/etc/one-file", "no"]).wait() != 0
    (tmp_path / "later").write_text("seen at once")
    assert made.exec(["cat", "/data/later"]).communicate()[1] == b"seen at once"


def test_volumes_outlive_containers(engine: Engine, spec: Any) -> None:
    kept = MountSpec(kind="volume", source="shells", target="/keep")
    assert output(engine, spec("write", "/keep/pearl", "round", mounts=(kept,)))[0] == 0
    assert output(engine, spec("cat", "/keep/pearl", mounts=(kept,)))[1].strip() == b"round"
    with pytest.raises(Conflict):
        engine.volumes.remove("shells")
    for container in engine.containers.list(all=True):
        container.remove()
    engine.volumes.remove("shells")
    with pytest.raises(NotFound):
        engine.volumes.inspect("shells")


def test_tmpfs_and_read_only_root(engine: Engine, spec: Any) -> None:
    mounts = (MountSpec(kind="tmpfs", target="/scratch", options=("size=1m",)),)
    made = engine.containers.run(spec("sleep", read_only=True, mounts=mounts))
    assert made.exec(["write", "/nope", "x"]).wait() != 0
    assert made.exec(["write", "/scratch/yes", "x"]).wait() == 0
    assert made.exec(["fill", "/scratch/big", "4"]).wait() != 0


def test_logs(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("both", "one", "two"))
    made.wait()
    pieces = {(record.stream, record.data) for record in made.logs()}
    assert pieces == {(1, b"one\n"), (2, b"two\n")}


def test_logs_follow_until_the_end(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("ticks", "5", "20"))
    followed = b"".join(record.data for record in made.logs(follow=True))
    assert followed == b"".join(record.data for record in made.logs())
    assert followed.count(b"\n") >= 5


def test_attach_later_and_detach(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("cat", open_stdin=True))
    first = made.attach()
    first.write(b"hello\n")
    assert first.read(None) == [(1, b"hello\n")]
    first.close()
    assert made.state is State.RUNNING
    second = made.attach()
    assert second.communicate(b"bye\n") == (0, b"bye\n", b"")


def test_pause(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("ticks", "100000", "5"))
    made.pause()
    assert made.state is State.PAUSED
    with pytest.raises(Conflict):
        made.exec(["true"])
    with pytest.raises(Conflict):
        made.pause()
    made.unpause()
    assert made.state is State.RUNNING
    assert made.exec(["true"]).wait() == 0
    made.pause()
    made.remove(force=True)


def test_top_and_stats(engine: Engine, spec: Any) -> None:
    made = engine.containers.run(spec("sleep"))
    processes = made.top()
    assert processes[0]["pid"] == 1
    assert "sleep" in processes[0]["command"]
    sample = made.stats()
    assert sample.memory > 0
    assert sample.cpu > 0
    assert sample.pids >= 1


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_files_go_in_and_out(engine: Engine, spec: Any, running: bool) -> None:
    made = engine.containers.run(spec("sleep"))
    if not running:
        made.kill()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("sub/pearl.txt")
        member.size, member.mode, member.uid, member.gid = 5, 0o640, 10, 20
        archive.addfile(member, io.BytesIO(b"round"))
        link = tarfile.TarInfo("sub/link")
        link.type, link.linkname = tarfile.SYMTYPE, "pearl.txt"
        archive.addfile(link)
    buffer.seek(0)
    made.put_archive("/", buffer)
    assert made.stat_path("/sub/pearl.txt")["size"] == 5
    with made.get_archive("/sub") as reader:
        data = reader.read(-1)
    with tarfile.open(fileobj=io.BytesIO(data)) as back:
        names = {member.name: member for member in back.getmembers()}
    assert names["sub/pearl.txt"].mode & 0o777 == 0o640
    assert (names["sub/pearl.txt"].uid, names["sub/pearl.txt"].gid) == (10, 20)
    assert names["sub/link"].linkname == "pearl.txt"
    with pytest.raises(NotFound):
        made.stat_path("/not/there")


def test_an_archive_cannot_leave_the_container(engine: Engine, spec: Any, tmp_path: Path) -> None:
    made = engine.containers.run(spec("sleep"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("way-out")
        link.type, link.linkname = tarfile.SYMTYPE, "/../../../../../../.." + str(tmp_path)
        archive.addfile(link)
        member = tarfile.TarInfo("way-out/escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    buffer.seek(0)
    with contextlib.suppress(InvalidArgument):
        made.put_archive("/", buffer)
    assert list(tmp_path.iterdir()) == []


def test_two_callers_at_once(engine: Engine, spec: Any) -> None:
    made = engine.containers.create(spec("sleep"))
    results: list[str] = []

    def work() -> None:
        with Engine(engine._core.layout.root, engine._core.layout.run) as mine:
            try:
                mine.containers.get(made.id).start()
                results.append("started")
            except Conflict:
                results.append("refused")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "started" in results
    assert len(results) == 4
    assert made.refresh().state is State.RUNNING
    assert made.exec(["true"]).wait() == 0


def test_user_namespace_on_request(engine: Engine, image: str) -> None:
    made = engine.containers.create(ContainerSpec(image=image, command=("cat", "/proc/self/uid_map"), userns="private", network="none"))
    stream = made.start(attach=True)
    assert stream is not None
    code, shown, errors = stream.communicate()
    assert (code, errors) == (0, b"")
    inside, outside, count = (int(word) for word in shown.split())
    assert inside == 0
    assert outside >= 65536
    assert count == 65536
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",), userns="private", network="none"))
    assert made.exec(["write", "/mine", "x"]).wait() == 0
    outside = int(made.exec(["cat", "/proc/self/uid_map"]).communicate()[1].split()[1])
    _, shown, _ = made.exec(["stat", "/mine"]).communicate()
    upper = Path(engine._core.layout.container(made.id)) / "upper/upper/mine"
    assert upper.stat().st_uid == outside, "the container's root is nobody on the host"
    assert b" 0 " in shown or b"uid=0" in shown or b"0:0" in shown, shown


def test_what_is_thrown_away_need_not_reach_the_disk(engine: Engine, image: str) -> None:
    def overlay(**fields: Any) -> bytes:
        code, mounts, errors = output(engine, ContainerSpec(image=image, command=("cat", "/proc/mounts"), network="none", **fields))
        assert (code, errors) == (0, b"")
        return next(line for line in mounts.splitlines() if line.split()[1] == b"/")

    if not overlay().startswith(b"overlay "):
        pytest.skip("this host does not use overlayfs")
    assert b"volatile" not in overlay(), "others survive a power cut"
    assert b"volatile" in overlay(auto_remove=True)


def test_a_container_to_be_thrown_away_can_be_started_again(engine: Engine, image: str) -> None:
    made = engine.containers.create(
        ContainerSpec(image=image, command=("exit", "3"), network="none", auto_remove=True, working_dir="/dev/null/x")
    )
    for _ in range(2):  # the root file system is there by the time that this fails
        with pytest.raises(NacreError, match="/dev/null/x"):
            made.start()
    made.remove()
