"""The pages as an OpenAPI document, for tests alone: programs have `ec262.protocol.openapi`."""

from __future__ import annotations

from typing import Any

ID = {"type": "string", "maxLength": 80}
FORM = {"form_token": {"type": "string"}}
PAGES: dict[tuple[str, str], tuple[dict[str, Any], set[int]]] = {
    ("GET", "/network"): ({}, {200}),
    ("GET", "/leaderboard"): ({}, {200}),
    ("GET", "/join"): ({}, {200}),
    ("GET", "/sign-in"): ({}, {200, 303}),
    ("POST", "/sign-in"): ({"key": {"type": "string"}}, {303, 403}),
    ("POST", "/sign-out"): (FORM, {303, 403}),
    ("GET", "/account"): ({}, {200, 303}),
    ("POST", "/account/shown"): ({**FORM, "name": {"type": "string"}}, {303, 400, 403}),
    ("GET", "/account/jobs/{job_id}"): ({}, {200, 303, 404}),
    ("GET", "/account/workers/{worker_id}"): ({}, {200, 303, 404}),
    ("GET", "/static/{filename}"): ({}, {200, 404}),
}
"""What each takes in a form, and answers."""
REFUSED = {400, 404, 405, 413}
"""What is no page is answered as a problem, and so is a form that is too large."""


def pages_document() -> dict[str, Any]:
    """All routes for people."""
    paths: dict[str, Any] = {}
    for (method, path), (form, answers) in PAGES.items():
        name = path.partition("{")[2].partition("}")[0]
        named: list[dict[str, Any]] = [{"in": "path", "name": name, "required": True, "schema": ID}] if name else []
        if path == "/account":
            named += [{"in": "query", "name": each, "schema": {"type": "string"}} for each in ("before", "all")]
        operation: dict[str, Any] = {"parameters": named, "responses": {}}
        if form:
            schema = {"type": "object", "properties": form}
            operation["requestBody"] = {"content": {"application/x-www-form-urlencoded": {"schema": schema}}}
        for status in sorted(answers | REFUSED):
            content: dict[str, Any] = {} if status == 303 else {"text/html": {}}
            if status in REFUSED:
                content["application/problem+json"] = {}
            if name == "filename" and status == 200:
                content = {"text/css": {}, "text/javascript": {}, "image/svg+xml": {}}
            operation["responses"][str(status)] = {"description": "", **({"content": content} if content else {})}
        paths.setdefault(path, {})[method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "Pages for people", "version": "1"}, "paths": paths}
