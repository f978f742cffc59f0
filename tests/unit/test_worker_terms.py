"""A worker's terms: what is decided without I/O, what its owner's file may say, what it remembers."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from ec262.config import WorkerSettings
from ec262.errors import SetupError
from ec262.protocol.messages import WorkerTerms
from ec262.protocol.terms import ANYBODY, objection
from ec262.worker import preferences, sensors
from ec262.worker.lease import DiscoveryClock
from ec262.worker.preferences import LIVE, Preferences, Watched, choose, read_preferences, read_seconds, read_size
from ec262.worker.remembered import Remembered
from ec262.worker.sensors import FileSensors, MachineSensors
from ec262.worker.terms import Pause, Readings, decide, fit_memory, last_use, read_hours

SLOTS = 3
MON, FRI, SAT, SUN = 0, 4, 5, 6
FOREMAN, JOB = "a" * 32, "b" * 32


def at(hour: int, minute: int = 0) -> int:
    return hour * 60 + minute


def reasons(readings: Readings, *, pause: Pause | None = None, unused_s: float = 0.0, **wanted: object) -> list[str]:
    settings = WorkerSettings(slots=SLOTS, **wanted)  # type: ignore[arg-type]
    made = decide(settings, read_hours(settings.hours), readings, pause=pause, unused_s=unused_s)
    assert made.willing == (not made.reasons)
    assert made.slots == (0 if made.reasons else SLOTS)
    return list(made.reasons)


# --- the decision ---


def test_without_preferences_a_worker_always_works() -> None:
    assert reasons(Readings(on_mains=False, others_load=1.0, untouched_s=0.0)) == []


def test_a_pause_stands_above_everything() -> None:
    assert reasons(Readings(), pause=Pause()) == ["paused by its owner"]
    assert reasons(Readings(), pause=Pause(until_s=5.0)) == ["paused by its owner"]


@pytest.mark.parametrize(("on_mains", "works"), [(True, True), (False, False), (None, True)])
def test_only_on_mains(on_mains: bool | None, works: bool) -> None:
    found = reasons(Readings(on_mains=on_mains), only_on_mains=True)
    assert found == ([] if works else ["on battery"])


@pytest.mark.parametrize(
    ("spans", "weekday", "minute", "works"),
    [
        (("22:00-07:00",), MON, at(23), True),
        (("22:00-07:00",), MON, at(6, 59), True),
        (("22:00-07:00",), MON, at(7), False),
        (("22:00-07:00",), MON, at(21, 59), False),
        (("09:00-17:00",), SUN, at(9), True),
        (("09:00-17:00",), SUN, at(17), False),
        (("mon-fri@18:00-08:00",), FRI, at(20), True),
        (("mon-fri@18:00-08:00",), SAT, at(7), True),  # the night that began on Friday
        (("mon-fri@18:00-08:00",), SAT, at(20), False),
        (("mon-fri@18:00-08:00",), MON, at(7), False),  # the night that would have begun on Sunday
        (("sat-mon@00:00-24:00",), SUN, at(12), True),
        (("sat-mon@00:00-24:00",), FRI, at(12), False),
        (("sun@10:00-11:00", "22:00-23:00"), SUN, at(10, 30), True),
        (("sun@10:00-11:00", "22:00-23:00"), MON, at(22, 30), True),
    ],
)
def test_hours(spans: tuple[str, ...], weekday: int, minute: int, works: bool) -> None:
    assert (reasons(Readings(minute=minute, weekday=weekday), hours=spans) == []) is works


@pytest.mark.parametrize(
    "text",
    ["", "22-7", "22:00", "25:00-26:00", "10:60-11:00", "10:00-10:00", "10:00-24:01", "xxx@10:00-11:00", "1:00-2:00"],
)
def test_hours_that_are_none_are_a_clear_error(text: str) -> None:
    with pytest.raises(SetupError, match="22:00-07:00"):
        read_hours([text])


def test_only_when_idle_for_long_enough() -> None:
    assert reasons(Readings(), unused_s=59.0, only_idle=True, idle_after_s=60.0) != []
    assert reasons(Readings(), unused_s=60.0, only_idle=True, idle_after_s=60.0) == []
    assert reasons(Readings(), unused_s=0.0, only_idle=False) == []


def test_what_use_by_others_is() -> None:
    settings = WorkerSettings(only_idle=True, idle_load=0.25)
    assert last_use(settings, Readings(others_load=0.26), 100.0, 7.0) == 100.0
    assert last_use(settings, Readings(others_load=0.25), 100.0, 7.0) == 7.0
    assert last_use(settings, Readings(untouched_s=10.0), 100.0, 7.0) == 90.0
    assert last_use(settings, Readings(untouched_s=1e9), 100.0, 7.0) == 7.0
    assert last_use(settings, Readings(), 100.0, 7.0) == 7.0, "a missing sensor says nothing"


def test_memory_is_kept_by_fewer_slots_and_less_that_waits() -> None:
    gib = 2**30
    made = fit_memory(WorkerSettings(slots=8, memory_bytes=4 * gib), gib)
    assert made.slots == 3
    assert made.slots * gib + made.held_bytes + made.program_bytes <= 4 * gib
    assert fit_memory(WorkerSettings(slots=8), gib).slots == 8
    assert fit_memory(WorkerSettings(slots=2, memory_bytes=64 * gib), gib).slots == 2
    with pytest.raises(SetupError, match=r"1\.24 GiB"):
        fit_memory(WorkerSettings(memory_bytes=gib), gib)
    assert fit_memory(WorkerSettings(memory_bytes=int(1.24 * gib)), gib).slots == 1, "as the error says"


# --- whom to serve ---


@pytest.mark.parametrize(
    ("terms", "served"),
    [
        (ANYBODY, True),
        (WorkerTerms(max_task_cpu_s=60.0), True),
        (WorkerTerms(max_task_cpu_s=59.0), False),
        (WorkerTerms(deny_accounts=[FOREMAN]), False),
        (WorkerTerms(deny_jobs=[JOB]), False),
        (WorkerTerms(deny_jobs=["c" * 32], deny_accounts=["c" * 32]), True),
        (WorkerTerms(allow_accounts=[FOREMAN]), True),
        (WorkerTerms(allow_accounts=["c" * 32]), False),
        (WorkerTerms(allow_jobs=[JOB]), True),
        (WorkerTerms(allow_jobs=[JOB], allow_accounts=["c" * 32]), True),
        (WorkerTerms(allow_accounts=[FOREMAN], deny_jobs=[JOB]), False),  # who denies means it
    ],
)
def test_whom_a_worker_serves(terms: WorkerTerms, served: bool) -> None:
    said = objection(terms, account_id=FOREMAN, job_id=JOB, cpu_limit_s=60.0)
    assert (said == "") is served
    assert FOREMAN not in said, "the foreman reads the reason: it learns nothing of others on the list"


# --- the file ---

WHOLE = """
discovery = "https://discovery.example"
port = 11300
host = "10.0.0.1"
slots = 2
sandbox = "native"
relay = "always"
ca_bundle = "/etc/ec262/ca.pem"
min_price = 3
niceness = 10
memory = "6G"
only_idle = true
idle_load = 0.1
idle_after = "5m"
only_on_mains = true
hours = ["22:00-07:00", "sat-sun@00:00-24:00"]
max_task_cpu = "10m"
max_task_input = "64M"
allow_accounts = ["aaaaaaaaaaaaaaaa"]
deny_accounts = ["bbbbbbbbbbbbbbbb"]
allow_jobs = ["cccccccccccccccc"]
deny_jobs = ["dddddddddddddddd"]
max_living = "12h"
drain = 90
metrics_port = 9100
metrics_host = "127.0.0.2"
allow_modules = ["numpy"]

[data_dirs]
books = "/data/books"
"""


def test_the_file_says_everything_that_a_volunteer_may_choose(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text(WHOLE)
    settings, discovery, _ = choose(tmp_path)
    assert discovery == "https://discovery.example"
    assert settings == WorkerSettings(
        port=11300, host="10.0.0.1", slots=2, relay="always", ca_bundle="/etc/ec262/ca.pem", min_price=3, niceness=10,
        memory_bytes=6 * 2**30, only_idle=True,
        idle_load=0.1, idle_after_s=300.0, only_on_mains=True, hours=("22:00-07:00", "sat-sun@00:00-24:00"),
        max_task_cpu_s=600.0, max_task_input_bytes=64 * 2**20, allow_accounts=("a" * 16,), deny_accounts=("b" * 16,),
        allow_jobs=("c" * 16,), deny_jobs=("d" * 16,), max_living_s=43_200.0, drain_s=90.0, metrics_port=9100,
        metrics_host="127.0.0.2", allow_modules=("numpy",), data_dirs=(("books", "/data/books"),),
    )  # fmt: skip
    named = {line.split(" = ")[0] for line in WHOLE.splitlines() if " = " in line and not line.startswith("books")}
    assert named | {"data_dirs"} == set(preferences._KEYS), "no key is missing here"
    assert set(LIVE) <= set(WorkerSettings.__dataclass_fields__)


def test_a_flag_counts_more_than_the_environment_and_that_more_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.toml").write_text("slots = 2\nonly_idle = true\nniceness = 5\n")
    monkeypatch.setenv("EC262_WORKER_SLOTS", "3")
    monkeypatch.setenv("EC262_WORKER_ONLY_IDLE", "no")
    assert choose(tmp_path)[0].slots == 3
    assert choose(tmp_path)[0].only_idle is False
    assert choose(tmp_path, slots=4, only_idle=True, niceness=None)[0] == WorkerSettings(
        slots=4, only_idle=True, niceness=5
    )


def test_without_a_file_nothing_is_preferred(tmp_path: Path) -> None:
    assert read_preferences(tmp_path) == Preferences()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slots = ", "no TOML"),
        ("slotz = 2", "there is no preference 'slotz'; there are allow_accounts"),
        ('slots = "2"', "slots = '2': has to be a whole number"),
        ("slots = true", "has to be a whole number"),
        ("only_idle = 1", "has to be true or false"),
        ('hours = "22:00-07:00"', "has to be a list of texts"),
        ('memory = "6Q"', "such as '512M'"),
        ('max_living = "soon"', "such as '10m'"),
        ("max_living = -1", "such as '10m'"),
        ("idle_load = 25", "from 0 to 1"),
        ('data_dirs = ["x"]', "has to be a table"),
        ("slots = 0", "0 slots"),
        ("niceness = 20", "0 to 19"),
        ('deny_accounts = ["me"]', "hexadecimal"),
        ("\x00", "no TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_in_plain_words(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "worker.toml").write_text(text)
    with pytest.raises(SetupError) as found:
        choose(tmp_path)
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [(90, 90.0), ("90", 90.0), ("1.5m", 90.0), ("12H", 43_200.0), ("1d", 86_400)]
)
def test_times(text: object, seconds: float) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize(("text", "size"), [(7, 7), ("1k", 1024), ("0.5G", 2**29), ("2T", 2**41)])
def test_sizes(text: object, size: int) -> None:
    assert read_size(text) == size


def test_a_changed_file_counts_at_once_where_it_can(tmp_path: Path) -> None:
    path = tmp_path / "worker.toml"
    path.write_text("slots = 2\n")
    settings, _, watched = choose(tmp_path)
    assert watched.changed(settings) is None
    path.write_text("slots = 5\nonly_idle = true\nmax_living = 7\n")
    fresh = watched.changed(settings)
    assert fresh is not None
    assert (fresh.only_idle, fresh.max_living_s, fresh.slots) == (True, 7.0, 2), "slots wait for the next start"
    assert watched.changed(fresh) is None
    path.write_text("only_idle = maybe\n")
    with pytest.raises(SetupError, match="no TOML"):
        watched.changed(fresh)
    assert watched.changed(fresh) is None, "it is said once"
    path.unlink()
    gone = watched.changed(fresh)
    assert gone is not None
    assert not gone.only_idle
    assert isinstance(watched, Watched)


# --- what it remembers ---


def test_earnings_of_a_day_outlast_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "11235.json"
    first = Remembered(path)
    first.note_earned(10, "mon")
    assert first.earned_today == 0, "what was earned before anybody looked is not today's"
    first.note_earned(14, "mon")
    assert first.earned_today == 4
    again = Remembered(path)
    again.note_earned(15, "mon")
    assert again.earned_today == 5
    again.note_earned(17, "tue")
    assert again.earned_today == 2
    again.note_earned(1, "tue")
    assert again.earned_today == 0, "discovery began anew"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_pause_outlasts_a_restart_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "11235.json"
    Remembered(path).set_pause(Pause(until_s=7.0))
    assert Remembered(path).pause == Pause(until_s=7.0)
    Remembered(path).set_pause(Pause())
    assert Remembered(path).pause == Pause()
    Remembered(path).set_pause(None)
    assert Remembered(path).pause is None
    for damage in (b"{", b"[]", b'{"paused": true, "paused_until_s": "x", "earned": "x"}', b"\xff"):
        path.write_bytes(damage)
        Remembered(path).note_earned(1, "mon")
    assert Remembered(None).earned_today == 0


# --- sensors ---


def test_this_machines_sensors_can_be_read_whatever_it_lacks() -> None:
    settings = WorkerSettings(only_idle=True, only_on_mains=True)
    readings = MachineSensors(settings, lambda: [1, 2**22 + 1]).read()
    assert 0 <= readings.minute < 1440
    assert 0 <= readings.weekday < 7
    assert readings.on_mains in (True, False, None)
    assert readings.others_load is None, "there is no load yet to speak of"
    nothing = MachineSensors(WorkerSettings(), lambda: []).read()
    assert (nothing.on_mains, nothing.others_load, nothing.untouched_s) == (None, None, None), "nobody asked"


def test_the_workers_own_load_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, own = [0.0, 0.0], [0.0]
    monkeypatch.setattr(sensors, "LOAD_OVER_S", 0.0)
    monkeypatch.setattr(sensors, "_machine_s", lambda: (machine[0], machine[1]))
    monkeypatch.setattr(MachineSensors, "_own_s", lambda _: own[0])
    made = MachineSensors(WorkerSettings(only_idle=True), lambda: [])
    machine[:], own[0] = [8.0, 10.0], 7.0  # of 10 s of processors 8 were used, 7 by the worker
    assert made.read().others_load == pytest.approx(0.1)
    machine[:], own[0] = [12.0, 20.0], 0.0  # a process of the worker's is gone with its count
    assert made.read().others_load == pytest.approx(0.4)


def test_the_own_load_is_that_of_the_whole_family() -> None:
    made = MachineSensors(WorkerSettings(only_idle=True), lambda: [])
    assert made._own_s() == 0.0
    made = MachineSensors(WorkerSettings(only_idle=True), lambda: [os.getpid(), os.getpid()])
    before = made._own_s()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert made._own_s() - before >= 0.03


def test_sensors_can_be_a_file_and_its_faults_are_said(tmp_path: Path) -> None:
    path = tmp_path / "sensors.json"
    with pytest.raises(SetupError, match=r"sensors\.json"):
        FileSensors(path).read()
    path.write_text('{"on_mains": false, "minute": 5, "weekday": 6}')
    assert FileSensors(path).read() == Readings(minute=5, weekday=6, on_mains=False)
    path.write_text('{"humidity": 3}')
    with pytest.raises(SetupError):
        FileSensors(path).read()


def test_discoverys_clock_goes_on_while_this_machine_is_suspended() -> None:
    asleep = [0.0]
    clock = DiscoveryClock(lambda: asleep[0])
    now = time.monotonic()
    clock.learn(1000.0, now, now)
    asleep[0] = 3600.0
    assert clock.now_s() == pytest.approx(4600.0, abs=5.0), "else tickets of an hour ago would still count"
    clock.learn(9000.0, now, now)
    assert clock.now_s() == pytest.approx(9000.0, abs=5.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell elsewhere")
def test_the_time_a_machine_was_suspended_only_grows() -> None:
    assert sensors.suspended_s() >= -0.001
