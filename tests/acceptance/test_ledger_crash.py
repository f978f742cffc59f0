"""The ledger survives kill -9: of whoever archives at every step of it, of Redis, of discovery with its store.

Run as a program this module is who archives, and dies where it is told. Each test has a long form, marked slow.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from discovery.archive.files import segments
from discovery.archive.mover import Mover
from discovery.ledger import Audit, verify
from discovery.operator import store_of
from discovery.store import books
from discovery.store.server import start_server
from discovery.store.store import Store
from tests.commands import run
from tests.processes import ROOT, Process, nothing_left, until

SEGMENT_BYTES = 2000
STEPS = ["write before", "write half", "write after", "sync before", "sync after"]
STEPS += ["acknowledge before", "acknowledge after", "post before", "post half", "post after"]


def long_form(*values: object) -> Any:
    """Parameters of a test's long form."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.timeout(1200)], id="long")


def account(store: Store) -> int:
    """Makes an account with 10 credits: one movement. Returns 1 when it is told so."""
    account_id = os.urandom(16).hex()
    store._redis.hset("{ec}:account:" + account_id, "secret_hash", b"x")
    return int(store.books.mint("mint", account_id, 10, "").outcome == "ok")


def die(*_: object) -> Any:
    """kill -9 of itself."""
    os.kill(os.getpid(), signal.SIGKILL)


def archive(url: str, directory: str, settle_s: str, step: str = "", turn: str = "0") -> None:
    """Archives until everything is on disk, or for ever; dies at the given step of the given turn."""
    books._ROWS_A_POST = 2
    store = Store(url)
    mover = Mover(
        *(store.books, Path(directory)),
        segment_bytes=SEGMENT_BYTES,
        settle_s=float(settle_s),
        wait_s=float(settle_s),
        post_share=1,
    )
    what, _, when = step.partition(" ")
    # Between two calls of the script that posts rows a posting is half done.
    homes: dict[str, tuple[object, str]] = {
        "write": (os, "write"),
        "sync": (os, "fsync"),
        "post": (store.books, "post") if when != "half" else (store.books, "_run"),
        "acknowledge": (store.books, "acknowledge"),
    }
    if what:
        home, name = homes[what]
        done: Callable[..., Any] = getattr(home, name)
        left = int(turn)

        def deadly(*arguments: Any) -> Any:
            nonlocal left
            if name == "_run" and arguments[0] != "post_rows":
                return done(*arguments)
            left -= 1
            if left < 0 and when == "before":
                die()
            if left < 0 and when == "half" and what == "write":
                done(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                die()
            answer = done(*arguments)
            if left < 0:
                die()
            return answer

        setattr(home, name, deadly)
    for _ in range(3 if what else 10**9):
        for _ in range(3):
            try:
                if what:
                    account(store)
                    account(store)
                mover.move()
            except redis.RedisError:
                time.sleep(0.02)
        if not what:
            time.sleep(0.005)
    mover.close()


def archiver(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", __name__, *map(str, words)], cwd=ROOT)


def clean(store: Store) -> Audit:
    audit = verify(store)
    assert audit.faults == []
    return audit


def statements_are_true(store: Store) -> None:
    """Each account has its one movement on its statement, once."""
    keys: Any = store._redis.keys("{ec}:account:*:statement")
    for key in keys:
        (line,) = store.books.holdings(key.decode().split(":")[2]).lines
        assert (line.received, line.paid, line.movements) == (10, 0, 1)
    assert len(keys) == -store.balances()[0]["mint"] // 10


@pytest.mark.parametrize("turns", [pytest.param((3,), id="short"), long_form(range(9))])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_a_block_nothing_is_lost_or_twice(
    redis_url: str, tmp_path: Path, step: str, turns: Sequence[int]
) -> None:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    client.close()
    store = Store(redis_url)
    killed = 0
    for turn in turns:
        process = archiver(redis_url, tmp_path / "ledger", 0, step, turn)
        killed += process.wait(60) == -signal.SIGKILL
        audit = clean(store)
        # Accounts are made one by one, each a movement: nobody who was told that it was made is missing.
        made = -store.balances()[0].get("mint", 0) // 10
        assert audit.movements == made
    assert killed >= max(1, len(turns) - 1)
    mover = Mover(store.books, tmp_path / "ledger", settle_s=0, wait_s=0, segment_bytes=SEGMENT_BYTES)
    mover.move()
    assert mover.fault == ""
    mover.close()
    audit = clean(store)
    assert (store.books.waiting(), audit.notes) == (0, [])
    assert audit.blocks > len(turns)
    statements_are_true(store)
    store.close()


class Clerk(threading.Thread):
    """Makes accounts, again and again, and knows how many it was told were made."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.store = Store(url)
        self.told = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.told += account(self.store)
            except redis.RedisError:
                time.sleep(0.01)

    def stop(self) -> int:
        """Ends; returns how many accounts it was told were made."""
        self.over.set()
        self.join()
        self.store.close()
        return self.told


@pytest.mark.parametrize("rounds", [pytest.param(2, id="short"), long_form(30)])
def test_redis_and_the_archiver_killed_at_random_lose_nothing_that_was_told(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(262)
    told = 0
    blocks = [0]
    for round_ in range(rounds):
        with nothing_left(), start_server(tmp_path / "store", fsync="always") as server:
            store = Store(server.url)
            if round_:
                # What was written before the kill and not acknowledged is brought to its end by the next one.
                assert clean(store).movements >= told
            clerk = Clerk(server.url)
            clerk.start()
            process = archiver(server.url, tmp_path / "ledger", 0)
            until(lambda: store.books.head().number > blocks[-1] + 1, what="further blocks")  # noqa: B023
            time.sleep(chance.uniform(0, 0.2))
            first, second = chance.choice([(server.pid, process.pid), (process.pid, server.pid)])
            os.kill(first, signal.SIGKILL)
            time.sleep(chance.choice([0, 0.02]))
            os.kill(second, signal.SIGKILL)
            process.wait()
            told += clerk.stop()
            store.close()
        with start_server(tmp_path / "store", fsync="always") as server:
            store = Store(server.url)
            audit = clean(store)
            assert audit.movements >= told, "accounts of which somebody was told"
            blocks.append(audit.blocks)
            store.close()
    assert blocks == sorted(blocks)
    assert len(segments(tmp_path / "ledger")) > 1
    with start_server(tmp_path / "store", fsync="always") as server:
        store = Store(server.url)
        mover = Mover(store.books, tmp_path / "ledger", settle_s=0, wait_s=0, post_share=1)
        while mover.move():
            pass
        mover.close()
        statements_are_true(store)
        store.close()


@pytest.mark.parametrize("rounds", [pytest.param(1, id="short"), long_form(8)])
def test_a_redis_that_loses_its_last_second_still_fits_the_archive(tmp_path: Path, rounds: int) -> None:
    """`appendfsync everysec` and a power cut: what is on disk was in Redis for longer than Redis can forget."""
    settle_s, lost_s = 1.5, 1.0
    chance = random.Random(5)
    for _ in range(rounds):
        with nothing_left(), start_server(tmp_path / "store", fsync="everysec") as server:
            store = Store(server.url)
            before = store.books.head().number
            clerk = Clerk(server.url)
            clerk.start()
            process = archiver(server.url, tmp_path / "ledger", settle_s)
            sizes: list[tuple[float, Path, int]] = []
            until_number = before + 3

            def noted() -> bool:
                path = max((tmp_path / "store" / "appendonlydir").glob("*.incr.aof"), key=lambda p: p.stat().st_mtime)
                sizes.append((time.monotonic(), path, path.stat().st_size))  # noqa: B023
                return store.books.head().number >= until_number  # noqa: B023

            until(noted, what="blocks")
            deadline = time.monotonic() + lost_s + chance.uniform(0.1, 0.5)
            until(lambda: noted() and time.monotonic() > deadline, what="time")  # noqa: B023
            os.kill(server.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            clerk.stop()
            store.close()
            end = sizes[-1][0]
        lost = [(path, size) for at, path, size in sizes if at <= end - lost_s][-1]
        assert lost[0].stat().st_size > lost[1]
        os.truncate(*lost)
        with start_server(tmp_path / "store", fsync="everysec") as server:
            store = Store(server.url)
            forgotten = store.books.head().number
            clean(store)
            mover = Mover(store.books, tmp_path / "ledger", settle_s=0, wait_s=0, segment_bytes=SEGMENT_BYTES)
            while mover.move():
                pass
            assert mover.fault == ""
            mover.close()
            assert clean(store).blocks > forgotten
            store.close()


def test_a_redis_that_lost_more_than_it_may_is_reported_and_not_mended(tmp_path: Path) -> None:
    with start_server(tmp_path / "store") as server:
        store = Store(server.url)
        mover = Mover(store.books, tmp_path / "ledger", settle_s=0, wait_s=0)
        for _ in range(3):
            account(store)
            mover.move()
        store._redis.save()
        store.close()
    shutil.copytree(tmp_path / "store", tmp_path / "backup", ignore=shutil.ignore_patterns("run", "lock"))
    with start_server(tmp_path / "store") as server:
        store = Store(server.url)
        mover.close()
        mover = Mover(store.books, tmp_path / "ledger", settle_s=0, wait_s=0)
        for _ in range(3):
            account(store)
            mover.move()
        mover.close()
        clean(store)
        store.close()
    done = run("ledger", "verify", "--data-dir", str(tmp_path / "backup"), home=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "restored from an older state" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_limit_of_all_credits_holds_after_kills(tmp_path: Path) -> None:
    """What was minted is known from the balances, whatever was killed and wherever the entries are by now."""
    with nothing_left():
        server = start_server(tmp_path / "store")
        store = Store(server.url)
        rich = os.urandom(16).hex()
        store._redis.hset("{ec}:account:" + rich, "secret_hash", b"x")
        assert store.books.mint("mint", rich, books.MOST_MINTED - 5, "nearly all").outcome == "ok"
        mover = Mover(store.books, tmp_path / "ledger", settle_s=0, wait_s=0)
        for amount, outcome in ((6, "most"), (3, "ok"), (3, "most"), (2, "ok"), (1, "most")):
            os.kill(server.pid, signal.SIGKILL)
            server = server.again()
            store.move_to(server.url)
            assert store.books.mint("mint", rich, amount, "more").outcome == outcome
            mover.move()
        assert store.balances()[0]["mint"] == -books.MOST_MINTED
        mover.close()
        clean(store)
        store.close()
        server.close()


@pytest.mark.parametrize("rounds", [pytest.param(1, id="short"), long_form(6)])
def test_discovery_with_its_store_killed_while_it_archives(tmp_path: Path, rounds: int) -> None:
    data = tmp_path / "data"
    told = 0
    blocks = 0
    for _ in range(rounds):
        with nothing_left():
            discovery = Process(
                ["-m", "discovery", "--port", "0", "--network", "private", "--data-dir", str(data)],
                home=tmp_path / "home",
                log=tmp_path / "discovery.log",
            )
            with store_of(None, data) as (store, _):
                clerk = Clerk("unix://" + str(store._redis.get_connection_kwargs()["path"]))
                clerk.start()
                until(lambda: store.books.head().number > blocks, 60, "a block")  # noqa: B023
                done = run("ledger", "verify", "--data-dir", str(data), home=tmp_path)
                assert done.returncode == 0, done.stderr
                discovery.kill()
                told += clerk.stop()
        done = run("ledger", "verify", "--data-dir", str(data), "--json", home=tmp_path)
        assert done.returncode == 0, done.stderr
        with store_of(None, data) as (store, directory):
            audit = verify(store, directory)
            assert audit.movements >= told
            blocks = audit.blocks
    assert "Traceback" not in (tmp_path / "discovery.log").read_text()


if __name__ == "__main__":
    archive(*sys.argv[1:])
