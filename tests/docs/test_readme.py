"""The README's program and commands are run as they stand there; only ports, directories and hosts are swapped."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ec262.policy import Policy
from tests.processes import ROOT, START_S, nothing_left

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """All console lines."""
    return [line.split("#")[0].strip() for block in blocks("console") for line in block.splitlines()]


def command(start: str) -> list[str]:
    """The words of the one command that starts so (the first, where several do)."""
    return shlex.split(next(line for line in commands() if line.startswith(start)))


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """As a person's, with an empty home and this Python first on the path."""
    made = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET", "EC262_HOME", "XDG_CONFIG_HOME"):
        made.pop(name, None)
    with nothing_left():
        yield made


def test_the_job_prints_what_the_readme_says(tmp_path: Path, environment: dict[str, str]) -> None:
    (program,) = blocks("python")
    expected = re.search(r"^prints\n\n```\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    assert expected is not None
    path = tmp_path / "job.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == expected[1]


def listening(process: subprocess.Popen[str], pattern: str) -> str:
    """What a process says on standard error once it serves: the first match of `pattern`."""
    assert process.stderr is not None
    text = ""
    deadline = time.monotonic() + START_S
    while not (found := re.search(pattern, text)):
        ready, _, _ = select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(process.stderr.fileno(), 4096).decode() if ready else ""
        assert piece, f"it did not say that it serves: {text}"
        text += piece
    return found[1]


def test_three_terminals(tmp_path: Path, environment: dict[str, str]) -> None:
    running: list[subprocess.Popen[str]] = []

    def start(words: list[str], **swap: str) -> subprocess.Popen[str]:
        words = [swap.get(word, word) for word in words]
        words[:1] = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "ec262.cli"]
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    try:
        data = str(tmp_path / "data")
        discovery = start(command("ec262 discovery --network private"), **{"26262": "0", "./discovery-data": data})
        url = listening(discovery, r"at (http://\S+)")
        workers = [line for line in commands() if line.startswith("python worker.py -v -P")]
        assert len(workers) == 2
        for line in workers:
            words = shlex.split(line)
            worker = start([*words[:3], "-P", "0", "--discovery", url])
            listening(worker, r"in the pool of (\S+)")
        (job,) = [shlex.split(line) for line in commands() if "python example.py" in line]
        assert job == ["EC262_HOME=./foreman", "EC262_DISCOVERY=http://127.0.0.1:26262", "python", "example.py"]
        done = subprocess.run(
            [sys.executable, "example.py"],
            env={**environment, "EC262_HOME": str(tmp_path / "foreman"), "EC262_DISCOVERY": url},
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "cost 5 credits" in done.stdout
        assert "had 1000000 credits and has 999995" in done.stdout

        def stored(path: Path) -> dict[str, int]:
            """What `curl -u ACCOUNT:SECRET` shows of the account that is stored there."""
            (known,) = json.loads((path / "credentials.json").read_text())["discoveries"].values()
            answer = requests.get(f"{url}/", auth=(known["account_id"], known["secret"]), timeout=10)
            return dict(answer.json()["account"])

        paid, earned = stored(tmp_path / "foreman"), stored(tmp_path / ".config" / "ec262")
        assert (paid["balance"], paid["spent"]) == (999_995, 5)
        assert (earned["balance"], earned["earned"]) == (1_000_005, 5)
        time.sleep(1.05)
        after = requests.get(f"{url}/v1/credits", timeout=10).json()
        assert after["minted"] - after["burnt"] == after["accounts"] + after["escrow"]
        assert after["minted"] == paid["balance"] + earned["balance"]
        shown = subprocess.run(
            [sys.executable, "-m", "ec262.cli", "balance", "--discovery", url],
            env=environment, capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        assert "earned   5, spent 0, workers 2" in shown.stdout
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert [process.returncode for process in running] == [0, 0, 0], "Ctrl-C is a clean end"


def test_every_command_of_the_readme_has_flags_that_exist() -> None:
    for line in commands():
        words = [word for word in shlex.split(line) if "=" not in word]  # flags of the environment aside
        if words[0] in ("make", "curl", "pip", "docker", ".") or words[1:] in (["example.py"], ["-m", "venv", ".venv"]):
            continue
        program = ["worker.py"]
        if words[0] == "ec262":
            program = ["-m", "discovery"] if words[1] == "discovery" else ["-m", "ec262.cli", words[1]]
        known = subprocess.run(
            [sys.executable, *program, "--help"],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
        for word in words:
            if word.startswith("-"):
                assert word in known, line


def test_the_options_table_names_every_option() -> None:
    table = set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\|.*", README, re.MULTILINE))))
    fields = set(Policy.__dataclass_fields__) - {"python", "max_replicas"}
    assert fields <= table


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
