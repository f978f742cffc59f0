"""Plots: wrong results against replicas, a point for each policy. Needs matplotlib, which is loaded when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discovery.simulation.report import Summary

LEAST = 1e-3
"""Percent: where a policy without wrong results is drawn, for a logarithm has no zero."""


def plot(summaries: Sequence[Summary], path: Path, title: str) -> None:
    """Writes a picture; its form follows from the path's suffix.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a form that it does not know.
        OSError: the file cannot be written.
    """
    import matplotlib  # noqa: PLC0415 - large, and rarely wanted

    matplotlib.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of how to draw

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    for each in summaries:
        at_first, left = (max(100 * share, LEAST) for share in (each.wrong_first, each.wrong))
        axes.plot([each.replicas] * 2, [at_first, left], color="0.7", linewidth=1, zorder=1)
        axes.scatter([each.replicas], [at_first], facecolors="none", edgecolors="tab:red", zorder=2)
        axes.scatter([each.replicas], [left], color="tab:blue", zorder=3)
        axes.annotate(each.policy, (each.replicas, left), xytext=(6, 4), textcoords="offset points")
    axes.scatter([], [], facecolors="none", edgecolors="tab:red", label="accepted at first")
    axes.scatter([], [], color="tab:blue", label="left when the job is closed")
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST / 2)
    axes.set_xlim(left=1.0)
    axes.set_xlabel("replicas a task")
    axes.set_ylabel(f"wrong results, % (none: at {LEAST})")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
