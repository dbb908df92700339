"""`nacre run` and `nacre create`."""

from __future__ import annotations

import contextlib
import os

from nacre.cli.context import Context, is_terminal, window
from nacre.cli.flags import Arguments, Command, Flag, UsageError
from nacre.cli.spec import SPEC_FLAGS, UNSUPPORTED, attached_streams, container_spec
from nacre.errors import Conflict, InvalidArgument, NacreError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.engine import Container
    from nacre.model.container import ContainerSpec


def create(ctx: Context, args: Arguments) -> int:
    """`nacre create`."""
    with CidFile(args.cidfile) as cidfile:
        container = make(ctx, args, container_spec(args, args.rest[0], args.rest[1:]))
        cidfile.write(container.id)
    ctx.out(container.id)
    return 0


def run(ctx: Context, args: Arguments) -> int:
    """`nacre run`."""
    if args.detach and args.attach:
        raise UsageError("Conflicting options: -a and -d")
    spec = container_spec(args, args.rest[0], args.rest[1:], detached=args.detach)
    streams = frozenset[str]() if args.detach else attached_streams(args)
    if "stdin" in streams and spec.tty and not is_terminal(0):
        raise InvalidArgument("the input device is not a TTY", hint="leave out -t when the input is not a terminal")
    with CidFile(args.cidfile) as cidfile:
        container = make(ctx, args, spec, pending=spec.auto_remove)
        cidfile.write(container.id)
    if args.detach:
        _start_detached(container)
        ctx.out(container.id)
        return 0
    return _foreground(ctx, args, container, streams)


def make(ctx: Context, args: Arguments, spec: ContainerSpec, *, pending: bool = False) -> Container:
    """Creates the container, pulling the image first when the policy says so. pending: garbage should we die before it is started."""
    container = None
    if args.pull != "always" and not args.platform:
        with contextlib.suppress(NotFound):  # the usual case, in which the image is there: nothing of pulling is loaded
            container = ctx.engine.containers.create(spec, pull="never", pending=pending)
    if container is None:
        from nacre.cli.commands.pull import ensure

        ensure(ctx, spec.image, args.pull, args.platform, quiet=args.quiet)
        container = ctx.engine.containers.create(spec, pull="never", pending=pending)
    for warning in container.warnings:
        ctx.err(f"WARNING: {warning}")
    return container


def _start_detached(container: Container) -> None:
    try:
        container.start()
    except BaseException:
        _remove_if_asked(container)
        raise


def _foreground(ctx: Context, args: Arguments, container: Container, streams: frozenset[str]) -> int:
    spec = container.record.spec
    if args.detach_keys:
        _keys(args.detach_keys)  # a mistake in them is found before anything runs
    rows, columns = window(0, 1) if spec.tty else (0, 0)
    try:
        stream = container.start(attach=True, rows=rows, columns=columns)
    except BaseException:
        _remove_if_asked(container)
        raise
    assert stream is not None
    from nacre.cli import terminal  # loaded while the container's program is: neither waits for the other

    pump = terminal.Pump(
        stream,
        tty=spec.tty,
        interactive="stdin" in streams,
        keys=_keys(args.detach_keys),
        proxy=args.sig_proxy,
        streams=tuple(number for number, name in ((1, "stdout"), (2, "stderr")) if name in streams or (spec.tty and "stdout" in streams)),
    )
    try:
        code = terminal.follow(pump, ctx.err)
    except BrokenPipeError:
        # Like a program in a pipeline whose reader has gone: with --rm nobody could reach this container any more.
        if spec.auto_remove:
            _remove_if_asked(container)
        raise
    ctx.mourn(stream.error)
    if stream.exit_code is not None:
        _remove_if_asked(container)
    return code


def _keys(text: str) -> bytes:
    from nacre.cli import terminal

    return terminal.parse_keys(text or terminal.DETACH_KEYS)


def _remove_if_asked(container: Container) -> None:
    """What --rm promises. The engine, or another one, may have been faster."""
    if container.record.spec.auto_remove:
        try:
            container.remove(force=True)
        except (NotFound, Conflict):
            return


class CidFile:
    """The file of --cidfile: must not exist before; removed again when no container was made. path "" = none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written = False

    def __enter__(self) -> CidFile:
        if self._path:
            try:
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            except FileExistsError:
                raise Conflict(
                    "container ID file found, make sure the other container isn't running or delete " + self._path, hint=f"rm {self._path}"
                ) from None
            except OSError as error:
                raise InvalidArgument(f"failed to create the container ID file {self._path}: {error.strerror}") from error
        return self

    def write(self, identifier: str) -> None:
        """Records the id. Raises NacreError when the disk is full."""
        self._written = True
        if self._path:
            try:
                with open(self._path, "w", encoding="ascii") as file:
                    file.write(identifier)
            except OSError as error:
                raise NacreError(f"failed to write the container ID file {self._path}: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        if self._path and not self._written:
            os.unlink(self._path)


_RUN_FLAGS = (
    *SPEC_FLAGS,
    Flag("detach", "Run in the background and print the container's id", short="d"),
    Flag("detach-keys", "Keys that detach from the container (default ctrl-p,ctrl-q)", "string"),
    Flag("sig-proxy", "Pass signals on to the container", default=True),
    Flag("disable-content-trust", "Has no effect (images are verified by their digests)", default=True),
)

COMMANDS = {
    "run": Command(
        run,
        "IMAGE [COMMAND] [ARG...]",
        _RUN_FLAGS,
        least=1,
        most=None,
        interspersed=False,
        complete="images",
        unsupported=UNSUPPORTED,
        about="The exit code is that of the container's process; 125 when Nacre could not run it, 126 when the command could not be "
        "executed, 127 when it was not found.",
        examples=(
            ("run -it --rm debian bash", "A shell in a fresh container that leaves nothing behind"),
            ("run -it --rm --isolation vm debian bash", "The same with a kernel of its own"),
            ("run -d --name web -p 8080:80 nginx", "A web server in the background, reachable on port 8080 of this host"),
            ("run --rm -v data:/data -m 512m --cpus 1.5 debian sh -c 'df -h /data'", "With a named volume and limits"),
        ),
    ),
    "create": Command(
        create,
        "IMAGE [COMMAND] [ARG...]",
        (*SPEC_FLAGS, _RUN_FLAGS[-1]),
        least=1,
        most=None,
        interspersed=False,
        complete="images",
        unsupported=UNSUPPORTED,
        examples=(("create --name web -p 8080:80 nginx", "Make a container now, start it later with: nacre start web"),),
    ),
}

__all__ = ["COMMANDS", "CidFile", "make"]
