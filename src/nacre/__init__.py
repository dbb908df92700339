"""Nacre: the same OCI image as a container, in its own lightweight VM, or as a machine.

The public SDK is what `__all__` names; everything else may change. Names load when first used.

    import nacre

    with nacre.Engine() as engine:
        engine.images.pull("ubuntu")
        box = engine.containers.run(nacre.ContainerSpec(image="ubuntu", command=("sleep", "infinity"), isolation=nacre.Level.VM))
        code, output, errors = box.exec(["uname", "-r"]).communicate()
        box.remove(force=True)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.engine import Engine as Engine
    from nacre.errors import NacreError as NacreError
    from nacre.model.container import ContainerSpec as ContainerSpec
    from nacre.model.container import DeviceLimit as DeviceLimit
    from nacre.model.container import Level as Level
    from nacre.model.container import MountSpec as MountSpec
    from nacre.model.container import Resources as Resources
    from nacre.model.container import State as State
    from nacre.model.container import Stats as Stats
    from nacre.model.container import Ulimit as Ulimit
    from nacre.model.image import Image as Image
    from nacre.model.image import Progress as Progress
    from nacre.model.network import PortMapping as PortMapping
    from nacre.version import VERSION as VERSION

_HOMES = {
    "Engine": "nacre.engine",
    "NacreError": "nacre.errors",
    "ContainerSpec": "nacre.model.container",
    "Level": "nacre.model.container",
    "MountSpec": "nacre.model.container",
    "DeviceLimit": "nacre.model.container",
    "Resources": "nacre.model.container",
    "State": "nacre.model.container",
    "Stats": "nacre.model.container",
    "Ulimit": "nacre.model.container",
    "Image": "nacre.model.image",
    "Progress": "nacre.model.image",
    "PortMapping": "nacre.model.network",
    "VERSION": "nacre.version",
}
__all__ = [
    "VERSION", "ContainerSpec", "DeviceLimit", "Engine", "Image", "Level", "MountSpec", "NacreError", "PortMapping", "Progress",
    "Resources", "State", "Stats", "Ulimit",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(__import__(_HOMES[name], fromlist=(name,)), name)
    raise AttributeError(f"module 'nacre' has no attribute {name!r}")
