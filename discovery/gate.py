"""Gate: who may ask at all, now. Before any rule is asked: the caller's version, and how often it called."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from flask import Blueprint, Response, g, request

from discovery.addresses import believed, caller_of, origins
from discovery.limits import Limiter, RateLimited, held_s
from discovery.metrics import Meter
from ec262.protocol.pacing import cost_of
from ec262.protocol.routes import Route
from ec262.responses import refuse_old

_FORWARDED = ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP")
"""Headers of requests that somebody passed on; only the first is believed, and of believed proxies alone."""
_UNLIMITED = frozenset({"live", "ready", "health", "openapi", "docs", "metrics"})
"""What whoever watches a service asks, and what costs next to nothing."""


class Gate:
    """In front of all views.

    Args:
        proxies: networks (CIDR) of reverse proxies that are believed.

    Attributes:
        pause: waits for so many seconds; a server that ends lets it go at once.
    """

    def __init__(self, limiter: Limiter, meter: Meter, proxies: Collection[str]) -> None:
        self._limiter = limiter
        self._meter = meter
        self._proxies = proxies
        self._held: Counter[str] = Counter()
        self.pause: Callable[[float], object] = time.sleep

    def guard(self, blueprint: Blueprint) -> None:
        """Has every request of an application checked, and every answer say what is left."""
        blueprint.before_app_request(self._refuse)
        blueprint.after_app_request(_tell_limits)

    def caller(self) -> str:
        """The address that a request comes from."""
        return caller_of(_peer(), request.headers.getlist("X-Forwarded-For"), self._proxies)

    def unnamed(self) -> bool:
        """Whether somebody passed the request on whom this service does not believe."""
        return any(name in request.headers for name in _FORWARDED) and not believed(_peer(), self._proxies)

    def secure(self) -> bool:
        """Whether the caller came over TLS: to this service, or to a proxy that is believed."""
        if request.is_secure:
            return True
        # Like X-Forwarded-For: what stands before the last entry is the caller's own invention.
        said = ",".join(request.headers.getlist("X-Forwarded-Proto")).rpartition(",")[2]
        return believed(_peer(), self._proxies) and said.strip().lower() == "https"

    def enter(self, route: Route) -> None:
        """Lets a request in that asks a route for programs and is of no account; as `admit`."""
        if route.name not in _UNLIMITED:
            self.admit(str, anonymous=request.authorization is None)

    def identify(self, account_id: str, secret_hash: bytes) -> str | None:
        """Lets a request in that is of an account, if neither that nor its address asks too often.

        Args:
            account_id: that it names.
            secret_hash: `registry.hash_of` the secret that it shows.

        Returns:
            Why the account is banned, empty: it is not; None: it has another secret, or there is no such account.

        Raises:
            RateLimited.
        """
        origin = origins(self.caller())[0]
        with self._refusing(origin):
            self._limiter.admit(origin, anonymous=False)
            cost = cost_of(request.content_length or 0)
            banned, g.allowance = self._limiter.enter(origin, account_id, secret_hash, cost)
        return banned

    def admit(self, authenticate: Callable[[], str], *, anonymous: bool) -> str:
        """The account that asks, if neither it nor its address asks too often.

        Args:
            authenticate: tells the account; empty: it is of none.
            anonymous: the request does not say of which account it is.

        Raises:
            RateLimited.
        """
        if not self._limiter.limits:
            return authenticate()
        origin = origins(self.caller())[0]
        with self._refusing(origin):
            self._limiter.admit(origin, anonymous=anonymous)
            account_id = authenticate()
            g.allowance = self._limiter.spend(origin, account_id, cost_of(request.content_length or 0))
        return account_id

    def _refuse(self) -> Response | None:
        """What reaches no view counts as well: who is too old, paths and methods that there are not, and OPTIONS."""
        refusal = refuse_old()
        if refusal is not None or request.routing_exception is not None or request.method == "OPTIONS":
            self.admit(str, anonymous=True)
        return refusal

    @contextlib.contextmanager
    def _refusing(self, origin: str) -> Iterator[None]:
        """Counts a refusal, notes when to come back, and holds it back."""
        try:
            yield
        except RateLimited as reason:
            self._meter.count(f"limited|{reason.limit}")
            g.wait_s = reason.wait_s
            self._hold(origin)
            raise

    def _hold(self, origin: str) -> None:
        self._held[origin] += 1
        try:
            self.pause(held_s(self._held[origin]))
        finally:
            self._held[origin] -= 1
            if not self._held[origin]:
                del self._held[origin]


def _peer() -> str:
    return request.remote_addr or "127.0.0.1"


def _tell_limits(response: Response) -> Response:
    """Says what is left, and when to come back."""
    allowance = g.get("allowance")
    if allowance is not None:
        response.headers.update(allowance.headers())
    if "wait_s" in g:
        response.headers["Retry-After"] = str(max(1, math.ceil(g.wait_s)))
    return response
