"""Figures: numbers, times and curves as people read them. Pure."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence

from discovery.store.pulse import Reading

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def whole(number: float) -> str:
    """A number with thousands set apart by thin spaces: 1 234 567."""
    return f"{number:,.0f}".replace(",", "\u202f")


def rate(number: float) -> str:
    """A rate: with one decimal where it is small."""
    return whole(number) if number >= 10 or number == 0 else f"{number:.1f}"


def size(octets: float) -> str:
    """Bytes, in a unit that leaves a short number."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 100 else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def span(seconds: float) -> str:
    """A length of time, to about two digits."""
    seconds = max(0.0, seconds)
    for length, unit in _UNITS:
        if seconds >= length:
            first, rest = divmod(seconds, length)
            smaller = {"d": (3600, "h"), "h": (60, "min"), "min": (1, "s")}[unit]
            second = int(rest // smaller[0])
            return f"{first:.0f} {unit} {second} {smaller[1]}" if second and first < 10 else f"{first:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """A Unix time, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def rates(history: Sequence[Reading]) -> list[float]:
    """Accepted tasks a second between each reading and the next."""
    found = []
    for before, after in itertools.pairwise(history):
        apart_s = (after.at_ms - before.at_ms) / 1000
        found.append(max(0, after.accepted - before.accepted) / apart_s if apart_s > 0 else 0.0)
    return found


def lately(history: Sequence[Reading], now: Reading, over_ms: int = 15_000) -> float:
    """Accepted tasks a second of the last moments."""
    since = next((each for each in history if now.at_ms - each.at_ms <= over_ms), None)
    if since is None or now.at_ms <= since.at_ms:
        return 0.0
    return max(0, now.accepted - since.accepted) / ((now.at_ms - since.at_ms) / 1000)


def curve(values: Sequence[float], width: int = 600, height: int = 100) -> str:
    """Points of a polyline that fills a box of `width` x `height`; empty where there is nothing to draw."""
    if len(values) < 2:
        return ""
    top = max(*values, 1e-9)
    step = width / (len(values) - 1)
    return " ".join(
        f"{number * step:.1f},{height - 2 - (height - 6) * value / top:.1f}" for number, value in enumerate(values)
    )
