"""Pulling from a real registry what a real client pushed, and from a registry with TLS; real full disks, real deaths."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopback_registry import Registry
from nacre.errors import NoSpace, NotFound, RemoteError, Unauthorized
from nacre.images.config import load as load_configuration
from nacre.images.pull import Options, pull
from nacre.images.registry import Retry
from nacre.images.store import ImageStore
from nacre.model.image import Image, Platform, Progress
from nacre.testing.images import MemorySink, Sample, digest_of, make_index, make_sample, make_tar, oci_layout, write_files
from nacre.testing.registry import FakeRegistry

BASE = make_tar({"base": os.urandom(3000)})
TOP = make_tar({"top": os.urandom(300_000), "zeros": bytes(500_000)})
BIG = make_tar({"big": os.urandom(48 << 20)})
SAMPLE = make_sample([BASE, TOP])
AMD64 = Platform(architecture="amd64")
# "user" with the password "secret" (bcrypt).
HTPASSWD = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"

needs_registry = pytest.mark.skipif(
    not (shutil.which("docker-registry") and shutil.which("skopeo")), reason="no registry; run: apt-get install docker-registry skopeo"
)


class Host:
    """A place to pull into, whose home directory has the configuration files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.store = ImageStore(str(root / "nacre"))
        self.sink = MemorySink()
        self.environ = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(root)}
        self.write(".config/containers/registries.conf", "")

    def write(self, path: str, text: str) -> None:
        (self.home / path).parent.mkdir(parents=True, exist_ok=True)
        (self.home / path).write_text(text)

    def pull(self, name: str, **options: Any) -> Image:
        how = Options(environ=self.environ, registries=load_configuration(self.environ), retry=Retry(delay=0.02))
        return pull(self.store, name, sink=self.sink, options=how, **{"platform": AMD64, **options})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture(scope="module")
def debian() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def push(registry: Registry, directory: Path, sample: Sample, name: str, *words: str) -> str:
    """Push with skopeo, which may convert on the way."""
    layout = directory / digest_of(name.encode())[7:19]
    write_files(str(layout), oci_layout({"x": sample}))
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *words]
    done = subprocess.run([*command, f"oci:{layout}:x", f"docker://{registry.address}/{name}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return f"{registry.address}/{name}"


@needs_registry
@pytest.mark.parametrize(
    ("compression", "words", "kind"),
    [
        ("gzip", (), "oci.image.layer.v1.tar+gzip"),
        ("gzip", ("--format", "v2s2"), "docker.image.rootfs.diff.tar.gzip"),
        ("zstd", (), "oci.image.layer.v1.tar+zstd"),
    ],
)
def test_what_skopeo_pushed(host: Host, debian: Registry, tmp_path: Path, compression: str, words: tuple[str, ...], kind: str) -> None:
    name = push(debian, tmp_path, make_sample([BASE, TOP], compression=compression), f"team/app:{compression}", *words)
    image = host.pull(name)
    assert {layer.media_type.removeprefix("application/vnd.") for layer in image.layers} == {kind}
    assert host.sink.layers == {digest_of(BASE): BASE, digest_of(TOP): TOP}
    assert [layer.diff_id for layer in image.layers] == SAMPLE.diff_ids
    inspected = subprocess.run(["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"], capture_output=True, check=True).stdout
    assert json.loads(inspected)["Digest"] == image.repo_digests[0].partition("@")[2]
    assert json.loads(inspected)["Layers"] == [layer.blob for layer in image.layers]


@needs_registry
def test_multi_platform(host: Host, debian: Registry, tmp_path: Path) -> None:
    arm = make_sample([TOP], platform=Platform(architecture="arm64", variant="v8"))
    name = push(debian, tmp_path, make_index([SAMPLE, arm]), "multi:1", "--all")
    assert host.pull(name).id == SAMPLE.id
    assert host.pull(name, platform=Platform(architecture="arm64")).id == arm.id
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x"):
        host.pull(name, platform=Platform(architecture="s390x"))


@needs_registry
def test_unknown_tag_and_repository(host: Host, debian: Registry, tmp_path: Path) -> None:
    push(debian, tmp_path, SAMPLE, "known:1")
    for name in ("known:2", "unknown"):
        with pytest.raises(NotFound, match="not found on"):
            host.pull(f"{debian.address}/{name}")


@needs_registry
def test_login(host: Host, tmp_path: Path) -> None:
    with Registry(htpasswd=HTPASSWD) as private:
        name = push(private, tmp_path, SAMPLE, "app:1", "--dest-creds", "user:secret")
        with pytest.raises(Unauthorized, match="requires a login"):
            host.pull(name)
        command = ["skopeo", "login", "--tls-verify=false", "-u", "user", "-p", "secret", private.address]
        authfile = str(tmp_path / "auth.json")
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "REGISTRY_AUTH_FILE": authfile})
        host.environ["REGISTRY_AUTH_FILE"] = authfile
        assert host.pull(name).id == SAMPLE.id


@needs_registry
def test_registry_in_the_place_of_docker_hub(host: Host, debian: Registry, tmp_path: Path) -> None:
    push(debian, tmp_path, SAMPLE, "library/app:latest")
    host.environ["CONTAINERS_REGISTRIES_CONF"] = str(debian.configuration)
    image = host.pull("app")
    assert image.tags == ("docker.io/library/app:latest",)
    assert host.store.resolve("app") == image


@needs_registry
def test_registry_dies_in_the_middle_of_a_layer_and_comes_back(host: Host, tmp_path: Path) -> None:
    sample = make_sample([BIG], compression="")
    registry = Registry()
    port = int(registry.address.rpartition(":")[2])
    name = push(registry, tmp_path, sample, "big:1", "--dest-oci-accept-uncompressed-layers")

    def kill(event: Progress) -> None:
        if event.stage == "downloading" and event.current:
            registry.close()

    with pytest.raises(RemoteError, match=f"registry {registry.address}"):
        host.pull(name, progress=kill)
    assert host.store.list() == []
    assert host.sink.layers == {}
    (partial,) = os.listdir(host.store.content.ingest_root)
    kept = os.path.getsize(f"{host.store.content.ingest_root}/{partial}")
    assert 0 < kept < len(BIG)
    with Registry(port=port) as again:
        push(again, tmp_path, sample, "big:1", "--dest-oci-accept-uncompressed-layers")
        first: list[int] = []
        host.pull(name, progress=lambda event: first.append(event.current) if event.stage == "downloading" and event.current else None)
    assert first[0] > kept  # it went on, it did not begin again
    assert host.sink.layers == {digest_of(BIG): BIG}


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a self-signed certificate for 127.0.0.1 and its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl; run: apt-get install openssl")
    directory = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(directory / "key"), "-out", str(directory / "crt")]
    subprocess.run(command, check=True, capture_output=True)
    both = directory / "both"
    both.write_text((directory / "crt").read_text() + (directory / "key").read_text())
    return both


@pytest.fixture
def tls_registry(certificate: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(certificate=str(certificate)) as running:
        running.push("app", "1", SAMPLE)
        yield running


def configure(host: Host, registry: FakeRegistry, insecure: str) -> None:
    host.write(".config/containers/registries.conf", f'[[registry]]\nlocation = "{registry.address}"\ninsecure = {insecure}\n')


def test_tls_is_verified(host: Host, tls_registry: FakeRegistry) -> None:
    configure(host, tls_registry, "false")
    with pytest.raises(RemoteError, match="its TLS certificate is not trusted") as caught:
        host.pull(f"{tls_registry.address}/app:1")
    assert f"certs.d/{tls_registry.address}/ca.crt" in caught.value.hint
    assert tls_registry.requests == []


def test_own_authority(host: Host, tls_registry: FakeRegistry, certificate: Path) -> None:
    host.write(f".config/containers/certs.d/{tls_registry.address}/ca.crt", certificate.read_text().partition("-----BEGIN PRIV")[0])
    assert host.pull(f"{tls_registry.address}/app:1").id == SAMPLE.id


def test_insecure_tls(host: Host, tls_registry: FakeRegistry) -> None:
    configure(host, tls_registry, "true")
    assert host.pull(f"{tls_registry.address}/app:1").id == SAMPLE.id


def test_tls_registry_spoken_to_without(host: Host, tls_registry: FakeRegistry) -> None:
    with pytest.raises(RemoteError, match="lost the connection"):
        host.pull(f"{tls_registry.address}/app:1")


# -- trouble on this host


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = tmp_path / "disk"
    path.mkdir()
    if libc.mount(b"none", bytes(path), b"tmpfs", 0, b"size=4m") != 0:
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield path
    libc.umount2(bytes(path), 2)


def test_disk_full(small_disk: Path, tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.store = ImageStore(str(small_disk / "nacre"))
    before = shutil.disk_usage(small_disk).used
    with FakeRegistry() as registry:
        name = registry.push("app", "1", make_sample([make_tar({"a": os.urandom(2 << 20)}), make_tar({"b": os.urandom(6 << 20)})]))
        with pytest.raises(NoSpace, match="no space left for") as caught:
            host.pull(name)
        assert "nacre rmi" in caught.value.hint
        assert host.store.list() == []
        assert shutil.disk_usage(small_disk).used - before < 100_000
        assert host.pull(registry.push("app", "2", SAMPLE)).id == SAMPLE.id


CHILD = """
import os, signal, sys
from nacre.images.config import Registries
from nacre.images.pull import Options, pull
from nacre.images.store import ImageStore
from nacre.model.image import Platform
from nacre.testing.images import MemorySink

root, name, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0

def count(frame, event, argument):
    # Every call of a function of ours, in every thread, is a place to die.
    global calls
    if event == "call" and "/nacre/images/" in frame.f_code.co_filename:
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

import threading
threading.setprofile(count)
sys.setprofile(count)
pull(ImageStore(root), name, sink=MemorySink(), platform=Platform(architecture="amd64"), options=Options(registries=Registries()))
sys.setprofile(None)
print(calls)
"""


def test_killed_at_any_step(host: Host, tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path)}
    with FakeRegistry() as registry:
        name = registry.push("app", "1", SAMPLE)

        def run(root: Path, last: int) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", CHILD, str(root), name, str(last)]
            return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)

        whole = run(tmp_path / "whole", 0)
        assert whole.returncode == 0, whole.stderr
        steps = int(whole.stdout)
        for number in range(16):
            host.store = ImageStore(str(tmp_path / "killed"))
            host.sink = MemorySink()
            died = run(tmp_path / "killed", max(1, steps * number // 16))
            assert died.returncode in (-signal.SIGKILL, 0), died.stderr
            for image in host.store.list():
                assert image.id == SAMPLE.id
            for digest, _ in host.store.content.blobs():
                assert digest_of(Path(host.store.content.path(digest)).read_bytes()) == digest
            assert host.pull(name).id == SAMPLE.id
            assert os.listdir(host.store.content.ingest_root) == []
            shutil.rmtree(tmp_path / "killed")


def test_processes_share_a_download(tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        name = registry.push("app", "1", make_sample([make_tar({"a": os.urandom(4 << 20)}), BASE]))
        command = [sys.executable, "-c", CHILD, str(tmp_path / "nacre"), name, "0"]
        workers = [subprocess.Popen(command, env={**os.environ, "HOME": str(tmp_path)}, stdout=subprocess.DEVNULL) for _ in range(4)]
        assert [worker.wait(60) for worker in workers] == [0] * 4
        sample = ImageStore(str(tmp_path / "nacre")).resolve(name)
        assert [len(registry.seen(layer.blob)) for layer in sample.layers] == [1, 1]
