"""A synchronous client of a running monitor's control socket (QMP)."""

from __future__ import annotations

import _socket
import os
import select
import time
from typing import Any, Self

from nacre.errors import SandboxError, SandboxGone
from nacre.wire import qmp

SECONDS = 10.0
SOCKET = "qmp.sock"


class Monitor:
    """A connection to the monitor of the sandbox in `directory`; use as a context manager.

    Raises SandboxGone when no monitor is there, SandboxError when it does not answer within 10 s or answers nonsense.
    """

    def __init__(self, directory: str) -> None:
        self._name = os.path.basename(directory)[:12]
        self._decoder = qmp.Decoder()
        self._messages: list[qmp.Message] = []
        self._tag = 0
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            _connect(self._socket, directory)
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise SandboxGone(f"the monitor of sandbox {self._name} is not running: {error.strerror}", stage="run") from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it returns; events in between are passed over. Raises SandboxError for its refusal."""
        self._tag += 1
        self._socket.sendall(qmp.encode(command, self._tag, arguments))
        deadline = time.monotonic() + SECONDS
        while not (reply := self._take_reply()):
            self._fill(deadline)
        if reply.error:
            raise SandboxError(f"the monitor refused {command}: {reply.error}", stage="run")
        return reply.value

    def _take_reply(self) -> qmp.Reply | None:
        """The answer to the latest command if it has arrived; the greeting, events and late answers are dropped."""
        messages, self._messages = self._messages, []
        return next((item for item in messages if isinstance(item, qmp.Reply) and item.tag == self._tag), None)

    def _fill(self, deadline: float) -> None:
        if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise SandboxError(f"the monitor of sandbox {self._name} does not answer", stage="run", hint=f"nacre kill {self._name}")
        data = self._socket.recv(65536)
        if not data:
            raise SandboxGone(f"the monitor of sandbox {self._name} ended", stage="run")
        try:
            self._messages += self._decoder.feed(data)
        except ValueError as error:
            raise SandboxError(f"the monitor of sandbox {self._name} sent nonsense: {error}", stage="run") from error


def _connect(connection: _socket.socket, directory: str) -> None:
    # A unix address holds 108 bytes; a directory's path may be longer.
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{handle}/{SOCKET}")
    finally:
        os.close(handle)
