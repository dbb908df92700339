"""What the everyday commands really load while they run (test_architecture.py sees only what their modules import at once)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nacre import ContainerSpec, Engine

# Takes milliseconds each, and none of it is needed to run a container whose image is there.
SLOW = {
    "argparse", "asyncio", "dataclasses", "datetime", "hashlib", "http.client", "importlib.metadata", "inspect", "ipaddress", "json",
    "logging", "lzma", "pathlib", "re", "selectors", "shutil", "socket", "sqlite3", "subprocess", "tarfile", "tempfile", "threading",
    "typing", "warnings", "zlib", "nacre.cli.progress", "nacre.engine.archive", "nacre.engine.doctor", "nacre.engine.inspect",
    "nacre.images.pull", "nacre.images.registry", "nacre.linux.kernel", "nacre.linux.nft", "nacre.linux.run",
    "nacre.linux.seccomp_profile", "nacre.storage.image", "nacre.storage.tar",
}  # fmt: skip
PROGRAM = """
import sys
before = set(sys.modules)
from nacre.cli import main
code = main()
sys.stderr.write("LOADED " + " ".join(sorted(set(sys.modules) - before)))
sys.exit(code)
"""


def loaded(cli: Any, *words: str) -> set[str]:
    """The modules that a command has loaded when it is done."""
    command = [sys.executable, "-P", "-B", "-c", PROGRAM, *words]
    done = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("words", [("run", "--rm", "IMAGE", "true"), ("exec", "CONTAINER", "true"), ("ps",)], ids=lambda words: words[0])
def test_commands_load_little(engine: Engine, cli: Any, image: str, words: tuple[str, ...]) -> None:
    assert cli("run", "--rm", image, "true").returncode == 0  # makes the network and the compiled filter
    made = engine.containers.run(ContainerSpec(image=image, command=("sleep",)))
    modules = loaded(cli, *(({"IMAGE": image, "CONTAINER": made.id}).get(word, word) for word in words))
    assert "nacre.engine.containers" in modules
    assert sorted(modules & SLOW) == []
