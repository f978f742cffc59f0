"""Responses: how discovery and workers say that something is wrong, over Flask (RFC 9457)."""

from __future__ import annotations

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ec262.errors import Malformed, ProblemError
from ec262.protocol.problems import CONTENT_TYPE, problem_body
from ec262.protocol.routes import OLDEST_CLIENT
from ec262.protocol.versions import too_old

_STATUS_CODES = {
    404: "not-found",
    405: "method-not-allowed",
    408: "request-timeout",
    411: "length-required",
    413: "body-too-large",
    415: "unsupported-media-type",
    426: "upgrade-required",
    429: "rate-limited",
}


def problem(code: str, detail: str, *, needed: int | None = None, available: int | None = None) -> Response:
    """A problem as a response."""
    status, body = problem_body(code, detail, needed=needed, available=available)
    response = Response(body, status=status, content_type=CONTENT_TYPE)
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response


def refuse_old() -> Response | None:
    """The answer to the request at hand, where its sender is too old to be understood; None: it is not."""
    reason = too_old(request.headers.get("User-Agent", ""))
    if not reason:
        return None
    response = problem("upgrade-required", reason)
    # RFC 9110, 15.5.22: such an answer names what to upgrade to.
    response.headers["Upgrade"] = "ec262/" + ".".join(map(str, OLDEST_CLIENT))
    response.headers["Connection"] = "upgrade"
    return response


def answer_errors(app: Flask, log: logging.Logger, *, challenge: str) -> None:
    """Has every error of `app` answered with a problem document; faults of the service itself go to `log`.

    Args:
        challenge: the ``WWW-Authenticate`` header of every 401 (RFC 9110, section 11.6.1).
    """

    @app.errorhandler(ProblemError)
    def refused(error: ProblemError) -> Response:
        fields = {name: value for name, value in error.fields.items() if isinstance(value, int)}
        response = problem(error.code, error.detail, needed=fields.get("needed"), available=fields.get("available"))
        if error.status == 401:
            response.headers["WWW-Authenticate"] = challenge
        return response

    @app.errorhandler(Malformed)
    def malformed(error: Malformed) -> Response:
        return problem("malformed-body", str(error))

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        return problem("body-too-large", "the body is larger than this route takes")

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        response = problem(
            _STATUS_CODES.get(status, "internal-error" if status >= 500 else "bad-request"), error.description or ""
        )
        if status == 405:
            response.headers["Allow"] = ", ".join(getattr(error, "valid_methods", None) or ())
        return response

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response:
        # A path from outside may hold control characters, which have no business in a terminal.
        log.exception(
            "a fault of this service in %s %s", request.method, request.path.encode("unicode_escape").decode()
        )
        return problem("internal-error", "a fault of this service, not of the request; it is logged")
