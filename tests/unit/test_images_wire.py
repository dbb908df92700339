from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest

from nacre.errors import BadContent
from nacre.model.image import Descriptor, Platform
from nacre.testing.images import make_index, make_sample, make_tar
from nacre.wire.archive import BLOCK, apply_pax, normal_path, parse_header, parse_pax
from nacre.wire.registry import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Index,
    Manifest,
    manifest_bytes,
    parse_challenges,
    parse_configuration,
    parse_errors,
    parse_manifest,
    printable,
)

DIGEST = "sha256:" + "ab" * 32
CONFIG = {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 10}
LAYER = {"mediaType": OCI_LAYER + "+gzip", "digest": DIGEST, "size": 20}


def manifest(**changes: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER], **changes}).encode()


def test_manifest() -> None:
    found = parse_manifest(manifest())
    assert isinstance(found, Manifest)
    assert found.config == Descriptor(media_type=OCI_CONFIG, digest=DIGEST, size=10)
    assert [layer.size for layer in found.layers] == [20]


@pytest.mark.parametrize("docker", [False, True])
def test_made_samples_are_read_back(docker: bool) -> None:
    sample = make_sample([make_tar({"a": b"1"})], docker=docker, platform=Platform(architecture="arm64", variant="v8"))
    found = parse_manifest(sample.blobs[sample.digest], sample.media_type)
    assert isinstance(found, Manifest)
    index = make_index([sample], docker=docker)
    whole = parse_manifest(index.blobs[index.digest], index.media_type)
    assert isinstance(whole, Index)
    assert str(whole.entries[0].platform) == "linux/arm64/v8"
    assert whole.entries[0].descriptor.digest == sample.digest


def test_media_type_may_come_from_the_header_or_the_fields() -> None:
    plain = json.loads(manifest())
    del plain["mediaType"]
    data = json.dumps(plain).encode()
    assert parse_manifest(data, DOCKER_MANIFEST + "; charset=utf-8").media_type == DOCKER_MANIFEST
    assert parse_manifest(data, "application/json").media_type == OCI_MANIFEST
    assert parse_manifest(b'{"schemaVersion":2,"manifests":[]}').media_type == OCI_INDEX


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b"[]", "expected an object, got a list"),
        (b" " * (4 << 20) + b"{}", "larger than the limit"),
        (b'{"schemaVersion":1,"fsLayers":[]}', "schema 1"),
        (manifest(schemaVersion=3), "schemaVersion is 3"),
        (manifest(manifests=[]), "ambiguous"),
        (manifest(mediaType="application/vnd.example+json"), "which is not a container image"),
        (manifest(config=None), "config: expected an object"),
        (manifest(config={**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}), "an artifact"),
        (manifest(config={**CONFIG, "size": 1 << 30}), "larger than the limit"),
        (manifest(layers={}), "layers: expected a list"),
        (manifest(layers=[LAYER] * 1001), "more than the limit of 1000"),
        (manifest(layers=[{**LAYER, "digest": "sha256:../../etc"}]), "layers[0]: invalid checksum digest length"),
        (manifest(layers=[{**LAYER, "digest": 5}]), "layers[0]: digest: expected a text"),
        (manifest(layers=[{**LAYER, "size": -1}]), "layers[0]: size is -1"),
        (manifest(layers=[{**LAYER, "size": True}]), "layers[0]: size is True"),
        (manifest(layers=[{**LAYER, "size": 1e3}]), "layers[0]: size is 1000.0"),
        (manifest(layers=[{**LAYER, "mediaType": "text/plain"}]), "which is not a layer"),
        (manifest(layers=[{**LAYER, "mediaType": OCI_LAYER + "+gzip+encrypted"}]), "encrypted layers"),
    ],
)
def test_bad_manifests(data: bytes, message: str) -> None:
    with pytest.raises(BadContent) as caught:
        parse_manifest(data, what="the thing")
    assert message in caught.value.message
    assert "the thing" in caught.value.message


def test_announced_type_must_agree() -> None:
    with pytest.raises(BadContent, match="announced as"):
        parse_manifest(manifest(), DOCKER_MANIFEST)
    with pytest.raises(BadContent, match="schema 1"):
        parse_manifest(manifest(mediaType=""), "application/vnd.docker.distribution.manifest.v1+prettyjws")


def test_synthesised_manifest_is_stable_and_readable() -> None:
    config = Descriptor(media_type=OCI_CONFIG, digest=DIGEST, size=3)
    data = manifest_bytes(config, (config.replace(media_type=OCI_LAYER),))
    assert data == manifest_bytes(config, (config.replace(media_type=OCI_LAYER),))
    found = parse_manifest(data)
    assert isinstance(found, Manifest)
    assert found.config == config


# -- configurations


def configuration(**config: Any) -> bytes:
    return json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}, "config": config}
    ).encode()


def test_configuration() -> None:
    found = parse_configuration(
        configuration(
            Env=["A=1"],
            Cmd=None,
            Entrypoint="/bin/app",
            WorkingDir="/w",
            User="1:2",
            Labels={"a": "b"},
            ExposedPorts={"80/tcp": {}},
            Volumes={"/data": {}},
            StopSignal="SIGINT",
            Healthcheck={"Test": ["CMD", "x"]},
        )
    )
    config = found.config
    assert (config.env, config.cmd, config.entrypoint) == (("A=1",), (), ("/bin/app",))
    assert (config.working_dir, config.user, config.stop_signal) == ("/w", "1:2", "SIGINT")
    assert (config.labels, config.exposed_ports, config.volumes) == ({"a": "b"}, ("80/tcp",), ("/data",))
    assert config.healthcheck == {"Test": ["CMD", "x"]}
    assert found.diff_ids == (DIGEST,)
    assert str(found.platform) == "linux/amd64"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"rootfs":null}', "rootfs: expected an object"),
        (b'{"rootfs":{"type":"x"}}', "rootfs.type is 'x'"),
        (b'{"rootfs":{"diff_ids":["x"]}}', "rootfs.diff_ids"),
        (b'{"rootfs":{"diff_ids":[7]}}', "rootfs.diff_ids"),
        (configuration(Env="A=1", Cmd=[1]), "Cmd: expected a text"),
        (configuration(Env=[None]), "Env: expected a text"),
        (configuration(Env=["A=\0"]), "Env: expected a text without NUL"),
        (configuration(Labels=["a"]), "Labels: expected an object"),
        (configuration(Labels={"a": 1}), "Labels: a: expected a text"),
        (configuration(WorkingDir=[]), "WorkingDir: expected a text"),
        (configuration(Healthcheck=3), "Healthcheck: expected an object"),
    ],
)
def test_bad_configurations(data: bytes, message: str) -> None:
    with pytest.raises(BadContent) as caught:
        parse_configuration(data)
    assert message in caught.value.message


# -- challenges and errors


def test_challenges() -> None:
    found = parse_challenges(['Bearer realm="https://a/t?x=\\"1\\"",service="s, p", scope=pull , Basic realm="r"', "Negotiate"])
    assert [item.scheme for item in found] == ["bearer", "basic", "negotiate"]
    assert found[0].parameters == {"realm": 'https://a/t?x="1"', "service": "s, p", "scope": "pull"}
    assert found[1].parameters == {"realm": "r"}


@pytest.mark.parametrize("text", ["", ",,,", "=", 'Bearer realm="', "Bearer realm", '"', "Bearer " + "a=b," * 10_000])
def test_odd_challenges_do_no_harm(text: str) -> None:
    assert all(item.scheme for item in parse_challenges([text]))


def test_error_documents() -> None:
    assert parse_errors(b'{"errors":[{"code":"A","message":"b\\u001b[2J"},5]}') == [("A", "b?[2J")]
    assert parse_errors(b"<html>") == []
    assert parse_errors(b'{"errors":7}') == []
    assert len(printable("x" * 1000)) == 300


# -- tar headers


def first_header(data: bytes) -> Any:
    header = parse_header(data[:BLOCK])
    assert header is not None
    return header


def test_tar_headers() -> None:
    header = first_header(make_tar({"dir/file": b"12345"}))
    assert (header.name, header.kind, header.size) == ("dir/file", "file", 5)
    assert parse_header(bytes(BLOCK)) is None


def test_ustar_prefix_and_links() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("p" * 90 + "/" + "n" * 90)
        member.type, member.linkname = tarfile.SYMTYPE, "../x"
        archive.addfile(member)
    header = first_header(buffer.getvalue())
    assert (header.name, header.kind, header.target) == ("p" * 90 + "/" + "n" * 90, "symlink", "../x")


def test_base_256_sizes() -> None:
    buffer = io.BytesIO()
    member = tarfile.TarInfo("big")
    member.size = 9 << 30
    buffer.write(member.tobuf(tarfile.GNU_FORMAT))
    assert first_header(buffer.getvalue()).size == 9 << 30


def test_header_checksum() -> None:
    data = bytearray(make_tar({"a": b"1"})[:BLOCK])
    data[0] ^= 1
    with pytest.raises(BadContent, match="not a tar archive"):
        parse_header(bytes(data))


def test_pax_records() -> None:
    header = first_header(make_tar({"a": b"1"}))
    changed = apply_pax(header, parse_pax(b"10 path=x\n9 size=7\n14 linkpath=y\n"))
    assert (changed.name, changed.size, changed.target) == ("x", 7, "y")


@pytest.mark.parametrize(
    "data", [b"x", b"5 a=", b"99 path=x\n", b"0 path=x\n", b"-9 path=x\n", b"9 pathx1\n", b"\0" * 20, b"3 =\n9 path=x\n\n"]
)
def test_malformed_pax(data: bytes) -> None:
    with pytest.raises(BadContent, match="malformed pax"):
        parse_pax(data)


def test_pax_sizes_and_sparse_files_are_checked() -> None:
    header = first_header(make_tar({"a": b"1"}))
    with pytest.raises(BadContent, match="bytes"):
        apply_pax(header, {"size": "-1"})
    with pytest.raises(BadContent, match="bytes"):
        apply_pax(header, {"size": "9" * 30})
    with pytest.raises(BadContent, match="sparse"):
        apply_pax(header, {"GNU.sparse.major": "1"})


def test_paths() -> None:
    assert normal_path("./a//b/.") == "a/b"
    assert normal_path("../x.tar", base="abc") == "x.tar"
    assert normal_path("") == ""


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "x" * 5000])
def test_hostile_paths(path: str) -> None:
    with pytest.raises(BadContent):
        normal_path(path)
