"""Tasks: whatever happens to a task in whatever order, its credits are conserved and only agreement is paid."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from discovery.beliefs import hear, overturn, reconsider, settled_answers, voices_of
from discovery.changes import NEVER, Changes, Terms, View
from discovery.credibility import Noise, Standing, Tally, chance_of
from discovery.reclaiming import reclaim
from discovery.records import TaskRecord, WorkerRecord
from discovery.tasks import (
    NO_TOKENS,
    NOT_ARRIVED,
    accept,
    add_replicas,
    expire_replicas,
    fall_due,
    give_up,
    lose_dispute,
    next_due,
    owes_hold_fee,
    record_receipt,
    refuse_dispute,
    release_unpushed,
    rests_on_workers,
    still_out,
    verdict_on,
    waited_for,
)
from discovery.verdict import Accepted, More, Pending, Undecided, decide_credible
from ec262.protocol.credits import price_of
from ec262.protocol.receipts import Kind, Receipt, tokens_digest
from ec262.protocol.states import HOLDS_ESCROW, ReplicaState, TaskState

TERMS = Terms(late_ms=60_000, settled_ms=600_000)
FOREMAN = "f" * 32
JOB_ID = "1" * 32
TASK_ID = "0123456789abcdef01234567"
ANSWERS = [b"a" * 32, b"b" * 32, b"c" * 32]
TOKEN = b"t" * 32


def worker(number: int, ask: int = 1) -> WorkerRecord:
    return WorkerRecord(f"{number:032x}", f"{number % 4 + 1:032x}", "10.0.0.1", 1, 1, 1, 0, 9, ask=ask)


def known(**standings: Standing) -> View:
    """A foreman's view: of workers that nobody knows, but for those named by ``w<number>``. With this secret the task
    is no spot check, not even of newcomers, of whose tasks every second one is."""
    return View("p" * 32, {worker(int(name[1:])).worker_id: each for name, each in standings.items()}, secret=b"b" * 32)


STRANGERS = known()


class Life:
    """One task, everything that happened to it, and the books of it."""

    def __init__(
        self,
        *,
        price: int = 1,
        redundancy: int = 1,
        quorum: int = 1,
        most: int = 9,
        confidence: float = 0.0,
        view: View = STRANGERS,
        terms: Terms = TERMS,
    ) -> None:
        self.now_ms = 1_000_000
        self.changes = Changes()
        self.redundancy = redundancy
        self.view = view
        self.terms = terms
        self.task = TaskRecord(
            *(TASK_ID, FOREMAN, JOB_ID, 0, TaskState.LEASED, self.now_ms, b"n" * 16, 1, b"d" * 32, 60.0, 300.0),
            *(price, redundancy, quorum, most, "native/3.11", []),
            confidence=confidence,
            offer=9,
        )
        self.add(redundancy)

    def add(self, count: int, ask: int = 1) -> None:
        have = len(self.task.replicas)
        add_replicas(self.task, [worker(have + more, ask) for more in range(count)], self.now_ms, self.changes)

    def report(
        self,
        number: int,
        kind: Kind,
        answer: bytes,
        *,
        epoch: int = 1,
        other: bool = False,
        arrived: bytes | None = tokens_digest([TOKEN]),
    ) -> str:
        worker_id = worker(number + 1 if other else number).worker_id
        receipt = Receipt(f"{TASK_ID}.{number}", kind, answer, [] if kind is Kind.REFUSED else [TOKEN], 1.0)
        return record_receipt(
            *(self.task, number, worker_id, epoch, receipt, self.now_ms, self.terms, self.view, self.changes), arrived
        )

    def decide(self) -> None:
        if self.task.state is not TaskState.LEASED:
            return
        verdict = verdict_on(self.task, self.view)
        if isinstance(verdict, Accepted):
            accept(self.task, verdict, self.now_ms, self.terms, self.view, self.changes)
        elif isinstance(verdict, Undecided):
            give_up(self.task, self.now_ms, self.terms, self.view, self.changes)
        self.changes.add_up()

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        fall_due(self.task, self.now_ms, self.terms, self.changes, self.view)

    def state_of(self, number: int) -> ReplicaState:
        return self.task.replicas[number].state

    def state(self) -> TaskState:
        return self.task.state

    def check(self) -> None:
        self.changes.add_up()
        task, escrow, foreman = self.task, f"escrow:{TASK_ID}", f"account:{FOREMAN}"
        put_in = sum(amount for _, target, amount in self.changes.moves if target == escrow)
        out: defaultdict[str, int] = defaultdict(int)
        back: Counter[str] = Counter()
        for source, target, amount in self.changes.moves:
            assert amount > 0
            if escrow not in (source, target):  # pay that goes back
                assert target == foreman
                back[source] += amount
            elif source == escrow:
                out[target] += amount
            else:
                assert source == foreman
        held = sum(replica.price for replica in task.replicas if replica.state in HOLDS_ESCROW)
        # Escrow in = paid + refunded + burnt + held, with each replica's price in just one of them, or halved.
        assert put_in == sum(replica.price for replica in task.replicas)
        assert put_in - sum(out.values()) == held
        paid: Counter[str] = Counter()
        for replica in task.replicas:
            if replica.state in (ReplicaState.PAID, ReplicaState.RECLAIMED):
                paid[f"account:{replica.worker_account}"] += replica.price
            elif replica.state is ReplicaState.COMPENSATED:
                paid[f"account:{replica.worker_account}"] += (replica.price + 1) // 2
        burnt = out.pop("burn", 0)
        assert out.pop(foreman, 0) == put_in - held - paid.total() - burnt
        assert dict(out) == dict(paid)
        # What went back is the pay of those that were banned, each once, and only of a task that no longer holds.
        taken = [replica for replica in task.replicas if replica.state is ReplicaState.RECLAIMED]
        assert sum(replica.price for replica in taken) == back.total()
        assert sum(self.changes.jobs[FOREMAN, JOB_ID].back.values()) == back.total()
        assert all(self.view.standing(replica.worker_id).banned for replica in taken)
        assert not taken or task.state in (TaskState.OVERTURNED, TaskState.FORGOTTEN)
        # Counters say the same as the movements.
        assert self.changes.counts[foreman, "escrow"] == held
        assert self.changes.counts[foreman, "spent"] == paid.total() + burnt - back.total()
        for account, amount in paid.items():
            assert self.changes.counts[account, "earned"] == amount - back[account]
        # What may not be spent yet is what was earned.
        if self.terms.vesting_ms:
            vesting: Counter[str] = Counter()
            for (account, _), amount in self.changes.vesting.items():
                vesting[f"account:{account}"] += amount
            assert +vesting == paid - back
        # A slot is given back once, with the escrow.
        freed = [lease for leases in self.changes.frees.values() for lease in leases]
        waiting = sum(1 for replica in task.replicas if replica.state in HOLDS_ESCROW)
        assert len(freed) == len(set(freed)) == len(task.replicas) - waiting
        # No pay without agreement, and nobody who disagreed keeps waiting.
        for replica in task.replicas:
            if replica.state is ReplicaState.PAID:
                assert task.kind is not None
                assert (replica.kind, replica.commitment) == (task.kind, task.commitment)
            if task.state is not TaskState.LEASED:
                assert replica.state not in (ReplicaState.REPORTED, ReplicaState.SHOWN)
        if task.kind is None:
            assert not any(replica.state is ReplicaState.PAID for replica in task.replicas)
        # What the task taught is what its replicas remember that it taught; and nobody learns of himself.
        learned: defaultdict[str, Tally] = defaultdict(Tally)
        for replica in (*task.heard, *task.replicas):
            gained = Tally(replica.verified, replica.doubts, replica.words)
            learned[replica.worker_id] = learned[replica.worker_id].plus(gained)
        for (worker_id, _), tally in self.changes.lessons.items():
            assert tally == learned.get(worker_id, Tally())
        assert all(tally == Tally() or (w, self.view.party) in self.changes.lessons for w, tally in learned.items())
        # The sweep always has a next time, until the record is forgotten, or kept for its job.
        due_ms = next_due(task, self.terms)
        assert (due_ms is None) == (task.state is TaskState.FORGOTTEN)
        if due_ms == NEVER:
            assert (task.keep, task.nonce, held) == (True, b"", 0)
        if task.state is TaskState.FORGOTTEN:
            assert held == 0


def banning(view: View, number: int) -> View:
    """The same once a worker was banned."""
    return replace(view, standings={**view.standings, worker(number).worker_id: Standing(banned=True)})


STANDINGS = [Standing(), Standing(verified=50.0), Standing(verified=3.0, doubts=1.0), Standing(auditor=True)]
numbers = st.integers(0, 9)
events = st.one_of(
    st.tuples(st.just("report"), numbers, st.sampled_from(Kind), st.sampled_from(ANSWERS)),
    st.tuples(st.just("report"), numbers, st.just(Kind.OK), st.just(ANSWERS[0])),
    st.tuples(st.just("shown"), numbers, st.sampled_from([Kind.OK, Kind.ERROR]), st.sampled_from(ANSWERS)),
    st.tuples(st.just("denied"), numbers, st.sampled_from(ANSWERS), st.sampled_from([b"", b"x" * 32])),
    st.tuples(st.just("stale"), numbers),
    st.tuples(st.just("stranger"), numbers),
    st.tuples(st.just("decide")),
    st.tuples(st.just("lose"), numbers),
    st.tuples(st.just("restart"), numbers),
    st.tuples(st.just("add"), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.just("unseen"), numbers),
    st.tuples(st.just("reconsider"), numbers),
    st.tuples(st.just("overturn")),
    st.tuples(st.just("close")),
    st.tuples(st.just("time"), st.sampled_from([0, 1000, 299_000, 60_000, 361_000, 600_000])),
)


CONVICTED = [("report", n, Kind.OK, ANSWERS[0]) for n in range(3)] + [("decide",), ("reconsider", 1), ("reconsider", 0)]
"""All three are paid; two are banned: the answer of one is left, which is not enough."""


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([*CONVICTED, ("time", 600_000)], 2, 3, 2, 4, 0.99, [Standing(verified=50.0)] * 2, 600_000)
@example([*CONVICTED[:-1], ("time", 600_000), CONVICTED[-1]], 2, 3, 2, 4, 0.99, [Standing(verified=50.0)] * 2, 600_000)
@given(
    st.lists(events, max_size=25),
    *(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 4)),
    st.sampled_from([0.0, 0.0, 0.7, 0.99]),
    st.lists(st.sampled_from(STANDINGS), max_size=6),
    st.sampled_from([0, 600_000]),
)
def test_any_life_conserves_credits(
    happens: list[tuple[object, ...]],
    price: int,
    redundancy: int,
    quorum: int,
    more: int,
    confidence: float,
    standings: list[Standing],
    vesting_ms: int,
) -> None:
    life = Life(
        price=price,
        redundancy=redundancy,
        quorum=quorum,
        most=max(redundancy, quorum) + more,
        confidence=confidence,
        view=known(**{f"w{number}": each for number, each in enumerate(standings)}),
        terms=replace(TERMS, vesting_ms=vesting_ms),
    )
    life.check()
    for event in happens:
        if life.task.state is TaskState.FORGOTTEN:
            break  # the record is gone
        match event:
            case ("report", int(number), Kind() as kind, bytes(answer)):
                life.report(number, kind, answer)
            case ("shown", int(number), Kind() as kind, bytes(answer)):
                life.report(number, kind, answer, arrived=None)
            case ("denied", int(number), bytes(answer), bytes(other)):
                if life.report(number, Kind.OK, answer, arrived=other) == NOT_ARRIVED:
                    assert life.state_of(number) is ReplicaState.SHOWN
                    life.task.replicas[number].lost = True  # as a settlement has it
            case ("stale", int(number)):
                before = list(life.changes.moves)
                assert life.report(number, Kind.OK, ANSWERS[0], epoch=0)
                assert life.changes.moves == before
            case ("stranger", int(number)):
                before = list(life.changes.moves)
                assert life.report(number, Kind.OK, ANSWERS[0], other=True)
                assert life.changes.moves == before
            case ("decide",):
                life.decide()
            case ("lose", int(number)) if number < len(life.task.replicas):
                life.task.replicas[number].lost = True
            case ("restart", int(number)) if number < len(life.task.replicas):
                expire_replicas(life.task, [number], life.changes)
            case ("add", int(count), int(ask)) if life.task.state is TaskState.LEASED:
                life.add(count, ask)
            case ("unseen", int(number)):
                release_unpushed(
                    *(life.task, number, worker(number).worker_id, life.now_ms, life.terms, life.view, life.changes)
                )
            case ("reconsider", int(number)) if settled_answers(life.task):
                life.view = banning(life.view, number)
                reconsider(life.task, life.view, life.changes)
                reclaim(life.task, life.view, life.now_ms, life.changes)
                assert reclaim(life.task, life.view, life.now_ms, life.changes) == 0
            case ("overturn",) if settled_answers(life.task):
                overturn(life.task, life.view, life.changes)
            case ("close",):
                life.task.keep = False
            case ("time", int(ms)):
                life.pass_time(ms)
        life.check()
    # Left alone, every task ends once its job is closed, at times the sweep was told beforehand.
    life.task.keep = False
    for _ in range(len(life.task.replicas) + 3):
        due_ms = next_due(life.task, TERMS)
        if due_ms is None:
            break
        life.pass_time(max(0, due_ms - life.now_ms))
        life.check()
    assert life.task.state is TaskState.FORGOTTEN


# --- what arrived ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [None, b"", b"x" * 32])
@pytest.mark.parametrize("confidence", [0.0, 0.99])
def test_a_receipt_is_no_answer_before_its_result_arrived(arrived: bytes | None, confidence: float) -> None:
    """The attack: a believed worker commits itself to anything, and delivers nothing."""
    view = replace(known(w0=Standing(verified=500.0)), secret=b"1")
    life = Life(redundancy=1, quorum=1, confidence=confidence, view=view)
    why = life.report(0, Kind.OK, ANSWERS[0], arrived=arrived)
    assert why == ("" if arrived is None else NOT_ARRIVED)
    assert (life.state_of(0), verdict_on(life.task, view)) == (ReplicaState.SHOWN, Pending())
    assert waited_for(life.task, after=-1) == [0]
    life.task.replicas[0].lost = True
    assert verdict_on(life.task, view) == More(1)
    assert (waited_for(life.task, after=-1), still_out(life.task)) == ([], True)
    # What the receipt names arrives after all.
    life.report(0, Kind.OK, ANSWERS[1])
    assert life.state_of(0) is ReplicaState.REPORTED
    life.decide()
    assert (life.state_of(0), life.task.commitment) == (ReplicaState.PAID, ANSWERS[0]), "the first receipt counts"
    life.check()


def test_only_a_foremans_word_is_noted_against_a_worker_and_only_in_its_job() -> None:
    life = Life()
    life.report(0, Kind.OK, ANSWERS[0], arrived=None)
    assert not life.changes.jobs[FOREMAN, JOB_ID].undelivered
    life.report(0, Kind.OK, ANSWERS[0], arrived=b"x" * 32)
    assert life.changes.jobs[FOREMAN, JOB_ID].undelivered == {worker(0).worker_id: 1}
    assert not life.changes.lessons
    assert not life.changes.halved


@pytest.mark.parametrize("kind", [Kind.OK, Kind.ERROR, Kind.LIMIT])
@pytest.mark.parametrize("arrived", [None, b"", tokens_digest([])])
def test_a_receipt_without_tokens_is_not_recorded(kind: Kind, arrived: bytes | None) -> None:
    life = Life()
    receipt = Receipt(f"{TASK_ID}.0", kind, ANSWERS[0], [], 1.0)
    args = (life.task, 0, worker(0).worker_id, 1, receipt, life.now_ms, TERMS, life.view, life.changes)
    assert record_receipt(*args, arrived) == NO_TOKENS
    assert (life.state_of(0), life.task.replicas[0].kind) == (ReplicaState.OPEN, None)
    life.check()


@pytest.mark.parametrize(
    ("answer", "state", "halved"),
    [(ANSWERS[0], ReplicaState.PAID, False), (ANSWERS[1], ReplicaState.DISSENTED, True)],
)
def test_accepted_thanks_to_others_the_commitment_says_who_computed_it(
    answer: bytes, state: ReplicaState, halved: bool
) -> None:
    """Denied by its foreman, and judged like a late answer: paid in full for the same, doubted for another."""
    view = replace(known(w0=Standing(verified=20.0), w1=Standing(verified=500.0)), secret=b"1")
    life = Life(price=3, confidence=0.99, view=view)
    life.report(0, Kind.OK, answer, arrived=b"x" * 32)
    life.task.replicas[0].lost = True
    life.add(1)
    life.report(1, Kind.OK, ANSWERS[0])
    life.decide()
    life.check()
    assert (life.state_of(0), life.state_of(1)) == (state, ReplicaState.PAID)
    assert life.changes.halved == ({worker(0).worker_id} if halved else set())
    assert (life.changes.lessons[worker(0).worker_id, view.party].doubts > 0) == halved
    assert life.changes.counts[f"worker:{worker(0).worker_id}", "undelivered"] == halved


def test_where_foreman_and_worker_contradict_each_other_the_established_have_the_effort_fee_up_to_a_cap() -> None:
    view = known(w0=Standing(verified=50.0), w1=Standing(verified=50.0), w2=Standing())
    life = Life(price=4, redundancy=4, quorum=4, most=9, view=replace(view, effort={worker(1).account_id: 15}))
    for number in range(4):
        life.report(number, Kind.OK, ANSWERS[0], arrived=b"" if number < 3 else None)
        life.task.replicas[number].lost = number < 3
    assert rests_on_workers(life.task)
    life.pass_time(300_000 + TERMS.late_ms)
    R = ReplicaState
    # Of the last its foreman says nothing: it walked away, and owes newcomers a little.
    assert [life.state_of(n) for n in range(4)] == [R.COMPENSATED, R.RELEASED, R.RELEASED, R.COMPENSATED]
    assert life.changes.jobs[FOREMAN, JOB_ID].effort == {worker(0).account_id: 2, worker(3).account_id: 2}
    assert life.changes.halved == {worker(number).worker_id for number in range(4)}
    assert not life.changes.lessons
    life.check()


def test_receipts_whose_results_did_not_arrive_make_no_majority() -> None:
    """The attack: workers that delivered nothing outvote who did, so that it has no effort fee."""
    view = known(**{f"w{number}": TRUSTED for number in range(3)})
    life = Life(price=4, redundancy=3, quorum=3, most=3, view=view)
    for number, answer in enumerate([ANSWERS[0], ANSWERS[1], ANSWERS[1]]):
        life.report(number, Kind.OK, answer, arrived=b"" if number else tokens_digest([TOKEN]))
        life.task.replicas[number].lost = number > 0
    life.decide()
    assert life.state() is TaskState.UNDECIDED
    R = ReplicaState
    assert [life.state_of(n) for n in range(3)] == [R.COMPENSATED, R.RELEASED, R.RELEASED]
    life.check()


# --- verdicts ------------------------------------------------------------------------------------


def test_the_agreeing_are_paid_and_the_dissenter_is_not() -> None:
    life = Life(price=2, redundancy=3, quorum=2, most=9)
    for number, answer in enumerate([ANSWERS[0], ANSWERS[1], ANSWERS[0]]):
        assert life.report(number, Kind.OK, answer) == ""
    life.decide()
    life.check()
    states = [replica.state for replica in life.task.replicas]
    assert states == [ReplicaState.PAID, ReplicaState.DISSENTED, ReplicaState.PAID]
    assert (life.task.state, life.task.commitment) == (TaskState.ACCEPTED, ANSWERS[0])
    assert life.changes.counts[f"worker:{worker(1).worker_id}", "dissented"] == 1
    assert life.changes.counts[f"worker:{worker(0).worker_id}", "agreed"] == 1


@pytest.mark.parametrize(("answer", "state"), [(ANSWERS[0], ReplicaState.PAID), (ANSWERS[1], ReplicaState.DISSENTED)])
def test_a_late_receipt_is_judged_like_one_in_time(answer: bytes, state: ReplicaState) -> None:
    life = Life(price=1, redundancy=3, quorum=2, most=9)
    life.report(0, Kind.OK, ANSWERS[0])
    life.report(1, Kind.OK, ANSWERS[0])
    life.decide()
    assert life.state_of(2) is ReplicaState.OPEN
    life.report(2, Kind.OK, answer)
    life.check()
    assert life.state_of(2) is state


def test_a_backup_is_asked_for_and_neither_of_the_two_is_given_up() -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=2)
    assert verdict_on(life.task, life.view) == Pending()
    life.task.replicas[0].lost = True
    assert verdict_on(life.task, life.view) == More(1)
    life.add(1)
    assert verdict_on(life.task, life.view) == Pending()
    life.report(0, Kind.OK, ANSWERS[0])  # the straggler is first after all
    life.decide()
    assert life.state() is TaskState.ACCEPTED
    life.report(1, Kind.OK, ANSWERS[0])
    assert [life.state_of(0), life.state_of(1)] == [ReplicaState.PAID, ReplicaState.PAID]
    life.check()


@pytest.mark.parametrize("happens", ["lost", "restart", "refused"])
def test_only_a_refusal_lets_a_task_of_one_replica_be_leased_again(happens: str) -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=1)
    if happens == "lost":
        life.task.replicas[0].lost = True
    elif happens == "restart":
        expire_replicas(life.task, [0], life.changes)
    else:
        life.report(0, Kind.REFUSED, ANSWERS[0])
    assert verdict_on(life.task, life.view) == (More(1) if happens == "refused" else Undecided())
    life.check()


def test_the_first_receipt_of_a_lease_wins() -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=9)
    life.report(0, Kind.OK, ANSWERS[0])
    life.report(0, Kind.OK, ANSWERS[1])
    life.report(0, Kind.REFUSED, ANSWERS[2])
    assert life.task.replicas[0].commitment == ANSWERS[0]
    life.decide()
    assert life.task.commitment == ANSWERS[0]
    life.check()


def test_a_withheld_receipt_keeps_the_escrow_until_deadline_and_grace() -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=9)
    life.pass_time(300_000 + TERMS.late_ms - 1)
    assert life.state_of(0) is ReplicaState.OPEN
    assert next_due(life.task, TERMS) == life.now_ms + 1
    life.pass_time(1)
    assert life.state_of(0) is ReplicaState.EXPIRED
    assert life.state() is TaskState.EXPIRED
    assert life.changes.counts[f"worker:{worker(0).worker_id}", "expired"] == 1
    life.check()


@pytest.mark.parametrize(("price", "fee"), [(1, 1), (2, 1), (5, 3)])
def test_walking_away_costs_the_effort_fee_and_the_worker_is_not_blamed(price: int, fee: int) -> None:
    life = Life(price=price, redundancy=1, quorum=1, most=9)
    life.report(0, Kind.OK, ANSWERS[0])
    life.pass_time(300_000 + TERMS.late_ms)
    assert life.state_of(0) is ReplicaState.COMPENSATED
    assert life.changes.moves[1] == (f"escrow:{TASK_ID}", f"account:{worker(0).account_id}", fee)
    assert not life.changes.halved
    assert not life.changes.counts[f"worker:{worker(0).worker_id}", "expired"]
    life.check()


def test_keys_live_for_the_grace_period() -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=9)
    life.report(0, Kind.OK, ANSWERS[0])
    life.decide()
    life.pass_time(TERMS.settled_ms - 1)
    assert life.state() is TaskState.ACCEPTED
    life.pass_time(1)
    assert life.state() is TaskState.FORGOTTEN


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_lease_that_is_not(number: int) -> None:
    life = Life(price=1, redundancy=3, quorum=2, most=9)
    receipt = Receipt("x.0", Kind.OK, ANSWERS[0], [TOKEN], 1.0)
    why = record_receipt(
        *(life.task, number, worker(0).worker_id, 1, receipt, life.now_ms, TERMS, life.view, life.changes), None
    )
    assert why == "no such lease"
    life.check()


@pytest.mark.parametrize(
    ("cpu_limit_s", "price"), [(0.001, 1), (1, 1), (60, 1), (60.001, 2), (61, 2), (120, 2), (121, 3), (3600, 60)]
)
def test_prices(cpu_limit_s: float, price: int) -> None:
    assert price_of(cpu_limit_s) == price


# --- confidence ----------------------------------------------------------------------------------

TRUSTED = Standing(verified=2000.0)
FOUR = {f"w{number}": TRUSTED for number in range(4)}


def test_one_trusted_answer_is_enough_unless_the_task_is_checked() -> None:
    checked = 0
    for number in range(400):
        life = Life(confidence=0.99, view=replace(known(**FOUR), secret=b"%d" % number))
        assert verdict_on(life.task, life.view) == Pending()
        life.report(0, Kind.OK, ANSWERS[0])
        verdict = verdict_on(life.task, life.view)
        assert verdict in (Accepted((Kind.OK, ANSWERS[0])), More(1))
        checked += verdict == More(1)
    assert 5 <= checked <= 45  # 5 % of 400, give or take four standard deviations


def test_newcomers_are_believed_when_four_agree_and_each_is_verified_by_the_others() -> None:
    life = Life(confidence=0.99)
    for number in range(4):
        assert not isinstance(verdict_on(life.task, life.view), Accepted)
        if number:
            life.add(1)
        life.report(number, Kind.OK, ANSWERS[0])
    life.decide()
    assert (life.state(), life.task.keep) == (TaskState.ACCEPTED, True)
    assert life.task.reached >= 0.99
    assert all(replica.verified > 500 for replica in life.task.replicas)
    assert life.changes.jobs[FOREMAN, JOB_ID].accepted == [TASK_ID]
    assert life.changes.jobs[FOREMAN, JOB_ID].compared == {worker(number).worker_id: 1 for number in range(4)}
    life.check()


def test_who_dissents_is_doubted_and_the_foremans_own_workers_learn_nothing() -> None:
    life = Life(redundancy=3, quorum=2, view=known(w0=TRUSTED, w1=TRUSTED))
    life.task.replicas[1].worker_account = FOREMAN
    for number, answer in enumerate([ANSWERS[0], ANSWERS[0], ANSWERS[1]]):
        life.report(number, Kind.OK, answer)
    life.decide()
    doubts = {worker_id: tally.doubts for (worker_id, _), tally in life.changes.lessons.items()}
    assert doubts == {worker(0).worker_id: 0, worker(2).worker_id: pytest.approx(1000, abs=100)}
    assert life.changes.jobs[FOREMAN, JOB_ID].differed == {worker(2).worker_id: 1}
    assert life.changes.accuses


def test_in_a_job_that_looks_nondeterministic_no_dissent_is_held_against_anybody() -> None:
    noisy = replace(known(w0=TRUSTED, w1=TRUSTED), noisy=True)
    loud = replace(noisy, noisy=False, noise=Noise(answers=100, workers=10, dissenters=10))
    for view in (noisy, loud):
        life = Life(redundancy=3, quorum=2, view=view)
        for number, answer in enumerate([ANSWERS[0], ANSWERS[0], ANSWERS[1]]):
            life.report(number, Kind.OK, answer)
        life.decide()
        assert life.state_of(2) is ReplicaState.DISSENTED
        assert not life.changes.accuses


def test_a_late_answer_teaches_of_its_own_worker_alone() -> None:
    life = Life(redundancy=3, quorum=2, view=known(w0=TRUSTED, w1=TRUSTED))
    life.report(0, Kind.OK, ANSWERS[0])
    life.report(1, Kind.OK, ANSWERS[0])
    life.decide()
    before = dict(life.changes.lessons)
    life.report(2, Kind.OK, ANSWERS[1])
    gained = {who for who, tally in life.changes.lessons.items() if before.get(who) != tally}
    assert gained == {(worker(2).worker_id, "p" * 32)}
    assert life.task.replicas[2].doubts > 900


def convict(life: Life, number: int) -> bool:
    life.view = banning(life.view, number)
    return reconsider(life.task, life.view, life.changes)


def test_what_rested_on_a_convicted_worker_alone_is_overturned() -> None:
    life = Life(confidence=0.99, view=replace(known(**FOUR), secret=b"1"))
    life.report(0, Kind.OK, ANSWERS[1])
    life.decide()
    assert life.state() is TaskState.ACCEPTED
    assert convict(life, 0)
    assert life.state() is TaskState.OVERTURNED
    assert life.task.nonce == b""  # nobody gets its keys any more
    assert life.changes.jobs[FOREMAN, JOB_ID].recompute == [TASK_ID]
    assert life.state_of(0) is ReplicaState.PAID  # what it was paid is another question
    life.check()


def test_what_others_vouch_for_as_well_stands_and_they_no_longer_learn_from_the_convicted() -> None:
    life = Life(confidence=0.99, redundancy=2, view=replace(known(**FOUR), secret=b"1"))
    life.report(0, Kind.OK, ANSWERS[0])
    life.report(1, Kind.OK, ANSWERS[0])
    life.decide()
    assert [replica.verified for replica in life.task.replicas] == [1000, 1000]
    assert not convict(life, 0)
    assert life.state() is TaskState.ACCEPTED
    # The banned one is still judged by the others, or its conviction might take back what it rests on.
    assert [replica.verified for replica in life.task.replicas] == [1000, 0]
    assert life.changes.jobs[FOREMAN, JOB_ID].compared[worker(0).worker_id] == 0
    life.check()


def test_an_honest_dissenter_is_cleared_when_the_liars_are_convicted() -> None:
    """The attack: two liars outvote an honest newcomer, who is doubted for it."""
    life = Life(confidence=0.9, redundancy=3, view=replace(known(w0=TRUSTED, w1=TRUSTED), secret=b"1"))
    for number, answer in enumerate([ANSWERS[1], ANSWERS[1], ANSWERS[0]]):
        life.report(number, Kind.OK, answer)
    life.decide()
    assert life.task.replicas[2].doubts > 500
    life.view = banning(life.view, 1)
    assert convict(life, 0)
    assert life.task.replicas[2].doubts == 0
    assert life.changes.lessons[worker(2).worker_id, "p" * 32] == Tally()
    life.check()


def test_the_task_that_computes_another_anew_hears_what_was_said_and_wants_the_bytes() -> None:
    old = Life(confidence=0.99, redundancy=2, view=replace(known(**FOUR), secret=b"1"))
    old.report(0, Kind.OK, ANSWERS[1])
    old.report(1, Kind.OK, ANSWERS[0])
    old.task.state, old.task.kind, old.task.commitment = TaskState.OVERTURNED, Kind.OK, ANSWERS[1]
    life = Life(confidence=0.9, view=replace(known(w1=TRUSTED, w2=Standing()), secret=b"1"))
    life.task.replicas[0].worker_id = worker(2).worker_id
    assert hear(life.task, old.task)
    assert [replica.worker_id for replica in life.task.heard] == [worker(0).worker_id, worker(1).worker_id]
    life.view = banning(life.view, 0)
    # Worker 1 is believed, but what it was asked for then cannot be opened any more.
    assert verdict_on(life.task, life.view) == Pending()
    life.task.replicas[0].lost = True
    assert verdict_on(life.task, life.view) == More(1)
    life.task.replicas[0].lost = False
    life.task.replicas[0].state = ReplicaState.REPORTED
    life.task.replicas[0].kind, life.task.replicas[0].commitment = Kind.OK, ANSWERS[0]
    assert isinstance(verdict_on(life.task, life.view), Accepted)
    # Its answers are heard once: a second task learns nothing of them.
    assert not hear(Life(confidence=0.9).task, old.task)


@pytest.mark.parametrize("field", ["input_digest", "job_id", "account_id"])
def test_answers_to_another_task_are_not_heard(field: str) -> None:
    """The attack: a foreman has honest answers to one input heard in a task of another input."""
    old, life = Life(confidence=0.99), Life(confidence=0.99)
    old.task.state = TaskState.OVERTURNED
    setattr(old.task, field, b"x" * 32 if field == "input_digest" else "x" * 32)
    assert not hear(life.task, old.task)
    assert life.task.heard == []


def test_a_kept_task_has_no_keys_and_waits_for_its_job() -> None:
    life = Life(confidence=0.99, view=replace(known(**FOUR), secret=b"1"))
    life.report(0, Kind.OK, ANSWERS[0])
    life.decide()
    life.pass_time(TERMS.settled_ms)
    assert (life.state(), life.task.nonce, next_due(life.task, TERMS)) == (TaskState.KEPT, b"", NEVER)
    assert convict(life, 0)
    life.task.keep = False
    life.pass_time(0)
    assert life.state() is TaskState.FORGOTTEN


# --- money ---------------------------------------------------------------------------------------


def test_each_replica_has_the_price_its_worker_asks() -> None:
    life = Life(price=2, redundancy=1, quorum=2)
    life.add(1, ask=3)
    assert [replica.price for replica in life.task.replicas] == [2, 6]
    life.report(0, Kind.OK, ANSWERS[0])
    life.report(1, Kind.OK, ANSWERS[0])
    life.decide()
    assert life.changes.counts[f"account:{FOREMAN}", "spent"] == 8
    life.check()


def test_undecided_pays_effort_to_the_established_who_are_no_minority_up_to_a_cap() -> None:
    view = known(w0=TRUSTED, w1=TRUSTED, w2=TRUSTED, w3=Standing())
    life = Life(price=4, redundancy=4, quorum=4, most=4, view=view)
    for number, answer in enumerate([ANSWERS[0], ANSWERS[0], ANSWERS[1], ANSWERS[0]]):
        life.report(number, Kind.OK, answer)
    life.decide()
    assert life.state() is TaskState.UNDECIDED
    R = ReplicaState
    assert [life.state_of(n) for n in range(4)] == [R.COMPENSATED, R.COMPENSATED, R.RELEASED, R.RELEASED]
    assert not life.changes.lessons
    life.check()

    capped = Life(
        *(),
        price=4,
        redundancy=4,
        quorum=4,
        most=4,
        view=replace(view, effort={worker(0).account_id: TERMS.effort_cap}),
    )
    for number in range(4):
        capped.report(number, Kind.OK, ANSWERS[number % 2])
    capped.decide()
    assert capped.state_of(0) is ReplicaState.RELEASED
    assert capped.state_of(1) is ReplicaState.COMPENSATED  # no majority: nobody is in the minority
    capped.check()


def test_an_answer_waits_as_long_as_anybody_else_may_answer() -> None:
    life = Life(redundancy=1, quorum=2)
    life.report(0, Kind.OK, ANSWERS[0])
    life.now_ms += 200_000
    life.add(1)
    life.pass_time(100_000 + TERMS.late_ms)
    assert life.state_of(0) is ReplicaState.REPORTED
    life.report(1, Kind.OK, ANSWERS[0])
    life.decide()
    assert life.state_of(0) is ReplicaState.PAID
    life.check()


def test_who_returns_nothing_loses_half_of_its_share_and_who_is_paid_has_it_back() -> None:
    life = Life(redundancy=2, quorum=1)
    life.report(0, Kind.OK, ANSWERS[0])
    life.decide()
    life.pass_time(300_000 + TERMS.late_ms)
    assert life.changes.halved == {worker(1).worker_id}
    assert life.changes.restored == {worker(0).worker_id}


def unpushed(
    count: int, *, per_step: int = 1000, view: View = STRANGERS, terms: Terms = TERMS
) -> tuple[Counter[str], list[Changes], list[Life]]:
    """Denies leases of so many tasks, some in each step; returns what moved, the steps, and the tasks."""
    lives = [Life(price=3) for _ in range(count)]
    moved, steps = Counter[str](), []
    for number, life in enumerate(lives):
        life.task.task_id = f"{number:024x}"
        if number % per_step == 0:
            steps.append(Changes())
        life.changes, now_ms = steps[-1], 1_000_000 + terms.hold_ms
        for who, when_ms in ((0, now_ms - 1), (1, 2_000_000)):  # too early, and by another worker
            release_unpushed(life.task, 0, worker(who).worker_id, when_ms, terms, view, life.changes)
            assert life.state_of(0) is ReplicaState.OPEN
        release_unpushed(life.task, 0, worker(0).worker_id, now_ms, terms, view, life.changes)
        assert life.state_of(0) is ReplicaState.EXPIRED
    for step in steps:
        for _, target, amount in step.moves:
            moved[target] += amount
    return moved, steps, lives


@pytest.mark.parametrize("per_step", [1, 7, 60])
def test_leases_never_pushed_cost_their_foreman_as_much_however_they_are_denied(per_step: int) -> None:
    """The attack: a worker denies what it was pushed, a lease at a time. The other: a foreman pushes nothing."""
    moved, steps, lives = unpushed(60, per_step=per_step, terms=replace(TERMS, hold_cap=99))
    owed = [life for life in lives if owes_hold_fee(STRANGERS.secret, life.task.lease_id(0), TERMS.hold_leases)]
    assert 0 < len(owed) < 12
    assert moved == {"burn": len(owed), f"account:{FOREMAN}": 60 * 3 - len(owed)}
    held = sum(step.jobs[FOREMAN, JOB_ID].held[worker(0).account_id] for step in steps)
    assert held == len(owed), "and it is remembered what they cost"


def test_what_the_workers_of_one_account_cost_a_foreman_has_an_end() -> None:
    moved, _, _ = unpushed(400)
    assert moved["burn"] == TERMS.hold_cap
    view = replace(STRANGERS, held={worker(0).account_id: TERMS.hold_cap})
    assert unpushed(400, view=view)[0]["burn"] == 0


def test_ones_own_workers_cost_nothing_when_they_were_not_pushed() -> None:
    life = Life(price=3)
    life.task.account_id = worker(0).account_id
    terms = replace(TERMS, hold_leases=1)
    release_unpushed(life.task, 0, worker(0).worker_id, 2_000_000, terms, STRANGERS, life.changes)
    assert life.state_of(0) is ReplicaState.EXPIRED
    assert "burn" not in {target for _, target, _ in life.changes.moves}
    assert life.changes.denied == {}


def test_one_lease_in_sixteen_costs_a_credit_and_nobody_can_tell_which() -> None:
    leases = [f"{number:024x}.0" for number in range(16_000)]
    owed = [owes_hold_fee(b"secret", lease, 16) for lease in leases]
    assert 850 < sum(owed) < 1150
    other = [owes_hold_fee(b"other", lease, 16) for lease in leases]
    assert sum(one and two for one, two in zip(owed, other, strict=True)) < 150, "another secret tells nothing of it"
    assert owed == [owes_hold_fee(b"secret", lease, 16) for lease in leases]


def disputed(vesting_ms: int) -> Life:
    life = Life(price=3, confidence=0.99, view=replace(known(**FOUR), secret=b"1"))
    life.terms = replace(TERMS, vesting_ms=vesting_ms)
    life.report(0, Kind.OK, ANSWERS[0])
    life.decide()
    assert life.state_of(0) is ReplicaState.PAID
    return life


@pytest.mark.parametrize(("vesting_ms", "after_ms", "back"), [(600_000, 599_999, 3), (600_000, 600_000, 0), (0, 0, 0)])
def test_a_lost_dispute_takes_back_what_has_not_vested(vesting_ms: int, after_ms: int, back: int) -> None:
    life = disputed(vesting_ms)
    life.changes = Changes()
    lost = Tally(doubts=3000, words=1)
    assert lose_dispute(life.task, 0, life.now_ms + after_ms, lost, life.view, life.changes) == back
    assert life.state_of(0) is ReplicaState.FORFEITED
    mine, theirs = f"account:{FOREMAN}", f"account:{worker(0).account_id}"
    assert life.changes.moves == ([(theirs, mine, 3)] if back else [])
    assert sum(life.changes.vesting.values()) == -back
    assert life.changes.lessons[worker(0).worker_id, life.view.party] == lost


@pytest.mark.parametrize(("after_ms", "back"), [(0, 3), (599_999, 3), (600_000, 0)])
def test_a_conviction_takes_back_the_pay_for_what_rested_on_it_alone(after_ms: int, back: int) -> None:
    life = disputed(600_000)
    assert reclaim(life.task, banning(life.view, 0), life.now_ms, life.changes) == 0, "it may hold without him"
    overturn(life.task, life.view, life.changes)
    assert reclaim(life.task, life.view, life.now_ms, life.changes) == 0, "nobody was convicted"
    life.view = banning(life.view, 0)
    life.now_ms += after_ms
    assert reclaim(life.task, life.view, life.now_ms, life.changes) == back
    assert life.state_of(0) is (ReplicaState.RECLAIMED if back else ReplicaState.PAID)
    life.check()
    anew = Life(price=3, confidence=0.99)
    anew.task.input_digest = life.task.input_digest
    assert hear(anew.task, life.task)
    assert [each.worker_id for each in anew.task.heard] == [worker(0).worker_id], "its lie goes on counting against it"


def test_what_others_vouched_for_stays_paid_though_one_of_them_was_convicted() -> None:
    life = Life(price=3, redundancy=3, confidence=0.99, view=known(**FOUR), terms=replace(TERMS, vesting_ms=600_000))
    for number in range(3):
        life.report(number, Kind.OK, ANSWERS[0])
    life.decide()
    life.view = banning(life.view, 0)
    assert not reconsider(life.task, life.view, life.changes)
    assert reclaim(life.task, life.view, life.now_ms, life.changes) == 0
    assert [life.state_of(number) for number in range(3)] == [ReplicaState.PAID] * 3
    life.check()


@given(
    verified=st.sampled_from([0.0, 1.0, 9.0, 25.0, 60.0, 500.0]),
    doubts=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    auditor=st.booleans(),
    banned=st.booleans(),
    confidence=st.sampled_from([0.5, 0.8, 0.9, 0.99, 0.9999]),
    secret=st.binary(min_size=32, max_size=32),
)
def test_the_short_way_to_believe_a_first_answer_decides_as_the_long_one(
    verified: float, doubts: float, auditor: bool, banned: bool, confidence: float, secret: bytes
) -> None:
    view = replace(known(w0=Standing(verified, doubts, auditor, banned)), secret=secret)
    life = Life(confidence=confidence, view=view)
    life.report(0, Kind.OK, ANSWERS[0])
    short = verdict_on(life.task, view)
    chance = chance_of(secret, TASK_ID)
    long = decide_credible(
        voices_of(life.task, view), outstanding=0, confidence=confidence, max_replicas=9, chance=chance
    )
    assert short == long
    if isinstance(short, Accepted) and isinstance(long, Accepted):
        assert short.confidence == long.confidence


def test_a_first_answer_is_worth_what_is_known_of_its_worker_now() -> None:
    view = known(w0=Standing(60.0))
    assert view.first_word(worker(0).worker_id).believed > 0.99
    assert banning(view, 0).first_word(worker(0).worker_id).believed == 0.0, "nothing is kept from another view"


def test_a_dispute_of_honest_bytes_costs_the_foreman() -> None:
    life = disputed(0)
    life.changes = Changes()
    refuse_dispute(life.task, 0, 2, life.changes)
    assert life.changes.moves == [(f"account:{FOREMAN}", f"account:{worker(0).account_id}", 2)]
    assert (life.state_of(0), life.task.replicas[0].disputed) == (ReplicaState.PAID, "refused")
    assert TASK_ID in life.changes.touched
