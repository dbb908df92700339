"""An ordinary user's limits on cgroup v2: the user's own systemd, a real one, gives the group that makes them possible."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_rootless import COUNT, FIRST, User, give_ids, prefix  # noqa: F401
from test_systemd_groups import system  # noqa: F401

UNIT = "/usr/lib/systemd/system/user@.service"
SESSION = "/sys/fs/cgroup/user.slice/user-$1.slice/session-7.scope"
# $1: uid; $2: gid; $3: python; $4: the program below. A login session as logind makes it, whose group belongs to root.
START = f"""
mount --make-rshared /; mkdir -p /run/dbus
systemctl start dbus.socket dbus.service systemd-logind "user@$1" || exit 77
mount -t tmpfs tmpfs /mnt; mkdir -m 700 /mnt/run; chown "$1" /mnt /mnt/run
mkdir {SESSION}; echo $$ > {SESSION}/cgroup.procs
exec setpriv --reuid "$1" --regid "$2" --clear-groups \
    env -i HOME=/mnt XDG_RUNTIME_DIR="/run/user/$1" PATH=/usr/bin:/bin:/usr/sbin "$3" -I -c "$4"
"""
PROGRAM = """
import os, signal
from nacre.engine import enter
from nacre.isolation import process
from nacre.linux import cgroups

enter("/mnt/root", "/mnt/run")
print(process.manageable().kind)
process.seek_delegation()
where = process.manageable()
print(where.kind, os.path.dirname(where.unified).rpartition("/")[2])
group = cgroups.create("box", {}, rules=None, where=where)
begun, begin = os.pipe()
child = os.fork()
if not child:
    for path in group.procs_paths():
        with open(path, "w") as file:
            file.write("0")
    os.write(begin, b"x")
    signal.pause()
os.read(begun, 1)
group.freeze()
print(group.pids() == (child,), group.frozen())
group.kill()
os.waitpid(child, 0)
group.remove()
process.seek_delegation()
print(process.manageable().unified == where.unified)
"""


@pytest.fixture
def account(prefix: Path) -> Iterator[User]:  # noqa: F811
    """A user with subordinate ids."""
    made = User(prefix, f"ns{os.getpid()}")
    try:
        give_ids(made.name, f"{made.name}:{FIRST}:{COUNT}")
        yield made
    finally:
        made.remove()


@pytest.mark.skipif(not os.path.exists(UNIT), reason="no systemd of the user here")
def test_the_users_systemd_gives_a_group(account: User, request: pytest.FixtureRequest) -> None:
    first = request.getfixturevalue("system")  # after the account: it boots over this host's files
    python = account.prefix / "env/bin/python"
    words = (str(account.uid), str(account.gid), str(python), PROGRAM)
    done = subprocess.run(["nsenter", "-t", str(first), "-a", "sh", "-c", START, "sh", *words], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip(f"no session of a user can be had here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["none", "v2 app.slice", "True True", "True"]
