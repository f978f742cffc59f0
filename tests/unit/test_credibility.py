"""Credibility: who is believed how far, and what takes that away, as numbers alone."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.credibility import (
    CHANCES,
    NEWCOMER,
    NOTHING,
    THOUSAND,
    USUAL,
    Noise,
    Standing,
    Tally,
    aged,
    chance_of,
    check_rate,
    clarity,
    convicted,
    credibility,
    established,
    guilt,
    lost_dispute,
    shared,
    shunned,
    standing,
    surety,
)

QUICK = settings(max_examples=200, deadline=None)
counts = st.floats(0, 5000, allow_nan=False)
tallies = st.builds(Tally, st.integers(-2000, 60_000), st.integers(-2000, 9_000), st.integers(0, 2))


def test_a_newcomer_and_one_with_verified_results_are_believed_as_sarmenta_says() -> None:
    assert credibility(NEWCOMER) == pytest.approx(0.8)
    assert credibility(Standing(verified=10)) == pytest.approx(1 - 0.2 / (0.8 * 10 * math.e))
    assert credibility(Standing(verified=9)) < 0.99 < credibility(Standing(verified=10))
    assert credibility(Standing(verified=91)) < 0.999 < credibility(Standing(verified=93))
    assert credibility(Standing(verified=0.01)) == pytest.approx(0.8)  # never less than a newcomer without a doubt


@QUICK
@given(counts, counts, st.floats(0, 50))
def test_more_verified_is_never_worse_and_a_doubt_never_better(verified: float, more: float, doubts: float) -> None:
    known = credibility(Standing(verified, doubts))
    assert 0 <= known < 1
    assert credibility(Standing(verified + more, 0)) >= credibility(Standing(verified, 0))
    assert known <= credibility(Standing(verified, 0)) + 1e-12


def test_who_lied_in_half_of_what_was_compared_is_guilty_and_who_slipped_once_in_a_thousand_is_not() -> None:
    assert guilt(Standing(5, 5)) > 0.9999
    assert guilt(Standing(20, 2)) > USUAL.guilty
    assert guilt(Standing(20, 1)) < 0.5
    assert guilt(Standing(1000, 1)) < 0.01
    assert guilt(Standing(5000, 5)) < 0.01


def test_a_sleeper_that_was_honest_a_thousand_times_is_found_out_after_a_dozen_lies() -> None:
    assert shunned(Standing(1000, 12))


def test_the_banned_count_nothing_and_auditors_everything() -> None:
    assert credibility(Standing(500, banned=True)) == 0
    assert shunned(Standing(500, banned=True))
    assert credibility(Standing(auditor=True)) > 0.99999
    assert not shunned(Standing(0, 9, auditor=True))
    assert established(Standing(auditor=True))


def test_slander_by_one_foreman_convicts_nobody() -> None:
    """However many dissents one foreman's jobs bring: two unrelated foremen have to have seen some."""
    own = Tally(verified=2 * THOUSAND, doubts=500 * THOUSAND)
    assert not convicted(shared(own), 1)
    assert shared(own).doubts == USUAL.party_doubts * THOUSAND
    assert convicted(shared(own).plus(shared(Tally(doubts=THOUSAND))), 2)


def test_two_foremen_who_each_saw_one_slip_in_a_long_record_convict_nobody() -> None:
    assert not convicted(Tally(verified=500 * THOUSAND, doubts=2 * THOUSAND), 2)


def test_a_long_record_with_rare_slips_in_the_jobs_of_many_foremen_convicts_nobody() -> None:
    """Caps of verified results and doubts may not turn a worker that errs once in a thousand into a liar."""
    each = Tally(verified=1500 * THOUSAND, doubts=2 * THOUSAND)
    known = NOTHING
    for _ in range(50):
        known = known.plus(shared(each))
    assert not shared(each).accuses
    assert not convicted(known, 50)
    liar = shared(Tally(verified=100 * THOUSAND, doubts=11 * THOUSAND))
    assert liar.accuses
    assert convicted(liar.plus(liar), 2)


def test_an_auditors_word_and_a_lost_dispute_need_no_second_foreman() -> None:
    assert convicted(Tally(verified=20 * THOUSAND).plus(shared(lost_dispute())), 1)
    assert convicted(shared(lost_dispute().plus(lost_dispute())).plus(Tally(verified=200 * THOUSAND)), 0)


def test_minting_a_name_in_ones_own_jobs_helps_with_others_only_so_far() -> None:
    own = Tally(verified=10_000 * THOUSAND)
    known = shared(own)
    assert standing(known, own).verified == 10_000  # in the eyes of the foreman itself: it harms nobody else
    assert standing(known).verified == USUAL.party_verified
    assert credibility(standing(known)) < 0.999


@QUICK
@given(st.lists(tallies, max_size=8), st.randoms())
def test_increments_give_the_same_in_any_order(gains: list[Tally], chance: random.Random) -> None:
    """Settlements of different tasks commute: what others believe follows from the sum, however it came about."""

    def total(order: list[Tally]) -> tuple[Tally, Tally]:
        own, known = NOTHING, NOTHING
        for gain in order:
            before, own = own, own.plus(gain)
            known = known.plus(shared(own)).minus(shared(before))
        return own, known

    other = list(gains)
    chance.shuffle(other)
    assert total(gains) == total(other)
    assert total(gains)[1] == shared(total(gains)[0])


def test_memory_is_bounded() -> None:
    long = Tally(2 * USUAL.memory * THOUSAND, 8 * THOUSAND)
    assert aged(long) == Tally(USUAL.memory * THOUSAND, 4 * THOUSAND)
    assert aged(Tally(THOUSAND, 0)) == Tally(THOUSAND, 0)


def test_chances_are_even_and_told_by_the_secret_alone() -> None:
    drawn = [chance_of(b"secret", f"task {n}") for n in range(4000)]
    assert all(0 <= each < CHANCES for each in drawn)
    assert 300 < sum(each < CHANCES // 10 for each in drawn) < 500
    other = [chance_of(b"another", f"task {n}") for n in range(4000)]
    both = sum(a < CHANCES // 10 and b < CHANCES // 10 for a, b in zip(drawn, other, strict=True))
    assert both < 80  # about 40: one secret says nothing of the other's
    assert chance_of(b"secret", "task 7") == drawn[7]


def test_newcomers_are_checked_most_and_nobody_never() -> None:
    rates = [check_rate([Standing(k)]) for k in (0, 1, 10, 25, 50, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == USUAL.most_check
    assert rates[3] == pytest.approx(0.1)
    assert rates[-1] == USUAL.least_check == 0.05
    assert check_rate([Standing(1000), Standing(10)]) == check_rate([Standing(10)])


def test_newcomers_verify_nobody() -> None:
    """Sybils: a newcomer's word, one or in numbers that cost nothing, is worth what f of the workers could say."""
    assert surety(credibility(NEWCOMER)) == pytest.approx(0)
    assert surety(0.5) == 0
    assert surety(1.0) == 1
    assert 0.9 < surety(0.99) < 1


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (Noise(), 1.0),
        (Noise(answers=4000, workers=200, dissenters=40), 1.0),  # liars, all f of them
        (Noise(answers=20_000, workers=200, dissenters=52), 1.0),  # and some slips
        (Noise(answers=24, workers=12, dissenters=3), 1.0),
        (Noise(answers=1000, workers=200, dissenters=120), 0.0),  # everybody differs now and then: the program
        (Noise(answers=1000, workers=200, dissenters=200), 0.0),
    ],
)
def test_dissents_in_a_job_that_looks_nondeterministic_say_nothing(noise: Noise, expected: float) -> None:
    assert clarity(noise) == expected


@QUICK
@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 200))
def test_clarity_is_a_share(workers: int, dissenters: int, each: int) -> None:
    value = clarity(Noise(workers * each, workers, min(workers, dissenters)))
    assert value == 0 or 0.5 <= value <= 1
