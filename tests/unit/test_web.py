"""Pages: what they show and to whom, and what strangers cannot do with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest
import redis
from werkzeug.test import TestResponse

from discovery.app import Discovery
from discovery.store.pulse import Reading
from discovery.web import figures
from discovery.web.sessions import COOKIE, Sessions
from ec262 import __version__
from ec262.protocol import messages as m
from tests.conftest import MakeDiscovery
from tests.pages import PAGES
from tests.parties import Caller, Foreman, Worker, answer_all

EVIL = "<script>alert(1)</script>"
PUBLIC = ["/network", "/leaderboard", "/join", "/sign-in"]


class Browser:
    """Somebody before a browser."""

    def __init__(self, discovery: Discovery) -> None:
        self.client = discovery.app.test_client()

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers={"Accept": "text/html,*/*;q=0.8", **headers})

    def post(self, path: str, headers: dict[str, str] | None = None, **fields: str) -> TestResponse:
        return self.client.post(path, data=fields, headers=headers or {})

    def sign_in(self, account: m.AccountCreated) -> TestResponse:
        return self.post("/sign-in", key=f"{account.account_id}:{account.secret}")

    def token(self) -> str:
        found = re.search(r'name="form_token" value="([0-9a-f]+)"', self.get("/account").text)
        assert found
        return found[1]


@pytest.fixture
def browser(discovery: Discovery) -> Browser:
    return Browser(discovery)


@pytest.fixture
def signed(discovery: Discovery, browser: Browser) -> tuple[Browser, Foreman]:
    """A browser in which a foreman is signed in."""
    foreman = Foreman(discovery)
    assert browser.sign_in(foreman.account).status_code == 303
    return browser, foreman


def numbers(page: str) -> dict[str, str]:
    """What the page's cards say."""
    found = re.findall(r"<dt>([^<]*)</dt><dd[^>]*>([^<]*)</dd>", page)
    return {name: unescape(value).replace("\u202f", "") for name, value in found}


def test_all_pages_are_in_the_document_that_tests_ask_by(discovery: Discovery) -> None:
    found = {
        (method, re.sub("<(.*?)>", r"{\1}", rule.rule))
        for rule in discovery.app.url_map.iter_rules()
        if rule.endpoint.startswith("pages.")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert found == set(PAGES)


def test_a_browser_at_the_root_sees_the_network_and_a_program_json(discovery: Discovery, browser: Browser) -> None:
    page = browser.get("/")
    assert page.mimetype == "text/html"
    assert "The network now" in page.text
    for accept in ("application/json", "*/*", ""):
        assert browser.client.get("/", headers={"Accept": accept}).mimetype == "application/json"
    assert page.headers["Vary"] == "Accept, Cookie"


def test_a_browser_that_is_lost_sees_a_page_and_a_program_json(browser: Browser) -> None:
    """JSON is no answer to somebody who mistyped an address; a program goes by it."""
    for path, status in (("/nosuch", 404), ("/account/", 404), ("/static/nosuch", 404), ("/sign-out", 405)):
        page = browser.get(path)
        assert (page.status_code, page.mimetype) == (status, "text/html")
        assert "Network</a>" in page.text
        assert page.headers["Content-Security-Policy"]
        problem = browser.client.get(path)
        assert (problem.status_code, problem.mimetype) == (status, "application/problem+json")
    assert browser.get("/v1/nosuch").mimetype == "application/problem+json"
    assert browser.get("/<script>alert(1)</script>").text.count("<script") == 1, "our own"
    assert browser.get("/sign-out").headers["Allow"]
    for accept in ("text/html", "application/json"):  # caches keep them apart
        assert "Accept" in browser.client.get("/", headers={"Accept": accept}).headers["Vary"]


def test_the_network_is_counted_as_tasks_are_leased_and_paid(discovery: Discovery, browser: Browser) -> None:
    foreman = Foreman(discovery)
    workers = [Worker(Caller(discovery)) for _ in range(2)]
    leased = foreman.lease(4, redundancy=2, quorum=2)
    shown = numbers(browser.get("/network").text)
    assert shown["Workers"] == "2"
    assert shown["Credits in flight"] == "8"
    assert shown["Tasks accepted"] == "0"
    foreman.settle(answer_all(leased, workers), [task.task_id for task in leased.tasks])
    shown = numbers(browser.get("/network").text)
    assert shown["Credits in flight"] == "0"
    assert shown["Tasks accepted"] == "4"
    assert shown["Answers paid"] == "8"
    assert shown["Accounts"] == "3"


def test_readings_are_kept_every_few_seconds_and_not_for_ever(discovery: Discovery) -> None:
    discovery.sweep()
    discovery.sweep()
    assert len(discovery.store.pulse.history()) == 1


def test_a_running_job_counts_until_it_ends(discovery: Discovery, browser: Browser) -> None:
    foreman = Foreman(discovery)
    foreman.call("PUT", f"/v1/jobs/{'a' * 32}", m.JobReported, m.JobReport(state="running"))
    assert numbers(browser.get("/network").text)["Jobs running"] == "1"
    foreman.call("PUT", f"/v1/jobs/{'a' * 32}", m.JobReported, m.JobReport(state="done"))
    assert numbers(browser.get("/network").text)["Jobs running"] == "0"


@pytest.mark.parametrize("path", [*PUBLIC, "/account", "/static/live.js", "/static/style.css"])
def test_no_page_may_load_or_run_anything_from_elsewhere(browser: Browser, path: str) -> None:
    response = browser.get(path)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "style=" not in response.text
    assert "onclick" not in response.text


def test_signing_in_shows_what_the_account_has(signed: tuple[Browser, Foreman]) -> None:
    browser, foreman = signed
    page = browser.get("/account").text
    assert foreman.account.account_id in page
    assert numbers(page)["Balance"] == str(foreman.state.balance)
    assert foreman.account.secret not in page


@pytest.mark.parametrize(
    "key", ["", "x", "a" * 32 + ":wrong", ":", "a" * 32, "\x00:\x00", EVIL + ":" + EVIL, "é" * 300]
)
def test_a_wrong_key_signs_nobody_in(discovery: Discovery, browser: Browser, key: str) -> None:
    answer = browser.post("/sign-in", key=key)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert "not the key of an account" in answer.text
    assert EVIL not in answer.text
    assert browser.get("/account").status_code == 303


def test_the_session_cookie_cannot_be_read_by_scripts_nor_sent_by_other_sites(signed: tuple[Browser, Foreman]) -> None:
    browser, foreman = signed
    flags = browser.sign_in(foreman.account).headers["Set-Cookie"]
    assert "HttpOnly" in flags
    assert "SameSite=Lax" in flags
    assert "Path=/" in flags
    assert foreman.account.secret not in flags


def test_over_tls_the_cookie_never_goes_in_the_clear(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    client = discovery.app.test_client()
    key = f"{foreman.account.account_id}:{foreman.account.secret}"
    answer = client.post("/sign-in", data={"key": key}, base_url="https://discovery.example")
    assert "; Secure" in answer.headers["Set-Cookie"]
    assert answer.headers["Set-Cookie"].startswith(f"__Host-{COOKIE}=")
    assert "; Path=/" in answer.headers["Set-Cookie"]
    assert "Domain" not in answer.headers["Set-Cookie"]
    assert client.get("/account", base_url="https://discovery.example").status_code == 200
    page = client.get("/account", base_url="https://discovery.example").text
    token = re.findall(r'name="form_token" value="([0-9a-f]+)"', page)[0]
    client.post("/sign-out", data={"form_token": token}, base_url="https://discovery.example")
    assert client.get("/account", base_url="https://discovery.example").status_code == 303


def test_attack_plant_a_session_from_without_tls(discovery: Discovery) -> None:
    """Who answers for the host on port 80, or for its neighbour, may set cookies that TLS then sends along."""
    attacker, victim = Browser(discovery), Browser(discovery)
    assert attacker.sign_in(Foreman(discovery).account).status_code == 303
    planted = attacker.client.get_cookie(COOKIE)
    assert planted is not None
    victim.client.set_cookie(COOKIE, planted.value, domain="discovery.example")
    assert victim.client.get("/account", base_url="https://discovery.example").status_code == 303


def test_a_forged_or_foreign_cookie_is_nobody(discovery: Discovery, browser: Browser) -> None:
    foreman = Foreman(discovery)
    stored, _ = discovery.store.accounts.secret(foreman.account.account_id)
    assert stored is not None
    for forged in ("x", "a.b.c", Sessions(b"another service's master key").sign(foreman.account.account_id, stored)):
        browser.client.set_cookie(COOKIE, forged)
        assert browser.get("/account").status_code == 303


def test_signing_out_ends_the_session(signed: tuple[Browser, Foreman]) -> None:
    browser, _ = signed
    assert browser.post("/sign-out", form_token=browser.token()).status_code == 303
    assert browser.get("/account").status_code == 303


@pytest.mark.parametrize("path", ["/account/shown", "/sign-out"])
def test_another_site_cannot_send_forms(signed: tuple[Browser, Foreman], path: str) -> None:
    """CSRF: without the session's token, or said by the browser to come from elsewhere, a form changes nothing."""
    browser, foreman = signed
    token = browser.token()
    for headers, given in (
        ({}, ""),
        ({}, "0" * 32),
        ({"Sec-Fetch-Site": "cross-site"}, token),
        ({"Origin": "https://evil.example"}, token),
        ({"Origin": "null"}, token),
    ):
        assert browser.post(path, headers, form_token=given, name="Mallory").status_code == 403
    assert foreman.state.shown == ""
    assert browser.get("/account").status_code == 200


def test_another_site_cannot_sign_a_victim_into_its_own_account(discovery: Discovery, browser: Browser) -> None:
    foreman = Foreman(discovery)
    key = f"{foreman.account.account_id}:{foreman.account.secret}"
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}):
        answer = browser.post("/sign-in", headers, key=key)
        assert answer.status_code == 403
        assert "Set-Cookie" not in answer.headers
        assert "did not come from a page of this session at localhost" in answer.text
        assert "not the key" not in answer.text, "the key is right: behind a proxy that hides the host, people hear why"


def test_the_name_for_the_leaderboard_is_chosen_here_and_a_bad_one_explained(signed: tuple[Browser, Foreman]) -> None:
    browser, foreman = signed
    assert browser.post("/account/shown", form_token=browser.token(), name="Ada").status_code == 303
    assert foreman.state.shown == "Ada"
    refused = browser.post("/account/shown", form_token=browser.token(), name="a\u202eb")
    assert refused.status_code == 400
    assert 'role="alert"' in refused.text
    assert foreman.state.shown == "Ada"


def test_nobody_sees_the_jobs_and_workers_of_others(discovery: Discovery, signed: tuple[Browser, Foreman]) -> None:
    browser, foreman = signed
    other = Foreman(discovery)
    worker = Worker(Caller(discovery))
    other.call("PUT", f"/v1/jobs/{'b' * 32}", m.JobReported, m.JobReport(state="running", name="secret plan"))
    foreman.call("PUT", f"/v1/jobs/{'c' * 32}", m.JobReported, m.JobReport(state="running", name="own plan"))
    assert "own plan" in browser.get(f"/account/jobs/{'c' * 32}").text
    assert "own plan" in browser.get("/account").text
    assert "secret plan" not in browser.get("/account").text
    for path in (
        f"/account/jobs/{'b' * 32}",
        f"/account/workers/{worker.worker_id}",
        "/account/workers/..%2f",
        "/account/jobs/*",
    ):
        assert browser.get(path).status_code == 404, path


def test_of_many_jobs_the_last_are_shown_unless_all_are_asked_for(signed: tuple[Browser, Foreman]) -> None:
    browser, foreman = signed
    for number in range(12):
        foreman.call("PUT", f"/v1/jobs/{number:032x}", m.JobReported, m.JobReport(state="done"))
    assert browser.get("/account").text.count("/account/jobs/") == 10
    assert "All 12 jobs" in browser.get("/account").text
    assert browser.get("/account?all=").text.count("/account/jobs/") == 12


def test_a_worker_page_says_what_its_owner_may_know(discovery: Discovery, browser: Browser) -> None:
    """Not how far it is believed: a liar that saw the number could learn which of its answers were checked."""
    worker = Worker(Caller(discovery))
    assert browser.sign_in(worker.caller.account).status_code == 303
    assert worker.worker_id[:8] in browser.get("/account").text
    page = browser.get(f"/account/workers/{worker.worker_id}").text
    assert numbers(page)["Standing"] == "newcomer"
    assert "verified" not in page
    assert "doubt" not in page


def test_text_of_accounts_and_jobs_injects_nothing(discovery: Discovery, browser: Browser) -> None:
    foreman = Foreman(discovery)
    foreman.call("PUT", "/v1/account/name", m.AccountState, m.ShowAccount(name=EVIL[:32]))
    report = m.JobReport(state="running", name=EVIL, phase=EVIL[:32])
    foreman.call("PUT", f"/v1/jobs/{'d' * 32}", m.JobReported, report)
    browser.sign_in(foreman.account)
    for path in ("/leaderboard", "/account", f"/account/jobs/{'d' * 32}"):
        page = browser.get(path).text
        assert "&lt;script&gt;" in page
        assert "<script>" not in page
    page = browser.get("/join", Host='"><script>alert(1)</script>').text
    assert "<script>" not in page


@pytest.mark.parametrize("registration", ["open", "invite", "closed"])
def test_how_to_join_is_said_for_this_server(make_discovery: MakeDiscovery, registration: str) -> None:
    found = Browser(make_discovery(registration=registration)).client.get("/join", base_url="https://d.example:8443")
    page = re.sub("</?span[^>]*>", "", found.text)
    assert "python worker.py -v -P 11235 --discovery https://d.example:8443" in page
    assert ("--invitation" in page) == (registration == "invite")
    assert ("made by whoever runs it" in page) == (registration == "closed")


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://192.0.2.5:26262", True),
        ("http://head", True),
        ("http://127.0.0.1:26262", False),
        ("https://head", False),
    ],
)
def test_commands_work_as_they_stand_where_there_is_no_tls(discovery: Discovery, url: str, plain: bool) -> None:
    """Programs refuse plain HTTP to another machine, unless they are told; so the page tells them, and people why."""
    page = re.sub("</?span[^>]*>", "", Browser(discovery).client.get("/join", base_url=url).text)
    told = "EC262_PLAIN_HTTP=1 " * plain
    for command in ("python worker.py -v -P 11235", "EC262_DISCOVERY=", "ec262 account show --key"):
        assert f"<code>{told}{command}" in page
    assert ("without TLS" in page) == plain


def test_attack_join_with_an_address_that_is_none(discovery: Discovery, browser: Browser) -> None:
    for host in ("[", "[::1", "a b", "x:y:z", ""):
        assert browser.get("/join", Host=host).status_code in (200, 400)


def test_a_worker_at_the_relay_is_said_to_be_there(discovery: Discovery, browser: Browser) -> None:
    """It has no address that anybody could connect to."""
    worker = Worker(Caller(discovery), relay="always", port=0)
    browser.sign_in(worker.caller.account)
    for page in ("/account", f"/account/workers/{worker.worker_id}"):
        assert "through the relay" in browser.get(page).text
        assert "127.0.0.1:0" not in browser.get(page).text


def test_large_forms_are_refused_unread(browser: Browser) -> None:
    assert browser.post("/sign-in", key="k" * 100_000).status_code == 413


def until_refused(ask: Callable[[], TestResponse]) -> TestResponse:
    """The answer to one too many."""
    return next(answer for answer in (ask() for _ in range(200)) if answer.status_code == 429)


def test_pages_and_guesses_of_keys_count_against_the_limits_of_requests(
    make_discovery: MakeDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.limits.HELD_S", 0.0)
    limited = make_discovery(anonymous_requests=1)
    browser, member = Browser(limited), Browser(limited)
    foreman = Foreman(limited)
    assert member.sign_in(foreman.account).status_code == 303
    for refused in (
        until_refused(lambda: browser.post("/sign-in", key="a" * 32 + ":guess")),
        until_refused(lambda: browser.get("/")),
        until_refused(lambda: browser.get("/static/style.css")),
    ):
        assert refused.mimetype == "text/html"
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Content-Security-Policy"]
    assert member.get("/account").status_code == 200, "who is signed in goes on"
    browser.client.set_cookie(COOKIE, "forged")
    assert until_refused(lambda: browser.get("/network")), "a cookie that is none is no way around it"


def test_behind_a_proxy_with_tls_pages_know_that_they_came_over_it(make_discovery: MakeDiscovery) -> None:
    """And who is no proxy may say what it likes."""
    proxied = make_discovery(proxies=("127.0.0.9",))
    foreman = Foreman(proxied)
    key = f"{foreman.account.account_id}:{foreman.account.secret}"
    told = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http, https", "Host": "ec262.example"}
    for peer, secure in (("127.0.0.9", True), ("192.0.2.7", False)):
        client = proxied.app.test_client()
        by = {"REMOTE_ADDR": peer}
        page = client.get("/join", headers=told, environ_overrides=by).text
        assert f"http{'s' * secure}://ec262.example" in page
        signed = client.post(
            "/sign-in", data={"key": key}, headers=told | {"Origin": "https://ec262.example"}, environ_overrides=by
        )
        assert signed.status_code == 303
        assert ("; Secure" in signed.headers["Set-Cookie"]) == secure
    downgraded = proxied.app.test_client().get(
        "/join", headers=told | {"X-Forwarded-Proto": "https, http"}, environ_overrides={"REMOTE_ADDR": "127.0.0.9"}
    )
    assert "https://" not in downgraded.text


def test_a_store_that_does_not_answer_is_a_page_that_says_so(
    browser: Browser, discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(discovery.store.pulse, "read", gone)
    for path in ("/", "/network"):
        answer = browser.get(path)
        assert answer.status_code == 503
        assert answer.mimetype == "text/html"
        assert "store does not answer" in answer.text
        assert answer.headers["Content-Security-Policy"]


def test_style_and_script_are_kept_by_browsers_and_another_version_has_others(browser: Browser) -> None:
    assert f"style.css?v={__version__}" in browser.get("/network").text
    assert "max-age=" in browser.get("/static/style.css").headers["Cache-Control"]
    for path in ("/static/../views.py", "/static/%2e%2e/views.py", "/static/..%2fviews.py", "/static/none"):
        assert browser.get(path).status_code == 404


def test_figures_are_short() -> None:
    assert [figures.span(s) for s in (0, 59, 61, 3600, 90_000, 864_000)] == [
        "0 s", "59 s", "1 min 1 s", "1 h", "1 d 1 h", "10 d",
    ]  # fmt: skip
    assert [figures.size(n) for n in (0, 999, 1000, 123_456, 5e9)] == ["0 B", "999 B", "1.0 kB", "123 kB", "5.0 GB"]
    assert figures.whole(1_234_567) == "1\u202f234\u202f567"


def test_the_curve_shows_rates_and_survives_a_clock_that_stands_still() -> None:
    history = [Reading(1000 * n, 1, 1, accepted, 0, 0, 1) for n, accepted in ((0, 0), (5, 50), (10, 50), (10, 60))]
    assert figures.rates(history) == [10.0, 0.0, 0.0]
    assert figures.curve([1.0]) == ""
    assert len(figures.curve([0.0, 0.0]).split()) == 2
    assert figures.lately(history, Reading(20_000, 1, 1, 200, 0, 0, 1)) == 10.0
    assert figures.lately([], history[0]) == 0.0
