"""Whom a job's report names as wrong."""

from __future__ import annotations

from ec262.foreman.dissent import Dissent

HONEST, LIAR, OTHER = "h" * 32, "1" * 32, "2" * 32


def test_who_was_outvoted_is_named_while_the_answer_that_won_is_believed() -> None:
    dissent = Dissent()
    dissent.outvoted("a", [LIAR])
    dissent.outvoted("b", [HONEST, LIAR])
    assert dissent.workers == {HONEST, LIAR}
    dissent.overturned(["b", "unheard of"])
    assert dissent.workers == {LIAR}, "liars had won task b"


def test_attack_liars_win_a_vote_and_the_honest_answer_comes_after_it_was_overturned() -> None:
    dissent = Dissent()
    dissent.overturned(["a"])
    dissent.outvoted("a", [HONEST])
    assert dissent.workers == set()
    dissent.outvoted("anew", [OTHER])
    assert dissent.workers == {OTHER}, "the task that computes it anew is another one"


def test_who_gave_other_bytes_stays_named_whatever_becomes_of_the_task() -> None:
    dissent = Dissent()
    dissent.wrong([LIAR])
    dissent.outvoted("a", [LIAR])
    dissent.overturned(["a"])
    assert dissent.workers == {LIAR}


def test_nobody_differs() -> None:
    dissent = Dissent()
    dissent.outvoted("a", [])
    assert dissent.workers == set()
