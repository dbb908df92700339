from __future__ import annotations

import pytest

from nacre.errors import InvalidArgument
from nacre.model.reference import Reference, check_digest, is_digest, split_registry

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04", "ubuntu:24.04"),
        ("library/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("index.docker.io/library/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("nginx/unit:1", "docker.io/nginx/unit:1", "nginx/unit:1"),
        ("docker.io/a/b/c", "docker.io/a/b/c", "a/b/c"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("Host/x", "Host/x", "Host/x"),
        ("foo.bar", "docker.io/library/foo.bar", "foo.bar"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("quay.io/a__b/c--d.e", "quay.io/a__b/c--d.e", "quay.io/a__b/c--d.e"),
        (f"x@sha256:{HEX}", f"docker.io/library/x@sha256:{HEX}", f"x@sha256:{HEX}"),
        (f"x:1@sha256:{HEX}", f"docker.io/library/x:1@sha256:{HEX}", f"x:1@sha256:{HEX}"),
    ],
)
def test_normalisation(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert (str(reference), reference.familiar()) == (full, familiar)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format: repository name must have at least one component"),
        ("Ubuntu", "invalid reference format: repository name (library/Ubuntu) must be lowercase"),
        ("foo/Bar:x", "invalid reference format: repository name (foo/Bar) must be lowercase"),
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
        ("a" * 300, "repository name must not be more than 255 characters"),
        ("x@sha256:ab", "invalid checksum digest length: sha256 has 64 digits, 'sha256:ab' has 2"),
        (f"x@sha256:{HEX.upper()}", "invalid checksum digest format"),
        (f"x@md5:{HEX[:32]}", "unsupported digest algorithm: md5"),
        *((text, "invalid reference format") for text in ("x:", "a:b:c", "-x", "x_", "x..y", "x___y", "a//b", "/x", "x/", "x y")),
        *((text, "invalid reference format") for text in ("http://x/y", "e.com:/x", "e.com:a/x", "x@y", "x@", "é", "x:.a")),
        *((text, "invalid reference format") for text in ("x\n", "x:\n", "x:" + "a" * 129)),
    ],
)
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Reference.parse(text)
    assert message in caught.value.message


def test_uppercase_hint_names_what_would_work() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Reference.parse("Ubuntu:Latest")
    assert caught.value.hint == "try ubuntu"


def test_default_tag_is_added_only_where_there_is_nothing() -> None:
    assert str(Reference.parse("x").tagged()) == "docker.io/library/x:latest"
    assert Reference.parse("x:1").tagged().tag == "1"
    assert Reference.parse(f"x@sha256:{HEX}").tagged().tag == ""


def test_longest_tag_and_name() -> None:
    assert Reference.parse("x:" + "a" * 128).tag == "a" * 128
    assert len(Reference.parse("q.io/" + "a" * 255).repository) == 255


def test_split_registry() -> None:
    assert split_registry("ubuntu:1") == ("", "ubuntu:1")
    assert split_registry("a/b") == ("", "a/b")
    assert split_registry("a.b/c") == ("a.b", "c")


def test_digests() -> None:
    assert check_digest(f"sha256:{HEX}") == ("sha256", HEX)
    assert is_digest(f"sha512:{HEX}{HEX}")
    assert not is_digest(f"sha256:{HEX}0")
    assert not is_digest(HEX)
