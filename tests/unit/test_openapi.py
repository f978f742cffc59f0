"""The API for everybody: the page made of the documents, what a worker serves, versions, fields of tomorrow."""

from __future__ import annotations

import html.parser
import json
import re
from typing import Any

import pytest

from discovery.api_page import api_page
from discovery.app import Discovery
from ec262 import __version__
from ec262.protocol import messages as m
from ec262.protocol.openapi import openapi_document
from ec262.protocol.relaying import challenge
from ec262.protocol.routes import OLDEST_CLIENT, ROUTES
from ec262.protocol.versions import too_old, user_agent
from tests.parties import Caller
from tests.worker_peers import make_worker


class Page(html.parser.HTMLParser):
    """What a page links to, its anchors, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if given.get("id"):
            assert given["id"] not in self.anchors
            self.anchors.add(str(given["id"]))
        self.links += [str(given[name]) for name in ("href", "src", "action") if given.get(name)]
        if tag not in ("meta", "br", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_the_page_shows_every_route_and_type_and_loads_nothing(discovery: Discovery) -> None:
    answer = discovery.app.test_client().get("/docs")
    assert answer.content_type == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    text = answer.get_data(as_text=True)
    page = Page(text)
    assert {f"{route.party}-{route.name}" for route in ROUTES} <= page.anchors
    for link in page.links:
        assert link in ("openapi.json", "./") or link.removeprefix("#") in page.anchors, link
    assert not page.tags & {"script", "link", "img", "iframe", "form"}
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_escapes_what_it_shows() -> None:
    document: dict[str, Any] = json.loads(json.dumps(openapi_document("worker", "<b>1</b>")))
    path = document["paths"].pop("/")
    path["get"]["summary"] = "<script>alert(1)</script>"
    document["paths"]["/<i>"] = path
    text = api_page({"worker": document})
    assert "<script>" not in text
    assert "<i>" not in text
    assert "<b>1" not in text


def test_both_parties_serve_their_documents(discovery: Discovery, tmp_path: Any) -> None:
    served = discovery.app.test_client().get("/openapi.json").get_json()
    assert served == json.loads(json.dumps(openapi_document("discovery", __version__)))
    with make_worker(tmp_path) as worker:
        served = worker._api.app().test_client().get("/openapi.json").get_json()
    assert served == json.loads(json.dumps(openapi_document("worker", __version__)))


def test_the_challenge_of_a_worker_is_what_its_document_allows() -> None:
    """Its MAC is no id: who believed a pattern of ids could not ask."""
    path = "/v1/challenge/{nonce}/{why}/{mac}"
    operation = openapi_document("worker", __version__)["paths"][path]["get"]
    allowed = {each["name"]: each["schema"] for each in operation["parameters"]}
    assert set(allowed["why"]["enum"]) == {"reach", "call"}
    for why in allowed["why"]["enum"]:
        assert re.search(allowed["mac"]["pattern"], challenge("ab" * 16, "cd" * 16, why))
    assert "404" in operation["responses"]


@pytest.mark.parametrize(
    ("agent", "refused"),
    [
        (user_agent(__version__), False),
        ("ec262/0.0.9", True),
        ("ec262/0.0", True),
        ("ec262/0.0-dev more", True),
        ("ec262/0.1.0", False),
        ("ec262/10.0.0", False),
        ("curl/8.0", False),
        ("Mozilla/5.0 ec262/0.0.1", False),
        ("ec262/", False),
        ("ec262/0.99999999999", False),
        ("", False),
    ],
)
def test_who_is_too_old(agent: str, refused: bool) -> None:
    assert bool(too_old(agent, (0, 1))) == refused


def test_this_version_is_understood() -> None:
    assert not too_old(user_agent(__version__), OLDEST_CLIENT)


def test_old_clients_are_told_to_upgrade_by_both_parties(discovery: Discovery, tmp_path: Any) -> None:
    with make_worker(tmp_path) as worker:
        for app, path in ((discovery.app, "/v1/credits"), (worker._api.app(), "/")):
            answer = app.test_client().get(path, headers={"User-Agent": "ec262/0.0.3"})
            assert answer.status_code == 426
            problem = m.decode(m.Problem, answer.data)
            assert problem.code == "upgrade-required"
            assert "pip install --upgrade ec262" in problem.detail
            assert answer.headers["Upgrade"] == "ec262/0.1"


def test_old_clients_are_told_to_upgrade_at_every_route_and_page(discovery: Discovery) -> None:
    for rule in discovery.app.url_map.iter_rules():
        path = re.sub("<.*?>", "ab" * 16, rule.rule)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            answer = discovery.app.test_client().open(path, method=method, headers={"User-Agent": "ec262/0.0.3"})
            assert answer.status_code == 426, (method, path)


def test_fields_of_tomorrow_are_ignored(discovery: Discovery) -> None:
    answer = Caller(discovery).raw("POST", "/v1/accounts", b'{"name": "x", "colour": {"of": ["tomorrow"]}}')
    assert answer.status_code == 200
    # And what we answer may be read by clients of yesterday: decoding ours with a field more is the same.
    assert m.decode(m.Health, b'{"status": "ok", "since": 3}') == m.Health(status="ok")
