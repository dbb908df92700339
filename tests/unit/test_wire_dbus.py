"""D-Bus messages: round trips, known bytes, and what a broken or hostile peer may send."""

from __future__ import annotations

import random

import pytest

from nacre.errors import InvalidArgument, RemoteError
from nacre.wire import dbus
from nacre.wire.dbus import CALL, ERROR, RETURN, SIGNAL, Decoder, Message, Variant


def roundtrip(message: Message) -> Message:
    [found] = Decoder().feed(dbus.encode(message))
    return found


def test_hello_is_what_the_specification_describes() -> None:
    data = dbus.encode(
        Message(
            kind=CALL, serial=1, path="/org/freedesktop/DBus", interface="org.freedesktop.DBus", member="Hello",
            destination="org.freedesktop.DBus",
        )
    )  # fmt: skip
    assert data == (
        b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00"
        b"\x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00"
        b"\x02\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00"
        b"\x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00"
        b"\x06\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00"
    )


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", ()),
        ("ybnqiuxtd", (255, True, -2, 65535, -3, 4, -5, 1 << 63, 0.5)),
        ("sog", ("grüße", "/a/b", "a(sv)")),
        ("as", (["one", "", "three"],)),
        ("ay", (b"\x00\x01\xff",)),
        ("au", ([],)),
        ("at", ([7],)),
        ("(s(iu))", (("x", (-1, 1)),)),
        ("a{sv}", ({"Name": Variant(signature="s", value="a"), "N": Variant(signature="t", value=1)},)),
        ("a(sv)", ([("PIDs", Variant(signature="au", value=[1, 2]))],)),
        ("a(sa(sv))", ([("unit", [("b", Variant(signature="b", value=False))])],)),
        ("v", (Variant(signature="a(ss)", value=[("char-*", "rwm")]),)),
    ],
)
def test_bodies_survive(signature: str, body: tuple[object, ...]) -> None:
    message = Message(kind=RETURN, serial=9, reply_to=3, signature=signature, body=body)
    assert roundtrip(message) == message


def test_headers_survive() -> None:
    message = Message(
        kind=SIGNAL, serial=7, path="/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager", member="JobRemoved",
        sender=":1.2", signature="uoss", body=(5, "/job/5", "x.scope", "done"), flags=1,
    )  # fmt: skip
    assert roundtrip(message) == message
    failure = Message(kind=ERROR, serial=8, error="org.freedesktop.DBus.Error.AccessDenied", reply_to=4, signature="s", body=("no",))
    assert roundtrip(failure) == failure


def test_bytes_may_arrive_in_any_pieces() -> None:
    messages = [Message(kind=RETURN, serial=number, reply_to=1, signature="s", body=("x" * number,)) for number in range(1, 30)]
    data = b"".join(map(dbus.encode, messages))
    chance, decoder, found = random.Random(1), Decoder(), []
    while data:
        size = chance.randint(1, 60)
        found += decoder.feed(data[:size])
        data = data[size:]
    assert found == messages


def test_big_endian_is_understood() -> None:
    data = bytes.fromhex("42020001 00000008 00000001 0000000f 05017500 00000002 08016700 017300 00 00000003 61626300".replace(" ", ""))
    [found] = Decoder().feed(data)
    assert (found.kind, found.reply_to, found.body) == (RETURN, 2, ("abc",))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"l\x01\x00\x02" + bytes(12),
        b"l\x01\x00\x01" + b"\xff" * 12,
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(RemoteError):
        Decoder().feed(data)


def test_no_broken_message_raises_anything_else() -> None:
    message = Message(
        kind=CALL, serial=1, path="/x", member="M", signature="sa{sv}a(ss)",
        body=("text", {"k": Variant(signature="ai", value=[1, 2])}, [("a", "b")]),
    )  # fmt: skip
    good, chance = dbus.encode(message), random.Random(5)
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            Decoder().feed(bytes(data))
        except RemoteError:
            continue


def test_depth_is_bounded() -> None:
    with pytest.raises(RemoteError, match="signature"):
        dbus.types("a" * 200 + "y")
    value: object = Variant(signature="y", value=1)
    for _ in range(100):
        value = Variant(signature="v", value=value)
    with pytest.raises(RemoteError, match="nested too deeply"):
        roundtrip(Message(kind=RETURN, serial=1, reply_to=1, signature="v", body=(value,)))


@pytest.mark.parametrize("signature", ["z", "(", "()", "a", "{sv", "a{s}", "(s", "a{svs}", "a{ays}"])
def test_bad_signatures(signature: str) -> None:
    with pytest.raises(RemoteError):
        dbus.types(signature)


@pytest.mark.parametrize(
    ("signature", "body"),
    [("u", (-1,)), ("u", ("1",)), ("s", (5,)), ("su", ("x",)), ("(su)", (("x",),)), ("v", (1,))],
)
def test_values_of_wrong_types(signature: str, body: tuple[object, ...]) -> None:
    with pytest.raises(InvalidArgument):
        dbus.encode(Message(kind=CALL, serial=1, signature=signature, body=body))


def test_types() -> None:
    assert dbus.types("ssa(sv)a(sa(sv))") == ["s", "s", "a(sv)", "a(sa(sv))"]


def test_handshake() -> None:
    assert dbus.greeting(1000) == b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n"
    assert dbus.accepted(b"OK 1234deadbeef\r\n")
    assert not dbus.accepted(b"REJECTED EXTERNAL\r\n")


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:path=/run/user/1000/bus", "/run/user/1000/bus"),
        ("tcp:host=x;unix:abstract=/tmp/dbus-1,guid=5", "\0/tmp/dbus-1"),
        ("unix:path=/a%20b,guid=1", "/a b"),
        ("launchd:env=X", ""),
        ("", ""),
    ],
)
def test_addresses(address: str, path: str) -> None:
    assert dbus.socket_path(address) == path
