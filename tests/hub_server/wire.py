"""HTTP/1.1 on a socket: read a request, meet the faults, call the app, send the response, write the log.

Built on `http.server` of the standard library. Every body is read to its end before an early answer, so a refused
upload ends in its status and not in a broken pipe.
"""

import json
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from .blobs import CHUNK, Blob
from .errors import HubError
from .faults import Cut, EndlessPages, Fault, Faults, RateLimit, ServerError, Slow


MAX_BODY = 512 * 1024 * 1024


class Dropped(Exception):
    """The connection ends here, on purpose or because the client left."""


class Body:
    """A request's body, read once: sized or chunked, cut after `limit` bytes when a fault says so."""

    def __init__(self, handler: "Handler", limit: int | None = None) -> None:
        self.received = 0
        self._chunks = self._cut(self._raw(handler), limit)

    def _raw(self, handler: "Handler") -> Iterator[bytes]:
        if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(handler.rfile.readline(100).split(b";")[0] or b"0", 16):
                yield from self._exactly(handler, size)
                handler.rfile.readline(10)
            handler.rfile.readline(10)
        else:
            yield from self._exactly(handler, int(handler.headers.get("Content-Length", 0)))

    def _exactly(self, handler: "Handler", size: int) -> Iterator[bytes]:
        while size > 0:
            chunk = handler.rfile.read(min(size, CHUNK))
            if not chunk:
                raise Dropped("the client left in mid-upload")
            size -= len(chunk)
            yield chunk

    def _cut(self, chunks: Iterator[bytes], limit: int | None) -> Iterator[bytes]:
        for chunk in chunks:
            self.received += len(chunk)
            if limit is not None and self.received >= limit:
                raise Dropped("fault: upload cut")
            if self.received > MAX_BODY:
                raise Dropped("upload too large for this server")
            yield chunk

    def chunks(self) -> Iterator[bytes]:
        return self._chunks

    def read(self) -> bytes:
        return b"".join(self._chunks)

    def drain(self) -> None:
        for _ in self._chunks:
            pass

    def json(self) -> dict[str, Any]:
        try:
            data = json.loads(self.read() or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error
        if not isinstance(data, dict):
            raise HubError(400, "Invalid JSON: an object is expected")
        return data


@dataclass
class Request:
    """`path` is still percent-encoded: a revision may hold an encoded slash. `query` is decoded."""

    method: str
    host: Literal["hub", "cdn"]
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # lower-case names
    body: Body
    endless: EndlessPages | None = None

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")

    def values(self, name: str) -> list[str]:
        return self.query.get(name, []) + self.query.get(f"{name}[]", [])

    def one(self, name: str) -> str | None:
        return next(iter(self.values(name)), None)

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None


@dataclass
class Response:
    """`body` may be a slice of a blob, sent as it is read: (blob, first byte, length)."""

    status: int = 200
    body: bytes | tuple[Blob, int, int] = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body[2]

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
        else:
            blob, start, length = self.body
            yield from blob.slice(start, length)


def as_json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(data, default=str).encode()
    return Response(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def as_error(error: HubError) -> Response:
    headers = {"X-Error-Message": " ".join(error.message.split())[:2000], **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return as_json({"error": error.message, **error.fields}, error.status, headers)


@dataclass
class Logged:
    """One request, logged as it arrives and filled in as it goes: before the client can see an answer, it is here.

    `sent` counts body bytes handed to the socket, `received` those read; `status` is 0 when no answer was sent.
    """

    method: str
    host: str
    path: str
    query: str
    range: str | None
    token: str | None
    faults: tuple[str, ...]
    body: Body = field(repr=False)
    status: int = 0
    sent: int = 0

    @property
    def received(self) -> int:
        return self.body.received


App = Callable[[Request], Response]


class Listener(ThreadingHTTPServer):
    """One loopback port. `log` and `faults` are shared by the two of a server."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, host: Literal["hub", "cdn"], app: App, faults: Faults, log: list[Logged], crashes: list[str]
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = host
        self.app = app
        self.faults = faults
        self.log = log
        self.crashes = crashes
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        self._open.discard(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no fault of ours, anything else is."""
        if not isinstance(sys.exception(), OSError):
            self.crashes.append(traceback.format_exc())

    def stop(self) -> None:
        """Stop listening and cut what is still open: a kept-alive or slow connection would hold its thread."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers and body of a kept-alive connection wait for each other's ACK
    wbufsize = 64 * 1024
    timeout = 60

    def serve(self) -> None:
        parts = urlsplit(self.path)
        target = unquote(parts.path) + ("?" + unquote(parts.query) if parts.query else "")
        range_header = self.headers.get("Range")
        faults = self.server.faults.plan(self.command, self.server.host, target, range_header)
        cut = next((f for f in faults if isinstance(f, Cut)), None)
        limit = (cut.after_bytes or 1) if cut is not None and cut.side == "request" else None
        request = Request(
            method=self.command,
            host=self.server.host,
            path=parts.path,
            query=parse_qs(parts.query, keep_blank_values=True),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=Body(self, limit),
            endless=next((f for f in faults if isinstance(f, EndlessPages)), None),
        )
        path, query = unquote(parts.path), unquote(parts.query)
        names = tuple(type(fault).__name__ for fault in faults)
        entry = Logged(request.method, request.host, path, query, range_header, request.token, names, request.body)
        self.server.log.append(entry)
        try:
            if cut is not None and cut.side == "request":
                request.body.drain()
                raise Dropped("fault: the whole request was shorter than the cut")
            response = self._answer(request, faults)
            request.body.drain()
            if cut is not None and (cut.side == "silent" or self.command == "HEAD" or response.length == 0):
                raise Dropped("fault: no answer")
            entry.status = response.status
            self._send(response, entry, faults, cut)
            if cut is not None:
                raise Dropped("fault: response cut")
        except (Dropped, ConnectionError, TimeoutError):
            self._drop(reset=cut is not None and cut.reset)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _answer(self, request: Request, faults: list[Fault]) -> Response:
        for fault in faults:
            if isinstance(fault, RateLimit):
                headers = {"Retry-After": str(fault.retry_after)}
                return as_error(HubError(429, "We had to rate limit you.", headers=headers))
            if isinstance(fault, ServerError):
                return as_error(HubError(fault.status, "Internal Error"))
        try:
            return self.server.app(request)
        except HubError as error:
            return as_error(error)
        except (Dropped, ConnectionError):
            raise
        except Exception:
            # a bug of this server must fail the test that met it, not pass for an injected 500
            self.server.crashes.append(traceback.format_exc())
            return as_error(HubError(500, "bug in the local Hub: see server.crashes"))

    def _send(self, response: Response, entry: Logged, faults: list[Fault], cut: Cut | None) -> None:
        slow = next((f for f in faults if isinstance(f, Slow)), None)
        if slow is not None and self.server.stopping.wait(slow.delay):
            raise Dropped("stopping")
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(response.length))
        self.end_headers()
        left = 0 if self.command == "HEAD" else response.length
        if cut is not None:
            left = min(left - 1, left // 2 if cut.after_bytes is None else cut.after_bytes)
        start = time.monotonic()
        for piece in _pieces(response, left, CHUNK if slow is None else max(1, int(slow.bytes_per_second / 20))):
            entry.sent += len(piece)
            self.wfile.write(piece)
            if slow is not None:
                self.wfile.flush()
                if self.server.stopping.wait(max(0.0, start + entry.sent / slow.bytes_per_second - time.monotonic())):
                    raise Dropped("stopping")
        self.wfile.flush()

    def _drop(self, *, reset: bool) -> None:
        self.close_connection = True
        try:
            self.wfile.flush()
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the log is data."""


def _pieces(response: Response, length: int, step: int) -> Iterator[bytes]:
    """The first `length` bytes of the body, at most `step` at a time."""
    if length <= 0:
        return
    for chunk in response.chunks():
        chunk = chunk[:length]
        for at in range(0, len(chunk), step):
            yield chunk[at : at + step]
        length -= len(chunk)
        if length <= 0:
            return
