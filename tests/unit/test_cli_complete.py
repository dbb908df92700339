"""What Tab offers, and that bash can use it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nacre.cli
from nacre.cli.commands.completion import SCRIPTS
from nacre.cli.complete import candidates
from nacre.cli.context import Context
from nacre.model.container import ContainerSpec
from nacre.testing.engine import fake_engine


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    with fake_engine(str(tmp_path / "root")) as (engine, _, _):
        yield Context(engine=engine)


def offered(ctx: Context, *words: str) -> list[str]:
    return [line.partition("\t")[0] for line in candidates(ctx, list(words))]


def test_commands(ctx: Context) -> None:
    assert {"run", "ps", "container", "volume"} <= set(offered(ctx, ""))
    assert offered(ctx, "res") == ["restart"]
    assert offered(ctx, "--ro") == ["--root"]
    assert offered(ctx, "--root", "/x", "-D", "expl") == ["explain"]
    assert offered(ctx, "image", "") == ["history", "inspect", "load", "ls", "prune", "pull", "rm", "tag"]
    assert offered(ctx, "container", "re") == ["rename", "restart"]
    assert offered(ctx, "nonsense", "") == []


def test_flags_and_their_values(ctx: Context) -> None:
    assert offered(ctx, "run", "--iso") == ["--isolation"]
    assert offered(ctx, "run", "--isolation", "") == ["default", "process", "vm"]
    assert offered(ctx, "run", "--isolation=v") == ["--isolation=vm"]
    assert offered(ctx, "run", "-e", "") == []
    assert offered(ctx, "run", "-v", "") == [":files"]
    assert offered(ctx, "load", "-i", "a") == [":files"]
    assert "--help" in offered(ctx, "ps", "--")


def test_names(ctx: Context) -> None:
    ctx.engine.containers.create(ContainerSpec(image="box", name="stopped"))
    ctx.engine.containers.run(ContainerSpec(image="box", name="going"))
    assert offered(ctx, "run", "b") == ["box:latest"]
    assert offered(ctx, "run", "-it", "--rm", "") == ["box:latest"]
    assert offered(ctx, "run", "box", "") == [":files"]
    assert offered(ctx, "run", "box", "--r") == [":files"]
    assert sorted(offered(ctx, "rm", "")) == ["going", "stopped"]
    assert offered(ctx, "rm", "going", "") == ["stopped"]
    assert offered(ctx, "stop", "") == ["going"]
    assert offered(ctx, "start", "") == ["stopped"]
    assert offered(ctx, "exec", "-it", "g") == ["going"]
    assert offered(ctx, "exec", "-u", "root", "") == ["going"]
    assert offered(ctx, "inspect", "b") == ["box:latest"]
    assert offered(ctx, "rename", "going", "new", "") == []
    assert offered(ctx, "container", "stop", "") == ["going"]
    assert sorted(offered(ctx, "cp", "")) == [":files", "going:", "stopped:"]
    assert offered(ctx, "completion", "z") == ["zsh"]


def test_a_completion_never_complains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no engine here")

    monkeypatch.setattr("nacre.engine.Engine", broken)
    assert nacre.cli.main(["__complete", "rm", ""]) == 1
    assert nacre.cli.main(["__complete"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "run\t" in captured.out


def test_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, script in SCRIPTS.items():
        assert nacre.cli.main(["completion", shell]) == 0
        assert capsys.readouterr().out == script
        if shutil.which(shell):
            assert subprocess.run([shell, "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert nacre.cli.main(["completion", "tcsh"]) == 125


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("nacre resta", ["restart"]),
        ("nacre run --isolation ", ["default", "process", "vm"]),
        # Readline replaces only what is behind the equals sign.
        ("nacre run --isolation=v", ["vm"]),
        ("nacre volume i", ["inspect"]),
        ("nacre load -i READ", ["README"]),
    ],
)
def test_bash(line: str, replies: list[str], tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash on this host")
    (tmp_path / "README").touch()
    program = tmp_path / "nacre"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom nacre.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    driver = (
        SCRIPTS["bash"]
        + '\nCOMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$\' \\t\\n"\\047><=;|&(:\'\n_nacre\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NACRE_ROOT": str(tmp_path / "root"), "NACRE_RUN": str(tmp_path / "run")}
    done = subprocess.run(["bash", "-c", driver, "bash", line], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stderr == ""
    assert done.stdout.split() == replies
