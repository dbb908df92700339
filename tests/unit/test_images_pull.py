from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import BadContent, Denied, InvalidArgument, NacreError, NoSpace, NotFound, RemoteError, Unauthorized
from nacre.images import registry as client
from nacre.images.config import Limits, Mirror, Registries, Registry
from nacre.images.pull import Options, pull
from nacre.images.registry import Retry
from nacre.images.store import ImageStore
from nacre.model.image import Image, Platform, Progress
from nacre.testing.images import MemorySink, Sample, digest_of, make_index, make_sample, make_tar
from nacre.testing.registry import Answer, FakeRegistry, Request, corrupt, cut, status

BASE = make_tar({"base": os.urandom(3000)})
TOP = make_tar({"top": os.urandom(500_000), "zeros": bytes(100_000)})
SAMPLE = make_sample([BASE, TOP], config={"Env": ["A=1"], "Cmd": ["/app"]})
AMD64 = Platform(architecture="amd64")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


class Host:
    """A place to pull into, with no configuration of the real host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = ImageStore(str(root / "nacre"))
        self.sink = MemorySink()
        self.events: list[Progress] = []
        self.environ = {"HOME": str(root / "home"), "XDG_RUNTIME_DIR": str(root)}
        self.registries = Registries()

    def pull(self, name: str, *, platform: Platform | None = AMD64, **options: Any) -> Image:
        options = {"registries": self.registries, "retry": Retry(delay=0.0, attempts=3), "environ": self.environ, **options}
        return pull(self.store, name, sink=self.sink, platform=platform, progress=self.events.append, options=Options(**options))

    def refusal(self, kind: type[NacreError], name: str, **options: Any) -> NacreError:
        """The error of a pull that must fail and leave nothing that counts."""
        before = self.store.list()
        with pytest.raises(kind) as caught:
            self.pull(name, **options)
        assert self.store.list() == before
        return caught.value

    def leftovers(self) -> list[str]:
        return sorted(os.listdir(self.store.content.ingest_root))

    def stages(self, blob: str) -> list[str]:
        found = [event.stage for event in self.events if event.item == blob[7:19]]
        return [stage for number, stage in enumerate(found) if number == 0 or found[number - 1] != stage]

    def messages(self) -> list[str]:
        return [event.message for event in self.events if event.message]

    def login(self, **entries: str) -> None:
        path = Path(self.environ["HOME"], ".docker/config.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"auths": {name: {"auth": value} for name, value in entries.items()}}))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def sample() -> Sample:
    return SAMPLE


# -- the main path


@pytest.mark.parametrize(("docker", "compression"), [(True, "gzip"), (False, "gzip"), (False, "zstd"), (False, "")])
def test_pull(host: Host, registry: FakeRegistry, docker: bool, compression: str) -> None:
    sample = make_sample([BASE, TOP], docker=docker, compression=compression, config={"Env": ["A=1"], "Cmd": ["/app"]})
    name = registry.push("team/app", "1", sample)
    image = host.pull(name)
    assert image.id == sample.id
    assert image.digest == sample.digest
    assert image.tags == (name,)
    assert image.repo_digests == (f"{registry.address}/team/app@{sample.digest}",)
    assert [layer.diff_id for layer in image.layers] == sample.diff_ids
    assert image.config.env == ("A=1",)
    assert image.size == len(BASE) + len(TOP)
    assert [step.size for step in image.history] == [len(BASE), len(TOP), 0]
    assert host.sink.layers == {digest_of(BASE): BASE, digest_of(TOP): TOP}
    assert host.store.resolve(name) == image
    assert host.store.configuration(image)["config"]["Cmd"] == ["/app"]
    assert host.leftovers() == []


def test_progress(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    host.pull(name)
    for blob in sample.layers:
        stages = host.stages(blob)
        assert stages[0] == "waiting"
        assert stages[-1] == "done"
        assert "downloading" in stages
    assert host.messages() == [
        "1: Pulling from app",
        f"Digest: {sample.digest}",
        f"Status: Downloaded newer image for {name}",
    ]
    host.events.clear()
    host.pull(name)
    assert host.stages(sample.layers[0]) == ["exists"]
    assert host.messages()[-1] == f"Status: Image is up to date for {name}"


def test_second_pull_transfers_no_layers(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    host.pull(registry.push("app", "1", sample))
    registry.requests.clear()
    host.pull(registry.push("app", "2", sample))
    assert registry.seen("/blobs/") == []
    assert len(host.store.list()) == 1


def test_shared_and_repeated_layers_come_once(host: Host, registry: FakeRegistry) -> None:
    host.pull(registry.push("app", "1", make_sample([BASE, TOP, BASE, BASE])))
    assert len(registry.seen("/blobs/" + digest_of(make_sample([BASE]).blobs[make_sample([BASE]).layers[0]]))) == 1
    image = host.pull(registry.push("app", "2", make_sample([BASE, make_tar({"x": b"1"})])))
    assert len(host.sink.layers) == 3
    assert image.size == len(BASE) + len(make_tar({"x": b"1"}))


def test_content_without_unpacked_layers_is_not_fetched_again(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    host.pull(name)
    host.sink.layers.clear()
    registry.requests.clear()
    host.pull(name)
    assert registry.seen("/blobs/") == []
    assert set(host.sink.layers) == set(sample.diff_ids)


def test_by_digest(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    registry.push("app", "1", sample)
    name = f"{registry.address}/app@{sample.digest}"
    image = host.pull(name)
    assert (image.tags, image.repo_digests) == ((), (name,))
    assert host.store.resolve(name) == image


def test_moved_tag_leaves_the_old_image_without_one(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    old = host.pull(registry.push("app", "1", sample))
    new = host.pull(registry.push("app", "1", make_sample([TOP])))
    assert host.store.resolve(old.id).tags == ()
    assert new.tags == old.tags


# -- platforms


def test_platforms(host: Host, registry: FakeRegistry) -> None:
    samples = {arch: make_sample([make_tar({arch: b""})], platform=Platform(architecture=arch)) for arch in ("amd64", "arm64", "riscv64")}
    attestation = {"mediaType": "m", "digest": "sha256:" + "0" * 64, "size": 1, "annotations": {"vnd.docker.reference.type": "x"}}
    index = make_index(samples.values(), extra=[attestation])
    name = registry.push("app", "1", index)
    image = host.pull(name, platform=Platform(architecture="arm64"))
    assert (image.id, image.platform.architecture) == (samples["arm64"].id, "arm64")
    assert image.digest == samples["arm64"].digest
    assert image.repo_digests == (f"{registry.address}/app@{index.digest}",)
    error = host.refusal(NotFound, name, platform=Platform(architecture="s390x"))
    assert error.message == f"no matching manifest for linux/s390x in {name}"
    assert error.hint.startswith("available: linux/amd64, linux/arm64, linux/riscv64;")


def test_nested_index(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    inner = make_index([sample])
    inner.platform = None
    assert host.pull(registry.push("app", "1", make_index([inner]))).id == sample.id


def test_single_image_for_another_platform(host: Host, registry: FakeRegistry) -> None:
    name = registry.push("app", "1", make_sample([BASE], platform=Platform(architecture="mips")))
    assert "does not match the specified platform" in host.refusal(NotFound, name).message
    host.pull(name, platform=None)
    assert any(message.startswith("WARNING:") and "linux/mips" in message for message in host.messages())


# -- logins


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_login(host: Host, sample: Sample, kind: str) -> None:
    with FakeRegistry(login=kind) as registry:
        host.login(**{registry.address: "dXNlcjpzZWNyZXQ="})
        host.pull(registry.push("app", "1", sample))
        assert len(registry.seen("/token")) == (kind == "bearer")


def test_public_images_need_no_login(host: Host, sample: Sample) -> None:
    with FakeRegistry(login="bearer") as registry:
        host.pull(registry.push("team/app", "1", sample))
        (request,) = registry.seen("/token")
        assert "scope=repository%3Ateam%2Fapp%3Apull" in request.path
        assert "authorization" not in request.headers


def test_missing_and_wrong_logins(host: Host, sample: Sample) -> None:
    with FakeRegistry(login="basic") as registry:
        name = registry.push("app", "1", sample)
        error = host.refusal(Unauthorized, name)
        assert "requires a login" in error.message
        assert f"docker login, podman login or skopeo login {registry.address}" in error.hint
    with FakeRegistry(login="bearer") as registry:
        host.login(**{registry.address: "dXNlcjp3cm9uZw=="})
        error = host.refusal(Unauthorized, registry.push("app", "1", sample))
        assert "pull access denied for" in error.message


def test_refused_for_good(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault("/manifests/", status(403, body=b'{"errors":[{"code":"DENIED","message":"no"}]}'))
    error = host.refusal(Unauthorized, name)
    assert error.details == "no"
    registry.fault("/manifests/", status(401))
    assert host.refusal(Unauthorized, name)


def test_token_server_must_not_be_weaker(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault("/manifests/", status(401, {"WWW-Authenticate": 'Bearer realm="ftp://x"'}))
    assert "a token server that cannot be used" in host.refusal(RemoteError, name).message


def test_expired_token_is_renewed(host: Host, sample: Sample) -> None:
    with FakeRegistry(login="bearer") as registry:
        name = registry.push("app", "1", sample)
        registry.fault("/blobs/", lambda request, answer: Answer(401, b"", {"WWW-Authenticate": _challenge(registry)}), times=1)
        host.pull(name)
        assert len(registry.seen("/token")) == 2


def _challenge(registry: FakeRegistry) -> str:
    return f'Bearer realm="http://{registry.address}/token",service="s"'


# -- registries that misbehave


def test_unknown_names(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    registry.push("app", "1", sample)
    error = host.refusal(NotFound, f"{registry.address}/app:2")
    assert error.message == f"manifest for {registry.address}/app:2 not found on {registry.address}"
    assert error.details == "manifest unknown"
    assert host.refusal(NotFound, f"{registry.address}/nope")
    assert host.refusal(InvalidArgument, "no/Such")


def test_nobody_there(host: Host) -> None:
    with FakeRegistry() as registry:
        address = registry.address
    error = host.refusal(RemoteError, f"{address}/app")
    assert error.message == f"cannot reach registry {address}: connection refused"
    assert not any("again" in message for message in host.messages())


def test_wrong_digest_of_a_layer(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    registry.fault(f"/blobs/{sample.layers[1]}", corrupt)
    error = host.refusal(BadContent, registry.push("app", "1", sample))
    assert sample.layers[1] in error.message
    assert host.leftovers() == []
    assert digest_of(TOP) not in host.sink.layers
    assert not list(host.store.content.blobs())


def test_wrong_digest_of_the_documents(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    for pattern in ("/manifests/", f"/blobs/{sample.id}"):
        registry.fault(pattern, corrupt, times=1)
        assert "expected sha256:" in host.refusal(BadContent, name).message
    host.pull(name)


def test_layer_that_is_longer_or_shorter_than_promised(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault(f"/blobs/{sample.layers[0]}", lambda request, answer: answer._replace(body=answer.body + b"more"), times=1)
    assert "is longer than the" in host.refusal(BadContent, name).message
    registry.fault(f"/blobs/{sample.layers[0]}", lambda request, answer: answer._replace(body=answer.body[:-5]), times=50)
    assert "lost the connection" in host.refusal(RemoteError, name).message


def test_wrong_diff_id(host: Host, registry: FakeRegistry) -> None:
    liar = make_sample([BASE])
    config = json.loads(liar.blobs[liar.id])
    config["rootfs"]["diff_ids"] = [digest_of(TOP)]
    raw = json.dumps(config).encode()
    changed = {"config": {**liar.manifest["config"], "digest": digest_of(raw), "size": len(raw)}}
    sample = make_sample([BASE], change=changed)
    sample.blobs[digest_of(raw)] = raw
    error = host.refusal(BadContent, registry.push("app", "1", sample))
    assert "is not the one that the image's configuration names" in error.message
    assert host.sink.layers == {}
    assert not list(host.store.content.blobs())


def test_layers_and_diff_ids_must_pair(host: Host, registry: FakeRegistry) -> None:
    one, two = make_sample([BASE]), make_sample([BASE, TOP])
    sample = make_sample([BASE, TOP], change={"config": one.manifest["config"]})
    sample.blobs.update({**one.blobs, **two.blobs})
    assert "2 layers, the configuration 1" in host.refusal(BadContent, registry.push("app", "1", sample)).message


def test_schema_1_and_artifacts(host: Host, registry: FakeRegistry) -> None:
    old = b'{"schemaVersion":1,"name":"x","fsLayers":[]}'
    registry.put_manifest("app", "1", old, digest_of(old), "application/vnd.docker.distribution.manifest.v1+prettyjws")
    error = host.refusal(BadContent, f"{registry.address}/app:1")
    assert "schema 1" in error.message
    assert "skopeo copy" in error.hint
    chart = make_sample(
        [BASE], change={"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest_of(b""), "size": 0}}
    )
    assert "artifact" in host.refusal(BadContent, registry.push("chart", "1", chart)).message


def test_oversized_documents(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault("/manifests/", lambda request, answer: answer._replace(body=b" " * (5 << 20)), times=1)
    assert "more than 4194304 bytes" in host.refusal(BadContent, name).message


def test_missing_blob(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.drop_blob(sample.layers[1])
    assert "does not have the blob" in host.refusal(RemoteError, name).message


def test_bomb(host: Host, registry: FakeRegistry) -> None:
    name = registry.push("app", "1", make_sample([make_tar({"zeros": bytes(6_000_000)})]))
    error = host.refusal(BadContent, name, limits=Limits(ratio_free=1 << 20))
    assert "decompression bomb" in error.message
    assert "NACRE_LAYER_RATIO" in error.hint
    assert host.sink.layers == {}
    assert not list(host.store.content.blobs())
    host.environ["NACRE_LAYER_BYTES"] = "1000000"
    assert "more than 1000000 bytes" in host.refusal(BadContent, name).message


def test_not_a_tar_but_right_digests_is_the_sinks_business(host: Host, registry: FakeRegistry) -> None:
    host.pull(registry.push("app", "1", make_sample([b"not a tar"])))
    assert host.sink.layers == {digest_of(b"not a tar"): b"not a tar"}


# -- broken connections


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connection_is_taken_up_again(host: Host, registry: FakeRegistry, sample: Sample, ranges: bool) -> None:
    name = registry.push("app", "1", sample)
    registry.ranges = ranges
    registry.fault(f"/blobs/{sample.layers[1]}", cut(200_000), times=2)
    host.pull(name)
    requests = registry.seen(f"/blobs/{sample.layers[1]}")
    assert len(requests) == 3 if ranges else 2 <= len(requests) <= 4
    assert "range" not in requests[0].headers
    assert requests[1].headers["range"] == "bytes=200000-"
    assert any("lost the connection" in message for message in host.messages())
    assert host.sink.layers[digest_of(TOP)] == TOP


def test_next_pull_resumes(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault(f"/blobs/{sample.layers[1]}", cut(200_000), times=1)
    registry.fault(f"/blobs/{sample.layers[1]}", cut(0), times=2)
    error = host.refusal(RemoteError, name)
    assert f"lost the connection to registry {registry.address}: it ended after 200000 of" in error.message
    assert host.leftovers() == [f"sha256-{sample.layers[1][7:]}"]
    registry.requests.clear()
    host.pull(name)
    assert [request.headers.get("range") for request in registry.seen(f"/blobs/{sample.layers[1]}")] == ["bytes=200000-"]
    assert host.sink.layers[digest_of(TOP)] == TOP
    assert host.leftovers() == []


def test_damaged_leftover_is_fetched_again(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    os.makedirs(host.store.content.ingest_root)
    Path(host.store.content.ingest_root, f"sha256-{sample.layers[1][7:]}").write_bytes(b"garbage" * 1000)
    host.pull(name)
    assert host.sink.layers[digest_of(TOP)] == TOP


def test_complete_leftover_needs_no_download(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    os.makedirs(host.store.content.ingest_root)
    Path(host.store.content.ingest_root, f"sha256-{sample.layers[1][7:]}").write_bytes(sample.blobs[sample.layers[1]])
    host.pull(name)
    assert registry.seen(f"/blobs/{sample.layers[1]}") == []


def test_busy_registry(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault("/manifests/", status(429, {"Retry-After": "0"}), times=1)
    registry.fault("/blobs/", status(503), times=1)
    host.pull(name)
    assert sum("trying again" in message for message in host.messages()) == 2


def test_busy_for_too_long(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    registry.fault(
        "/app/manifests/", status(429, {"Retry-After": "3600"}, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}')
    )
    error = host.refusal(RemoteError, name)
    assert "has received too many requests: slow down" in error.message
    assert len(registry.seen("/app/manifests/")) == 1
    registry.fault("/x/manifests/", status(500))
    assert "failed with HTTP status 500" in host.refusal(RemoteError, f"{registry.address}/x").message
    assert len(registry.seen("/x/manifests/")) == 3


def test_retry_policy() -> None:
    retry = Retry(attempts=3, delay=1.0, longest=10.0)
    assert retry.wait(1, 7.0) == 7.0
    assert retry.wait(1, 11.0) is None
    assert retry.wait(3, None) is None
    assert 1.6 <= (retry.wait(2, None) or 0) <= 2.4
    assert client._retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert client._retry_after("nonsense") is None


# -- redirects


def test_redirect_without_the_login(host: Host, sample: Sample) -> None:
    with FakeRegistry(login="basic") as registry, FakeRegistry() as storage:
        host.login(**{registry.address: "dXNlcjpzZWNyZXQ="})
        storage.push("elsewhere", "1", sample)
        name = registry.push("app", "1", sample)

        def away(request: Request, answer: Answer) -> Answer:
            if answer.status == 401:
                return answer
            digest = request.path.rpartition("/")[2]
            return Answer(307, b"", {"Location": f"http://{storage.address}/v2/elsewhere/blobs/{digest}"})

        registry.fault("/blobs/", away)
        host.pull(name)
        assert len(storage.requests) == 3
        assert all("authorization" not in request.headers for request in storage.requests)
        assert all("authorization" in request.headers for request in registry.requests[1:])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/v2/app/blobs/loop", "redirects in a circle"),
        ("ftp://x/y", "an address that cannot be used"),
        ("http://[bad/", "an address that cannot be used"),
        ("http://x:99999/", "an address that cannot be used"),
        ("http://x/\u00e9", "an address that cannot be used"),
        ("http://x/a b", "an address that cannot be used"),
    ],
)
def test_bad_redirects(host: Host, registry: FakeRegistry, sample: Sample, target: str, message: str) -> None:
    name = registry.push("app", "1", sample)
    registry.fault("/blobs/", status(302, {"Location": target}))
    assert message in host.refusal(RemoteError, name).message


# -- configuration


def mirrored(host: Host, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    host.registries = Registries(
        registries=(Registry(prefix=registry.address, location=registry.address, mirrors=(Mirror(location=f"{mirror.address}/copy"),)),)
    )


def test_mirror_is_asked_first(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    with FakeRegistry() as mirror:
        mirrored(host, registry, mirror)
        mirror.push("copy/app", "1", sample)
        image = host.pull(registry.push("app", "1", sample))
        assert image.tags == (f"{registry.address}/app:1",)
        assert registry.requests == []


@pytest.mark.parametrize("fault", ["gone", "empty", "500", "blob missing", "blob wrong"])
def test_mirror_that_fails(host: Host, registry: FakeRegistry, sample: Sample, fault: str) -> None:
    name = registry.push("app", "1", sample)
    with FakeRegistry() as mirror:
        mirrored(host, registry, mirror)
        if fault != "empty":
            mirror.push("copy/app", "1", sample)
        if fault == "gone":
            mirror.close()
        elif fault == "500":
            mirror.fault("", status(500))
        elif fault == "blob missing":
            mirror.drop_blob(sample.layers[1])
        elif fault == "blob wrong":
            mirror.fault(f"/blobs/{sample.layers[1]}", corrupt)
        host.pull(name)
        assert registry.requests
        assert host.sink.layers[digest_of(TOP)] == TOP


def test_all_places_fail(host: Host, registry: FakeRegistry) -> None:
    with FakeRegistry() as mirror:
        mirrored(host, registry, mirror)
        error = host.refusal(NotFound, f"{registry.address}/app:1")
        assert f"not found on {registry.address}" in error.message
        assert f"not found on {mirror.address}" in error.details


def test_short_names(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    with FakeRegistry() as other:
        host.registries = Registries(search=(other.address, registry.address), aliases={"tool": f"{registry.address}/x/tool"})
        name = registry.push("app", "latest", sample)
        assert host.pull("app").tags == (name,)
        assert other.seen("/v2/app/manifests/latest")
        assert host.store.resolve("app").id == sample.id
        registry.push("x/tool", "2", sample)
        assert host.pull("tool:2").id == sample.id
        assert host.store.resolve("tool:2").id == sample.id


def test_blocked(host: Host, registry: FakeRegistry) -> None:
    host.registries = Registries(registries=(Registry(prefix=registry.address, location=registry.address, blocked=True),))
    assert host.refusal(Denied, f"{registry.address}/x")
    assert registry.requests == []


def test_insecure_registry_falls_back_to_http(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    host.registries = Registries(registries=(Registry(prefix=registry.address, location=registry.address, insecure=True),))
    host.pull(registry.push("app", "1", sample))


def test_loopback_registry_with_tls_on_demand(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    host.registries = Registries(registries=(Registry(prefix=registry.address, location=registry.address, insecure=False),))
    error = host.refusal(RemoteError, registry.push("app", "1", sample))
    assert "no TLS connection" in error.message
    assert "insecure = true" in error.hint


def test_proxy(host: Host, sample: Sample) -> None:
    with FakeRegistry() as proxy:
        host.environ["http_proxy"] = f"http://me:pw@{proxy.address}"
        host.registries = Registries(registries=(Registry(prefix="far.example", location="far.example:80", insecure=True),))

        def pass_on(request: Request, answer: Answer) -> Answer:
            assert request.headers["proxy-authorization"] == "Basic bWU6cHc="
            inner = request._replace(path=re.sub("^http://far.example:80", "", request.path))
            return proxy._honest(inner)

        proxy.push("app", "1", sample)
        proxy.fault("^http://", pass_on)
        host.environ["https_proxy"] = "http://127.0.0.1:1"
        host.pull("far.example/app:1")
        assert all(request.headers["host"] == "far.example:80" for request in proxy.requests)


# -- trouble on our side


def test_sink_fails(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    host.sink.error = NoSpace("the layer does not fit")
    before = threading.active_count()
    host.refusal(NoSpace, registry.push("app", "1", sample))
    assert not list(host.store.content.blobs())
    assert host.leftovers() == []
    assert threading.active_count() <= before + 3  # the registry's own


def test_disk_full_while_downloading(host: Host, registry: FakeRegistry, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    name = registry.push("app", "1", sample)
    write = os.pwrite

    def refuse(fd: int, data: memoryview, offset: int) -> int:
        if offset > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        error = host.refusal(NoSpace, name)
    assert "no space left for" in error.message
    assert host.leftovers() == []
    host.pull(name)


def test_interrupted(host: Host, registry: FakeRegistry, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = threading.Event()

    def stall(request: Request, answer: Answer) -> Answer:
        stalled.wait(20)
        return answer

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    name = registry.push("app", "1", sample)
    registry.fault(f"/blobs/{sample.layers[1]}", stall)
    monkeypatch.setattr("nacre.images.pull.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.pull(name)
    assert not stalled.is_set()
    stalled.set()
    assert host.store.list() == []


def test_two_pulls_share_a_download(host: Host, registry: FakeRegistry, sample: Sample) -> None:
    name = registry.push("app", "1", sample)
    second_waits = threading.Event()

    def hold_back(request: Request, answer: Answer) -> Answer:
        assert second_waits.wait(20)
        return answer

    registry.fault(f"/blobs/{sample.layers[1]}", hold_back)
    other = Host(host.root)

    def watch(event: Progress) -> None:
        # Twice waiting: announced, then standing in front of the lock. Both pulls may be the one that waits.
        waits.append(event.item) if event.stage == "waiting" and event.item == sample.layers[1][7:19] else None
        if len(waits) >= 3:
            second_waits.set()

    waits: list[str] = []
    options = Options(registries=Registries(), environ=host.environ)
    threads = [
        threading.Thread(
            target=pull, args=(one.store, name), kwargs={"sink": one.sink, "platform": AMD64, "progress": watch, "options": options}
        )
        for one in (host, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(registry.seen(f"/blobs/{sample.layers[1]}")) == 1
    assert host.sink.layers == other.sink.layers
    assert host.leftovers() == []
