"""JSON without the package `json`: the same texts, the same values, the same refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nacre.model import jsontext

SOURCES = Path(__file__).parents[2] / "src"
VALUES: list[Any] = [
    None, True, False, 0, -1, 1 << 70, 1.5, -0.0, 1e300, 1e-7, "", "a\"b\\c\n\t\x00\x7f", "é\u2028\U0001f600", "\udcff", [], {}, [[]],
    {"a": {"b": [1, "two", None, {"c": 3.25}]}, "": [True, False]}, ["x" * 5000], {"1": 1, "key with space": "/"}, (1, (2, 3)),
]  # fmt: skip


@pytest.fixture(params=["quick", "usual"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    encode, scan = getattr(jsontext, f"_{request.param}")()
    monkeypatch.setattr(jsontext, "_encode", encode)
    monkeypatch.setattr(jsontext, "_scan", scan)
    return str(request.param)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_texts_are_the_same(way: str, value: Any) -> None:
    text = jsontext.dumps(value)
    assert text == json.dumps(value, separators=(",", ":"))
    assert jsontext.loads(text) == json.loads(text)
    assert jsontext.loads(f" \r\n\t{text}\n".encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["-0", "1E5", "[1 , 2]", '{"a" : "\\u00e9\\/"}', '{"a":1,"a":2}', "[1.0,2.50]", '"\\ud83d\\ude00"'])
def test_values_are_the_same(way: str, text: str) -> None:
    assert jsontext.loads(text) == json.loads(text)


def test_numbers_that_are_none(way: str) -> None:
    assert math.isnan(jsontext.loads("NaN"))
    assert jsontext.loads("[Infinity,-Infinity]") == [math.inf, -math.inf]
    assert jsontext.dumps([math.inf]) == json.dumps([math.inf])


@pytest.mark.parametrize("text", ["", "  ", "{", "[1,]", "{'a':1}", "nul", "1 2", '"a', '{"a"}', "[1}", '"\n"', "\x00", "]"])
def test_what_is_no_json_is_refused(way: str, text: str) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(text)
    with pytest.raises(ValueError):
        jsontext.loads(text.encode())


def test_bytes_that_are_no_text_are_refused(way: str) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(b'"\xff"')


def test_objects_are_refused(way: str) -> None:
    with pytest.raises(TypeError, match="Path is not JSON serializable"):
        jsontext.dumps({"a": [Path("/")]})


def test_the_package_is_the_other_way() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(SOURCES)!r})
sys.modules["_json"] = None
from nacre.model import jsontext
assert "json" in sys.modules
print(jsontext.dumps({{"a": [1, None]}}), jsontext.loads(b'[1]'))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '{"a":[1,null]} [1]\n'
