"""Usage: CPU time and memory of each party of the embedded network, read from /proc (Linux alone)."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import busy_s
from ec262.embedded import EmbeddedNetwork

ROLES = ("foreman", "discovery", "store", "worker parents", "sandbox")
"""Parties, as they are shown. *store* is the Redis server, *sandbox* the zygotes and the children that compute."""

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_SAMPLE_EVERY_S = 0.25


@dataclass(slots=True)
class Usage:
    """What a stretch of time took.

    Attributes:
        wall_s: seconds by the clock.
        cpu_s: CPU seconds by party; empty where it cannot be read.
        others_cores: how many cores other programs of the machine kept busy on average; None: unknown.
        peak_bytes: largest resident set of any one process of a party; only where it was asked for.
    """

    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    others_cores: float | None = None
    peak_bytes: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def metered(network: EmbeddedNetwork, *, memory: bool = False) -> Iterator[Usage]:
    """Measures what happens inside the ``with``; the `Usage` is filled at its end.

    Args:
        memory: also note the peaks of memory, by a look four times a second.
    """
    usage = Usage()
    peaks = _Peaks(network) if memory else None
    cpu, busy, start_s = _cpu_s(network), busy_s(), time.perf_counter()
    yield usage
    usage.wall_s = time.perf_counter() - start_s
    after, busy_after = _cpu_s(network), busy_s()
    if peaks is not None:
        usage.peak_bytes = peaks.close()
    usage.cpu_s = {role: after[role] - cpu[role] for role in after}
    if busy is not None and busy_after is not None and usage.cpu_s:
        usage.others_cores = max(0.0, (busy_after - busy - sum(usage.cpu_s.values())) / usage.wall_s)


def _parties(network: EmbeddedNetwork) -> dict[int, str]:
    """The party of every process of the network, by process id."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))

    def below(process: int) -> Iterator[int]:
        for child in children[process]:
            yield child
            yield from below(child)

    parties = {os.getpid(): "foreman", network.discovery_pid: "discovery"}
    parties.update(dict.fromkeys(below(network.discovery_pid), "store"))
    for process, _ in network.workers:
        parties[process] = "worker parents"
        parties.update(dict.fromkeys(below(process), "sandbox"))
    return parties


def _cpu_s(network: EmbeddedNetwork) -> dict[str, float]:
    """CPU seconds by party. Of sandboxes with the children that ended: those are short-lived."""
    if sys.platform != "linux":
        return {}
    total = dict.fromkeys(ROLES, 0.0)
    for process, role in _parties(network).items():
        if fields := _stat(process):
            total[role] += sum(map(int, fields[11 : 15 if role == "sandbox" else 13])) * _TICK_S
    return total


def _stat(process: int) -> list[str]:
    """Fields 3 (state) and on of proc_pid_stat(5); 4 is the parent, 14 to 17 are utime, stime, cutime, cstime."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


class _Peaks:
    """Watches the peaks of memory in a thread; a sandbox's child is gone with its peak, so it is looked at often."""

    def __init__(self, network: EmbeddedNetwork) -> None:
        self._network = network
        self._peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if sys.platform == "linux":
            for process in _parties(network):
                with contextlib.suppress(OSError):
                    Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
        self._thread.start()

    def close(self) -> dict[str, int]:
        """Stops watching; the peaks in bytes."""
        self._over.set()
        self._thread.join()
        return self._peaks

    def _watch(self) -> None:
        while sys.platform == "linux":
            self._look()
            if self._over.wait(_SAMPLE_EVERY_S):
                self._look()
                return

    def _look(self) -> None:
        for process, role in _parties(self._network).items():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines():
                    if line.startswith("VmHWM:"):
                        self._peaks[role] = max(self._peaks.get(role, 0), int(line.split()[1]) * 1024)
