"""The one door to discovery: a typed method for each of its routes, by the route's name.

geventhttpclient over kept-alive connections. It patches nothing and runs in the gevent hub of the thread that made the
client: **a client belongs to that thread**; any number of its greenlets may use it at once, each call on a connection
of its own. In a thread without gevent a call simply blocks.
"""

from __future__ import annotations

import base64
import random
import socket
import time
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import gevent
import msgspec
from gevent import ssl
from gevent.lock import BoundedSemaphore
from geventhttpclient import HTTPClient
from geventhttpclient.connectionpool import SSLConnectionPool
from geventhttpclient.response import HTTPParseError

from ec262 import __version__
from ec262.config import (
    configured_ca_bundle,
    configured_invitation,
    normalise_url,
    private_peers_allowed,
    require_private_channel,
)
from ec262.credentials import Account
from ec262.errors import (
    DiscoveryUnreachable,
    InsufficientCredits,
    Malformed,
    NetworkError,
    ProblemError,
    SetupError,
    Unauthorized,
)
from ec262.protocol import messages as m
from ec262.protocol.pacing import Pace, cost_of
from ec262.protocol.problems import CONTENT_TYPE
from ec262.protocol.routes import route
from ec262.protocol.scopes import refusal
from ec262.protocol.versions import user_agent

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
_BROKEN = (OSError, HTTPParseError, RuntimeError)
"""What the HTTP library raises when a connection cannot be made or breaks (RuntimeError: a name without addresses)."""
_PACED = frozenset({"call_relay", "take_calls", "reply_to_call"})
"""Routes of the relay: they wait as long as limits of requests make them."""
PACKED = frozenset({"lease_tasks", "settle", "audit", "dispute", *_PACED})
"""Routes that are asked in MessagePack: their bodies are large, and much in them is bytes."""
_LONGEST_LIMIT_S = 60.0
_LIVELY = [
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000))
    if hasattr(socket, name)
]
_NOT_REPEATED = frozenset({"create_account"})
"""Routes of which a second call does something more; all others may be repeated by design."""

M = TypeVar("M", bound=m.Message)


class DiscoveryClient:
    """Calls one discovery service for one account.

    Args:
        url: the service, in any spelling that `config.normalise_url` takes.
        account_id: who calls; empty: nobody, for the routes that need no account.
        secret: the account's.
        concurrency: most calls at the same time; further ones wait for their turn.
        connect_timeout_s: to get a connection.
        answer_timeout_s: between two pieces of an answer.
        retry_for_s: a call that cannot be answered is repeated for so long, with growing pauses (as long as the service
            asks for, where it says), where repeating is harmless (all routes but ``create_account``). 0: once.
        ca_bundle: PEM file of the authorities that an https service's certificate is believed from; None: as the
            environment says, else the usual ones.

    Attributes:
        addresses: where it was connected to, in numbers.

    Raises:
        SetupError: the URL is none, or secrets would travel readable beyond this machine; the bundle cannot be used.
    """

    def __init__(
        self,
        url: str,
        account_id: str = "",
        secret: str = "",
        *,
        concurrency: int = 8,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 30.0,
        retry_for_s: float = 10.0,
        ca_bundle: str | None = None,
    ) -> None:
        self.url = normalise_url(url)
        require_private_channel(self.url)
        self.addresses: set[str] = set()
        self._ca_bundle = configured_ca_bundle() if ca_bundle is None else ca_bundle
        self._tls = _tls(self._ca_bundle) if self.url.startswith("https:") else None
        self._split = urlsplit(self.url)
        self._timeouts_s = (connect_timeout_s, answer_timeout_s)
        self._retry_for_s = retry_for_s
        self._turns = BoundedSemaphore(concurrency)
        self._idle: list[HTTPClient] = []
        self._from: tuple[Any, ...] = ()
        self._closed = False
        self._pace = Pace()
        self.account_id = ""
        self._authorization: dict[str, str] = {}
        if account_id:
            self.use_account(account_id, secret)

    def __repr__(self) -> str:
        return f"<DiscoveryClient {self.url} account={self.account_id or None}>"

    def __enter__(self) -> DiscoveryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use_account(self, account_id: str, secret: str) -> None:
        """From now on, calls are this account's."""
        basic = base64.b64encode(f"{account_id}:{secret}".encode()).decode("ascii")
        self.account_id = account_id
        self._authorization = {"Authorization": f"Basic {basic}"}

    def close(self) -> None:
        """Closes idle connections; those in use close when their calls end."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def sibling(self, *, concurrency: int, answer_timeout_s: float) -> DiscoveryClient:
        """A client of the same service for the same account, whose calls wait for longer and are not repeated."""
        made = DiscoveryClient(
            self.url,
            concurrency=concurrency,
            answer_timeout_s=answer_timeout_s,
            retry_for_s=0.0,
            ca_bundle=self._ca_bundle,
        )
        made.account_id, made._authorization = self.account_id, self._authorization
        return made

    def refuses(self, address: str) -> str:
        """Why not to connect to an address that this service named; empty: nothing speaks against it."""
        return refusal(address, self.addresses, near_too=private_peers_allowed())

    # --- one method a route ---

    def describe(self) -> m.ServiceState:
        """What the service is; with an account, what it has."""
        return self._call("describe", m.ServiceState)

    def openapi(self) -> dict[str, Any]:
        """The service's OpenAPI document."""
        document = msgspec.json.decode(self._answer("openapi", {}, None)[0])
        if not isinstance(document, dict):
            raise NetworkError(f"{self.url} did not answer with an OpenAPI document")
        return document

    def docs(self) -> str:
        """The service's API as a page for people."""
        return self._answer("docs", {}, None)[0].decode()

    def metrics(self) -> str:
        """What the service counted, for Prometheus; only from addresses that its operator named."""
        return self._answer("metrics", {}, None)[0].decode()

    def live(self) -> m.Health:
        """Whether a process of the service answers."""
        return self._call("live", m.Health)

    def ready(self) -> m.Health:
        """Whether a process of the service takes requests."""
        return self._call("ready", m.Health)

    def health(self) -> m.Health:
        """Whether the service can do its work."""
        return self._call("health", m.Health)

    def credits(self) -> m.Credits:
        """All credits there are, added up."""
        return self._call("credits", m.Credits)

    def create_account(self, body: m.CreateAccount) -> m.AccountCreated:
        """Makes an account. Never repeated: an answer that got lost leaves an account nobody has the secret of."""
        return self._call("create_account", m.AccountCreated, body)

    def account(self) -> m.AccountState:
        """What the calling account has."""
        return self._call("account", m.AccountState)

    def rename_account(self, body: m.RenameAccount) -> m.AccountState:
        """Gives the calling account another name."""
        return self._call("rename_account", m.AccountState, body)

    def rotate_key(self, body: m.RotateKey) -> m.KeyRotated:
        """Replaces the calling account's secret; this client goes on with the old one, which is worth nothing then."""
        return self._call("rotate_key", m.KeyRotated, body)

    def show_account(self, body: m.ShowAccount) -> m.AccountState:
        """Puts the calling account on the leaderboard, or takes it off."""
        return self._call("show_account", m.AccountState, body)

    def leaderboard(self) -> m.Leaderboard:
        """Who earned most, of those who want to be seen."""
        return self._call("leaderboard", m.Leaderboard)

    def register_worker(self, body: m.RegisterWorker) -> m.WorkerRegistered:
        """Enters a worker in the pool. The same boot id again changes nothing."""
        return self._call("register_worker", m.WorkerRegistered, body)

    def heartbeat(self, worker_id: str, body: m.Heartbeat) -> m.HeartbeatAnswer:
        """Keeps a worker in the pool, shows receipts."""
        return self._call("heartbeat", m.HeartbeatAnswer, body, worker_id=worker_id)

    def leave(self, worker_id: str) -> None:
        """Takes a worker out of the pool."""
        self._answer("leave", {"worker_id": worker_id}, None)

    def lease_tasks(self, body: m.LeaseTasks) -> m.Leased:
        """Puts credits in escrow and gets workers. Its idempotency key makes repeating harmless.

        Each `position` in the answer is that of another of the tasks in `body`.

        Raises:
            NetworkError: the answer has a task that was not asked for, or one twice.
        """
        leased = self._call("lease_tasks", m.Leased, body)
        positions = {task.position for task in leased.tasks}
        ids = {task.task_id for task in leased.tasks}
        if len(positions) < len(leased.tasks) or len(ids) < len(leased.tasks):
            raise self._strange("lease_tasks", "leased a task twice")
        if positions and max(positions) >= len(body.tasks):
            raise self._strange("lease_tasks", "leased a task that was not asked for")
        return leased

    def settle(self, body: m.Settle) -> m.Settled:
        """Shows receipts, gets verdicts, in the order asked for. Repeating gives the same verdicts again.

        But not ``more``: what an answer leased that got lost is told again to who says what is `known`.

        Raises:
            NetworkError: the verdicts are not of the tasks that were to be decided, or one leases another task.
        """
        settled = self._call("settle", m.Settled, body)
        if [verdict.task_id for verdict in settled.tasks] != list(dict.fromkeys(body.decide)):
            raise self._strange("settle", "decided other tasks than those it was asked about")
        if any(verdict.task is not None and verdict.task.task_id != verdict.task_id for verdict in settled.tasks):
            raise self._strange("settle", "leased another task than it decided on")
        return settled

    def audit(self, body: m.AuditTasks) -> m.Audited:
        """Asks whether accepted tasks still hold. Repeating is harmless."""
        return self._call("audit", m.Audited, body)

    def dispute(self, body: m.Dispute) -> m.Disputed:
        """Shows that a paid result is not what its worker committed itself to. Repeating gives the same answer."""
        return self._call("dispute", m.Disputed, body)

    def explain(self, task_id: str) -> m.Explanation:
        """Who answered a task, what they weighed, and why it was decided so."""
        return self._call("explain", m.Explanation, task_id=task_id)

    def report_job(self, job_id: str, body: m.JobReport) -> m.JobReported:
        """Says how a job stands; the last report counts, so that repeating is harmless."""
        return self._call("report_job", m.JobReported, body, job_id=job_id)

    def jobs(self) -> m.Jobs:
        """How the calling account's jobs stand."""
        return self._call("jobs", m.Jobs)

    def statement(self, before: int = 0, limit: int = 100) -> m.Statement:
        """What the calling account received and paid, the newest first; `before`: as the page before said."""
        return self._call("statement", m.Statement, before=str(before), limit=str(limit))

    def transfer(self, body: m.Transfer) -> m.Transferred:
        """Sends credits. Its idempotency key makes repeating harmless."""
        return self._call("transfer", m.Transferred, body)

    def call_relay(self, worker_id: str, body: m.CallRelay) -> m.RelayReply:
        """Calls a worker through the relay: once, for whether repeating is harmless only the caller knows.

        What a limit of requests refused was not carried: it goes out again when there is room, as slowly as that makes
        it. Nobody is to blame for that, least of all the worker.
        """
        return self._call("call_relay", m.RelayReply, body, worker_id=worker_id)

    def take_calls(self, worker_id: str, body: m.TakeCalls) -> m.CallsTaken:
        """Waits for calls through the relay. Limits are obeyed as by `call_relay`."""
        return self._call("take_calls", m.CallsTaken, body, worker_id=worker_id)

    def reply_to_call(self, worker_id: str, call_id: str, body: m.RelayReply) -> None:
        """Replies to a call. Repeating is harmless. Limits are obeyed as by `call_relay`."""
        self._answer("reply_to_call", {"worker_id": worker_id, "call_id": call_id}, body)

    # --- how ---

    def _strange(self, name: str, what: str) -> NetworkError:
        return NetworkError(f"the answer of {self.url} to {name} is wrong: it {what}; is it another version of EC262?")

    def _call(self, name: str, response: type[M], body: m.Message | None = None, **path: str) -> M:
        answer, media = self._answer(name, path, body)
        try:
            return m.decode(response, answer, media)
        except Malformed as reason:
            wanted = response.__name__
            raise NetworkError(f"{self.url} answered {name} with something else than {wanted}: {reason}") from None

    def _answer(self, name: str, path: Mapping[str, str], body: m.Message | None) -> tuple[bytes, str]:
        """The body of a good answer, and its media type: a service may answer in JSON whatever was asked for.

        Raises:
            Unauthorized: account or secret are wrong (401).
            InsufficientCredits: 402.
            ProblemError: the service said no otherwise. ``busy``, ``unavailable`` and ``rate-limited`` only after
                repeated calls, which wait at least as long as the service says (``Retry-After``); ``rate-limited``
                never of the relay's routes.
            DiscoveryUnreachable: no answer, also not to repeated calls.
            NetworkError: an answer that is none, or too large.
        """
        called = route("discovery", name)
        target = self._split.path + called.path
        for part, value in path.items():
            target = target.replace(f"<{part}>", value)
        if called.query:
            target += "?" + "&".join(f"{name}={path[name]}" for name in called.query)
        media = m.PACKED if name in PACKED else m.JSON
        content = b"" if body is None else m.encode(body, media)
        headers = dict(self._authorization) if called.auth in ("account", "optional") else {}
        if body is not None:
            headers["Content-Type"] = headers["Accept"] = media
        until = time.monotonic() + (0.0 if name in _NOT_REPEATED else self._retry_for_s)
        pause_s = 0.05
        paced, cost = name in _PACED, cost_of(len(content))
        while True:
            retry_s = 0.0
            if paced:
                self._await_turn(cost)
            try:
                status, kind, answer, asked_s = self._exchange(called.method, target, content, headers)
            except ssl.SSLCertVerificationError as reason:
                raise DiscoveryUnreachable(
                    f"discovery at {self.url} shows a certificate that is not to be believed "
                    f"({_plain(reason.verify_message)}); of an authority of your own, name the file with it in "
                    "EC262_CA_BUNDLE"
                ) from reason
            except _BROKEN as reason:
                why = _plain(reason)
                if isinstance(reason, ssl.SSLError) and "WRONG_VERSION_NUMBER" in why:
                    why = "what answers there does not speak TLS; should it be http://?"
                problem: NetworkError = DiscoveryUnreachable(
                    f"discovery at {self.url} does not answer ({why}); is it running there?"
                )
                cause: BaseException | None = reason
            else:
                if 200 <= status < 300:
                    self._pace.answered(cost)
                    return answer, kind
                refused = _problem_of(status, kind, answer, asked_s)
                if paced and refused.code == "rate-limited":
                    self._pace.refused(min(max(asked_s, 1.0), _LONGEST_LIMIT_S), time.monotonic())
                    continue
                if status != 503 and refused.code != "rate-limited":
                    raise refused
                problem, cause = refused, None
                retry_s = asked_s
                pause_s = max(pause_s, retry_s)
            if time.monotonic() + pause_s > until:
                raise problem from cause
            gevent.sleep(max(retry_s * random.uniform(1.0, 1.2), pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(pause_s * 2, 2.0)

    def _await_turn(self, cost: int) -> None:
        slowed = -1
        while slowed != self._pace.slowed:
            slowed = self._pace.slowed
            gevent.sleep(self._pace.turn(cost, time.monotonic()))

    def _exchange(
        self, method: str, target: str, content: bytes, headers: dict[str, str]
    ) -> tuple[int, str, bytes, float]:
        """One request and its answer, on a connection nobody else uses meanwhile: status, content type, body, and for
        how long the service wants to be left alone."""
        with self._turns:
            if self._idle and not _is_here(self._from):
                # The machine has moved: what is said on these connections arrives nowhere, and nobody would say so.
                while self._idle:
                    self._idle.pop().close()
            connection = self._idle.pop() if self._idle else self._connect()
            sound = False
            try:
                response = connection.request(method, target, body=content, headers=headers)
                pieces: list[bytes] = []
                size = 0
                while piece := response.read(_PIECE_BYTES):
                    size += len(piece)
                    if size > MAX_ANSWER_BYTES:
                        raise NetworkError(f"{self.url} answered with more than {MAX_ANSWER_BYTES} bytes")
                    pieces.append(piece)
                sound = True
            finally:
                # After an error or a kill half an answer may be on its way: that connection is nobody's any more.
                if sound and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()
            kind, after = str(response.get("content-type") or ""), str(response.get("retry-after") or "")
            return int(response.status_code), kind, b"".join(pieces), _seconds(after)

    def _connect(self) -> HTTPClient:
        connect_s, answer_s = self._timeouts_s
        tls = self._tls
        made = HTTPClient(
            self._split.hostname or "",
            self._split.port or (443 if self._split.scheme == "https" else 80),
            ssl=self._split.scheme == "https",
            headers={"User-Agent": user_agent(__version__), "Accept": "application/json"},
            connection_timeout=connect_s,
            network_timeout=answer_s,
            block_size=64 * 1024,
            concurrency=1,
            ssl_context_factory=None if tls is None else lambda **_: tls,
        )
        setattr(made._connection_pool, "after_connect", self._note_address)  # noqa: B010 - a hook, says its author
        return made

    def _note_address(self, connection: Any) -> None:
        # Of the connection itself, because a name may mean another address each time it is asked for.
        self.addresses.add(str(connection.getpeername()[0]))
        self._from = connection.getsockname()
        # A line that is dead, or an address that we no longer have, is noticed while an answer is waited for.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _LIVELY:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _seconds(retry: str) -> float:
    """What a ``Retry-After`` header says; where it says a date, or nothing, the caller's own pauses do."""
    return float(retry) if retry.isascii() and retry.isdigit() and len(retry) < 7 else 0.0


def _is_here(local: tuple[Any, ...]) -> bool:
    """Whether this machine still has the address of a socket's near end, as ``getsockname`` gave it."""
    try:
        with socket.socket(socket.AF_INET if len(local) == 2 else socket.AF_INET6, socket.SOCK_DGRAM) as tried:
            tried.bind((local[0], 0, *local[2:]))
    except OSError:
        return False
    return True


def _tls(ca_bundle: str) -> ssl.SSLContext:
    """How clients speak TLS: the certificate has to be of the name in the URL, and of an authority that is believed."""
    # gevent's: what `create_default_context` makes is the standard library's, and keeps all greenlets waiting. It asks
    # for a certificate of the right name by itself.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca_bundle or SSLConnectionPool.default_options["ca_certs"])
        return context
    except (OSError, ssl.SSLError) as reason:
        raise SetupError(f"the authorities in {ca_bundle} (EC262_CA_BUNDLE) cannot be used: {reason}") from None


def _problem_of(status: int, kind: str, answer: bytes, asked_s: float) -> ProblemError:
    """The error a problem document stands for."""
    code, detail = "http-error", f"discovery answered with HTTP status {status}"
    fields: dict[str, object] = {}
    if kind.startswith(CONTENT_TYPE):
        try:
            problem = m.decode(m.Problem, answer)
        except Malformed:
            pass
        else:
            code, detail = _plain(problem.code), _plain(problem.detail)
            fields = {"needed": problem.needed, "available": problem.available}
    if asked_s:
        fields["retry_after_s"] = asked_s
    if status == 401:
        return Unauthorized(status, code, detail, **fields)
    if status == 402:
        return InsufficientCredits(status, code, detail, **fields)
    return ProblemError(status, code, detail, **fields)


def create_account_at(client: DiscoveryClient, name: str = "", invitation: str | None = None) -> Account:
    """A new account at the client's service; the client goes on as this account.

    Args:
        invitation: where the service wants one; None: the environment's, if it has any.
    """
    code = configured_invitation() if invitation is None else invitation
    made = client.create_account(m.CreateAccount(name=name, invitation=code))
    client.use_account(made.account_id, made.secret)
    return Account(made.account_id, made.secret)


def _plain(thing: object) -> str:
    """Text from outside, without control characters, of a bearable length."""
    text = "".join(c if c.isprintable() else " " for c in str(thing)[:2000])
    return text or type(thing).__name__
