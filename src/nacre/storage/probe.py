"""Which storage drivers work on this host, in this directory: found out by trying, once per boot.

The drivers, best first: **erofs**, one image per layer, stacked by overlayfs; **overlay**, one tree per layer, stacked by
overlayfs; **btrfs**, containers as snapshots; **fuse-overlayfs**, one tree per layer, stacked by a program; **vfs**, a complete
copy per container. Trying means mounting, in a process and a mount namespace of their own; the answer is kept in the run
directory, so that the path of `run` only reads a small file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time

from nacre.errors import HostError, InvalidArgument, NacreError
from nacre.linux.files import atomic_write
from nacre.model import jsontext
from nacre.model.value import Value

DRIVERS = ("erofs", "overlay", "btrfs", "fuse-overlayfs", "vfs")
VARIABLE = "NACRE_STORAGE_DRIVER"
_ALIASES = {"overlay2": "overlay"}  # Docker's word
_OK = "ok"
_CACHE = "probe-storage.json"
# Somebody may load a module; what works does not stop working.
_PATIENCE = 60.0


class Abilities(Value):
    """What can be done with storage in a directory. The word is "ok" or why not.

    erofs: mount an EROFS image (through: "file" or "loop"); overlay: mount overlayfs with the directory as its upper; btrfs: make
    subvolumes and snapshots in it; fuse: the same as overlay, by the program fuse-overlayfs. user_namespace: we are in one, where
    overlayfs keeps its marks in user.* attributes. volatile: overlayfs can leave the disk alone.
    """

    erofs: str
    through: str = ""
    overlay: str
    btrfs: str
    fuse: str
    user_namespace: bool = False
    volatile: bool = False

    def of(self, driver: str) -> str:
        """Whether a driver can work: "ok" or why not."""
        if driver in ("erofs", "overlay") and self.overlay != _OK:
            return f"overlayfs cannot be used: {self.overlay}"
        if driver == "erofs" and self.erofs != _OK:
            return f"EROFS images cannot be mounted: {self.erofs}"
        if driver == "btrfs" and self.btrfs != _OK:
            return f"no snapshots can be made: {self.btrfs}"
        if driver == "fuse-overlayfs" and self.fuse != _OK:
            return f"fuse-overlayfs cannot be used: {self.fuse}"
        return _OK


class Choice(Value):
    """The driver in use and why it is not a better one ("" for the best). user_namespace, volatile: as in `Abilities`."""

    driver: str
    reason: str = ""
    user_namespace: bool = False
    volatile: bool = False


def abilities(root: str, run_directory: str) -> Abilities:
    """What the host can do with storage in `root`; from the cache of this boot, or by trying. Raises HostError, OSError."""
    key = _key(root)
    path = f"{run_directory}/{_CACHE}"
    with contextlib.suppress(OSError, ValueError, KeyError, InvalidArgument, TypeError):
        with open(path, encoding="utf-8") as file:
            kept = jsontext.loads(file.read())
        found = Abilities.from_data(kept["abilities"])
        if kept["key"] == key and (_complete(found) or 0 <= time.time() - kept["time"] < _PATIENCE):
            return found
    found = _try(root)
    with contextlib.suppress(OSError):
        os.makedirs(run_directory, 0o711, exist_ok=True)
        text = jsontext.dumps({"key": key, "time": time.time(), "abilities": found.to_data()})
        atomic_write(path, text.encode(), fsync=False)
    return found


def choose(root: str, run_directory: str, wanted: str | None = None) -> Choice:
    """The driver to use: the one asked for by argument or NACRE_STORAGE_DRIVER, else the best.

    Raises InvalidArgument for a name that is no driver, HostError with the way out when one that was asked for cannot work.
    """
    wanted = wanted or os.environ.get(VARIABLE) or None
    wanted = _ALIASES.get(wanted, wanted) if wanted else None
    if wanted is not None and wanted not in DRIVERS:
        raise InvalidArgument(f"there is no storage driver {wanted!r}", hint=f"choose one of: {', '.join(DRIVERS)}")
    found = abilities(root, run_directory)
    if wanted is not None:
        if (answer := found.of(wanted)) != _OK:
            raise HostError(
                f"the storage driver {wanted} cannot work in {root}: {answer}",
                hint="choose another one with --storage-driver or NACRE_STORAGE_DRIVER, or none to let nacre choose",
            )
        return _choice(found, wanted, "" if wanted == DRIVERS[0] else "asked for")
    reasons: list[str] = []
    for driver in DRIVERS:
        if (answer := found.of(driver)) == _OK:
            break
        if answer not in reasons:
            reasons.append(answer)
    return _choice(found, driver, "; ".join(reasons))


def _choice(found: Abilities, driver: str, reason: str) -> Choice:
    return Choice(driver=driver, reason=reason, user_namespace=found.user_namespace, volatile=found.volatile)


def _complete(found: Abilities) -> bool:
    # Nobody will ever mount an image in a user namespace.
    return found.overlay == _OK and (found.erofs == _OK or found.user_namespace)


def _key(root: str) -> str:
    """What the answer depends on: the boot, the disk, who asks."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot = file.read().strip()
    os.makedirs(root, 0o711, exist_ok=True)
    return f"{boot} {os.stat(root).st_dev:x} {os.geteuid()} {os.stat('/proc/self/ns/user').st_ino:x}"


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
            return Abilities(erofs=reason, overlay=reason, btrfs=reason, fuse=reason)
    return Abilities.from_data(json.loads(said))


def main(directory: str) -> None:
    """In the child: try, and print `Abilities` as JSON."""
    import json

    from nacre.linux.userns import is_initial

    for name in ("overlay", "volatile", "erofs", "btrfs", "fuse"):
        os.mkdir(f"{directory}/{name}")
    erofs = _try_erofs(f"{directory}/erofs")
    through = erofs if erofs in ("file", "loop") else ""
    inside = not is_initial()
    options = "userxattr" if inside else ""
    found = Abilities(
        erofs=_OK if through else erofs,
        through=through,
        overlay=_try_overlay(f"{directory}/overlay", options),
        btrfs=_try_btrfs(f"{directory}/btrfs"),
        fuse=_try_fuse(f"{directory}/fuse"),
        user_namespace=inside,
        volatile=_try_overlay(f"{directory}/volatile", f"{options},volatile".lstrip(",")) == _OK,
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


def _try_overlay(directory: str, options: str) -> str:
    """Mount an overlay whose upper is on the disk in question (not every file system can be one), write to it."""
    from nacre.linux.kernel import attempt, mount, unshare
    from nacre.model.plan import MS_PRIVATE, MS_REC, NEWNS

    def action() -> None:
        unshare(NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        for name in ("lower", "lower/deleted", "upper", "work", "merged"):
            os.mkdir(f"{directory}/{name}")
        os.chdir(directory)
        data = f"lowerdir=lower,upperdir=upper,workdir=work{',' if options else ''}{options}"
        mount("overlay", "merged", "overlay", 0, data)
        os.rmdir("merged/deleted")
        os.mkdir("merged/deleted")
        os.stat("upper/deleted")

    return attempt(action)


def _try_btrfs(directory: str) -> str:
    """Make a subvolume and a snapshot of it."""
    from nacre.linux import btrfs
    from nacre.linux.kernel import attempt

    def action() -> None:
        if not btrfs.is_btrfs(directory):
            raise OSError("the directory is not on Btrfs")
        btrfs.create_subvolume(f"{directory}/subvolume")
        btrfs.snapshot(f"{directory}/subvolume", f"{directory}/snapshot")

    answer = attempt(action)
    for name in ("snapshot", "subvolume"):
        with contextlib.suppress(OSError):
            os.rmdir(f"{directory}/{name}")
    return answer


def _try_fuse(directory: str) -> str:
    """Serve a directory through fuse-overlayfs."""
    from nacre.linux.kernel import attempt, mount, unshare
    from nacre.linux.run import find_program
    from nacre.model.plan import MS_PRIVATE, MS_REC, NEWNS
    from nacre.storage import fuse

    if not find_program(fuse.PROGRAM):
        return "the program is not installed (apt-get install fuse-overlayfs)"

    def action() -> None:
        unshare(NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        try:
            fuse.attempt(directory)
        except NacreError as error:
            raise OSError(error.message) from error

    return attempt(action)


def backing(root: str) -> str:
    """The type of the file system that a directory lies on, as the kernel calls it (ext4, xfs, btrfs ...); "" when unknown."""
    path = os.path.realpath(root)
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split(" ")[4].encode("latin-1", "surrogateescape").decode("unicode_escape", "surrogateescape")
            if (f"{path}/".startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, right.split(" ", 1)[0]
    return kind
