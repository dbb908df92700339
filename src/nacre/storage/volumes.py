"""Named volumes: directories that outlive containers.

::

    <root>/volumes/<name>/_data         the content; the volume exists as soon as this does
    <root>/volumes/<name>/volume.json   creation time, labels, options
    <root>/volumes/<name>/.filling      content of an image on its way in, incomplete
    <root>/volumes/<name>/.filled       the same, complete: only to be moved to _data
    <root>/volumes/.removed-*           on the way out
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping

from nacre.errors import Conflict, InvalidArgument, NotFound
from nacre.linux.files import atomic_write, explained, is_mount_point, locked, remove_tree
from nacre.model.container import LayerMount
from nacre.model.volume import Volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DATA = "_data"
_RECORD = "volume.json"
_REMOVED = ".removed-"
_FILLING, _FILLED, _MOUNTS = ".filling", ".filled", ".mounts"
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_LETTERS = _FIRST | frozenset("_.-")


class VolumeStore:
    """The volumes below `root`. Safe for several threads and processes. run: directory for what ends with the boot."""

    def __init__(self, root: str, run: str = "") -> None:
        self.path = f"{os.path.abspath(root)}/volumes"
        self._containers = f"{os.path.abspath(root)}/containers"
        self._run = os.path.abspath(run or f"{root}/run")

    def create(
        self, name: str, *, labels: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None, anonymous: bool = False
    ) -> Volume:
        """Make a volume; one that exists is returned as it is. options: see `nacre.storage.volume_mounts`.

        Raises InvalidArgument for a bad name or option, Conflict for one that exists with other options, NoSpace, HostError.
        """
        directory = self._directory(name)
        if options:
            from nacre.storage.volume_mounts import check_options

            check_options(options)
        with explained(f"create volume {name}"):
            # Not for others on the host: a container may have left set-user-id programs in there.
            os.makedirs(self.path, 0o700, exist_ok=True)
            os.makedirs(directory, 0o711, exist_ok=True)
            if os.path.isdir(f"{directory}/{_FILLED}"):
                with self._locked(name):
                    self._move_in(directory)
            if not os.path.isdir(f"{directory}/{DATA}"):
                self._write_record(directory, labels or {}, options or {}, anonymous)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{directory}/{DATA}", 0o755)
                    os.chmod(f"{directory}/{DATA}", 0o755)
        volume = self.get(name)
        if options and volume.options != options:
            raise Conflict(f"volume {name} exists with other options", hint=f"nacre volume inspect {name} shows them")
        return volume

    def use(self, volume: Volume, user: str) -> None:
        """Have what a volume with options stands for mounted while a container needs it. user: its id, also with a suffix.

        Raises HostError; to be followed by `release` then, too.
        """
        from nacre.storage import volume_mounts

        with explained(f"mount volume {volume.name}"), self._locked(volume.name):
            volume_mounts.use(self._register(volume.name), user, volume.path, volume.options)

    def release(self, name: str, user: str = "") -> None:
        """End what `use` began, for this user and for containers that there are no more. Idempotent. Raises InvalidArgument, HostError."""
        data = f"{self._directory(name)}/{DATA}"
        with explained(f"unmount volume {name}"), self._locked(name):
            self._release(name, user, data)

    def _release(self, name: str, user: str, data: str) -> None:
        from nacre.storage import volume_mounts

        def gone(other: str) -> bool:
            return other == user or not os.path.isdir(f"{self._containers}/{other.partition('.')[0]}")

        volume_mounts.release(self._register(name), gone, data)

    def _register(self, name: str) -> str:
        return f"{self._run}/volumes/{name}"

    def get(self, name: str) -> Volume:
        """One volume. Raises NotFound."""
        import json

        directory = self._directory(name)
        if not os.path.isdir(f"{directory}/{DATA}"):
            raise NotFound(f"no such volume: {name}", hint="nacre volume ls shows what there is")
        record: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError), open(f"{directory}/{_RECORD}", encoding="utf-8") as file:
            record = json.load(file)
        return Volume.from_data({**record, "name": name, "path": f"{directory}/{DATA}"})

    def list(self) -> list[Volume]:
        """All volumes, by name."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        volumes = []
        for name in names:
            with contextlib.suppress(NotFound, InvalidArgument):
                volumes.append(self.get(name))
        return volumes

    def remove(self, name: str, *, in_use: Callable[[str], Collection[str]]) -> None:
        """Delete a volume and its content. in_use: names of the containers that use it.

        Raises NotFound, Conflict while it is in use, HostError.
        """
        directory = self._directory(name)
        with explained(f"remove volume {name}"):
            if not os.path.isdir(directory):
                raise NotFound(f"no such volume: {name}", hint="nacre volume ls shows what there is")
            with self._locked(name):
                if users := in_use(name):
                    raise Conflict(f"volume {name} is in use by {', '.join(users)}", hint=f"nacre rm -f {' '.join(users)}")
                self._release(name, "", f"{directory}/{DATA}")
                with contextlib.suppress(FileNotFoundError):
                    if is_mount_point(f"{directory}/{DATA}"):
                        raise Conflict(f"volume {name} is mounted", hint=f"umount {directory}/{DATA}")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(directory, f"{self.path}/{_REMOVED}{os.urandom(8).hex()}")
            for left in os.listdir(self.path):
                if left.startswith(_REMOVED):
                    remove_tree(f"{self.path}/{left}")

    def copy_up_from_layers(self, layers: tuple[LayerMount, ...], path: str, destination: str) -> bool:
        """Give an empty volume the content that an image has at `path`, with the attributes of the directory itself, as Docker does.

        layers: base first; destination: the `path` of a volume of this store. Returns whether the image has such a directory
        and the volume was empty. After a kill the volume is empty still, or `create` completes it. Raises NoSpace, HostError.
        """
        directory = os.path.dirname(destination)
        name = os.path.basename(directory)
        if destination != f"{self._directory(name)}/{DATA}":
            raise InvalidArgument(f"{destination} is no volume of this store")
        with explained(f"fill volume {name} from the image"), self._locked(name):
            self._move_in(directory)
            if not layers or os.listdir(destination):
                return False
            try:
                for part in (_FILLING, _MOUNTS):
                    remove_tree(f"{directory}/{part}")
                    os.mkdir(f"{directory}/{part}", 0o700)
                if not _copy_in_child(layers, path, f"{directory}/{_MOUNTS}", f"{directory}/{_FILLING}"):
                    return False
                os.rename(f"{directory}/{_FILLING}", f"{directory}/{_FILLED}")
                self._move_in(directory)
            finally:
                for part in (_FILLING, _MOUNTS):
                    remove_tree(f"{directory}/{part}")
        return True

    def _move_in(self, directory: str) -> None:
        """Move what was copied into the volume. The directory itself stays: a running container may have it mounted."""
        filled, data = f"{directory}/{_FILLED}", f"{directory}/{DATA}"
        if not os.path.isdir(filled):
            return
        if is_mount_point(data):
            from nacre.storage.merge import copy_tree

            copy_tree(filled, data)
            remove_tree(filled)
            return
        info = os.stat(filled)
        for name in os.listdir(filled):
            os.rename(f"{filled}/{name}", f"{data}/{name}")
        os.chown(data, info.st_uid, info.st_gid)
        os.chmod(data, info.st_mode & 0o7777)
        os.utime(data, ns=(info.st_atime_ns, info.st_mtime_ns))
        os.rmdir(filled)

    def _directory(self, name: str) -> str:
        """Docker's rule for names: a letter or digit, then at least one more of those or of "_.-"."""
        if len(name) < 2 or len(name) > 255 or name[0] not in _FIRST or not set(name) <= _LETTERS:
            hint = "use at least two of the letters a-z, A-Z, 0-9, _, . and -, beginning with a letter or digit"
            raise InvalidArgument(f"{name!r} is no name for a volume", hint=hint)
        return f"{self.path}/{name}"

    def _locked(self, name: str) -> contextlib.AbstractContextManager[bool]:
        # A checksum, because a name may be as long as a file name may be; that two share a lock does no harm.
        import binascii

        return locked(f"{self.path}/.lock-{binascii.crc32(name.encode()):08x}")

    def _write_record(self, directory: str, labels: Mapping[str, str], options: Mapping[str, str], anonymous: bool) -> None:
        import json

        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"created": created, "labels": dict(labels), "options": dict(options), "anonymous": anonymous}
        atomic_write(f"{directory}/{_RECORD}", json.dumps(record).encode())


def _copy_in_child(layers: tuple[LayerMount, ...], path: str, mounts: str, destination: str) -> bool:
    """Have a process with a mount namespace of its own stack the layers and copy; False when the image has no such directory."""
    from nacre.storage.helper import ask

    stack = [[layer.path, layer.format] for layer in layers]
    request = {"verb": "copy", "layers": stack, "path": path, "mounts": mounts, "destination": destination}
    return bool(ask(request, "copy the image's content into the volume")["found"])
