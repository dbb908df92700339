"""Which way of keeping layers works on this host: found out by trying, once per boot.

The drivers, best first: **erofs**, one image per layer, stacked by overlayfs; **directory**, one tree per layer, stacked by
overlayfs; **copy**, one tree per layer and a complete copy per container. Trying means mounting, in a process and a mount
namespace of their own; the answer is kept in the run directory, so that the path of `run` only reads a small file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time

from nacre.errors import HostError, InvalidArgument
from nacre.linux.files import atomic_write
from nacre.model.value import Value

DRIVERS = ("erofs", "directory", "copy")
VARIABLE = "NACRE_STORAGE_DRIVER"
_OK = "ok"
_CACHE = "probe-storage.json"
# Somebody may load a module; what works does not stop working.
_PATIENCE = 60.0


class Abilities(Value):
    """What the host can do. The word is "ok" or why not.

    erofs: mount an EROFS image (through: "file" or "loop"); overlay: mount overlayfs with the storage directory as its upper;
    overlay_in_user_namespace: the same without privileges on the host.
    """

    erofs: str
    through: str = ""
    overlay: str
    overlay_in_user_namespace: str


class Choice(Value):
    """The driver in use and why it is not a better one ("" for the best)."""

    driver: str
    reason: str = ""


def abilities(root: str, run_directory: str) -> Abilities:
    """What the host can do with storage in `root`; from the cache of this boot, or by trying. Raises HostError, OSError."""
    import json

    key = _key(root)
    path = f"{run_directory}/{_CACHE}"
    with contextlib.suppress(OSError, ValueError, KeyError, InvalidArgument, TypeError):
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        found = Abilities.from_data(kept["abilities"])
        if kept["key"] == key and (_complete(found) or 0 <= time.time() - kept["time"] < _PATIENCE):
            return found
    found = _try(root)
    with contextlib.suppress(OSError):
        os.makedirs(run_directory, 0o711, exist_ok=True)
        text = json.dumps({"key": key, "time": time.time(), "abilities": found.to_data()})
        atomic_write(path, text.encode(), fsync=False)
    return found


def choose(root: str, run_directory: str, wanted: str | None = None) -> Choice:
    """The driver to use: the one asked for by argument or NACRE_STORAGE_DRIVER, else the best.

    Raises InvalidArgument for a name that is no driver, HostError with the way out when one that was asked for cannot work.
    """
    wanted = wanted or os.environ.get(VARIABLE) or None
    if wanted is not None and wanted not in DRIVERS:
        raise InvalidArgument(f"there is no storage driver {wanted!r}", hint=f"choose one of: {', '.join(DRIVERS)}")
    if wanted == "copy":
        return Choice(driver="copy", reason="asked for")
    found = abilities(root, run_directory)
    if wanted is not None:
        _require(wanted, found)
        return Choice(driver=wanted, reason="" if wanted == "erofs" else "asked for")
    if found.overlay != _OK:
        return Choice(driver="copy", reason=f"overlayfs cannot be used: {found.overlay}")
    if found.erofs != _OK:
        return Choice(driver="directory", reason=f"EROFS images cannot be mounted: {found.erofs}")
    return Choice(driver="erofs")


def _require(driver: str, found: Abilities) -> None:
    hint = "choose another one with --storage-driver or NACRE_STORAGE_DRIVER, or none to let nacre choose"
    if found.overlay != _OK:
        raise HostError(f"the storage driver {driver} cannot work: overlayfs cannot be used: {found.overlay}", hint=hint)
    if driver == "erofs" and found.erofs != _OK:
        raise HostError(f"the storage driver erofs cannot work: EROFS images cannot be mounted: {found.erofs}", hint=hint)


def _complete(found: Abilities) -> bool:
    return found.erofs == found.overlay == _OK


def _key(root: str) -> str:
    """What the answer depends on: the boot, the disk, who asks."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot = file.read().strip()
    os.makedirs(root, 0o711, exist_ok=True)
    return f"{boot} {os.stat(root).st_dev:x} {os.geteuid()}"


def _try(root: str) -> Abilities:
    """Have a child process try everything in a directory on the disk in question."""
    import json
    import tempfile

    from nacre.linux.run import check

    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {package!r}); from nacre.storage import probe; probe.main(*sys.argv[1:])"
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=root) as directory:
        try:
            said = check([sys.executable, "-I", "-S", "-c", code, directory])
        except HostError as error:
            reason = f"the probe failed: {error.message}"
            return Abilities(erofs=reason, overlay=reason, overlay_in_user_namespace=reason)
    return Abilities.from_data(json.loads(said))


def main(directory: str) -> None:
    """In the child: try, and print `Abilities` as JSON."""
    import json

    for name in ("overlay", "erofs", "user"):
        os.mkdir(f"{directory}/{name}")
    erofs = _try_erofs(f"{directory}/erofs")
    through = erofs if erofs in ("file", "loop") else ""
    found = Abilities(
        erofs=_OK if through else erofs,
        through=through,
        overlay=_try_overlay(f"{directory}/overlay", user=False),
        overlay_in_user_namespace=_try_overlay(f"{directory}/user", user=True),
    )
    sys.stdout.write(json.dumps(found.to_data()))


def _try_erofs(directory: str) -> str:
    """Write an image and mount it: "file" (the file itself), "loop" (through a loop device), or why neither works."""
    from nacre.linux.kernel import attempt, mount, unshare
    from nacre.linux.run import check
    from nacre.model.plan import MS_PRIVATE, MS_RDONLY, MS_REC, NEWNS
    from nacre.storage.erofs import Attributes, Directory, Writer

    image, point = f"{directory}/image", f"{directory}/point"
    os.mkdir(point)
    root = Directory(None, Attributes(stat.S_IFDIR | 0o755))
    with open(image, "wb") as file:
        writer = Writer(file.fileno())
        root.entries[b"file"] = writer.add(Attributes(stat.S_IFREG | 0o644), b"x" * 5000)
        writer.finish(root)

    def look() -> None:
        with open(f"{point}/file", "rb") as file:
            if file.read() != b"x" * 5000:
                raise OSError("a file in an image reads wrongly")

    def through_file() -> None:
        unshare(NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount(image, point, "erofs", MS_RDONLY)
        look()

    def through_loop() -> None:
        unshare(NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        check(["mount", "-t", "erofs", "-o", "loop,ro", image, point])
        look()

    if attempt(through_file) == _OK:
        return "file"
    said = attempt(through_loop)
    return "loop" if said == _OK else said


def _try_overlay(directory: str, *, user: bool) -> str:
    """Mount an overlay whose upper is on the disk in question (not every file system can be one), write to it."""
    from nacre.linux.kernel import attempt, mount, unshare
    from nacre.model.plan import MS_PRIVATE, MS_REC, NEWNS, NEWUSER

    def action() -> None:
        uid, gid = os.geteuid(), os.getegid()
        unshare(NEWNS | (NEWUSER if user else 0))
        if user:
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        for name in ("lower", "lower/deleted", "upper", "work", "merged"):
            os.mkdir(f"{directory}/{name}")
        os.chdir(directory)
        mount("overlay", "merged", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work" + (",userxattr" if user else ""))
        os.rmdir("merged/deleted")
        os.mkdir("merged/deleted")
        os.stat("upper/deleted")

    return attempt(action)
