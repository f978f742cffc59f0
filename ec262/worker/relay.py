"""Relay: a worker that nobody can connect to has its requests brought by discovery, and sends the answers there.

It polls discovery for calls (`ec262.protocol.relaying`) and hands the requests in them to the very application that
serves its own port. A poll does not wait for an answer to be made: each call is served in a greenlet of its own.
"""

from __future__ import annotations

import io
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from werkzeug.test import EnvironBuilder, run_wsgi_app

from ec262.config import WorkerSettings
from ec262.discovery_client import DiscoveryClient
from ec262.errors import EC262Error, Malformed, NetworkError, ProblemError, SetupError
from ec262.protocol import messages as m
from ec262.protocol.relaying import KEPT, MISSING, RelayedAnswer, RelayedRequest, Transfers, pack, unpack_request
from ec262.protocol.routes import routes_of
from ec262.worker.events import EVENT, shown
from ec262.worker.lease import Registration

log = logging.getLogger("ec262.worker")

POLL_S = 20.0
"""How long a poll waits: what stands between us and discovery forgets silent connections, often after a minute."""
SLACK_S = 6.0
"""After so much more a poll is taken for lost."""
CALLED_S = 180.0
"""A worker that others can connect to stays at the relay for so long after it was last wanted there."""
MOST_POLLS = 4
"""At a time, where calls wait; one where none do."""
MOST_SERVED = 128
MOST_REPLIES = 8
REPLY_S = 10.0
"""After so long without a sign a reply is sent anew, on another connection."""
REPLY_FOR_S = 60.0
"""A reply is sent again for so long: its foreman waits no longer."""
_REMEMBERED = 2048
_FULL_S = 0.5

Application = Callable[[dict[str, Any], Callable[..., Any]], Any]


class Nowhere:
    """What a worker has instead of a server when it listens nowhere.

    Its port is its own all the same, and nobody can connect to it: two workers that took the same one would be one to
    discovery, and to their owner.

    Attributes:
        port: chosen by the system where 0 was asked for.

    Raises:
        SetupError: the port is taken.
    """

    host = ""
    url = "no address (through the relay alone)"

    def __init__(self, port: int) -> None:
        self._held = socket.socket()
        try:
            self._held.bind(("127.0.0.1", port))
        except OSError as reason:
            self._held.close()
            raise SetupError(
                f"another program has port {port}, which would name this worker; choose another port, or 0 for any "
                f"({reason.strerror})"
            ) from None
        self.port = int(self._held.getsockname()[1])

    def start(self) -> Nowhere:
        """Nothing is to be done."""
        return self

    def stop(self, timeout_s: float = 0.0) -> None:
        """Lets the port go."""
        self._held.close()


class RelayPolls:
    """Serves the relay while that is wanted. Belongs to the thread of the worker.

    Args:
        client: the worker's; its account is the worker's once it has registered.
        application: the worker's, as its server has it.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        client: DiscoveryClient,
        registration: Registration,
        application: Application,
    ) -> None:
        self._settings = settings
        self._registration = registration
        self._application = application
        self._base = client
        self._polling: DiscoveryClient | None = None
        self._replying: DiscoveryClient | None = None
        self._transfers = Transfers(settings.relayed_bytes)
        self._wanted = Event()
        self._called_until_s = 0.0
        self._polls = 0
        self._serving = 0
        self._received: list[str] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        self._greenlets = Group()
        self._pollers = Group()
        self._anew = self._lost = False
        self._served = Group()
        self._failing = False

    def start(self) -> None:
        """Begins to see whether it is wanted."""
        self._greenlets.spawn(self._run)

    def stop(self, timeout_s: float) -> None:
        """Takes no more calls; replies to those that it took, within a time."""
        self._greenlets.kill()
        self._pollers.kill()
        self._served.join(timeout_s)
        self._served.kill()
        self._close_clients()

    def wanted(self) -> None:
        """Discovery says at a registration that foremen come through the relay alone.

        Polls that wait do so anew: if the worker registered because its address changed, their answers would come to
        the old one, and they would not notice for a while.
        """
        self._anew = True
        self._wanted.set()

    def called(self) -> None:
        """Somebody waits at the relay who cannot connect to this worker."""
        if self._settings.relay == "auto":
            self._called_until_s = time.monotonic() + CALLED_S
            self._wanted.set()

    # --- in greenlets ---

    @property
    def _due(self) -> bool:
        standing = self._registration.standing
        return standing is not None and (standing.relay or time.monotonic() < self._called_until_s)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._anew:
                self._anew = False
                self._pollers.kill()
            if not self._due or self._polls:
                continue
            log.log(EVENT, "serving through the relay of %s", self._base.url)
            self._pollers.spawn(self._poll)

    def _poll(self, *, further: bool = False) -> None:
        """Polls until it is not wanted any more; a `further` poll only as long as calls come."""
        self._polls += 1
        pause_s = self._settings.retry_s
        try:
            while self._due:
                if self._serving >= MOST_SERVED or self._transfers.bytes >= self._settings.relayed_bytes:
                    gevent.sleep(_FULL_S)
                    continue
                try:
                    taken = self._take(POLL_S)
                except NetworkError as reason:
                    self._trouble(reason)
                    gevent.sleep(pause_s)
                    pause_s = min(pause_s * 2, self._settings.retry_max_s / 4)
                    continue
                if self._failing:
                    self._failing = False
                    log.info("the relay of %s answers again", self._base.url)
                pause_s = self._settings.retry_s
                for call in taken.calls:
                    self._received.append(call.call_id)
                    self._begin(call)
                if taken.waiting and self._polls < MOST_POLLS:
                    self._pollers.spawn(self._poll, further=True)
                if further and not taken.calls:
                    return
            if not further:
                log.log(EVENT, "no longer serving through the relay")
        finally:
            self._polls -= 1

    def _take(self, wait_s: float) -> m.CallsTaken:
        standing = self._registration.standing
        if standing is None:
            raise NetworkError("not registered")
        if self._polling is None or self._polling.account_id != self._base.account_id:
            self._close_clients()
            self._polling = self._base.sibling(concurrency=MOST_POLLS, answer_timeout_s=POLL_S + SLACK_S)
            self._replying = self._base.sibling(concurrency=MOST_REPLIES, answer_timeout_s=REPLY_S)
        received, self._received = self._received[:256], self._received[256:]
        lost, self._lost = self._lost, False
        wanted = m.TakeCalls(boot_id=self._registration.boot_id, wait_s=wait_s, received=received, anew=lost)
        answered = False
        try:
            taken = self._polling.take_calls(standing.worker_id, wanted)
            answered = True
            return taken
        finally:
            if not answered:  # or this greenlet was killed
                self._received += received
                self._lost = True

    def _close_clients(self) -> None:
        for client in (self._polling, self._replying):
            if client is not None:
                client.close()

    def _trouble(self, reason: EC262Error) -> None:
        if isinstance(reason, ProblemError) and reason.code == "unknown-worker":
            self._registration.beat_now()  # which registers again, if need be
        if not self._failing:
            self._failing = True
            log.warning("the relay: %s (the worker keeps trying)", shown(reason))

    def _begin(self, call: m.RelayedCall) -> None:
        """Has a call served, unless it came before: it is sent again where nothing says that it came."""
        if call.call_id in self._known:
            return
        self._known[call.call_id] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        self._serving += 1
        if time.monotonic() < self._called_until_s:
            self.called()
        self._served.spawn(self._serve, call)

    def _serve(self, call: m.RelayedCall) -> None:
        try:
            try:
                request = unpack_request(call.call)
                reply = self._answer(call.sender, request)
            except Malformed as reason:
                log.log(EVENT, "a foreman sent nonsense through the relay: %s", shown(reason))
                reply = RelayedAnswer(status=MISSING)
            self._send(call.call_id, m.RelayReply(reply=pack(reply)))
        finally:
            self._serving -= 1

    def _answer(self, sender: str, request: RelayedRequest) -> RelayedAnswer:
        now_s = time.monotonic()
        if request.what == "keep":
            kept = self._transfers.keep(sender, request, now_s)
            return RelayedAnswer(status=KEPT if kept else 503)
        if request.what == "more":
            return self._transfers.more(sender, request, now_s)
        if request.what == "over":
            self._transfers.over(sender, request.transfer)
            return RelayedAnswer(status=KEPT)
        body = self._transfers.whole(sender, request)
        if body is None:
            return RelayedAnswer(status=MISSING)
        answer, content = serve(self._application, request, body)
        return self._transfers.answer(sender, request.transfer, answer, content, time.monotonic())

    def _send(self, call_id: str, reply: m.RelayReply) -> None:
        client, standing = self._replying, self._registration.standing
        until_s = time.monotonic() + REPLY_FOR_S
        pause_s = self._settings.retry_s
        while client is not None and standing is not None:
            try:
                client.reply_to_call(standing.worker_id, call_id, reply)
                return
            except ProblemError as reason:
                if reason.status < 500 and reason.code != "rate-limited":
                    log.debug("a reply was not wanted any more: %s", shown(reason))
                    return
            except NetworkError as reason:
                log.debug("a reply through the relay got stuck: %s", shown(reason))
            if time.monotonic() > until_s:
                return
            gevent.sleep(pause_s)
            pause_s = min(pause_s * 2, 4.0)


_LONGEST = max(route.max_body_bytes for route in routes_of("worker"))


def serve(application: Application, request: RelayedRequest, body: bytes) -> tuple[RelayedAnswer, bytes]:
    """What the worker's application answers to a request, and the body of that."""
    if len(body) > _LONGEST:
        return RelayedAnswer(status=413), b""
    path, _, query = request.target.partition("?")
    builder = EnvironBuilder(
        path=path,
        query_string=query,
        method=request.method,
        input_stream=io.BytesIO(body),
        content_type=request.media or None,
        content_length=len(body),
        headers=[
            (name, value)
            for name, value in (
                ("Authorization", request.authorization),
                ("Accept", request.accept),
                ("User-Agent", request.agent),
            )
            if value
        ],
    )
    pieces, status, headers = run_wsgi_app(application, builder.get_environ(), buffered=True)
    media = headers.get("Content-Type", "")
    return RelayedAnswer(status=int(status.split(" ", 1)[0]), media=media[:2048]), b"".join(pieces)
