"""A module that is imported by the module it imports."""

from __future__ import annotations

from typing import Any

from tests.sandbox import sample_helpers


def back(value: Any) -> str:
    """What the other module makes of it."""
    return sample_helpers.whisper(value) + "."
