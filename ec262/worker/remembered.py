"""Remembered: what a worker knows again after a restart: that its owner paused it, and what it had earned by when."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from ec262.worker.terms import Pause

log = logging.getLogger("ec262.worker")

_MOST_BYTES = 64 * 1024


class Remembered:
    """One worker's file, replaced whole.

    Args:
        path: None: nothing outlasts this start, as of a worker without a port of its own.

    Attributes:
        pause: what the owner said last; None: work.
        earned: in all, as discovery last said; `earned_today` of it since midnight, local time.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        content = self._read()
        pause, until_s = content.get("paused") is True, content.get("paused_until_s")
        self.pause = Pause(until_s if isinstance(until_s, int | float) else None) if pause else None
        self._day = str(content.get("day", ""))
        earned, before = content.get("earned"), content.get("earned_before")
        self.earned = earned if isinstance(earned, int) else -1
        self._before = before if isinstance(before, int) else 0

    @property
    def earned_today(self) -> int:
        """Since midnight, or since the first start of the day."""
        return max(0, self.earned - self._before)

    def set_pause(self, pause: Pause | None) -> None:
        """The owner said something else."""
        self.pause = pause
        self._write()

    def note_earned(self, in_all: int, day: str) -> None:
        """Discovery said what this worker has earned in all. (Less than before: discovery was started anew.)

        Args:
            day: today, in any spelling that is the same all day long.
        """
        if in_all == self.earned and day == self._day:
            return
        if self.earned < 0 or in_all < self.earned:
            self._before = in_all
        elif day != self._day:
            self._before = self.earned
        self._day, self.earned = day, in_all
        self._write()

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                content = json.loads(file.read(_MOST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as reason:
            log.warning("%s is not used: %s", self._path, reason)
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self) -> None:
        if self._path is None:
            return
        content: dict[str, Any] = {"day": self._day, "earned": self.earned, "earned_before": self._before}
        if self.pause is not None:
            content |= {"paused": True, "paused_until_s": self.pause.until_s}
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=".worker-", dir=self._path.parent)  # made 0600
            with open(descriptor, "w", encoding="ascii") as file:
                json.dump(content, file)
            os.replace(temporary, self._path)
        except OSError as reason:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            log.warning("%s cannot be written: %s", self._path, reason.strerror)
