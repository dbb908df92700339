from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nacre.errors import Conflict, HostError, InvalidArgument, NotFound
from nacre.images.store import ImageStore
from nacre.model.image import History, Image, Layer, Removed
from nacre.model.reference import Reference

A = "sha256:" + "a" * 63 + "1"
AB = "sha256:" + "a" * 62 + "b2"
B = "sha256:" + "b" * 64
DIGEST = "sha256:" + "d" * 64


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path))


def add(store: ImageStore, identifier: str, *names: str, blobs: tuple[bytes, ...] = (), created: str = "2026") -> Image:
    layers = tuple(
        Layer(diff_id=f"sha256:{number:064x}", blob=store.content.put(blob), size=len(blob)) for number, blob in enumerate(blobs)
    )
    image = Image(id=identifier, digest=f"sha256:{identifier[-1] * 64}", created=created, layers=layers, history=(History(created_by="x"),))
    with store.hold():
        added = store.add(image)
        for name in names:
            reference = Reference.parse(name)
            added = store.add(image, digest=reference) if reference.digest else store.add(image, tag=reference.tagged())
    return added


def ids(store: ImageStore) -> list[str]:
    return [image.id for image in store.list()]


def steps(found: list[Removed]) -> list[str]:
    return [step.untagged or step.deleted for step in found]


def test_empty_store_is_read_without_being_made(store: ImageStore, tmp_path: Path) -> None:
    assert store.list() == []
    with pytest.raises(NotFound) as caught:
        store.resolve("busybox")
    assert (caught.value.message, caught.value.hint) == ("No such image: busybox:latest", "nacre pull busybox:latest")
    assert os.listdir(tmp_path) == []


def test_resolve_by_every_name(store: ImageStore) -> None:
    image = add(store, A, "busybox", "q.io/x:1", f"busybox@{DIGEST}")
    assert image.tags == ("docker.io/library/busybox:latest", "q.io/x:1")
    assert image.repo_digests == (f"docker.io/library/busybox@{DIGEST}",)
    for text in ("busybox", "busybox:latest", "docker.io/library/busybox", "q.io/x:1", f"busybox@{DIGEST}", f"busybox:9@{DIGEST}", DIGEST):
        assert store.resolve(text) == image, text
    for text in (A, A[7:], A[7:19], A[:20], "a"):
        assert store.resolve(text) == image, text


@pytest.mark.parametrize("text", ["busybox:2", "q.io/busybox", "c", f"busybox@sha256:{'e' * 64}", "sha256:" + "e" * 64, "e" * 64, "x" * 64])
def test_not_found(store: ImageStore, text: str) -> None:
    add(store, A, "busybox")
    with pytest.raises(NotFound, match="No such image: "):
        store.resolve(text)


def test_prefixes(store: ImageStore) -> None:
    add(store, A)
    add(store, AB)
    with pytest.raises(InvalidArgument, match="ambiguous image id 'aaa': it is the beginning of 2 ids"):
        store.resolve("aaa")
    assert store.resolve(AB[7:]).id == AB
    add(store, B, "aaa")
    assert store.resolve("aaa").id == B  # a name comes first


def test_malformed_reference(store: ImageStore) -> None:
    with pytest.raises(InvalidArgument, match="must be lowercase"):
        store.resolve("Busybox")


def test_names_move(store: ImageStore) -> None:
    add(store, A, "busybox")
    add(store, B, "busybox")
    assert store.resolve("busybox").id == B
    assert store.resolve(A).tags == ()


def test_list_is_newest_first(store: ImageStore) -> None:
    add(store, A, created="2025-01-01")
    add(store, B, created="2026-01-01")
    assert ids(store) == [B, A]


def test_tag(store: ImageStore) -> None:
    add(store, A, "busybox")
    add(store, B, "mine:1")
    assert store.tag("busybox", "mine:1").id == A
    assert store.resolve("mine:1").id == A
    assert store.tag(B, "other").tags == ("docker.io/library/other:latest",)
    with pytest.raises(NotFound):
        store.tag("nope", "x")
    with pytest.raises(InvalidArgument, match="digest reference"):
        store.tag("busybox", f"x@{DIGEST}")


def test_history(store: ImageStore) -> None:
    add(store, A, "busybox")
    assert store.history("busybox") == [History(created_by="x")]


def test_short_names_follow_the_pull(store: ImageStore) -> None:
    add(store, A, "busybox")
    add(store, B, "q.io/tools/busybox")
    store.remember_short_name("busybox:latest", Reference.parse("q.io/tools/busybox:latest"))
    assert store.resolve("busybox").id == B
    assert store.resolve("docker.io/library/busybox").id == A
    assert steps(store.remove("busybox")) == ["q.io/tools/busybox:latest", B]
    assert store.resolve("busybox").id == A
    store.remember_short_name("q.io/x", Reference.parse("q.io/y"))
    store.remember_short_name("busybox", Reference.parse("busybox"))
    assert store.resolve("busybox").id == A


# -- removing


def test_remove_by_name(store: ImageStore) -> None:
    add(store, A, "busybox", "busybox:1", "q.io/x", f"busybox@{DIGEST}")
    assert steps(store.remove("busybox")) == ["busybox:latest"]
    assert steps(store.remove("busybox:1")) == ["busybox:1", f"busybox@{DIGEST}"]
    assert steps(store.remove("q.io/x")) == ["q.io/x:latest", A]
    assert store.list() == []
    with pytest.raises(NotFound):
        store.remove("q.io/x")


def test_remove_by_id(store: ImageStore) -> None:
    add(store, A, "busybox", f"busybox@{DIGEST}")
    assert steps(store.remove(A[7:15])) == ["busybox:latest", f"busybox@{DIGEST}", A]
    add(store, A, "busybox", "q.io/x")
    with pytest.raises(Conflict, match="image is referenced in multiple repositories"):
        store.remove(A)
    assert steps(store.remove(A, force=True)) == ["busybox:latest", "q.io/x:latest", A]
    add(store, B)
    assert steps(store.remove(B)) == [B]


def test_remove_while_in_use(store: ImageStore) -> None:
    add(store, A, "busybox", "busybox:1")
    container = ["c" * 64]
    assert steps(store.remove("busybox:1", in_use=lambda image: container)) == ["busybox:1"]
    with pytest.raises(Conflict) as caught:
        store.remove("busybox", in_use=lambda image: container)
    assert caught.value.message == (
        'conflict: unable to remove repository reference "busybox" (must force) - '
        "container cccccccccccc is using its referenced image aaaaaaaaaaaa"
    )
    with pytest.raises(Conflict, match="unable to delete aaaaaaaaaaaa"):
        store.remove(A, in_use=lambda image: container)
    with pytest.raises(Conflict, match="cannot be forced"):
        store.remove(A, force=True, in_use=lambda image: container, running=lambda image: container)
    assert ids(store) == [A]
    assert steps(store.remove("busybox", force=True, running=lambda image: container)) == ["busybox:latest"]
    assert ids(store) == [A]
    assert steps(store.remove(A, force=True, in_use=lambda image: container)) == [A]


# -- garbage


def blobs(store: ImageStore) -> int:
    return len(list(store.content.blobs()))


def test_collect_keeps_what_is_needed(store: ImageStore) -> None:
    add(store, A, "a", blobs=(b"one", b"two"))
    add(store, B, "b", blobs=(b"two", b"three"))
    store.remove("a")
    kept: list[frozenset[str]] = []
    assert store.collect(kept.append)
    assert blobs(store) == 2
    assert len(kept[0]) == 2
    assert sorted(os.listdir(store.root)) == [f"{B[7:]}.json", "lock", "references.json", "use.lock"]
    assert store.resolve("b").id == B


def test_collect_waits_for_pulls(store: ImageStore) -> None:
    add(store, A, "a", blobs=(b"one",))
    store.remove("a")
    with store.hold():
        assert not store.collect()
        assert blobs(store) == 1
    assert store.collect()
    assert blobs(store) == 0


def test_collect_spares_young_leftovers_but_not_orphans(store: ImageStore) -> None:
    young, old, orphan = store.content.put(b"young"), store.content.put(b"old"), store.content.put(b"orphan")
    long_ago = time.time() - 100_000
    os.utime(store.content.path(old), (long_ago, long_ago))
    add(store, A, "a", blobs=(b"used",))
    used = store.resolve("a").layers[0].blob
    assert store.collect(orphans=[orphan, used])
    assert {digest for digest, _ in store.content.blobs()} == {young, used}


def test_half_written_and_lost_records_go(store: ImageStore) -> None:
    add(store, A, "a")
    for name in ("references.json.12.ab.tmp", f"{B[7:]}.json"):
        Path(store.root, name).write_bytes(b"{")
    assert ids(store) == [A]
    store.collect()
    assert sorted(os.listdir(store.root)) == [f"{A[7:]}.json", "lock", "references.json", "use.lock"]


def test_record_that_another_process_just_removed(store: ImageStore) -> None:
    add(store, A, "a")
    os.unlink(f"{store.root}/{A[7:]}.json")
    with pytest.raises(NotFound):
        store.resolve("a")
    assert store.list() == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version":99}'])
def test_damage_is_reported(store: ImageStore, data: bytes) -> None:
    add(store, A, "a")
    Path(store.root, "references.json").write_bytes(data)
    with pytest.raises(HostError):
        store.list()
    with pytest.raises(HostError):
        store.tag("a", "b")


def test_processes_do_not_lose_each_others_changes(store: ImageStore, tmp_path: Path) -> None:
    add(store, A, "a")
    code = (
        "import sys; from nacre.images.store import ImageStore\nfor n in range(10): ImageStore(sys.argv[1]).tag('a', f'x{sys.argv[2]}:{n}')"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)]) for number in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert len(store.resolve("a").tags) == 31


def test_configuration(store: ImageStore) -> None:
    raw = json.dumps({"config": {"Env": ["A=1"]}}).encode()
    image = add(store, store.content.put(raw), "a")
    assert store.configuration(image) == {"config": {"Env": ["A=1"]}}


def test_finding_an_image_imports_nothing_heavy() -> None:
    code = (
        "import sys, nacre.images.store\n"
        "heavy = {'http.client', 'tarfile', 'hashlib', 'ssl', 'tomllib', 'subprocess', 'logging', 'asyncio', 'dataclasses', 'threading'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
