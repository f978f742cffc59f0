"""Load for tests: light workers and a light foreman, processes of their own, on a service that something happens to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ec262.discovery_client import DiscoveryClient, create_account_at
from tests.light import Notes
from tests.processes import ROOT, until


class Load:
    """Workers, and a foreman with a job; none of them minds a service that does not answer for a while."""

    def __init__(self, directory: Path, url: str, *, items: int, workers: int = 3, batch: int = 20) -> None:
        directory.mkdir()
        self.items = items
        self.journal = directory / "journal"
        self.gate = directory / "gate"
        self.gate.write_text("0")
        self._directory = directory
        self._url = url
        self._processes: list[subprocess.Popen[bytes]] = []
        for number in range(workers):
            self._start(f"worker{number}", worker_id=os.urandom(16).hex(), lies_to="")
        self.foreman = self._start(
            "foreman",
            job_id=os.urandom(16).hex(),
            policy={"redundancy": 2, "quorum": 2, "max_replicas": 9},
            items=items,
            batch=batch,
            lanes=2,
            gate=str(self.gate),
            journal=str(self.journal),
        )

    def _start(self, name: str, **told: object) -> subprocess.Popen[bytes]:
        with DiscoveryClient(self._url) as client:
            account = create_account_at(client)
        told.update(url=self._url, account_id=account.account_id, secret=account.secret)
        (self._directory / f"{name}.json").write_text(json.dumps(told))
        with open(self._directory / "log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.light", name.rstrip("0123456789"), str(self._directory / f"{name}.json")],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    @property
    def done(self) -> int:
        """Items that were accepted so far."""
        return len(Notes(self.journal).accepted) if self.journal.exists() else 0

    def go(self, upto: int, timeout_s: float = 90.0) -> None:
        """Has the foreman go on until about so many items are accepted."""
        self.open_gate(upto)
        until(lambda: self.done >= upto or self._over(), timeout_s, f"{upto} accepted items")
        assert self.done >= upto, self.log

    def open_gate(self, upto: int) -> None:
        """Lets the foreman go on until about so many items are accepted."""
        replaced = self.gate.with_suffix(".new")
        replaced.write_text(str(upto))
        replaced.replace(self.gate)

    def _over(self) -> bool:
        return self.foreman.poll() is not None

    def finish(self, timeout_s: float = 90.0) -> None:
        """Waits for the job's end, which has to be a good one."""
        self.go(self.items, timeout_s)
        assert self.foreman.wait(timeout_s) == 0, self.log

    @property
    def log(self) -> str:
        """What the parties wrote."""
        return (self._directory / "log").read_text()

    def close(self) -> None:
        """Kills all of them."""
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def load(directory: Path, url: str, *, items: int, workers: int = 3) -> Iterator[Load]:
    """A load that is gone afterwards."""
    made = Load(directory, url, items=items, workers=workers)
    try:
        yield made
    finally:
        made.close()
