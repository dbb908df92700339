"""The pages of docs/ are true: their console blocks print what they show, and the examples of the SDK page run.

Console blocks are compared as `test_documentation` compares those of the README. A ``python`` block of docs/sdk.md is a program of
its own; a ``text`` block after it is what it prints. All of them run at both levels: the level is the default of the specs in them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Cli, Directories, nothing_left, vm_lacks
from test_documentation import blocks, form, matches

import nacre
from loopback_registry import Registry

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "user-guide.md" and list(blocks(path)))
SDK = ROOT / "docs" / "sdk.md"
BRIDGE = "nacredoc1"


def examples(page: Path) -> list[tuple[int, str, list[str] | None]]:
    """The Python programs of a page: (line, source, lines that it prints or None when the page does not say)."""
    text = page.read_text()
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 2
        found.append((line, match[1], match[2].splitlines() if match[2] is not None else None))
    return found


class Shell:
    """A shell with nacre on its PATH and an engine of its own, which answers with what the terminal would show.

    The engine's directories and bridge appear under their usual names.
    """

    def __init__(self, work: Path) -> None:
        self.directories = Directories()
        cli = Cli(self.directories)
        program = work / "bin" / "nacre"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in cli.command) + ' "$@"\n')
        program.chmod(0o755)
        # skopeo has no variable for this; where there is no signature policy, it is to do without.
        skopeo = program.with_name("skopeo")
        skopeo.write_text(
            f'#!/bin/sh\nexec {shutil.which("skopeo")} --insecure-policy --registries-conf "$CONTAINERS_REGISTRIES_CONF" "$@"\n'
        )
        skopeo.chmod(0o755)
        self.work = work
        path = f"{program.parent}:{os.environ['PATH']}"
        self.environment = {**cli.environment, **os.environ, "PATH": path, "NACRE_BRIDGE": BRIDGE, "LC_ALL": "C.UTF-8"}

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Names as the pages have them, and what they are here."""
        places = (("/var/lib/nacre", self.directories.root), ("/run/nacre", self.directories.run))
        return (*places, ("ip nacre ", f"ip nacre-{BRIDGE} "), ("nacre0", BRIDGE))

    def run(self, command: str) -> list[str]:
        for usual, here in self.names:
            command = command.replace(usual, here)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(["bash", "-c", command], cwd=self.work, env=self.environment, timeout=180, text=True, **streams)  # type: ignore[call-overload]
        shown = str(done.stdout)
        for usual, here in self.names:
            shown = shown.replace(here, usual)
        return shown.splitlines()

    def close(self) -> None:
        self.run("nacre rm -f $(nacre ps -aq)")
        self.directories.remove()


@pytest.fixture(scope="module")
def hub(registry: Registry, layouts: Callable[[str], Path]) -> Registry:
    """The registry in the place of Docker Hub, with the image that the pages use."""
    registry.push(layouts("busybox"), "library/busybox:latest")
    return registry


@pytest.fixture
def shell(hub: Registry, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    try:
        yield made
        assert nothing_left(made.directories), "the page leaves containers behind"
    finally:
        made.close()


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_what_the_commands_print(page: str, shell: Shell) -> None:
    if "vm" in (ROOT / "docs" / page).read_text() and (reason := vm_lacks()):
        pytest.skip(reason)
    wrong = []
    for steps in blocks(ROOT / "docs" / page):
        for command, expected in steps:
            seen = shell.run(command)
            if not matches(expected, seen):
                wrong.append("\n".join([f"$ {command}", *(f"- {form(line)}" for line in expected), *(f"+ {form(line)}" for line in seen)]))
    assert not wrong, f"docs/{page} does not show what happens:\n\n" + "\n\n".join(wrong)


@pytest.fixture
def sdk(hub: Registry, directories: Directories, engine: nacre.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a program: a default engine that is the session's, an image called busybox, an empty directory."""
    monkeypatch.setenv("NACRE_ROOT", directories.root)
    monkeypatch.setenv("NACRE_RUN", directories.run)
    monkeypatch.chdir(tmp_path)
    engine.images.pull("busybox")


@pytest.mark.parametrize(("line", "source", "expected"), examples(SDK), ids=lambda value: str(value) if isinstance(value, int) else "")
def test_sdk_examples(
    line: int, source: str, expected: list[str] | None, level: nacre.Level, sdk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "Level.VM" in source and (reason := vm_lacks()):
        pytest.skip(reason)
    monkeypatch.setitem(nacre.ContainerSpec._defaults, "isolation", level)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile("\n" * (line - 1) + source, str(SDK), "exec"), {"__name__": "__main__"})
    if expected is not None:
        assert matches(expected, said.getvalue().splitlines()), said.getvalue()


def test_the_sdk_page_names_everything_public() -> None:
    text = SDK.read_text()
    missing = [name for name in nacre.__all__ if f"`{name}" not in text and f"nacre.{name}" not in text]
    verbs = {
        cls: [name for name in vars(cls) if not name.startswith("_")]
        for cls in (nacre.Engine, *(getattr(nacre.engine, name) for name in nacre.engine.__all__ if name not in ("Check", "LogRecord")))
    }
    missing += [f"{cls.__name__}.{name}" for cls, names in verbs.items() for name in names if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"docs/sdk.md does not mention {', '.join(sorted(missing))}"
