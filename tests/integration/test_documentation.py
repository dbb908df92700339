"""The documentation is true: every command in a ``console`` block is run as a reader would, and prints what the page shows.

What differs from run to run and from host to host is brought to one form on both sides: identifiers, digests, times, sizes, versions,
column widths, mount options of newer kernels. A line ``...`` in a page stands for any number of lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Cli, Directories, nothing_left, vm_lacks

from loopback_registry import Registry

PAGES = ("README.md", "README.zh-CN.md", "docs/user-guide.md")
IMAGES = {"library/ubuntu": "debian", "library/debian": "debian", "library/nginx": "nginx", "library/busybox": "busybox"}

SAME = (
    (r"\b[0-9a-f]{64}\b", "<id>"),
    (r"\b[0-9a-f]{12}\b", "<short>"),
    (r"\b\d+\.\d+\.\d+[\w.+-]*", "<version>"),
    (r"(Less than a|About an?|\d+) (second|minute|hour|day|week|month|year)s?", "<time>"),
    (r"\b\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+\d{4}", "<time>"),
    (r"\b\d\d:\d\d(:\d\d)?\b", "<time>"),
    (r"\b\d+(\.\d+)? ?([kKMG]i?)?B\b|\b\d+(\.\d+)?[KMGT]\b", "<size>"),
    (r"\b\d+ (vd[a-z]\d?)$", r"<size> \1"),
    (r",uuid=on\b", ""),
    (r"\b\d+\.\d+%", "<percent>"),
    (r"127\.0\.0\.1:\d{5}", "<registry>"),
    (r"\b10\.\d+\.\d+\.\d+|\b172\.\d+\.\d+\.\d+", "<address>"),
    (r"\s+", " "),
)


def blocks(page: Path) -> Iterator[list[tuple[str, list[str]]]]:
    """The console blocks of a page: (command, expected lines) in order."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        steps: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            elif line and not line.startswith("# "):
                steps[-1][1].append(line)
        yield steps


def form(line: str) -> str:
    for pattern, word in SAME:
        line = re.sub(pattern, word, line)
    return line.strip()


def matches(expected: list[str], seen: list[str]) -> bool:
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(form(line)) + "\n" for line in expected)
    return re.fullmatch(pattern, "".join(form(line) + "\n" for line in seen if line.strip())) is not None


@pytest.fixture
def shell(registry: Registry, layouts: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    """A shell with nacre on its PATH, a fresh engine, and the demo's registry in the place of Docker Hub.

    Answers with what the terminal would show.
    """
    if not shutil.which("mmdebstrap"):
        pytest.skip("no test images; run: apt-get install mmdebstrap")
    for name, image in IMAGES.items():
        registry.push(layouts(image), f"{name}:latest")
    directories = Directories()
    cli = Cli(directories)
    program = tmp_path / "bin" / "nacre"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in cli.command) + ' "$@"\n')
    program.chmod(0o755)
    environment = {**cli.environment, **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "NACRE_BRIDGE": "nacredoc0"}

    def run(command: str) -> list[str]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, timeout=180, text=True, **streams)  # type: ignore[call-overload]
        return str(done.stdout).splitlines()

    try:
        yield run
        assert nothing_left(directories), "a page leaves containers behind"
    finally:
        run("nacre rm -f $(nacre ps -aq)")
        directories.remove()


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_what_the_commands_print(page: str, shell: Callable[[str], list[str]]) -> None:
    text = (ROOT / page).read_text()
    if "vm" in text and (reason := vm_lacks()):
        pytest.skip(reason)
    wrong = []
    for steps in blocks(ROOT / page):
        for command, expected in steps:
            seen = shell(command)
            if not matches(expected, seen):
                wrong.append("\n".join([f"$ {command}", *(f"- {form(line)}" for line in expected), *(f"+ {form(line)}" for line in seen)]))
    assert not wrong, f"{page} does not show what happens:\n\n" + "\n\n".join(wrong)


def test_pages_have_console_blocks() -> None:
    assert all(list(blocks(ROOT / page)) for page in PAGES)


def test_the_chinese_readme_shows_the_same_commands() -> None:
    english, chinese = ([[command for command, _ in steps] for steps in blocks(ROOT / name)] for name in ("README.md", "README.zh-CN.md"))
    assert english == chinese


def test_links_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"
