"""The mounts of an OCI bundle as operations: options to flags, bind mounts, file systems, control groups, devices.

Sources: OCI runtime specification 1.2, config.md "Mounts" and config-linux.md; mount(8) for what the options mean; mount_setattr(2).
"""

from __future__ import annotations

import os
import stat

from nacre.errors import InvalidArgument, Unsupported
from nacre.linux import cgroups
from nacre.model.bundle import Bundle, IdMap, Mount, Node
from nacre.model.plan import MS_RDONLY, MS_REMOUNT, NEWCGROUP, Code, Op, op
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Options of mount(8) that are flags of mount(2): name -> (bit, set or clear).
_FLAGS: dict[str, tuple[int, bool]] = {
    "async": (16, False), "atime": (1024, False), "defaults": (0, True), "dev": (4, False), "diratime": (2048, False),
    "dirsync": (128, True), "exec": (8, False), "iversion": (1 << 23, True), "lazytime": (1 << 25, True),
    "loud": (32768, False), "mand": (64, True),
    "noatime": (1024, True), "nodev": (4, True), "nodiratime": (2048, True), "noexec": (8, True), "noiversion": (1 << 23, False),
    "nolazytime": (1 << 25, False), "nomand": (64, False), "norelatime": (1 << 21, False), "nostrictatime": (1 << 24, False),
    "nosuid": (2, True), "nosymfollow": (256, True), "relatime": (1 << 21, True), "remount": (MS_REMOUNT, True), "ro": (MS_RDONLY, True),
    "rw": (MS_RDONLY, False), "silent": (32768, True), "strictatime": (1 << 24, True), "suid": (2, False), "symfollow": (256, False),
    "sync": (16, True),
}  # fmt: skip
_PROPAGATION = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}
_ATIME = 0x70
# Attributes of mount_setattr(2): the option without the "r" of its recursive form -> (set, clear).
_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (1, 0), "rw": (0, 1), "nosuid": (2, 0), "suid": (0, 2), "nodev": (4, 0), "dev": (0, 4), "noexec": (8, 0), "exec": (0, 8),
    "nodiratime": (0x80, 0), "diratime": (0, 0x80), "relatime": (0, _ATIME), "norelatime": (0x20, _ATIME), "noatime": (0x10, _ATIME),
    "atime": (0, _ATIME), "strictatime": (0x20, _ATIME),
    "nostrictatime": (0, _ATIME), "nosymfollow": (0x200000, 0), "symfollow": (0, 0x200000),
}  # fmt: skip
OPTIONS = tuple(
    sorted(
        (*_FLAGS, *_PROPAGATION, *(f"r{name}" for name in (*_PROPAGATION, *_ATTRIBUTES)), "bind", "rbind", "idmap", "ridmap", "tmpcopyup")
    )
)
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (("/proc/self/fd", "fd"), ("/proc/self/fd/0", "stdin"), ("/proc/self/fd/1", "stdout"), ("/proc/self/fd/2", "stderr"))
_UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup", "cgroup2")  # the kernel labels these itself
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class Options(Value):
    """The options of one mount. flags: of mount(2); attributes and recursive: (set, clear) for mount_setattr(2); propagation: (bit,
    recursive) in order; idmap: 0 none, 1 this mount, 2 recursive; data: what is left, for the file system.
    """

    flags: int = 0
    bind: bool = False
    recurse: bool = False
    attributes: tuple[int, int] = (0, 0)
    recursive: tuple[int, int] = (0, 0)
    propagation: tuple[tuple[int, bool], ...] = ()
    idmap: int = 0
    copy_up: bool = False
    data: str = ""


def options(mount: Mount) -> Options:
    """The options of a mount, sorted by what they are for."""
    flags, attributes, recursive = 0, (0, 0), (0, 0)
    propagation: list[tuple[int, bool]] = []
    data: list[str] = []
    seen = set(mount.options)
    for word in mount.options:
        if word in _FLAGS:
            bit, wanted = _FLAGS[word]
            flags = flags | bit if wanted else flags & ~bit
            if word in _ATTRIBUTES:
                attributes = _merged(attributes, _ATTRIBUTES[word])
        elif word in _PROPAGATION or (word[:1] == "r" and word[1:] in _PROPAGATION):
            recurse = word not in _PROPAGATION
            propagation.append((_PROPAGATION[word[recurse:]], recurse))
        elif word[:1] == "r" and word[1:] in _ATTRIBUTES:
            recursive = _merged(recursive, _ATTRIBUTES[word[1:]])
        elif word not in ("bind", "rbind", "idmap", "ridmap", "tmpcopyup"):
            data.append(word)
    return Options(
        flags=flags,
        bind=mount.kind == "bind" or "bind" in seen or "rbind" in seen,
        recurse="rbind" in seen,
        attributes=attributes,
        recursive=recursive,
        propagation=tuple(propagation),
        idmap=2 if "ridmap" in seen else int("idmap" in seen or bool(mount.uid_maps)),
        copy_up="tmpcopyup" in seen,
        data=",".join(data),
    )


def _merged(before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int]:
    """The later option wins; mount_setattr(2) clears before it sets."""
    return before[0] & ~after[1] | after[0], before[1] & (_ATIME | ~after[0]) | after[1]


def maps_text(maps: tuple[IdMap, ...]) -> str:
    """As in /proc/PID/uid_map."""
    return "".join(f"{item.container} {item.host} {item.size}\n" for item in maps)


class Mounts:
    """Collects the operations of a bundle's mounts: those before a user namespace is entered (`sources`), and those after it.

    directory: of the bundle, for relative sources. slot: the first free number of a kept descriptor. mapped: the container has a
    user namespace of its own, so that host paths must be opened before it is entered.
    """

    def __init__(self, bundle: Bundle, directory: str, slot: int, *, mapped: bool, cgroup: dict[str, str]) -> None:
        self.sources: list[Op] = []
        self.ops: list[Op] = []
        self._bundle = bundle
        self._directory = directory
        self._scratch = slot  # used and done with, again and again
        self._slot = slot + 1
        self._mapped = mapped
        self._cgroup = cgroup
        self._late: list[Op] = []

    def collect(self) -> None:
        """Fill both lists. Raises InvalidArgument, Unsupported."""
        label = self._bundle.mount_label
        if label and not os.path.exists("/sys/fs/selinux/enforce"):
            raise Unsupported(f"linux.mountLabel: {label}: SELinux is not enabled on this host")
        own_dev = True
        for place, mount in enumerate(self._bundle.mounts):
            chosen = options(mount)
            target = "%/" + mount.destination.lstrip("/")
            if chosen.bind:
                own_dev = own_dev and target.rstrip("/") != "%/dev"
                self._bind(mount, chosen, target, f"mounts[{place}]")
            elif mount.kind in ("cgroup", "cgroup2"):
                self._cgroups(target, chosen)
            else:
                self._file_system(mount, chosen, target, f"mounts[{place}]")
        if own_dev:
            self._devices()
        self.ops += self._late

    def _source(self, path: str, recurse: bool) -> int:
        """Opens a source; answers with the number under which it is kept."""
        number = self._slot if self._mapped else self._scratch
        opened = op(Code.TREE, number, path, int(recurse))
        if self._mapped:
            self._slot += 1  # each must be kept until it is used
            self.sources.append(opened)
        else:
            self.ops.append(opened)
        return number

    def _bind(self, mount: Mount, chosen: Options, target: str, field: str) -> None:
        if chosen.flags & MS_REMOUNT:
            self.ops += self._attributes_at(target, chosen)
            return
        path = os.path.join(self._directory, mount.source)
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except OSError as error:
            raise InvalidArgument(f"{field}.source: {path}: {os.strerror(error.errno or 0).lower()}") from error
        if not mount.source:
            raise InvalidArgument(f"{field}.source: is required for a bind mount")
        if chosen.data:
            raise InvalidArgument(f"{field}.options: a bind mount has no option {chosen.data.partition(',')[0]}")
        number = self._source(path, chosen.recurse)
        steps = self.sources if self._mapped else self.ops
        if chosen.idmap:
            uids, gids = (mount.uid_maps, mount.gid_maps) if mount.uid_maps else (self._bundle.uid_maps, self._bundle.gid_maps)
            if not uids:
                raise InvalidArgument(f"{field}.options: an id-mapped mount needs uidMappings, its own or those of the container")
            steps.append(op(Code.USERNS, maps_text(uids), maps_text(gids)))
            steps.append(op(Code.ATTR, number, 0, 0, 0, 2 | int(chosen.idmap == 2)))
        steps += _attributes(number, chosen)
        self.ops.append(op(Code.MKDIR, target, 0o755) if is_directory else op(Code.TOUCH, target, 0o644))
        self.ops.append(op(Code.ATTACH, number, target))
        self.ops += (op(Code.ATTR, number, 0, 0, bit, int(recurse)) for bit, recurse in chosen.propagation)

    def _attributes_at(self, target: str, chosen: Options) -> Iterator[Op]:
        """Changes a mount that is there already."""
        if any((*chosen.attributes, *chosen.recursive, *chosen.propagation)):
            yield op(Code.PICK, self._scratch, target)
            yield from _attributes(self._scratch, chosen)
            yield from (op(Code.ATTR, self._scratch, 0, 0, bit, int(recurse)) for bit, recurse in chosen.propagation)

    def _file_system(self, mount: Mount, chosen: Options, target: str, field: str) -> None:
        if not mount.kind and not chosen.flags & MS_REMOUNT:
            raise InvalidArgument(f"{field}.type: is required for anything but a bind mount")
        flags = chosen.flags
        if target.rstrip("/") == "%/dev" and flags & MS_RDONLY:  # writable until its nodes are made
            flags &= ~MS_RDONLY
            self._late += [op(Code.PICK, self._scratch, target), op(Code.ATTR, self._scratch, 1, 0, 0, 0)]
        copied = chosen.copy_up and mount.kind == "tmpfs"
        if not flags & MS_REMOUNT:
            self.ops.append(op(Code.MKDIR, target, 0o755))
        if copied:
            self.ops.append(op(Code.TREE, self._scratch, target, 0))
        source = os.path.join(self._directory, mount.source) if mount.source.startswith("./") else mount.source or mount.kind
        data = chosen.data
        if self._bundle.mount_label and mount.kind not in _UNLABELLED:
            data = ",".join(part for part in (data, f'context="{self._bundle.mount_label}"') if part)
        self.ops.append(op(Code.MOUNT, source, target, mount.kind, flags & ~MS_RDONLY if copied else flags, data))
        if copied:
            self.ops.append(op(Code.COPYUP, self._scratch, target))
            if flags & MS_RDONLY:
                self.ops += [op(Code.PICK, self._scratch, target), op(Code.ATTR, self._scratch, 1, 0, 0, 0)]
        if any(chosen.recursive) or chosen.propagation or flags & 256:
            self.ops.append(op(Code.PICK, self._scratch, target))
            attributes = (0x200000, 0) if flags & 256 else (0, 0)
            self.ops += _attributes(self._scratch, chosen.replace(attributes=attributes))
            self.ops += (op(Code.ATTR, self._scratch, 0, 0, bit, int(recurse)) for bit, recurse in chosen.propagation)

    def _cgroups(self, target: str, chosen: Options) -> None:
        """The container's part of the hierarchies: its namespace shows it as the root; without one, it is bound there."""
        where = cgroups.layout()
        own = self._bundle.namespace(NEWCGROUP) is not None
        flags = chosen.flags & ~MS_RDONLY
        self.ops.append(op(Code.MKDIR, target, 0o755))
        if where.v1:
            self.ops.append(op(Code.MOUNT, "tmpfs", target, "tmpfs", flags, "mode=755"))
            points: dict[str, list[str]] = {}
            for controller, point in where.v1.items():
                points.setdefault(point, []).append(controller)
            for point, controllers in points.items():
                name = os.path.basename(point)
                inside = f"{target}/{name}"
                self.ops.append(op(Code.MKDIR, inside, 0o755))
                self._cgroup_mount(inside, "cgroup", ",".join(controllers), self._cgroup.get(controllers[0], point), chosen.flags, own)
                self.ops += (op(Code.SYMLINK, name, f"{target}/{alias}") for alias in controllers if alias != name)
            if where.named:  # of systemd, v1's hierarchy without a controller
                self.ops.append(op(Code.MKDIR, f"{target}/systemd", 0o755))
                place = self._cgroup.get("name=systemd", where.named)
                self._cgroup_mount(f"{target}/systemd", "cgroup", "none,name=systemd", place, chosen.flags, own)
            if chosen.flags & MS_RDONLY:  # engines mount further hierarchies below
                self._late += [op(Code.PICK, self._scratch, target), op(Code.ATTR, self._scratch, 1, 0, 0, 0)]
        else:
            self._cgroup_mount(target, "cgroup2", chosen.data, self._cgroup.get("unified", where.unified), chosen.flags, own)
        self.ops += (item for item in self._attributes_at(target, Options(propagation=chosen.propagation, recursive=chosen.recursive)))

    def _cgroup_mount(self, target: str, kind: str, data: str, directory: str, flags: int, own: bool) -> None:
        if own:
            self.ops.append(op(Code.MOUNT, kind, target, kind, flags, data))
            return
        number = self._source(directory, False)
        (self.sources if self._mapped else self.ops).append(op(Code.ATTR, number, flags & 15, 0, 0, 0))
        self.ops.append(op(Code.ATTACH, number, target))

    def _devices(self) -> None:
        wanted = {f"/dev/{name}": Node(path=f"/dev/{name}", kind="c", major=major, minor=minor) for name, major, minor in _DEVICES}
        wanted |= {node.path: node for node in self._bundle.devices}
        for node in wanted.values():
            target = "%/" + node.path.lstrip("/")
            parent = os.path.dirname(target)
            if parent != "%/dev":
                self.ops.append(op(Code.MKDIR, parent, 0o755))
            if self._mapped and node.kind != "p":  # a user namespace may not make nodes; the host's own stands in
                number = self._source(self._host_node(node), False)
                self.ops += [op(Code.TOUCH, target, 0o644), op(Code.ATTACH, number, target)]
                continue
            self.ops.append(op(Code.MKNOD, target, _KINDS[node.kind] | node.mode, _device(node)))
            if node.uid or node.gid:
                self.ops.append(op(Code.CHOWN, target, node.uid, node.gid))
        self.ops += (op(Code.SYMLINK, content, f"%/dev/{name}") for content, name in _LINKS)
        self.ops.append(op(Code.SYMLINK, "pts/ptmx", "%/dev/ptmx"))

    @staticmethod
    def _host_node(node: Node) -> str:
        try:
            found = os.stat(node.path)
        except OSError as error:
            raise InvalidArgument(f"linux.devices: {node.path}: {os.strerror(error.errno or 0)}") from error
        if stat.S_IFMT(found.st_mode) != _KINDS[node.kind] or found.st_rdev != _device(node):
            raise InvalidArgument(
                f"linux.devices: {node.path} of this host is not {node.kind} {node.major}:{node.minor}",
                hint="with a user namespace, the host's own nodes are shared, so they must be what is asked for",
            )
        return node.path


def _device(node: Node) -> int:
    return 0 if node.kind == "p" else os.makedev(node.major, node.minor)


def _attributes(number: int, chosen: Options) -> Iterator[Op]:
    if any(chosen.recursive):
        yield op(Code.ATTR, number, *chosen.recursive, 0, 1)
    if any(chosen.attributes):
        yield op(Code.ATTR, number, *chosen.attributes, 0, 0)
