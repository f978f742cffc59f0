"""A service under the load of a network: workers that send heartbeats, foremen that lease and settle, and attackers.

All of it is real HTTP to a service of several processes with an embedded store, as a person starts it. Workers and
foremen are light: they compute nothing. Nobody's call is repeated, so every failure counts.

    python -m benchmarks.load                            500 workers and 50 foremen for ten minutes
    python -m benchmarks.load --attack --minutes 4       calm and under attack in turn, and how much slower that is
    python -m benchmarks.load --throughput               foremen without a pause, by number of processes
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import psutil

from benchmarks.attackers import ATTACKS
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import EC262Error
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, seal_receipts, tokens_digest

RIGHT = b"r" * 32
LIMITS = ["--account-requests", "100", "--address-requests", "1000", "--anonymous-requests", "20"]
LIMITS += ["--address-connections", "700"]
"""Those of a public service, but that all of its parties are on one machine."""
START_S = 60.0


@dataclass(slots=True)
class Seen:
    """What the parties saw: seconds of every call by its route, and what went wrong."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    settled: int = 0

    @property
    def calls(self) -> int:
        """How many were answered."""
        return sum(map(len, self.seconds.values()))


def percentile(seconds: Sequence[float], share: float) -> float:
    """So large a share of `seconds` is not longer; 0 where there are none."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else 0.0


# --- the service ----------------------------------------------------------------------------------


class Service:
    """A discovery service of several processes, in a directory of its own."""

    def __init__(self, directory: Path, processes: int, *flags: str) -> None:
        command = [sys.executable, "-m", "discovery", "--port", "0", "--network", "private", *LIMITS, *flags]
        command += ["--data-dir", str(directory / "data"), "--processes", str(processes), "--report-ready"]
        with open(directory / "log", "ab") as log:
            self.popen = subprocess.Popen(
                [*command, "--parent-pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert self.popen.stdout is not None
        if not select.select([self.popen.stdout], [], [], START_S)[0]:
            self.stop()
            raise RuntimeError(f"the service did not start: {(directory / 'log').read_text()}")
        self.url = str(json.loads(self.popen.stdout.readline())["url"])
        self.memory: dict[str, int] = {}

    def family(self) -> dict[str, list[psutil.Process]]:
        """Its processes, by what they are."""
        found: dict[str, list[psutil.Process]] = defaultdict(list)
        supervisor = psutil.Process(self.popen.pid)
        found["supervisor"].append(supervisor)
        for child in supervisor.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if "discovery" in words:
                    found["web process"].append(child)
                elif "valkey" in child.name() or "redis" in child.name():
                    found["store"].append(child)
        return found

    def look(self) -> None:
        """Notes the largest memory of each kind of process."""
        for kind, processes in self.family().items():
            for each in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.memory[kind] = max(self.memory.get(kind, 0), each.memory_info().rss)

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, by kind of process."""
        spent = {}
        for kind, processes in self.family().items():
            spent[kind] = sum(sum(each.cpu_times()[:2]) for each in processes)
        return spent

    def stop(self) -> int:
        """Ends it; returns its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(60)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
        return code


# --- parties --------------------------------------------------------------------------------------


class Network:
    """Workers and foremen, a greenlet each."""

    def __init__(self, url: str, *, workers: int, foremen: int, batch: int, pace_s: float, beat_s: float) -> None:
        self.seen = Seen()
        self._url = url
        self._batch = batch
        self._pace_s = pace_s
        self._beat_s = beat_s
        self._over = False
        self._keys: dict[str, tuple[bytes, int]] = {}
        self._clients: list[DiscoveryClient] = []
        accounts = [self._account() for _ in range(max(1, workers // 10))]
        waits = [gevent.spawn(self._enter, *accounts[number % len(accounts)]) for number in range(workers)]
        gevent.joinall(waits, raise_error=True)
        members = [wait.value for wait in waits]
        self._greenlets = [gevent.spawn(self._guard, self._work, *each) for each in members]
        self._greenlets += [
            gevent.spawn(self._guard, self._buy, self._client(*self._account())) for _ in range(foremen)
        ]

    def _client(self, account_id: str = "", secret: str = "") -> DiscoveryClient:
        client = DiscoveryClient(self._url, account_id, secret, retry_for_s=0.0)
        self._clients.append(client)
        return client

    def _account(self) -> tuple[str, str]:
        with DiscoveryClient(self._url) as client:
            made = create_account_at(client)
        return made.account_id, made.secret

    def _enter(self, account_id: str, secret: str) -> tuple[DiscoveryClient, m.RegisterWorker]:
        client = DiscoveryClient(self._url, account_id, secret)
        wanted = m.RegisterWorker(
            worker_id=os.urandom(16).hex(), boot_id=os.urandom(16).hex(), port=1, slots=4, python="3.11"
        )
        done = client.register_worker(wanted)
        client.close()
        self._keys[wanted.worker_id] = (done.worker_key, done.epoch)
        return self._client(account_id, secret), wanted

    @contextlib.contextmanager
    def _timed(self, route: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seen.seconds[route].append(time.perf_counter() - started)

    def _guard(self, party: Any, *arguments: Any) -> None:
        while not self._over:
            try:
                party(*arguments)
            except EC262Error as reason:
                self.seen.errors[f"{type(reason).__name__}: {reason}"[:200]] += 1
                gevent.sleep(0.5)

    def _work(self, client: DiscoveryClient, wanted: m.RegisterWorker) -> None:
        gevent.sleep(random.uniform(0, self._beat_s))
        while not self._over:
            with self._timed("heartbeat"):
                client.heartbeat(wanted.worker_id, m.Heartbeat(boot_id=wanted.boot_id))
            gevent.sleep(self._beat_s * random.uniform(0.8, 1.0))

    def _buy(self, client: DiscoveryClient) -> None:
        job_id = os.urandom(16).hex()
        gevent.sleep(random.uniform(0, self._pace_s))
        while not self._over:
            started = time.monotonic()
            wanted = m.LeaseTasks(
                job_id=job_id,
                idempotency_key=os.urandom(12).hex(),
                tasks=[m.TaskWanted(input_digest=os.urandom(32)) for _ in range(self._batch)],
                requirements=m.Requirements(python="3.11"),
            )
            with self._timed("lease_tasks"):
                leased = client.lease_tasks(wanted)
            body = m.Settle(
                job_id=job_id, receipts=self._receipts(leased), decide=[task.task_id for task in leased.tasks]
            )
            with self._timed("settle"):
                settled = client.settle(body)
            wrong = Counter(each.verdict for each in settled.tasks if each.verdict != "accepted")
            if wrong:
                self.seen.errors[f"verdicts: {dict(wrong)}"] += 1
            self.seen.settled += len(settled.tasks)
            gevent.sleep(max(0.0, self._pace_s * random.uniform(0.8, 1.2) - (time.monotonic() - started)))

    def _receipts(self, leased: m.Leased) -> list[m.SealedReceipts]:
        leases: defaultdict[str, list[str]] = defaultdict(list)
        for task in leased.tasks:
            for replica in task.replicas:
                leases[replica.worker_id].append(replica.lease_id)
        shown = []
        for worker_id, mine in leases.items():
            key, epoch = self._keys[worker_id]
            listed = [Receipt(lease_id, Kind.OK, RIGHT, [RIGHT], 0.01) for lease_id in mine]
            token = seal_receipts(key, ReceiptBundle(worker_id, epoch, listed))
            arrived = dict.fromkeys(mine, tokens_digest([RIGHT]))
            shown.append(m.SealedReceipts(worker_id=worker_id, token=token, arrived=arrived))
        return shown

    def run(self, seconds: float, service: Service | None = None) -> Seen:
        """What the parties see in the next `seconds`."""
        self.seen = Seen()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            gevent.sleep(min(1.0, left))
            if service is not None:
                service.look()
        return self.seen

    def close(self) -> None:
        """Ends all parties."""
        self._over = True
        gevent.killall(self._greenlets)
        for client in self._clients:
            client.close()


@contextlib.contextmanager
def attacked(url: str, seconds: float) -> Iterator[list[psutil.Process]]:
    """All attacks at once, a process each, from addresses of their own."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.attackers", kind, url, f"127.0.0.{66 + number}", str(seconds)],
            stdout=subprocess.PIPE,
        )
        for number, kind in enumerate(ATTACKS)
    ]
    try:
        for each in processes:
            assert each.stdout is not None
            while not select.select([each.stdout], [], [], 0)[0]:
                gevent.sleep(0.05)
        yield [psutil.Process(each.pid) for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
            assert each.stdout is not None
            each.stdout.close()


# --- what is measured -----------------------------------------------------------------------------

QUIET = 0.25
"""Of a core: rounds in which other programs took more are not compared, if there are better ones."""


@dataclass(slots=True)
class Round:
    """What the parties saw for some seconds, and who used the processors: cores, by kind of process."""

    seen: Seen
    seconds: float
    cores: dict[str, float]

    @property
    def cpu_a_call(self) -> float:
        """Seconds of all web processes for each call of an honest party: what attackers cost is in it."""
        return self.cores["web process"] * self.seconds / max(1, self.seen.calls)


@dataclass(slots=True)
class Attack:
    """Calm and attacked rounds in turn, so that what else the machine does falls on both."""

    pairs: list[tuple[Round, Round]]
    left_out: int

    @property
    def errors(self) -> Counter[str]:
        """What honest parties met."""
        return sum((each.seen.errors for pair in self.pairs for each in pair), Counter[str]())

    @property
    def routes(self) -> list[str]:
        """What honest parties called."""
        return sorted(self.pairs[0][0].seen.seconds)

    def latency(self, route: str, share: float) -> tuple[float, float]:
        """Seconds that so many calls did not exceed, of all calm rounds together, and of all attacked ones."""
        calm, hostile = (
            [one for pair in self.pairs for one in pair[side].seen.seconds[route]] for side in (False, True)
        )
        return percentile(calm, share), percentile(hostile, share)

    def middle(self, figure: Callable[[Round], float]) -> tuple[float, float]:
        """Median of a figure over the calm rounds, and over the attacked ones."""
        calm, hostile = ([figure(pair[side]) for pair in self.pairs] for side in (False, True))
        return statistics.median(calm), statistics.median(hostile)

    def told(self) -> str:
        """Lines for people."""
        lines = [f"{'':16}{'calm':>10}{'attacked':>10}"]
        for route in self.routes:
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                calm, hostile = self.latency(route, share)
                lines.append(
                    f"{route + ' ' + name:16}{1000 * calm:7.1f} ms{1000 * hostile:7.1f} ms {_change(calm, hostile)}"
                )
        calls = self.middle(lambda each: each.seen.calls / each.seconds)
        lines.append(f"{'calls a second':16}{calls[0]:10.1f}{calls[1]:10.1f} {_change(*calls)}")
        spent = self.middle(lambda each: each.cpu_a_call)
        lines.append(f"{'CPU a call':16}{1000 * spent[0]:7.1f} ms{1000 * spent[1]:7.1f} ms {_change(*spent)}")
        for kind in self.pairs[0][0].cores:
            cores = self.middle(lambda each, kind=kind: each.cores[kind])  # type: ignore[misc]
            lines.append(f"{'cores: ' + kind:26}{cores[0]:.2f}{cores[1]:10.2f}")
        errors = self.errors
        lines.append(
            f"{len(self.pairs)} pairs of rounds, {self.left_out} more left out for other programs; "
            f"{sum(errors.values())} errors {dict(errors.most_common(3))}"
        )
        return "\n".join(lines)


def _change(calm: float, hostile: float) -> str:
    return f"({100 * (hostile / calm - 1):+.0f} %)" if calm else ""


def under_attack(network: Network, service: Service, seconds: float, rounds: int) -> Attack:
    """Compares calm rounds with attacked ones."""
    made: list[Round] = []
    for number in range(2 * rounds):
        side: contextlib.AbstractContextManager[list[psutil.Process]] = contextlib.nullcontext([])
        if number % 2:
            side = attacked(service.url, seconds + 10)
        with side as attackers:
            network.run(2.0)  # until the attackers have all of their connections, or are gone
            started, before = time.monotonic(), _cores_s(service, attackers)
            seen = network.run(seconds)
            took_s = time.monotonic() - started
            spent = {kind: (cpu_s - before[kind]) / took_s for kind, cpu_s in _cores_s(service, attackers).items()}
        spent["other programs"] = spent.pop("all") - sum(spent.values())
        made.append(Round(seen, took_s, spent))
    pairs = list(zip(made[::2], made[1::2], strict=True))
    quiet = [pair for pair in pairs if all(each.cores["other programs"] < QUIET for each in pair)]
    return Attack(quiet or pairs, len(pairs) - len(quiet or pairs))


def _cores_s(service: Service, attackers: list[psutil.Process]) -> dict[str, float]:
    """Processor seconds so far of everybody, and of all together."""
    spent = {kind: service.cpu_s()[kind] for kind in ("web process", "store", "supervisor")}
    spent["parties"] = sum(psutil.Process().cpu_times()[:2])
    spent["attackers"] = sum(sum(each.cpu_times()[:2]) for each in attackers)
    times = psutil.cpu_times()
    spent["all"] = sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0)
    return spent


def table(seen: Seen, seconds: float) -> str:
    """Calls and latencies, a line each route."""
    lines = [f"{'':14}{'calls/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'most ms':>9}"]
    for route, measured in sorted(seen.seconds.items()):
        at = [1000 * percentile(measured, share) for share in (0.5, 0.99, 1.0)]
        lines.append(f"{route:14}{len(measured) / seconds:9.1f}{at[0]:9.1f}{at[1]:9.1f}{at[2]:9.1f}")
    lines.append(f"{seen.calls} calls, {seen.settled} tasks settled, {sum(seen.errors.values())} errors")
    return "\n".join(lines + [f"  {count} x {error}" for error, count in seen.errors.most_common(5)])


def run_load(flags: argparse.Namespace) -> int:
    """The whole network for so many minutes."""
    with tempfile.TemporaryDirectory(prefix="ec262-load-") as directory:
        service = Service(Path(directory), flags.processes)
        network = Network(
            service.url, workers=flags.workers, foremen=flags.foremen, batch=flags.batch, pace_s=2.0, beat_s=10.0
        )
        try:
            if flags.attack:
                rounds = max(1, int(flags.minutes * 60 / 2 / 11))
                attack = under_attack(network, service, 8.0, rounds)
                print(attack.told())
                failed = bool(attack.errors)
            else:
                seconds = flags.minutes * 60
                seen = network.run(seconds, service)
                print(table(seen, seconds))
                failed = bool(seen.errors)
            service.look()
            print(", ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in sorted(service.memory.items())), "at most")
        finally:
            network.close()
            service.stop()
        return _audit(Path(directory) / "data") or int(failed)


def run_throughput(flags: argparse.Namespace) -> int:
    """Foremen that never pause, by number of processes."""
    print(f"{'processes':>10}{'tasks/s':>10}{'calls/s':>10}{'settle p50 ms':>15}{'CPU us/task: web':>18}{'store':>8}")
    for processes in (1, 2, 3):
        with tempfile.TemporaryDirectory(prefix="ec262-load-") as directory:
            unlimited = ["--account-requests", "0", "--address-requests", "0", "--anonymous-requests", "0"]
            service = Service(Path(directory), processes, *unlimited)
            network = Network(
                service.url, workers=flags.workers, foremen=12, batch=flags.batch, pace_s=0.0, beat_s=20.0
            )
            try:
                network.run(3.0)
                before = service.cpu_s()
                seconds = max(5.0, flags.minutes * 20)
                seen = network.run(seconds)
                spent = {kind: after - before[kind] for kind, after in service.cpu_s().items()}
            finally:
                network.close()
                service.stop()
            print(
                f"{processes:10}{seen.settled / seconds:10.0f}{seen.calls / seconds:10.0f}"
                f"{1000 * percentile(seen.seconds['settle'], 0.5):15.1f}"
                f"{1e6 * spent['web process'] / seen.settled:18.0f}{1e6 * spent['store'] / seen.settled:8.0f}",
                flush=True,
            )
            if seen.errors:
                print(dict(seen.errors))
                return 1
    return 0


def _audit(data: Path) -> int:
    done = subprocess.run([sys.executable, "-m", "ec262.cli", "ledger", "verify", "--data-dir", str(data)], check=False)
    return done.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Flags, and what they ask for; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--foremen", type=int, default=50)
    parser.add_argument("--batch", type=int, default=20, help="tasks of a lease (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--attack", action="store_true", help="compare calm rounds with attacked ones")
    parser.add_argument("--throughput", action="store_true", help="tasks a second of 1, 2 and 3 processes")
    flags = parser.parse_args(arguments)
    return run_throughput(flags) if flags.throughput else run_load(flags)


if __name__ == "__main__":
    raise SystemExit(main())
