"""Ours: the same problems as EC262 jobs, on a network of this machine and on the processes backend.

The network (discovery, its store, workers with all sandbox layers) is up and has run a small job before the clock
starts. That was of another program, so far as EC262 can tell: what a program costs the first time, its rehearsal
above all, is in the time. The processes backend starts its children within the job: that is in its time. It has as
many as there are cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.compare import Ready
from ec262.embedded import EmbeddedNetwork, embedded_network
from ec262.jobs.report import Progress
from ec262.jobs.run import run_job
from ec262.mapreduce.program import Program


@contextlib.contextmanager
def network_of(workers: int) -> Iterator[EmbeddedNetwork]:
    """A network that is up; jobs without `discovery` find it."""
    os.environ["EC262_WORKERS"] = str(workers)
    network = embedded_network()
    try:
        yield network
    finally:
        network.close()


def job(
    data: Callable[[], Any],
    program: Program,
    options: Mapping[str, Any],
    *,
    network: EmbeddedNetwork | None,
    warm_up: Any,
) -> Ready:
    """A job that is ready to run.

    Args:
        data: gives the input; called within the measurement.
        options: of `run_job`.
        network: where it runs; None: on the processes backend.
        warm_up: input of a small job that runs at once, on the network alone.
    """
    chosen = {**options, "backend": "processes" if network is None else "network", "progress": False}
    if network is not None:
        small = {name: value for name, value in chosen.items() if name not in ("output", "overwrite", "as_iterator")}
        other = dataclasses.replace(program, params={**program.params, "warm up": True})
        run_job(warm_up, program=other, **small)
    ready = Ready(lambda: None)

    def note(progress: Progress) -> None:
        ready.facts["bytes_spilled"] = progress.bytes_spilled
        ready.facts["bytes_in"] = progress.bytes_in
        ready.facts["bytes_out"] = progress.bytes_out
        ready.facts["done"] = progress.done

    ready.run = lambda: run_job(data(), program=program, **{**chosen, "progress": note})
    if network is not None:
        ready.services = (network.discovery_pid,)
    return ready
