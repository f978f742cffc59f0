"""The API as a page for people, made of the OpenAPI documents: one file, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "public, max-age=300",
}
_STYLE = """
html { color-scheme: light dark; background: var(--ground); color: var(--ink); }
:root { --ground: #fbfaf7; --ink: #1c2321; --quiet: #59635f; --line: #dcdfd9; --link: #14614d; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #121715; --ink: #e7ece9; --quiet: #a0aca7; --line: #323c38; --link: #6fd0b1; }
}
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
code, summary { font-family: ui-monospace, monospace; font-size: .92em; }
summary { cursor: pointer; padding: .3rem 0; }
summary b { display: inline-block; min-width: 4.5rem; }
summary span { font-family: system-ui, sans-serif; color: var(--quiet); }
details { border-bottom: 1px solid var(--line); }
details > div { padding: 0 0 .8rem 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); }
td, summary { overflow-wrap: anywhere; }
p { margin: .4rem 0; }
"""


def api_page(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """HTML of OpenAPI documents, by what each is called."""
    body = "".join(part for name, document in documents.items() for part in _party(name, document))
    version = escape(str(next(iter(documents.values()))["info"]["version"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>EC262: the API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>EC262: the API</h1>"
        "<p><a href='./'>The network now</a></p>"
        f"<p>Version {version}. For programs: <a href='openapi.json'>openapi.json</a>. "
        "Bodies are JSON, or MessagePack of the same fields; fields that a receiver does not know are ignored. "
        "Every error is a problem document "
        "(<code>application/problem+json</code>, RFC 9457), whose <code>code</code> is stable.</p>"
        f"{body}</body></html>\n"
    )


def _party(name: str, document: Mapping[str, Any]) -> Iterator[str]:
    at = escape(name)
    yield f"<h2 id='{at}'>{at.capitalize()}</h2>"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from _operation(at, method.upper(), path, operation)
    yield f"<h3>Bodies of {at}</h3>"
    for kind, schema in document["components"]["schemas"].items():
        yield from _schema(at, kind, schema)


def _operation(party: str, method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"<details id='{party}-{escape(operation['operationId'])}'><summary><b>{method}</b> {escape(path)} "
        f"<span>{escape(operation['summary'])}</span></summary><div>"
    )
    schemes = [next(iter(each), "nobody") for each in operation.get("security", [])]
    if schemes:
        yield f"<p>Who asks: {escape(' or '.join(schemes))}.</p>"
    for parameter in operation.get("parameters", []):
        kind = _kind(party, parameter["schema"])
        yield f"<p><code>{escape(parameter['name'])}</code> in the {parameter['in']}: {kind}</p>"
    body = operation.get("requestBody")
    if body:
        yield f"<p>Body: {_contents(party, body['content'])}. {escape(body['description'])}</p>"
    yield "<table><tr><th>Status</th><th>Answer</th><th>When</th></tr>"
    for status, answer in operation["responses"].items():
        contents = _contents(party, answer.get("content", {}))
        when = "<br>".join(escape(each) for each in answer["description"].split("; "))
        yield f"<tr><td>{status}</td><td>{contents}</td><td>{when}</td></tr>"
    yield "</table></div></details>"


def _contents(party: str, content: Mapping[str, Any]) -> str:
    if not content:
        return "nothing"
    media, told = next(iter(content.items()))
    return _kind(party, told["schema"]) if "schema" in told else f"<code>{escape(media)}</code>"


def _schema(party: str, kind: str, schema: Mapping[str, Any]) -> Iterator[str]:
    about = escape(str(schema.get("description", ""))).replace("\n\n", "</p><p>")
    yield f"<details id='{party}-type-{escape(kind)}'><summary>{escape(kind)}</summary><div><p>{about}</p>"
    if schema.get("properties"):
        required = set(schema.get("required", ()))
        yield "<table><tr><th>Field</th><th>Type</th><th></th></tr>"
        for field, told in schema["properties"].items():
            needed = "required" if field in required else ""
            yield f"<tr><td><code>{escape(field)}</code></td><td>{_kind(party, told)}</td><td>{needed}</td></tr>"
        yield "</table>"
    yield "</div></details>"


def _kind(party: str, schema: Mapping[str, Any]) -> str:
    """A type in words; named ones lead to where they are described."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f"<a href='#{party}-type-{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_kind(party, each) for each in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    words = [escape(str(schema.get("type", "anything")))]
    if schema.get("type") == "array":
        words = [f"list of {_kind(party, schema.get('items', {}))}"]
    for key, value in schema.items():
        if key not in ("type", "items", "default", "description", "properties", "required", "title"):
            words.append(f"{escape(key)} <code>{escape(str(value))}</code>")
    if "description" in schema:
        words.append(escape(str(schema["description"])))
    return "; ".join(words)
