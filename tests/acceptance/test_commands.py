"""The commands as an operator meets them: wrong flags and broken surroundings end in a sentence, not in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from discovery.store.server import start_server
from tests.processes import ROOT


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of ``ec262`` to its end."""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET", "EC262_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "ec262.cli", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["discovery", "--port", "99999"], 2, "--port has to be from 0 to 65535"),
        (["discovery", "--starting-credits", "-1"], 2, "--starting-credits has to be from 0 to"),
        (["discovery", "--starting-credits", "9000000000000000000"], 2, "--starting-credits has to be from 0 to"),
        (["discovery", "--network", "secret"], 2, "invalid choice"),
        (["discovery", "--port", "0", "--data-dir", "{tmp}", "--redis", "nonsense"], 1, "redis://HOST:PORT/DB"),
        (["discovery", "--port", "0", "--data-dir", "{tmp}", "--redis", "redis://127.0.0.1:1"], 1, "--redis redis://127.0.0.1:1"),
        (["discovery", "--port", "0", "--data-dir", "/proc/nowhere"], 1, "/proc/nowhere"),
        (["discovery", "--port", "0", "--host", "192.0.2.1", "--data-dir", "{tmp}"], 1, "Cannot listen on"),
        (["worker", "--discovery", "http://example.invalid"], 1, "EC262_PLAIN_HTTP"),
        (["worker", "--port", "many"], 2, "--port"),
        (["worker", "--slots", "0"], 2, "--slots"),
        (["balance", "--discovery", "http://127.0.0.1:1"], 1, "no account at http://127.0.0.1:1 yet"),
        (["ledger", "verify", "--data-dir", "{tmp}/none"], 1, "is no directory of a discovery service"),
        (["ledger", "verify", "--redis", "redis://127.0.0.1:1"], 1, "does not answer"),
        (["ledger"], 2, "required"),
        ([], 2, "required"),
        (["nonsense"], 2, "invalid choice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    done = run(*[word.format(tmp=tmp_path / "data") for word in words], home=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_in_use_is_named(tmp_path: Path) -> None:
    with start_server(tmp_path / "data"):
        for words in (["discovery", "--port", "0"], ["ledger", "verify"]):
            done = run(*words, "--data-dir", str(tmp_path / "data"), home=tmp_path)
            assert done.returncode == 1
            assert str(tmp_path / "data") in done.stderr
            assert "Traceback" not in done.stderr
    assert "while its discovery is stopped" in done.stderr


@pytest.mark.parametrize("words", [[], ["worker"], ["discovery"], ["balance"], ["ledger"], ["ledger", "verify"]])
def test_help_has_examples_or_flags(tmp_path: Path, words: list[str]) -> None:
    done = run(*words, "--help", home=tmp_path)
    assert done.returncode == 0
    assert "usage: " in done.stdout


def test_ledger_verify_of_clean_books(tmp_path: Path) -> None:
    with start_server(tmp_path / "data"):
        pass
    done = run("ledger", "verify", "--data-dir", str(tmp_path / "data"), home=tmp_path)
    assert (done.returncode, "the books are clean" in done.stdout) == (0, True), done.stderr
