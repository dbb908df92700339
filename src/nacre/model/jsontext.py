"""JSON of our own records, by the standard library's C code without the package around it.

That package imports `re`: 2 ms, which every command would pay for reading a few records. What is written and read is the same. An
interpreter without this code, or with one that is called in another way, uses the package.
"""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What `json.JSONDecoder` tells its scanner by default."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # NaN, Infinity, -Infinity


def dumps(value: Any) -> str:
    """As ``json.dumps(value, separators=(",", ":"))``; values that contain themselves end in a RecursionError."""
    return "".join(_encode(value, 0))


def loads(text: str | bytes) -> Any:
    """As `json.loads` of text or UTF-8. Raises ValueError."""
    text = (text.decode() if isinstance(text, bytes) else text).strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):  # the C code looks for its exception in a module that was not loaded: json finds the words
        import json

        return json.loads(text)
    if end != len(text):
        raise ValueError(f"more than a JSON value at character {end}")
    return value


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _quick() -> tuple[Callable[[Any, int], Any], Callable[[str, int], Any]]:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    return make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True), make_scanner(_Context)  # type: ignore[arg-type]


def _usual() -> tuple[Callable[[Any, int], Any], Callable[[str, int], Any]]:
    import json

    encoder, decoder = json.JSONEncoder(separators=(",", ":")), json.JSONDecoder()
    return lambda value, _: encoder.encode(value), decoder.raw_decode


try:
    _encode, _scan = _quick()
except (ImportError, TypeError):
    _encode, _scan = _usual()
