"""Where everything lives.

::

    root (durable, NACRE_ROOT, /var/lib/nacre)
    ├── nacre.db             containers, volumes, events (SQLite, WAL)
    ├── reserve              space that its changes may take on a full disk
    ├── blobs/               content-addressed store of image content
    ├── images/              image records and references
    ├── layers/              unpacked layers, one EROFS image or directory each
    ├── containers/ID/       lock (of the verb in progress), upper or upper.ext4, log, exit
    ├── network/             networks and address leases
    ├── volumes/NAME/_data
    └── templates/           empty upper disks
    run (gone after a reboot, NACRE_RUN, /run/nacre)
    ├── sandboxes/ID/        lock (held by the stem while the sandbox lives), stem.sock, stem.pid, console.log
    ├── netns/ID             bind-mounted network namespaces
    └── probe*.json          what this host can do, this boot

Everything that belongs to one container is named by its id, so that cleaning up never needs a record of what was made.
"""

from __future__ import annotations

import contextlib
import os

from nacre.errors import Denied, HostError, NoSpace
from nacre.linux.files import remove_tree

DEFAULT_ROOT = "/var/lib/nacre"
DEFAULT_RUN = "/run/nacre"


class Layout:
    """The two directories of one engine, and the paths below them. Creates the directories (mode 0700 / 0711).

    Raises Denied when this user may not, HostError when the disk refuses.
    """

    def __init__(self, root: str | None = None, run: str | None = None) -> None:
        self.root = os.path.abspath(root or os.environ.get("NACRE_ROOT") or DEFAULT_ROOT)
        self.run = os.path.abspath(run or os.environ.get("NACRE_RUN") or (DEFAULT_RUN if root is None else f"{self.root}/run"))
        try:
            for path, mode in ((self.root, 0o711), (self.run, 0o711), (f"{self.root}/containers", 0o711), (f"{self.run}/sandboxes", 0o711)):
                if not os.path.isdir(path):
                    os.makedirs(path, mode, exist_ok=True)
        except PermissionError as error:
            raise Denied(
                f"cannot create {error.filename}: permission denied",
                hint="run as root (sudo), or point NACRE_ROOT and NACRE_RUN at directories of yours",
            ) from error
        except OSError as error:
            kind = NoSpace if error.errno == 28 else HostError
            raise kind(f"cannot create {error.filename}: {error.strerror}") from error

    @property
    def database(self) -> str:
        """Path of the SQLite database."""
        return f"{self.root}/nacre.db"

    def container(self, identifier: str) -> str:
        """Durable directory of a container."""
        return f"{self.root}/containers/{identifier}"

    def sandbox(self, identifier: str) -> str:
        """Run-time directory of a sandbox."""
        return f"{self.run}/sandboxes/{identifier}"

    def discard(self, path: str) -> None:
        """As the function `discard`."""
        discard(path)


def discard(path: str) -> None:
    """Delete a directory and everything in it, as far as that is possible. Never raises: whoever needs it gone looks again."""
    with contextlib.suppress(OSError):
        remove_tree(path)
