"""Host ports are reserved by bound sockets."""

from __future__ import annotations

import os
import socket

import pytest

from nacre.errors import Conflict
from nacre.model.network import PortMapping
from nacre.network import ports


def test_the_first_free_port_of_a_range() -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    first = taken.getsockname()[1]
    wanted = PortMapping(container_port=80, host_port=first, host_port_last=first + 20, host_ip="127.0.0.1")
    (chosen,), held = ports.reserve((wanted,))
    assert first < chosen.host_port <= first + 20
    assert chosen.host_port_last == 0
    for fd in held:
        os.close(fd)
    with pytest.raises(Conflict):
        ports.reserve((wanted.replace(host_port_last=0),))
    taken.close()
