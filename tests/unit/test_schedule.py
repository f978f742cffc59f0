"""Schedule: events in, answers out. Whatever happens, every task is done once and no count of work at hand drifts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ec262.foreman.attempts import DOWN_MOST_S, DOWN_S, LEAST_PER_SLOT, LOOK_AHEAD_S, Peer, Replica, Task
from ec262.foreman.inflight import SEALED, InFlight
from ec262.foreman.purse import ESCROW_AFTER_S, Purse
from ec262.foreman.schedule import LARGEST_REQUEST, STRAGGLER_S, STRAGGLER_TIMES, Schedule

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tasks(count: int) -> list[Task]:
    return [Task(number, lambda: [b"input"], size=5) for number in range(count)]


class Network:
    """A schedule with workers that do what the test says; `lease` plays discovery."""

    def __init__(self, count: int, *, workers: Sequence[int] = (1, 1, 1), redundancy: int = 1, quorum: int = 1) -> None:
        self.schedule = Schedule(redundancy=redundancy, quorum=quorum)
        self.schedule.slots_alive = sum(workers)
        self.all = tasks(count)
        self.schedule.begin(self.all)
        self.slots = {f"w{number}": slots for number, slots in enumerate(workers)}
        self.redundancy = redundancy
        self.leases = 0
        self.now = 100.0

    def lease(self, most: int = 10**9) -> list[Replica]:
        taken = self.schedule.take_to_lease()
        self.schedule.put_back(taken[most:])
        made = []
        for task in taken[:most]:
            self.leases += 1
            made += self.more(task, f"t{self.leases}", self.redundancy)
        return made

    def more(self, task: Task, task_id: str, count: int) -> list[Replica]:
        known = {replica.worker_id for replica in task.replicas.values()}
        free = sorted(
            (worker for worker in self.slots if worker not in known),
            key=lambda worker: self.schedule.peers[worker].out if worker in self.schedule.peers else 0,
        )
        for worker in free[:count]:
            self.schedule.peers.setdefault(worker, Peer(worker, self.slots[worker]))
        have = len(task.replicas)
        leases = [(f"{task_id}.{have + number}", worker) for number, worker in enumerate(free[:count])]
        return self.schedule.leased(task, task_id, b"k" * 32, leases, self.now)

    def finish(self, replica: Replica, after_s: float = 0.01) -> Task | None:
        self.now += after_s
        return self.schedule.reported(replica.lease_id, [b"token"], self.now)

    def check(self) -> None:
        """What each worker has at hand is what the tasks say it has."""
        schedule = self.schedule
        at_hand = Counter(replica.worker_id for task in self.all for replica in task.replicas.values() if replica.out)
        assert {peer.worker_id: peer.out for peer in schedule.peers.values() if peer.out} == dict(at_hand)
        assert schedule.out == sum(at_hand.values())
        states = Counter(task.state for task in self.all)
        # Those that were not read yet wait, too.
        assert schedule.waiting <= states["waiting"]
        assert (schedule.done, schedule.failed, schedule.running) == (states["done"], states["failed"], states["out"])
        assert schedule.total is None or schedule.total == len(self.all)
        held = [replica.tokens for task in self.all for replica in task.replicas.values() if replica.tokens]
        assert schedule.bytes.results == sum(len(token) for tokens in held for token in tokens)
        out = [replica for task in self.all for replica in task.replicas.values() if replica.out]
        assert schedule.bytes.expected == sum(replica.expected for replica in out)
        for worker in schedule.peers:
            leases = schedule.leases_out(worker, pushed=False)
            assert len(leases) == at_hand[worker]


def test_a_phase_from_beginning_to_end() -> None:
    network = Network(20)
    schedule = network.schedule
    out: list[Replica] = []
    while not schedule.finished:
        out += network.lease()
        assert network.finish(out.pop(0)) is not None
        for task in schedule.take_due(100):
            schedule.done_with(task)
        network.check()
        schedule.peek()
    assert [task.state for task in network.all] == ["done"] * 20
    assert schedule.bytes.total == 0
    assert schedule.out == schedule.waiting == schedule.retried == 0


def test_a_phase_of_nothing_is_finished() -> None:
    schedule = Network(0).schedule
    assert not schedule.finished  # nobody has looked yet
    assert schedule.peek() is None
    assert schedule.finished
    assert schedule.total == 0


# --- how much is leased ---------------------------------------------------------------------------


def test_strangers_get_a_little_and_the_fast_get_more() -> None:
    network = Network(20_000, workers=(2, 2))
    replicas = network.lease()
    assert len(replicas) == LEAST_PER_SLOT * 4
    assert network.schedule.take_to_lease() == []  # all have enough at hand
    for _ in range(40):
        for replica in replicas:
            network.finish(replica, 0.005)
        replicas = network.lease()
    # 200 tasks a second in all: about half a second's worth is at hand.
    assert network.schedule.out == pytest.approx(200 * LOOK_AHEAD_S, rel=0.3)


def test_slow_tasks_are_not_hoarded() -> None:
    network = Network(1000, workers=(1,))
    replicas = network.lease()
    for _ in range(20):
        network.finish(replicas.pop(0), 2.0)
        replicas += network.lease()
        assert network.schedule.out <= LEAST_PER_SLOT


def test_windows_are_never_smaller_than_two_tasks_a_slot() -> None:
    assert Peer("w", 4).window() == 4 * LEAST_PER_SLOT
    assert Peer("w", 4, rate=0.1).window() == 4 * LEAST_PER_SLOT
    assert Peer("w", 4, rate=1000.0).window() == 1000 * LOOK_AHEAD_S


def test_requests_have_a_largest_size() -> None:
    network = Network(10_000, workers=(1024,))
    assert len(network.schedule.take_to_lease()) == LARGEST_REQUEST


def test_tasks_without_a_worker_wait_first_in_line() -> None:
    network = Network(10, workers=(4,))
    schedule = network.schedule
    first = schedule.take_to_lease()
    schedule.put_back(first[3:])
    assert [task.number for task in schedule.take_to_lease()][:5] == [3, 4, 5, 6, 7]


@QUICK
@given(st.integers(1, 400), st.lists(st.integers(1, 8), max_size=6), st.integers(1, 16), st.floats(0, 5000))
def test_something_is_asked_for_whenever_nothing_is_out(
    count: int, workers: list[int], redundancy: int, rate: float
) -> None:
    """Otherwise a job could sleep for ever."""
    schedule = Schedule(redundancy=redundancy, quorum=1)
    schedule.begin(tasks(count))
    for number, slots in enumerate(workers):
        schedule.peers[f"w{number}"] = Peer(f"w{number}", slots, rate=rate)
    assert schedule.take_to_lease()


# --- what workers say -----------------------------------------------------------------------------


def test_a_quorum_makes_a_task_due() -> None:
    network = Network(1, redundancy=3, quorum=2)
    one, two, three = network.lease()
    network.finish(one)
    assert network.schedule.take_due(10) == []
    network.finish(two)
    assert network.schedule.take_due(10) == network.all
    assert network.schedule.take_due(10) == []
    network.finish(three)
    assert network.schedule.take_due(10) == network.all


def test_without_a_quorum_a_task_is_due_when_nothing_is_out() -> None:
    network = Network(1, redundancy=2, quorum=2)
    one, two = network.lease()
    network.finish(one)
    assert network.schedule.take_due(10) == []
    assert network.schedule.lost(two.worker_id) == [(network.all[0], two)]
    assert network.schedule.take_due(10) == network.all
    network.check()


def test_results_that_come_twice_or_from_nowhere_are_nothing() -> None:
    network = Network(1)
    (replica,) = network.lease()
    assert network.finish(replica) is network.all[0]
    assert network.finish(replica) is None
    assert network.schedule.reported("of another job.0", [b"token"], 1.0) is None
    assert network.schedule.peers[replica.worker_id].finished == 1
    network.check()


def test_lost_work_is_counted_once_and_may_still_come() -> None:
    network = Network(4, workers=(2, 2))
    replicas = network.lease()
    mine = [replica for replica in replicas if replica.worker_id == "w0"]
    assert {replica.lease_id for _, replica in network.schedule.lost("w0")} == {replica.lease_id for replica in mine}
    assert network.schedule.lost("w0") == []
    assert network.schedule.retried == len(mine)
    network.check()
    assert set(network.schedule.owes("w0")) == {replica.lease_id for replica in mine}
    assert network.finish(mine[0]) is not None  # late, and good all the same
    assert mine[0].lease_id not in network.schedule.owes("w0")
    assert mine[0].tokens == [b"token"]
    network.check()


def test_only_ones_own_leases_can_be_lost() -> None:
    network = Network(2, workers=(1, 1))
    one, two = network.lease()
    assert one.worker_id != two.worker_id
    assert network.schedule.lost(one.worker_id, [two.lease_id, "unknown.0"]) == []
    assert network.schedule.lost(one.worker_id, [one.lease_id]) == [(network.all[0], one)]
    network.check()


def test_leases_out_are_those_pushed() -> None:
    network = Network(2, workers=(1,))
    one, two = network.lease()
    one.pushed = True
    assert network.schedule.leases_out("w0") == [one.lease_id]
    assert set(network.schedule.leases_out("w0", pushed=False)) == {one.lease_id, two.lease_id}


# --- settling -------------------------------------------------------------------------------------


def test_a_task_that_starts_over_forgets_its_past() -> None:
    network = Network(1, redundancy=2, quorum=2)
    one, two = network.lease()
    task = network.all[0]
    network.finish(one)
    network.schedule.start_over(task)
    network.check()
    assert (task.state, task.attempts, task.replicas, network.schedule.retried) == ("waiting", 1, {}, 1)
    assert network.schedule.reported(two.lease_id, [b"late"], 1.0) is None
    assert network.schedule.task("t1") is None
    fresh = network.lease()
    assert {replica.lease_id for replica in fresh}.isdisjoint({one.lease_id, two.lease_id})
    assert network.schedule.task("t2") is task
    assert network.schedule.take_due(10) == []
    network.check()


def test_a_task_that_is_done_is_known_until_its_late_replicas_came() -> None:
    network = Network(1, redundancy=3, quorum=2)
    one, two, three = network.lease()
    task = network.all[0]
    network.finish(one)
    network.finish(two)
    network.schedule.done_with(task)
    network.schedule.peek()
    assert network.schedule.finished
    assert network.schedule.task("t1") is task
    assert network.schedule.out == 1
    assert network.finish(three) is task
    assert network.schedule.task("t1") is None, "nothing more can come of it"
    assert network.schedule.out == 0


def test_done_tasks_are_never_due() -> None:
    network = Network(1, redundancy=2, quorum=1)
    one, two = network.lease()
    network.finish(one)
    network.schedule.done_with(network.all[0])
    network.finish(two)
    network.schedule.ask_again(network.all[0])
    assert network.schedule.take_due(10) == []


def test_further_replicas_keep_what_came() -> None:
    network = Network(1, redundancy=1, quorum=2)
    (one,) = network.lease()
    network.finish(one)
    assert network.schedule.take_due(10) == network.all
    (two,) = network.more(network.all[0], "t1", 1)
    assert two.worker_id != one.worker_id
    assert network.all[0].replicas == {"t1.0": one, "t1.1": two}
    network.finish(two)
    assert network.schedule.take_due(10) == network.all
    network.check()


def test_a_result_whose_receipt_does_not_count_has_not_come() -> None:
    network = Network(1, redundancy=2, quorum=2)
    one, two = network.lease()
    task = network.all[0]
    schedule = network.schedule
    network.finish(one)
    assert schedule.rejected(two.worker_id, [one.lease_id]) == [], "of another worker's nobody else is blamed"
    assert schedule.rejected(two.worker_id, [two.lease_id, "of another job.0"]) == [], "nothing came"
    assert schedule.take_due(10) == []
    assert schedule.rejected(one.worker_id, [one.lease_id]) == [(task, one)]
    assert (one.state, one.tokens, task.answered, schedule.has_come(one.lease_id)) == ("gone", None, 0, False)
    assert schedule.take_due(10) == [task], "another one is wanted now"
    # What its receipt names may come yet.
    network.finish(one)
    assert schedule.has_come(one.lease_id)
    network.finish(two)
    schedule.done_with(task)
    assert schedule.rejected(one.worker_id, [one.lease_id]) == []
    network.check()


def test_due_tasks_come_in_batches() -> None:
    network = Network(50, workers=(25,))
    for replica in network.lease():
        network.finish(replica)
    batches = []
    while batch := network.schedule.take_due(20):
        batches.append(len(batch))
    assert batches == [20, 20, 10]


@settings(QUICK, max_examples=200)
@given(st.data(), st.integers(0, 30), st.integers(1, 3), st.integers(1, 3))
def test_any_sequence_of_events_ends_with_every_task_done_once(
    data: st.DataObject, count: int, redundancy: int, quorum: int
) -> None:
    network = Network(count, workers=(1, 2, 1, 3), redundancy=redundancy, quorum=min(quorum, redundancy))
    schedule = network.schedule
    ever: list[Replica] = []
    steps = st.sampled_from(
        ["lease", "lease few", "report", "report", "repeat", "reject", "lose some", "lose all", "settle"]
    )
    for step in data.draw(st.lists(steps, max_size=40)):
        if step.startswith("lease"):
            ever += network.lease(2 if step == "lease few" else 10**9)
        elif step in ("report", "repeat") and ever:
            network.finish(ever[data.draw(st.integers(0, len(ever) - 1))], data.draw(st.sampled_from([0.0, 0.01, 1.0])))
        elif step == "reject" and ever:
            victim = ever[data.draw(st.integers(0, len(ever) - 1))]
            for task, replica in schedule.rejected(victim.worker_id, [victim.lease_id]):
                assert (task.state, replica.state, replica.tokens) == ("out", "gone", None)
        elif step == "lose some" and ever:
            victim = ever[data.draw(st.integers(0, len(ever) - 1))]
            schedule.lost(victim.worker_id, [victim.lease_id])
        elif step == "lose all":
            schedule.lost(data.draw(st.sampled_from(list(network.slots))))
        elif step == "settle":
            for task in schedule.take_due(data.draw(st.integers(1, 5))):
                assert task.state == "out"
                came = [replica for replica in task.replicas.values() if replica.tokens is not None]
                verdict = data.draw(st.sampled_from(["accept", "over", "pending", "more", "fail"]))
                if verdict == "accept" and came:
                    schedule.done_with(task)
                elif verdict == "fail":
                    schedule.fail(task)
                elif verdict == "more":
                    ever += network.more(task, task.task_id, 1)
                elif verdict == "pending":
                    schedule.ask_again(task)
                else:
                    schedule.start_over(task)
        network.check()
    for _ in range(10 * count + 10):  # from here on all goes well
        if schedule.finished:
            break
        network.lease()
        for task in network.all:
            for replica in list(task.replicas.values()):
                network.finish(replica)
            if task.state == "out":
                schedule.ask_again(task)
        for task in schedule.take_due(1000):
            if any(replica.tokens is not None for replica in task.replicas.values()):
                schedule.done_with(task)
            else:
                schedule.start_over(task)
        network.check()
    schedule.peek()
    assert schedule.finished
    assert {task.state for task in network.all} <= {"done", "failed"}
    assert schedule.done + schedule.failed == count
    assert schedule.total == count
    assert schedule.running == 0


# --- tasks that are read as they are wanted --------------------------------------------------------


def test_no_more_is_read_than_workers_can_take() -> None:
    read = 0

    def source() -> Iterator[Task]:
        nonlocal read
        for task in tasks(1000):
            read += 1
            yield task

    network = Network(0, workers=(1, 1))
    schedule = network.schedule
    schedule.begin(source())
    assert read == 0
    assert schedule.total is None
    out = network.lease()
    assert len(out) == read == 2 * LEAST_PER_SLOT
    while out:
        network.finish(out.pop(0), 10.0)
        for task in schedule.take_due(10):
            schedule.done_with(task)
        out += network.lease()
        assert read <= schedule.done + 2 * LEAST_PER_SLOT + 1
    assert read == schedule.done == 1000
    assert schedule.finished


def test_bytes_in_flight_are_bounded_and_one_task_is_always_allowed() -> None:
    inflight = InFlight(1000)
    assert inflight.admits()
    inflight.loaded(5000)
    assert not inflight.admits()
    inflight.inputs -= 5000
    assert inflight.admits(), "nothing is in flight"
    inflight = InFlight(1000)
    loaded = 0
    while inflight.admits():
        inflight.loaded(50)
        loaded += 1
    assert loaded * 50 * (1 + 2 * SEALED) <= 1000, "there is room for what they become"
    assert loaded >= 4


def test_results_are_guessed_from_those_that_came() -> None:
    inflight = InFlight(10**9)
    assert inflight.expect(1000) == pytest.approx(1400)
    for _ in range(30):
        inflight.came(1000, 10)
    assert inflight.expect(1000) == pytest.approx(10)
    inflight.new_phase()
    assert inflight.expect(1000) == pytest.approx(1400)


# --- time ------------------------------------------------------------------------------------------


def test_replicas_are_overdue_once() -> None:
    network = Network(2, workers=(1,))
    schedule = network.schedule
    first, second = schedule.take_to_lease()
    schedule.peers["w0"] = Peer("w0", 1)
    (one,) = schedule.leased(first, "t1", b"k", [("t1.0", "w0")], 0.0, 10.0)
    (two,) = schedule.leased(second, "t2", b"k", [("t2.0", "w0")], 5.0, 10.0)
    assert schedule.overdue(9.9) == []
    assert schedule.overdue(10.0) == [one]
    assert schedule.overdue(12.0) == []
    schedule.reported("t2.0", [b"token"], 14.0)
    assert schedule.overdue(20.0) == []
    assert two.state == "came"


def straggling(workers: Sequence[int] = (1, 1, 1), **more: int) -> tuple[Network, list[Replica]]:
    """Six tasks of which the first worker keeps its own, the others being done a tenth of a second each."""
    network = Network(6, workers=workers, **more)
    out = network.lease()
    for replica in [replica for replica in out if replica.worker_id != "w0"]:
        network.finish(replica, 0.1)
    for task in network.schedule.take_due(10):
        network.schedule.done_with(task)
    network.schedule.peek()
    return network, [replica for replica in out if replica.worker_id == "w0"]


def test_a_straggler_gets_one_backup_at_a_time_and_still_counts() -> None:
    network, kept = straggling()
    schedule = network.schedule
    limit = schedule.straggler_s()
    assert limit == max(STRAGGLER_S, STRAGGLER_TIMES * 0.25)
    assert schedule.stragglers(network.now, 3) == [], "not yet"
    later = network.now + limit + 0.1
    found = schedule.stragglers(later, 3)
    assert [replicas for _, replicas in found] == [[replica] for replica in kept], "two others are idle"
    task, overtaken = found[0]
    schedule.backed(task, overtaken, later)
    assert schedule.take_due(10) == [task]
    network.now = later
    (backup,) = network.more(task, task.task_id, 1)
    task.backups += 1
    assert backup.worker_id != "w0"
    assert task not in [other for other, _ in schedule.stragglers(later + 0.5, 3)]
    assert network.finish(kept[0]) is task, "the late original"
    schedule.take_due(10)
    schedule.done_with(task)
    assert backup.out
    network.check()


def test_no_backup_where_nobody_is_idle_or_tasks_wait_or_none_may_be_bought() -> None:
    network, _ = straggling(workers=(1,))
    assert network.schedule.stragglers(network.now + 100, 3) == [], "no other worker"
    network, kept = straggling()
    assert network.schedule.stragglers(network.now + 100, 0) == []
    for task in network.all:
        task.most_replicas = 1
    assert network.schedule.stragglers(network.now + 100, 3) == []
    network = Network(100, workers=(1, 1))
    for replica in network.lease()[1:]:
        network.finish(replica)
    assert network.schedule.stragglers(network.now + 100, 3) == [], "there is better to do"
    assert len(kept) == LEAST_PER_SLOT


def test_a_task_that_was_overtaken_waits_for_nobody() -> None:
    network, kept = straggling()
    schedule = network.schedule
    later = network.now + 100
    task, overtaken = schedule.stragglers(later, 3)[0]
    schedule.backed(task, overtaken, later)
    (backup,) = network.more(task, task.task_id, 1)
    network.finish(backup)
    schedule.take_due(10)
    schedule.done_with(task)
    assert schedule.task(overtaken[0].lease_id.partition(".")[0]) is None
    assert not overtaken[0].out
    assert schedule.awaited(later), "the other one is awaited still"
    schedule.lost("w0", [kept[1].lease_id])
    assert not schedule.awaited(later)
    network.check()


def test_only_as_many_are_given_up_as_one_backup_needs() -> None:
    network = Network(2, workers=(1, 1, 1, 1), redundancy=3, quorum=2)
    schedule = network.schedule
    first, second = schedule.take_to_lease()
    for replica in network.more(first, "t1", 3):
        network.finish(replica)
    for task in schedule.take_due(10):
        schedule.done_with(task)
    schedule.peek()
    one, two, three = network.more(second, "t2", 3)
    assert schedule.stragglers(network.now + 100, 3) == [(second, [one, two])], "with none there, one may still come"
    network.finish(three)
    assert schedule.stragglers(network.now + 100, 3) == [(second, [one, two])]
    assert schedule.take_due(10) == []


def test_a_worker_that_does_not_answer_is_left_alone_for_longer_each_time() -> None:
    peer = Peer("w", 1)
    peer.silent(100.0)
    assert peer.down_until_s == 100.0 + DOWN_S
    for _ in range(10):
        peer.silent(200.0)
    assert peer.down_until_s == 200.0 + DOWN_MOST_S
    peer.answers()
    assert peer.down_until_s == 0.0
    peer.silent(100.0)
    assert peer.down_until_s == 100.0 + DOWN_S


# --- credits ---------------------------------------------------------------------------------------


def test_a_limit_counts_what_is_spent_in_escrow_and_put_aside() -> None:
    purse = Purse(10, 2)
    assert purse.affordable(1, 100) == 5
    purse.leased("a.0", 2, 100.0)
    purse.leased("a.0", 2, 100.0)
    purse.leased("b.0", 2, 100.0)
    assert (purse.escrow, purse.affordable(1, 100)) == (4, 3)
    assert purse.paid("a.0", "w") == 2
    assert purse.paid("a.0", "w") == 0
    assert (purse.spent, purse.escrow, purse.earned) == (2, 2, {"w": 2})
    assert purse.reserve(2) == 4
    assert purse.affordable(1, 100) == 1
    purse.returned("b.0")
    assert purse.affordable(1, 100) == 2
    assert purse.spares(2)
    purse.balance = 3
    assert not purse.spares(2)
    assert Purse(None, 2).affordable(1, 100) == 100
    assert Purse(None, 2).reserve(3) == 0


def test_escrow_comes_back_with_time() -> None:
    purse = Purse(4, 1)
    purse.leased("a.0", 1, 100.0)
    purse.leased("b.0", 1, 200.0)
    purse.sweep(100.0 + ESCROW_AFTER_S + 1)
    assert purse.escrow == 1
    assert purse.paid("a.0", "w") == 0


def test_replicas_cost_what_each_of_them_costs() -> None:
    purse = Purse(20, 5)  # the most a replica may cost
    purse.leased("a.0", 2, 100.0)
    purse.leased("a.1", 5, 100.0)
    assert (purse.escrow, purse.left) == (7, 13)
    assert purse.affordable(1, 100) == 2, "further ones may cost the most"
    assert purse.paid("a.0", "w") == 2
    assert purse.paid("a.1", "v") == 5
    assert (purse.spent, purse.earned) == (7, {"w": 2, "v": 5})
    purse.took_back("w", 2)
    purse.took_back("v", -1)
    assert (purse.spent, purse.earned, purse.left) == (6, {"w": 0, "v": 6}, 14)


def test_what_came_back_after_convictions_is_told_in_sum_and_counted_once() -> None:
    purse = Purse(20, 5)
    for number in range(3):
        purse.leased(f"{number}.0", 5, 100.0)
        purse.paid(f"{number}.0", "w")
    for total in (5, 5, 10, 10, 0, 10):
        purse.reclaimed("w", total)
    assert (purse.spent, purse.earned, purse.left) == (5, {"w": 5}, 15)
