"""Settlement under attack: receipts forged and replayed; settled twice, at once, and over a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from discovery.app import Discovery, create_discovery
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind
from tests.adversary.conftest import MakeScene
from tests.adversary.scene import At, Scene, attempted, deliver, dispute, of, together
from tests.parties import RIGHT, WRONG, Foreman, Problem, Worker, answer_all, arrived, refusals

# --- forging and replaying receipts --------------------------------------------------------------


def shown(worker: Worker, leases: list[str], *tokens: bytes) -> list[m.SealedReceipts]:
    """As a foreman shows them that has the results of these leases."""
    return [m.SealedReceipts(worker_id=worker.worker_id, token=token, arrived=arrived(leases)) for token in tokens]


def test_attack_forging_receipts(scene: Scene) -> None:
    """By a foreman, by another worker, bit by bit: only who has the worker's key speaks for it."""
    foreman, owner, thief = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(8, redundancy=2, quorum=2)
    leases, decide = of(owner, leased), [task.task_id for task in leased.tasks]
    good = owner.token(leases)
    names = scene.name(owner), scene.name(thief)
    forged = [
        owner.token(leases, key=leased.poll_key),
        owner.token(leases, key=leased.program_key),
        owner.token(leases, key=leased.tasks[0].input_key),
        owner.token(leases, key=thief.registered.worker_key),
        thief.token(leases, worker_id=owner.worker_id),
        *[good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 7)],
        good[:-1], good + b"\0", b"", os.urandom(len(good)),
    ]  # fmt: skip
    answer = foreman.settle(shown(owner, leases, *forged), decide)
    assert refusals(answer) == list(range(len(forged)))
    assert all((verdict.verdict, verdict.keys) == ("pending", []) for verdict in answer.tasks)
    for token in forged[:8]:
        owner.heartbeat(token)
        thief.heartbeat(token)
    assert scene.escrow() == 16
    assert (scene.name(owner), scene.name(thief)) == names
    # After all that the true ones count.
    settled = foreman.settle(answer_all(leased, [owner, thief]), decide)
    assert {verdict.verdict for verdict in settled.tasks} == {"accepted"}
    assert (owner.caller.state.earned, thief.caller.state.earned) == (8, 8)


def test_attack_another_workers_name_on_a_receipt(scene: Scene) -> None:
    """A worker vouches for a lease that is another's: it is neither paid for it nor does it take the lease away."""
    foreman, owner, thief = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(2)
    mine = of(owner, leased)
    other = of(thief, leased)
    assert mine
    assert other
    answer = foreman.settle(shown(thief, mine, thief.token(mine, WRONG)), [task.task_id for task in leased.tasks])
    assert refusals(answer) == [0]
    thief.heartbeat(thief.token([*mine, *other], WRONG))
    settled = foreman.settle([owner.receipts(mine), thief.receipts(other)], [task.task_id for task in leased.tasks])
    assert {v.commitment for v in settled.tasks if v.task_id in mine[0]} == {RIGHT}
    assert (owner.caller.state.earned, thief.caller.state.earned) == (1, 1)


def test_attack_replaying_receipts(scene: Scene) -> None:
    """The same receipts in the same job, in another job, by another foreman, by heartbeat, in a later epoch."""
    foreman, stranger, worker = scene.foreman(), scene.foreman(), scene.worker()
    leased = foreman.lease(5)
    mine, decide = of(worker, leased), [task.task_id for task in leased.tasks]
    token = worker.token(mine)
    foreman.settle(shown(worker, mine, token), decide)
    books = (foreman.state.balance, worker.caller.state.balance, scene.name(worker))
    assert books[:2] == (95, 105)
    for _ in range(3):
        foreman.settle(shown(worker, mine, token, token), decide)
        stranger.settle(shown(worker, mine, token), decide)
        worker.heartbeat(token, token)
    elsewhere = At(scene.discovery, account=foreman.account)
    elsewhere.job_id = "f" * 32
    (first, *_) = elsewhere.settle(shown(worker, mine, token), decide).tasks
    assert (first.verdict, first.keys) == ("unknown", [])
    # The same input leased once more is another lease: the old receipt is not its.
    again = foreman.lease(5)
    replayed = foreman.settle(shown(worker, mine, token), [task.task_id for task in again.tasks])
    assert {verdict.verdict for verdict in replayed.tasks} == {"pending"}
    mine = of(worker, again)
    old = worker.token(mine)
    worker.boot_id = os.urandom(16).hex()
    worker.register()
    assert refusals(foreman.settle(shown(worker, mine, old), [])) == []
    worker.heartbeat(old)
    assert (foreman.state.balance, worker.caller.state.balance, scene.name(worker)) == books
    assert scene.escrow() == 0
    assert stranger.state.balance == 100


def test_attack_a_second_receipt_for_the_same_lease(scene: Scene) -> None:
    """A worker learns what others said and says something else: its first word stands."""
    foreman, worker, other = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(3, redundancy=2, quorum=2, max_replicas=2)
    decide = [task.task_id for task in leased.tasks]
    foreman.settle([worker.receipts(of(worker, leased), WRONG)], [])
    foreman.settle([worker.receipts(of(worker, leased), RIGHT)], [])
    worker.heartbeat(worker.token(of(worker, leased), RIGHT))
    worker.heartbeat(worker.token(of(worker, leased), RIGHT, Kind.REFUSED))
    settled = foreman.settle([other.receipts(of(other, leased), RIGHT)], decide)
    assert {verdict.verdict for verdict in settled.tasks} == {"undecided"}
    assert worker.caller.state.earned == 0
    assert (foreman.state.balance, scene.escrow()) == (100, 0)


# --- settling twice, concurrently, after a crash -------------------------------------------------


def test_attack_settling_twice(scene: Scene) -> None:
    """With the same receipts, with some of them, with none, under another policy's name: once is paid."""
    foreman, workers = scene.foreman(), scene.workers(2)
    leased = foreman.lease(6, redundancy=2, quorum=2)
    decide, receipts = [task.task_id for task in leased.tasks], answer_all(leased, workers)
    first = foreman.settle(receipts, decide)
    names = [scene.name(worker) for worker in workers]
    for some in (receipts, receipts[:1], [], receipts * 3):
        assert foreman.settle(some, decide * 2).tasks == first.tasks
    assert foreman.settle([], decide, [each for worker in workers for each in of(worker, leased)]).tasks == first.tasks
    assert [worker.caller.state.earned for worker in workers] == [6, 6]
    assert (foreman.state.balance, scene.escrow()) == (88, 0)
    assert [scene.name(worker) for worker in workers] == names, "nor does anybody learn twice"


def test_attack_settling_concurrently(make_scene: MakeScene) -> None:
    """Foremen, heartbeats, audits, disputes and the sweep at the same tasks at once, with answers that differ."""
    scene = make_scene(starting_credits=1000)
    foreman, workers = scene.foreman(), scene.workers(3, verified=50)
    leased = foreman.lease(30, redundancy=3, quorum=2)
    decide = [task.task_id for task in leased.tasks]
    liar = workers[2]
    receipts = answer_all(leased, workers, lambda worker: WRONG if worker is liar else RIGHT)

    def retried(work: Callable[[Foreman], object]) -> Callable[[], None]:
        def run() -> None:
            mine = At(scene.discovery, account=foreman.account)
            code = "conflict"
            while code == "conflict":
                code = attempted(lambda: work(mine))
            assert code in {"", "unknown-task"}

        return run

    works: list[Callable[[], object]] = [
        *[retried(lambda mine: mine.settle(receipts, decide))] * 3,
        retried(lambda mine: mine.settle(receipts[::-1], decide[::-1])),
        retried(lambda mine: mine.audit(decide, closing=True)),
        retried(lambda mine: dispute(mine, of(workers[0], leased)[0], [b"x" * 40])),
        *[lambda w=worker: w.heartbeat(w.token(of(w, leased))) for worker in workers[:2]],
        scene.discovery.sweep,
    ]
    together(works)
    answers = foreman.settle(receipts, decide).tasks
    assert {(verdict.verdict, verdict.commitment) for verdict in answers} == {("accepted", RIGHT)}
    assert all(liar.worker_id not in {key.worker_id for key in verdict.keys} for verdict in answers)
    assert [worker.caller.state.earned for worker in workers] == [30, 30, 0]
    assert (foreman.state.balance, scene.escrow()) == (940, 0)


@pytest.mark.parametrize("lost", ["before the step", "after the step"])
def test_attack_settling_after_a_crash(
    scene: Scene, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Discovery dies in the middle of a settlement. Started anew on the same store it gives the one answer there is."""
    foreman, workers = scene.foreman(), scene.workers(2)
    leased = foreman.lease(7, redundancy=2, quorum=2)
    decide, receipts = [task.task_id for task in leased.tasks], answer_all(leased, workers)
    commit = scene.discovery.store.commit

    def die(*arguments: object, **named: object) -> None:
        if lost == "after the step":
            commit(*arguments, **named)  # type: ignore[arg-type]
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(scene.discovery.store, "commit", die)
    with pytest.raises(Problem) as problem:
        foreman.settle(receipts, decide)
    assert problem.value.code == "unavailable"
    monkeypatch.undo()
    paid = 7 if lost == "after the step" else 0
    assert [worker.caller.state.earned for worker in workers] == [paid, paid]
    assert scene.escrow() == 14 - 2 * paid, "all of it happened, or nothing"

    second = create_discovery(scene.discovery.settings, redis_url, tmp_path)
    restarted = At(second, account=foreman.account)
    answer = restarted.settle(receipts, decide)
    assert {verdict.verdict for verdict in answer.tasks} == {"accepted"}
    keys = {key.lease_id: key.result_key for verdict in answer.tasks for key in verdict.keys}
    tickets = {ticket.lease_id: ticket.result_key for worker in workers for ticket in worker.tickets(leased)}
    assert keys == tickets, "and the keys are those that the results were sealed with"
    assert restarted.settle([], decide).tasks == answer.tasks
    assert [worker.caller.state.earned for worker in workers] == [7, 7]
    assert (foreman.state.balance, scene.escrow()) == (86, 0)
    second.store.close()


def test_attack_two_services_over_one_store_settle_one_task(scene: Scene, redis_url: str, tmp_path: Path) -> None:
    """One is asked to accept, the other to take more workers for it: one verdict, and one payment."""
    foreman, workers = scene.foreman(), scene.workers(4)
    leased = foreman.lease(12, redundancy=2, quorum=2)
    decide, receipts = [task.task_id for task in leased.tasks], answer_all(leased, workers)
    second: Discovery = create_discovery(scene.discovery.settings, redis_url, tmp_path)
    answers: list[m.Settled] = []

    def settle(discovery: Discovery) -> None:
        code = "conflict"
        while code == "conflict":
            code = attempted(lambda: answers.append(At(discovery, account=foreman.account).settle(receipts, decide)))
        assert code == ""

    together([lambda each=each: settle(each) for each in (scene.discovery, second) * 3])  # type: ignore[misc]
    assert len(answers) == 6
    assert all(answer.tasks == answers[0].tasks for answer in answers)
    assert sum(worker.caller.state.earned for worker in workers) == 24
    assert (foreman.state.balance, scene.escrow()) == (76, 0)
    second.store.close()


def test_attack_a_lease_request_repeated_over_a_crash(
    scene: Scene, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer with the keys got lost. Asked again the foreman has the same leases, and paid once."""
    foreman, worker = scene.foreman(), scene.worker()
    commit = scene.discovery.store.commit

    def die(*arguments: object, **named: object) -> None:
        commit(*arguments, **named)  # type: ignore[arg-type]
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(scene.discovery.store, "commit", die)
    with pytest.raises(Problem, match="unavailable"):
        foreman.lease(5, key="the-same-key")
    monkeypatch.undo()
    second = create_discovery(scene.discovery.settings, redis_url, tmp_path)
    leased = At(second, account=foreman.account).lease(5, key="the-same-key")
    assert sorted(worker.heartbeat().open_leases) == sorted(of(worker, leased))
    assert (foreman.state.balance, scene.escrow()) == (95, 5)
    second.store.close()


# --- copying another's answer --------------------------------------------------------------------


def test_attack_copying_anothers_answer(scene: Scene) -> None:
    """The foreman's accomplice gets all that an honest worker sent, and hands it in as its own."""
    foreman, honest, copier = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(1, redundancy=2, quorum=2, max_replicas=2)
    (theirs,), (mine,) = honest.tickets(leased), copier.tickets(leased)
    original = deliver(honest, theirs)
    # It can show the sealed receipt as its own; or commit to what it sees, the sealed bytes, of which it knows nothing.
    copied = m.SealedReceipts(worker_id=copier.worker_id, token=original.shown.token)
    assert refusals(foreman.settle([copied], [])) == [0]
    blind = deliver(copier, mine, tokens=original.tokens, commitment=original.receipt.token_digests[0])
    settled = foreman.settle([blind.shown, original.shown], [leased.tasks[0].task_id])
    assert (settled.tasks[0].verdict, settled.tasks[0].keys) == ("undecided", [])
    assert copier.caller.state.earned == 0
    assert scene.name(honest)["doubts"] == 0
