"""Reports of jobs: each account sees its own, a bounded number of them, for a while; and ``ec262 jobs`` shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from discovery.app import Discovery
from ec262.cli import jobs as command
from ec262.discovery_client import DiscoveryClient
from ec262.protocol import messages as m
from ec262.serving import Server
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Problem
from tests.processes import ROOT

JOB = "0123456789abcdef" * 2
REPORT = m.JobReport(
    name="count words", state="running", phase="map", tasks_done=3, tasks_total=12, failed=1, retried=2, workers=4,
    credits_spent=5, bytes_in=1_500_000, bytes_out=700, seconds_left=61.5,
)  # fmt: skip


def report(caller: Caller, job_id: str = JOB, **fields: Any) -> m.JobReported:
    body = m.JobReport(**{"state": "running", **fields})
    return caller.call("PUT", f"/v1/jobs/{job_id}", m.JobReported, body)


def jobs(caller: Caller) -> list[m.JobState]:
    return caller.call("GET", "/v1/jobs", m.Jobs).jobs


def stored(redis_url: str) -> set[str]:
    """Keys of reports in the store."""
    client = redis.Redis.from_url(redis_url)
    found = {key.decode() for key in client.scan_iter("{ec}:*jobs")}
    client.close()
    return found


# --- as it should be ------------------------------------------------------------------------------


def test_a_job_is_shown_as_it_was_reported_last(discovery: Discovery) -> None:
    caller = Caller(discovery)
    before_s = time.time()
    assert caller.call("PUT", f"/v1/jobs/{JOB}", m.JobReported, REPORT).kept_s == 300
    (first,) = jobs(caller)
    assert {name: getattr(first, name) for name in REPORT.__struct_fields__} == {
        name: getattr(REPORT, name) for name in REPORT.__struct_fields__
    }
    assert first.job_id == JOB
    assert first.started_s == first.updated_s
    assert before_s - 60 < first.started_s < time.time() + 60
    assert report(caller, state="done", tasks_done=12, tasks_total=12).kept_s == 3600
    answer = caller.call("GET", "/v1/jobs", m.Jobs)
    (last,) = answer.jobs
    assert (last.state, last.tasks_done, last.name, last.seconds_left) == ("done", 12, "", None)
    assert last.started_s == first.started_s
    assert last.updated_s >= first.updated_s
    assert last.age_s == pytest.approx(answer.server_time_s - last.started_s, abs=0.01)
    assert last.silent_s == pytest.approx(answer.server_time_s - last.updated_s, abs=0.01)


def test_the_last_started_is_listed_first(discovery: Discovery) -> None:
    caller = Caller(discovery)
    ids = [f"{number:032x}" for number in (5, 3, 9)]
    for job_id in ids:
        report(caller, job_id)
        time.sleep(0.005)
    report(caller, ids[0], state="failed")
    assert [job.job_id for job in jobs(caller)] == ids[::-1]


def test_running_jobs_are_forgotten_when_they_fall_silent_and_ended_ones_later(
    make_discovery: MakeDiscovery, redis_url: str
) -> None:
    discovery = make_discovery(silent_job_s=0.5, ended_job_s=2.0)
    caller = Caller(discovery)
    report(caller, "aa" * 16)
    report(caller, "bb" * 16, state="done")
    discovery.sweep()
    time.sleep(0.7)
    assert [job.job_id for job in jobs(caller)] == ["bb" * 16], "also before a sweep"
    discovery.sweep()
    client = redis.Redis.from_url(redis_url)
    assert client.hkeys(f"{{ec}}:account:{caller.account.account_id}:jobs") == [b"bb" * 16]
    client.close()
    time.sleep(1.6)
    discovery.sweep()
    assert (jobs(caller), stored(redis_url)) == ([], set())


def test_reporting_keeps_a_job_and_a_forgotten_one_starts_anew(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(silent_job_s=1.0)
    caller = Caller(discovery)
    report(caller)
    (first,) = jobs(caller)
    for _ in range(3):
        time.sleep(0.4)
        report(caller)
        discovery.sweep()
    (still,) = jobs(caller)
    assert still.started_s == first.started_s
    time.sleep(1.2)
    report(caller)  # not swept yet, and over all the same
    (anew,) = jobs(caller)
    assert anew.started_s > still.updated_s


def test_more_jobs_to_forget_than_a_sweep_takes_at_once(make_discovery: MakeDiscovery, redis_url: str) -> None:
    discovery = make_discovery(silent_job_s=0.01, account_jobs=1000)
    caller = Caller(discovery)
    for number in range(620):
        discovery.store.report_job(
            caller.account.account_id, f"{number:032x}", b"{}", ended=False, keep_ms=1, most=1000
        )
    time.sleep(0.01)
    discovery.sweep()
    assert stored(redis_url) == set()


# --- what strangers may try -----------------------------------------------------------------------


def test_another_accounts_job_of_the_same_id_is_neither_seen_nor_touched(discovery: Discovery) -> None:
    owner, thief = Caller(discovery), Caller(discovery)
    report(owner, name="mine")
    assert jobs(thief) == []
    report(thief, name="stolen", state="cancelled")
    assert [(job.name, job.state) for job in jobs(owner)] == [("mine", "running")]
    assert [(job.name, job.state) for job in jobs(thief)] == [("stolen", "cancelled")]
    for number in range(100):
        report(thief, f"{number:032x}")
    assert len(jobs(owner)) == 1, "nor crowded out"


def test_a_thousand_jobs_of_one_account_leave_the_last_sixty_four(discovery: Discovery, redis_url: str) -> None:
    caller = Caller(discovery)
    for number in range(1000):
        report(caller, f"{number:032x}")
    left = {int(job.job_id, 16) for job in jobs(caller)}
    assert len(left) == 64
    assert set(range(980, 1000)) <= left  # those of one millisecond are equally old
    assert min(left) > 800
    client = redis.Redis.from_url(redis_url)
    assert client.zcard("{ec}:jobs") == 64
    client.close()


def test_a_full_account_forgets_ended_jobs_before_running_ones(make_discovery: MakeDiscovery) -> None:
    caller = Caller(make_discovery(account_jobs=3))
    report(caller, "aa" * 16)
    report(caller, "bb" * 16, state="done")
    time.sleep(0.005)
    report(caller, "cc" * 16, state="failed")
    for fresh, left in [("dd", {"aa", "cc", "dd"}), ("ee", {"aa", "dd", "ee"}), ("ff", {"dd", "ee", "ff"})]:
        time.sleep(0.005)
        report(caller, fresh * 16)
        assert {job.job_id[:2] for job in jobs(caller)} == left
    report(caller, "dd" * 16, state="done")
    assert len(jobs(caller)) == 3, "a job that is there needs no room"


@pytest.mark.parametrize(
    "job_id",
    ["x" * 32, "AB" * 16, "ab" * 7, "ab" * 17, "ab" * 16 + "%0A", "%2e%2e%2fworkers", "a:b", "ab" * 8 + "%00", "*",
     "%D9%A0" * 16, "ab" * 16 + "%20"],
)  # fmt: skip
def test_ids_that_are_none_are_refused_and_nothing_is_kept(discovery: Discovery, redis_url: str, job_id: str) -> None:
    response = Caller(discovery).raw("PUT", f"/v1/jobs/{job_id}", m.encode(REPORT))
    assert response.status_code in (400, 404)
    assert m.decode(m.Problem, response.data).code in ("bad-request", "not-found")
    assert stored(redis_url) == set()


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"name": name} for name in ("x" * 65, "a\nb", "\x1b[2J", "a\x00", "\u202eabc", "\x7f", "\u2028", 1, None)],
        *[{"phase": phase} for phase in ("x" * 33, "map\r", "\u200b", ["map"])],
        *[{"state": state} for state in ("", "paused", None, 1, "running ")],
        *[{field: value} for field in ("tasks_done", "bytes_in") for value in (-1, 2**53, 1.5, "1", None)],
        *[{"tasks_total": value} for value in (-1, 2**70, [1])],
        *[{"seconds_left": value} for value in (-1, 1e300, "1")],
    ],
    ids=repr,
)  # fmt: skip
def test_reports_out_of_range_are_malformed_and_nothing_is_kept(
    discovery: Discovery, redis_url: str, wrong: dict[str, object]
) -> None:
    body = json.dumps({"state": "running", **wrong}).encode()
    response = Caller(discovery).raw("PUT", f"/v1/jobs/{JOB}", body)
    assert (response.status_code, m.decode(m.Problem, response.data).code) == (400, "malformed-body")
    assert stored(redis_url) == set()


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"-0.0001"])
def test_times_that_are_no_numbers_are_malformed(discovery: Discovery, number: bytes) -> None:
    response = Caller(discovery).raw("PUT", f"/v1/jobs/{JOB}", b'{"state":"running","seconds_left":' + number + b"}")
    assert response.status_code == 400


def test_an_oversize_report_is_refused_and_what_is_not_known_is_not_kept(discovery: Discovery, redis_url: str) -> None:
    caller = Caller(discovery)
    body = {"state": "running", "name": "x", "padding": "y" * 60_000}
    assert caller.raw("PUT", f"/v1/jobs/{JOB}", json.dumps(body).encode()).status_code == 200
    client = redis.Redis.from_url(redis_url)
    (kept,) = client.hvals(f"{{ec}}:account:{caller.account.account_id}:jobs")
    assert len(kept) < 1000
    client.close()
    body["padding"] = "y" * 70_000
    assert caller.raw("PUT", f"/v1/jobs/{JOB}", json.dumps(body).encode()).status_code == 413


def test_names_of_all_scripts_come_back(discovery: Discovery) -> None:
    caller = Caller(discovery)
    for name in ("Wörter zählen", "数える", "🧮" * 64, "", "x" * 64):
        report(caller, name=name)
        assert [job.name for job in jobs(caller)] == [name]


def test_the_largest_report_is_kept_whole(discovery: Discovery) -> None:
    caller = Caller(discovery)
    most = 2**53 - 1
    counts: dict[str, Any] = dict.fromkeys(
        ("tasks_done", "tasks_total", "failed", "workers", "credits_spent", "bytes_in"), most
    )
    report(caller, seconds_left=1e9, **counts)
    (job,) = jobs(caller)
    assert (job.bytes_in, job.tasks_total, job.seconds_left) == (most, most, 1e9)


def test_reports_need_an_account(discovery: Discovery) -> None:
    client = discovery.app.test_client()
    for method, path in (("PUT", f"/v1/jobs/{JOB}"), ("GET", "/v1/jobs")):
        response = client.open(path, method=method, data=m.encode(REPORT), content_type="application/json")
        assert response.status_code == 401


def test_a_job_cannot_be_read_by_its_id(discovery: Discovery) -> None:
    caller = Caller(discovery)
    report(caller)
    with pytest.raises(Problem, match="method-not-allowed"):
        caller.call("GET", f"/v1/jobs/{JOB}", m.JobState)


# --- the client and the command -------------------------------------------------------------------


@pytest.fixture
def served(discovery: Discovery) -> Iterator[DiscoveryClient]:
    """A client of a service that listens; as an account of its own."""
    account = Caller(discovery).account
    with (
        Server(discovery.app) as server,
        DiscoveryClient(server.url, account.account_id, account.secret) as client,
    ):
        yield client


def test_the_client_reports_and_lists(served: DiscoveryClient) -> None:
    assert served.jobs().jobs == []
    assert served.report_job(JOB, REPORT).kept_s == 300
    (job,) = served.jobs().jobs
    assert (job.job_id, job.name, job.tasks_total) == (JOB, "count words", 12)


def state(**fields: Any) -> m.JobState:
    usual = {"state": "running", "started_s": 1000.0, "updated_s": 1090.0, "age_s": 95.0, "silent_s": 5.0}
    return m.JobState(**{"job_id": JOB, **usual, **fields})


def test_the_table_says_how_jobs_stand() -> None:
    running = state(
        name="count words", phase="map", tasks_done=30, tasks_total=120, failed=1, retried=2, workers=8,
        credits_spent=30, bytes_in=3 * 2**30, bytes_out=2048, seconds_left=125.0,
    )  # fmt: skip
    ended = state(job_id="fe" * 16, state="done", tasks_done=7, silent_s=4000.0)
    head, first, second = command.table([running, ended]).splitlines()
    assert head.split() == list(command._COLUMNS)
    assert first.split() == [
        *("01234567", "count", "words", "running", "map", "30/120", "25%", "1", "2", "8", "30", "3.0", "GiB"),
        *("2.0", "KiB", "2m05s", "1m35s", "5s", "ago"),
    ]
    assert second.split() == [
        *("fefefefe", "-", "done", "-", "7/?", "0", "0", "0", "0", "0", "B", "0", "B", "-", "1m30s", "1h06m", "ago"),
    ]
    assert head.index("STATE") == first.index("running") == second.index("done")


def test_what_a_service_says_cannot_act_on_the_terminal_or_break_the_table() -> None:
    evil = state(name="\x1b]0;owned\x07\n\u202eabc\t" + "x" * 50, phase="\r\x9b2J")
    for line in (shown := command.table([evil, state(job_id="AB" * 16)])).splitlines():
        assert line.isprintable()
    assert len(shown.splitlines()) == 3
    assert "?]0;owned??" in shown
    assert command.as_json(1.0, [evil]).isascii()
    assert "\x1b" not in command.as_json(1.0, [evil])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (-3, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90_000, "1d01h")],
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert command._span(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_500_000, "1.4 MiB"), (2**53 - 1, "8.0 PiB")],
)
def test_sizes_are_short(count: int, shown: str) -> None:
    assert command._size(count) == shown


class Network:
    """A service in a process of its own, as the command meets one, and the home of an account of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "HOME": str(home), "EC262_HOME": str(home), "PYTHONPATH": str(ROOT)}
        for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET"):
            self.environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "discovery", "--port", "0", "--network", "private", "--data-dir", str(home / "data"),
             "--ephemeral", "--report-ready", "--parent-pipe"],
            cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def jobs(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs ``ec262 jobs``."""
        return subprocess.run(
            [sys.executable, "-m", "ec262.cli", "jobs", *words],
            cwd=ROOT, env={**self.environment, **more}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path)
    yield made
    made.process.communicate()
    assert made.process.returncode == 0


def test_the_command(network: Network) -> None:
    done = network.jobs("--discovery", network.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no account at" in done.stderr

    with DiscoveryClient(network.url) as client:
        made = client.create_account(m.CreateAccount())
        client.use_account(made.account_id, made.secret)
        account = {"EC262_ACCOUNT": made.account_id, "EC262_SECRET": made.secret, "EC262_DISCOVERY": network.url}
        done = network.jobs(**account)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"no job of yours runs at {network.url}\n"
        client.report_job("ab" * 16, m.JobReport(state="done", name="over", tasks_done=4, tasks_total=4))
        assert "1 ended, --all shows them" in network.jobs(**account).stdout
        client.report_job(JOB, m.JobReport(state="running", name="数える", phase="map"))

    done = network.jobs(**account, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["JOB", JOB[:8]]
    assert len(network.jobs("--all", **account).stdout.splitlines()) == 3
    shown = json.loads(network.jobs("--all", "--json", **account).stdout)
    assert {job["name"]: job["state"] for job in shown["jobs"]} == {"数える": "running", "over": "done"}
    assert json.loads(network.jobs("--json", **account).stdout)["jobs"][0]["job_id"] == JOB

    done = network.jobs(**{**account, "EC262_SECRET": "wrong"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ec262: ")
    done = network.jobs(**{**account, "EC262_DISCOVERY": "http://127.0.0.1:1"})
    assert done.returncode == 1
    assert "http://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_help_has_examples_and_exit_codes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ec262.cli", "jobs", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    for said in ("usage: ec262 jobs", "--all", "--json", "--discovery URL", "examples:", "exit codes:"):
        assert said in done.stdout
