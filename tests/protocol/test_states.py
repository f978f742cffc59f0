"""States: the tables have no dead ends but the final states, and escrow ends exactly once on every way through them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import pytest

from ec262.protocol.states import (
    HOLDS_ESCROW,
    REPLICA_TRANSITIONS,
    TASK_TRANSITIONS,
    ReplicaEvent,
    ReplicaState,
    TaskEvent,
    TaskState,
    advance_replica,
    advance_task,
)

S = TypeVar("S", bound=Hashable)
E = TypeVar("E", bound=Hashable)
ENDS_ESCROW = {
    ReplicaState.PAID,
    ReplicaState.DISSENTED,
    ReplicaState.REFUSED,
    ReplicaState.EXPIRED,
    ReplicaState.RELEASED,
    ReplicaState.COMPENSATED,
}
TAKEN_BACK = {ReplicaState.FORFEITED, ReplicaState.RECLAIMED}
"""The one way on from any that ends escrow is that of pay to these: by a lost dispute, or by a conviction."""


def reachable(start: S, table: Mapping[tuple[S, E], S]) -> set[S]:
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        for (source, _), target in table.items():
            if source == state and target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def final(states: Iterable[S], table: Mapping[tuple[S, E], S]) -> set[S]:
    return set(states) - {source for source, _ in table}


def test_every_state_can_be_reached() -> None:
    assert reachable(ReplicaState.OPEN, REPLICA_TRANSITIONS) == set(ReplicaState)
    assert reachable(TaskState.LEASED, TASK_TRANSITIONS) == set(TaskState)


def test_every_event_happens_somewhere() -> None:
    assert {event for _, event in REPLICA_TRANSITIONS} == set(ReplicaEvent)
    assert {event for _, event in TASK_TRANSITIONS} == set(TaskEvent)


def test_final_states() -> None:
    assert final(ReplicaState, REPLICA_TRANSITIONS) == ENDS_ESCROW - {ReplicaState.PAID} | TAKEN_BACK
    assert final(TaskState, TASK_TRANSITIONS) == {TaskState.FORGOTTEN}


def test_escrow_is_held_exactly_where_something_can_still_happen() -> None:
    """A state that holds escrow leads to a payment or a refund; one that does not is final: no escrow ends twice."""
    assert set(HOLDS_ESCROW) == {source for source, _ in REPLICA_TRANSITIONS} - {ReplicaState.PAID}
    assert set(HOLDS_ESCROW) == set(ReplicaState) - ENDS_ESCROW - TAKEN_BACK
    after_pay = {event for source, event in REPLICA_TRANSITIONS if source is ReplicaState.PAID}
    assert after_pay == {ReplicaEvent.DISPUTE_LOST, ReplicaEvent.PAY_RECLAIMED}
    for state in HOLDS_ESCROW:
        assert reachable(state, REPLICA_TRANSITIONS) & ENDS_ESCROW


def test_nothing_goes_round() -> None:
    """A replica never comes back to a state; a task only while it gets more replicas."""
    for state in ReplicaState:
        for (source, _), target in REPLICA_TRANSITIONS.items():
            if source == state:
                assert state not in reachable(target, REPLICA_TRANSITIONS)
    for (task_source, event), task_target in TASK_TRANSITIONS.items():
        if event is TaskEvent.REPLICAS_ADDED:
            assert task_source is task_target
        else:
            assert task_source not in reachable(task_target, TASK_TRANSITIONS)


def test_only_agreement_pays() -> None:
    paying = {step for step, target in REPLICA_TRANSITIONS.items() if target is ReplicaState.PAID}
    assert paying == {(state, ReplicaEvent.AGREED) for state in (ReplicaState.REPORTED, ReplicaState.SHOWN)}


def test_time_ends_every_replica_and_every_task() -> None:
    assert (ReplicaState.OPEN, ReplicaEvent.FELL_DUE) in REPLICA_TRANSITIONS
    # What was reported is decided when nothing more can come: with a verdict, or with none and the effort fee.
    for event in (ReplicaEvent.LEFT_UNDECIDED, ReplicaEvent.EFFORT_OWED):
        for state in (ReplicaState.REPORTED, ReplicaState.SHOWN):
            assert (state, event) in REPLICA_TRANSITIONS
    for task_state in TaskState:
        assert TaskState.FORGOTTEN in reachable(task_state, TASK_TRANSITIONS)


def test_what_is_not_in_the_tables_is_a_bug_of_the_caller() -> None:
    for state in ReplicaState:
        for event in ReplicaEvent:
            if (state, event) in REPLICA_TRANSITIONS:
                assert advance_replica(state, event) is REPLICA_TRANSITIONS[state, event]
            else:
                with pytest.raises(KeyError):
                    advance_replica(state, event)
    for task_state in TaskState:
        for task_event in TaskEvent:
            if (task_state, task_event) in TASK_TRANSITIONS:
                assert advance_task(task_state, task_event) is TASK_TRANSITIONS[task_state, task_event]
            else:
                with pytest.raises(KeyError):
                    advance_task(task_state, task_event)
