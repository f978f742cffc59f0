"""Spools: the same bytes in memory and on disk, nothing lost to a kill -9, clear words when the disk is full."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ec262.backends.spool import Memory, Spool
from ec262.errors import SetupError

ROOT = Path(__file__).parents[2]
ROWS: dict[int, list[bytes]] = {
    4: [b"four", b"", b"\0" * 1000],
    0: [b"", b"", b""],
    7: [random.Random(1).randbytes(70_000), b"x", b"EROW"],
    2: [b"a", b"b", b"c"],
}
COUNTS = {4: {"bad lines": 3}, 7: {"bad lines": 1, "wörter": 10**20}}


def fill(spool: Spool) -> Spool:
    for number, parts in ROWS.items():
        spool.put(number, parts, COUNTS.get(number), b"tag%d" % number)
    return spool


def check(spool: Spool) -> None:
    assert len(spool) == len(ROWS)
    assert spool.numbers() == [0, 2, 4, 7]
    for number, parts in ROWS.items():
        assert number in spool
        assert spool.row(number) == parts
        assert spool.tag_of(number) == (b"tag%d" % number).ljust(16, b"\0")
    assert 3 not in spool
    assert spool.counts() == {"bad lines": 4, "wörter": 10**20}
    for index in range(3):
        column = [ROWS[number][index] for number in (0, 2, 4, 7)]
        assert spool.column(index) == [part for part in column if part]
        assert list(spool.parts(index)) == spool.column(index)
        assert spool.column_size(index) == sum(map(len, column))


@pytest.mark.parametrize("limit", [None, 0, 1005, 70_000])
def test_memory_and_disk_give_the_same(limit: int | None) -> None:
    memory = Memory(limit)
    with fill(Spool(memory)) as spool:
        check(spool)
        assert (spool.spilled == 0) == (limit is None)
        assert limit is None or memory.held <= limit
    assert memory.held == 0


def test_what_is_held_counts_for_all_spools_of_a_job() -> None:
    memory = Memory(100)
    first, second = Spool(memory), Spool(memory)
    first.put(0, [b"x" * 60])
    assert (memory.held, first.spilled) == (60, 0)
    second.put(0, [b"y" * 60])
    assert memory.held == 60
    assert second.spilled > 60
    second.put(1, [b"z" * 40])
    assert memory.held == 100
    first.close()
    assert memory.held == 40
    assert second.row(0) == [b"y" * 60]
    first.close()
    second.close()
    assert memory.held == 0


def test_a_task_has_one_result() -> None:
    with Spool(Memory(None)) as spool:
        spool.put(1, [b"a"])
        with pytest.raises(ValueError, match="task 1"):
            spool.put(1, [b"a"])


def test_a_temporary_spool_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with fill(Spool(Memory(0))) as spool:
        assert spool.spilled
        assert list(tmp_path.iterdir()) == []
        before = len(os.listdir("/dev/fd"))
    assert len(os.listdir("/dev/fd")) == before - 1


# --- durable ---


def test_durable_rows_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "map-0.spool"
    fill(Spool(Memory(None), path)).close()
    with Spool(Memory(None), path) as spool:
        check(spool)
        spool.put(9, [b"more"])
    with Spool(Memory(None), path) as spool:
        assert spool.row(9) == [b"more"]
        assert spool.row(7) == ROWS[7]


def run_child(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE)


def test_a_killed_writer_loses_nothing_it_has_put(tmp_path: Path) -> None:
    path = tmp_path / "map-0.spool"
    code = """
import itertools, os, sys
from pathlib import Path
from ec262.backends.spool import Memory, Spool
spool = Spool(Memory(None), Path(sys.argv[1]))
for number in itertools.count():
    spool.put(number, [b"%d" % number * 5000, b""], {"n": 1}, b"t")
    os.write(1, b"%d\\n" % number)
"""
    child = run_child(code, str(path))
    assert child.stdout is not None
    told = -1
    while told < 20:
        told = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    told = max([told, *map(int, child.stdout.read().split(b"\n")[:-1])])
    child.wait()
    child.stdout.close()
    with Spool(Memory(None), path) as spool:
        assert spool.numbers()[: told + 1] == list(range(told + 1))
        assert len(spool) <= told + 2
        for number in spool.numbers():
            assert spool.row(number) == [b"%d" % number * 5000, b""]
        assert spool.counts() == {"n": len(spool)}


def ends(path: Path) -> Iterator[tuple[int, int]]:
    """Bytes of the file after each row, and how many rows that are."""
    with Spool(Memory(None), path) as spool:
        for count, (number, parts) in enumerate(ROWS.items(), start=1):
            spool.put(number, parts, COUNTS.get(number))
            yield path.stat().st_size, count


def test_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "whole.spool"
    borders = list(ends(path))
    whole = path.read_bytes()
    cuts = {0, 1, len(whole)}
    for end, _ in borders:
        cuts |= {end - 1, end, end + 1, end + 30, end + 45}
    for cut in sorted(cut for cut in cuts if cut <= len(whole)):
        torn = tmp_path / f"torn-{cut}"
        torn.write_bytes(whole[:cut])
        rows = max([0, *(count for end, count in borders if end <= cut)])
        with Spool(Memory(None), torn) as spool:
            assert spool.numbers() == sorted(list(ROWS)[:rows])
            assert torn.stat().st_size == max([0, *(end for end, _ in borders if end <= cut)])
            spool.put(99, [b"goes on"])
        with Spool(Memory(None), torn) as spool:
            assert spool.row(99) == [b"goes on"]
            assert len(spool) == rows + 1


def test_a_row_whose_bytes_have_changed_is_none(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    borders = list(ends(path))
    data = bytearray(path.read_bytes())
    data[borders[2][0] - 50_000] ^= 1  # within the third row
    path.write_bytes(data)
    with Spool(Memory(None), path) as spool:
        assert spool.numbers() == sorted(list(ROWS)[:2])


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from ec262.backends.spool import Memory, Spool
from ec262.errors import SetupError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
spool = Spool(Memory(0), path)
spool.put(0, [b"a" * 40_000])
spool.put(1, [b"b" * 40_000])
try:
    spool.put(2, [b"c" * 40_000])
except SetupError as reason:
    print(reason)
assert spool.numbers() == [0, 1]
spool.put(3, [b"d" * 10_000])
assert spool.row(3) == [b"d" * 10_000]
assert spool.column(0) == [b"a" * 40_000, b"b" * 40_000, b"d" * 10_000]
"""
    for arguments in ([], [str(tmp_path / "durable")]):
        child = run_child(code, *arguments)
        said = child.communicate(timeout=30)[0].decode()
        assert child.returncode == 0
        assert "cannot write to the spool" in said
        place = "another checkpoint directory" if arguments else "another place with TMPDIR=DIR"
        assert f"make room there, or choose {place}" in said
    with Spool(Memory(None), tmp_path / "durable") as spool:
        assert spool.numbers() == [0, 1, 3]
        assert spool.row(1) == [b"b" * 40_000]


def test_a_spool_that_cannot_be_opened_says_where(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=str(tmp_path)):
        Spool(Memory(None), tmp_path / "missing" / "map-0.spool")


def test_a_file_that_somebody_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with fill(Spool(Memory(None), path)) as spool:
        os.truncate(path, 100)
        with pytest.raises(SetupError, match="cut short"):
            spool.row(7)


@pytest.mark.parametrize("limit", [None, 0])
def test_a_result_may_take_the_place_of_another(limit: int | None) -> None:
    memory = Memory(limit)
    with fill(Spool(memory)) as spool:
        spool.put(4, [b"new", b"\1" * 500, b""], {"good lines": 1}, b"tag4", instead=True)
        assert spool.row(4) == [b"new", b"\1" * 500, b""]
        assert spool.counts() == {"bad lines": 1, "good lines": 1, "wörter": 10**20}
        assert spool.counts_of(4) == {"good lines": 1}
        assert len(spool) == len(ROWS)
        spool.drop(7)
        assert 7 not in spool
        assert spool.counts() == {"good lines": 1}
        assert spool.column(0) == [b"a", b"new"]
        spool.put(7, [b"x", b"", b""])
        assert spool.column(0) == [b"a", b"new", b"x"]
    assert memory.held == 0


def test_what_took_a_place_has_it_after_a_kill(tmp_path: Path) -> None:
    """Rows are only ever added to the file: the last one of a task counts, or that it was dropped."""
    path = tmp_path / "spool"
    spool = fill(Spool(Memory(None), path))
    spool.put(2, [b"", b"", b""], failed=("map task 2", "why"), instead=True)
    spool.put(2, [b"A", b"B", b"C"], instead=True)
    spool.put(4, [b"new", b"", b""], {"good lines": 1}, b"tag4", instead=True)
    spool.drop(7)
    os.close(os.dup(spool._file))  # nothing is closed in order: the process is gone
    with Spool(Memory(None), path) as again:
        assert again.numbers() == [0, 2, 4]
        assert again.row(2) == [b"A", b"B", b"C"]
        assert again.failed() == {}
        assert again.row(4) == [b"new", b"", b""]
        assert again.counts() == {"good lines": 1}
        assert again.tag_of(4) == b"tag4".ljust(16, b"\0")
        again.put(7, [b"x", b"y", b"z"])
    with Spool(Memory(None), path) as again:
        assert again.row(7) == [b"x", b"y", b"z"]
    spool.close()
