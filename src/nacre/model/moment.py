"""Points in time as records have them: RFC 3339 in UTC."""

from __future__ import annotations


def parse(text: str) -> float:
    """Seconds since the epoch of ``2024-01-02T03:04:05.678Z``; the standard library's ways to say that load slowly. Raises ValueError."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    hour, minute, second = int(text[11:13]), int(text[14:16]), float(text[17:-1])
    # Days from the civil date: years start in March, so that the leap day comes last.
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468
    return days * 86400.0 + hour * 3600 + minute * 60 + second
