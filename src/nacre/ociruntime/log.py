"""The log that engines read: lines as runc writes them, in a file or on standard error. The last error line tells why a command failed."""

from __future__ import annotations

import os
import sys
import time

from nacre.model import jsontext


class Log:
    """path: "" = standard error; style: text or json; debug: write debug lines too."""

    def __init__(self, path: str = "", style: str = "text", *, debug: bool = False) -> None:
        self.path = path
        self.style = style
        self._debug = debug

    def debug(self, message: str) -> None:
        """What is of interest only when something is looked for."""
        if self._debug:
            self._write("debug", message)

    def warning(self, message: str) -> None:
        """Something was left out or went wrong without harm to the command."""
        self._write("warning", message)

    def error(self, message: str) -> None:
        """Why the command failed: to the log, and in plain words to standard error."""
        if self.path:
            self._write("error", message)
        if self.path or self.style != "json":
            sys.stderr.write(f"{message}\n")
        else:
            self._write("error", message)

    def _write(self, level: str, message: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.style == "json":
            line = jsontext.dumps({"level": level, "msg": message, "time": stamp})
        else:
            line = f"time={jsontext.dumps(stamp)} level={level} msg={jsontext.dumps(message)}"
        if not self.path:
            sys.stderr.write(f"{line}\n")
            return
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            sys.stderr.write(f"--log: {self.path}: {os.strerror(error.errno or 0)}\n{line}\n")
            return
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)
