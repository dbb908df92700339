"""Every `nacre` command that a page names exists, with the flags that it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nacre.cli import registry
from nacre.cli.flags import Flag
from nacre.cli.help import GLOBAL_FLAGS

ROOT = Path(__file__).resolve().parent.parent.parent
# The law of the house also speaks of rooms that are planned.
PLANNED = {"docs/architecture.md": ("serve",)}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
    if path.exists()
)
_END = re.compile(r"[|;&<>`)]|\$\(|\s#\s")


def code(text: str) -> Iterator[str]:
    """The code of a page, line by line: fenced and indented blocks (of consoles, what is typed), and spans in the text."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if kind != "console" or line.startswith("$ "):
                yield line.removeprefix("$ ")
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (line.strip() for line in re.findall(r"^    (.*)", rest, re.MULTILINE))
    yield from re.findall(r"`([^`\n]+)`", rest)


def commands(line: str) -> Iterator[list[str]]:
    """The words behind each `nacre` that starts a command in a line of shell."""
    for match in re.finditer(r"(?:^|[;|&(`]|\b(?:echo|time|sudo)\s)\s*(?:\.venv/bin/)?nacre\s+(.*)", line):
        text = match[1]
        yield from commands(text)
        text = _END.split(text)[0]
        try:
            yield shlex.split(text)
        except ValueError:  # a quote that the cut has opened
            yield text.split()


def flag_of(word: str, flags: tuple[Flag, ...]) -> Flag | None:
    name = word.partition("=")[0]
    if name.startswith("--"):
        return next((flag for flag in flags if name[2:] in (flag.name, *flag.aliases)), None)
    return next((flag for flag in flags if flag.short and flag.short == word[-1]), None)


def unknown(words: list[str]) -> str:
    """What there is not in a command line, "" when it is all there."""
    while words and words[0].startswith("-"):
        flag = flag_of(words[0], GLOBAL_FLAGS)
        if flag is None:
            return words[0]
        words = words[1 if flag.kind == "bool" or "=" in words[0] else 2 :]
    if not words or not re.fullmatch(r"[a-z]+", words[0]):
        return ""  # a placeholder
    name, rest = registry.resolve(words)
    if not name:
        return " ".join(words[:2])
    if name in registry.GROUPS:
        return ""
    command = registry.load(name)
    position = 0
    while position < len(rest) and rest[position] != "--":
        word, position = rest[position], position + 1
        if word.startswith("--") and word != "--help":
            flag = flag_of(word, command.flags)
            if flag is None:
                return f"{name} {word}"
            position += 0 if flag.kind == "bool" or "=" in word else 1
        elif len(word) > 1 and word.startswith("-"):
            flag = flag_of(word, command.flags)
            if flag is None:
                return f"{name} {word}"
            position += 0 if flag.kind == "bool" else 1
        elif not word.startswith("-") and not command.interspersed:
            break
    return ""


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    found = [words for line in code((ROOT / page).read_text()) for words in commands(line)]
    wrong = {problem: words for words in found if (problem := unknown(words)) and words[0] not in PLANNED.get(page, ())}
    assert not wrong, f"{page} names what does not exist: {wrong}"


def test_the_pages_name_commands() -> None:
    names = {registry.resolve(words)[0] for page in PAGES for line in code((ROOT / page).read_text()) for words in commands(line) if words}
    assert {"run", "exec", "pull", "doctor", "volume rm", "network ls"} <= names


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nacre run -it --rm ubuntu bash --login", ""),
        ("nacre frobnicate", "frobnicate"),
        ("nacre volume frob x", "volume frob"),
        ("nacre run --no-such-flag ubuntu", "run --no-such-flag"),
        ("nacre ps --format x --no-such", "ps --no-such"),
        ("nacre --root /x ps -q", ""),
        ("nacre --nothing ps", "--nothing"),
        ("nacre COMMAND", ""),
        ("nacre rm -f $(nacre ps --nope)", "ps --nope"),
        ("echo hello | nacre run --rm -i ubuntu cat; nacre nope", "nope"),
    ],
)
def test_the_check_itself(line: str, problem: str) -> None:
    assert [found for words in commands(line) if (found := unknown(words))] == ([problem] if problem else [])
