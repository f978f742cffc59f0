"""OpenAPI 3.1 made of the route table and the message types, so that it cannot say anything else than they do."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ec262 import __version__
from ec262.protocol import messages as m
from ec262.protocol.problems import CONTENT_TYPE, PROBLEMS
from ec262.protocol.routes import EVERYWHERE, Party, Route, routes_of

_PARAMETER = re.compile(r"<([a-z_]+)>")
_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "account": [{"account": []}],
    "optional": [{}, {"account": []}],
    "poll": [{"poll": []}],
}


def openapi_document(party: Party) -> dict[str, Any]:
    """The document for one party's routes."""
    routes = routes_of(party)
    types = {kind for route in routes for kind in (route.request, route.response) if kind is not None}
    _, schemas = msgspec.json.schema_components(
        sorted({*types, m.Problem}, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"EC262 {party}",
            "version": __version__,
            "description": "A credit-based volunteer compute network. docs/protocol.md explains how the routes work.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "account": {"type": "http", "scheme": "basic", "description": "Account id and secret."},
                "poll": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "A MAC under the job's poll key.",
                },
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "responses": _responses(route)}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": {"type": "number", "minimum": 0}}
        for name in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(route.request)}}}
    if route.auth in _SECURITY:
        operation["security"] = _SECURITY[route.auth]
    return operation


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if route.response is not None:
        responses["200"] = {
            "description": "Done.",
            "content": {"application/json": {"schema": _ref(route.response)}},
        }
    elif route.method == "DELETE" or route.request is not None:
        responses["204"] = {"description": "Done."}
    else:
        responses["200"] = {"description": "Done.", "content": {"application/json": {}}}
    by_status: dict[int, list[str]] = {}
    for code in (*route.problems, *EVERYWHERE):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": "; ".join(f"{code}: {PROBLEMS[code].title}" for code in dict.fromkeys(codes)),
            "content": {CONTENT_TYPE: {"schema": _ref(m.Problem)}},
        }
    return responses


def _ref(kind: type[m.Message]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
