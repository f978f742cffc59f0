"""Jobs whose input all machines of a cluster see: discovery, workers and foreman as real processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ec262
from ec262.storage.inputs import SharedStorage
from tests.acceptance.conftest import Network

LINES = [f"line {number} of the book {'x' * (number % 50)}\n" for number in range(4000)]


def words(name: str, line: str) -> Iterator[tuple[Any, int]]:
    ec262.counter("lines").add()
    yield ec262.input_name(), 1
    for word in line.split():
        yield word, 1


def total(word: Any, counts: list[int]) -> int:
    return sum(counts)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A directory that the workers serve."""
    made = tmp_path / "books"
    (made / "old").mkdir(parents=True)
    (made / "old" / "one.txt").write_text("".join(LINES))
    (made / "two.txt").write_text("".join(LINES[:10]))
    (tmp_path / "secret.txt").write_text("the secret\n" * 3)
    return made


def test_workers_read_their_part_themselves(make_network: Callable[..., Network], books: Path) -> None:
    network = make_network()
    serving = [network.worker("--data-dir", f"books={books}") for _ in range(2)]
    other = network.worker()
    shared = SharedStorage("books", str(books))
    job = ec262.submit(
        ec262.files("old/one.txt", "two.txt", shared=shared),
        mapper=words,
        reducer=total,
        discovery=network.url,
        split_size=8192,
        reducers=1,
        requirements=[shared.capability],
    )
    result = job.result(100)
    expected = Counter(" ".join([*LINES, *LINES[:10]]).split())
    assert {word: result[word] for word in expected} == expected
    assert (result["old/one.txt"], result["two.txt"]) == (4000, 10)
    earned = job.report().earned
    assert set(earned) <= {str(worker.ready["worker_id"]) for worker in serving}
    assert str(other.ready["worker_id"]) not in earned
    assert sum(earned.values()) > 10


def test_a_storage_that_has_changed_fails_the_job_by_name(
    make_network: Callable[..., Network], books: Path, tmp_path: Path
) -> None:
    """What the workers serve is not what the job's author sees: one of them has a link out in the file's place."""
    network = make_network()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "two.txt").symlink_to(tmp_path / "secret.txt")
    worker = network.worker("--data-dir", f"books={theirs}")
    shared = SharedStorage("books", str(books))
    with pytest.raises(ec262.EC262Error) as caught:
        ec262.run_job(
            ec262.files("two.txt", shared=shared),
            mapper=words,
            discovery=network.url,
            requirements=[shared.capability],
            max_retries=1,
            wait_for_workers_s=2.0,
        )
    assert "secret" not in str(caught.value)
    assert str(theirs) not in str(caught.value)
    assert "two.txt: not a regular file" in str(caught.value), "the worker says why it refused the task"
    told = worker.log.read_text()
    assert "refused a task" in told
    assert "Traceback" not in told, "it is no fault of the worker"
