"""Workers that are paid for results which no task can have, and inputs that no worker can be sent: who did it is named,
and the job does not end of one worker."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ec262
from ec262.backends.base import FailedTask
from ec262.cli.run import summarise
from ec262.foreman.journal import Journal
from ec262.jobs.report import Report
from tests.acceptance.conftest import Network
from tests.acceptance.test_network import EXPECTED, TEXT, audit, total, words
from tests.processes import Process

MakeNetwork = Callable[..., Network]
MIB = 1024 * 1024

LIAR = """
import ec262.worker.runner as runner
from ec262.mapreduce.blocks import encode_grouped
from ec262.protocol.canonical import encode_value
from ec262.protocol.framing import frame_parts
honest = runner.seal_result
def two(*keys):
    return encode_grouped(list(keys), [[1]] * len(keys), where="")
LIES = {
    "junk": lambda parts: [b"junk"] * len(parts),
    "no json": lambda parts: [frame_parts([b"j[1", b"j[[1]]"])] * len(parts),
    "fewer parts": lambda parts: parts[:-1],
    "more parts": lambda parts: [*parts, b"", b""],
    "out of order": lambda parts: [two("b", "a")] * len(parts),
    "doubled": lambda parts: [two("a", "a")] * len(parts),
    "bomb": lambda parts: [frame_parts([b"j[]", b"l\\0\\0\\5\\xdc" + b'{"n":[0' + b",32" * 497 + b"]}" + b"j[]"])],
    "counter": lambda parts: [*parts, encode_value({"\\x1b[2J": 10**4000})],
}
def lie(ticket, parts, **more):
    return honest(ticket, LIES[NAME](parts), **more)
runner.seal_result = lie
from ec262.cli.worker import main
raise SystemExit(main())
"""


def liar(network: Network, directory: Path, lie: str) -> str:
    """Starts a worker that computes and commits to something else; its id."""
    script = directory / "liar.py"
    script.write_text(f"NAME = {lie!r}\n{LIAR}")
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=directory / "liar",
        log=directory / "liar.log",
    )
    network.workers.append(made)
    return str(made.ready["worker_id"])


LIES = ["junk", "no json", "fewer parts", "more parts", "out of order", "doubled", "bomb", "counter"]


@pytest.mark.parametrize("lie", LIES)
def test_attack_a_malformed_result_costs_a_credit_and_not_the_job(
    make_network: MakeNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture, lie: str
) -> None:
    """Redundancy 1: nobody contradicts it. The task goes to another worker, and the liar is named."""
    caplog.set_level(logging.INFO, "ec262.foreman")
    network = make_network()
    network.worker()
    liar_id = liar(network, tmp_path, lie)
    job = ec262.submit(
        dict(enumerate(TEXT)), mapper=words, reducer=total, discovery=network.url, max_retries=1, rehearse=False
    )
    assert job.result(60) == EXPECTED
    report = job.report()
    assert report.dissenters == (liar_id,)
    assert report.retried > 0
    assert report.counters == {}
    lied = [record.getMessage() for record in caplog.records if liar_id in record.getMessage()]
    assert any("was accepted and paid, but is malformed" in message for message in lied)
    audit(network)


def test_attack_a_network_of_liars_ends_the_job_with_their_names(make_network: MakeNetwork, tmp_path: Path) -> None:
    """There is no other worker: the task comes to it again, but not more often than it is paid for."""
    network = make_network()
    liar_id = liar(network, tmp_path, "out of order")
    started_s = time.monotonic()
    with pytest.raises(ec262.JobFailed, match=rf"map task 0 .*tried 3 times.*out of order.*worker {liar_id}"):
        ec262.run_job({1: "a"}, mapper=words, reducer=total, discovery=network.url, max_retries=2)
    assert time.monotonic() - started_s < 15
    assert int(str(network.account("foreman")["spent"])) == 3
    audit(network)


def test_attack_where_nothing_may_run_twice_a_malformed_result_fails_its_task(
    make_network: MakeNetwork, tmp_path: Path
) -> None:
    network = make_network()
    liar_id = liar(network, tmp_path, "junk")
    job = ec262.submit(
        {1: "a", 2: "b"}, mapper=words, reducer=total, discovery=network.url, max_retries=0, on_failure="skip"
    )
    assert job.result(60) == {}
    report = job.report()
    assert [liar_id in failed.reason for failed in report.failed] == [True, True]
    assert report.dissenters == (liar_id,)


def test_attack_names_that_drive_the_terminal_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    failed = FailedTask(0, "map", 0, "map task 0 (\x1b]0;x\x07)", "why\x9b2J\nmore")
    summarise(Report(1, 1, 0, 0, counters={"\x1b[2J\u202e": 3, "häufig": 4}, failed=(failed,)))
    shown = capsys.readouterr().err
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\x1b[2J\\u202e: 3\nhäufig: 4\n" in shown


# --- too large to be sent -------------------------------------------------------------------------


def sizes(key: Any, value: bytes) -> Iterator[tuple[Any, int]]:
    yield key, len(value)


def spreads(key: int, size: int) -> Iterator[tuple[str, bytes]]:
    yield "all", bytes(size)


def test_an_input_that_fits_into_no_push_is_said_at_once(make_network: MakeNetwork) -> None:
    network = make_network()
    network.worker()
    common: dict[str, Any] = {"discovery": network.url, "rehearse": False}
    with pytest.raises(ec262.LimitExceeded, match=r"map task 1 .*its input has 69\.\d MB.*at most 66\.\d MB.*smaller"):
        ec262.run_job({1: b"", 2: bytes(52_000_000)}, mapper=sizes, items_per_task=1, **common)
    job = ec262.submit({1: b"", 2: bytes(52_000_000)}, mapper=sizes, items_per_task=1, on_failure="skip", **common)
    assert job.result(60) == {1: [0]}
    assert ["its input has" in failed.reason for failed in job.report().failed] == [True]
    with pytest.raises(
        ec262.LimitExceeded, match=r"reduce task 0: its input has 70\.\d MB.*more reducers, or a combiner"
    ):
        ec262.run_job(dict.fromkeys(range(7), 10_000_000), mapper=spreads, items_per_task=1, reducers=1, **common)


# --- a disk without room --------------------------------------------------------------------------


def test_a_journal_on_a_full_disk_is_named_and_says_no_more(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begun("ab" * 16)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
    try:
        with pytest.raises(ec262.SetupError, match=r"journal.*cannot be used.*another checkpoint directory"):
            journal.keys(b"k" * 1000, b"")
        journal.paid([("1.0", "w", 1)])  # the job ends of the first
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.close()
    again = Journal(path)
    assert (again.job_id, again.poll_key) == ("ab" * 16, b"")
    again.close()


def test_a_full_disk_when_the_journal_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begun("ab" * 16)
    for number in range(50):
        journal.leased(("map", number, bytes(32)), f"{number:024}", b"k" * 32, (0, 0), [(f"{number:024}.0", "w", 1)])
    journal.over(f"{0:024}")
    journal.close()
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ec262.SetupError, match=r"another checkpoint directory"):
            Journal(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == size, "what was there is there"
    again = Journal(path)
    assert len(again.tasks) == 49
    again.close()
