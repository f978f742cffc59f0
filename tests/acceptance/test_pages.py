"""Pages in a real browser: live update, signing in, keyboard, no scripts, a phone, and nothing from elsewhere.

With EC262_SCREENSHOTS=DIR every page is also kept as a picture, at both widths, light and dark.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient
from ec262.jobs.run import run_job
from ec262.programs import find
from ec262.protocol import messages as m
from tests.acceptance.conftest import Network

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
JOB = "6f0e2c9b41d75a8836b1f4d0927ce35a"
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
PUBLIC = ["/", "/leaderboard", "/join", "/sign-in", "/docs"]
OWN = ["/account", f"/account/jobs/{JOB}"]

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine"),
    pytest.mark.usefixtures("own_home"),
]


@dataclass
class Site:
    """A discovery service of three processes with a worker and an account that has jobs."""

    url: str
    client: DiscoveryClient
    key: str
    worker_key: str

    def report(self, done: int, name: str = "books") -> None:
        moved = {"bytes_out": 31_000 * done, "bytes_in": 1_900 * done, "credits_spent": 2 * done}
        counts = {"tasks_done": done, "tasks_total": 400, "workers": 3, "retried": 1, **moved}
        report = m.JobReport(state="running", name=name, phase="map", seconds_left=95, **counts)
        self.client.report_job(JOB, report)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    network = Network(directory, "--network", "private", "--processes", "3")
    try:
        network.worker()
        os.environ["EC262_HOME"] = str(directory / "foreman")
        run_job(dict.fromkeys(range(3), "to be or not to be"), program=find("wordcount").program, discovery=network.url)
        if os.environ.get("EC262_SCREENSHOTS"):
            _liven(network)
        foreman = CredentialStore(directory / "foreman", environ={}).account(network.url)
        worker = CredentialStore(directory / "worker0", environ={}).account(network.url)
        assert foreman is not None
        assert worker is not None
        with DiscoveryClient(network.url, foreman.account_id, foreman.secret, retry_for_s=5.0) as client:
            yield Site(
                network.url,
                client,
                f"{foreman.account_id}:{foreman.secret}",
                f"{worker.account_id}:{worker.secret}",
            )
    finally:
        network.close()


def _liven(network: Network, seconds: float = 90.0) -> None:
    """Something to be seen on pictures: workers with names, and jobs one after another."""
    for name in ("Grace Hopper", "Physics, room 12", "tante-emma"):
        process = network.worker()
        home = network.directory / f"worker{network.workers.index(process)}"
        account = CredentialStore(home, environ={}).account(network.url)
        assert account is not None
        with DiscoveryClient(network.url, account.account_id, account.secret) as client:
            client.show_account(m.ShowAccount(name=name))
    until = time.monotonic() + seconds
    for size in itertools.cycle((400, 900, 2000, 1200, 600)):
        if time.monotonic() > until:
            return
        text = dict.fromkeys(range(size), "in the beginning was the word")
        run_job(
            text, program=find("wordcount").program, discovery=network.url, name=f"verses to {size}", items_per_task=1
        )
        time.sleep(3)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    if os.geteuid() == 0:
        quiet.append("--no-sandbox")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=quiet)
        yield browser
        browser.close()


class Visit:
    """A browser's window with nothing remembered; notes where its requests go and what its pages complain about."""

    def __init__(self, chromium: Any, site: Site, **options: Any) -> None:
        self.site = site
        self.context = chromium.new_context(viewport=DESKTOP, **options)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on("console", lambda line: self.said.append(line.text) if "Policy" in line.text else None)

    def go(self, path: str) -> Any:
        answer = self.page.goto(self.site.url + path)
        assert answer.status < 400
        return self.page

    def sign_in(self, key: str) -> Any:
        self.go("/sign-in")
        self.page.fill("#key", key)
        self.page.click("button")
        return self.page

    def end(self) -> None:
        """Nothing went elsewhere, and no policy was violated."""
        own = urlsplit(self.site.url).netloc
        assert [url for url in self.asked if urlsplit(url).netloc != own] == []
        assert self.said == []
        self.context.close()


@pytest.fixture
def visit(chromium: Any, site: Site) -> Iterator[Visit]:
    made = Visit(chromium, site)
    yield made
    made.end()


def test_a_wrong_key_is_told_and_the_right_one_signs_in(visit: Visit, site: Site) -> None:
    page = visit.sign_in("not:it")
    assert "not the key of an account" in page.inner_text("[role=alert]")
    page = visit.sign_in(site.key)
    page.wait_for_url("**/account")
    assert "Balance" in page.inner_text("#has")
    assert "done" in page.inner_text("#jobs")
    page.click("text=Sign out")
    page.wait_for_url("**/network")
    assert page.goto(site.url + "/account").url.endswith("/sign-in")


def test_whichever_process_answers_the_session_is_the_same(site: Site) -> None:
    """Signed in at one, known at all; a new connection each time, so that all of them get some."""
    answer = requests.post(f"{site.url}/sign-in", data={"key": site.key}, allow_redirects=False, timeout=30)
    assert answer.status_code == 303
    for number in range(12):
        site.report(number)
        page = requests.get(f"{site.url}/account/jobs/{JOB}", cookies=answer.cookies, timeout=30)
        assert page.url.endswith(JOB), "not sent to sign in"
        assert f'value="{number}"' in page.text


def test_a_job_page_moves_by_itself(visit: Visit, site: Site) -> None:
    site.report(10)
    page = visit.sign_in(site.key)
    page.goto(f"{site.url}/account/jobs/{JOB}")
    assert page.get_attribute("#done", "value") == "10"
    page.evaluate("window.kept = true")
    site.report(250)
    page.wait_for_selector('#done[value="250"]', timeout=30_000)
    assert page.evaluate("window.kept"), "the page was not loaded anew"


def test_without_scripts_everything_is_there_and_pages_reload_themselves(chromium: Any, site: Site) -> None:
    site.report(30)
    visit = Visit(chromium, site, java_script_enabled=False)
    page = visit.sign_in(site.key)
    page.wait_for_url("**/account")
    page.click(f'a[href$="{JOB}"]')
    assert page.get_attribute("#done", "value") == "30"
    assert page.locator('meta[http-equiv="refresh"]').count() == 1
    page.click("text=All your jobs")
    page.fill("#name", "Grace")
    page.click("text=Save")
    page.wait_for_url("**/account")
    assert page.input_value("#name") == "Grace"
    visit.end()


def test_the_keyboard_is_enough(visit: Visit, site: Site) -> None:
    page = visit.go("/sign-in")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.focus("#key")
    page.keyboard.type(site.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/account")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body"), "focus can be seen"
    assert {"Save", "Sign out", "Leaderboard"} <= set(reached)


def test_text_of_others_runs_nothing(visit: Visit, site: Site) -> None:
    site.report(5, name=EVIL[:64])
    site.client.show_account(m.ShowAccount(name="<script>alert(3)</script>"))
    page = visit.sign_in(site.key)
    page.wait_for_url("**/account")
    assert EVIL[:40] in page.inner_text("#jobs")
    page.goto(f"{site.url}/account/jobs/{JOB}")
    page.goto(f"{site.url}/leaderboard")
    page.wait_for_timeout(100)
    assert page.locator("img[src=x]").count() == 0


def test_the_policy_stops_scripts_that_got_into_a_page(chromium: Any, site: Site) -> None:
    visit = Visit(chromium, site)
    page = visit.go("/")
    page.evaluate(INTRUDERS)
    with pytest.raises(Exception, match="fetch"):
        page.evaluate("fetch('https://elsewhere.example/')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hurt") is None
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "desktop"])
def test_every_page_fits_and_can_be_read(chromium: Any, site: Site, scheme: str, width: str) -> None:
    visit = Visit(chromium, site, color_scheme=scheme)
    visit.page.set_viewport_size(PHONE if width == "phone" else DESKTOP)
    site.report(120, name="new testament, every word")
    site.client.show_account(m.ShowAccount(name="Ada"))
    for path in PUBLIC:
        _look(visit, path, f"{width}-{scheme}")
    visit.sign_in(site.key)
    for path in OWN:
        _look(visit, path, f"{width}-{scheme}")
    visit.context.clear_cookies()
    page = visit.sign_in(site.worker_key)
    _look(visit, page.get_attribute("#workers a", "href"), f"{width}-{scheme}")
    visit.end()


def _look(visit: Visit, path: str, kind: str) -> None:
    page = visit.go(path)
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen, f"{path} scrolls sideways"
    faint = page.evaluate(CONTRAST)
    assert faint == [], f"{path}: text that is hard to read"
    if directory := os.environ.get("EC262_SCREENSHOTS"):
        name = {"/": "network", f"/account/jobs/{JOB}": "job"}.get(path) or path.split("/")[1]
        name = "worker" if "/workers/" in path else name
        page.screenshot(path=Path(directory) / f"{name}-{kind}.png", full_page=True)


INTRUDERS = """() => {
  document.body.append(Object.assign(document.createElement('div'), {innerHTML: '<img src=x onerror=window.hurt=1>'}));
  document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hurt=1'}));
}"""

CONTRAST = """() => {
  // WCAG 2.2, 1.4.3: 4.5 to 1 for text, by relative luminance.
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = numbers(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faint.push(element.textContent.trim().slice(0, 40));
  }
  return faint;
}"""
