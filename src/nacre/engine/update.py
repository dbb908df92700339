"""Changing the limits of a container that exists: at once when it runs, and for its next start."""

from __future__ import annotations

from nacre.errors import InvalidArgument, Unsupported
from nacre.isolation import Adjustable, driver
from nacre.isolation.limits import check, warnings
from nacre.model.container import ContainerSpec, Resources, Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# What only makes sense together: who changes the one sets the other again.
_TOGETHER = (("memory", "memory_swap"), ("cpu_period", "cpu_quota"), ("cpu_rt_period", "cpu_rt_runtime"))


def merged(spec: ContainerSpec, changes: Mapping[str, Any]) -> Resources:
    """The limits of a container after a change. Raises InvalidArgument, Unsupported: see `nacre.isolation.limits.check`."""
    before = spec.resources
    unknown = set(changes).difference(Resources._fields)
    if unknown:
        raise InvalidArgument(f"unknown limit {min(unknown)!r}")
    if before.cpus and not changes.get("cpus") and (changes.get("cpu_quota") or changes.get("cpu_period")):
        raise InvalidArgument("Conflicting options: CPU Quota and Period cannot be updated as NanoCPUs has already been set", hint="--cpus")
    if (before.cpu_quota or before.cpu_period) and changes.get("cpus"):
        raise InvalidArgument("Conflicting options: NanoCPUs cannot be updated as CPU Quota or Period has already been set")
    found = {**changes}
    if "unified" in changes:
        found["unified"] = {**before.unified, **changes["unified"]}
    after = before.replace(**found)
    if 0 < after.memory_swap < after.memory and "memory_swap" not in changes:
        raise InvalidArgument(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time", hint="--memory-swap"
        )
    check(after, spec.isolation)
    return after


def recorded(resources: Resources) -> Resources:
    """What is kept of limits: one that was lifted is none."""
    return resources.replace(pids=max(0, resources.pids), cpu_quota=max(0, resources.cpu_quota))


def apply(sandbox: Sandbox, after: Resources, changes: Mapping[str, Any]) -> None:
    """Give a running sandbox the limits that have changed. Raises what the kernel refuses, Unsupported where the level cannot."""
    level = driver(sandbox.level)
    if not isinstance(level, Adjustable):
        raise Unsupported(f"isolation level {sandbox.level} cannot change limits", hint="stop the container first")
    fields = set(changes).union(*(pair for pair in _TOGETHER if set(pair) & set(changes)))
    changed = {name: getattr(after, name) for name in fields}
    if "unified" in changes:
        changed["unified"] = changes["unified"]
    level.update(sandbox, Resources(**changed))


__all__ = ["apply", "merged", "recorded", "warnings"]
