"""The benchmark of a network's load in a short form: no error, the books clean, and attackers do not hold others up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import Network, Service, under_attack
from tests.commands import run
from tests.processes import nothing_left

WORST = 2.0
"""A median may be so many times as long under attack, and some milliseconds more: here others use the machine as well.
What it really is, `python -m benchmarks.load --attack` measures."""
SLACK_S = 0.05


@pytest.mark.timeout(200)
def test_workers_and_foremen_see_no_error_and_attackers_do_not_hold_them_up(tmp_path: Path) -> None:
    with nothing_left():
        service = Service(tmp_path, 2)
        network = Network(service.url, workers=60, foremen=6, batch=10, pace_s=0.5, beat_s=2.0)
        try:
            attack = under_attack(network, service, 3.0, 1)
            assert network.seen.settled > 0
        finally:
            network.close()
            assert service.stop() == 0
    assert not attack.errors
    assert attack.routes == ["heartbeat", "lease_tasks", "settle"]
    for calm, attacked in (
        *(attack.latency(each, 0.5) for each in attack.routes),
        attack.middle(lambda e: e.cpu_a_call),
    ):
        assert attacked < WORST * calm + SLACK_S, attack.told()
    done = run("ledger", "verify", "--data-dir", str(tmp_path / "data"), home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flags", [["--minutes", "10"], ["--attack", "--minutes", "5"]])
def test_the_whole_network_for_long(flags: list[str]) -> None:
    with nothing_left():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load", *flags], capture_output=True, text=True, timeout=890, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
