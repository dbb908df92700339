"""Where a container's lines are handed on to: Docker's json-file, a syslog server, journald. Blocking; for the helper that forwards."""

from __future__ import annotations

import json
import os
import socket
import time

from nacre.engine import logdrivers
from nacre.engine.core import timestamp
from nacre.model.container import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

PATIENCE = 10.0  # seconds that a receiver may take
STDERR = 2
_SEVERITY = {1: 6, 2: 3}  # standard output is informational, standard error an error


class Line:
    """One line without its newline, or a part of one (`partial`: more of it follows)."""

    __slots__ = ("data", "partial", "stream", "time_ns")

    def __init__(self, time_ns: int, stream: int, data: bytes, *, partial: bool = False) -> None:
        self.time_ns = time_ns
        self.stream = stream
        self.data = data
        self.partial = partial


class Sink:
    """A receiver of lines. Every method raises OSError when it is not there; `close` never does."""

    def send(self, line: Line) -> None:
        """Hand on one line."""
        raise NotImplementedError

    def flush(self) -> dict[str, Any]:
        """Everything sent has been handed on; what the sink wants to know when it is opened again."""
        return {}

    def close(self) -> None:
        """Give it up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make(record: Container, path: str, state: dict[str, Any]) -> Sink:
    """The sink of a container's driver. path: of json-file's file; state: what `flush` answered last. Raises OSError."""
    config = record.spec.log
    driver = logdrivers.driver_of(config)
    if driver == "json-file":
        return JsonFile(path, logdrivers.attributes(record), logdrivers.limits(config), state)
    if driver == "syslog":
        return Syslog(config.options, logdrivers.tag(record), record.pid or os.getpid())
    return Journald(record, logdrivers.attributes(record))


class JsonFile(Sink):
    """Docker's json-file: one object per line, with rotation. What was written after the last `flush` of a killed helper is cut off."""

    def __init__(self, path: str, attributes: dict[str, str], limits: tuple[int, int, bool], state: dict[str, Any]) -> None:
        self._path = path
        self._limit, self._files, self._compress = limits
        self._attributes = {"attrs": attributes} if attributes else {}
        self._file = open(path, "ab")  # noqa: SIM115
        status = os.fstat(self._file.fileno())
        if state.get("inode") == status.st_ino and state.get("size", 0) <= status.st_size:
            self._file.truncate(state["size"])
            self._file.seek(0, os.SEEK_END)

    def send(self, line: Line) -> None:
        """Append it."""
        entry = {
            "log": line.data.decode(errors="replace") + ("" if line.partial else "\n"),
            "stream": "stderr" if line.stream == STDERR else "stdout",
            **self._attributes,
            "time": _moment(line.time_ns),
        }
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        if self._limit and self._file.tell() and self._file.tell() + len(text) > self._limit:
            self._rotate()
        self._file.write(text)

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._files - 1, 0, -1):
            for ending in ("", ".gz"):
                old = f"{self._path}.{number - 1}{ending}" if number > 1 else self._path
                if os.path.exists(old) and (number > 1 or not ending):
                    for stale in ("", ".gz"):
                        if os.path.exists(f"{self._path}.{number}{stale}"):
                            os.unlink(f"{self._path}.{number}{stale}")
                    os.rename(old, f"{self._path}.{number}{ending}")
        if self._files > 1 and self._compress:
            _gzip(f"{self._path}.1")
        self._file = open(self._path, "wb" if self._files == 1 else "ab")  # noqa: SIM115

    def flush(self) -> dict[str, Any]:
        """The file's inode and size."""
        self._file.flush()
        return {"inode": os.fstat(self._file.fileno()).st_ino, "size": self._file.tell()}

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError:
            return


def _gzip(path: str) -> None:
    import gzip
    import shutil

    with open(path, "rb") as plain, gzip.open(f"{path}.gz.new", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    os.rename(f"{path}.gz.new", f"{path}.gz")
    os.unlink(path)


class Syslog(Sink):
    """A syslog server: RFC 3164 or RFC 5424 over unix sockets, UDP, TCP and TLS (framed as RFC 6587 and RFC 5425 say)."""

    def __init__(self, options: dict[str, str], tag: str, pid: int) -> None:
        self._kind, self._host, port = logdrivers.address(options)
        self._priority = logdrivers.facility(options) << 3
        self._format = options.get("syslog-format", "") or "rfc3164"
        self._tag, self._pid = tag, pid
        self._name = socket.gethostname()
        self._datagrams = self._kind in ("local", "unixgram", "udp")
        self._socket = self._connect(port, options)

    def _connect(self, port: int, options: dict[str, str]) -> socket.socket:
        if self._kind in ("local", "unix", "unixgram"):
            return self._unix()
        if self._kind == "udp":
            family, kind, _, _, where = socket.getaddrinfo(self._host, port, type=socket.SOCK_DGRAM)[0]
            made = socket.socket(family, kind)
            made.connect(where)
            return made
        plain = socket.create_connection((self._host, port), PATIENCE)
        return plain if self._kind == "tcp" else _encrypted(plain, self._host, options)

    def _unix(self) -> socket.socket:
        # The local one may be either; a server that was named is what it was said to be.
        kinds = {"unix": (socket.SOCK_STREAM,), "unixgram": (socket.SOCK_DGRAM,)}.get(self._kind, (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        for number, kind in enumerate(kinds):
            made = socket.socket(socket.AF_UNIX, kind)
            made.settimeout(PATIENCE)
            try:
                made.connect(self._host)
            except OSError:
                made.close()
                if number + 1 == len(kinds):
                    raise
                continue
            self._datagrams = kind == socket.SOCK_DGRAM
            return made
        raise AssertionError("unreachable")

    def send(self, line: Line) -> None:
        """Send it as one message."""
        message = self._head(line).encode() + line.data
        if self._datagrams:
            self._socket.send(message)
        elif self._kind == "tcp+tls" and self._format != "rfc3164":
            self._socket.sendall(b"%d %s" % (len(message), message))
        else:
            self._socket.sendall(message + b"\n")

    def _head(self, line: Line) -> str:
        priority, seconds = self._priority | _SEVERITY[line.stream], line.time_ns / 1e9
        if self._format == "rfc3164":
            now = time.localtime(seconds)
            host = "" if self._kind == "local" else f"{self._name} "
            moment = f"{time.strftime('%b', now)} {now.tm_mday:2d} {time.strftime('%H:%M:%S', now)}"
            return f"<{priority}>{moment} {host}{self._tag}[{self._pid}]: "
        digits = 6 if self._format == "rfc5424micro" else 0
        moment = _moment(line.time_ns)
        moment = moment[:19] + (moment[19 : 20 + digits] if digits else "") + "Z"
        return f"<{priority}>1 {moment} {self._name} {self._tag} {self._pid} {self._tag} - "

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _encrypted(plain: socket.socket, host: str, options: dict[str, str]) -> socket.socket:
    import ssl

    context = ssl.create_default_context(cafile=options.get("syslog-tls-ca-cert"))
    if logdrivers.flag(options, "syslog-tls-skip-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.get("syslog-tls-cert"):
        context.load_cert_chain(options["syslog-tls-cert"], options.get("syslog-tls-key"))
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except OSError:
        plain.close()
        raise


class Journald(Sink):
    """systemd's journal, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL), with the fields that Docker gives it."""

    def __init__(self, record: Container, attributes: dict[str, str]) -> None:
        name = logdrivers.tag(record)
        fields = {
            "CONTAINER_ID": record.id[:12], "CONTAINER_ID_FULL": record.id, "CONTAINER_NAME": record.name, "CONTAINER_TAG": name,
            "SYSLOG_IDENTIFIER": name, "IMAGE_NAME": record.image_name,
            **{_field_name(key): value for key, value in attributes.items() if key != "tag"},
        }  # fmt: skip
        self._head = b"".join(_field(key, value.encode()) for key, value in fields.items() if key)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(logdrivers.JOURNAL)
        except OSError:
            self._socket.close()
            raise

    def send(self, line: Line) -> None:
        """Send it as one entry; one that no datagram holds goes as a sealed file."""
        entry = b"".join(
            (
                self._head,
                _field("PRIORITY", b"%d" % _SEVERITY[line.stream]),
                _field("SYSLOG_TIMESTAMP", _moment(line.time_ns).encode()),
                _field("CONTAINER_PARTIAL_MESSAGE", b"true") if line.partial else b"",
                _field("MESSAGE", line.data),
            )
        )
        try:
            self._socket.send(entry)
        except OSError as error:
            if error.errno != 90:  # EMSGSIZE
                raise
            self._send_file(entry)

    def _send_file(self, entry: bytes) -> None:
        import fcntl

        file = os.memfd_create("nacre-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(file, entry)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
            socket.send_fds(self._socket, [b""], [file])
        finally:
            os.close(file)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return b"%s=%s\n" % (name.encode(), value)


def _field_name(key: str) -> str:
    """A field of the journal: upper-case letters, digits and underscores, beginning with a letter."""
    name = "".join(char if char.isascii() and (char.isalnum() or char == "_") else "_" for char in key.upper())
    return name.lstrip("_0123456789")[:64]


def _moment(time_ns: int) -> str:
    whole, rest = divmod(time_ns, 1_000_000_000)
    return f"{timestamp(whole)[:19]}.{rest:09d}Z"
