"""Repeating: requests for leases that a kill cut short are asked again, word for word, and answered as before.

Otherwise the credits of leases that nobody was sent are back only when these are past their deadlines; and a worker
that was sent a lease and did not confirm it in time would compute, and be owed something for, what is leased to another
meanwhile.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from ec262.errors import ProblemError
from ec262.foreman.journal import Journal
from ec262.foreman.pushing import Pairs, Pushing
from ec262.foreman.records import Remembered
from ec262.foreman.schedule import Replica, Task
from ec262.foreman.session import Session
from ec262.foreman.unsent import Request
from ec262.protocol import messages as m

log = logging.getLogger("ec262.foreman")

ASK_AGAIN_S = 540.0
"""Discovery knows a request by its key for ten minutes. One that is older than this is not asked again."""


@dataclass(slots=True)
class Again:
    """An answer that was given again.

    Attributes:
        workers: with tickets, for its leases alone.
        leases: those that no worker has confirmed.
        pairs: those of them that are to be pushed.
    """

    workers: list[m.AssignedWorker]
    leases: set[str]
    pairs: Pairs = field(default_factory=list)


class Repeating:
    """Asks again, and has pushed what was not."""

    def __init__(self, session: Session, journal: Journal, pushing: Pushing) -> None:
        self._session = session
        self._journal = journal
        self._pushing = pushing
        self._unsent = journal.unsent()
        self._of_task: dict[str, Again] = {}
        self._ready: list[Again] = []

    def ask(self) -> None:
        """Asks what the run before was not done with; returns at once where that was done. To be called before anything
        else is leased: which tasks are leased already is known only then.

        Raises:
            NetworkError: discovery does not answer.
        """
        while self._unsent:
            request = self._unsent[0]
            leases = self._ask(request) if self._worth_it(request) else []
            self._journal.answered(request.asked.key, leases)
            del self._unsent[0]

    def leases(self, known: Remembered) -> set[str]:
        """Those of the task that can be pushed now."""
        again = self._of_task.get(known.task_id)
        return set() if again is None else again.leases & known.leases.keys()

    def add(self, task: Task, replicas: list[Replica]) -> None:
        """The task is loaded: these, leased of it, are to be pushed."""
        again = self._of_task.pop(task.task_id)
        if not again.pairs:
            self._ready.append(again)
        again.pairs += [(task, replica) for replica in replicas]

    def push(self) -> None:
        """Pushes what was added, what came of one request together."""
        ready, self._ready = self._ready, []
        for again in ready:
            pairs, again.pairs = again.pairs, []
            self._pushing.push(pairs, again.workers)

    # --- inside ---

    def _worth_it(self, request: Request) -> bool:
        """Whether asking again is safe and of use."""
        if time.time() - request.asked.asked_s > ASK_AGAIN_S:
            return False
        if request.answered:
            # A worker that has started it and was started anew itself would not know that.
            return not self._session.policy.runs_once
        # Discovery may not have heard of it: then it costs what it would have.
        wanted = request.asked.wanted()
        return self._session.purse.affordable(wanted.policy.redundancy, len(wanted.tasks)) == len(wanted.tasks)

    def _ask(self, request: Request) -> list[str]:
        """Asks again; returns the leases that are unsent."""
        session = self._session
        asked, wanted = request.asked, request.asked.wanted()
        session.leasing += 1
        try:
            leased = session.discovery.lease_tasks(wanted)
        except ProblemError as reason:
            if reason.status >= 500 or reason.code == "rate-limited":
                raise
            log.info("discovery does not repeat its answer to a request: %s", reason)
            return []
        finally:
            session.leasing -= 1
        session.meet(leased.poll_key, leased.program_key)
        for worker in leased.workers:
            session.know(worker)
        if not request.answered:
            # A task that is left out is leased to nobody: it is not known then, and is leased like any other.
            for given in leased.tasks:
                phase, number = asked.places[given.position]
                self._journal.leased_again((phase, number, wanted.tasks[given.position].input_digest), given)
        again = Again(leased.workers, set())
        for given in leased.tasks:
            leases = self._unconfirmed(given)
            if leases:
                again.leases |= leases
                self._of_task[given.task_id] = again
        log.info("asked again for %d tasks: %d leases are unsent", len(wanted.tasks), len(again.leases))
        return list(again.leases)

    def _unconfirmed(self, given: m.LeasedTask) -> set[str]:
        """Leases of a task that may not be with their workers; none where it was over, or others were asked since."""
        known = self._journal.known(given.task_id)
        leases = {replica.lease_id for replica in given.replicas}
        if known is None or known.verdict is not None or not known.leases.keys() <= leases:
            return set()
        return known.leases.keys() - known.pushed - known.results.keys()
