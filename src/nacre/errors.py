"""Every failure that Nacre reports on purpose.

::

    NacreError
    ├── UserError            the caller can change the request          (CLI exit 125)
    │   ├── InvalidArgument      a value that cannot be used
    │   ├── NotFound             no such image, container, volume ...
    │   ├── Conflict             a name, port or state is already taken
    │   └── Denied               the caller may not do this
    ├── HostError            something on this host is missing or full
    │   ├── Unsupported          an ability the host or the level lacks
    │   └── NoSpace              a disk, quota or address range is full
    ├── RemoteError          a registry or another engine misbehaved
    │   ├── Unauthorized         credentials missing or refused
    │   └── BadContent           what arrived is not what was promised
    ├── SandboxError         a sandbox (stem, monitor, guest) failed; carries the stage
    │   └── SandboxGone          it ended while it was being used
    └── ExecError            a command could not be started
        ├── CommandNotFound      (CLI exit 127)
        └── CommandNotExecutable (CLI exit 126)

An error says what failed (`message`), what to do about it (`hint`), and, for those who ask with --debug, what was seen
(`details`: stage, errno, the last lines of a guest kernel ...). Each class names the HTTP status and the gRPC code that a
front end answers with, and the exit code of the command line, so that no front end has to decide.
"""

from __future__ import annotations


class NacreError(Exception):
    """Base of the tree.

    message: one line, what failed and why, naming the object.
    hint:    what the reader can do about it, preferably a command; "" when there is nothing to say.
    details: evidence for a closer look, several lines; "" when there is none.
    """

    http_status = 500
    grpc_code = "INTERNAL"
    exit_code = 125

    def __init__(self, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(NacreError):
    """The request cannot be carried out as it stands."""

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"


class InvalidArgument(UserError):
    """A value is malformed, out of range or contradicts another one."""

    grpc_code = "INVALID_ARGUMENT"


class NotFound(UserError):
    """The named object does not exist."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class Conflict(UserError):
    """The name, port or state that the request needs is taken."""

    http_status = 409
    grpc_code = "ALREADY_EXISTS"


class Denied(UserError):
    """A policy or a missing privilege forbids the request."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class HostError(NacreError):
    """The host lacks something; the hint names the package, module or sysctl."""


class Unsupported(HostError):
    """The host, or the isolation level in question, does not have this ability."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class NoSpace(HostError):
    """A file system, quota or address range is full."""

    http_status = 507
    grpc_code = "RESOURCE_EXHAUSTED"


class RemoteError(NacreError):
    """A registry (or another engine) could not be reached or answered wrongly."""

    http_status = 502
    grpc_code = "UNAVAILABLE"


class Unauthorized(RemoteError):
    """Credentials are missing, expired or refused."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"


class BadContent(RemoteError):
    """Bytes that do not match their digest, size, media type or format."""

    grpc_code = "DATA_LOSS"


class SandboxError(NacreError):
    """A sandbox failed. `stage` is where: prepare, network, launch, boot, plan, run, stop."""

    def __init__(self, message: str, *, stage: str, hint: str = "", details: str = "") -> None:
        super().__init__(message, hint=hint, details=details)
        self.stage = stage


class SandboxGone(SandboxError):
    """The sandbox ended (its stem, its monitor or its guest died) while a request was under way."""

    http_status = 409
    grpc_code = "ABORTED"


class ExecError(NacreError):
    """A command could not be started inside its container."""

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"
    exit_code = 126


class CommandNotExecutable(ExecError):
    """The file exists but cannot be executed."""


class CommandNotFound(ExecError):
    """No such file, neither at the given path nor in PATH."""

    exit_code = 127
