"""One connection: how its requests are read and answered, with limits on all that strangers may send.

gevent's own handler lacks these limits, and sends headers and body apart, which costs 44 ms a request with Nagle's
algorithm on. See `ec262.serving` for what holds the connections together.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import io
import json
import logging
import re
import socket as plain_socket
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol

from gevent import pywsgi
from gevent.event import Event
from gevent.socket import socket as gevent_socket

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Books(Protocol):
    """What the handlers of one server share."""

    application: WSGIApp
    limits: Limits
    access_log: logging.Logger | None
    stopping: Event
    waiting: collections.OrderedDict[Handler, None]
    buffered: int

    def enter(self, handler: Handler) -> None: ...
    def leave(self, handler: Handler) -> None: ...


_log = logging.getLogger(__name__)

# Up to here, copying the body behind the headers is cheaper than a second system call.
_JOIN_BYTES = 256 * 1024
_PIECE_BYTES = 64 * 1024
_LINGER_BYTES = 64 * 1024 * 1024

# RFC 9110, 5.6.2 (token) and 5.5 (field value); RFC 9112, 3 (request line).
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]{0,31}) ([!-~\x80-\xff]+) (HTTP/1\.[01])\r?\n\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*\r?\n\Z")
_ABSOLUTE = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True)
class Limits:
    """What a server takes from strangers. Sizes in bytes, times in seconds.

    Attributes:
        max_body_bytes: a larger body is refused (413), before it is read where its length is told.
        max_line_bytes: request line (414).
        max_header_bytes: all headers together (431).
        max_headers: how many (431).
        header_timeout_s: from the first byte of a request to the end of its headers (408).
        body_timeout_s: for a body (408), to which the bytes that came so far, divided by `min_bytes_s`, are added.
        send_timeout_s: for an answer, likewise; then the connection is cut.
        min_bytes_s: bytes a second that the slowest welcome client moves.
        keep_alive_s: how long a connection may rest between requests.
        max_connections: open at the same time. Beyond them, the one that has waited longest without a
            request in progress is closed. Never more than the process may have descriptors.
        max_buffered_bytes: bodies in memory, of all requests together (503).
        max_connections_address: open at the same time from one address; a further one is closed at once. 0: any number.
        trusted: addresses without that limit, because they speak for many (reverse proxies).
        linger_s: how long the rest of a refused body is read and dropped, so that its sender comes to read why.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_line_bytes: int = 8 * 1024
    max_header_bytes: int = 16 * 1024
    max_headers: int = 64
    header_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    send_timeout_s: float = 20.0
    min_bytes_s: float = 32 * 1024
    keep_alive_s: float = 75.0
    max_connections: int = 1000
    max_buffered_bytes: int = 512 * 1024 * 1024
    max_connections_address: int = 0
    trusted: Container[str] = frozenset()
    linger_s: float = 2.0


class _Refused(Exception):
    """The request gets no further; carries what its sender is told."""

    def __init__(self, status: HTTPStatus, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class _ClientGone(OSError):
    """An answer could not be sent. (Apart from the application's own `OSError`, which is a 500.)"""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "client gone")


def _problem(status: HTTPStatus, code: str, detail: str) -> bytes:
    return json.dumps(
        {"type": "about:blank", "title": status.phrase, "status": int(status), "code": code, "detail": detail}
    ).encode()


class _DeadlineReader(io.RawIOBase):
    """A socket's bytes until a deadline for all of them: a timeout a read would let one byte a second pass."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self.deadline = 0.0  # of time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return int(self._socket.recv_into(buffer))


class _Headers:
    """A request's headers, as far as `pywsgi.WSGIHandler` asks for them.

    Instead of `http.client.parse_headers`, which admits 6 MB of them and costs more than all the rest of a request.
    """

    status = ""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._by_name: dict[str, str] = {}
        for name, value in pairs:
            name = name.lower()
            self._by_name[name] = f"{self._by_name[name]},{value}" if name in self._by_name else value

    def get(self, name: str, default: str | None = None) -> str | None:
        return self._by_name.get(name.lower(), default)

    getheader = get

    @property
    def typeheader(self) -> str | None:
        return self._by_name.get("content-type")


class Handler(pywsgi.WSGIHandler):  # type: ignore[misc]  # gevent has no types
    """One connection. Every override says what is wrong with what it overrides."""

    server: Books
    ignored_socket_errors = (errno.EPIPE,)  # with `_sendall` below: nothing but a client that went away

    def __init__(self, sock: Any, address: Any, server: Books) -> None:
        self._incoming = _DeadlineReader(sock)
        self._buffered = 0  # bytes of this request counted against `max_buffered_bytes`
        self._body = b""
        super().__init__(sock, address, server, io.BufferedReader(self._incoming, _PIECE_BYTES))

    # -- the connection

    def handle(self) -> None:
        """Adds: the server knows its connections; an unexpected error closes this one without a traceback on
        the terminal."""
        self.server.enter(self)
        try:
            super().handle()
        except OSError:
            pass  # the connection broke
        except Exception:
            _log.exception("A connection ended by an error of the server")
        finally:
            self.server.leave(self)

    def cut(self) -> None:
        """Lets it end at its next wait for a request; what arrived before is still answered."""
        with contextlib.suppress(OSError):
            # Reading only: what the kernel has already received can still be read (on Linux), and answered.
            self._shutdown(plain_socket.SHUT_RD)

    def handle_one_request(self) -> Any:
        """Instead of the base's: reads the body as well before it calls the application, has deadlines, answers
        in problem+json, and prints nothing about bad requests.

        Returns:
            True to go on with the next request, None to close.
        """
        limits = self.server.limits
        self.server.waiting[self] = None
        try:
            # Idle until the first byte; from there the clock of the headers runs.
            self._incoming.deadline = time.monotonic() + limits.keep_alive_s
            try:
                if not self.rfile.peek(1):
                    return None
            except OSError:
                return None
            self._incoming.deadline = time.monotonic() + limits.header_timeout_s
            self.requestline, self.response_length, self.code, self.status = "", 0, 0, None
            self.time_start = time.time()
            self.read_request(None)
            self.server.waiting.pop(self, None)
            self._read_body()
            if self.server.stopping.is_set():
                self.close_connection = True
            self.application = self.server.application
            self.handle_one_response()
        except _Refused as refused:
            self._refuse(refused)
            return None
        except TimeoutError:
            self._refuse(_Refused(HTTPStatus.REQUEST_TIMEOUT, "request-timeout", "The request came too slowly."))
            return None
        except OSError:
            return None  # the connection broke
        finally:
            self.server.waiting.pop(self, None)
            self._give_back()
        return None if self.close_connection else True

    # -- the request

    def read_request(self, raw_requestline: object) -> bool:
        """Instead of the base's, which takes HTTP/0.9, line folding, two lengths, a length beside chunks and
        HTTP/1 without a minor version (a traceback): each an invitation to smuggle requests through proxies.

        Raises:
            _Refused: the request is malformed or too large.
        """
        limits = self.server.limits
        line = self._read_line(limits.max_line_bytes, HTTPStatus.REQUEST_URI_TOO_LONG, "The request line")
        if line in (b"\r\n", b"\n"):  # RFC 9112, 2.2: one empty line before a request is forgiven
            line = self._read_line(limits.max_line_bytes, HTTPStatus.REQUEST_URI_TOO_LONG, "The request line")
        match = _REQUEST_LINE.match(line)
        if match is None:
            raise _bad("The request line is not one of HTTP/1.1 or HTTP/1.0.")
        self.command, self.path, self.request_version = (part.decode("latin-1") for part in match.groups())
        self.requestline = line.decode("ascii", "backslashreplace").rstrip()  # a log may be read on a terminal
        self.path = _ABSOLUTE.sub("", self.path, count=1) or "/"
        if self.path[0] != "/" and self.path != "*":
            raise _bad("The request target is not a path.")
        self.headers = self._read_headers()

        connection = {token.strip() for token in (self.headers.get("connection") or "").lower().split(",")}
        if self.request_version == "HTTP/1.1":
            self.close_connection = "close" in connection
        else:
            self.close_connection = "keep-alive" not in connection

        length, encoding = self.headers.get("content-length"), self.headers.get("transfer-encoding")
        self.content_length = None
        if encoding is not None:
            if encoding.lower() != "chunked" or length is not None or self.request_version != "HTTP/1.1":
                raise _bad("The body is neither chunked nor of a given length.")
        elif length is not None:
            if not _LENGTH.match(length):
                raise _bad("Content-Length is not a number.")
            self.content_length = int(length)
            if self.content_length > limits.max_body_bytes:
                raise self._too_large()
        return True

    def _read_line(self, limit: int, status: HTTPStatus, what: str) -> bytes:
        line: bytes = self.rfile.readline(limit + 1)
        if not line.endswith(b"\n"):
            if len(line) > limit:
                code = "uri-too-long" if status == HTTPStatus.REQUEST_URI_TOO_LONG else "headers-too-large"
                raise _Refused(status, code, f"{what} is longer than allowed.")
            raise _bad("The request ended before its headers did.")
        return line

    def _read_headers(self) -> _Headers:
        limits = self.server.limits
        left = limits.max_header_bytes
        pairs: list[tuple[str, str]] = []
        while True:
            line = self._read_line(max(left, 2), HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The header")
            if line in (b"\r\n", b"\n"):
                return _Headers(pairs)
            left -= len(line)
            if left < 0 or len(pairs) >= limits.max_headers:
                raise _Refused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "headers-too-large",
                    f"At most {limits.max_headers} headers of {limits.max_header_bytes} bytes together are read.",
                )
            match = _HEADER.match(line)
            if match is None:
                raise _bad("A header line is malformed.")
            pairs.append((match[1].decode("latin-1"), match[2].decode("latin-1")))

    def _read_body(self) -> None:
        """Reads the whole body and makes the application's environment."""
        limits = self.server.limits
        chunked = self.headers.get("transfer-encoding") is not None
        expected = limits.max_body_bytes if chunked else self.content_length or 0
        started = time.monotonic()
        self._incoming.deadline = started + limits.body_timeout_s
        self.environ = self.get_environ()
        self._body = b""
        if chunked or expected:
            try:
                self._body = self._read_pieces(started)
            except TimeoutError:
                raise
            except (ValueError, OSError) as error:  # what pywsgi.Input raises for bad chunks and torn bodies
                raise _bad("The body is torn or badly chunked.") from error
        self.environ["wsgi.input"] = io.BytesIO(self._body)
        if chunked:
            del self.environ["HTTP_TRANSFER_ENCODING"]
            self.environ["CONTENT_LENGTH"] = str(len(self._body))

    def _read_pieces(self, started: float) -> bytes:
        limits = self.server.limits
        pieces: list[bytes] = []
        size = 0
        while piece := self.wsgi_input.read(_PIECE_BYTES):
            size += len(piece)
            if size > limits.max_body_bytes:  # chunked: it is only known now
                raise self._too_large()
            # Counted as it comes, not as it is announced: an announcement costs its sender nothing.
            self._buffered += len(piece)
            self.server.buffered += len(piece)
            if self.server.buffered > limits.max_buffered_bytes:
                self._give_back()  # at once: the others must not be refused for what is dropped here
                raise _Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE, "busy", "Too many large requests at once; try again later."
                )
            pieces.append(piece)
            # By what came, not by what was announced: an announcement would buy its sender time as well.
            self._incoming.deadline = started + limits.body_timeout_s + size / limits.min_bytes_s
        return b"".join(pieces)

    def _give_back(self) -> None:
        self.server.buffered -= self._buffered
        self._buffered = 0
        self._body = b""

    def _too_large(self) -> _Refused:
        return _Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body-too-large",
            f"A body has at most {self.server.limits.max_body_bytes} bytes here.",
        )

    def _connection_upgrade_requested(self) -> bool:
        """Nothing is upgraded here; the base would hand the application the raw connection."""
        return False

    def _headers(self) -> Iterator[tuple[str, str]]:
        """Instead of the base's, which joins the headers to text and splits them again."""
        for name, value in self.headers.pairs:
            # X_Y would pass for X-Y.
            if "_" not in name and (key := name.upper().replace("-", "_")) not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                yield "HTTP_" + key, value

    # -- the answer

    def finalize_headers(self) -> None:
        """Adds: the client hears that this was the last answer on its connection."""
        super().finalize_headers()
        if self.server.stopping.is_set():
            self.close_connection = True
        if self.close_connection and not any(name.lower() == b"connection" for name, _ in self.response_headers):
            self.response_headers.append((b"Connection", b"close"))

    def _write_with_headers(self, data: bytes) -> None:
        """Instead of the base's, which sends headers and body apart: a second system call and, with Nagle's
        algorithm on, 44 ms of waiting for the other side's delayed acknowledgement."""
        self.headers_sent = True
        self.finalize_headers()
        parts = [b"HTTP/1.1 ", self.status or b"500", b"\r\n"]
        for name, value in self.response_headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        if data and self.response_use_chunked:
            parts += (b"%x\r\n" % len(data), data, b"\r\n")
            data = b""
        elif len(data) <= _JOIN_BYTES:
            parts.append(data)
            data = b""
        self._sendall(b"".join(parts))
        if data:
            self._sendall(data)

    def _sendall(self, data: bytes) -> None:
        """Adds: a client that does not read its answer is cut off, and its going away is told from an error of
        the application's own connections."""
        limits = self.server.limits
        try:
            self.socket.settimeout(limits.send_timeout_s + len(data) / limits.min_bytes_s)
            self.socket.sendall(data)
        except OSError as error:
            self.close_connection = True
            raise _ClientGone from error
        self.response_length += len(data)

    def _refuse(self, refused: _Refused) -> None:
        """Says no, then closes so that the answer arrives: closing with unread bytes makes the kernel reset
        the connection, and the sender would lose what it has not read yet."""
        self.close_connection = True
        body = _problem(refused.status, refused.code, refused.detail)
        self._orig_status = f"{int(refused.status)} {refused.status.phrase}"
        retry = "Retry-After: 1\r\n" if refused.status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        head = (
            f"HTTP/1.1 {self._orig_status}\r\nContent-Type: application/problem+json\r\n{retry}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            self._sendall(head.encode() + (b"" if getattr(self, "command", "") == "HEAD" else body))
            self._shutdown(plain_socket.SHUT_WR)
            self._incoming.deadline = time.monotonic() + self.server.limits.linger_s
            waste = bytearray(_PIECE_BYTES)
            dropped = 0
            while dropped < _LINGER_BYTES and (size := self._incoming.readinto(waste)):
                dropped += size
        except OSError:
            pass
        self.time_finish = time.time()
        self.log_request()

    def _shutdown(self, how: int) -> None:
        """Shuts the connection down in one direction. The method of a TLS socket would go on without TLS after it: what
        is read and written then is taken, and sent, as it is."""
        gevent_socket.shutdown(self.socket, how)

    def handle_error(self, t: type[BaseException], v: BaseException, tb: TracebackType) -> None:
        """Instead of the base's text/plain and gevent's own printing: the log, and problem+json."""
        if not isinstance(v, Exception):
            # The end of a stop (GreenletExit), or a KeyboardInterrupt that happened to arrive while this greenlet
            # ran: it is the program's, and gevent takes it there if it is let through.
            raise v
        _log.error("The application failed at %s", self.requestline, exc_info=(t, v, tb))
        self.close_connection = True
        if not self.response_length:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body = _problem(status, "internal-error", "The server failed at this request; its log says why.")
            self.headers_sent = self.response_use_chunked = False
            self.result = [body]
            with contextlib.suppress(OSError):
                self.start_response(
                    f"{int(status)} {status.phrase}",
                    [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))],
                )
                self.write(body)

    def log_request(self) -> None:
        """Skips the base's formatting where nobody reads it."""
        if self.server.access_log is not None:
            self.server.access_log.info("%s", self.format_request(), extra={"fields": self._fields()})

    def _fields(self) -> dict[str, object]:
        """What a log of objects says of this request."""
        return {
            "method": getattr(self, "command", "") or "",
            "path": str(getattr(self, "path", "") or "").split("?", 1)[0],
            "status": int(str(getattr(self, "_orig_status", "") or "0")[:3]),
            "bytes": self.response_length,
            "seconds": round(getattr(self, "time_finish", self.time_start) - self.time_start, 6),
            "address": self.client_address[0] if self.client_address else "",
        }


def _bad(detail: str) -> _Refused:
    return _Refused(HTTPStatus.BAD_REQUEST, "bad-request", detail)
