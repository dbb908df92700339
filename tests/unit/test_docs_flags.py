"""docs/security.md has a row for every flag of run, whether it works or is refused."""

from __future__ import annotations

import re
from pathlib import Path

from nacre.cli.commands.run import COMMANDS
from nacre.cli.spec import UNSUPPORTED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"


def test_every_flag_has_a_row() -> None:
    table = PAGE.read_text().partition("\n## Every flag\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `--")]
    named = [name for row in rows for name in re.findall(r"`--([a-z0-9-]+)", row.split("|")[1])]
    assert all(len(row.split(" | ")) == 3 for row in rows)
    known = {flag.name for flag in COMMANDS["run"].flags} | UNSUPPORTED
    assert set(named) == known
    repeated = {name for name in named if named.count(name) > 1}
    assert repeated == {"security-opt", "mount"}
