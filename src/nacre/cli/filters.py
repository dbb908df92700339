"""`--filter name=value`: the values of one name are alternatives (but every label must be there), different names must all match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nacre.cli.flags import UsageError
from nacre.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Test = Callable[[Any, str], bool]


class Filters:
    """The filters of one command line. Raises UsageError for a malformed or unknown one."""

    def __init__(self, texts: Sequence[str], known: Iterable[str]) -> None:
        self.values: dict[str, list[str]] = {}
        names = sorted(known)
        for text in texts:
            name, equals, value = text.partition("=")
            name = name.strip().lower()
            if not equals:
                raise UsageError(f"invalid filter '{text}'", hint="A filter looks like name=value.")
            if name not in names:
                raise UsageError(f"invalid filter '{name}'", hint=f"Filters of this command: {', '.join(names)}.")
            self.values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def apply(self, objects: Iterable[Any], tests: dict[str, Test]) -> list[Any]:
        """The objects that pass. A test is given the object and one value."""

        def passes(item: Any) -> bool:
            checks = (
                (all if name == "label" else any)(tests[name](item, value) for value in values) for name, values in self.values.items()
            )
            return all(checks)

        return [item for item in objects if passes(item)]

    def flag(self, name: str, default: bool = False) -> bool:
        """A filter that is true or false. Raises InvalidArgument for another value."""
        values = self.values.get(name)
        if not values:
            return default
        word = values[-1].lower()
        if word not in ("true", "1", "false", "0"):
            raise InvalidArgument(f"invalid filter '{name}={values[-1]}'", hint="true or false")
        return word in ("true", "1")


def has_label(labels: dict[str, str], wanted: str) -> bool:
    """``key`` or ``key=value``."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def matches_name(name: str, pattern: str) -> bool:
    """Docker matches names with regular expressions, anywhere in the name. Raises InvalidArgument for a malformed one."""
    import re

    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise InvalidArgument(f"invalid filter: {pattern!r} is not a regular expression: {error}") from error
