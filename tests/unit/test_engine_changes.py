"""What a container has changed: the engine's own traces are left out, and what a guest lists is only sketched."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nacre.engine import changes
from nacre.errors import SandboxError
from nacre.model.container import BoundMount, Container, ContainerSpec
from nacre.storage.changes import Change


def container(*targets: str) -> Container:
    mounts = tuple(BoundMount(target=target) for target in targets)
    return Container(id="1" * 64, name="c", spec=ContainerSpec(image="box"), image_id="", image_name="box", mounts=mounts)


def found(text: str) -> list[Change]:
    return [Change(line[0], line[2:].encode()) for line in text.split(", ")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("C etc, A etc/hosts, A etc/resolv.conf", ""),
        ("C etc, A etc/hosts, C etc/passwd", "C etc, C etc/passwd"),
        ("C etc, C etc/hosts", "C etc, C etc/hosts"),
        ("A dev, A dev/pts, A proc, A sys, A data, C srv, A srv/v, A srv/other", "C srv, A srv/other"),
        ("C var, C var/lib, C var/lib/x", "C var, C var/lib, C var/lib/x"),
        ("D bin/vi, C bin", "D bin/vi, C bin"),
    ],
)
def test_the_engine_s_own_traces(before: str, after: str) -> None:
    assert changes.without_ours(found(before), container("/data", "/srv/v/")) == (found(after) if after else [])


def archive(*members: tuple[str, bytes, dict[str, Any]]) -> Any:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, kind, fields in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            for field, value in fields.items():
                setattr(info, field, value)
            file.addfile(info)
    return io.BytesIO(made.getvalue())


def test_a_sketch_has_kinds_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes: list[tuple[str, str, bytes]] = []
    nodes: list[str] = []
    monkeypatch.setattr(os, "setxattr", lambda *words: attributes.append(words))
    monkeypatch.setattr(os, "mknod", lambda path, mode, device: nodes.append(path) if device == 0 and stat.S_ISCHR(mode) else None)
    opaque = {"pax_headers": {"SCHILY.xattr.trusted.overlay.opaque": "y"}}
    source = archive(
        ("./", tarfile.DIRTYPE, {}),
        ("./etc/", tarfile.DIRTYPE, opaque),
        ("./etc/passwd", tarfile.REGTYPE, {}),
        ("./etc/gone", tarfile.CHRTYPE, {"devmajor": 0, "devminor": 0}),
        ("./null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        ("./link", tarfile.SYMTYPE, {"linkname": "/etc"}),
        ("./other", tarfile.LNKTYPE, {"linkname": "./etc/passwd"}),
    )
    changes._sketch(source, str(tmp_path))
    assert attributes == [(f"{tmp_path}/etc", "trusted.overlay.opaque", b"y")]
    assert nodes == [f"{tmp_path}/etc/gone"]
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*")}
    assert sorted(files) == ["etc", "etc/passwd", "link", "null", "other"]
    assert all(path.is_file() and not path.is_symlink() for name, path in files.items() if name != "etc")


@pytest.mark.parametrize("name", ["../out", "./a/../../out", ".."])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "top").mkdir()
    with pytest.raises(SandboxError, match="impossible name"):
        changes._sketch(archive((name, tarfile.REGTYPE, {})), str(tmp_path / "top"))
    assert os.listdir(tmp_path) == ["top"]


def test_an_absolute_name_stays_below(tmp_path: Path) -> None:
    changes._sketch(archive(("/file", tarfile.REGTYPE, {})), str(tmp_path))
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="could not read the list"):
        changes._sketch(io.BytesIO(b"x" * 2000), str(tmp_path))  # type: ignore[arg-type]
