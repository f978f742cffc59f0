"""Report: what a job does and has cost, and the line that shows it while it runs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from ec262.backends.base import Believed, FailedTask, WorkerTally

NOTHING_YET = Believed()


@dataclass(frozen=True, slots=True)
class Progress:
    """A job at one moment.

    Attributes:
        phase: "starting", "map", "reduce", "writing" or "done", of stage number `stage` of `stages`.
        done, total: tasks of this phase; `total` is None while the input's end is not known.
        running, failed, retried: tasks out at workers; left out; tried again.
        workers: each worker with what it has at hand, has finished, its speed and its credits.
        bytes_in, bytes_out, bytes_spilled: task inputs sent, results received, results put on disk.
        credits_spent: what is settled.
        counters: what the program counted so far.
        seconds_left: of this phase; None while nothing can be said.
        believed: on the network, how workers agreed so far.
    """

    phase: str
    stage: int
    stages: int
    done: int
    total: int | None
    running: int
    failed: int
    retried: int
    workers: tuple[WorkerTally, ...]
    bytes_in: int
    bytes_out: int
    bytes_spilled: int
    credits_spent: int
    counters: dict[str, int]
    elapsed_s: float
    seconds_left: float | None
    believed: Believed = NOTHING_YET


@dataclass(frozen=True, slots=True)
class Report:
    """What a job did and cost, and who earned it.

    Attributes:
        credits_spent: paid to workers, in all.
        earned: credits by worker id.
        dissenters: workers that others outvoted, or whose receipts name other bytes than they delivered. To differ from
            a result that was overturned later is no dissent.
        balance_before, balance_after: what the paying account had, as discovery says. They differ by
            `credits_spent` where the account had no other jobs and nothing is in escrow still.
        counters: what the program counted.
        failed: tasks that failed and were left out (`Policy.on_failure`).
        files: the output's files, in order, if it went to files.
        believed: on the network, how workers agreed, what was computed anew, and which results were junk.
    """

    map_tasks: int
    reduce_tasks: int
    retried: int
    credits_spent: int
    earned: dict[str, int] = field(default_factory=dict)
    dissenters: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    balance_before: int = 0
    balance_after: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    failed: tuple[FailedTask, ...] = ()
    files: tuple[str, ...] = ()
    believed: Believed = NOTHING_YET


log = logging.getLogger("ec262.jobs")

SHOWN_COUNTERS = 3
"""On the terminal's line; the report has all."""

ProgressCallback = Callable[[Progress], None]


class TerminalLine:
    """One line on a terminal, written over and over; silent where there is no terminal."""

    def __init__(self, stream: IO[str] | None = None, *, force: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._on = force or (self._stream is not None and self._stream.isatty())
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Shows `progress`."""
        if self._on:
            text = describe(progress)
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)

    def end(self) -> None:
        """Leaves the line."""
        if self._on and self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone: no reason to lose the job
            self._on = False


def describe(progress: Progress) -> str:
    """The line's text."""
    text = f"stage {progress.stage + 1}/{progress.stages}  " if progress.stages > 1 else ""
    text += progress.phase
    if progress.phase in ("map", "reduce"):
        text += f" {progress.done}/{'?' if progress.total is None else progress.total}"
        if progress.running:
            text += f"  {progress.running} running"
    busy = len(progress.workers)
    if busy:
        text += f"  {busy} worker{'s' * (busy != 1)}"
    if progress.credits_spent:
        text += f"  {progress.credits_spent} credits"
    if progress.retried:
        text += f"  {progress.retried} retried"
    if progress.failed:
        text += f"  {progress.failed} failed"
    believed = progress.believed
    if believed.confidence is not None:
        text += f"  {believed.replicas:.2f} replicas a task"
    if believed.disagreements:
        text += f"  {believed.disagreements} outvoted"
    if believed.recomputed:
        text += f"  {believed.recomputed} computed anew"
    for name, count in list(progress.counters.items())[:SHOWN_COUNTERS]:
        text += f"  {plain(name)} {count}"
    if progress.bytes_out >= 1_000_000:
        text += f"  {size_text(progress.bytes_in)} in, {size_text(progress.bytes_out)} out"
    if progress.phase in ("map", "reduce") and progress.seconds_left is not None:
        text += f"  {duration_text(progress.seconds_left)} left"
    return text


def plain(text: str) -> str:
    """A name from a program for a terminal: on one line, of bearable length, nothing a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text[:40])


def duration_text(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size_text(size: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class Meter:
    """Calls a callback with progress at most so often, and whenever a phase begins or ends."""

    def __init__(self, callback: ProgressCallback | None, every_s: float = 0.2) -> None:
        self._callback = callback
        self._every_s = every_s
        self._last = float("-inf")
        self._phase: tuple[int, str] = (0, "")

    def is_due(self, stage: int, phase: str) -> bool:
        """Whether it would call now: progress need not be put together otherwise."""
        if self._callback is None:
            return False
        return (stage, phase) != self._phase or time.monotonic() - self._last >= self._every_s

    def show(self, progress: Progress) -> None:
        """Calls the callback, if there is one."""
        if self._callback is None:
            return
        self._last, self._phase = time.monotonic(), (progress.stage, progress.phase)
        try:
            self._callback(progress)
        except Exception:
            # A job that is paid for does not fail of a line that nobody can read any more.
            log.exception("the progress callback failed; it is not called again")
            self._callback = None
