"""`run_job` and `submit`: the calls a user makes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ec262.backends.base import Backend, Tally
from ec262.config import EMBEDDED, configured_discovery
from ec262.errors import ProgramError
from ec262.jobs.driver import Plan
from ec262.jobs.job import Connect, Job
from ec262.jobs.plan import Data, with_files
from ec262.jobs.report import ProgressCallback, Report, TerminalLine
from ec262.mapreduce.program import Program
from ec262.mapreduce.recorded import calling_module, program_for
from ec262.policy import Policy
from ec262.storage.inputs import FileInput
from ec262.storage.output import FORMATS, OutputFiles

BACKENDS = ("local", "processes", "network", "dask")

_OWN = (
    *("mapper", "reducer", "combiner", "program", "stages", "params", "policy", "backend", "discovery", "cluster"),
    *("sandbox", "output", "output_format", "storage_options", "checkpoint", "name", "progress"),
)


def submit(
    data: Data | Sequence[str],
    *,
    mapper: Callable[..., Any] | None = None,
    reducer: Callable[..., Any] | None = None,
    combiner: Callable[..., Any] | None = None,
    program: Program | None = None,
    stages: Sequence[Program] | None = None,
    params: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    backend: str = "network",
    discovery: str | None = None,
    cluster: Any = None,
    sandbox: bool = False,
    output: str | os.PathLike[str] | None = None,
    output_format: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    name: str = "",
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Job:
    """Starts a job in the background.

    Args:
        data: the input: a dictionary; an iterable of (key, value) pairs, taken as they are wanted; the path, URL, glob
            or base name of files, or a list of these; or what `ec262.files` gives.
        mapper, reducer, combiner: the program; default: what the calling module marked with the decorators.
        program: the program as one thing, with partitioner, setup and parameters.
        stages: several programs, the output of one the input of the next.
        params: parameters of the program, beside and instead of its own.
        policy: how the job is to be run.
        backend: ``"network"`` (volunteers, or a network of this machine), ``"local"`` (this process, sequential),
            ``"processes"`` (this machine's cores), ``"dask"`` (a cluster of your own).
        discovery: URL of a discovery service; default ``EC262_DISCOVERY``, else that of ``ec262 login``; without any,
            or ``"embedded"``, the program starts a network of its own on this machine.
        cluster: of the Dask backend: the scheduler's address or a ``distributed.Client``; None: one of this machine.
        sandbox: of the processes backend: under the restrictions of a volunteer's machine.
        output: write results to files ``output_00``, ``output_01``, ... (path or URL) instead of keeping them.
        output_format: ``"text"``, ``"values"``, ``"binary"`` or ``"json"``; default: the program's.
        storage_options: for the file systems of paths in `data` and of `output`, such as credentials (see fsspec).
        checkpoint: a directory: after this process was killed, the same call goes on where it was.
        name: for people who look at the job, `ec262 jobs` shows it.
        progress: called with a `Progress` several times a second, in the job's thread.
        options: fields of `ec262.Policy`, such as ``redundancy=3``.

    Raises:
        ProgramError: no program, an option out of its range, a function that cannot be shipped.
        ValueNotPortable: data that cannot travel.
        SetupError: input that is not there, output that is there already.
    """
    chosen = _programs(calling_module(), mapper, reducer, combiner, program, stages, params)
    connect = connector(backend, discovery=discovery, cluster=cluster, sandbox=sandbox, name=name)
    plan, files = _plan(data, chosen, _policy(policy, options), backend, output, output_format, storage_options)
    return Job(plan, connect, output=files, checkpoint=checkpoint, progress=progress)


def run_job(
    data: Data | Sequence[str],
    *,
    mapper: Callable[..., Any] | None = None,
    reducer: Callable[..., Any] | None = None,
    combiner: Callable[..., Any] | None = None,
    program: Program | None = None,
    stages: Sequence[Program] | None = None,
    params: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    backend: str = "network",
    discovery: str | None = None,
    cluster: Any = None,
    sandbox: bool = False,
    output: str | os.PathLike[str] | None = None,
    output_format: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    as_iterator: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    name: str = "",
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> Any:
    """Runs a job and waits for it. Arguments as for `submit`.

    Args:
        as_iterator: give the result as an iterator of (key, value) pairs, for what does not fit in memory.
        progress: a callback, True or False to show or hide the line on standard error; default: shown on a terminal.

    Returns:
        The result by key, keys in order (None < number < str < bytes < tuple); with `as_iterator` an iterator over its
        pairs in that order; with `output` the job's `Report`.

    Raises:
        TaskFailed: the program raised an exception; with the traceback on the worker.
        InsufficientCredits, NoWorkers, DiscoveryUnreachable, JobFailed: see `ec262.errors`.
        KeyboardInterrupt: Ctrl-C cancels the job, settles what is done and has the rest of the escrow returned.
    """
    chosen = _programs(calling_module(), mapper, reducer, combiner, program, stages, params)
    line: TerminalLine | None = None
    if progress is not None and not callable(progress) and not isinstance(progress, bool):
        raise ProgramError(f"progress={progress!r:.80}: has to be a function, True, False or None")
    if callable(progress):
        callback: ProgressCallback | None = progress
    elif progress is False:
        callback = None
    else:
        callback = line = TerminalLine(force=progress is True)
    try:
        connect = connector(backend, discovery=discovery, cluster=cluster, sandbox=sandbox, name=name)
        plan, files = _plan(data, chosen, _policy(policy, options), backend, output, output_format, storage_options)
        # The local backend runs in this very thread, where a debugger expects it.
        inline = backend == "local"
        job = Job(plan, connect, output=files, checkpoint=checkpoint, progress=callback, inline=inline)
        _wait(job)
        if output is not None:
            job.result()
            return job.report()
        if as_iterator:
            return _closing(job)
        try:
            return job.result()
        finally:
            job.close()
    finally:
        if line is not None:
            line.end()


def _wait(job: Job) -> None:
    try:
        job.wait()
    except KeyboardInterrupt:
        job.cancel()
        while not job.done():
            try:
                job.wait()
            except KeyboardInterrupt:
                break  # asked twice: leave it to the deadlines
        raise


def _closing(job: Job) -> Iterator[tuple[Any, Any]]:
    pairs = job.pairs()  # what the job failed of is raised now, not with the first pair

    def each() -> Iterator[tuple[Any, Any]]:
        try:
            yield from pairs
        finally:
            job.close()

    return each()


def _programs(
    module: str,
    mapper: Callable[..., Any] | None,
    reducer: Callable[..., Any] | None,
    combiner: Callable[..., Any] | None,
    program: Program | None,
    stages: Sequence[Program] | None,
    params: Mapping[str, Any] | None,
) -> list[Program]:
    """The programs of all stages, with their parameters."""
    functions = any(each is not None for each in (mapper, reducer, combiner))
    if functions + (program is not None) + (stages is not None) > 1:
        raise ProgramError("give functions (mapper=...), or program=..., or stages=[...], not several of these")
    if stages is not None:
        chosen = list(stages)
        if not chosen:
            raise ProgramError("stages=[]: there has to be one program at least")
    else:
        given = program if program is not None else None
        chosen = [given or program_for(module, mapper=mapper, reducer=reducer, combiner=combiner)]
    for each in chosen:
        if not isinstance(each, Program):
            raise ProgramError(f"a program is an ec262.Program, not {each!r:.80}")
        if each.partitioner not in ("hash", "range") and not callable(each.partitioner):
            raise ProgramError(f"partitioner={each.partitioner!r:.80}: has to be 'hash', 'range' or a function")
    chosen = [dataclasses.replace(each, params={**each.params, **(params or {})}) for each in chosen]
    for each in chosen:
        missing = [name for name in each.required if each.params.get(name) is None]
        if missing:
            raise ProgramError(
                f"the program needs the parameter {missing[0]!r}: give params={{{missing[0]!r}: ...}}, or on the "
                f"command line --param {missing[0]}=..."
            )
    return chosen


def _prepared(program: Program, data: Any) -> Program:
    """The program with the parameters that its author's `prepare` makes of those given."""
    if program.prepare is None:
        return program
    params = program.prepare(program.params, data if isinstance(data, FileInput) else None)
    return dataclasses.replace(program, params=dict(params))


def _policy(policy: Policy | None, options: Mapping[str, Any]) -> Policy:
    try:
        return dataclasses.replace(policy, **options) if policy is not None else Policy(**options)
    except TypeError as reason:
        known = ", ".join((*_OWN, *(name for name in Policy.__dataclass_fields__ if name != "python")))
        raise ProgramError(f"{str(reason).replace('Policy.__init__() ', '')}; options are: {known}") from None


def _plan(
    data: Any,
    programs: list[Program],
    policy: Policy,
    backend: str,
    output: str | os.PathLike[str] | None,
    output_format: str | None,
    storage_options: Mapping[str, Any] | None,
) -> tuple[Plan, OutputFiles | None]:
    """What the job is, and where its results go."""
    data = with_files(data, programs[0], storage_options)
    if not isinstance(data, FileInput | Iterable):
        raise ProgramError(f"data has to be a dictionary or (key, value) pairs, not a {type(data).__name__}")
    programs = [_prepared(program, data if number == 0 else None) for number, program in enumerate(programs)]
    if isinstance(data, FileInput) and data.shared is not None:
        if backend == "network":
            needed = dict.fromkeys((*policy.requirements, data.shared.capability))
            policy = dataclasses.replace(policy, requirements=tuple(needed))
        else:
            data = data.local()
    form = output_format or programs[-1].output_format
    if form not in FORMATS:
        raise ProgramError(f"output_format={form!r:.80}: has to be one of {', '.join(FORMATS)}")
    files = None
    if output is not None:
        files = OutputFiles(os.fspath(output), form, storage_options=storage_options, overwrite=policy.overwrite)
    elif output_format is not None:
        raise ProgramError("output_format= says how files are written: it goes with output=")
    return Plan(programs, data, policy), files


def connector(backend: str, *, discovery: str | None, cluster: Any, sandbox: bool, name: str) -> Connect:
    """What makes the backend of that name. What a backend needs is imported when it is wanted.

    Raises:
        ProgramError: no such backend, or an argument that is another backend's.
    """
    if cluster is not None and backend != "dask":
        raise ProgramError("cluster= goes with backend='dask'")
    if sandbox and backend != "processes":
        raise ProgramError("sandbox=True goes with backend='processes' (on the network there is always one)")
    if discovery is not None and backend != "network":
        raise ProgramError("discovery= goes with backend='network'")
    if backend not in BACKENDS:
        raise ProgramError(f"backend={backend!r:.80}: has to be one of {', '.join(BACKENDS)}")

    def connect(policy: Policy, tally: Tally, changed: Callable[[], None]) -> Backend:
        if backend == "local":
            from ec262.backends.local import LocalBackend  # noqa: PLC0415

            return LocalBackend(policy, tally, changed)
        if backend == "processes":
            from ec262.backends.processes import ProcessesBackend  # noqa: PLC0415

            return ProcessesBackend(policy, tally, changed, sandbox=sandbox)
        if backend == "dask":
            from ec262.backends.dask import DaskBackend  # noqa: PLC0415

            return DaskBackend(policy, tally, changed, address=cluster)
        from ec262.backends.network import NetworkBackend  # noqa: PLC0415

        url = None if discovery == EMBEDDED else discovery or configured_discovery()
        return NetworkBackend(policy, tally, changed, discovery=url, name=name)

    return connect


__all__ = ["Report", "connector", "run_job", "submit"]
