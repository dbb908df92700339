from __future__ import annotations

import pytest

from nacre.errors import InvalidArgument, NotFound
from nacre.images.platform import check, choose, host_platform, matches, parse_platform
from nacre.model.image import Descriptor, Platform
from nacre.wire.registry import Index, IndexEntry


def index(*names: str | None) -> Index:
    entries = [
        IndexEntry(
            descriptor=Descriptor(media_type="m", digest=f"sha256:{number:064x}", size=1),
            platform=None if name is None else Platform(**dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))),
        )
        for number, name in enumerate(names)
    ]
    return Index(media_type="i", entries=tuple(entries))


def chosen(wanted: str, *names: str | None) -> str:
    return str(choose(index(*names), parse_platform(wanted), "img").platform)


def test_parse() -> None:
    assert str(parse_platform("linux/arm64/v8")) == "linux/arm64/v8"
    assert str(parse_platform("arm64")) == "linux/arm64"
    assert str(parse_platform("linux/x86_64")) == "linux/amd64"
    assert str(parse_platform("linux/armel")) == "linux/arm/v6"
    assert parse_platform("linux").architecture == host_platform().architecture
    for text in ("", "linux/", "a/b/c/d", "linux/a b", "linux/é"):
        with pytest.raises(InvalidArgument, match="is not a platform"):
            parse_platform(text)


def test_exact_and_fallback_variants() -> None:
    assert chosen("linux/amd64", "linux/arm64", "linux/amd64", "windows/amd64") == "linux/amd64"
    assert chosen("linux/arm/v7", "linux/arm/v5", "linux/arm/v6") == "linux/arm/v6"
    assert chosen("linux/arm64", "linux/arm64/v8") == "linux/arm64/v8"
    assert chosen("linux/arm64/v8", "linux/arm64") == "linux/arm64"
    assert chosen("linux/amd64/v3", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4") == "linux/amd64/v2"
    assert chosen("linux/arm64", "linux/arm/v7", "linux/amd64") == "linux/arm/v7"
    assert chosen("linux/amd64", "linux/386") == "linux/386"


def test_newer_variants_are_not_taken() -> None:
    with pytest.raises(NotFound) as caught:
        chosen("linux/arm/v6", "linux/arm/v7", "linux/amd64")
    assert caught.value.message == "no matching manifest for linux/arm/v6 in img"
    assert "linux/amd64, linux/arm/v7" in caught.value.hint


def test_entries_without_a_platform() -> None:
    assert chosen("linux/amd64", None) == "None"
    with pytest.raises(NotFound):
        chosen("linux/amd64", None, None)


def test_attestations_are_passed_over() -> None:
    whole = index("linux/amd64")
    marked = whole.replace(entries=(whole.entries[0].replace(attestation=True),))
    with pytest.raises(NotFound):
        choose(marked, parse_platform("linux/amd64"), "img")
    with pytest.raises(NotFound, match="in img"):
        chosen("linux/amd64", "unknown/unknown")


def test_images_that_leave_fields_open_are_believed() -> None:
    assert matches(Platform(os="", architecture=""), parse_platform("linux/arm64"))
    assert not matches(Platform(os="windows"), parse_platform("linux/amd64"))


def test_check() -> None:
    arm, amd = parse_platform("linux/arm64"), parse_platform("linux/amd64")
    assert check(amd, amd, explicit=True, what="img") == ""
    assert check(arm, amd, explicit=False, what="img").startswith("WARNING: img is for linux/arm64")
    with pytest.raises(NotFound, match="does not match the specified platform"):
        check(arm, amd, explicit=True, what="img")
