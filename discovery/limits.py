"""Limits: how many requests an account and an address may make, whichever process of the service they come to.

Who has work to do has an account; so an address gets few requests that no account is behind.

The library `limits` (which Flask-Limiter is made of) was weighed: it takes a round trip to Redis for each limit and
request, and charges one limit although another refuses. Here one script charges both or none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from discovery.settings import Settings
from discovery.store.rates import Left, Rate, Rates
from ec262.errors import ProblemError

BURST_S = 10
"""An idle caller may make the requests of so many seconds at once."""
LEAST_WAIT_S = 1.0
"""What Redis refused is refused for so long at least: ``Retry-After`` has whole seconds."""
HELD_S = 1.0
"""Who goes on although it was refused is answered this late at least: a connection of a flood costs one answer a
second."""
REFUSALS_A_SECOND = 32
"""Of one address, in one process. The more of its requests wait for their refusal, the later it comes."""
LONGEST_HELD_S = 10.0
"""Before anybody takes the service for dead."""
_MOST_BLOCKED = 10_000
_WHOSE = {
    "account": "of this account",
    "address": "from this address",
    "anonymous": "without an account from this address",
}


class RateLimited(ProblemError):
    """Too many requests.

    Attributes:
        limit: which one, ``account``, ``address`` or ``anonymous``.
        wait_s: after so many seconds there is room for this request.
    """

    def __init__(self, limit: str, wait_s: float) -> None:
        self.limit = limit
        self.wait_s = wait_s
        super().__init__(
            *(429, "rate-limited"),
            f"too many requests {_WHOSE[limit]} in a short time: wait {math.ceil(wait_s)} s before the next",
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests a second for each caller, and `burst` at once."""

    name: str
    a_second: int

    @property
    def burst(self) -> int:
        """Requests at once."""
        return self.a_second * BURST_S


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a caller has left, as its answer's headers say (draft-ietf-httpapi-ratelimit-headers-10)."""

    limits: tuple[Limit, ...]
    left: tuple[Left, ...]

    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit``."""
        return {
            "RateLimit-Policy": ", ".join(f'"{each.name}";q={each.burst};w={BURST_S}' for each in self.limits),
            "RateLimit": ", ".join(
                f'"{limit.name}";r={max(0, left.requests)};t={math.ceil(left.whole_ms / 1000)}'
                for limit, left in zip(self.limits, self.left, strict=True)
            ),
        }


def held_s(waiting: int) -> float:
    """How long a refusal is held back, where so many of its address wait already, itself included."""
    return min(LONGEST_HELD_S, max(HELD_S, waiting / REFUSALS_A_SECOND))


class Limiter:
    """The limits of one service, as one of its processes keeps them.

    Whoever was refused is remembered here until there is room again, and refused without asking Redis.

    Attributes:
        limits: whether there are any.
    """

    def __init__(self, rates: Rates, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._address = Limit("address", settings.address_requests) if settings.address_requests else None
        self._account = Limit("account", settings.account_requests) if settings.account_requests else None
        self._anonymous = Limit("anonymous", settings.anonymous_requests) if settings.anonymous_requests else None
        self.limits = bool(self._address or self._account or self._anonymous)
        self._blocked: dict[str, float] = {}

    def admit(self, address: str, *, anonymous: bool) -> None:
        """Refuses an address at once that was refused a moment ago.

        Args:
            anonymous: the request does not say of which account it is.

        Raises:
            RateLimited: it has to wait still.
        """
        self._refuse_blocked(self._address, address)
        if anonymous:
            self._refuse_blocked(self._anonymous, address)

    def spend(self, address: str, account_id: str, cost: int) -> Allowance | None:
        """Counts a request; None: nothing limits it.

        Args:
            account_id: only of an account that has proven to be it: else anybody could use up its share. Empty: no
                account is behind the request.

        Raises:
            RateLimited: there is no room for it; nothing was counted.
        """
        whose, who = (self._account, account_id) if account_id else (self._anonymous, address)
        self._refuse_blocked(whose, who)
        asked = self._asked(address, whose, who)
        if not asked:
            return None
        return self._allowance(asked, *self._rates.spend(cost, _rates(asked)))

    def enter(
        self, address: str, account_id: str, secret_hash: bytes, cost: int
    ) -> tuple[str | None, Allowance | None]:
        """Finds out whether a request is its account's, and counts it, in one step.

        One that shows another secret costs the address what it has for those without an account, and not the account:
        else anybody could use up its share.

        Returns:
            Why the account is banned, empty: it is not, None: its secret is another; and as `spend`.

        Raises:
            RateLimited: there is no room for it; nothing was counted.
        """
        mine, others = self._asked(address, self._account, account_id), self._asked(address, self._anonymous, address)
        entered = self._rates.enter(cost, account_id, secret_hash, _rates(mine), _rates(others))
        allowance = self._allowance(mine if entered.proven else others, entered.good, entered.left)
        return entered.banned if entered.proven else None, allowance

    def _asked(self, address: str, whose: Limit | None, who: str) -> list[tuple[Limit, str]]:
        """The limits that count, each with whom it is of."""
        return [(limit, each) for limit, each in ((self._address, address), (whose, who)) if limit]

    def _allowance(self, asked: Sequence[tuple[Limit, str]], good: bool, left: Sequence[Left]) -> Allowance | None:
        if not asked:
            return None
        if good:
            return Allowance(tuple(limit for limit, _ in asked), tuple(left))
        (limit, refused), wait_ms = max(
            zip(asked, (each.wait_ms for each in left), strict=True), key=lambda each: each[1]
        )
        wait_s = max(LEAST_WAIT_S, wait_ms / 1000)
        self._block(f"{limit.name}:{refused}", wait_s)
        raise RateLimited(limit.name, wait_s)

    def _refuse_blocked(self, limit: Limit | None, who: str) -> None:
        if limit is None or not self._blocked:
            return
        until_s = self._blocked.get(f"{limit.name}:{who}")
        if until_s is None:
            return
        wait_s = until_s - self._clock()
        if wait_s > 0:
            raise RateLimited(limit.name, wait_s)
        del self._blocked[f"{limit.name}:{who}"]

    def _block(self, key: str, wait_s: float) -> None:
        now_s = self._clock()
        if len(self._blocked) >= _MOST_BLOCKED:
            self._blocked = {key: until_s for key, until_s in self._blocked.items() if until_s > now_s}
        if len(self._blocked) < _MOST_BLOCKED:
            self._blocked[key] = now_s + wait_s


def _rates(asked: Sequence[tuple[Limit, str]]) -> list[Rate]:
    return [(f"{limit.name}:{who}", limit.a_second, limit.burst) for limit, who in asked]
