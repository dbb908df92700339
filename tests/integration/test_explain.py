"""What `explain` shows is what `run` does, operation by operation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nacre import ContainerSpec, Engine, Level, MountSpec, PortMapping, Resources
from nacre.engine.explain import EXAMPLE_ID
from nacre.model.plan import Spawn

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "terminal": {"tty": True, "open_stdin": True, "working_dir": "/srv", "user": "1000:1000"},
    "mounts": {
        "mounts": (
            MountSpec(kind="bind", target="/dir", source="DIR", read_only=True),
            MountSpec(kind="bind", target="/file", source="DIR/file"),
            MountSpec(kind="volume", target="/vol", source="explained"),
            MountSpec(kind="tmpfs", target="/tmp", options=("size=1m",)),
        ),
        "read_only": True,
    },
    "limits": {"resources": Resources(memory=128 << 20, cpus=0.5, pids=20), "cap_drop": ("ALL",), "security_opt": ("no-new-privileges",)},
    "no network": {"network": "none", "hostname": "pearl"},
    "ports": {"ports": (PortMapping(container_port=80, host_ip="127.0.0.1"),), "extra_hosts": ("db:192.0.2.7",)},
    "privileged": {"privileged": True, "userns": ""},
    "user namespace": {"userns": "private"},
    "rights": {
        "init": True,
        "domainname": "example.org",
        "ipc": "none",
        "userns": "keep-id",
        "mounts": (MountSpec(kind="bind", target="/dir", source="DIR", read_only=True, options=("rprivate",)),),
        "security_opt": ("mask=/etc/passwd", "unmask=/proc/bus", "seccomp=builtin"),
    },
}


def form(line: str, identifier: str) -> str:
    """One form for what only a real run decides."""
    for text in (identifier, EXAMPLE_ID):
        line = line.replace(text, "<id>").replace(text[:12].encode().hex(), "<short>").replace(text[:12], "<short>")
    line = re.sub(r"(address eth0) 0x[0-9a-f]{8}|(route) 0x[0-9a-f]{8}", r"\1\2 <address>", line)
    line = re.sub(r"/volumes/\w+/", "/volumes/<name>/", line)
    return re.sub(r"(hosts|resolv\.conf) (<\d+ bytes>|0x[0-9a-f]*)", r"\1 <content>", re.sub(r"^time 0x.*", "time", line))


@pytest.mark.parametrize("case", CASES)
def test_what_is_explained_is_what_is_done(
    engine: Engine, image: str, level: Level, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    fields = dict(CASES[case])
    mounts = (mount.replace(source=mount.source.replace("DIR", str(tmp_path))) for mount in fields.pop("mounts", ()))
    spec = ContainerSpec(image=image, command=("true",), isolation=level, mounts=tuple(mounts), **fields)
    shown = [line.split(maxsplit=1)[1] for line in engine.explain(spec).splitlines()[1:]]

    seen: list[Spawn] = []
    original = engine.lifecycle.plan
    monkeypatch.setattr(engine.lifecycle, "plan", lambda *arguments: seen.append(original(*arguments)) or seen[-1])  # type: ignore[func-returns-value]
    box = engine.containers.run(spec)
    assert box.wait() == 0
    [plan] = seen
    if level is Level.PROCESS and case == "user namespace":
        # Which ids they are is the container's number.
        shown, done = ([re.sub(r"'0 \d+ 65536\\n'|0x1[0-9a-f]{7}", "<ids>", line) for line in lines] for lines in (shown, described(plan)))
    else:
        done = described(plan)
    assert [form(line, box.id) for line in shown] == [form(line, box.id) for line in done]
    box.remove()
    if case == "mounts":
        engine.volumes.remove("explained")


def described(plan: Spawn) -> list[str]:
    return [item.describe() for item in plan.ops]
