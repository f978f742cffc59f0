"""Metrics: a worker's status in the text format of Prometheus (exposition format 0.0.4), on a port of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ec262.worker.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(status: Status) -> str:
    """All metrics. No names from outside are in it."""
    lines: list[str] = []
    for name, kind, help_text, samples in _families(status):
        lines += [f"# HELP ec262_worker_{name} {help_text}", f"# TYPE ec262_worker_{name} {kind}"]
        lines += [f"ec262_worker_{name}{labels} {value:g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _families(status: Status) -> Iterator[tuple[str, str, str, list[tuple[str, float]]]]:
    def one(name: str, kind: str, help_text: str, value: float) -> tuple[str, str, str, list[tuple[str, float]]]:
        return name, kind, help_text, [("", value)]

    yield one("slots", "gauge", "Tasks computed at a time while the worker works.", status.slots)
    yield one("willing", "gauge", "1 while the worker wants leases.", float(status.willing))
    yield one("connected", "gauge", "1 while discovery answers.", float(status.connected))
    yield one("relayed", "gauge", "1 while foremen come through the relay alone.", float(status.relay))
    yield one("running_tasks", "gauge", "Tasks being computed.", sum(job.running for job in status.jobs))
    yield one("queued_tasks", "gauge", "Tasks taken and not started.", sum(job.queued for job in status.jobs))
    yield one("unfetched_results", "gauge", "Results not fetched yet.", sum(job.unfetched for job in status.jobs))
    yield one("jobs", "gauge", "Jobs of which something is here.", len(status.jobs))
    yield one("tasks_taken_total", "counter", "Tasks taken since the start.", status.taken)
    yield (
        *("tasks_finished_total", "counter", "Tasks finished since the start, by what came of them."),
        [(f'{{kind="{kind}"}}', count) for kind, count in sorted(status.finished.items())],
    )
    yield one("cpu_seconds_total", "counter", "CPU seconds that finished tasks used since the start.", status.cpu_s)
    yield one("earned_credits_total", "counter", "Credits this worker has earned in all.", status.earned)
    yield one("uptime_seconds", "gauge", "Since the start.", status.uptime_s)


def metrics_app(status: Callable[[], Status]) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """The WSGI application: ``GET /metrics``, and nothing else."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = environ.get("PATH_INFO") == "/metrics" and environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        body = exposition(status()).encode() if found else b"GET /metrics\n"
        kind = CONTENT_TYPE if found else "text/plain; charset=utf-8"
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response("200 OK" if found else "404 Not Found", headers)
        return [body if environ.get("REQUEST_METHOD") != "HEAD" else b""]

    return answer
