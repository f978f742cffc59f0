"""Upkeep: what a running service does beside answering, a greenlet each: sweeps, archives, keeps its store.

Of all processes over one Redis one leads, and it alone sweeps and archives. The others look how the service stands.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import redis
from gevent.event import AsyncResult

from discovery.app import Discovery
from discovery.metrics import FLUSH_S
from discovery.store.keeper import Keeper

log = logging.getLogger("ec262.discovery")

REMIND_S = 60.0
"""How often an outage is logged that goes on."""
LEAD_MS = 6000
"""A process that leads and says nothing for so long has another one take its place."""


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
            # By itself, for a sweep may take longer than a process leads without a word.
            gevent.spawn(self._lead),
            gevent.spawn(self._repeat, "sweeping", self._sweep, every_s),
            # By itself, so that leases expire in time however long the disk takes.
            gevent.spawn(self._repeat, "archiving", self._archive, every_s),
            gevent.spawn(self._report),
        ]
        if keeper is not None:
            keeper.moved = discovery.store.move_to
            self._greenlets.append(gevent.spawn(self._keep, keeper))

    def stop(self) -> None:
        """Ends all of it, each at a point where it may be left."""
        gevent.killall(self._greenlets)
        self._discovery.mover.close()
        if self._discovery.meter.leads:  # another one need not wait until this one is missed
            self._discovery.meter.leads = False
            with contextlib.suppress(redis.RedisError):
                self._discovery.store.rates.lead(self._discovery.meter.process, 0)

    def _lead(self) -> None:
        discovery = self._discovery
        while True:
            try:
                discovery.meter.leads = discovery.store.rates.lead(discovery.meter.process, LEAD_MS)
            except redis.RedisError:
                discovery.meter.leads = False  # the sweep says why
            gevent.sleep(LEAD_MS / 1000 / 6)

    def _sweep(self) -> None:
        discovery = self._discovery
        if discovery.meter.leads:
            discovery.sweep()
            discovery.store.rates.tell_trouble(discovery.mover.trouble, 2 * LEAD_MS)
        else:
            discovery.condition.measure()
            discovery.condition.elsewhere = discovery.store.rates.trouble()

    def _archive(self) -> None:
        if self._discovery.meter.leads:
            self._discovery.mover.move()
        else:
            self._discovery.mover.close()

    def _report(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            with contextlib.suppress(redis.RedisError):  # it is added next time
                self._discovery.meter.flush()

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
                self._discovery.meter.count(f"faults|{what}")
                log.exception("a fault in %s; it goes on", what)

    def _keep(self, keeper: Keeper) -> None:
        try:
            keeper.watch()
        except Exception as reason:  # whatever it is: without a store nothing goes on
            self._over.set_exception(reason)


def report_last(discovery: Discovery) -> None:
    """Adds what this process counted to what all did, and says that it is gone."""
    with contextlib.suppress(redis.RedisError):
        discovery.meter.flush(last=True)


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
