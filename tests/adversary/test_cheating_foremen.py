"""Foremen that want work for nothing: none reads a result that it did not pay, or has its money back for good work."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator

import pytest

from ec262.errors import SealBroken
from ec262.protocol import messages as m
from ec262.protocol.framing import frame_parts
from ec262.protocol.receipts import Kind, open_receipts, result_commitment
from ec262.protocol.sealing import seal, unseal
from tests.adversary.conftest import MakeScene
from tests.adversary.scene import At, Scene, attempted, deliver, dispute, of, send, together
from tests.parties import RIGHT, WRONG, Problem, Worker, refusals

OTHER = [b"another", b"result"]


def sold(scene: Scene) -> tuple[At, Worker, str, list[bytes], m.TaskVerdict]:
    """An honest result that was paid: foreman, worker, lease, tokens, verdict."""
    foreman, worker = scene.foreman(), scene.worker()
    leased = foreman.lease()
    (ticket,) = worker.tickets(leased)
    delivery = deliver(worker, ticket)
    (verdict,) = foreman.settle([delivery.shown], [leased.tasks[0].task_id]).tasks
    assert verdict.verdict == "accepted"
    return foreman, worker, ticket.lease_id, delivery.tokens, verdict


# --- foreman with a Sybil in the group -----------------------------------------------------------


def test_attack_a_sybil_in_the_group_spoils_the_vote_so_that_nobody_is_paid(scene: Scene) -> None:
    """It contradicts the honest worker. Its foreman can read nothing, and owes the effort all the same."""
    foreman, honest, sybil = scene.foreman(), scene.worker(verified=50), scene.worker()
    before = scene.name(honest)
    leased = foreman.lease(10, redundancy=2, quorum=2, max_replicas=2)
    shown = [honest.receipts(of(honest, leased)), sybil.receipts(of(sybil, leased), WRONG)]
    settled = foreman.settle(shown, [task.task_id for task in leased.tasks])
    assert [(verdict.verdict, verdict.keys) for verdict in settled.tasks] == [("undecided", [])] * 10
    assert scene.name(honest) == before
    assert (honest.caller.state.earned, sybil.caller.state.earned) == (10, 0)
    assert (foreman.state.balance, foreman.state.escrow) == (90, 0)
    # Asking again, or later, gets it no key either.
    again = foreman.settle(shown, [task.task_id for task in leased.tasks])
    assert all(verdict.keys == [] for verdict in again.tasks)


def test_attack_a_sybil_answers_first_and_is_all_that_was_wanted(scene: Scene) -> None:
    """Quorum 1: the foreman has its own worker's word accepted, and the honest worker's receipt in its pocket."""
    foreman, honest, sybil = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(2, redundancy=2, quorum=1)
    mine, lie = leased.tasks
    same = [lease_id for lease_id in of(sybil, leased) if lease_id.startswith(mine.task_id)]
    other = [lease_id for lease_id in of(sybil, leased) if lease_id.startswith(lie.task_id)]
    shown = [sybil.receipts(same, RIGHT), sybil.receipts(other, WRONG)]
    settled = foreman.settle(shown, [mine.task_id, lie.task_id])
    assert {key.worker_id for verdict in settled.tasks for key in verdict.keys} == {sybil.worker_id}
    # The honest worker shows what its foreman keeps to itself: where they agree it is paid, where not nobody reads it.
    honest.heartbeat(honest.token(of(honest, leased), RIGHT))
    assert honest.caller.state.earned == 1
    answer = {verdict.task_id: verdict for verdict in foreman.settle([], [mine.task_id, lie.task_id]).tasks}
    assert {key.worker_id for key in answer[mine.task_id].keys} == {honest.worker_id, sybil.worker_id}
    assert {key.worker_id for key in answer[lie.task_id].keys} == {sybil.worker_id}


def test_attack_a_foreman_slanders_with_sybils_as_often_as_it_can_pay(make_scene: MakeScene) -> None:
    """Two Sybils outvote the honest worker in task after task of one foreman: others still believe it."""
    scene = make_scene(starting_credits=1000)
    foreman, other = scene.foreman(), scene.foreman()
    honest, sybils = scene.worker(verified=100), scene.workers(2, verified=20)
    for _ in range(8):
        leased = foreman.lease(20, redundancy=3, quorum=2, max_replicas=3)
        shown = [honest.receipts(of(honest, leased), RIGHT)] if of(honest, leased) else []
        shown += [sybil.receipts(of(sybil, leased), WRONG) for sybil in sybils if of(sybil, leased)]
        foreman.settle(shown, [task.task_id for task in leased.tasks])
    scene.discovery.sweep()
    assert scene.name(honest)["doubts"] != 0, "they did outvote it"
    assert not scene.banned(honest)
    leased = other.lease(30)
    assert of(honest, leased), "another foreman goes on with it"
    other.settle([honest.receipts(of(honest, leased))], [task.task_id for task in leased.tasks])
    assert honest.caller.state.earned == len(of(honest, leased))


def test_attack_a_foremans_own_workers_get_into_no_group_of_its_tasks(scene: Scene) -> None:
    foreman, strangers = scene.foreman(), scene.workers(3)
    own = [scene.worker(foreman) for _ in range(6)]
    leased = foreman.lease(20, redundancy=3, quorum=2)
    assert len(leased.tasks) == 20
    assert {r.worker_id for task in leased.tasks for r in task.replicas} == {each.worker_id for each in strangers}
    assert all(worker.tickets(leased) == [] for worker in own)


# --- claiming a refund for good work, disputing honest bytes -------------------------------------


def test_attack_claiming_a_refund_for_good_work(scene: Scene) -> None:
    """Once it has paid, a foreman has the key and can seal what it likes with it. It is not what the receipt names."""
    foreman, worker, lease_id, tokens, verdict = sold(scene)
    before, books = scene.name(worker), (foreman.state.balance, worker.caller.state.balance)
    key = verdict.keys[0].result_key
    assert unseal(key, tokens[0]) == frame_parts([b"honest", b"parts"])
    for made in ([seal(key, frame_parts(OTHER))], [os.urandom(200)], [*tokens, seal(key, b"")], tokens * 2):
        assert dispute(foreman, lease_id, made).verdict == "unproven"
    # It says that the worker never answered, and shows the receipt no more.
    foreman.settle([], [verdict.task_id], [lease_id])
    # It tries to have the task computed anew on the house.
    with pytest.raises(Problem) as refused:
        dispute(foreman, lease_id.replace(".0", ".1"), [os.urandom(200)])
    assert refused.value.code == "unknown-task"
    scene.discovery.sweep()
    assert scene.name(worker) == before
    assert (foreman.state.balance, worker.caller.state.balance) == books
    assert foreman.settle().recompute == []


def test_attack_disputing_honest_bytes(scene: Scene) -> None:
    """It costs the foreman the fee, which is the worker's, and once: there is nothing in asking until somebody errs."""
    foreman, worker, lease_id, tokens, _ = sold(scene)
    before = scene.name(worker)
    for _ in range(3):
        refused = dispute(foreman, lease_id, tokens)
        assert (refused.verdict, refused.refund, refused.recompute) == ("refused", 0, False)
    assert (foreman.state.balance, worker.caller.state.balance) == (98, 102)
    scene.discovery.sweep()
    assert scene.name(worker) == before


def test_attack_disputing_honest_bytes_many_times_at_once(scene: Scene) -> None:
    foreman, worker, lease_id, tokens, _ = sold(scene)
    codes: list[str] = []

    def ask() -> None:
        codes.append(attempted(lambda: dispute(At(scene.discovery, account=foreman.account), lease_id, tokens)))

    together([ask] * 6)
    assert set(codes) <= {"", "conflict"}
    assert dispute(foreman, lease_id, tokens).verdict == "refused"
    assert (foreman.state.balance, worker.caller.state.balance) == (98, 102)


def test_attack_disputing_anothers_purchase(scene: Scene) -> None:
    _, worker, lease_id, tokens, _ = sold(scene)
    thief = scene.foreman()
    with pytest.raises(Problem) as refused:
        dispute(thief, lease_id, tokens)
    assert refused.value.code == "unknown-task"
    assert (thief.state.balance, worker.caller.state.balance) == (100, 101)


def test_attack_disputing_ones_own_workers_bytes_to_spoil_the_books(make_scene: MakeScene) -> None:
    """In a private network the fee would go from an account to itself: the ledger knows no such movement."""
    scene = make_scene(network="private", distinct="none")
    owner = scene.foreman()
    worker = scene.worker(owner)
    leased = owner.lease(2)
    deliveries = [deliver(worker, ticket) for ticket in worker.tickets(leased)]
    deliveries[1] = deliver(worker, worker.tickets(leased)[1], tokens=[os.urandom(90)])
    owner.settle([each.shown for each in deliveries], [task.task_id for task in leased.tasks])
    verdicts = [dispute(owner, each.receipt.lease_id, each.tokens).verdict for each in deliveries]
    assert verdicts == ["refused", "upheld"]
    assert owner.state.balance == 100
    scene.clean()


# --- walking away, withholding, paying late ------------------------------------------------------


@pytest.fixture
def hasty(make_scene: MakeScene) -> Scene:
    """A service whose deadlines come soon."""
    return make_scene(late_grace_s=0.0, ttl_s=1e6)


def test_attack_walking_away_after_more(hasty: Scene) -> None:
    """``more`` tells the foreman that its answers differ, or are too few: it goes, and buys the task elsewhere."""
    foreman, workers = hasty.foreman(), hasty.workers(6)
    leased = foreman.lease(4, confidence=0.99)
    answered = [worker for worker in workers if of(worker, leased)]
    shown = [worker.receipts(of(worker, leased)) for worker in answered]
    before = [hasty.name(worker) for worker in workers]
    settled = foreman.settle(shown, [task.task_id for task in leased.tasks])
    assert {verdict.verdict for verdict in settled.tasks} == {"more"}
    assert all(verdict.keys == [] for verdict in settled.tasks)
    silent = {replica.worker_id for v in settled.tasks if v.task for replica in v.task.replicas}
    for worker in workers:
        hasty.until_swept(worker)
    assert sum(worker.caller.state.earned for worker in answered) == 4, "half of the price, rounded up, for each answer"
    assert (foreman.state.balance, foreman.state.escrow) == (96, 0)
    late = foreman.settle(shown, [task.task_id for task in leased.tasks])
    assert all((verdict.verdict, verdict.keys) == ("undecided", []) for verdict in late.tasks)
    after = [hasty.name(worker) for worker in workers if worker.worker_id not in silent]
    assert after == [name for name, worker in zip(before, workers, strict=True) if worker.worker_id not in silent]


def test_attack_withholding_a_receipt_of_what_another_answered_too(scene: Scene) -> None:
    """One payee's key opens the result: the foreman would rather not know the other's receipt."""
    foreman, workers = scene.foreman(), scene.workers(2)
    leased = foreman.lease(5, redundancy=2, quorum=1)
    shown, withheld = workers
    foreman.settle([shown.receipts(of(shown, leased))], [task.task_id for task in leased.tasks])
    assert (shown.caller.state.earned, withheld.caller.state.earned) == (5, 0)
    for _ in range(2):
        withheld.heartbeat(withheld.token(of(withheld, leased)))
    assert (shown.caller.state.earned, withheld.caller.state.earned) == (5, 5)
    assert foreman.state.escrow == 0


def test_attack_withholding_all_receipts(hasty: Scene) -> None:
    """Nobody settles: the foreman reads nothing, and pays half to workers that are known."""
    foreman, worker = hasty.foreman(), hasty.worker(verified=500)
    leased = foreman.lease(6, cpu_limit_s=180)
    before = hasty.name(worker)
    worker.heartbeat(worker.token(of(worker, leased)))
    assert worker.caller.state.earned == 0
    hasty.until_swept(worker)
    assert (worker.caller.state.earned, foreman.state.balance) == (12, 88)
    assert hasty.name(worker) == before


def test_attack_paying_late(hasty: Scene) -> None:
    """It waits until everything is due, so as to have the results for half of their price, or for none."""
    foreman, worker = hasty.foreman(), hasty.worker()
    leased = foreman.lease(3, cpu_limit_s=120)
    decide = [task.task_id for task in leased.tasks]
    shown = [deliver(worker, ticket) for ticket in worker.tickets(leased)]
    worker.heartbeat(*[each.shown.token for each in shown])
    hasty.until_swept(worker)
    for _ in range(2):
        settled = foreman.settle([each.shown for each in shown], decide)
        assert all((verdict.verdict, verdict.keys) == ("undecided", []) for verdict in settled.tasks)
    assert (worker.caller.state.earned, foreman.state.balance) == (3, 97)


def test_attack_settling_in_the_grace_after_the_deadline_still_pays_in_full(make_scene: MakeScene) -> None:
    scene = make_scene(late_grace_s=60.0)
    foreman, worker = scene.foreman(), scene.worker()
    leased = foreman.lease(3, timeout_s=0.001, cpu_limit_s=120)
    scene.clock.move(250)
    scene.discovery.sweep()
    assert scene.escrow() == 6, "what is out may still be answered"
    foreman.settle([worker.receipts(of(worker, leased))], [task.task_id for task in leased.tasks])
    assert (worker.caller.state.earned, foreman.state.balance) == (6, 94)


def test_attack_spending_the_same_credits_many_times_at_once(make_scene: MakeScene) -> None:
    """Leases and transfers race for one balance: what is promised to workers is there."""
    scene = make_scene(starting_credits=0)
    foreman, friend, worker = scene.foreman(), scene.foreman(), scene.worker()
    scene.mint(foreman, 10)
    codes: list[str] = []

    def lease() -> None:
        codes.append(attempted(lambda: At(scene.discovery, account=foreman.account).lease(4)))

    def pay() -> None:
        codes.append(attempted(lambda: send(At(scene.discovery, account=foreman.account), friend, 4)))

    together([lease, pay] * 4)
    assert set(codes) <= {"", "insufficient-credits", "conflict"}
    held = scene.escrow()
    assert foreman.state.balance + held + friend.state.balance == 10
    assert len(worker.heartbeat().open_leases) == held
    scene.clean()


# --- guessing small results ----------------------------------------------------------------------


def everything(*messages: object) -> Iterator[bytes]:
    """All bytes in some messages."""
    for each in messages:
        if isinstance(each, bytes):
            yield each
        elif isinstance(each, str):
            yield each.encode()
        elif isinstance(each, (list, tuple)):
            yield from everything(*each)
        elif isinstance(each, m.Message):
            yield from everything(*(getattr(each, name) for name in each.__struct_fields__))


def test_attack_guessing_small_results_from_what_the_foreman_holds_before_settlement(scene: Scene) -> None:
    """A result is yes or no. The foreman has both workers' tokens and receipts, all keys it was given, and time."""
    foreman, workers = scene.foreman(), scene.workers(3)
    leased = foreman.lease(1, redundancy=2, quorum=2)
    (task,) = leased.tasks
    guesses = [[b"yes"], [b"no!"]]
    held: list[object] = [leased, foreman.explain(task.task_id), foreman.state]
    shown, tokens = [], []
    for worker in workers:
        for ticket in worker.tickets(leased):
            delivery = deliver(worker, ticket, guesses[0])
            shown.append(delivery.shown)
            tokens += delivery.tokens
    held += [shown, tokens]
    # One of them is enough for nothing: the foreman shows it, and asks what is known.
    half = foreman.settle(shown[:1], [task.task_id])
    assert (half.tasks[0].verdict, half.tasks[0].keys) == ("pending", [])
    # Both are recorded, and nothing is decided: nobody says whether they are alike.
    held += [half, foreman.settle(shown, []), foreman.explain(task.task_id), foreman.audit([task.task_id])]
    asked = foreman.explain(task.task_id).answers
    assert {(each.state, each.kind, each.group, each.commitment) for each in asked} == {("asked", None, 0, b"")}
    with pytest.raises(Problem):
        dispute(foreman, task.replicas[0].lease_id, tokens[:1])
    blob = b"\0".join(everything(*held))
    keys = [each for each in everything(*held) if len(each) == 32]
    for guess in guesses:
        commitment = result_commitment(guess)
        for trace in (commitment, hashlib.sha256(commitment).digest(), hashlib.sha256(frame_parts(guess)).digest()):
            assert trace not in blob
    for key in keys:
        for token in tokens:
            with pytest.raises(SealBroken):
                unseal(key, token)
        for each in shown:
            with pytest.raises(SealBroken):
                open_receipts(key, each.token, worker_id=each.worker_id)
    assert keys, "there were some to try"
    # Two that agree look as different as two that do not.
    assert len(set(tokens)) == len({each.token for each in shown}) == 2
    assert len({len(each.token) for each in shown}) == 1
    assert foreman.settle(shown, [task.task_id]).tasks[0].verdict == "accepted"


def test_attack_learning_a_small_result_by_settling_with_a_guess(scene: Scene) -> None:
    """The foreman makes a receipt that says "yes" and watches whether it is believed: it cannot make one at all."""
    foreman, worker = scene.foreman(), scene.worker()
    leased = foreman.lease()
    (ticket,) = worker.tickets(leased)
    deliver(worker, ticket, [b"yes"])
    for key in (leased.poll_key, leased.program_key, leased.tasks[0].input_key, bytes(32)):
        guess = worker.token([ticket.lease_id], result_commitment([b"yes"]), key=key)
        answer = foreman.settle([m.SealedReceipts(worker_id=worker.worker_id, token=guess)], [leased.tasks[0].task_id])
        assert (refusals(answer), answer.tasks[0].verdict) == ([0], "pending")
    assert foreman.state.escrow == 1


def test_attack_an_undecided_task_tells_no_commitment(scene: Scene) -> None:
    """Three answer differently and nobody is paid: no explanation says what any of them found."""
    foreman, workers = scene.foreman(), scene.workers(3)
    leased = foreman.lease(1, redundancy=3, quorum=3, max_replicas=3)
    (task,) = leased.tasks
    answers = [struct.pack("<32s", each) for each in (b"a", b"b", b"c")]
    shown = [w.receipts(of(w, leased), answer) for w, answer in zip(workers, answers, strict=True)]
    settled = foreman.settle(shown, [task.task_id])
    assert settled.tasks[0].verdict == "undecided"
    blob = b"\0".join(everything(settled, foreman.explain(task.task_id), foreman.audit([task.task_id])))
    assert not any(answer in blob for answer in answers)
    assert Kind.OK.value.encode() in blob, "it does tell how they ended"
