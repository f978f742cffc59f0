"""A new volunteer: the README's commands from an empty directory to the first credit, over TLS."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import ec262
from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient
from tests.certificates import Authority
from tests.processes import ROOT, Process, nothing_left, until

README = (ROOT / "README.md").read_text()
NO_INDEX = re.compile(r"NewConnectionError|Temporary failure|No matching distribution|ConnectTimeout|No route")


def lending() -> list[str]:
    """The lines that the README has for whoever lends a machine."""
    section = README.partition("## Lend your machine")[2]
    lines = section.partition("```console\n")[2].partition("```")[0].splitlines()
    assert lines[2] == "pip install ."
    assert lines[3] == "ec262 worker -v --discovery https://discovery.example"
    assert len(lines) == 4
    return lines


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_from_pip_install_to_the_first_credit_in_under_two_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=ignored)
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("127.0.0.1")
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "foreman"))
    monkeypatch.setenv("EC262_CA_BUNDLE", str(authority.bundle))
    with nothing_left():
        discovery = Process(
            ["-m", "discovery", "--network", "private", "--port", "0", "--data-dir", str(tmp_path / "store"),
             "--tls-cert", str(certificate), "--tls-key", str(key)],
            home=tmp_path / "discovery", log=tmp_path / "discovery.log",
        )  # fmt: skip
        url = str(discovery.ready["url"])
        job = ec262.submit(
            {1: "to be or", 2: "not to be"},
            mapper=lambda number, line: [(word, 1) for word in line.split()],
            reducer=lambda word, counts: sum(counts),
            discovery=url,
            wait_for_workers_s=180,
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("EC262", "VIRTUAL_ENV"))}
        kept |= {"HOME": str(tmp_path / "volunteer"), "EC262_CA_BUNDLE": str(authority.bundle)}
        for name in ("PYTHONPATH", "XDG_CONFIG_HOME"):
            kept.pop(name, None)
        (tmp_path / "volunteer").mkdir()
        (tmp_path / "script").write_text(
            "set -e\n"
            + "\n".join(lending())
            .replace("ec262 worker", "exec ec262 worker")
            .replace("https://discovery.example", url)
        )
        log = tmp_path / "volunteer.log"
        began_s = time.monotonic()
        with open(log, "wb") as output:
            volunteer = subprocess.Popen(
                ["sh", str(tmp_path / "script")], cwd=clone, env=kept, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            home = tmp_path / "volunteer" / ".config" / "ec262"

            def earned() -> int:
                if volunteer.poll() is not None:
                    if NO_INDEX.search(log.read_text()):
                        pytest.skip("pip finds no package index here")
                    pytest.fail(log.read_text()[-2000:])
                account = CredentialStore(home, environ={}).account(url)
                if account is None:
                    return 0
                with DiscoveryClient(url, account.account_id, account.secret) as client:
                    return client.account().earned

            until(lambda: earned() > 0, 200.0, "the first credit")
            took_s = time.monotonic() - began_s
            print(f"from pip install to the first credit: {took_s:.0f} s")
            assert took_s < 120
            assert job.result(60) == {"be": 2, "not": 1, "or": 1, "to": 2}
        finally:
            job.cancel()
            volunteer.send_signal(signal.SIGTERM)
            volunteer.wait(60)
            discovery.stop()
