"""docs/protocol.md and the code say the same, in both directions: its tables are read and compared."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from discovery.settings import PRIVATE_CREDITS, PUBLIC_CREDITS, Settings
from ec262.protocol import messages as m
from ec262.protocol.keys import Label
from ec262.protocol.problems import PROBLEMS
from ec262.protocol.receipts import Kind
from ec262.protocol.routes import EVERYWHERE, ROUTES
from ec262.protocol.states import HOLDS_ESCROW, REPLICA_TRANSITIONS, TASK_TRANSITIONS, ReplicaState, TaskState

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
NONE = "–"


def section(heading: str) -> str:
    """What stands under a heading of any level, up to the next heading."""
    found = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} sections called {heading}"
    return str(found[0])


def table(heading: str) -> list[dict[str, str]]:
    """The rows of the table under a heading, by column."""
    lines = [line.strip() for line in section(heading).splitlines() if line.startswith("|")]
    names, ruler, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(set(cell) <= set("-:") for cell in ruler)
    assert rows
    assert all(len(row) == len(names) for row in rows), heading
    return [dict(zip(names, row, strict=True)) for row in rows]


def codes(cell: str) -> list[str]:
    """What stands in back-quotes."""
    return re.findall(r"`([^`]+)`", cell)


def code(cell: str) -> str:
    (only,) = codes(cell)
    return only


def test_routes() -> None:
    written = [
        (
            row["Party"],
            code(row["Route"]),
            row["Method"],
            code(row["Path"]),
            row["Auth"],
            codes(row["Body"]),
            codes(row["Answer"]),
            codes(row["Problems"]),
            row["Most bytes"],
            row["What for"],
        )
        for row in table("Routes of both parties")
    ]
    built = [
        (
            route.party,
            route.name,
            route.method,
            route.path + ("?" + "&".join(route.query) if route.query else ""),
            route.auth,
            [route.request.__name__] if route.request else [],
            [route.response.__name__] if route.response else [],
            list(route.problems),
            _size(route.max_body_bytes) if route.request else NONE,
            route.summary,
        )
        for route in ROUTES
    ]
    assert written == built


def _size(count: int) -> str:
    return f"{count // 1024} KiB" if count < 1024 * 1024 else f"{count // (1024 * 1024)} MiB"


def test_problems() -> None:
    written = [(code(row["Code"]), int(row["Status"]), row["Meaning"]) for row in table("Problem codes")]
    assert written == [(kind.code, kind.status, kind.title) for kind in PROBLEMS.values()]


def test_problems_of_every_route() -> None:
    assert tuple(codes(section("Problems of every route"))) == EVERYWHERE


def test_replica_states_and_transitions() -> None:
    assert [code(row["State"]) for row in table("Replica states")] == list(ReplicaState)
    rows = table("Replica transitions")
    written = {(code(row["From"]), row["Event"]): code(row["To"]) for row in rows}
    assert len(written) == len(rows)
    assert written == {(str(state), str(event)): str(to) for (state, event), to in REPLICA_TRANSITIONS.items()}
    for row in rows:
        target = ReplicaState(code(row["To"]))
        expected = {
            ReplicaState.PAID: "to the worker",
            ReplicaState.COMPENSATED: "half to the worker, half back",
            ReplicaState.FORFEITED: "back, unless they have vested",
            ReplicaState.RECLAIMED: "back, where they have not vested",
        }.get(target, "stay in escrow" if target in HOLDS_ESCROW else "back")
        assert row["Credits"] == expected


def test_task_states_and_transitions() -> None:
    assert [code(row["State"]) for row in table("Task states")] == list(TaskState)
    rows = table("Task transitions")
    written = {(code(row["From"]), row["Event"]): code(row["To"]) for row in rows}
    assert len(written) == len(rows)
    assert written == {(str(state), str(event)): str(to) for (state, event), to in TASK_TRANSITIONS.items()}


def test_kinds_of_receipts() -> None:
    rows = table("Kinds of receipts")
    assert [code(row["Kind"]) for row in rows] == list(Kind)
    unpaid = {code(row["Kind"]) for row in rows if row["Voted on and paid"] == "no"}
    assert unpaid == {Kind.REFUSED}


def test_verdicts() -> None:
    verdicts = get_args(get_type_hints(m.TaskVerdict)["verdict"])
    assert [code(row["Verdict"]) for row in table("Verdicts")] == list(verdicts)


def test_keys() -> None:
    rows = table("Keys")
    assert [code(row["Label"]) for row in rows] == [label.value.decode() for label in Label]
    names = {code(row["Label"]) for row in rows} | {"master key", "wrapping key"}
    assert {row["Made from"] for row in rows} <= names


def test_settings() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    del defaults["starting_credits"]
    numbers = {name: default for name, default in defaults.items() if type(default) in (int, float)}
    rows = table("Defaults of discovery")
    assert {code(row["Setting"]): float(row["Default"]) for row in rows} == numbers
    assert f"gives {PRIVATE_CREDITS:,} starting credits" in section("Defaults of discovery")
    assert f"public one gives {PUBLIC_CREDITS}," in section("Defaults of discovery")


@pytest.mark.parametrize("name", ["protocol.md", "architecture.md"])
def test_links_lead_somewhere(name: str) -> None:
    docs = ROOT / "docs"
    text = (docs / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        there = (docs / (file or name)).read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", there, re.MULTILINE)
        }
        assert not anchor or anchor in anchors, target


def test_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:ec262|discovery|tests|docs)/[\w/.*-]*)`", text))
    assert named
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))), path
