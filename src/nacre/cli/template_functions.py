"""What templates can call, and how Go prints values.

Built-in functions as in the documentation of Go's text/template; json, split, join, title, lower, upper, pad and truncate as Docker's
formatter has them; trim besides. printf follows package fmt for the verbs that make sense for data: v d s q x X o b c t f e g U T.
"""

from __future__ import annotations

import json as _json
from collections.abc import Callable
from typing import Any

from nacre.cli.quote import quoted
from nacre.cli.template import Struct


class _NoValue:
    """A map entry that is not there."""

    def __repr__(self) -> str:
        return "<no value>"


NO_VALUE = _NoValue()


class FunctionError(Exception):
    """A function refused its arguments. plain: the message stands for itself instead of following "error calling NAME"."""

    def __init__(self, message: str, *, plain: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.plain = plain


def truth(value: Any) -> bool:
    """Go's idea of an empty value: false, 0, nil, and anything of length zero. A struct is never empty."""
    if isinstance(value, Struct):
        return True
    return value is not NO_VALUE and bool(value)


def kind_of(value: Any) -> str:
    """Go's name of a value's type."""
    if isinstance(value, Struct):
        return value.kind
    for python, name in ((bool, "bool"), (int, "int"), (float, "float64"), (str, "string"), (dict, "map[string]interface {}")):
        if isinstance(value, python):
            return name
    return "<nil>" if value is None or value is NO_VALUE else "[]interface {}"


def go_string(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<nil>" if not isinstance(value, _NoValue) else "<no value>"
    if value is NO_VALUE:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Struct):
        return "{" + " ".join(go_string(item) for item in value.values()) + "}"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{go_string(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(go_string(item) for item in value) + "]"
    return str(value)


def _float(value: float) -> str:
    """%v of a float64: shortest digits, with an exponent below 1e-4 and from 1e6 on."""
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(repr(value), "NaN")
    digits, _, power = f"{value:e}".partition("e")
    digits = repr(value).lstrip("-").partition("e")[0].replace(".", "").strip("0") or "0"
    exponent = int(power)
    if -4 <= exponent < 6:
        return repr(value).removesuffix(".0")
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{'-' if value < 0 else ''}{mantissa}e{exponent:+03d}"


def to_json(value: Any) -> str:
    """Compact JSON as Go's encoder writes it: maps sorted by key, structs in their order, text not escaped beyond need."""
    return _json.dumps(_ordered(value), ensure_ascii=False, separators=(",", ":"))


def _ordered(value: Any) -> Any:
    if isinstance(value, Struct):
        return {key: _ordered(item) for key, item in value.items() if not callable(item)}
    if isinstance(value, dict):
        return {key: _ordered(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    return None if value is NO_VALUE else value


# ---- comparison


def _basic(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return "collection"
    return "nil" if value is None or value is NO_VALUE else kind_of(value)


def _equal(first: Any, second: Any) -> bool:
    one, other = _basic(first), _basic(second)
    if one != other:
        if "nil" in (one, other):
            return False
        raise FunctionError("incompatible types for comparison")
    if one == "collection":
        raise FunctionError("non-comparable types")
    return one == "nil" or bool(first == second)


def eq(first: Any, *others: Any) -> bool:
    """Whether the first argument equals any of the others."""
    if not others:
        raise FunctionError("missing argument for comparison")
    return any(_equal(first, other) for other in others)


def ne(first: Any, second: Any) -> bool:
    """Whether the two differ."""
    return not _equal(first, second)


def lt(first: Any, second: Any) -> bool:
    """Whether the first is less."""
    one, other = _basic(first), _basic(second)
    if one != other:
        raise FunctionError("incompatible types for comparison")
    if one in ("bool", "nil", "collection"):
        raise FunctionError("invalid type for comparison")
    return bool(first < second)


def le(first: Any, second: Any) -> bool:
    """Whether the first is less or equal."""
    return lt(first, second) or _equal(first, second)


def gt(first: Any, second: Any) -> bool:
    """Whether the first is greater."""
    return not le(first, second)


def ge(first: Any, second: Any) -> bool:
    """Whether the first is greater or equal."""
    return not lt(first, second)


def all_of(first: Any, *others: Any) -> Any:
    """The first empty argument, or the last one."""
    return next((value for value in (first, *others) if not truth(value)), (first, *others)[-1])


def any_of(first: Any, *others: Any) -> Any:
    """The first argument that is not empty, or the last one."""
    return next((value for value in (first, *others) if truth(value)), (first, *others)[-1])


# ---- collections


def length(value: Any) -> int:
    """Number of items, or of bytes of a string."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, dict | list | tuple) and not isinstance(value, Struct):
        return len(value)
    raise FunctionError("len of nil pointer" if value is None or value is NO_VALUE else f"len of type {kind_of(value)}")


def _position(number: Any, top: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise FunctionError(f"cannot index slice/array with type {kind_of(number)}")
    if not 0 <= number <= top:
        raise FunctionError(f"index out of range: {number}")
    return number


def index(value: Any, *keys: Any) -> Any:
    """``index x 1 2`` is x[1][2]; a missing key of a map gives the zero value of its entries."""
    for key in keys:
        if isinstance(value, dict) and not isinstance(value, Struct):
            if not isinstance(key, str):
                raise FunctionError(f"value has type {kind_of(key)}; should be string")
            texts = all(isinstance(item, str) for item in value.values())
            value = value.get(key, "" if texts else NO_VALUE)
        elif isinstance(value, list | tuple):
            value = value[_position(key, len(value) - 1)]
        elif isinstance(value, str):
            value = value.encode("utf-8", "surrogateescape")[_position(key, length(value) - 1)]
        elif value is None or value is NO_VALUE:
            raise FunctionError("index of untyped nil")
        else:
            raise FunctionError(f"can't index item of type {kind_of(value)}")
    return value


def cut(value: Any, *bounds: Any) -> Any:
    """``slice x 1 3`` is x[1:3]."""
    if not isinstance(value, str | list | tuple):
        raise FunctionError(f"can't slice item of type {kind_of(value)}" if value is not None else "slice of untyped nil")
    if len(bounds) > (2 if isinstance(value, str) else 3):
        raise FunctionError("cannot 3-index slice a string" if isinstance(value, str) else f"too many slice indexes: {len(bounds)}")
    top = length(value)
    start = _position(bounds[0], top) if bounds else 0
    end = _position(bounds[1], top) if len(bounds) > 1 else top
    if start > end:
        raise FunctionError(f"invalid slice index: {start} > {end}")
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")[start:end].decode("utf-8", "replace")
    return value[start:end]


# ---- text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FunctionError(f"wrong type for value; expected string; got {kind_of(value)}", plain=True)
    return value


def split(text: Any, separator: Any) -> list[str]:
    """``split "a,b" ","``."""
    return _text(text).split(_text(separator)) if separator else list(_text(text))


def join(parts: Any, separator: Any) -> str:
    """``join list ","``."""
    if not isinstance(parts, list | tuple):
        raise FunctionError(f"wrong type for value; expected []string; got {kind_of(parts)}", plain=True)
    return _text(separator).join(go_string(part) for part in parts)


def lower(text: Any) -> str:
    """Lower case."""
    return _text(text).lower()


def upper(text: Any) -> str:
    """Upper case."""
    return _text(text).upper()


def title(text: Any) -> str:
    """The first letter of every word in upper case, the others as they are."""
    made, inside = [], False
    for char in _text(text):
        made.append(char if inside else char.upper())
        inside = char.isalnum() or char in "_'"
    return "".join(made)


def trim(text: Any) -> str:
    """Without white space around it."""
    return _text(text).strip()


def pad(text: Any, before: Any, after: Any) -> str:
    """``pad "x" 1 2``: spaces around a text that is not empty."""
    return f"{' ' * _position(before, 1 << 16)}{_text(text)}{' ' * _position(after, 1 << 16)}" if text else ""


def truncate(text: Any, size: Any) -> str:
    """At most so many characters."""
    return _text(text)[: _position(size, 1 << 31)]


def joined(*values: Any) -> str:
    """Print: a space between two operands when neither is a string."""
    made = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            made += " "
        made += go_string(value)
    return made


def line(*values: Any) -> str:
    """Println: spaces between all operands, and a newline."""
    return " ".join(go_string(value) for value in values) + "\n"


def html(*values: Any) -> str:
    """Escaped for HTML."""
    text = joined(*values)
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;"), ("\0", "�")):
        text = text.replace(char, name)
    return text


def urlquery(*values: Any) -> str:
    """Escaped for the query of a URL."""
    from urllib.parse import quote_plus

    return quote_plus(joined(*values), safe="")


# ---- printf


def printf(form: Any, *values: Any) -> str:
    """Fmt.Sprintf for data: flags ``+-# 0``, width and precision (also ``*``), the verbs above; mistakes show as Go shows them."""
    made, at, used, form = [], 0, 0, _text(form)
    while at < len(form):
        percent = form.find("%", at)
        if percent < 0:
            made.append(form[at:])
            break
        made.append(form[at:percent])
        spec = _Spec(form, percent + 1)
        at, taken = spec.read(values[used:])
        used += taken
        if spec.verb == "%":
            made.append("%")
        elif not spec.verb:
            made.append("%!(NOVERB)")
        elif used >= len(values):
            made.append(f"%!{spec.verb}(MISSING)")
        else:
            made.append(spec.format(values[used]))
            used += 1
    if used < len(values):
        extra = ", ".join(f"{kind_of(value)}={go_string(value)}" for value in values[used:])
        made.append(f"%!(EXTRA {extra})")
    return "".join(made)


class _Spec:
    """One conversion of a format."""

    def __init__(self, form: str, at: int) -> None:
        self.form = form
        self.at = at
        self.flags = ""
        self.width = 0
        self.precision = -1
        self.verb = ""

    def read(self, values: tuple[Any, ...]) -> tuple[int, int]:
        """Reads it; (position behind, number of values taken by ``*``)."""
        taken = 0
        while self._char() and self._char() in "+-# 0":
            self.flags += self._char()
            self.at += 1
        self.width, more = self._amount(values)
        taken += more
        if self._char() == ".":
            self.at += 1
            self.precision, more = self._amount(values[taken:])
            taken += more
        self.verb = self._char()
        return self.at + len(self.verb), taken

    def _char(self) -> str:
        return self.form[self.at : self.at + 1]

    def _amount(self, values: tuple[Any, ...]) -> tuple[int, int]:
        if self._char() == "*":
            self.at += 1
            return (max(-10_000, min(values[0], 10_000)), 1) if values and isinstance(values[0], int) else (0, 1)
        digits = ""
        while self._char().isdigit():
            digits += self._char()
            self.at += 1
        return min(int(digits or 0), 10_000), 0

    def format(self, value: Any) -> str:
        """One value, padded."""
        text = self._body(value)
        if "-" in self.flags:
            return text.ljust(self.width)
        if "0" in self.flags and self.verb in "dfegxXob" and not isinstance(value, str):
            return text.zfill(self.width)
        return text.rjust(self.width)

    def _body(self, value: Any) -> str:
        whole = isinstance(value, int) and not isinstance(value, bool)
        sign = "+" if "+" in self.flags else " " if " " in self.flags else ""
        if self.verb == "v":
            return quoted(value) if "#" in self.flags and isinstance(value, str) else go_string(value)
        if self.verb == "T":
            return kind_of(value)
        if self.verb in "sqxX" and isinstance(value, str):
            return self._string(value)
        if isinstance(value, list | tuple):
            return "[" + " ".join(self._body(item) for item in value) + "]"
        if self.verb == "t" and isinstance(value, bool):
            return go_string(value)
        if whole and self.verb in "dxXobcqU":
            return self._integer(value, sign)
        if isinstance(value, float) and self.verb in "feEgGF":
            return (
                format(value, f"{sign}.{6 if self.precision < 0 else self.precision}{self.verb}")
                if self.verb in "feEF"
                else self._general(value)
            )
        return f"%!{self.verb}({kind_of(value)}={go_string(value)})"

    def _string(self, value: str) -> str:
        if self.precision >= 0:
            value = value[: self.precision]
        if self.verb == "q":
            return quoted(value)
        if self.verb == "s":
            return value
        text = value.encode("utf-8", "surrogateescape").hex()
        return text.upper() if self.verb == "X" else text

    def _integer(self, value: int, sign: str) -> str:
        if self.verb in "cq":
            char = chr(value) if 0 <= value <= 0x10FFFF else "\ufffd"
            return char if self.verb == "c" else f"'{char}'"
        if self.verb == "U":
            return f"U+{value:04X}"
        return format(value, f"{sign}{'#' if '#' in self.flags and self.verb in 'xXo' else ''}{self.verb}")

    def _general(self, value: float) -> str:
        return _float(value) if self.precision < 0 else format(value, f".{self.precision or 1}g")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": all_of,
    "or": any_of,
    "not": lambda value: not truth(value),
    "eq": eq,
    "ne": ne,
    "lt": lt,
    "le": le,
    "gt": gt,
    "ge": ge,
    "len": length,
    "index": index,
    "slice": cut,
    "print": joined,
    "printf": printf,
    "println": line,
    "html": html,
    "urlquery": urlquery,
    "json": to_json,
    "split": split,
    "join": join,
    "lower": lower,
    "upper": upper,
    "title": title,
    "trim": trim,
    "pad": pad,
    "truncate": truncate,
}
