"""A helper process with a mount namespace of its own, in which layers are mounted where nobody else sees them.

It reads one JSON object on its standard input and answers with one on its standard output: ``ask`` is the caller's end. Verbs:
*copy* stacks layers and copies one directory out of them (for `nacre.storage.volumes`); *changes* compares a container's files
with them (for `nacre.storage.changes`). The mounts vanish with the process.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

from nacre.errors import HostError
from nacre.linux.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, explain, openat2
from nacre.linux.kernel import mount, unshare
from nacre.linux.run import check, run
from nacre.linux.userns import is_initial
from nacre.model.plan import MS_BIND, MS_PRIVATE, MS_RDONLY, MS_REC, NEWNS
from nacre.storage.changes import compare
from nacre.storage.merge import copy_open_tree, merge_layers


def ask(request: dict[str, Any], action: str) -> dict[str, Any]:
    """Have a helper do something; its answer. action: as in "cannot <action>: ...". Raises NotFound, NoSpace, HostError."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {package!r}); from nacre.storage import helper; helper.main()"
    result = run([sys.executable, "-I", "-S", "-c", code], stdin=json.dumps(request).encode())
    if result.code:
        said = result.stderr.decode(errors="replace").strip()
        raise HostError(f"cannot {action}: the helper failed", details=said)
    answer: dict[str, Any] = json.loads(result.stdout)
    if answer["errno"]:
        raise explain(OSError(answer["errno"], answer["text"], answer["file"]), action)
    return answer


def main() -> None:
    """Answer one request: its result, and errno, text and file of what went wrong."""
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {"errno": 0, "text": "", "file": ""}
    try:
        answer |= {"copy": _copy, "changes": _changes}[request["verb"]](request)
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "text": error.strerror or "", "file": os.fsdecode(error.filename or "")}
    json.dump(answer, sys.stdout)


def _copy(request: dict[str, Any]) -> dict[str, Any]:
    """Copy the directory at `path` to `destination`; {"found": whether there is one}."""
    root = _stack(request["layers"], request["mounts"])
    try:
        source = _open(root, request["path"])
    except (FileNotFoundError, NotADirectoryError):
        return {"found": False}
    copy_open_tree(source, os.open(request["destination"], os.O_RDONLY | os.O_DIRECTORY), layer=True)
    return {"found": True}


def _changes(request: dict[str, Any]) -> dict[str, Any]:
    """Compare `top` with the layers; {"changes": [[kind, path] ...]}."""
    names = _mount_layers(request["layers"], request["mounts"])
    found = compare(names, request["top"], request["form"])
    return {"changes": [[change.kind, os.fsdecode(change.path)] for change in found]}


def _open(root: str, path: str) -> int:
    """The directory at `path` as a container would find it: links are followed, but only inside."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    return openat2(top, path.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def _mount_layers(layers: list[list[str]], directory: str) -> list[str]:
    """Mount each layer below `directory`, which becomes the working directory; their relative paths."""
    unshare(NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    os.chdir(directory)
    for number, (path, kind) in enumerate(layers):
        os.mkdir(f"l{number}")
        if kind == "erofs":
            _mount_image(path, f"l{number}")
        else:
            mount(path, f"l{number}", "", MS_BIND)
    return [f"l{number}" for number in range(len(layers))]


def _stack(layers: list[list[str]], directory: str) -> str:
    """Mount the layers below `directory` and put them on top of each other; returns the path of the result."""
    names = _mount_layers(layers, directory)
    if len(layers) == 1:
        return "l0"
    os.mkdir("merged")
    options = f"lowerdir={':'.join(reversed(names))}{'' if is_initial() else ',userxattr'}"
    try:
        mount("overlay", "merged", "overlay", MS_RDONLY, options)
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
