"""The language layer: clear errors for honest authors, equal results for every replica."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest

from ec262.sandbox.launcher import Sandbox
from ec262.sandbox.policy import DEFAULT, STANDARD_MODULES
from tests.sandbox.modes import HERE, POLICIES, OtherUser, Runner, one, several


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("import socket", "module socket is not available in the sandbox"),
        ("import os.path", "module os.path is not available in the sandbox"),
        ("from subprocess import run", "module subprocess is not available in the sandbox"),
        ("import time", ""),
        ("import time; time.time()", "has no attribute 'time'"),
        ("open('x')", "function open is not available in the sandbox"),
        ("eval('1')", "function eval is not available in the sandbox"),
        ("exec('1')", "function exec is not available in the sandbox"),
        ("input()", "function input is not available in the sandbox"),
        ("breakpoint()", "function breakpoint is not available in the sandbox"),
        ("from . import x", "relative import"),
        ("import random; random._os", "no attribute '_os'"),
        ("import random; random.SystemRandom()", "random.SystemRandom is not available"),
        ("import uuid; uuid.uuid1()", "uuid.uuid1 is not available in the sandbox: tasks have no clock"),
        ("import datetime; datetime.datetime.now()", "datetime.now is not available in the sandbox: tasks have"),
        ("import datetime; datetime.date.today()", "date.today is not available"),
        ("from datetime import datetime; datetime.utcnow()", "datetime.utcnow is not available"),
        ("import string; string.Template.delimiter = '%'", "immutable type 'Template'"),
        ("import json; json.JSONDecoder.decode = None", "immutable type 'JSONDecoder'"),
        ("import statistics; statistics.random", "no attribute 'random'"),
    ],
)
def test_error_says_what_is_not_available(source: str, complaint: str, runner: Runner) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def mapper(k, v):\n    {source}\n    return 'done'", namespace)
    outcome = one(runner, "full", namespace["mapper"], 0)
    if not complaint:
        assert outcome.parts == [b"done"]
    else:
        assert outcome.error is not None, outcome.parts
        assert complaint in outcome.error.message


def _words(text: str) -> list[str]:
    return text.split()


def _everything(names: list[str], _: Any) -> str:
    return json.dumps(sorted(name for name in names if __import__(name) is not None))


def test_what_a_job_may_want_is_there(runner: Runner) -> None:
    wanted = _words(
        """
        math cmath statistics decimal fractions itertools functools collections heapq bisect operator re string textwrap
        json base64 binascii hashlib hmac zlib struct random datetime calendar unicodedata array copy enum dataclasses
        typing abc uuid difflib
        """
    )
    outcome = one(runner, "full", _everything, wanted)
    assert outcome.error is None
    assert json.loads(outcome.parts[0]) == sorted(wanted)
    assert set(wanted) <= STANDARD_MODULES


def _uses_a_lot(_: Any, __: Any) -> str:
    import array  # noqa: PLC0415
    import base64  # noqa: PLC0415
    import calendar  # noqa: PLC0415
    import collections.abc  # noqa: PLC0415
    import copy  # noqa: PLC0415
    import dataclasses  # noqa: PLC0415
    import decimal  # noqa: PLC0415
    import difflib  # noqa: PLC0415
    import enum  # noqa: PLC0415
    import fractions  # noqa: PLC0415
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415
    import re  # noqa: PLC0415
    import statistics  # noqa: PLC0415
    import string  # noqa: PLC0415
    import textwrap  # noqa: PLC0415
    import typing  # noqa: PLC0415
    import unicodedata  # noqa: PLC0415
    import zlib  # noqa: PLC0415
    from datetime import date, datetime, timedelta  # noqa: PLC0415

    class Shade(enum.IntFlag):
        LIGHT = 1
        DARK = 2

    @dataclasses.dataclass(order=True)
    class Row:
        a: int
        b: typing.Any = 2

    moment = datetime.strptime("2024-02-29 12:30 +0100", "%Y-%m-%d %H:%M %z")
    return repr(
        [
            array.array("d", [1, 2]).tobytes().hex(),
            base64.b85encode(b"xyz"),
            calendar.monthrange(2024, 2),
            isinstance([], collections.abc.Sequence),
            copy.deepcopy({"a": [1]}),
            dataclasses.astuple(Row(1)),
            decimal.Decimal(1) / 3,
            difflib.get_close_matches("appel", ["apple", "ape"]),
            Shade.LIGHT | Shade.DARK,
            fractions.Fraction(1, 3) + 1,
            hashlib.blake2b(b"x").hexdigest()[:8],
            hmac.new(b"k", b"v", "sha256").hexdigest()[:8],
            re.sub(r"(?P<x>\w)", r"<\g<x>>", "ab"),
            statistics.stdev([1, 2, 4]),
            string.Template("$a").substitute(a=1),
            textwrap.fill("a b c", 3),
            unicodedata.name("é"),
            zlib.crc32(b"x"),
            "straße".encode("utf-16-le").hex(),
            "x".encode("idna"),
            moment.isoformat(),
            (moment + timedelta(days=1)).date() > date(2024, 2, 29),
            isinstance(moment, datetime),
            isinstance(moment, date),
            moment.astimezone(UTC).strftime("%A %d %B"),
            f"{1234.5:,.2f} {12:b} {'x':>3}",
            int("٣"),
            "ß".upper(),
        ]
    )


def test_honest_work_gives_what_it_gives_outside(runner: Runner) -> None:
    outcome = one(runner, "full", _uses_a_lot)
    assert outcome.parts == [_uses_a_lot(None, None).encode()], outcome.error


# --- determinism ---------------------------------------------------------------------------------------------


def _chance(_: Any, __: Any) -> str:
    import random  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    mine = random.Random()
    return repr([random.random(), mine.random(), uuid.uuid4(), random.sample(range(99), 3), list({"a", "b", "c", "d"})])


def _dirty(_: Any, __: Any) -> str:
    """What one task may leave behind for the next, were it not for fresh globals."""
    import calendar  # noqa: PLC0415
    import decimal  # noqa: PLC0415
    import math  # noqa: PLC0415
    import random  # noqa: PLC0415

    seen = repr([len(_LOG), calendar.firstweekday(), decimal.getcontext().prec, math.pi, random.random(), len("abc")])
    _LOG.append(1)
    calendar.setfirstweekday(3)
    decimal.getcontext().prec = 3
    math.pi = 3  # type: ignore[misc]
    __builtins__["len"] = lambda _: 0
    return seen


_LOG: list[int] = []


def test_no_task_leaves_anything_for_the_next(runner: Runner) -> None:
    outcomes = several(runner, "full", _dirty, [0] * 5)
    assert {outcome.kind for outcome in outcomes} == {"ok"}, outcomes
    assert len({outcome.parts[0] for outcome in outcomes}) == 1


def test_chance_depends_on_the_input_alone(runner: Runner) -> None:
    alone = [one(runner, "full", _chance, n).parts for n in range(4)]
    together = [outcome.parts for outcome in several(runner, "full", _chance, [3, 2, 1, 0, 0, 1])]
    assert together == [alone[3], alone[2], alone[1], alone[0], alone[0], alone[1]]
    assert len({parts[0] for parts in alone}) == 4


def test_another_worker_gives_the_same_bytes(runner: Runner, other_user: OtherUser) -> None:
    one(other_user, "full", _uses_a_lot)  # another job first
    for function in (_chance, _uses_a_lot, _dirty):
        assert one(runner, "full", function, 7).parts == one(other_user, "full", function, 7).parts


def _set_order(_: Any, __: Any) -> str:
    return "".join({"alpha", "beta", "gamma", "delta", "epsilon"})


def test_another_hash_seed_shows_dependence_on_set_order(monkeypatch: pytest.MonkeyPatch, runner: Runner) -> None:
    """What the determinism check builds on: the same job under two set orders."""
    seen = {one(runner, "full", _set_order).parts[0]}
    for seed in (1, 2, 3):
        monkeypatch.setitem(POLICIES, "seeded", replace(DEFAULT, hash_seed=seed))
        mine = Runner()
        seen.add(one(mine, "seeded", _set_order).parts[0])
        mine.close()
    assert len(seen) > 1


def test_volunteer_may_allow_a_module() -> None:
    def mapper(_: Any, __: Any) -> str:
        import tomllib  # noqa: PLC0415

        return str(tomllib.loads("a = 1")["a"])

    policy = replace(DEFAULT, extra_modules=frozenset({"tomllib"}))
    runner = Runner()
    runner._open["extra", "call"] = Sandbox(policy=policy, executor="executors:call", import_paths=[str(HERE)])
    try:
        assert one(runner, "extra", mapper).parts == [b"1"]
        refused = one(runner, "full", mapper)
        assert refused.error is not None
        assert refused.error.message == "module tomllib is not available in the sandbox"
    finally:
        runner.close()
