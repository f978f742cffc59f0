"""Every named program on real input: the same bytes on all four backends, and what a plain reference gives."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ec262.errors import EC262Error
from ec262.jobs.run import run_job
from ec262.mapreduce.program import Program
from ec262.programs import find
from ec262.storage.collect import collect
from tests import reference
from tests.gensort import records
from tests.processes import ROOT

pytestmark = pytest.mark.usefixtures("own_home")

BACKENDS = ["local", "processes", "network", "dask"]
BOOK = ROOT / "examples" / "data" / "new_testament.txt"

PATTERN = r"wh?al(e|k)s?\b"
TEXT: list[tuple[str, dict[str, Any], Callable[[list[Path]], bytes]]] = [
    ("wordcount", {}, reference.wordcount),
    ("sort", {}, reference.sort),
    ("grep", {"pattern": PATTERN}, lambda files: reference.grep(files, PATTERN)),
    ("inverted_index", {}, reference.inverted_index),
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """About 1.3 MB of text in files of every kind."""
    folder = tmp_path_factory.mktemp("texts")
    book = BOOK.read_bytes()
    chance = random.Random(262)
    contents = {
        "plain": book[:600_000],
        "crlf": book[600_000:700_000].replace(b"\n", b"\r\n"),
        "empty": b"",
        "one_line": book[700_000:900_000].replace(b"\n", b" "),
        "newlines": b"\n\n\r\n\r\n\n",
        "no_newline_at_the_end": b"whales walk",
        "not_utf8": b"".join(bytes(chance.choices(range(256), k=60)) + b" walk\xff whale\n" for _ in range(1000)),
        "tabs": b"a\tb\\c\x0b\x0c\xc2\x85 \xe2\x80\xa8 d\re whale\n" * 50,
        "rest": book[900_000:],
    }
    paths = []
    for name, content in contents.items():
        path = folder / f"text_{name}"
        path.write_bytes(content)
        paths.append(path)
    return paths


def run(
    backend: str,
    cluster: Any,
    program: Program,
    data: Any,
    params: dict[str, Any],
    folder: Path,
    **options: Any,
) -> tuple[bytes, dict[str, bytes], dict[str, int]]:
    """A job with output to files: the collected bytes, the files' bytes, and the counters."""
    folder.mkdir(exist_ok=True)
    prefix = folder / "out"
    report = run_job(
        data,
        program=program,
        params=params,
        backend=backend,
        cluster=cluster if backend == "dask" else None,
        output=str(prefix),
        progress=False,
        wait_for_workers_s=60,
        **options,
    )
    collect(str(prefix), str(folder / "all"))
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("out_[0-9]*"))}
    assert [Path(name).name for name in report.files] == list(files)
    return (folder / "all").read_bytes(), files, report.counters


@pytest.mark.parametrize("name, params, expected", TEXT, ids=[name for name, *_ in TEXT])
def test_text_gives_the_same_bytes_everywhere(
    name: str,
    params: dict[str, Any],
    expected: Callable[[list[Path]], bytes],
    texts: list[Path],
    cluster: Any,
    tmp_path: Path,
) -> None:
    program = find(name).program
    made = {
        backend: run(
            *(backend, cluster, program, [str(path) for path in texts], params, tmp_path / backend),
            split_size=150_000,
            reducers=3,
        )
        for backend in BACKENDS
    }
    assert made["local"][0] == expected(texts)
    for backend in BACKENDS[1:]:
        assert made[backend] == made["local"], backend


@pytest.fixture(scope="module")
def large_texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """100 MB of the same kinds, with words and lines that differ from copy to copy."""
    folder = tmp_path_factory.mktemp("large")
    book = BOOK.read_bytes()
    chance = random.Random(262)
    numbered = b"".join(b"%d %b\n" % (n, line) for n, line in enumerate(book.splitlines()))
    kinds = {
        "plain": (b"".join(numbered.replace(b" ", b" %d" % copy, 500) for copy in range(55))),
        "crlf": b"".join(numbered.replace(b"\n", b"\r\n").replace(b"the ", b"the%d " % n, 900) for n in range(15)),
        "empty": b"",
        "one_line": b" ".join(numbered.replace(b"\n", b" ").replace(b"and ", b"and%d " % n, 900) for n in range(10)),
        "no_newline_at_the_end": numbered * 5 + b"whales walk",
        "not_utf8": b"".join(bytes(chance.choices(range(256), k=60)) + b" walk\xff whale\n" for _ in range(100_000)),
    }
    paths = []
    for name, content in kinds.items():
        path = folder / f"text_{name}"
        path.write_bytes(content)
        paths.append(path)
    assert sum(map(len, kinds.values())) > 95_000_000
    return paths


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name, params, expected", TEXT, ids=[name for name, *_ in TEXT])
def test_a_hundred_megabytes_give_the_same_bytes_everywhere(
    name: str,
    params: dict[str, Any],
    expected: Callable[[list[Path]], bytes],
    large_texts: list[Path],
    cluster: Any,
    tmp_path: Path,
) -> None:
    program = find(name).program
    wanted = expected(large_texts)
    first = None
    for backend in BACKENDS:
        made = run(backend, cluster, program, [str(path) for path in large_texts], params, tmp_path / backend)
        assert made[0] == wanted, backend
        first = first or made
        assert made == first, backend


@pytest.mark.parametrize("split_size", [1 << 20, 997])
def test_the_split_size_does_not_show(split_size: int, texts: list[Path], cluster: Any, tmp_path: Path) -> None:
    some = [str(path) for path in texts if path.stat().st_size < 120_000]
    for name, params, expected in TEXT:
        whole, _, _ = run(
            *("processes", cluster, find(name).program, some, params, tmp_path / name),
            split_size=split_size,
            reducers=2,
        )
        assert whole == expected([Path(each) for each in some]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_records_are_sorted(backend: str, cluster: Any, tmp_path: Path) -> None:
    source = tmp_path / "records"
    source.write_bytes(b"".join(records(20_000, keys=15_000)))
    program = find("sort_records").program
    whole, files, _ = run(
        *(backend, cluster, program, str(source), {}, tmp_path / "made"), split_size=300_000, reducers=4
    )
    assert whole == reference.sort_records([source])
    assert b"".join(files.values()) == whole
    before, after = reference.valsort([source.read_bytes()]), reference.valsort([whole])
    assert after.unordered == 0
    assert (after.count, after.checksum) == (before.count, before.checksum)
    assert min(map(len, files.values())) > 0.5 * max(map(len, files.values())), "the sample cut badly"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:.*is empty, and so will be the result")
@pytest.mark.parametrize("size", [0, 1, 100_001])
def test_hamming_there_and_back(backend: str, size: int, cluster: Any, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_bytes(random.Random(size).randbytes(size))

    def step(name: str, source: str, params: dict[str, Any], target: str) -> tuple[bytes, dict[str, int]]:
        whole, _, counters = run(
            *(
                backend,
                cluster,
                find(f"hamming.{name}").program,
                str(tmp_path / source),
                params,
                tmp_path / f"d{target}",
            ),
            split_size=40_000,
            reducers=2,
        )
        (tmp_path / target).write_bytes(whole)
        return whole, counters

    coded, _ = step("encode", "original", {}, "coded")
    assert coded == reference.hamming_encode(original.read_bytes())
    spoilt, _ = step("error", "coded", {"per_block": 1, "rate": 0.01, "seed": 7}, "spoilt")
    checked, _ = step("check", "spoilt", {}, "checked")
    assert checked == reference.hamming_check(str(tmp_path / "spoilt"), spoilt)
    fixed, _ = step("fix", "spoilt", {}, "fixed")
    assert fixed == coded
    decoded, _ = step("decode", "fixed", {}, "decoded")
    assert decoded == original.read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_errors_in_a_block_are_reported_and_never_decoded(backend: str, cluster: Any, tmp_path: Path) -> None:
    original = random.Random(3).randbytes(70_001)
    coded = tmp_path / "coded"
    coded.write_bytes(reference.hamming_encode(original))
    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(reference.hamming_error(coded.read_bytes(), rate=0.001, per_block=2))
    assert spoilt.read_bytes() != coded.read_bytes()

    def job(name: str, source: Path) -> tuple[bytes, dict[str, bytes], dict[str, int]]:
        program = find(f"hamming.{name}").program
        return run(*(backend, cluster, program, str(source), {}, tmp_path / name), split_size=40_000, reducers=2)

    found, _, _ = job("check", spoilt)
    assert found == reference.hamming_check(str(spoilt), spoilt.read_bytes())
    assert b"blocks with two errors, uncorrectable: 10" in found
    with pytest.raises(EC262Error, match="byte"):
        job("decode", spoilt)
    assert not list((tmp_path / "decode").glob("out_*")), "nothing that could be taken for the original"


def test_policies_travel_to_every_backend(cluster: Any, tmp_path: Path) -> None:
    """What fails is left out and named, in the same words wherever it ran."""

    def mapper(key: int, value: int) -> Any:
        yield value % 3, 10 // (key - 4)

    program = Program(mapper, lambda key, values: sum(values))
    seen = []
    for backend in BACKENDS:
        from ec262.jobs.run import submit  # noqa: PLC0415

        job = submit(
            {key: key for key in range(8)},
            program=dataclasses.replace(program),
            backend=backend,
            cluster=cluster if backend == "dask" else None,
            on_failure="skip",
            rehearse=False,
            wait_for_workers_s=60,
        )
        result = job.result(60)
        failed = [(each.phase, each.number, "ZeroDivisionError" in each.reason) for each in job.report().failed]
        seen.append((result, failed))
        job.close()
    assert seen[0] == (
        {0: 10 // -4 + 10 // -1 + 10 // 2, 1: 10 // -3 + 10 // 3, 2: 10 // -2 + 10 // 1},
        [("map", 4, True)],
    )
    assert all(each == seen[0] for each in seen)
