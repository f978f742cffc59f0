"""Requests made of the OpenAPI documents, and such as they do not allow: no answer that they do not name, and no 5xx.

https://schemathesis.readthedocs.io makes them. Discovery is asked over real HTTP, for the server under it answers some
of them; a worker as the application that it is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, settings

from discovery.ledger import verify
from discovery.operator import store_of
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.protocol import messages as m
from ec262.protocol.openapi import openapi_document
from ec262.protocol.routes import Party
from ec262.worker.service import Worker
from tests.pages import pages_document
from tests.processes import Process
from tests.worker_peers import make_worker, state_of

CHECKS = [
    *(schemathesis.checks.not_a_server_error, schemathesis.checks.status_code_conformance),
    *(schemathesis.checks.content_type_conformance, schemathesis.checks.response_schema_conformance),
    *(schemathesis.checks.response_headers_conformance, schemathesis.checks.negative_data_rejection),
]
"""Not that what fits the schemas is accepted: whether there are credits, workers or such a task, no schema says."""
PAGE_CHECKS = [*CHECKS[:3], CHECKS[4]]
EXAMPLES, MANY = 8, 500
PAGES = schemathesis.openapi.from_dict(pages_document())


@schemathesis.serializer(m.PACKED)
def packed(context: Any, value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError, ValueError):  # numbers that JSON alone can say
        return b"\xc1"  # what MessagePack never begins with


def schema(party: Party) -> Any:
    return schemathesis.openapi.from_dict(openapi_document(party, "1"))


def signed_in() -> Any:
    """Discovery's document for who has an account in any case: without one it is asked elsewhere."""
    document = openapi_document("discovery", "1")
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
    return schemathesis.openapi.from_dict(document)


def some(count: int) -> settings:
    return settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=count)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service in which somebody works; afterwards its books must be clean."""
    directory = tmp_path_factory.mktemp("service")
    flags = ["--port", "0", "--network", "private", "--data-dir", str(directory / "data"), "--metrics", "127.0.0.1"]
    discovery = Process(["-m", "discovery", *flags], home=directory / "home", log=directory / "log")
    yield str(discovery.ready["url"])
    with store_of(None, directory / "data") as (store, archive):
        assert verify(store, archive).faults == []
    assert discovery.stop() == 0
    assert "Traceback" not in discovery.log.read_text()


def member(service: str, worker_id: str = "") -> str:
    """The key of a new account."""
    with DiscoveryClient(service) as client:
        account = create_account_at(client)
        if worker_id:
            body = m.RegisterWorker(worker_id=worker_id, boot_id="cd" * 16, port=1, slots=4, python="3.11")
            client.register_worker(body)
    return f"{account.account_id}:{account.secret}"


def basic(key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}


@pytest.fixture(scope="module")
def authorization(service: str) -> dict[str, str]:
    """Of an account with a worker."""
    return basic(member(service, "ab" * 16))


@pytest.fixture(scope="module")
def session(service: str) -> tuple[dict[str, str], str]:
    """The cookie of somebody who is signed in, and what the session's forms carry."""
    key = member(service, "ba" * 16)
    signed = requests.post(f"{service}/sign-in", data={"key": key}, allow_redirects=False, timeout=30)
    page = requests.get(f"{service}/account", cookies=signed.cookies, timeout=30).text
    token = re.search(r'name="form_token" value="([0-9a-f]+)"', page)
    assert token
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in signed.cookies.items())}, token[1]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Flask]]:
    with make_worker(tmp_path_factory.mktemp("worker")) as made:
        yield made, made._api.app()


def ask(case: Any, service: str, authorization: dict[str, str] | None = None) -> None:
    if authorization and case.operation.path == "/v1/account/secret":  # another key than the one all tests have
        authorization = basic(member(service))
    wait_s = case.body.get("wait_s") if isinstance(case.body, dict) else None
    if isinstance(wait_s, float | int) and 0.1 < wait_s <= 60:
        case.body["wait_s"] = 0.1  # as good as another, and over sooner
    # Where all that is wrong is that nobody signs, there is nothing to refuse: these here sign all the same.
    signed = authorization is not None and "Authorization" not in (case.headers or {})
    case.call_and_validate(base_url=service, headers=authorization, checks=CHECKS[:5] if signed else CHECKS, timeout=30)


def ask_page(case: Any, service: str, cookie: dict[str, str] | None = None, token: str = "") -> None:
    if token and isinstance(case.body, dict) and "form_token" in case.body:
        case.body["form_token"] = token
    answer = case.call(base_url=service, headers=cookie, timeout=30, allow_redirects=False)
    case.validate_response(answer, checks=PAGE_CHECKS)


def ask_worker(case: Any, worker: tuple[Worker, Flask]) -> None:
    before = state_of(worker[0])
    case.validate_response(case.call(app=worker[1]), checks=CHECKS)
    assert state_of(worker[0]) == before, "without a ticket something was taken"


@signed_in().parametrize()
@some(EXAMPLES)
def test_discovery_with_an_account(case: Any, service: str, authorization: dict[str, str]) -> None:
    ask(case, service, authorization)


@schema("discovery").parametrize()
@some(EXAMPLES // 2)
def test_discovery_without_an_account(case: Any, service: str) -> None:
    ask(case, service)


@schema("worker").parametrize()
@some(EXAMPLES)
def test_a_worker(case: Any, worker: tuple[Worker, Flask]) -> None:
    ask_worker(case, worker)


@PAGES.parametrize()
@some(EXAMPLES)
def test_pages_of_who_is_signed_in(case: Any, service: str, session: tuple[dict[str, str], str]) -> None:
    """With the token of the session's own forms, so that they do what they say."""
    ask_page(case, service, *session)


@PAGES.parametrize()
@some(EXAMPLES // 2)
def test_pages_of_strangers(case: Any, service: str) -> None:
    ask_page(case, service)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@PAGES.parametrize()
@some(MANY)
def test_pages_for_long(case: Any, service: str, session: tuple[dict[str, str], str]) -> None:
    ask_page(case, service, *session)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@signed_in().parametrize()
@some(MANY)
def test_discovery_for_long(case: Any, service: str, authorization: dict[str, str]) -> None:
    ask(case, service, authorization)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@schema("worker").parametrize()
@some(MANY)
def test_a_worker_for_long(case: Any, worker: tuple[Worker, Flask]) -> None:
    ask_worker(case, worker)
