"""Rates of requests: what a caller may do, what it is told, and what floods cost. Over a real store."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery.app import Discovery, create_discovery
from discovery.limits import (
    BURST_S,
    HELD_S,
    LONGEST_HELD_S,
    REFUSALS_A_SECOND,
    Limiter,
    RateLimited,
    held_s,
)
from discovery.settings import Settings, settings_for
from discovery.store.accounts import Accounts
from ec262.protocol import messages as m
from ec262.protocol.pacing import BODY_A_REQUEST, cost_of
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Problem


class Clock:
    """Time as a test says."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def limiter(make_discovery: MakeDiscovery) -> Callable[..., Limiter]:
    """Limiters over one empty store: the processes of a service."""
    discovery = make_discovery()

    def make(
        account: int = 0, address: int = 0, anonymous: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> Limiter:
        return Limiter(
            discovery.store.rates,
            Settings(account_requests=account, address_requests=address, anonymous_requests=anonymous),
            clock,
        )

    return make


def spent(limiter: Limiter, address: str = "a", account: str = "", cost: int = 1, most: int = 10_000) -> int:
    """How many requests pass until one is refused."""
    for count in range(most):
        try:
            limiter.spend(address, account, cost)
        except RateLimited:
            return count
    return most


def test_a_burst_passes_and_then_the_rate(limiter: Callable[..., Limiter]) -> None:
    limited = limiter(address=5)
    started = time.monotonic()
    count = spent(limited)
    took_s = time.monotonic() - started
    assert 5 * BURST_S <= count <= 5 * (BURST_S + took_s) + 1
    assert spent(limited, "another") >= 5 * BURST_S


def test_several_processes_have_one_limit_together(limiter: Callable[..., Limiter]) -> None:
    """The attack: a share of the connections with each process."""
    processes = [limiter(address=2) for _ in range(4)]
    started = time.monotonic()
    passed = sum(spent(each) for each in processes)
    assert passed <= 2 * (BURST_S + time.monotonic() - started) + len(processes)


def test_nothing_is_counted_where_one_of_two_limits_refuses(limiter: Callable[..., Limiter]) -> None:
    limited = limiter(account=2, address=4)
    assert spent(limited, "a", "acc") < 4 * BURST_S
    # The account was refused; its address has what it had.
    allowance = limited.spend("a", "other", 1)
    assert allowance is not None
    assert (
        dict(zip([each.name for each in allowance.limits], [each.requests for each in allowance.left], strict=True))[
            "address"
        ]
        >= 2 * BURST_S - 1
    )


def test_whoever_was_refused_is_refused_here_without_asking_redis(limiter: Callable[..., Limiter]) -> None:
    clock = Clock()
    limited = limiter(address=1, clock=clock)
    spent(limited)
    limited._rates = None  # type: ignore[assignment]
    with pytest.raises(RateLimited):
        limited.admit("a", anonymous=True)
    clock.now_s += 1.5
    limited.admit("a", anonymous=True)


def test_what_is_remembered_of_floods_is_bounded(
    limiter: Callable[..., Limiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: an address of its own for every request."""
    monkeypatch.setattr("discovery.limits._MOST_BLOCKED", 50)
    clock = Clock()
    limited = limiter(address=1, clock=clock)
    for number in range(200):
        limited._block(f"address:{number}", 5.0)
    assert len(limited._blocked) == 50
    clock.now_s += 6.0
    limited._block("address:new", 5.0)
    assert len(limited._blocked) == 1


def test_large_bodies_count_for_more_and_one_larger_than_the_burst_still_passes(
    limiter: Callable[..., Limiter],
) -> None:
    assert [cost_of(size) for size in (0, 100, BODY_A_REQUEST, 10 * BODY_A_REQUEST)] == [1, 1, 2, 11]
    limited = limiter(address=1)
    assert spent(limited, cost=10 * BURST_S) == 1
    assert spent(limited, "b", cost=BURST_S // 2) == 2


def test_without_an_account_an_address_has_less(limiter: Callable[..., Limiter]) -> None:
    """The attack: a flood without an account, of which those with one at the same address know nothing."""
    limited = limiter(address=20, anonymous=1)
    assert BURST_S <= spent(limited, "a") < 3 * BURST_S
    with pytest.raises(RateLimited, match="without an account"):
        limited.admit("a", anonymous=True)
    limited.admit("a", anonymous=False)
    assert spent(limited, "a", "acc", most=BURST_S) == BURST_S


def test_no_limits_cost_nothing(limiter: Callable[..., Limiter]) -> None:
    limited = limiter()
    limited._rates = None  # type: ignore[assignment]
    assert limited.spend("a", "acc", 1) is None


def test_a_private_network_has_no_limits_and_a_public_one_has() -> None:
    assert settings_for("private").account_requests == settings_for("private").address_requests == 0
    assert settings_for("public").account_requests == 100
    assert settings_for("public", account_requests=0).account_requests == 0


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
def limited(make_discovery: MakeDiscovery, monkeypatch: pytest.MonkeyPatch) -> Discovery:
    monkeypatch.setattr("discovery.limits.HELD_S", 0.0)
    return make_discovery(account_requests=2, address_requests=3)


def refused(caller: Caller, path: str = "/v1/account") -> dict[str, str]:
    """The headers of the first refusal."""
    for _ in range(200):
        response = caller.raw("GET", path)
        if response.status_code == 429:
            assert response.get_json()["code"] == "rate-limited"
            return dict(response.headers)
    raise AssertionError("nothing was refused")


def test_answers_say_what_is_left_and_refusals_when_to_come_back(limited: Discovery) -> None:
    caller = Caller(limited)
    headers = caller.raw("GET", "/v1/account").headers
    assert (
        headers["RateLimit-Policy"] == f'"address";q={3 * BURST_S};w={BURST_S}, "account";q={2 * BURST_S};w={BURST_S}'
    )
    assert headers["RateLimit"].startswith('"address";r=')
    assert "Retry-After" not in headers
    assert int(refused(caller)["Retry-After"]) >= 1


def test_a_flood_over_many_connections_costs_no_more_refusals() -> None:
    """The attack: each connection that waits for a refusal brings the next request when it comes."""
    assert held_s(1) == HELD_S
    assert all(waiting / held_s(waiting) <= REFUSALS_A_SECOND for waiting in range(1, 320))
    assert held_s(10**6) == LONGEST_HELD_S


def test_refusals_that_are_held_do_not_hold_up_the_end(limited: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.limits.HELD_S", 60.0)
    monkeypatch.setattr("discovery.limits.LONGEST_HELD_S", 60.0)
    paused: list[float] = []
    limited.gate.pause = paused.append
    refused(Caller(limited), "/v1/leaderboard")
    assert paused == [60.0]


def test_guessing_secrets_uses_up_the_guessers_address_and_not_the_account(limited: Discovery) -> None:
    """The attack: to shut an account out by wrong secrets in its name."""
    victim = Caller(limited)
    wrong = m.AccountCreated(account_id=victim.account.account_id, secret="wrong", balance=0)
    attacker = Caller(limited, wrong)
    attacker._client.environ_base["REMOTE_ADDR"] = "203.0.113.9"
    statuses = [attacker.raw("GET", "/v1/account").status_code for _ in range(5 * BURST_S)]
    assert set(statuses) == {401, 429}
    assert victim.state.account_id == victim.account.account_id


@pytest.mark.parametrize(
    ("method", "path", "agent", "status"),
    [
        ("GET", "/nosuch", "", 404),
        ("DELETE", "/v1/health", "", 405),
        ("OPTIONS", "/v1/tasks", "", 200),
        ("GET", "/v1/credits", "ec262/0.0.1", 426),
        ("POST", "/v1/relay/" + "ab" * 16, "ec262/0.0.1", 426),
    ],
)
def test_attack_a_flood_of_what_reaches_no_view(
    limited: Discovery, method: str, path: str, agent: str, status: int
) -> None:
    """It costs an answer each, as everything else does."""
    client = limited.app.test_client()
    answers = [client.open(path, method=method, headers={"User-Agent": agent}) for _ in range(6 * BURST_S)]
    assert {each.status_code for each in answers} == {status, 429}
    assert answers[0].status_code == status
    assert all(int(each.headers["Retry-After"]) >= 1 for each in answers if each.status_code == 429)


def test_an_invented_forwarding_header_is_no_other_address(limited: Discovery) -> None:
    caller = Caller(limited)
    refused(caller, "/v1/leaderboard")
    assert caller.raw("GET", "/v1/leaderboard", None, **{"X-Forwarded-For": "198.51.100.7"}).status_code == 429


def test_addresses_of_one_ipv6_network_are_one(limited: Discovery) -> None:
    caller = Caller(limited)
    statuses = []
    for number in range(6 * BURST_S):
        caller._client.environ_base["REMOTE_ADDR"] = f"2001:db8::{number + 1:x}"
        statuses.append(caller.raw("GET", "/v1/leaderboard").status_code)
    assert 429 in statuses


def test_what_watches_the_service_is_not_limited(limited: Discovery) -> None:
    caller = Caller(limited)
    refused(caller, "/v1/leaderboard")
    for path in ("/v1/live", "/v1/ready", "/v1/health", "/openapi.json", "/docs"):
        assert caller.raw("GET", path).status_code == 200


def test_attack_a_flood_of_what_a_banned_account_may_not_ask(limited: Discovery) -> None:
    """It costs the account as much as what it may ask."""
    caller = Caller(limited)
    limited.store.accounts.ban(caller.account.account_id, "operator", "a test")
    with pytest.raises(Problem):
        caller.call("GET", "/v1/jobs", m.Jobs)
    assert caller.raw("GET", "/v1/account").status_code == 200
    statuses = [caller.raw("GET", "/v1/jobs").status_code for _ in range(5 * BURST_S)]
    assert set(statuses) == {403, 429}


@pytest.mark.parametrize("limits", [{}, {"account_requests": 2, "address_requests": 9, "anonymous_requests": 9}])
def test_a_ban_and_another_secret_count_from_the_next_request_on(
    make_discovery: MakeDiscovery, limits: dict[str, int]
) -> None:
    """Nothing of who asks is remembered from one request to the next, whatever is limited."""
    discovery = make_discovery(**limits)
    caller = Caller(discovery)
    account_id = caller.account.account_id
    assert caller.raw("GET", "/v1/jobs").status_code == 200
    discovery.store.accounts.ban(account_id, "operator", "a test")
    assert caller.raw("GET", "/v1/jobs").status_code == 403
    discovery.store.accounts.unban(account_id, "operator")
    assert caller.raw("GET", "/v1/jobs").status_code == 200
    stored, _ = discovery.store.accounts.secret(account_id)
    assert discovery.store.accounts.replace_secret(account_id, stored or b"", b"another")
    assert caller.raw("GET", "/v1/jobs").status_code == 401


def test_attack_wrong_secrets_use_up_what_an_account_may_ask(limiter: Callable[..., Limiter]) -> None:
    """Whoever shows another secret uses up what his address may ask without an account."""
    limited = limiter(account=1, address=50, anonymous=1)
    account_id = "a" * 32
    Accounts(limited._rates._redis, limited._rates._scripts).create(account_id, b"right", "", 0)
    for _ in range(BURST_S):
        assert limited.enter("b", account_id, b"wrong", 1)[0] is None
    with pytest.raises(RateLimited) as refused:
        limited.enter("b", account_id, b"wrong", BURST_S)
    assert refused.value.limit == "anonymous"
    banned, allowance = limited.enter("b", account_id, b"right", 1)
    assert banned == ""
    assert allowance is not None
    assert [each.name for each in allowance.limits] == ["address", "account"]
    assert allowance.left[1].requests == BURST_S - 1


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_for_the_addresses_that_the_operator_named(redis_url: str, tmp_path: Path) -> None:
    closed = create_discovery(Settings(), redis_url, tmp_path)
    assert closed.app.test_client().get("/metrics").status_code == 403
    named = create_discovery(Settings(metrics=("127.0.0.1",)), redis_url, tmp_path)
    client = named.app.test_client()
    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": "203.0.113.9"}).status_code == 403
    # Behind a proxy of this machine that nobody named, every stranger seems to be this machine.
    for header in ("X-Forwarded-For", "Forwarded", "Via"):
        assert client.get("/metrics", headers={header: "203.0.113.9"}).status_code == 403
    behind = create_discovery(Settings(metrics=("203.0.113.9",), proxies=("127.0.0.1",)), redis_url, tmp_path)
    assert behind.app.test_client().get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 200
    assert behind.app.test_client().get("/metrics", headers={"X-Forwarded-For": "203.0.113.8"}).status_code == 403
    for each in (closed, named, behind):
        each.store.close()


def test_counters_of_all_processes_are_added_and_outlive_them(make_discovery: MakeDiscovery) -> None:
    first, second = make_discovery(metrics=("127.0.0.1",)), make_discovery(metrics=("127.0.0.1",))
    first.meter.process, second.meter.process = "one:1", "two:2"
    for discovery in (first, second, second):
        assert discovery.app.test_client().get("/v1/credits").status_code == 200
    assert second.app.test_client().get("/no\x1bsuch|path").status_code == 404
    first.meter.flush(last=True)
    second.meter.flush()
    text = first.app.test_client().get("/metrics").get_data(as_text=True)
    assert 'ec262_requests_total{route="credits",status="200"} 3.0' in text
    assert 'ec262_requests_total{route="none",status="404"} 1.0' in text
    assert 'ec262_request_seconds_count{route="credits"} 3.0' in text
    assert 'process="two:2"' in text
    assert "one:1" not in text
    assert "such" not in text, "what strangers wrote is no label"


def test_what_did_not_arrive_in_redis_is_added_next_time(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(metrics=("127.0.0.1",))
    meter = discovery.meter
    meter.saw("credits", "200", 0.002)
    rates, meter._rates = meter._rates, None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        meter.flush()
    meter._rates = rates
    meter.flush()
    text = discovery.app.test_client().get("/metrics").get_data(as_text=True)
    assert 'ec262_requests_total{route="credits",status="200"} 1.0' in text
