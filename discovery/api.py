"""API: parses requests, calls the rules, replies. One view a route of `ec262.protocol.routes`."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

import msgspec
import redis
from flask import Blueprint, Flask, Response, request

from discovery.api_page import HEADERS, api_page
from discovery.condition import Condition
from discovery.disputes import Disputes
from discovery.explaining import Explaining
from discovery.gate import Gate
from discovery.jobs import Jobs
from discovery.leaderboard import Leaderboard
from discovery.leasing import Leasing
from discovery.ledger import totals
from discovery.metrics import ROUTE, exposition
from discovery.registry import Registry, hash_of
from discovery.relay import Relay
from discovery.settings import Settings
from discovery.settlement import Settlement
from discovery.statements import MOST_LINES, Statements
from discovery.store.store import Store
from discovery.trust import Trust
from ec262 import __version__
from ec262.errors import ProblemError
from ec262.protocol import messages as m
from ec262.protocol.openapi import openapi_document
from ec262.protocol.routes import BY_NAME, Route, routes_of
from ec262.responses import answer_errors, problem

log = logging.getLogger("ec262.discovery")

_PASSING = re.compile(r"\b(OOM|MISCONF|READONLY|MASTERDOWN|CLUSTERDOWN|NOREPLICAS|TRYAGAIN)\b")
"""What a store says that refuses commands for now: out of memory, out of disk, a replica that is not the master yet."""
_SAY_EVERY_S = 10.0
_ID = re.compile(r"[0-9a-f]{16,32}")


class Api:
    """The views, by the names of their routes.

    Attributes:
        ending: tells whether this process is about to end.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        leasing: Leasing,
        settlement: Settlement,
        trust: Trust,
        disputes: Disputes,
        jobs: Jobs,
        condition: Condition,
        leaderboard: Leaderboard,
        relay: Relay,
        settings: Settings,
        gate: Gate,
    ) -> None:
        self._store = store
        self._registry = registry
        self._leasing = leasing
        self._settlement = settlement
        self._trust = trust
        self._disputes = disputes
        self._explaining = Explaining(store, trust)
        self._jobs = jobs
        self._leaderboard = leaderboard
        self._relay = relay
        self._statements = Statements(store)
        self._condition = condition
        self._settings = settings
        self._gate = gate
        self._openapi = msgspec.json.encode(openapi_document("discovery", __version__))
        self._page = api_page({party: openapi_document(party, __version__) for party in ("discovery", "worker")})
        self._totals_lock = threading.Lock()
        self.ending: Callable[[], bool] = bool
        self._totals: tuple[float, tuple[int, int, int, int]] = (float("-inf"), (0, 0, 0, 0))

    def describe(self, account_id: str) -> m.Message:
        """GET /"""
        return m.ServiceState(
            service="ec262 discovery",
            version=__version__,
            network=self._settings.network,
            distinct=self._settings.distinct,
            workers=self._store.workers_alive(),
            account=self._registry.account_state(account_id) if account_id else None,
        )

    def openapi(self, account_id: str) -> Response:
        """GET /openapi.json"""
        return Response(self._openapi, content_type="application/json")

    def docs(self, account_id: str) -> Response:
        """GET /docs"""
        return Response(self._page, content_type=BY_NAME["discovery", "docs"].media, headers=HEADERS)

    def metrics(self, account_id: str) -> Response:
        """GET /metrics: for those whom the operator named.

        A forwarded request is somebody else's than the address says, unless a proxy that is believed forwarded it.
        """
        if self._gate.caller() not in self._settings.metrics or self._gate.unnamed():
            raise ProblemError(403, "forbidden", "only addresses that --metrics names may read this")
        made = exposition(self._store.rates, self._totals_now)
        return Response(made, content_type=BY_NAME["discovery", "metrics"].media)

    def live(self, account_id: str) -> m.Message:
        """GET /v1/live"""
        return m.Health(status="ok")

    def ready(self, account_id: str) -> m.Message:
        """GET /v1/ready"""
        if self.ending():
            raise ProblemError(503, "unavailable", "this process is about to end: ask another one")
        self._store.ping()
        return m.Health(status="ok")

    def health(self, account_id: str) -> m.Message:
        """GET /v1/health"""
        self._store.ping()
        return self._condition.health()

    def credits(self, account_id: str) -> m.Message:
        """GET /v1/credits: added up at most once a second, because the sum costs time for every account."""
        minted, burnt, accounts, escrow = self._totals_now()
        return m.Credits(minted=minted, burnt=burnt, accounts=accounts, escrow=escrow)

    def create_account(self, account_id: str, body: m.CreateAccount) -> m.Message:
        """POST /v1/accounts"""
        self._condition.admit()
        return self._registry.create_account(self._gate.caller(), body)

    def account(self, account_id: str) -> m.Message:
        """GET /v1/account"""
        return self._registry.account_state(account_id)

    def rename_account(self, account_id: str, body: m.RenameAccount) -> m.Message:
        """PUT /v1/account"""
        return self._registry.rename_account(account_id, body)

    def rotate_key(self, account_id: str, body: m.RotateKey) -> m.Message:
        """PUT /v1/account/secret"""
        given = request.authorization
        assert given is not None
        assert given.password is not None
        return self._registry.rotate_key(account_id, given.password, body)

    def show_account(self, account_id: str, body: m.ShowAccount) -> m.Message:
        """PUT /v1/account/name"""
        return self._registry.show_account(account_id, body)

    def leaderboard(self, account_id: str) -> m.Message:
        """GET /v1/leaderboard"""
        return self._leaderboard.get()

    def register_worker(self, account_id: str, body: m.RegisterWorker) -> m.Message:
        """POST /v1/workers"""
        caller, unnamed = self._gate.caller(), self._gate.unnamed()
        relay = self._registry.try_worker(caller, body, unnamed=unnamed)
        done = self._registry.register(account_id, caller, body, relay)
        if done.lost_leases:
            self._settlement.expire_leases(done.lost_leases)
        return self._registry.registered(body, done, relay)

    def heartbeat(self, account_id: str, worker_id: str, body: m.Heartbeat) -> m.Message:
        """POST /v1/workers/<id>/heartbeats"""
        caller = self._gate.caller()
        beat = self._registry.heartbeat(account_id, caller, worker_id, body)
        if beat is None:
            raise _unknown_worker()
        if body.receipts or body.unseen:
            self._settlement.show(worker_id, body.receipts)
            self._settlement.release(worker_id, body.unseen)
            beat = self._registry.heartbeat(account_id, caller, worker_id, body) or beat
        return m.HeartbeatAnswer(
            server_time_s=beat.now_ms / 1000,
            open_leases=beat.open_leases,
            earned=beat.earned,
            balance=beat.balance,
            relay=beat.called,
        )

    def leave(self, account_id: str, worker_id: str) -> Response:
        """DELETE /v1/workers/<id>"""
        if not self._registry.leave(account_id, worker_id):
            raise _unknown_worker()
        return Response(status=204)

    def lease_tasks(self, account_id: str, body: m.LeaseTasks) -> m.Message:
        """POST /v1/tasks"""
        self._condition.admit()
        return self._leasing.lease(account_id, body)

    def settle(self, account_id: str, body: m.Settle) -> m.Message:
        """POST /v1/settlements"""
        return self._settlement.settle(account_id, body)

    def audit(self, account_id: str, body: m.AuditTasks) -> m.Message:
        """POST /v1/audits"""
        return self._trust.audit(account_id, body)

    def dispute(self, account_id: str, body: m.Dispute) -> m.Message:
        """POST /v1/disputes"""
        return self._disputes.dispute(account_id, body)

    def explain(self, account_id: str, task_id: str) -> m.Message:
        """GET /v1/tasks/<id>/explanation"""
        return self._explaining.task(account_id, task_id)

    def report_job(self, account_id: str, job_id: str, body: m.JobReport) -> m.Message:
        """PUT /v1/jobs/<id>"""
        self._trust.touch((account_id, job_id))
        return self._jobs.report(account_id, job_id, body)

    def jobs(self, account_id: str) -> m.Message:
        """GET /v1/jobs"""
        return self._jobs.of(account_id)

    def statement(self, account_id: str) -> m.Message:
        """GET /v1/account/ledger"""
        return self._statements.of(account_id, _whole("before", 0), _whole("limit", MOST_LINES))

    def transfer(self, account_id: str, body: m.Transfer) -> m.Message:
        """POST /v1/transfers"""
        self._condition.admit()
        return self._statements.transfer(account_id, body)

    def call_relay(self, account_id: str, worker_id: str, body: m.CallRelay) -> m.Message:
        """POST /v1/relay/<worker>"""
        until_ms, sender = self._registry.caller_of(account_id, worker_id, body.relay_pass)
        reply = self._relay.call(
            *(account_id, worker_id, sender, body.call), wait_s=body.wait_s, pass_until_ms=until_ms
        )
        return m.RelayReply(reply=reply)

    def take_calls(self, account_id: str, worker_id: str, body: m.TakeCalls) -> m.Message:
        """POST /v1/workers/<id>/calls"""
        taken = self._relay.take(account_id, worker_id, body)
        if taken is None:
            raise _unknown_worker()
        return taken

    def reply_to_call(self, account_id: str, worker_id: str, call_id: str, body: m.RelayReply) -> Response:
        """POST /v1/workers/<id>/calls/<call>"""
        if not (_ID.fullmatch(worker_id) and _ID.fullmatch(call_id)):  # part of the latter names a channel of the store
            raise ProblemError(404, "not-found", "no worker or call has such an id")
        self._relay.reply(worker_id, call_id, body.reply)
        return Response(status=204)

    def _totals_now(self) -> tuple[int, int, int, int]:
        with self._totals_lock:
            if time.monotonic() - self._totals[0] > 1.0:
                self._totals = (time.monotonic(), totals(self._store))
            return self._totals[1]

    # --- the one way in for all of them ---

    def blueprint(self) -> Blueprint:
        """All routes of discovery, each bound to the view of its name."""
        blueprint = Blueprint("api", __name__)
        for route in routes_of("discovery"):
            blueprint.add_url_rule(route.path, route.name, self._bind(route), methods=[route.method])
        self._gate.guard(blueprint)
        return blueprint

    def _bind(self, route: Route) -> Callable[..., Response]:
        view = getattr(self, route.name)

        def answer(**path: str) -> Response:
            request.environ[ROUTE] = route.name
            account_id = ""
            if route.auth == "account" or (route.auth == "optional" and request.authorization is not None):
                account_id = self._authenticate(route)
            else:
                self._gate.enter(route)
            if route.request is not None:
                if request.mimetype not in (m.JSON, m.PACKED):
                    return problem("unsupported-media-type", f"send the body as Content-Type: {m.JSON} or {m.PACKED}")
                request.max_content_length = route.max_body_bytes
                body = m.decode(route.request, request.get_data(cache=False), request.mimetype)
                path["body"] = body  # type: ignore[assignment]
            made = view(account_id, **path)
            if isinstance(made, Response):
                return made
            media = m.PACKED if request.headers.get("Accept") == m.PACKED else m.JSON
            return Response(m.encode(made, media), content_type=media)

        return answer

    def _authenticate(self, route: Route) -> str:
        given = request.authorization
        if given is None or given.type != "basic" or not given.username or given.password is None:
            self._gate.enter(route)
            raise ProblemError(401, "unauthorized", "send the account id and secret as HTTP Basic credentials")
        banned = self._gate.identify(given.username, hash_of(given.username, given.password))
        if banned is None:
            raise ProblemError(401, "unauthorized", "there is no such account, or its secret is another")
        if banned and route.auth == "account" and not route.banned_too:
            raise ProblemError(403, "banned", f"this account is banned ({banned})")
        return given.username


def _whole(name: str, default: int) -> int:
    """A whole number of the query."""
    given = request.args.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= 16):
        raise ProblemError(400, "bad-request", f"{name}: has to be a whole number, 0 or more")
    return int(given)


def _unknown_worker() -> ProblemError:
    return ProblemError(404, "unknown-worker", "this worker is not registered (or started anew since): register again")


def handle_errors(app: Flask) -> None:
    """Makes every error a problem document with a stable code."""
    said = float("-inf")
    answer_errors(app, log, challenge='Basic realm="EC262 account", charset="UTF-8"')

    @app.errorhandler(redis.ResponseError)
    def store_refused(error: redis.ResponseError) -> Response:
        if isinstance(error, redis.OutOfMemoryError | redis.ReadOnlyError) or _PASSING.search(str(error)):
            return store_down(error)
        log.error("a fault of this service: the store refused a command: %s", error)
        return problem("internal-error", "a fault of this service, not of the request; it is logged")

    @app.errorhandler(redis.RedisError)
    def store_down(error: redis.RedisError) -> Response:
        nonlocal said
        if time.monotonic() - said > _SAY_EVERY_S:  # not for each request of an outage
            said = time.monotonic()
            log.error("the store does not take commands, and requests get 503: %s", error)
        return problem("unavailable", "the service's store does not answer: try again later")
