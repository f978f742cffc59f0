"""Workers that want pay for no work: junk, nothing, late, twice, another job's result. Nobody honest loses by it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from discovery.leasing import MOST_REFUSALS
from discovery.receipts_shown import MOST_RECEIPTS
from discovery.records import TaskRecord
from ec262.foreman.payloads import printable
from ec262.protocol import messages as m
from ec262.protocol.canonical import encode_value
from ec262.protocol.framing import frame_parts
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, failure_commitment, seal_receipts
from ec262.protocol.sealing import seal
from ec262.protocol.states import ReplicaState
from tests.adversary.conftest import MakeScene
from tests.adversary.scene import PARTS, Scene, attempted, deliver, dispute, of, send
from tests.parties import RIGHT, WRONG, Caller, Foreman, Problem, Worker, made_for, refusals

# --- junk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", ["does not open", "no frame", "another result"])
def test_attack_a_worker_returns_junk_for_a_good_commitment(scene: Scene, junk: str) -> None:
    """It is paid at first, because nobody can look into it; then it loses the pay, its name and its account."""
    foreman, cheat = scene.foreman(), scene.worker()
    leased = foreman.lease()
    (task,), (ticket,) = leased.tasks, cheat.tickets(leased)
    tokens = {
        "does not open": [os.urandom(90)],
        "no frame": [seal(ticket.result_key, b"junk")],
        "another result": [seal(ticket.result_key, frame_parts([b"something", b"else"]))],
    }[junk]
    delivery = deliver(cheat, ticket, tokens=tokens)
    foreman.settle([delivery.shown], [task.task_id])
    assert (foreman.state.balance, cheat.caller.state.balance) == (99, 101)
    with pytest.raises(Problem) as refused:
        send(cheat.caller, foreman, 1)
    assert refused.value.code == "insufficient-credits", "what it earned is not its own yet"
    outcome = dispute(foreman, task.replicas[0].lease_id, tokens)
    assert (outcome.verdict, outcome.refund, outcome.recompute) == ("upheld", 1, True)
    scene.discovery.sweep()
    assert (foreman.state.balance, cheat.caller.state.balance) == (100, 100)
    assert scene.banned(cheat)
    # Somebody honest computes it anew, and is paid; the cheat gets no more of anything.
    honest = scene.worker()
    digest = scene.discovery.store.load([task.task_id])[1][task.task_id].input_digest
    again = foreman.lease(1, again=[(task.task_id, digest)])
    (lease,) = of(honest, again)
    settled = foreman.settle([honest.receipts([lease])], [again.tasks[0].task_id], heard=[task.task_id])
    assert (settled.tasks[0].verdict, settled.recompute) == ("accepted", [])
    assert (foreman.state.balance, honest.caller.state.earned) == (99, 1)


FACTS = {"type": "ValueError", "message": "no", "line": "3", "traceback": ""}


@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.LIMIT])
@pytest.mark.parametrize("junk", ["no facts", "other facts", "no frame", "none: it is honest"])
def test_attack_a_worker_says_that_the_program_failed(scene: Scene, kind: Kind, junk: str) -> None:
    """A failure costs no time to make up. Its facts have to be what it committed to: else it is junk like any other."""
    foreman, cheat = scene.foreman(), scene.worker()
    leased = foreman.lease()
    (ticket,) = cheat.tickets(leased)
    facts = {**FACTS, "limit": "memory"}
    plain = {
        "no facts": frame_parts([b"junk"]),
        "other facts": frame_parts([encode_value({**facts, "type": "KeyError", "limit": "cpu"})]),
        "no frame": b"junk",
        "none: it is honest": frame_parts([encode_value(facts)]),
    }[junk]
    committed = failure_commitment(kind, *(["memory"] if kind is Kind.LIMIT else ["ValueError", "3"]))
    delivery = deliver(cheat, ticket, tokens=[seal(ticket.result_key, plain)], commitment=committed, kind=kind)
    (verdict,) = foreman.settle([delivery.shown], [leased.tasks[0].task_id]).tasks
    assert (verdict.verdict, verdict.kind) == ("accepted", kind)
    outcome = dispute(foreman, ticket.lease_id, delivery.tokens)
    if junk == "none: it is honest":
        assert (outcome.verdict, scene.banned(cheat)) == ("refused", False)
        assert (foreman.state.balance, cheat.caller.state.balance) == (98, 102)
    else:
        assert (outcome.verdict, scene.banned(cheat)) == ("upheld", True)
        assert (foreman.state.balance, cheat.caller.state.balance) == (100, 100)


def test_attack_junk_beside_an_honest_answer(scene: Scene) -> None:
    """Two agree and one of them delivers junk: the other's bytes serve, and only the one who lied is judged."""
    foreman, cheat, honest = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(1, redundancy=2, quorum=2)
    (theirs,), (mine,) = cheat.tickets(leased), honest.tickets(leased)
    junk, good = deliver(cheat, theirs, tokens=[os.urandom(90)]), deliver(honest, mine)
    (verdict,) = foreman.settle([junk.shown, good.shown], [leased.tasks[0].task_id]).tasks
    assert len(verdict.keys) == 2
    outcome = dispute(foreman, theirs.lease_id, junk.tokens)
    assert (outcome.verdict, outcome.refund, outcome.recompute) == ("upheld", 1, False)
    scene.discovery.sweep()
    assert (scene.banned(cheat), scene.banned(honest)) == (True, False)
    assert (foreman.state.balance, honest.caller.state.balance, cheat.caller.state.balance) == (99, 101, 100)
    assert [key.worker_id for key in foreman.settle([], [verdict.task_id]).tasks[0].keys] == [honest.worker_id]
    assert attempted(cheat.register) == "banned"


def test_attack_spending_the_pay_for_junk_before_it_is_found(make_scene: MakeScene) -> None:
    """It leases work and sends credits as fast as it can: what has not vested is not there to be spent."""
    scene = make_scene(starting_credits=2)
    foreman, cheat, friend = scene.foreman(), scene.worker(), scene.worker()
    scene.mint(foreman, 1)
    leased = foreman.lease(2)
    deliveries = [deliver(cheat, ticket, tokens=[os.urandom(90)]) for ticket in cheat.tickets(leased)]
    deliveries += [deliver(friend, ticket, tokens=[os.urandom(90)]) for ticket in friend.tickets(leased)]
    foreman.settle([each.shown for each in deliveries], [task.task_id for task in leased.tasks])
    for spender in (cheat, friend):
        scene.worker()
        buyer = type(foreman)(scene.discovery, account=spender.caller.account)
        assert len(buyer.lease(9).tasks) == 2, "its gift"
        with pytest.raises(Problem, match="insufficient-credits"):
            buyer.lease(1)
        with pytest.raises(Problem, match="insufficient-credits"):
            send(buyer, foreman, 1)
    for delivery in deliveries:
        assert dispute(foreman, delivery.receipt.lease_id, delivery.tokens).refund == 1
    assert foreman.state.balance == 3


def believed_alone(scene: Scene, foreman: Foreman, worker: Worker, count: int) -> list[str]:
    """Tasks of which a worker that is believed gave the one answer: wrong ones, if it is a liar."""
    leased = foreman.lease(count, confidence=0.99, max_replicas=16)
    decide = [task.task_id for task in leased.tasks]
    settled = foreman.settle([worker.receipts(of(worker, leased), WRONG)], decide)
    return [verdict.task_id for verdict in settled.tasks if verdict.verdict == "accepted"]


def convict(scene: Scene, cheat: Worker) -> None:
    """Another foreman shows that it delivered junk; twice, for its record is long."""
    other = scene.foreman()
    leased = other.lease(20)
    for ticket in cheat.tickets(leased)[:2]:
        delivery = deliver(cheat, ticket, tokens=[os.urandom(90)])
        other.settle([delivery.shown], [ticket.lease_id.split(".")[0]])
        assert dispute(other, ticket.lease_id, delivery.tokens).verdict == "upheld"
    assert scene.banned(cheat)


def test_attack_a_liar_is_paid_before_it_is_convicted(make_scene: MakeScene) -> None:
    """It was believed, and paid for lies that nobody looked at. One conviction, in a job of another foreman, and what
    it was paid goes back to whoever has to have it computed again: what had not vested, and that once.
    """
    scene = make_scene(ttl_s=1e6)
    foreman, cheat = scene.foreman(), scene.worker(verified=100, slots=64)
    early = believed_alone(scene, foreman, cheat, 8)
    scene.clock.move(int(scene.discovery.settings.settled_grace_s) + 20)
    scene.discovery.sweep()
    holdings, account_id = scene.discovery.store.books.holdings, cheat.caller.account.account_id
    kept, waiting = cheat.caller.state.earned, holdings(account_id).unvested  # effort fees for what was spot checked
    late = believed_alone(scene, foreman, cheat, 40)
    assert (cheat.caller.state.earned, foreman.state.spent) == (kept + len(late),) * 2
    assert len(late) > 10
    assert foreman.audit().refunded == []
    balance = foreman.state.balance
    convict(scene, cheat)
    for _ in range(3):
        scene.discovery.sweep()
        assert foreman.state.balance == balance + len(late)
        assert (cheat.caller.state.earned, foreman.state.spent) == (kept, kept)
    audited = foreman.audit()
    assert set(audited.recompute) == {*early, *late}
    assert [(each.worker_id, each.amount) for each in audited.refunded] == [(cheat.worker_id, len(late))]
    assert holdings(account_id).unvested == waiting
    # Its lies still count against it where they are computed again: to take its pay back does not acquit it.
    honest = scene.worker(verified=100, slots=64)
    digests = scene.discovery.store.load(late)[1]
    doubts = scene.name(cheat)["doubts"]
    again = foreman.lease(len(late), confidence=0.99, again=[(old, digests[old].input_digest) for old in late])
    foreman.settle([honest.receipts(of(honest, again))], [task.task_id for task in again.tasks], heard=late)
    scene.discovery.sweep()
    assert scene.banned(cheat)
    assert scene.name(cheat)["doubts"] > doubts
    assert (scene.banned(honest), scene.name(honest)["doubts"]) == (False, 0)


def test_attack_a_conviction_is_used_to_rob_honest_work(make_scene: MakeScene) -> None:
    """What a convicted worker did rightly, and others say so, stays paid; and nobody else pays for its lies."""
    scene = make_scene()
    foreman, cheat, honest = scene.foreman(), *scene.workers(2, verified=100)
    leased = foreman.lease(20, confidence=0.99, max_replicas=16)
    decide = [task.task_id for task in leased.tasks]
    answered: m.Leased | m.Settled = leased
    lost = [replica.lease_id for task in leased.tasks for replica in task.replicas]
    more = foreman.settle([], decide, lost)
    shown = [each.receipts(of(each, answer)) for each in (cheat, honest) for answer in (answered, more)]
    settled = foreman.settle(shown, decide)
    assert {verdict.verdict for verdict in settled.tasks} == {"accepted"}
    before = (foreman.state.balance, cheat.caller.state.earned, honest.caller.state.earned)
    assert before[1:] == (20, 20)
    convict(scene, cheat)
    scene.discovery.sweep()
    assert (foreman.state.balance, cheat.caller.state.earned, honest.caller.state.earned) == before
    assert foreman.audit(decide).recompute == []


def test_attack_spending_the_pay_for_lies_before_the_conviction(make_scene: MakeScene) -> None:
    """It leases, sends and burns as fast as it can: what a conviction takes back is there."""
    scene = make_scene(starting_credits=30)
    foreman, cheat, friend = scene.foreman(), scene.worker(verified=100, slots=64), scene.foreman()
    wrong = believed_alone(scene, foreman, cheat, 25)
    spender = type(foreman)(scene.discovery, account=cheat.caller.account)
    scene.worker(slots=64)
    assert len(spender.lease(30).tasks) == 30, "its gift"
    assert attempted(lambda: spender.lease(1)) == "insufficient-credits"
    assert attempted(lambda: send(spender, friend, 1)) == "insufficient-credits"
    assert scene.discovery.store.books.mint("burn", spender.account_id, 1, "").outcome == "credits"
    convict(scene, cheat)
    scene.discovery.sweep()
    assert (foreman.state.spent, spender.state.balance) == (0, 0)
    assert len(wrong) > 5


# --- nothing -------------------------------------------------------------------------------------


@pytest.fixture
def hasty(make_scene: MakeScene) -> Scene:
    """A service whose deadlines come soon."""
    return make_scene(late_grace_s=0.0, prefetch=2, ttl_s=1e6)


def test_attack_a_worker_returns_nothing(hasty: Scene) -> None:
    """It takes leases so that others wait: it gets fewer and fewer, and its foreman has all of its credits back."""
    foreman, idler = hasty.foreman(), hasty.worker()
    got = []
    for _ in range(4):
        got.append(len(foreman.lease(30).tasks))
        hasty.until_swept(idler)
    assert got == [16, 8, 4, 2]
    assert (foreman.state.balance, foreman.state.escrow, idler.caller.state.earned) == (100, 0, 0)
    # To start anew, or to register anew, makes it no better.
    idler.boot_id = os.urandom(16).hex()
    idler.register()
    assert len(foreman.lease(30).tasks) == 1


def test_attack_a_worker_shows_receipts_and_returns_nothing(hasty: Scene) -> None:
    """What it says it computed nobody has seen: of its foreman it gets the effort fee at most, and no name of it."""
    foreman, idler = hasty.foreman(), hasty.worker()
    leased = foreman.lease(4, cpu_limit_s=240)
    idler.heartbeat(idler.token(of(idler, leased), os.urandom(32)))
    assert idler.caller.state.earned == 0
    hasty.until_swept(idler)
    assert (idler.caller.state.earned, foreman.state.balance) == (4, 96)
    assert hasty.name(idler)["verified"] == 0


def test_attack_a_newcomer_lives_on_receipts_for_leases_that_foremen_walk_away_from(make_scene: MakeScene) -> None:
    """It was never pushed anything, and shows receipts for all of it: a few credits a job, and less each time."""
    scene = make_scene(late_grace_s=0.0, prefetch=64, ttl_s=1e6, starting_credits=5000)
    foreman, idler = scene.foreman(), scene.worker(slots=4)
    leases = []
    for number in range(4):
        foreman.job_id = f"{number:032x}"
        leased = foreman.lease(200, cpu_limit_s=120)
        leases.append(len(leased.tasks))
        idler.heartbeat(idler.token(of(idler, leased), os.urandom(32)))
        scene.until_swept(idler)
    assert leases == [200, 128, 64, 32]
    assert idler.caller.state.earned == 16
    assert foreman.state.balance == 5000 - 16


def test_attack_more_receipts_in_a_heartbeat_than_anybody_looks_at(scene: Scene) -> None:
    """Discovery would be busy for seconds with leases that never were."""
    foreman, idler = scene.foreman(), scene.worker()
    leased = foreman.lease(1)
    nonsense = [f"{number:024x}.0" for number in range(30_000)]
    opened = scene.discovery.store.load
    looked_at: list[str] = []

    def load(task_ids: Sequence[str]) -> tuple[int, dict[str, TaskRecord]]:
        looked_at.extend(task_ids)
        return opened(task_ids)

    scene.discovery.store.load = load  # type: ignore[method-assign]
    idler.heartbeat(idler.token(nonsense), idler.token(nonsense))
    assert len(looked_at) <= MOST_RECEIPTS
    idler.heartbeat(idler.token(of(idler, leased)))
    records = opened([task.task_id for task in leased.tasks])[1]
    assert [each.replicas[0].state for each in records.values()] == [ReplicaState.SHOWN]


def test_attack_a_worker_refuses_what_it_was_leased(scene: Scene) -> None:
    foreman, shirker = scene.foreman(), scene.worker()
    leased = foreman.lease(5)
    foreman.settle([shirker.receipts(of(shirker, leased), os.urandom(32), Kind.REFUSED)], [])
    assert (foreman.state.balance, scene.escrow(), shirker.caller.state.earned) == (100, 0, 0)


def test_attack_a_worker_refuses_again_and_again(scene: Scene) -> None:
    """The only one there may have the task again, for it may have been paused; but not as fast as it refuses."""
    foreman, shirker = scene.foreman(), scene.worker()
    answer: m.Leased | m.Settled = foreman.lease(1)
    (task_id,) = [task.task_id for task in answer.tasks]
    times = 0
    while leases := of(shirker, answer):
        times += 1
        answer = foreman.settle([shirker.receipts(leases, os.urandom(32), Kind.REFUSED)], [task_id])
    assert times == MOST_REFUSALS
    (verdict,) = foreman.settle([], [task_id]).tasks
    assert verdict.verdict == "pending", "another worker may come"
    honest = scene.worker()
    answer = foreman.settle([], [task_id])
    foreman.settle([honest.receipts(of(honest, answer))], [task_id])
    assert (honest.caller.state.earned, shirker.caller.state.earned, scene.escrow()) == (1, 0, 0)


def test_attack_a_long_story_of_why_a_task_was_refused(scene: Scene) -> None:
    """The foreman is told, each time it shows the receipt; of its own replicas alone, and not at any length."""
    foreman, shirker, other = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(8)
    own, others = of(shirker, leased), of(other, leased)
    story = "\x1b[2J" + "x" * 100_000
    listed = [Receipt(lease_id, Kind.REFUSED, bytes(32), [], 0.0, story) for lease_id in (*own, *others)]
    bundle = ReceiptBundle(shirker.worker_id, shirker.registered.epoch, listed)
    shown = m.SealedReceipts(
        worker_id=shirker.worker_id, token=seal_receipts(shirker.registered.worker_key, bundle), arrived={}
    )
    for _ in range(2):
        told = foreman.settle([shown], []).refusals
        assert [each.lease_id for each in told] == own
        assert {each.worker_id for each in told} == {shirker.worker_id}
        assert {len(each.reason) for each in told} == {m.MAX_REASON}
    assert printable(told[0].reason).isprintable(), "what a foreman shows of it does nothing to a terminal"


# --- late ----------------------------------------------------------------------------------------


def test_attack_a_worker_answers_after_everybody_stopped_waiting(hasty: Scene) -> None:
    """Its escrow went back at the deadline: a receipt after that moves nothing, whoever shows it, however often."""
    foreman, late, other = hasty.foreman(), hasty.worker(), hasty.worker()
    leased = foreman.lease(4)
    tardy = of(late, leased)
    hasty.until_swept(late)
    hasty.until_swept(other)
    token = late.token(tardy)
    for _ in range(2):
        late.heartbeat(token)
        foreman.settle([m.SealedReceipts(worker_id=late.worker_id, token=token)], [t.task_id for t in leased.tasks])
    assert (foreman.state.balance, hasty.escrow(), late.caller.state.earned) == (100, 0, 0)


def test_attack_a_worker_waits_until_others_have_settled_it(scene: Scene) -> None:
    """It comes late with what it heard was accepted. In time it is paid as if it had computed it: once, and no more;
    with anything else it is not.
    """
    foreman, quick, late, liar = scene.foreman(), *scene.workers(3)
    leased = foreman.lease(3, redundancy=3, quorum=1)
    decide = [task.task_id for task in leased.tasks]
    foreman.settle([quick.receipts(of(quick, leased))], decide)
    for _ in range(2):
        late.heartbeat(late.token(of(late, leased)))
        liar.heartbeat(liar.token(of(liar, leased), WRONG))
    assert [worker.caller.state.earned for worker in (quick, late, liar)] == [3, 3, 0]
    assert (foreman.state.balance, scene.escrow()) == (94, 0)


# --- twice ---------------------------------------------------------------------------------------


def test_attack_a_worker_returns_everything_twice(scene: Scene) -> None:
    """In one bundle, in two, over foreman and heartbeat, before and after a restart."""
    foreman, worker = scene.foreman(), scene.worker()
    leased = foreman.lease(5)
    leases, decide = of(worker, leased), [task.task_id for task in leased.tasks]
    double = Receipt(leases[0], Kind.OK, RIGHT, made_for(leases[0]), 0.5)
    bundle = ReceiptBundle(worker.worker_id, worker.registered.epoch, [double] * 50)
    many = seal_receipts(worker.registered.worker_key, bundle)
    shown = [worker.receipts(leases), worker.receipts(leases), m.SealedReceipts(worker_id=worker.worker_id, token=many)]
    foreman.settle(shown, decide)
    worker.heartbeat(worker.token(leases), many)
    foreman.settle(shown, decide)
    old = worker.token(leases)
    worker.boot_id = os.urandom(16).hex()
    worker.register()
    worker.heartbeat(old, worker.token(leases))
    foreman.settle([worker.receipts(leases)], decide)
    assert (foreman.state.balance, scene.escrow(), worker.caller.state.earned) == (95, 0, 5)
    assert scene.discovery.store.worker_counts(worker.worker_id)["agreed"] == 5


# --- another job's result ------------------------------------------------------------------------


def test_attack_a_worker_returns_another_jobs_result(scene: Scene) -> None:
    """It computed one job and hands its bytes and its commitment to another as well."""
    first, second, cheat = scene.foreman(), scene.foreman(), scene.worker()
    one, two = first.lease(), second.lease()
    (done,), (lazy,) = cheat.tickets(one), cheat.tickets(two)
    honest = deliver(cheat, done)
    first.settle([honest.shown], [one.tasks[0].task_id])
    # The receipt itself is for another lease: it changes nothing in the second job.
    answer = second.settle([honest.shown], [two.tasks[0].task_id])
    assert (refusals(answer), answer.tasks[0].verdict) == ([0], "pending")
    # The sealed bytes under a receipt of their own are paid, do not open, and cost it everything.
    copied = deliver(cheat, lazy, PARTS, tokens=honest.tokens)
    second.settle([copied.shown], [two.tasks[0].task_id])
    assert dispute(second, lazy.lease_id, copied.tokens).verdict == "upheld"
    scene.discovery.sweep()
    assert scene.banned(cheat)
    assert (first.state.balance, second.state.balance) == (99, 100)


def test_attack_another_jobs_result_where_two_have_to_agree(scene: Scene) -> None:
    """Sealed anew it opens, but is not what honest workers found: no pay for it."""
    foreman, cheat, honest, third = scene.foreman(), *scene.workers(3, verified=30)
    leased = foreman.lease(1, redundancy=2, quorum=2)
    answered: m.Leased | m.Settled = leased
    tasks = [leased.tasks[0].task_id]
    verdict = None
    while verdict is None or verdict.verdict == "more":
        shown = []
        for worker in (cheat, honest, third):
            for ticket in worker.tickets(answered):
                parts = [b"of", b"another job"] if worker is cheat else PARTS
                shown.append(deliver(worker, ticket, parts).shown)
        answered = foreman.settle(shown, tasks)
        (verdict,) = answered.tasks
    assert verdict.verdict == "accepted"
    assert cheat.worker_id not in {key.worker_id for key in verdict.keys}
    assert (cheat.caller.state.earned, foreman.state.balance) == (0, 98)
    assert not scene.banned(honest)
    assert not scene.banned(third)


# --- many workers of one owner -------------------------------------------------------------------


def test_attack_workers_of_one_account_agree_with_each_other(make_scene: MakeScene) -> None:
    """Twelve workers, one account: as voices they are one, however often they say it."""
    scene = make_scene(distinct="account")
    foreman, owner = scene.foreman(), Caller(scene.discovery)
    crowd: list[Worker] = [scene.worker(owner) for _ in range(12)]
    answered: m.Leased | m.Settled = foreman.lease(6, confidence=0.99, max_replicas=16)
    opened = [task.task_id for task in answered.tasks]
    for _ in range(4):
        shown = [worker.receipts(of(worker, answered), WRONG) for worker in crowd if of(worker, answered)]
        answered = foreman.settle(shown, opened)
        assert all(verdict.verdict in {"more", "pending"} for verdict in answered.tasks)
        assert all(verdict.keys == [] for verdict in answered.tasks)
    assert owner.state.earned == 0
    assert all(scene.name(worker)["verified"] == 0 for worker in crowd)
