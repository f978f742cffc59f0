"""What the ledger costs: bytes of a movement in Redis and on disk, and the time to archive, audit and export it.

Two movements a replica, one when it is leased and one when it is paid, in commits of --batch tasks of two replicas.

    python -m benchmarks.ledger [--tasks 200000] [--batch 100] [--workers 200]
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from discovery.archive.entry import encode_entry
from discovery.archive.files import segments
from discovery.archive.mover import Mover
from discovery.changes import Move
from discovery.ledger import export, verify
from discovery.store.server import start_server
from discovery.store.store import Store

STREAM = "{ec}:ledger"
BUDGET = 10**12
BUSY = 40_000
"""Movements a second of 10,000 tasks of two replicas."""


def fill(store: Store, tasks: int, batch: int, workers: list[str]) -> int:
    """Has the ledger of so many tasks in Redis, and the balances that follow; returns how many movements."""
    client: Any = store._redis
    foreman, job = f"account:{os.urandom(16).hex()}", f"job:{os.urandom(16).hex()}"
    client.xadd(STREAM, {"m": encode_entry([("mint", foreman, BUDGET)], [("start", 1)])})
    earned: Counter[str] = Counter()
    chance = random.Random(262)
    pipeline = client.pipeline(transaction=False)
    for _ in range(0, tasks, batch):
        escrows = [f"escrow:{os.urandom(12).hex()}" for _ in range(batch)]
        leased: list[Move] = [(foreman, escrow, 1) for escrow in escrows for _ in range(2)]
        paid: list[Move] = []
        for escrow in escrows:
            for worker in chance.choices(workers, k=2):
                earned[worker] += 1
                paid.append((escrow, worker, 1))
        for moves in (leased, paid):
            pipeline.xadd(STREAM, {"m": encode_entry(moves, [(job, len(moves))])})
        if len(pipeline) >= 200:
            pipeline.execute()
    pipeline.execute()
    spent = sum(earned.values())
    client.hset("{ec}:balances", mapping={"mint": -BUDGET, foreman: BUDGET - spent, **earned})
    return 2 * spent + 1


def redis_cpu_s(store: Store) -> float:
    """Processor seconds of Redis so far."""
    told: Any = store._redis.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


def memory(store: Store) -> int:
    """Bytes that Redis holds."""
    told: Any = store._redis.info("memory")
    return int(told["used_memory"])


def measure(tasks: int, batch: int, workers: int, directory: Path) -> None:
    """Measures and prints."""
    with start_server(directory / "store", fsync="everysec") as server:
        store = Store(server.url)
        empty = memory(store)
        count = fill(store, tasks, batch, [f"account:{os.urandom(16).hex()}" for _ in range(workers)])
        used = memory(store) - empty
        print(f"{count:,} movements in {store.books.waiting():,} entries")
        print(f"Redis: {used / count:.1f} bytes a movement, {used / store.books.waiting():,.0f} an entry")
        mover = Mover(store.books, directory / "ledger", settle_s=0, wait_s=0)
        clock_s, cpu_s, redis_s = time.monotonic(), time.process_time(), redis_cpu_s(store)
        while mover.move():
            pass
        clock_s, cpu_s, redis_s = (
            *(time.monotonic() - clock_s, time.process_time() - cpu_s),
            redis_cpu_s(store) - redis_s,
        )
        mover.close()
        size = sum(path.stat().st_size for path in segments(directory / "ledger"))
        print(f"archived: {count / clock_s:,.0f}/s; at {BUSY:,}/s {100 * BUSY * cpu_s / count:.1f} % of a core", end="")
        print(f" and {100 * BUSY * redis_s / count:.1f} % of Redis'; disk: {size / count:.1f} bytes a movement")
        clock_s = time.monotonic()
        audit = verify(store)
        print(f"verified: {count / (time.monotonic() - clock_s):,.0f}/s; faults: {audit.faults}")
        clock_s = time.monotonic()
        exported = sum(1 for _ in export(store))
        print(f"exported: {exported / (time.monotonic() - clock_s):,.0f}/s")
        store.close()


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--workers", type=int, default=200)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(flags.tasks, flags.batch, flags.workers, Path(directory))


if __name__ == "__main__":
    main()
