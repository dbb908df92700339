"""An engine whose rooms are in memory: real store, real verbs, real protocol; no root, no kernel, no images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from nacre import isolation
from nacre.engine import Engine
from nacre.errors import NotFound
from nacre.model.container import Rootfs
from nacre.model.image import Image, ImageConfig, Layer
from nacre.model.network import Endpoint, PortMapping

IMAGE = Image(
    id="sha256:" + "1" * 64,
    digest="sha256:" + "2" * 64,
    tags=("docker.io/library/box:latest",),
    config=ImageConfig(cmd=("sleep",), env=("COLOR=blue",)),
    layers=(Layer(diff_id="sha256:" + "3" * 64, blob="sha256:" + "4" * 64, size=1),),
)


class FakeImages:
    """One image, called box."""

    def resolve(self, text: str) -> Image:
        """The image, or NotFound."""
        if text in ("box", IMAGE.id):
            return IMAGE
        raise NotFound(f"No such image: {text}")

    def list(self) -> list[Image]:
        """The image."""
        return [IMAGE]

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """It never goes away."""
        return contextlib.nullcontext()


class FakeRootfs:
    """Root file systems that are only names."""

    def __init__(self) -> None:
        self.prepared: set[str] = set()

    def prepare(self, container_id: str, diff_ids: tuple[str, ...], *, disk: bool = False, size: int = 0, project: int = 0) -> Rootfs:
        """Remember the id."""
        self.prepared.add(container_id)
        return Rootfs(driver="")

    def transient(self, rootfs: Rootfs) -> Rootfs:
        """Nothing is written to a disk anyway."""
        return rootfs

    def check_size(self, size: int, *, disk: bool) -> None:
        """Any will do."""

    def size(self, rootfs: Rootfs) -> int:
        """Nothing was written."""
        return 0

    def remove(self, container_id: str) -> None:
        """Forget it."""
        self.prepared.discard(container_id)


class FakeNetwork:
    """Endpoints that are only names; `fail` is raised by the next attach."""

    def __init__(self) -> None:
        self.attached: set[str] = set()
        self.fail: Exception | None = None

    def attach(
        self, container_id: str, network: str, hostname: str = "", ports: tuple[PortMapping, ...] = (), **_: Any
    ) -> tuple[Endpoint, list[int]]:
        """Remember the id; one descriptor stands for the reserved ports."""
        if self.fail:
            error, self.fail = self.fail, None
            raise error
        self.attached.add(container_id)
        return Endpoint(network=network, ports=ports), [os.open("/dev/null", os.O_RDONLY)]

    def detach(self, container_id: str) -> None:
        """Forget it."""
        self.attached.discard(container_id)

    def stats(self, endpoint: Endpoint) -> tuple[int, int]:
        """Nothing received, nothing sent."""
        return 0, 0


@contextlib.contextmanager
def fake_engine(directory: str) -> Iterator[tuple[Engine, FakeRootfs, FakeNetwork]]:
    """An Engine below `directory` at a level made of threads, with the fakes it stands on."""
    drivers = dict(isolation.DRIVERS)
    isolation.DRIVERS.update(process="nacre.isolation.fake:Fake", vm="nacre.isolation.fake:Fake")
    engine = Engine(directory, f"{directory}/run")
    rootfs, network = FakeRootfs(), FakeNetwork()
    engine._core.__dict__.update(images=FakeImages(), rootfs=rootfs, network=network)
    unused: Callable[..., Any] = lambda *_, **__: b""  # noqa: E731
    try:
        from nacre.linux import seccomp

        saved, seccomp.program = seccomp.program, unused
        try:
            yield engine, rootfs, network
        finally:
            seccomp.program = saved
    finally:
        for container in engine.containers.list():
            container.remove(force=True)
        engine.close()
        isolation.DRIVERS.clear()
        isolation.DRIVERS.update(drivers)
