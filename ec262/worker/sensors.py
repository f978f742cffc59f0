"""Sensors: the one door to what the machine is like: load, battery, terminals, the time of day.

With ``EC262_WORKER_SENSORS=FILE`` the readings come from that file instead, which tests write: an object of JSON with
fields of `terms.Readings`. What it does not name is not known, but for the time, which is the machine's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import psutil

from ec262.config import WorkerSettings
from ec262.errors import SetupError
from ec262.worker.terms import Readings

LOAD_OVER_S = 5.0
"""A load is the mean over at least so long."""


class Sensors(Protocol):
    """What can be read."""

    def read(self) -> Readings:
        """The readings at this moment."""
        ...


class MachineSensors:
    """This machine's.

    Args:
        settings: what is not asked for is not measured.
        own_pids: the processes whose load, and whose children's, is not others': EC262's workers here.
    """

    def __init__(
        self, settings: WorkerSettings, own_pids: Callable[[], Iterable[int]] = lambda: (os.getpid(),)
    ) -> None:
        self._settings = settings
        self._own_pids = own_pids
        self._load: float | None = None
        self._before = (time.monotonic(), *_machine_s(), self._own_s()) if settings.only_idle else (0.0, 0.0, 0.0, 0.0)

    def read(self) -> Readings:
        """The readings at this moment."""
        now = time.localtime()
        return Readings(
            minute=now.tm_hour * 60 + now.tm_min,
            weekday=now.tm_wday,
            on_mains=_on_mains() if self._settings.only_on_mains else None,
            others_load=self._others_load() if self._settings.only_idle else None,
            untouched_s=_untouched_s() if self._settings.only_idle else None,
        )

    def _others_load(self) -> float | None:
        at_s, busy_s, all_s, own_s = self._before
        if time.monotonic() - at_s < LOAD_OVER_S:
            return self._load
        now = (time.monotonic(), *_machine_s(), self._own_s())
        self._before = now
        passed_s = now[2] - all_s
        if passed_s <= 0:
            return self._load
        others_s = (now[1] - busy_s) - max(0.0, now[3] - own_s)
        self._load = min(1.0, max(0.0, others_s / passed_s))
        return self._load

    def _own_s(self) -> float:
        """CPU seconds of EC262's workers here, their sandboxes and what these have run."""
        total = 0.0
        for pid in set(self._own_pids()):
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
            for each in family:
                try:
                    used = each.cpu_times()
                except psutil.Error:
                    continue
                total += used.user + used.system + used.children_user + used.children_system
        return total


class FileSensors:
    """Readings from a file that somebody else writes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Readings:
        """The readings as the file has them now.

        Raises:
            SetupError: it is not there, or not of this form.
        """
        now = time.localtime()
        known = {"minute": now.tm_hour * 60 + now.tm_min, "weekday": now.tm_wday}
        try:
            return Readings(**{**known, **json.loads(self._path.read_text())})
        except (OSError, ValueError, TypeError) as reason:
            raise SetupError(f"sensors from {self._path}: {reason}") from None


def sensors_of(settings: WorkerSettings, own_pids: Callable[[], Iterable[int]]) -> Sensors:
    """The sensors that these settings name."""
    return FileSensors(Path(settings.sensors)) if settings.sensors else MachineSensors(settings, own_pids)


def suspended_s() -> float:
    """Seconds that this machine has been suspended since it was started; 0 where the system does not tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _machine_s() -> tuple[float, float]:
    """CPU seconds of all processors since the start: those used, and all."""
    times = psutil.cpu_times()
    # Linux counts a guest's time in user's, too.
    everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return everything - times.idle - getattr(times, "iowait", 0.0), everything


def _on_mains() -> bool | None:
    try:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    except (OSError, RuntimeError, ValueError, psutil.Error):
        return None
    return None if battery is None else battery.power_plugged


def _untouched_s() -> float | None:
    """Since somebody last typed at a terminal of this machine: the kernel notes that as the terminal's access time."""
    newest = None
    try:
        terminals = {user.terminal for user in psutil.users() if user.terminal}
    except (OSError, RuntimeError, psutil.Error):
        return None
    for name in terminals:
        try:
            used = os.stat(f"/dev/{name}").st_atime
        except OSError:
            continue
        newest = used if newest is None else max(newest, used)
    return None if newest is None else max(0.0, time.time() - newest)
