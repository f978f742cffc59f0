"""The simulation: made-up networks, real decisions. What docs/trust.md says of policies, on a small scale."""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from discovery.simulation.behaviours import Tactic
from discovery.simulation.network import Network, Outcome, Setup
from discovery.simulation.report import rule_of, summary, table
from ec262.cli import simulate
from ec262.errors import SetupError

SMALL = Setup(workers=60, tasks=2400, foremen=3)


def outcome(policy: str = "0.99", seed: int = 1, **changed: object) -> Outcome:
    return Network(replace(SMALL, seed=seed, **changed), rule_of(policy)).run()  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_run() -> None:
    tactic = Tactic(lie=0.1, crash=0.01, silent=0.01)
    assert outcome(seed=7, tactic=tactic) == outcome(seed=7, tactic=tactic)
    assert outcome(seed=7, tactic=tactic) != outcome(seed=8, tactic=tactic)


@pytest.mark.parametrize("policy", ["3/2", "boinc", "0.99", "0.999"])
def test_an_honest_network_is_right_and_nobody_is_convicted(policy: str) -> None:
    came = outcome(policy, saboteurs=0.0)
    assert (came.tasks, came.wrong, came.wrong_first, came.undecided) == (2400, 0, 0, 0)
    assert (came.rightly, came.wrongly) == (0, 0)
    # Whoever answered is paid; only what was still out when the last job was closed is not.
    assert came.replicas - 10 <= came.honest_earned <= came.replicas
    assert came.replicas / came.tasks < {"3/2": 3.001, "boinc": 1.5, "0.99": 1.5, "0.999": 2.7}[policy]


def test_two_of_three_is_beaten_by_colluders_and_confidence_is_not() -> None:
    assert 0.05 < outcome("3/2").wrong / 2400 < 0.15
    assert outcome("0.99").wrong / 2400 <= 0.005


@pytest.mark.parametrize(
    "tactic",
    [
        Tactic(),
        Tactic(lie=0.3),
        Tactic(lie=0.3, together=False),
        Tactic(collude=False),
        Tactic(after=15),
        Tactic(shared=True),
        Tactic(crash=0.05, silent=0.05),
        Tactic(returns=True),
        Tactic(returns=True, after=15),
    ],
)
def test_saboteurs_get_little_through_whatever_they_do(tactic: Tactic) -> None:
    came = outcome(tactic=tactic)
    assert came.tasks == 2400
    assert came.wrong <= 24
    assert came.wrongly <= 1
    assert came.undecided <= 2
    assert came.dishonest_earned / came.dishonest < came.honest_earned / came.honest


def test_sleepers_are_accepted_at_first_and_taken_back() -> None:
    came = outcome(tactic=Tactic(after=15))
    assert came.wrong_first > came.wrong
    assert came.rightly >= 9


def test_who_lies_always_is_convicted_by_foremen_that_are_unrelated() -> None:
    assert outcome().rightly >= 10
    assert outcome(foremen=1).rightly == 0  # one foreman's word bans nobody
    assert outcome(foremen=1).wrong <= 12  # but what it saw itself protects it


def test_with_auditors_one_foreman_is_enough() -> None:
    assert outcome(foremen=1, auditors=12).rightly >= 6


def test_a_foreman_with_a_nondeterministic_program_gets_nobody_convicted() -> None:
    came = outcome(saboteurs=0.0, flaky_foremen=1)
    assert came.wrongly == 0
    assert outcome(saboteurs=0.0, flaky=0.01).wrongly <= 1


def test_slips_of_honest_machines_convict_nobody() -> None:
    assert outcome(saboteurs=0.0, errors=0.001).wrongly == 0


def test_liars_in_the_majority_win_and_auditors_stop_them() -> None:
    """No agreement helps where most lie: the threat model says so."""
    wrong = outcome(saboteurs=0.6).wrong
    assert wrong > 240
    assert outcome(saboteurs=0.6, auditors=20).wrong < wrong / 2


def test_more_than_all_replicas_cannot_agree() -> None:
    with pytest.raises(ValueError, match="of 3 replicas no 4 can agree"):
        rule_of("3/4")


@pytest.mark.parametrize("policy", ["", "3", "0/1", "1.5", "0.2", "0.99:2", "BOINC", "0.99:", "-0.99"])
def test_what_is_no_policy_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="is no policy"):
        rule_of(policy)


def test_a_table_has_a_line_for_each_policy() -> None:
    shown = [summary(policy, replace(SMALL, tasks=300), [1, 2]) for policy in ("3/2", "0.9:0.3")]
    lines = table(shown).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[0] == "3/2"
    assert lines[2].split()[0] == "0.9:0.3"


# --- the command ---


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_parser(parser.add_subparsers())
    return parser.parse_args(["simulate", *given])


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--workers", "20", "--tasks", "200", "--collude", "--policy", "3/2", "--policy", "0.99", "--seeds", "2"]
    assert simulate.run(flags(*few)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["POLICY", "3/2", "0.99"]
    assert simulate.run(flags(*few, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["policy"] for each in told] == ["3/2", "0.99"]
    assert all(0 <= each["wrong"] <= 1 for each in told)


@pytest.mark.parametrize(
    "given", [["--policy", "7"], ["--saboteurs", "1.5"], ["--workers", "1"], ["--seeds", "0"], ["--lie", "x"]]
)
def test_wrong_flags_are_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        flags(*given)
    assert refused.value.code == 2


def test_more_auditors_and_saboteurs_than_workers_are_refused() -> None:
    with pytest.raises(SetupError, match="more than all workers"):
        simulate.setup_of(flags("--auditors", "170"))


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_a_picture_without_matplotlib_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"pip install 'ec262\[plot\]'"):
        simulate.run(flags("--plot", str(tmp_path / "x.png"), "--tasks", "10"))


def test_a_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    few = ["--workers", "20", "--tasks", "200", "--collude", "--policy", "3/2", "--policy", "0.99"]
    assert simulate.run(flags(*few, "--plot", str(tmp_path / "x.png"))) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("place", "why"), [("no/x.png", "no such directory"), (".", ".png or .svg"), ("x.doc", ".png or .svg")]
)
def test_a_picture_that_cannot_be_written_is_told_before_anything_is_simulated(
    tmp_path: Path, place: str, why: str
) -> None:
    with pytest.raises(SetupError, match=why):
        simulate.run(flags("--plot", str(tmp_path / place), "--tasks", "10000000"))
