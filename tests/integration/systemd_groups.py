"""Run inside a system of systemd's by test_systemd_groups.py. Prints one line for each thing it finds to be true."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(0, sys.argv[1])

from nacre.errors import NacreError
from nacre.isolation import groups
from nacre.isolation.groups import Group


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("did not happen")
        time.sleep(0.01)


def scopes() -> list[str]:
    done = subprocess.run(["systemctl", "list-units", "--type=scope", "--plain", "--no-legend"], capture_output=True, text=True, check=True)
    return sorted(line.split()[0] for line in done.stdout.splitlines() if not line.startswith("init.scope"))


def enter(group: Group) -> int:
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        for path in group.join:
            with open(path, "w") as file:
                file.write("0")
        os.write(tell, b"x")
        time.sleep(100)
        os._exit(0)
    os.read(told, 1)
    return child


def main() -> None:
    group = groups.group("deep-er.slice:nacre:one", "one", systemd=True)
    group.create({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}], "devices": []})
    child = enter(group)
    eventually(lambda: group.pids() == (child,))
    print(*scopes(), "in", group.directories["unified"].removeprefix("/sys/fs/cgroup"))
    with open(f"{group.directories['unified']}/hugetlb.2MB.max") as file:
        print("limit", file.read().strip())
    show = subprocess.run(["systemctl", "show", "-P", "Delegate,Slice", "nacre-one.scope"], capture_output=True, text=True, check=True)
    print(*show.stdout.split())
    try:
        group.create({})
    except NacreError as error:
        print(type(error).__name__)
    group.freeze()
    print("frozen" if group.frozen() else "not frozen")
    group.update({"pids": {"limit": -1}, "hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]})
    group.kill()
    os.waitpid(child, 0)
    group.remove()
    print("removed" if not group.exists and not scopes() else "still there")

    group.create({})
    child = enter(group)
    group.remove()  # systemd ends what is in it
    print("ended by signal", os.waitpid(child, 0)[1])
    group.remove()

    try:
        group.create({"memory": {"limit": 64 << 20}})
    except NacreError as error:
        print(f"{type(error).__name__}: {error.message}")
    eventually(lambda: not scopes())
    print("nothing is left" if not group.exists else "something is left")


main()
