"""Leasing: tasks are taken from the phase as workers can take more and memory allows, paid into escrow, and pushed."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence

import gevent
from gevent.lock import BoundedSemaphore

from ec262.errors import InsufficientCredits, LimitExceeded, NoWorkers, ProblemError
from ec262.foreman.pushing import Pairs, Pushing
from ec262.foreman.resuming import Resuming
from ec262.foreman.schedule import Replica, Task
from ec262.foreman.session import Session, where
from ec262.protocol import messages as m

log = logging.getLogger("ec262.foreman")

PAUSE_S = 0.25
"""Until asking again for workers."""
TO_BELIEVE = 4
"""So many replicas of a task have to be affordable before it is leased with a confidence, where the job has a limit and
credits may still come back: so many workers that nobody knows yet have to agree to be believed with 0.99."""
READING_S = 0.05
"""So long tasks are read at a stretch; then others have their turn."""


class Leasing:
    """Leases and has pushed.

    Args:
        requirements: which workers fit.
    """

    def __init__(
        self, session: Session, pushing: Pushing, resuming: Resuming | None, requirements: m.Requirements
    ) -> None:
        self._session = session
        self._pushing = pushing
        self._resuming = resuming
        self._requirements = requirements
        self._reading = BoundedSemaphore(1)

    def run(self) -> None:
        """Leases for ever; several may do so side by side."""
        session = self._session
        schedule = session.schedule
        idle_since: float | None = None
        repeat: tuple[str, list[Task], int] | None = None
        if self._resuming is not None:
            with self._reading:
                self._resuming.ask_again()
        while not session.closing and session.failure is None:
            if not schedule.out and schedule.all_down(time.monotonic()):
                gevent.sleep(PAUSE_S)  # whoever it would go to did not answer a moment ago
                continue
            if repeat is None:
                session.to_lease.clear()
                tasks = self._gather()
                if not tasks:
                    session.to_lease.wait()
                    continue
                key, most = secrets.token_hex(12), self._most_replicas(tasks)
            else:
                (key, tasks, most), repeat = repeat, None
            try:
                leased = self._lease(key, tasks, most)
            except InsufficientCredits as reason:
                self._put_back(tasks)
                if not session.busy:
                    raise
                log.info("waiting for escrow to come back: %s", reason)
                gevent.sleep(PAUSE_S)
                continue
            except ProblemError as reason:
                if reason.code != "conflict":
                    raise
                repeat = (key, tasks, most)
                gevent.sleep(PAUSE_S * secrets.randbelow(100) / 100)
                continue
            session.purse.price, session.purse.balance = leased.price, leased.balance
            schedule.slots_alive = leased.network.slots
            found = {given.position for given in leased.tasks}
            self._put_back([task for position, task in enumerate(tasks) if position not in found])
            if leased.tasks:
                idle_since = None
                self._send(key, tasks, leased, most)
                continue
            self._answered(key)
            if schedule.out or session.settling:
                idle_since = None
                session.to_lease.clear()
                session.to_lease.wait(PAUSE_S)
                continue
            idle_since = idle_since if idle_since is not None else time.monotonic()
            if time.monotonic() - idle_since > session.policy.wait_for_workers_s:
                raise NoWorkers(self._no_workers(leased.network.workers))
            gevent.sleep(PAUSE_S)

    # --- what to lease ---

    def _gather(self) -> list[Task]:
        """The tasks to lease next, their inputs loaded; empty while there is no room for more."""
        session = self._session
        schedule, purse, needed = session.schedule, session.purse, session.policy.least_replicas
        with self._reading:
            if session.phase_over.is_set():
                return []
            purse.sweep(time.monotonic())
            tasks: list[Task] = []
            room = schedule.room()
            most = purse.affordable(needed, room)
            if session.policy.confidence and purse.limit is not None:
                most = purse.affordable(TO_BELIEVE, most) or (most if not session.busy else 0)
            since = time.monotonic()
            while len(tasks) < room:
                task = schedule.peek()
                # One that is in memory already is no reason to wait for memory.
                if task is None or (task.parts is None and not schedule.bytes.admits()):
                    break
                if len(tasks) >= most and not (self._resuming is not None and self._resuming.leased(task)):
                    break
                schedule.pull()
                tasks += self._ready(task)
                if time.monotonic() - since > READING_S:
                    gevent.sleep(0)
                    since = time.monotonic()
            self._put_back(tasks[most:])  # leased before, and another task now
            del tasks[most:]
            if self._resuming is not None:
                self._resuming.push()
            more = schedule.peek()  # whether the phase has an end is known before its last task is done
            session.look_whether_over()
        if not tasks and more is not None and not purse.affordable(needed, 1) and not session.busy:
            raise session.over_limit("the tasks that are left")
        return tasks

    def _ready(self, task: Task) -> list[Task]:
        """The task, loaded; nothing where a run before had leased it, and this one goes on with that, or where it can
        be sent to nobody."""
        self._session.phases.add(where(task)[0])
        try:
            if self._resuming is not None and self._resuming.adopt(task):
                return []
            self._session.load(task)
        except LimitExceeded as reason:
            self._session.fail_task(task, reason)
            return []
        return [task]

    def _put_back(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._session.purse.reserved -= task.reserve
            task.reserve = 0
        self._session.schedule.put_back(tasks)

    # --- leasing them ---

    def _lease(self, key: str, tasks: list[Task], most_replicas: int) -> m.Leased:
        policy = self._session.policy
        wanted = m.LeaseTasks(
            job_id=self._session.job_id,
            idempotency_key=key,
            tasks=[self._wanted(task) for task in tasks],
            requirements=self._requirements,
            policy=m.Policy(
                redundancy=policy.copies,
                quorum=policy.agreement,
                max_replicas=most_replicas,
                confidence=policy.confidence or 0.0,
            ),
            timeout_s=policy.timeout_s,
            offer=policy.price,
        )
        if self._session.journal is not None:
            places = [(phase, number) for phase, number, _ in map(where, tasks)]
            self._session.journal.asked(wanted, places, time.time())
        self._session.leasing += 1
        try:
            return self._session.discovery.lease_tasks(wanted)
        except ProblemError as reason:
            if reason.status < 500:
                self._answered(key)
            raise
        finally:
            self._session.leasing -= 1

    def _wanted(self, task: Task) -> m.TaskWanted:
        return m.TaskWanted(
            input_digest=task.digest, cpu_limit_s=self._session.policy.cpu_limit_s, again=task.again or None
        )

    def _most_replicas(self, tasks: list[Task]) -> int:
        """How many replicas discovery may buy of each task. With a limit of credits what all of them would cost is put
        aside; where the limit is too near for that, no more are bought than are needed if all agree."""
        policy, purse, needed = self._session.policy, self._session.purse, self._session.policy.least_replicas
        if policy.runs_once:
            return 1
        if purse.left is None:
            return policy.most_replicas
        if policy.confidence:
            each = purse.left // (len(tasks) * purse.price)
            most = min(policy.most_replicas, max(needed, each))
        else:
            whole = purse.affordable(len(tasks) * policy.most_replicas, 1) == 1
            most = policy.most_replicas if whole else needed
        for task in tasks:
            task.reserve = purse.reserve(most)
        return most

    def _answered(self, key: str, pairs: Sequence[tuple[Task, Replica]] = ()) -> None:
        """All that came of a request is noted; nothing where it was refused, or nobody was free."""
        if self._session.journal is not None:
            self._session.journal.answered(key, [replica.lease_id for _, replica in pairs])

    def _send(self, key: str, tasks: list[Task], leased: m.Leased, most_replicas: int) -> None:
        session = self._session
        session.meet(leased.poll_key, leased.program_key)
        for worker in leased.workers:
            session.know(worker)
        pairs: Pairs = []
        for given in leased.tasks:
            task = tasks[given.position]
            task.replicas = {}
            task.most_replicas = most_replicas
            pairs += [(task, replica) for replica in session.take(task, given)]
        self._answered(key, pairs)
        self._pushing.push(pairs, leased.workers)

    def _no_workers(self, alive: int) -> str:
        policy, url = self._session.policy, self._session.discovery.url
        waited = f"none came free in {policy.wait_for_workers_s:g} s"
        able = f" that can {', '.join(policy.requirements)}" if policy.requirements else ""
        if alive == 0:
            return (
                f"no worker with Python {policy.python}{able} is registered at {url} and {waited}: "
                f"start one with: python worker.py --discovery {url} (or offer more than price={policy.price}, if "
                "others ask for it)"
            )
        if alive < policy.copies:
            return (
                f"redundancy={policy.copies} wants as many different workers for each task, but "
                f"{url} has {alive}{able}: start more, or ask for less"
            )
        return (
            f"{url} has {alive} workers{able}, but none that may serve this job is free and {waited}: "
            f"they may be busy, ask for more than price={policy.price}, not be believed any more, have delivered other "
            "bytes than they gave receipts for, or, on a public network, be all your own, each other's neighbours, or "
            "yours: starting credits buy nothing of these"
        )
