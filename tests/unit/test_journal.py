"""The journal: whatever a kill cuts off, what was whole before is there, and nobody else may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import SetupError
from ec262.foreman import journal as journal_module
from ec262.foreman.journal import MAGIC, Journal
from ec262.foreman.records import Remembered
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind

T1, T2, T3 = "1" * 24, "2" * 24, "3" * 24
DIGEST = bytes(32)


def worker(name: str) -> m.AssignedWorker:
    return m.AssignedWorker(worker_id=name * 32, address="127.0.0.1", port=4, slots=2, tickets=b"")


def verdict(task_id: str) -> m.TaskVerdict:
    key = m.ReleasedKey(lease_id=f"{task_id}.0", worker_id="a" * 32, result_key=b"r" * 32)
    return m.TaskVerdict(task_id=task_id, verdict="accepted", kind=Kind.OK, commitment=b"c" * 32, keys=[key])


def lease(journal: Journal, number: int, task_id: str, *, first: int = 0, phase: str = "map") -> None:
    journal.leased((phase, number, DIGEST), task_id, b"k" * 32, (0, 0), 1, [(f"{task_id}.{first}", "a" * 32)])


def written(path: Path) -> Journal:
    """A journal of three tasks: one that is over, one with a verdict, one that is out."""
    journal = Journal(path)
    journal.begun("ab" * 16)
    journal.keys(b"poll", b"program")
    journal.met(worker("a"))
    for number, task_id in enumerate((T1, T2, T3)):
        lease(journal, number, task_id)
    journal.pushed([f"{T1}.0", f"{T2}.0"])
    journal.came("a" * 32, b"receipts", [(f"{T1}.0", [b"one"]), (f"{T2}.0", [b"two"])])
    journal.paid(1, [(f"{T1}.0", "a" * 32), (f"{T2}.0", "a" * 32)])
    journal.decided(verdict(T1))
    journal.decided(verdict(T2))
    journal.over(T1)
    return journal


def test_what_was_under_way_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path).close()
    for _ in range(3):  # opening it writes it anew
        journal = Journal(path)
        assert (journal.job_id, journal.poll_key, journal.program_key) == ("ab" * 16, b"poll", b"program")
        assert journal.workers == {"a" * 32: worker("a")}
        assert journal.earned == {"a" * 32: 2}
        assert sorted(journal.tasks) == [("map", 1), ("map", 2)]
        assert [bundle.token for bundle in journal.bundles] == [b"receipts"]
        journal.close()
    journal = Journal(path)
    decided = journal.take("map", 1)
    assert decided == Remembered(
        *("map", 1, DIGEST, T2, b"k" * 32, 0, 0, 1),
        leases={f"{T2}.0": "a" * 32},
        pushed={f"{T2}.0"},
        results={f"{T2}.0": [b"two"]},
        verdict=verdict(T2),
        paid={f"{T2}.0"},
    )
    out = journal.take("map", 2)
    assert out is not None
    assert (out.leases, out.pushed, out.results, out.verdict) == ({f"{T3}.0": "a" * 32}, set(), {}, None)
    assert journal.take("map", 2) is None
    assert journal.take("map", 0) is None
    journal.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_torn_tail_is_cut_off_wherever_it_is_torn(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "journal"
    written(path).close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    tail = data.draw(st.sampled_from([b"", b"\0", b"\xff" * 9, os.urandom(30)]))
    path.write_bytes(whole[:cut] + tail)
    if cut < len(MAGIC) and tail:
        return  # not what a kill leaves
    journal = Journal(path)
    known = len(journal.tasks)
    assert known <= 3
    assert not journal.job_id or journal.job_id == "ab" * 16
    lease(journal, 7, "7" * 24)
    journal.close()
    journal = Journal(path)
    assert len(journal.tasks) == known + 1, "what is written after it can be read"
    journal.close()


def test_only_its_owner_may_read_it_and_one_process_use_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = written(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(SetupError, match="in use"):
        Journal(path)
    journal.close()
    journal = Journal(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "also when it was written anew"
    with pytest.raises(SetupError, match="in use"):
        Journal(path)
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_bytes(b"Dear Sir or Madam")
    with pytest.raises(SetupError, match="no journal"):
        Journal(path)
    assert path.read_bytes() == b"Dear Sir or Madam"
    with pytest.raises(SetupError, match="cannot be used"):
        Journal(tmp_path / "nowhere" / "journal")


def test_a_task_that_started_over_or_failed_is_known_as_such(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for number, task_id in enumerate((T1, T2)):
        lease(journal, number, task_id)
    journal.dropped(("map", 0, DIGEST), T1, (1, 2))
    journal.failed(("map", 1, DIGEST), T2, "it was lost")
    journal.close()
    for _ in range(2):
        journal = Journal(path)
        assert journal.tasks == {
            ("map", 0): Remembered("map", 0, DIGEST, attempts=1, losses=2),
            ("map", 1): Remembered("map", 1, DIGEST, failed="it was lost"),
        }
        journal.close()
    journal = Journal(path)
    lease(journal, 0, T3)
    journal.close()
    journal = Journal(path)
    again = journal.take("map", 0)
    assert again is not None
    assert again.task_id == T3
    journal.close()


def test_further_replicas_belong_to_their_task(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    lease(journal, 0, T1)
    lease(journal, 0, T1, first=1)
    journal.close()
    journal = Journal(tmp_path / "journal")
    task = journal.take("map", 0)
    assert task is not None
    assert list(task.leases) == [f"{T1}.0", f"{T1}.1"]
    journal.close()


def test_it_does_not_grow_with_what_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 20_000)
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begun("ab" * 16)
    lease(journal, 10_000, T3)
    for number in range(300):
        task_id = f"{number:024x}"
        lease(journal, number, task_id)
        journal.came("a" * 32, b"receipts", [(f"{task_id}.0", [b"x" * 1000])])
        journal.paid(1, [(f"{task_id}.0", "a" * 32)])
        journal.over(task_id)
        assert path.stat().st_size < 30_000
    journal.close()
    journal = Journal(path)
    assert path.stat().st_size < 1000
    assert list(journal.tasks) == [("map", 10_000)]
    assert (journal.job_id, journal.earned) == ("ab" * 16, {"a" * 32: 300})
    journal.close()


def test_the_end_of_a_phase_is_the_end_of_its_tasks(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path).close()
    journal = Journal(path)
    lease(journal, 0, "5" * 24, phase="reduce")
    journal.phase_over("map")
    journal.close()
    journal = Journal(path)
    assert list(journal.tasks) == [("reduce", 0)]
    journal.close()
