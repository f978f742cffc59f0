"""What the ledger costs: in Redis, on disk, to archive, to audit; and whether the archiver keeps up with a stream.

Two movements a replica, one when it is leased and one when it is paid, in commits of --batch tasks of two replicas; a
task is paid --apart commits after it was leased, so that nothing near repeats its id. Workers are drawn at random.

    python -m benchmarks.ledger [--tasks 200000] [--batch 100] [--workers 200] [--jobs 1]
    python -m benchmarks.ledger --rate 40000 --seconds 60 --workers 100000      a steady stream, in real time
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from discovery.archive.entry import encode_entry
from discovery.archive.files import segments
from discovery.archive.mover import Mover
from discovery.archive.rows import Rows
from discovery.archive.writer import open_writer
from discovery.changes import Move
from discovery.ledger import export, verify
from discovery.statements import Statements
from discovery.store.server import start_server
from discovery.store.store import Store

STREAM = "{ec}:ledger"
BUDGET = 10**12
BUSY = 40_000
"""Movements a second of 10,000 tasks of two replicas."""


class Market:
    """A foreman's commits, one after the other, and what they leave on accounts."""

    def __init__(self, workers: int, jobs: int, batch: int, apart: int) -> None:
        self.foreman = f"account:{os.urandom(16).hex()}"
        self.workers = [f"account:{os.urandom(16).hex()}" for _ in range(workers)]
        self.earned: Counter[str] = Counter()
        self.spent = 0
        self._jobs = [f"job:{os.urandom(16).hex()}" for _ in range(jobs)]
        self._batch, self._apart = batch, apart
        self._chance = random.Random(262)

    def entries(self, commits: int | None = None) -> Iterator[bytes]:
        """As many commits that lease, None: for ever, and those that pay."""
        open_: deque[tuple[str, list[str]]] = deque()
        for _ in count() if commits is None else range(commits):
            job = self._chance.choice(self._jobs)
            escrows = [f"escrow:{os.urandom(12).hex()}" for _ in range(self._batch)]
            moves: list[Move] = [(self.foreman, escrow, 1) for escrow in escrows for _ in range(2)]
            yield encode_entry(moves, [(job, len(moves))])
            open_.append((job, escrows))
            if len(open_) > self._apart:
                yield self._pay(*open_.popleft())
        while open_:
            yield self._pay(*open_.popleft())

    def _pay(self, job: str, escrows: list[str]) -> bytes:
        moves = []
        for escrow in escrows:
            for worker in self._chance.choices(self.workers, k=2):
                self.earned[worker] += 1
                moves.append((escrow, worker, 1))
        self.spent += len(moves)
        return encode_entry(moves, [(job, len(moves))])


def mint(client: Any, market: Market) -> None:
    """What the foreman has to spend."""
    client.xadd(STREAM, {"m": encode_entry([("mint", market.foreman, BUDGET)], [("start", 1)])})


def fill(store: Store, market: Market, tasks: int, batch: int) -> int:
    """Has the ledger of so many tasks in Redis, and the balances that follow; returns how many movements."""
    client: Any = store._redis
    mint(client, market)
    pipeline = client.pipeline(transaction=False)
    for entry in market.entries(tasks // batch):
        pipeline.xadd(STREAM, {"m": entry})
        if len(pipeline) >= 200:
            pipeline.execute()
    pipeline.execute()
    held = {"mint": -BUDGET, market.foreman: BUDGET - market.spent, **market.earned}
    for start in range(0, len(held), 10_000):
        client.hset("{ec}:balances", mapping=dict(islice(held.items(), start, start + 10_000)))
    return 2 * market.spent + 1


def redis_cpu_s(store: Store) -> float:
    """Processor seconds of Redis so far."""
    told: Any = store._redis.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


class Spent:
    """Seconds since it was made: by the clock, of this process, of Redis."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._start = (time.monotonic(), time.process_time(), redis_cpu_s(store))

    def told(self) -> tuple[float, float, float]:
        """The three."""
        clock, cpu, store = self._start
        return time.monotonic() - clock, time.process_time() - cpu, redis_cpu_s(self._store) - store


def measure(flags: argparse.Namespace, directory: Path) -> None:
    """A backlog, archived as fast as it goes."""
    with start_server(directory / "store", fsync="everysec") as server:
        store = Store(server.url)
        market = Market(flags.workers, flags.jobs, flags.batch, flags.apart)
        movements = fill(store, market, flags.tasks, flags.batch)
        entries, used = store.books.waiting(), store.books.memory().ledger
        print(f"{movements:,} movements in {entries:,} entries, {flags.workers:,} workers, {flags.jobs:,} jobs")
        print(f"Redis: {used / movements:.1f} bytes a movement, {used / entries:,.0f} an entry")
        posts = Posts(store)
        mover = Mover(store.books, directory / "ledger", settle_s=0, wait_s=0)
        spent = Spent(store)
        while mover.move():
            pass
        clock_s, cpu_s, redis_s = spent.told()
        mover.close()
        size = sum(path.stat().st_size for path in segments(directory / "ledger"))
        print(
            f"archived: {movements / clock_s:,.0f} movements/s, {entries / clock_s:,.0f} entries/s; at {BUSY:,} "
            f"movements/s {100 * BUSY * cpu_s / movements:.1f} % of a core, and {100 * BUSY * redis_s / movements:.1f} "
            f"% of Redis'; disk: {size / movements:.1f} bytes a movement, {size / entries:,.0f} an entry"
        )
        mover = Mover(store.books, directory / "ledger", post_share=1)
        mover.move()
        mover.close()
        posts.tell()
        clock = time.monotonic()
        writer = open_writer(directory / "ledger", store.books.head().number)
        assert writer is not None
        print(f"opened again: {movements / (time.monotonic() - clock):,.0f} movements/s of the last segment")
        writer.close()
        statements(store, market)
        clock = time.monotonic()
        audit = verify(store)
        print(f"verified: {movements / (time.monotonic() - clock):,.0f} movements/s; faults: {audit.faults}")
        clock = time.monotonic()
        exported = sum(1 for _ in export(store))
        print(f"exported: {exported / (time.monotonic() - clock):,.0f} movements/s")
        store.close()


class Posts:
    """What posting rows took of the two processors, and how many rows that were."""

    def __init__(self, store: Store) -> None:
        self.rows, self.cpu_s, self.redis_s = 0, 0.0, 0.0
        post = store.books.post

        def timed(head: Any, upto: int, last: Any, rows: Rows) -> Any:
            spent = Spent(store)
            answer = post(head, upto, last, rows)
            _, cpu_s, redis_s = spent.told()
            self.rows += sum(map(len, rows.values()))
            self.cpu_s += cpu_s
            self.redis_s += redis_s
            return answer

        store.books.post = timed  # type: ignore[method-assign]

    def tell(self) -> None:
        """Prints."""
        each = 1e6 / self.rows
        print(f"{self.rows:,} rows posted, in {each * self.cpu_s:.1f} us each, and {each * self.redis_s:.1f} of Redis")


def statements(store: Store, market: Market) -> None:
    """Asks for some statements."""
    accounts = [account.removeprefix("account:") for account in market.earned]
    sample = random.Random(1).sample(accounts, min(500, len(accounts)))
    client: Any = store._redis
    used = sum(client.memory_usage(f"{{ec}}:account:{account}:statement") for account in sample)
    lines = sum(len(store.books.holdings(account).lines) for account in sample)
    asked = Statements(store)
    clock = time.monotonic()
    for account in sample:
        asked.of(account, 0, 100)
    clock = time.monotonic() - clock
    print(
        f"a statement: {lines / len(sample):,.1f} rows, {used / len(sample):,.0f} bytes of Redis, asked for in "
        f"{1e3 * clock / len(sample):.2f} ms"
    )


def feed(flags: argparse.Namespace) -> None:
    """Writes entries at a steady rate until it is ended."""
    store = Store(flags.feed)
    client: Any = store._redis
    market = Market(flags.workers, flags.jobs, flags.batch, flags.apart)
    mint(client, market)
    entries = market.entries()
    began, done = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * flags.rate / (2 * flags.batch)) - done
        pipeline = client.pipeline(transaction=False)
        for entry in islice(entries, due):
            pipeline.xadd(STREAM, {"m": entry})
        pipeline.execute()
        done += due
        time.sleep(0.02)


def steady(flags: argparse.Namespace, directory: Path) -> None:
    """A stream in real time, and the archiver beside it as discovery runs it."""
    with start_server(directory / "store", fsync="everysec") as server:
        store = Store(server.url)
        words = [f"--{name}={getattr(flags, name)}" for name in ("rate", "workers", "jobs", "batch", "apart")]
        feeder = subprocess.Popen([sys.executable, "-m", "benchmarks.ledger", "--feed", server.url, *words])
        try:
            while not store.books.waiting():
                time.sleep(0.05)
            time.sleep(1)
            spent = Spent(store)
            time.sleep(5)
            clock_s, _, redis_s = spent.told()
            alone = redis_s / clock_s
            mover = Mover(store.books, directory / "ledger")
            peak, late = 0, 0.0
            while store.books.head().number == 0:
                mover.move()
                time.sleep(0.1)
            began, first = time.monotonic(), store.books.head().number
            spent, moved = Spent(store), 0
            while (now := time.monotonic()) < began + flags.seconds:
                moved += mover.move()
                if now > began + 10:
                    peak = max(peak, store.books.memory().ledger)
                    late = max(late, store.books.now_ms() / 1000 - store.books.head().posted_last[0] / 1000)
                time.sleep(max(0.0, now + 1 - time.monotonic()))
            clock_s, cpu_s, redis_s = spent.told()
        finally:
            feeder.kill()
            feeder.wait()
        movements = moved * 2 * flags.batch
        print(
            f"{flags.rate:,} movements/s wanted for {flags.seconds} s, {flags.workers:,} workers, {flags.jobs:,} jobs"
        )
        print(
            f"archived: {movements / clock_s:,.0f} movements/s in {store.books.head().number - first} blocks; "
            f"{100 * cpu_s / clock_s:.1f} % of a core, {100 * (redis_s / clock_s - alone):.1f} % of Redis' beside "
            f"{100 * alone:.1f} % for the stream itself"
        )
        print(f"the most that waited in Redis: {peak / 1e6:,.0f} MB; statements were behind by {late:,.0f} s at most")
        print(f"the archiver's process had {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB at most")
        mover.close()
        store.close()


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--apart", type=int, default=100)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rate", type=int, help="movements a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--feed", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.feed:
        feed(flags)
    with tempfile.TemporaryDirectory() as directory:
        (steady if flags.rate else measure)(flags, Path(directory))


if __name__ == "__main__":
    main()
