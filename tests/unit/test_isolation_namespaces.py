"""Which namespaces are shared with whom, and what contradicts what."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nacre.errors import InvalidArgument, NacreError, Unsupported
from nacre.isolation import namespaces, security
from nacre.isolation.namespaces import is_shared, open_namespace_of, own, partner, partners
from nacre.linux.namespaces import propagation
from nacre.model.container import ContainerSpec, Level
from nacre.model.network import PortMapping
from nacre.model.plan import NEWIPC, NEWPID, NEWUTS

VM = Level.VM


def spec(**fields: Any) -> ContainerSpec:
    return ContainerSpec(image="box", **fields)


def test_modes() -> None:
    assert [partner(mode) for mode in ("container:web", "host", "", "private", "container:")] == ["web", "", "", "", ""]
    assert [is_shared(mode) for mode in ("container:web", "host", "", "private", "shareable", "none")] == [True, True] + [False] * 4
    shared = spec(pid="container:a", ipc="container:b", uts="host", userns="container:c", network="container:d")
    assert partners(shared) == {"pid": "a", "ipc": "b", "user": "c", "net": "d"}
    assert partners(spec()) == {}
    assert own(spec()) == own(spec(ipc="none", pid="private")) == NEWPID | NEWIPC | NEWUTS
    assert own(spec(pid="host")) == NEWIPC | NEWUTS
    assert own(spec(pid="container:a", ipc="host", uts="host")) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "host", "ipc": "host", "uts": "host", "cgroupns": "host"},
        {"ipc": "shareable"},
        {"ipc": "none", "isolation": VM},
        {"userns": "keep-id"},
        {"userns": "private", "isolation": VM},
        {"network": "container:web", "pid": "container:web", "domainname": "example.org"},
        {"pid": "private", "cgroupns": "private", "isolation": VM},
    ],
)
def test_what_goes(fields: dict[str, Any]) -> None:
    security.check(spec(**fields))


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"pid": "public"}, InvalidArgument, "--pid: invalid mode 'public'"),
        ({"pid": "container:"}, InvalidArgument, "--pid: invalid mode 'container:'"),
        ({"pid": "shareable"}, InvalidArgument, "--pid: invalid mode"),
        ({"ipc": "keep-id"}, InvalidArgument, "--ipc: invalid mode"),
        ({"uts": "none"}, InvalidArgument, "--uts: invalid mode"),
        ({"cgroupns": "container:web"}, InvalidArgument, "--cgroupns: invalid mode"),
        ({"userns": "keep-id:uid=5"}, InvalidArgument, "--userns: invalid mode"),
        ({"network": "container:"}, InvalidArgument, "the name of a container is missing"),
        ({"uts": "host", "hostname": "box"}, InvalidArgument, "conflicting options: hostname and the UTS mode"),
        ({"uts": "container:web", "domainname": "x"}, InvalidArgument, "conflicting options: domainname and the UTS mode"),
        ({"network": "container:web", "hostname": "box"}, InvalidArgument, "conflicting options: hostname and the network mode"),
        ({"network": "container:web", "dns": ("192.0.2.1",)}, InvalidArgument, "conflicting options: dns and the network mode"),
        ({"network": "container:web", "extra_hosts": ("a:192.0.2.1",)}, InvalidArgument, "custom host-to-IP mapping and the network mode"),
        (
            {"network": "container:web", "ports": (PortMapping(container_port=1),)},
            InvalidArgument,
            "port publishing and the container type",
        ),
        ({"network": "container:web", "publish_all": True}, InvalidArgument, "port publishing and the container type"),
        ({"ipc": "host", "sysctls": {"kernel.shmmax": "1"}}, InvalidArgument, "not allowed in host ipc namespace"),
        ({"ipc": "host", "sysctls": {"fs.mqueue.msg_max": "1"}}, InvalidArgument, "not allowed in host ipc namespace"),
        ({"pid": "host", "isolation": VM}, Unsupported, "no namespaces in common with the host"),
        ({"uts": "host", "isolation": VM}, Unsupported, "no namespaces in common with the host"),
        ({"cgroupns": "host", "isolation": VM}, Unsupported, "no namespaces in common with the host"),
        ({"ipc": "shareable", "isolation": VM}, Unsupported, "nobody can join a namespace in a virtual machine"),
        ({"network": "container:web", "isolation": VM}, Unsupported, "different virtual machines have no namespaces in common"),
        ({"userns": "container:web", "isolation": VM}, Unsupported, "different virtual machines"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], kind: type[NacreError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        security.check(spec(**fields))
    assert caught.value.hint


def test_a_process_that_its_stem_does_not_vouch_for_has_no_namespaces(tmp_path: Any) -> None:
    # It lives, but nobody answers in that directory: the number may be another process's by now.
    assert open_namespace_of(os.getpid(), 1, "pid", str(tmp_path)) == -1
    assert open_namespace_of(2**22 + 1, 1, "pid", str(tmp_path)) == -1


MOUNTS = """\
22 1 0:20 / / rw,relatime - ext4 /dev/root rw
23 22 0:21 / /srv rw shared:5 - tmpfs tmpfs rw
24 23 0:22 / /srv/with\\040space rw master:5 - tmpfs tmpfs rw
25 23 0:23 / /srv/both rw shared:7 master:5 - tmpfs tmpfs rw
26 22 0:24 / /srv rw - tmpfs hidden rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc", ("/", "private")),
        ("/srvice", ("/", "private")),
        ("/srv/x", ("/srv", "private")),  # the last one mounted there counts
        ("/srv/with space/x", ("/srv/with space", "slave")),
        ("/srv/both", ("/srv/both", "shared")),
    ],
)
def test_propagation_of_the_mount_a_path_is_on(path: str, expected: tuple[str, str]) -> None:
    assert propagation(path, MOUNTS) == expected
    assert namespaces.CONTAINER == "container:"
