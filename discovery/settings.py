"""Discovery's settings, frozen; units are in the names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Network = Literal["private", "public"]
Distinct = Literal["account,address", "account", "none"]
Mode = Literal["open", "invite", "closed"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose, and constants of the service that tests shorten.

    Attributes:
        network: ``private``: plenty of credits, own workers may serve; ``public``: neither.
        distinct: in what the workers of one task have to differ, beside being different workers.
        starting_credits: minted for each new account.
        registration: who makes accounts: anybody, who has an invitation, or the operator alone.
        address_accounts: most accounts made from an address in a day (UTC), 0: any number. Its neighbourhood may have
            four times as many. An invitation lifts this limit and the next.
        address_grants: how many of these get starting credits, 0: all.
        account_workers: most workers of an account at a time, 0: any number; it may have 16 times as many worker ids.
        neighbourhood_workers: most workers at a time in a neighbourhood (/24 of IPv4, /48 of IPv6), 0: any number.
        account_requests: requests a second of an account, 0: any number; ten seconds' worth of them at once.
        address_requests: the same of an address.
        anonymous_requests: the same of an address, of requests that no account is behind.
        address_connections: most connections of an address at a time, to each process; 0: any number.
        metrics: addresses that may read ``/metrics``; none: nobody may.
        proxies: networks of reverse proxies that say truly whom they speak for, in CIDR notation.
        ttl_s: a worker that sent no heartbeat for so long leaves the pool.
        heartbeat_s: how often workers are told to send one.
        prefetch: most leases a worker holds for each of its slots.
        default_timeout_s: until a lease's deadline, where the foreman does not say (or four times the CPU limit).
        late_grace_s: how long after a deadline a late receipt is still paid.
        settled_grace_s: how long a settled task's keys can be asked for again, and its answers disputed; then they are
            destroyed. In a public network earnings may be spent after it.
        max_task_life_s: no replica is added to a task later than this; bounds how long wrapping keys are kept.
        wrapping_rotation_s: how often the key that wraps task keys changes.
        kept_job_s: who answered what is forgotten of a job that is not closed, nor heard of for so long.
        hold_s: a lease that no foreman pushed for so long does not hold its worker.
        hold_leases: one in so many leases that were never pushed costs its foreman a credit.
        hold_cap: most such credits that the workers of an account cost a foreman in a job; then they part.
        hold_foremen: a worker that says of so many unrelated foremen that they pushed nothing is given less.
        effort_cap: most credits of effort fees that a worker's account gets in a job of undecided tasks, and of results
            that its foreman says did not arrive.
        dispute_fee: what a dispute costs a foreman that is wrong, as far as it has it.
        most_share: workers that take leases and return nothing get as little as one in so many.
        silent_job_s: a running job of which nothing was heard for so long is no longer shown.
        ended_job_s: how long a job is shown that ended.
        account_jobs: most jobs of one account that are kept to be shown.
        most_backlog_bytes: of the store's memory that entries of the ledger may take before they are on disk; with more
            nothing new is begun.
        relay_bytes: most bytes of relayed calls and replies in one process.
        relay_waiting: most relayed calls and workers' polls that wait in one process; never more than half of the
            connections that it may have.
        relay_worker_bytes: most bytes of the calls that wait for one worker.
        relay_worker_calls: most such calls; of both an account has no more than is free.
        relay_poll_s: longest that a worker's poll waits.
        relay_absent_s: a worker of which the relay heard nothing for so long is not there.
    """

    network: Network = "private"
    distinct: Distinct = "none"
    starting_credits: int = 1_000_000
    registration: Mode = "open"
    address_accounts: int = 0
    address_grants: int = 0
    account_workers: int = 0
    neighbourhood_workers: int = 0
    account_requests: int = 0
    address_requests: int = 0
    anonymous_requests: int = 0
    address_connections: int = 0
    metrics: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
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
    min_cpu_limit_s: float = 0.1
    kept_job_s: float = 3600.0
    hold_s: float = 30.0
    hold_leases: int = 16
    hold_cap: int = 4
    hold_foremen: int = 3
    effort_cap: int = 16
    dispute_fee: int = 1
    most_share: int = 64
    max_result_bytes: int = 256 * 1024 * 1024
    sample: int = 64
    silent_job_s: float = 300.0
    ended_job_s: float = 3600.0
    account_jobs: int = 64
    most_backlog_bytes: int = 256 * 1024 * 1024
    relay_bytes: int = 64 * 1024 * 1024
    relay_waiting: int = 2000
    relay_worker_bytes: int = 8 * 1024 * 1024
    relay_worker_calls: int = 64
    relay_poll_s: float = 20.0
    relay_absent_s: float = 35.0
    sweep_every_s: float = 1.0

    @property
    def own_workers(self) -> bool:
        """Whether a foreman's own workers may serve it."""
        return self.network == "private"

    @property
    def gifts_bound(self) -> bool:
        """Whether starting credits buy nothing from workers of the network that they were given to.

        Else accounts of one person could spend them on each other's workers, and send on what these earn.
        """
        return self.network == "public" and "address" in self.distinct

    @property
    def vesting_s(self) -> float:
        """How long earnings may not be spent: as long as they can be disputed."""
        return self.settled_grace_s if self.network == "public" else 0.0


PRIVATE_CREDITS = 1_000_000
MOST_STARTING_CREDITS = 10**9
"""Far enough below 2**53 that all credits of a million accounts are exact wherever they are added up."""
PUBLIC_CREDITS = 12


PUBLIC_LIMITS = {
    **{"address_accounts": 10, "address_grants": 2, "account_workers": 64, "neighbourhood_workers": 256},
    **{"account_requests": 100, "address_requests": 200, "anonymous_requests": 20},
    **{"address_connections": 512},
}
"""What a public network allows where its operator says nothing; a private one has no such limits."""


def settings_for(
    network: Network, distinct: Distinct | None = None, starting_credits: int | None = None, **chosen: Any
) -> Settings:
    """Settings with the defaults of the network's kind, for what is None as well."""
    public = network == "public"
    return Settings(
        network=network,
        distinct=distinct or ("account,address" if public else "none"),
        starting_credits=(PUBLIC_CREDITS if public else PRIVATE_CREDITS)
        if starting_credits is None
        else starting_credits,
        **(PUBLIC_LIMITS if public else {}) | {name: value for name, value in chosen.items() if value is not None},
    )
