"""The client side of the OCI distribution specification 1.1: manifests and blobs, with logins and patience.

A registry that asks for a login is answered by its challenge: Basic, or a Bearer token from the realm it names (distribution
project, "Token Authentication"; OAuth2 when the stored login is an identity token). Logins are looked up only when one is asked
for, and are sent to no other host than the registry, or the realm that the registry itself named.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlencode, urlsplit

from nacre.errors import BadContent, NacreError, NotFound, RemoteError, Unauthorized
from nacre.images import credentials
from nacre.images.config import Source, is_docker_hub, is_loopback
from nacre.images.transport import NETWORK_ERRORS, Pool, Response, certificate_directory
from nacre.model.image import Descriptor
from nacre.model.reference import check_digest, is_digest
from nacre.model.value import Value
from nacre.wire.registry import ACCEPT, MAX_MANIFEST, Challenge, decode, parse_challenges, parse_errors, printable

_HUB_HOST = "registry-1.docker.io"
_AGENT = "nacre/0.1"
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_MAX_TOKEN = 1 << 20
_MAX_ERROR = 1 << 16

T = TypeVar("T")


class Retry(Value):
    """How often a request is repeated. attempts: in total; delay: seconds before the second one, doubled each time (with jitter);
    longest: seconds that a registry may make us wait with Retry-After.
    """

    attempts: int = 5
    delay: float = 0.25
    longest: float = 60.0

    def wait(self, attempt: int, asked: float | None) -> float | None:
        """Seconds to wait before attempt number `attempt` (1 = the first repetition); None when giving up is better."""
        if attempt >= self.attempts or (asked is not None and asked > self.longest):
            return None
        if asked is not None:
            return asked
        return float(self.delay * 2 ** (attempt - 1) * random.uniform(0.8, 1.2))


class Fetched(Value):
    """A manifest or index as it arrived. media_type: of the answer's header; digest: of the data."""

    data: bytes
    media_type: str
    digest: str


class Cancelled(Exception):
    """The transfer was given up by its owner. Never reaches a user."""


class _Again(Exception):
    """A failure that may pass. error: what to report when it does not; asked: seconds of Retry-After."""

    def __init__(self, error: NacreError, asked: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.asked = error, asked


class Body:
    """The bytes of a blob from `start` on. A context manager."""

    def __init__(self, response: Response, start: int) -> None:
        self._response = response
        self.start = start

    def readinto(self, buffer: memoryview) -> int:
        """See `transport.Response.readinto`."""
        return self._response.readinto(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._response.close()


class Client:
    """One conversation with registries: connections, tokens and the decision between HTTP and HTTPS are remembered.

    Safe to use from several threads. on_retry is told why and how long a request waits. `close` makes all requests under way
    raise Cancelled.
    """

    def __init__(self, environ: Mapping[str, str], *, retry: Retry | None = None, on_retry: Callable[[str], None] | None = None) -> None:
        self._environ = environ
        self._retry = retry or Retry()
        self._on_retry = on_retry or (lambda message: None)
        self._pool = Pool(environ)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str], str] = {}
        self._schemes: dict[str, str] = {}

    def close(self) -> None:
        """Break everything off. Idempotent."""
        self._closed.set()
        self._pool.close()

    def sleep(self, seconds: float) -> bool:
        """Wait, at most until `close`; whether that has been called."""
        return self._closed.wait(seconds)

    # -- requests ----------------------------------------------------------------------------------------------------------

    def manifest(self, source: Source, target: str) -> Fetched:
        """Fetch a manifest by tag or digest. Raises NotFound, Unauthorized, BadContent (wrong digest), RemoteError."""

        def attempt() -> Fetched:
            with self._get(source, f"manifests/{target}", {"Accept": ", ".join(ACCEPT)}) as response:
                if response.status != 200:
                    raise self._refusal(response, source, missing=_no_manifest(source, target))
                data = response.read(MAX_MANIFEST)
                announced = response.headers.get("Docker-Content-Digest", "")
                digest = target if ":" in target else (announced if is_digest(announced) else "")
                return _verified(data, response.headers.get("Content-Type", ""), digest, source)

        return self._persist(attempt, source)

    def fetch(self, source: Source, wanted: Descriptor) -> bytes:
        """Fetch a small blob whole, verified. Raises like `manifest`."""

        def attempt() -> bytes:
            with self._get(source, f"blobs/{wanted.digest}", {}) as response:
                if response.status != 200:
                    raise self._refusal(response, source, missing=_no_blob(source, wanted.digest))
                data = response.read(wanted.size)
            if len(data) != wanted.size:
                raise BadContent(f"blob {wanted.digest} from {source.location} has {len(data)} bytes instead of {wanted.size}")
            return _verified(data, "", wanted.digest, source).data

        return self._persist(attempt, source)

    def blob(self, source: Source, digest: str, offset: int) -> Body:
        """Begin to read a blob, if possible at `offset`; `Body.start` is where it really begins. Not verified. Raises like `manifest`."""

        def attempt() -> Body:
            response = self._get(source, f"blobs/{digest}", {"Range": f"bytes={offset}-"} if offset else {})
            try:
                if response.status not in (200, 206):
                    raise self._refusal(response, source, missing=_no_blob(source, digest))
                return Body(response, _range_start(response, offset) if response.status == 206 else 0)
            except BaseException:
                response.close()
                raise

        return self._persist(attempt, source, patient=offset > 0)

    def pause(self, failures: int, error: BaseException, location: str) -> None:
        """Wait before a transfer that broke in the middle is taken up again. Raises the final error when it is not worth it."""
        if self._closed.is_set():
            raise Cancelled from error
        again = error if isinstance(error, _Again) else _Again(explain(error, location))
        delay = self._retry.wait(failures, again.asked)
        if delay is None:
            raise again.error from error
        self._on_retry(f"{again.error.message}; trying again in {delay:.1f} s")
        if self._closed.wait(delay):
            raise Cancelled from error

    def _persist(self, attempt: Callable[[], T], source: Source, *, patient: bool = False) -> T:
        """Repeat an attempt while its failure may pass. patient: the registry was there a moment ago."""
        failures = 0
        while True:
            if self._closed.is_set():
                raise Cancelled
            try:
                return attempt()
            except _Again as error:
                failures += 1
                self.pause(failures, error, source.location)
            except NETWORK_ERRORS as error:
                if not patient and not self._closed.is_set() and _is_final(error):
                    raise explain(error, source.location) from error
                failures += 1
                self.pause(failures, error, source.location)

    def _get(self, source: Source, path: str, headers: Mapping[str, str]) -> Response:
        """GET below the repository, by the first scheme that works."""
        host = _HUB_HOST if is_docker_hub(source.location) else source.location
        schemes = self._choose_schemes(source)
        for scheme in schemes:
            url = f"{scheme}://{host}/v2/{source.repository}/{path}"
            try:
                response = self._authorized(source, url, {"User-Agent": _AGENT, **headers}, source.insecure is not True)
            except (ssl.SSLError, ConnectionError):
                if scheme == schemes[-1]:
                    raise
                continue
            self._schemes[source.location] = scheme
            return response
        raise AssertionError("there is always a scheme")

    def _choose_schemes(self, source: Source) -> list[str]:
        known = self._schemes.get(source.location)
        if known:
            return [known]
        if source.insecure is True:
            return ["https", "http"]
        local = source.insecure is None and is_loopback(source.location)
        return ["http"] if local and not certificate_directory(source.location, self._environ) else ["https"]

    # -- logins ------------------------------------------------------------------------------------------------------------

    def _authorized(self, source: Source, url: str, headers: dict[str, str], verify: bool) -> Response:
        key = (source.location, source.repository)
        token = self._tokens.get(key, "")
        response = self._pool.request("GET", url, _with_login(headers, token), verify=verify)
        if response.status != 401 or _origin(response.url) != _origin(url):
            return response
        with response:
            challenges = parse_challenges(response.headers.get_all("WWW-Authenticate") or [])
            response.read(_MAX_ERROR)
        with self._lock:
            if self._tokens.get(key, "") == token:
                self._tokens[key] = self._answer(challenges, source, url)
            token = self._tokens[key]
        return self._pool.request("GET", url, _with_login(headers, token), verify=verify)

    def _answer(self, challenges: list[Challenge], source: Source, url: str) -> str:
        """The Authorization field that answers a challenge."""
        login = credentials.find(source.location, source.repository, self._environ)
        for challenge in challenges:
            if challenge.scheme == "bearer":
                return f"Bearer {self._fetch_token(challenge, source, url, login)}"
        if any(challenge.scheme == "basic" for challenge in challenges):
            if login is None or login.identity_token:
                raise Unauthorized(f"registry {source.location} requires a login", hint=_login_hint(source))
            return _basic(login)
        offered = ", ".join(challenge.scheme for challenge in challenges) or "nothing"
        raise Unauthorized(f"registry {source.location} refuses the request and offers no login that is known here ({offered[:100]})")

    def _fetch_token(self, challenge: Challenge, source: Source, url: str, login: credentials.Credentials | None) -> str:
        realm = challenge.parameters.get("realm", "")
        _check_realm(realm, url, source)
        scope = challenge.parameters.get("scope") or f"repository:{source.repository}:pull"
        query = {"service": challenge.parameters.get("service", ""), "scope": scope}
        verify, headers = source.insecure is not True, {"User-Agent": _AGENT}
        if login is not None and login.identity_token:
            form = {**query, "grant_type": "refresh_token", "client_id": "nacre", "refresh_token": login.identity_token}
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            response = self._pool.request("POST", realm, headers, body=urlencode(form).encode(), verify=verify)
        else:
            if login is not None:
                headers["Authorization"] = _basic(login)
                query["account"] = login.username
            joint = "&" if urlsplit(realm).query else "?"
            response = self._pool.request("GET", realm + joint + urlencode(query), headers, verify=verify)
        with response:
            if response.status != 200:
                raise self._refusal(response, source, missing=_denied(source))
            document = decode(response.read(_MAX_TOKEN), f"token from {urlsplit(realm).netloc}", _MAX_TOKEN)
        token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
        if not isinstance(token, str) or not token or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RemoteError(f"{urlsplit(realm).netloc} answered without a usable token")
        return token

    # -- refusals ----------------------------------------------------------------------------------------------------------

    def _refusal(self, response: Response, source: Source, *, missing: NacreError) -> Exception:
        """What to raise for an answer that is not a success. missing: for 404."""
        said = parse_errors(response.read(_MAX_ERROR))
        text = "; ".join(message or code for code, message in said)
        if response.status in _BUSY:
            asked = _retry_after(response.headers.get("Retry-After", ""))
            what = "has received too many requests" if response.status == 429 else f"failed with HTTP status {response.status}"
            hint = "wait, or log in: anonymous pulls are limited" if response.status == 429 else "try again later"
            return _Again(RemoteError(f"registry {source.location} {what}{text and f': {text}'}", hint=hint), asked)
        if response.status in (401, 403):
            denied = _denied(source)
            denied.details = text
            return denied
        if response.status == 404:
            missing.details = text
            return missing
        return RemoteError(f"registry {source.location} answered with HTTP status {response.status}{text and f': {text}'}")


def explain(error: BaseException, location: str) -> NacreError:
    """A lost or refused connection in a user's words."""
    if isinstance(error, NacreError):
        return error
    reason, hint = str(error) or type(error).__name__, "check the name and the network"
    if isinstance(error, socket.gaierror):
        reason = f"cannot resolve the host name ({error.strerror})"
    elif isinstance(error, ConnectionRefusedError):
        reason, hint = "connection refused", "is the registry running, and on this port?"
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its TLS certificate is not trusted ({error.verify_message})"
        hint = f"put its authority's certificate into /etc/containers/certs.d/{location}/ca.crt"
    elif isinstance(error, ssl.SSLError):
        reason, hint = f"no TLS connection ({error.reason or error})", "a registry without TLS needs insecure = true in registries.conf"
    elif isinstance(error, TimeoutError):
        reason = "it does not answer in time"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    if isinstance(error, ConnectionError | http.client.HTTPException) and not isinstance(error, ConnectionRefusedError):
        return RemoteError(f"lost the connection to registry {location}: {reason}", hint="try again: what has arrived is kept")
    return RemoteError(f"cannot reach registry {location}: {reason}", hint=hint)


def _is_final(error: BaseException) -> bool:
    """Whether trying again within seconds is pointless."""
    return isinstance(error, ConnectionRefusedError | socket.gaierror | ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)


def _verified(data: bytes, media_type: str, digest: str, source: Source) -> Fetched:
    """The data with its digest, which is the expected one if there is an expectation."""
    algorithm = check_digest(digest)[0] if digest else "sha256"
    actual = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    if digest and actual != digest:
        raise BadContent(
            f"{source.reference.familiar()} from {source.location}: expected {digest}, got content with {actual}",
            hint="the registry, or something between here and there, alters content; nothing was stored",
        )
    return Fetched(data=data, media_type=media_type, digest=actual)


def _range_start(response: Response, offset: int) -> int:
    """First byte of a partial answer (RFC 9110, section 14.4)."""
    found = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    start = int(found.group(1)) if found else -1
    if not 0 <= start <= offset:
        raise RemoteError(f"{urlsplit(response.url).netloc} answered a request from byte {offset} with another range")
    return start


def _retry_after(text: str) -> float | None:
    """Seconds of a Retry-After field (RFC 9110, section 10.2.3)."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if not text:
        return None
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _check_realm(realm: str, url: str, source: Source) -> None:
    """A token server must be reached at least as safely as its registry."""
    try:
        scheme, host = urlsplit(realm).scheme, urlsplit(realm).hostname
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise RemoteError(f"registry {source.location} names a token server that cannot be used: {printable(realm)[:200]!r}")
    if scheme == "http" and url.startswith("https:") and source.insecure is not True:
        raise RemoteError(
            f"registry {source.location} wants the login sent without TLS to {host}", hint="set insecure = true to allow this"
        )


def _with_login(headers: dict[str, str], token: str) -> dict[str, str]:
    return {**headers, "Authorization": token} if token else headers


def _basic(login: credentials.Credentials) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _login_hint(source: Source) -> str:
    return f"log in with docker login, podman login or skopeo login {source.location}"


def _denied(source: Source) -> Unauthorized:
    name = source.reference.familiar_name
    return Unauthorized(f"pull access denied for {name}: the repository does not exist or requires a login", hint=_login_hint(source))


def _no_manifest(source: Source, target: str) -> NotFound:
    separator = "@" if ":" in target else ":"
    name = f"{source.reference.familiar_name}{separator}{target}"
    return NotFound(f"manifest for {name} not found on {source.location}", hint="check the spelling of the name and the tag")


def _no_blob(source: Source, digest: str) -> RemoteError:
    return RemoteError(f"registry {source.location} does not have the blob {digest} that its manifest names", hint="push the image again")
