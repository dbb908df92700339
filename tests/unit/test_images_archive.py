from __future__ import annotations

import bz2
import errno
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from nacre.errors import BadContent, NacreError, NoSpace, NotFound
from nacre.images.archive import load
from nacre.images.config import Limits
from nacre.images.store import ImageStore
from nacre.model.image import Image, Platform, Progress
from nacre.testing.images import (
    MemorySink,
    Sample,
    compress,
    describe,
    digest_of,
    docker_archive,
    make_index,
    make_sample,
    make_tar,
    oci_layout,
    write_files,
)

BASE = make_tar({"base": os.urandom(3000)})
TOP = make_tar({"top": os.urandom(50_000)})
GZIP = make_sample([BASE, TOP])
PLAIN = make_sample([BASE, TOP], compression="")
AMD64 = Platform(architecture="amd64")

Member = tuple[str, bytes, str, bytes]


class Host:
    """A place to load into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = ImageStore(str(root / "nacre"))
        self.sink = MemorySink()
        self.messages: list[str] = []

    def load(self, source: bytes | str | IO[bytes], **options: Any) -> list[Image]:
        def note(event: Progress) -> None:
            self.messages += [event.message] if event.item == "manifest" else []

        archive = io.BytesIO(source) if isinstance(source, bytes) else source
        return load(self.store, archive, sink=self.sink, progress=note, **{"platform": AMD64, **options})

    def refusal(self, source: bytes | str, kind: type[NacreError] = BadContent, **options: Any) -> str:
        """Message of the error of a load that must leave nothing."""
        with pytest.raises(kind) as caught:
            self.load(source, **options)
        assert self.store.list() == []
        assert list(self.store.content.blobs()) == []
        assert not os.path.isdir(self.store.content.ingest_root) or os.listdir(self.store.content.ingest_root) == []
        return caught.value.message


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def tar(files: Mapping[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    """An archive of files, then of members without data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


# -- what people have


def test_docker_archive(host: Host) -> None:
    (image,) = host.load(tar(docker_archive({"app:1": PLAIN})))
    assert (image.id, image.tags, image.repo_digests) == (PLAIN.id, ("docker.io/library/app:1",), ())
    assert host.sink.layers == {digest_of(BASE): BASE, digest_of(TOP): TOP}
    assert [layer.media_type for layer in image.layers] == ["application/vnd.oci.image.layer.v1.tar"] * 2
    assert host.store.content.size(image.digest) > 0
    assert host.store.resolve("app:1") == image
    assert host.messages == ["Loaded image: app:1"]
    assert os.listdir(host.store.content.ingest_root) == []


@pytest.mark.parametrize("pack", [lambda data: compress(data, "gzip"), lambda data: compress(data, "zstd"), lzma.compress, bz2.compress])
def test_compressed_archives(host: Host, pack: Callable[[bytes], bytes]) -> None:
    (image,) = host.load(pack(tar(docker_archive({"app:1": GZIP}))))
    assert image.id == GZIP.id
    assert image.layers[0].media_type.endswith("+gzip")


def test_several_images_and_names(host: Host) -> None:
    files = docker_archive({"one:1": PLAIN, "two:2": make_sample([BASE], compression="")})
    entries = json.loads(files["manifest.json"])
    entries[0]["RepoTags"].append("q.io/uno:1")
    entries[1]["RepoTags"] = None
    first, second = host.load(tar({**files, "manifest.json": json.dumps(entries).encode()}))
    assert first.tags == ("docker.io/library/one:1", "q.io/uno:1")
    assert second.tags == ()
    assert host.messages == ["Loaded image: one:1", "Loaded image: q.io/uno:1", f"Loaded image ID: {second.id}"]


def test_layers_as_symbolic_links(host: Host) -> None:
    files = docker_archive({"app:1": PLAIN})
    layers = [name for name in files if name.endswith("layer.tar")]
    links = [special(name, tarfile.SYMTYPE, f"../{number}.tar") for number, name in enumerate(layers)]
    moved = {f"{number}.tar": files.pop(name) for number, name in enumerate(layers)}
    assert host.load(tar({**moved, **files}, *links))[0].id == PLAIN.id


def test_hard_links(host: Host) -> None:
    files = docker_archive({"app:1": make_sample([BASE, BASE], compression="")})
    (name,) = [name for name in files if name.endswith("layer.tar")]
    data = files.pop(name)
    assert host.load(tar({"x.tar": data, **files}, special(name, tarfile.LNKTYPE, "x.tar")))[0].size == 2 * len(BASE)


def test_long_names_of_both_kinds(host: Host) -> None:
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        files = docker_archive({"app:1": PLAIN})
        text = files.pop("manifest.json").decode()
        for name in [name for name in files if name.endswith("layer.tar")]:
            long = f"{'d' * 150}/{'e' * 150}/{name}"
            files[long] = files.pop(name)
            text = text.replace(name, long)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for name, data in {**files, "manifest.json": text.encode()}.items():
                member = tarfile.TarInfo("./" + name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        assert host.load(buffer.getvalue())[0].id == PLAIN.id


@pytest.mark.parametrize("name", ["app:1", "q.io/team/app:2", ""])
def test_oci_layout_as_a_tar(host: Host, name: str) -> None:
    (image,) = host.load(tar(oci_layout({name: GZIP})))
    assert (image.id, image.digest) == (GZIP.id, GZIP.digest)
    assert len(image.tags) == bool(name)


def test_oci_layout_as_a_directory(host: Host, tmp_path: Path) -> None:
    write_files(str(tmp_path / "layout"), oci_layout({"a:1": GZIP, "b:1": make_sample([TOP])}))
    assert [image.tags for image in host.load(str(tmp_path / "layout"))] == [("docker.io/library/a:1",), ("docker.io/library/b:1",)]
    assert host.sink.layers[digest_of(TOP)] == TOP


def test_oci_layout_comes_before_manifest_json(host: Host) -> None:
    (image,) = host.load(tar({**docker_archive({"docker:1": GZIP}), **oci_layout({"oci:1": GZIP})}))
    assert image.tags == ("docker.io/library/oci:1",)


def test_containerd_name_comes_first(host: Host) -> None:
    files = oci_layout({"latest": GZIP})
    index = json.loads(files["index.json"])
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = "docker.io/library/app:3"
    (image,) = host.load(tar({**files, "index.json": json.dumps(index).encode()}))
    assert image.tags == ("docker.io/library/app:3",)


def test_platforms_in_a_layout(host: Host) -> None:
    arm = make_sample([TOP], platform=Platform(architecture="arm64"))
    whole = make_index([GZIP, arm])
    files = oci_layout({"app:1": whole})
    assert host.load(tar(files))[0].id == GZIP.id
    assert host.load(tar(files), platform=Platform(architecture="arm64"))[0].id == arm.id
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x"):
        host.load(tar(files), platform=Platform(architecture="s390x"))
    for digest in arm.blobs:
        files.pop(f"blobs/sha256/{digest[7:]}")
    assert host.load(tar(files))[0].id == GZIP.id  # what other platforms lack does not matter


def test_same_name_for_several_platforms(host: Host) -> None:
    arm = make_sample([TOP], platform=Platform(architecture="arm64"))
    index = make_index([arm, GZIP])
    files = {**oci_layout({"": index})}
    files["index.json"] = index.blobs[index.digest]
    (image,) = host.load(tar(files))
    assert image.id == GZIP.id


def test_from_a_pipe(host: Host) -> None:
    data = compress(tar(docker_archive({"app:1": PLAIN})), "gzip")
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb", buffering=0) as file:
            for start in range(0, len(data), 1000):
                file.write(data[start : start + 1000])

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(out, "rb", buffering=0) as file:
        assert host.load(file)[0].id == PLAIN.id
    writer.join(10)


def test_loading_again_changes_nothing(host: Host) -> None:
    data = tar(docker_archive({"app:1": PLAIN}))
    assert host.load(data) == host.load(data)
    assert len(host.store.list()) == 1
    assert host.store.resolve("app:1").size == len(BASE) + len(TOP)


def test_from_a_file(host: Host, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar(docker_archive({"app:1": PLAIN})))
    assert len(host.load(str(tmp_path / "x.tar"))) == 1
    with pytest.raises(NotFound, match="no such file"):
        host.load(str(tmp_path / "y.tar"))


# -- hostile and broken archives


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([special("../../etc/passwd", tarfile.REGTYPE)], "leads out of the archive"),
        ([special("/etc/passwd", tarfile.REGTYPE)], "is an absolute path"),
        ([special("a/../../b", tarfile.DIRTYPE)], "leads out of the archive"),
        ([special("x/layer.tar", tarfile.SYMTYPE, "../../../etc/shadow")], "leads out of the archive"),
        ([special("x/layer.tar", tarfile.SYMTYPE, "/etc/shadow")], "is an absolute path"),
        ([special("x/layer.tar", tarfile.LNKTYPE, "../etc/shadow")], "leads out of the archive"),
        ([special("disk", tarfile.BLKTYPE)], "neither a file nor a directory nor a link"),
        ([special("null", tarfile.CHRTYPE)], "neither a file nor a directory nor a link"),
        ([special("pipe", tarfile.FIFOTYPE)], "neither a file nor a directory nor a link"),
        ([special("a", tarfile.SYMTYPE, "x"), special("a", tarfile.SYMTYPE, "y")], "twice, with different content"),
        ([special("manifest.json", tarfile.SYMTYPE, "x")], "twice, with different content"),
    ],
)
def test_hostile_members(host: Host, members: list[tarfile.TarInfo], message: str) -> None:
    assert message in host.refusal(tar(docker_archive({"app:1": PLAIN}), *members))


def test_repeated_files(host: Host) -> None:
    files = docker_archive({"app:1": PLAIN})
    again = tar(files)[:-1024].rstrip(b"\0")
    again += bytes(-len(again) % 512)
    assert host.load(again + tar(files))[0].id == PLAIN.id
    assert "twice, with different content" in Host(host.root / "b").refusal(again + tar({"manifest.json": b"[]"}))


def test_links_in_a_circle(host: Host) -> None:
    files = docker_archive({"app:1": PLAIN})
    name = next(name for name in files if name.endswith("layer.tar"))
    files.pop(name)
    circle = [special(name, tarfile.SYMTYPE, "../a"), special("a", tarfile.SYMTYPE, "b"), special("b", tarfile.SYMTYPE, "a")]
    assert "a circle of links" in host.refusal(tar(files, *circle))


def test_too_many_members(host: Host) -> None:
    many = [special(f"d{number}", tarfile.DIRTYPE) for number in range(30)]
    assert "more than 20 members" in host.refusal(tar(docker_archive({"app:1": PLAIN}), *many), limits=Limits(archive_members=20))


def test_compressed_bomb(host: Host) -> None:
    data = compress(tar({"zeros": bytes(6_000_000)}), "gzip")
    assert "the archive looks like a decompression bomb" in host.refusal(data, limits=Limits(ratio_free=1 << 20))


def test_layer_bomb(host: Host) -> None:
    sample = make_sample([make_tar({"zeros": bytes(6_000_000)})])
    assert "looks like a decompression bomb" in host.refusal(tar(docker_archive({"app:1": sample})), limits=Limits(ratio_free=1 << 20))


def test_huge_extended_header(host: Host) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = b"x", 2 << 20
    assert "an extended header of 2097152 bytes" in host.refusal(member.tobuf(tarfile.USTAR_FORMAT) + bytes(3 << 20))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the archive is empty"),
        (bytes(10240), "the archive is empty"),
        (b"x" * 5000, "not a tar archive"),
        (b"x" * 100, "the archive ends in the middle"),
        (compress(tar(docker_archive({"app:1": PLAIN})), "gzip")[:-4000], "the gzip data ends in the middle"),
        (tar(docker_archive({"app:1": PLAIN}))[:20_000], "the archive ends in the middle of a file"),
        (tar({"etc/hosts": b"x"}), "no manifest.json and no index.json"),
        (tar({"repositories": b"{}"}), "before version 1.10"),
        (tar({"manifest.json": b"["}), "manifest.json is not valid JSON"),
        (tar({"manifest.json": b"{}"}), "manifest.json: expected a list"),
        (tar({"manifest.json": b"[]"}), "the archive has no image"),
        (tar({"manifest.json": b'[{"Config":5}]'}), "manifest.json: Config must be a path"),
        (tar({"manifest.json": b'[{"Config":"../x","Layers":[]}]'}), "leads out of the archive"),
        (tar({"manifest.json": b'[{"Config":"x","Layers":["y"]}]'}), "the archive lacks 'x'"),
        (tar({"manifest.json": b'[{"Config":"x","RepoTags":["A b"]}]'}), "the archive names an image 'A b'"),
        (tar({"index.json": b"{}"}), "schemaVersion is None"),
        (tar({"index.json": b'{"schemaVersion":2,"manifests":[]}'}), "the archive has no image"),
    ],
)
def test_broken_archives(host: Host, data: bytes, message: str) -> None:
    assert message in host.refusal(data)


def changed(files: dict[str, bytes], digest: str, data: bytes) -> bytes:
    return tar({**files, f"blobs/sha256/{digest[7:]}": data})


def test_layout_whose_blobs_lie(host: Host) -> None:
    files = oci_layout({"app:1": GZIP})
    for digest in (GZIP.digest, GZIP.id, GZIP.layers[1]):
        assert "different content" in host.refusal(changed(files, digest, b"{}"))
        rest = dict(files)
        del rest[f"blobs/sha256/{digest[7:]}"]
        assert f"the archive lacks blob {digest}" in host.refusal(tar(rest))


def test_directory_whose_blobs_lie(host: Host, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_files(str(layout), oci_layout({"app:1": GZIP}))
    blob = layout / "blobs/sha256" / GZIP.layers[1][7:]
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + b"x")
    assert "different content" in host.refusal(str(layout))
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    assert "cannot read" in host.refusal(str(layout))
    blob.unlink()
    os.mkfifo(blob)
    assert "is not a regular file" in host.refusal(str(layout))
    blob.unlink()
    assert "lacks blob" in host.refusal(str(layout))
    (layout / "index.json").unlink()
    assert "no manifest.json and no index.json" in host.refusal(str(layout))


def test_sizes_must_be_those_promised(host: Host) -> None:
    manifest = GZIP.manifest
    manifest["layers"][0]["size"] += 1
    raw = json.dumps(manifest).encode()
    sample = Sample({**GZIP.blobs, digest_of(raw): raw}, digest_of(raw), GZIP.media_type)
    assert "bytes instead of" in host.refusal(tar(oci_layout({"app:1": sample})))


def test_wrong_diff_id(host: Host) -> None:
    files = docker_archive({"app:1": PLAIN})
    name = next(name for name in files if name.endswith("layer.tar"))
    assert "is not the one that the image's configuration names" in host.refusal(tar({**files, name: make_tar({"evil": b""})}))
    assert host.sink.layers == {}


def test_indexes_without_end(host: Host) -> None:
    inner = make_index([GZIP])
    for _ in range(6):
        inner = make_index([inner])
    assert "indexes within indexes" in host.refusal(tar(oci_layout({"app:1": inner})))


def test_other_digests_are_refused(host: Host) -> None:
    entry = {**describe(b"x", "application/vnd.oci.image.manifest.v1+json"), "digest": "sha512:" + "a" * 128}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    assert "only sha256 is supported" in host.refusal(tar({"oci-layout": b"{}", "index.json": index}))


def test_disk_full(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        assert "no space left" in host.refusal(tar(docker_archive({"app:1": PLAIN})), NoSpace)
    host.sink.error = NoSpace("the layer does not fit")
    assert host.refusal(tar(docker_archive({"app:1": PLAIN})), NoSpace) == "the layer does not fit"


def test_image_for_another_platform(host: Host) -> None:
    data = tar(docker_archive({"app:1": make_sample([BASE], platform=Platform(architecture="mips"))}))
    assert "does not match the specified platform" in host.refusal(data, NotFound)
    host.load(data, platform=None)
    assert any(message.startswith("WARNING:") for message in host.messages)
