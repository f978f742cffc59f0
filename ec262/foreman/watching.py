"""Watching: what the clock does to tasks that are out. Their time runs out, or they hold up the end of the phase."""

from __future__ import annotations

import logging
import time

import gevent

from ec262.foreman.payloads import describe
from ec262.foreman.session import Session

log = logging.getLogger("ec262.foreman")

TICK_S = 0.2


class Watching:
    """Looks at the clock while anything is out."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self) -> None:
        """For ever."""
        session = self._session
        while True:
            if not session.schedule.running:
                session.to_watch.clear()
                session.to_watch.wait()
            gevent.sleep(TICK_S)
            if session.failure is not None or session.closing:
                return
            self._time_out(time.monotonic())
            if session.policy.backup_tasks and not session.policy.runs_once:
                self._back_up(time.monotonic())

    def _time_out(self, now: float) -> None:
        """Replicas past their deadline count as lost. What comes of them later counts all the same."""
        session = self._session
        by_worker: dict[str, list[str]] = {}
        for replica in session.schedule.overdue(now):
            by_worker.setdefault(replica.worker_id, []).append(replica.lease_id)
        for worker_id, leases in by_worker.items():
            session.lose(worker_id, leases, f"gave no result in {session.timeout_s:g} s")

    def _back_up(self, now: float) -> None:
        session = self._session
        schedule = session.schedule
        for task, overtaken in schedule.stragglers(now, session.policy.max_retries):
            if not session.purse.spares(1):
                return
            slow = [replica for replica in task.replicas.values() if replica.out]
            if not slow:
                continue
            log.info(
                "%s gets a backup: worker %s has had it for %.1f s, others take at most %.1f s, and one is free",
                *(describe(task), slow[-1].worker_id, now - slow[-1].leased_s, schedule.straggler_s() or 0.0),
            )
            session.lost += [replica.lease_id for replica in overtaken]
            schedule.backed(task, overtaken, now)
            session.to_settle.set()
