"""Verdict: whose result counts, as a function of the answers alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.credibility import CHANCES, Noise, Standing, Tally
from discovery.verdict import (
    Accepted,
    Answer,
    More,
    Pending,
    Undecided,
    Verdict,
    Voice,
    belief,
    decide,
    decide_credible,
    explain,
    lessons,
)
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


# --- confidence ---

NEVER = CHANCES - 1
"""A chance by which no task is a spot check."""


def voice(number: int, answer: Answer, verified: float = 0, doubts: float = 0, **standing: bool) -> Voice:
    return Voice(f"w{number}", f"party {number}", answer, Standing(verified, doubts, **standing))


def credible(voices: list[Voice], **changed: Any) -> Verdict:
    usual: dict[str, Any] = {"outstanding": 0, "confidence": 0.99, "max_replicas": 16, "chance": NEVER}
    return decide_credible(voices, **(usual | changed))


@pytest.mark.parametrize(
    ("voices", "changed", "expected"),
    [
        ([], {}, More(1)),
        ([], {"outstanding": 1}, Pending()),
        ([], {"gone": 1}, More(1)),  # a backup
        ([], {"gone": 16}, Undecided()),
        ([voice(1, A)], {}, More(3)),  # four agreeing newcomers reach 0.99
        ([voice(1, A)], {"further": 0.95}, More(2)),
        ([voice(1, A)], {"further": 0.97}, More(1)),  # one that is known is enough
        ([voice(1, A)], {"outstanding": 1}, More(2)),
        ([voice(1, A)], {"outstanding": 3}, Pending()),
        ([voice(n, A) for n in range(3)], {}, More(1)),
        ([voice(n, A) for n in range(4)], {}, Accepted(A)),
        ([voice(1, A, 9)], {"further": 0.95}, More(1)),
        ([voice(1, A, 10)], {}, Accepted(A)),
        ([voice(1, A, 10)], {"confidence": 0.999, "further": 0.95}, More(1)),
        ([voice(1, A, 93)], {"confidence": 0.999}, Accepted(A)),
        ([voice(1, A, 100, 1)], {"further": 0.95}, More(1)),  # one dissent on record: not alone again so soon
        ([voice(1, A, 10, banned=True)], {}, More(1)),
        ([voice(1, A, auditor=True)], {"confidence": 0.9999}, Accepted(A)),
        ([voice(1, A, 50), voice(2, A, 50), voice(3, B, auditor=True)], {}, Accepted(B)),
        ([voice(1, A), voice(2, B)], {"max_replicas": 2}, Undecided()),
    ],
)
def test_verdicts_by_confidence(voices: list[Voice], changed: dict[str, Any], expected: Verdict) -> None:
    assert credible(voices, **changed) == expected


def test_the_confidence_reached_is_told() -> None:
    verdict = credible([voice(n, A) for n in range(4)])
    assert isinstance(verdict, Accepted)
    assert verdict.confidence == pytest.approx(256 / 257)  # odds of 4 to 1 each, against nobody being right


def test_sleepers_with_a_fine_record_do_not_outvote_at_once() -> None:
    """Two believed in 0.998 each against one of these: as if they were independent that would be accepted."""
    honest, *liars = [voice(1, A, 50), voice(2, B, 50), voice(3, B, 50)]
    assert isinstance(credible([honest, *liars]), More)
    assert credible([honest, *liars, *[voice(n, A, 50) for n in range(4, 7)]], further=0.95) == More(1)
    assert credible([honest, *liars, *[voice(n, A, 50) for n in range(4, 8)]]) == Accepted(A)


def test_a_known_liar_does_not_make_a_task_contested() -> None:
    assert credible([voice(1, A, 50), voice(2, B, 2, 5)]) == Accepted(A)


def test_sybils_of_one_party_count_once() -> None:
    sybils = [Voice(f"w{n}", "one person", A, Standing()) for n in range(8)]
    assert credible(sybils) == More(3)
    assert explain(sybils, confidence=0.99, chance=NEVER).probability[A] == pytest.approx(0.8)


def test_a_spot_check_asks_one_more_than_it_takes_and_no_more() -> None:
    checked: dict[str, Any] = {"chance": 0}
    assert credible([voice(1, A, 30)], **checked) == More(1)
    assert credible([voice(1, A, 30)], outstanding=1, **checked) == Pending()
    assert credible([voice(1, A, 30), voice(2, A)], **checked) == Accepted(A)
    assert credible([voice(1, A, 30)], max_replicas=1, **checked) == Accepted(A)  # never leased twice
    assert isinstance(credible([voice(1, A, 30), voice(2, B, 30)], **checked), More)


def test_what_is_checked_follows_from_the_chance() -> None:
    verified = 25.0  # checked in one task of ten
    at = int(0.1 * CHANCES)
    assert credible([voice(1, A, verified)], chance=at - 2) == More(1)
    assert credible([voice(1, A, verified)], chance=at + 2) == Accepted(A)
    assert credible([voice(1, A, 5000)], chance=int(0.05 * CHANCES) - 2) == More(1)  # whoever it is


@QUICK
@given(
    st.lists(
        st.builds(
            voice,
            st.integers(0, 12),
            st.sampled_from([A, A, B, C]),
            st.floats(0, 300),
            st.sampled_from([0.0, 0.0, 0.3, 1.0, 4.0]),
            banned=st.sampled_from([False, False, True]),
            auditor=st.sampled_from([False, False, False, True]),
        ),
        max_size=12,
    ),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(1, 16),
    st.sampled_from([0.6, 0.9, 0.99, 0.999]),
    st.integers(0, CHANCES - 1),
)
def test_every_verdict_by_confidence_keeps_the_rules(
    voices: list[Voice], outstanding: int, gone: int, most: int, confidence: float, chance: int
) -> None:
    changed = {"outstanding": outstanding, "gone": gone, "max_replicas": most, "confidence": confidence}
    verdict = credible(voices, chance=chance, **changed)
    explained = explain(voices, confidence=confidence, chance=chance)
    assert sum(explained.probability.values()) < 1
    if isinstance(verdict, Accepted):
        assert verdict.confidence is not None
        assert confidence <= verdict.confidence == explained.probability[verdict.answer]
        assert verdict.confidence == belief(voices, verdict.answer)
    if isinstance(verdict, More):
        assert verdict.replicas >= 1
        assert len(voices) + outstanding + gone + verdict.replicas <= most
    if isinstance(verdict, Pending):
        assert outstanding > 0
    if isinstance(verdict, Undecided):
        assert outstanding == 0
        assert len(voices) + gone >= most
    for taught in lessons(voices, A):
        assert 0 <= taught.verified <= 1000
        assert 0 <= taught.doubts <= 3000


def test_asking_by_confidence_ends() -> None:
    for answers in ([A], [A, B], [A, B, C], [A, A, B]):
        voices: list[Voice] = []
        verdict = credible(voices, chance=0)
        while isinstance(verdict, More):
            for _ in range(verdict.replicas):
                voices.append(voice(len(voices), answers[len(voices) % len(answers)], 40))
            assert len(voices) <= 16
            verdict = credible(voices, chance=0)
        assert isinstance(verdict, Accepted | Undecided)


def test_agreement_verifies_as_far_as_the_others_are_believed() -> None:
    known, new = lessons([voice(1, A, 30), voice(2, A)], A)
    assert known == Tally()  # a newcomer's word is worth nothing to it
    assert 900 < new.verified <= 1000
    assert lessons([voice(1, A, 30)], A) == [Tally()]  # nobody was compared with it
    assert all(900 < each.verified < 950 for each in lessons([voice(n, A) for n in range(4)], A))
    cheap, dear = (lessons([voice(1, A, 30), voice(2, A, 30)], A, price=price)[0].verified for price in (1, 100))
    assert dear == 4 * cheap


def test_a_party_verifies_nobody_of_its_own() -> None:
    one = Voice("w1", "same", A, Standing(30))
    other = Voice("w2", "same", A, Standing(30))
    assert lessons([one, other], A) == [Tally(), Tally()]


def test_dissenters_are_doubted_and_share_the_doubt() -> None:
    backers = [voice(n, A, 50) for n in range(5)]
    assert lessons([*backers, voice(9, B, 50)], A)[-1].doubts > 950
    two = lessons([*backers, voice(8, B, 50), voice(9, C, 50)], A)[-2:]
    assert [400 < each.doubts <= 500 for each in two] == [True, True]
    assert all(each.doubts == 0 for each in lessons([*backers, voice(9, B, 50)], A)[:-1])


def test_framing_by_a_nondeterministic_program_costs_nobody() -> None:
    backers = [voice(n, A, 50) for n in range(5)]
    noise = Noise(answers=1000, workers=100, dissenters=90)
    assert lessons([*backers, voice(9, B, 50)], A, noise=noise)[-1] == Tally()


def test_dissent_from_an_auditor_is_an_auditors_word() -> None:
    taught = lessons([voice(1, A, auditor=True), voice(2, B, 50)], A)[1]
    assert taught.words == 1
    assert taught.doubts >= 2900


def test_a_conviction_does_not_take_back_what_it_rests_on() -> None:
    voices = [*[voice(n, A, 50) for n in range(5)], voice(9, B, 50, 4)]
    before = lessons(voices, A)[-1]
    banned = [*voices[:-1], voice(9, B, 50, 4, banned=True)]
    assert lessons(banned, A)[-1].doubts >= before.doubts > 900


def test_what_rested_on_a_convicted_worker_alone_is_to_be_computed_again() -> None:
    liar, other, accomplice = voice(1, B, 30, banned=True), voice(2, B, 30), voice(3, B, 30, banned=True)
    assert belief([liar], B) == 0
    assert belief([liar, accomplice], B) == 0
    assert belief([liar, other], B) > 0.99  # somebody else who is believed said so too


def test_every_verdict_can_be_explained() -> None:
    voices = [voice(1, A, 30), voice(2, B), voice(3, A, banned=True)]
    told = explain(voices, confidence=0.99, chance=0)
    assert [each.believed for each in told.heard] == [0.9, 0.8, 0]
    assert told.contested
    assert told.checked
    assert "1 of 2 answers that count are alike" in told.why
    assert "less than the 0.99" in told.why
    assert "is checked" in explain([voice(1, A, 30)], confidence=0.99, chance=0).why
    assert "nobody" in explain([], confidence=0.99, chance=0).why
