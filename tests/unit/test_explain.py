"""``ec262 explain``: a table of who answered what; nothing from outside drives the terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ec262.cli import main
from ec262.cli.explain import as_json, as_text
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind

TASK = "8f14e45fceea167a5a36dedd"


def answer(number: int, commitment: bytes, kind: Kind | None = Kind.OK, **more: Any) -> m.ExplainedAnswer:
    fields: dict[str, Any] = {"state": "paid", "verified": 24.2, "believed": 0.9962, "believed_now": 0.9, **more}
    return m.ExplainedAnswer(
        *(), lease_id=f"{TASK}.{number}", worker_id=f"{number}" * 32, kind=kind, commitment=commitment, **fields
    )


def explanation(*answers: m.ExplainedAnswer, **more: Any) -> m.Explanation:
    fields: dict[str, Any] = {
        "state": "accepted", "confidence": 0.99, "reached": 0.993188, "kind": Kind.OK, "commitment": b"r" * 32,
        "checked": True, "why": "3 alike", "why_now": "", **more,
    }  # fmt: skip
    return m.Explanation(task_id=TASK, answers=list(answers), **fields)


def test_equal_answers_have_equal_letters_and_the_one_that_counts_is_named() -> None:
    told = as_text(
        explanation(
            answer(0, b"r" * 32),
            answer(1, b"w" * 32, state="dissented", banned=True),
            answer(2, b"r" * 32, auditor=True),
            answer(3, b"w" * 32, Kind.ERROR),
            answer(4, b"", None, state="expired"),
        )
    ).splitlines()
    assert told[0] == f"task {TASK}: accepted, believed with 0.993188; 0.99 was asked for"
    assert told[1].startswith("it was a spot check")
    rows = [line.split() for line in told if line[:32] in {str(n) * 32 for n in range(5)}]
    assert [row[3] for row in rows] == ["A", "B", "A", "C", "-"]
    assert rows[1][-1] == "banned"
    assert rows[2][-1] == "auditor"
    assert rows[4][-2:] == ["-", "-"], "it weighed nothing"
    assert told[-1].startswith("A counts: ok, 7272727272727272")


def test_before_it_is_decided_nothing_of_the_answers_is_shown() -> None:
    told = as_text(
        explanation(
            *(answer(n, b"", None, state="reported", verified=0.0, believed=0.0, believed_now=0.0) for n in range(2)),
            state="leased", reached=None, kind=None, commitment=b"", checked=False, why="not decided yet",
        )
    )  # fmt: skip
    assert "counts" not in told
    assert " A" not in told.replace("ANSWER", "")
    assert "not decided yet" in told


def test_attack_texts_that_drive_the_terminal_are_spelled_out() -> None:
    told = as_text(explanation(answer(0, b"r" * 32, state="\x1b[2J"), why="\x1b]0;owned\x07\nand more" + "x" * 9999))
    assert all(c.isprintable() or c == "\n" for c in told)
    assert max(map(len, told.splitlines())) <= 400


def test_as_json_it_is_all_there() -> None:
    told = json.loads(as_json(explanation(answer(0, b"r" * 32))))
    assert told["commitment"] == "72" * 32
    assert told["answers"][0]["commitment"] == "72" * 32
    assert told["answers"][0]["kind"] == "ok"
    assert told["reached"] == 0.993188


@pytest.mark.parametrize(
    "name", ["", "8f14", "8F14E45FCEEA167A5A36DEDD", "../../v1/account", "8f14e45fceea167a5a36d\n"]
)
def test_attack_what_is_no_task_id_is_asked_of_nobody(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", name, "--discovery", "http://127.0.0.1:9"])
    assert ended.value.code == 2
    assert "is no task's id" in capsys.readouterr().err
