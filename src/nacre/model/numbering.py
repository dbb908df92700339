"""`IntEnum` for classes that do nothing but name numbers. The standard library's `enum` takes a millisecond to load and another
to make a hundred members, which every start of a container would pay.

Members are integers with a `name`; a class is called with a number, iterated and searched as an `enum.IntEnum` is. Type checkers are
told that it is one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class _Numbering(type):
    _members: dict[int, Any]

    def __new__(mcs, name: str, bases: tuple[type, ...], scope: dict[str, Any]) -> _Numbering:
        numbers = {key: value for key, value in scope.items() if type(value) is int and key[:1] != "_"}
        made = super().__new__(mcs, name, bases, {key: value for key, value in scope.items() if key not in numbers})
        made._members = {}
        for key, value in numbers.items():
            member: Any = int.__new__(made, value)  # type: ignore[arg-type]
            member.name = key
            made._members[value] = member
            setattr(made, key, member)
        return made

    def __call__(cls, value: int) -> Any:
        try:
            return cls._members[value]
        except KeyError:
            raise ValueError(f"{value!r} is not a valid {cls.__name__}") from None

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls._members.values())

    def __len__(cls) -> int:
        return len(cls._members)

    def __contains__(cls, value: object) -> bool:
        return value in cls._members


class IntEnum(int, metaclass=_Numbering):
    """Base of a class of named numbers."""

    name: str

    __str__ = int.__repr__

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {int(self)}>"

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (int(self),)
