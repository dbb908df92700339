"""`Value`: the base of every record in `nacre.model`.

Frozen, keyword-only, compared by content, printed with its fields, and turned into JSON-compatible data and back. It does
what a frozen dataclass does; the standard library's `dataclasses` costs 12 ms of import, which `nacre run` would pay every
time (docs/benchmarks.md).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping

from nacre.errors import InvalidArgument
from nacre.model.numbering import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """Says something to type checkers only (PEP 681)."""
        return lambda cls: cls


# Types whose values are JSON as they stand, and what is most often written for the type of a field.
_PLAIN = frozenset((str, int, bool, float, type(None)))
_COMMON: dict[str, Any] = {
    "str": str, "int": int, "bool": bool, "float": float, "tuple[str, ...]": tuple[str, ...], "dict[str, str]": dict[str, str],
}  # fmt: skip


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """An immutable record whose fields are the annotations of its class, in order.

    Raises TypeError for unknown or missing fields, AttributeError on assignment.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}
    _hints: ClassVar[dict[str, Any] | None] = None

    def __init_subclass__(cls) -> None:
        own = [name for name, kind in cls.__dict__.get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
        cls._fields = (*cls._fields, *(name for name in own if name not in cls._fields))
        cls._names = frozenset(cls._fields)
        cls._defaults = {**cls._defaults, **{name: cls.__dict__[name] for name in own if name in cls.__dict__}}
        cls._hints = None

    def __init__(self, **values: Any) -> None:
        own = self.__dict__
        own.update(self._defaults)
        own.update(values)
        if own.keys() != self._names:
            missing = [name for name in self._fields if name not in own]
            what = f"field {missing[0]!r} is missing" if missing else f"unknown field {next(iter(own.keys() - self._names))!r}"
            raise TypeError(f"{type(self).__name__}: {what}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen; use replace()")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(repr(self.__dict__[name]) for name in self._fields)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in self._fields)})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    def to_data(self) -> dict[str, Any]:
        """The record as dicts, lists, strings, numbers and None, ready for json.dumps."""
        own = self.__dict__
        return {name: own[name] if type(own[name]) in _PLAIN else _to_data(own[name]) for name in self._fields}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_data`. Unknown keys are ignored (written by a newer version), missing ones take defaults.

        Raises InvalidArgument when a value does not have the field's type.
        """
        if cls._hints is None:
            cls._hints = _resolve_hints(cls)
        known = {}
        for name, hint in cls._hints.items():
            if name in data:
                value = data[name]
                known[name] = value if type(value) is hint else _from_data(hint, value, name)
        try:
            return cls(**known)
        except TypeError as error:
            raise InvalidArgument(str(error)) from error


def _resolve_hints(cls: type[Value]) -> dict[str, Any]:
    """The types of the fields. Annotations are texts (PEP 563); `typing.get_type_hints` takes ten times as long to evaluate them."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__])
        for name, text in base.__dict__.get("__annotations__", {}).items():
            if name in cls._fields:
                # `Any` need not be imported where it is only written in annotations.
                hints[name] = _COMMON.get(text) or eval(text, scope, {"Any": object})
    return hints


def _is_enum(kind: type) -> bool:
    enum = sys.modules.get("enum")  # before it was loaded, nothing is one
    return enum is not None and issubclass(kind, enum.Enum)


def _to_data(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [item if type(item) in _PLAIN else _to_data(item) for item in value]
    if isinstance(value, Value):
        return value.to_data()
    if isinstance(value, dict):
        return {key: _to_data(item) for key, item in value.items()}
    return value.value if _is_enum(type(value)) else value


def _from_data(hint: Any, data: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        if data is None and type(None) in hint.__args__:
            return None
        return _from_data(next(option for option in hint.__args__ if option is not type(None)), data, name)
    if isinstance(hint, types.GenericAlias):
        return _from_collection(hint, data, name)
    if hint is object:
        return data
    if issubclass(hint, Value) and isinstance(data, dict):
        return hint.from_data(data)
    if issubclass(hint, IntEnum) or _is_enum(hint):
        try:
            return hint(data)
        except ValueError as error:
            raise InvalidArgument(f"{name}: {error}") from error
    if hint is float and isinstance(data, int):
        return float(data)
    if isinstance(data, hint):
        return data
    raise _mismatch(hint, data, name)


def _from_collection(hint: types.GenericAlias, data: Any, name: str) -> Any:
    inner = hint.__args__
    if hint.__origin__ is tuple and isinstance(data, list | tuple):
        if len(inner) == 2 and inner[1] is ...:
            kind = inner[0]
            return tuple([item if type(item) is kind else _from_data(kind, item, name) for item in data])
        return tuple(_from_data(kind, item, name) for kind, item in zip(inner, data, strict=True))
    if hint.__origin__ is dict and isinstance(data, dict):
        return {key: _from_data(inner[1], item, name) for key, item in data.items()}
    raise _mismatch(hint, data, name)


def _mismatch(hint: Any, data: Any, name: str) -> InvalidArgument:
    return InvalidArgument(f"{name}: expected {hint}, got {type(data).__name__}")
