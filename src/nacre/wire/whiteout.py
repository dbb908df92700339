"""Deleted files in layers: the names that archives use, and what overlayfs uses instead.

An archive marks a deleted file by an empty file with a prefixed name (OCI image specification, layer.md, "Whiteouts"; the
prefix and the reserved names come from AUFS). overlayfs marks it by a character device 0:0 under the plain name, and a
directory that hides the lower ones by an extended attribute (kernel, Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories").
"""

from __future__ import annotations

import enum
import stat

from nacre.errors import BadContent, InvalidArgument

PREFIX = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
_RESERVED = b".wh..wh."

OPAQUE_XATTR = "trusted.overlay.opaque"
OPAQUE_XATTR_USER = "user.overlay.opaque"
OPAQUE_VALUE = b"y"
DEVICE = 0  # makedev(0, 0)

_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")


class Kind(enum.Enum):
    """What the base name of an archive entry stands for."""

    PLAIN = "plain"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    RESERVED = "reserved"


def classify(name: bytes) -> tuple[Kind, bytes]:
    """What an entry's base name means, and the name it is about.

    PLAIN: the name itself; WHITEOUT: the name that is deleted; OPAQUE: the directory hides what lower layers have in it (b"");
    RESERVED: AUFS's own files, to be ignored (b""). Raises BadContent when the deleted name is no file name.
    """
    if not name.startswith(PREFIX):
        return Kind.PLAIN, name
    if name == OPAQUE_NAME:
        return Kind.OPAQUE, b""
    if name.startswith(_RESERVED):
        return Kind.RESERVED, b""
    deleted = name[len(PREFIX) :]
    if deleted in (b"", b".", b".."):
        raise BadContent(f"the whiteout {name.decode(errors='replace')!r} names no file")
    return Kind.WHITEOUT, deleted


def whiteout_name(name: bytes) -> bytes:
    """The archive's name for the deletion of `name`. Raises InvalidArgument when a layer cannot express it."""
    return PREFIX + plain_name(name)


def plain_name(name: bytes) -> bytes:
    """`name`, unless an archive would take it for a whiteout: then InvalidArgument. For writers of layers."""
    if name.startswith(PREFIX):
        raise InvalidArgument(
            f"a file named {name.decode(errors='replace')!r} cannot be part of an image layer",
            hint="names that begin with .wh. mark deleted files; rename it",
        )
    return name


def entry_names(path: bytes, *, whiteout: bool = False, opaque: bool = False) -> list[bytes]:
    """Archive entry names for one file of an overlay upper directory, in the order in which they are written.

    path: relative to the root of the upper, b"" for the root itself. A whiteout becomes its marker; an opaque directory is
    itself followed by its marker; anything else is itself.
    """
    parent, _, name = path.rpartition(b"/")
    if whiteout:
        return [parent + b"/" + whiteout_name(name) if parent else whiteout_name(name)]
    plain_name(name)
    if not opaque:
        return [path]
    return [path, path + b"/" + OPAQUE_NAME] if path else [OPAQUE_NAME]


def is_whiteout(mode: int, device: int) -> bool:
    """Whether overlayfs takes a file of this st_mode and st_rdev for a whiteout."""
    return stat.S_ISCHR(mode) and device == DEVICE


def is_overlay_xattr(name: str) -> bool:
    """Whether overlayfs would act on this extended attribute (opaque, redirect, metacopy ...). An image must not bring any."""
    return name.startswith(_OVERLAY_XATTRS)
