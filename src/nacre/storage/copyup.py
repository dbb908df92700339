"""The helper process of `nacre.storage.volumes`: stacks layers where nobody else sees it and copies one directory out of them.

Reads one JSON object on its standard input, answers with one on its standard output. The mounts vanish with the process.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

from nacre.linux.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from nacre.linux.kernel import mount, unshare
from nacre.linux.run import check
from nacre.model.plan import MS_BIND, MS_PRIVATE, MS_RDONLY, MS_REC, NEWNS
from nacre.storage.merge import copy_open_tree, merge_layers


def main() -> None:
    """Answer {"errno": 0} when it was copied, ENOENT when there is no such directory, else what went wrong."""
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {"errno": 0, "text": "", "file": ""}
    try:
        root = _stack(request["layers"], request["mounts"])
        try:
            source = _open(root, request["path"])
        except (FileNotFoundError, NotADirectoryError):
            answer["errno"] = errno.ENOENT
        else:
            copy_open_tree(source, os.open(request["destination"], os.O_RDONLY | os.O_DIRECTORY), layer=True)
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "text": error.strerror or "", "file": os.fsdecode(error.filename or "")}
    json.dump(answer, sys.stdout)


def _open(root: str, path: str) -> int:
    """The directory at `path` as a container would find it: links are followed, but only inside."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    return openat2(top, path.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def _stack(layers: list[list[str]], directory: str) -> str:
    """Mount the layers below `directory` and put them on top of each other; returns the path of the result."""
    unshare(NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    os.chdir(directory)
    for number, (path, kind) in enumerate(layers):
        os.mkdir(f"l{number}")
        if kind == "erofs":
            _mount_image(path, f"l{number}")
        else:
            mount(path, f"l{number}", "", MS_BIND)
    if len(layers) == 1:
        return "l0"
    os.mkdir("merged")
    names = [f"l{number}" for number in range(len(layers))]
    try:
        mount("overlay", "merged", "overlay", MS_RDONLY, f"lowerdir={':'.join(reversed(names))}")
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL, errno.EPERM):
            raise
        merge_layers(names, "merged")  # no overlayfs here
    return "merged"


def _mount_image(path: str, target: str) -> None:
    try:
        mount(path, target, "erofs", MS_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            raise
        check(["mount", "-t", "erofs", "-o", "loop,ro", path, target])
