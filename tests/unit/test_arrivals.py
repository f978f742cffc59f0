"""Arrivals: a foreman tells discovery what came of each worker, and takes nobody's word for another's lease."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from ec262.discovery_client import DiscoveryClient
from ec262.foreman.attempts import Peer, Task
from ec262.foreman.inflight import InFlight
from ec262.foreman.journal import Journal
from ec262.foreman.polling import Polling
from ec262.foreman.purse import Purse
from ec262.foreman.schedule import Schedule
from ec262.foreman.session import Session
from ec262.policy import Policy
from ec262.protocol import messages as m
from ec262.protocol.receipts import digests_of, tokens_digest

ONE, TWO = "1" * 32, "2" * 32
TASK = "a" * 24
TOKENS = [b"one", b"two"]


def digest(tokens: list[bytes]) -> bytes:
    return tokens_digest(digests_of(tokens))


class Job:
    """A session with one task that two workers have."""

    def __init__(self, journal: Journal | None = None, **policy: object) -> None:
        self.schedule = Schedule(redundancy=2, quorum=2, inflight=InFlight(10**9))
        self.session = Session(
            *(cast(DiscoveryClient, None), Policy(**policy), self.schedule, Purse(None, 1), journal),  # type: ignore[arg-type]
            job_id="ab" * 16,
            program=b"program",
            changed=lambda: None,
        )
        self.polling = Polling(self.session)
        self.task = Task(0, lambda: [b"input"], size=5)
        if journal is None:
            self.lease()

    def lease(self) -> None:
        self.schedule.begin([self.task])
        self.schedule.peers |= {worker: Peer(worker, 1) for worker in (ONE, TWO)}
        self.schedule.take_to_lease()
        self.schedule.leased(self.task, TASK, b"k" * 32, [(f"{TASK}.0", ONE), (f"{TASK}.1", TWO)], 1.0)

    def take(self, worker_id: str, results: dict[str, list[bytes]], receipts: bytes = b"receipts") -> dict[str, bytes]:
        """A worker hands these over; returns what discovery is told that arrived."""
        listed = [m.SealedResult(lease_id=lease_id, tokens=tokens) for lease_id, tokens in results.items()]
        self.polling._take(worker_id, m.Results(results=listed, receipts=receipts, cursor=1, held=0))
        shown = self.session.receipts[-1]
        assert (shown.worker_id, shown.token) == (worker_id, receipts)
        return shown.arrived


def test_what_arrived_is_named_by_its_tokens() -> None:
    job = Job()
    assert job.take(ONE, {f"{TASK}.0": TOKENS}) == {f"{TASK}.0": digest(TOKENS)}
    assert digest(TOKENS) not in (digest(TOKENS[::-1]), digest([b"onetwo"]), digest(TOKENS[:1]))
    assert job.take(TWO, {f"{TASK}.1": []}) == {}, "a result without tokens is none"


def test_a_late_result_of_a_task_that_is_not_known_any_more_is_named_as_it_came() -> None:
    """Its worker did what it was leased: it is not to be taken for one that delivered nothing."""
    assert Job().take(ONE, {"f" * 24 + ".0": TOKENS}) == {"f" * 24 + ".0": digest(TOKENS)}


def test_attack_other_bytes_for_a_lease_that_was_delivered() -> None:
    """The first bytes are those that the foreman holds, and disputes: others are not named in their place."""
    job = Job()
    job.take(ONE, {f"{TASK}.0": TOKENS})
    assert job.take(ONE, {f"{TASK}.0": [b"other"]}) == {}
    assert job.task.replicas[f"{TASK}.0"].tokens == TOKENS


def test_attack_bytes_for_another_workers_lease() -> None:
    """A worker that knows its task's other leases hands over junk for them: the honest result would count as late, and
    its receipt as one for other bytes."""
    job = Job()
    assert job.take(ONE, {f"{TASK}.0": TOKENS, f"{TASK}.1": [b"junk"]}) == {f"{TASK}.0": digest(TOKENS)}
    assert job.task.replicas[f"{TASK}.1"].out
    assert job.take(TWO, {f"{TASK}.1": TOKENS}) == {f"{TASK}.1": digest(TOKENS)}
    assert job.task.replicas[f"{TASK}.1"].tokens == TOKENS


def test_attack_the_same_of_a_task_that_a_resumed_foreman_has_not_come_to(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    leases = [(f"{TASK}.0", ONE, 1), (f"{TASK}.1", TWO, 1)]
    journal.leased(("map", 0, b"d" * 32), TASK, b"k" * 32, (0, 0), leases)
    journal.close()
    journal = Journal(tmp_path / "journal")
    job = Job(journal)
    assert job.take(ONE, {f"{TASK}.1": [b"junk"], f"{TASK}.0": TOKENS}) == {f"{TASK}.0": digest(TOKENS)}
    assert job.take(ONE, {f"{TASK}.0": [b"other"]}) == {}
    journal.close()
    # After another kill it tells the same, of the bytes that it holds.
    journal = Journal(tmp_path / "journal")
    assert [bundle.arrived for bundle in journal.bundles] == [{f"{TASK}.0": digest(TOKENS)}]
    known = journal.take("map", 0)
    assert known is not None
    assert known.results == {f"{TASK}.0": TOKENS}
    journal.close()


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_worker_whose_receipts_do_not_count_is_named_and_its_tasks_go_on(max_retries: int) -> None:
    job = Job(max_retries=max_retries)
    job.take(ONE, {f"{TASK}.0": TOKENS})
    job.session.reject(ONE, [f"{TASK}.0", f"{TASK}.1"], "other bytes arrived")
    assert job.session.dissent.workers == job.task.shunned == {ONE}
    assert job.session.lost == [f"{TASK}.0"], "of another worker's lease nothing is said"
    assert job.session.to_settle.is_set()
    assert job.session.failure is None, "the other one may come"
    job.take(TWO, {f"{TASK}.1": TOKENS})
    job.session.reject(TWO, [f"{TASK}.1"], "other bytes arrived")
    assert (job.session.failure is not None) == (max_retries == 0)
