"""What a container's life is to be like beyond one run: restarts, health checks, where its output goes."""

from __future__ import annotations

from nacre.model.value import Value


class RestartPolicy(Value):
    """When it is started again after its end (Docker's --restart). name: no, on-failure, always or unless-stopped.

    maximum: of on-failure, how often at most; 0 = without a limit.
    """

    name: str = "no"
    maximum: int = 0


class HealthConfig(Value):
    """A health check (Docker's HEALTHCHECK). Durations in ns; 0 and () mean: as the image says, else Docker's default.

    test: ("NONE",) for none at all, ("CMD", ARGUMENT ...) or ("CMD-SHELL", LINE).
    """

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class LogConfig(Value):
    """Where its output goes (Docker's --log-driver and --log-opt). driver "" = the default."""

    driver: str = ""
    options: dict[str, str] = {}
