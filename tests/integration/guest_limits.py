"""Run in a guest by test_limits.py: control groups on a real cgroup v2. Prints one line for each thing it finds to be true."""

from __future__ import annotations

import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from nacre.errors import NacreError
from nacre.isolation.groups import Group
from nacre.linux import cgroups

MIB = 1 << 20
KMSG = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}


def show(group: Group, *names: str) -> str:
    found = group.limits()["unified"]
    return " ".join(f"{name}={found[name]}" for name in names)


def try_limits(limits: dict[str, object], *names: str) -> None:
    group = Group("/a/b", "b")
    try:
        group.create(limits)
        print(show(group, *names))
    except NacreError as error:
        print(f"{type(error).__name__}: {error.message}")
    group.remove()


def opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        return False
    return True


def main() -> None:
    where = cgroups.layout()
    print(where.kind, *sorted({"cpu", "cpuset", "io", "memory", "pids"}.intersection(where.v2)))
    memory = {"limit": 64 * MIB, "swap": 64 * MIB, "reservation": 16 * MIB}
    try_limits({"memory": memory}, "memory.low", "memory.max", "memory.swap.max")
    try_limits({"cpu": {"quota": 25000, "period": 50000, "shares": 512, "burst": 1000}}, "cpu.max", "cpu.max.burst", "cpu.weight")
    try_limits({"cpu": {"idle": 1}}, "cpu.idle")
    try_limits({"cpu": {"cpus": "0", "mems": "0"}}, "cpuset.cpus", "cpuset.mems")
    try_limits({"unified": {"memory.high": "50000000"}}, "memory.high")
    try_limits({"pids": {"limit": 20}}, "pids.max")
    try_limits({"memory": {"swappiness": 3}})

    group = Group("/a/b", "b")
    group.create({"memory": {"limit": 64 * MIB}, "pids": {"limit": 20}, "devices": []})
    reader, writer = os.pipe()
    proceed, go_on = os.pipe()
    child = os.fork()
    if not child:
        for path in group.join:
            with open(path, "w") as file:
                file.write("0")
        os.write(writer, b"1" if opens("/dev/null") and not opens("/dev/kmsg") else b"0")
        block = bytearray(b"x" * (8 * MIB))
        os.write(writer, b"1")
        os.read(proceed, 1)
        os.write(writer, b"1" if opens("/dev/kmsg") else b"0")
        time.sleep(100 + len(block) * 0)
        os._exit(0)
    if os.read(reader, 1) == b"1":
        print("kmsg refused, null allowed")
    os.read(reader, 1)
    group.freeze()
    print("frozen" if group.frozen() and group.pids() == (child,) else "not frozen")
    group.thaw()
    group.update({"memory": {"limit": 32 * MIB}, "pids": {"limit": -1}})
    print(show(group, "memory.max", "pids.max"))
    try:
        group.update({"memory": {"limit": 4 * MIB, "checkBeforeUpdate": True}})
    except NacreError as error:
        print(type(error).__name__)
    group.update({"devices": [KMSG]})
    os.write(go_on, b"1")
    print("kmsg allowed after the update" if os.read(reader, 1) == b"1" else "kmsg still refused")
    group.kill()
    os.waitpid(child, 0)
    group.remove()
    print("killed and gone" if not group.exists else "still there")


main()
