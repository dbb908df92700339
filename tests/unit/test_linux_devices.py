"""Device rules: what they permit as text of v1, as a program of v2, and as a plain reading of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import InvalidArgument, Unsupported
from nacre.linux import devices
from nacre.linux.devices import DEFAULT_DEVICES, DeviceRule

BITS = {"m": 1, "r": 2, "w": 4}


def evaluate(program: bytes, access: str, kind: str, major: int, minor: int) -> int:
    """Run the eBPF program: the few instructions that it is made of. It must end, and never jump out of itself or backwards."""
    memory = {0: sum(BITS[letter] for letter in access) << 16 | {"b": 1, "c": 2}[kind], 4: major, 8: minor}
    registers, at = [0] * 11, 0
    code = list(struct.iter_unpack("<BBhi", program))
    while True:
        opcode, pair, offset, value = code[at]
        dst, src = pair & 15, pair >> 4
        at += 1
        assert offset >= 0
        if opcode == 0x95:
            return registers[0]
        if opcode in (0x05, 0x55, 0x45):
            taken = {0x05: True, 0x55: registers[dst] != value, 0x45: bool(registers[dst] & value)}[opcode]
            at += offset if taken else 0
            continue
        registers[dst] = {
            0x61: memory.get(offset, 0),
            0xBF: registers[src],
            0x57: registers[dst] & value,
            0x77: registers[dst] >> max(value, 0),
            0xB7: value,
        }[opcode]


def permitted(rules: Sequence[DeviceRule], access: str, kind: str, major: int, minor: int) -> bool:
    """What the rules mean: for each letter the last rule that matches decides, none refuses."""

    def one(letter: str) -> bool:
        for rule in reversed(rules):
            if rule.kind == "a":
                return rule.allow
            same = rule.kind == kind and rule.major in (-1, major) and rule.minor in (-1, minor)
            if same and letter in rule.access:
                return rule.allow
        return False

    return all(one(letter) for letter in access)


def as_v1(rules: Sequence[DeviceRule], access: str, kind: str, major: int, minor: int) -> bool:
    """What v1 would do with the exceptions: device_cgroup.c, `match_exception` and `match_exception_partial`, letter by letter."""
    everything, exceptions = devices.exceptions(rules)

    def listed(letter: str) -> bool:
        return any(
            key[0] == kind and key[1] in (-1, major) and key[2] in (-1, minor) and bits & BITS[letter] for key, bits in exceptions.items()
        )

    return all(not listed(letter) for letter in access) if everything else all(listed(letter) for letter in access)


@pytest.mark.parametrize(
    ("access", "kind", "major", "minor", "allowed"),
    [
        ("rw", "c", 1, 3, 1),
        ("rwm", "c", 1, 9, 1),
        ("r", "c", 1, 1, 0),  # /dev/mem
        ("m", "c", 1, 1, 1),
        ("m", "b", 8, 0, 1),
        ("r", "b", 8, 0, 0),
        ("rm", "b", 8, 0, 0),
        ("rw", "c", 136, 7, 1),
        ("r", "b", 136, 7, 0),
        ("r", "b", 1, 3, 0),
    ],
)
def test_default_device_program(access: str, kind: str, major: int, minor: int, allowed: int) -> None:
    assert evaluate(devices.program(DEFAULT_DEVICES), access, kind, major, minor) == allowed


def random_rules(chance: random.Random) -> tuple[DeviceRule, ...]:
    def rule() -> DeviceRule:
        return DeviceRule(
            kind=chance.choice("abcbc"),
            major=chance.choice((-1, 1, 8)),
            minor=chance.choice((-1, 0, 3)),
            access="".join(chance.sample("rwm", chance.randint(1, 3))),
            allow=chance.random() < 0.6,
        )

    return tuple(rule() for _ in range(chance.randint(0, 6)))


REQUESTS = [
    (access, kind, major, minor) for access in ("r", "w", "m", "rw", "rwm") for kind in "bc" for major in (1, 8, 9) for minor in (0, 3, 5)
]


def test_programs_and_exceptions_mean_what_the_rules_say() -> None:
    chance = random.Random(20260)
    compared = 0
    for _ in range(400):
        rules = random_rules(chance)
        program = devices.program(rules)
        for request in REQUESTS:
            assert evaluate(program, *request) == permitted(rules, *request), (rules, request)
        try:
            devices.exceptions(rules)
        except Unsupported:
            continue
        compared += 1
        for request in REQUESTS:
            assert as_v1(rules, *request) == permitted(rules, *request), (rules, request)
        if devices.permits_all(rules):
            assert all(permitted(rules, *request) for request in REQUESTS)
    assert compared > 200


def test_a_hole_in_a_wider_rule_is_refused_on_v1() -> None:
    rules = (DeviceRule(kind="c", access="rw"), DeviceRule(kind="c", major=1, minor=3, access="w", allow=False))
    with pytest.raises(Unsupported, match=r"cannot deny c 1:3 w: an earlier rule, c \*:\* rw, is wider"):
        devices.exceptions(rules)
    assert devices.exceptions((*rules[:1], DeviceRule(kind="c", access="w", allow=False))) == (False, {("c", -1, -1): 2})


@pytest.mark.parametrize(
    ("listed", "rules", "written"),
    [
        ("a *:* rwm\n", (DeviceRule(kind="c", major=1, minor=3),), ["deny a", "allow c 1:3 rwm"]),
        ("c 1:3 rwm\n", (DeviceRule(kind="c", major=1, minor=3),), []),
        ("c 1:3 rwm\nb 8:0 r\n", (DeviceRule(kind="c", major=1, minor=3, access="r"),), ["deny c 1:3 wm", "deny b 8:0 r"]),
        ("c 1:3 r\n", (DeviceRule(kind="c", major=1, minor=3), DeviceRule(kind="b", major=8)), ["allow c 1:3 wm", "allow b 8:* rwm"]),
        ("c 1:3 r\n", (DeviceRule(kind="a"),), ["allow a"]),
        ("c 1:3 r\n", (DeviceRule(kind="a"), DeviceRule(kind="b", major=8, allow=False)), ["allow a", "deny b 8:* rwm"]),
    ],
)
def test_v1_is_written_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, rules: tuple[DeviceRule, ...], written: list[str]
) -> None:
    (tmp_path / "devices.list").write_text(listed)
    seen: list[str] = []
    monkeypatch.setattr(devices, "_write", lambda path, text: seen.append(f"{path.rpartition('.')[2]} {text}"))
    devices.restrict_v1(str(tmp_path), rules)
    assert seen == written


def test_rules_of_the_specification() -> None:
    entries: list[dict[str, Any]] = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": True, "type": "b", "major": 8},
    ]
    rules = devices.rules_of(entries)
    assert [(rule.allow, str(rule)) for rule in rules[:3]] == [(False, "a *:* rwm"), (True, "c 10:229 rw"), (True, "b 8:* rwm")]
    assert rules[3:] == DEFAULT_DEVICES
    assert devices.rules_of(None) == devices.rules_of([]) == DEFAULT_DEVICES
    assert devices.permits_all(devices.rules_of([{"allow": True, "access": "rwm"}]))
    assert not devices.permits_all(rules)


@pytest.mark.parametrize(
    "entry", [{}, {"allow": "yes"}, {"allow": True, "type": "x"}, {"allow": True, "type": "p"}, {"allow": True, "major": "1"},
              {"allow": True, "type": "c", "access": "q"}, {"allow": True, "major": -2}, {"allow": True, "minor": 1 << 40}, 7],
    ids=str,
)  # fmt: skip
def test_bad_rules_of_the_specification(entry: Any) -> None:
    with pytest.raises(InvalidArgument):
        devices.rules_of([entry])


@pytest.mark.parametrize(("text", "shown"), [("c 42:* rmw", "c 42:* rmw"), ("b *:3 r", "b *:3 r"), ("a 7:* r", "a *:* rwm")])
def test_rules_of_the_command_line(text: str, shown: str) -> None:
    assert str(devices.parse_rule(text)) == shown


@pytest.mark.parametrize("text", ["", "c", "c 1:3", "d 1:3 r", "c 1 r", "c 1:x r", "c 1:3 z", "c -1:3 r", "c 1:3 r w"])
def test_bad_rules_of_the_command_line(text: str) -> None:
    with pytest.raises(InvalidArgument):
        devices.parse_rule(text)


def test_device_rules_as_text() -> None:
    assert [str(rule) for rule in devices.DEFAULT_DEVICES[:3]] == ["c *:* m", "b *:* m", "c 1:3 rwm"]
    assert str(devices.rule_for("/dev/null", "r")) == "c 1:3 r"


@pytest.mark.parametrize(
    ("path", "access", "message"), [("/nowhere", "r", "cannot use device"), ("/etc", "r", "not a device"), ("/dev/null", "x", "invalid")]
)
def test_bad_devices(path: str, access: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        devices.rule_for(path, access)
