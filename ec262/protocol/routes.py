"""Routes: every path that a party serves, in one place.

Servers register these, clients call these, the OpenAPI document is made of these, and a test compares the tables in
docs/protocol.md with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ec262.protocol import messages as m

Party = Literal["discovery", "worker"]
Auth = Literal["none", "optional", "account", "ticket", "poll", "challenge"]

API_VERSION = "v1"
OLDEST_CLIENT = (0, 1)
"""EC262 of an older version (major, minor) is told to upgrade. To be raised when it is not understood any more."""
MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method.

    Attributes:
        name: the verb that client and server functions carry.
        auth: ``account``: HTTP Basic with account id and secret; ``ticket``: the body's ticket bundle; ``poll``: a MAC
            under the job's poll key (`ec262.protocol.polling`); ``challenge``: a MAC under the worker's boot id
            (`ec262.protocol.relaying`).
        problems: codes it may answer with, beside those every route may (`EVERYWHERE`).
        max_body_bytes: larger bodies are refused unread.
        banned_too: whether a banned account may call it. Every other route that needs an account answers ``banned``.
        media: of a good answer.
    """

    name: str
    party: Party
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    auth: Auth
    request: type[m.Message] | None
    response: type[m.Message] | None
    summary: str
    problems: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 1024
    query: tuple[str, ...] = ()
    banned_too: bool = False
    media: str = "application/json"

    def __post_init__(self) -> None:
        if self.auth == "account" and self.party == "discovery" and not self.banned_too:
            object.__setattr__(self, "problems", (*self.problems[:1], "banned", *self.problems[1:]))


EVERYWHERE = (
    *("bad-request", "request-timeout", "body-too-large", "uri-too-long", "headers-too-large"),
    *("upgrade-required", "rate-limited", "internal-error", "busy", "unavailable"),
)
_BODY = ("malformed-body", "unsupported-media-type")

ROUTES: tuple[Route, ...] = (
    Route("describe", "discovery", "GET", "/", "optional", None, m.ServiceState,
          "What this service is; with credentials, who you are and what you have", ("unauthorized",)),
    Route("openapi", "discovery", "GET", "/openapi.json", "none", None, None, "This table as an OpenAPI document"),
    Route("docs", "discovery", "GET", "/docs", "none", None, None, "This table as a page for people",
          media="text/html; charset=utf-8"),
    Route("metrics", "discovery", "GET", "/metrics", "none", None, None,
          "Counters for Prometheus, for those addresses alone that the operator named", ("forbidden",),
          media="text/plain; version=0.0.4; charset=utf-8"),
    Route("live", "discovery", "GET", "/v1/live", "none", None, m.Health, "Whether this process answers; asks nobody"),
    Route("ready", "discovery", "GET", "/v1/ready", "none", None, m.Health,
          "Whether this process takes requests: it can do its work, and is not about to end"),
    Route("health", "discovery", "GET", "/v1/health", "none", None, m.Health, "Whether the service can do its work"),
    Route("credits", "discovery", "GET", "/v1/credits", "none", None, m.Credits, "All credits there are, added up"),
    Route("create_account", "discovery", "POST", "/v1/accounts", "none", m.CreateAccount, m.AccountCreated,
          "Make an account with starting credits",
          ("registration-closed", "invitation-refused", "too-many", *_BODY)),
    Route("account", "discovery", "GET", "/v1/account", "account", None, m.AccountState,
          "What the calling account has", ("unauthorized",), banned_too=True),
    Route("rename_account", "discovery", "PUT", "/v1/account", "account", m.RenameAccount, m.AccountState,
          "Give the calling account another name", ("unauthorized", *_BODY)),
    Route("rotate_key", "discovery", "PUT", "/v1/account/secret", "account", m.RotateKey, m.KeyRotated,
          "Replace the calling account's secret; sessions of its pages end", ("unauthorized", "conflict", *_BODY)),
    Route("show_account", "discovery", "PUT", "/v1/account/name", "account", m.ShowAccount, m.AccountState,
          "Be on the leaderboard under a name, or not be there", ("unauthorized", *_BODY)),
    Route("leaderboard", "discovery", "GET", "/v1/leaderboard", "none", None, m.Leaderboard,
          "Who earned most, of those who want to be seen"),
    Route("register_worker", "discovery", "POST", "/v1/workers", "account", m.RegisterWorker, m.WorkerRegistered,
          "Enter the pool, or return to it",
          ("unauthorized", "forbidden", "unreachable", "too-many", "conflict", *_BODY)),
    Route("heartbeat", "discovery", "POST", "/v1/workers/<worker_id>/heartbeats", "account", m.Heartbeat,
          m.HeartbeatAnswer, "Stay in the pool; show receipts nobody settled",
          ("unauthorized", "unknown-worker", *_BODY), 32 * MEGABYTE),
    Route("leave", "discovery", "DELETE", "/v1/workers/<worker_id>", "account", None, None,
          "Leave the pool; what the worker holds stays its own until it is settled or due",
          ("unauthorized", "unknown-worker")),
    Route("lease_tasks", "discovery", "POST", "/v1/tasks", "account", m.LeaseTasks, m.Leased,
          "Put credits in escrow and get workers for tasks",
          ("unauthorized", "insufficient-credits", "conflict", *_BODY), 8 * MEGABYTE),
    Route("settle", "discovery", "POST", "/v1/settlements", "account", m.Settle, m.Settled,
          "Show receipts; get verdicts and result keys", ("unauthorized", "conflict", *_BODY), 32 * MEGABYTE),
    Route("audit", "discovery", "POST", "/v1/audits", "account", m.AuditTasks, m.Audited,
          "Ask whether accepted tasks still hold; close a job", ("unauthorized", "conflict", *_BODY)),
    Route("dispute", "discovery", "POST", "/v1/disputes", "account", m.Dispute, m.Disputed,
          "Show that a paid result is not what its worker committed itself to",
          ("unauthorized", "unknown-task", "conflict", *_BODY), 32 * MEGABYTE),
    Route("explain", "discovery", "GET", "/v1/tasks/<task_id>/explanation", "account", None, m.Explanation,
          "Who answered a task, what they weighed, and why it was decided so", ("unauthorized", "unknown-task")),
    Route("report_job", "discovery", "PUT", "/v1/jobs/<job_id>", "account", m.JobReport, m.JobReported,
          "Say how a job stands, for its own account to see", ("unauthorized", *_BODY)),
    Route("jobs", "discovery", "GET", "/v1/jobs", "account", None, m.Jobs,
          "How the calling account's jobs stand", ("unauthorized",)),
    Route("statement", "discovery", "GET", "/v1/account/ledger", "account", None, m.Statement,
          "What the calling account received and paid, and what it may send", ("unauthorized",),
          query=("before", "limit"), banned_too=True),
    Route("transfer", "discovery", "POST", "/v1/transfers", "account", m.Transfer, m.Transferred,
          "Send credits to another account",
          ("unauthorized", "insufficient-credits", "unknown-account", "conflict", *_BODY)),
    Route("call_relay", "discovery", "POST", "/v1/relay/<worker_id>", "account", m.CallRelay, m.RelayReply,
          "Call a worker that cannot be connected to",
          ("unauthorized", "relay-refused", "unknown-worker", "absent", "no-answer", *_BODY), 2 * MEGABYTE),
    Route("take_calls", "discovery", "POST", "/v1/workers/<worker_id>/calls", "account", m.TakeCalls, m.CallsTaken,
          "Wait for calls of foremen", ("unauthorized", "unknown-worker", *_BODY)),
    Route("reply_to_call", "discovery", "POST", "/v1/workers/<worker_id>/calls/<call_id>", "account", m.RelayReply,
          None, "Reply to a call", ("unauthorized", "not-found", "too-late", *_BODY), 2 * MEGABYTE),
    Route("worker_state", "worker", "GET", "/", "none", None, m.WorkerState, "What this worker is and does"),
    Route("openapi", "worker", "GET", "/openapi.json", "none", None, None, "This table as an OpenAPI document"),
    Route("push_tasks", "worker", "POST", "/v1/tasks", "ticket", m.PushTasks, m.Pushed,
          "Redeem tickets: run these tasks", ("ticket-refused", *_BODY), 64 * MEGABYTE),
    Route("fetch_results", "worker", "GET", "/v1/jobs/<job_id>/results", "poll", None, m.Results,
          "Wait for results past a cursor; what is before it is forgotten", ("unauthorized", "unknown-job"),
          query=("after", "wait_s")),
    Route("prove", "worker", "GET", "/v1/challenge/<nonce>/<why>/<mac>", "challenge", None, m.Proof,
          "Discovery tries the address, or calls the worker to the relay", ("not-found",)),
    Route("cancel_job", "worker", "DELETE", "/v1/jobs/<job_id>", "poll", None, m.Cancelled,
          "Give back what has not been started", ("unauthorized", "unknown-job")),
)  # fmt: skip

BY_NAME: dict[tuple[Party, str], Route] = {(route.party, route.name): route for route in ROUTES}


def routes_of(party: Party) -> list[Route]:
    """The routes one party serves, in the table's order."""
    return [route for route in ROUTES if route.party == party]


def route(party: Party, name: str) -> Route:
    """The route of that name; a KeyError is a bug of the caller."""
    return BY_NAME[party, name]
