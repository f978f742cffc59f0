"""Descriptors that hold something alive, and that a forked child must not keep.

A child that is forked and never execs (multiprocessing, a zygote) would inherit lifeline and lock, and keep the server
alive after its own parent died. Closing them in the child is the only cure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

_owned: set[int] = set()
_fork_hook_set = False


def guard_against_fork() -> None:
    """Sees to it, once a process and not at import, that forked children drop what is owned here."""
    global _fork_hook_set
    if not _fork_hook_set:
        os.register_at_fork(after_in_child=_drop)
        _fork_hook_set = True


def own(descriptor: int) -> int:
    """Moves a descriptor above the standard ones (a daemon may have 0-2 closed) and takes charge of it.

    Args:
        descriptor: any open file descriptor; it is closed.
    Returns:
        Its duplicate, at least 10, close-on-exec.
    """
    duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    _owned.add(duplicate)
    return duplicate


def release(descriptor: int) -> None:
    """Closes what `own` gave; nothing in a forked child, where the number may be somebody else's by now."""
    if descriptor in _owned:
        _owned.discard(descriptor)
        os.close(descriptor)


def _drop() -> None:
    while _owned:
        with contextlib.suppress(OSError):
            os.close(_owned.pop())
