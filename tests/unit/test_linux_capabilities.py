from __future__ import annotations

import pytest

from nacre.errors import InvalidArgument
from nacre.linux import capabilities as caps


def test_bits_are_the_kernels() -> None:
    # linux/capability.h: first, one from the middle, the last.
    assert (caps.bit("CHOWN"), caps.bit("SYS_ADMIN"), caps.bit("CHECKPOINT_RESTORE")) == (1 << 0, 1 << 21, 1 << 40)
    assert caps.ALL == 0x1FFFFFFFFFF


def test_the_default_set_is_dockers() -> None:
    assert caps.DEFAULT == 0xA80425FB


@pytest.mark.parametrize("spelling", ["net_admin", "CAP_NET_ADMIN", "cap_net_admin", " NET_ADMIN "])
def test_spellings(spelling: str) -> None:
    assert caps.bit(spelling) == 1 << 12


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), caps.DEFAULT),
        (("SYS_ADMIN",), (), caps.DEFAULT | 1 << 21),
        ((), ("CAP_KILL",), caps.DEFAULT & ~(1 << 5)),
        (("KILL",), ("KILL",), caps.DEFAULT),
        ((), ("ALL",), 0),
        (("CHOWN", "KILL"), ("all",), 1 << 0 | 1 << 5),
        (("ALL",), (), caps.ALL),
        (("CAP_ALL",), ("SYS_ADMIN",), caps.ALL & ~(1 << 21)),
        (("ALL",), ("ALL",), caps.ALL),
    ],
)
def test_resolution(add: tuple[str, ...], drop: tuple[str, ...], expected: int) -> None:
    assert caps.resolve(add, drop, available=caps.ALL) == expected


def test_privileged_gets_what_the_host_has() -> None:
    without = caps.ALL & ~caps.bit("SYS_RESOURCE")
    assert caps.resolve(drop=["CHOWN"], privileged=True, available=without) == without
    assert caps.resolve(["SYS_RESOURCE"], available=without) == caps.DEFAULT


@pytest.mark.parametrize("arguments", [{"add": ["FLY"]}, {"drop": ["CAP_"]}, {"add": ["FLY"], "privileged": True}])
def test_unknown_names_are_refused(arguments: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidArgument, match="unknown capability"):
        caps.resolve(**arguments, available=caps.ALL)  # type: ignore[arg-type]


def test_names_are_the_inverse() -> None:
    assert caps.names(caps.mask(["KILL", "CHOWN"])) == ("CAP_CHOWN", "CAP_KILL")
    assert caps.mask(caps.names(caps.ALL)) == caps.ALL
    assert caps.names(1 << 63) == ()


def test_held_is_within_the_known_set() -> None:
    assert caps.resolve(privileged=True) == caps.held() & caps.ALL
