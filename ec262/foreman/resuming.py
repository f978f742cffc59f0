"""Resuming: a foreman that was killed takes up what its journal says was leased."""

from __future__ import annotations

import logging
import time

from ec262.errors import JobFailed
from ec262.foreman.journal import Journal
from ec262.foreman.payloads import describe
from ec262.foreman.polling import Polling
from ec262.foreman.records import Remembered, last_of
from ec262.foreman.repeating import Repeating
from ec262.foreman.schedule import Peer, Task
from ec262.foreman.session import Session, where
from ec262.foreman.settling import Settling

log = logging.getLogger("ec262.foreman")


class Resuming:
    """Adopts tasks.

    Args:
        journal: one that was there before; `session.poll_key` is set from it.
    """

    def __init__(
        self, session: Session, journal: Journal, repeating: Repeating, polling: Polling, settling: Settling
    ) -> None:
        self._session = session
        self._journal = journal
        self._repeating = repeating
        self._polling = polling
        self._settling = settling
        if journal.poll_key:
            session.meet(journal.poll_key, journal.program_key)
            for worker in list(journal.workers.values()):
                session.know(worker)
        session.receipts += journal.bundles
        for worker_id, credits in journal.earned.items():
            session.purse.earned[worker_id] = credits
            session.purse.spent += credits
        self._count_escrow()

    def ask_again(self) -> None:
        """Has leased what the run before was about to lease. To be called before the first `adopt`.

        Raises:
            NetworkError: discovery does not answer.
        """
        self._repeating.ask()
        self._count_escrow()

    def _count_escrow(self) -> None:
        """What was leased may still be paid, whether its task was adopted yet or not: a limit counts all of it."""
        until_s = time.monotonic() + self._session.escrow_s
        for known in self._journal.tasks.values():
            for lease_id, price in known.prices.items():
                if lease_id not in known.paid:
                    self._session.purse.leased(lease_id, price, until_s)

    def push(self) -> None:
        """Pushes what adopted tasks were leased and their workers may not have. To be called now and then."""
        self._repeating.push()

    def leased(self, task: Task) -> bool:
        """Whether the run before had leased the task: then going on with it costs no more than is counted."""
        known = self._journal.tasks.get(where(task)[:2])
        return known is not None and bool(known.task_id)

    def adopt(self, task: Task) -> bool:
        """Goes on with a task where the run before was, if it had leased it; False: it is to be leased."""
        phase, number, _ = where(task)
        known = self._journal.take(phase, number)
        if known is None:
            return False
        session = self._session
        session.load(task)
        if known.digest != task.digest:
            log.info("%s is another one than before: it is leased anew", describe(task))
            if known.task_id:
                self._journal.over(known.task_id)
            return False
        task.attempts, task.losses = known.attempts, known.losses
        if known.failed:
            session.unload(task)
            session.fail_task(task, JobFailed(known.failed))
            return True
        if not known.task_id:
            return False
        unsent = self._repeating.leases(known)
        if not unsent:
            session.unload(task)
        self._take_up(task, known, unsent)
        if known.verdict is not None:
            self._settling.accept(task, known.verdict)
        elif not task.answered and not task.any_out:
            session.start_over(task, "its push was interrupted", counts=False)
        else:
            # Discovery may have added replicas just before the kill: it tells them with its next verdict.
            session.unsure[task.task_id] = last_of(known.leases)
        return True

    def _take_up(self, task: Task, known: Remembered, unsent: set[str]) -> None:
        """Puts the task out as it was: what came has come, what a worker has is polled for, what is unsent is sent."""
        session = self._session
        schedule = session.schedule
        now = time.monotonic()
        for lease_id, price in known.prices.items():
            if lease_id not in known.paid:
                session.purse.leased(lease_id, price, now + session.escrow_s)
        # A worker that did not say that it took a lease may have it all the same. It is sent it again, where that can
        # be done. Where nothing may run twice it is waited for; elsewhere somebody else is asked.
        expected = known.pushed | unsent
        expected |= set(known.leases) if session.policy.runs_once else known.results.keys()
        leases = [(lease_id, worker) for lease_id, worker in known.leases.items() if lease_id in expected]
        for _, worker_id in leases:
            schedule.peers.setdefault(worker_id, Peer(worker_id, 1))
        schedule.leased(task, known.task_id, known.input_key, leases, now, session.timeout_s)
        for lease_id, worker_id in leases:
            if lease_id in known.results:
                schedule.reported(lease_id, known.results[lease_id], now)
            elif lease_id not in unsent:
                task.replicas[lease_id].pushed = True
                self._polling.see_to(worker_id)
        if unsent:
            self._repeating.add(task, [task.replicas[lease_id] for lease_id in sorted(unsent)])
        session.lost += [lease_id for lease_id in known.leases if lease_id not in expected]
        session.to_watch.set()
        session.to_settle.set()
