"""Matching: what finding workers for a lease costs, with few and with many workers registered.

``python -m benchmarks.matching`` prints it, for 10, 1,000 and 100,000 workers in an embedded store of its own, in CPU
time of this process and the store together, which says more than a clock where others use the machine as well. What a
lease costs does not grow with the workers.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from discovery.matching import assign, newcomers_of
from discovery.records import WorkerRecord
from discovery.settings import Settings
from discovery.store.server import start_server
from discovery.store.store import Most, Store

CLASS = "native/3.11"
COUNTS = (10, 1_000, 100_000)
SAMPLE = Settings().sample
TASKS = 1000
ROUNDS = 300
_ROWS = (
    *("a worker registers", "a heartbeat", "draw: any worker", "draw: a capability of 1 in 10", "draw: a platform"),
    *("draw: capability and platform", "draw: three prices", "draw: two capabilities", "match 1,000 tasks, 1 replica"),
    *("match 1,000 tasks, 3 unrelated", "match 1 task, 1 replica", "Redis memory a worker (bytes)"),
)


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of CPU a call, and bytes, by the name of a row."""

    workers: int
    rows: dict[str, float]


def measure(workers: int, rounds: int = ROUNDS) -> Costs:
    """Registers so many workers in a store of its own and measures what finding some of them costs."""
    with (
        tempfile.TemporaryDirectory(prefix="ec262-") as directory,
        start_server(Path(directory) / "store", ephemeral=True, fsync="no") as server,
        redis.Redis.from_url(server.url) as client,
    ):
        store = Store(server.url)
        try:
            return _measure(store, client, workers, rounds)
        finally:
            store.close()


def _measure(store: Store, client: redis.Redis, workers: int, rounds: int) -> Costs:
    before = _memory(client)
    for number in range(max(0, workers - 1000)):
        _register(store, number)
    coming = iter(range(max(0, workers - 1000), workers))
    last = min(workers, 1000)
    rows: dict[str, float] = {"a worker registers": _cost(client, lambda: _register(store, next(coming)), last)}
    if workers >= 1000:  # of fewer it would be the server's own
        rows["Redis memory a worker (bytes)"] = (_memory(client) - before) / workers
    chance = random.Random(7)

    def draw(needs: Sequence[str] = (), offer: int = 1) -> Callable[[], object]:
        return lambda: store.sample(CLASS, needs, SAMPLE, offer=offer)

    def beat() -> object:
        number = chance.randrange(workers)
        return store.heartbeat(_id(number), _account(number), _id(number), 3_600_000)

    for name, function in {
        "a heartbeat": beat,
        "draw: any worker": draw(),
        "draw: a capability of 1 in 10": draw(["data:rare"]),
        "draw: a platform": draw(["platform:x86_64"]),
        "draw: capability and platform": draw(["data:rare", "platform:x86_64"]),
        "draw: three prices": draw(offer=3),
    }.items():
        rows[name] = _cost(client, function, rounds)
    rows["draw: two capabilities"] = _cost(client, draw(["data:all", "data:rare"]), min(rounds, 30))
    drawn = store.sample(CLASS, [], SAMPLE).workers
    rows["match 1,000 tasks, 1 replica"] = _cost(client, lambda: _match(drawn, TASKS, 1, chance), min(rounds, 50))
    if len(drawn) >= 3:
        rows["match 1,000 tasks, 3 unrelated"] = _cost(client, lambda: _match(drawn, TASKS, 3, chance), min(rounds, 20))
    rows["match 1 task, 1 replica"] = _cost(client, lambda: _match(drawn, 1, 1, chance), rounds)
    return Costs(workers, rows)


def _match(drawn: Sequence[WorkerRecord], tasks: int, replicas: int, chance: random.Random) -> object:
    return assign(
        drawn,
        tasks=tasks,
        replicas=replicas,
        distinct="account,address",
        chance=chance,
        newcomers=newcomers_of(drawn),
    )


def _register(store: Store, number: int) -> None:
    store.register(
        worker_id=_id(number),
        account_id=_account(number),
        address=f"{1 + number % 199}.{number // 199 % 251}.{number // 49_949 % 251}.1",
        port=1,
        slots=4,
        capacity=2048,
        boot_id=_id(number),
        worker_class=CLASS,
        ttl_ms=3_600_000,
        layers=["seccomp", "landlock"],
        capabilities=["data:all", "data:rare"] if number % 10 == 0 else ["data:all"],
        ask=1 + (number % 20) // 18 + (number % 20) // 19,
        platform="aarch64" if number % 4 == 3 else "x86_64",
        near=f"{number % 50_000:x}/24",
        most=Most(64, 1024, 256),
    )


def _id(number: int) -> str:
    return f"{number:032x}"


def _account(number: int) -> str:
    return f"{number // 2:032x}"


def _cost(client: redis.Redis, function: Callable[[], object], rounds: int) -> float:
    """Microseconds of CPU that a call takes, here and in the store, mean."""
    start = _cpu_s(client)
    for _ in range(rounds):
        function()
    return (_cpu_s(client) - start) / rounds * 1e6


def _cpu_s(client: redis.Redis) -> float:
    used = client.info("cpu")
    return time.process_time() + float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _memory(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def table(costs: Sequence[Costs]) -> str:
    """The costs, a line each, a column for each number of workers."""
    width = max(map(len, _ROWS))
    lines = [f"{'CPU microseconds a call':<{width}}" + "".join(f"{each.workers:>12,}" for each in costs)]
    for row in _ROWS:
        cells = (f"{each.rows[row]:>12,.0f}" if row in each.rows else f"{'-':>12}" for each in costs)
        lines.append(f"{row:<{width}}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matching", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--workers", type=int, nargs="+", default=list(COUNTS), metavar="N", help="how many are registered"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="of each measurement")
    flags = parser.parse_args(arguments)
    costs = []
    for count in flags.workers:
        print(f"registering {count:,} workers ...", file=sys.stderr, flush=True)
        costs.append(measure(count, flags.rounds))
    print(table(costs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
