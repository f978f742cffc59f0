"""Messages: one frozen type for each body that travels; decoding one validates it.

JSON through msgspec: these envelopes are never hashed, so speed may choose. Fields that a receiver does not know are
ignored, so that older and newer parties understand each other. Bytes stand as Base64.

All of them may travel as MessagePack, of the same fields, in which bytes stand as they are; those of many bytes do. Of
sealed bytes a megabyte costs 0.04 ms to write and read instead of 1.4, and is a quarter shorter; a settlement is a
fifth shorter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from ec262.errors import Malformed
from ec262.protocol.receipts import Kind

# Python's $ also matches before a line break at the end: hence the look-ahead.
Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{16,32}$(?!\n)", description="Random hexadecimal identifier.")]
LeaseId = Annotated[
    str, Meta(pattern=r"^[0-9a-f]{16,32}\.[0-9]{1,3}$(?!\n)", description="Task id, dot, replica number.")
]
# The same where a message has thousands of them, and checks all with one search (`_each_is`): one search for each took
# two thirds of the time that it takes to read a settlement.
ListedId = Annotated[
    str,
    Meta(
        min_length=16,
        max_length=32,
        description="Random hexadecimal identifier.",
        extra_json_schema={"pattern": r"^[0-9a-f]{16,32}$(?!\n)"},
    ),
]
ListedLeaseId = Annotated[
    str,
    Meta(
        min_length=18,
        max_length=36,
        description="Task id, dot, replica number.",
        extra_json_schema={"pattern": r"^[0-9a-f]{16,32}\.[0-9]{1,3}$(?!\n)"},
    ),
]
_IDS = re.compile(r"(?:[0-9a-f]{16,32}\n)*")
_LEASE_IDS = re.compile(r"(?:[0-9a-f]{16,32}\.[0-9]{1,3}\n)*")

Digest = Annotated[bytes, Meta(min_length=32, max_length=32, description="SHA-256.")]
Seconds = Annotated[float, Meta(gt=0, le=86_400.0)]
Token = Annotated[bytes, Meta(max_length=8 * 1024 * 1024, description="A sealed token.")]
Capability = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9:._-]{0,63}$(?!\n)",
        description="What a worker has beside Python, such as data:books or executor:simulator.",
    ),
]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]

Platform = Annotated[
    str,
    Meta(pattern=r"^[a-z0-9_]{0,16}$(?!\n)", description="A family of processors, such as x86_64 or aarch64."),
]

MAX_TASKS_A_REQUEST = 1000
MAX_RECEIPT_TOKENS = 1000
MAX_ARRIVED = 20_000
"""Results that arrive with one bundle of receipts."""
MAX_REASON = 300
MAX_CAPABILITIES = 16
MAX_NAMED = 16
"""Accounts, and jobs, that a worker allows, and that it denies: discovery looks at them for each lease."""
MOST_ASKED = 100
"""Credits a unit that a worker may ask for."""
EXECUTOR = "executor:"
"""How the capability of a worker begins that computes with a program of its own, and cannot run Python programs."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """What all bodies have in common. None refers to itself: so the garbage collector need not look through them."""


def _each_is(form: re.Pattern[str], texts: Collection[str], what: str) -> None:
    """Raises ValueError unless each of `texts` is of the form, which ends with a line break here."""
    lines = "".join([text + "\n" for text in texts])
    if not form.fullmatch(lines) or lines.count("\n") != len(texts):
        raise ValueError(f"{what}: an identifier is not of the form that identifiers have")


# --- discovery: accounts and books ---------------------------------------------------------------


class CreateAccount(Message, frozen=True, kw_only=True):
    """Asks for a new account. Where accounts are by invitation, `invitation` is one of the operator's."""

    name: Annotated[str, Meta(max_length=64)] = ""
    invitation: Annotated[str, Meta(max_length=64)] = ""


class AccountCreated(Message, frozen=True, kw_only=True):
    """A new account. The secret is shown this once."""

    account_id: str
    secret: str
    balance: int


class AccountState(Message, frozen=True, kw_only=True):
    """Who the caller is and what it has, in credits.

    `banned` says by whom and why the account is banned, if it is. The operator believes the workers of an `auditor`.
    `shown` is the account's name on the leaderboard, if it wants to be there.
    """

    account_id: str
    name: str
    balance: int
    escrow: int
    earned: int
    spent: int
    workers: int
    banned: str = ""
    auditor: bool = False
    shown: str = ""


class RenameAccount(Message, frozen=True, kw_only=True):
    """A new name for the calling account, for its owner and whoever runs the service."""

    name: Annotated[str, Meta(max_length=64)]


class RotateKey(Message, frozen=True, kw_only=True):
    """A new secret for the calling account: 32 random bytes in URL-safe Base64.

    The caller draws it, and keeps it before it asks: so an answer that gets lost does not lose the account.
    """

    secret: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}$(?!\n)")]


class KeyRotated(Message, frozen=True, kw_only=True):
    """From now on the account has the new secret, and no other."""

    account_id: str


class ShowAccount(Message, frozen=True, kw_only=True):
    """The name under which the calling account is on the leaderboard; empty: it is not there."""

    name: Annotated[str, Meta(max_length=32)]


class Leader(Message, frozen=True, kw_only=True):
    """An account on the leaderboard. Names are their owners' choice; `tag` tells equal ones apart."""

    rank: int
    name: str
    tag: str
    earned: int
    workers: int


class Leaderboard(Message, frozen=True, kw_only=True):
    """Of the accounts that want to be seen those that earned most, as of `made_s`. `accounts`: how many want to."""

    made_s: float
    accounts: int
    leaders: list[Leader]


class ServiceState(Message, frozen=True, kw_only=True):
    """What this service is; with credentials also who is asking."""

    service: str
    version: str
    network: str
    distinct: str
    workers: int
    account: AccountState | None = None


class Credits(Message, frozen=True, kw_only=True):
    """All credits there are: minted - burnt = accounts + escrow at every instant."""

    minted: int
    burnt: int
    accounts: int
    escrow: int


class Health(Message, frozen=True, kw_only=True):
    """The service answers, and so does its store.

    Where it is ``degraded``, `faults` says why in words. `leasing`: whether it begins anything new (leases, accounts,
    transfers); settlement goes on in any case. `backlog_bytes`: memory of the store that entries of the ledger take
    until they are on disk.
    """

    status: Literal["ok", "degraded"]
    leasing: bool = True
    backlog_bytes: int = 0
    faults: list[str] = []


# --- discovery: workers --------------------------------------------------------------------------


class WorkerTerms(Message, frozen=True, kw_only=True):
    """Whom a worker serves, and with what at most (`terms.objection`). Where nothing is said: everybody, with anything.

    `max_task_cpu_s` of 0 is no limit. Where accounts or jobs are allowed, nobody else is served.
    """

    max_task_cpu_s: Annotated[float, Meta(ge=0, le=86_400.0)] = 0.0
    allow_accounts: Annotated[list[Id], Meta(max_length=MAX_NAMED)] = []
    deny_accounts: Annotated[list[Id], Meta(max_length=MAX_NAMED)] = []
    allow_jobs: Annotated[list[Id], Meta(max_length=MAX_NAMED)] = []
    deny_jobs: Annotated[list[Id], Meta(max_length=MAX_NAMED)] = []


class RegisterWorker(Message, frozen=True, kw_only=True):
    """A worker enters the pool.

    The address is the one the request comes from; a worker names only its port. A `boot_id` that discovery has not
    seen for this worker starts a new epoch: what it held before is taken from it. A worker with an ``executor:NAME``
    capability is given only tasks that require it; other capabilities do not keep ordinary tasks away. `ask` is what it
    wants for a replica, as a multiple of the usual price; it is given only tasks whose foremen offer as much. Who is
    not `willing` is registered and given no tasks, until a heartbeat says otherwise.

    `relay`: ``always``: it listens nowhere (`port` 0) and serves through the relay; ``auto``: it does so if discovery
    cannot connect to it; ``never``: then it does not enter the pool. Empty: discovery does not try.
    """

    worker_id: Id
    boot_id: Id
    port: Annotated[int, Meta(ge=0, le=65_535)]
    slots: Annotated[int, Meta(ge=1, le=1024)]
    python: Annotated[str, Meta(pattern=r"^3\.[0-9]{1,2}$(?!\n)")]
    lane: Literal["native", "none"] = "native"
    layers: list[Annotated[str, Meta(max_length=32)]] = []
    capabilities: Annotated[list[Capability], Meta(max_length=MAX_CAPABILITIES)] = []
    ask: Annotated[int, Meta(ge=1, le=MOST_ASKED)] = 1
    platform: Platform = ""
    terms: WorkerTerms = WorkerTerms()
    willing: bool = True
    relay: Literal["", "auto", "always", "never"] = ""


class WorkerRegistered(Message, frozen=True, kw_only=True):
    """What a worker needs to serve. `relay`: nobody can connect to it; foremen come through the relay alone."""

    worker_id: str
    worker_key: Digest
    epoch: int
    heartbeat_s: float
    ttl_s: float
    capacity: int
    server_time_s: float
    relay: bool = False


class Heartbeat(Message, frozen=True, kw_only=True):
    """A worker is alive; it shows receipts of leases that nobody settled, and names open leases nobody pushed to it.

    Who is not `willing` is given no further tasks until it is again. What it holds stays its own.
    """

    boot_id: Id
    willing: bool = True
    receipts: Annotated[list[Token], Meta(max_length=16)] = []
    unseen: Annotated[list[LeaseId], Meta(max_length=MAX_TASKS_A_REQUEST)] = []


class HeartbeatAnswer(Message, frozen=True, kw_only=True):
    """Which of the worker's leases are still open (all others are settled), and what it has earned so far.

    `relay`: somebody waits for it at the relay who cannot connect to it.
    """

    server_time_s: float
    open_leases: list[str]
    earned: int
    balance: int
    relay: bool = False


# --- discovery: leases and settlements -----------------------------------------------------------


class TaskWanted(Message, frozen=True, kw_only=True):
    """One task a foreman wants computed. `again`: the task that it computes anew, for that no longer holds."""

    input_digest: Digest
    cpu_limit_s: Annotated[float, Meta(gt=0, le=3600.0)] = 60.0
    again: Id | None = None


class Policy(Message, frozen=True, kw_only=True):
    """Whose result counts: so many replicas, of which so many must agree; `max_replicas` in all.

    With a `confidence` above 0 a task has one replica at first, and as many more as it takes until an answer is right
    with that probability, by what is known of the workers; `redundancy` and `quorum` do not count then.

    Of all replicas those do not count towards `max_replicas` whose worker said that it did not run them. With
    ``max_replicas=1`` no task is given to a second worker as long as the first may have run it.
    """

    redundancy: Annotated[int, Meta(ge=1, le=16)] = 1
    quorum: Annotated[int, Meta(ge=1, le=16)] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=64)] = 9
    confidence: Annotated[float, Meta(ge=0, le=0.99999)] = 0.0


class Requirements(Message, frozen=True, kw_only=True):
    """Which workers can compute the tasks: replicas are compared only within one class.

    A worker needs all of `capabilities`, and may have others. One with an ``executor:NAME`` is given no task that
    requires no executor. `platform` keeps to one family of processors, for programs whose floating point results
    differ between them.
    """

    python: Annotated[str, Meta(pattern=r"^3\.[0-9]{1,2}$(?!\n)")]
    lane: Literal["native", "none"] = "native"
    capabilities: Annotated[list[Capability], Meta(max_length=MAX_CAPABILITIES)] = []
    platform: Platform | None = None


class LeaseTasks(Message, frozen=True, kw_only=True):
    """Wants workers for tasks, as many of them, in order, as are free and can be paid.

    `offer` is the most a unit of work may cost, in credits: a task is a unit for each started CPU minute of its limit.
    Workers that ask for more do not get it; one that asks for less is paid what it asks for.
    """

    job_id: Id
    idempotency_key: Annotated[str, Meta(min_length=8, max_length=64, pattern=r"^[\x21-\x7e]*$(?!\n)")]
    tasks: Annotated[list[TaskWanted], Meta(min_length=1, max_length=MAX_TASKS_A_REQUEST)]
    requirements: Requirements
    policy: Policy = Policy()
    timeout_s: Annotated[float, Meta(gt=0, le=86_400.0)] | None = None
    offer: Annotated[int, Meta(ge=1, le=1000)] = 1


class LeasedReplica(Message, frozen=True, kw_only=True):
    """One worker promised to one replica, and what it is paid if its answer counts."""

    lease_id: str
    worker_id: str
    price: int = 1


class LeasedTask(Message, frozen=True, kw_only=True):
    """A task with its workers. `input_key` seals its input, the same bytes for every replica.

    `position` says which of the tasks asked for it is, from 0; in ``more`` it says nothing, the verdict names the task.
    """

    task_id: str
    input_key: Digest
    replicas: list[LeasedReplica]
    position: Annotated[int, Meta(ge=0, le=MAX_TASKS_A_REQUEST - 1)] = 0


class AssignedWorker(Message, frozen=True, kw_only=True):
    """Where a worker is, and its tickets of this answer.

    `relay`: whether it also serves through the relay (``may``), or through that alone (``must``; then it has no
    address). `relay_pass` lets the foreman through, as long as leases of this answer are open.
    """

    worker_id: str
    address: str
    port: int
    slots: int
    tickets: Token
    relay: Literal["never", "may", "must"] = "never"
    relay_pass: Annotated[bytes, Meta(max_length=64)] = b""


class NetworkState(Message, frozen=True, kw_only=True):
    """The workers alive that are fit for what was asked for: of the class, with the capabilities."""

    workers: int
    slots: int


class Leased(Message, frozen=True, kw_only=True):
    """What was assigned: the first of the tasks asked for, as many as there were workers and credits for.

    An answer that is given again leaves out tasks of which discovery has no keys any more: they are not leased. So what
    a task is follows from its `position`, never from its place in `tasks`. `price` is the most a replica may cost.
    """

    program_key: Digest
    poll_key: Digest
    tasks: list[LeasedTask]
    workers: list[AssignedWorker]
    network: NetworkState
    price: int
    balance: int


class SealedReceipts(Message, frozen=True, kw_only=True):
    """A receipt bundle as the worker sealed it, and the results that arrived with it.

    `arrived` names a result by SHA-256 over the SHA-256 of its sealed tokens, by lease. A result that is not named did
    not arrive.
    """

    worker_id: Id
    token: Token
    arrived: Annotated[dict[ListedLeaseId, Digest], Meta(max_length=MAX_ARRIVED)] = {}

    def __post_init__(self) -> None:
        _each_is(_LEASE_IDS, self.arrived, "arrived")


class Settle(Message, frozen=True, kw_only=True):
    """Shows receipts and wants verdicts on tasks.

    `lost` names leases the foreman no longer waits for: verdicts are made without them, so that ``more`` can lease a
    further replica, but a receipt that comes all the same still counts. `heard` names tasks of which the foreman knows
    by now that they are to be computed again. `known` names the last replica that the foreman knows of a task to be
    decided, where it was killed and may have lost an answer: further ones that are out are told again, with ``more``.
    """

    job_id: Id
    receipts: Annotated[list[SealedReceipts], Meta(max_length=MAX_RECEIPT_TOKENS)] = []
    decide: Annotated[list[ListedId], Meta(max_length=MAX_TASKS_A_REQUEST)] = []
    lost: Annotated[list[LeaseId], Meta(max_length=MAX_TASKS_A_REQUEST)] = []
    heard: Annotated[list[Id], Meta(max_length=MAX_TASKS_A_REQUEST)] = []
    known: Annotated[list[LeaseId], Meta(max_length=MAX_TASKS_A_REQUEST)] = []

    def __post_init__(self) -> None:
        _each_is(_IDS, self.decide, "decide")


class ReleasedKey(Message, frozen=True, kw_only=True):
    """A paid replica and the key that opens its result."""

    lease_id: str
    worker_id: str
    result_key: Digest


class TaskVerdict(Message, frozen=True, kw_only=True):
    """What became of a task.

    ``accepted``: `kind` and `commitment` are the agreed ones, `keys` open the payees' results, `confidence` is how
    likely it is right, where the policy asked for that. ``more``: `task` lists further replicas to push to.
    ``pending``: replicas are still out, or no further worker is free now. ``undecided``: no answer is believed enough
    and no more may be tried, or it is not believed any more. ``unknown``: not this foreman's task, or forgotten after
    the grace period.
    """

    task_id: str
    verdict: Literal["accepted", "more", "pending", "undecided", "unknown"]
    kind: Kind | None = None
    commitment: bytes = b""
    keys: list[ReleasedKey] = []
    dissenters: list[str] = []
    task: LeasedTask | None = None
    reason: str = ""
    confidence: float | None = None


class LateReplica(Message, frozen=True, kw_only=True):
    """What a receipt brought that came after its task was accepted: payment, or (`paid` false) none, for dissent."""

    lease_id: str
    worker_id: str
    paid: bool


class RefusedReceipts(Message, frozen=True, kw_only=True):
    """Receipts that do not count, or that results came without, by the position of their bundle.

    Of a bundle that does not open `leases` are those that were said to have arrived with it. `reason` says why, and
    whose fault that may be.
    """

    position: int
    leases: list[str] = []
    reason: str


class Refusal(Message, frozen=True, kw_only=True):
    """A worker refused a replica, and why: its own words, cut to `MAX_REASON` characters."""

    lease_id: str
    worker_id: str
    reason: str


class Settled(Message, frozen=True, kw_only=True):
    """Verdicts in the order asked for, each task once, and the workers of those that say ``more``.

    `refusals` tells what refusal receipts shown now say, which the foreman cannot open itself. `late` tells of receipts
    shown for tasks that were accepted before and are not among those asked for. `recompute` names accepted tasks of
    this job that no longer hold, until they are `heard`. `clarity` below 0.5: answers in this job differ as if its
    program were not deterministic, and its dissents cost nobody reputation.
    """

    tasks: list[TaskVerdict]
    late: list[LateReplica] = []
    workers: list[AssignedWorker]
    refused_receipts: list[RefusedReceipts]
    refusals: list[Refusal] = []
    balance: int
    recompute: list[str] = []
    clarity: float = 1.0


class AuditTasks(Message, frozen=True, kw_only=True):
    """Asks whether accepted tasks still hold, by what is known of workers now; `closing` ends the job if they do."""

    job_id: Id
    tasks: Annotated[list[Id], Meta(max_length=MAX_TASKS_A_REQUEST)] = []
    closing: bool = False
    heard: Annotated[list[Id], Meta(max_length=MAX_TASKS_A_REQUEST)] = []


class Refund(Message, frozen=True, kw_only=True):
    """Pay of a worker that was convicted, and went back."""

    worker_id: str
    amount: int


class Audited(Message, frozen=True, kw_only=True):
    """Tasks to compute again: those that no longer hold, and those of which nothing is `unknown` here.

    `closed`: the job is over, and discovery forgets what its results rested on. It is not closed while anything is to
    be computed again. `refunded`: all that went back to the job's account so far because workers were convicted.
    """

    recompute: list[str]
    unknown: list[str]
    closed: bool = False
    refunded: list[Refund] = []


class ShownToken(Message, frozen=True, kw_only=True):
    """One sealed token of a result, by its position."""

    position: Annotated[int, Meta(ge=0, le=65_535)]
    token: Token


class Dispute(Message, frozen=True, kw_only=True):
    """A paid replica's result is not what its worker committed itself to.

    `digests` are the SHA-256 of all tokens that came, in order: the receipt has the same. One token that does not open
    is enough; where all open, and what is in them is malformed or another result, all of them are to be shown.
    """

    job_id: Id
    lease_id: LeaseId
    digests: Annotated[list[Digest], Meta(min_length=1, max_length=65_536)]
    tokens: Annotated[list[ShownToken], Meta(min_length=1, max_length=65_536)]


class Disputed(Message, frozen=True, kw_only=True):
    """What became of a dispute.

    ``upheld``: the worker lost; `refund` of its pay came back, as much as it could not have spent yet. ``refused``: the
    bytes are those committed to; the foreman paid `fee` to the worker, as far as it had it. ``unproven``: what was
    shown does not say who is right, and nothing moved. `recompute`: the task is to be computed again. Asked again,
    nothing moves a second time.
    """

    lease_id: str
    verdict: Literal["upheld", "refused", "unproven"]
    reason: str
    refund: int = 0
    fee: int = 0
    recompute: bool = False
    balance: int = 0


class ExplainedAnswer(Message, frozen=True, kw_only=True):
    """One replica, and what its answer weighed: when it was decided, and by what is known of its worker now.

    Answers alike have the same `group`. Only of a task that was accepted, and so paid for, is anything of them told:
    who knows which of a few small results equals a worker's has read it.
    """

    lease_id: str
    worker_id: str
    state: str
    kind: Kind | None = None
    group: int = 0
    commitment: bytes = b""
    verified: float = 0.0
    doubts: float = 0.0
    auditor: bool = False
    banned: bool = False
    believed: float = 0.0
    believed_now: float = 0.0


class Explanation(Message, frozen=True, kw_only=True):
    """Who answered a task, what they weighed, and why it was decided so.

    Of a task that was not accepted it says who has it, and nothing of what they answered.
    """

    task_id: str
    state: str
    confidence: float
    reached: float | None
    kind: Kind | None
    commitment: bytes
    checked: bool
    why: str
    why_now: str
    answers: list[ExplainedAnswer]


# --- discovery: reports of jobs ------------------------------------------------------------------


class JobReport(Message, frozen=True, kw_only=True):
    """How a job stands, for its account's eyes. Names are printable; sizes are in bytes, `seconds_left` is a guess."""

    state: Literal["running", "done", "failed", "cancelled"]
    name: Annotated[str, Meta(max_length=64)] = ""
    phase: Annotated[str, Meta(max_length=32)] = ""
    tasks_done: Count = 0
    tasks_total: Count | None = None
    failed: Count = 0
    retried: Count = 0
    workers: Count = 0
    credits_spent: Count = 0
    bytes_in: Count = 0
    bytes_out: Count = 0
    seconds_left: Annotated[float, Meta(ge=0, le=1e9)] | None = None


class JobReported(Message, frozen=True, kw_only=True):
    """The report is kept for `kept_s`, or until the next."""

    kept_s: float


class JobState(JobReport, frozen=True, kw_only=True):
    """A job as last reported. Times are Unix times by the service's clock.

    `age_s` has passed since the first report, `silent_s` since the last.
    """

    job_id: Id
    started_s: float
    updated_s: float
    age_s: float
    silent_s: float


class Jobs(Message, frozen=True, kw_only=True):
    """The calling account's jobs that were reported and are not forgotten yet, the last started first."""

    server_time_s: float
    jobs: list[JobState]


# --- discovery: transfers and statements ---------------------------------------------------------


class Transfer(Message, frozen=True, kw_only=True):
    """Sends credits to another account. What the account was given, or earned a moment ago, cannot be sent."""

    to: Id
    amount: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    note: Annotated[str, Meta(max_length=200)] = ""
    idempotency_key: Annotated[str, Meta(min_length=8, max_length=64, pattern=r"^[\x21-\x7e]*$(?!\n)")]


class Transferred(Message, frozen=True, kw_only=True):
    """Credits were sent; what the sender has now, and may still send."""

    to: str
    amount: int
    balance: int
    transferable: int


class StatementRow(Message, frozen=True, kw_only=True):
    """What an account received and paid for one thing: of a job (`kind` ``job``) all of a day (UTC), else one movement.

    `kind` is ``job``, ``start``, ``transfer``, ``mint``, ``burn`` or another word; `about` is a job's id or a note,
    `other` the other account of a transfer. Times are Unix times of the first and the last movement.
    """

    serial: int
    kind: str
    about: str
    other: str
    received: int
    paid: int
    movements: int
    first_s: float
    last_s: float


class Statement(Message, frozen=True, kw_only=True):
    """What the calling account has, and its last rows, those begun last first.

    `gift` and `unvested` are parts of the balance that cannot be sent. Movements are in the rows some seconds after
    they happened: all up to `complete_until_s` are. `before` asks for the next page; null: there is none.
    """

    balance: int
    escrow: int
    gift: int
    unvested: int
    transferable: int
    complete_until_s: float
    rows: list[StatementRow]
    before: int | None = None


# --- discovery: the relay ------------------------------------------------------------------------


class CallRelay(Message, frozen=True, kw_only=True):
    """A foreman calls a worker through the relay: one part of a request (`ec262.protocol.relaying`), not looked into.

    The call is answered when the worker has replied; after `wait_s` it is answered ``no-answer``.
    """

    relay_pass: Annotated[bytes, Meta(max_length=64)]
    wait_s: Annotated[float, Meta(ge=0, le=60.0)]
    call: Annotated[bytes, Meta(max_length=1100 * 1024)]


class RelayReply(Message, frozen=True, kw_only=True):
    """What the worker replied to one call."""

    reply: Annotated[bytes, Meta(max_length=1100 * 1024)]


class TakeCalls(Message, frozen=True, kw_only=True):
    """A worker waits for calls at the relay.

    `received`: those that came before, and need not be sent again. `anew`: the answer to a poll did not come, and what
    may have been in it is wanted again.
    """

    boot_id: Id
    wait_s: Annotated[float, Meta(ge=0, le=60.0)] = 0.0
    received: Annotated[list[Id], Meta(max_length=256)] = []
    anew: bool = False


class RelayedCall(Message, frozen=True, kw_only=True):
    """A call for a worker. `sender` tells foremen apart and says nothing else of them."""

    call_id: str
    sender: str
    call: bytes


class CallsTaken(Message, frozen=True, kw_only=True):
    """The calls that came while the worker waited, or none; `waiting`: so many more are there already."""

    calls: list[RelayedCall]
    waiting: int = 0


# --- worker --------------------------------------------------------------------------------------


class PushedTask(Message, frozen=True, kw_only=True):
    """One replica's input: tokens which, opened and joined, are its framed parts."""

    lease_id: LeaseId
    payload: Annotated[list[Token], Meta(min_length=1, max_length=4096)]


class PushTasks(Message, frozen=True, kw_only=True):
    """Redeems leases of a ticket bundle. `program` comes with the first push of a job to a worker."""

    tickets: Token
    program: Annotated[list[Token], Meta(max_length=256)] = []
    tasks: Annotated[list[PushedTask], Meta(max_length=MAX_TASKS_A_REQUEST)]


class Pushed(Message, frozen=True, kw_only=True):
    """How many leases the worker took; `missing_program` says to push again with it."""

    taken: Annotated[int, Meta(ge=0)]
    missing_program: bool = False


class SealedResult(Message, frozen=True, kw_only=True):
    """One replica's result: tokens which, opened and joined, are its framed parts."""

    lease_id: str
    tokens: list[Token]


class Results(Message, frozen=True, kw_only=True):
    """Results since the cursor the foreman named, their receipts, and how many leases the worker still holds."""

    results: list[SealedResult]
    receipts: Token
    cursor: int
    held: int


class WorkerState(Message, frozen=True, kw_only=True):
    """What a worker is, for anybody."""

    service: str
    version: str
    worker_id: str
    slots: int
    python: str
    running: int
    queued: int


class Proof(Message, frozen=True, kw_only=True):
    """Whoever answers here is the worker that registered with this boot id (`ec262.protocol.relaying.proof`)."""

    proof: str


class Cancelled(Message, frozen=True, kw_only=True):
    """How many leases the worker gave back unrun; their receipts come with the results."""

    refused: int


# --- errors --------------------------------------------------------------------------------------


class Problem(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An error, after RFC 9457; `code` is stable, `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    needed: int | None = None
    available: int | None = None


M = TypeVar("M", bound=Message)

JSON = "application/json"
PACKED = "application/vnd.msgpack"
"""The media types of bodies."""

_encoder = msgspec.json.Encoder()
_packer = msgspec.msgpack.Encoder()
# All types are filled in here: msgspec does that when the first decoder of one is made. A second thread that makes one
# meanwhile gets what is half made, and its process dies of a segmentation fault when that decodes.
_decoders: dict[tuple[type[Message], bool], msgspec.json.Decoder[Message] | msgspec.msgpack.Decoder[Message]] = {
    (each, packed): msgspec.msgpack.Decoder(each) if packed else msgspec.json.Decoder(each)
    for each in Message.__subclasses__()
    for packed in (False, True)
}


def encode(message: Message, media: str = JSON) -> bytes:
    """The message as JSON, or as MessagePack."""
    return _packer.encode(message) if media == PACKED else _encoder.encode(message)


def decode(kind: type[M], body: bytes, media: str = JSON) -> M:
    """The body as a message of `kind`.

    Raises:
        Malformed: not of this form, a field missing, of the wrong type or out of its range; says which.
    """
    packed = media == PACKED
    decoder = _decoders.get((kind, packed))
    if decoder is None:
        decoder = msgspec.msgpack.Decoder(kind) if packed else msgspec.json.Decoder(kind)
        _decoders[kind, packed] = decoder
    try:
        return decoder.decode(body)  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as reason:
        raise Malformed(str(reason)) from None
