"""What the sandbox costs: start, fork, round trips, tasks a second, and CPU-bound work against plain Python.

    python -m benchmarks.sandbox [--short] [--json FILE]

Prints a table and JSON. Timings of a shared machine are noisy: medians are shown, and ratios are what to trust.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ec262.mapreduce.program import Program, map_header
from ec262.protocol.canonical import encode_pairs
from ec262.protocol.framing import frame_parts
from ec262.sandbox.frames import HEADER, PROGRAM, SETTINGS, TASK
from ec262.sandbox.launcher import Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import Limits
from ec262.sandbox.zygote import Child

NO_OP_PARTS = [map_header("bench", index=0, partitions=1), encode_pairs([])]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ECHO = "benchmarks.sandbox:echo"


def echo(program: Program, parts: list[bytes]) -> list[bytes]:
    """An executor that does nothing, for the raw cost of a task."""
    return [b""]


def nothing(key: Any, value: Any) -> list[Any]:
    """A mapper that maps nothing."""
    return []


def spin(key: Any, value: Any) -> list[Any]:
    """About 0.2 s of interpreter work: integers, strings, dictionaries, calls."""
    counts: dict[str, int] = {}
    state = 1
    for _ in range(value):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        word = str(state % 1000)
        counts[word] = counts.get(word, 0) + len(word)
    return [(key, sum(counts.values()))]


def median_ms(times: int, action: Callable[[], float]) -> float:
    """Median of several measurements, in milliseconds."""
    return statistics.median(action() for _ in range(times)) * 1000


def start_once() -> float:
    """Seconds until a zygote has said hello."""
    begun = time.perf_counter()
    sandbox = Sandbox()
    sandbox.start()
    took = time.perf_counter() - begun
    sandbox.close()
    return took


class Line:
    """A bare conversation with one child, to time its steps."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.child: Child = sandbox.acquire()
        os.set_blocking(self.child.tasks, True)
        os.set_blocking(self.child.results, True)
        limits = Limits()
        settings = {
            "memory_bytes": limits.memory_bytes,
            "unit_cpu_s": limits.unit_cpu_s,
            "base_bytes": sandbox.start().base_bytes,
        }
        self.send(SETTINGS, json.dumps(settings).encode())
        self.receive()

    def send(self, kind: int, body: bytes, number: int = 0) -> None:
        """One frame to the child."""
        os.write(self.child.tasks, HEADER.pack(kind, number, len(body), 1 << 20) + body)

    def receive(self) -> bytes:
        """What comes next, a whole small frame."""
        return os.read(self.child.results, 1 << 16)


def ready_once(sandbox: Sandbox) -> float:
    """Seconds from asking for a child until all its layers are on."""
    begun = time.perf_counter()
    line = Line(sandbox)
    took = time.perf_counter() - begun
    line.child.discard()
    time.sleep(0.005)  # until it is buried: that is not what is measured
    return took


def round_trip_us(sandbox: Sandbox, blob: bytes, times: int) -> float:
    """Microseconds from one task to its result in a warm child."""
    line = Line(sandbox)
    line.send(PROGRAM, blob)
    body = frame_parts([b"x"])
    took = []
    for number in range(times):
        begun = time.perf_counter()
        line.send(TASK, body, number)
        line.receive()
        took.append(time.perf_counter() - begun)
    line.child.discard()
    return statistics.median(took) * 1e6


def rate(sandbox: Sandbox, blob: bytes, unit: int, total: int, parts: list[bytes]) -> tuple[float, float]:
    """Tasks a second and the parent's CPU microseconds a task, in units of `unit` tasks."""
    done = 0

    def on_outcome(_: Any, outcome: Any) -> None:
        nonlocal done
        assert outcome.kind == "ok", outcome.error
        done += 1

    gc.collect()
    begun, cpu = time.perf_counter(), time.process_time()
    while done < total:
        tasks = [UnitTask(n, parts) for n in range(unit)]
        sandbox.run_unit(blob, lambda tasks=tasks: tasks.pop() if tasks else None, on_outcome)  # type: ignore[misc]
    return done / (time.perf_counter() - begun), (time.process_time() - cpu) / done * 1e6


def slow_down(starts: int, steps: int) -> float:
    """CPU time of the same work in the sandbox and in plain Python.

    Where memory happens to lie makes a process up to 8 % faster or slower for as long as it lives, sandbox or not: so
    the median over several fresh processes of each kind, and of each the least of five runs.
    """
    blob = pack_program(Program(spin))
    parts = [map_header("bench", index=0, partitions=1), encode_pairs([(1, steps)])]
    native: list[float] = []
    inside: list[float] = []
    for _ in range(starts):
        command = [sys.executable, "-m", "benchmarks.sandbox", "--native", str(steps)]
        native.append(float(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout))
        runs: list[float] = []
        tasks = [UnitTask(0, parts) for _ in range(5)]
        with Sandbox() as sandbox:
            sandbox.run_unit(
                blob,
                lambda tasks=tasks: tasks.pop() if tasks else None,  # type: ignore[misc]
                lambda _, outcome, runs=runs: runs.append(outcome.cpu_s),  # type: ignore[misc]
            )
        inside.append(min(runs))
    return statistics.median(inside) / statistics.median(native)


def run_natively(steps: int) -> float:
    """Least CPU seconds of five runs in this process."""
    took = []
    for _ in range(5):
        begun = time.thread_time()
        spin(1, steps)
        took.append(time.thread_time() - begun)
    return min(took)


def measure(*, short: bool) -> dict[str, Any]:
    """Every figure, by name."""
    scale = 1 if short else 4
    blob = pack_program(Program(nothing))
    figures: dict[str, Any] = {"zygote start, ms": round(median_ms(3 * scale, start_once), 1)}
    with Sandbox(slots=0, executor=ECHO, import_paths=[ROOT]) as sandbox:
        figures["fork to ready, ms"] = round(median_ms(25 * scale, lambda: ready_once(sandbox)), 2)
        figures["warm round trip, us"] = round(round_trip_us(sandbox, blob, 500 * scale), 1)
    with Sandbox(slots=1, executor=ECHO, import_paths=[ROOT]) as sandbox:
        for unit, total in ((1, 100), (100, 4000), (1000, 8000)):
            rates = [rate(sandbox, blob, unit, total, [b"x"]) for _ in range(3 if short else 5)]
            figures[f"raw tasks/s, units of {unit}"] = round(statistics.median(tasks for tasks, _ in rates))
            if unit == 1000:
                figures["parent CPU a task, us"] = round(statistics.median(cpu for _, cpu in rates), 1)
    with Sandbox() as sandbox:
        rates = [rate(sandbox, blob, 1000, 4000, NO_OP_PARTS) for _ in range(3)]
        figures["whole no-op map tasks/s, units of 1000"] = round(statistics.median(tasks for tasks, _ in rates))
        grants = sandbox.start()
    figures["CPU-bound, times native"] = round(slow_down(4 * scale, 150_000), 3)
    figures["layers"] = {
        "seccomp": grants.seccomp,
        "namespaces": len(grants.namespaces),
        "landlock": grants.landlock,
        "user": grants.uid,
    }
    figures["machine"] = {
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the sandbox costs.")
    parser.add_argument("--short", action="store_true", help="fewer repetitions, about 5 s")
    parser.add_argument("--json", help="write the figures there too")
    parser.add_argument("--native", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.native:
        print(run_natively(arguments.native))
        return
    figures = measure(short=arguments.short)
    for name, value in figures.items():
        print(f"{name:42s} {value}")
    text = json.dumps(figures)
    print(text)
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
