"""Progress on the screen."""

from __future__ import annotations

import io
import os
import pty
import re
import termios
import threading

import pytest

from nacre.cli.progress import Display, bar, line
from nacre.model.image import Progress


def step(item: str, stage: str, current: int = 0, total: int = 0, message: str = "") -> Progress:
    return Progress(item=item, stage=stage, current=current, total=total, message=message)


class Screen(io.StringIO):
    """A text stream that says it is a terminal of a given size."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        super().__init__()
        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (rows, columns))

    def fileno(self) -> int:
        return self._slave

    def close(self) -> None:
        os.close(self._master)
        os.close(self._slave)
        super().close()

    def lines(self) -> list[str]:
        """What a terminal would show: cursor up, carriage return, erase."""
        rows: list[str] = [""]
        at = 0
        for part in re.split(r"(\x1b\[\d*[A-Z]|\n|\r)", self.getvalue()):
            if part == "\n":
                at += 1
                rows += [""] * (at + 1 - len(rows))
            elif match := re.fullmatch(r"\x1b\[(\d+)A", part):
                at -= int(match[1])
                assert at >= 0
            elif part == "\x1b[J":
                del rows[at:]
                rows.append("")
            elif part == "\x1b[K":
                continue
            elif part != "\r" and part:
                rows[at] = part
        return [row for row in rows if row]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_bars() -> None:
    assert bar(0, 100, 10) == "[          ]"
    assert bar(50, 100, 10) == "[====>     ]"
    assert bar(100, 100, 10) == "[==========]"
    assert bar(200, 100, 10) == "[==========]"
    assert bar(1, 0, 10) == ""
    assert bar(1, 2, 3) == ""


def test_lines() -> None:
    assert line(step("abc", "downloading", 1_200_000, 30_000_000)).startswith("abc: Downloading  [=>  ")
    assert line(step("abc", "downloading", 1_200_000, 30_000_000)).endswith("]  1.2MB/30MB")
    assert line(step("abc", "downloading", 5000)) == "abc: Downloading  5kB"
    assert line(step("abc", "done")) == "abc: Pull complete"
    assert line(step("abc", "exists")) == "abc: Already exists"
    assert line(step("abc", "retrying", message="in 5 seconds")) == "abc: Retrying in 5 seconds"
    assert len(line(step("abc", "downloading", 1, 2), 40)) < 40
    assert len(line(step("a" * 100, "waiting"), 40)) < 40


def test_a_registry_cannot_command_the_terminal() -> None:
    assert "\x1b" not in line(step("abc", "retrying", message="\x1b[2Jgone"))


def test_plain_lines_where_there_is_no_terminal() -> None:
    output = io.StringIO()
    with Display(output) as display:
        display(step("aa", "waiting"))
        display(step("bb", "exists"))
        for current in range(5):
            display(step("aa", "downloading", current, 5))
        display(step("aa", "verifying"))
        display(step("aa", "extracting", 1, 5))
        display(step("aa", "done"))
    assert output.getvalue().splitlines() == ["aa: Pulling fs layer", "bb: Already exists", "aa: Verifying Checksum", "aa: Pull complete"]


def test_quiet() -> None:
    output = io.StringIO()
    with Display(output, quiet=True) as display:
        display(step("aa", "downloading", 1, 2))
    assert output.getvalue() == ""


def test_a_line_per_layer_redrawn_in_place(screen: Screen) -> None:
    with Display(screen) as display:
        display(step("aa", "waiting"))
        display(step("bb", "downloading", 1, 2))
        display(step("aa", "downloading", 1, 2))
        display(step("aa", "done"))
        display(step("bb", "downloading", 2, 2))
    shown = screen.lines()
    assert len(shown) == 2
    assert shown[0] == "aa: Pull complete"
    assert shown[1].startswith("bb: Downloading")
    # The last state is drawn even when it came too soon after the one before.
    assert shown[1].endswith("2B/2B")


def test_more_layers_than_the_screen_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(rows=6)
    with Display(screen) as display:
        for number in range(20):
            display(step(f"layer{number:02d}", "downloading", 1, 2))
        for number in range(20):
            display(step(f"layer{number:02d}", "done"))
    assert sorted(screen.lines()) == [f"layer{number:02d}: Pull complete" for number in range(20)]


def test_messages_go_above_the_layers(screen: Screen) -> None:
    with Display(screen) as display:
        display(step("aa", "downloading", 1, 2))
        display(step("manifest", "retrying", message="mirror down, trying the next one"))
    assert screen.lines()[0] == "mirror down, trying the next one"
    assert screen.lines()[1].startswith("aa: Downloading")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, screen: Screen) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Display(screen) as display:
        display(step("aa", "exists"))
    assert screen.getvalue() == "aa: Already exists\n"


def test_threads_do_not_mix_their_lines(screen: Screen) -> None:
    with Display(screen) as display:

        def load(name: str) -> None:
            for current in range(200):
                display(step(name, "downloading", current, 200))
            display(step(name, "done"))

        threads = [threading.Thread(target=load, args=(f"layer{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(screen.lines()) == [f"layer{number}: Pull complete" for number in range(4)]
