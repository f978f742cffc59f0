"""Partitioner: equal keys meet in one partition, on every machine the same."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import ValueNotPortable
from ec262.mapreduce.partition import partition_of

QUICK = settings(max_examples=150, deadline=None)
numbers = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
keys = st.recursive(
    st.one_of(st.none(), numbers, st.text(st.characters(exclude_categories=[]), max_size=8)),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)

# The same on every machine and every Python: a map task and the partition's reduce task never agree otherwise.
GOLDEN: list[tuple[Any, int, int, int]] = [
    ("", 0, 0, 0),
    ("a", 4, 3, 48707),
    ("humpty", 5, 15, 29135),
    ("Dumpty", 0, 2, 46210),
    ("é", 4, 62, 36158),
    ("\ud800", 1, 40, 42280),
    (None, 4, 15, 64591),
    (0, 4, 33, 57121),
    (1, 2, 55, 61367),
    (-1, 6, 42, 18474),
    (10**30, 6, 39, 12327),
    (0.5, 1, 13, 61837),
    (1e300, 4, 32, 10656),
    ((), 6, 37, 48805),
    ((1, "a"), 4, 61, 44093),
    (((None,), 2.5), 3, 44, 64748),
]


@pytest.mark.parametrize(("key", "of_7", "of_64", "of_65536"), GOLDEN)
def test_golden_partitions(key: Any, of_7: int, of_64: int, of_65536: int) -> None:
    assert (partition_of(key, 7), partition_of(key, 64), partition_of(key, 65_536)) == (of_7, of_64, of_65536)


@QUICK
@given(keys, st.integers(1, 1000))
def test_a_partition_is_in_range(key: Any, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions
    assert partition_of(key, 1) == 0


def equal_forms(key: Any) -> list[Any]:
    """Keys that Python holds equal to `key`."""
    forms = [key]
    if isinstance(key, (bool, int, float)):
        if isinstance(key, int) and abs(key) < 2**1000 and int(float(key)) == key:
            forms += [float(key), int(key)]
        if key in (0, 1):
            forms += [bool(key), int(key), float(key)]
        if key == 0:
            forms += [-0.0]
        if isinstance(key, float) and key.is_integer():
            forms += [int(key)]
    if isinstance(key, tuple):
        forms += [tuple(equal_forms(item)[-1] for item in key)]
    return forms


@QUICK
@given(keys, st.integers(1, 1000))
def test_equal_keys_fall_into_one_partition(key: Any, partitions: int) -> None:
    forms = equal_forms(key)
    assert all(form == key and hash(form) == hash(key) for form in forms)
    assert len({partition_of(form, partitions) for form in forms}) == 1


@pytest.mark.parametrize(
    "equal",
    [
        [1, 1.0, True],
        [0, 0.0, -0.0, False],
        [(0.0,), (-0.0,), (False,), (0,)],
        [((1, "a"),), ((True, "a"),), ((1.0, "a"),)],
        [10**22, 1e22],
        [2**53, float(2**53)],
    ],
)
def test_what_python_holds_equal(equal: list[Any]) -> None:
    assert len(set(equal)) == 1
    assert len({partition_of(key, 65_536) for key in equal}) == 1


def test_words_spread_over_partitions() -> None:
    counts = [0] * 8
    for number in range(8000):
        counts[partition_of(f"word {number}", 8)] += 1
    assert min(counts) > 800


def test_another_process_with_another_hash_seed_agrees() -> None:
    code = "from ec262.mapreduce.partition import partition_of as p; print([p(k, 997) for k in ('a', 1, (None, 'b'))])"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout
    assert printed.strip() == str([partition_of(key, 997) for key in ("a", 1, (None, "b"))])


@pytest.mark.parametrize("key", [math.nan, math.inf, (1, math.nan), frozenset(), 1j])
def test_what_cannot_be_a_key_is_named(key: Any) -> None:
    with pytest.raises(ValueNotPortable, match="mapper count"):
        partition_of(key, 3, where="mapper count")


def test_a_key_of_too_many_digits_is_named() -> None:
    with pytest.raises(ValueNotPortable, match=r"mapper count.*4300 digits"):
        partition_of(10**4300, 3, where="mapper count")
