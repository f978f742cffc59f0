"""A second module of the user's own, with things in it that cannot travel and need not."""

from __future__ import annotations

import os
import threading
from typing import Any

from tests.sandbox import sample_circle

LEVEL = 11
LOCK = threading.Lock()
HOME = os.sep


def whisper(value: Any) -> str:
    return _small(value)


def _small(value: Any) -> str:
    return str(value).lower()


def shout(value: Any) -> str:
    return str(value).upper() + "!" * (LEVEL - 10)


def around(value: Any) -> str:
    """By way of a module that imports this one."""
    return sample_circle.back(value)
