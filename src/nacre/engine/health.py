"""Health checks: what is checked, what the results mean (Docker's rules), and the helper that checks (`nacre.engine.helpers`).

``python -m nacre.engine.health ROOT RUN ID LOCK`` lives as long as the container runs: it sleeps on a connection to its stem, whose
end wakes it, and runs the check as one more process of the container whenever an interval has passed. The results are in
``containers/ID/health``, in the words of Docker's State.Health.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time

from nacre.engine import Engine, helpers
from nacre.engine.core import Core, seconds, timestamp
from nacre.errors import InvalidArgument, NacreError, SandboxGone
from nacre.isolation.channel import Channel
from nacre.isolation.stream import Stream
from nacre.model.container import Container, State
from nacre.model.life import HealthConfig
from nacre.store import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nacre.engine import Container as Handle

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
SECOND = 1_000_000_000
SHORTEST = SECOND // 1000
INTERVAL, TIMEOUT, START_INTERVAL, RETRIES = 30 * SECOND, 30 * SECOND, 5 * SECOND, 3
RESULTS = 5
OUTPUT = 4096  # bytes of a check's output that are kept
GRACE = 5.0  # seconds that a killed check gets to end

_DURATIONS = {"interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod", "start_interval": "StartInterval"}


def from_image(data: dict[str, Any] | None) -> HealthConfig:
    """The HEALTHCHECK of an image's configuration. What is malformed there counts as not said."""
    data = data or {}
    test = data.get("Test")
    numbers = {field: data.get(name) for field, name in (*_DURATIONS.items(), ("retries", "Retries"))}
    return HealthConfig(
        test=tuple(str(word) for word in test) if isinstance(test, list) else (),
        **{field: number for field, number in numbers.items() if isinstance(number, int) and number > 0},
    )


def merged(record: Container) -> HealthConfig:
    """What was asked for over what the image says."""
    image = from_image(record.image_config.healthcheck)
    asked = record.spec.health or HealthConfig()
    return HealthConfig(**{name: getattr(asked, name) or getattr(image, name) for name in HealthConfig._fields})


def effective(record: Container) -> HealthConfig | None:
    """What is checked; None = nothing."""
    config = merged(record)
    return config if len(config.test) > 1 and config.test[0] in ("CMD", "CMD-SHELL") else None


def check(config: HealthConfig) -> None:
    """Raises InvalidArgument for what cannot be."""
    for field, name in _DURATIONS.items():
        number = getattr(config, field)
        if number < 0 or 0 < number < SHORTEST:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms")
    if config.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")
    if config.test and config.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidArgument(f"Unknown healthcheck type in Test: {config.test[0]!r}", hint="NONE, CMD or CMD-SHELL")


def arguments(config: HealthConfig, record: Container) -> tuple[str, ...]:
    """The check's argument vector; a line goes to the image's shell."""
    if config.test[0] == "CMD":
        return config.test[1:]
    return (*(record.image_config.shell or ("/bin/sh", "-c")), config.test[1])


def pause(config: HealthConfig, status: str, ran: float) -> float:
    """Seconds until the next check of a container that runs since `ran` seconds."""
    if status == STARTING and ran < config.start_period / SECOND:
        return (config.start_interval or START_INTERVAL) / SECOND
    return (config.interval or INTERVAL) / SECOND


def judge(state: dict[str, Any], result: dict[str, Any], config: HealthConfig, ran: float) -> dict[str, Any]:
    """The state after one more result. A failure does not count in the start period, unless there was a success before."""
    status, streak = state["Status"], state["FailingStreak"]
    if result["ExitCode"] == 0:
        status, streak = HEALTHY, 0
    elif status != STARTING or ran >= config.start_period / SECOND:
        streak += 1
        if streak >= (config.retries or RETRIES):
            status = UNHEALTHY
    return {"Status": status, "FailingStreak": streak, "Log": [*state["Log"], result][-RESULTS:]}


def fresh() -> dict[str, Any]:
    """The state at the beginning of a run."""
    return {"Status": STARTING, "FailingStreak": 0, "Log": []}


def load(core: Core, identifier: str) -> dict[str, Any]:
    """The state as it was written last."""
    try:
        with open(f"{core.layout.container(identifier)}/health", encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
            return found
    except (OSError, ValueError):
        return fresh()


def store(core: Core, identifier: str, state: dict[str, Any]) -> None:
    """Write it: the old state or the new one, never half. Raises OSError."""
    path = f"{core.layout.container(identifier)}/health"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.rename(f"{path}.new", path)


def begin(core: Core, record: Container) -> None:
    """A run has begun: nothing is known yet, and somebody checks from now on. Raises HostError, OSError."""
    if effective(record):
        store(core, record.id, fresh())
        helpers.launch(core.layout, "health", record.id)


def run_once(core: Core, handle: Handle) -> dict[str, Any]:
    """Carry out the check of a running container now and record the result.

    Raises InvalidArgument when it has none, Conflict, NotFound, and SandboxGone when it has ended before the check.
    """
    config = effective(handle.record)
    if not config:
        raise InvalidArgument(f"container {handle.name} has no health check", hint="give it one: nacre run --health-cmd ...")
    result = _attempt(handle, config)
    if handle.refresh().state is not State.RUNNING:
        return result  # its end took the check along
    ran = seconds(result["Start"]) - seconds(handle.record.started)
    with Lock(f"{core.layout.container(handle.id)}/health.lock"):
        before = load(core, handle.id)
        state = judge(before, result, config, ran)
        store(core, handle.id, state)
    if state["Status"] != before["Status"]:
        core.container_event(handle.record, f"health_status: {state['Status']}")
    return result


def _attempt(handle: Handle, config: HealthConfig) -> dict[str, Any]:
    """One check: Start, End, ExitCode (-1: it did not come to an end of its own), Output."""
    start, limit = timestamp(), (config.timeout or TIMEOUT) / SECOND
    try:
        with handle.probe(arguments(config, handle.record), limit) as stream:
            code, output = _watch(stream, limit)
    except TimeoutError:
        code, output = None, b""
    except SandboxGone:
        raise
    except NacreError as error:
        code, output = -1, error.message.encode()
    if code is None:
        code, output = -1, f"Health check exceeded timeout ({limit:g}s): ".encode() + output
    text = output[:OUTPUT].decode(errors="replace") + ("..." if len(output) > OUTPUT else "")
    return {"Start": start, "End": timestamp(), "ExitCode": code, "Output": text}


def _watch(stream: Stream, limit: float) -> tuple[int | None, bytes]:
    """Exit code and the beginning of the output; None when it had to be killed."""
    output, killed, deadline = b"", False, time.monotonic() + limit
    while (pieces := stream.read(max(0.0, deadline - time.monotonic()))) is not None:
        output += b"".join(data for _, data in pieces)[: OUTPUT + 1 - len(output)]
        if time.monotonic() >= deadline:
            if killed:
                break
            stream.signal(9)
            killed, deadline = True, time.monotonic() + GRACE
    return (None if killed else stream.exit_code), output


# -- the helper ----------------------------------------------------------------------------------------------------------


def main(root: str, run: str, identifier: str, lock: str) -> int:
    """Check as long as the container runs."""
    helpers.begin(lock)
    with Engine(root, run) as engine:
        core = engine.lifecycle.core
        helpers.serve(core.layout, "health", identifier, lock, lambda: due(engine, identifier), lambda: attend(engine, core, identifier))
    return 0


def due(engine: Engine, identifier: str) -> bool:
    """Whether it runs and has a health check."""
    lifecycle = engine.lifecycle
    found = lifecycle.load(identifier)
    running = found and found[0].main and lifecycle.alive(identifier) and not lifecycle.exit_of(identifier)
    return bool(found and running and effective(found[0]))


def attend(engine: Engine, core: Core, identifier: str) -> None:
    """Check one run of the container until its end."""
    with contextlib.suppress(NacreError, OSError), contextlib.closing(Channel(core.layout.sandbox(identifier))) as channel:
        while True:
            found = engine.lifecycle.load(identifier)
            config = effective(found[0]) if found else None
            if not found or not config:
                return
            wait = pause(config, load(core, identifier)["Status"], time.time() - seconds(found[0].started))
            if select.select([channel], [], [], wait)[0]:
                return  # its stem has hung up
            handle = engine.containers.get(identifier)
            if handle.state is State.RUNNING:
                run_once(core, handle)
            elif handle.state is not State.PAUSED:
                return
    time.sleep(0.05)  # it is ending, or the disk is full


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
