"""Requests made of the OpenAPI documents, and such as they do not allow: no answer that they do not name, and no 5xx.

https://schemathesis.readthedocs.io makes them. Discovery is asked over real HTTP, for the server under it answers some
of them; a worker as the application that it is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
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
from tests.processes import Process
from tests.worker_peers import make_worker, state_of

CHECKS = [
    *(schemathesis.checks.not_a_server_error, schemathesis.checks.status_code_conformance),
    *(schemathesis.checks.content_type_conformance, schemathesis.checks.response_schema_conformance),
    *(schemathesis.checks.response_headers_conformance, schemathesis.checks.negative_data_rejection),
]
"""Not that what fits the schemas is accepted: whether there are credits, workers or such a task, no schema says."""
EXAMPLES, MANY = 8, 500


@schemathesis.serializer(m.PACKED)
def packed(context: Any, value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError, ValueError):  # numbers that JSON alone can say
        return b"\xc1"  # what MessagePack never begins with


def schema(party: Party) -> Any:
    return schemathesis.openapi.from_dict(openapi_document(party, "1"))


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


@pytest.fixture(scope="module")
def authorization(service: str) -> dict[str, str]:
    """An account with a worker."""
    with DiscoveryClient(service) as client:
        account = create_account_at(client)
        body = m.RegisterWorker(worker_id="ab" * 16, boot_id="cd" * 16, port=1, slots=4, python="3.11")
        client.register_worker(body)
    basic = base64.b64encode(f"{account.account_id}:{account.secret}".encode()).decode()
    return {"Authorization": f"Basic {basic}"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Flask]]:
    with make_worker(tmp_path_factory.mktemp("worker")) as made:
        yield made, made._api.app()


def ask(case: Any, service: str, authorization: dict[str, str] | None = None) -> None:
    case.call_and_validate(base_url=service, headers=authorization, checks=CHECKS, timeout=30)


def ask_worker(case: Any, worker: tuple[Worker, Flask]) -> None:
    before = state_of(worker[0])
    case.validate_response(case.call(app=worker[1]), checks=CHECKS)
    assert state_of(worker[0]) == before, "without a ticket something was taken"


@schema("discovery").parametrize()
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@schema("discovery").parametrize()
@some(MANY)
def test_discovery_for_long(case: Any, service: str, authorization: dict[str, str]) -> None:
    ask(case, service, authorization)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@schema("worker").parametrize()
@some(MANY)
def test_a_worker_for_long(case: Any, worker: tuple[Worker, Flask]) -> None:
    ask_worker(case, worker)
