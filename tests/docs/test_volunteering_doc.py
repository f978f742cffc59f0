"""docs/volunteering.md names what there is: every preference, every flag on terms, and commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from ec262.cli.worker_terms import FIELDS
from ec262.worker.preferences import _KEYS, choose
from tests.processes import ROOT

TEXT = (ROOT / "docs" / "volunteering.md").read_text(encoding="utf-8")


def test_the_table_has_every_key_and_flag() -> None:
    section = TEXT.partition("## On your terms")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    keys = [key for row in rows for key in re.findall(r"`([a-z_]+)`", row[1])]
    assert sorted(keys) == sorted(_KEYS)
    flags = {flag for row in rows for flag in re.findall(r"`--([a-z-]+)`", row[2])}
    assert {name.replace("_", "-") for name in FIELDS} <= flags


def test_the_example_of_a_file_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "worker.toml").write_text(example)
    settings, discovery, _ = choose(tmp_path)
    said = tomllib.loads(example)
    assert discovery == said["discovery"]
    assert (settings.slots, settings.niceness, settings.hours) == (
        said["slots"],
        said["niceness"],
        tuple(said["hours"]),
    )


def test_its_commands_have_flags_that_exist() -> None:
    blocks = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    mine = [words for words in commands if words[:2] == ["ec262", "worker"]]
    assert len(mine) >= 5
    for words in mine:
        inner = [word for word in words[2:3] if not word.startswith("-")]
        known = subprocess.run(
            [sys.executable, "-m", "ec262.cli", "worker", *inner, "--help"],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
        for word in words:
            if word.startswith("-"):
                assert word in known, words


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("http") or (ROOT / "docs" / link).exists(), link
