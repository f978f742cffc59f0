"""kill -9 of the store, of discovery, of workers and of foremen while they settle: nothing acknowledged is lost.

After every kill and at the end `ec262 ledger verify` finds no fault; what discovery answered `accepted` to is accepted
still, and was paid once; and the jobs end with the right results. When who is killed follows from a seed; the moments
follow from how far the settlements are, so that a slow machine is killed as often as a fast one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from discovery.ledger import export, verify
from discovery.operator import store_of
from discovery.store.server import RedisServer, start_server
from discovery.store.store import Store
from ec262.credentials import Account
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.protocol import messages as m
from tests.acceptance.conftest import Network
from tests.acceptance.test_checkpoint import expected, read_until, start
from tests.commands import run
from tests.light import Notes, input_of, right
from tests.processes import ROOT, Process, kill_store, nothing_left, store_pid, until

KINDS = ["store", "discovery", "worker", "foreman", "all"]
WORKERS, BATCH, LANES = 5, 25, 3
POLICIES: list[dict[str, Any]] = [
    {"redundancy": 2, "quorum": 2, "max_replicas": 9},
    {"confidence": 0.95, "max_replicas": 24},
]
ASKED_AGAIN = 400
"""Of the tasks that were accepted last, as many are asked for again after a kill."""
MOST_UNNOTED = 3 * BATCH * LANES
"""Replicas that killed foremen and workers may have left behind: those of a few requests."""
FLAGS = ["--network", "public", "--distinct", "account", "--starting-credits", "1000000"]
FLAGS += ["--address-accounts", "0", "--address-grants", "0", "--neighbourhood-workers", "0"]


@dataclass
class Party:
    """A worker or a foreman, and how to start it (again)."""

    what: str
    account: Account
    told: dict[str, Any]
    home: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.home / "told.json").write_text(json.dumps(self.told))
        with open(self.home / "log", "ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.light", self.what, str(self.home / "told.json")],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin is not None
        self.popen.stdin.close()


class Fleet:
    """A store, discovery, workers, foremen, and who kills them.

    Args:
        embedded: the store is discovery's own, as a person starts it; else one beside it, which dies alone.
    """

    def __init__(self, directory: Path, settlements: int, seed: int, *, embedded: bool) -> None:
        self.directory = directory
        self.data = directory / "d"
        self.settlements = settlements
        self.embedded = embedded
        self.chance = random.Random(seed)
        self.gate = directory / "gate"
        self.open_gate(0)
        self.server: RedisServer | None = None
        self.port = 0
        self.kills: Counter[str] = Counter()
        self.audits = 0
        self.start_store()
        self.start_discovery()
        self.workers = [self.party("worker", n, worker_id=os.urandom(16).hex(), lies_to="") for n in range(WORKERS)]
        self.foremen = [
            self.party(
                "foreman",
                n,
                job_id=os.urandom(16).hex(),
                policy=policy,
                items=settlements // len(POLICIES),
                batch=BATCH,
                lanes=LANES,
                gate=str(self.gate),
                journal=str(directory / f"journal{n}"),
            )
            for n, policy in enumerate(POLICIES)
        ]
        # One worker lies, to one foreman alone: nobody is convicted by that, and two never agree on a lie.
        self.workers[0].told["lies_to"] = self.foremen[0].told["job_id"]
        self.notes = [Notes(Path(each.told["journal"])) for each in self.foremen]
        for party in (*self.workers, *self.foremen):
            party.start()

    def party(self, what: str, number: int, **told: Any) -> Party:
        home = self.directory / f"{what}{number}"
        home.mkdir()
        with DiscoveryClient(self.url) as client:
            account = create_account_at(client)
        told.update(url=self.url, account_id=account.account_id, secret=account.secret)
        return Party(what, account, told, home)

    @property
    def url(self) -> str:
        return str(self.discovery.ready["url"])

    def start_store(self) -> None:
        if not self.embedded:
            self.server = start_server(self.directory / "s")

    def start_discovery(self) -> None:
        where = [] if self.server is None else ["--redis", self.server.url]
        self.discovery = Process(
            ["-m", "discovery", "--port", str(self.port), "--data-dir", str(self.data), *where, *FLAGS],
            home=self.directory,
            log=self.directory / "discovery.log",
        )
        self.port = int(self.url.rsplit(":", 1)[1])

    def open_gate(self, settled: int) -> None:
        """Lets each foreman go on until it has settled so many tasks."""
        new = self.gate.with_suffix(".new")
        new.write_text(str(settled))
        new.replace(self.gate)

    def settled(self) -> int:
        """How many tasks the foremen were told are accepted."""
        for party in getattr(self, "foremen", ()):
            assert party.popen.poll() in (None, 0), (party.home / "log").read_text()
        for notes in self.notes:
            notes.refresh()
        return sum(len(notes.accepted) for notes in self.notes)

    def kill(self, kind: str) -> None:
        """Kills, and starts again what was killed."""
        pid = store_pid(self.data) if self.embedded else 0
        parties: list[Party] = []
        if kind in ("worker", "all"):
            parties.append(self.chance.choice(self.workers))
        if kind in ("foreman", "all"):
            running = [each for each in self.foremen if each.popen is not None and each.popen.poll() is None]
            parties.append(self.chance.choice(running))
        doomed: list[Callable[[], object]] = [party.kill for party in parties]
        if kind in ("store", "all"):
            doomed.append(self.kill_store)
        if kind in ("discovery", "all"):
            doomed.append(self.discovery.kill)
        self.chance.shuffle(doomed)
        for kill in doomed:
            kill()
        if kind in ("store", "all") and self.server is not None:
            self.server.close()
            url = self.server.url
            self.start_store()
            assert self.server.url == url
        if kind in ("discovery", "all"):
            self.start_discovery()
        elif kind == "store" and self.embedded:
            # Discovery starts the store that it brought again by itself.
            until(lambda: store_pid(self.data) not in (0, pid), 60, "another store")
        for party in parties:
            party.start()
        self.kills[kind] += 1

    def kill_store(self) -> None:
        if self.server is not None:
            os.kill(self.server.pid, signal.SIGKILL)
        else:
            # One whose discovery was killed a moment ago may have ended of that.
            with suppress(ProcessLookupError, AssertionError):
                kill_store(self.data)

    def verify(self) -> None:
        """`ec262 ledger verify` finds no fault."""
        where = ["--redis", self.server.url] if self.server is not None else ["--data-dir", str(self.data)]
        done = run("ledger", "verify", *where, home=self.directory)
        assert done.returncode == 0, done.stdout + done.stderr
        self.audits += 1

    def ask_again(self, known: list[list[str]]) -> None:
        """What was accepted before a kill is accepted still, with the same answer and the keys of the same workers."""
        for foreman, notes, tasks in zip(self.foremen, self.notes, known, strict=True):
            items = {task_id: item for item, (task_id, _) in notes.accepted.items()}
            listed = [task_id for task_id in tasks[-ASKED_AGAIN:] if task_id in items]
            if not listed:
                continue
            told = foreman.told
            with DiscoveryClient(self.url, told["account_id"], told["secret"], retry_for_s=60) as client:
                settled = client.settle(m.Settle(job_id=told["job_id"], decide=listed))
            for verdict in settled.tasks:
                item = items[verdict.task_id]
                assert verdict.verdict == "accepted", f"task {verdict.task_id} was accepted before: {verdict.reason}"
                assert verdict.commitment == right(input_of(told["job_id"], item))
                assert set(notes.accepted[item][1]) <= {key.lease_id for key in verdict.keys}

    def run(self, kills: int) -> None:
        """Lets them settle, and kills one after another; the first ones each of another kind."""
        first = self.chance.sample(KINDS, len(KINDS))
        kinds = (first + self.chance.choices(KINDS, k=max(0, kills - len(first))))[:kills]
        slack = max(2 * BATCH * LANES, self.settlements // 50)
        for number, kind in enumerate(kinds):
            share = (number + self.chance.uniform(0.2, 0.8)) / (kills + 1)
            at = int(self.settlements * share)
            # Nobody is through before all kills are done, however long they take.
            most = self.settlements // len(POLICIES) - LANES * BATCH - 1
            self.open_gate(min(most, (at + slack) // len(POLICIES)))
            until(lambda: self.settled() >= at, 600, f"{at} settlements")  # noqa: B023
            time.sleep(self.chance.uniform(0, 0.05))
            known = [list(notes.tasks) for notes in self.notes]
            self.kill(kind)
            self.verify()
            self.ask_again(known)
        self.open_gate(self.settlements)
        for foreman in self.foremen:
            assert foreman.popen is not None
            code = foreman.popen.wait(1200)
            assert code == 0, (foreman.home / "log").read_text()

    def check(self, *, patient: bool) -> None:
        """In the end all is computed, and each payment that was told is in the ledger once.

        Args:
            patient: wait for what a killed foreman leased and could not note: it comes back after its deadline.
        """
        assert self.settled() >= self.settlements
        known = [list(notes.tasks) for notes in self.notes]
        self.ask_again(known)
        if patient:
            credits = f"{self.url}/v1/credits"
            until(lambda: requests.get(credits, timeout=60).json()["escrow"] == 0, 180, "an empty escrow")
        self.verify()
        accounts = {worker.told["worker_id"]: worker.account.account_id for worker in self.workers}
        earned = {each.account.account_id: self.state_of(each).earned for each in self.workers}
        spent = sum(self.state_of(each).spent for each in self.foremen)
        self.close()
        with ExitStack() as stack:
            if self.embedded:
                store, archive = stack.enter_context(store_of(None, self.data))
            else:
                store = Store(stack.enter_context(start_server(self.directory / "s")).url)
                stack.callback(store.close)
                archive = None
            audit = verify(store, archive)
            assert audit.faults == []
            assert audit.escrow <= (0 if patient else MOST_UNNOTED)
            paid: Counter[tuple[str, str]] = Counter()
            pays: Counter[str] = Counter()
            for movement in export(store, archive):
                account_id = movement.target.removeprefix("account:")
                if movement.source.startswith("escrow:") and account_id in earned:
                    paid[movement.source.removeprefix("escrow:"), account_id] += movement.amount
                    pays[account_id] += movement.amount
        for notes in self.notes:
            for task_id, payees in notes.accepted.values():
                assert payees
                for lease_id, worker_id in payees.items():
                    assert paid[task_id, accounts[worker_id]] == 1, f"{lease_id} was told to be paid"
        assert max(paid.values()) == 1, "somebody was paid twice"
        assert dict(pays) == earned, "what accounts say that they earned is what the ledger has"
        assert sum(pays.values()) <= spent

    def state_of(self, party: Party) -> m.AccountState:
        with DiscoveryClient(self.url, party.account.account_id, party.account.secret, retry_for_s=60) as client:
            return client.account()

    def close(self) -> None:
        """Ends everything."""
        for party in (*getattr(self, "foremen", ()), *getattr(self, "workers", ())):
            if party.popen is not None and not party.popen.stdin.closed:
                party.kill()
        if self.discovery.popen.poll() is None:
            self.discovery.stop()
        if self.server is not None:
            self.server.close()


def settle_and_kill(
    directory: Path, settlements: int, kills: int, seed: int, *, embedded: bool, patient: bool
) -> Fleet:
    """Runs a fleet to its end; returns it, with what it counted."""
    started = time.monotonic()
    with nothing_left():
        fleet = Fleet(directory, settlements, seed, embedded=embedded)
        try:
            fleet.run(kills)
            fleet.check(patient=patient)
        finally:
            fleet.close()
    log = (directory / "discovery.log").read_text()
    assert "Traceback" not in log, log[-3000:]
    print(f"{settlements} settlements, {dict(fleet.kills)}, {time.monotonic() - started:.1f} s")
    return fleet


def test_killed_at_random(tmp_path: Path) -> None:
    fleet = settle_and_kill(tmp_path, 2000, len(KINDS), 262, embedded=False, patient=False)
    assert set(fleet.kills) == set(KINDS)


@pytest.mark.timeout(300)
def test_a_real_job_is_right_though_everybody_was_killed(make_network: Callable[..., Network]) -> None:
    """Real workers with their sandboxes, a real foreman with a checkpoint, discovery with a store of its own."""
    chance = random.Random(5)
    network = make_network()
    data = network.directory / "store"
    for _ in range(3):
        network.worker()
    job = start(network, 1)
    for number, kind in enumerate(chance.sample(["store", "discovery", "worker", "foreman"], 4)):
        read_until(job, "map", 4 + 8 * number + chance.randrange(4))
        if kind == "foreman":
            job.kill()
            job.communicate()
        elif kind == "worker":
            chance.choice(network.workers).kill()
        elif kind == "store":
            pid = kill_store(data)  # discovery starts it again, and the job goes on meanwhile
            until(lambda: store_pid(data) not in (0, pid), 60, "another store")  # noqa: B023
        if kind not in ("foreman", "store"):
            # It goes on where it was, once everybody is back.
            job.send_signal(signal.SIGSTOP)
        if kind == "discovery":
            port = network.url.rsplit(":", 1)[1]
            network.discovery.kill()
            network.discovery = Process(
                ["-m", "discovery", "--port", port, "--data-dir", str(data), "--network", "private"],
                home=network.directory / "discovery",
                log=network.directory / "discovery.log",
            )
        if kind == "worker":
            place = next(n for n, worker in enumerate(network.workers) if worker.popen.poll() is not None)
            network.workers[place] = Process(
                ["worker.py", "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
                home=network.directory / f"worker{place}",
                log=network.directory / f"worker{place}.log",
            )
        done = run("ledger", "verify", "--data-dir", str(data), home=network.directory)
        assert done.returncode == 0, done.stdout + done.stderr
        if kind == "foreman":
            job = start(network, 1)
        elif kind != "store":
            job.send_signal(signal.SIGCONT)
    said, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert said.splitlines()[-1].split()[0] == "report"
    made: dict[str, list[object]] = {}
    for path in sorted((network.directory / "job").glob("made_[0-9]*")):
        for line in path.read_text().splitlines():
            key, values = json.loads(line)
            made[json.dumps(key)] = values
    assert made == expected()
    network.close()
    done = run("ledger", "verify", "--data-dir", str(data), home=network.directory)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("embedded, seed", [(False, 1), (True, 2)])
def test_killed_often(tmp_path: Path, embedded: bool, seed: int) -> None:
    fleet = settle_and_kill(tmp_path, 50_000, 40, seed, embedded=embedded, patient=True)
    assert sum(fleet.kills.values()) == fleet.audits - 1 == 40
