"""`nacre info`."""

from __future__ import annotations

import os
from typing import Any

from nacre.cli.commands.system import FORMAT, lines, show
from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command
from nacre.cli.units import binary_size
from nacre.errors import Denied, HostError

# Docker's lines in Docker's order: indentation, label, name of the value. The rest follows by its own names.
_ROWS = (
    (0, "Containers", "Containers"),
    (1, "Running", "ContainersRunning"),
    (1, "Paused", "ContainersPaused"),
    (1, "Stopped", "ContainersStopped"),
    (0, "Images", "Images"),
    (0, "Server Version", "ServerVersion"),
    (0, "Storage Driver", "Driver"),
    (1, "", "DriverStatus"),
    (0, "Cgroup Driver", "CgroupDriver"),
    (0, "Cgroup Version", "CgroupVersion"),
    (0, "Isolation Levels", "IsolationLevels"),
    (0, "Default Isolation", "Isolation"),
    (0, "Plugins", "Plugins"),
    (0, "Runtimes", "Runtimes"),
    (0, "Default Runtime", "DefaultRuntime"),
    (0, "Security Options", "SecurityOptions"),
    (0, "Kernel Version", "KernelVersion"),
    (0, "Operating System", "OperatingSystem"),
    (0, "OSType", "OSType"),
    (0, "Architecture", "Architecture"),
    (0, "CPUs", "NCPU"),
    (0, "Total Memory", "MemTotal"),
    (0, "Name", "Name"),
    (0, "Root Dir", "DockerRootDir"),
    (0, "Run Dir", "RunRoot"),
)
_HIDDEN = {"StorageDriver", "StorageDriverReason", "Warnings"}  # shown above, or at the end


def info(ctx: Context, args: Arguments) -> int:
    """`nacre info`. A user who cannot have an engine learns why, and what there is without one."""
    try:
        answer = ctx.engine.info()
    except (Denied, HostError) as error:
        if not os.geteuid():
            raise
        from nacre import engine

        ctx.report(error)
        answer = {**engine.version(), "Rootless": {"Usable": False, "Reason": error.message, "WayOut": error.hint}}
    if args.format:
        return show(ctx, answer, args.format)
    for line in text(answer):
        ctx.out(line)
    for warning in answer.get("Warnings") or ():
        ctx.err(f"WARNING: {warning}")
    return 0


def text(answer: dict[str, Any]) -> list[str]:
    """The lines for a reader."""
    made = []
    for indent, label, name in _ROWS:
        if name in answer:
            made += [" " * indent + line for line in _row(label, name, answer[name])]
    known = {name for _, _, name in _ROWS} | _HIDDEN
    return [*made, *lines({name: value for name, value in answer.items() if name not in known})]


def _row(label: str, name: str, value: Any) -> list[str]:
    if name == "DriverStatus":
        return [f"{word}: {what}" for word, what in value]
    if name == "SecurityOptions":
        return [f"{label}:", *_options(value)]
    if name == "Plugins":
        return [f"{label}:", *(f" {kind}: {' '.join(names)}" for kind, names in value.items())]
    if name == "MemTotal":
        return [f"{label}: {binary_size(value)}"]
    if isinstance(value, list | dict):
        return [f"{label}: {' '.join(value)}"]
    return [f"{label}: {value}"]


def _options(options: list[str]) -> list[str]:
    """Each option by its name, what it says about itself below."""
    made = []
    for option in options:
        fields = dict(part.partition("=")[::2] for part in option.split(","))
        made.append(f" {fields.pop('name', '')}")
        made += [f"  {key.capitalize()}: {value}" for key, value in fields.items()]
    return made


COMMANDS = {
    "info": Command(
        info, "", (FORMAT,), examples=(("info", "Storage driver and why, isolation levels, control groups, numbers of objects"),)
    ),
}
