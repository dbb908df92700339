"""A laboratory for networks: a "host" and another machine in namespaces of their own, so that tests never touch the real one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from nacre.linux import netns
from nacre.linux.netlink import Netlink
from nacre.model.network import Endpoint

HOST_ADDRESS, REMOTE_ADDRESS = "198.51.100.1", "198.51.100.2"
_CLONE_NEWNET = 0x40000000
_PATIENCE = 5.0  # seconds until traffic that does not arrive counts as lost


class Lab:
    """A "host" (the calling thread's namespace while the context is entered) linked to another machine, "remote".

    host 198.51.100.1 -- uplink -- 198.51.100.2 remote; the host's default route leads to remote, which has no route back to
    containers. directory: temporary, removed at the end; remote: path of that machine's namespace. Needs root.
    """

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="nacre-lab-")
        self.remote = f"{self.directory}/remote"
        self._home = -1

    def __enter__(self) -> Self:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        netns.raise_interface("lo")
        netns.create(self.remote)
        with Netlink() as netlink, Netlink(self.remote) as other:
            netlink.create_veth("uplink", "eth0", namespace=self.remote, mac="02:00:00:00:00:02", mtu=1500)
            for end, name, address in ((netlink, "uplink", HOST_ADDRESS), (other, "eth0", REMOTE_ADDRESS)):
                end.set_link(name, up=True)
                end.add_address(end.index(name), f"{address}/24")
            netlink.add_route("default", REMOTE_ADDRESS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        netns.enter(f"/proc/self/fd/{self._home}")
        os.close(self._home)
        for path in [self.remote, *self._namespaces()]:
            netns.remove(path)
        shutil.rmtree(self.directory)

    def _namespaces(self) -> list[str]:
        directory = f"{self.directory}/run/netns"
        return [f"{directory}/{name}" for name in os.listdir(directory)] if os.path.isdir(directory) else []


def configure(endpoint: Endpoint) -> None:
    """Bring an endpoint's interface up with its address and default route, as the plan of a container does."""
    with Netlink(endpoint.netns) as inner:
        index = inner.index(endpoint.interface)
        inner.set_link(index, up=True)
        inner.add_address(index, endpoint.address)
        inner.add_route("default", endpoint.gateway)


@contextlib.contextmanager
def serve(namespace: str, port: int, name: str, protocol: str = "tcp", address: str = "0.0.0.0") -> Iterator[None]:
    """A server in a namespace ("" = here) that answers every connection or datagram with "NAME PEER-ADDRESS"."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    server = netns.inside(namespace, lambda: socket.socket(socket.AF_INET, kind))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if protocol == "tcp":
        server.listen()
    thread = threading.Thread(target=_answer, args=(server, name), daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Wakes the thread; closing alone would not.
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def _answer(server: socket.socket, name: str) -> None:
    try:
        while True:
            if server.type == socket.SOCK_STREAM:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(f"{name} {peer[0]}".encode())
            else:
                data, peer = server.recvfrom(2048)
                if not data:
                    return
                server.sendto(f"{name} {peer[0]}".encode(), peer)
    except OSError:
        return


def ask(namespace: str, address: str, port: int, protocol: str = "tcp", *, patience: float = _PATIENCE, source_port: int = 0) -> str:
    """What a server started by `serve` answers to a client in a namespace; "" when it cannot be reached."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with netns.inside(namespace, lambda: socket.socket(socket.AF_INET, kind)) as client:
        client.settimeout(patience)
        try:
            if source_port:
                client.bind(("0.0.0.0", source_port))
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"?")
            return client.recv(2048).decode()
        except OSError:
            return ""


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether something becomes true within some seconds: for what the kernel finishes in the background."""
    event = threading.Event()
    for _ in range(500):
        if condition():
            return True
        event.wait(0.01)
    return condition()
