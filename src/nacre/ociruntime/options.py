"""Command lines as runc takes them: flags before the first operand, ``--name value``, ``--name=value``, one dash or two."""

from __future__ import annotations

from nacre.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A table of flags: "name" or "name,n" -> kind: b boolean, s string, i whole number, l repeated string.
_SHOWN = {"b": "", "s": " VALUE", "i": " NUMBER", "l": " VALUE (repeatable)"}


class Flags:
    """The values of flags. Unset: False, "", 0 or []."""

    def __init__(self, values: dict[str, Any], given: frozenset[str]) -> None:
        self._values = values
        self._given = given

    def on(self, name: str) -> bool:
        """A boolean."""
        return bool(self._values[name])

    def text(self, name: str) -> str:
        """A string."""
        return str(self._values[name])

    def number(self, name: str) -> int:
        """A whole number."""
        return int(self._values[name])

    def texts(self, name: str) -> list[str]:
        """A repeated string."""
        return list(self._values[name])

    def given(self, name: str) -> bool:
        """Was it on the command line?"""
        return name in self._given


def parse(arguments: list[str], table: dict[str, str], what: str) -> tuple[Flags, list[str]]:
    """(flags, operands). what: the command, for messages. Raises InvalidArgument."""
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    for entry, kind in table.items():
        main, _, short = entry.partition(",")
        names[main] = main
        if short:
            names[short] = main
        values[main] = {"b": False, "s": "", "i": 0, "l": []}[kind]
    kinds = {entry.partition(",")[0]: kind for entry, kind in table.items()}
    given: set[str] = set()
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if len(word) < 2 or word[0] != "-":
            break
        place += 1
        if word == "--":
            break
        name, equals, value = word.lstrip("-").partition("=")
        main = names.get(name, "")
        if not main:
            raise InvalidArgument(f"{what}: flag provided but not defined: {word.partition('=')[0]}", hint=f"{what} --help")
        given.add(main)
        if kinds[main] == "b":
            values[main] = _boolean(value, word) if equals else True
            continue
        if not equals:
            if place >= len(arguments):
                raise InvalidArgument(f"{what}: flag needs an argument: {word}")
            value = arguments[place]
            place += 1
        _set(values, main, kinds[main], value, word)
    return Flags(values, frozenset(given)), arguments[place:]


def _boolean(value: str, word: str) -> bool:
    if value.lower() in ("true", "1", "t"):
        return True
    if value.lower() in ("false", "0", "f"):
        return False
    raise InvalidArgument(f"invalid boolean value in {word}")


def _set(values: dict[str, Any], name: str, kind: str, value: str, word: str) -> None:
    if kind == "l":
        values[name] = [*values[name], value]
    elif kind == "s":
        values[name] = value
    else:
        try:
            values[name] = int(value)
        except ValueError:
            raise InvalidArgument(f"invalid value {value!r} for flag {word.partition('=')[0]}: not a whole number") from None


def usage(table: dict[str, str]) -> str:
    """The flags of a table, one per line."""
    lines = []
    for entry, kind in table.items():
        main, _, short = entry.partition(",")
        lines.append(f"  --{main}{', -' + short if short else ''}{_SHOWN[kind]}\n")
    return "".join(lines)
