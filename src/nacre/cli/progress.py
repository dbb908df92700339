"""Progress of a download on the screen: on a terminal one line per layer, redrawn in place; elsewhere one line per change of stage."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TextIO

from nacre.cli.context import is_terminal, printable
from nacre.cli.units import human_size
from nacre.model.image import Progress

INTERVAL = 0.1  # seconds between two redraws
BAR = 50

# Stage -> the words Docker has for it.
WORDS = {
    "waiting": "Waiting",
    "downloading": "Downloading",
    "verifying": "Verifying Checksum",
    "downloaded": "Download complete",
    "extracting": "Extracting",
    "retrying": "Retrying",
    "exists": "Already exists",
    "done": "Pull complete",
}
FINAL = ("exists", "done")


def bar(current: int, total: int, room: int = BAR) -> str:
    """``[=====>     ]``; "" without a total or without room."""
    if total <= 0 or room < 8:
        return ""
    filled = min(room, room * current // total)
    arrow = "=" * filled if filled == room else "=" * max(0, filled - 1) + ">" * (filled > 0)
    return f"[{arrow:<{room}}]"


def line(step: Progress, columns: int = 0) -> str:
    """One layer's line, cut to the terminal's width (0 = as long as it is)."""
    text = f"{step.item}: {WORDS.get(step.stage, step.stage.capitalize())}"
    if step.stage in ("downloading", "extracting") and (step.total or step.current):
        amount = f"{human_size(step.current)}/{human_size(step.total)}" if step.total else human_size(step.current)
        drawn = bar(step.current, step.total, min(BAR, columns - len(text) - len(amount) - 5) if columns else BAR)
        text = f"{text}  {drawn + '  ' if drawn else ''}{amount}"
    elif step.message and step.stage not in FINAL:
        text = f"{text} {step.message}"
    text = printable(text)
    return text[: columns - 1] if columns else text


class Display:
    """A progress callback; use it as a context manager, so that the last state is drawn and the cursor is where it belongs.

    Called from several threads at once. quiet: draws nothing. Items named "manifest" are messages, not layers.
    """

    def __init__(self, output: TextIO, *, quiet: bool = False) -> None:
        self._output = output
        self._quiet = quiet
        self._lock = threading.Lock()
        self._steps: dict[str, Progress] = {}
        self._drawn = 0
        self._last = 0.0
        try:
            self._live = not quiet and is_terminal(output.fileno()) and os.environ.get("TERM", "") != "dumb"
        except (OSError, ValueError):
            self._live = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._live:
                self._draw()

    def __call__(self, step: Progress) -> None:
        """Takes one step."""
        if self._quiet:
            return
        with self._lock:
            if step.item == "manifest":
                self._message(step)
                return
            before = self._steps.get(step.item)
            self._steps[step.item] = step
            changed = before is None or before.stage != step.stage
            if not self._live:
                if changed:
                    self._plain(step, first=before is None)
            elif changed or time.monotonic() - self._last >= INTERVAL:
                self._draw()

    def _plain(self, step: Progress, *, first: bool) -> None:
        if first and step.stage not in FINAL:
            self._output.write(f"{printable(step.item)}: Pulling fs layer\n")
        if step.stage not in ("downloading", "extracting") and not (first and step.stage == "waiting"):
            self._output.write(line(Progress(item=step.item, stage=step.stage, message=step.message)) + "\n")
        self._output.flush()

    def _message(self, step: Progress) -> None:
        if step.message:
            if self._live:
                self._draw(above=printable(step.message))
            else:
                self._output.write(printable(step.message) + "\n")
                self._output.flush()

    def _draw(self, above: str = "") -> None:
        """Redraws the live lines. What does not fit on the screen is finished lines first, which scroll away for good."""
        try:
            columns, rows = os.get_terminal_size(self._output.fileno())
        except OSError:
            columns, rows = 80, 24
        parts = [f"\x1b[{self._drawn}A" if self._drawn else "", "\r"]
        for text in [above] if above else []:
            parts.append(f"{text}\x1b[K\n")
        room = max(1, rows - 1)
        for item in [item for item, step in self._steps.items() if step.stage in FINAL]:
            if len(self._steps) <= room:
                break
            parts.append(f"{line(self._steps.pop(item), columns)}\x1b[K\n")
        shown = list(self._steps.values())[:room]
        parts += [f"{line(step, columns)}\x1b[K\n" for step in shown]
        parts.append("\x1b[J")
        self._drawn = len(shown)
        self._last = time.monotonic()
        self._output.write("".join(parts))
        self._output.flush()


def on(stream: str, *, quiet: bool = False) -> Display:
    """The display for standard output or standard error ("stdout", "stderr")."""
    return Display(sys.stdout if stream == "stdout" else sys.stderr, quiet=quiet)
