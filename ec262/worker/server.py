"""Server: what a worker answers over HTTP. Parses, checks who may, asks `Holdings`, replies."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable

from flask import Flask, Response, request
from gevent.event import Event

from ec262 import __version__
from ec262.config import WorkerSettings
from ec262.errors import Malformed, ProblemError, SealBroken, TicketRefused
from ec262.protocol import messages as m
from ec262.protocol.openapi import openapi_document
from ec262.protocol.polling import check_poll_authorization
from ec262.protocol.receipts import ReceiptBundle, seal_receipts
from ec262.protocol.relaying import challenge, proof
from ec262.protocol.routes import Route, routes_of
from ec262.protocol.tickets import Ticket, TicketBundle, open_tickets
from ec262.responses import answer_errors, problem, refuse_old
from ec262.worker.events import EVENT
from ec262.worker.holdings import Finished, HeldJob, Holdings, WorkerFull
from ec262.worker.lease import Registration, Standing
from ec262.worker.runner import Runner
from ec262.worker.unsettled import UnsettledReceipts

log = logging.getLogger("ec262.worker")

_OPENED_BUNDLES = 8


class _TicketsOnly(m.Message, frozen=True, kw_only=True):
    """The one field of a push that is looked at before the sender has proven anything."""

    tickets: m.Token


class _Poll:
    """A request for results that waits."""

    __slots__ = ("awake", "superseded")

    def __init__(self) -> None:
        self.awake = Event()
        self.superseded = False


class Api:
    """The views, by the names of their routes.

    Args:
        now_s: discovery's clock.
        give_back_unwanted: called with the job of each push that brought something.

    Attributes:
        on_call: called when discovery calls the worker to the relay.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        holdings: Holdings,
        unsettled: UnsettledReceipts,
        registration: Registration,
        runner: Runner,
        now_s: Callable[[], float],
        give_back_unwanted: Callable[[HeldJob], None] = lambda _: None,
    ) -> None:
        self._give_back_unwanted = give_back_unwanted
        self._settings = settings
        self._holdings = holdings
        self._unsettled = unsettled
        self._registration = registration
        self._runner = runner
        self._now_s = now_s
        self._polls: dict[HeldJob, _Poll] = {}
        self._opened: OrderedDict[tuple[bytes, int, bytes], tuple[TicketBundle, dict[str, Ticket]]] = OrderedDict()
        self._leaving = False
        self.on_call: Callable[[], None] = lambda: None
        self._openapi = json.dumps(openapi_document("worker", __version__))
        self._python = f"{sys.version_info[0]}.{sys.version_info[1]}"

    def worker_state(self) -> m.Message:
        """GET /"""
        standing = self._registration.standing
        return m.WorkerState(
            service="ec262 worker",
            version=__version__,
            worker_id=standing.worker_id if standing is not None else "",
            slots=self._settings.slots,
            python=self._python,
            running=sum(job.running for job in self._holdings.jobs.values()),
            queued=sum(len(job.queue) for job in self._holdings.jobs.values()),
        )

    def openapi(self) -> Response:
        """GET /openapi.json"""
        return Response(self._openapi, content_type=m.JSON)

    def push_tasks(self, content: bytes, media: str) -> m.Message:
        """POST /v1/tasks: the tickets come first; of a sender without good ones nothing else is looked at."""
        standing = self._standing()
        token = m.decode(_TicketsOnly, content, media).tickets
        bundle, tickets = self._open(standing, token)
        push = m.decode(m.PushTasks, content, media)
        pushed = self._holdings.take(bundle, tickets, push, capacity=standing.capacity, now_s=self._now_s())
        if pushed.taken:
            self._give_back_unwanted(self._holdings.jobs[bundle.job_id, bundle.poll_key])
            self._runner.wake()
            if log.isEnabledFor(EVENT):
                log.log(EVENT, "took %d task%s of job %s", pushed.taken, "s" * (pushed.taken > 1), bundle.job_id[:8])
        return pushed

    def fetch_results(self, job_id: str) -> m.Message:
        """GET /v1/jobs/<job>/results: waits until there is something worth an answer. Of two at a time the later one
        gets it."""
        after = _number("after", 0, 10**18)
        wait_s = min(_number("wait_s", 0.0, 86_400.0), self._settings.poll_wait_s)
        job = self._authenticated_job(job_id, "GET")
        holdings = self._holdings
        had_room = holdings.has_room
        holdings.acknowledge(job, int(after), self._now_s())
        if not had_room and holdings.has_room:
            self._runner.wake()
        before = self._polls.get(job)
        if before is not None:
            before.superseded = True
            before.awake.set()
        poll = self._polls[job] = _Poll()
        try:
            self._await_results(job, poll, wait_s)
        finally:
            if self._polls.get(job) is poll:
                del self._polls[job]
                job.changed = None
        if holdings.jobs.get(_key(job)) is not job:
            raise _unknown_job()
        return self._results(job, [] if poll.superseded else holdings.deliver(job), int(after))

    def cancel_job(self, job_id: str) -> m.Message:
        """DELETE /v1/jobs/<job>"""
        job = self._authenticated_job(job_id, "DELETE")
        receipts = self._holdings.refuse(job, lambda _: "cancelled")
        now_s = time.monotonic()
        for receipt in receipts:
            self._unsettled.keep(receipt, now_s)
        log.log(EVENT, "job %s was cancelled: gave back %d tasks", job.job_id[:8], len(receipts))
        return m.Cancelled(refused=len(receipts))

    def prove(self, nonce: str, why: str, mac: str) -> m.Message:
        """GET /v1/challenge/...: discovery looks whether it can connect to this worker, or calls it to the relay. Who
        does not know the boot id, which nobody else does, finds nothing here."""
        boot_id = self._registration.boot_id
        if why not in ("reach", "call") or not hmac.compare_digest(
            mac.encode(), challenge(boot_id, nonce, why).encode()
        ):
            raise ProblemError(404, "not-found", "there is nothing at this path")
        if why == "call":
            self.on_call()
        return m.Proof(proof=proof(boot_id, nonce))

    def let_go(self) -> None:
        """Lets waiting polls answer at once: the worker stops."""
        self._leaving = True
        for poll in self._polls.values():
            poll.awake.set()

    # --- results ---

    def _await_results(self, job: HeldJob, poll: _Poll, wait_s: float) -> None:
        holdings = self._holdings
        until_s = time.monotonic() + wait_s

        def changed() -> None:
            # Called for every result: wakes for the first, and when there is enough.
            if not poll.awake.is_set() and (len(job.outbox) == 1 or holdings.is_answerable(job, job.first_ready_s)):
                poll.awake.set()

        job.changed = changed
        while not poll.superseded and not self._leaving:
            now_s = time.monotonic()
            if holdings.is_answerable(job, now_s) or now_s >= until_s or holdings.jobs.get(_key(job)) is not job:
                return
            rest_s = until_s - now_s
            if job.outbox:
                rest_s = min(rest_s, max(job.first_ready_s + self._settings.linger_s - now_s, 0.0005))
            poll.awake.clear()
            poll.awake.wait(rest_s)

    def _results(self, job: HeldJob, delivered: list[Finished], after: int) -> m.Results:
        standing = self._standing()
        receipts = [finished.receipt for finished in delivered]
        return m.Results(
            results=[finished.result for finished in delivered],
            receipts=seal_receipts(standing.worker_key, ReceiptBundle(standing.worker_id, job.epoch, receipts)),
            cursor=delivered[-1].cursor if delivered else after,
            held=job.unfinished + len(job.outbox) - len(delivered),
        )

    # --- who may ---

    def _standing(self) -> Standing:
        standing = self._registration.standing
        if standing is None:
            raise ProblemError(503, "unavailable", "this worker is not registered with discovery at the moment")
        return standing

    def _open(self, standing: Standing, token: bytes) -> tuple[TicketBundle, dict[str, Ticket]]:
        """The bundle in a token; a large bundle that comes with many pushes is opened once."""
        mark = (standing.worker_key, standing.epoch, hashlib.sha256(token).digest())
        opened = self._opened.get(mark)
        if opened is None:
            bundle = open_tickets(standing.worker_key, token, worker_id=standing.worker_id, epoch=standing.epoch)
            opened = self._opened[mark] = (bundle, {ticket.lease_id: ticket for ticket in bundle.tickets})
            if len(self._opened) > _OPENED_BUNDLES:
                self._opened.popitem(last=False)
        return opened

    def _authenticated_job(self, job_id: str, method: str) -> HeldJob:
        """The job a request proves to be the foreman of.

        Raises:
            ProblemError: ``unknown-job``; ``unauthorized``: not its poll key, or a sequence number used before.
        """
        jobs = list(self._holdings.jobs_named(job_id))
        if not jobs:
            raise _unknown_job()
        query = request.query_string.decode("latin-1")
        target = f"{request.path}?{query}" if query else request.path
        given = request.headers.get("Authorization", "")
        reason = ""
        for job in jobs:
            try:
                sequence = check_poll_authorization(given, job.poll_key, method=method, target=target)
            except Malformed as error:
                reason = str(error)
                continue
            if self._holdings.accept_sequence(job, sequence):
                return job
            reason = "the sequence number was used before: it has to grow from request to request"
        raise ProblemError(401, "unauthorized", reason)

    # --- the one way in for all of them ---

    def app(self) -> Flask:
        """The WSGI application with all routes of a worker, each bound to the view of its name."""
        app = Flask("ec262.worker", static_folder=None)
        app.config["MAX_CONTENT_LENGTH"] = max(route.max_body_bytes for route in routes_of("worker"))
        for route in routes_of("worker"):
            app.add_url_rule(route.path, route.name, self._bind(route), methods=[route.method])
        app.before_request(refuse_old)
        _answer_errors(app)
        return app

    def _bind(self, route: Route) -> Callable[..., Response]:
        view: Callable[..., m.Message | Response] = getattr(self, route.name)

        def answer(**arguments: str) -> Response:
            if route.request is None:
                made = view(**arguments)
            else:
                if request.mimetype not in (m.JSON, m.PACKED):
                    return problem("unsupported-media-type", f"send the body as Content-Type: {m.JSON} or {m.PACKED}")
                made = view(request.get_data(cache=False), request.mimetype)
            if isinstance(made, Response):
                return made
            media = m.PACKED if request.headers.get("Accept") == m.PACKED else m.JSON
            return Response(m.encode(made, media), content_type=media)

        return answer


def _unknown_job() -> ProblemError:
    return ProblemError(404, "unknown-job", "this worker holds nothing of that job")


def _key(job: HeldJob) -> tuple[str, bytes]:
    return job.job_id, job.poll_key


def _number(name: str, default: float, most: float) -> float:
    """A query parameter, 0 to `most`."""
    text = request.args.get(name)
    if text is None:
        return default
    try:
        number: float = int(text) if type(default) is int else float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ProblemError(400, "bad-request", f"{name} has to be a number from 0 to {most:.0f}")
    return number


def _answer_errors(app: Flask) -> None:
    """Makes every error a problem document with a stable code."""
    answer_errors(app, log, challenge="EC262-Poll")

    @app.errorhandler(TicketRefused)
    def ticket_refused(error: TicketRefused) -> Response:
        return problem("ticket-refused", str(error))

    @app.errorhandler(SealBroken)
    def seal_broken(error: SealBroken) -> Response:
        return problem("malformed-body", f"the program: {error}")

    @app.errorhandler(WorkerFull)
    def full(error: WorkerFull) -> Response:
        return problem("unavailable", str(error))
