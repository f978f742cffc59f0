"""Backtracking, as the foreman does it: what rested on a worker that is no longer believed is computed anew, and so is
what used it. The network is real; when discovery ceases to believe whom is the test's choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ec262
from ec262.backends import network as network_backend
from ec262.discovery_client import DiscoveryClient
from ec262.protocol import messages as m
from tests.acceptance.conftest import Network
from tests.processes import ROOT, Process

MakeNetwork = Callable[..., Network]
TEXT = ["to be or not to be", "that is the question", "whether tis nobler in the mind to suffer"] * 8
LINES = dict(enumerate(TEXT))
EXPECTED: dict[str, int] = {word: " ".join(TEXT).split().count(word) for word in " ".join(TEXT).split()}

LIAR = """
import ec262.worker.outcomes as outcomes
from ec262.errors import Malformed
from ec262.mapreduce.blocks import batches_of, encode_grouped, encode_results
honest = outcomes.seal_result
def lie(ticket, parts, **more):
    def instead(part):
        try:
            list(batches_of(part))
        except Malformed:
            return encode_results([(["lie"], [1])], where="")
        return encode_grouped(["lie"], [[1]], where="")
    return honest(ticket, [instead(part) if part and not part.startswith(b"{") else part for part in parts], **more)
outcomes.seal_result = lie
import ec262.worker.runner as runner
runner.seal_result = lie
from ec262.cli.worker import main
raise SystemExit(main())
"""


def words(number: int, line: str) -> Iterator[tuple[str, int]]:
    ec262.counter("lines").add()
    for word in line.split():
        yield word, 1


def total(word: str, counts: list[int]) -> int:
    ec262.counter("words").add()
    return sum(counts)


FAILS = """
import ec262.worker.outcomes as outcomes
def fail(ticket, parts, *, cpu_s):
    facts = {"type": "ValueError", "message": "no such thing", "line": "1", "traceback": ""}
    return outcomes.seal_error(ticket, facts, cpu_s=cpu_s)
outcomes.seal_result = fail
import ec262.worker.runner as runner
runner.seal_result = fail
from ec262.cli.worker import main
raise SystemExit(main())
"""


def start_liar(network: Network, directory: Path, lies: str = LIAR) -> Process:
    """A worker that computes and commits itself to something else, and is believed at first."""
    script = directory / "liar.py"
    script.write_text(lies)
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=directory / "liar",
        log=directory / "liar.log",
    )
    network.workers.append(made)
    return made


class Doubts:
    """When discovery ceases to believe whom.

    Args:
        at: number of the audit with which the liar is found out: it is gone from then on. 1: at the end of mapping.
    """

    def __init__(self, liar: Process | None = None, at: int = 1) -> None:
        self.liar, self.at = liar, at
        self.liar_id = str(liar.ready["worker_id"]) if liar is not None else ""
        self.accepted: dict[str, list[str]] = {}
        """Workers that were paid for each task."""
        self.audits: list[m.AuditTasks] = []
        self.again: dict[str, str] = {}
        """By the new task's id, which it computes anew."""
        self.digests: dict[str, bytes] = {}
        self.heard: set[str] = set()
        self.extra: Callable[[m.AuditTasks], list[str]] = lambda asked: []
        self.unknown: set[str] = set()
        self.closed = False

    @property
    def overturned(self) -> set[str]:
        if len(self.audits) < self.at or not self.liar_id:
            return set()
        return {task_id for task_id, paid in self.accepted.items() if self.liar_id in paid} - self.heard

    def audit(self, asked: m.AuditTasks) -> m.Audited:
        assert not self.closed, "nothing is asked of a job that is closed"
        self.audits.append(asked)
        self.heard.update(asked.heard)
        if len(self.audits) == self.at and self.liar is not None:
            self.liar.kill()
        assert set(asked.tasks) <= self.accepted.keys()
        recompute = sorted(self.overturned | set(self.extra(asked)) - self.heard)
        unknown = sorted(set(asked.tasks) & self.unknown - self.heard)
        self.closed = asked.closing and not recompute and not unknown
        return m.Audited(recompute=recompute, unknown=unknown, closed=self.closed)


class DoubtingClient(DiscoveryClient):
    """Discovery believes the first answer, and later does not."""

    doubts: Doubts

    def lease_tasks(self, body: m.LeaseTasks) -> m.Leased:
        assert body.policy.confidence == 0.9
        plain = [msgspec.structs.replace(task, again=None) for task in body.tasks]
        policy = msgspec.structs.replace(body.policy, confidence=0.0)
        leased = super().lease_tasks(msgspec.structs.replace(body, tasks=plain, policy=policy))
        for wanted, task in zip(body.tasks, leased.tasks, strict=False):
            self.doubts.digests[task.task_id] = wanted.input_digest
            if wanted.again is not None:
                self.doubts.again[task.task_id] = wanted.again
        return leased

    def settle(self, body: m.Settle) -> m.Settled:
        self.doubts.heard.update(body.heard)
        settled = super().settle(body)
        for verdict in settled.tasks:
            if verdict.verdict == "accepted":
                self.doubts.accepted[verdict.task_id] = [key.worker_id for key in verdict.keys]
        verdicts = [
            msgspec.structs.replace(each, confidence=0.95) if each.verdict == "accepted" else each
            for each in settled.tasks
        ]
        return msgspec.structs.replace(settled, tasks=verdicts, recompute=sorted(self.doubts.overturned))

    def audit(self, body: m.AuditTasks) -> m.Audited:
        return self.doubts.audit(body)


@pytest.fixture
def doubting(monkeypatch: pytest.MonkeyPatch) -> type[DoubtingClient]:
    monkeypatch.setattr(network_backend, "DiscoveryClient", DoubtingClient)
    return DoubtingClient


def submit(network: Network, **options: Any) -> ec262.Job:
    options = {"mapper": words, "reducer": total, "reducers": 6, "rehearse": False, "backup_tasks": False, **options}
    return ec262.submit(LINES, discovery=network.url, confidence=0.9, max_retries=20, **options)


@pytest.mark.parametrize(
    "at, memory_limit",
    [(1, None), (2, 0), *(pytest.param(*which, marks=pytest.mark.slow) for which in ((1, 0), (2, None)))],
)
def test_attack_a_sleeper_that_is_convicted_late_leaves_nothing_behind(
    make_network: MakeNetwork, tmp_path: Path, doubting: type[DoubtingClient], at: int, memory_limit: int | None
) -> None:
    """Found out when mapping ends, or when all is done: results and counters are right all the same."""
    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts(start_liar(network, tmp_path), at)
    job = submit(network, memory_limit=memory_limit)
    assert job.result(90) == EXPECTED
    assert job.counters() == {"lines": len(TEXT), "words": len(EXPECTED)}
    lied = {task_id for task_id, paid in doubts.accepted.items() if doubts.liar_id in paid}
    assert lied, "it was believed at first"
    assert doubts.closed
    assert lied <= doubts.heard
    assert doubts.again, "the tasks are told to be the same ones"
    for new, old in doubts.again.items():
        assert doubts.digests[new] == doubts.digests[old], "only the same input is computed anew"
        assert old in lied
    report = job.report()
    assert report.believed.recomputed == len(doubts.again)
    assert report.believed.confidence == 0.95
    job.close()


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_attack_a_liar_that_says_the_program_failed_leaves_no_task_out(
    make_network: MakeNetwork, tmp_path: Path, doubting: type[DoubtingClient], at: int
) -> None:
    """Failed tasks are skipped, as the policy says. What a liar said of them is taken back with the rest."""
    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts(start_liar(network, tmp_path, FAILS), at)
    job = submit(network, on_failure="skip")
    assert job.result(90) == EXPECTED
    assert job.counters() == {"lines": len(TEXT), "words": len(EXPECTED)}
    report = job.report()
    assert report.failed == (), "what was left out is there again"
    assert report.believed.recomputed > 0, "it was believed at first"
    assert doubts.closed
    job.close()


def test_what_turns_out_the_same_costs_nothing_more(make_network: MakeNetwork, doubting: type[DoubtingClient]) -> None:
    """An honest worker is convicted wrongly: its map tasks are computed anew, and no reduce task is."""
    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts()
    doubted: list[str] = []

    def extra(asked: m.AuditTasks) -> list[str]:
        if asked.closing and not doubted:
            doubted.extend(list(doubts.accepted)[:3])
        return doubted

    doubts.extra = extra
    job = submit(network, reducers=3)
    assert job.result(90) == EXPECTED
    assert sorted(doubts.again.values()) == sorted(doubted)
    assert job.report().believed.recomputed == 3
    assert len(doubts.accepted) == len(TEXT) + 3 + 3
    assert job.report().credits_spent == len(TEXT) + 3 + 3
    job.close()


def test_audits_are_linear_in_the_tasks(
    make_network: MakeNetwork, doubting: type[DoubtingClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "MAX_TASKS_A_REQUEST", 10)
    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts()
    job = submit(network)
    assert job.result(90) == EXPECTED
    asked = [len(each.tasks) for each in doubts.audits]
    maps, reduces = len(TEXT), job.report().reduce_tasks
    assert max(asked) <= 10
    assert sum(asked) == 2 * maps + reduces, "map tasks before reducing and at the end, reduce tasks at the end"
    assert len(asked) <= sum(asked) / 10 + 3
    assert [each.closing for each in doubts.audits] == [False] * (len(asked) - 1) + [True]
    job.close()


def test_what_discovery_has_lost_is_computed_anew(make_network: MakeNetwork, doubting: type[DoubtingClient]) -> None:
    """It knows nothing of two tasks: nobody vouches for them, and they cannot be named as computed before."""
    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts()

    def extra(asked: m.AuditTasks) -> list[str]:
        if len(doubts.audits) == 1:
            doubts.unknown = set(asked.tasks[:2])
        return []

    doubts.extra = extra
    job = submit(network)
    assert job.result(90) == EXPECTED
    assert len(doubts.accepted) == len(TEXT) + 2 + job.report().reduce_tasks
    assert doubts.again == {}
    job.close()


def test_pairs_come_only_after_the_job_closed_at_discovery(
    make_network: MakeNetwork, doubting: type[DoubtingClient]
) -> None:
    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts()
    pairs = ec262.run_job(
        LINES, mapper=words, reducer=total, discovery=network.url, confidence=0.9, rehearse=False, as_iterator=True
    )
    assert doubts.closed
    assert dict(pairs) == EXPECTED


def test_each_stage_closes_before_the_next_begins(
    make_network: MakeNetwork, tmp_path: Path, doubting: type[DoubtingClient]
) -> None:
    """The liar is found out at the end of the first stage, of which the second is made."""

    def by_count(word: str, count: int) -> Iterator[tuple[int, str]]:
        yield count, word

    def sorted_words(count: int, found: list[str]) -> list[str]:
        return sorted(found)

    network = make_network()
    network.worker()
    doubting.doubts = doubts = Doubts(start_liar(network, tmp_path), at=2)
    jobs: list[str] = []

    def audit(asked: m.AuditTasks) -> m.Audited:
        if asked.job_id not in jobs:
            assert not jobs or doubts.closed, "the stage before is closed"
            doubts.closed = False
            jobs.append(asked.job_id)
        return Doubts.audit(doubts, asked)

    doubts.audit = audit  # type: ignore[method-assign]
    stages = [ec262.Program(words, total), ec262.Program(by_count, sorted_words)]
    job = submit(network, mapper=None, reducer=None, stages=stages)
    expected: dict[int, list[str]] = {}
    for word, count in EXPECTED.items():
        expected.setdefault(count, []).append(word)
    assert job.result(90) == {count: sorted(found) for count, found in sorted(expected.items())}
    assert len(jobs) == 2
    assert doubts.closed
    job.close()


def test_under_redundancy_nothing_is_audited(make_network: MakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def audit(client: DiscoveryClient, body: m.AuditTasks) -> m.Audited:
        raise AssertionError("nobody asks")

    monkeypatch.setattr(DiscoveryClient, "audit", audit)
    network = make_network()
    network.worker()
    job = ec262.submit(LINES, mapper=words, reducer=total, discovery=network.url, rehearse=False)
    assert job.result(90) == EXPECTED
    report = job.report()
    assert (report.believed.confidence, report.believed.recomputed) == (None, 0)
    assert report.believed.replicas == 1.0
    job.close()


KILLED = """
import os, signal, sys
from pathlib import Path
import ec262
from ec262.backends import network as network_backend
from tests.acceptance import test_backtracking as shared

point, url = sys.argv[1], sys.argv[2]

class Doubts(shared.Doubts):
    def audit(self, asked):
        self.accepted.update(dict.fromkeys(asked.tasks, []))
        answer = super().audit(asked)
        if len(self.audits) == 2 and point == "doubted":
            # Discovery names tasks when all is done; the foreman dies once it has the first of them anew.
            return shared.m.Audited(recompute=sorted(asked.tasks)[:4], unknown=[], closed=False)
        if answer.closed and point == "closed":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

class Client(shared.DoubtingClient):
    def settle(self, body):
        settled = super().settle(body)
        if self.doubts.again and point == "doubted" and any(v.verdict == "accepted" for v in settled.tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        return settled

Client.doubts = doubts = Doubts()
network_backend.DiscoveryClient = Client
report = ec262.run_job(shared.LINES, mapper=shared.words, reducer=shared.total, discovery=url, confidence=0.9,
                       reducers=6, rehearse=False, backup_tasks=False, checkpoint="kept", output="made",
                       output_format="json", progress=False)
asked = sum(len(each.tasks) for each in doubts.audits)
print(len(doubts.audits), asked, report.credits_spent, report.believed.unaudited)
"""


@pytest.mark.parametrize("point", ["doubted", pytest.param("closed", marks=pytest.mark.slow)])
def test_a_foreman_killed_while_it_backtracks_goes_on(make_network: MakeNetwork, point: str) -> None:
    network = make_network()
    network.worker()
    folder = network.directory / "job"
    folder.mkdir()
    (folder / "job.py").write_text(KILLED)
    environment = {**os.environ, "EC262_HOME": str(network.directory / "foreman"), "PYTHONPATH": str(ROOT)}

    def run(point: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "job.py", point, network.url],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    killed = run(point)
    assert killed.returncode == -9, killed.stderr
    made = run("none")
    assert made.returncode == 0, made.stderr
    audits, asked, spent, unaudited = map(int, made.stdout.split())
    lines = [json.loads(line) for name in sorted(folder.glob("made_0*")) for line in name.read_text().splitlines()]
    assert dict(lines) == EXPECTED
    reduces = len(list(folder.glob("made_0*")))
    assert unaudited == 0
    if point == "doubted":
        assert asked >= len(TEXT) + reduces, "what the run before had is audited as well"
        assert spent <= len(TEXT) + reduces + 4
    else:
        assert audits in (1, 2, 3), "its end was not noted: discovery is asked once more"
