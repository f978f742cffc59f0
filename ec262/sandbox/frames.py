"""What passes between parent and child: frames of a fixed header and a body, both ways.

The child is a stranger's: the parent checks every field and evaluates nothing.
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct("!BxxxIIQ")
"""Kind, number of the task in its unit, length of the body, and: bytes the output may have (to the child),
CPU nanoseconds used (from it)."""

SETTINGS, PROGRAM, TASK = 1, 2, 3
"""To the child: limits (JSON), the packed program, a task's framed parts."""

READY, OK, ERROR, LIMIT = 10, 11, 12, 13
"""From the child: all layers are on (no body, once, first); framed result parts; an error (JSON); a limit (JSON), after
which the child ends."""

MAX_ERROR_BYTES: Final = 1 << 18
"""Longest body of an ERROR or LIMIT frame."""

MAX_BODY_BYTES: Final = (1 << 32) - 1

STARTED, EXITED, REFUSED = b"S", b"X", b"F"
"""From the zygote about a child: forked (process id, and its pidfd beside), ended (wait status, largest resident
size in KiB), not forked (errno)."""
REPORT: Final = struct.Struct("!cIQ")
