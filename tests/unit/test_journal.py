"""The journal: whatever a kill cuts off, what was whole before is there, and nobody else may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import SetupError
from ec262.foreman import journal as journal_module
from ec262.foreman.journal import MAGIC, Journal
from ec262.foreman.records import Kept, Remembered
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
    journal.leased((phase, number, DIGEST), task_id, b"k" * 32, (0, 0), [(f"{task_id}.{first}", "a" * 32, 1)])


def come(journal: Journal, *results: tuple[str, bytes]) -> None:
    """Results of one token each came with one bundle of receipts."""
    arrived = {lease_id: b"a" * 32 for lease_id, _ in results}
    receipts = m.SealedReceipts(worker_id="a" * 32, token=b"receipts", arrived=arrived)
    journal.came(receipts, [(lease_id, [token]) for lease_id, token in results])


def written(path: Path) -> Journal:
    """A journal of three tasks: one that is over, one with a verdict, one that is out."""
    journal = Journal(path)
    journal.begun("ab" * 16)
    journal.keys(b"poll", b"program")
    journal.met(worker("a"))
    for number, task_id in enumerate((T1, T2, T3)):
        lease(journal, number, task_id)
    journal.pushed([f"{T1}.0", f"{T2}.0"])
    come(journal, (f"{T1}.0", b"one"), (f"{T2}.0", b"two"))
    journal.paid([(f"{T1}.0", "a" * 32, 1), (f"{T2}.0", "a" * 32, 1)])
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
        assert journal.bundles[0].arrived == {f"{T1}.0": b"a" * 32, f"{T2}.0": b"a" * 32}
        journal.close()
    journal = Journal(path)
    # A result that came before the kill stays the first that came, and a lease its worker's.
    assert [journal.has_come(f"{task_id}.0") for task_id in (T1, T2, T3)] == [False, True, False]
    assert [journal.worker_of(f"{T3}.{number}") for number in (0, 1)] == ["a" * 32, ""]
    decided = journal.take("map", 1)
    assert decided == Remembered(
        *("map", 1, DIGEST, T2, b"k" * 32, 0, 0),
        leases={f"{T2}.0": "a" * 32},
        prices={f"{T2}.0": 1},
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
        come(journal, (f"{task_id}.0", b"x" * 1000))
        journal.paid([(f"{task_id}.0", "a" * 32, 1)])
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


def kept(number: int, task_id: str, *, commitment: bytes = b"c" * 32) -> Kept:
    return Kept("map", number, DIGEST, task_id, commitment)


def test_what_is_believed_is_known_until_the_job_closes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for number, task_id in enumerate((T1, T2)):
        lease(journal, number, task_id)
        journal.kept(kept(number, task_id))
    journal.leased(("map again", 0, DIGEST), T3, b"k" * 32, (0, 0), [(f"{T3}.0", "a" * 32, 1)])
    journal.kept(kept(0, T3, commitment=b"d" * 32))
    journal.close()
    for _ in range(2):  # opening it writes it anew
        journal = Journal(path)
        assert journal.tasks == {}, "nothing of them is to be leased or asked for again"
        assert list(journal.accepted.values()) == [kept(0, T3, commitment=b"d" * 32), kept(1, T2)]
        assert not journal.closed
        journal.close()
    journal = Journal(path)
    journal.close_job()
    journal.close()
    journal = Journal(path)
    assert journal.closed
    journal.close()


def test_a_believed_result_is_known_though_the_kill_came_before_that_was_noted(tmp_path: Path) -> None:
    """Its bytes are in a spool, so nobody asks for the task again: the verdict alone says what it is known by."""
    path = tmp_path / "journal"
    journal = Journal(path)
    for number, task_id, confidence in ((0, T1, 0.995), (1, T2, None)):
        lease(journal, number, task_id)
        journal.decided(msgspec.structs.replace(verdict(task_id), confidence=confidence))
    journal.close()
    journal = Journal(path)
    journal.phase_over("map")
    assert list(journal.accepted.values()) == [kept(0, T1)], "of a quorum's verdict nothing is kept"
    journal.close()
    journal = Journal(path)
    assert list(journal.accepted.values()) == [kept(0, T1)]
    journal.close()


def test_believed_tasks_are_not_written_anew_for_every_task_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of 2,000 tasks is more than may lie in the file for nothing: it does not count as that."""
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 20_000)
    path = tmp_path / "journal"
    journal = Journal(path)
    compactions = []
    compact = journal._compact

    def counted() -> None:
        compactions.append(1)
        compact()

    monkeypatch.setattr(journal, "_compact", counted)
    for number in range(2000):
        task_id = f"{number:024x}"
        lease(journal, number, task_id)
        come(journal, (f"{task_id}.0", b"x" * 100))
        journal.kept(kept(number, task_id))
    assert len(compactions) < 30
    assert path.stat().st_size < 2000 * 110 * 2 + 40_000
    journal.close()
    journal = Journal(path)
    assert len(journal.accepted) == 2000
    journal.close()


def test_pay_that_came_back_is_not_counted_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    lease(journal, 0, T1)
    journal.paid([(f"{T1}.0", "a" * 32, 3)])
    journal.paid([(f"{T1}.0", "a" * 32, -2)])
    journal.close()
    for _ in range(2):
        journal = Journal(path)
        assert journal.earned == {"a" * 32: 1}
        journal.close()


def test_a_journal_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"EC262 journal 1\n" + bytes(50))
    with pytest.raises(SetupError, match="another version"):
        Journal(path)
    assert path.stat().st_size == 66


def wanted(key: str, tasks: int = 2) -> m.LeaseTasks:
    digests = [bytes([number]) * 32 for number in range(tasks)]
    return m.LeaseTasks(
        job_id="ab" * 16,
        idempotency_key=key,
        tasks=[m.TaskWanted(input_digest=digest, cpu_limit_s=7.0) for digest in digests],
        requirements=m.Requirements(python="3.12", lane="none"),
        policy=m.Policy(redundancy=2, quorum=2, max_replicas=9),
        timeout_s=20.0,
        offer=3,
    )


def reopened(journal: Journal) -> Journal:
    """What the next foreman finds; twice, as opening it writes it anew."""
    journal.close()
    Journal(journal.path).close()
    return Journal(journal.path)


def test_a_request_without_an_answer_is_known_word_for_word(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.asked(wanted("first-key"), [("map", 0), ("map", 1)], 5.0)
    journal = reopened(journal)
    (request,) = journal.unsent()
    assert request.asked.wanted() == wanted("first-key")
    assert (request.asked.asked_s, request.asked.places) == (5.0, [("map", 0), ("map", 1)])
    assert not request.answered
    journal.answered("first-key", [])
    assert journal.unsent() == [], "it was refused"
    journal = reopened(journal)
    assert journal.unsent() == []
    journal.close()


def test_a_request_is_done_with_when_every_lease_is_with_its_worker_or_given_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.asked(wanted("first-key", 3), [("map", number) for number in range(3)], 5.0)
    for number, task_id in enumerate((T1, T2, T3)):
        lease(journal, number, task_id)
    journal.answered("first-key", [f"{task_id}.{number}" for task_id in (T1, T2, T3) for number in range(2)])
    journal.pushed([f"{T1}.0", f"{T2}.0"])
    journal.given_up([f"{T1}.1", f"{T1}.2"])
    journal.over(T3)
    copy = tmp_path / "copy"
    copy.write_bytes(journal.path.read_bytes())
    killed = Journal(copy)
    assert [request.answered for request in killed.unsent()] == [True], "a lease of one task is unsent"
    killed.close()
    journal.given_up([f"{T2}.1"])
    assert journal.unsent() == []
    journal = reopened(journal)
    assert journal.unsent() == []
    journal.close()


def test_what_is_leased_again_goes_on_from_the_tries_before(tmp_path: Path) -> None:
    """Also where the kill came while the answer was noted: the task is known once, by the id it has."""
    journal = Journal(tmp_path / "journal")
    lease(journal, 0, T1)
    journal.dropped(("map", 0, DIGEST), T1, (1, 2))
    lease(journal, 1, T2)
    journal = reopened(journal)
    for number, task_id in ((0, T3), (1, T2)):
        replica = m.LeasedReplica(lease_id=f"{task_id}.0", worker_id="a" * 32, price=3)
        journal.leased_again(
            ("map", number, DIGEST), m.LeasedTask(task_id=task_id, input_key=b"k" * 32, replicas=[replica])
        )
    for _ in range(2):
        assert journal.tasks == {
            ("map", 0): Remembered(
                *("map", 0, DIGEST, T3, b"k" * 32, 1, 2), leases={f"{T3}.0": "a" * 32}, prices={f"{T3}.0": 3}
            ),
            ("map", 1): Remembered(
                *("map", 1, DIGEST, T2, b"k" * 32), leases={f"{T2}.0": "a" * 32}, prices={f"{T2}.0": 3}
            ),
        }
        assert journal.known(T3) is journal.tasks["map", 0]
        assert journal.known(T1) is None
        journal = reopened(journal)
    journal.close()


def test_requests_that_found_no_worker_do_not_let_it_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreman that waits for workers asks four times a second, maybe for hours."""
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 20_000)
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.asked(wanted("open-yet"), [("map", 0), ("map", 1)], 5.0)
    for number in range(300):
        journal.asked(wanted(f"request-{number}"), [("map", 0), ("map", 1)], 5.0)
        journal.answered(f"request-{number}", [])
        assert path.stat().st_size < 30_000
    journal = reopened(journal)
    assert [request.asked.key for request in journal.unsent()] == ["open-yet"]
    journal.close()
