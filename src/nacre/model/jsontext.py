"""JSON without the standard library's `json`, which loads regular expressions: 3 ms of a start that has 20.

The C parts below that module are used as it uses them; where an interpreter has none, `json` itself is.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Context:
    """What the scanner asks of a decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")


def loads(data: bytes) -> Any:
    """The document in UTF-8 bytes. Raises ValueError (RecursionError for one that is nested too deeply)."""
    text = data.decode("utf-8")
    scan = _scanner()
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = scan(text, start) if scan else (None, 0)
        if end and not text[end:].strip(" \t\r\n"):
            return value
    except (StopIteration, SystemError, ValueError):
        pass  # the C code looks for its exception in the module that was not loaded
    import json

    return json.loads(text, parse_constant=_Context.parse_constant)


def dumps(value: Any) -> str:
    """A document on one line, in ASCII. Raises TypeError for what JSON has no word for."""
    encode = _encoder()
    if encode is None:
        import json

        return json.dumps(value)
    return "".join(encode(value, 0))


def _scanner() -> Callable[[str, int], tuple[Any, int]] | None:
    try:
        from _json import make_scanner
    except ImportError:
        return None
    made: Callable[[str, int], tuple[Any, int]] = make_scanner(_Context())  # type: ignore[arg-type]
    return made


def _encoder() -> Callable[[Any, int], tuple[str, ...]] | None:
    try:
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:
        return None
    made: Callable[[Any, int], tuple[str, ...]] = make_encoder({}, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, False)
    return made


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} has no form in JSON")
