"""Sizes, durations and times, as they are typed and as they are printed."""

from __future__ import annotations

import pytest

from nacre.cli import units
from nacre.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("64k", 64 << 10),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("1.5g", 3 << 29),
        ("2 GiB", 2 << 30),
        ("1mb", 1 << 20),
        ("1t", 1 << 40),
        (".5k", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1q", "1.2.3m", "one", "1kk", "\u0661m", "1e3", "1i", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        units.parse_size(text)


def test_processors() -> None:
    assert units.parse_cpus("1.5") == 1.5
    assert units.parse_cpus(".25") == 0.25
    for text in ("", ".", "-1", "1/2", "a", "1.2.3", "0.1234567891"):
        with pytest.raises(InvalidArgument):
            units.parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("42m", 2520.0), ("1h30m", 5400.0), ("1.5h", 5400.0), ("300ms", 0.3), ("-2s", -2.0), ("0", 0.0), ("1m0.5s", 60.5), ("5us", 5e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5x", "--5s", "5s3", "1.2.3s", "5 s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument):
        units.parse_duration(text)


def test_moments() -> None:
    assert units.parse_moment("10m", now=1000.0) == 400.0
    assert units.parse_moment("1136073600") == 1136073600.0
    assert units.parse_moment("1136073600.25") == 1136073600.25
    assert units.parse_moment("2006-01-01T00:00:00Z") == 1136073600.0
    assert units.parse_moment("2006-01-01T01:00:00.000000001+01:00") == 1136073600.0


def test_moments_without_a_zone_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert units.parse_moment("2006-01-01T02:00") == 1136073600.0
        assert units.parse_moment("2006-01-01") == 1136073600.0 - 7200
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["yesterday", "", "2006-13-01", "5x", "2006-01-01T99:00"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(InvalidArgument):
        units.parse_moment(text)


def test_times_in_records() -> None:
    assert units.parse_time("2006-01-01T00:00:00Z") == 1136073600.0
    assert units.parse_time("2024-02-29T12:30:15.5Z") == 1709209815.5
    assert units.parse_time("2024-02-29T13:30:15.123456789+01:00") == pytest.approx(1709209815.123456)
    assert units.parse_time("1970-01-01T00:00:00Z") == 0.0
    assert units.parse_time("") == 0.0
    assert units.parse_time("last tuesday, I think") == 0.0
    assert units.parse_time("abcd-ef-ghT00:00:00Z") == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (59 * 86400, "8 weeks"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (730 * 86400, "2 years"),
        (-5, "Less than a second"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert units.human_duration(seconds) == words


def test_ago() -> None:
    assert units.ago(1000.0, now=1125.0) == "2 minutes ago"
    assert units.ago(0.0) == "N/A"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (7_800_000, "7.8MB"),
        (78_123_456, "78.1MB"),
        (999_999_999, "1000MB"),
        (1_240_000_000, "1.24GB"),
    ],
)
def test_decimal_sizes(size: int, text: str) -> None:
    assert units.human_size(size) == text


def test_binary_sizes() -> None:
    assert units.binary_size(5_000_000) == "4.768MiB"
    assert units.binary_size(1023) == "1023B"
    assert units.binary_size(1 << 30) == "1GiB"


def test_times_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert units.local_time(1136073600.0) == "2006-01-01 00:00:00 +0000 UTC"
        assert units.rfc3339(1136073600.0) == "2006-01-01T00:00:00Z"
        assert units.rfc3339_nano(1136073600 * 10**9 + 123) == "2006-01-01T00:00:00.000000123Z"
        assert units.local_time(0.0) == ""
    finally:
        monkeypatch.undo()
        time.tzset()
