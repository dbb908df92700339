"""Log drivers: which there are, what can be said to them, and what a container's log is like with each (Docker's --log-driver, --log-opt).

Whatever the driver, stem writes records (docs/stem-protocol.md), which `nacre logs` reads; `none` alone has no records. A driver that hands
them on (json-file, syslog, journald) does that in a helper, `nacre.engine.forward`, so that no receiver can hold up a container.
"""

from __future__ import annotations

import os
import re

from nacre.engine.lifecycle import FORWARDED, LOG_FILES, LOG_SIZE
from nacre.errors import HostError, InvalidArgument, UserError
from nacre.model.container import Container, ContainerSpec
from nacre.model.life import LogConfig
from nacre.model.plan import Spawn
from nacre.store import Layout

DEFAULT = "local"
MIB = 1 << 20
FILES_LIMIT = 255
JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"

_SIZES = ("max-size", "max-file", "compress")
_CACHE = ("cache-disabled", "cache-max-size", "cache-max-file", "cache-compress")
_COMMON = ("labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size")
_TLS = ("syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify")
OPTIONS: dict[str, tuple[str, ...]] = {
    "local": (*_COMMON, *_SIZES),
    "json-file": (*_COMMON, *_SIZES),
    "syslog": (*_COMMON, *_CACHE, "syslog-address", "syslog-facility", "syslog-format", *_TLS),
    "journald": (*_COMMON, *_CACHE),
    "none": (),
}
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "12", "13", "14", "15",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def driver_of(config: LogConfig) -> str:
    """The driver's name."""
    return config.driver or DEFAULT


def check(config: LogConfig) -> None:
    """Raises InvalidArgument for a driver, an option or a value that does not exist."""
    driver = driver_of(config)
    if driver not in OPTIONS:
        raise InvalidArgument(f"logger: no log driver named '{driver}' is registered", hint=f"one of {', '.join(OPTIONS)}")
    for name in config.options:
        if name not in OPTIONS[driver]:
            known = ", ".join(OPTIONS[driver]) or "none"
            raise InvalidArgument(f"unknown log opt '{name}' for {driver} log driver", hint=f"its options: {known}")
    options = config.options
    if options.get("mode", "blocking") not in ("blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode {options['mode']!r} does not exist", hint="blocking or non-blocking")
    if "max-buffer-size" in options:
        size(options, "max-buffer-size", MIB)
        if options.get("mode") != "non-blocking":
            raise InvalidArgument("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
    for name in ("labels-regex", "env-regex"):
        _pattern(options, name)
    records(config)
    tag_of(config, ContainerSpec(image="i"), "0" * 64, "n", "i", "i")
    if driver == "syslog":
        _check_syslog(options)


def _check_syslog(options: dict[str, str]) -> None:
    address(options)
    facility(options)
    if options.get("syslog-format", "") not in FORMATS:
        raise InvalidArgument(f"Invalid syslog format {options['syslog-format']!r}", hint="rfc3164, rfc5424 or rfc5424micro")
    if any(name in options for name in _TLS) and address(options)[0] != "tcp+tls":
        raise InvalidArgument("options of TLS need an address with TLS", hint="--log-opt syslog-address=tcp+tls://HOST:PORT")


def size(options: dict[str, str], name: str, default: int) -> int:
    """A number of bytes: ``10m``; -1 and 0 = no limit. Raises InvalidArgument."""
    text = options.get(name, "").lower()
    if not text:
        return default
    found = re.fullmatch(r"(\d+(?:\.\d+)?|-1)\s*([bkmgt]?)b?", text)
    if not found:
        raise InvalidArgument(f"invalid value for {name}: {text!r}", hint="a size, as 500k or 20m")
    return max(0, int(float(found[1]) * _UNITS[found[2]]))


def _count(options: dict[str, str], name: str, default: int) -> int:
    text = options.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= FILES_LIMIT:
        raise InvalidArgument(f"invalid value for {name}: {text!r}", hint=f"a number of files, 1 to {FILES_LIMIT}")
    return int(text)


def flag(options: dict[str, str], name: str) -> bool:
    """An option that is true or false. Raises InvalidArgument."""
    word = options.get(name, "false").lower()
    if word not in ("true", "false", "1", "0"):
        raise InvalidArgument(f"invalid value for {name}: {word!r}", hint="true or false")
    return word in ("true", "1")


def _pattern(options: dict[str, str], name: str) -> re.Pattern[str] | None:
    if not options.get(name):
        return None
    try:
        return re.compile(options[name])
    except re.error as error:
        raise InvalidArgument(f"invalid value for {name}: {options[name]!r}: {error}") from error


def limits(config: LogConfig, prefix: str = "") -> tuple[int, int, bool]:
    """(bytes in one file, 0 = no limit; files in all; whether rotated ones are compressed). Raises InvalidArgument."""
    options, driver = config.options, driver_of(config)
    # json-file keeps everything unless it is told not to.
    endless = driver == "json-file"
    most = size(options, f"{prefix}max-size", 0 if endless else LOG_SIZE)
    count = _count(options, f"{prefix}max-file", 1 if endless else LOG_FILES)
    packed = flag(options, f"{prefix}compress")
    if endless and f"{prefix}max-file" in options and not most:
        raise InvalidArgument("max-file cannot be specified without max-size", hint="--log-opt max-size=10m")
    if packed and (count < 2 or not most):
        raise InvalidArgument(f"{prefix}compress cannot be true when {prefix}max-file is less than 2 or {prefix}max-size is not set")
    return most, count, packed


def records(config: LogConfig) -> tuple[int, int, bool]:
    """`limits` of the records that stem writes. Those of json-file are kept as long as its lines, but not compressed."""
    if driver_of(config) == "json-file":
        return (*limits(config)[:2], False)
    if driver_of(config) in FORWARDED:
        flag(config.options, "cache-disabled")
        return limits(config, "cache-")
    return limits(config)


def keep(plan: Spawn, config: LogConfig) -> Spawn:
    """A container's plan with the limits of its log; without a log for the driver none."""
    if driver_of(config) == "none":
        return plan.replace(log="")
    most, count, packed = records(config)
    return plan.replace(log_limit=most, log_files=count, log_compress=packed)


def path(layout: Layout, record: Container) -> str:
    """What inspect calls LogPath: Docker's lines for json-file, else our records; "" when other programs find nothing there."""
    driver = driver_of(record.spec.log)
    if driver == "json-file":
        return f"{layout.container(record.id)}/{record.id}-json.log"
    return f"{layout.container(record.id)}/log" if driver == "local" else ""


def attributes(record: Container) -> dict[str, str]:
    """The labels and variables that its options name: what `logs --details` shows, and what goes with every line."""
    options = record.spec.log.options
    labels = {**record.image_config.labels, **record.spec.labels}
    variables = dict(entry.split("=", 1) for entry in record.process.env)
    found: dict[str, str] = {}
    for name, known in (("labels", labels), ("env", variables)):
        wanted, pattern = [word.strip() for word in options.get(name, "").split(",")], _pattern(options, f"{name}-regex")
        found |= {key: value for key, value in known.items() if key in wanted or (pattern and pattern.search(key))}
    if options.get("tag"):
        found["tag"] = tag(record)
    return found


def tag(record: Container) -> str:
    """The tag of its lines; the short id unless its options say otherwise."""
    return tag_of(record.spec.log, record.spec, record.id, record.name, record.image_name, record.image_id)


def tag_of(config: LogConfig, spec: ContainerSpec, identifier: str, name: str, image: str, image_id: str) -> str:
    """`tag` of parts. Raises InvalidArgument for a template that names something else."""
    known = {
        "ID": identifier[:12], "FullID": identifier, "Name": name, "ImageName": image, "ImageFullID": image_id,
        "ImageID": image_id.removeprefix("sha256:")[:12], "DaemonName": "nacre",
    }  # fmt: skip

    def value(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise InvalidArgument(f"invalid value for tag: {{{{.{found[1]}}}}} is not known", hint=f"known are {', '.join(known)}")
        return known[found[1]]

    text = config.options.get("tag") or "{{.ID}}"
    made = re.sub(r"\{\{\s*\.(\w+)\s*\}\}", value, text)
    if "{{" in made:
        raise InvalidArgument(f"invalid value for tag: {text!r}", hint="a template as {{.Name}}/{{.ID}}")
    return made


def facility(options: dict[str, str]) -> int:
    """Its number. Raises InvalidArgument."""
    text = options.get("syslog-facility") or "daemon"
    if text in FACILITIES:
        return FACILITIES.index(text)
    if text.isdecimal() and int(text) < len(FACILITIES):
        return int(text)
    raise InvalidArgument(f"invalid syslog facility {text!r}", hint="daemon, local0 ... or a number from 0 to 23")


def address(options: dict[str, str]) -> tuple[str, str, int]:
    """(kind, host or path, port) of --log-opt syslog-address; kind: unix, unixgram, udp, tcp or tcp+tls. Raises InvalidArgument."""
    text = options.get("syslog-address", "")
    if not text:
        return "local", SYSLOG, 0
    kind, colon, rest = text.partition("://")
    if kind in ("unix", "unixgram") and rest.startswith("/"):
        return kind, rest, 0
    host, _, port = rest.rpartition(":") if re.search(r":\d+$", rest) else (rest, "", "")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or kind not in ("udp", "tcp", "tcp+tls") or not host or not 0 < int(port or 514) < 65536:
        raise InvalidArgument(f"invalid syslog address {text!r}", hint="udp://HOST:PORT, tcp://..., tcp+tls://... or unix:///PATH")
    return kind, host, int(port or (6514 if kind == "tcp+tls" else 514))


def require_readable(config: LogConfig) -> None:
    """Raises UserError when there are no records to show."""
    if driver_of(config) == "none" or flag(config.options, "cache-disabled"):
        raise UserError(
            "configured logging driver does not support reading", hint="the container was made with --log-driver none or cache-disabled"
        )


def require(config: LogConfig) -> None:
    """Raises HostError when the receiver of a container that is about to start is not there."""
    driver, hint = driver_of(config), "choose another --log-driver, or start it"
    if driver == "journald" and not os.path.exists(JOURNAL):
        raise HostError(f"journald is not running on this host: {JOURNAL} does not exist", hint=hint)
    if driver == "syslog":
        from nacre.engine.sinks import Syslog

        try:
            with Syslog(config.options, "nacre", 0):
                pass
        except OSError as error:
            where = config.options.get("syslog-address") or SYSLOG
            raise HostError(f"failed to initialize logging driver: {where}: {error.strerror or error}", hint=hint) from error
