"""Jobs on a public network, with what it asks for: results are believed, liars outvoted and found out, prices kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ec262
from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.foreman.session import CreditLimitReached
from tests.acceptance.conftest import Network
from tests.acceptance.test_backtracking import LIAR
from tests.acceptance.test_network import audit
from tests.processes import ROOT, Process, until

MakeNetwork = Callable[..., Network]
PUBLIC = ("--network", "public", "--distinct", "account", "--address-accounts", "0", "--address-grants", "0")
LINES = {n: f"to be or not {n % 7}" for n in range(60)}
EXPECTED = {word: " ".join(LINES.values()).split().count(word) for word in " ".join(LINES.values()).split()}


def words(number: int, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        yield word, 1


def total(word: str, counts: list[int]) -> int:
    return sum(counts)


def public(make_network: MakeNetwork, workers: int, credits: int = 5000) -> Network:
    """A public network on this machine, with a foreman's account that has credits."""
    network = make_network(*PUBLIC, "--starting-credits", str(credits))
    with DiscoveryClient(network.url) as client:
        CredentialStore(network.directory / "foreman").ensure_account(network.url, lambda: create_account_at(client))
    for _ in range(workers):
        network.worker()
    return network


def start_sleeper(network: Network, directory: Path, honest: int) -> str:
    """A worker that computes so many results rightly and from then on lies; its id. All of them tell the same lie."""
    directory.mkdir()
    script = directory / "sleeper.py"
    sleeps = f"seen = []\ndef lie(ticket, parts, **more):\n    seen.append(1)\n    if len(seen) <= {honest}:\n"
    script.write_text(
        LIAR.replace("def lie(ticket, parts, **more):\n", sleeps + "        return honest(ticket, parts, **more)\n")
    )
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=directory / "home",
        log=directory / "log",
    )
    network.workers.append(made)
    return str(made.ready["worker_id"])


def submit(network: Network, lines: dict[int, str] = LINES, **options: Any) -> ec262.Job:
    options = {"reducers": 4, "rehearse": False, "items_per_task": 1, **options}
    return ec262.submit(lines, mapper=words, reducer=total, discovery=network.url, **options)


def test_results_are_believed_and_once_workers_are_known_one_answer_is_mostly_enough(make_network: MakeNetwork) -> None:
    network = public(make_network, 5)
    job = submit(network)
    assert job.result(90) == EXPECTED
    begun = job.report()
    assert begun.believed.confidence is not None
    assert begun.believed.confidence >= 0.99
    assert begun.credits_spent == sum(begun.earned.values())
    job.close()
    second = submit(network)
    assert second.result(90) == EXPECTED
    report = second.report()
    assert report.believed.replicas < min(2.0, begun.believed.replicas), "workers are known by now"
    assert report.believed.disagreements == 0
    second.close()
    audit(network)


def test_attack_sleepers_that_collude_leave_nothing_wrong_behind(make_network: MakeNetwork, tmp_path: Path) -> None:
    """Two of eight are honest until they are trusted, and then tell the same lies."""
    network = public(make_network, 6)
    liars = {start_sleeper(network, tmp_path / f"sleeper{n}", honest=60) for n in range(2)}
    lines = {n: f"to be or not {n % 7}" for n in range(400)}
    job = submit(network, lines)
    expected = {word: " ".join(lines.values()).split().count(word) for word in EXPECTED}
    assert job.result(180) == expected
    report = job.report()
    assert report.dissenters, "they were outvoted"
    assert set(report.dissenters) <= liars
    honest = {str(worker.ready["worker_id"]) for worker in network.workers} - liars
    assert honest <= report.earned.keys()
    job.close()
    audit(network)


def test_too_few_workers_to_be_believed_is_said(make_network: MakeNetwork) -> None:
    network = public(make_network, 2)
    with pytest.raises(ec262.NoWorkers, match=r"confidence=0\.99 yet.*Four workers that nobody knows.*ec262 explain"):
        ec262.run_job({1: "a"}, mapper=words, discovery=network.url, wait_for_workers_s=1, rehearse=False)


def test_an_estimate_says_what_it_assumes(make_network: MakeNetwork) -> None:
    network = public(make_network, 1, credits=12)
    with pytest.raises(
        ec262.InsufficientCredits,
        match=r"needs 12[36] credits .*up to 2 times 1\.5 replicas, as is assumed for confidence=0\.99.* has 12",
    ):
        submit(network, dict.fromkeys(range(40), "a"), reducers=1, price=2).result(30)
    with pytest.raises(ec262.JobFailed, match=r"more than max_credits=5"):
        submit(network, dict.fromkeys(range(6), "a"), reducers=1, max_credits=5).result(30)
    assert network.account("foreman")["spent"] == 0


def test_a_limit_of_credits_holds_whatever_replicas_it_takes(make_network: MakeNetwork) -> None:
    """Newcomers need four replicas a task where 1.5 were assumed: the job ends before it costs more than it may."""
    network = public(make_network, 5)
    with pytest.raises((CreditLimitReached, ec262.JobFailed)):
        submit(network, max_credits=100).result(90)
    account = network.account("foreman")
    assert int(str(account["spent"])) + int(str(account["escrow"])) <= 100


def test_workers_that_ask_for_more_are_paid_it_where_it_is_offered(make_network: MakeNetwork) -> None:
    network = public(make_network, 0)
    for _ in range(5):
        network.worker("--min-price", "3")
    with pytest.raises(ec262.NoWorkers, match="price=2"):
        submit(network, price=2, wait_for_workers_s=1).result(30)
    job = submit(network, price=7)
    assert job.result(90) == EXPECTED
    report = job.report()
    assert report.credits_spent == 3 * report.believed.answers, "what they ask, not what is offered"
    assert network.account("foreman")["spent"] == report.credits_spent
    job.close()
    audit(network)


KILLED = """
import os, signal, sys
import ec262
from ec262.discovery_client import DiscoveryClient
from ec262.foreman.journal import Journal
from tests.acceptance.test_confidence import LINES, words, total

seen = {}

def happened(what):
    seen[what] = seen.get(what, 0) + 1
    if sys.argv[2:] == [what, str(seen[what])]:
        os.kill(os.getpid(), signal.SIGKILL)

def show(progress):
    happened(progress.phase)

def kept(journal, record, note=Journal.kept):
    note(journal, record)
    happened("kept " + record.phase)

def settle(client, body, ask=DiscoveryClient.settle):
    settled = ask(client, body)
    if any(verdict.verdict == "more" for verdict in settled.tasks):
        happened("more")
    return settled

Journal.kept, DiscoveryClient.settle = kept, settle
report = ec262.run_job(LINES, mapper=words, reducer=total, discovery=sys.argv[1], checkpoint="kept", output="made",
                       output_format="json", reducers=4, items_per_task=1, rehearse=False, progress=show,
                       wait_for_workers_s=60, timeout_s=20, backup_tasks=False)
print(report.credits_spent, report.map_tasks, report.reduce_tasks, report.believed.unaudited)
"""


@pytest.mark.parametrize(
    "event, times",
    [
        *(("kept map", 20), ("more", 2)),
        *(pytest.param(event, 1, marks=pytest.mark.slow) for event in ("reduce", "kept reduce", "writing")),
    ],
)
def test_a_killed_foreman_goes_on_and_what_it_had_is_audited_too(
    make_network: MakeNetwork, event: str, times: int
) -> None:
    """Killed at events that always come: when the twentieth result is noted, when a phase begins, and when further
    replicas are leased and not noted yet."""
    network = public(make_network, 5)
    folder = network.directory / "job"
    folder.mkdir()
    (folder / "job.py").write_text(KILLED)
    environment = {**os.environ, "EC262_HOME": str(network.directory / "foreman"), "PYTHONPATH": str(ROOT)}

    def run(*point: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "job.py", network.url, *point],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    killed = run(event, str(times))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    made = run()
    assert made.returncode == 0, made.stderr
    lines = [json.loads(line) for name in sorted(folder.glob("made_0*")) for line in name.read_text().splitlines()]
    assert dict(lines) == EXPECTED
    _, maps, _, unaudited = map(int, made.stdout.split())
    assert (maps, unaudited) == (0 if event == "writing" else len(LINES), 0), "what is complete is not looked at again"
    spent = int(str(network.account("foreman")["spent"]))
    assert spent <= (len(LINES) + 4) * 5 + 10, "nothing was paid for twice"
    if event == "more":
        # What the lost answer leased was sent, and is paid for: nobody has to be released from it, which costs a fee.
        until(lambda: network.account("foreman")["escrow"] == 0, 60, "an empty escrow")
        assert network.credits()["burnt"] == 0
