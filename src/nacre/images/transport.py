"""HTTP for registries: connections kept open, redirects, proxies, TLS. Knows nothing about images.

Built on `http.client`, whose `readinto` with large buffers costs a third of what higher libraries do (docs/benchmarks.md).
Proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY, certificate authorities from the system (SSL_CERT_FILE, SSL_CERT_DIR)
and from ``certs.d/<host:port>/`` below the container configuration directories (containers-certs.d(5)).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urljoin, urlsplit

from nacre.errors import BadContent, RemoteError
from nacre.images.config import is_loopback, user_directory

REDIRECTS = (301, 302, 303, 307, 308)

_MAX_REDIRECTS = 10
_TIMEOUT = 60.0
_CONNECT_TIMEOUT = 15.0

# What a lost or refused connection looks like; everything else is a bug and propagates.
NETWORK_ERRORS = (OSError, http.client.HTTPException)


class Response:
    """An answer whose body is still on the wire. A context manager; the connection is kept when the body was read to its end."""

    def __init__(
        self, pool: Pool, key: tuple[str, str], connection: http.client.HTTPConnection, raw: http.client.HTTPResponse, url: str
    ) -> None:
        self._pool, self._key, self._connection, self._raw = pool, key, connection, raw
        self.status = raw.status
        self.headers = raw.headers
        self.url = url

    def readinto(self, buffer: memoryview) -> int:
        """Read what is there, up to the size of the buffer; 0 at the end, which may be a premature one. Raises NETWORK_ERRORS."""
        return self._raw.readinto(buffer)

    def read(self, limit: int) -> bytes:
        """The rest of the body. Raises BadContent when it is longer than `limit`, NETWORK_ERRORS when it is cut short."""
        data = self._raw.read(limit + 1)
        if len(data) > limit:
            raise BadContent(f"{urlsplit(self.url).netloc} sent more than {limit} bytes for {urlsplit(self.url).path}")
        if self._raw.length:
            raise http.client.IncompleteRead(data, self._raw.length)
        return data

    def close(self) -> None:
        """Give the connection back, or close it when the body was not read to its end."""
        reusable = self._raw.isclosed() and not self._raw.will_close
        self._raw.close()
        self._pool.put(self._key, self._connection, reusable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Pool:
    """Open connections by (scheme, host). Safe to use from several threads. `close` breaks off requests under way."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._closed = False

    def request(
        self, method: str, url: str, headers: Mapping[str, str], *, body: bytes | None = None, verify: bool = True, follow: bool = True
    ) -> Response:
        """Send a request and return the answer, whatever its status; redirects of GET and HEAD are followed when `follow` is set.

        Authorization is not sent to another host, nor is a redirect from HTTPS to HTTP followed unless `verify` is False.
        Raises NETWORK_ERRORS, and RemoteError for a redirect that cannot be followed.
        """
        headers = dict(headers)
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(method, url, headers, body, verify)
            if not follow or response.status not in REDIRECTS or method not in ("GET", "HEAD"):
                return response
            with response:
                target = _redirect_target(url, response.headers.get("Location") or "", verify)
            if _origin(target) != _origin(url):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise RemoteError(f"{urlsplit(url).netloc} redirects in a circle (more than {_MAX_REDIRECTS} redirects)")

    def put(self, key: tuple[str, str], connection: http.client.HTTPConnection, reusable: bool) -> None:
        """Take a connection back after its answer has been read."""
        with self._lock:
            self._busy.discard(connection)
            if reusable and not self._closed:
                self._idle.setdefault(key, []).append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all connections, also those in use by other threads, whose reads fail at once. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [connection for group in self._idle.values() for connection in group]
            self._idle.clear()
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, verify: bool) -> Response:
        parts = urlsplit(url)
        key = (parts.scheme + ("" if verify else "+insecure"), parts.netloc)
        proxy = self._proxy(parts.scheme, parts.netloc)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if proxy and parts.scheme == "http":
            target = f"http://{parts.netloc}{target}"
            headers = {**headers, "Host": parts.netloc, **_proxy_authorization(proxy)}
        while True:
            connection, fresh = self._take(key, proxy, verify)
            try:
                connection.request(method, target, body=body, headers=dict(headers))
                raw = connection.getresponse()
            except NETWORK_ERRORS:
                self.put(key, connection, False)
                # A kept connection may have been closed by the other side meanwhile; that says nothing about the registry.
                if fresh or self._closed:
                    raise
                continue
            except BaseException:
                self.put(key, connection, False)
                raise
            return Response(self, key, connection, raw, url)

    def _take(self, key: tuple[str, str], proxy: str, verify: bool) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the transfer was given up")
            idle = self._idle.get(key)
            if idle:
                connection = idle.pop()
                self._busy.add(connection)
                return connection, False
        connection = self._open(key, proxy, verify)
        with self._lock:
            self._busy.add(connection)
        return connection, True

    def _open(self, key: tuple[str, str], proxy: str, verify: bool) -> http.client.HTTPConnection:
        scheme, netloc = key[0].partition("+")[0], key[1]
        place = urlsplit(proxy or f"{scheme}://{netloc}")
        default = 443 if scheme == "https" and not proxy else 80
        host, port = place.hostname or "", place.port or default
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_TIMEOUT, context=self._context(netloc, verify))
            if proxy:
                goal = urlsplit(f"//{netloc}")
                connection.set_tunnel(goal.hostname or "", goal.port or 443, headers=_proxy_authorization(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_TIMEOUT)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(_TIMEOUT)
        return connection

    def _context(self, netloc: str, verify: bool) -> ssl.SSLContext:
        with self._lock:
            context = self._contexts.get((netloc, verify))
            if context is None:
                context = self._contexts[netloc, verify] = _tls_context(netloc, verify, self._environ)
        return context

    def _proxy(self, scheme: str, netloc: str) -> str:
        """URL of the proxy for a host, "" for none."""
        name = f"{scheme}_proxy"
        proxy = self._environ.get(name) or self._environ.get(name.upper()) or ""
        if not proxy or _bypasses_proxy(netloc, self._environ.get("no_proxy") or self._environ.get("NO_PROXY") or ""):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"


def certificate_directory(netloc: str, environ: Mapping[str, str]) -> str:
    """The ``certs.d`` directory of a registry: the user's, podman's or Docker's; "" when there is none."""
    for base in (user_directory(environ), "/etc/containers", "/etc/docker"):
        path = f"{base}/certs.d/{netloc}"
        if os.path.isdir(path):
            return path
    return ""


def _tls_context(netloc: str, verify: bool, environ: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    directory = certificate_directory(netloc, environ)
    for name in sorted(os.listdir(directory)) if directory else []:
        try:
            if name.endswith(".crt"):
                context.load_verify_locations(f"{directory}/{name}")
            elif name.endswith(".cert"):
                context.load_cert_chain(f"{directory}/{name}", f"{directory}/{name.removesuffix('cert')}key")
        except (OSError, ssl.SSLError) as error:
            raise RemoteError(f"cannot use {directory}/{name}: {error.strerror or error}") from error
    return context


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _redirect_target(url: str, location: str, verify: bool) -> str:
    """The absolute address that a Location field means. Raises RemoteError for what cannot or should not be followed."""
    old = urlsplit(url)
    try:
        target = urljoin(url, location)
        new = urlsplit(target)
        usable = new.scheme in ("http", "https") and bool(new.hostname) and (new.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch("[!-~]+", target):
        raise RemoteError(f"{old.netloc} redirects to an address that cannot be used: {location[:200]!r}")
    if old.scheme == "https" and new.scheme == "http" and verify:
        raise RemoteError(f"{old.netloc} redirects from HTTPS to plain HTTP ({new.netloc})", hint="set insecure = true to allow this")
    return target


def _proxy_authorization(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _bypasses_proxy(netloc: str, exceptions: str) -> bool:
    """Whether NO_PROXY ("*", host, .domain, host:port, separated by commas) or the loopback interface takes a host out."""
    host = (urlsplit(f"//{netloc}").hostname or "").lower()
    if is_loopback(netloc):
        return True
    for item in exceptions.lower().split(","):
        name = item.strip().removeprefix("*").removeprefix(".") if item.strip() != "*" else "*"
        if name and (name in ("*", host, netloc.lower()) or host.endswith(f".{name}")):
            return True
    return False
