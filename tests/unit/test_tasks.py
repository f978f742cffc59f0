"""Tasks: whatever happens to a task in whatever order, its credits are conserved and only agreement is paid."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discovery.records import TaskRecord, WorkerRecord
from discovery.tasks import (
    Changes,
    Grace,
    accept,
    add_replicas,
    expire_replicas,
    fall_due,
    give_up,
    next_due,
    record_receipt,
    verdict_on,
)
from discovery.verdict import Accepted, More, Pending, Undecided
from ec262.protocol.credits import price_of
from ec262.protocol.receipts import Kind, Receipt
from ec262.protocol.states import HOLDS_ESCROW, ReplicaState, TaskState

GRACE = Grace(late_ms=60_000, settled_ms=600_000)
FOREMAN = "f" * 32
TASK_ID = "0123456789abcdef01234567"
ANSWERS = [b"a" * 32, b"b" * 32, b"c" * 32]


def worker(number: int) -> WorkerRecord:
    return WorkerRecord(f"{number:032x}", f"{number % 4 + 1:032x}", "10.0.0.1", 1, 1, 1, 0, 9)


class Life:
    """One task, everything that happened to it, and the books of it."""

    def __init__(self, *, price: int, redundancy: int, quorum: int, most: int) -> None:
        self.now_ms = 1_000_000
        self.changes = Changes()
        self.redundancy = redundancy
        self.task = TaskRecord(
            *(TASK_ID, FOREMAN, "j" * 32, 0, TaskState.LEASED, self.now_ms, b"n" * 16, 1, b"d" * 32, 60.0, 300.0),
            *(price, redundancy, quorum, most, "native/3.11", []),
        )
        self.add(redundancy)

    def add(self, count: int) -> None:
        have = len(self.task.replicas)
        add_replicas(self.task, [worker(have + more) for more in range(count)], self.now_ms, self.changes)

    def report(self, number: int, kind: Kind, answer: bytes, *, epoch: int = 1, other: bool = False) -> str:
        worker_id = worker(number + 1 if other else number).worker_id
        receipt = Receipt(f"{TASK_ID}.{number}", kind, answer, [], 1.0)
        return record_receipt(self.task, number, worker_id, epoch, receipt, self.changes)

    def decide(self) -> None:
        if self.task.state is not TaskState.LEASED:
            return
        verdict = verdict_on(self.task)
        if isinstance(verdict, Accepted):
            accept(self.task, verdict, self.now_ms, GRACE, self.changes)
        elif isinstance(verdict, Undecided):
            give_up(self.task, self.now_ms, GRACE, self.changes)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        fall_due(self.task, self.now_ms, GRACE, self.changes)

    def state_of(self, number: int) -> ReplicaState:
        return self.task.replicas[number].state

    def state(self) -> TaskState:
        return self.task.state

    def check(self) -> None:
        task, escrow = self.task, f"escrow:{TASK_ID}"
        put_in = sum(amount for _, target, amount in self.changes.moves if target == escrow)
        out: defaultdict[str, int] = defaultdict(int)
        for source, target, amount in self.changes.moves:
            assert amount > 0
            assert escrow in (source, target)
            if source == escrow:
                out[target] += amount
            else:
                assert source == f"account:{FOREMAN}"
        states = Counter(replica.state for replica in task.replicas)
        held = sum(states[state] for state in HOLDS_ESCROW)
        # Escrow in = paid + refunded + held, with each replica in just one of the three.
        assert put_in == task.price * len(task.replicas)
        assert put_in - sum(out.values()) == task.price * held
        assert out.pop(f"account:{FOREMAN}", 0) == task.price * (len(task.replicas) - held - states[ReplicaState.PAID])
        paid = Counter(replica.worker_account for replica in task.replicas if replica.state is ReplicaState.PAID)
        assert dict(out) == {f"account:{account}": task.price * count for account, count in paid.items()}
        # Counters say the same as the movements.
        assert self.changes.counts[f"account:{FOREMAN}", "escrow"] == task.price * held
        assert self.changes.counts[f"account:{FOREMAN}", "spent"] == task.price * states[ReplicaState.PAID]
        for account, count in paid.items():
            assert self.changes.counts[f"account:{account}", "earned"] == task.price * count
        # A slot is given back once, with the escrow.
        freed = [lease for leases in self.changes.frees.values() for lease in leases]
        assert len(freed) == len(set(freed)) == len(task.replicas) - held
        # No pay without agreement, and nobody who disagreed keeps waiting.
        for replica in task.replicas:
            if replica.state is ReplicaState.PAID:
                assert task.kind is not None
                assert (replica.kind, replica.commitment) == (task.kind, task.commitment)
            if task.state is not TaskState.LEASED:
                assert replica.state is not ReplicaState.REPORTED
        if task.state is not TaskState.ACCEPTED and task.kind is None:
            assert states[ReplicaState.PAID] == 0
        # The sweep always has a next time, until the record is forgotten.
        assert (next_due(task, GRACE) is None) == (task.state is TaskState.FORGOTTEN)
        if task.state is TaskState.FORGOTTEN:
            assert held == 0


numbers = st.integers(0, 9)
events = st.one_of(
    st.tuples(st.just("report"), numbers, st.sampled_from(Kind), st.sampled_from(ANSWERS)),
    st.tuples(st.just("report"), numbers, st.just(Kind.OK), st.just(ANSWERS[0])),
    st.tuples(st.just("stale"), numbers),
    st.tuples(st.just("stranger"), numbers),
    st.tuples(st.just("decide")),
    st.tuples(st.just("lose"), numbers),
    st.tuples(st.just("restart"), numbers),
    st.tuples(st.just("add"), st.integers(1, 3)),
    st.tuples(st.just("time"), st.sampled_from([0, 1000, 299_000, 60_000, 361_000, 600_000])),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(events, max_size=25), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 4))
def test_any_life_conserves_credits(
    happens: list[tuple[object, ...]], price: int, redundancy: int, quorum: int, more: int
) -> None:
    life = Life(price=price, redundancy=redundancy, quorum=quorum, most=max(redundancy, quorum) + more)
    life.check()
    for event in happens:
        if life.task.state is TaskState.FORGOTTEN:
            break  # the record is gone
        match event:
            case ("report", int(number), Kind() as kind, bytes(answer)):
                life.report(number, kind, answer)
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
            case ("add", int(count)) if life.task.state is TaskState.LEASED:
                life.add(count)
            case ("time", int(ms)):
                life.pass_time(ms)
        life.check()
    # Left alone, every task ends, at times the sweep was told beforehand.
    for _ in range(len(life.task.replicas) + 3):
        due_ms = next_due(life.task, GRACE)
        if due_ms is None:
            break
        life.pass_time(max(0, due_ms - life.now_ms))
        life.check()
    assert life.task.state is TaskState.FORGOTTEN


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
    assert verdict_on(life.task) == Pending()
    life.task.replicas[0].lost = True
    assert verdict_on(life.task) == More(1)
    life.add(1)
    assert verdict_on(life.task) == Pending()
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
    assert verdict_on(life.task) == (More(1) if happens == "refused" else Undecided())
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
    life.pass_time(300_000 + GRACE.late_ms - 1)
    assert life.state_of(0) is ReplicaState.OPEN
    assert next_due(life.task, GRACE) == life.now_ms + 1
    life.pass_time(1)
    assert life.state_of(0) is ReplicaState.EXPIRED
    assert life.state() is TaskState.EXPIRED
    assert life.changes.counts[f"worker:{worker(0).worker_id}", "expired"] == 1
    life.check()


def test_a_receipt_nobody_settled_is_refunded_and_does_not_count_as_expired() -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=9)
    life.report(0, Kind.OK, ANSWERS[0])
    life.pass_time(300_000 + GRACE.late_ms)
    assert life.state_of(0) is ReplicaState.RELEASED
    assert not life.changes.counts[f"worker:{worker(0).worker_id}", "expired"]
    life.check()


def test_keys_live_for_the_grace_period() -> None:
    life = Life(price=1, redundancy=1, quorum=1, most=9)
    life.report(0, Kind.OK, ANSWERS[0])
    life.decide()
    life.pass_time(GRACE.settled_ms - 1)
    assert life.state() is TaskState.ACCEPTED
    life.pass_time(1)
    assert life.state() is TaskState.FORGOTTEN


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_lease_that_is_not(number: int) -> None:
    life = Life(price=1, redundancy=3, quorum=2, most=9)
    receipt = Receipt("x.0", Kind.OK, ANSWERS[0], [], 1.0)
    assert record_receipt(life.task, number, worker(0).worker_id, 1, receipt, life.changes) == "no such lease"
    life.check()


@pytest.mark.parametrize(
    ("cpu_limit_s", "price"), [(0.001, 1), (1, 1), (60, 1), (60.001, 2), (61, 2), (120, 2), (121, 3), (3600, 60)]
)
def test_prices(cpu_limit_s: float, price: int) -> None:
    assert price_of(cpu_limit_s) == price
