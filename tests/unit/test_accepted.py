"""What a job's outcome rests on: nothing stays that no longer holds, and nothing is asked for more than is needed."""

from __future__ import annotations

from ec262.foreman.accepted import Accepted
from ec262.foreman.records import Kept

DIGEST = bytes(32)


def kept(number: int, task_id: str = "", phase: str = "map") -> Kept:
    return Kept(phase, number, DIGEST, task_id or f"{number:024x}", bytes(32))


def filled(count: int) -> Accepted:
    accepted = Accepted()
    for number in range(count):
        accepted.add(kept(number))
    return accepted


def test_every_task_is_asked_for_once_a_round() -> None:
    accepted = filled(25)
    asked: list[str] = []
    while batch := accepted.to_audit(10):
        assert len(batch) <= 10
        asked += batch
        accepted.audited(batch)
    assert sorted(asked) == [f"{number:024x}" for number in range(25)]
    assert accepted.backlog == (0, 0)
    accepted.add(kept(25))
    assert accepted.to_audit(10) == [f"{25:024x}"], "what is new since"
    accepted.audit_all()
    assert len(accepted.to_audit(100)) == 26


def test_what_is_recalled_is_stale_until_it_has_another_result() -> None:
    accepted = filled(3)
    accepted.recall([f"{1:024x}"])
    accepted.recall([f"{1:024x}"])
    assert list(accepted.stale) == [("map", 1)]
    assert accepted.vouched == {f"{1:024x}"}
    accepted.audit_all()
    assert f"{1:024x}" not in accepted.to_audit(10), "it is known to be wrong"
    assert accepted.to_hear(10) == []
    accepted.add(kept(1, "f" * 24))
    assert accepted.stale == {}
    assert accepted.to_hear(10) == [f"{1:024x}"], "discovery need not name it any more"
    assert accepted.recomputed == 1
    assert "f" * 24 in accepted.to_audit(10)
    accepted.heard([f"{1:024x}"])
    assert accepted.to_hear(10) == []


def test_attack_ids_of_other_tasks_are_heard_and_change_nothing() -> None:
    accepted = filled(2)
    accepted.recall(["e" * 24])
    accepted.unknown(["d" * 24])
    assert accepted.stale == {}
    assert accepted.to_hear(10) == ["e" * 24]
    assert len(accepted) == 2


def test_a_result_that_is_not_used_is_not_asked_for() -> None:
    accepted = filled(2)
    accepted.forget(("map", 0))
    accepted.forget(("map", 7))
    assert accepted.to_audit(10) == [f"{1:024x}"]
    accepted.recall([f"{0:024x}"])
    assert accepted.stale == {}
    assert accepted.to_hear(10) == [f"{0:024x}"]


def test_what_discovery_forgot_is_computed_anew_unless_an_earlier_run_has_it() -> None:
    accepted = Accepted([kept(0), kept(1)])
    accepted.add(kept(2))
    accepted.unknown([f"{0:024x}", f"{2:024x}"])
    assert list(accepted.stale) == [("map", 2)]
    assert accepted.vouched == set(), "there is nothing to name"
    accepted.audit_all()
    assert accepted.to_audit(10) == [f"{1:024x}"], "it will not remember the next time"
    accepted.unknown([f"{0:024x}"])
    assert accepted.unaudited == {f"{0:024x}"}
    assert list(accepted.stale) == [("map", 2)]
    accepted.recall([f"{1:024x}"])
    assert ("map", 1) in accepted.stale, "what discovery does remember of an earlier run counts"


def test_map_and_reduce_tasks_of_one_number_are_two() -> None:
    accepted = filled(1)
    accepted.add(kept(0, "a" * 24, "reduce"))
    accepted.recall(["a" * 24])
    assert list(accepted.stale) == [("reduce", 0)]
    accepted.forget(("reduce", 0))
    assert len(accepted) == 1
