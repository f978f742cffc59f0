"""The one door for HTTP in: discovery and the workers both answer through it.

`gevent.pywsgi` with what it lacks for strangers' bytes: limits on everything that is read and on the time it
takes, answers of one form (``application/problem+json``, RFC 9457) to what it refuses itself, and no 44 ms
stall. A request reaches the application only when it is whole, so the application meets no slow, torn or
oversized body.

Works with monkey-patching and without (a worker runs in its user's process). A server belongs to the thread
that made it: gevent has one event loop a thread.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import resource
import socket as plain_socket
import time
from pathlib import Path
from typing import Any, Self

import gevent
from gevent import pywsgi, ssl
from gevent.event import Event
from gevent.hub import get_hub
from gevent.pool import Pool
from gevent.socket import socket as gevent_socket

from ec262.errors import SetupError
from ec262.http_handler import Handler, WSGIApp
from ec262.http_handler import Limits as Limits  # what callers give a server

# Connections beyond `max_connections` that may be open for the moment it takes to close an idle one.
_RESERVE = 16
# Descriptors that the rest of the process needs (pipes of the sandbox, connections to Redis, files).
_OTHER_DESCRIPTORS = 128


class _WSGIServer(pywsgi.WSGIServer):  # type: ignore[misc]  # gevent has no types
    """pywsgi's server with the books that its handlers share."""

    handler_class = Handler

    def __init__(
        self,
        listener: Any,
        app: WSGIApp,
        limits: Limits,
        max_connections: int,
        access_log: logging.Logger | None,
        shared: bool,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.limits = limits
        self.max_connections = max_connections
        self.access_log = access_log
        self.stopping = Event()
        self.connections: set[Handler] = set()
        # Those that wait for a request or are in its headers, longest first.
        self.waiting: collections.OrderedDict[Handler, None] = collections.OrderedDict()
        # Those that have not agreed on TLS yet, longest first.
        self.greeting: collections.OrderedDict[Any, None] = collections.OrderedDict()
        self.buffered = 0  # bytes
        self.of_address: collections.Counter[str] = collections.Counter()
        self.draining = False
        super().__init__(
            listener,
            app,
            spawn=Pool(max_connections + _RESERVE),
            log=None,
            error_log=logging.getLogger(__name__),  # the application's wsgi.errors
            # Named here because pywsgi would ask the name service for it, for seconds on some machines.
            # Several processes on one listener: each accepts one connection at a time, so that all get their share.
            environ={"SERVER_NAME": str(listener.getsockname()[0]), "wsgi.multiprocess": shared},
            **({"ssl_context": tls} if tls is not None else {}),
        )

    def do_handle(self, client_socket: Any, address: Any) -> None:
        """Adds: closes at once what its address has too many of. That spares all that a connection costs."""
        if self._greedy(str(address[0]) if address else "", 1):
            self.do_close(client_socket)
        else:
            super().do_handle(client_socket, address)

    def _greedy(self, address: str, further: int) -> bool:
        most = self.limits.max_connections_address
        return bool(most) and self.of_address[address] + further > most and address not in self.limits.trusted

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        """Instead of gevent's, which waits for ever for a client that opens a connection and does not greet, lets a
        byte now and then buy it more time, and prints a traceback for each that greets in another language.

        A connection counts from here on: who never greets has as little room as who greets and then says nothing.
        """
        try:
            connection = self.wrap_socket(client_socket, do_handshake_on_connect=False, **self.ssl_args)
        except OSError:  # it is gone already
            client_socket.close()
            return
        with contextlib.closing(connection):
            if self._greet(connection, str(address[0]) if address else ""):
                self.handle(connection, address)

    def _greet(self, connection: Any, address: str) -> bool:
        """Agrees on TLS; whether the client did within its time, and may have a connection."""
        self.of_address[address] += 1
        self.greeting[connection] = None
        try:
            if self._greedy(address, 0) or (self.stopping.is_set() and not self.draining):
                return False
            self._make_room()
            # For all of it together: a timeout of the socket would be one for each byte.
            with gevent.Timeout(self.limits.header_timeout_s, False):
                connection.do_handshake()
                return True
            return False
        except OSError:  # ssl.SSLError is one
            return False
        finally:
            self.greeting.pop(connection, None)
            self._forget(address)

    def _make_room(self) -> None:
        """Closes the connection that has shown nothing for longest, once there are more than there may be."""
        if len(self.connections) + len(self.greeting) <= self.max_connections:
            return
        if len(self.greeting) > 1:  # the last one came just now
            _cut(self.greeting.popitem(last=False)[0])
        elif self.waiting:
            self.waiting.popitem(last=False)[0].cut()

    def _forget(self, address: str) -> None:
        self.of_address[address] -= 1
        if not self.of_address[address]:
            del self.of_address[address]

    def enter(self, handler: Handler) -> None:
        self.connections.add(handler)
        self.of_address[_address(handler)] += 1
        greedy = self._greedy(_address(handler), 0)  # many were accepted together
        if greedy or (self.stopping.is_set() and not self.draining):  # accepted a moment before
            handler.cut()
        self._make_room()

    def leave(self, handler: Handler) -> None:
        self.connections.discard(handler)
        self._forget(_address(handler))
        self.waiting.pop(handler, None)


class Server:
    """An HTTP server for one WSGI application; a context manager that stops it gracefully.

    Attributes:
        host: the address it listens on.
        port: the port it listens on, chosen by the system where 0 was asked for.
        max_connections: as many as the limits say, or the process may have descriptors.
        stopping: set as soon as a stop begins; an application that holds requests (long polls) waits on it
            to let them go.
    """

    def __init__(
        self,
        app: WSGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: Limits | None = None,
        access_log: logging.Logger | None = None,
        backlog: int = 1024,
        listener: plain_socket.socket | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Binds; `start` begins to accept.

        Args:
            app: the WSGI application. It gets whole requests, with the body in memory.
            host: address or name to listen on.
            port: TCP port, 0 for any.
            limits: what it takes from strangers.
            access_log: where a line a request goes; None for nowhere.
            backlog: connections that the kernel holds until they are accepted.
            listener: a socket of `listen` that other processes accept on as well; instead of host, port and backlog.
            tls: of `server_context`; None: plain HTTP.
        Raises:
            SetupError: nobody can listen there.
        """
        self.limits = limits or Limits()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = self.limits.max_connections
        if soft != resource.RLIM_INFINITY:
            allowed = min(allowed, max(soft - _OTHER_DESCRIPTORS - _RESERVE, soft // 4))
        if listener is None:
            accepting = listen(host, port, backlog)
        else:
            accepting = gevent_socket(fileno=listener.detach())
            accepting.setblocking(False)
        self.host = host
        self.port = int(accepting.getsockname()[1])
        self.max_connections = allowed
        self._scheme = "http" if tls is None else "https"
        self._server = _WSGIServer(accepting, app, self.limits, allowed, access_log, listener is not None, tls)
        self.stopping: Any = self._server.stopping
        self._asked_to_stop = Event()
        self._loop = get_hub().loop
        self._stopped = False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    @property
    def url(self) -> str:
        """``http://host:port``, or ``https``, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._server.connections) + len(self._server.greeting)

    def start(self) -> Self:
        """Begins to accept connections, whenever this thread's event loop runs; returns at once."""
        if not self._server.started and not self._stopped:
            self._server.start()
        return self

    def serve_forever(self, stop_timeout_s: float = 10.0) -> None:
        """Answers until `stop_soon` (or `stop`) is called or an exception such as `KeyboardInterrupt` arrives.

        A program for people gives SIGINT a handler that calls `stop_soon`: where nobody handles it, the
        `KeyboardInterrupt` may arrive in the middle of a request, and gevent prints a traceback on its way here.

        Args:
            stop_timeout_s: seconds for requests in progress to finish.
        """
        self.start()
        try:
            # A signal that arrives just before the loop goes to sleep does not wake it, and its Python handler
            # would wait for the next request: so never sleep longer than this.
            while not self._asked_to_stop.wait(timeout=0.5):
                pass
        finally:
            self.stop(stop_timeout_s)

    def stop_soon(self) -> None:
        """Asks `serve_forever` to stop; may be called from a signal handler or another thread."""
        # A plain Event.set() from another thread would not wake this thread's loop.
        self._loop.run_callback_threadsafe(self._asked_to_stop.set)

    def drain(self, timeout_s: float, soon: Event) -> None:
        """Stops accepting, and lets every connection at rest bring one more request; `stop` then does the rest.

        The answer to it says that the connection ends: so a client comes to know before it sends another request into
        the void. For where other processes go on accepting.

        Args:
            timeout_s: seconds that this may take; it is over as soon as no connection is left.
            soon: ends it at once.
        """
        self._server.draining = True
        self._server.stopping.set()
        self._server.close()
        until_s = time.monotonic() + timeout_s
        while self.connections and time.monotonic() < until_s and not soon.wait(timeout=0.02):
            pass
        self._server.draining = False

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stops accepting, lets requests in progress finish, then cuts off the rest. Idempotent.

        Connections at rest are closed at once; requests that have arrived are still answered.

        Args:
            timeout_s: seconds that requests in progress may take.
        """
        self._asked_to_stop.set()
        if self._stopped:
            return
        self._stopped = True
        self._server.stopping.set()
        self._server.close()
        for handler in list(self._server.waiting):
            handler.cut()
        for connection in list(self._server.greeting):
            _cut(connection)
        self._server.pool.join(timeout=timeout_s)
        self._server.pool.kill(timeout=1)


def serve(
    app: WSGIApp,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    limits: Limits | None = None,
    access_log: logging.Logger | None = None,
) -> Server:
    """Starts a server and returns it; `serve_forever` on it waits, `stop` ends it.

    Args:
        app: the WSGI application.
        host: address or name to listen on.
        port: TCP port, 0 for any; the answer's `port` says which.
        limits: what it takes from strangers.
        access_log: where a line a request goes; None for nowhere.
    Raises:
        SetupError: nobody can listen there.
    """
    return Server(app, host, port, limits=limits, access_log=access_log).start()


def _cut(connection: Any) -> None:
    """Ends a connection on which TLS was not agreed on; whoever waits for it finds its end."""
    with contextlib.suppress(OSError):
        gevent_socket.shutdown(connection, plain_socket.SHUT_RDWR)


def _address(handler: Handler) -> str:
    return str(handler.client_address[0]) if handler.client_address else ""


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """How a server speaks TLS: 1.2 and up, with the standard library's choice of ciphers.

    Args:
        certificate: PEM file with the certificate and those between it and its authority.
        key: PEM file with its private key; None: it is in the same file.

    Raises:
        SetupError: the files are not readable, or not of this form, or do not fit each other.
    """
    # gevent's: what `create_default_context` makes is the standard library's, and keeps all others waiting.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def no_password() -> str:
        raise SetupError(f"the key in {key or certificate} has a password, which nobody is there to type: remove it")

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as reason:
        raise SetupError(f"{certificate} and {key or certificate} are no certificate and its key: {reason}") from None
    except OSError as reason:
        raise SetupError(f"the certificate or its key cannot be read: {reason}") from None
    return context


def listen(host: str, port: int, backlog: int = 1024) -> Any:
    """Makes a listening socket.

    Raises:
        SetupError: the address is not this machine's, or the port is taken or reserved.
    """
    try:
        family, kind, protocol, _, address = plain_socket.getaddrinfo(
            host or None, port, type=plain_socket.SOCK_STREAM, flags=plain_socket.AI_PASSIVE
        )[0]
        listener = gevent_socket(family, kind, protocol)
        try:
            listener.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_REUSEADDR, 1)
            # Accepted connections inherit it; it spares a system call for each.
            listener.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
            listener.bind(address)
            listener.listen(backlog)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "another program listens there; choose another port, or 0 for any",
            errno.EACCES: "ports below 1024 need privileges; choose another",
        }.get(error.errno or 0, error.strerror or str(error))
        raise SetupError(f"Cannot listen on {host}:{port}: {advice}.") from error
    return listener
