"""D-Bus messages: bytes <-> values, and the handshake before them. No I/O.

Source: the D-Bus specification, "Type System", "Marshaling (Wire Format)", "Message Protocol", "Authentication Protocol". Only
what a client of one service needs: little and big endian are read, little endian is written; no descriptors are passed.

Python values of the types: integers (y n q i u x t), bool (b), float (d), str (s o g), list (a), bytes (ay), dict (a{..}),
tuple for a structure, `Variant` (v).
"""

from __future__ import annotations

import struct

from nacre.errors import InvalidArgument, RemoteError
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY = 1
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = 1, 2, 3, 4, 5, 6, 7, 8
_FIELDS = {
    "path": (_PATH, "o"), "interface": (_INTERFACE, "s"), "member": (_MEMBER, "s"), "error": (_ERROR_NAME, "s"),
    "reply_to": (_REPLY_SERIAL, "u"), "destination": (_DESTINATION, "s"), "sender": (_SENDER, "s"), "signature": (_SIGNATURE, "g"),
}  # fmt: skip
_NAMES = {code: name for name, (code, _) in _FIELDS.items()}
_FIXED = {"y": ("B", 1), "n": ("h", 2), "q": ("H", 2), "i": ("i", 4), "u": ("I", 4), "x": ("q", 8), "t": ("Q", 8), "d": ("d", 8)}
_ALIGN = {"b": 4, "s": 4, "o": 4, "g": 1, "a": 4, "(": 8, "{": 8, "v": 1, **{key: size for key, (_, size) in _FIXED.items()}}
_BASIC = frozenset((*_FIXED, "b", "s", "o", "g"))
_MOST = 128 * 1024 * 1024  # bytes of a message
_ARRAY_MOST = 64 * 1024 * 1024
_DEEPEST = 64


class Variant(Value):
    """A value that carries its type."""

    signature: str
    value: object


class Message(Value):
    """One message. kind: CALL, RETURN, ERROR or SIGNAL; body: one value for each complete type of the signature."""

    kind: int
    serial: int
    body: tuple[Any, ...] = ()
    signature: str = ""
    path: str = ""
    interface: str = ""
    member: str = ""
    destination: str = ""
    sender: str = ""
    error: str = ""
    reply_to: int = 0
    flags: int = 0


# Signatures


def types(signature: str) -> list[str]:
    """The complete types of a signature: ``sa(sv)u`` is s, a(sv) and u. Raises RemoteError for what is no signature."""
    found, at = [], 0
    while at < len(signature):
        end = _end(signature, at, 0)
        found.append(signature[at:end])
        at = end
    return found


def _end(signature: str, at: int, depth: int) -> int:
    """Where the complete type that starts at `at` ends."""
    letter = signature[at : at + 1]
    if depth > _DEEPEST or letter not in _ALIGN:
        raise RemoteError(f"D-Bus: invalid signature {signature!r}")
    if letter == "a":
        return _end(signature, at + 1, depth + 1)
    if letter not in "({":
        return at + 1
    close, at, count = {"(": ")", "{": "}"}[letter], at + 1, 0
    if letter == "{" and signature[at : at + 1] not in _BASIC:
        raise RemoteError(f"D-Bus: invalid signature {signature!r}")
    while signature[at : at + 1] != close:
        at, count = _end(signature, at, depth + 1), count + 1
    if not count or (letter == "{" and count != 2):
        raise RemoteError(f"D-Bus: invalid signature {signature!r}")
    return at + 1


# Values to bytes


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def pad(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def put(self, kind: str, value: Any) -> None:
        """Append a value of one complete type. Raises InvalidArgument when it is none of that type."""
        letter = kind[0]
        try:
            if letter in _FIXED:
                self.pad(_FIXED[letter][1])
                self.data += struct.pack("<" + _FIXED[letter][0], value)
            elif letter == "b":
                self.put("u", int(bool(value)))
            elif letter in "so":
                text = value.encode()
                self.put("u", len(text))
                self.data += text + b"\0"
            elif letter == "g":
                self.data += bytes((len(value),)) + value.encode("ascii") + b"\0"
            elif letter == "v":
                self.put("g", value.signature)
                self.put(value.signature, value.value)
            elif letter == "a":
                self._array(kind[1:], value)
            else:
                self._structure(kind, value)
        except (struct.error, AttributeError, TypeError, UnicodeError, IndexError) as error:
            raise InvalidArgument(f"D-Bus: {value!r} is not of type {kind!r}") from error

    def _array(self, kind: str, value: Any) -> None:
        self.put("u", 0)
        place = len(self.data)
        self.pad(_ALIGN[kind[0]])
        start = len(self.data)
        if kind == "y":
            self.data += bytes(value)
        else:
            for item in value.items() if isinstance(value, dict) else value:
                self.put(kind, item)
        struct.pack_into("<I", self.data, place - 4, len(self.data) - start)

    def _structure(self, kind: str, value: Any) -> None:
        self.pad(8)
        members = types(kind[1:-1])
        if len(members) != len(value):
            raise TypeError
        for member, item in zip(members, value, strict=True):
            self.put(member, item)


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises InvalidArgument when its body does not fit its signature."""
    body = _Writer()
    members = types(message.signature)
    if len(members) != len(message.body):
        raise InvalidArgument(f"D-Bus: {len(message.body)} values for the signature {message.signature!r}")
    for kind, value in zip(members, message.body, strict=True):
        body.put(kind, value)
    given = ((code, kind, getattr(message, name)) for name, (code, kind) in _FIELDS.items())
    fields = [(code, Variant(signature=kind, value=value)) for code, kind, value in given if value]
    head = _Writer()
    for kind, value in zip("yyyyuu", (ord("l"), message.kind, message.flags, 1, len(body.data), message.serial), strict=True):
        head.put(kind, value)
    head.put("a(yv)", fields)
    head.pad(8)
    return bytes(head.data + body.data)


# Bytes to values


class _Reader:
    def __init__(self, data: bytes, order: str) -> None:
        self.data = data
        self.order = order
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise RemoteError("D-Bus: a message ends in the middle of a value")
        self.at += size
        return self.data[self.at - size : self.at]

    def pad(self, size: int) -> None:
        self.take(-self.at % size)

    def get(self, kind: str, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise RemoteError("D-Bus: a message is nested too deeply")
        letter = kind[0]
        if letter in _FIXED:
            code, size = _FIXED[letter]
            self.pad(size)
            return struct.unpack(self.order + code, self.take(size))[0]
        if letter == "b":
            return bool(self.get("u"))
        if letter in "sog":
            size = self.get("y" if letter == "g" else "u")
            return self.take(size + 1)[:-1].decode(errors="replace")
        if letter == "v":
            inner = self.get("g")
            if len(types(inner)) != 1:
                raise RemoteError(f"D-Bus: invalid signature {inner!r} of a variant")
            return Variant(signature=inner, value=self.get(inner, depth + 1))
        if letter == "a":
            return self._array(kind[1:], depth)
        self.pad(8)
        return tuple(self.get(member, depth + 1) for member in types(kind[1:-1]))

    def _array(self, kind: str, depth: int) -> Any:
        size = self.get("u")
        self.pad(_ALIGN[kind[0]])
        if size > _ARRAY_MOST:
            raise RemoteError("D-Bus: an array is too large")
        if kind == "y":
            return self.take(size)
        end = self.at + size
        if end > len(self.data):
            raise RemoteError("D-Bus: a message ends in the middle of an array")
        items = []
        while self.at < end:
            items.append(self.get(kind, depth + 1))
        if self.at != end:
            raise RemoteError("D-Bus: an array does not have the size that it says")
        return dict(items) if kind[0] == "{" else items


class Decoder:
    """Turns a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises RemoteError for what is no D-Bus."""
        self._buffer += data
        found = []
        while len(self._buffer) >= 16:
            order = {ord("l"): "<", ord("B"): ">"}.get(self._buffer[0])
            if not order or self._buffer[3] != 1:
                raise RemoteError("D-Bus: what arrived is no message of protocol version 1")
            body, _serial, fields = struct.unpack_from(order + "III", self._buffer, 4)
            start = 16 + fields + -fields % 8
            if fields > _ARRAY_MOST or start + body > _MOST:
                raise RemoteError("D-Bus: a message is too large")
            if len(self._buffer) < start + body:
                break
            found.append(_decode(self._buffer[: start + body], start, order))
            self._buffer = self._buffer[start + body :]
        return found


def _decode(data: bytes, start: int, order: str) -> Message:
    head = _Reader(data, order)
    _, kind, flags, _, _, serial, fields = (head.get(part) for part in ("y", "y", "y", "y", "u", "u", "a(yv)"))
    values = {_NAMES[code]: variant.value for code, variant in fields if code in _NAMES}
    for name, value in values.items():
        if not isinstance(value, int if name == "reply_to" else str):
            raise RemoteError(f"D-Bus: the header field {name} is of a wrong type")
    body = _Reader(data[start:], order)
    members = types(values.get("signature", ""))
    return Message(kind=kind, serial=serial, flags=flags, body=tuple(body.get(member) for member in members), **values)


# The handshake


def greeting(uid: int) -> bytes:
    """What a client sends first: a null byte, EXTERNAL (the peer asks the kernel who we are), and the end of the handshake.

    The end goes along before the answer is known, as systemd's own clients do it: systemd does not look at a message that comes in
    one piece with it, until something else arrives.
    """
    return b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\nBEGIN\r\n"


def accepted(line: bytes) -> bool:
    """Whether the peer's answer to the greeting is a yes."""
    return line.startswith(b"OK ")


def socket_path(address: str) -> str:
    """The path in the first ``unix:`` address of a list such as DBUS_SESSION_BUS_ADDRESS; an abstract one begins with a null byte.

    "" when there is none.
    """
    for entry in address.split(";"):
        kind, _, rest = entry.partition(":")
        pairs = dict(part.partition("=")[::2] for part in rest.split(","))
        if kind == "unix" and ("path" in pairs or "abstract" in pairs):
            return _unescape(pairs["path"]) if "path" in pairs else "\0" + _unescape(pairs["abstract"])
    return ""


def _unescape(text: str) -> str:
    head, *rest = text.split("%")
    try:
        return head + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)
    except ValueError:
        return text
