"""A small real registry on the loopback interface, which can be told to misbehave.

It serves the pull side of the OCI distribution specification from memory, with Basic or Bearer logins and ranges. `fault` makes
it answer chosen requests wrongly: another status, altered or shortened bytes, a broken connection.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from nacre.testing.images import Sample

_TOKEN = "let-me-in"


class Answer(NamedTuple):
    """What a request gets. cut: break the connection after so many bytes of the body, -1 = send all of it."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}
    cut: int = -1


class Request(NamedTuple):
    """One request as the registry saw it. headers: names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


Change = Callable[[Request, Answer], Answer]


class FakeRegistry:
    """The registry. A context manager; `address` is ``127.0.0.1:port``.

    login: "" (open), "basic" or "bearer"; the user is "user", the password "secret". certificate: file with a certificate and
    its key, for TLS. requests: all that arrived, in order.
    """

    def __init__(self, *, login: str = "", certificate: str = "") -> None:
        self.login = login
        self.requests: list[Request] = []
        self.ranges = True
        self._blobs: dict[str, bytes] = {}
        self._types: dict[str, str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._faults: list[tuple[re.Pattern[str], Change, list[int]]] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _make_handler(self))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def push(self, repository: str, tag: str, sample: Sample) -> str:
        """Store an image or index; returns ``127.0.0.1:port/repository:tag``."""
        self._blobs.update(sample.blobs)
        self._types[sample.digest] = sample.media_type
        self._tags[repository, tag] = sample.digest
        return f"{self.address}/{repository}:{tag}"

    def put_manifest(self, repository: str, tag: str, data: bytes, digest: str, media_type: str) -> None:
        """Store a document under a tag and a digest that need not fit it."""
        self._blobs[digest] = data
        self._types[digest] = media_type
        self._tags[repository, tag] = digest

    def drop_blob(self, digest: str) -> None:
        """Forget a blob."""
        del self._blobs[digest]

    def fault(self, pattern: str, change: Change, *, times: int = 1_000_000) -> None:
        """Let `change` alter the answer to the next `times` requests whose path matches the regular expression somewhere."""
        self._faults.append((re.compile(pattern), change, [times]))

    def seen(self, pattern: str) -> list[Request]:
        """The requests whose path matches."""
        return [request for request in self.requests if re.search(pattern, request.path)]

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- answering ---------------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """The answer, faults included."""
        with self._lock:
            self.requests.append(request)
            answer, change = self._honest(request), None
            for pattern, fault, left in self._faults:
                if left[0] and pattern.search(request.path):
                    left[0] -= 1
                    change = fault
                    break
        return change(request, answer) if change else answer

    def _honest(self, request: Request) -> Answer:
        path = urlsplit(request.path).path
        if path == "/token":
            return self._token(request)
        if self.login and request.headers.get("authorization") != self._expected():
            return Answer(401, _error("UNAUTHORIZED", "authentication required"), {"WWW-Authenticate": self._challenge(path)})
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if not found:
            return Answer(200 if path == "/v2/" else 404, b"{}")
        repository, kind, name = found.groups()
        return self._manifest(repository, name) if kind == "manifests" else self._blob(name, request)

    def _manifest(self, repository: str, name: str) -> Answer:
        digest = name if ":" in name else self._tags.get((repository, name), "")
        if digest not in self._blobs:
            return Answer(404, _error("MANIFEST_UNKNOWN", "manifest unknown"))
        media_type = self._types.get(digest) or json.loads(self._blobs[digest]).get("mediaType", "")
        return Answer(200, self._blobs[digest], {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _blob(self, digest: str, request: Request) -> Answer:
        data = self._blobs.get(digest)
        if data is None:
            return Answer(404, _error("BLOB_UNKNOWN", "blob unknown to registry"))
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if wanted is None or not self.ranges:
            return Answer(200, data, {"Content-Type": "application/octet-stream"})
        start = int(wanted.group(1))
        return Answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def _token(self, request: Request) -> Answer:
        given = request.headers.get("authorization", "")
        if self.login == "bearer" and given and given != _basic():
            return Answer(401, _error("UNAUTHORIZED", "incorrect username or password"))
        if not parse_qs(urlsplit(request.path).query).get("scope"):
            return Answer(400)
        return Answer(200, json.dumps({"token": _TOKEN, "expires_in": 300}).encode())

    def _expected(self) -> str:
        return _basic() if self.login == "basic" else f"Bearer {_TOKEN}"

    def _challenge(self, path: str) -> str:
        if self.login == "basic":
            return 'Basic realm="registry"'
        scope = f"repository:{path.removeprefix('/v2/').rpartition('/')[0].rpartition('/')[0]}:pull"
        return f'Bearer realm="http://{self.address}/token",service="registry",scope="{scope}"'


def corrupt(request: Request, answer: Answer) -> Answer:
    """A fault: the last byte is another one."""
    return answer._replace(body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))


def cut(after: int) -> Change:
    """A fault: the connection breaks after so many bytes of the body."""
    return lambda request, answer: answer._replace(cut=after)


def status(code: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Change:
    """A fault: another status, instead of the answer."""
    return lambda request, answer: Answer(code, body, headers or {})


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave as they please."""


def _basic() -> str:
    return "Basic " + base64.b64encode(b"user:secret").decode()


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def _make_handler(registry: FakeRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            length = int(headers.get("content-length", "0"))
            self.rfile.read(length)
            answer = registry.answer(Request(self.command, self.path, headers))
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body if answer.cut < 0 else answer.body[: answer.cut])
            self.wfile.flush()
            self.close_connection = answer.cut >= 0

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
