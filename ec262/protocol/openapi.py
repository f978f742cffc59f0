"""OpenAPI 3.1 made of the route table and the message types, so that it cannot say anything else than they do."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ec262.protocol import messages as m
from ec262.protocol.problems import CONTENT_TYPE, PROBLEMS
from ec262.protocol.routes import EVERYWHERE, Party, Route, routes_of

_PARAMETER = re.compile(r"<([a-z_]+)>")
_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "account": [{"account": []}],
    "optional": [{}, {"account": []}],
    "poll": [{"poll": []}],
}
_ID = {"type": "string", "pattern": "^[0-9a-f]{16,32}$"}
_PATH: dict[str, dict[str, Any]] = {
    "why": {"type": "string", "enum": ["reach", "call"]},
    "mac": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}
"""What stands in a path where it is no id."""
_QUERY: dict[str, dict[str, Any]] = {
    "before": {"type": "integer", "minimum": 0, "maximum": 10**16 - 1},
    "limit": {"type": "integer", "minimum": 0, "maximum": 10**16 - 1},
    "after": {"type": "integer", "minimum": 0, "maximum": 10**18},
    "wait_s": {"type": "number", "minimum": 0, "maximum": 86_400},
}
"""What may stand in a query."""
_HEADERS: dict[str, dict[str, Any]] = {
    "RateLimit": {
        "description": "What is left of the limits that count this request, and in how many seconds they are whole "
        "again (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "The limits: so many requests (q) in so many seconds (w).",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "integer", "minimum": 1}},
    "Upgrade": {"description": "The oldest version that is understood.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to say who one is.", "schema": {"type": "string"}},
}
_HEADERS_OF = {
    401: ("WWW-Authenticate",),
    426: ("Upgrade",),
    429: ("RateLimit", "RateLimit-Policy", "Retry-After"),
    503: ("Retry-After",),
}
"""Headers of refusals, by status."""
_MEDIA = (m.JSON, m.PACKED)
"""What every message may travel as; who does not ask for MessagePack is answered in JSON."""


def openapi_document(party: Party, version: str) -> dict[str, Any]:
    """The document for one party's routes.

    Args:
        version: of EC262.
    """
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
            "version": version,
            "description": "A credit-based volunteer compute network. docs/protocol.md explains how the routes work. "
            "In MessagePack fields are the same, and what is Base64 in JSON stands as bytes. "
            "Fields that a receiver does not know are ignored; every error is a problem document (RFC 9457) whose "
            "code is stable.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": _HEADERS,
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
        {"name": name, "in": "path", "required": True, "schema": _PATH.get(name, _ID)}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [{"name": name, "in": "query", "required": False, "schema": _QUERY[name]} for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "description": f"At most {route.max_body_bytes} bytes.",
            "content": {media: {"schema": _ref(route.request)} for media in _MEDIA},
        }
    if route.auth in _SECURITY:
        operation["security"] = _SECURITY[route.auth]
    return operation


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if route.response is not None:
        responses["200"] = {
            "description": "Done.",
            "content": {media: {"schema": _ref(route.response)} for media in _MEDIA},
        }
    elif route.method == "DELETE" or route.request is not None:
        responses["204"] = {"description": "Done."}
    else:
        responses["200"] = {"description": "Done.", "content": {route.media: {}}}
    by_status: dict[int, list[str]] = {}
    for code in (*route.problems, *EVERYWHERE):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": "; ".join(f"{code}: {PROBLEMS[code].title}" for code in dict.fromkeys(codes)),
            "content": {CONTENT_TYPE: {"schema": _ref(m.Problem)}},
        }
        if status in _HEADERS_OF:
            responses[str(status)]["headers"] = {
                name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS_OF[status]
            }
    return responses


def _ref(kind: type[m.Message]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
