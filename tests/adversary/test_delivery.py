"""Who says what was delivered: workers with receipts for bytes that nobody has, and foremen that deny what arrived."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import redis

from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, digests_of, seal_receipts, tokens_digest
from ec262.protocol.sealing import seal
from tests.adversary.conftest import MakeScene
from tests.adversary.scene import PARTS, At, Delivery, Scene, deliver, dispute, of
from tests.parties import RIGHT, WRONG, Worker, refusals

BELIEVED: dict[str, Any] = {"confidence": 0.99, "max_replicas": 8}
Says = Callable[[Delivery], m.SealedReceipts]
"""What a foreman says of a delivery."""


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No spot checks: one believed worker's answer is enough."""
    monkeypatch.setattr("discovery.tasks.chance_of", lambda *_: 2**32 - 1)


def other_bytes(delivery: Delivery) -> m.SealedReceipts:
    """The receipts as an honest foreman shows them to whom other tokens were delivered than they name."""
    lease_id = delivery.receipt.lease_id
    return m.SealedReceipts(
        worker_id=delivery.shown.worker_id,
        token=delivery.shown.token,
        arrived={lease_id: tokens_digest(digests_of([os.urandom(90)]))},
    )


def nothing(delivery: Delivery) -> m.SealedReceipts:
    """The same of one that delivers nothing at all."""
    return m.SealedReceipts(worker_id=delivery.shown.worker_id, token=delivery.shown.token)


# --- a worker shows a receipt for bytes it never delivered ---------------------------------------


@pytest.mark.parametrize("policy", [BELIEVED, {"redundancy": 1, "quorum": 1}])
@pytest.mark.parametrize("delivered", [other_bytes, nothing, None])
@pytest.mark.usefixtures("unchecked")
def test_attack_a_worker_shows_a_receipt_for_bytes_it_never_delivered(
    scene: Scene, policy: dict[str, Any], delivered: Says | None
) -> None:
    """Its word alone would be enough to be paid. Without the bytes it is no answer, and others compute the task."""
    foreman, cheat = scene.foreman(), scene.worker(verified=500)
    leased = foreman.lease(3, **policy)
    tickets, tasks = cheat.tickets(leased), [task.task_id for task in leased.tasks]
    assert len(tickets) == 3
    honest = scene.worker(verified=500)
    deliveries = [deliver(cheat, ticket, tokens=[os.urandom(90)], commitment=WRONG) for ticket in tickets]
    if delivered is not None:
        answer = foreman.settle([delivered(each) for each in deliveries], tasks)
        assert refusals(answer) == [0, 1, 2]
        assert [each.leases for each in answer.refused_receipts] == [[ticket.lease_id] for ticket in tickets]
        assert all("foreman" in each.reason and "worker" in each.reason for each in answer.refused_receipts)
    else:
        cheat.heartbeat(*[each.shown.token for each in deliveries])
        assert {verdict.verdict for verdict in foreman.settle([], tasks).tasks} == {"pending"}
        answer = foreman.settle([], tasks, [ticket.lease_id for ticket in tickets])
    assert [(verdict.verdict, verdict.keys) for verdict in answer.tasks] == [("more", [])] * 3
    assert (cheat.caller.state.earned, scene.escrow()) == (0, 6)
    settled = foreman.settle([honest.receipts(of(honest, answer))], tasks)
    assert {(verdict.verdict, verdict.commitment) for verdict in settled.tasks} == {("accepted", RIGHT)}
    cheat.heartbeat(*[each.shown.token for each in deliveries])
    assert (cheat.caller.state.earned, honest.caller.state.earned, foreman.state.balance) == (0, 3, 97)
    # Its foreman's word gives it less work, in this job none; what it committed itself to is evidence.
    assert scene.name(cheat)["share"] == 2
    assert scene.name(honest)["doubts"] == 0
    assert scene.name(cheat)["doubts"] > 0


@pytest.mark.usefixtures("unchecked")
def test_attack_bytes_are_delivered_only_once_the_receipt_was_refused(scene: Scene) -> None:
    """It waits to see whether anybody looks. The first receipt stands, and its bytes count when they come."""
    foreman, worker = scene.foreman(), scene.worker(verified=500)
    leased = foreman.lease(1, **BELIEVED)
    (ticket,), tasks = worker.tickets(leased), [leased.tasks[0].task_id]
    first, second = deliver(worker, ticket), deliver(worker, ticket, [b"something", b"else"])
    assert refusals(foreman.settle([nothing(first)], tasks)) == [0]
    assert refusals(foreman.settle([second.shown], tasks)) == [0], "another receipt than the first does not count"
    settled = foreman.settle([first.shown], tasks)
    assert (settled.refused_receipts, settled.tasks[0].verdict) == ([], "accepted")
    assert settled.tasks[0].commitment == first.receipt.commitment


def test_attack_living_on_receipts_for_nothing(make_scene: MakeScene) -> None:
    """Nobody else is there to compute its tasks: the effort fee at most, up to a cap, for fewer leases each time."""
    scene = make_scene(min_timeout_s=0.0, ttl_s=1e6, late_grace_s=0.0, prefetch=4, starting_credits=1000)
    foreman, cheat = scene.foreman(), scene.worker(verified=500, slots=4)
    leases = []
    for number in range(5):
        foreman.job_id = f"{number:032x}"
        leased = foreman.lease(100, timeout_s=0.001, cpu_limit_s=120)
        shown = [nothing(deliver(cheat, ticket, tokens=[os.urandom(9)])) for ticket in cheat.tickets(leased)]
        foreman.settle(shown, [task.task_id for task in leased.tasks])
        again = foreman.lease(100)
        assert again.tasks == [], "nothing of a job that it delivered nothing of"
        scene.until_swept(cheat)
        leases.append(len(leased.tasks))
    assert leases == [16, 8, 4, 2, 1]
    assert cheat.caller.state.earned == 16 + 8 + 4 + 2 + 1, "half of the price, and in the first job no more than 16"
    newcomer = scene.worker()
    leased = foreman.lease(4, timeout_s=0.001, cpu_limit_s=120)
    foreman.settle([nothing(deliver(newcomer, ticket)) for ticket in newcomer.tickets(leased)], [])
    scene.until_swept(newcomer)
    assert newcomer.caller.state.earned == 0, "nor can a new name live on it"


def test_attack_showing_a_receipt_for_anothers_lease_as_if_it_had_arrived_otherwise(scene: Scene) -> None:
    """It hands its foreman bytes and a receipt for an honest worker's lease, so that the honest receipt looks wrong."""
    foreman, cheat, honest = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(2, redundancy=2, quorum=2)
    (mine, *_), tasks = of(honest, leased), [task.task_id for task in leased.tasks]
    forged = m.SealedReceipts(worker_id=cheat.worker_id, token=cheat.token([mine], WRONG), arrived={mine: bytes(32)})
    shown = [forged, cheat.receipts(of(cheat, leased)), honest.receipts(of(honest, leased))]
    settled = foreman.settle(shown, tasks)
    assert refusals(settled) == [0]
    assert {verdict.verdict for verdict in settled.tasks} == {"accepted"}
    assert (cheat.caller.state.earned, honest.caller.state.earned) == (2, 2)


# --- a foreman denies what arrived ---------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_attack_a_foreman_denies_what_arrived(scene: Scene) -> None:
    """It has the bytes, and wants them for nothing: no key, and once another says the same both are paid in full."""
    foreman, honest = scene.foreman(), scene.worker(verified=500)
    before = scene.name(honest)
    leased = foreman.lease(2, cpu_limit_s=240, **BELIEVED)
    tasks = [task.task_id for task in leased.tasks]
    deliveries = [deliver(honest, ticket) for ticket in honest.tickets(leased)]
    other = scene.worker(verified=500)
    answer = foreman.settle([other_bytes(each) for each in deliveries], tasks)
    assert [(verdict.verdict, verdict.keys) for verdict in answer.tasks] == [("more", [])] * 2
    computed = [deliver(other, ticket) for ticket in other.tickets(answer)]
    settled = foreman.settle([each.shown for each in computed], tasks)
    assert {verdict.verdict for verdict in settled.tasks} == {"accepted"}
    assert (honest.caller.state.earned, other.caller.state.earned, foreman.state.balance) == (8, 8, 84)
    after = scene.name(honest)
    assert (after["doubts"], after["words"], after["share"]) == (0, 0, 0), "and nothing is held against it"
    assert after["verified"] >= before["verified"]


@pytest.mark.parametrize("says", [other_bytes, nothing])
def test_attack_a_foreman_denies_what_arrived_and_walks_away(make_scene: MakeScene, says: Says) -> None:
    """It can read nothing, and owes the effort fee. A worker's name is not a foreman's to take."""
    scene = make_scene(min_timeout_s=0.0, ttl_s=1e6, late_grace_s=0.0)
    foreman, honest = scene.foreman(), scene.worker(verified=500)
    before = scene.name(honest)
    leased = foreman.lease(3, timeout_s=0.05, cpu_limit_s=240)
    tasks = [task.task_id for task in leased.tasks]
    denied = [says(deliver(honest, ticket)) for ticket in honest.tickets(leased)]
    for _ in range(2):
        answer = foreman.settle(denied, tasks)
        assert all((verdict.verdict, verdict.keys) == ("pending", []) for verdict in answer.tasks)
    scene.until_swept(honest)
    assert all(verdict.keys == [] for verdict in foreman.settle(denied, tasks).tasks)
    assert (honest.caller.state.earned, foreman.state.balance) == (6, 94)
    after = scene.name(honest)
    assert {**after, "share": before["share"]} == before
    assert after["share"] == 2, "it is given less work"
    # Until its next accepted answer, which any foreman may have.
    buyer = At(scene.discovery, account=scene.foreman().account)
    leased = buyer.lease(1)
    buyer.settle([honest.receipts(of(honest, leased))], [leased.tasks[0].task_id])
    assert scene.name(honest)["share"] == 0


def test_attack_a_foreman_denies_results_until_only_its_friends_are_left(scene: Scene) -> None:
    """It drives strangers out of its own job alone: others lease to them, and so does its next job."""
    foreman, other, worker = scene.foreman(), scene.foreman(), scene.worker(verified=50)
    leased = foreman.lease(1)
    foreman.settle([nothing(deliver(worker, worker.tickets(leased)[0]))], [])
    assert foreman.lease(1).tasks == []
    assert len(other.lease(1).tasks) == 1
    foreman.job_id = "f" * 32
    assert len(foreman.lease(1).tasks) == 1
    assert not scene.banned(worker)


# --- receipts without tokens ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.OK, Kind.ERROR, Kind.LIMIT])
@pytest.mark.parametrize("shown_by", ["foreman", "worker"])
@pytest.mark.usefixtures("unchecked")
def test_attack_a_receipt_without_tokens(scene: Scene, kind: Kind, shown_by: str) -> None:
    """It would fit a delivery of nothing, and no dispute could ever show what it names."""
    foreman, cheat = scene.foreman(), scene.worker(verified=500)
    leased = foreman.lease(1, **BELIEVED)
    (ticket,), tasks = cheat.tickets(leased), [leased.tasks[0].task_id]
    receipt = Receipt(ticket.lease_id, kind, RIGHT, [], 0.5)
    bundle = ReceiptBundle(cheat.worker_id, cheat.registered.epoch, [receipt])
    token = seal_receipts(cheat.registered.worker_key, bundle)
    if shown_by == "worker":
        cheat.heartbeat(token)
        answer = foreman.settle([], tasks)
    else:
        arrived = {ticket.lease_id: tokens_digest([])}
        answer = foreman.settle([m.SealedReceipts(worker_id=cheat.worker_id, token=token, arrived=arrived)], tasks)
        assert refusals(answer) == [0]
    assert (answer.tasks[0].verdict, answer.tasks[0].keys) == ("pending", [])
    record = scene.discovery.store.load(tasks)[1][tasks[0]]
    assert (record.replicas[0].state.value, record.replicas[0].kind) == ("open", None)


@pytest.mark.parametrize("receipts", ["junk", "none"])
def test_attack_a_result_without_a_receipt_that_anybody_can_read(scene: Scene, receipts: str) -> None:
    """Its foreman would wait for a verdict until the deadline. It says what came with it, and has another at once."""
    foreman, cheat, bystander = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(2, redundancy=1)
    (mine, *_), (theirs, *_) = of(cheat, leased), of(bystander, leased)
    token = cheat.token([]) if receipts == "none" else os.urandom(90)
    junk = m.SealedReceipts(worker_id=cheat.worker_id, token=token, arrived=dict.fromkeys((mine, theirs), bytes(32)))
    helper = scene.worker()
    answer = foreman.settle([junk], [task.task_id for task in leased.tasks])
    assert refusals(answer) == [0]
    verdicts = {verdict.task_id: verdict for verdict in answer.tasks}
    assert verdicts[mine.split(".")[0]].verdict == "more"
    assert verdicts[theirs.split(".")[0]].verdict == "pending", "nothing is said of another's lease"
    assert of(cheat, answer) == []
    foreman.settle([bystander.receipts([theirs]), helper.receipts(of(helper, answer))], list(verdicts))
    assert foreman.lease(1, redundancy=2).tasks != []
    assert foreman.lease(1, redundancy=3).tasks == [], "nor is it asked again in this job"
    cheat.heartbeat(cheat.token([mine], WRONG))
    assert (cheat.caller.state.earned, scene.name(cheat)["words"]) == (0, 0)


# --- disputes ------------------------------------------------------------------------------------


def test_attack_junk_for_a_foremans_last_credits(make_scene: MakeScene) -> None:
    """A broke foreman disputes junk: whoever sold it that would keep its credits, were it not heard."""
    scene = make_scene(starting_credits=2)
    foreman, cheat, honest = scene.foreman(), scene.worker(), scene.worker()
    leased = foreman.lease(2)
    lies = [deliver(cheat, ticket, tokens=[os.urandom(90)]) for ticket in cheat.tickets(leased)]
    true = [deliver(honest, ticket) for ticket in honest.tickets(leased)]
    foreman.settle([each.shown for each in (*lies, *true)], [task.task_id for task in leased.tasks])
    assert foreman.state.balance == 0
    assert [dispute(foreman, each.receipt.lease_id, each.tokens).verdict for each in true] == ["refused"] * len(true)
    assert (foreman.state.balance, scene.name(honest)["doubts"]) == (0, 0), "nobody lends it a fee"
    assert [dispute(foreman, each.receipt.lease_id, each.tokens).refund for each in lies] == [1] * len(lies)
    assert foreman.state.balance == len(lies) >= 1
    scene.discovery.sweep()
    assert (scene.banned(cheat), scene.banned(honest)) == (True, False)


def test_attack_disputing_for_nothing_with_an_empty_account(make_scene: MakeScene) -> None:
    """It has no fee to lose: it may ask once for each replica that it bought, and nobody is worse off."""
    scene = make_scene(starting_credits=3)
    foreman, worker = scene.foreman(), scene.worker()
    leased = foreman.lease(3)
    sold = [deliver(worker, ticket) for ticket in worker.tickets(leased)]
    foreman.settle([each.shown for each in sold], [task.task_id for task in leased.tasks])
    before = (scene.name(worker), worker.caller.state.balance)
    for _ in range(2):
        for each in sold:
            assert dispute(foreman, each.receipt.lease_id, each.tokens).verdict == "refused"
            assert dispute(foreman, each.receipt.lease_id, [seal(b"k" * 32, b"".join(PARTS))]).verdict == "refused"
    assert (scene.name(worker), worker.caller.state.balance) == before
    assert foreman.state.balance == 0


def test_what_is_known_of_a_job_is_forgotten_with_it(make_scene: MakeScene) -> None:
    """Else a foreman could fill the store with names."""
    scene = make_scene(kept_job_s=0.0)
    foreman, worker = scene.foreman(), scene.worker(verified=50)
    leased = foreman.lease(1)
    foreman.settle([nothing(deliver(worker, worker.tickets(leased)[0]))], [])
    store: redis.Redis = scene.redis
    assert store.keys("*:undelivered")
    for _ in range(2):
        scene.discovery.sweep()
    assert store.keys("*:undelivered") == []


def test_honest_workers_lose_nothing_by_showing_receipts_themselves(scene: Scene) -> None:
    """Heartbeat first, foreman after, and the other way round: the same pay as if it had kept still."""
    foreman, workers = scene.foreman(), scene.workers(2)
    leased = foreman.lease(4, redundancy=2, quorum=2)
    tasks = [task.task_id for task in leased.tasks]

    def settle(worker: Worker) -> m.Settled:
        return foreman.settle([worker.receipts(of(worker, leased))], tasks)

    workers[0].heartbeat(workers[0].token(of(workers[0], leased)))
    assert {verdict.verdict for verdict in settle(workers[1]).tasks} == {"pending"}
    assert {verdict.verdict for verdict in settle(workers[0]).tasks} == {"accepted"}
    workers[1].heartbeat(workers[1].token(of(workers[1], leased)))
    assert [worker.caller.state.earned for worker in workers] == [4, 4]
    assert all(scene.name(worker)["share"] == 0 for worker in workers)
