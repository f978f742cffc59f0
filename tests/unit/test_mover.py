"""The mover: what it archives, what it does not, and what becomes of statements, disks that are full, and Redis."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from discovery.archive.entry import encode_entry
from discovery.archive.files import segments
from discovery.archive.mover import BLOCK_ENTRIES, Mover
from discovery.archive.segment import NOTHING
from discovery.changes import Move
from discovery.ledger import export, verify
from discovery.store import books as books_module
from discovery.store.store import Store
from tests.unit.test_archive import filled

A, B = "account:" + "a" * 32, "account:" + "b" * 32


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    client.close()
    made = Store(redis_url)
    yield made
    made.close()


@pytest.fixture
def make_mover(store: Store, tmp_path: Path) -> Iterator[Callable[..., Mover]]:
    made: list[Mover] = []

    def make(**settings: Any) -> Mover:
        chosen = {"settle_s": 0, "wait_s": 0, "post_share": 1, **settings}
        made.append(Mover(store.books, tmp_path / "ledger", **chosen))
        return made[-1]

    yield make
    for mover in made:
        mover.close()


def account(store: Store, account_id: str) -> None:
    """Makes an account with 10 credits."""
    store._redis.hset("{ec}:account:" + account_id, "secret_hash", b"x")
    assert store.books.mint("mint", account_id, 10, "a start").outcome == "ok"


def accounts(store: Store, count: int) -> None:
    """Makes accounts, each an entry in the ledger."""
    for _ in range(count):
        account(store, os.urandom(16).hex())


def test_entries_go_to_disk_and_leave_redis(store: Store, make_mover: Callable[..., Mover], tmp_path: Path) -> None:
    mover = make_mover(segment_bytes=1)
    for round_ in range(1, 6):
        accounts(store, 3)
        assert mover.move() == 3
        assert store.books.waiting() == 0
        assert store.books.head().number == round_
        assert mover.move() == 0
    assert store.books.head().where == str(tmp_path / "ledger")
    audit = verify(store)
    assert (audit.faults, audit.movements, audit.blocks) == ([], 15, 5)
    assert len(segments(tmp_path / "ledger")) > 1


def test_young_entries_stay_in_redis(store: Store, make_mover: Callable[..., Mover]) -> None:
    accounts(store, 3)
    assert make_mover(wait_s=3600).move() == 0
    assert make_mover(settle_s=3600, wait_s=3600).move() == 0
    assert store.books.waiting() == 3
    assert store.books.head().number == 0


def test_a_full_block_does_not_wait(store: Store, make_mover: Callable[..., Mover]) -> None:
    pipeline = store._redis.pipeline()
    for _ in range(2 * BLOCK_ENTRIES + 5):
        pipeline.xadd("{ec}:ledger", {"m": encode_entry([("mint", A, 1)])})
    pipeline.hset("{ec}:balances", mapping={"mint": -(2 * BLOCK_ENTRIES + 5), A: 2 * BLOCK_ENTRIES + 5})
    pipeline.execute()
    assert make_mover(wait_s=3600).move() == 2 * BLOCK_ENTRIES
    assert (store.books.waiting(), store.books.head().number) == (5, 2)
    assert verify(store).faults == []


def test_of_two_movers_one_moves_and_the_other_takes_over(store: Store, make_mover: Callable[..., Mover]) -> None:
    first, second = make_mover(), make_mover()
    accounts(store, 2)
    assert first.move() == 2
    accounts(store, 2)
    assert second.move() == 0
    first.close()
    assert second.move() == 2
    assert (second.fault, store.books.head().number) == ("", 2)
    assert verify(store).faults == []


def test_a_block_that_was_written_and_not_acknowledged_is_finished_not_written_again(
    store: Store, make_mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mover = make_mover()
    accounts(store, 2)
    mover.move()
    accounts(store, 3)

    def dies(*_: object) -> str:
        raise redis.ConnectionError("killed")

    monkeypatch.setattr(store.books, "acknowledge", dies)
    with pytest.raises(redis.ConnectionError):
        mover.move()
    assert verify(store).faults == []
    assert any("not acknowledged yet" in note for note in verify(store).notes)
    size = segments(tmp_path / "ledger")[-1].stat().st_size
    monkeypatch.undo()
    assert make_mover().move() == 3
    assert segments(tmp_path / "ledger")[-1].stat().st_size == size
    assert (store.books.head().number, store.books.waiting()) == (2, 0)
    audit = verify(store)
    assert (audit.faults, audit.notes, audit.movements) == ([], [], 5)


def test_rows_are_posted_once_however_often_a_block_is_finished(
    store: Store, make_mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch
) -> None:
    account(store, "c" * 32)
    monkeypatch.setattr(store.books, "acknowledge", lambda *_: "head")
    for _ in range(3):
        mover = make_mover()
        assert mover.move() == 0
        assert "Redis changed" in mover.fault
    monkeypatch.undo()
    make_mover().move()
    (line,) = store.books.holdings("c" * 32).lines
    assert (line.what, line.received, line.movements) == ("mint:a start", 10, 1)


def test_a_replayed_block_is_refused(store: Store, make_mover: Callable[..., Mover]) -> None:
    """Acknowledging a block again, or one out of turn, neither moves the head nor loses an entry."""
    mover = make_mover()
    accounts(store, 2)
    old = store.books.head()
    mover.move()
    head = store.books.head()
    accounts(store, 2)
    _, entries = store.books.read((0, 0), (2**60, 0))
    first, last = entries[0][:2], entries[-1][:2]
    assert store.books.acknowledge(old, 1, head.digest, first, last) == "head"
    assert store.books.acknowledge(head, 2, bytes(32), last, last) == "entries"
    assert store.books.acknowledge(head, 2, bytes(32), first, (last[0] + 1, 0)) == "entries"
    assert (store.books.head(), store.books.waiting()) == (head, 2)


def test_a_redis_that_lost_the_acknowledgement_is_brought_up_to_date(
    store: Store, make_mover: Callable[..., Mover]
) -> None:
    accounts(store, 2)
    saved = [(key, store._redis.dump(key)) for key in ("{ec}:ledger", "{ec}:balances")]
    mover = make_mover()
    mover.move()
    head = store.books.head()
    mover.close()
    for key, data in saved:  # the append-only file ended before the acknowledgement
        assert isinstance(data, bytes)
        store._redis.restore(key, 0, data, replace=True)
    store._redis.hset("{ec}:ledger:head", mapping={"number": 0, "hash": NOTHING.hex(), "last": "0-0"})
    assert make_mover().move() == 2
    assert store.books.head() == head
    assert verify(store).faults == []


def test_a_redis_that_lost_entries_the_archive_has_is_a_fault_and_stays_one(
    store: Store, make_mover: Callable[..., Mover], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Restored from a backup: later entries are on disk alone. Nothing is mended, nothing more is archived."""
    accounts(store, 1)
    mover = make_mover()
    mover.move()
    saved = [(key, store._redis.dump(key)) for key in store._redis.keys("{ec}:*")]
    accounts(store, 2)
    mover.move()
    mover.close()
    assert verify(store).faults == []
    store._redis.flushall()
    for key, data in saved:
        assert isinstance(data, bytes)
        store._redis.restore(key, 0, data)
    before = segments(tmp_path / "ledger")[0].read_bytes()
    assert any("older state" in fault for fault in verify(store).faults)
    accounts(store, 4)
    late = make_mover()
    with caplog.at_level(logging.ERROR):
        assert late.move() == 0
    assert "Redis lost data" in late.fault
    assert "4 entries" in caplog.text
    assert store.books.waiting() == 4
    assert segments(tmp_path / "ledger")[0].read_bytes() == before
    assert any("older state" in fault for fault in verify(store).faults)


def test_an_emptied_redis_is_not_archived_over_the_old_ledger(
    store: Store, make_mover: Callable[..., Mover], tmp_path: Path
) -> None:
    accounts(store, 2)
    mover = make_mover()
    mover.move()
    mover.close()
    store._redis.flushall()
    accounts(store, 1)
    late = make_mover()
    assert late.move() == 0
    assert "knows nothing of" in late.fault
    assert verify(store, tmp_path / "ledger").faults != []


def test_another_directory_does_not_take_the_ledger_over(
    store: Store, make_mover: Callable[..., Mover], tmp_path: Path
) -> None:
    accounts(store, 2)
    make_mover().move()
    accounts(store, 2)
    for other in (tmp_path / "other", tmp_path / "third"):
        if other.name == "third":
            filled(other, 1)
        mover = Mover(store.books, other, settle_s=0, wait_s=0)
        assert mover.move() == 0
        assert "archive" in mover.fault
        mover.close()
    assert store.books.waiting() == 2


def test_a_lost_archive_is_not_begun_anew(store: Store, make_mover: Callable[..., Mover], tmp_path: Path) -> None:
    accounts(store, 2)
    mover = make_mover()
    mover.move()
    mover.close()
    for path in segments(tmp_path / "ledger"):
        path.unlink()
    accounts(store, 2)
    late = make_mover()
    assert late.move() == 0
    assert "is empty" in late.fault
    assert segments(tmp_path / "ledger") == []
    assert any("should be in" in fault for fault in verify(store).faults)


def test_a_disk_that_is_full_costs_nothing_but_memory(
    store: Store, make_mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts(store, 2)
    mover = make_mover()
    mover.move()
    accounts(store, 2)
    write = os.write

    def full(file: int, data: bytes) -> int:
        write(file, bytes(data)[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    assert mover.move() == 0
    assert "No space left" in mover.fault
    monkeypatch.undo()
    assert mover.move() == 0, "it does not try again at once"
    assert make_mover().move() == 2
    assert verify(store).faults == []


def test_a_block_that_the_disk_did_not_take_is_not_read_as_if_it_had(
    store: Store, make_mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A failed fsync: the bytes can be read, from memory, and would be gone after a power cut."""
    accounts(store, 2)
    mover = make_mover()
    mover.move()
    (path,) = segments(tmp_path / "ledger")
    size = path.stat().st_size
    accounts(store, 3)

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fails)
    assert mover.move() == 0
    assert mover.trouble == "Input/output error"
    assert path.stat().st_size == size
    monkeypatch.undo()
    late = make_mover()
    assert late.move() == 3
    assert (late.fault, late.trouble, store.books.head().number) == ("", "", 2)
    assert verify(store).faults == []


# --- statements -----------------------------------------------------------------------------------


def paid(store: Store, chance: random.Random, commits: int) -> None:
    """Commits of several jobs and transfers among a few accounts."""
    people = [f"account:{number:032x}" for number in range(6)]
    for _ in range(commits):
        moves: list[Move] = []
        whats: list[tuple[str, int]] = []
        for _ in range(chance.randint(1, 3)):
            what = chance.choice(["job:j", "job:k", "transfer:x/y"])
            count = chance.randint(1, 4)
            for source, target in (chance.sample(people, 2) for _ in range(count)):
                moves.append((source, target, chance.randint(1, 2**40)))
            whats.append((what, count))
        store._redis.xadd("{ec}:ledger", {"m": encode_entry(moves, whats)})


def told(store: Store, account_id: str) -> Counter[tuple[str, str]]:
    """What a statement adds up to, by what it was for."""
    sums: Counter[tuple[str, str]] = Counter()
    for line in store.books.holdings(account_id).lines:
        sums[line.what, "received"] += line.received
        sums[line.what, "paid"] += line.paid
        sums[line.what, "movements"] += line.movements
    return sums


def moved(store: Store, account_id: str) -> Counter[tuple[str, str]]:
    """The same from all movements there ever were."""
    sums: Counter[tuple[str, str]] = Counter()
    for movement in export(store):
        for place, name in ((movement.target, "received"), (movement.source, "paid")):
            if place == f"account:{account_id}":
                sums[movement.what, name] += movement.amount
                sums[movement.what, "movements"] += 1
    return sums


@pytest.mark.parametrize("seed", range(6))
def test_however_often_posting_is_interrupted_statements_say_what_moved(
    store: Store, make_mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Interrupted before or after any call of it, with several blocks at once, and goes on in another process."""
    chance = random.Random(seed)
    monkeypatch.setattr(books_module, "_ROWS_A_POST", 3)
    run = store.books._run
    left = 0

    def breaks(name: str, *arguments: object) -> object:
        nonlocal left
        if name != "post_rows":
            return run(name, *arguments)
        left -= 1
        if left == 0:
            raise redis.ConnectionError("before")
        answer = run(name, *arguments)
        if left == -1:
            raise redis.ConnectionError("after")
        return answer

    monkeypatch.setattr(store.books, "_run", breaks)
    shares = [1.0, 0.01]
    mover = make_mover(post_share=chance.choice(shares))
    broken = 0
    for _ in range(12):
        paid(store, chance, chance.randint(1, 5))
        left = chance.choice([0, 1, 2, 3, 5, 1000])
        if chance.random() < 0.3:
            mover.close()  # killed
            mover = make_mover(post_share=chance.choice(shares))
        try:
            mover.move()
        except redis.ConnectionError:
            broken += 1
    left = 10**9
    mover.close()
    mover = make_mover()
    mover.move()
    assert broken >= 2
    assert mover.fault == ""
    head = store.books.head()
    assert head.posted == (head.number, head.number, 0)
    for number in range(6):
        assert told(store, f"{number:032x}") == moved(store, f"{number:032x}")


def test_a_statement_says_how_far_it_goes_while_rows_wait(store: Store, make_mover: Callable[..., Mover]) -> None:
    mover = make_mover()
    account(store, "c" * 32)
    mover.move()
    assert len(store.books.holdings("c" * 32).lines) == 1
    mover._post_not_before = float("inf")
    first = store.books.head().last
    store.books.mint("mint", "c" * 32, 5, "later")
    mover.move()
    assert store.books.waiting() == 0, "it is on disk"
    holdings = store.books.holdings("c" * 32)
    assert (len(holdings.lines), holdings.balance) == (1, 15)
    assert holdings.complete_ms == first[0]
    mover.close()
    # The next process finds the rows in the blocks, and nothing else to do.
    late = make_mover(wait_s=3600)
    assert late.move() == 0
    holdings = store.books.holdings("c" * 32)
    assert [line.what for line in holdings.lines] == ["mint:later", "mint:a start"]
    assert holdings.complete_ms > store.books.head().last[0]


def test_rows_from_a_segment_that_is_no_longer_the_last_are_found(
    store: Store, make_mover: Callable[..., Mover], tmp_path: Path
) -> None:
    mover = make_mover(segment_bytes=1)
    mover._post_not_before = float("inf")
    for number in range(20):
        account(store, f"{number:032x}")
        mover.move()
    assert len(segments(tmp_path / "ledger")) > 2
    mover.close()
    make_mover(segment_bytes=1).move()
    for number in range(20):
        (line,) = store.books.holdings(f"{number:032x}").lines
        assert (line.received, line.movements) == (10, 1)


def test_rows_are_not_posted_more_often_than_redis_has_time_for(
    store: Store, make_mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = make_mover(post_share=0.05)
    posts: list[object] = []
    done = store.books.post

    def counted(*arguments: Any) -> Any:
        posts.append(arguments)
        return done(*arguments)

    monkeypatch.setattr(store.books, "post", counted)
    clock = iter(range(0, 10**6, 2))  # each look at it takes two seconds
    monkeypatch.setattr("discovery.archive.mover.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    for _ in range(60):
        accounts(store, 1)
        assert mover.move() == 1
    assert 1 < len(posts) < 15
    monkeypatch.setattr("discovery.archive.mover.MOST_ROWS_HELD", 3)
    before = len(posts)
    for _ in range(9):
        accounts(store, 1)
        mover.move()
    assert len(posts) >= before + 3, "memory for rows that wait is bounded"


# --- memory and disk ------------------------------------------------------------------------------


def test_a_store_that_has_no_memory_left_is_relieved(store: Store, make_mover: Callable[..., Mover]) -> None:
    """Where its `maxmemory` is used up Redis refuses whatever takes memory; letting entries go must not be among it."""
    accounts(store, 1)
    mover = make_mover()
    mover.move()
    client = store._redis
    for _ in range(20):
        client.xadd("{ec}:ledger", {"m": encode_entry([("mint", A, 1)] * 500, [("mint:many", 500)])})
    client.hincrby("{ec}:balances", A, 10_000)
    client.hincrby("{ec}:balances", "mint", -10_000)
    try:
        client.config_set("maxmemory", 100_000)
        with pytest.raises(redis.ResponseError):
            client.set("more", "x")
        assert mover.move() == 20
        assert mover.fault == ""
        assert store.books.waiting() == 0
        assert sum(line.received for line in store.books.holdings("a" * 32).lines) == 10_000
    finally:
        client.config_set("maxmemory", 0)
    assert verify(store).faults == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a file system")
def test_a_disk_that_is_really_full_and_then_is_not(store: Store, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("may not mount")
    mover = Mover(store.books, small / "ledger", settle_s=0, wait_s=0)
    try:
        accounts(store, 3)
        assert mover.move() == 3
        with contextlib.suppress(OSError), open(small / "other", "wb", buffering=0) as other:
            while True:
                other.write(bytes(1024))
        size = segments(small / "ledger")[0].stat().st_size
        for _ in range(400):
            accounts(store, 1)
        assert mover.move() == 0
        assert mover.trouble == "No space left on device"
        assert store.books.waiting() == 400
        assert segments(small / "ledger")[0].stat().st_size == size, "nothing half written is left in the way"
        assert verify(store).faults == []
        (small / "other").unlink()
        mover._not_before = 0
        assert mover.move() == 400
        assert (mover.fault, mover.trouble) == ("", "")
        assert verify(store).faults == []
    finally:
        mover.close()
        subprocess.run(["umount", str(small)], check=True)


def test_a_directory_that_cannot_be_made_is_a_fault_without_its_path_for_strangers(
    store: Store, tmp_path: Path
) -> None:
    """A file is in the way."""
    (tmp_path / "file").write_text("")
    accounts(store, 1)
    mover = Mover(store.books, tmp_path / "file" / "ledger", settle_s=0, wait_s=0)
    assert mover.move() == 0
    assert str(tmp_path) in mover.fault
    assert mover.trouble == "Not a directory"
    assert store.books.waiting() == 1
