"""Real file systems for tests, in image files, mounted where nobody else sees them.

`alone(action)` runs a test's body in a fork with a mount namespace of its own (and on request a user namespace), so that whatever
becomes of it, its mounts and loop devices go with it. `disk(kind, path)` makes and mounts a file system in there.
"""

from __future__ import annotations

import gzip
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from nacre.linux.kernel import mount, unshare
from nacre.linux.run import check
from nacre.model.plan import MS_PRIVATE, MS_REC, NEWNS, NEWUSER

# Enough for each kind's smallest; the files are sparse.
_SIZES = {"btrfs": 256 << 20, "xfs": 512 << 20, "ext4": 128 << 20}
_MAKERS = {
    "btrfs": ["mkfs.btrfs", "-q"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
}
_SKIP = b"skip:"
FIRST_ID, IDS = 100_000, 4_000_000_000


def need(kind: str) -> None:
    """Skip the test where this host cannot make or mount such a file system."""
    program = _MAKERS[kind][0]
    if not shutil.which(program):
        pytest.skip(f"no {program}; run: apt-get install {'btrfs-progs' if kind == 'btrfs' else 'xfsprogs'}")
    if (
        kind not in Path("/proc/filesystems").read_text().split()
        and not Path(f"/lib/modules/{os.uname().release}/kernel/fs/{kind}").exists()
    ):
        pytest.skip(f"the kernel has no {kind}")


def need_project_quotas() -> None:
    """Skip the test where the kernel was built without quotas for XFS."""
    for path in ("/proc/config.gz", f"/boot/config-{os.uname().release}"):
        if os.path.exists(path):
            data = Path(path).read_bytes()
            if b"CONFIG_XFS_QUOTA=y" in (gzip.decompress(data) if path.endswith("gz") else data):
                return
    pytest.skip("the kernel has no quotas for XFS (CONFIG_XFS_QUOTA)")


def disk(kind: str, path: Path, *, size: int = 0, options: str = "") -> None:
    """Make a file system in a file beside `path` and mount it there; until the mount namespace ends."""
    image = path.with_name(f"{path.name}.img")
    with open(image, "wb") as file:
        file.truncate(size or _SIZES[kind])
    check([*_MAKERS[kind], str(image)])
    path.mkdir(exist_ok=True)
    check(["mount", "-o", f"loop{',' if options else ''}{options}", str(image), str(path)])


def alone(action: Callable[[], str | None], *, before: Callable[[], object] | None = None, user_namespace: bool = False) -> None:
    """Run `action` in a fork with private mounts; its failure is the test's. before: run first, as the host's root.

    What it returns, if anything, is why the test is skipped. user_namespace: as root of a user namespace in which ids 0 to 4e9
    are mapped to those from 100000.
    """
    reader, writer = os.pipe()
    mapped, map_it = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b""
        try:
            os.close(map_it)
            unshare(NEWNS)
            mount("none", "/", "", MS_REC | MS_PRIVATE)
            if before:
                before()
            if user_namespace:
                unshare(NEWNS | NEWUSER)
                os.write(writer, b"\0")
                os.read(mapped, 1)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                os.setgroups([])
            said = _SKIP + (action() or "").encode()
        except BaseException:
            said = traceback.format_exc().encode()
        finally:
            os.write(writer, said[:60_000])
            os._exit(0)
    os.close(writer)
    os.close(mapped)
    with open(reader, "rb", buffering=0) as answer:
        text = answer.read(1) or b""
        if text == b"\0":
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text(f"0 {FIRST_ID} {IDS}\n")
            text = b""
        os.close(map_it)
        text += answer.readall()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code or not text.startswith(_SKIP):
        pytest.fail(text.decode(errors="replace") or f"the fork ended with {code}", pytrace=False)
    if text != _SKIP:
        pytest.skip(text.removeprefix(_SKIP).decode())
