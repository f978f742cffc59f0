"""Report: what a job did and cost, and the line that shows it while it runs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO


@dataclass(frozen=True, slots=True)
class Progress:
    """A job at one moment. Credits count what is settled; `seconds_left` is None while nothing can be said."""

    phase: str
    map_done: int
    map_total: int
    reduce_done: int
    reduce_total: int
    workers: int
    retried: int
    credits_spent: int
    elapsed_s: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a job cost and who earned it.

    Attributes:
        credits_spent: paid to workers, in all.
        earned: credits by worker id.
        dissenters: workers whose results others outvoted.
        balance_before, balance_after: what the paying account had, as discovery says. They differ by
            `credits_spent` where the account had no other jobs and nothing is in escrow still.
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


log = logging.getLogger("ec262.foreman")

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
    text = f"map {progress.map_done}/{progress.map_total}"
    if progress.reduce_total:
        text += f"  reduce {progress.reduce_done}/{progress.reduce_total}"
    text += f"  {progress.workers} worker{'s' * (progress.workers != 1)}  {progress.credits_spent} credits"
    if progress.retried:
        text += f"  {progress.retried} retried"
    if progress.phase in ("starting", "done"):
        return f"{text}  {progress.phase}"
    if progress.seconds_left is not None:
        text += f"  {_duration(progress.seconds_left)} left"
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Meter:
    """Calls a callback with progress at most so often, and whenever a phase begins or ends."""

    def __init__(self, callback: ProgressCallback | None, every_s: float = 0.2) -> None:
        self._callback = callback
        self._every_s = every_s
        self._last = float("-inf")
        self._phase = ""

    def show(self, progress: Progress) -> None:
        """Maybe calls the callback."""
        if self._callback is None:
            return
        now = time.monotonic()
        if progress.phase != self._phase or now - self._last >= self._every_s:
            self._last, self._phase = now, progress.phase
            try:
                self._callback(progress)
            except Exception:
                # A job that is paid for does not fail of a line that nobody can read any more.
                log.exception("the progress callback failed; it is not called again")
                self._callback = None
