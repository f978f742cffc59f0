"""Tree: CPU time and memory of a whole process tree, whoever's it is: EC262's, Dask's or a pool's (Linux alone).

    python -m benchmarks.tree PID PASSED,PASSED      watches a process and all below it until standard input ends

Watching happens in a process of its own, which takes at most a twentieth of a core and counts nowhere. What a process
held at most is the kernel's own count (VmHWM), set back at the start: nothing is missed between two looks but processes
that came and went. A tree's sum is taken of PSS, where a page that n processes share counts a n-th for each: a
sandbox's child shares most of its pages with the process it was forked from.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import ROOT, busy_s

PARTIES = ("driver", "workers", "services")

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LEAST_WAIT_S = 0.05
_WAIT_TIMES = 20
"""Between two looks passes so many times what a look takes."""


@dataclass(slots=True)
class Taken:
    """What a stretch of time took. Memory in bytes; 0 and empty where it cannot be read.

    A *worker* is a direct child of the driver with all below it, services aside.

    Attributes:
        wall_s: seconds by the clock.
        cpu_s: CPU seconds of the whole tree.
        cpu_by: the same by party: driver, workers, services.
        driver_peak: most that the driver had resident: the process that the user's program is.
        driver_before: what it had resident at the start: input that was in memory already.
        process_peak: most that any one process of any worker had resident.
        worker_peak: most that any one worker's processes had together, of PSS.
        workers_peak: most that all workers had together, of PSS.
        services_peak: most that a service's processes (discovery with its store) had together, of PSS.
        others_cores: cores that others kept busy meanwhile, mean; None: unknown.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    cpu_by: dict[str, float] = field(default_factory=dict)
    driver_peak: int = 0
    driver_before: int = 0
    process_peak: int = 0
    worker_peak: int = 0
    workers_peak: int = 0
    services_peak: int = 0
    others_cores: float | None = None


@contextlib.contextmanager
def watched(services: Collection[int] = ()) -> Iterator[Taken]:
    """Measures what this process and all below it do inside the ``with``; the `Taken` is filled at its end.

    Args:
        services: children of this process that are not workers.
    """
    taken = Taken()
    if sys.platform != "linux":
        start_s = time.perf_counter()
        yield taken
        taken.wall_s = time.perf_counter() - start_s
        return
    root = os.getpid()
    watcher = _Watcher(root, services)
    try:
        taken.driver_before = _resident(root)
        cpu, busy, start_s = _cpu_s(root, services, watcher.pid), busy_s(), time.perf_counter()
        yield taken
        taken.wall_s = time.perf_counter() - start_s
        after, busy_after = _cpu_s(root, services, watcher.pid), busy_s()
    finally:
        peaks = watcher.close()
    taken.cpu_by = {party: after[party] - cpu[party] for party in after}
    taken.cpu_s = sum(taken.cpu_by.values())
    if busy is not None and busy_after is not None:
        taken.others_cores = max(0.0, (busy_after - busy - taken.cpu_s) / taken.wall_s)
    for name, value in peaks.items():
        setattr(taken, name, value)


class _Watcher:
    """The process that watches."""

    def __init__(self, root: int, services: Collection[int]) -> None:
        command = [sys.executable, "-m", "benchmarks.tree", str(root), ",".join(map(str, services))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has looked once

    def close(self) -> dict[str, int]:
        """Ends it; what it saw."""
        said, _ = self._process.communicate()
        return dict(json.loads(said))


# --- processes ------------------------------------------------------------------------------------


def groups(root: int, services: Collection[int], besides: Collection[int] = ()) -> dict[str, list[list[int]]]:
    """The processes of a tree by party; of workers and services one list for each.

    Args:
        besides: children that are left out, with all below them.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))

    def with_all_below(process: int) -> list[int]:
        return [process, *(below for child in children[process] for below in with_all_below(child))]

    found: dict[str, list[list[int]]] = {"driver": [[root]], "workers": [], "services": []}
    for child in children[root]:
        if child not in besides:
            party = "services" if child in services or _serves(child) else "workers"
            found[party].append(with_all_below(child))
    return found


def _serves(process: int) -> bool:
    """Whether it is multiprocessing's own helper."""
    try:
        return b"resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True


def _cpu_s(root: int, services: Collection[int], watcher: int) -> dict[str, float]:
    """CPU seconds by party, with those of children that ended; the driver's own that ended count as workers."""
    ticks = dict.fromkeys(PARTIES, 0)
    for party, lists in groups(root, services, (watcher,)).items():
        for process in (process for listed in lists for process in listed):
            if fields := _stat(process):
                ticks[party] += sum(map(int, fields[11:13]))
                ticks["workers" if party == "driver" else party] += sum(map(int, fields[13:15]))
    return {party: count * _TICK_S for party, count in ticks.items()}


def _stat(process: int) -> list[str]:
    """Fields 3 (state) and on of proc_pid_stat(5); 4 is the parent, 14 to 17 are utime, stime, cutime, cstime."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _kib(file: str, name: str) -> int:
    """A line "name:  n kB" of a file in /proc, in bytes; 0 if it is not there."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _peak(process: int) -> int:
    return _kib(f"/proc/{process}/status", "VmHWM")


def _resident(process: int) -> int:
    return _kib(f"/proc/{process}/status", "VmRSS")


def _shared_fairly(process: int) -> int:
    """PSS; RSS where that must not be read."""
    return _kib(f"/proc/{process}/smaps_rollup", "Pss") or _resident(process)


# --- the watching process -------------------------------------------------------------------------


def watch(root: int, services: Collection[int]) -> dict[str, int]:
    """Looks until standard input ends."""
    peaks = dict.fromkeys(("driver_peak", "process_peak", "worker_peak", "workers_peak", "services_peak"), 0)
    besides = (os.getpid(),)
    for lists in groups(root, services, besides).values():
        for process in (process for listed in lists for process in listed):
            with contextlib.suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    over = first = False
    while True:
        start_s = time.process_time()
        _look(root, services, besides, peaks)
        took_s = time.process_time() - start_s
        if not first:
            first = True
            print("watching", flush=True)
        if over:
            return peaks
        over = bool(select.select([sys.stdin], [], [], max(_LEAST_WAIT_S, _WAIT_TIMES * took_s))[0])


def _look(root: int, services: Collection[int], besides: Collection[int], peaks: dict[str, int]) -> None:
    found = groups(root, services, besides)

    def note(name: str, value: int) -> None:
        peaks[name] = max(peaks[name], value)

    note("driver_peak", _peak(root))
    sums = []
    for worker in found["workers"]:
        for process in worker:
            note("process_peak", _peak(process))
        sums.append(sum(map(_shared_fairly, worker)))
        note("worker_peak", sums[-1])
    note("workers_peak", sum(sums))
    for service in found["services"]:
        note("services_peak", sum(map(_shared_fairly, service)))


if __name__ == "__main__":
    print(json.dumps(watch(int(sys.argv[1]), [int(each) for each in sys.argv[2].split(",") if each])))
