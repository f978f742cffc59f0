"""Metrics: what a service did and how it is, as Prometheus reads it.

Each process counts for itself and adds what it counted to Redis every few seconds. So any process can answer for all
of them, nothing starts at zero again with a process, and there are no files to tidy after dead ones, as the client
library's own way for several processes has.
"""

from __future__ import annotations

import bisect
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from discovery.store.rates import Rates

ROUTE = "ec262.route"
"""Where in the environment of a request its route's name is, once that is known."""
NO_ROUTE = "none"
FLUSH_S = 5.0
STALE_S = 3 * FLUSH_S
"""A process that said nothing for so long is no more."""
KEPT = 256
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Credits = Callable[[], tuple[int, int, int, int]]
"""Minted, burnt, on accounts, in escrow."""


class _State(msgspec.Struct, frozen=True, array_like=True):
    """How a process said that it is."""

    at_s: float
    memory: int
    cpu_s: float
    connections: int
    leads: bool


class Meter:
    """Counts the requests of one process; a WSGI application around the service's own.

    Attributes:
        connections: tells how many connections are open.
        leads: whether this process sweeps.
    """

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.process = f"{socket.gethostname()}:{os.getpid()}"
        self.connections: Callable[[], int] = int
        self.leads = False

    def around(self, app: WSGIApp) -> WSGIApp:
        """`app` with its requests counted."""

        def counting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            status = "500"

            def start(given: str, *rest: Any) -> Any:
                nonlocal status
                status = given[:3]
                return start_response(given, *rest)

            started = time.perf_counter()
            try:
                return app(environ, start)
            finally:
                self.saw(environ.get(ROUTE, NO_ROUTE), status, time.perf_counter() - started)

        return counting

    def saw(self, route: str, status: str, seconds: float) -> None:
        """A request was answered."""
        with self._lock:
            self._counted[f"requests|{route}|{status}"] += 1
            self._counted[f"seconds|{route}|{bisect.bisect_left(BUCKETS_S, seconds)}"] += 1
            self._counted[f"micros|{route}"] += int(seconds * 1e6)

    def count(self, what: str, number: int = 1) -> None:
        """Something else happened."""
        with self._lock:
            self._counted[what] += number

    def flush(self, *, last: bool = False) -> None:
        """Adds what was counted to what all processes counted; what did not arrive is added next time.

        Args:
            last: this process ends.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        with self._lock:
            counted, self._counted = self._counted, Counter()
        state = _State(time.time(), memory_bytes(), time.process_time(), self.connections(), self.leads)
        try:
            self._rates.count(counted, self.process, b"" if last else msgspec.msgpack.encode(state), KEPT)
        except BaseException:
            with self._lock:
                self._counted.update(counted)
            raise


def exposition(rates: Rates, credits: Credits) -> bytes:
    """Everything, in Prometheus' text format; raises `redis.RedisError`."""
    registry = CollectorRegistry()
    registry.register(_Collector(rates, credits))
    return generate_latest(registry)


class _Collector:
    def __init__(self, rates: Rates, credits: Credits) -> None:
        self._rates = rates
        self._credits = credits

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on what was counted."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Reads Redis once."""
        counted, processes, store = self._rates.counted()
        yield from _requests(counted)
        yield from _processes(processes)
        minted, burnt, accounts, escrow = self._credits()
        credits = GaugeMetricFamily("ec262_credits", "Credits; minted - burnt = accounts + escrow", labels=["place"])
        for place, amount in (("minted", minted), ("burnt", burnt), ("accounts", accounts), ("escrow", escrow)):
            credits.add_metric([place], amount)
        yield credits
        for name, what, value in (
            ("ec262_workers", "Workers registered", store["workers"]),
            ("ec262_tasks", "Tasks that are open, or can be asked for still", store["due"]),
            ("ec262_ledger_waiting_entries", "Entries of the ledger that are not on disk yet", store["waiting"]),
            ("ec262_store_memory_bytes", "Memory that Redis uses", store["memory"]),
        ):
            yield GaugeMetricFamily(name, what, value=value)


def _requests(counted: dict[str, int]) -> Iterator[Metric]:
    requests = CounterMetricFamily("ec262_requests", "Requests answered", labels=["route", "status"])
    limited = CounterMetricFamily("ec262_rate_limited", "Requests refused by a rate limit", labels=["limit"])
    faults = CounterMetricFamily("ec262_faults", "Faults of the service that its log explains", labels=["where"])
    buckets: dict[str, list[int]] = {}
    for name, number in sorted(counted.items()):
        what, *rest = name.split("|")
        if what == "requests":
            requests.add_metric(rest, number)
        elif what == "limited":
            limited.add_metric(rest, number)
        elif what == "faults":
            faults.add_metric(rest, number)
        elif what == "seconds":
            buckets.setdefault(rest[0], [0] * (len(BUCKETS_S) + 1))[int(rest[1])] += number
    seconds = HistogramMetricFamily("ec262_request_seconds", "Time to answer a whole request", labels=["route"])
    for route, counts in buckets.items():
        total = 0
        cumulated = []
        for bound, number in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
            total += number
            cumulated.append((bound, float(total)))
        seconds.add_metric([route], cumulated, counted.get(f"micros|{route}", 0) / 1e6)
    yield from (requests, limited, faults, seconds)


def _processes(processes: dict[str, bytes]) -> Iterator[Metric]:
    memory = GaugeMetricFamily("ec262_process_memory_bytes", "Resident memory", labels=["process"])
    cpu = CounterMetricFamily("ec262_process_cpu_seconds", "Processor time", labels=["process"])
    connections = GaugeMetricFamily("ec262_process_connections", "Connections open", labels=["process"])
    leads = GaugeMetricFamily("ec262_process_leads", "1 for the process that sweeps", labels=["process"])
    for process, packed in sorted(processes.items()):
        state = msgspec.msgpack.decode(packed, type=_State)
        if time.time() - state.at_s < STALE_S:
            memory.add_metric([process], state.memory)
            cpu.add_metric([process], state.cpu_s)
            connections.add_metric([process], state.connections)
            leads.add_metric([process], int(state.leads))
    yield from (memory, cpu, connections, leads)


def memory_bytes() -> int:
    """Resident memory of this process: now, where Linux tells; else the most there ever was."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
