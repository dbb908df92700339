"""``forward NETNS END LOCK PROTOCOL:FD:ADDRESS:PORT ...``: hands what arrives at sockets of the host on into a network namespace.

Run for the published ports of a container of an ordinary user (`nacre.network.rootless`). FD: a bound socket of the host's
namespace, listening if it is TCP. END: the reading end of a pipe; the program ends when nobody holds the other one any more.
LOCK: a locked file, into which it writes its process id. It goes to the background when everything is in place, and then has no
privileges; the container sees the namespace's own address as the sender.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import select
import sys
import time

from nacre.linux import netns, userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Address = tuple[str, int]

_CHUNK = 1 << 16
_IDLE = 90.0  # seconds after which a UDP sender is forgotten
_MOST_SENDERS = 4096
_IN, _OUT, _GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


class Loop:
    """What happens at which descriptor."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call `call(events)` when one of `events` (or the end) is there; replaces an earlier watch."""
        known = fd in self._calls
        self._calls[fd] = call
        (self._poll.modify if known else self._poll.register)(fd, events)

    def forget(self, fd: int) -> None:
        """Before a descriptor is closed."""
        if self._calls.pop(fd, None):
            with contextlib.suppress(OSError):
                self._poll.unregister(fd)

    def run(self) -> None:
        """For ever."""
        while True:
            for fd, events in self._poll.poll():
                call = self._calls.get(fd)
                if call:  # not forgotten by an earlier one of this round
                    call(events)


class Stream:
    """One TCP connection: two sockets, and what was read from each and could not be written to the other yet."""

    def __init__(self, loop: Loop, outer: _socket.socket, target: Address) -> None:
        self._loop = loop
        self._ends = (outer, _new_socket(_socket.SOCK_STREAM))
        self._waiting = [b"", b""]  # read from that end
        self._finished = [False, False]  # that end has sent everything
        self._closed = [False, False]  # and the other has been told
        self._connected = False
        outer.setblocking(False)
        outer.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._ends[1].setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        code = self._ends[1].connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self._end()
            return
        self._loop.watch(self._ends[1].fileno(), _OUT, self._on_connected)

    def _on_connected(self, _events: int) -> None:
        if self._ends[1].getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self._end()
            return
        self._connected = True
        self._move()

    def _move(self, _events: int = 0) -> None:
        """Move what can be moved, then wait for what is in the way."""
        try:
            for side in (0, 1):
                self._pump(side)
        except OSError:
            self._end()
            return
        if all(self._closed):
            self._end()
            return
        for side in (0, 1):
            wanted = 0 if self._finished[side] or self._waiting[side] else _IN
            wanted |= _OUT if self._waiting[1 - side] else 0
            fd = self._ends[side].fileno()
            # Not watched at all when nothing is wanted of it: a hang-up would be reported over and over.
            if wanted:
                self._loop.watch(fd, wanted, self._move)
            else:
                self._loop.forget(fd)

    def _pump(self, side: int) -> None:
        """From one end to the other, as long as both are willing, but not for ever: others wait."""
        source, sink = self._ends[side], self._ends[1 - side]
        for _ in range(16):
            if not self._waiting[side] and not self._finished[side]:
                try:
                    self._waiting[side] = source.recv(_CHUNK)
                except BlockingIOError:
                    return
                self._finished[side] = not self._waiting[side]
            if self._waiting[side]:
                try:
                    self._waiting[side] = self._waiting[side][sink.send(self._waiting[side]) :]
                except BlockingIOError:
                    return
            elif self._finished[side]:
                if not self._closed[side]:
                    self._closed[side] = True
                    sink.shutdown(_socket.SHUT_WR)
                return

    def _end(self) -> None:
        for end in self._ends:
            self._loop.forget(end.fileno())
            end.close()


class Datagrams:
    """One UDP port: a socket inside for each sender outside, so that answers find their way."""

    def __init__(self, loop: Loop, outer: _socket.socket, target: Address) -> None:
        self._loop, self._outer, self._target = loop, outer, target
        self._senders: dict[Address, tuple[_socket.socket, float]] = {}
        loop.watch(outer.fileno(), _IN, self._on_outer)

    def _on_outer(self, _events: int) -> None:
        for _ in range(64):
            try:
                data, sender = self._outer.recvfrom(_CHUNK)
            except OSError:
                return
            with contextlib.suppress(OSError):  # refused: nobody listens inside (yet)
                self._inner(sender).send(data)

    def _inner(self, sender: Address) -> _socket.socket:
        now = time.monotonic()
        if sender in self._senders:
            inner = self._senders.pop(sender)[0]  # to the end: the order is that of the last use
        else:
            self._expire(now)
            inner = _new_socket(_socket.SOCK_DGRAM)
            inner.connect(self._target)
            self._loop.watch(inner.fileno(), _IN, lambda _events: self._on_inner(sender, inner))
        self._senders[sender] = inner, now
        return inner

    def _expire(self, now: float) -> None:
        while self._senders:
            sender, (inner, last) = next(iter(self._senders.items()))
            if now - last < _IDLE and len(self._senders) < _MOST_SENDERS:
                return
            del self._senders[sender]
            self._loop.forget(inner.fileno())
            inner.close()

    def _on_inner(self, sender: Address, inner: _socket.socket) -> None:
        for _ in range(64):
            try:
                data = inner.recv(_CHUNK)
                self._outer.sendto(data, sender)
            except OSError:
                return


def _new_socket(kind: int) -> _socket.socket:
    made = _socket.socket(_socket.AF_INET, kind | _socket.SOCK_CLOEXEC)
    made.setblocking(False)
    return made


def _accept(loop: Loop, listener: _socket.socket, target: Address) -> None:
    while True:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]  # what socket.socket.accept calls; that module takes long to load
        except OSError:
            return
        Stream(loop, _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd), target)


def serve(end: int, targets: list[str]) -> None:
    """Forward until the pipe hangs up."""
    loop = Loop()
    loop.watch(end, 0, lambda _events: os._exit(0))
    for text in targets:
        protocol, fd, address, port = text.split(":")
        target = address, int(port)
        kind = _socket.SOCK_STREAM if protocol == "tcp" else _socket.SOCK_DGRAM
        sock = _socket.socket(_socket.AF_INET, kind, 0, int(fd))
        sock.setblocking(False)
        if protocol == "tcp":
            loop.watch(sock.fileno(), _IN, lambda _events, sock=sock, target=target: _accept(loop, sock, target))  # type: ignore[misc]
        else:
            Datagrams(loop, sock, target)
    loop.run()


def main() -> None:
    """The program."""
    path, end, lock, *targets = sys.argv[1:]
    netns.enter(path)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.write(int(lock), str(os.getpid()).encode())
    last = userns.mapped_ids() - 1
    if last > 0:  # somebody whom nothing belongs to
        os.setgroups(())
        os.setresgid(last, last, last)
        os.setresuid(last, last, last)
    serve(int(end), targets)
