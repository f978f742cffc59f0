"""Admission: what identities cost. Limits, invitations, bans and auditors, against those who want many identities."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import redis

from discovery.addresses import caller_of, neighbourhood, origins
from discovery.admission import invitation_id, new_invitation
from discovery.app import Discovery
from discovery.settings import PUBLIC_LIMITS, settings_for
from discovery.store.answers import NotAdmitted
from ec262.cli import main
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import ProblemError
from ec262.protocol import messages as m
from ec262.protocol.routes import routes_of
from ec262.serving import Server
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Problem, Worker, answer_all

HOME = "198.51.100.7"


class Visitor(Caller):
    """An account of somebody at an address; several of one address are several people, or one."""

    def __init__(
        self, discovery: Discovery, address: str = HOME, invitation: str = "", account: m.AccountCreated | None = None
    ) -> None:
        self.discovery = discovery
        self._client = discovery.app.test_client()
        self._client.environ_base["REMOTE_ADDR"] = address
        body = m.CreateAccount(invitation=invitation)
        self.account = account or self.call("POST", "/v1/accounts", m.AccountCreated, body)


class Buyer(Visitor, Foreman):
    """One that buys work."""


def refused(discovery: Discovery, address: str = HOME, invitation: str = "") -> str:
    """The code with which an account is refused."""
    before = discovery.store.balances()
    with pytest.raises(Problem) as caught:
        Visitor(discovery, address, invitation)
    assert discovery.store.balances() == before, "and nothing was minted"
    return caught.value.code


def invite(discovery: Discovery, uses: int = 1, valid_s: float = 60.0) -> str:
    code = new_invitation()
    discovery.store.accounts.invite(invitation_id(code), uses, valid_s, "")
    return code


# --- who makes accounts ---------------------------------------------------------------------------


def test_open_invite_closed(make_discovery: MakeDiscovery) -> None:
    assert Visitor(make_discovery(registration="open")).state.balance > 0
    by_invitation = make_discovery(registration="invite")
    assert refused(by_invitation) == "invitation-refused"
    assert Visitor(by_invitation, invitation=invite(by_invitation)).state.balance > 0
    closed = make_discovery(registration="closed")
    assert refused(closed) == "registration-closed"
    assert refused(closed, invitation=invite(closed)) == "registration-closed"


def test_attack_invitation_reused(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(registration="invite")
    once, thrice = invite(discovery), invite(discovery, uses=3)
    Visitor(discovery, invitation=once)
    assert refused(discovery, invitation=once) == "invitation-refused"
    for address in ("192.0.2.1", "192.0.2.1", "203.0.113.5"):
        Visitor(discovery, address, thrice)
    assert refused(discovery, invitation=thrice) == "invitation-refused"
    assert discovery.store.accounts.invitations() == [], "used up: nothing is kept of them"


def test_attack_invitation_used_by_many_at_the_same_time(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(registration="invite")
    code = invite(discovery, uses=3)
    got: list[str] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        try:
            Visitor(discovery, invitation=code)
            got.append("ok")
        except Problem as problem:
            got.append(problem.code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["invitation-refused"] * 5 + ["ok"] * 3


@pytest.mark.parametrize(
    "guess",
    ["", "0", "a" * 32, "a" * 64, "*", "../x", "x\x00y", "\ud800", "{ec}:invitation:", " ", "é" * 64],
    ids=ascii,
)
def test_attack_invitation_guessed(make_discovery: MakeDiscovery, redis_url: str, guess: str) -> None:
    discovery = make_discovery(registration="invite")
    code = invite(discovery, uses=5)
    client = redis.Redis.from_url(redis_url)
    before = {key: client.dump(key) for key in client.scan_iter()}
    body = msgspec.json.encode({"invitation": guess}) if "\ud800" not in guess else b'{"invitation": "\\ud800"}'
    caller = object.__new__(Caller)
    caller._client = discovery.app.test_client()
    response = caller.raw("POST", "/v1/accounts", body)
    assert response.status_code in (400, 403)
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    # What is stored is a hash of the code: of no use to who reads the store.
    stored = invitation_id(code)
    assert [each.invitation_id for each in discovery.store.accounts.invitations()] == [stored]
    assert refused(discovery, invitation=stored) == "invitation-refused"
    client.close()


def test_attack_invitation_expired_or_revoked(make_discovery: MakeDiscovery, redis_url: str) -> None:
    discovery = make_discovery(registration="invite")
    short, revoked, good = invite(discovery, valid_s=0.05), invite(discovery), invite(discovery)
    discovery.store.accounts.revoke(invitation_id(revoked))
    time.sleep(0.06)
    assert refused(discovery, invitation=short) == "invitation-refused"
    assert refused(discovery, invitation=revoked) == "invitation-refused"
    assert [each.left for each in discovery.store.accounts.invitations()] == [1]
    client = redis.Redis.from_url(redis_url)
    assert len(list(client.scan_iter("{ec}:invitation:*"))) == 1, "expired ones are forgotten"
    client.close()
    Visitor(discovery, invitation=good)


# --- limits of an address -------------------------------------------------------------------------


def test_attack_farming_starting_credits(make_discovery: MakeDiscovery) -> None:
    """Who makes account after account from an address gets little of the mint, however often it asks."""
    discovery = make_discovery(starting_credits=12, address_accounts=10, address_grants=2)
    made = [Visitor(discovery) for _ in range(10)]
    for _ in range(20):
        assert refused(discovery) == "too-many"
    assert [visitor.account.balance for visitor in made] == [12, 12] + [0] * 8
    assert [visitor.state.balance for visitor in made] == [12, 12] + [0] * 8
    assert -discovery.store.balances()[0]["mint"] == 24
    # Nor can what was given be put together in one account.
    for visitor in made[:2]:
        body = m.Transfer(to=made[2].account.account_id, amount=1, idempotency_key=os.urandom(8).hex())
        with pytest.raises(Problem, match="insufficient-credits"):
            visitor.call("POST", "/v1/transfers", m.Transferred, body)
    assert Visitor(discovery, "203.0.113.9").state.balance == 12, "others are not concerned"


@pytest.mark.parametrize(
    ("addresses", "accounts", "granted"),
    [
        ([f"198.51.100.{n}" for n in range(100)], 8, 4),  # one /24: four times an address' share
        ([f"198.51.{n}.1" for n in range(20)], 20, 20),
        ([f"2001:db8:1:2::{n:x}" for n in range(100)], 2, 1),  # one /64 is one address
        ([f"2001:db8:1:{n:x}::1" for n in range(100)], 8, 4),  # one /48
        ([f"::ffff:198.51.100.{n % 2}" for n in range(100)], 4, 2),  # IPv4 in IPv6's clothes
    ],
)
def test_attack_farming_from_many_addresses_of_one_network(
    make_discovery: MakeDiscovery, addresses: Sequence[str], accounts: int, granted: int
) -> None:
    discovery = make_discovery(starting_credits=5, address_accounts=2, address_grants=1)
    balances, codes = [], set()
    for address in addresses:
        try:
            balances.append(Visitor(discovery, address).account.balance)
        except Problem as problem:
            codes.add(problem.code)
    assert codes <= {"too-many"}
    assert (len(balances), sum(balances)) == (accounts, 5 * granted)


def test_attack_farming_by_many_requests_at_the_same_time(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(starting_credits=5, address_accounts=3, address_grants=1)
    got: list[int] = []
    start = threading.Barrier(12)

    def ask() -> None:
        start.wait()
        try:
            got.append(Visitor(discovery).account.balance)
        except Problem:
            got.append(-1)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [-1] * 9 + [0, 0, 5]


def test_counts_of_a_day_are_forgotten(make_discovery: MakeDiscovery, redis_url: str) -> None:
    discovery = make_discovery(address_accounts=3)
    Visitor(discovery)
    client = redis.Redis.from_url(redis_url)
    counters = list(client.scan_iter("{ec}:made:*"))
    assert len(counters) == 2
    assert all(f":{int(time.time() // 86400)}:".encode() in key for key in counters)
    assert all(0 < client.ttl(key) <= 172_800 for key in counters)
    client.close()


def test_an_invitation_lifts_the_limits_of_an_address(make_discovery: MakeDiscovery) -> None:
    """A class behind one address has one invitation."""
    discovery = make_discovery(registration="open", starting_credits=5, address_accounts=1, address_grants=1)
    code = invite(discovery, uses=20)
    assert [Visitor(discovery, invitation=code).account.balance for _ in range(20)] == [5] * 20
    assert Visitor(discovery).account.balance == 5, "nor do they count as made there"


def test_where_accounts_are_open_an_invitation_that_is_none_lifts_nothing(make_discovery: MakeDiscovery) -> None:
    """The code in somebody's environment may be another service's."""
    discovery = make_discovery(registration="open", address_accounts=2)
    assert [Visitor(discovery, invitation="another's").state.balance > 0 for _ in range(2)] == [True, True]
    assert refused(discovery, invitation="another's") == "too-many"


def test_networks_and_their_defaults() -> None:
    assert {name: getattr(settings_for("private"), name) for name in PUBLIC_LIMITS} == dict.fromkeys(PUBLIC_LIMITS, 0)
    public = settings_for("public", address_grants=None, account_workers=5)
    assert (public.address_accounts, public.address_grants, public.account_workers) == (10, 2, 5)


# --- where a request comes from -------------------------------------------------------------------


def test_attack_spoofed_address_headers_are_ignored(make_discovery: MakeDiscovery) -> None:
    """Over a real connection: an address is what the connection comes from, whatever headers say."""
    discovery = make_discovery(address_accounts=2)
    with Server(discovery.app) as server, DiscoveryClient(server.url, retry_for_s=0.0) as client:
        codes = []
        for number in range(6):
            spoofed = f"203.0.{number}.1"
            client._authorization = {}
            connection = client._connect()
            answer = connection.request(
                "POST",
                "/v1/accounts",
                body=b"{}",
                headers={
                    "Content-Type": "application/json",
                    "X-Forwarded-For": spoofed,
                    "Forwarded": f"for={spoofed}",
                    "X-Real-IP": spoofed,
                    "CF-Connecting-IP": spoofed,
                    "True-Client-IP": spoofed,
                    "Remote-Addr": spoofed,
                    "Remote_Addr": spoofed,
                },
            )
            answer.read()
            codes.append(answer.status_code)
            connection.close()
        assert codes == [200, 200, 429, 429, 429, 429]


def test_attack_a_worker_does_not_choose_its_address(discovery: Discovery) -> None:
    visitor = Visitor(discovery)
    worker = Worker(visitor)
    body = m.RegisterWorker(worker_id=worker.worker_id, boot_id=worker.boot_id, port=1, slots=1, python="3.11")
    response = visitor.raw("POST", "/v1/workers", m.encode(body), **{"X-Forwarded-For": "203.0.113.1"})
    assert response.status_code == 200
    assert discovery.store.workers([worker.worker_id])[worker.worker_id].address == HOME


PROXY, OTHER_PROXY = "10.0.0.1", "10.0.0.2"


@pytest.mark.parametrize(
    ("peer", "forwarded", "comes_from"),
    [
        (HOME, [], HOME),
        (HOME, ["203.0.113.1"], HOME),  # no proxy of ours
        (PROXY, [], PROXY),
        (PROXY, [HOME], HOME),
        (PROXY, [f"203.0.113.1, {HOME}"], HOME),  # what stands before is the caller's invention
        (PROXY, ["203.0.113.1", HOME], HOME),
        (PROXY, [f"203.0.113.1, {HOME}, {OTHER_PROXY}"], HOME),  # two proxies of ours
        (PROXY, [f"{PROXY}, {PROXY}"], PROXY),
        (PROXY, ["nonsense"], PROXY),
        (PROXY, ["203.0.113.1, "], PROXY),
        (PROXY, [f"{HOME}, unknown"], PROXY),
        (f"::ffff:{PROXY}", [f"::ffff:{HOME}"], HOME),
    ],
)
def test_only_a_believed_proxy_says_whom_it_speaks_for(peer: str, forwarded: list[str], comes_from: str) -> None:
    assert caller_of(peer, forwarded, (PROXY, OTHER_PROXY)) == comes_from


def test_behind_a_proxy_limits_count_its_callers(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(address_accounts=1, proxies=(PROXY,))
    client = discovery.app.test_client()
    client.environ_base["REMOTE_ADDR"] = PROXY
    codes = [
        client.post("/v1/accounts", json={}, headers={"X-Forwarded-For": f"192.0.2.{n}, 203.0.{n // 2}.1"}).status_code
        for n in range(6)
    ]
    assert codes == [200, 429] * 3


def test_origins() -> None:
    assert origins("198.51.100.7")[0] != origins("198.51.100.8")[0]
    assert origins("198.51.100.7")[1] == origins("::ffff:198.51.100.8")[1] == neighbourhood("198.51.100.1")
    assert origins("2001:db8:1:2::7")[0] == origins("2001:db8:1:2::8")[0] != origins("2001:db8:1:3::8")[0]
    assert origins("2001:db8:1:2::7")[1] == origins("2001:db8:1:3::8")[1] != origins("2001:db8:2:3::8")[1]


# --- how many workers -----------------------------------------------------------------------------


def test_attack_sybil_registrations_from_one_address(make_discovery: MakeDiscovery) -> None:
    """Many accounts, one neighbourhood: it has so many workers and no more, whoever they belong to."""
    discovery = make_discovery(neighbourhood_workers=3, ttl_s=0.2)
    workers = [Worker(Visitor(discovery, f"198.51.100.{n}")) for n in range(3)]
    for n in range(4, 8):
        with pytest.raises(Problem, match="too-many"):
            Worker(Visitor(discovery, f"198.51.100.{n}"))
    assert discovery.store.workers_alive() == 3
    Worker(Visitor(discovery, "203.0.113.1"))
    workers[0].register()  # coming back is no further worker
    workers[1].caller.raw("DELETE", f"/v1/workers/{workers[1].worker_id}")
    Worker(workers[2].caller)
    with pytest.raises(Problem, match="too-many"):
        workers[1].register()
    time.sleep(0.25)
    discovery.sweep()
    for n in range(3):
        Worker(Visitor(discovery, f"198.51.100.{n}"))  # those that went silent count no more


def test_a_worker_that_moves_counts_where_it_is(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(neighbourhood_workers=1)
    owner = Visitor(discovery)
    worker = Worker(owner)
    owner._client.environ_base["REMOTE_ADDR"] = "203.0.113.1"
    worker.register()
    Worker(Visitor(discovery))
    with pytest.raises(Problem, match="too-many"):
        Worker(Visitor(discovery, "203.0.113.2"))


def test_attack_one_account_with_any_number_of_workers(make_discovery: MakeDiscovery, redis_url: str) -> None:
    """Neither at a time nor one after the other: every id is remembered, because keys follow from it."""
    discovery = make_discovery(account_workers=2)
    owner = Visitor(discovery)
    first, second = Worker(owner), Worker(owner)
    with pytest.raises(Problem, match="too-many"):
        Worker(owner)
    for _ in range(30):  # 16 ids for each worker it may have
        owner.raw("DELETE", f"/v1/workers/{second.worker_id}")
        second = Worker(owner)
    owner.raw("DELETE", f"/v1/workers/{second.worker_id}")
    with pytest.raises(Problem, match="fixed port"):
        Worker(owner)
    client = redis.Redis.from_url(redis_url)
    assert client.scard(f"{{ec}}:account:{owner.account.account_id}:workers") == 32
    client.close()
    first.register()
    second.register()  # with ids it had before it goes on
    assert owner.state.workers == 2


# --- bans -----------------------------------------------------------------------------------------


def banned_pair(discovery: Discovery) -> tuple[Buyer, Buyer, Worker]:
    """A foreman, and an account with a worker that holds two of its leases when the account is banned."""
    foreman, bad = Buyer(discovery), Buyer(discovery, "203.0.113.1")
    worker = Worker(bad)
    assert len(foreman.lease(2).tasks) == 2
    assert discovery.store.accounts.ban(bad.account.account_id, "operator", "sells junk")
    return foreman, bad, worker


def test_a_ban_takes_workers_out_of_the_pool_and_ends_their_leases(discovery: Discovery, redis_url: str) -> None:
    foreman, _, worker = banned_pair(discovery)
    assert foreman.lease().network.workers == 0, "in the step that banned it"
    assert discovery.store.workers([worker.worker_id])[worker.worker_id].banned
    assert foreman.state.escrow == 2
    discovery.sweep()
    assert foreman.state.escrow == 0, "what it held goes back, and others may have it"
    client = redis.Redis.from_url(redis_url)
    for pattern in ("{ec}:pool:*", "{ec}:class:*", "{ec}:near:*", "{ec}:ending", "{ec}:worker:*:leases"):
        assert list(client.scan_iter(pattern)) == []
    client.close()


def test_attack_an_accomplice_commits_leases_to_a_banned_worker(discovery: Discovery) -> None:
    """A lease that was decided before the ban is not committed after it."""
    foreman, other = Buyer(discovery), Buyer(discovery, "203.0.113.1")
    worker = Worker(other)
    sample = discovery.store.sample_for

    def ban_in_between(*arguments: object, **named: object) -> object:
        drawn = sample(*arguments, **named)  # type: ignore[arg-type]
        discovery.store.accounts.ban(other.account.account_id, "evidence", "lied")
        return drawn

    discovery.store.sample_for = ban_in_between  # type: ignore[method-assign, assignment]
    assert foreman.lease().tasks == []
    assert discovery.store.workers([worker.worker_id])[worker.worker_id].used == 0
    assert foreman.state.escrow == 0


def test_a_banned_account_can_read_its_books_and_nothing_else(discovery: Discovery) -> None:
    _, bad, _ = banned_pair(discovery)
    for route in routes_of("discovery"):
        if route.auth != "account":
            continue
        path = (
            route.path.replace("<worker_id>", "ab" * 16).replace("<job_id>", "ab" * 16).replace("<task_id>", "a" * 24)
        )
        response = bad.raw(route.method, path, b"{}" if route.request else None)
        if route.banned_too:
            assert response.status_code == 200
        else:
            assert (response.status_code, "banned" in route.problems) == (403, True), route.name
            problem = m.decode(m.Problem, response.data)
            assert (problem.code, "operator: sells junk" in problem.detail) == ("banned", True)
    assert {route.name for route in routes_of("discovery") if route.banned_too} == {"account", "statement"}
    assert bad.state.banned == "operator: sells junk"
    thief = Visitor(discovery, account=m.AccountCreated(account_id=bad.account.account_id, secret="x", balance=0))
    assert thief.raw("GET", "/v1/account").status_code == 401


def test_attack_a_banned_account_returns_under_the_same_worker_id(discovery: Discovery) -> None:
    foreman, bad, worker = banned_pair(discovery)
    for boot_id in (worker.boot_id, os.urandom(16).hex()):
        worker.boot_id = boot_id
        with pytest.raises(Problem, match="banned"):
            worker.register()
        with pytest.raises(Problem, match="banned"):
            worker.heartbeat()
    with pytest.raises(Problem, match="banned"):
        Worker(bad)  # under a new id
    helper = Visitor(discovery, "203.0.113.2")  # a new account, the old worker with its record
    with pytest.raises(Problem, match="forbidden"):
        Worker(helper, worker_id=worker.worker_id)
    with pytest.raises(NotAdmitted, match="banned"):  # the store says the same if the view does not ask
        discovery.store.register(
            worker_id=worker.worker_id, account_id=bad.account.account_id, address=HOME, port=1, slots=1, capacity=1,
            boot_id="ab" * 8, worker_class="native/3.11", ttl_ms=1000, layers=[],
        )  # fmt: skip
    assert foreman.lease().network.workers == 0


def test_a_ban_ends_and_the_worker_comes_back_with_its_record(discovery: Discovery, redis_url: str) -> None:
    foreman, bad, worker = banned_pair(discovery)
    discovery.sweep()
    client = redis.Redis.from_url(redis_url)
    client.hset(f"{{ec}}:worker:{worker.worker_id}", "verified", 7000)
    client.close()
    assert discovery.store.accounts.unban(bad.account.account_id, "operator")
    worker.register()
    assert len(foreman.lease().tasks) == 1
    record = discovery.store.workers([worker.worker_id])[worker.worker_id]
    assert (record.banned, record.verified, bad.state.banned) == (False, 7000, "")
    assert discovery.store.accounts.marked("banned") == []


def test_evidence_does_not_undo_what_an_operator_said(discovery: Discovery) -> None:
    accounts, account_id = discovery.store.accounts, Visitor(discovery).account.account_id
    assert not accounts.ban("ab" * 16, "operator", "nobody")
    assert accounts.ban(account_id, "evidence", "lied")
    assert not accounts.ban(account_id, "evidence", "lied again")
    assert accounts.ban(account_id, "operator", "lied")
    assert not accounts.ban(account_id, "evidence", "lied again")
    assert not accounts.unban(account_id, "evidence")
    assert accounts.record(account_id).banned == "operator: lied"
    assert accounts.unban(account_id, "operator")
    assert not accounts.unban(account_id, "operator")
    assert accounts.ban(account_id, "evidence", "lied")
    assert accounts.unban(account_id, "evidence")


def test_a_banned_foreman_leases_and_settles_no_more_and_its_workers_are_not_robbed(discovery: Discovery) -> None:
    foreman = Buyer(discovery)
    workers = [Worker(Visitor(discovery, f"203.0.{n}.1")) for n in range(2)]
    leased = foreman.lease(2)
    discovery.store.accounts.ban(foreman.account.account_id, "operator", "frames others")
    with pytest.raises(Problem, match="banned"):
        foreman.lease()
    with pytest.raises(Problem, match="banned"):
        foreman.settle(answer_all(leased, workers), [task.task_id for task in leased.tasks])
    assert foreman.state.escrow == 2, "what it promised stays promised until it falls due"
    body = m.Transfer(to=workers[0].caller.account.account_id, amount=1, idempotency_key="a" * 16)
    with pytest.raises(Problem, match="banned"):
        foreman.call("POST", "/v1/transfers", m.Transferred, body)


# --- auditors -------------------------------------------------------------------------------------


def test_only_the_operator_makes_auditors(discovery: Discovery) -> None:
    owner = Visitor(discovery)
    before = Worker(owner)
    assert discovery.store.accounts.mark_auditor(owner.account.account_id, True)
    assert not discovery.store.accounts.mark_auditor(owner.account.account_id, True)
    after = Worker(owner)
    stranger = Worker(Visitor(discovery))
    sample = discovery.store.sample("native/3.11", [], 10)
    assert {each.worker_id for each in sample.workers if each.auditor} == {before.worker_id, after.worker_id}
    assert (owner.state.auditor, stranger.caller.state.auditor) == (True, False)
    assert discovery.store.accounts.mark_auditor(owner.account.account_id, False)
    assert not any(each.auditor for each in discovery.store.sample("native/3.11", [], 10).workers)
    body = msgspec.json.encode({"name": "x", "auditor": True, "banned": "", "account": {"auditor": 1}})
    assert stranger.caller.raw("PUT", "/v1/account/name", body).status_code == 200
    assert not stranger.caller.state.auditor


# --- the leaderboard ------------------------------------------------------------------------------


def test_the_leaderboard_shows_who_wants_to_be_seen(discovery: Discovery) -> None:
    foreman, loud, quiet, bad = (Buyer(discovery, f"203.0.{n}.1") for n in range(4))
    workers = [Worker(each) for each in (loud, quiet, bad)]
    for visitor, name in ((loud, "Ada"), (bad, "Mallory"), (foreman, "Boss")):
        visitor.call("PUT", "/v1/account/name", m.AccountState, m.ShowAccount(name=name))
    leased = foreman.lease(30)
    foreman.settle(answer_all(leased, workers), [task.task_id for task in leased.tasks])
    discovery.store.accounts.ban(bad.account.account_id, "operator", "lied")
    board = m.decode(m.Leaderboard, foreman.raw("GET", "/v1/leaderboard").data)
    assert [(each.rank, each.name, each.earned, each.workers) for each in board.leaders] == [
        (1, "Ada", loud.state.earned, 1),
        (2, "Boss", 0, 0),
    ]
    assert loud.state.earned > 0
    assert board.accounts == 2
    assert quiet.account.account_id not in str(board)
    assert all(
        each.tag == account.account.account_id[:6] for each, account in zip(board.leaders, (loud, foreman), strict=True)
    )


def test_the_leaderboard_is_made_once_a_minute_and_forgets_who_withdraws(make_discovery: MakeDiscovery) -> None:
    discovery, other = make_discovery(), make_discovery()
    visitor = Visitor(discovery)
    visitor.call("PUT", "/v1/account/name", m.AccountState, m.ShowAccount(name="Ada"))
    first = visitor.raw("GET", "/v1/leaderboard").data
    assert visitor.call("PUT", "/v1/account/name", m.AccountState, m.ShowAccount(name="")).shown == ""
    assert visitor.raw("GET", "/v1/leaderboard").data == first
    assert other.app.test_client().get("/v1/leaderboard").data == first, "of all processes together"
    assert discovery.store.accounts.shown() == []


@pytest.mark.parametrize("odd", ["a\nb", "a\x1b[31m", "a\u202eb", "\u200b", "x" * 33, "a\x00", "\t"], ids=ascii)
def test_attack_names_that_a_terminal_would_act_on(discovery: Discovery, odd: str) -> None:
    visitor = Visitor(discovery)
    with pytest.raises(Problem, match="malformed-body"):
        visitor.call("PUT", "/v1/account/name", m.AccountState, m.ShowAccount(name=odd))
    assert discovery.store.accounts.shown() == []


# --- commands -------------------------------------------------------------------------------------


def test_an_operator_invites_and_a_user_joins(
    make_discovery: MakeDiscovery,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    discovery = make_discovery(registration="invite")
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "home"))
    for name in ("EC262_INVITATION", "EC262_ACCOUNT", "EC262_SECRET"):
        monkeypatch.delenv(name, raising=False)
    assert main(["operator", "invite", "--uses", "2", "--note", "course", "--redis", redis_url]) == 0
    code = capsys.readouterr().out.strip()
    assert main(["operator", "invitations", "--redis", redis_url]) == 0
    listed = capsys.readouterr().out
    assert "2 left" in listed
    assert "course" in listed
    assert code not in listed
    with Server(discovery.app) as server:
        assert main(["account", "create", "--discovery", server.url]) == 1
        assert "by invitation" in capsys.readouterr().err
        assert main(["account", "create", "--discovery", server.url, "--invitation", code, "--name", "lab"]) == 0
        assert main(["account", "create", "--discovery", server.url, "--invitation", code]) == 1, "there is one already"
        monkeypatch.setenv("EC262_INVITATION", code)  # what workers and jobs find by themselves
        with DiscoveryClient(server.url) as client:
            create_account_at(client)
        with DiscoveryClient(server.url) as client, pytest.raises(ProblemError, match="used up"):
            create_account_at(client)
    assert main(["operator", "revoke", listed.split()[0], "--redis", redis_url]) == 1, "it is used up"


def test_an_operator_bans_marks_lists_and_makes_accounts(
    discovery: Discovery, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        return main(["operator", *words, "--redis", redis_url]), capsys.readouterr().out

    worker = Worker(Visitor(discovery))
    account_id = worker.caller.account.account_id
    assert command("ban", account_id, "--reason", "sells junk")[0] == 0
    assert command("ban", account_id, "--reason", "sells junk")[0] == 1
    assert command("list", "banned") == (0, f"{account_id}  operator: sells junk\n")
    with pytest.raises(Problem, match="banned"):
        worker.heartbeat()
    assert '"banned": "operator: sells junk"' in command("show", account_id)[1]
    assert command("unban", account_id)[0] == 0
    assert command("unban", account_id)[0] == 1
    worker.register()
    assert command("auditor", account_id)[0] == 0
    assert command("list", "auditors") == (0, f"{account_id}\n")
    assert command("auditor", account_id, "--off")[0] == 0
    for words in (["ban", "ab" * 16, "--reason", "x"], ["auditor", "ab" * 16], ["show", "ab" * 16]):
        assert command(*words)[0] == 1, "no such account, and none is made"
    status, made = command("account", "--name", "lab", "--credits", "7")
    values = dict(line.split("=") for line in made.splitlines())
    account = m.AccountCreated(account_id=values["EC262_ACCOUNT"], secret=values["EC262_SECRET"], balance=7)
    assert (status, Visitor(discovery, account=account).state.balance) == (0, 7)


def test_the_leaderboard_as_a_command(
    discovery: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "home"))
    with Server(discovery.app) as server:
        assert main(["leaderboard", "--show-as", "Ada", "--discovery", server.url]) == 1, "no account yet"
        assert main(["account", "create", "--discovery", server.url]) == 0
        assert main(["leaderboard", "--show-as", "Ada", "--discovery", server.url]) == 0
        capsys.readouterr()
        assert main(["leaderboard", "--discovery", server.url]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[-1] == "Ada"
        assert main(["leaderboard", "--withdraw", "--discovery", server.url]) == 0
