"""Restart policies: when a container that has ended is started again (Docker's restart manager: `docker run --restart`)."""

from __future__ import annotations

import time

from nacre.errors import InvalidArgument
from nacre.model.container import Container
from nacre.model.life import RestartPolicy

FIRST, LONGEST = 100, 60_000  # ms
CALM = 10.0  # seconds of running after which the waiting begins anew
POLICIES = ("no", "on-failure", "always", "unless-stopped")


def check(policy: RestartPolicy, *, auto_remove: bool) -> None:
    """Raises InvalidArgument for a policy that does not exist or contradicts the container's removal."""
    if policy.name not in POLICIES:
        raise InvalidArgument(f"invalid restart policy: unknown policy '{policy.name}'", hint=f"one of {', '.join(POLICIES)}")
    if policy.maximum < 0:
        raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum and policy.name != "on-failure":
        raise InvalidArgument(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'", hint="--restart on-failure:N"
        )
    if auto_remove and policy.name != "no":
        raise InvalidArgument(
            "Conflicting options: cannot specify both --restart and --rm", hint="a container that removes itself is not there any more"
        )


def decide(record: Container, ran: float) -> Container:
    """The record of a container that has ended after `ran` seconds, with the restart that it is owed: when, and after which wait."""
    policy = record.spec.restart
    owed = not (record.stopped or record.removing) and (
        policy.name in ("always", "unless-stopped")
        or (policy.name == "on-failure" and record.exit_code != 0 and (not policy.maximum or record.restarts < policy.maximum))
    )
    if not owed:
        return record.replace(restart_at=0.0)
    backoff = min(record.backoff * 2, LONGEST) if record.backoff and ran < CALM else FIRST
    return record.replace(restarts=record.restarts + 1, backoff=backoff, restart_at=time.time() + backoff / 1000)


def delay(record: Container) -> float:
    """Seconds until the restart that is owed; never more than its wait, whatever becomes of the clock."""
    return min(max(0.0, record.restart_at - time.time()), record.backoff / 1000)
