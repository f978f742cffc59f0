"""Report: results as tables for people. The ratios are what holds on other machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.compare import Compared, Row
from benchmarks.cpu import Cpu
from benchmarks.noop import Noop
from benchmarks.sort1g import FOREMAN_GOAL, WORKER_GOAL, Sorted
from benchmarks.tree import PARTIES
from benchmarks.usage import ROLES
from tests.gensort import RECORD


def machine_text(machine: dict[str, Any]) -> str:
    """The machine in a few lines."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return "\n".join(
        (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.1f} GiB",
            f"{machine['system']}, {machine['python']}, commit {machine['commit'] or 'unknown'}",
            packages,
            f"a million empty loops: {machine['reference_loop_ms']} ms; "
            f"load average before: {' '.join(map(str, machine['load_average']))}",
        )
    )


def noop_text(results: Sequence[Noop]) -> str:
    """Throughput, and where the CPU time goes."""
    rates = [
        ("redundancy", "tasks", "runs", "tasks/s median", "best", "answers/task", "others' cores"),
        *(
            (
                str(one.redundancy), f"{one.tasks:,}", str(len(one.tasks_per_s)), f"{one.median_per_s:,.0f}",
                f"{one.best_per_s:,.0f}", f"{one.replicas:.2f}", _cores(one.others_cores),
            )
            for one in results
        ),
    ]  # fmt: skip
    title = f"No-op tasks end to end, {results[0].workers} workers"
    text = f"{title}\n\n{table(rates)}"
    measured = [one for one in results if one.total_cpu_us]
    if measured:
        header = ("CPU us/task", *(f"redundancy {one.redundancy}" for one in measured))
        rows = [
            (role, *(f"{one.cpu_us[role]:.0f} ({one.cpu_us[role] / (one.total_cpu_us or 1):.0%})" for one in measured))
            for role in ROLES
        ]
        text += f"\n\n{table([header, *rows, ('all', *(f'{one.total_cpu_us:.0f}' for one in measured))])}"
    return text


def cpu_text(result: Cpu) -> str:
    """Efficiency and what it is to be compared with."""
    rows = [
        (f"{result.tasks} tasks of {result.task_s:.3f} s on {result.cores} cores", "s, each run", "efficiency"),
        ("sequentially (CPU time)", _seconds(result.sequential_s), ""),
        (f"network, {result.workers} workers", _seconds(result.network_s), f"{result.efficiency:.1%}"),
        (f"process pool of {result.cores}", _seconds(result.pool_s), f"{result.pool_efficiency:.1%}"),
        ("network / pool", "", f"{result.relative:.3f}"),
    ]
    if result.sandbox_cpu is not None:
        rows.append(("CPU in the sandboxes / sequential", "", f"{result.sandbox_cpu:.3f}"))
    rows.append(("others' cores", "", _cores(result.others_cores)))
    return f"CPU-bound tasks\n\n{table(rows)}"


def compared_text(result: Compared) -> str:
    """Every way of a workload, then the goals."""
    rows = [
        (
            f"{result.workers} workers", "wall s", "each round", "CPU s", "driver + workers + services",
            "driver MB", "before", "worker process MB",
            "worker tree MB", "services MB", "start s", "others' cores",
        ),
        *(_way(row) for row in result.rows if row.taken),
    ]  # fmt: skip
    lines = [f"{result.name}: {result.title}; size {result.size:,}; {result.rounds} rounds; results equal", ""]
    if len(rows) > 1:
        lines.append(table(rows))
    lines += [f"{row.way}: failed: {row.failed}" for row in result.rows if row.failed]
    for ratio in result.ratios:
        met = "met" if ratio.median <= ratio.limit else "MISSED"
        goal = f"goal {ratio.limit}: {met}" if result.whole else f"goal, of the whole size: {ratio.limit}"
        lines.append(f"{ratio.way} / {ratio.others}: {ratio.median:.2f} ({_seconds(ratio.each)}); {goal}")
    return "\n".join(lines)


def _way(row: Row) -> tuple[str, ...]:
    """CPU and start-up: medians; memory: the most of all rounds."""
    taken = row.taken
    return (
        row.way,
        f"{row.wall_s:.2f}",
        _seconds([one.wall_s for one in taken]),
        f"{median(one.cpu_s for one in taken):.2f}",
        " + ".join(f"{median(one.cpu_by.get(party, 0) for one in taken):.2f}" for party in PARTIES),
        _mb(max(one.driver_peak for one in taken)),
        _mb(max(one.driver_before for one in taken)),
        _mb(max(one.process_peak for one in taken)),
        _mb(max(one.worker_peak for one in taken)),
        _mb(max(one.services_peak for one in taken)),
        f"{median(row.start_s):.1f}",
        _cores(max((one.others_cores for one in taken if one.others_cores is not None), default=None)),
    )


def sorted_text(results: Sequence[Sorted]) -> str:
    """Sorts of 1 GB."""
    first = results[0]
    header = ("memory_limit", *("none" if one.memory_limit is None else _mb(one.memory_limit) for one in results))
    lines: list[tuple[str, Callable[[Sorted], str]]] = [
        ("wall s", lambda one: f"{one.taken.wall_s:.1f}"),
        ("CPU s, all", lambda one: f"{one.taken.cpu_s:.1f}"),
        *((f"CPU s, {party}", lambda one, party=party: f"{one.taken.cpu_by.get(party, 0):.1f}") for party in PARTIES),
        ("foreman, peak RSS MB", lambda one: _mb(one.taken.driver_peak)),
        ("worker, largest process, peak RSS MB", lambda one: _mb(one.taken.process_peak)),
        ("worker, whole tree, peak PSS MB", lambda one: _mb(one.taken.worker_peak)),
        ("services, peak PSS MB", lambda one: _mb(one.taken.services_peak)),
        ("spilled MB", lambda one: _mb(one.bytes_spilled)),
        ("sent MB", lambda one: _mb(one.bytes_in)),
        ("files", lambda one: str(one.files)),
        ("others' cores", lambda one: _cores(one.taken.others_cores)),
    ]
    rows = [header, *((name, *(show(one) for one in results)) for name, show in lines)]
    text = [
        f"sort of {first.records * RECORD / 1e6:,.0f} MB, {first.workers} workers; output in order and whole (valsort)",
        "",
        table(rows),
    ]
    limited = [one for one in results if one.memory_limit is not None]
    for one in limited:
        text.append(_goal("foreman", one.taken.driver_peak, FOREMAN_GOAL))
        text.append(_goal("worker, largest process", one.taken.process_peak, WORKER_GOAL))
        text.append(_goal("worker, whole tree", one.taken.worker_peak, WORKER_GOAL))
    return "\n".join(text)


def _goal(what: str, size: int, limit: int) -> str:
    return f"{what}: {_mb(size)} MB; goal {_mb(limit)}: {'met' if size < limit else 'MISSED'}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns: the first to the left, others to the right, a rule below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join((row[0].ljust(widths[0]), *cells[1:])).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _seconds(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _cores(cores: float | None) -> str:
    return "?" if cores is None else f"{cores:.2f}"
