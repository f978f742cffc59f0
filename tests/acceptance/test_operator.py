"""A service and its operator, as processes: what is ordered beside a running service is done by it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import ProblemError
from ec262.protocol import messages as m
from tests.processes import ROOT, Process, nothing_left, until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Process]:
    flags = ["--network", "private", "--registration", "invite", "--account-workers", "1", "--port", "0"]
    with nothing_left():
        process = Process(
            ["-m", "discovery", *flags, "--data-dir", str(tmp_path / "data")], home=tmp_path, log=tmp_path / "log"
        )
        try:
            yield process
        finally:
            process.stop()


def ec262(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EC262_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", "ec262.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


def worker(number: int, ask: int = 1) -> m.RegisterWorker:
    return m.RegisterWorker(
        worker_id=f"{number:032x}", boot_id="ab" * 16, port=1, slots=1, python="3.11", ask=ask, platform="x86_64"
    )


def test_an_operator_beside_a_running_service(service: Process, tmp_path: Path) -> None:
    url, data = str(service.ready["url"]), ["--data-dir", str(tmp_path / "data")]
    invited = ec262(tmp_path, "operator", "invite", "--uses", "2", *data)
    assert invited.returncode == 0, invited.stderr
    code = invited.stdout.strip()

    # A worker that starts by itself finds no way in, and says what it needs.
    alone = ec262(tmp_path, "worker", "--discovery", url, "--sandbox", "none", "--port", "0")
    assert alone.returncode == 1
    assert "by invitation" in alone.stderr

    with DiscoveryClient(url) as bad, DiscoveryClient(url) as foreman:
        account = create_account_at(bad, invitation=code)
        create_account_at(foreman, invitation=code)
        bad.register_worker(worker(1))
        with pytest.raises(ProblemError, match="stop one of them"):
            bad.register_worker(worker(2))
        leased = foreman.lease_tasks(
            m.LeaseTasks(
                job_id="cd" * 16,
                idempotency_key="a-good-key",
                tasks=[m.TaskWanted(input_digest=bytes(32))],
                requirements=m.Requirements(python="3.11", platform="x86_64"),
            )
        )
        assert len(leased.tasks) == 1
        assert foreman.account().escrow == 1

        banned = ec262(tmp_path, "operator", "ban", account.account_id, "--reason", "sells junk", *data)
        assert banned.returncode == 0, banned.stderr
        with pytest.raises(ProblemError, match="sells junk"):
            bad.heartbeat(f"{1:032x}", m.Heartbeat(boot_id="ab" * 16))
        assert bad.account().banned == "operator: sells junk"
        until(lambda: foreman.account().escrow == 0, what="the end of the banned worker's lease")

        # A worker of the banned account ends and says why.
        shut_out = ec262(
            *(tmp_path, "worker", "--discovery", url, "--sandbox", "none", "--port", "0"),
            EC262_ACCOUNT=account.account_id,
            EC262_SECRET=account.secret,
        )
        assert shut_out.returncode == 1
        assert "sells junk" in shut_out.stderr

        assert ec262(tmp_path, "operator", "unban", account.account_id, *data).returncode == 0
        assert bad.register_worker(worker(1)).epoch == 1

    service.stop()
    listed = ec262(tmp_path, "operator", "list", "banned", *data)  # also while nothing runs
    assert (listed.returncode, listed.stdout) == (0, "")
    verified = ec262(tmp_path, "ledger", "verify", *data)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--address-accounts", "-1"],
        ["--registration", "maybe"],
        ["--trusted-proxy", "example.org"],
        ["--trusted-proxy", "0.0.0.0/0"],
        ["--trusted-proxy", "::/0"],
        ["--account-workers", "x"],
    ],
)
def test_wrong_flags_of_a_service(flags: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "discovery", *flags, "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert flags[0] in done.stderr
