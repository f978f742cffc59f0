"""Problems: every error code that a service answers with, its status and what it means (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass

from ec262.protocol.messages import Problem, encode

CONTENT_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One code."""

    code: str
    status: int
    title: str


_KINDS = (
    ProblemKind("malformed-body", 400, "The body is not what this route takes"),
    ProblemKind("bad-request", 400, "The request cannot be understood"),
    ProblemKind("unauthorized", 401, "Account or secret is wrong"),
    ProblemKind("insufficient-credits", 402, "Not enough credits for a single task"),
    ProblemKind("forbidden", 403, "This account may not do that"),
    ProblemKind("banned", 403, "This account is banned"),
    ProblemKind("registration-closed", 403, "This service makes no accounts for strangers"),
    ProblemKind("invitation-refused", 403, "An invitation is needed, and this is none that is valid"),
    ProblemKind("unreachable", 403, "Nobody can connect to this worker at its address"),
    ProblemKind("relay-refused", 403, "The relay pass is not valid here and now"),
    ProblemKind("ticket-refused", 403, "The ticket is not valid here and now"),
    ProblemKind("not-found", 404, "There is nothing at this path"),
    ProblemKind("unknown-worker", 404, "This worker is not registered: register again"),
    ProblemKind("unknown-account", 404, "There is no such account"),
    ProblemKind("unknown-task", 404, "This account has no such task, or it is forgotten"),
    ProblemKind("unknown-job", 404, "This worker holds nothing of that job"),
    ProblemKind("method-not-allowed", 405, "This path does not take that method"),
    ProblemKind("request-timeout", 408, "The request came too slowly"),
    ProblemKind("conflict", 409, "Others changed the same things at the same time: try again"),
    ProblemKind("too-late", 410, "Nobody waits for this any more"),
    ProblemKind("length-required", 411, "The request does not say how long its body is"),
    ProblemKind("body-too-large", 413, "The body is larger than this route takes"),
    ProblemKind("uri-too-long", 414, "The request's path and query are longer than this service takes"),
    ProblemKind("unsupported-media-type", 415, "The body is of no media type that this route takes"),
    ProblemKind("upgrade-required", 426, "This version of EC262 is too old for the other side: upgrade it"),
    ProblemKind("too-many", 429, "This address or account has as many of these as it may have"),
    ProblemKind("rate-limited", 429, "Too many requests in a short time: wait as long as Retry-After says"),
    ProblemKind("headers-too-large", 431, "The request's headers are larger than this service takes"),
    ProblemKind("internal-error", 500, "The service has a fault; its log says more"),
    ProblemKind("busy", 503, "Too many large requests at once: try again later"),
    ProblemKind("unavailable", 503, "The service cannot answer now: try again later"),
    ProblemKind("absent", 504, "The worker does not wait at the relay; nothing was delivered"),
    ProblemKind("no-answer", 504, "The worker did not reply through the relay"),
)

PROBLEMS: dict[str, ProblemKind] = {kind.code: kind for kind in _KINDS}


def problem_body(
    code: str, detail: str, *, needed: int | None = None, available: int | None = None
) -> tuple[int, bytes]:
    """Status and JSON body of a problem."""
    kind = PROBLEMS[code]
    return kind.status, encode(
        Problem(title=kind.title, status=kind.status, code=code, detail=detail, needed=needed, available=available)
    )
