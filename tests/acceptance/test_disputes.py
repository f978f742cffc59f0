"""Workers that commit themselves to the right result and deliver other bytes: their foreman shows discovery, gets its
credits back, takes another payee's bytes or has the task computed anew, and names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ec262
from ec262.cli.run import summarise
from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from tests.acceptance.conftest import Network
from tests.acceptance.test_network import audit
from tests.processes import Process

MakeNetwork = Callable[..., Network]
LINES = {n: f"to be {n % 3}" for n in range(30)}
EXPECTED = {"0": 10, "1": 10, "2": 10, "be": 30, "to": 30}
PUBLIC = (
    *("--network", "public", "--distinct", "account", "--starting-credits", "1000"),
    *("--address-accounts", "0", "--address-grants", "0"),
)

DELIVERS = """
import hashlib
import ec262.worker.outcomes as outcomes
from ec262.protocol.framing import frame_parts
from ec262.protocol.sealing import seal
honest = outcomes.seal_result
JUNK = {
    "noise": lambda ticket: b"\\x80" * 200,
    "no frame": lambda ticket: seal(ticket.result_key, b"no frame"),
    "another result": lambda ticket: seal(ticket.result_key, frame_parts([b""])),
}
def deliver(ticket, parts, **more):
    made = honest(ticket, parts, **more)
    token = JUNK[NAME](ticket)
    named = hashlib.sha256(b"others" if HIDES else token).digest()
    receipt = type(made.receipt)(made.receipt.lease_id, made.receipt.kind, made.receipt.commitment, [named], 0.1)
    return outcomes.Sealed([token], receipt, len(token))
outcomes.seal_result = deliver
import ec262.worker.runner as runner
runner.seal_result = deliver
from ec262.cli.worker import main
raise SystemExit(main())
"""


def words(number: int, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        yield word, 1


def total(word: str, counts: list[int]) -> int:
    return sum(counts)


def start_junk(network: Network, directory: Path, name: str, *, hides: bool = False) -> str:
    """A worker that delivers junk; `hides`: its receipt names other bytes. Returns its id."""
    script = directory / "junk.py"
    script.write_text(f"NAME = {name!r}\nHIDES = {hides}\n{DELIVERS}")
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=directory / "junk",
        log=directory / "junk.log",
    )
    network.workers.append(made)
    return str(made.ready["worker_id"])


def submit(network: Network, **options: Any) -> ec262.Job:
    return ec262.submit(
        *(LINES,), mapper=words, reducer=total, discovery=network.url, rehearse=False, backup_tasks=False, **options
    )


@pytest.mark.parametrize("name", ["noise", "no frame", "another result"])
def test_attack_junk_is_disputed_and_the_task_computed_anew(
    make_network: MakeNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    network = make_network()
    network.worker()
    junk_id = start_junk(network, tmp_path, name)
    job = submit(network, max_retries=9)
    assert job.result(90) == EXPECTED
    report = job.report()
    disputed = report.believed.disputed
    assert disputed, "it was paid for some"
    assert {each.verdict for each in disputed} == {"upheld"}
    assert {each.worker_id for each in disputed} == {junk_id}
    assert report.dissenters == (junk_id,)
    assert report.earned.get(junk_id, 0) == sum(1 - each.refund for each in disputed)
    assert report.credits_spent == report.map_tasks + report.reduce_tasks + report.earned.get(junk_id, 0)
    assert int(str(network.account("foreman")["spent"])) == report.credits_spent
    summarise(report)
    shown = capsys.readouterr().err
    assert f"of worker {junk_id}; dispute upheld" in shown
    assert f"ec262 explain {disputed[0].task_id}" in shown
    job.close()
    audit(network)


def test_attack_junk_beside_an_honest_result_costs_no_other_task(make_network: MakeNetwork, tmp_path: Path) -> None:
    """Two of two have to agree, and do: the honest one's bytes are taken."""
    network = make_network()
    for _ in range(3):
        network.worker()
    junk_id = start_junk(network, tmp_path, "noise")
    job = submit(network, redundancy=2)
    assert job.result(90) == EXPECTED
    report = job.report()
    assert report.retried == 0
    assert {each.worker_id for each in report.believed.disputed} == {junk_id}
    assert {each.verdict for each in report.believed.disputed} == {"upheld"}
    job.close()


def test_attack_a_receipt_that_names_other_bytes_is_no_answer_and_the_job_goes_on(
    make_network: MakeNetwork, tmp_path: Path
) -> None:
    """Nothing is settled on it alone. It has computed its tasks: once others say the same it is paid like them."""
    network = make_network()
    network.worker()
    junk_id = start_junk(network, tmp_path, "noise", hides=True)
    job = submit(network, max_retries=9)
    assert job.result(90) == EXPECTED
    report = job.report()
    assert list(report.believed.disputed) == [], "nobody opened what nobody paid for"
    assert report.dissenters == (junk_id,)
    honest = sum(credits for worker_id, credits in report.earned.items() if worker_id != junk_id)
    assert honest == report.map_tasks + report.reduce_tasks, "all that counts came of the others"
    assert network.account("junk")["earned"] == report.earned.get(junk_id, 0)
    assert not network.account("junk")["banned"], "one foreman's word bans nobody"
    job.close()
    audit(network)


def test_attack_junk_on_a_public_network_ends_in_a_ban(make_network: MakeNetwork, tmp_path: Path) -> None:
    """It agrees with honest workers, and is paid with them, until its bytes are wanted: then it is out."""
    network = make_network(*PUBLIC)
    with DiscoveryClient(network.url) as client:
        CredentialStore(tmp_path / "foreman").ensure_account(network.url, lambda: create_account_at(client))
    for _ in range(5):
        network.worker()
    junk_id = start_junk(network, tmp_path, "another result")
    lines = {n: f"to be {n % 3}" for n in range(120)}
    job = ec262.submit(lines, mapper=words, reducer=total, discovery=network.url, rehearse=False)
    assert job.result(90) == {"0": 40, "1": 40, "2": 40, "be": 120, "to": 120}
    report = job.report()
    assert report.believed.confidence is not None
    assert report.believed.confidence >= 0.99, "that is what a public network asks for"
    assert {each.worker_id for each in report.believed.disputed} == {junk_id}
    assert {(each.verdict, each.refund) for each in report.believed.disputed} == {("upheld", 1)}
    assert network.account("junk")["banned"]
    assert network.account("junk")["earned"] == report.earned.get(junk_id, 0)
    job.close()
    audit(network)
