"""Hostile workers at a real foreman's job: processes, beside one that is honest. It ends rightly, and is paid rightly.

The worker's program is the real one but for what it hands over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ec262
from discovery.ledger import verify
from discovery.store.server import start_server
from discovery.store.store import Store
from tests.acceptance.conftest import Network
from tests.processes import Process, nothing_left

HOSTILE = """
import hashlib, os
import msgspec
from ec262.protocol import messages as m
from ec262.worker import server
honest = server.Api._results

def nothing(self, job, delivered, after):
    return honest(self, job, [], after)

def junk(self, job, delivered, after):
    for each in delivered:
        tokens = [os.urandom(len(token)) for token in each.result.tokens]
        each.result = m.SealedResult(lease_id=each.result.lease_id, tokens=tokens)
        digests = [hashlib.sha256(token).digest() for token in tokens]
        each.receipt = msgspec.structs.replace(each.receipt, token_digests=digests)
    return honest(self, job, delivered, after)

def twice(self, job, delivered, after):
    kept = KEPT.setdefault(job.job_id, [])
    kept += delivered
    return honest(self, job, delivered + kept[-40:] if delivered else [], after)

def swapped(self, job, delivered, after):
    # Each result goes with the receipt of another task, of this job or one before.
    for each in delivered:
        FOREIGN.append(each.result.tokens)
        each.result = m.SealedResult(lease_id=each.result.lease_id, tokens=FOREIGN[0])
    return honest(self, job, delivered, after)

def undelivered(self, job, delivered, after):
    # Other bytes than the receipts name, which commit themselves to anything.
    for each in delivered:
        tokens = [os.urandom(len(token)) for token in each.result.tokens]
        each.result = m.SealedResult(lease_id=each.result.lease_id, tokens=tokens)
        each.receipt = msgspec.structs.replace(each.receipt, commitment=os.urandom(32))
    return honest(self, job, delivered, after)

def tokenless(self, job, delivered, after):
    for each in delivered:
        each.result = m.SealedResult(lease_id=each.result.lease_id, tokens=[])
        each.receipt = msgspec.structs.replace(each.receipt, token_digests=[])
    return honest(self, job, delivered, after)

def unreadable(self, job, delivered, after):
    # Receipts that nobody can open, with honest bytes.
    answer = honest(self, job, delivered, after)
    return msgspec.structs.replace(answer, receipts=os.urandom(80)) if delivered else answer

KEPT, FOREIGN = {}, []
server.Api._results = {
    "nothing": nothing, "junk": junk, "twice": twice, "anothers": swapped,
    "undelivered": undelivered, "tokenless": tokenless, "unreadable": unreadable,
}[NAME]
from ec262.cli.worker import main
raise SystemExit(main())
"""


def square(key: int, value: int) -> Iterator[tuple[int, int]]:
    yield key % 7, value * value


def total(key: int, values: list[int]) -> int:
    return sum(values)


DATA = {n: n for n in range(40)}
EXPECTED = {key: sum(n * n for n in range(40) if n % 7 == key) for key in range(7)}


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Discovery, and one honest worker; at the end the books are clean."""
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "foreman"))
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with nothing_left():
        made = Network(tmp_path, "--network", "private", "--distinct", "account")
        made.worker()
        yield made
        made.close()
    with start_server(tmp_path / "store") as server:
        store = Store(server.url)
        assert verify(store).faults == []
        store.close()


def cheat(network: Network, name: str) -> str:
    """Starts a worker that cheats in the way of that name; returns its id."""
    script = network.directory / f"{name}.py"
    script.write_text(f"NAME = {name!r}\n{HOSTILE}")
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=network.directory / name,
        log=network.directory / f"{name}.log",
    )
    network.workers.append(made)
    return str(made.ready["worker_id"])


def test_attack_workers_that_return_junk_nothing_twice_and_anothers_result(network: Network) -> None:
    """Four of them and one that is honest serve a job. It ends rightly, and who is honest is paid for all it did."""
    ids = {name: cheat(network, name) for name in ("junk", "nothing", "twice", "anothers")}
    job = ec262.submit(
        DATA, mapper=square, reducer=total, discovery=network.url, items_per_task=1, reducers=2, rehearse=False
    )
    assert job.result(90) == EXPECTED
    report = job.report()
    honest_id = str(network.workers[0].ready["worker_id"])
    earned = {name: int(str(network.account(name)["earned"])) for name in ids}
    honest, foreman = network.account("worker0"), network.account("foreman")
    # Junk is found out by its first dispute: the account is banned. What nobody delivered, nobody was paid for in full.
    assert "convicted" in str(network.account("junk")["banned"])
    assert set(report.dissenters) <= {ids["junk"], ids["anothers"]}, "nobody honest is blamed"
    assert ids["junk"] in report.dissenters
    assert ids["anothers"] in report.dissenters
    assert earned["nothing"] == 0
    # Twice returned is once paid: a credit for each task of it that counted.
    assert 1 <= earned["twice"] == report.earned[ids["twice"]] <= 42
    assert int(str(honest["earned"])) == report.earned[honest_id] >= 1
    assert not honest["banned"]
    assert (
        int(str(foreman["balance"])) + int(str(foreman["escrow"])) + sum(earned.values()) + int(str(honest["earned"]))
        == 1_000_000
    )


def test_attack_workers_with_receipts_for_bytes_that_nobody_has(network: Network) -> None:
    """Where one answer is enough each of them would be paid, and its foreman have nothing. The honest one does all."""
    ids = {name: cheat(network, name) for name in ("undelivered", "tokenless", "unreadable")}
    job = ec262.submit(
        DATA, mapper=square, reducer=total, discovery=network.url, items_per_task=1, reducers=2, rehearse=False
    )
    assert job.result(90) == EXPECTED
    report = job.report()
    honest_id = str(network.workers[0].ready["worker_id"])
    assert set(report.dissenters) == set(ids.values()), "each is named, and nobody honest"
    assert {name: report.earned.get(worker_id, 0) for name, worker_id in ids.items()} == dict.fromkeys(ids, 0)
    assert report.earned[honest_id] == 42
    assert not any(network.account(name)["banned"] for name in (*ids, "worker0")), "one foreman's word bans nobody"
