"""The ``ec262`` command as a person runs it: a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def start(
    *words: str,
    home: Path,
    cwd: Path = ROOT,
    **environment: str,
) -> subprocess.Popen[str]:
    """Starts the command in a session of its own, as a terminal does: Ctrl-C is a signal to its process group."""
    known = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET", "EC262_HOME", "XDG_CONFIG_HOME"):
        known.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ec262.cli", *words],
        cwd=cwd, env={**known, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="surrogateescape", start_new_session=True,
    )  # fmt: skip


def run(
    *words: str, home: Path, cwd: Path = ROOT, timeout_s: float = 90.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    process = start(*words, home=home, cwd=cwd, **environment)
    try:
        out, errors = process.communicate(timeout=timeout_s)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
