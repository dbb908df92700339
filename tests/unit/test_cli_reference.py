"""docs/cli.md is what the program says about itself."""

from __future__ import annotations

from pathlib import Path

from nacre.cli import registry
from nacre.cli.reference import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_reference_is_current() -> None:
    assert PAGE.read_text() == markdown(), "out of date; make it again with: python -m nacre.cli.reference > docs/cli.md"


def test_every_command_is_in_it() -> None:
    page = markdown()
    for name in registry.COMMANDS:
        assert f"### nacre {name}\n" in page or f"`nacre {name}`" in page
