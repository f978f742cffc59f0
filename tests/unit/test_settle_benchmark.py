"""The benchmark of settlements measures what users run: its foremen speak as the real client does, and settle."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from benchmarks import settle
from ec262.protocol import messages as m
from tests.processes import ROOT


@pytest.mark.parametrize("callers", ["0", "2"])
def test_its_foremen_settle_all_that_they_lease(callers: str) -> None:
    flags = ["--callers", callers, "--workers", "16", "--batch", "30", "--rounds", "2", "--warm-up", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.settle", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tasks = 60 * max(1, int(callers))
    assert f"{tasks} replicas of {tasks} tasks" in done.stdout


class Wire:
    """A connection that notes what was sent and answers with what is next in `answers`."""

    answers: list[m.Message]
    sent: list[tuple[str, bytes, dict[str, str]]]
    status = 200

    def __init__(self, host: str) -> None:
        self.body = b""

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.sent.append((path, body, headers))
        self.body = m.encode(self.answers.pop(0), headers["Accept"])

    def getresponse(self) -> Wire:
        return self

    def read(self) -> bytes:
        return self.body


def test_it_sends_what_the_real_client_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("http.client.HTTPConnection", Wire)
    beaten = m.HeartbeatAnswer(server_time_s=0.0, open_leases=[], earned=0, balance=0)
    settled = m.Settled(tasks=[], workers=[], refused_receipts=[], balance=0)
    Wire.sent = []
    Wire.answers = [m.AccountCreated(account_id="ab" * 16, secret="x", balance=0), settled, beaten]
    party = settle._Asking("here", "192.0.2.1")
    wanted = m.Settle(job_id="ab" * 16)
    assert party.ask("POST", "/v1/settlements", wanted, m.Settled) == settled
    assert party.ask("POST", "/v1/beats", m.Heartbeat(boot_id="cd" * 16), m.HeartbeatAnswer) == beaten
    forms: list[Any] = [(headers["Content-Type"], headers["Accept"]) for _, _, headers in Wire.sent]
    assert forms == [(m.JSON, m.JSON), (m.PACKED, m.PACKED), (m.JSON, m.JSON)]
    assert m.decode(m.Settle, Wire.sent[1][1], m.PACKED) == wanted
