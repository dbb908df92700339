"""Command-line flags with the rules that Docker's users know.

``-it`` clusters, ``-p80`` and ``-p 80`` and ``--publish=80`` carry values, a value may start with a dash, booleans take a value only
after an equals sign (``--tty=false``), ``--`` ends the flags, and a command that runs another command stops at its first positional
argument. The standard library's argparse has none of the last four rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nacre.cli import units
from nacre.errors import InvalidArgument, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.cli.context import Context


class UsageError(UserError):
    """The command line itself is wrong; the caller is shown where its rules are."""


_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


def _boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidArgument("expected true or false")


def _integer(text: str) -> int:
    try:
        return int(text, 10)
    except ValueError:
        raise InvalidArgument("expected a whole number") from None


# kind -> (how one occurrence is read, the value without any occurrence)
_KINDS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "bool": (_boolean, False),
    "string": (str, ""),
    "list": (str, None),
    "int": (_integer, 0),
    "bytes": (units.parse_size, 0),
    "swap": (lambda text: -1 if text == "-1" else units.parse_size(text), 0),
    "decimal": (units.parse_cpus, 0.0),
}


class Flag:
    """One flag. kind: bool, string, list (may be repeated), int, bytes (512m), swap (bytes or -1) or decimal (1.5).

    value: the word for the value in help texts; choices: the only values allowed; aliases: hidden other long names;
    complete: what the shell offers as its value (see `nacre.cli.complete`): files, containers, images ...
    """

    __slots__ = ("aliases", "choices", "complete", "default", "help", "kind", "name", "short", "value")

    def __init__(
        self,
        name: str,
        help: str,
        kind: str = "bool",
        *,
        short: str = "",
        default: Any = None,
        value: str = "",
        choices: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
        complete: str = "",
    ) -> None:
        self.name = name
        self.help = help
        self.kind = kind
        self.short = short
        self.default = _KINDS[kind][1] if default is None else default
        self.value = "" if kind == "bool" else value or kind
        self.choices = choices
        self.aliases = aliases
        self.complete = complete

    @property
    def label(self) -> str:
        """The flag as error messages name it: ``-t, --tty``."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"

    def read(self, text: str) -> Any:
        """One occurrence's value. Raises UsageError naming the flag."""
        try:
            value = _KINDS[self.kind][0](text)
        except InvalidArgument as error:
            raise UsageError(f'invalid argument "{text}" for "{self.label}" flag: {error.message}') from error
        if self.choices and text not in self.choices:
            raise UsageError(
                f'invalid argument "{text}" for "{self.label}" flag: expected one of {", ".join(c for c in self.choices if c)}'
            )
        return value


class Arguments:
    """What a command line said: one attribute per flag (dashes as underscores), `rest` for the positional arguments."""

    def __init__(self, values: dict[str, Any], given: frozenset[str], rest: list[str]) -> None:
        self._values = values
        self._given = given
        self.rest = rest

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def given(self, name: str) -> bool:
        """Whether the flag was on the command line at all."""
        return name in self._given


HELP = Flag("help", "Print usage")


class Command:
    """One command: its flags, how many positional arguments it takes, and the function that carries it out.

    usage: what follows the command's name in "Usage:"; least/most: bounds of the positional arguments (most None = any number);
    interspersed: flags may follow positional arguments; examples: (command line, what it does); complete: what the positional
    arguments name, as for `Flag.complete`; unsupported: flags of Docker's that are refused by name.
    The examples' command lines leave out the program's name.
    """

    def __init__(
        self,
        run: Callable[[Context, Arguments], int],
        usage: str = "",
        flags: Sequence[Flag] = (),
        *,
        least: int = 0,
        most: int | None = 0,
        interspersed: bool = True,
        about: str = "",
        examples: Sequence[tuple[str, str]] = (),
        complete: str = "",
        unsupported: frozenset[str] = frozenset(),
    ) -> None:
        self.run = run
        self.usage = usage
        self.flags = tuple(flags)
        self.least = least
        self.most = most
        self.interspersed = interspersed
        self.about = about
        self.examples = tuple(examples)
        self.complete = complete
        self.unsupported = unsupported

    def parse(self, name: str, argv: Sequence[str]) -> Arguments | None:
        """The arguments, or None when help was asked for. `name` is the command as typed, for messages. Raises UsageError."""
        hint = f"See 'nacre {name} --help'." if name else "See 'nacre --help'."
        try:
            arguments = _Parser(self).parse(argv)
            if arguments is not None:
                _check_count(name, len(arguments.rest), self.least, self.most)
        except UsageError as error:
            error.hint = f"{error.hint} {hint}".strip()
            raise
        return arguments


def _check_count(name: str, count: int, least: int, most: int | None) -> None:
    if count >= least and (most is None or count <= most):
        return
    if most == 0:
        raise UsageError(f"'nacre {name}' accepts no arguments")
    wanted = least if count < least else most
    bound = "" if least == most else "at least " if count < least else "at most "
    raise UsageError(f"'nacre {name}' requires {bound}{wanted} argument{'' if wanted == 1 else 's'}")


class _Parser:
    """One pass over one command line."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.flags = (*command.flags, HELP)
        self.values: dict[str, Any] = {}
        self.given: set[str] = set()

    def parse(self, argv: Sequence[str]) -> Arguments | None:
        words = list(reversed(argv))
        rest: list[str] = []
        while words:
            word = words.pop()
            if word == "--":
                rest += reversed(words)
                break
            if word.startswith("--"):
                self._long(word, words)
            elif len(word) > 1 and word[0] == "-":
                self._cluster(word, words)
            else:
                rest.append(word)
                if not self.command.interspersed:
                    rest += reversed(words)
                    break
            if "help" in self.given:
                return None
        for flag in self.flags:
            self.values.setdefault(flag.name, [] if flag.kind == "list" else flag.default)
        values = {name.replace("-", "_"): value for name, value in self.values.items()}
        return Arguments(values, frozenset(self.given), rest)

    def _long(self, word: str, words: list[str]) -> None:
        name, equals, value = word[2:].partition("=")
        flag = next((flag for flag in self.flags if name == flag.name or name in flag.aliases), None)
        if flag is None and name in self.command.unsupported:
            raise UsageError(f"--{name}: this version of Nacre does not have this flag of Docker's")
        if flag is None:
            raise UsageError(f"unknown flag: --{name}", hint=_nearest(name, self.flags))
        if equals:
            self._set(flag, value)
        elif flag.kind == "bool":
            self._set(flag, "true")
        elif words:
            self._set(flag, words.pop())
        else:
            raise UsageError(f"flag needs an argument: --{name}")

    def _cluster(self, word: str, words: list[str]) -> None:
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = next((flag for flag in self.flags if letter == flag.short), None)
            if flag is None and letter == "h":
                flag = HELP
            if flag is None:
                raise UsageError(f"unknown shorthand flag: '{letter}' in {word}")
            if letters.startswith("="):
                return self._set(flag, letters[1:])
            if flag.kind == "bool":
                self._set(flag, "true")
                continue
            if not letters and not words:
                raise UsageError(f"flag needs an argument: '{letter}' in {word}")
            return self._set(flag, letters or words.pop())
        return None

    def _set(self, flag: Flag, text: str) -> None:
        value = flag.read(text)
        self.given.add(flag.name)
        if flag.kind == "list":
            self.values.setdefault(flag.name, []).append(value)
        else:
            self.values[flag.name] = value


def _nearest(name: str, flags: Sequence[Flag]) -> str:
    import difflib

    near = difflib.get_close_matches(name, [flag.name for flag in flags], 1, 0.7)
    return f"Did you mean --{near[0]}?" if near else ""
