"""Upkeep: what a running service does beside answering, a greenlet each: sweeps, archives, keeps its store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import redis
from gevent.event import AsyncResult

from discovery.app import Discovery
from discovery.store.keeper import Keeper

log = logging.getLogger("ec262.discovery")

REMIND_S = 60.0
"""How often an outage is logged that goes on."""


class Upkeep:
    """Begins at once.

    Args:
        keeper: of the embedded store; None: the store is somebody else's, and is waited for.
        over: is given the reason where the service cannot go on.
    """

    def __init__(self, discovery: Discovery, keeper: Keeper | None, over: AsyncResult) -> None:
        self._discovery = discovery
        self._over = over
        discovery.mover.run = _in_thread
        every_s = discovery.settings.sweep_every_s
        self._greenlets = [
            gevent.spawn(self._repeat, "sweeping", discovery.sweep, every_s),
            # By itself, so that leases expire in time however long the disk takes.
            gevent.spawn(self._repeat, "archiving", discovery.mover.move, every_s),
        ]
        if keeper is not None:
            keeper.moved = discovery.store.move_to
            self._greenlets.append(gevent.spawn(self._keep, keeper))

    def stop(self) -> None:
        """Ends all of it, each at a point where it may be left."""
        gevent.killall(self._greenlets)
        self._discovery.mover.close()

    def _repeat(self, what: str, do: Callable[[], object], every_s: float) -> None:
        outage = Outage(what)
        while True:
            gevent.sleep(every_s)
            try:
                do()
                outage.over()
            except redis.RedisError as reason:
                outage.goes_on(reason)
            except Exception:
                log.exception("a fault in %s; it goes on", what)

    def _keep(self, keeper: Keeper) -> None:
        try:
            keeper.watch()
        except Exception as reason:  # whatever it is: without a store nothing goes on
            self._over.set_exception(reason)


class Outage:
    """Times in which the store does not answer, in the log: that they begin, go on, and are over."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._said = 0.0

    def goes_on(self, reason: Exception) -> None:
        """The store did not answer."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._said < REMIND_S:
            return
        self._said = now
        log.error("the store does not answer; %s waits for it, and requests get 503: %s", self._what, reason)

    def over(self) -> None:
        """The store answered."""
        if self._since is not None:
            log.warning("the store answers again; %s goes on after %.1f s", self._what, time.monotonic() - self._since)
            self._since = None


def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what computes and writes to disk in a thread, so that requests are answered meanwhile."""
    done = gevent.get_hub().threadpool.spawn(function, *arguments)
    try:
        return done.get()
    except gevent.GreenletExit:
        done.wait()  # it has the files that are about to be closed
        raise
