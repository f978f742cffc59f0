"""Auditing: asks discovery whether what a job's outcome rests on still holds."""

from __future__ import annotations

import logging

import gevent

from ec262.errors import JobFailed, ProblemError
from ec262.foreman.session import Session
from ec262.protocol import messages as m

log = logging.getLogger("ec262.foreman")

PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Until asking again a discovery whose tasks others change, or which does not close the job and names no reason."""


class Auditing:
    """Audits the accepted tasks of a job."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def audit(self, *, whole: bool, closing: bool) -> None:
        """Asks for all accepted tasks, or (not `whole`) for those that were not asked for yet; what no longer holds is
        in `Accepted.stale` then. Each batch is one call: the cost is linear in the tasks.

        Args:
            closing: discovery forgets the job, if all of it holds.

        Raises:
            JobFailed: discovery neither closes the job nor says what to compute.
            NetworkError: as `DiscoveryClient.audit`.
        """
        accepted = self._session.accepted
        if whole:
            accepted.audit_all()
        pauses = iter(PAUSES_S)
        while True:
            ids = accepted.to_audit(m.MAX_TASKS_A_REQUEST)
            heard = accepted.to_hear(m.MAX_TASKS_A_REQUEST)
            close = closing and not accepted.stale and accepted.backlog == (len(ids), len(heard))
            if not (ids or heard or close):
                return
            answer = self._ask(m.AuditTasks(job_id=self._session.job_id, tasks=ids, closing=close, heard=heard))
            accepted.audited(ids)
            accepted.heard(heard)
            self._session.recall(answer.recompute)
            accepted.unknown(answer.unknown)
            for refund in answer.refunded:
                self._session.purse.reclaimed(refund.worker_id, refund.amount)
            if answer.closed:
                self._session.closed = True
                if self._session.journal is not None:
                    self._session.journal.close_job()
                return
            if close and not accepted.stale:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise JobFailed("discovery does not close the job, and does not say what to compute anew")
                gevent.sleep(pause_s)

    def _ask(self, asked: m.AuditTasks) -> m.Audited:
        for pause_s in PAUSES_S:
            try:
                return self._session.discovery.audit(asked)
            except ProblemError as reason:
                if reason.code != "conflict":
                    raise
                gevent.sleep(pause_s)
        return self._session.discovery.audit(asked)
