"""``python -m benchmarks``: flags, one fresh process a measurement, tables and JSON."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import cpu, machine, noop, report, wordcount
from ec262.errors import EC262Error

T = TypeVar("T")

EXAMPLES = """\
examples:
  python -m benchmarks                          everything, some minutes
  python -m benchmarks --short                  everything, a minute or so ('make bench')
  python -m benchmarks --only noop --repeat 9   no-op tasks alone, nine runs each
  python -m benchmarks --json result.json       also as JSON, with the machine's description
  EC262_WORKERS=2 python -m benchmarks          with two workers instead of three

exit codes: 0 measured; 1 a measurement failed or a result was wrong; 2 wrong flags; 130 interrupted
Measure on a machine with nothing else to do: "others' cores" says how much it had.
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures a network of this machine's own: no-op tasks, word count, CPU-bound tasks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--short", action="store_true", help="smaller jobs, fewer runs")
    names = ", ".join(RUNS)
    made.add_argument("--only", choices=list(RUNS), action="append", metavar="NAME", help=f"{names}; repeatable")
    made.add_argument("--json", metavar="FILE", type=Path, help="write results there, too ('-': to standard output)")
    made.add_argument("--repeat", metavar="N", type=_positive, help="runs of each job (default: 5, 3 with --short)")
    return made


def run_noop(short: bool, repeats: int) -> tuple[str, Any]:
    """Redundancy 1 and 3."""
    sizes = ((3000, 1), (1500, 3)) if short else ((10_000, 1), (5000, 3))
    results = [_apart(noop.measure, tasks, redundancy, repeats) for tasks, redundancy in sizes]
    return report.noop_text(results), [asdict(one) for one in results]


def run_wordcount(short: bool, repeats: int) -> tuple[str, Any]:
    """Both mappers."""
    size = 10_000_000 if short else 100_000_000
    results = [_apart(wordcount.measure, name, size, min(repeats, 3)) for name in wordcount.MAPPERS]
    return report.wordcount_text(results), [asdict(one) for one in results]


def run_cpu(short: bool, repeats: int) -> tuple[str, Any]:
    """Tasks of 0.3 s."""
    result = _apart(cpu.measure, 20 if short else 60, min(repeats, 3))
    return report.cpu_text(result), asdict(result)


RUNS: dict[str, Callable[[bool, int], tuple[str, Any]]] = {
    "noop": run_noop,
    "wordcount": run_wordcount,
    "cpu": run_cpu,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit code."""
    flags = parser().parse_args(arguments)
    os.environ.pop("EC262_DISCOVERY", None)  # always a network of this machine's own
    repeats = flags.repeat or (3 if flags.short else 5)
    described = machine.describe()
    to_stdout = flags.json is not None and str(flags.json) == "-"
    out = sys.stderr if to_stdout else sys.stdout
    print(report.machine_text(described), file=out)
    results: dict[str, Any] = {}
    failed = False
    for name in flags.only or RUNS:
        try:
            text, results[name] = RUNS[name](flags.short, repeats)
        except (AssertionError, EC262Error, OSError, BrokenProcessPool) as reason:
            failed = True
            text, results[name] = f"{name}: failed: {reason}", {"failed": str(reason)}
        except KeyboardInterrupt:
            return 130
        print(f"\n{text}", file=out, flush=True)
    if flags.json is not None:
        measured = {"machine": described, "short": flags.short, "repeat": repeats, "results": results}
        document = json.dumps(measured, indent=2)
        if to_stdout:
            print(document)
        else:
            flags.json.write_text(document + "\n", encoding="utf-8")
    return int(failed)


def _apart(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a fresh process: its memory and its network are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("has to be 1 or more")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
