"""What every command is given: the engine (made when first used), and the ways to speak to the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from nacre.errors import NacreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine import Engine


class Context:
    """One invocation of the command line. Close it at the end."""

    def __init__(
        self,
        root: str | None = None,
        run_root: str | None = None,
        storage_driver: str | None = None,
        *,
        debug: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self._where = (root, run_root, storage_driver)
        self._engine = engine
        self.debug = debug

    @property
    def engine(self) -> Engine:
        """The engine, made on first use, so that help and completion do not pay for it."""
        if self._engine is None:
            from nacre.engine import Engine

            root, run_root, storage_driver = self._where
            if os.geteuid():  # an ordinary user's engine works in the user's own namespaces
                from nacre.engine import enter

                root, run_root = enter(root, run_root)
                self._where = (root, run_root, storage_driver)
            self._engine = Engine(root, run_root, storage_driver=storage_driver)
        return self._engine

    @property
    def directories(self) -> tuple[str | None, str | None]:
        """The durable and the run-time directory: the engine's once it is made, else what was asked for, None = the default."""
        return self._where[:2]

    def close(self) -> None:
        """Closes the engine if one was made."""
        if self._engine is not None:
            self._engine.close()

    def out(self, text: str, end: str = "\n") -> None:
        """A line of the command's answer, on standard output."""
        sys.stdout.write(text + end)

    def flush(self) -> None:
        """What was printed so far reaches the reader."""
        sys.stdout.flush()

    def err(self, text: str) -> None:
        """A line for the person in front of the terminal, on standard error."""
        sys.stdout.flush()
        sys.stderr.write(text + "\n")

    def report(self, error: NacreError) -> None:
        """An error: one line, its hint, and with --debug the evidence."""
        self.err(f"nacre: {printable(error.message)}")
        if error.hint:
            self.err(f"  {printable(error.hint)}")
        if self.debug and error.details:
            for line in error.details.splitlines():
                self.err(f"  | {printable(line)}")

    def mourn(self, cause: str) -> None:
        """Why the sandbox of an attached container ended with the container in it, and the last lines of its console. "" = it did not."""
        if cause:
            first, *console = cause.splitlines()
            self.err(f"nacre: {printable(first)}")
            for line in console:
                self.err(f"  | {printable(line)}")

    def each(self, names: Iterable[str], action: Callable[[str], str | None]) -> int:
        """Does something to several objects, going on after a failure; prints what `action` returns. Exit code 0 or 1."""
        code = 0
        for name in names:
            try:
                answer = action(name)
            except NacreError as error:
                self.report(error)
                code = 1
            else:
                if answer is not None:
                    self.out(answer)
        return code


def printable(text: str) -> str:
    """Text from a registry, an image or a guest without the control characters that would command the user's terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def is_terminal(descriptor: int) -> bool:
    """Whether a descriptor is a terminal; False for a closed one."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def window(*descriptors: int) -> tuple[int, int]:
    """(rows, columns) of the first of the descriptors that is a terminal with a size; (0, 0) when none is."""
    for descriptor in descriptors:
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if size.columns and size.lines:
            return size.lines, size.columns
    return 0, 0


def confirm(question: str) -> bool:
    """Asks on the terminal; anything but y or yes (also the end of input) is no."""
    sys.stdout.write(f"{question}\nAre you sure you want to continue? [y/N] ")
    sys.stdout.flush()
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")
