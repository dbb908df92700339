"""Named numbers behave as `enum.IntEnum` does where they are used."""

from __future__ import annotations

import copy
import enum
import pickle

import pytest

from nacre.errors import InvalidArgument
from nacre.model import numbering
from nacre.model.plan import Code, Op, op
from nacre.model.value import Value


class Light(numbering.IntEnum):
    ONE = 1
    TWO = 2


class Heavy(enum.IntEnum):
    ONE = 1
    TWO = 2


class Record(Value):
    kind: Light
    other: Heavy = Heavy.ONE


def test_members() -> None:
    for kind in (Light, Heavy):
        assert [*kind] == [1, 2] and len(kind) == 2 and kind.TWO in kind
        member = kind(2)
        assert member is kind.TWO and member.name == "TWO" and member == 2 and hash(member) == hash(2)
        assert f"{member}" == "2" and str(member) == "2" and repr(member) == f"<{kind.__name__}.TWO: 2>" and isinstance(member, int)
        assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
        with pytest.raises(ValueError, match=f"3 is not a valid {kind.__name__}"):
            kind(3)


def test_values_hold_them() -> None:
    record = Record(kind=Light.TWO, other=Heavy.TWO)  # type: ignore[arg-type]
    assert record.to_data() == {"kind": 2, "other": 2} and Record.from_data(record.to_data()) == record
    with pytest.raises(InvalidArgument, match="kind: 7 is not a valid Light"):
        Record.from_data({"kind": 7})


def test_plans_are_made_of_them() -> None:
    made = op(Code.MKDIR, "/x", 0o755)
    assert Op.from_data({"code": 4}).code is Code.MKDIR and made.describe() == "mkdir /x 0x1ed"
