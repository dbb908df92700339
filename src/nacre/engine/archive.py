"""Tar streams into and out of containers, through stem's own file programs (docs/stem-protocol.md, BUILTIN)."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from nacre.errors import InvalidArgument, NotFound, SandboxError
from nacre.isolation.stream import Stream

CHUNK = 256 * 1024


class TarReader:
    """The output of `tar-get` as a readable object. `close` ends the transfer and whatever was brought up for it."""

    def __init__(self, stream: Stream, close: Callable[[], None]) -> None:
        self._stream = stream
        self._close = close
        self._buffer = b""
        self._errors = b""
        self._open = True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (all with -1), b"" at the end. Raises SandboxError when the transfer failed."""
        while self._open and (size < 0 or not self._buffer):
            pieces = self._stream.read(None)
            if pieces is None:
                self._finish()
                break
            for stream, piece in pieces:
                if stream == 1:
                    self._buffer += piece
                else:
                    self._errors += piece[:4096]
        data, self._buffer = (self._buffer, b"") if size < 0 else (self._buffer[:size], self._buffer[size:])
        return data

    def _finish(self) -> None:
        code = self._stream.exit_code
        self.close()
        if code:
            raise SandboxError(f"could not read the files: {self._errors.decode(errors='replace').strip()}", stage="run")

    def close(self) -> None:
        """End the transfer. Idempotent."""
        if self._open:
            self._open = False
            self._stream.close()
            self._close()

    def __enter__(self) -> TarReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def put_tar(stream: Stream, source: Any) -> None:
    """Feed a tar stream to `tar-put`. Raises InvalidArgument with what it objected to."""
    errors = b""
    done = False
    while True:
        if not done and not stream.want_write:
            data = source.read(CHUNK)
            if data:
                stream.write(data)
            else:
                stream.close_stdin()
                done = True
        pieces = stream.read(0.0)
        if pieces is None:
            break
        if not pieces and (done or stream.want_write):
            select.select([stream], [stream] if stream.want_write else [], [])
            stream.flush()
        errors += b"".join(piece for _, piece in pieces)[:4096]
    stream.close()
    if stream.exit_code:
        raise InvalidArgument(f"could not extract the archive: {errors.decode(errors='replace').strip()}")


def stat_line(stream: Stream, path: str, container: str) -> dict[str, Any]:
    """The answer of the `stat` program as name, mode, size, mtime (seconds since the epoch) and linkTarget. Raises NotFound."""
    code, output, errors = stream.communicate()
    if code:
        raise NotFound(f"Could not find the file {path} in container {container}", details=errors.decode(errors="replace").strip())
    mode, size, mtime, name, target = (output.removesuffix(b"\n").split(b"\0") + [b""] * 5)[:5]
    return {
        "name": name.decode(errors="replace"),
        "mode": int(mode),
        "size": int(size),
        "mtime": int(mtime) / 10**9,
        "linkTarget": target.decode(errors="replace"),
    }
