"""Trust, end to end over a real store: who is believed, who is banned, and what is computed again because of it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discovery.app import Discovery
from discovery.changes import Changes
from discovery.credibility import NOTHING, Tally, aged, shared
from ec262.protocol import messages as m
from ec262.protocol.states import TaskState
from tests.conftest import MakeDiscovery
from tests.parties import RIGHT, WRONG, Caller, Foreman, Problem, Worker

Answer = Callable[[Worker], bytes]
LONG = 10**6
SOON: dict[str, object] = {"min_timeout_s": 0.0, "min_cpu_limit_s": 0.0, "late_grace_s": 0.0}
"""Deadlines are as near as foremen ask for."""


class Play:
    """A network whose workers all have accounts of their own."""

    def __init__(self, make: MakeDiscovery, redis_url: str, workers: int, **chosen: object) -> None:
        self.discovery: Discovery = make(**{"distinct": "account", "hold_s": 0.0, **chosen})
        self.redis = redis.Redis.from_url(redis_url)
        self.workers = [Worker(Caller(self.discovery), slots=8) for _ in range(workers)]
        self.foreman = Foreman(self.discovery)

    def know(self, worker: Worker, verified: int) -> None:
        """Gives a worker a record."""
        self.redis.hset(f"{{ec}}:worker:{worker.worker_id}", "verified", verified * 1000)

    def run(
        self,
        count: int,
        answer: Answer,
        *,
        foreman: Foreman | None = None,
        leased: m.Leased | None = None,
        **policy: object,
    ) -> dict[str, m.TaskVerdict]:
        """Leases tasks and settles them until nothing is open."""
        foreman = foreman or self.foreman
        policy = {"confidence": 0.99, "max_replicas": 16, **policy}
        leased = leased or foreman.lease(count, **policy)  # type: ignore[arg-type]
        assert len(leased.tasks) == count
        self.replicas = 0
        done: dict[str, m.TaskVerdict] = {}
        answered: m.Leased | m.Settled = leased
        opened = [task.task_id for task in leased.tasks]
        while opened:
            shown = []
            for worker in self.workers:
                leases = [ticket.lease_id for ticket in worker.tickets(answered)]
                self.replicas += len(leases)
                if leases:
                    shown.append(worker.receipts(leases, answer(worker)))
            answered = foreman.settle(shown, opened)
            done.update({verdict.task_id: verdict for verdict in answered.tasks})
            opened = [verdict.task_id for verdict in answered.tasks if verdict.verdict == "more"]
        return done

    def banned(self, worker: Worker) -> bool:
        """Whether a worker's account is banned."""
        return bool(self.discovery.store.accounts.record(worker.caller.account.account_id).banned)

    def state(self, task_id: str) -> TaskState:
        """Of a task's record."""
        return self.discovery.store.load([task_id])[1][task_id].state


def leases_of(worker: Worker, answer: m.Leased | m.Settled) -> list[str]:
    """What a worker was leased in an answer."""
    return [ticket.lease_id for ticket in worker.tickets(answer)]


def truth(worker: Worker) -> bytes:
    return RIGHT


def lying(*liars: Worker) -> Answer:
    return lambda worker: WRONG if worker in liars else RIGHT


def test_newcomers_agree_four_by_four_and_are_soon_believed_alone(
    make_discovery: MakeDiscovery, redis_url: str
) -> None:
    play = Play(make_discovery, redis_url, workers=8)
    leased = play.foreman.lease(4, confidence=0.99, max_replicas=16)
    assert [len(task.replicas) for task in leased.tasks] == [1] * 4
    done = play.run(4, truth, leased=leased)
    assert {verdict.verdict for verdict in done.values()} == {"accepted"}
    assert all((verdict.confidence or 0) >= 0.99 and len(verdict.keys) >= 4 for verdict in done.values())
    for _ in range(6):
        play.run(60, truth)
    done = play.run(60, truth)
    assert play.replicas <= 1.8 * 60
    assert all(verdict.commitment == RIGHT for verdict in done.values())


def test_nobody_verifies_himself_with_own_workers(make_discovery: MakeDiscovery, redis_url: str) -> None:
    """The attack: an account mints reputation for its workers by its own jobs."""
    play = Play(make_discovery, redis_url, workers=0, distinct="none")
    play.workers = [Worker(play.foreman, slots=8) for _ in range(4)]
    play.run(20, truth)
    for worker in play.workers:
        assert not play.redis.hget(f"{{ec}}:worker:{worker.worker_id}", "verified")


def test_a_liar_is_convicted_by_two_foremen_and_by_no_one_alone(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=9)
    liar = play.workers[0]
    second = Foreman(play.discovery)
    wrong = 0
    for _ in range(6):
        wrong += sum(v.commitment != RIGHT for v in play.run(12, lying(liar)).values())
    assert not play.banned(liar)  # one foreman could have framed it; but has nothing more to do with it
    assert liar.worker_id not in {
        r.worker_id for t in play.foreman.lease(60, confidence=0.99).tasks for r in t.replicas
    }
    for _ in range(20):
        wrong += sum(v.commitment != RIGHT for v in play.run(12, lying(liar), foreman=second).values())
        if play.banned(liar):
            break
    assert play.banned(liar)
    assert not any(play.banned(worker) for worker in play.workers[1:])
    assert wrong == 0
    with pytest.raises(Problem) as refused:
        liar.register()
    assert refused.value.code == "banned"


def test_what_rested_on_a_convicted_sleeper_is_computed_again(make_discovery: MakeDiscovery, redis_url: str) -> None:
    """The attack: a worker is honest until it is believed alone, and lies then."""
    play = Play(make_discovery, redis_url, workers=1)
    sleeper = play.workers[0]
    play.know(sleeper, 5000)
    leased = play.foreman.lease(60, confidence=0.99, max_replicas=1)
    done = play.run(60, lying(sleeper), leased=leased)
    accepted = [task_id for task_id, verdict in done.items() if verdict.verdict == "accepted"]
    assert len(accepted) > 40
    assert play.foreman.audit(accepted).recompute == []
    play.workers += [Worker(Caller(play.discovery), slots=64) for _ in range(3)]
    for worker in play.workers[1:]:
        play.know(worker, 5000)

    play.discovery.store.accounts.ban(sleeper.caller.account.account_id, "evidence", "found out")
    play.discovery.sweep()
    assert {play.state(task_id) for task_id in accepted} == {TaskState.OVERTURNED}
    assert sorted(play.foreman.settle().recompute) == sorted(accepted)
    assert sorted(play.foreman.settle(heard=accepted[1:]).recompute) == accepted[:1]  # said until it is heard
    assert play.foreman.audit(closing=True).closed is False
    verdict = play.foreman.settle([], accepted[:1]).tasks[0]
    assert (verdict.verdict, verdict.keys) == ("undecided", [])

    digests = {task_id: play.discovery.store.load([task_id])[1][task_id].input_digest for task_id in accepted}
    anew = play.foreman.lease(
        len(accepted), confidence=0.99, max_replicas=16, again=[(task_id, digests[task_id]) for task_id in accepted]
    )
    again = play.run(len(accepted), lying(sleeper), leased=anew)
    assert {verdict.commitment for verdict in again.values()} == {RIGHT}
    closed = play.foreman.audit(list(again), closing=True, heard=accepted)
    assert closed == m.Audited(recompute=[], unknown=[], closed=True)


def test_a_task_computed_anew_is_given_to_others_than_before(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=3)
    for worker in play.workers:
        play.know(worker, 5000)
    done = play.run(30, truth, max_replicas=1)
    accepted = {task_id: v.keys[0].worker_id for task_id, v in done.items() if v.verdict == "accepted"}
    banned = play.workers[0]
    play.discovery.store.accounts.ban(banned.caller.account.account_id, "operator", "told us")
    play.discovery.sweep()
    overturned = [task_id for task_id in accepted if play.state(task_id) is TaskState.OVERTURNED]
    assert overturned == [task_id for task_id, worker_id in accepted.items() if worker_id == banned.worker_id] != []


def test_an_audit_finds_what_was_accepted_on_the_word_of_one_that_lost_credit(
    make_discovery: MakeDiscovery, redis_url: str
) -> None:
    play = Play(make_discovery, redis_url, workers=1)
    play.know(play.workers[0], 5000)
    done = play.run(10, truth, max_replicas=1)
    accepted = [task_id for task_id, verdict in done.items() if verdict.verdict == "accepted"]
    other = Foreman(play.discovery)
    assert other.audit(accepted) == m.Audited(recompute=[], unknown=accepted)  # another's tasks
    assert play.foreman.audit(["0" * 24]).unknown == ["0" * 24]
    play.redis.hset(f"{{ec}}:worker:{play.workers[0].worker_id}", "verified", 0)
    assert sorted(play.foreman.audit(accepted, closing=True).recompute) == sorted(accepted)


def test_a_closed_job_is_forgotten_and_an_open_one_outlives_its_keys(
    make_discovery: MakeDiscovery, redis_url: str
) -> None:
    play = Play(make_discovery, redis_url, workers=7, settled_grace_s=0.0)
    kept = [v.task_id for v in play.run(3, truth).values()]
    play.discovery.sweep()
    assert {play.state(task_id) for task_id in kept} == {TaskState.KEPT}
    assert play.foreman.settle([], kept).tasks[0].verdict == "unknown"  # no keys any more
    assert play.foreman.audit(kept, closing=True).closed
    play.discovery.sweep()
    assert play.discovery.store.load(kept)[1] == {}
    assert play.redis.keys("{ec}:job:*") == []
    assert play.redis.zcard("{ec}:open") == 0


def test_a_silent_job_is_forgotten(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=7, settled_grace_s=0.0, kept_job_s=0.0)
    kept = [v.task_id for v in play.run(3, truth).values()]
    play.discovery.sweep()
    play.discovery.sweep()
    assert play.discovery.store.load(kept)[1] == {}
    assert play.redis.keys("{ec}:job:*") == []


def test_a_suspect_is_judged_though_the_service_died_after_the_settlement(
    make_discovery: MakeDiscovery, redis_url: str
) -> None:
    play = Play(make_discovery, redis_url, workers=2)
    liar, honest = play.workers
    trust = play.discovery.trust
    changes = Changes()
    for party in ("a" * 32, "b" * 32):
        changes.learn(liar.worker_id, party, Tally(doubts=3000))
        changes.learn(honest.worker_id, party, Tally(verified=3000))
    play.discovery.store.commit(changes, play.discovery.store.now_ms(), trust.terms)
    assert not play.banned(liar)
    play.discovery.sweep()
    assert (play.banned(liar), play.banned(honest)) == (True, False)
    # Evidence that is withdrawn ends the ban that rested on it; what an operator said stays.
    changes = Changes()
    changes.learn(liar.worker_id, "a" * 32, Tally(doubts=-3000))
    play.discovery.store.commit(changes, play.discovery.store.now_ms(), trust.terms)
    play.discovery.sweep()
    assert not play.banned(liar)
    assert play.redis.hlen("{ec}:suspects") == 0


def test_a_nondeterministic_program_costs_nobody_reputation(make_discovery: MakeDiscovery, redis_url: str) -> None:
    """The attack: a foreman frames honest workers with a program that gives each another answer."""
    play = Play(make_discovery, redis_url, workers=10)
    chance = random.Random(5)
    clarity = 1.0
    for _ in range(12):
        play.run(
            8, lambda worker: RIGHT if chance.random() < 0.6 else chance.randbytes(32), confidence=0.0, redundancy=3,
            quorum=2, max_replicas=6,
        )  # fmt: skip
        clarity = min(clarity, play.foreman.settle().clarity)
    assert clarity < 0.5
    play.discovery.sweep()
    assert not any(play.banned(worker) for worker in play.workers)
    for worker in play.workers:
        assert int(play.redis.hget(f"{{ec}}:worker:{worker.worker_id}", "doubts") or 0) == 0


def test_explanations_say_who_weighed_what_and_nothing_before_the_verdict(
    make_discovery: MakeDiscovery, redis_url: str
) -> None:
    play = Play(make_discovery, redis_url, workers=9)
    leased = play.foreman.lease(1, confidence=0.99, max_replicas=16)
    (task,) = leased.tasks
    shown = [worker.receipts(leases_of(worker, leased)) for worker in play.workers if worker.tickets(leased)]
    settled = play.foreman.settle(shown, [task.task_id])
    before = play.foreman.explain(task.task_id)
    assert (before.state, before.kind, before.commitment, before.reached) == ("leased", None, b"", None)
    asked = {(each.state, each.kind, each.commitment, each.believed) for each in before.answers}
    assert asked == {("asked", None, b"", 0.0)}
    while settled.tasks[0].verdict == "more":
        shown = [
            worker.receipts(leases_of(worker, settled), WRONG if worker is play.workers[4] else RIGHT)
            for worker in play.workers
            if worker.tickets(settled)
        ]
        settled = play.foreman.settle(shown, [task.task_id])
    assert settled.tasks[0].verdict == "accepted"
    after = play.foreman.explain(task.task_id)
    paid = [each for each in after.answers if each.state == "paid"]
    assert len(paid) >= 4
    assert {each.believed for each in paid} == {0.8}
    assert after.reached == settled.tasks[0].confidence
    assert {each.commitment for each in after.answers if each.state != "paid"} <= {b""}
    with pytest.raises(Problem) as refused:
        Foreman(play.discovery).explain(task.task_id)
    assert refused.value.code == "unknown-task"


def test_undecided_answers_are_not_shown_for_nothing(make_discovery: MakeDiscovery, redis_url: str) -> None:
    """The attack: a foreman that pays for nothing guesses a small result from its commitment."""
    play = Play(make_discovery, redis_url, workers=3)
    (verdict,) = play.run(1, lambda worker: worker.worker_id.encode(), max_replicas=3, confidence=0.99).values()
    assert verdict.verdict == "undecided"
    explained = play.foreman.explain(verdict.task_id)
    assert {each.commitment for each in explained.answers} == {b""}
    assert {each.group for each in explained.answers} == {0}
    assert {each.kind for each in explained.answers} == {None}
    assert explained.why_now == ""
    assert {each.state for each in explained.answers} == {"released"}


def test_workers_get_what_they_ask_and_no_more_than_is_offered(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=2)
    cheap, dear = play.workers
    dear.caller.call(
        "POST", "/v1/workers", m.WorkerRegistered,
        m.RegisterWorker(worker_id=dear.worker_id, boot_id=dear.boot_id, port=1, slots=8, python="3.11", ask=3),
    )  # fmt: skip
    leased = play.foreman.lease(1, redundancy=2, quorum=2, cpu_limit_s=120, offer=3)
    assert leased.price == 6
    assert {r.worker_id: r.price for r in leased.tasks[0].replicas} == {cheap.worker_id: 2, dear.worker_id: 6}
    shown = [worker.receipts(leases_of(worker, leased)) for worker in play.workers]
    assert [ticket.price for ticket in dear.tickets(leased)] == [6]
    play.foreman.settle(shown, [leased.tasks[0].task_id])
    assert (cheap.caller.state.earned, dear.caller.state.earned) == (2, 6)
    assert play.foreman.lease(1, redundancy=2, quorum=2, offer=2).tasks == []


def test_pay_may_be_spent_when_it_has_vested(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=1, network="public", starting_credits=2, settled_grace_s=600.0)
    play.run(2, truth, confidence=0.0, max_replicas=9)
    earner = Foreman(play.discovery, play.workers[0].caller.account)
    other = Worker(Caller(play.discovery))
    assert earner.state.balance == 4
    assert len(earner.lease(4).tasks) == 2  # what it was given; what it earned has not vested
    with pytest.raises(Problem) as refused:
        earner.lease(1)
    assert (refused.value.code, refused.value.problem.available) == ("insufficient-credits", 0)
    (lot,) = play.redis.zrange("{ec}:vesting", 0, -1)
    play.redis.zadd("{ec}:vesting", {str(int(lot)): 1})  # type: ignore[arg-type]
    play.discovery.sweep()
    assert len(earner.lease(4).tasks) == 2
    assert other.worker_id


def test_leases_that_are_never_pushed_free_their_worker(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=1, hold_leases=1, hold_cap=18)
    (worker,) = play.workers
    before = play.foreman.state.balance
    leased = play.foreman.lease(20)
    leases = [ticket.lease_id for ticket in worker.tickets(leased)]
    path = f"/v1/workers/{worker.worker_id}/heartbeats"
    body = m.Heartbeat(boot_id=worker.boot_id, unseen=leases)
    stranger = Worker(Caller(play.discovery))
    stranger.caller.call(
        "POST", f"/v1/workers/{stranger.worker_id}/heartbeats", m.HeartbeatAnswer,
        m.Heartbeat(boot_id=stranger.boot_id, unseen=leases),
    )  # fmt: skip
    assert len(worker.heartbeat().open_leases) == 20  # another cannot say so
    assert worker.caller.call("POST", path, m.HeartbeatAnswer, body).open_leases == []
    assert play.foreman.state.balance == before - 18  # burnt
    assert worker.caller.state.earned == 0


def test_a_worker_that_returns_nothing_gets_less_and_less(make_discovery: MakeDiscovery, redis_url: str) -> None:
    play = Play(make_discovery, redis_url, workers=1, **SOON, prefetch=2)
    (worker,) = play.workers
    sizes = []
    for _ in range(6):
        leased = play.foreman.lease(40, timeout_s=0.001, cpu_limit_s=0.001)
        sizes.append(len(leased.tasks))
        while worker.heartbeat().open_leases:
            play.discovery.sweep()
    assert sizes == [16, 8, 4, 2, 1, 1]
    leased = play.foreman.lease(1)
    play.foreman.settle([worker.receipts(leases_of(worker, leased))], [leased.tasks[0].task_id])
    assert len(play.foreman.lease(40).tasks) == 16


increments = st.tuples(st.sampled_from("ab"), st.integers(-4000, 9000), st.integers(-2000, 4000), st.integers(-1, 1))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(increments, min_size=1, max_size=4), max_size=12), st.booleans())
def test_tallies_in_the_store_are_those_of_the_formulas(
    make_discovery: MakeDiscovery, redis_url: str, commits: list[list[tuple[str, int, int, int]]], long: bool
) -> None:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    discovery = make_discovery(distinct="account")
    own: defaultdict[str, Tally] = defaultdict(Tally)
    if long:
        commits = [[("a", 2 * LONG - 3000, 1500, 0)], *commits]
    for commit in commits:
        changes = Changes()
        sums: defaultdict[str, Tally] = defaultdict(Tally)
        for party, verified, doubts, words in commit:
            changes.learn("w" * 32, party, Tally(verified, doubts, words))
            sums[party] = sums[party].plus(Tally(verified, doubts, words))
        discovery.store.commit(changes, 0, discovery.trust.terms)
        for party, gained in sums.items():
            if gained != NOTHING:
                own[party] = aged(own[party].plus(gained))
    known = NOTHING
    for tally in own.values():
        known = known.plus(shared(tally))
    fields = ["verified", "doubts", "words", "accusers"]
    stored = [int(value or 0) for value in client.hmget("{ec}:worker:" + "w" * 32, fields)]
    assert stored == [known.verified, known.doubts, known.words, sum(shared(tally).accuses for tally in own.values())]
    client.close()


def test_walking_away_after_more_costs_the_effort_fee(make_discovery: MakeDiscovery, redis_url: str) -> None:
    """The attack: a foreman learns by ``more`` that it would have to pay, and walks away."""
    play = Play(make_discovery, redis_url, workers=6, **SOON)
    leased = play.foreman.lease(1, confidence=0.99, timeout_s=0.3, cpu_limit_s=0.1)
    first = next(worker for worker in play.workers if worker.tickets(leased))
    settled = play.foreman.settle([first.receipts(leases_of(first, leased))], [leased.tasks[0].task_id])
    assert settled.tasks[0].verdict == "more"
    while first.caller.state.earned == 0:
        play.discovery.sweep()
    assert first.caller.state.earned == 1
    assert play.foreman.state.escrow == 0
    assert {each.kind for each in play.foreman.explain(leased.tasks[0].task_id).answers} == {None}, "nobody was paid"
