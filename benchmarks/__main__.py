"""``python -m benchmarks``: flags, one fresh process a measurement, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cpu, machine, noop, report, sort1g
from benchmarks.compare import Settings, Workload, apart, compare
from benchmarks.distinct import DISTINCT
from benchmarks.sort import SORT
from benchmarks.wordcount import NAIVE_WORDCOUNT, WORDCOUNT
from ec262.config import core_count
from ec262.errors import EC262Error

EXAMPLES = """\
examples:
  python -m benchmarks                          all but sort1g, a quarter of an hour
  python -m benchmarks --short                  all but sort1g, two to three minutes ('make bench')
  python -m benchmarks --only noop --repeat 9   no-op tasks alone, nine runs each
  python -m benchmarks --only wordcount --way EC262   of word count, the ways with EC262 in their names
  python -m benchmarks --only sort1g            the sort of 1 GB, some minutes, 4 GB of disk in TMPDIR
  python -m benchmarks --json result.json       also as JSON, with the machine's description

exit codes: 0 measured; 1 a measurement failed or a result was wrong; 2 wrong flags; 130 interrupted
Goals are reported, met or missed; a missed one is no failure.
Measure on a machine with nothing else to do: "others' cores" says how much it had.
"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags ask for.

    Attributes:
        repeats: runs of each job; comparisons have 3 rounds at most unless --repeat was given.
        way: ways whose names have this in them.
    """

    short: bool
    repeats: int
    rounds: int
    workers: int
    way: str
    directory: Path


Run = Callable[[Wishes], tuple[str, Any, bool]]
"""Measures; gives text, JSON, and whether something failed."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures EC262 on a network of this machine's own, beside plain Python, multiprocessing and Dask.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--short", action="store_true", help="smaller jobs, fewer runs")
    names = ", ".join(RUNS)
    made.add_argument("--only", choices=list(RUNS), action="append", metavar="NAME", help=f"{names}; repeatable")
    made.add_argument("--way", metavar="TEXT", default="", help="in comparisons, only ways with this in their names")
    made.add_argument("--json", metavar="FILE", type=Path, help="write results there, too ('-': to standard output)")
    made.add_argument(
        "--repeat",
        metavar="N",
        type=_positive,
        help="runs of each job (default: 5, of comparisons 3; --short: 3 and 1)",
    )
    made.add_argument("--workers", metavar="N", type=_positive, help="of comparisons, all ways alike (default: cores)")
    return made


def run_noop(wishes: Wishes) -> tuple[str, Any, bool]:
    """Redundancy 1 and 3."""
    sizes = ((3000, 1), (1500, 3)) if wishes.short else ((10_000, 1), (5000, 3))
    results = [apart(noop.measure, tasks, redundancy, wishes.repeats) for tasks, redundancy in sizes]
    return report.noop_text(results), [asdict(one) for one in results], False


def run_cpu(wishes: Wishes) -> tuple[str, Any, bool]:
    """Tasks of 0.3 s."""
    result = apart(cpu.measure, 20 if wishes.short else 60, min(wishes.repeats, 3))
    return report.cpu_text(result), asdict(result), False


def run_workload(workload: Workload, wishes: Wishes) -> tuple[str, Any, bool]:
    """All ways of a workload."""
    size = workload.short_size if wishes.short else workload.size
    result = compare(workload, Settings(wishes.directory, size, wishes.workers), wishes.rounds, only=wishes.way)
    return report.compared_text(result), asdict(result), any(row.failed for row in result.rows)


def run_sort1g(wishes: Wishes) -> tuple[str, Any, bool]:
    """With and without a memory limit."""
    settings = Settings(wishes.directory, sort1g.SHORT_RECORDS if wishes.short else sort1g.RECORDS, wishes.workers)
    results = [apart(sort1g.measure, settings, limit) for limit in sort1g.LIMITS]
    return report.sorted_text(results), [asdict(one) for one in results], False


RUNS: dict[str, Run] = {
    "noop": run_noop,
    "cpu": run_cpu,
    **{each.name: partial(run_workload, each) for each in (WORDCOUNT, NAIVE_WORDCOUNT, SORT, DISTINCT)},
    "sort1g": run_sort1g,
}
ASKED_FOR = ("sort1g",)
"""Not run unless they are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit code."""
    flags = parser().parse_args(arguments)
    os.environ.pop("EC262_DISCOVERY", None)  # always a network of this machine's own
    with tempfile.TemporaryDirectory(prefix="ec262-benchmarks-") as directory:
        wishes = Wishes(
            short=flags.short,
            repeats=flags.repeat or (3 if flags.short else 5),
            rounds=flags.repeat or (1 if flags.short else 3),
            workers=flags.workers or core_count(),
            way=flags.way,
            directory=Path(directory),
        )
        return _run_all(flags.only or [name for name in RUNS if name not in ASKED_FOR], wishes, flags.json)


def _run_all(names: Sequence[str], wishes: Wishes, target: Path | None) -> int:
    described = machine.describe()
    to_stdout = target is not None and str(target) == "-"
    out = sys.stderr if to_stdout else sys.stdout
    print(report.machine_text(described), file=out, flush=True)
    results: dict[str, Any] = {}
    failed = False
    for name in names:
        try:
            text, results[name], wrong = RUNS[name](wishes)
            failed = failed or wrong
        except (AssertionError, EC262Error, OSError, BrokenProcessPool) as reason:
            failed = True
            text, results[name] = f"{name}: failed: {reason}", {"failed": str(reason)}
        except KeyboardInterrupt:
            return 130
        print(f"\n{text}", file=out, flush=True)
    if target is not None:
        measured = {
            "machine": described,
            "short": wishes.short,
            "repeat": wishes.repeats,
            "rounds": wishes.rounds,
            "results": results,
        }
        document = json.dumps(measured, indent=2)
        if to_stdout:
            print(document)
        else:
            target.write_text(document + "\n", encoding="utf-8")
    return int(failed)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("has to be 1 or more")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
