"""`nacre cp`: Docker's rules for what goes where ("docker cp", Description).

In short: a directory that exists receives the source under its own name; a path that does not exist becomes the copy; a source that
ends in ``/.`` means what is in the directory, not the directory.
"""

from __future__ import annotations

import os
import posixpath
import stat
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from nacre.cli.context import Context, is_terminal
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.units import human_size
from nacre.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from nacre.engine import Container

_LINKS = 40  # followed before giving up, as the kernel does


class Place(NamedTuple):
    """One side of the copy. container "" = this host; path "-" = a tar stream."""

    container: str
    path: str


def parse_place(text: str) -> Place:
    """``CONTAINER:PATH``, or a local path: one that begins with / or . , or has no colon."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or not name:
        return Place("", text)
    if not path:
        raise UsageError(f"{text}: path must not be empty", hint="CONTAINER:PATH")
    return Place(name, path if path.startswith("/") else f"/{path}")


def contents_only(path: str) -> bool:
    """Whether a source means what is in the directory."""
    return path.endswith("/.") or path in (".", "/")


def clean(path: str) -> str:
    """Without the ``/`` or ``/.`` at its end."""
    return posixpath.normpath(path).replace("//", "/")


def run(ctx: Context, args: Arguments) -> int:
    """`nacre cp`."""
    source, target = parse_place(args.rest[0]), parse_place(args.rest[1])
    if source.container and target.container:
        raise UsageError(
            "copying between containers is not supported", hint="Copy to this host first, or: nacre cp A:PATH - | nacre cp - B:PATH"
        )
    if not source.container and not target.container:
        raise UsageError("must specify at least one container source", hint="CONTAINER:PATH")
    if source.container:
        size, where = _from(ctx.engine.containers.get(source.container), source.path, target.path, args), target.path
    else:
        size, where = _to(ctx.engine.containers.get(target.container), source.path, target.path, args), f"{target.container}:{target.path}"
    if not args.quiet and target.path != "-" and is_terminal(2):
        ctx.err(f"Successfully copied {human_size(size)} to {where}")
    return 0


# ---- out of a container


def _from(container: Container, source: str, target: str, args: Arguments) -> int:
    from nacre.cli.tarstream import Unpacked, copy

    path = clean(source)
    found = container.stat_path(path)
    if args.follow_link or source.endswith(("/", "/.")):
        path, found = followed(container, path, found)
    if target == "-":
        archive = container.get_archive(path)
        try:
            return copy(archive, sys.stdout.buffer)
        finally:
            archive.close()
    directory, name = local_target(source, path, target, is_directory=stat.S_ISDIR(found["mode"]))
    unpacked = Unpacked(directory, name, owners=args.archive)
    archive = container.get_archive(path)
    try:
        unpacked.extract(archive)
    finally:
        archive.close()
    if unpacked.skipped:
        sys.stderr.write(f"nacre: device nodes were left out: {', '.join(unpacked.skipped[:5])}\n")
    return unpacked.size


def local_target(source: str, path: str, target: str, *, is_directory: bool) -> tuple[str, str]:
    """(directory, name in it) for what comes from a container; name "" = its contents. Raises InvalidArgument, NotFound."""
    if os.path.isdir(target):
        return (target, "") if contents_only(source) and is_directory else (target, posixpath.basename(path))
    if os.path.lexists(target.rstrip("/") or "/"):
        if is_directory:
            raise InvalidArgument(f"cannot copy a directory to the file {target}")
        if target.endswith("/"):
            raise InvalidArgument(f"{target}: not a directory")
        target = os.path.realpath(target)
    elif target.endswith("/") and not is_directory:
        raise NotFound(f"the destination directory does not exist: {target}", hint=f"mkdir -p {target}")
    directory, name = os.path.split(os.path.abspath(target))
    if not os.path.isdir(directory):
        raise NotFound(f"invalid output path: directory {directory} does not exist", hint=f"mkdir -p {directory}")
    return directory, name


# ---- into a container


def _to(container: Container, source: str, target: str, args: Arguments) -> int:
    from nacre.cli.tarstream import Packed

    if source == "-":
        container.put_archive(target, sys.stdin.buffer)
        return 0
    path = os.path.realpath(source) if args.follow_link or source.endswith(("/", "/.")) else os.path.abspath(source)
    try:
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        raise NotFound(f"{source}: {error.strerror}") from error
    if source.endswith("/") and not is_directory:
        raise InvalidArgument(f"{source}: not a directory")
    directory, name = container_target(container, source, path, target, is_directory=is_directory)
    packed = Packed(path, name, owners=args.archive)
    container.put_archive(directory, packed)
    return packed.size


def container_target(container: Container, source: str, path: str, target: str, *, is_directory: bool) -> tuple[str, str]:
    """(directory in the container, name of the top entry); "." = only the contents. Raises InvalidArgument, NotFound."""
    cleaned = clean(target)
    try:
        cleaned, found = followed(container, cleaned, container.stat_path(cleaned))
    except NotFound:
        if target.endswith("/") and not is_directory:
            raise NotFound(f"the destination directory does not exist: {target}") from None
        parent = posixpath.dirname(cleaned)
        try:
            container.stat_path(parent)
        except NotFound:
            raise NotFound(f"Could not find the file {parent} in container {container.name}") from None
        return parent, posixpath.basename(cleaned)
    if stat.S_ISDIR(found["mode"]):
        return cleaned, "." if contents_only(source) and is_directory else os.path.basename(path)
    if is_directory:
        raise InvalidArgument(f"cannot copy a directory to the file {target}")
    if target.endswith("/"):
        raise InvalidArgument(f"{target}: not a directory")
    return posixpath.dirname(cleaned), posixpath.basename(cleaned)


def followed(container: Container, path: str, found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A path in a container with the symbolic links at its end resolved. Raises NotFound, InvalidArgument (too many links)."""
    for _ in range(_LINKS):
        if not stat.S_ISLNK(found["mode"]):
            return path, found
        path = clean(posixpath.join(posixpath.dirname(path), found["linkTarget"]))
        found = container.stat_path(path)
    raise InvalidArgument(f"{path}: too many levels of symbolic links")


COMMANDS = {
    "cp": Command(
        run,
        "CONTAINER:SRC_PATH DEST_PATH|- | SRC_PATH|- CONTAINER:DEST_PATH",
        (
            Flag("archive", "Keep user and group", short="a"),
            Flag("follow-link", "Copy what a symbolic link at SRC_PATH points to", short="L"),
            Flag("quiet", "Do not say how much was copied", short="q"),
        ),
        least=2,
        most=2,
        complete="paths",
        about="Works on running and stopped containers. '-' stands for a tar archive on standard input or output. A directory that exists "
        "receives the source under its own name; SRC_PATH/. copies only what is in the directory.",
        examples=(
            ("cp web:/etc/nginx/nginx.conf .", "A file out of a container"),
            ("cp site/. web:/usr/share/nginx/html", "The contents of a directory into one"),
            ("cp web:/var/log - | tar tv", "As a tar archive"),
        ),
    ),
}
