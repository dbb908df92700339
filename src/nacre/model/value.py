"""`Value`: the base of every record in `nacre.model`.

Frozen, keyword-only, compared by content, printed with its fields, and turned into JSON-compatible data and back. It does
what a frozen dataclass does; the standard library's `dataclasses` costs 12 ms of import, which `nacre run` would pay every
time (docs/benchmarks.md).
"""

from __future__ import annotations

import enum
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self, dataclass_transform

from nacre.errors import InvalidArgument

_MISSING: Any = object()


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """An immutable record whose fields are the annotations of its class, in order.

    Raises TypeError for unknown or missing fields, AttributeError on assignment.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    _hints: ClassVar[dict[str, Any] | None] = None

    def __init_subclass__(cls) -> None:
        own = [name for name, kind in cls.__dict__.get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
        cls._fields = (*cls._fields, *(name for name in own if name not in cls._fields))
        cls._defaults = {**cls._defaults, **{name: cls.__dict__[name] for name in own if name in cls.__dict__}}
        cls._hints = None

    def __init__(self, **values: Any) -> None:
        for name in self._fields:
            value = values.pop(name, _MISSING)
            if value is _MISSING:
                value = self._defaults.get(name, _MISSING)
                if value is _MISSING:
                    raise TypeError(f"{type(self).__name__}: field {name!r} is missing")
            self.__dict__[name] = value
        if values:
            raise TypeError(f"{type(self).__name__}: unknown field {next(iter(values))!r}")

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
        return {name: _to_data(self.__dict__[name]) for name in self._fields}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_data`. Unknown keys are ignored (written by a newer version), missing ones take defaults.

        Raises InvalidArgument when a value does not have the field's type.
        """
        if cls._hints is None:
            cls._hints = _resolve_hints(cls)
        known = {name: _from_data(cls._hints[name], data[name], name) for name in cls._fields if name in data}
        try:
            return cls(**known)
        except TypeError as error:
            raise InvalidArgument(str(error)) from error


def _resolve_hints(cls: type[Value]) -> dict[str, Any]:
    """The types of the fields. Annotations are texts (PEP 563); `typing.get_type_hints` takes ten times as long to evaluate them."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__])
        texts = base.__dict__.get("__annotations__", {})
        hints.update({name: eval(text, scope) for name, text in texts.items() if name in cls._fields})
    return hints


def _to_data(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_data()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_to_data(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_data(item) for key, item in value.items()}
    return value


def _from_data(hint: Any, data: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if data is None and type(None) in options:
            return None
        return _from_data(next(option for option in options if option is not type(None)), data, name)
    if origin is tuple and isinstance(data, list | tuple):
        inner = typing.get_args(hint)
        if len(inner) == 2 and inner[1] is ...:
            return tuple(_from_data(inner[0], item, name) for item in data)
        return tuple(_from_data(kind, item, name) for kind, item in zip(inner, data, strict=True))
    if origin is dict and isinstance(data, dict):
        return {key: _from_data(typing.get_args(hint)[1], item, name) for key, item in data.items()}
    if isinstance(hint, type) and issubclass(hint, Value) and isinstance(data, dict):
        return hint.from_data(data)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(data)
        except ValueError as error:
            raise InvalidArgument(f"{name}: {error}") from error
    if hint is Any or hint is object:
        return data
    if hint is float and isinstance(data, int):
        return float(data)
    if isinstance(hint, type) and isinstance(data, hint):
        return data
    raise InvalidArgument(f"{name}: expected {hint}, got {type(data).__name__}")
