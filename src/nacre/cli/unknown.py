"""What to say to a command that does not exist."""

from __future__ import annotations

import difflib

from nacre.cli import registry
from nacre.cli.flags import UsageError

# Commands that people know from Docker and that this version does not have.
_ELSEWHERE = ("build", "commit", "diff", "export", "import", "login", "logout", "push", "save", "search", "update", "compose", "context")


def unknown_command(words: list[str]) -> UsageError:
    """The error for a command line whose command is not in the registry."""
    if words[0] in registry.GROUPS:
        group, member = words[0], words[1]
        near = difflib.get_close_matches(member, registry.members(group), 1, 0.6)
        hint = f"Did you mean 'nacre {group} {near[0]}'? " if near else ""
        return UsageError(f"unknown command: nacre {group} {member}", hint=f"{hint}See 'nacre {group} --help'.")
    if words[0] in _ELSEWHERE:
        return UsageError(f"'{words[0]}' is a Docker command that this version of Nacre does not have", hint="See 'nacre --help'.")
    near = difflib.get_close_matches(words[0], [*registry.GROUPS, *(name for name in registry.COMMANDS if " " not in name)], 1, 0.6)
    hint = f"Did you mean 'nacre {near[0]}'? " if near else ""
    return UsageError(f"unknown command: nacre {words[0]}", hint=f"{hint}See 'nacre --help'.")
