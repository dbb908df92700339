"""The engine: the verbs over images, containers, volumes and networks, as a library.

`Engine` needs no daemon: everything it knows is on disk and in the kernel, so any number of them may be in use at once.
"""

from __future__ import annotations

import os
from functools import cached_property

from nacre.errors import NotFound
from nacre.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self

    from nacre.engine.containers import Container, Containers
    from nacre.engine.doctor import Check, user_checks
    from nacre.engine.images import Images
    from nacre.engine.lifecycle import Lifecycle
    from nacre.engine.networks import Networks
    from nacre.engine.rootless import enter
    from nacre.engine.shell import parse_namespaces as parse_namespaces
    from nacre.engine.shell import unshare as unshare
    from nacre.engine.volumes import Volumes
    from nacre.isolation.logs import LogRecord
    from nacre.isolation.rootless import leave
    from nacre.isolation.stream import Stream
    from nacre.model.container import ContainerSpec
    from nacre.model.image import Image, Progress

_HOMES = {
    "Check": "engine.doctor",
    "Container": "engine.containers",
    "Containers": "engine.containers",
    "Images": "engine.images",
    "LogRecord": "isolation.logs",
    "Networks": "engine.networks",
    "parse_namespaces": "engine.shell",
    "unshare": "engine.shell",
    "Stream": "isolation.stream",
    "Volumes": "engine.volumes",
    "enter": "engine.rootless",
    "leave": "isolation.rootless",
    "user_checks": "engine.doctor",
}
__all__ = [
    "Check", "Container", "Containers", "Engine", "Images", "LogRecord", "Networks", "Stream", "Volumes", "enter", "leave", "user_checks",
    "version",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # The facade's other names load when first used: `ps` needs none of most of them.
    if name in _HOMES:
        return getattr(__import__(f"nacre.{_HOMES[name]}", fromlist=(name,)), name)
    raise AttributeError(f"module 'nacre.engine' has no attribute {name!r}")


def version() -> dict[str, Any]:
    """Versions of Nacre and what it stands on: known without an engine."""
    import platform

    return {
        "Version": VERSION,
        "PythonVersion": platform.python_version(),
        "Os": "linux",
        "Arch": platform.machine(),
        "KernelVersion": os.uname().release,
    }


class Engine:
    """One engine over two directories.

    root: durable state, default NACRE_ROOT or /var/lib/nacre.
    run: run-time state, default NACRE_RUN or /run/nacre (below `root` when only that is given).
    storage_driver: erofs, overlay, btrfs, fuse-overlayfs or vfs; None = the best this host can do. Raises Denied, HostError.

    >>> with Engine() as engine:                                    # doctest: +SKIP
    ...     box = engine.containers.run(ContainerSpec(image="ubuntu", command=("sleep", "60"), isolation=Level.VM))
    ...     print(box.exec(["uname", "-r"]).communicate())
    ...     box.remove(force=True)
    """

    def __init__(self, root: str | None = None, run: str | None = None, *, storage_driver: str | None = None) -> None:
        from nacre.engine.core import Core  # not at the top: the OCI runtime's facade beside this one does without a database

        self._core = Core(root, run, storage_driver)

    @cached_property
    def lifecycle(self) -> Lifecycle:
        """How containers start and end. For the engine's own parts and its exit command."""
        from nacre.engine.lifecycle import Lifecycle

        return Lifecycle(self._core)

    @cached_property
    def images(self) -> Images:
        """The images."""
        from nacre.engine.images import Images

        return Images(self._core)

    @cached_property
    def containers(self) -> Containers:
        """The containers."""
        from nacre.engine.containers import Containers

        return Containers(self._core, self.lifecycle, self._image_for)

    @cached_property
    def volumes(self) -> Volumes:
        """The volumes."""
        from nacre.engine.volumes import Volumes

        return Volumes(self._core)

    @cached_property
    def networks(self) -> Networks:
        """The networks."""
        from nacre.engine.networks import Networks

        return Networks(self._core)

    def _image_for(self, reference: str, *, pull: str, progress: Callable[[Progress], None] | None) -> Image:
        if pull != "always":
            try:
                return self._core.images.resolve(reference)
            except NotFound:
                if pull == "never":
                    raise
        return self.images.pull(reference, progress=progress)

    def version(self) -> dict[str, Any]:
        """Versions of Nacre and what it stands on."""
        return version()

    def info(self) -> dict[str, Any]:
        """What this engine uses and holds."""
        from nacre.engine.info import info

        return info(self._core, (container.state for container in self.containers.list(all=True)), len(self.images.list()))

    def explain(self, spec: ContainerSpec) -> str:
        """The plan that `containers.run(spec)` would have stem execute, one operation per line. Changes nothing."""
        from nacre.engine.explain import explain

        return explain(self._core, self.lifecycle, spec)

    def doctor(self) -> list[Check]:
        """What this host offers and lacks, with the command that fixes each lack."""
        from nacre.engine.doctor import checks

        return checks(self._core.layout.root, self._core.layout.run, network=self._core.network.diagnose)

    def events(self, *, since: float | None = None, until: float | None = None, follow: bool = False) -> Iterator[dict[str, Any]]:
        """The journal, oldest first. since, until: seconds since the epoch; follow: wait for more (until `until`)."""
        import contextlib
        import time

        after = 0
        start = time.time() if since is None else since
        with contextlib.ExitStack() as stack:
            # Before the first look, so that nothing that happens after it is missed.
            news = stack.enter_context(self._core.database.watch()) if follow else None
            woken = False
            while True:
                last = after
                for sequence, event in self._core.database.events(after, since=start):
                    after = sequence
                    if until is None or event["time"] <= until:
                        yield event
                if news is None or (until is not None and time.time() > until):
                    return
                limits = [] if until is None else [max(0.001, until - time.time())]
                limits += [1.0] if woken and after == last else []  # what has woken us may not be visible yet
                woken = news.wait(min(limits, default=None))

    def close(self) -> None:
        """Release what this object holds; running containers go on. Idempotent."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
