"""Status: what a worker tells its owner about itself, as it travels over the control socket."""

from __future__ import annotations

import msgspec


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job of which something is here, and whose it is (empty: discovery did not say)."""

    job_id: str
    account_id: str
    running: int
    queued: int
    unfetched: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One worker at a moment. Credits are as discovery last said.

    Attributes:
        reasons: why it does not work now; none: it does.
        limits: the preferences in force, each as a text.
        finished: tasks since the start by what came of them (`protocol.receipts.Kind`).
        earned: by this worker in all; `earned_today` since midnight, `earned_since_start` since this start.
        relay: foremen come through discovery's relay, for nobody can connect to this worker.
        silent_s: since discovery last answered; negative: it never did.
    """

    pid: int
    port: int
    url: str
    worker_id: str
    discovery: str
    relay: bool
    connected: bool
    silent_s: float
    uptime_s: float
    slots: int
    willing: bool
    reasons: list[str]
    limits: dict[str, str]
    jobs: list[JobStatus]
    taken: int
    finished: dict[str, int]
    cpu_s: float
    earned: int
    earned_today: int
    earned_since_start: int
