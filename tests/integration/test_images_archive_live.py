"""Loading archives that a real tool wrote."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from nacre.images.archive import load
from nacre.images.store import ImageStore
from nacre.model.image import Image, Platform
from nacre.testing.images import MemorySink, digest_of, make_sample, make_tar, oci_layout, write_files

BASE, TOP = make_tar({"base": b"1" * 5000}), make_tar({"top": b"2" * 5000})
SAMPLE = make_sample([BASE, TOP, BASE])

pytestmark = pytest.mark.skipif(not shutil.which("skopeo"), reason="no skopeo; run: apt-get install skopeo")


@pytest.fixture
def layout(tmp_path: Path) -> str:
    write_files(str(tmp_path / "layout"), oci_layout({"x": SAMPLE}))
    return f"oci:{tmp_path}/layout:x"


def copy(source: str, target: str) -> None:
    done = subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", source, target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read(tmp_path: Path, source: object) -> list[Image]:
    store, sink = ImageStore(str(tmp_path / "nacre")), MemorySink()
    images = load(store, source, sink=sink, platform=Platform(architecture="amd64"))  # type: ignore[arg-type]
    assert sink.layers == {digest_of(BASE): BASE, digest_of(TOP): TOP}
    assert [store.resolve(image.id) for image in images] == images
    return images


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeo_archives(layout: str, tmp_path: Path, kind: str) -> None:
    copy(layout, f"{kind}:{tmp_path}/x.tar:app:1")
    (image,) = read(tmp_path, str(tmp_path / "x.tar"))
    assert (image.id, image.tags) == (SAMPLE.id, ("docker.io/library/app:1",))


def test_through_gzip_and_a_pipe(layout: str, tmp_path: Path) -> None:
    copy(layout, f"docker-archive:{tmp_path}/x.tar:app:1")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    with subprocess.Popen(["cat", str(tmp_path / "x.tar.gz")], stdout=subprocess.PIPE) as cat:
        (image,) = read(tmp_path, cat.stdout)
    assert image.id == SAMPLE.id


def test_layout_packed_by_hand(layout: str, tmp_path: Path) -> None:
    command = ["tar", "-C", str(tmp_path / "layout"), "-cf", str(tmp_path / "layout.tar"), "."]
    subprocess.run(command, check=True)
    for source in ("layout.tar", "layout"):
        assert read(tmp_path, str(tmp_path / source))[0].digest == SAMPLE.digest
