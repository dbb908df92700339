"""Build hook: compile the C program `stem` and carry it inside the wheel.

The wheel is one file for one platform: pure Python plus one static x86-64 Linux executable, so its tag is
py3-none-<platform> and it works with every Python from 3.11 on and every libc.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAM = "src/nacre/bin/stem"


class StemBuildHook(BuildHookInterface[Any]):
    """Runs `make -C stem` for wheels and for editable installs; source archives carry the sources only."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and, in a wheel, include the program (hatchling, "Build hook plugins")."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        try:
            # Of a make that runs us, only the environment that concerns the compiler is wanted.
            environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
            subprocess.run(["make", "-s", "-C", str(root / "stem")], check=True, env=environment)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"compiling stem failed ({error}); it needs: apt-get install gcc make libc6-dev") from error
        program = root / PROGRAM
        program.chmod(0o755)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"
        if version != "editable":
            build_data["force_include"][str(program)] = "nacre/bin/stem"


def _platform_tag() -> str:
    # The executable is static: it needs no libc of the host, hence satisfies the oldest manylinux and every musllinux.
    machine = platform.machine()
    return f"manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
