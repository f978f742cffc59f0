"""The worker: lends a machine. `run_worker` starts one; `service` shows its parts."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "run_worker":
        from ec262.worker.service import run_worker  # noqa: PLC0415 - the rules alone are imported without the servers

        return run_worker
    raise AttributeError(f"module 'ec262.worker' has no attribute {name!r}")
