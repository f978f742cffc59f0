"""Changes: what one atomic step commits, and by what it is decided: the terms, and what is known of workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from discovery.credibility import NEWCOMER, QUIET, Noise, Standing, Tally
from discovery.records import TaskRecord
from discovery.verdict import FirstWord, first_word

Move = tuple[str, str, int]
"""Credits on their way: from, to, amount. Places are ``mint``, ``burn``, ``account:<id>`` and ``escrow:<task>``."""

NEVER = -1
"""Instead of a time: the task needs no attention, but somebody may still ask for it."""


@dataclass(slots=True)
class JobChanges:
    """What a job's records gain.

    Attributes:
        compared, differed: answers that were compared with others, and those that differed, by worker.
        doubts: what tallies gained in it, by ``<worker>:d`` (doubts) and ``<worker>:w`` (words).
        effort: effort fees with a cap, by account.
        undelivered: results that the foreman says did not arrive, by worker.
        held: hold fees that its foreman paid for leases which an account's workers were never pushed, by account.
        back: pay of convicted workers that went back to its foreman, by worker.
        accepted: tasks to be remembered until it closes.
        recompute: tasks to be computed again.
    """

    compared: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    doubts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    effort: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    undelivered: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    back: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    accepted: list[str] = field(default_factory=list)
    recompute: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Changes:
    """What one atomic step commits.

    Attributes:
        tasks: (record, version it was loaded with, when it next needs attention in ms, `NEVER`, or None to delete it).
        takes: leases given to a worker, by worker and the epoch they count in.
        frees: leases whose slot comes free, by worker.
        counts: increments, by (``account:<id>``, ``worker:<id>`` or ``stats``, field).
        lessons: what tallies gain, by (worker, party of the foreman).
        jobs: what jobs' records gain, by (account, job).
        vesting: pay that may not be spent yet, by (account, ms from which it may); negative: it is taken back, and has
            to be there.
        hush: a job whose doubts are taken back with this, which happens once.
        touched: tasks to be committed though their states are as before.
        halved, restored: workers that get half of what they got, and those that get all again.
        denied: parties of foremen by whom a worker says it was never pushed a lease; of too many it gets half as well.
        agreed: replicas that agreed with what was accepted, and what was paid for them in all, by (account of the
            foreman, worker, its account, ms from which the pay may be spent): `add_up` says what follows from it.
    """

    tasks: list[tuple[TaskRecord, int, int | None]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    takes: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    frees: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    lessons: dict[tuple[str, str], Tally] = field(default_factory=dict)
    jobs: dict[tuple[str, str], JobChanges] = field(default_factory=lambda: defaultdict(JobChanges))
    vesting: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    hush: tuple[str, str] | None = None
    touched: set[str] = field(default_factory=set)
    halved: set[str] = field(default_factory=set)
    restored: set[str] = field(default_factory=set)
    denied: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    agreed: dict[tuple[str, str, str, int], tuple[int, int]] = field(default_factory=dict)

    def add_up(self) -> None:
        """Puts what follows from `agreed` with the rest: most of what a settlement counts, and this once a worker."""
        for (foreman, worker_id, payee, vests_ms), (replicas, credits) in self.agreed.items():
            self.counts[f"account:{foreman}", "escrow"] -= credits
            self.counts[f"worker:{worker_id}", "agreed"] += replicas
            self.counts["stats", "paid"] += replicas
            self.restored.add(worker_id)
            self.pay(foreman, worker_id, payee, vests_ms, credits)
        self.agreed.clear()

    def pay(self, foreman: str, worker_id: str, payee: str, vests_ms: int, credits: int) -> None:
        """Counts what an account was paid for its worker by that of a foreman; negative: it went back."""
        self.counts[f"account:{payee}", "earned"] += credits
        self.counts[f"account:{foreman}", "spent"] += credits
        self.counts[f"worker:{worker_id}", "earned"] += credits
        if vests_ms:
            self.vesting[payee, vests_ms] += credits

    def move(self, source: str, target: str, amount: int) -> None:
        """Notes that credits move; from a place to itself is no movement."""
        if amount and source != target:
            self.moves.append((source, target, amount))

    def learn(self, worker_id: str, party: str, gained: Tally) -> None:
        """Notes what a tally gains."""
        before = self.lessons.get((worker_id, party))
        self.lessons[worker_id, party] = gained if before is None else before.plus(gained)

    @property
    def accuses(self) -> bool:
        """Whether anybody's doubts change, so that somebody may have to be convicted or acquitted."""
        return any(tally.doubts or tally.words for tally in self.lessons.values())


@dataclass(frozen=True, slots=True)
class Terms:
    """What the rules need of the settings; times in ms.

    Attributes:
        late_ms: how late a receipt may come.
        settled_ms: how long settled keys are kept.
        vesting_ms: how long pay may not be spent.
        hold_ms: how long a lease holds a worker that was not pushed it.
        hold_leases: one in so many leases that were not pushed costs a credit.
        hold_cap: most credits of that kind that the workers of one account cost a foreman in a job.
        hold_foremen: who says of leases of so many unrelated foremen that they were not pushed is given less.
        effort_cap: most credits of effort fees for an account in a job, where its foreman is not at fault for certain.
        kept_ms: how long a job is remembered of which nothing is heard.
        most_share: a worker gets no less than one in so many of its capacity.
    """

    late_ms: int
    settled_ms: int
    vesting_ms: int = 0
    hold_ms: int = 30_000
    hold_leases: int = 16
    hold_cap: int = 4
    hold_foremen: int = 3
    effort_cap: int = 16
    kept_ms: int = 3_600_000
    most_share: int = 64


@dataclass(frozen=True, slots=True)
class View:
    """What is known of workers when tasks of one job are decided.

    Attributes:
        party: of the foreman: accounts of one party are one accuser.
        standings: of the workers, as this foreman sees them.
        accounts_count_once: workers of one account are one voice.
        secret: what decides which tasks are spot checked, and which leases cost a hold fee.
        noise: of the job.
        noisy: the job was found to be not deterministic: no dissent in it costs reputation any more.
        effort: effort fees with a cap that accounts had of the job.
        held: hold fees that accounts\' workers cost the foreman in the job.
        unvested: credits of the foreman that it may not spend yet.
        doubted: workers that dissented in this foreman's own jobs.
        parted: accounts whose workers get no more leases of the job, for they deny too many.
        undelivered: workers of whose results the foreman said in this job that they did not arrive.
        first_words: those of them that were asked for (`first_word`).
    """

    party: str
    standings: Mapping[str, Standing]
    accounts_count_once: bool = True
    secret: bytes = b""
    noise: Noise = QUIET
    noisy: bool = False
    effort: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    unvested: int = 0
    doubted: frozenset[str] = frozenset()
    parted: frozenset[str] = frozenset()
    undelivered: frozenset[str] = frozenset()
    first_words: dict[str, FirstWord] = field(default_factory=dict, init=False, repr=False, compare=False)

    def first_word(self, worker_id: str) -> FirstWord:
        """What a worker's answer is worth alone: reckoned once, for it answers many of a settlement's tasks."""
        found = self.first_words.get(worker_id)
        if found is None:
            found = self.first_words[worker_id] = first_word(self.standing(worker_id))
        return found

    def standing(self, worker_id: str) -> Standing:
        """Of a worker; one that nobody knows is a newcomer."""
        try:
            return self.standings[worker_id]
        except KeyError:
            return NEWCOMER
