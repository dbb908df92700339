"""The QMP codec: what a real QEMU 7.2 says, split in every way, and what a hostile one might."""

from __future__ import annotations

import json
import random

import pytest

from nacre.wire.qmp import MESSAGE_MAX, Decoder, Event, Greeting, Reply, encode

SAID = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg"}, "capabilities": ["oob"]}}\r\n'
    b'{"return": {}, "id": 1}\r\n'
    b'{"timestamp": {"seconds": 1795268918, "microseconds": 500000}, "event": "STOP"}\r\n'
    b'{"id": 2, "return": {"status": "paused", "running": false}}\r\n'
    b'{"id": 3, "error": {"class": "CommandNotFound", "desc": "The command foo has not been found"}}\r\n'
)
MEANT = [
    Greeting(version="7.2.22", package="Debian 1:7.2+dfsg"),
    Reply(tag=1, value={}),
    Event(name="STOP", time=1795268918.5),
    Reply(tag=2, value={"status": "paused", "running": False}),
    Reply(tag=3, error="The command foo has not been found", error_class="CommandNotFound"),
]


def test_whole_stream() -> None:
    assert Decoder().feed(SAID) == MEANT


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_split_stream(size: int) -> None:
    decoder = Decoder()
    messages = [message for start in range(0, len(SAID), size) for message in decoder.feed(SAID[start : start + size])]
    assert messages == MEANT


def test_commands() -> None:
    assert encode("query-status", 4) == b'{"execute":"query-status","id":4}\n'
    assert json.loads(encode("x", 5, {"path": 'a"\n'})) == {"execute": "x", "id": 5, "arguments": {"path": 'a"\n'}}
    assert encode("x", 5, {"path": "\n"}).count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"[]",
        b"7",
        b"{}",
        b'{"QMP": {}}',
        b'{"QMP": {"version": {"qemu": {"major": "7"}}}}',
        b'{"event": 7}',
        b'{"event": "X", "data": 7}',
        b'{"error": "no"}',
        b'{"return": {}, "id": "one"}',
        b"[" * 100000,
        b"\xff\xfe",
    ],
)
def test_malformed(line: bytes) -> None:
    with pytest.raises(ValueError, match="QMP"):
        Decoder().feed(line + b"\n")


def test_bounded() -> None:
    decoder = Decoder()
    with pytest.raises(ValueError, match="more than"):
        for _ in range(20):
            decoder.feed(b"x" * (MESSAGE_MAX // 10))


def test_any_damage_is_a_value_error() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        damaged = bytearray(SAID)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            Decoder().feed(bytes(damaged))
        except ValueError:
            continue
