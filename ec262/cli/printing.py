"""Printing what strangers named: nothing that a terminal would act on."""

from __future__ import annotations

import sys


def plain(text: str, most: int = 32) -> str:
    """A text from outside on one line of at most `most` characters; what is not printable becomes a question mark."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def say(text: str) -> None:
    """Prints also where the terminal does not know every character of a name."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
