"""Identifiers and names: random ids, and names a person can type."""

from __future__ import annotations

import os

from nacre.errors import InvalidArgument

_FIRST = (
    "amber", "azure", "bright", "brisk", "calm", "clear", "coral", "crisp", "deep", "early", "fair", "gentle", "glad", "golden", "grand",
    "jade", "keen", "kind", "late", "light", "lively", "lucid", "merry", "mild", "misty", "noble", "opal", "pale", "patient", "plain",
    "polar", "proud", "quick", "quiet", "rapid", "ruby", "sage", "sharp", "silent", "silver", "sleek", "smooth", "solid", "steady", "still",
    "sunny", "swift", "tidal", "tidy", "vivid", "warm", "wise",
)  # fmt: skip
_SECOND = (
    "abalone", "anchor", "atoll", "bay", "beacon", "bight", "brook", "cape", "chart", "clam", "cliff", "cockle", "conch", "cove",
    "cowrie", "creek", "current", "delta", "dune", "fjord", "ford", "grotto", "gulf", "harbor", "island", "kelp", "lagoon", "limpet",
    "marina", "mussel", "nautilus", "oyster", "pearl", "periwinkle", "pier", "reef", "ridge", "sail", "scallop", "shell", "shoal",
    "shore", "sound", "spring", "strait", "surf", "tide", "triton", "voyage", "wave", "whelk", "wharf",
)  # fmt: skip
_LETTERS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_OTHERS = frozenset("_.-")


def new_id() -> str:
    """64 random hex digits."""
    return os.urandom(32).hex()


def suggest(identifier: str, attempt: int) -> str:
    """A name made from an id: the same id and attempt give the same name."""
    number = int(identifier[8 * (attempt % 8) : 8 * (attempt % 8) + 8], 16) + attempt
    name = f"{_FIRST[number % len(_FIRST)]}_{_SECOND[number // len(_FIRST) % len(_SECOND)]}"
    return name if attempt < 4 else f"{name}{number % 10_000}"


def check(name: str) -> str:
    """The name, without a leading slash. Raises InvalidArgument for what Docker's rule (two or more of [a-zA-Z0-9_.-]) refuses."""
    name = name.removeprefix("/")
    if len(name) < 2 or name[0] not in _LETTERS or not (_LETTERS | _OTHERS).issuperset(name):
        raise InvalidArgument(
            f"invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            hint="use two or more letters, digits, '_', '.' or '-', beginning with a letter or digit",
        )
    return name
