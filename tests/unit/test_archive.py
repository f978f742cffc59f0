"""The archive: entries and blocks as bytes, sums, rows, the files and whoever moves entries there."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.archive import segment
from discovery.archive.entry import decode_entry, encode_entry, whats_of, with_whats
from discovery.archive.files import ArchiveFault, Walk, segments
from discovery.archive.rows import DAY_MS, Rows, add_rows, lines_of, page
from discovery.archive.segment import BLOCK, CHECKPOINT, HEADER, NOTHING, Checkpoint, Damaged, Entry, Totals
from discovery.archive.sums import MOST_FAULTS, Faults, Sums, compare
from discovery.archive.turnover import MANY, Turnover
from discovery.archive.writer import MOST_PENDING, Writer, open_writer
from discovery.changes import Move
from ec262.errors import Malformed

A, B = "account:" + "a" * 32, "account:" + "b" * 32

places = st.sampled_from(["mint", "burn", A, B, "escrow:1", "escrow:2"])
moves_of_a_commit = st.lists(st.tuples(places, places, st.integers(1, 2**53 - 1)), max_size=8)


# --- entries --------------------------------------------------------------------------------------


@given(moves_of_a_commit, st.lists(st.tuples(st.text(max_size=20), st.integers(0, 9)), max_size=4))
def test_an_entry_comes_back_as_it_went(moves: list[tuple[str, str, int]], whats: list[tuple[str, int]]) -> None:
    assert decode_entry(encode_entry(moves, whats)) == (moves, whats)


@given(moves_of_a_commit)
def test_an_entry_of_movements_alone_is_read_too(moves: list[tuple[str, str, int]]) -> None:
    if moves:
        assert decode_entry(msgspec.msgpack.encode(moves)) == (moves, [])


@given(st.binary(max_size=60))
def test_junk_is_no_entry(junk: bytes) -> None:
    try:
        decode_entry(junk)
    except Malformed:
        return
    assert junk[0] & 0xF0 == 0x90 or junk[0] in (0xDC, 0xDD)  # a list after all


def test_what_movements_were_for_follows_their_tasks() -> None:
    moves = [(A, "escrow:1", 1), ("escrow:1", B, 1), (A, "escrow:2", 1), (A, B, 1)]
    assert whats_of(moves, {"1": "j", "2": "j"}) == [("job:j", 4)]
    assert whats_of(moves, {"1": "j", "2": "k"}) == [("job:j", 2), ("job:k", 1), ("", 1)]
    assert with_whats(moves, [("job:j", 2), ("job:k", 1)]) == ["job:j", "job:j", "job:k", ""]
    assert with_whats(moves, [("job:j", 10**12)]) == ["job:j"] * 4, "a count that lies costs no memory"


# --- frames ---------------------------------------------------------------------------------------


def some_entries(start: int = 1, count: int = 3) -> list[Entry]:
    return [(start + n, 0, encode_entry([("mint", A, 1)], [("start", 1)])) for n in range(count)]


def frame_of(data: bytes) -> segment.Frame:
    return segment.read_frame(segment.read_header(data[: HEADER.size]), data)


def test_a_block_comes_back_as_it_went() -> None:
    totals = Totals(3, 3, 0, 3, 0)
    data, digest = segment.encode_block(7, b"p" * 32, some_entries(), totals)
    frame = frame_of(data)
    assert (frame.header.kind, frame.header.number, frame.header.previous) == (BLOCK, 7, b"p" * 32)
    assert (frame.header.first, frame.header.last, frame.header.size) == ((1, 0), (3, 0), len(data))
    assert frame.digest == digest
    assert frame.block() == segment.Block(totals, some_entries())


def test_a_checkpoint_comes_back_as_it_went() -> None:
    checkpoint = Checkpoint("id", Totals(1, 5, 0, 5, 0), {"mint": -5, A: 5})
    data, _ = segment.encode_checkpoint(1, NOTHING, (0, 0), checkpoint)
    assert frame_of(data).header.kind == CHECKPOINT
    assert frame_of(data).checkpoint() == checkpoint


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_of_a_frame_is_noticed(position: int, change: int) -> None:
    data, _ = segment.encode_block(7, b"p" * 32, some_entries(), Totals(3, 3, 0, 3, 0))
    changed = bytearray(data)
    changed[position % len(data)] ^= change
    with pytest.raises(Damaged):
        frame_of(bytes(changed))


@pytest.mark.parametrize("disorder", ["swapped", "twice", "others than the header says"])
def test_entries_out_of_order_in_a_signed_block_are_noticed(disorder: str) -> None:
    entries = some_entries(count=4)
    if disorder == "swapped":
        entries[1], entries[2] = entries[2], entries[1]
    elif disorder == "twice":
        entries.insert(1, entries[1])
    data, _ = segment.encode_block(1, NOTHING, entries, Totals())
    if disorder == "others than the header says":
        header = segment.read_header(data[: HEADER.size])
        other = segment.encode_block(1, NOTHING, entries[:2], Totals())[0]
        assert header != segment.read_header(other[: HEADER.size])
        data = other
        frame = segment.Frame(header, frame_of(data).payload, b"")
    else:
        frame = frame_of(data)
    with pytest.raises(Damaged):
        frame.block()


def test_a_payload_that_unpacks_to_more_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = segment.encode_block(1, NOTHING, [(1, 0, bytes(1_000_000))], Totals())
    monkeypatch.setattr(segment, "MAX_PLAIN_BYTES", 10_000)
    assert len(data) < 10_000
    with pytest.raises(Damaged, match="too large"):
        frame_of(data).block()


# --- sums -----------------------------------------------------------------------------------------


def test_sums_hold_what_is_not_zero_and_nothing_else() -> None:
    sums, faults = Sums(), Faults()
    sums.add(Turnover([("mint", A, 10)]), "1", faults)
    for task in range(1000):
        sums.add(Turnover([(A, f"escrow:{task}", 2)]), "2", faults)
        sums.add(Turnover([(f"escrow:{task}", B, 1), (f"escrow:{task}", A, 1)]), "3", faults)
        if task % 5 == 4:
            sums.add(Turnover([(B, A, 5)]), "4", faults)
    assert faults.listed == []
    assert sums.balances == {"mint": -10, A: 10}
    assert sums.totals == Totals(1 + 3000 + 200, 10, 0, 10, 0)


@pytest.mark.parametrize(
    ("moves", "said"),
    [
        ([(A, B, 11)], f"{A} is below zero (-1)"),
        ([("escrow:1", A, 1)], "escrow:1 is below zero"),
        ([("burn", A, 1)], "burn is below zero"),
        ([(A, B, 0)], "a movement of 0 credits"),
        ([(A, B, -3)], "a movement of -3 credits"),
        ([(A, A, 3)], f"from {A} to {A}"),
    ],
)
def test_movements_that_cannot_be_are_named(moves: list[tuple[str, str, int]], said: str) -> None:
    sums, faults = Sums({"mint": -10, A: 10}), Faults()
    sums.add(Turnover(moves), "entry 5-0", faults)
    assert len(faults.listed) == 1
    assert faults.listed[0].startswith("entry 5-0: ")
    assert said in faults.listed[0]


def test_within_a_commit_the_order_of_movements_does_not_matter() -> None:
    sums, faults = Sums({"mint": -10, A: 10}), Faults()
    sums.add(Turnover([(B, "escrow:1", 10), (A, B, 10)]), "entry", faults)
    assert faults.listed == []
    assert sums.balances == {"mint": -10, "escrow:1": 10}


def test_a_flood_of_faults_is_counted_not_kept() -> None:
    faults = Faults()
    for n in range(MOST_FAULTS + 7):
        faults.add(str(n))
    assert len(faults.listed) == MOST_FAULTS + 1
    assert faults.listed[-1] == "and 7 further faults"


def test_balances_are_compared_place_by_place() -> None:
    faults = Faults()
    compare({"mint": -10, A: 10}, {"mint": -10, A: 9, "pocket:1": 1}, "the store", faults)
    assert any(fault.startswith(f"{A}: the ledger adds up to 10") for fault in faults.listed)
    assert any(fault.startswith("pocket:1: no such place") for fault in faults.listed)


# --- a commit in sum ------------------------------------------------------------------------------

ACCOUNTS = [f"account:{n}" for n in range(4)]
ESCROWS = [f"escrow:{n}" for n in range(3 * MANY)]
some_account, some_escrow = st.sampled_from(ACCOUNTS), st.sampled_from(ESCROWS)
some_place = st.sampled_from(["mint", "burn", "", "accounts", "zzz", *ACCOUNTS, *ESCROWS])
price = st.integers(1, 3)
many_tasks = st.lists(some_escrow, max_size=3 * MANY) | st.permutations(ESCROWS)

leases = st.builds(lambda who, tasks, each: [(who, task, each) for task in tasks], some_account, many_tasks, price)
settlements = st.builds(
    lambda tasks, payees, prices: list(zip(tasks, payees * len(tasks), prices * len(tasks), strict=False)),
    many_tasks,
    st.lists(some_account, min_size=1, max_size=9),
    st.lists(st.integers(0, 3), min_size=1, max_size=2),
)
settled_and_leased_again = st.builds(lambda paid, leased: paid + leased, settlements, leases)
anything = st.lists(st.tuples(some_place, some_place, st.integers(-1, 3)), max_size=3 * MANY)
Runs = list[tuple[str, int | None]]
"""What movements were for, and how many of them; None: the commit's all."""
some_whats: st.SearchStrategy[Runs] = st.sampled_from(
    [[("job:j", None)], [("job:j", 5), ("job:k", None)], [("transfer:n", None)], [("start", 1)], []]
)
commits = st.lists(
    st.tuples(leases | settlements | settled_and_leased_again | anything, some_whats, st.integers(0, DAY_MS)),
    min_size=1,
    max_size=6,
)


class Plain:
    """The same reckoning as of `Sums` and `add_rows`, movement by movement."""

    def __init__(self) -> None:
        self.balances: Counter[str] = Counter()
        self.movements = 0
        self.faults: list[str] = []
        self.rows: Rows = {}

    def add(self, at: tuple[int, int], moves: list[Move], whats: list[tuple[str, int]]) -> None:
        if whats == [("job:j", len(moves))]:  # such a commit takes the name's place, also where it touches no account
            self.rows.setdefault(f"job:j/{at[0] // DAY_MS}/", {})
        for (source, target, amount), what in zip(moves, with_whats(moves, whats), strict=True):
            self.movements += 1
            self.balances[source] -= amount
            self.balances[target] += amount
            if amount <= 0 or source == target:
                self.faults.append(f"a movement of {amount} credits from {source} to {target}")
            for own, other, received, paid in ((source, target, 0, amount), (target, source, amount, 0)):
                if own.startswith("account:"):
                    self._row(at, own, other, what, received, paid)
        for source in {source for source, _, _ in moves} - {"mint"}:
            if self.balances[source] < 0:
                self.faults.append(f"{source} is below zero ({self.balances[source]})")

    def _row(self, at: tuple[int, int], own: str, other: str, what: str, received: int, paid: int) -> None:
        name = f"{what}/{at[0] // DAY_MS}/"
        if what and not what.startswith("job:"):
            name = f"{what}/{at[0]}-{at[1]}/{other.removeprefix('account:')}"
        row = self.rows.setdefault(name, {}).setdefault(own, [0, 0, 0, at[0], at[0]])
        row[:] = row[0] + received, row[1] + paid, row[2] + 1, row[3], at[0]

    @property
    def totals(self) -> Totals:
        on_accounts = sum(amount for place, amount in self.balances.items() if place.startswith("account:"))
        minted, burnt = -self.balances["mint"], self.balances["burn"]
        return Totals(self.movements, minted, burnt, on_accounts, minted - burnt - on_accounts)


@given(commits, st.booleans())
def test_commits_in_sum_come_to_what_their_movements_do_one_by_one(
    listed: list[tuple[list[Move], Runs, int]], rich: bool
) -> None:
    if rich:
        listed = [([("mint", account, 10_000) for account in ACCOUNTS], [("start", None)], 0), *listed]
    sums, rows, plain, ms = Sums(), Rows(), Plain(), 0
    for moves, runs, later_ms in listed:
        whats = [(what, len(moves) if count is None else count) for what, count in runs]
        ms += later_ms
        faults, before = Faults(), len(plain.faults)
        turnover = Turnover(moves)
        sums.add(turnover, "here", faults)
        add_rows(rows, (ms, 7), turnover, whats)
        plain.add((ms, 7), moves, whats)
        said = [f"here: {fault}" for fault in plain.faults[before:]]
        assert len(faults.listed) == min(len(said), MOST_FAULTS + 1)
        assert len(said) > MOST_FAULTS or sorted(faults.listed) == sorted(said)
        assert {place: amount for place, amount in sums.balances.items() if amount} == {
            place: amount for place, amount in plain.balances.items() if amount
        }
        assert sums.totals == plain.totals
    # Also in the same order: whoever goes on with posting rows leaves out as many as are posted.
    assert in_order(rows) == in_order(plain.rows)


def in_order(rows: Rows) -> list[tuple[str, str, list[int]]]:
    return [(name, place, row) for name, own in rows.items() for place, row in own.items()]


# --- rows of statements ---------------------------------------------------------------------------


def test_a_job_is_one_row_a_day_for_each_account() -> None:
    rows: Rows = {}
    for n in range(3):
        add_rows(rows, (5 + n, 0), Turnover([(A, "escrow:1", 2)]), [("job:j", 1)])
        add_rows(rows, (9 + n, 0), Turnover([("escrow:1", B, 1), ("escrow:1", A, 1)]), [("job:j", 1), ("job:j", 1)])
    add_rows(rows, (DAY_MS + 1, 0), Turnover([("escrow:1", B, 1)]), [("job:j", 1)])
    assert rows == {
        "job:j/0/": {A: [3, 6, 6, 5, 11], B: [3, 0, 3, 9, 11]},
        "job:j/1/": {B: [1, 0, 1, DAY_MS + 1, DAY_MS + 1]},
    }


def test_transfers_are_a_row_each_with_the_other_side_and_any_note() -> None:
    rows: Rows = {}
    add_rows(rows, (5, 1), Turnover([(A, B, 2)]), [("transfer:a/b/c: d", 1)])
    add_rows(rows, (5, 2), Turnover([(A, B, 2)]), [("transfer:a/b/c: d", 1)])
    mine = [(name, own[B]) for name, own in rows.items() if B in own]
    lines = lines_of({name: f"{serial} {' '.join(map(str, row))}" for serial, (name, row) in enumerate(mine, 1)})
    assert [(line.serial, line.what, line.other, line.received) for line in lines] == [
        (2, "transfer:a/b/c: d", "a" * 32, 2),
        (1, "transfer:a/b/c: d", "a" * 32, 2),
    ]


@given(st.integers(0, 40), st.integers(1, 15))
def test_pages_show_every_row_once(count: int, limit: int) -> None:
    lines = lines_of({f"job:{n}/0/": f"{n + 1} 1 0 1 5 5" for n in range(count)})
    seen, before = [], 0
    while True:
        shown, before = page(lines, before, limit)
        seen += shown
        if not before:
            break
    assert seen == lines


# --- files ----------------------------------------------------------------------------------------


def opened(directory: Path, acknowledged: int = 0, segment_bytes: int = 10**6) -> Writer:
    writer = open_writer(directory, acknowledged, segment_bytes)
    assert writer is not None
    return writer


def filled(directory: Path, blocks: int, segment_bytes: int = 10**6) -> list[bytes]:
    """An archive of some blocks; returns their digests."""
    writer = opened(directory, segment_bytes=segment_bytes)
    digests = [writer.append(some_entries(1 + 10 * n)).digest for n in range(blocks)]
    writer.close()
    return digests


def test_what_was_written_is_read_again_across_segments(tmp_path: Path) -> None:
    digests = filled(tmp_path, 20, segment_bytes=1500)
    paths = segments(tmp_path)
    assert len(paths) > 2
    walk = Walk(tmp_path)
    frames = [frame for frame in iter(walk.step, None) if frame.header.kind == BLOCK]
    assert [frame.digest for frame in frames] == digests
    assert [frame.header.number for frame in frames] == list(range(1, 21))
    assert [entry for frame in frames for entry in frame.block().entries] == [
        entry for n in range(20) for entry in some_entries(1 + 10 * n)
    ]
    assert walk.torn is None
    walk.close()


def test_nobody_else_may_read_the_archive_and_old_segments_are_only_read(tmp_path: Path) -> None:
    filled(tmp_path / "ledger", 20, segment_bytes=1500)
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o700
    modes = [stat.S_IMODE(path.stat().st_mode) for path in segments(tmp_path / "ledger")]
    assert modes == [0o400] * (len(modes) - 1) + [0o600]


def test_a_reader_follows_a_writer_into_new_segments(tmp_path: Path) -> None:
    writer = opened(tmp_path, segment_bytes=1500)
    walk = Walk(tmp_path)
    seen = 0
    for n in range(20):
        writer.append(some_entries(1 + 10 * n))
        while (frame := walk.step()) is not None:
            seen += frame.header.kind == BLOCK
        assert seen == n + 1
    assert len(segments(tmp_path)) > 2
    walk.close()
    writer.close()


def test_a_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    digests = filled(tmp_path, 7, segment_bytes=1500)
    writer = opened(tmp_path, acknowledged=7, segment_bytes=1500)
    assert (writer.number, writer.digest, writer.known_digest, writer.pending) == (7, digests[-1], digests[-1], [])
    writer.append(some_entries(1000))
    writer.close()
    assert opened(tmp_path, acknowledged=6).number == 8


def test_only_one_may_write(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert open_writer(tmp_path, 0) is None
    first.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("percent", range(0, 100, 7))
def test_a_write_that_was_cut_is_cut_off_and_nothing_else(
    tmp_path: Path, percent: int, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 3)
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    walk = Walk(tmp_path)
    for _ in range(3):
        walk.step()
    whole, digest = walk.position, walk.digest
    walk.close()
    cut = whole + percent * (len(data) - whole) // 100
    path.write_bytes(data[:cut])
    with caplog.at_level(logging.WARNING):
        writer = opened(tmp_path, acknowledged=2)
    assert (writer.number, writer.digest) == (2, digest)
    assert path.read_bytes() == data[:whole]
    assert (f"the last {cut - whole} bytes" in caplog.text) == bool(percent)
    writer.append(some_entries(2000))
    writer.close()
    assert opened(tmp_path, acknowledged=2).number == 3


def test_a_last_write_of_the_right_length_and_wrong_bytes_is_cut_off(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[-100:] = bytes(100)
    path.write_bytes(data)
    writer = opened(tmp_path, acknowledged=2)
    assert writer.number == 2
    writer.append(some_entries(1000))
    writer.close()


def test_a_new_segment_that_was_cut_is_begun_anew(tmp_path: Path) -> None:
    filled(tmp_path, 12, segment_bytes=1500)
    last = segments(tmp_path)[-1]
    number = int(last.name[:12])
    for size in (0, 10, HEADER.size, HEADER.size + 5):
        with open(last, "r+b") as file:
            file.truncate(size)
        writer = opened(tmp_path, acknowledged=number - 1, segment_bytes=1500)
        assert writer.number == number - 1
        writer.append(some_entries(10_000 + size))
        writer.close()
        assert segments(tmp_path)[-1] == last


def test_an_archive_of_which_nothing_was_written_whole_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "000000000001.segment").write_bytes(b"ECL1")
    writer = opened(tmp_path)
    writer.append(some_entries())
    writer.close()
    assert opened(tmp_path, acknowledged=1).number == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "first lost", "middle lost", "all lost"])
def test_damage_to_what_was_acknowledged_is_never_mended(tmp_path: Path, harm: str) -> None:
    filled(tmp_path, 12, segment_bytes=1500)
    paths = segments(tmp_path)
    if harm == "cut":
        with open(paths[-1], "r+b") as file:
            file.truncate(paths[-1].stat().st_size - 1)
    elif harm == "flip":
        data = bytearray(paths[-1].read_bytes())
        data[-200] ^= 1
        os.chmod(paths[-1], 0o600)
        paths[-1].write_bytes(data)
    else:
        for path in {"first lost": paths[:1], "middle lost": paths[-2:-1], "all lost": paths}[harm]:
            path.unlink()
    before = {path: path.read_bytes() for path in segments(tmp_path)}
    acknowledged = 12
    if harm in ("first lost", "middle lost"):
        # Writing needs the last segment alone; a whole audit is what sees this.
        with pytest.raises(ArchiveFault):
            list(iter(Walk(tmp_path).step, None))
    else:
        with pytest.raises(ArchiveFault):
            open_writer(tmp_path, acknowledged)
    assert {path: path.read_bytes() for path in segments(tmp_path)} == before


def test_a_store_that_is_far_behind_the_archive_is_a_fault_and_no_backlog(tmp_path: Path) -> None:
    filled(tmp_path, MOST_PENDING + 1, segment_bytes=10**6)
    with pytest.raises(ArchiveFault, match="older state"):
        open_writer(tmp_path, 0)


def test_an_entry_that_is_none_is_kept_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = opened(tmp_path)
    with caplog.at_level(logging.ERROR):
        writer.append([(1, 0, b"junk"), (2, 0, encode_entry([(A, B, 5)]))])
    writer.close()
    assert "no entry of the ledger" in caplog.text
    assert "below zero" in caplog.text
    walk = Walk(tmp_path)
    walk.step()
    block = walk.step()
    assert block is not None
    assert block.block().entries[0] == (1, 0, b"junk")
    walk.close()
