"""Report: results as tables for people. The ratios are what holds on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.cpu import Cpu
from benchmarks.noop import Noop
from benchmarks.usage import ROLES
from benchmarks.wordcount import WordCount


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


def wordcount_text(results: Sequence[WordCount]) -> str:
    """Times, ratios and memory."""
    first = results[0]
    rows = [
        ("mapper", "network s (best)", "sequential s", "network/sequential", "others' cores"),
        *(
            (
                one.mapper, f"{min(one.network_s):.2f}", f"{one.sequential_s:.2f}", f"{one.ratio:.2f}",
                _cores(one.others_cores),
            )
            for one in results
        ),
    ]  # fmt: skip
    parts = [
        f"Word count of {first.text_bytes / 1e6:.0f} MB ({first.words:,} words, {first.distinct_words:,} distinct, "
        f"{first.items} items), {first.workers} workers; results equal",
        table(rows),
    ]
    if any(one.peak_bytes for one in results):
        header = ("peak RSS MiB (CPU s)", *(one.mapper for one in results))
        memory = [
            (role, *(f"{one.peak_bytes.get(role, 0) / 2**20:.0f} ({one.cpu_s[role]:.2f})" for one in results))
            for role in ROLES
        ]
        parts.append(table([header, *memory]))
    return "\n\n".join(parts)


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
