"""Every attack of the corpus in every mode of confinement: none has an effect outside its process."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.sandbox.attacks import ATTACKS, DETECTABLE
from tests.sandbox.conftest import World
from tests.sandbox.modes import Runner, one

MODES = [
    ("self", "full"),
    ("self", "kernel"),
    ("self", "seccomp-only"),
    ("ordinary", "kernel"),
    ("ordinary", "full-no-namespaces"),
    pytest.param("self", "kernel-no-namespaces", marks=pytest.mark.slow),
    pytest.param("self", "full-no-namespaces", marks=pytest.mark.slow),
    pytest.param("ordinary", "full", marks=pytest.mark.slow),
    pytest.param("ordinary", "kernel-no-namespaces", marks=pytest.mark.slow),
    pytest.param("ordinary", "seccomp-only", marks=pytest.mark.slow),
]
"""User and policy. The default suite has each user, namespaces on and off, language layer on and off; slow has all."""


def _echo(facts: Any, _: Any) -> str:
    import json  # noqa: PLC0415

    return json.dumps([len("four"), 3 + 4, list(facts)])


@pytest.mark.parametrize("user, policy", MODES, ids=lambda item: item)
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_has_no_effect(name: str, user: str, policy: str, world: World, runners: Any) -> None:
    runner = runners(user)
    outcome = one(
        runner, policy, ATTACKS[name], world.facts(), cpu_limit_s=0.1, wall_limit_s=0.4, max_output_bytes=1 << 20
    )
    said = b"".join(outcome.parts).decode(errors="replace")
    assert "ESCAPED" not in said
    assert world.secret not in said + repr(outcome.error)
    assert world.damage() == []
    if outcome.error is not None:
        texts = outcome.error.message + outcome.error.traceback + outcome.error.type + outcome.error.line
        assert all(c.isprintable() or c == "\n" for c in texts)
        assert len(texts) < 25_000
    # the next unit, of another job, answers correctly and at once
    after = one(runner, policy, _echo, [1, 2])
    assert (after.kind, after.parts) == ("ok", [b"[4, 7, [1, 2]]"]), after.error


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the corpus has x86_64 system call numbers")
def test_corpus_has_at_least_a_hundred_attacks() -> None:
    assert len(ATTACKS) >= 100
    assert len(DETECTABLE) >= 40


@pytest.mark.parametrize("name", sorted(DETECTABLE))
def test_attack_succeeds_without_layers(name: str, world: World, runner: Runner) -> None:
    """The tests detect: the same attack, unconfined, has its way."""
    world.reset()
    try:
        outcome = one(runner, "none", ATTACKS[name], world.facts(), cpu_limit_s=5, wall_limit_s=10)
        assert outcome.kind == "ok", outcome.error
        assert b"".join(outcome.parts).startswith(b"ESCAPED"), outcome.parts
    finally:
        world.damage()  # takes connections in
        world.reset()
