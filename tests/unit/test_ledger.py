"""The ledger: audits that see whatever was tampered with, exports, statements, transfers, minting."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from discovery.app import Discovery
from discovery.archive import segment
from discovery.archive.entry import decode_entry, encode_entry
from discovery.archive.files import ArchiveFault, Walk, segments
from discovery.archive.mover import Mover
from discovery.archive.segment import BLOCK, NOTHING, Entry
from discovery.archive.sums import Faults, Sums
from discovery.archive.turnover import Turnover
from discovery.ledger import Audit, Movement, export, verify
from discovery.store.books import MOST_MINTED, MOST_ROWS
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind
from tests.parties import Caller, Foreman, Problem, Worker, answer_all


@pytest.fixture
def mover(discovery: Discovery, tmp_path: Path) -> Iterator[Mover]:
    """Archives whatever there is, a block a call, in small segments."""
    made = Mover(discovery.store.books, tmp_path / "ledger", settle_s=0, wait_s=0, post_share=1, segment_bytes=4000)
    yield made
    made.close()


@pytest.fixture
def busy(discovery: Discovery, mover: Mover) -> list[Caller]:
    """A ledger of many blocks: a foreman and workers that did some jobs; something is open, something not on disk."""
    foreman = Foreman(discovery)
    workers = [Worker(Caller(discovery)) for _ in range(3)]
    for _ in range(12):
        leased = foreman.lease(10, redundancy=3, quorum=2)
        assert mover.move() > 0
        foreman.settle(answer_all(leased, workers), [task.task_id for task in leased.tasks])
        mover.move()
    foreman.lease(3)
    assert len(segments(mover.directory)) >= 3
    assert discovery.store.books.waiting() > 0
    return [foreman, *(worker.caller for worker in workers)]


def clean(audit: Audit) -> Audit:
    assert audit.faults == []
    assert audit.minted - audit.burnt == audit.accounts + audit.escrow
    return audit


# --- audits ---------------------------------------------------------------------------------------


def test_a_whole_and_a_quick_audit_agree(discovery: Discovery, busy: list[Caller]) -> None:
    told: list[tuple[int, int]] = []
    whole = clean(verify(discovery.store, progress=lambda done, there: told.append((done, there))))
    quick = clean(verify(discovery.store, quick=True))
    assert whole.escrow > 0
    assert (whole.movements, whole.blocks, whole.digest) == (quick.movements, quick.blocks, quick.digest)
    assert whole.notes == []
    assert "not added up" in quick.notes[0]
    assert told == sorted(told)
    assert told[-1][0] == sum(path.stat().st_size for path in segments(Path(discovery.store.books.head().where)))


def test_checkpoints_hold_no_task_that_is_over(busy: list[Caller], mover: Mover) -> None:
    walk = Walk(mover.directory)
    checkpoints = [frame.checkpoint() for frame in iter(walk.step, None) if frame.header.kind == b"C"]
    walk.close()
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        assert len(checkpoint.balances) <= 1 + 4 + 10, "mint, accounts and the tasks of one lease"
        assert all(checkpoint.balances.values())


def test_an_audit_of_a_service_at_work_sees_one_instant(discovery: Discovery, mover: Mover, redis_url: str) -> None:
    over = threading.Event()
    faults: list[BaseException] = []

    def work() -> None:
        try:
            foreman, workers = Foreman(discovery), [Worker(Caller(discovery)) for _ in range(2)]
            while not over.is_set():
                leased = foreman.lease(5, redundancy=2, quorum=2)
                foreman.settle(answer_all(leased, workers), [task.task_id for task in leased.tasks])
                mover.move()
        except BaseException as reason:
            faults.append(reason)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    try:
        seen = [clean(verify(discovery.store))]
        until_s = time.monotonic() + 60
        while len(seen) < 40 or (seen[-1].blocks <= seen[0].blocks and time.monotonic() < until_s):
            seen.append(clean(verify(discovery.store)))
        exported = sum(1 for _ in export(discovery.store))
    finally:
        over.set()
        thread.join()
    assert faults == []
    assert seen[-1].blocks > seen[0].blocks
    assert exported >= seen[-1].movements


def test_entries_that_go_to_disk_while_an_audit_reads_are_counted_once(
    discovery: Discovery, busy: list[Caller], mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verify(discovery.store).movements
    books = discovery.store.books
    read = books.read

    def moved_meanwhile(*arguments: object) -> object:
        monkeypatch.undo()
        Caller(discovery)  # after the audit's instant: not counted
        assert mover.move() > 0
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(books, "read", moved_meanwhile)
    audit = verify(discovery.store)
    assert (audit.faults, audit.movements) == ([], before)
    assert books.waiting() == 0


def test_an_anchor_told_earlier_holds_and_another_does_not(
    discovery: Discovery, busy: list[Caller], mover: Mover
) -> None:
    audit = clean(verify(discovery.store))
    mover.move()
    clean(verify(discovery.store, anchor=(audit.blocks, audit.digest.upper())))
    assert "once was" in verify(discovery.store, anchor=(audit.blocks, "0" * 64)).faults[0]
    assert "not among those" in verify(discovery.store, anchor=(10_000, "0" * 64)).faults[0]


# --- tampering ------------------------------------------------------------------------------------


@pytest.fixture
def copy(busy: list[Caller], mover: Mover, tmp_path: Path) -> Path:
    """A copy of the archive, to be tampered with."""
    made = tmp_path / "copy"
    shutil.copytree(mover.directory, made)
    for path in segments(made):
        os.chmod(path, 0o600)
    return made


def frames_of(directory: Path) -> list[tuple[Path, int, bytes]]:
    """Path, place and bytes of each frame."""
    walk, found = Walk(directory), []
    at: tuple[Path | None, int] = (None, 0)
    while (frame := walk.step()) is not None:
        assert walk.path is not None
        start = at[1] if at[0] == walk.path else 0
        found.append((walk.path, start, walk.path.read_bytes()[start : walk.position]))
        at = (walk.path, walk.position)
        assert frame.header.size == walk.position - start
    walk.close()
    return found


def kind(frame: tuple[Path, int, bytes]) -> bytes:
    return segment.read_header(frame[2][: segment.HEADER.size]).kind


def write_frames(frames: list[tuple[Path, int, bytes]]) -> None:
    for path in {path for path, _, _ in frames}:
        path.write_bytes(b"".join(data for other, _, data in frames if other == path))


def test_tampering_one_bit_anywhere_is_found(discovery: Discovery, copy: Path) -> None:
    clean(verify(discovery.store, copy))
    for path in segments(copy):
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 25)):
            changed = bytearray(data)
            changed[position] ^= 1 << (position % 8)
            path.write_bytes(changed)
            assert verify(discovery.store, copy).faults != [], (path, position)
        path.write_bytes(data)
    clean(verify(discovery.store, copy))


def test_tampering_a_removed_block_is_found(discovery: Discovery, copy: Path) -> None:
    frames = frames_of(copy)
    for number, frame in enumerate(frames):
        if kind(frame) == BLOCK:
            write_frames(frames[:number] + frames[number + 1 :])
            assert verify(discovery.store, copy).faults != []
    write_frames(frames)
    clean(verify(discovery.store, copy))


def test_tampering_swapped_blocks_are_found(discovery: Discovery, copy: Path) -> None:
    frames = frames_of(copy)
    swapped = 0
    for number in range(len(frames) - 1):
        one, other = frames[number], frames[number + 1]
        if kind(one) == kind(other) == BLOCK and one[0] == other[0]:
            write_frames([*frames[:number], other, one, *frames[number + 2 :]])
            assert verify(discovery.store, copy).faults != []
            swapped += 1
            write_frames(frames)
    assert swapped
    clean(verify(discovery.store, copy))


def test_tampering_a_block_replayed_is_found(discovery: Discovery, copy: Path) -> None:
    """Somebody is paid twice by a block that stands there twice."""
    frames = frames_of(copy)
    for number, frame in enumerate(frames[:-1]):
        if kind(frame) == BLOCK:
            write_frames([*frames[: number + 1], frame, *frames[number + 1 :]])
            assert verify(discovery.store, copy).faults != []
    write_frames([*frames, frames[-1]])
    audit = verify(discovery.store, copy)
    assert audit.faults or any("after the last block" in note for note in audit.notes), "past the end it counts nothing"


@pytest.mark.parametrize("left", [0, 1, 50, 0.5, -1])
def test_tampering_a_cut_archive_is_found(discovery: Discovery, copy: Path, left: float) -> None:
    for path in segments(copy):
        data = path.read_bytes()
        size = int(len(data) * left) if 0 < left < 1 else int(left) if left >= 0 else len(data) + int(left)
        path.write_bytes(data[:size])
        assert verify(discovery.store, copy).faults != [], path
        path.write_bytes(data)
    for path in segments(copy):
        data = path.read_bytes()
        path.unlink()
        assert verify(discovery.store, copy).faults != [], path
        path.write_bytes(data)
    clean(verify(discovery.store, copy))


def test_segments_that_were_moved_away_are_missed_by_a_whole_audit_alone(discovery: Discovery, copy: Path) -> None:
    segments(copy)[0].unlink()
    assert any("first segment is missing" in fault for fault in verify(discovery.store, copy).faults)
    clean(verify(discovery.store, copy, quick=True))


def signed_anew(directory: Path, change: Callable[[int, list[Entry]], list[Entry]]) -> bytes:
    """Writes the whole archive again with other entries and a chain and sums that fit; returns the last digest."""
    previous, sums, faults, digest = NOTHING, Sums(), Faults(), NOTHING
    frames = []
    last = (0, 0)
    for path, start, data in frames_of(directory):
        frame = segment.read_frame(segment.read_header(data[: segment.HEADER.size]), data)
        number = frame.header.number
        if frame.header.kind == BLOCK:
            entries = change(number, frame.block().entries)
            for _, _, entry in entries:
                sums.add(Turnover(decode_entry(entry)[0]), "", faults)
            made, previous = segment.encode_block(number, previous, entries, sums.totals)
            digest, last = previous, entries[-1][:2]
        else:
            checkpoint = msgspec.structs.replace(frame.checkpoint(), balances=dict(sums.balances), totals=sums.totals)
            made, previous = segment.encode_checkpoint(number, previous, last, checkpoint)
        frames.append((path, start, made))
    write_frames(frames)
    return digest


def test_tampering_a_chain_signed_anew_is_found(discovery: Discovery, copy: Path) -> None:
    """An archive that is consistent in itself and pays a thief: Redis knows the last digest, and the balances."""

    def richer(number: int, entries: list[Entry]) -> list[Entry]:
        if number != 2:
            return entries
        ms, sequence, data = entries[0]
        moves, whats = decode_entry(data)
        return [(ms, sequence, encode_entry([*moves, ("mint", "account:" + "e" * 32, 1000)], whats)), *entries[1:]]

    head = discovery.store.books.head()
    assert signed_anew(copy, lambda _, entries: entries) == head.digest, "the test can sign as discovery does"
    clean(verify(discovery.store, copy))
    digest = signed_anew(copy, richer)
    faults = verify(discovery.store, copy).faults
    assert any("was replaced" in fault for fault in faults)
    assert any("account:" + "e" * 32 in fault for fault in faults)
    assert verify(discovery.store, copy, quick=True).faults != []

    # Even if the digest in Redis were changed with it: the balances are still others.
    client = discovery.store._redis
    client.hset("{ec}:ledger:head", "hash", digest.hex())
    faults = verify(discovery.store, copy).faults
    assert not any("was replaced" in fault for fault in faults)
    assert any("account:" + "e" * 32 in fault for fault in faults)
    client.hset("{ec}:ledger:head", "hash", head.digest.hex())


def test_tampering_a_checkpoint_that_says_other_balances_is_found(discovery: Discovery, copy: Path) -> None:
    frames = frames_of(copy)
    last = max(number for number, frame in enumerate(frames) if kind(frame) != BLOCK)
    path, start, data = frames[last]
    frame = segment.read_frame(segment.read_header(data[: segment.HEADER.size]), data)
    checkpoint = frame.checkpoint()
    balances = {**checkpoint.balances, "account:" + "e" * 32: 5, "mint": checkpoint.balances["mint"] - 5}
    previous = frame.header.previous
    frames[last] = (
        *(path, start),
        segment.encode_checkpoint(
            *(frame.header.number, previous, frame.header.last),
            msgspec.structs.replace(checkpoint, balances=balances),
        )[0],
    )
    write_frames(frames)
    for quick in (False, True):
        assert verify(discovery.store, copy, quick=quick).faults != []


def test_balances_changed_in_redis_are_found(discovery: Discovery, busy: list[Caller]) -> None:
    client = discovery.store._redis
    place = f"account:{busy[1].account.account_id}"
    for key, field in (("{ec}:balances", place), ("{ec}:balances", "mint"), ("{ec}:escrow", "f" * 24)):
        client.hincrby(key, field, 7)
        for quick in (False, True):
            assert verify(discovery.store, quick=quick).faults != []
        client.hincrby(key, field, -7)
    client.hdel("{ec}:escrow", "f" * 24)
    clean(verify(discovery.store))


def test_an_entry_removed_from_or_added_to_redis_is_found(discovery: Discovery, busy: list[Caller]) -> None:
    client: Any = discovery.store._redis
    ((entry_id, fields),) = client.xrevrange("{ec}:ledger", count=1)
    client.xdel("{ec}:ledger", entry_id)
    assert verify(discovery.store).faults != []
    again = client.xadd("{ec}:ledger", fields)
    clean(verify(discovery.store))
    forged = client.xadd("{ec}:ledger", {"m": encode_entry([("mint", f"account:{busy[0].account.account_id}", 5)])})
    assert verify(discovery.store).faults != []
    client.xdel("{ec}:ledger", forged)
    junk = client.xadd("{ec}:ledger", {"m": b"junk"})
    assert any("no entry" in fault for fault in verify(discovery.store).faults)
    client.xdel("{ec}:ledger", junk)
    assert again


def test_an_entry_on_disk_and_in_redis_once_more_is_found(discovery: Discovery, mover: Mover) -> None:
    """A stream that was not trimmed would be paid out twice by whoever adds both up."""
    Caller(discovery)
    saved = discovery.store._redis.dump("{ec}:ledger")
    assert isinstance(saved, bytes)
    mover.move()
    discovery.store._redis.restore("{ec}:ledger", 0, saved, replace=True)
    assert any("once more" in fault for fault in verify(discovery.store).faults)
    discovery.store._redis.delete("{ec}:ledger")


# --- exports --------------------------------------------------------------------------------------


def test_an_export_has_every_movement_in_order(discovery: Discovery, busy: list[Caller], mover: Mover) -> None:
    movements = list(export(discovery.store))
    assert len(movements) == verify(discovery.store).movements
    assert movements == sorted(movements, key=lambda each: each.entry_id)
    assert movements[0].what == "start"
    assert (movements[0].block, movements[-1].block) == (1, None)
    assert {each.what for each in movements} == {"start", f"job:{Foreman.job_id}"}
    sums: dict[str, int] = {}
    for each in movements:
        sums[each.source] = sums.get(each.source, 0) - each.amount
        sums[each.target] = sums.get(each.target, 0) + each.amount
    for caller in busy:
        assert sums[f"account:{caller.account.account_id}"] == caller.state.balance


def test_an_export_of_an_account_or_a_time_is_a_part_of_all(discovery: Discovery, busy: list[Caller]) -> None:
    movements = list(export(discovery.store))
    worker = busy[2].account.account_id
    assert list(export(discovery.store, account_id=worker)) == [
        each for each in movements if f"account:{worker}" in (each.source, each.target)
    ]
    middle = movements[len(movements) // 2].entry_id[0]

    def within(each: Movement) -> bool:
        return middle - 50 <= each.entry_id[0] < middle + 50

    assert list(export(discovery.store, since_ms=middle - 50, until_ms=middle + 50)) == list(filter(within, movements))


def test_an_export_of_a_damaged_archive_says_so(discovery: Discovery, copy: Path) -> None:
    path = segments(copy)[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveFault):
        list(export(discovery.store, copy))
    path.unlink()
    with pytest.raises(ArchiveFault):
        list(export(discovery.store, copy))


# --- statements -----------------------------------------------------------------------------------


def statement(caller: Caller, **query: object) -> m.Statement:
    """An account's own statement."""
    path = "/v1/account/ledger?" + "&".join(f"{name}={value}" for name, value in query.items())
    return caller.call("GET", path, m.Statement)


def test_a_statement_has_a_job_on_one_line(discovery: Discovery, busy: list[Caller], mover: Mover) -> None:
    mover.move()
    foreman, worker = busy[0], busy[1]
    own = statement(foreman)
    job, start = own.rows
    assert (job.kind, job.about, start.kind) == ("job", Foreman.job_id, "start")
    assert job.paid - job.received == foreman.state.spent + foreman.state.escrow
    assert start.received == discovery.settings.starting_credits
    assert (own.balance, own.escrow) == (foreman.state.balance, foreman.state.escrow)
    job, start = statement(worker).rows
    assert (job.kind, job.received, job.paid) == ("job", worker.state.earned, 0)
    assert job.movements == 120
    assert own.complete_until_s >= job.last_s


def test_nobody_reads_anothers_statement(discovery: Discovery, mover: Mover) -> None:
    victim, thief = Caller(discovery), Caller(discovery)
    discovery.store.books.mint("mint", victim.account.account_id, 77, "a secret grant")
    mover.move()
    for path in (
        "/v1/account/ledger",
        f"/v1/account/ledger?account={victim.account.account_id}",
        f"/v1/account/ledger?account_id={victim.account.account_id}&before=0",
    ):
        answer = thief.raw("GET", path)
        assert answer.status_code == 200
        assert b"secret" not in answer.data
        assert b'"received":77' not in answer.data
    for path in (f"/v1/account/{victim.account.account_id}/ledger", f"/v1/accounts/{victim.account.account_id}"):
        assert thief.raw("GET", path).status_code in (404, 405)
    nobody = discovery.app.test_client().get("/v1/account/ledger")
    assert nobody.status_code == 401
    assert "a secret grant" in [row.about for row in statement(victim).rows]


def test_a_statement_is_paged_and_bounded(discovery: Discovery, mover: Mover) -> None:
    caller = Caller(discovery)
    for number in range(MOST_ROWS + 40):
        discovery.store.books.mint("mint", caller.account.account_id, 1, str(number))
    mover.move()
    seen: list[m.StatementRow] = []
    page = statement(caller, limit=30)
    while True:
        seen += page.rows
        assert len(page.rows) <= 30
        if page.before is None:
            break
        page = statement(caller, limit=30, before=page.before)
    assert MOST_ROWS // 2 < len(seen) <= MOST_ROWS
    assert [int(row.about) for row in seen] == list(range(MOST_ROWS + 39, MOST_ROWS + 39 - len(seen), -1))
    assert len(statement(caller, limit=10**9).rows) == 100
    assert statement(caller, limit=0).rows == []


@pytest.mark.parametrize("query", ["before=-1", "limit=x", "limit=1.5", "before=١", "limit=" + "9" * 5000, "before="])
def test_hostile_pages_get_a_reason(discovery: Discovery, query: str) -> None:
    with pytest.raises(Problem) as caught:
        Caller(discovery).call("GET", f"/v1/account/ledger?{query}", m.Statement)
    assert caught.value.code == "bad-request"


# --- transfers ------------------------------------------------------------------------------------


def send(caller: Caller, to: Caller | str, amount: object, note: str = "", key: str | None = None) -> m.Transferred:
    """Sends credits, whatever `amount` is."""
    receiver = to if isinstance(to, str) else to.account.account_id
    body = {"to": receiver, "amount": amount, "note": note, "idempotency_key": key or os.urandom(8).hex()}
    answer = caller.raw("POST", "/v1/transfers", json.dumps(body).encode())
    if answer.status_code >= 300:
        raise Problem(answer)
    return m.decode(m.Transferred, answer.data)


def rich(discovery: Discovery, credits: int) -> Caller:
    """An account with credits that can be sent."""
    caller = Caller(discovery)
    assert discovery.store.books.mint("mint", caller.account.account_id, credits, "for a test").outcome == "ok"
    return caller


def test_credits_arrive_and_both_sides_see_why(make_discovery: Callable[..., Discovery], tmp_path: Path) -> None:
    discovery = make_discovery(starting_credits=12)
    sender, receiver = rich(discovery, 50), Caller(discovery)
    sent = send(sender, receiver, 20, "thanks / for, the cluster: 日本")
    assert (sent.balance, sent.transferable) == (42, 30)
    assert (sender.state.balance, receiver.state.balance) == (42, 32)
    mover = Mover(discovery.store.books, tmp_path / "ledger", settle_s=0, wait_s=0, post_share=1)
    mover.move()
    mover.close()
    (paid,) = [row for row in statement(sender).rows if row.kind == "transfer"]
    (got,) = [row for row in statement(receiver).rows if row.kind == "transfer"]
    assert (paid.paid, paid.other, paid.about) == (20, receiver.account.account_id, "thanks / for, the cluster: 日本")
    assert (got.received, got.other, got.about) == (20, sender.account.account_id, paid.about)
    # What was received may be sent on: only a gift is bound.
    assert send(receiver, sender, 20).transferable == 0


def test_starting_credits_cannot_be_transferred(make_discovery: Callable[..., Discovery]) -> None:
    """Farming: a thousand new accounts that send their gift to one."""
    discovery = make_discovery(starting_credits=12)
    farmer = Caller(discovery)
    for _ in range(5):
        straw = Caller(discovery)
        for amount in (1, 12):
            with pytest.raises(Problem) as caught:
                send(straw, farmer, amount)
            assert (caught.value.code, caught.value.status) == ("insufficient-credits", 402)
            assert (caught.value.problem.needed, caught.value.problem.available) == (amount, 0)
    assert farmer.state.balance == 12


def test_a_gift_in_escrow_comes_back_as_a_gift(make_discovery: Callable[..., Discovery]) -> None:
    """Farming: leasing work, so that what is left looks earned, or what comes back does."""
    discovery = make_discovery(starting_credits=12)
    foreman, worker, friend = Foreman(discovery), Worker(Caller(discovery)), Caller(discovery)
    discovery.store.books.mint("mint", foreman.account.account_id, 10, "earned")
    assert statement(foreman).transferable == 10
    leased = foreman.lease(7)
    assert (foreman.state.balance, statement(foreman).transferable, statement(foreman).gift) == (15, 10, 5)
    send(foreman, friend, 10)
    with pytest.raises(Problem):
        send(foreman, friend, 1)
    foreman.settle([worker.receipts([r.lease_id for t in leased.tasks for r in t.replicas], kind=Kind.REFUSED)])
    assert (foreman.state.balance, statement(foreman).transferable) == (12, 0)
    with pytest.raises(Problem):
        send(foreman, friend, 1)


def test_a_gift_is_spent_first(make_discovery: Callable[..., Discovery]) -> None:
    discovery = make_discovery(starting_credits=12)
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    discovery.store.books.mint("mint", foreman.account.account_id, 10, "earned")
    leased = foreman.lease(12)
    foreman.settle(answer_all(leased, [worker]), [task.task_id for task in leased.tasks])
    assert (foreman.state.spent, statement(foreman).gift, statement(foreman).transferable) == (12, 0, 10)
    assert statement(worker.caller).transferable == 12, "what was earned may be sent"


@pytest.mark.parametrize(
    ("leased", "burnt", "granted", "transferable"),
    [(0, 12, 0, 10), (0, 5, 7, 10), (0, 20, 0, 2), (7, 5, 7, 10), (7, 9, 7, 6)],
)
def test_a_gift_is_burnt_first_and_is_one_no_more(
    make_discovery: Callable[..., Discovery], leased: int, burnt: int, granted: int, transferable: int
) -> None:
    """Counted on as a gift, it would bind as many credits that its account earned itself."""
    discovery = make_discovery(starting_credits=12)
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    account_id = foreman.account.account_id
    discovery.store.books.mint("mint", account_id, 10, "earned")
    tasks = foreman.lease(leased) if leased else None
    assert discovery.store.books.mint("burn", account_id, burnt, "").outcome == "ok"
    assert statement(foreman).transferable == transferable
    if tasks is not None:
        refused = [r.lease_id for t in tasks.tasks for r in t.replicas]
        foreman.settle([worker.receipts(refused, kind=Kind.REFUSED)])
    assert statement(foreman).transferable == transferable
    assert int(discovery.store._redis.hget("{ec}:account:" + account_id, "granted") or 0) == granted


def test_what_is_not_vested_cannot_be_transferred(discovery: Discovery) -> None:
    sender, receiver = rich(discovery, 30), Caller(discovery)
    discovery.store._redis.hset("{ec}:account:" + sender.account.account_id, "unvested", 25)
    with pytest.raises(Problem, match="insufficient-credits"):
        send(sender, receiver, 6)
    assert send(sender, receiver, 5).transferable == 0
    assert statement(sender).unvested == 25


@pytest.mark.parametrize("amount", [0, -1, -(10**30), 2**53, 10**400, 1.5, "5", None, True, [1], float("inf")])
def test_hostile_amounts_move_nothing(discovery: Discovery, amount: object) -> None:
    sender, receiver = rich(discovery, 30), Caller(discovery)
    before = discovery.store.balances(), discovery.store.books.waiting()
    with pytest.raises(Problem) as caught:
        send(sender, receiver, amount)
    assert caught.value.code == "malformed-body"
    assert (discovery.store.balances(), discovery.store.books.waiting()) == before


@pytest.mark.parametrize("amount", [31, 10**6, 2**53 - 1])
def test_more_than_there_is_moves_nothing(discovery: Discovery, amount: int) -> None:
    sender, receiver = rich(discovery, 30), Caller(discovery)
    before = discovery.store.balances(), discovery.store.books.waiting()
    with pytest.raises(Problem, match="insufficient-credits"):
        send(sender, receiver, amount)
    assert (discovery.store.balances(), discovery.store.books.waiting()) == before


def test_nobody_sends_to_himself_or_to_nobody(discovery: Discovery) -> None:
    sender = rich(discovery, 30)
    own = sender.account.account_id
    before = discovery.store.balances(), discovery.store.books.waiting()
    for to, code in [
        *[(own, "malformed-body"), ("0" * 32, "unknown-account"), ("mint", "malformed-body")],
        *[(f"{own}:workers", "malformed-body"), (own.upper(), "malformed-body"), ("", "malformed-body")],
    ]:
        with pytest.raises(Problem) as caught:
            send(sender, to, 1)
        assert caught.value.code == code, to
    assert (discovery.store.balances(), discovery.store.books.waiting()) == before


def test_a_transfer_that_is_repeated_moves_once(discovery: Discovery) -> None:
    sender, receiver = rich(discovery, 30), Caller(discovery)
    start = receiver.state.balance
    for _ in range(3):
        assert send(sender, receiver, 10, key="same-key").transferable == 20
    assert receiver.state.balance == start + 10
    for amount, note in ((11, ""), (10, "other")):
        with pytest.raises(Problem) as caught:
            send(sender, receiver, amount, note, key="same-key")
        assert caught.value.code == "conflict"
    send(sender, receiver, 20)
    assert send(sender, receiver, 10, key="same-key").transferable == 0, "also when nothing is left to send"
    # A key is its account's.
    assert send(rich(discovery, 5), receiver, 5, key="same-key").transferable == 0


def test_concurrent_transfers_spend_nothing_twice(discovery: Discovery) -> None:
    sender, receivers = rich(discovery, 10), [Caller(discovery) for _ in range(4)]
    start = receivers[0].state.balance
    outcomes: list[str] = []

    def spend(number: int) -> None:
        caller = Caller(discovery, sender.account)
        for turn in range(5):
            try:
                send(caller, receivers[(number + turn) % 4], 3)
                outcomes.append("sent")
            except Problem as problem:
                outcomes.append(problem.code)

    threads = [threading.Thread(target=spend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["insufficient-credits"] * 37 + ["sent"] * 3
    assert sum(receiver.state.balance - start for receiver in receivers) == 9
    assert statement(sender).transferable == 1


def test_two_accounts_that_send_at_once_deadlock_nowhere_and_lose_nothing(discovery: Discovery) -> None:
    pair = [rich(discovery, 20), rich(discovery, 20)]
    total = sum(caller.state.balance for caller in pair)
    refused: set[str] = set()

    def swing(number: int) -> None:
        caller = Caller(discovery, pair[number].account)
        for _ in range(30):
            try:
                send(caller, pair[1 - number], 7)
            except Problem as problem:
                refused.add(problem.code)

    threads = [threading.Thread(target=swing, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused <= {"insufficient-credits"}
    assert sum(caller.state.balance for caller in pair) == total


# --- the operator ---------------------------------------------------------------------------------


def test_minting_and_burning_are_in_the_ledger_with_their_note(discovery: Discovery, mover: Mover) -> None:
    caller = Caller(discovery)
    books, account = discovery.store.books, caller.account.account_id
    start = caller.state.balance
    assert books.mint("mint", account, 100, "a grant").balance == start + 100
    assert books.mint("burn", account, 30, "abuse").balance == start + 70
    mover.move()
    audit = clean(verify(discovery.store))
    assert (audit.burnt, audit.minted) == (30, start + 100)
    assert [(each.what, each.source, each.target, each.amount) for each in export(discovery.store)][1:] == [
        ("mint:a grant", "mint", f"account:{account}", 100),
        ("burn:abuse", f"account:{account}", "burn", 30),
    ]
    assert [(row.kind, row.about) for row in statement(caller).rows][:2] == [("burn", "abuse"), ("mint", "a grant")]


def test_nobody_is_burnt_below_zero_and_nobody_unknown_gets_credits(discovery: Discovery) -> None:
    caller = Caller(discovery)
    books, account = discovery.store.books, caller.account.account_id
    before = discovery.store.balances(), books.waiting()
    assert books.mint("burn", account, caller.state.balance + 1, "x").outcome == "credits"
    assert books.mint("mint", "0" * 32, 1, "x").outcome == "unknown"
    assert books.mint("mint", f"{account}:workers", 1, "x").outcome == "unknown"
    assert books.mint("mint", account, MOST_MINTED, "x").outcome == "most"
    assert (discovery.store.balances(), books.waiting()) == before


def test_sums_stay_exact_up_to_the_most_that_may_be_minted(discovery: Discovery) -> None:
    caller, other = Caller(discovery), Caller(discovery)
    books = discovery.store.books
    minted = -discovery.store.balances()[0]["mint"]
    assert books.mint("mint", caller.account.account_id, MOST_MINTED - minted, "all there can be").outcome == "ok"
    assert books.mint("mint", caller.account.account_id, 1, "one more").outcome == "most"
    send(caller, other, MOST_MINTED - minted)
    assert books.mint("burn", other.account.account_id, MOST_MINTED - minted - 1, "and away").outcome == "ok"
    assert clean(verify(discovery.store)).burnt == MOST_MINTED - minted - 1


def test_a_discovery_at_work_archives_by_itself(discovery: Discovery, tmp_path: Path, redis_url: str) -> None:
    """Entries that are old enough leave Redis."""
    Caller(discovery)
    client: Any = redis.Redis.from_url(redis_url)
    ((_, fields),) = client.xrange("{ec}:ledger")
    seconds, _ = client.time()
    client.delete("{ec}:ledger")
    client.xadd("{ec}:ledger", fields, id=f"{seconds * 1000 - 60_000}-0")
    client.close()
    discovery.mover.move()
    assert discovery.store.books.waiting() == 0
    assert discovery.store.books.head().number == 1
    assert len(segments(tmp_path / "ledger")) == 1
