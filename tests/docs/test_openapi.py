"""The OpenAPI documents are valid and hold every route, body and problem of the tables."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from ec262.protocol import messages as m
from ec262.protocol.openapi import openapi_document
from ec262.protocol.problems import CONTENT_TYPE, PROBLEMS
from ec262.protocol.routes import EVERYWHERE, ROUTES, Party, Route, routes_of

PARTIES: list[Party] = ["discovery", "worker"]

# Answers to requests that no route takes: they belong to none.
OF_NO_ROUTE = {"method-not-allowed", "length-required"}


def operation(route: Route) -> dict[str, Any]:
    paths = openapi_document(route.party, "1.2.3")["paths"]
    made: dict[str, Any] = paths[route.path.replace("<", "{").replace(">", "}")][route.method.lower()]
    return made


@pytest.mark.parametrize("party", PARTIES)
def test_the_document_is_valid(party: Party) -> None:
    document = json.loads(json.dumps(openapi_document(party, "1.2.3")))
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")


@pytest.mark.parametrize("party", PARTIES)
def test_the_document_has_the_partys_routes_and_no_others(party: Party) -> None:
    written = {
        (operation["operationId"], method.upper(), path)
        for path, methods in openapi_document(party, "1.2.3")["paths"].items()
        for method, operation in methods.items()
    }
    assert written == {
        (route.name, route.method, route.path.replace("<", "{").replace(">", "}")) for route in routes_of(party)
    }


every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.party}-{route.name}")


@every_route
def test_every_problem_of_a_route_is_there(route: Route) -> None:
    responses = operation(route)["responses"]
    for code in (*route.problems, *EVERYWHERE):
        answer = responses[str(PROBLEMS[code].status)]
        assert f"{code}: " in answer["description"]
        assert answer["content"][CONTENT_TYPE]["schema"] == {"$ref": "#/components/schemas/Problem"}
    told = {code for code in PROBLEMS for answer in responses.values() if f"{code}: " in answer["description"]}
    assert told == {*route.problems, *EVERYWHERE}


@every_route
def test_bodies_and_parameters_are_there(route: Route) -> None:
    described = operation(route)
    if route.request is None:
        assert "requestBody" not in described
    else:
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{route.request.__name__}"}
    if route.response is not None:
        schema = described["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{route.response.__name__}"}
    names = [parameter["name"] for parameter in described.get("parameters", [])]
    assert set(route.query) <= set(names)
    assert all(f"<{name}>" in route.path or name in route.query for name in names)
    assert ("security" in described) == (route.auth in ("account", "optional", "poll"))


def test_every_problem_belongs_to_a_route_or_to_none() -> None:
    used = {code for route in ROUTES for code in route.problems} | set(EVERYWHERE)
    assert used | OF_NO_ROUTE == set(PROBLEMS)
    assert not used & OF_NO_ROUTE


@pytest.mark.parametrize("party", PARTIES)
def test_every_type_that_a_route_uses_is_described(party: Party) -> None:
    schemas = openapi_document(party, "1.2.3")["components"]["schemas"]
    used = {kind for route in routes_of(party) for kind in (route.request, route.response) if kind is not None}
    assert {kind.__name__ for kind in used | {m.Problem}} <= set(schemas)
    assert all(schema.get("description") for schema in schemas.values())
