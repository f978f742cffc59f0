"""What one discovery process and its store settle: leases and settlements in batches, as foremen ask for them.

Everything that discovery does for a request is timed: reading the body, deciding, committing, writing the answer.
Foremen and workers are played here between the timed parts.

    python -m benchmarks.settle [--workers 64] [--batch 1000] [--rounds 20] [--redundancy 1 | --confidence 0.99]
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import os
import pstats
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import redis

from discovery.app import Discovery, create_discovery
from discovery.service import calm_collector
from discovery.settings import Settings
from discovery.store.server import start_server
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, seal_receipts, tokens_digest

RIGHT = hashlib.sha256(b"right").digest()


@dataclass
class Spent:
    """Seconds in discovery: by the clock, and of its processor."""

    clock_s: float = 0.0
    cpu_s: float = 0.0


class Bench:
    """A discovery service, one foreman and its workers."""

    def __init__(self, discovery: Discovery, workers: int, policy: m.Policy, profile: cProfile.Profile | None) -> None:
        self._discovery = discovery
        self._policy = policy
        self._profile = profile
        self._foreman = discovery.registry.create_account("192.0.2.1", m.CreateAccount()).account_id
        self._keys: dict[str, tuple[bytes, int]] = {}
        self.spent = Spent()
        self.replicas = 0
        for number in range(workers):
            address = f"10.{number // 250}.{number % 250}.1"
            account = discovery.registry.create_account(address, m.CreateAccount()).account_id
            wanted = m.RegisterWorker(
                worker_id=f"{number:032x}", boot_id=f"{number:032x}", port=1, slots=16, python="3.11"
            )
            done = discovery.registry.register(account, address, wanted)
            self._keys[wanted.worker_id] = (discovery.registry.worker_key(wanted.worker_id), done.epoch)

    def round(self, batch: int) -> None:
        """Leases a batch and settles it until nothing of it is open."""
        job_id = f"{7:032x}"
        wanted = m.LeaseTasks(
            job_id=job_id,
            idempotency_key=os.urandom(8).hex(),
            tasks=[m.TaskWanted(input_digest=os.urandom(32)) for _ in range(batch)],
            requirements=m.Requirements(python="3.11"),
            policy=self._policy,
        )
        leased = self._ask(wanted)
        assert isinstance(leased, m.Leased)
        assert len(leased.tasks) == batch
        replicas = [replica for task in leased.tasks for replica in task.replicas]
        open_tasks = [task.task_id for task in leased.tasks]
        while open_tasks:
            settled = self._ask(m.Settle(job_id=job_id, receipts=self._receipts(replicas), decide=open_tasks))
            assert isinstance(settled, m.Settled)
            self.replicas += len(replicas)
            replicas, open_tasks = [], []
            for verdict in settled.tasks:
                if verdict.task is not None:
                    replicas += verdict.task.replicas
                    open_tasks.append(verdict.task_id)
                else:
                    assert verdict.verdict == "accepted", verdict

    def _receipts(self, replicas: list[m.LeasedReplica]) -> list[m.SealedReceipts]:
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

    def _ask(self, wanted: m.LeaseTasks | m.Settle) -> m.Leased | m.Settled:
        body = m.encode(wanted)
        clock, cpu = time.perf_counter(), time.process_time()
        if self._profile is not None:
            self._profile.enable()
        made: m.Leased | m.Settled
        if isinstance(wanted, m.LeaseTasks):
            made = self._discovery.leasing.lease(self._foreman, m.decode(m.LeaseTasks, body))
        else:
            made = self._discovery.settlement.settle(self._foreman, m.decode(m.Settle, body))
        answer = m.encode(made)
        if self._profile is not None:
            self._profile.disable()
        self.spent.cpu_s += time.process_time() - cpu
        self.spent.clock_s += time.perf_counter() - clock
        return m.decode(type(made), answer)


def main() -> None:
    """Runs the rounds and prints what they cost."""
    flags = _parser().parse_args()
    policy = m.Policy(
        redundancy=flags.redundancy,
        quorum=(flags.redundancy + 2) // 2,
        confidence=flags.confidence,
        max_replicas=24,
    )
    profile = cProfile.Profile() if flags.profile else None
    with tempfile.TemporaryDirectory() as directory, start_server(Path(directory) / "store", fsync="always") as store:
        settings = Settings(
            network=flags.network, distinct="account", starting_credits=10**9, prefetch=512, sample=flags.sample
        )
        discovery = create_discovery(settings, store.url, Path(directory))
        calm_collector()
        client = redis.Redis.from_url(store.url)
        bench = Bench(discovery, flags.workers, policy, profile)
        for _ in range(flags.warm_up):
            bench.round(flags.batch)
        bench.spent, bench.replicas = Spent(), 0
        before, bytes_before = _store_cpu(client), int(client.info("memory")["used_memory"])
        if profile is not None:
            profile.clear()
        for _ in range(flags.rounds):
            bench.round(flags.batch)
        store_s = _store_cpu(client) - before
        grown = int(client.info("memory")["used_memory"]) - bytes_before
        tasks = flags.rounds * flags.batch
        print(f"{bench.replicas} replicas of {tasks} tasks: {bench.replicas / tasks:.2f} a task")
        clock_s = bench.spent.clock_s
        print(f"{bench.replicas / clock_s:,.0f} settled replicas/s, {tasks / clock_s:,.0f} tasks/s")
        each = 1e6 / bench.replicas
        print(f"us a replica: discovery {bench.spent.cpu_s * each:.1f}, store {store_s * each:.1f}, "
              f"by the clock {bench.spent.clock_s * each:.1f}")  # fmt: skip
        print(f"the store grew by {grown / tasks:.0f} bytes a task, ledger included")
        discovery.store.close()
        client.close()
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def _store_cpu(client: redis.Redis) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.settle", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--sample", type=int, default=64)
    parser.add_argument("--redundancy", type=int, default=1)
    parser.add_argument("--confidence", type=float, default=0.0)
    parser.add_argument("--network", choices=["private", "public"], default="private")
    parser.add_argument("--profile", action="store_true")
    return parser


if __name__ == "__main__":
    main()
