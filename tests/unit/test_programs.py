"""The named programs on text and records give what plain sequential code gives, however the input is cut."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ec262.errors import ProgramError
from ec262.mapreduce.program import Program
from ec262.programs import NAMES, find
from ec262.programs.sort_records import prepare as with_record_size
from ec262.sandbox.launcher import Sandbox, UnitTask
from ec262.sandbox.pack import load_program, pack_program
from ec262.storage.inputs import files
from tests import gensort, reference
from tests.processes import ROOT
from tests.sandbox.test_pack import _from_elsewhere
from tests.sequential import run

BOOK = ROOT / "examples" / "data" / "new_testament.txt"
TEXT = [
    pytest.param("wordcount", {}, reference.wordcount, id="wordcount"),
    pytest.param("sort", {}, reference.sort, id="sort"),
    pytest.param("inverted_index", {}, reference.inverted_index, id="inverted_index"),
    pytest.param("grep", {"pattern": "[aeß]b|^$"}, lambda f: reference.grep(f, "[aeß]b|^$"), id="grep"),
    pytest.param(
        *("grep", {"pattern": "THE L", "ignore_case": 1}, lambda f: reference.grep(f, "THE L", ignore_case=True)),
        id="grep, any case",
    ),
]
Reference = Callable[[Sequence[str | Path]], bytes]


def program(name: str) -> Program:
    made = find(name).program
    assert isinstance(made, Program)
    return made


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Text in every shape there is."""
    folder = tmp_path_factory.mktemp("texts")
    chance = random.Random(262)
    book = BOOK.read_bytes()[:30_000]
    contents = {
        "empty": b"",
        "newline": b"\n",
        "newlines": b"\n\n\r\n\n",
        "no newline at the end": b"the lamb\nab",
        "crlf": book[:9_000].replace(b"\n", b"\r\n"),
        "crlf and no end": b"ab\r\ncab\r",
        "lone cr": b"ab\rdab \r\r\nab\r\r\n",
        "one huge line": book[9_000:20_000].replace(b"\n", b" "),
        "not utf-8": b"".join(bytes(chance.choices(range(256), k=40)) + b" ab \xe2\x82\n" for _ in range(80)),
        "wide": "Maß ab süß 𝔞𝔟 \u2028ab\u00a0ab\x0bab\x1cab ab\n".encode() * 3,
        "escapes": b"a\\b\tab\\n ab\x00 \\\n",
        "equal": b"ab\n" * 500,
        "book": book[20_000:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@pytest.mark.parametrize("name, params, expected", TEXT)
def test_text_as_the_reference_has_it(
    name: str, params: dict[str, Any], expected: Reference, texts: list[Path]
) -> None:
    wanted = expected(texts)
    assert wanted
    for split_size, partitions in ((1, 2), (997, 5), (1 << 20, 1)):
        assert run(program(name), texts, params=params, split_size=split_size, partitions=partitions).output == wanted


@pytest.mark.parametrize("name, params, expected", TEXT)
def test_each_file_alone(name: str, params: dict[str, Any], expected: Reference, texts: list[Path]) -> None:
    for file in texts:
        assert run(program(name), [file], params=params, split_size=100).output == expected([file]), file.name


@pytest.mark.parametrize("name, params, expected", TEXT)
def test_a_book_of_a_megabyte(name: str, params: dict[str, Any], expected: Reference) -> None:
    done = run(program(name), [BOOK], params=params, split_size=100_000, partitions=4)
    assert done.output == expected([BOOK])
    if name == "grep":
        assert done.counters == {"matches": done.output.count(b"\n")}


def test_no_file_has_anything(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for name in NAMES:
        assert run(program(name), [empty], params={"pattern": "a"}).output == b""


def test_a_pattern_that_is_none_is_refused_before_the_job_starts() -> None:
    grep = program("grep")
    assert grep.required == ("pattern",)
    assert grep.prepare is not None
    assert grep.prepare({"pattern": "a+"}, None) == {"pattern": "a+"}
    with pytest.raises(ProgramError, match=r"pattern '\(' is no regular expression"):
        grep.prepare({"pattern": "("}, None)


def test_there_is_no_other_program() -> None:
    assert find("inverted-index") is find("inverted_index")
    for name in ("__init__", "hamming", "hamming.code", "os", ""):
        with pytest.raises(ProgramError, match=r"there are wordcount, grep"):
            find(name)


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [None, 40], ids=["any key", "equal keys"])
def test_records_are_sorted_and_none_is_lost(keys: int | None, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        path.write_bytes(b"".join(gensort.records(3_000, seed=seed, keys=keys)))
    before = reference.valsort(piece for path in paths for piece in reference.pieces_of(path))
    assert before.count == 6_000
    assert before.unordered > 1_000
    for split_size, partitions in ((7_777, 5), (1 << 20, 1)):
        made = run(program("sort_records"), paths, split_size=split_size, partitions=partitions).output
        assert made == reference.sort_records(paths)
        after = reference.valsort([made[:12_345], made[12_345:]])
        assert (after.count, after.checksum) == (before.count, before.checksum)
        assert (after.unordered, after.first_unordered) == (0, -1)
        assert after.duplicates == (
            0 if keys is None else 6_000 - len({made[at : at + 10] for at in range(0, 600_000, 100)})
        )


def test_records_of_another_size_and_key(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(random.Random(1).randbytes(7 * 500))
    given = files(str(path), reader="records", record_size=7)
    params = dict(with_record_size({"key_size": 1}, given))
    assert params == {"key_size": 1, "record_size": 7}
    sort = program("sort_records")
    made = run(dataclasses.replace(sort, reader=given.reader), [path], params=params, split_size=100)
    assert made.output == reference.sort_records([path], record_size=7, key_size=1)
    for key_size in (0, 8, "1"):
        with pytest.raises(ProgramError, match="key_size is a number of bytes from 1 to 7"):
            with_record_size({"key_size": key_size}, given)


def test_a_record_that_is_not_whole_is_not_sorted(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(bytes(250))
    with pytest.raises((ValueError, ProgramError), match=r"records.*byte 200"):
        run(program("sort_records"), [path])


def test_gensort_makes_the_same_rows_whatever_their_number(tmp_path: Path) -> None:
    assert gensort.main(["12345", str(tmp_path / "records"), "--seed", "7"]) == 0
    made = (tmp_path / "records").read_bytes()
    assert len(made) == 1_234_500
    assert made == b"".join(gensort.records(20_000, seed=7))[:1_234_500]
    assert made != b"".join(gensort.records(12_345, seed=8))
    assert int(made[12_300 * 100 + 12 : 12_300 * 100 + 44], 16) == 12_300


def test_valsort_finds_what_is_wrong() -> None:
    rows = [bytes([key]) * 100 for key in (1, 2, 2, 5, 4, 3, 6)]
    found = reference.valsort(rows)
    assert (found.count, found.duplicates, found.unordered, found.first_unordered) == (7, 1, 2, 4)
    assert found.checksum == reference.valsort(rows[::-1]).checksum != reference.valsort(rows[1:]).checksum
    with pytest.raises(ValueError, match="1 bytes are left"):
        reference.valsort([*rows, b"x"])


# --- as shipped -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.mark.parametrize("form", ["pickle", "source"])
@pytest.mark.parametrize("name", NAMES)
def test_programs_do_the_same_in_the_sandbox(name: str, form: str, sandbox: Sandbox, tmp_path: Path) -> None:
    path, params = tmp_path / "input", {}
    if name.startswith("hamming"):
        path.write_bytes(random.Random(3).randbytes(2 * 65_536))
        if name != "hamming.encode":
            path.write_bytes(reference.hamming_error(reference.hamming_encode(path.read_bytes()), rate=0.01))
        params = {"rate": 0.1, "per_block": 2, "seed": "x"} if name == "hamming.error" else {}
    elif name == "sort_records":
        path.write_bytes(b"".join(gensort.records(500, keys=100)))
    else:
        path.write_bytes(BOOK.read_bytes()[:20_000])
        params = {"pattern": "Jesus"} if name == "grep" else {}

    def confined(program: Program, parts: Sequence[bytes]) -> list[bytes]:
        blob = pack_program(program)
        tasks, outcomes = [UnitTask(0, list(parts))], []
        sandbox.run_unit(
            blob if form == "pickle" else _from_elsewhere(blob),
            lambda: tasks.pop() if tasks else None,
            lambda _, outcome: outcomes.append(outcome),
        )
        (outcome,) = outcomes
        assert outcome.kind == "ok", outcome.error
        return list(outcome.parts)

    expected = run(program(name), [path], split_size=80_000, params=params)
    assert expected.output
    assert run(program(name), [path], split_size=80_000, params=params, execute=confined) == expected


def test_packed_programs_are_small() -> None:
    for name in NAMES:
        blob = pack_program(program(name))
        assert len(blob) < 80_000, (name, len(blob))
        assert load_program(blob).mapper.__name__ == program(name).mapper.__name__
