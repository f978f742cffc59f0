"""Trust: what is known of workers when tasks are decided, convictions, and what follows from them for open jobs.

Who dissents, loses a dispute or contradicts an auditor becomes a suspect in the step that settles the task. Suspects
are judged after that step, and by every sweep: a crash between the two forgets nobody. A ban has all open jobs looked
through in the background (`backtrack`); and before a job is closed each result is looked at once more (`audit`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

from discovery import beliefs
from discovery.changes import Changes, Terms, View
from discovery.changing import BATCH, change
from discovery.credibility import Tally, clarity, convicted, credibility, established, unwelcome
from discovery.keyring import Keyring
from discovery.reclaiming import reclaim
from discovery.records import TaskRecord, WorkerRecord
from discovery.settings import Settings
from discovery.store.answers import Conflict
from discovery.store.known import Job, Known
from discovery.store.reputations import Suspect
from discovery.store.store import Store
from discovery.tasks import fall_due
from ec262.errors import ProblemError
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.states import TaskState

log = logging.getLogger("ec262.discovery.trust")

NOISY = 0.5
"""A job whose clarity is less looks nondeterministic, and costs nobody reputation."""


class Trust:
    """Knows workers, judges them, and looks after the jobs that rest on them.

    Attributes:
        networks_count: accounts made from one network are one party.
    """

    def __init__(self, store: Store, keyring: Keyring, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._secret = keys.spot_check_key(keyring.master)
        self.networks_count = "address" in settings.distinct
        self.terms = terms_of(settings)

    def view(self, job: Job, worker_ids: Iterable[str] = ()) -> View:
        """What a job's foreman knows of workers now."""
        return self.view_of(self._store.reputations.known(job, list(worker_ids), networks_count=self.networks_count))

    def load(
        self, job: Job, task_ids: Sequence[str], worker_ids: Sequence[str]
    ) -> tuple[int, dict[str, TaskRecord], View]:
        """Redis' time in ms, those of the tasks that are the job's, and its view of all who had or answered them.

        Args:
            worker_ids: who probably had them: what is known of these is asked for with the tasks.
        """
        now_ms, found, known = self._store.load_known(task_ids, job, worker_ids, networks_count=self.networks_count)
        records = {task_id: task for task_id, task in found.items() if (task.account_id, task.job_id) == job}
        had = {replica.worker_id for task in records.values() for replica in task.replicas}
        had.update(replica.worker_id for task in records.values() if task.heard for replica in task.heard)
        return now_ms, records, self.view_of(known) if had <= known.standings.keys() else self.view(job, had)

    def view_of(self, known: Known) -> View:
        """What the rules see of that."""
        parted = frozenset(account for account, fees in known.held.items() if fees >= self.terms.hold_cap)
        return View(
            party=known.party,
            standings=known.standings,
            accounts_count_once=self._settings.distinct != "none",
            secret=self._secret,
            noise=known.noise,
            noisy=known.noisy,
            effort=known.effort,
            held=known.held,
            unvested=known.unvested,
            doubted=known.standings.doubted(),
            undelivered=known.undelivered,
            # In a private network people know each other, and may have no other worker.
            parted=frozenset() if self._settings.own_workers else parted,
        )

    def views(self, records: Iterable[TaskRecord]) -> dict[Job, View]:
        """The views that tasks are decided with, by their jobs."""
        workers: dict[Job, dict[str, None]] = {}
        for record in records:
            named = workers.setdefault((record.account_id, record.job_id), {})
            for replica in record.replicas:
                named[replica.worker_id] = None
            for replica in record.heard:
                named[replica.worker_id] = None
        return {job: self.view(job, named) for job, named in workers.items()}

    def touch(self, job: Job) -> None:
        """A job was heard of: what its results rest on is remembered for longer."""
        self._store.reputations.touch(job, self.terms.kept_ms)

    # --- convictions ---

    def review(self) -> None:
        """Judges all suspects: bans who is to be banned, and ends bans that rested on evidence withdrawn since."""
        while suspects := self._store.reputations.suspects(BATCH):
            for suspect in suspects:
                self._judge(suspect)
                self._store.reputations.judged(suspect)
            if len(suspects) < BATCH:
                return

    def sweep(self) -> None:
        """Judges suspects, looks through jobs after bans, forgets jobs that are over or silent, lets pay vest."""
        reputations = self._store.reputations
        self.review()
        for job in reputations.backtrack(BATCH):
            self.backtrack(job)
        for job in reputations.silent(BATCH):
            reputations.close(job)
        for job in reputations.closing(BATCH):
            self._forget(job)
        while reputations.vest(BATCH) == BATCH:
            pass

    def backtrack(self, job: Job) -> None:
        """Looks through a job after somebody was banned: what rested on the banned alone is to be computed again, and
        what they were paid for it goes back."""
        self._store.reputations.backtracked(job)

        def reconsider(records: dict[str, TaskRecord], now_ms: int, changes: Changes) -> None:
            views = self.views(records.values())
            for record in records.values():
                view = views[record.account_id, record.job_id]
                if beliefs.settled_answers(record) and beliefs.rests_on_banned(record, view):
                    beliefs.reconsider(record, view, changes)
                reclaim(record, view, now_ms, changes)

        found = self._store.reputations.remembered(job)
        for start in range(0, len(found), BATCH):
            done = change(self._store, self.terms, found[start : start + BATCH], reconsider)
            if done is None:
                self._store.reputations.look_again(job)
            elif done.accuses:
                self.review()

    def hush(self, job: Job, view: View) -> bool:
        """Takes back what dissents in a job cost, once it looks nondeterministic; returns whether it did."""
        if view.noisy or clarity(view.noise) >= NOISY:
            return False
        changes = Changes(hush=job)
        gained = self._store.reputations.doubts(job)
        for worker_id, tally in gained.items():
            changes.learn(worker_id, view.party, Tally().minus(tally))
            changes.jobs[job].doubts[f"{worker_id}:d"] -= tally.doubts
            changes.jobs[job].doubts[f"{worker_id}:w"] -= tally.words
        try:
            self._store.commit(changes, self._store.now_ms(), self.terms)
        except Conflict:
            return False  # another request did it
        log.warning("job %s looks nondeterministic: its dissents cost nobody reputation", job[1])
        self.review()
        return True

    # --- audits ---

    def audit(self, account_id: str, asked: m.AuditTasks) -> m.Audited:
        """Says which accepted tasks no longer hold; closes the job if it is asked to and nothing is to be done again.

        Raises:
            ProblemError: ``conflict`` after many attempts.
        """
        job = (account_id, asked.job_id)
        reputations = self._store.reputations
        reputations.heard(job, asked.heard)
        self.touch(job)
        if asked.closing and reputations.to_backtrack(job):
            self.backtrack(job)
        again: list[str] = []
        unknown: list[str] = []

        def look(records: dict[str, TaskRecord], now_ms: int, changes: Changes) -> None:
            again.clear()
            unknown.clear()
            mine = [record for record in records.values() if (record.account_id, record.job_id) == job]
            views = self.views(mine)
            for task_id in wanted:
                record = records.get(task_id)
                if record is None or (record.account_id, record.job_id) != job:
                    unknown.append(task_id)
                elif record.state is TaskState.OVERTURNED:
                    again.append(task_id)
                elif not beliefs.settled_answers(record):
                    unknown.append(task_id)
                elif not beliefs.holds(record, views[job]):
                    beliefs.overturn(record, views[job], changes)
                    reclaim(record, views[job], now_ms, changes)
                    again.append(task_id)

        wanted = list(dict.fromkeys(asked.tasks))
        done = change(self._store, self.terms, wanted, look)
        if done is None:
            raise ProblemError(409, "conflict", "these tasks are being changed by another request: try again")
        if done.accuses:
            self.review()
        again += [task_id for task_id in reputations.recompute(job, m.MAX_TASKS_A_REQUEST) if task_id not in set(again)]
        refunded = [m.Refund(worker_id=each, amount=back) for each, back in reputations.refunded(job).items()]
        closed = asked.closing and not again and not unknown and not reputations.to_backtrack(job)
        if closed:
            reputations.close(job)
        return m.Audited(recompute=again, unknown=unknown, closed=closed, refunded=refunded)

    # --- inside ---

    def _judge(self, suspect: Suspect) -> None:
        accounts = self._store.accounts
        if convicted(suspect.known, suspect.accusers) and not suspect.auditor:
            if accounts.ban(suspect.account_id, "evidence", f"worker {suspect.worker_id} was convicted"):
                log.warning("account %s is banned: its worker %s was convicted", suspect.account_id, suspect.worker_id)
        elif suspect.banned and not any(
            convicted(other.known, other.accusers) for other in self._store.reputations.known_of(suspect.account_id)
        ):
            accounts.unban(suspect.account_id, "evidence")

    def _forget(self, job: Job) -> None:
        """Has a closed job's tasks deleted as soon as their keys are no longer wanted."""

        def release(records: dict[str, TaskRecord], now_ms: int, changes: Changes) -> None:
            for record in records.values():
                record.keep = False
                fall_due(record, now_ms, self.terms, changes)

        found = self._store.reputations.remembered(job)
        for start in range(0, len(found), BATCH):
            if change(self._store, self.terms, found[start : start + BATCH], release, always=True) is None:
                return  # the next sweep goes on
        self._store.reputations.forget(job, found)


def terms_of(settings: Settings) -> Terms:
    """What the rules need of the settings."""
    return Terms(
        late_ms=int(settings.late_grace_s * 1000),
        settled_ms=int(settings.settled_grace_s * 1000),
        vesting_ms=int(settings.vesting_s * 1000),
        hold_ms=int(settings.hold_s * 1000),
        hold_leases=settings.hold_leases,
        hold_cap=settings.hold_cap,
        hold_foremen=settings.hold_foremen,
        effort_cap=settings.effort_cap,
        kept_ms=int(settings.kept_job_s * 1000),
        most_share=settings.most_share,
    )


def welcome(workers: Sequence[WorkerRecord], view: View) -> list[WorkerRecord]:
    """Those of the workers that a foreman's tasks may be leased to."""
    return [
        worker
        for worker in workers
        if not worker.banned
        and worker.account_id not in view.parted
        and not (worker.worker_id in view.doubted and unwelcome(view.standing(worker.worker_id), doubted=True))
    ]


def further(workers: Collection[WorkerRecord], view: View) -> float | None:
    """How far the worker that is asked next is probably believed: a third of them less. None: it is a newcomer."""
    standings = [view.standing(worker.worker_id) for worker in workers]
    if not standings or 2 * sum(1 for each in standings if not established(each)) > len(standings):
        return None
    return sorted(credibility(each) for each in standings)[len(standings) // 3]
