"""`run_job` and `submit`: the calls a user makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ec262.errors import ProgramError
from ec262.foreman.job import Job
from ec262.foreman.options import JobOptions
from ec262.foreman.report import ProgressCallback, TerminalLine
from ec262.mapreduce.recorded import calling_module, program_for

Data = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


def submit(
    data: Data,
    *,
    mapper: Callable[..., Any] | None = None,
    reducer: Callable[..., Any] | None = None,
    combiner: Callable[..., Any] | None = None,
    discovery: str | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Job:
    """Starts a job in the background.

    Args:
        data: the input: a dictionary, or (key, value) pairs.
        mapper, reducer, combiner: the program; default: what the calling module marked with the decorators.
        discovery: URL of a discovery service; default ``EC262_DISCOVERY``; without either the program starts a
            network of its own on this machine.
        progress: called with a `Progress` several times a second, in the job's thread.
        options: fields of `ec262.foreman.options.JobOptions`, such as ``redundancy=3``.

    Raises:
        ProgramError: no program, an option out of its range, a function that cannot be shipped.
        ValueNotPortable: data that cannot travel.
    """
    return _submit(calling_module(), data, mapper, reducer, combiner, discovery, progress, options)


def run_job(
    data: Data,
    *,
    mapper: Callable[..., Any] | None = None,
    reducer: Callable[..., Any] | None = None,
    combiner: Callable[..., Any] | None = None,
    discovery: str | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> dict[Any, Any]:
    """Runs a job and waits for it. Arguments as for `submit`.

    Args:
        progress: a callback, True or False to show or hide the line on standard error; default: shown on a terminal.

    Returns:
        The result by key, keys in order (None < bool < number < str < tuple).

    Raises:
        TaskFailed: the program raised an exception; with the traceback on the worker.
        InsufficientCredits, NoWorkers, DiscoveryUnreachable, JobFailed: see `ec262.errors`.
        KeyboardInterrupt: Ctrl-C cancels the job, settles what is done and has the rest of the escrow returned.
    """
    line: TerminalLine | None = None
    if progress is not None and not callable(progress) and not isinstance(progress, bool):
        raise ProgramError(f"progress={progress!r:.80}: has to be a function, True, False or None")
    if callable(progress):
        callback: ProgressCallback | None = progress
    elif progress is False:
        callback = None
    else:
        callback = line = TerminalLine(force=progress is True)
    job = _submit(calling_module(), data, mapper, reducer, combiner, discovery, callback, options)
    try:
        return job.result()
    except KeyboardInterrupt:
        job.cancel()
        while not job.done():
            try:
                job.wait()
            except KeyboardInterrupt:
                break  # asked twice: leave it to the deadlines
        raise
    finally:
        if line is not None:
            line.end()


def _submit(
    module: str,
    data: Data,
    mapper: Callable[..., Any] | None,
    reducer: Callable[..., Any] | None,
    combiner: Callable[..., Any] | None,
    discovery: str | None,
    progress: ProgressCallback | None,
    options: dict[str, Any],
) -> Job:
    program = program_for(module, mapper=mapper, reducer=reducer, combiner=combiner)
    try:
        checked = JobOptions(**options)
    except TypeError as reason:
        own = ("mapper", "reducer", "combiner", "discovery", "progress")
        known = ", ".join((*own, *(name for name in JobOptions.__dataclass_fields__ if name != "python")))
        raise ProgramError(f"{str(reason).replace('JobOptions.__init__() ', '')}; options are: {known}") from None
    return Job(
        data, program, checked, discovery=discovery or os.environ.get("EC262_DISCOVERY") or None, progress=progress
    )
