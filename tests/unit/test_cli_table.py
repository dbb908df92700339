"""Lists: alignment, headers, formats, filters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nacre.cli.context import Context
from nacre.cli.filters import Filters, has_label, matches_name
from nacre.cli.flags import UsageError
from nacre.cli.quote import quoted
from nacre.cli.table import Field, align, ellipsis, labels_text, short_id, show, width
from nacre.errors import InvalidArgument

FIELDS = {
    "ID": Field("CONTAINER ID", lambda item: item["id"]),
    "Names": Field("NAMES", lambda item: item["name"]),
    "Labels": Field("LABELS", lambda item: labels_text(item["labels"])),
    "Label": Field("LABEL", lambda item: lambda key: item["labels"].get(key, ""), in_json=False),
    "Costly": Field("COSTLY", lambda item: item["cost"]),
}
ITEMS = [
    {"id": "0123456789ab", "name": "web", "labels": {"com.example.my-label_a": "v", "b": "c"}, "cost": "1"},
    {"id": "b", "name": "日本", "labels": {}, "cost": "2"},
]


def shown(capsys: pytest.CaptureFixture[str], form: str, items: Any = ITEMS, **options: Any) -> str:
    show(Context(), items, FIELDS, form, ("ID", "Names"), kind="container", **options)
    return capsys.readouterr().out


def test_columns_line_up() -> None:
    assert align([["ID", "NAME", "X"], ["1234567890", "a", ""]]) == ["ID           NAME      X", "1234567890   a         "]
    assert align([["A", "B"]], minimum=4, padding=2) == ["A   B"]
    assert align([]) == []


def test_a_table_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"id": "\x1b[2Jx", "name": "y", "labels": {}}]
    assert "\x1b" not in shown(capsys, "", items)
    assert "\x1b" not in shown(capsys, "table {{.ID}}", items)
    assert shown(capsys, "{{.ID}}", items) == "\x1b[2Jx\n"


def test_wide_characters_take_two_columns() -> None:
    assert width("日本") == 4
    assert width("e\u0301") == 1
    lines = align([["日本語日本語", "x"], ["abc", "y"]])
    assert lines[0].index("x") == 9
    assert lines[1].index("y") == 15


def test_default_columns(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "CONTAINER ID   NAMES\n0123456789ab   web\nb              日本\n"
    assert shown(capsys, "") == expected
    assert shown(capsys, "table") == expected
    assert shown(capsys, "", []) == "CONTAINER ID   NAMES\n"


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "", quiet="ID") == "0123456789ab\nb\n"
    assert shown(capsys, "{{.Names}}", quiet="ID") == "web\n日本\n"


def test_templates(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "{{.Names}}: {{.Labels}}") == "web: b=c,com.example.my-label_a=v\n日本: \n"
    assert shown(capsys, r"{{.ID}}\t{{.Names}}", ITEMS[:1]) == "0123456789ab\tweb\n"
    assert shown(capsys, "{{.Names}}", []) == ""


def test_tables_of_templates(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, r'table {{.Names}}\t{{.Label "com.example.my-label_a"}}') == "NAMES     my label a\nweb       v\n日本      \n"
    assert shown(capsys, r"table {{upper .Names}}\t{{truncate .ID 3}}", ITEMS[:1]) == "NAMES     CONTAINER ID\nWEB       012\n"
    assert shown(capsys, r"table {{.Names}}", []) == "NAMES\n"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "json").splitlines()
    assert json.loads(lines[0]) == {"Costly": "1", "ID": "0123456789ab", "Labels": "b=c,com.example.my-label_a=v", "Names": "web"}
    assert lines[1].startswith('{"Costly":"2","ID":"b"')
    assert shown(capsys, "{{json .}}").splitlines() == lines
    assert shown(capsys, "{{json .Names}}", ITEMS[:1]) == '"web"\n'


def test_an_unknown_field_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("{{.Foo}}", "table {{.Foo}}"):
        with pytest.raises(InvalidArgument) as caught:
            shown(capsys, form)
        assert "can't evaluate field Foo in type container" in caught.value.message
        assert caught.value.hint == "Fields: Costly, ID, Label, Labels, Names"


def test_fields_are_computed_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"id": "x", "name": "y", "labels": {}}]  # has no cost
    assert shown(capsys, "{{.ID}}", items) == "x\n"
    assert shown(capsys, "", items).endswith("x              y\n")


def test_filters() -> None:
    filters = Filters(["name=a", "name=b", "label=x", "label=y=1"], ("name", "label"))
    items = [{"name": "a", "label": {"x": "", "y": "1"}}, {"name": "b", "label": {"x": ""}}, {"name": "c", "label": {"x": "", "y": "1"}}]
    tests: Any = {"name": lambda item, value: item["name"] == value, "label": lambda item, value: has_label(item["label"], value)}
    # Alternatives for one name, but every label, and both together.
    assert [item["name"] for item in filters.apply(items, tests)] == ["a"]
    assert filters.apply(items, tests) == items[:1]
    assert "name" in filters
    assert "id" not in filters


def test_filters_that_are_wrong() -> None:
    with pytest.raises(UsageError, match="invalid filter 'foo'"):
        Filters(["foo"], ("name",))
    with pytest.raises(UsageError, match="invalid filter 'color'"):
        Filters(["color=red"], ("name",))
    with pytest.raises(InvalidArgument, match="dangling=maybe"):
        Filters(["dangling=maybe"], ("dangling",)).flag("dangling")
    assert Filters(["dangling=1"], ("dangling",)).flag("dangling")
    assert Filters([], ()).flag("dangling", default=True)


def test_names_are_matched_by_regular_expressions() -> None:
    assert matches_name("web1", "web")
    assert matches_name("web1", "^web[0-9]$")
    assert not matches_name("web1", "^eb")
    with pytest.raises(InvalidArgument, match="not a regular expression"):
        matches_name("web1", "(")


def test_small_words() -> None:
    assert ellipsis("nginx -g 'daemon off;'", 20) == "nginx -g 'daemon of…"
    assert ellipsis("short", 20) == "short"
    assert short_id("sha256:" + "ab" * 32) == "abababababab"
    assert quoted('a "b"\n\x1b[31m\u200b\udcff') == '"a \\"b\\"\\n\\x1b[31m\\u200b\\xff"'
