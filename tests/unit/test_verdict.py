"""Verdict: whose result counts, as a function of the answers alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.verdict import Accepted, Answer, More, Pending, Undecided, Verdict, decide
from ec262.protocol.receipts import Kind

QUICK = settings(max_examples=300, deadline=None)
A, B, C = [(Kind.OK, bytes([n]) * 32) for n in range(3)]
ERROR = (Kind.ERROR, A[1])
answers_lists = st.lists(st.sampled_from([A, A, A, B, C, ERROR]), max_size=10)
sizes = st.integers(1, 16)


@QUICK
@given(answers_lists, st.integers(0, 8), st.integers(0, 4), sizes, sizes)
def test_every_verdict_keeps_the_rules(
    answers: list[Answer], outstanding: int, gone: int, quorum: int, most: int
) -> None:
    verdict = decide(answers, outstanding=outstanding, gone=gone, quorum=quorum, max_replicas=most)
    groups = Counter(answers)
    largest = max(groups.values(), default=0)
    assert isinstance(verdict, Accepted) == (largest >= quorum)
    if isinstance(verdict, Accepted):
        assert groups[verdict.answer] == largest
    if isinstance(verdict, More):
        assert verdict.replicas >= 1
        assert len(answers) + outstanding + gone + verdict.replicas <= most
        # Just enough that the largest group can become a quorum, were all to agree with it.
        assert largest + outstanding + verdict.replicas == quorum
    if isinstance(verdict, Pending):
        assert outstanding > 0
        assert largest + outstanding >= quorum
    if isinstance(verdict, Undecided):
        assert len(answers) + gone + (quorum - largest) > most


@QUICK
@given(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=64), sizes, sizes)
def test_asking_ends(stream: list[Answer], quorum: int, most: int) -> None:
    """Whatever workers answer, a task is decided with at most `max_replicas` answers."""
    answers: list[Answer] = []
    verdict: Verdict = decide(answers, outstanding=0, quorum=quorum, max_replicas=most)
    while isinstance(verdict, More):
        for _ in range(verdict.replicas):
            answers.append(stream[len(answers) % len(stream)])
        assert len(answers) <= most
        verdict = decide(answers, outstanding=0, quorum=quorum, max_replicas=most)
    assert isinstance(verdict, Accepted | Undecided)


@pytest.mark.parametrize(
    ("answers", "outstanding", "quorum", "most", "expected"),
    [
        ([A], 0, 1, 9, Accepted(A)),
        ([A, A], 1, 2, 9, Accepted(A)),
        ([A, B, A], 0, 2, 9, Accepted(A)),
        ([B, A], 0, 1, 9, Accepted(B)),
        ([B, A, A], 0, 1, 9, Accepted(A)),
        ([A, B], 1, 2, 9, Pending()),
        ([A, B], 0, 2, 9, More(1)),
        ([A, B, C], 0, 2, 3, Undecided()),
        ([A, B, C], 0, 3, 4, Undecided()),
        ([A, B, C], 0, 3, 5, More(2)),
        ([], 0, 2, 9, More(2)),
        ([], 2, 2, 9, Pending()),
        ([], 0, 3, 2, Undecided()),
        ([A, ERROR], 0, 2, 9, More(1)),
        ([ERROR, ERROR], 0, 2, 9, Accepted(ERROR)),
    ],
)
def test_verdicts(answers: list[Answer], outstanding: int, quorum: int, most: int, expected: Verdict) -> None:
    assert decide(answers, outstanding=outstanding, quorum=quorum, max_replicas=most) == expected


@pytest.mark.parametrize(
    ("answers", "outstanding", "gone", "quorum", "most", "expected"),
    [
        ([], 0, 1, 1, 9, More(1)),  # a backup
        ([], 0, 1, 1, 2, More(1)),
        ([], 0, 2, 1, 2, Undecided()),
        ([], 0, 1, 1, 1, Undecided()),  # never leased twice
        ([], 0, 0, 1, 1, More(1)),  # refused: it did not run
        ([], 1, 1, 1, 2, Pending()),
        ([A], 0, 1, 1, 1, Accepted(A)),
        ([A], 0, 1, 2, 3, More(1)),
        ([A], 0, 1, 2, 2, Undecided()),
    ],
)
def test_replicas_given_up_are_replaced_as_long_as_more_may_run_it(
    answers: list[Answer], outstanding: int, gone: int, quorum: int, most: int, expected: Verdict
) -> None:
    assert decide(answers, outstanding=outstanding, gone=gone, quorum=quorum, max_replicas=most) == expected


def test_a_result_and_a_failure_with_equal_digests_do_not_agree() -> None:
    assert decide([A, ERROR], outstanding=0, quorum=2, max_replicas=2) == Undecided()
