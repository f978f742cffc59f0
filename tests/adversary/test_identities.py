"""Identities as a weapon: names made by oneself, starting credits gathered, and what is another's read or used."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import pytest

from discovery.admission import invitation_id
from ec262.protocol import messages as m
from ec262.protocol.routes import routes_of
from tests.adversary.conftest import MakeScene
from tests.adversary.scene import HOME, At, Scene, attempted, dispute, of, send
from tests.parties import RIGHT, WRONG, Caller, Problem, Worker, answer_all

# --- minting reputation with own accounts --------------------------------------------------------


def run(foreman: At, workers: list[Worker], count: int, **policy: Any) -> int:
    """Has tasks computed by whoever gets them, all alike; returns how many were accepted."""
    answered: m.Leased | m.Settled = foreman.lease(count, **policy)
    opened, accepted = [task.task_id for task in answered.tasks], 0
    for _ in range(20):
        if not opened:
            break
        answered = foreman.settle(answer_all(answered, workers), opened)
        accepted += sum(verdict.verdict == "accepted" for verdict in answered.tasks)
        opened = [verdict.task_id for verdict in answered.tasks if verdict.verdict == "more"]
    return accepted


def test_attack_minting_reputation_with_workers_of_ones_own_account(make_scene: MakeScene) -> None:
    """In a private network they may serve it. It teaches nothing, whatever the policy."""
    scene = make_scene(network="private", distinct="none", starting_credits=10_000)
    owner = scene.foreman()
    own = [scene.worker(owner) for _ in range(6)]
    assert run(owner, own, 30, redundancy=3, quorum=3) == 30
    assert run(owner, own, 30, confidence=0.9, max_replicas=16) > 0
    assert [scene.name(worker)["verified"] for worker in own] == [0] * 6
    assert owner.state.balance == 10_000, "and it paid itself"


def test_attack_minting_reputation_with_many_accounts(make_scene: MakeScene) -> None:
    """A ring of accounts in different networks, all one person's: the name that one foreman can make has a cap, and a
    newcomer's word makes none. No credit comes of it.
    """
    scene = make_scene(starting_credits=0)
    ringleader, ring = scene.foreman(), scene.workers(6)
    scene.mint(ringleader, 3000)
    assert run(ringleader, ring, 30, redundancy=2, quorum=2) == 30
    assert [scene.name(worker)["verified"] for worker in ring] == [0] * 6, "two newcomers verify nobody"
    for _ in range(10):
        run(ringleader, ring, 40, redundancy=6, quorum=6)
    verified = [scene.name(worker)["verified"] for worker in ring]
    assert max(verified) == 20_000, "20 results: less than 0.995, and less than what 0.999 wants"
    total = ringleader.state.balance + sum(worker.caller.state.balance for worker in ring)
    assert total + scene.escrow() == 3000


def test_attack_minting_reputation_with_many_foremen_of_one_network(make_scene: MakeScene) -> None:
    """Where addresses count, all foremen of one network together have the one cap."""
    scene = make_scene(starting_credits=4000)
    ring = scene.workers(5)
    for number in range(3):
        foreman = scene.foreman(f"198.51.100.{number + 1}")
        for _ in range(5):
            run(foreman, ring, 40, redundancy=5, quorum=5)
    assert max(scene.name(worker)["verified"] for worker in ring) == 20_000


# --- farming starting credits --------------------------------------------------------------------


def test_attack_farming_starting_credits_by_sending_them_to_one_account(make_scene: MakeScene) -> None:
    """A gift may be spent, not sent: neither at once, nor after it was in escrow and came back."""
    scene = make_scene(starting_credits=12, ttl_s=1e6)
    hoard, puppets, worker = scene.foreman(), [scene.foreman() for _ in range(5)], scene.worker()
    for puppet in puppets:
        with pytest.raises(Problem, match="insufficient-credits"):
            send(puppet, hoard, 1)
        puppet.lease(12)
        scene.until_swept(worker)
        assert puppet.state.balance == 12
        with pytest.raises(Problem, match="insufficient-credits"):
            send(puppet, hoard, 1)
    assert hoard.state.balance == 12


def test_attack_farming_starting_credits_from_one_address(make_scene: MakeScene) -> None:
    scene = make_scene(starting_credits=12, address_accounts=6, address_grants=2)
    made, codes = [], []
    for _ in range(20):
        try:
            made.append(At(scene.discovery, HOME).account.balance)
        except Problem as problem:
            codes.append(problem.code)
    assert (made, set(codes)) == ([12, 12, 0, 0, 0, 0], {"too-many"})
    assert -scene.discovery.store.balances()[0]["mint"] == 24


def test_attack_farming_starting_credits_by_working_for_oneself(make_scene: MakeScene) -> None:
    """An account spends its gift on its own workers, so that it becomes pay, which can be sent: in a public network
    it is not served by them at all.
    """
    scene = make_scene(starting_credits=12)
    puppet = scene.foreman()
    own = [scene.worker(puppet) for _ in range(3)]
    assert puppet.lease(12).tasks == []
    assert puppet.lease(12, confidence=0.99).tasks == []
    assert all(worker.heartbeat().open_leases == [] for worker in own)
    assert (puppet.state.balance, puppet.state.earned) == (12, 0)


def farm(scene: Scene, count: int) -> list[tuple[At, Worker]]:
    """Accounts of one network, each with a worker that has what no worker of others has."""
    made = []
    for number in range(count):
        puppet = At(scene.discovery, f"198.51.100.{number + 1}")
        worker = Worker(puppet, capabilities=["data:nobody-elses"])
        made.append((puppet, worker))
    return made


def worth(scene: Scene, accounts: list[At]) -> int:
    """Credits that the accounts may send once all has vested."""
    scene.clock.move(int(scene.discovery.settings.settled_grace_s) + 20)
    scene.discovery.sweep()
    return sum(scene.discovery.store.books.holdings(each.account_id).transferable for each in accounts)


@pytest.mark.parametrize("policy", [{}, {"confidence": 0.9}], ids=["quorum", "confidence"])
def test_attack_farming_starting_credits_with_many_accounts_behind_one_address(
    make_scene: MakeScene, policy: dict[str, Any]
) -> None:
    """Each account buys nothing of any use from the others' workers, which nobody else may be asked for: so that gifts
    become pay, which can be sent. Neighbours do not serve each other for a gift.
    """
    scene = make_scene(starting_credits=12, ttl_s=1e6)
    puppets = farm(scene, 6)
    for puppet, _ in puppets:
        assert puppet.lease(12, capabilities=["data:nobody-elses"], **policy).tasks == []
    assert worth(scene, [puppet for puppet, _ in puppets]) == 0
    # A gift is good for the work of strangers, and once it is spent on that they may serve each other.
    (puppet, _), (_, neighbour) = puppets[:2]
    strangers = [scene.worker(verified=500, slots=64) for _ in range(8)]
    for _ in range(200):
        if not puppet.state.balance:
            break
        answer: m.Leased | m.Settled = puppet.lease(1, **policy)
        named = [task.task_id for task in answer.tasks]
        while any(of(worker, answer) for worker in strangers):  # a spot check asks for more of them
            assert of(neighbour, answer) == []
            answer = puppet.settle(answer_all(answer, strangers), named)
    assert (puppet.state.spent, puppet.state.balance) == (12, 0)
    scene.mint(puppet, 5)
    assert of(neighbour, puppet.lease(5, capabilities=["data:nobody-elses"], **policy))
    assert scene.foreman().lease(1, capabilities=["data:nobody-elses"]).tasks, "and they serve whoever is a stranger"


def test_attack_farming_by_hiding_the_gift_in_escrow(make_scene: MakeScene) -> None:
    """What it has beside its gift would buy from its neighbours while the gift is put away, and comes back unspent."""
    scene = make_scene(starting_credits=12, ttl_s=1e6)
    (puppet, _), (friend, neighbour) = farm(scene, 2)
    scene.worker(slots=64)
    scene.mint(puppet, 12)
    assert len(puppet.lease(12).tasks) == 12
    assert scene.discovery.store.books.holdings(puppet.account_id).gift == 0
    assert puppet.lease(12, capabilities=["data:nobody-elses"]).tasks == []
    assert neighbour.heartbeat().open_leases == []
    assert worth(scene, [puppet, friend]) == 12


def test_attack_farming_goes_on_after_a_conviction(make_scene: MakeScene) -> None:
    """Several accounts of one address, and one is convicted: its gift and its pay buy nothing any more, those who come
    after it get no more gifts than the address had left, and the others serve each other as little as before.
    """
    scene = make_scene(starting_credits=12, address_accounts=4, address_grants=2, ttl_s=1e6)
    victim, first, second = scene.foreman(), At(scene.discovery, HOME), At(scene.discovery, HOME)
    cheat = Worker(first, slots=64, capabilities=["data:nobody-elses"])
    scene.redis.hset(f"{{ec}}:worker:{cheat.worker_id}", "verified", 5_000_000)
    leased = victim.lease(9, confidence=0.99)
    victim.settle([cheat.receipts(of(cheat, leased), WRONG)], [task.task_id for task in leased.tasks])
    earned = first.state.earned
    assert earned > 0
    scene.discovery.store.accounts.ban(first.account_id, "evidence", "found out")
    scene.discovery.sweep()
    assert (first.state.earned, first.state.balance, victim.state.spent) == (0, 12, 0)
    refused: list[Callable[[], object]] = [lambda: first.lease(1), lambda: send(first, second, 1), cheat.register]
    assert [attempted(each) for each in refused] == ["banned"] * 3
    third = At(scene.discovery, HOME)
    assert third.state.balance == 0
    Worker(third, capabilities=["data:nobody-elses"])
    assert second.lease(12, capabilities=["data:nobody-elses"]).tasks == []
    assert worth(scene, [first, second, third]) == 0


def test_a_class_that_was_invited_may_serve_itself(make_scene: MakeScene) -> None:
    """The operator vouches for it, and knows how many they are."""
    scene = make_scene(starting_credits=12)
    scene.discovery.store.accounts.invite(invitation_id("a code"), 2, 600.0, "a class")
    pupils = [
        Caller(scene.discovery).call("POST", "/v1/accounts", m.AccountCreated, m.CreateAccount(invitation="a code"))
        for _ in range(2)
    ]
    Worker(Caller(scene.discovery, pupils[0]))
    assert len(At(scene.discovery, account=pupils[1]).lease(3).tasks) == 3


def test_attack_farming_with_a_worker_or_an_account_from_elsewhere(make_scene: MakeScene) -> None:
    """Where the worker is counts, and where its account was made."""
    scene = make_scene(starting_credits=12)
    puppet = At(scene.discovery, "198.51.100.1")
    abroad = At(scene.discovery, "192.0.2.9")
    Worker(At(scene.discovery, "198.51.100.77", account=abroad.account), capabilities=["data:nobody-elses"])
    home = At(scene.discovery, "198.51.100.3")
    Worker(At(scene.discovery, "192.0.2.10", account=home.account), capabilities=["data:nobody-elses"])
    assert puppet.lease(12, capabilities=["data:nobody-elses"]).tasks == []
    Worker(abroad, capabilities=["data:nobody-elses"])
    assert len(puppet.lease(1, capabilities=["data:nobody-elses"]).tasks) == 1, "what is not known to be one's own"


# --- what is another's ---------------------------------------------------------------------------


def test_attack_reading_another_accounts_balance(scene: Scene) -> None:
    """Every route that tells what an account has tells it to the account alone."""
    victim, thief = scene.foreman(), scene.foreman()
    scene.mint(victim, 4321)
    for path in ("/", "/v1/account", "/v1/account/ledger", "/v1/jobs", "/v1/credits", "/v1/leaderboard"):
        for query in ("", f"?account_id={victim.account_id}", f"?account={victim.account_id}"):
            answer = thief.raw("GET", path + query)
            assert b"4421" not in answer.data, path
            assert victim.account_id.encode() not in answer.data, path
    wrong = [
        f"{victim.account_id}:{thief.account.secret}", f"{victim.account_id}:", f":{victim.account.secret}",
        f"{victim.account_id}:{victim.account.secret[:-1]}", f"{victim.account_id.upper()}:{victim.account.secret}",
    ]  # fmt: skip
    for credentials in wrong:
        header = "Basic " + base64.b64encode(credentials.encode()).decode()
        for route in routes_of("discovery"):
            if route.auth == "account":
                path = route.path.replace("<worker_id>", "0" * 32).replace("<job_id>", "0" * 32)
                path = path.replace("<task_id>", "0" * 24)
                answer = thief.raw(route.method, path, b"{}", Authorization=header)
                assert answer.status_code == 401, (route.name, credentials)
    with pytest.raises(Problem):
        send(thief, victim, 1)
    assert (victim.state.balance, thief.state.balance) == (4421, 100)


def test_attack_reading_another_accounts_tasks_and_keys(scene: Scene) -> None:
    """The thief knows every id there is, uses the same job's id, and asks all routes that name tasks."""
    victim, thief, workers = scene.foreman(), scene.foreman(), scene.workers(2)
    opened, closed = victim.lease(2, key="the-victims-key"), victim.lease(1)
    receipts = answer_all(closed, workers)
    (verdict,) = victim.settle(receipts, [closed.tasks[0].task_id]).tasks
    secrets = {opened.program_key, opened.poll_key, *(task.input_key for task in (*opened.tasks, *closed.tasks))}
    secrets |= {key.result_key for key in verdict.keys}
    named = [task.task_id for task in (*opened.tasks, *closed.tasks)]
    leases = [replica.lease_id for task in (*opened.tasks, *closed.tasks) for replica in task.replicas]
    names = [scene.name(worker) for worker in workers]

    settled = thief.settle(receipts + answer_all(opened, workers, lambda worker: WRONG), named, leases, named)
    assert all((each.verdict, each.keys, each.commitment) == ("unknown", [], b"") for each in settled.tasks)
    audited = thief.audit(named, closing=True, heard=named)
    assert (audited.unknown, audited.recompute) == (named, [])
    for task_id in named:
        with pytest.raises(Problem) as refused:
            thief.explain(task_id)
        assert refused.value.code == "unknown-task"
    with pytest.raises(Problem) as refused:
        dispute(thief, leases[-1], [b"x" * 40])
    assert refused.value.code == "unknown-task"
    # The same idempotency key and the same inputs give leases of its own, with keys of its own; `again` gets nothing.
    mine = thief.lease(2, key="the-victims-key")
    assert {task.task_id for task in mine.tasks}.isdisjoint(named)
    digest = scene.discovery.store.load(named)[1][named[-1]].input_digest
    again = thief.lease(1, again=[(named[-1], digest)])
    keys = {mine.program_key, mine.poll_key, *(task.input_key for task in (*mine.tasks, *again.tasks))}
    assert keys.isdisjoint(secrets)
    # And nothing of the victim's was changed by it.
    assert (victim.state.balance, victim.state.escrow) == (97, 2)
    assert victim.settle([], [closed.tasks[0].task_id]).tasks == [verdict]
    assert {each.verdict for each in victim.settle([], named[:2]).tasks} == {"pending"}
    assert [scene.name(worker) for worker in workers] == names


def test_attack_reading_another_workers_key_and_leases(scene: Scene) -> None:
    """Under its id another would have its key: its tickets would open, and its pay would follow."""
    foreman, victim, thief = scene.foreman(), scene.worker(), scene.foreman()
    leased = foreman.lease(3)
    body = m.RegisterWorker(worker_id=victim.worker_id, boot_id=os.urandom(16).hex(), port=9, slots=99, python="3.11")
    with pytest.raises(Problem) as refused:
        thief.call("POST", "/v1/workers", m.WorkerRegistered, body)
    assert refused.value.code == "forbidden"
    for method, path, sent in (
        ("POST", f"/v1/workers/{victim.worker_id}/heartbeats", m.Heartbeat(boot_id=victim.boot_id)),
        ("DELETE", f"/v1/workers/{victim.worker_id}", None),
    ):
        with pytest.raises(Problem) as refused:
            thief.call(method, path, m.HeartbeatAnswer, sent)
        assert refused.value.code == "unknown-worker"
    own = Worker(thief)
    assert own.registered.worker_key != victim.registered.worker_key
    assert own.bundle(leased) is None
    assert len(victim.heartbeat().open_leases) == 3
    foreman.settle([victim.receipts(of(victim, leased), RIGHT)], [task.task_id for task in leased.tasks])
    assert victim.caller.state.earned == 3


def test_attack_reading_and_closing_another_accounts_jobs(scene: Scene) -> None:
    """A report under the id of another's job is a job of one's own."""
    victim, thief = scene.foreman(), scene.foreman()
    report = m.JobReport(name="secret name", state="running", phase="map")
    victim.call("PUT", f"/v1/jobs/{victim.job_id}", m.JobReported, report)
    assert thief.call("GET", "/v1/jobs", m.Jobs).jobs == []
    ended = m.JobReport(name="mine", state="failed", phase="")
    thief.call("PUT", f"/v1/jobs/{victim.job_id}", m.JobReported, ended)
    (job,) = victim.call("GET", "/v1/jobs", m.Jobs).jobs
    assert (job.name, job.state) == ("secret name", "running")
    assert [each.name for each in thief.call("GET", "/v1/jobs", m.Jobs).jobs] == ["mine"]


def test_attack_a_banned_account_goes_on_under_its_old_names(scene: Scene) -> None:
    """Its workers leave, its leases end, its foreman's escrow is its workers': and it reads nothing but its books."""
    foreman, banned = scene.foreman(), scene.worker()
    leased = foreman.lease(4)
    scene.discovery.store.accounts.ban(banned.caller.account.account_id, "evidence", "found out")
    scene.discovery.sweep()
    assert (foreman.state.balance, scene.escrow()) == (100, 0)
    foreman.settle([banned.receipts(of(banned, leased))], [task.task_id for task in leased.tasks])
    assert banned.caller.state.earned == 0
    for attempt in (banned.register, banned.heartbeat, lambda: send(banned.caller, foreman, 1)):
        with pytest.raises(Problem, match="banned"):
            attempt()
    fence = Caller(scene.discovery)
    stolen = Worker.__new__(Worker)
    stolen.caller, stolen.worker_id, stolen.boot_id = fence, banned.worker_id, banned.boot_id
    stolen.slots, stolen.port, stolen.capabilities = 1, 1, ()
    with pytest.raises(Problem, match="forbidden"):
        stolen.register()
