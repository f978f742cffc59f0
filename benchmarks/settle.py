"""What one discovery process and its store settle: leases and settlements in batches, as foremen ask for them.

With ``--callers`` the service runs as users run it, ``python -m discovery``, and so many foremen ask it over HTTP at
the same time, each with a connection of its own. All of them are threads of this process, and use the same cores.
Without, one foreman's requests are handed to the service in this process, where they can be profiled: all that
discovery does for a request but HTTP is timed (reading the body, deciding, committing, writing the answer). Foremen and
workers are played here; nobody computes anything.

    python -m benchmarks.settle --confidence 0.99 --network public --warm-up 10 [--callers 3 | --profile]
    python -m benchmarks.settle --redundancy 3 --network public --callers 3
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import cProfile
import hashlib
import http.client
import json
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis

from benchmarks.machine import busy_s, reference_loop_ms
from discovery.app import create_discovery
from discovery.service import calm_collector
from discovery.settings import MOST_STARTING_CREDITS, Settings
from discovery.store.server import start_server
from ec262.discovery_client import PACKED
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, seal_receipts, tokens_digest
from ec262.protocol.routes import route

RIGHT = hashlib.sha256(b"right").digest()
HEARTBEAT_S = 15.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PACKED = {route("discovery", name).request for name in PACKED}
"""Messages that the real client sends, and has answered, as MessagePack."""
_LIMITS = ("address-accounts", "address-grants", "account-workers", "neighbourhood-workers")

M = TypeVar("M", bound=m.Message)


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds: by the clock while discovery was asked; of the processors of discovery, its store, and who asked it."""

    clock_s: float
    discovery_s: float
    store_s: float
    callers_s: float

    def less(self, before: Spent) -> Spent:
        """What was spent since `before`."""
        return Spent(
            self.clock_s - before.clock_s,
            self.discovery_s - before.discovery_s,
            self.store_s - before.store_s,
            self.callers_s - before.callers_s,
        )


class Party:
    """An account that asks a service: a foreman, or a worker's owner."""

    account_id = ""

    def ask(self, method: str, path: str, wanted: m.Message, answer: type[M]) -> M:
        """Sends a message and reads the answer."""
        raise NotImplementedError


class Service:
    """A discovery service and what it spent; `party` makes an account on it."""

    def party(self, address: str) -> Party:
        """A new account, made from `address`."""
        raise NotImplementedError

    def spent(self) -> Spent:
        """So far."""
        raise NotImplementedError


class InProcess(Service):
    """A service in this process, whose requests are handed over as bytes."""

    def __init__(self, settings: Settings, store_url: str, directory: Path, profile: cProfile.Profile | None) -> None:
        self.discovery = create_discovery(settings, store_url, directory)
        self.profile = profile
        self.clock_s = self.discovery_s = 0.0
        self._client = redis.Redis.from_url(store_url)
        calm_collector()

    def party(self, address: str) -> Party:
        return _Handed(self, address)

    def spent(self) -> Spent:
        return Spent(self.clock_s, self.discovery_s, _store_s(self._client), time.process_time() - self.discovery_s)

    def close(self) -> None:
        self.discovery.store.close()
        self._client.close()


class _Handed(Party):
    def __init__(self, service: InProcess, address: str) -> None:
        self._service, self._address = service, address
        self.account_id = service.discovery.registry.create_account(address, m.CreateAccount()).account_id

    def ask(self, method: str, path: str, wanted: m.Message, answer: type[M]) -> M:
        if isinstance(wanted, m.RegisterWorker):
            registry = self._service.discovery.registry
            return registry.registered(wanted, registry.register(self.account_id, self._address, wanted))  # type: ignore[return-value]
        media = _media(wanted)
        body = m.encode(wanted, media)
        clock_s, cpu_s = time.perf_counter(), time.process_time()
        if self._service.profile is not None:
            self._service.profile.enable()
        encoded = m.encode(self._answer(wanted, body, media), media)
        if self._service.profile is not None:
            self._service.profile.disable()
        self._service.discovery_s += time.process_time() - cpu_s
        self._service.clock_s += time.perf_counter() - clock_s
        return m.decode(answer, encoded, media)

    def _answer(self, wanted: m.Message, body: bytes, media: str) -> m.Message:
        discovery = self._service.discovery
        if isinstance(wanted, m.LeaseTasks):
            return discovery.leasing.lease(self.account_id, m.decode(m.LeaseTasks, body, media))
        return discovery.settlement.settle(self.account_id, m.decode(m.Settle, body, media))


class OverHttp(Service):
    """The service as users run it. Whoever asks says by a header where it is, as a proxy would."""

    def __init__(self, network: str, store_url: str, directory: Path) -> None:
        flags = ["--network", network, "--data-dir", str(directory), "--redis", store_url, "--port", "0"]
        flags += [
            "--distinct",
            "account",
            "--starting-credits",
            str(MOST_STARTING_CREDITS),
            "--trusted-proxy",
            "127.0.0.1",
        ]
        flags += [part for limit in _LIMITS for part in (f"--{limit}", "0")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "discovery", *flags, "--report-ready", "--parent-pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.host = json.loads(self._process.stdout.readline())["url"].removeprefix("http://")
        self._client = redis.Redis.from_url(store_url)

    def party(self, address: str) -> Party:
        return _Asking(self.host, address)

    def spent(self) -> Spent:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        used_s = (int(fields[11]) + int(fields[12])) * _TICK_S
        return Spent(time.perf_counter(), used_s, _store_s(self._client), time.process_time())

    def close(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait()


class _Asking(Party):
    def __init__(self, host: str, address: str) -> None:
        self._connection = http.client.HTTPConnection(host)
        self._headers = {"X-Forwarded-For": address}
        made = self.ask("POST", "/v1/accounts", m.CreateAccount(), m.AccountCreated)
        self.account_id = made.account_id
        basic = base64.b64encode(f"{made.account_id}:{made.secret}".encode()).decode()
        self._headers["Authorization"] = f"Basic {basic}"

    def ask(self, method: str, path: str, wanted: m.Message, answer: type[M]) -> M:
        media = _media(wanted)
        headers = {**self._headers, "Content-Type": media, "Accept": media}
        self._connection.request(method, path, m.encode(wanted, media), headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{path}: {response.status} {body[:500]!r}")
        return m.decode(answer, body, media)


class Workers:
    """Workers that answer without computing: their keys, by which they seal receipts."""

    def __init__(self, service: Service, count: int) -> None:
        self._keys: dict[str, tuple[bytes, int]] = {}
        self._parties: list[tuple[Party, str]] = []
        for number in range(count):
            party = service.party(f"10.{number // 250}.{number % 250}.1")
            name = f"{number:032x}"
            wanted = m.RegisterWorker(worker_id=name, boot_id=name, port=1, slots=16, python="3.11")
            done = party.ask("POST", "/v1/workers", wanted, m.WorkerRegistered)
            self._keys[name] = (done.worker_key, done.epoch)
            self._parties.append((party, name))

    def receipts(self, replicas: list[m.LeasedReplica]) -> list[m.SealedReceipts]:
        """What the workers say of so many replicas, a bundle of each."""
        leases = defaultdict(list)
        for replica in replicas:
            leases[replica.worker_id].append(replica.lease_id)
        shown = []
        for worker_id, mine in leases.items():
            key, epoch = self._keys[worker_id]
            listed = [Receipt(lease, Kind.OK, RIGHT, [RIGHT], 0.5) for lease in mine]
            token = seal_receipts(key, ReceiptBundle(worker_id, epoch, listed))
            arrived = dict.fromkeys(mine, tokens_digest([RIGHT]))
            shown.append(m.SealedReceipts(worker_id=worker_id, token=token, arrived=arrived))
        return shown

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Sends heartbeats meanwhile."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_S):
                for party, name in self._parties:
                    path = f"/v1/workers/{name}/heartbeats"
                    party.ask("POST", path, m.Heartbeat(boot_id=name), m.HeartbeatAnswer)

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Foreman:
    """Leases batches and settles them."""

    def __init__(self, service: Service, number: int, workers: Workers, policy: m.Policy) -> None:
        self._party = service.party(f"192.0.{number}.1")
        self._workers = workers
        self._policy = policy
        self._job_id = f"{number:032x}"
        self.replicas = 0

    def lease(self, batch: int) -> m.Leased:
        """Leases a batch."""
        wanted = m.LeaseTasks(
            job_id=self._job_id,
            idempotency_key=os.urandom(8).hex(),
            tasks=[m.TaskWanted(input_digest=os.urandom(32)) for _ in range(batch)],
            requirements=m.Requirements(python="3.11"),
            policy=self._policy,
        )
        leased = self._party.ask("POST", "/v1/tasks", wanted, m.Leased)
        assert len(leased.tasks) == batch
        return leased

    def round(self, batch: int) -> None:
        """Leases a batch and settles it until nothing of it is open."""
        leased = self.lease(batch)
        replicas = [replica for task in leased.tasks for replica in task.replicas]
        open_tasks = [task.task_id for task in leased.tasks]
        while open_tasks:
            settle = m.Settle(job_id=self._job_id, receipts=self._workers.receipts(replicas), decide=open_tasks)
            settled = self._party.ask("POST", "/v1/settlements", settle, m.Settled)
            self.replicas += len(replicas)
            replicas, open_tasks = [], []
            for verdict in settled.tasks:
                if verdict.task is not None:
                    replicas += verdict.task.replicas
                    open_tasks.append(verdict.task_id)
                else:
                    assert verdict.verdict == "accepted", verdict


def measure(service: Service, flags: argparse.Namespace, store: redis.Redis, warm: Callable[[], None]) -> None:
    """Runs the rounds and prints what they cost; `warm` is called after the warm-up."""
    policy = m.Policy(
        redundancy=flags.redundancy,
        quorum=(flags.redundancy + 2) // 2,
        confidence=flags.confidence,
        max_replicas=24,
    )
    workers = Workers(service, flags.workers)
    foremen = [Foreman(service, number, workers, policy) for number in range(max(1, flags.callers))]
    callers = contextlib.nullcontext() if isinstance(service, InProcess) else workers.alive()
    with callers, ThreadPoolExecutor(len(foremen)) as pool:

        def run(rounds: int) -> None:
            for done in [pool.submit(_rounds, foreman, rounds, flags.batch) for foreman in foremen]:
                done.result()

        run(flags.warm_up)
        loop_ms = reference_loop_ms()
        warm()
        for foreman in foremen:
            foreman.replicas = 0
        bytes_before, before, busy_before, started_s = _memory(store), service.spent(), busy_s(), time.perf_counter()
        run(flags.rounds)
        busy, took_s = busy_s(), time.perf_counter() - started_s
        spent, grown = service.spent().less(before), _memory(store) - bytes_before
    tasks = flags.rounds * flags.batch * len(foremen)
    replicas = sum(foreman.replicas for foreman in foremen)
    print(f"{replicas} replicas of {tasks} tasks: {replicas / tasks:.2f} a task")
    print(f"{replicas / spent.clock_s:,.0f} settled replicas/s, {tasks / spent.clock_s:,.0f} tasks/s")
    each = 1e6 / replicas
    line = f"us a replica: discovery {spent.discovery_s * each:.1f}, store {spent.store_s * each:.1f}, "
    line += f"callers {spent.callers_s * each:.1f}, " if flags.callers else ""
    print(line + f"by the clock {spent.clock_s * each:.1f}")
    if busy is not None and busy_before is not None:
        others = busy - busy_before - spent.discovery_s - spent.store_s - spent.callers_s
        print(f"other programs kept {max(0.0, others) / took_s:.2f} cores busy meanwhile")
    print(f"the store grew by {grown / tasks:.0f} bytes a task, ledger included")
    print(f"a million empty loops took {loop_ms:.1f} ms before and {reference_loop_ms():.1f} after")
    if isinstance(service, InProcess):
        _measure_memory(foremen[0], flags.batch, store)


def _measure_memory(foreman: Foreman, batch: int, store: redis.Redis) -> None:
    """Leases tasks that stay open, and prints what they and their entries in the ledger take in the store."""
    before, entries_before = _memory(store), _entries(store)
    for _ in range(5):
        foreman.lease(batch)
    grown, entries = _memory(store) - before, _entries(store) - entries_before
    print(
        f"an open task takes {(grown - entries) / batch / 5:.0f} bytes in the store, "
        f"its entry in the ledger {entries / batch / 5:.0f} until it is archived"
    )


def main() -> None:
    """Starts a store and a service on it, and measures."""
    flags = _parser().parse_args()
    profile = cProfile.Profile() if flags.profile and not flags.callers else None
    with (
        tempfile.TemporaryDirectory(prefix="ec262-") as directory,
        start_server(Path(directory) / "store", fsync="always") as server,
        redis.Redis.from_url(server.url) as client,
    ):
        service: Any
        if flags.callers:
            service = OverHttp(flags.network, server.url, Path(directory))
        else:
            settings = Settings(network=flags.network, distinct="account", starting_credits=MOST_STARTING_CREDITS)
            service = InProcess(settings, server.url, Path(directory), profile)
        with contextlib.closing(service):
            measure(service, flags, client, profile.clear if profile is not None else _nothing)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def _media(wanted: m.Message) -> str:
    return m.PACKED if type(wanted) in _PACKED else m.JSON


def _rounds(foreman: Foreman, rounds: int, batch: int) -> None:
    for _ in range(rounds):
        foreman.round(batch)


def _store_s(client: redis.Redis) -> float:
    used: Any = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _memory(client: redis.Redis) -> int:
    used: Any = client.info("memory")
    return int(used["used_memory"])


def _entries(client: redis.Redis) -> int:
    """Bytes of the ledger's entries that are not archived."""
    return int(client.memory_usage("{ec}:ledger", samples=0) or 0)


def _nothing() -> None:
    pass


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.settle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--callers", type=int, default=0, help="foremen that ask at once, over HTTP (default: none)")
    parser.add_argument("--workers", type=int, default=64, help="workers registered (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1000, help="tasks of a lease (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="batches of each foreman (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=3, help="batches before, of each foreman (default: %(default)s)")
    parser.add_argument("--redundancy", type=int, default=1, help="replicas a task, most have to agree")
    parser.add_argument("--confidence", type=float, default=0.0, help="wanted of an answer, instead of redundancy")
    parser.add_argument("--network", choices=["private", "public"], default="private")
    parser.add_argument("--profile", action="store_true", help="show where the time goes (without callers)")
    return parser


if __name__ == "__main__":
    main()
