"""Documents and archives with random damage: every outcome is a value or one of our errors, and nothing is left behind."""

from __future__ import annotations

import functools
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacre.errors import NacreError
from nacre.images.archive import load
from nacre.images.store import ImageStore
from nacre.model.image import Platform
from nacre.model.reference import Reference
from nacre.testing.images import MemorySink, compress, docker_archive, make_index, make_sample, make_tar, oci_layout
from nacre.wire.registry import parse_challenges, parse_configuration, parse_errors, parse_manifest

SAMPLE = make_sample([make_tar({"a": b"x" * 100})])
INDEX = make_index([SAMPLE])
ODD: list[Any] = [None, 1, -1, 1.5, True, "x", "", [], {}, [1], {"a": 1}, [None], {"a": None}, 10**30, "\ud800", "sha256:" + "0" * 64]
ARCHIVES = [
    make_tar(docker_archive({"app:1": SAMPLE})),
    make_tar(oci_layout({"app:1": INDEX})),
    compress(make_tar(docker_archive({"app:1": SAMPLE})), "gzip"),
    compress(make_tar(docker_archive({"app:1": SAMPLE})), "zstd"),
]


def damage(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, removed, inserted or repeated."""
    result = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        place = dice.randrange(len(result) + 1)
        match dice.randrange(4):
            case 0:
                result[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                del result[place : place + dice.randint(1, 600)]
            case 2:
                result[place:place] = bytes(dice.choices(b'0123456789{}[],:"null\\/.-\0 \xff', k=dice.randint(1, 20)))
            case 3:
                result[place:place] = data[place : place + 512]
    return bytes(result)


def distort(value: Any, dice: random.Random) -> Any:
    """A JSON document with some values replaced."""
    if dice.random() < 0.1:
        return dice.choice(ODD)
    if isinstance(value, dict):
        return {key: distort(item, dice) for key, item in value.items()}
    if isinstance(value, list):
        return [distort(item, dice) for item in value]
    return value


def survives(action: Callable[[], object]) -> None:
    try:
        action()
    except NacreError as error:
        str(error).encode()  # printable everywhere


@pytest.mark.parametrize("seed", range(4))
def test_documents(seed: int) -> None:
    dice = random.Random(seed)
    readers = [
        (parse_manifest, SAMPLE.blobs[SAMPLE.digest]),
        (parse_manifest, INDEX.blobs[INDEX.digest]),
        (parse_configuration, SAMPLE.blobs[SAMPLE.id]),
    ]
    for _ in range(100):
        for read, data in readers:
            survives(lambda read=read, data=data: read(damage(data, dice)))  # type: ignore[misc]
            survives(lambda read=read, data=data: read(json.dumps(distort(json.loads(data), dice)).encode()))  # type: ignore[misc]
        survives(lambda: Reference.parse(damage(b"docker.io/library/ubuntu:latest", dice).decode("latin1")))
        parse_challenges([damage(b'Bearer realm="https://a/t",service="s, p"', dice).decode("latin1")])
        parse_errors(damage(b'{"errors":[{"code":"A","message":"b"}]}', dice))


@pytest.mark.parametrize("archive", range(len(ARCHIVES)))
def test_archives(archive: int, tmp_path: Path) -> None:
    dice = random.Random(archive)
    for number in range(15):
        store = ImageStore(str(tmp_path / str(number)))
        damaged = io.BytesIO(damage(ARCHIVES[archive], dice))
        survives(functools.partial(load, store, damaged, sink=MemorySink(), platform=Platform()))
        assert not os.path.isdir(store.content.ingest_root) or os.listdir(store.content.ingest_root) == []
        assert store.list() or not list(store.content.blobs())
