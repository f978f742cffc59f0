"""Terms: when this worker works, by what its volunteer prefers and what the sensors say. No I/O, no clock.

Preferences and readings in, a decision out, with a reason for each preference that stands in the way. What a sensor
does not know stands in nobody's way: a machine without a battery is on mains.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ec262.config import WorkerSettings
from ec262.errors import SetupError
from ec262.protocol.messages import WorkerTerms

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?@)?(\d\d):(\d\d)-(\d\d):(\d\d)")
_MINUTES_A_DAY = 24 * 60
_SHARE_HELD = 8
"""So much of its memory a worker keeps at most for inputs and results that wait: one part in so many."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What the machine is like at a moment.

    Attributes:
        minute: of the day, local time; `weekday` is 0 on Mondays.
        on_mains: None: there is no battery, or nobody knows.
        others_load: share of the machine's processors that others than EC262's workers used lately, 0 to 1; None: not
            known.
        untouched_s: since a terminal was last typed at; None: not known.
    """

    minute: int = 0
    weekday: int = 0
    on_mains: bool | None = None
    others_load: float | None = None
    untouched_s: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Hours in which to work, on some days. One that ends before it begins ends on the day after."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, weekday: int, minute: int) -> bool:
        """Whether a minute of a day is in it."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Pause:
    """The volunteer said: not now.

    Attributes:
        until_s: seconds since the epoch; None: until told otherwise.
    """

    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to work now, and with how many slots; `reasons` why not."""

    slots: int
    reasons: tuple[str, ...] = ()

    @property
    def willing(self) -> bool:
        """Whether leases are wanted."""
        return self.slots > 0


def read_hours(texts: Sequence[str]) -> tuple[Span, ...]:
    """Spans from texts such as ``22:00-07:00``, ``mon-fri@18:00-08:00`` and ``sun@00:00-24:00``.

    Raises:
        SetupError: one that is not of this form.
    """
    return tuple(_read_span(text) for text in texts)


def _read_span(text: str) -> Span:
    found = _SPAN.fullmatch(text.strip().lower())
    wrong = SetupError(f"hours {text!r}: they look like 22:00-07:00, or mon-fri@18:00-08:00, or sun@00:00-24:00")
    if found is None:
        raise wrong
    first, last, *numbers = found.groups()
    hour, minute, end_hour, end_minute = map(int, numbers)
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    known = {first or "mon", last or "mon"} <= set(_DAYS)
    if not known or minute > 59 or end_minute > 59 or start >= _MINUTES_A_DAY or end > _MINUTES_A_DAY or start == end:
        raise wrong
    if first is None:
        return Span(frozenset(range(7)), start, end)
    begin = _DAYS.index(first)
    count = (_DAYS.index(last or first) - begin) % 7 + 1
    return Span(frozenset((begin + day) % 7 for day in range(count)), start, end)


def last_use(settings: WorkerSettings, readings: Readings, now_s: float, before_s: float) -> float:
    """When somebody else last used the machine, as far as is known.

    Args:
        now_s: any clock that does not jump; `before_s`: by it, what this said the last time.
    """
    if readings.others_load is not None and readings.others_load > settings.idle_load:
        return now_s
    if readings.untouched_s is not None:
        return max(before_s, now_s - readings.untouched_s)
    return before_s


def decide(
    settings: WorkerSettings,
    spans: Sequence[Span],
    readings: Readings,
    *,
    pause: Pause | None,
    unused_s: float,
    leaving: bool = False,
) -> Decision:
    """Whether to work now.

    Args:
        spans: `settings.hours`, read.
        pause: what the volunteer said.
        unused_s: how long nobody else has used the machine.
        leaving: the worker is on its way out.
    """
    reasons = []
    if leaving:
        reasons.append("leaving")
    if pause is not None:
        reasons.append("paused by its owner")
    if settings.only_on_mains and readings.on_mains is False:
        reasons.append("on battery")
    if spans and not any(span.holds(readings.weekday, readings.minute) for span in spans):
        reasons.append(f"outside its hours ({', '.join(settings.hours)})")
    if settings.only_idle and unused_s < settings.idle_after_s:
        reasons.append(f"the machine is in use (it has to be idle for {settings.idle_after_s:g} s)")
    return Decision(0 if reasons else settings.slots, tuple(reasons))


def fit_memory(settings: WorkerSettings, slot_bytes: int) -> WorkerSettings:
    """Settings whose slots, inputs, results and programs together stay within `memory_bytes`.

    A task's own limit stays as it is: it is everywhere the same, for going over it is an answer that is voted on.

    Args:
        slot_bytes: what a task may use.

    Raises:
        SetupError: there is no room for a single slot.
    """
    memory = settings.memory_bytes
    if not memory:
        return settings
    held = min(settings.held_bytes, memory // _SHARE_HELD)
    programs = min(settings.program_bytes, memory // (2 * _SHARE_HELD))
    slots = min(settings.slots, (memory - held - programs) // slot_bytes)
    if slots < 1:
        least = math.ceil(100 * slot_bytes * 2 * _SHARE_HELD / (2 * _SHARE_HELD - 3) / 2**30) / 100
        raise SetupError(
            f"memory of {memory / 2**30:.2f} GiB is too little for a single task: they may use up to "
            f"{slot_bytes / 2**30:.2f} GiB, and what waits needs some; give it {least:.2f} GiB or more"
        )
    return replace(settings, slots=slots, held_bytes=held, program_bytes=programs)


def registered_terms(settings: WorkerSettings) -> WorkerTerms:
    """What discovery is told, so that other tasks are leased to others."""
    return WorkerTerms(
        max_task_cpu_s=settings.max_task_cpu_s,
        allow_accounts=list(settings.allow_accounts),
        deny_accounts=list(settings.deny_accounts),
        allow_jobs=list(settings.allow_jobs),
        deny_jobs=list(settings.deny_jobs),
    )
