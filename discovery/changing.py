"""Changing tasks: they are loaded, the rules work on them, it is committed; and anew when others were faster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from discovery.changes import Changes, Terms
from discovery.records import TaskRecord
from discovery.store.answers import Conflict
from discovery.store.store import Store
from discovery.tasks import next_due

log = logging.getLogger("ec262.discovery.changing")

ATTEMPTS = 8
"""How often a decision is made anew when others were faster, before the caller is asked to try again."""
BATCH = 500
"""Tasks that are changed in one step where there may be many."""

Change = Callable[[dict[str, TaskRecord], int, Changes], object]
"""Works on records, at a time by Redis' clock in ms."""
Fingerprints = dict[str, tuple[object, ...]]


def change(
    store: Store, terms: Terms, task_ids: Sequence[str], work: Change, *, always: bool = False
) -> Changes | None:
    """Loads tasks, lets `work` change them, commits.

    Args:
        always: commit all of them, for when they next need attention may have changed.

    Returns:
        What was committed; None: nothing, for others were faster each time.
    """
    if not task_ids:
        return Changes()
    for _ in range(ATTEMPTS):
        now_ms, records = store.load(task_ids)
        before = {} if always else fingerprints(records)
        changes = Changes()
        work(records, now_ms, changes)
        note_changed(records, before, terms, changes)
        try:
            if changes.tasks:
                store.commit(changes, now_ms, terms)
            return changes
        except Conflict:
            continue
    log.warning("tasks changed too often to be changed here: %d tasks", len(task_ids))
    return None


def note_changed(records: dict[str, TaskRecord], before: Fingerprints, terms: Terms, changes: Changes) -> None:
    """Has those records committed that the rules changed, and those of which nothing is known from before."""
    for task_id, record in records.items():
        if before.get(task_id) != fingerprint(record) or task_id in changes.touched:
            changes.tasks.append((record, record.version, next_due(record, terms)))


def fingerprint(record: TaskRecord) -> tuple[object, ...]:
    """What the rules mostly change of a record (else see `Changes.touched`): cheaper than to encode it twice."""
    if len(record.replicas) == 1:  # as most have, where workers are known
        (replica,) = record.replicas
        return record.state, replica.state, replica.lost
    return (record.state, *[(replica.state, replica.lost) for replica in record.replicas])


def fingerprints(records: dict[str, TaskRecord]) -> Fingerprints:
    """Of all records."""
    return {task_id: fingerprint(record) for task_id, record in records.items()}
