"""Discovery's settings, frozen; units are in the names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Network = Literal["private", "public"]
Distinct = Literal["account,address", "account", "none"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose, and constants of the service that tests shorten.

    Attributes:
        network: ``private``: plenty of credits, own workers may serve; ``public``: neither.
        distinct: in what the workers of one task have to differ, beside being different workers.
        starting_credits: minted for each new account.
        ttl_s: a worker that sent no heartbeat for so long leaves the pool.
        heartbeat_s: how often workers are told to send one.
        prefetch: most leases a worker holds for each of its slots.
        default_timeout_s: until a lease's deadline, where the foreman does not say (or four times the CPU limit).
        late_grace_s: how long after a deadline a late receipt is still paid.
        settled_grace_s: how long a settled task's keys can be asked for again; then they are destroyed.
        max_task_life_s: no replica is added to a task later than this; bounds how long wrapping keys are kept.
        wrapping_rotation_s: how often the key that wraps task keys changes.
        silent_job_s: a running job of which nothing was heard for so long is no longer shown.
        ended_job_s: how long a job is shown that ended.
        account_jobs: most jobs of one account that are kept to be shown.
    """

    network: Network = "private"
    distinct: Distinct = "none"
    starting_credits: int = 1_000_000
    ttl_s: float = 60.0
    heartbeat_s: float = 20.0
    prefetch: int = 512
    min_timeout_s: float = 5.0
    default_timeout_s: float = 300.0
    max_timeout_s: float = 7200.0
    late_grace_s: float = 60.0
    settled_grace_s: float = 600.0
    max_task_life_s: float = 4 * 3600.0
    wrapping_rotation_s: float = 600.0
    max_result_bytes: int = 256 * 1024 * 1024
    sample: int = 64
    silent_job_s: float = 300.0
    ended_job_s: float = 3600.0
    account_jobs: int = 64
    sweep_every_s: float = 1.0

    @property
    def own_workers(self) -> bool:
        """Whether a foreman's own workers may serve it."""
        return self.network == "private"


PRIVATE_CREDITS = 1_000_000
MOST_STARTING_CREDITS = 10**9
"""Far enough below 2**53 that all credits of a million accounts are exact wherever they are added up."""
PUBLIC_CREDITS = 12


def settings_for(network: Network, distinct: Distinct | None = None, starting_credits: int | None = None) -> Settings:
    """Settings with the defaults of the network's kind."""
    public = network == "public"
    return Settings(
        network=network,
        distinct=distinct or ("account,address" if public else "none"),
        starting_credits=(PUBLIC_CREDITS if public else PRIVATE_CREDITS)
        if starting_credits is None
        else starting_credits,
    )
