"""Failed tasks of other processes as errors of the job; and what programs for one's own processes may import."""

from __future__ import annotations

import json
import sys

from ec262.errors import LimitExceeded, TaskFailed

DIED = "ProcessDied"
"""`TaskFailed.error_type` of a task that took its process along."""


def everything_here() -> frozenset[str]:
    """Modules that a program for one's own processes may import: whatever it has imported here is there as well."""
    return frozenset(name.partition(".")[0] for name in list(sys.modules)) | sys.stdlib_module_names


def program_failed(label: str, facts: bytes) -> TaskFailed:
    """The error of a task whose program raised.

    Args:
        label: the task, for a person.
        facts: what `ec262.sandbox.child.explain` wrote in another process of the user's own.
    """
    said: dict[str, str] = json.loads(facts)
    return task_failed(label, said["type"], said["message"], said["traceback"])


def task_failed(label: str, error_type: str, message: str, frames: str = "", *, limit: bool = False) -> TaskFailed:
    """The error of a failed task, as all backends word it."""
    text = f"{label}: {error_type}: {message}"
    if frames:
        text += f"\n\nOn the worker:\n{frames}"
    return (LimitExceeded if limit else TaskFailed)(text, error_type=error_type, remote_traceback=frames)


def task_died(label: str, how: str, times: int) -> TaskFailed:
    """The error of a task whose process did not survive it.

    Args:
        how: the process's end, such as ``"ended with exit code 3"``.
        times: so many processes.
    """
    often = "" if times == 1 else f" ({times} times)"
    return TaskFailed(f"{label}: {DIED}: the process that computed it {how}{often}", error_type=DIED)


def task_too_long(label: str, timeout_s: float, times: int) -> LimitExceeded:
    """The error of a task that was ended because it took longer than the policy says."""
    often = "" if times == 1 else f" ({times} times)"
    text = f"{label}: LimitExceeded: took longer than timeout_s={timeout_s:g} s{often}"
    return LimitExceeded(text, error_type="LimitExceeded")
