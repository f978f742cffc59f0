"""Turns: jobs take turns on a slot, whatever comes at which moment."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from ec262.worker.runner import _Unit


@pytest.mark.parametrize("others", [0, 1])
def test_a_unit_whose_turn_is_over_waits_for_no_task_that_it_would_not_get(others: int) -> None:
    """A task came for the job at the moment at which its turn ended, with another job waiting: the unit asked for tasks
    for ever, and the worker did nothing else any more, not even leave."""
    task = SimpleNamespace(ticket=SimpleNamespace(cpu_limit_s=1.0))
    job: Any = SimpleNamespace(job_id="ab" * 16, poll_key=b"k", queue=deque([task]))
    holdings = SimpleNamespace(
        jobs={(job.job_id, job.poll_key): job}, ready=[job, *["another"] * others], has_room=True
    )
    runner: Any = SimpleNamespace(_holdings=holdings, _settings=SimpleNamespace(unit_s=0.0, unit_idle_s=0.0))
    unit = _Unit.__new__(_Unit)
    unit._runner, unit._job, unit._over, unit._first = runner, job, False, None
    unit._until_s = unit._cpu_s = unit._allowed_s = 0.0
    assert unit._wait_for_more() is (not others)
    if others:
        assert unit._next_task() is None
