"""Policies: what contradicts itself is refused, and whether results are believed or counted depends on the network."""

from __future__ import annotations

import pytest

from ec262.errors import ProgramError
from ec262.policy import REPLICAS, REPLICAS_TO_BELIEVE, USUAL_CONFIDENCE, Policy


@pytest.mark.parametrize(
    "policy, public, private",
    [
        (Policy(), USUAL_CONFIDENCE, 0.0),
        (Policy(redundancy=1), 0.0, 0.0),
        (Policy(quorum=2, redundancy=3), 0.0, 0.0),
        (Policy(max_retries=0), 0.0, 0.0),
        (Policy(confidence=0.999), 0.999, 0.999),
        (Policy(confidence=0.0), 0.0, 0.0),
    ],
)
def test_what_is_in_force_depends_on_the_network_unless_it_is_asked_for(
    policy: Policy, public: float, private: float
) -> None:
    assert policy.on_network("public").confidence == public
    assert policy.on_network("private").confidence == private
    assert policy.on_network("public").on_network("private").confidence == public, "settled once"


@pytest.mark.parametrize(
    "options, why",
    [
        ({"confidence": 0.99, "redundancy": 3}, "confidence=0.99 and redundancy=3 contradict each other"),
        ({"confidence": 0.99, "quorum": 1}, "confidence=0.99 and quorum=1 contradict each other"),
        ({"confidence": 0.9, "max_retries": 0}, "must not run twice: confidence=0.9 may have"),
        ({"confidence": 1.0}, "confidence=1.0: has to be a number from 0 to 0.99999"),
        ({"confidence": -0.1}, "confidence=-0.1"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"confidence": True}, "confidence=True"),
        ({"confidence": "high"}, "confidence='high'"),
        ({"price": 0}, "price=0: has to be a number from 1 to 1000"),
        ({"price": 1.5}, "price=1.5: has to be a whole number"),
        ({"redundancy": 0}, "redundancy=0"),
        ({"redundancy": 5, "max_replicas": 4}, "max_replicas=4"),
        ({"quorum": 3, "max_replicas": 2}, "max_replicas=2"),
        ({"max_retries": 0, "redundancy": 3}, "goes with redundancy=1"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, object], why: str) -> None:
    with pytest.raises(ProgramError, match=why):
        Policy(**options)  # type: ignore[arg-type]


def test_how_many_answers_a_task_may_have() -> None:
    assert Policy().most_replicas == REPLICAS
    assert Policy(redundancy=16).most_replicas == 16
    assert Policy(confidence=0.99).most_replicas == REPLICAS_TO_BELIEVE
    assert Policy(confidence=0.99, max_replicas=5).most_replicas == 5
    assert (Policy().copies, Policy().agreement, Policy().least_replicas) == (1, 1, 1)
    assert (Policy(redundancy=3).copies, Policy(redundancy=3).agreement) == (3, 2)
    assert Policy(confidence=0.99).least_replicas == 1, "one is asked at first"


def test_what_estimates_assume() -> None:
    assert Policy().replicas_assumed == 1
    assert Policy(redundancy=3).replicas_assumed == 3
    assert Policy(confidence=0.99).replicas_assumed == 1.5
    assert Policy(confidence=0.5, max_replicas=1).replicas_assumed == 1
