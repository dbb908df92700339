"""The flags of run and create about a container's life: restarts, health checks, where its output goes; and what they mean."""

from __future__ import annotations

from nacre.cli.flags import Arguments, Flag, UsageError
from nacre.model.life import HealthConfig, LogConfig, RestartPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESTART = Flag("restart", "When to start it again: no, on-failure[:N], always or unless-stopped", "string", default="no")

LIFE_FLAGS = (
    Flag("health-cmd", "Command that tells whether the container is well", "string"),
    Flag("health-interval", "Time between two checks (30s)", "string", value="duration"),
    Flag("health-retries", "Failures in a row that make it unhealthy (3)", "int"),
    Flag("health-start-interval", "Time between two checks in the start period (5s)", "string", value="duration"),
    Flag("health-start-period", "Time in which failures do not count (0s)", "string", value="duration"),
    Flag("health-timeout", "Time after which a check has failed (30s)", "string", value="duration"),
    Flag("log-driver", "Where its output goes: local, json-file, syslog, journald or none (local)", "string"),
    Flag("log-opt", "Option of the log driver, as max-size=10m", "list", value="name=value"),
    Flag("no-healthcheck", "Ignore the health check of the image"),
    RESTART,
)
_DURATIONS = ("interval", "timeout", "start_period", "start_interval")


def life(args: Arguments) -> dict[str, Any]:
    """The fields of `ContainerSpec` that these flags make. Raises UsageError, InvalidArgument."""
    return {"restart": restart_policy(args.restart), "health": _health(args), "log": _log(args)}


def restart_policy(text: str) -> RestartPolicy:
    """``on-failure:3``; the engine knows the policies. Raises UsageError."""
    name, colon, count = text.partition(":")
    if colon and not count.removeprefix("-").isdecimal():
        raise UsageError(f'invalid argument "{text}" for "--restart" flag: the maximum retry count must be a whole number')
    return RestartPolicy(name=name or "no", maximum=int(count) if colon else 0)


def _log(args: Arguments) -> LogConfig:
    options = {}
    for text in args.log_opt:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f'invalid argument "{text}" for "--log-opt" flag: expected name=value')
        options[name] = value
    return LogConfig(driver=args.log_driver, options=options)


def _health(args: Arguments) -> HealthConfig | None:
    """The --health-* flags; None when there is none of them."""
    asked = [name for name in ("cmd", "retries", *_DURATIONS) if args.given(f"health-{name.replace('_', '-')}")]
    if args.no_healthcheck:
        if asked:
            raise UsageError("--no-healthcheck conflicts with --health-* options")
        return HealthConfig(test=("NONE",))
    if not asked:
        return None
    from nacre.cli.units import parse_duration

    return HealthConfig(
        test=("CMD-SHELL", args.health_cmd) if args.health_cmd else (),
        retries=args.health_retries,
        **{name: round(parse_duration(text) * 1e9) for name in _DURATIONS if (text := getattr(args, f"health_{name}"))},
    )
