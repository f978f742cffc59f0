"""Liars who agree with each other, on a network of real processes, under the confidence policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ec262
from tests.acceptance.conftest import Network
from tests.processes import Process, until

WORKERS, LIARS = 12, 3
LIAR = """
import sys
from ec262.mapreduce import blocks
from ec262.mapreduce.program import split_counters
import ec262.worker.outcomes as outcomes
import ec262.worker.runner as runner

honest = outcomes.seal_result
HONEST_FIRST = 40
answered = 0

def lie(ticket, parts, **more):
    # Until they are believed they tell the truth; then all liars tell the same lie: every number one too large.
    global answered
    answered += 1
    if answered <= HONEST_FIRST:
        return honest(ticket, parts, **more)
    lies = []
    for part in parts:
        keys, values = [], []
        for some, held in blocks.columns_of(part):
            keys += some
            values += [[n + 1 for n in each] if isinstance(each, list) else each + 1 for each in held]
        grouped = bool(values) and isinstance(values[0], list)
        lies.append(
            blocks.encode_grouped(keys, values, where="") if grouped
            else blocks.encode_results([(keys, values)], where="")
        )
    return honest(ticket, lies, **more)

outcomes.seal_result = runner.seal_result = lie
from ec262.cli.worker import main
raise SystemExit(main())
"""


def square(key: int, value: int) -> Iterator[tuple[int, int]]:
    yield key, value * value


def total(key: int, values: list[int]) -> int:
    return sum(values)


def liar(network: Network, directory: Path) -> Process:
    script = directory / "liar.py"
    script.write_text(LIAR)
    name = f"worker{len(network.workers)}"
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=directory / name,
        log=directory / f"{name}.log",
    )
    network.workers.append(made)
    return made


@pytest.mark.timeout(400)
def test_liars_who_agree_change_no_result_and_are_convicted(
    make_network: Callable[..., Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 workers of which 3 collude, two foremen, 2,000 tasks: conviction wants the jobs of two unrelated foremen."""
    network = make_network("--network", "private", "--distinct", "account")
    for number in range(WORKERS):
        if number < LIARS:
            liar(network, tmp_path)
        else:
            network.worker()
    liars = {str(process.ready["worker_id"]) for process in network.workers[:LIARS]}

    reports = []
    for foreman, tasks in (("foreman", 1_000), ("foreman-two", 1_000)):
        monkeypatch.setenv("EC262_HOME", str(tmp_path / foreman))
        data = {n: n for n in range(tasks)}
        job = ec262.submit(
            data, mapper=square, reducer=total, discovery=network.url, confidence=0.99, items_per_task=1, reducers=1,
            name=foreman,
        )  # fmt: skip
        assert job.result(180) == {n: n * n for n in range(tasks)}
        reports.append(job.report())
    assert all(set(report.dissenters) <= liars for report in reports), "nobody honest is blamed"
    assert any(report.dissenters for report in reports)
    assert sum(report.believed.recomputed for report in reports), "what rested on liars was computed anew"

    def banned(number: int) -> bool:
        return bool(network.account(f"worker{number}")["banned"])

    until(lambda: all(banned(number) for number in range(LIARS)), 30.0, "the conviction of all liars")
    assert not any(banned(number) for number in range(LIARS, WORKERS))

    for name in ("foreman", "foreman-two"):
        until(lambda name=name: int(str(network.account(name)["escrow"])) == 0, 120.0, "an empty escrow")  # type: ignore[misc]
    # All that left the foremen's accounts is some worker's: whoever gave an answer that counted was paid for it, and
    # every task has one, of the honest but for what liars gave while they were honest.
    earned = [int(str(network.account(f"worker{number}")["earned"])) for number in range(WORKERS)]
    spent = sum(int(str(network.account(name)["spent"])) for name in ("foreman", "foreman-two"))
    assert sum(earned) == spent
    assert all(earned[LIARS:])
    tasks_of_jobs = sum(report.map_tasks + report.reduce_tasks for report in reports)
    assert sum(earned[LIARS:]) >= tasks_of_jobs - sum(earned[:LIARS])
