"""What the flags about a container's life mean: restarts, health checks, where its output goes. Loads when one of them is used."""

from __future__ import annotations

from nacre.cli.flags import Arguments, UsageError
from nacre.model.life import HealthConfig, LogConfig, RestartPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
