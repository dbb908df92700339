"""A bundle of an ordinary user: no privileges, one id."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest

from ocibundle import Done, Runtime

USER = 1876543  # nobody: no entry in /etc/passwd, no ranges in /etc/subuid
Call = Callable[..., Done]


@pytest.fixture
def home(busybox: bytes) -> Iterator[Path]:
    """A directory of the user with a root file system in `rootfs`."""
    made = Path(tempfile.mkdtemp(prefix="nr-", dir="/var/tmp"))
    with tarfile.open(fileobj=BytesIO(busybox)) as tar:
        tar.extractall(made / "rootfs")
    (made / "run").mkdir(mode=0o700)
    for path in (made, *made.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def call(runtime: str, home: Path) -> Iterator[Call]:
    """The runtime, called by the user."""
    program = Runtime("ours", runtime, home / "run")
    environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home / "run")}
    program.containers += ["one", "two", "three", "four"]
    yield partial(program, cwd=home, env=environment, user=USER, group=USER, extra_groups=())
    program.close()


def test_life_of_a_container(call: Call, home: Path) -> None:
    call("spec", "--rootless")
    path = home / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "id -u; cat /proc/self/uid_map; touch /tmp/x; hostname"]}
    config["root"]["readonly"] = False
    path.write_text(json.dumps(config))
    assert call("run", "one").out.split() == ["0", "0", str(USER), "1", "nacre"]
    assert (home / "rootfs/tmp/x").stat().st_uid == USER
    config["process"]["args"] = ["sleep", "1000"]
    path.write_text(json.dumps(config))
    call("create", "--pid-file", "pid", "two")
    call("start", "two")
    assert json.loads(call("state", "two").out)["status"] == "running"
    assert call("exec", "two", "id", "-u").out == "0\n"
    call("delete", "--force", "two")
    assert call("list", "--quiet").out == ""


def test_what_root_alone_can_do_is_refused(call: Call, home: Path) -> None:
    call("spec")  # without a user namespace
    path = home / "config.json"
    config = json.loads(path.read_text())
    config["process"]["terminal"] = False
    path.write_text(json.dumps(config))
    done = call("run", "three", code=1)
    assert done.err.strip() and "Traceback" not in done.err
    assert call("list", "--quiet").out == ""
    config = json.loads(path.read_text()) | {"hostname": ""}
    config["linux"] |= {
        "namespaces": [{"type": "user"}, {"type": "mount"}], "uidMappings": [{"containerID": 0, "hostID": 5, "size": 10}],
        "gidMappings": [{"containerID": 0, "hostID": USER, "size": 1}], "resources": {},
    }  # fmt: skip
    path.write_text(json.dumps(config))
    assert "newuidmap" in call("run", "four", code=1).err
    assert call("list", "--quiet").out == ""
