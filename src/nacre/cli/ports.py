"""Published ports on the command line and in listings."""

from __future__ import annotations

from collections.abc import Iterable

from nacre.cli.flags import UsageError
from nacre.model.network import PortMapping

PROTOCOLS = ("tcp", "udp", "sctp")


def parse_publish(text: str) -> list[PortMapping]:
    """One value of -p: ``80``, ``8080:80``, ``127.0.0.1:8080:80``, ``127.0.0.1::80``, ``8000-8010:80-90/udp``,
    ``8000-8010:80`` (the first free one). Raises UsageError.
    """
    body, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise UsageError(f"invalid proto: {protocol}", hint="-p takes /tcp or /udp behind the port")
    address, host, container = _split(text, body)
    first, last = _range(container, "containerPort", text)
    if not host:
        return [PortMapping(container_port=port, host_ip=address, protocol=protocol) for port in range(first, last + 1)]
    host_first, host_last = _range(host, "hostPort", text)
    if first == last and host_first != host_last:  # the first free one of the range
        return [PortMapping(container_port=first, host_port=host_first, host_port_last=host_last, host_ip=address, protocol=protocol)]
    if host_last - host_first != last - first:
        raise UsageError(
            f"invalid ranges specified for container and host Ports: {container} and {host}", hint="Both ranges must be equally long."
        )
    return [
        PortMapping(container_port=first + offset, host_port=host_first + offset, host_ip=address, protocol=protocol)
        for offset in range(last - first + 1)
    ]


def _split(text: str, body: str) -> tuple[str, str, str]:
    """(address, host port, container port) of which the first two may be empty."""
    if body.startswith("["):
        raise UsageError(f"{text}: publishing on an IPv6 address is not supported", hint="Give an IPv4 address, or none.")
    parts = body.split(":")
    if len(parts) > 3:
        raise UsageError(f"invalid publish argument: {text}", hint="-p takes [address:][host port:]container port")
    address = parts[0] if len(parts) == 3 else ""
    if address and not _is_ipv4(address):
        raise UsageError(f"invalid IP address: {address}")
    return ("" if address == "0.0.0.0" else address), (parts[-2] if len(parts) > 1 else ""), parts[-1]


def _is_ipv4(text: str) -> bool:
    """Four numbers; the standard library's ipaddress is slow to import."""
    parts = text.split(".")
    return len(parts) == 4 and all(part.isascii() and part.isdigit() and len(part) < 4 and int(part) < 256 for part in parts)


def _range(text: str, what: str, whole: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = (first, last if dash else first)
    if not text:
        raise UsageError(f"no port specified: {whole}")
    if not all(number.isascii() and number.isdigit() and 0 < int(number) < 65536 for number in numbers) or int(numbers[1]) < int(
        numbers[0]
    ):
        raise UsageError(f"invalid {what}: {text}", hint="A port is a number from 1 to 65535, a range is first-last.")
    return int(numbers[0]), int(numbers[1])


def parse_private(text: str) -> tuple[int, str]:
    """The container's side, as `nacre port` takes it: ``80`` or ``53/udp``. Raises UsageError."""
    number, slash, protocol = text.partition("/")
    port, _ = _range(number, "port", text)
    return port, protocol.lower() if slash else "tcp"


def ports_text(published: Iterable[PortMapping], exposed: Iterable[str]) -> str:
    """The PORTS column: runs of neighbouring ports that keep their numbers are joined, exposed ones without publication come first."""
    taken = {(port.container_port, port.protocol) for port in published}
    entries: list[tuple[int, str, int, str]] = [
        (port.container_port, port.host_ip or "0.0.0.0", port.host_port, port.protocol) for port in published
    ]
    for text in exposed:
        number, _, protocol = text.partition("/")
        if number.isdigit() and (int(number), protocol or "tcp") not in taken:
            entries.append((int(number), "", 0, protocol or "tcp"))
    runs: dict[tuple[str, str], tuple[int, int]] = {}
    done: list[str] = []
    mapped: list[str] = []
    for private, address, public, protocol in sorted(entries):
        if address and public != private:
            mapped.append(f"{address}:{public}->{private}/{protocol}")
            continue
        first, last = runs.get((address, protocol), (private, private - 1))
        if private != last + 1:
            done.append(_run(address, protocol, first, last))
            first = private
        runs[address, protocol] = (first, private)
    return ", ".join([*done, *(_run(*key, *run) for key, run in runs.items()), *mapped])


def _run(address: str, protocol: str, first: int, last: int) -> str:
    numbers = f"{first}" if first == last else f"{first}-{last}"
    return f"{address}:{numbers}->{numbers}/{protocol}" if address else f"{numbers}/{protocol}"
