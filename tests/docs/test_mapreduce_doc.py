"""docs/mapreduce.md: every Python block and command is run as it stands there, in one directory, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ec262.mapreduce.records import Reader
from ec262.policy import Policy
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "mapreduce.md").read_text(encoding="utf-8")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "book_00").write_text("to be or\n")
    (tmp_path / "book_01").write_text("not to be\n")
    (tmp_path / "my_program.py").write_text(
        "import ec262\ndef words(name, line):\n    for word in line.split():\n        yield word, 1\n"
        "Program = ec262.Program(words, lambda word, counts: sum(counts))\n"
    )
    return {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def test_python_blocks_run_one_after_the_other(tmp_path: Path, environment: dict[str, str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    path = tmp_path / "page.py"
    path.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert sorted(each.name for each in tmp_path.glob("count_*")) == [
        "count_00",
        "count_01",
        "count_02",
        "count_manifest.json",
    ]

    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[0] == "ec262"
            done = subprocess.run(
                [sys.executable, "-m", "ec262.cli", *words[1:]],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "count_all").read_text() == "be\t2\nnot\t1\nor\t1\nto\t2\n"


def test_readers_and_options_that_the_page_names_exist() -> None:
    for kind in re.findall(r'^\| `"(\w+)"`.*\|.*\|.*\|$', PAGE, re.MULTILINE):
        if kind not in ("local", "processes", "network", "dask"):
            Reader(kind, record_size=5 if kind == "records" else 0)
    for name in ("max_retries", "on_failure", "max_credits", "split_size", "memory_limit", "timeout_s"):
        assert f"`{name}" in PAGE
        assert name in Policy.__dataclass_fields__
